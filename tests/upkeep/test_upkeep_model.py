"""No interleaving loses anything; and each wrong way of collecting loses something.

With STADDLE_TEST_LONG=1 two collectors run with two uploads of every kind (ten minutes).
"""

import os

import pytest
from extent import extent
from gc_model import Model, Program, Protocol, beginning

LEARNS = Program(chunk="a")
"""Names a digest that it learned from an earlier upload; stores the chunk itself if it is told that it is missing."""
CARRIES = Program(base=True)
CARRIES_AND_STORES = Program(base=True, chunk="b")

PROGRAMS = {
    "one learns": (LEARNS,),
    "one carries over": (CARRIES,),
    "one learns, one carries over": (LEARNS, CARRIES),
    "both learn": (LEARNS, LEARNS),
    "both carry over": (CARRIES, CARRIES),
    "both store the same new chunk": (Program(chunk="b"), Program(chunk="b")),
    "one carries over and stores, one learns": (CARRIES_AND_STORES, Program(chunk="b")),
}


EVERYDAY = extent(
    {name: of for name, of in PROGRAMS.items() if name != "one carries over and stores, one learns"}, PROGRAMS
)
LONG = bool(os.environ.get("STADDLE_TEST_LONG"))


@pytest.mark.parametrize("collectors", [1, 2])
@pytest.mark.parametrize("dead", [False, True], ids=["whole pack", "compaction"])
@pytest.mark.parametrize("programs", EVERYDAY.values(), ids=EVERYDAY)
def test_no_interleaving_loses_anything(programs, dead, collectors):
    if collectors == 2 and len(programs) == 2 and not LONG:
        pytest.skip("only with STADDLE_TEST_LONG=1")
    for claimed in extent((False,), (True, False)):
        start = beginning(len(programs), collectors, dead=dead, claimed=claimed)
        states, way = Model(programs).explore(start)
        assert way == []
        assert states > 40, "too few states to prove anything"


@pytest.mark.parametrize(
    ("wrong", "programs", "how"),
    [
        ("condemns_in_one_statement", (LEARNS,), {}),
        ("claims_count_by_age", (LEARNS,), {}),
        ("refers_without_a_claim", (LEARNS,), {}),
        ("lists_roots_page_by_page", (CARRIES,), {"claimed": False}),
        ("lifts_claims_of_purged_backups_when_condemning", (LEARNS, CARRIES), {}),
        ("refers_to_whoever_indexed_first", (Program(chunk="b"), Program(chunk="b")), {}),
        ("compacts_without_looking_at_claims", (Program(chunk="dead"),), {"dead": True}),
        ("collects_without_a_fence", (CARRIES,), {"collectors": 2}),
        ("forgets_bases_of_open_uploads", (CARRIES,), {"claimed": False}),
    ],
)
def test_each_wrong_way_of_collecting_is_caught(wrong, programs, how):
    start = beginning(len(programs), how.pop("collectors", 1), **how)
    _, way = Model(programs, Protocol(**{wrong: True})).explore(start)
    assert way, "the model does not find the fault"
    assert way[-1].startswith("LOST: ")
