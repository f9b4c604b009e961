"""A power cut after each step of a recorded run: everything answered by then survives, byte for byte.

The long form, every prefix of the record in several variants: make power ARGS="--operations 12 --random 3 --seed 7".
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash_disk import VARIANTS
from crash_power import Cuts
from crash_work import LostError
from extent import extent

SEED = 7


def test_a_power_cut_during_the_first_start_is_completed_by_the_next_one(recorded, tmp_path: Path) -> None:
    cuts = recorded.cuts(tmp_path)
    for prefix in range(0, cuts.answers()[0], extent(6, 3)):
        cuts.check(prefix, VARIANTS[prefix // extent(6, 3) % len(VARIANTS)], SEED)


def test_a_power_cut_loses_nothing_answered_and_leaves_nothing_partial(recorded, tmp_path: Path) -> None:
    cuts, rng = recorded.cuts(tmp_path), random.Random(SEED)
    answers = cuts.answers()
    for prefix in rng.sample(range(answers[0], len(recorded.events) + 1), extent(6, 16)):
        cuts.check(prefix, rng.choice(VARIANTS), SEED)
    for prefix in rng.sample(answers, extent(2, 4)):
        cuts.check(prefix, "nothing", SEED)
    assert cuts.figures["restored"] > 0


NEEDED = [
    "parent.sync-directory",
    "data.sync-directory",
    "master-key.sync",
    "store.sync-directory",
    "directory.sync",
    "format.sync",
    "keys.sync",
    "keys.sync-directory",
    "pack.sync",
    "pack.sync-directory",
    "record.sync",
    "record.sync-directory",
    "mark.sync-directory",
]


@pytest.mark.parametrize("step", NEEDED)
def test_leaving_out_this_sync_causes_a_detected_loss(recorded, tmp_path: Path, step: str) -> None:
    """This shows that the harness works, and that no sync is superfluous."""
    cuts = recorded.cuts(tmp_path, step)
    assert any(is_lost(cuts, prefix) for prefix in reversed(cuts.answers()))


def is_lost(cuts: Cuts, prefix: int) -> bool:
    try:
        cuts.check(prefix, "nothing")
    except LostError as lost:
        print(lost)
        return True
    return False


def test_every_sync_is_tried_without(recorded) -> None:
    syncs = {event.step.name for event in recorded.events if event.step.operation.startswith("sync")}
    # The next start recreates client.toml, and the next record a head; only the name of a mark counts.
    assert syncs - {"client-config.sync", "head.sync", "head.sync-directory", "mark.sync"} == set(NEEDED)
