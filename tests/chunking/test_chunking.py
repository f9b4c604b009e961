"""Cuts are the same for the same bytes, however they arrive; and the golden boundaries of docs/format.md."""

import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle.chunking import (
    CHUNK_BYTES_MAX,
    EMPTY_CONTENT_ID,
    Chunker,
    ChunkerParameters,
    ContentHasher,
    Cutter,
    content_id,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "chunking" / "cuts.json"
SEED = 0x5EED
SMALL = Cutter(ChunkerParameters(SEED, min_bytes=64, avg_bytes=256, max_bytes=1024, fixed_bytes=512))
REAL = Cutter(ChunkerParameters(SEED))


def cut(pushes, cutter=SMALL, **options):
    """The (length, digest) list of the pushed bytes and zeros."""
    chunker = Chunker(cutter, **options)
    cuts = []
    for piece in pushes:
        cuts += chunker.push_zeros(piece) if isinstance(piece, int) else chunker.push(piece)
    cuts += chunker.finish()
    assert chunker.pending_bytes == 0
    return [(len(one.data), one.digest) for one in cuts]


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


pieces = st.lists(
    st.one_of(
        st.builds(noise, st.integers(0, 5000), st.integers(0, 3)),
        st.integers(0, 6000),
        st.binary(max_size=50),
    ),
    max_size=8,
)


@given(pieces, st.randoms(use_true_random=False), st.booleans())
@settings(deadline=None)
def test_cuts_depend_neither_on_how_bytes_arrive_nor_on_how_zeros_are_encoded(parts, rng, fixed):
    whole = b"".join(bytes(part) if isinstance(part, int) else part for part in parts)
    expected = cut([whole], fixed=fixed)
    assert sum(length for length, _ in expected) == len(whole)
    assert cut(parts, fixed=fixed) == expected
    scattered, start = [], 0
    while start < len(whole):
        size = rng.choice([1, 7, 300, 2000, 5000])
        scattered.append(whole[start : start + size])
        start += size
    assert cut(scattered, fixed=fixed) == expected


@given(st.integers(0, 40), pieces)
@settings(deadline=None)
def test_cuts_restart_at_every_chunk_so_a_resumed_file_is_cut_the_same(index, parts):
    whole = b"".join(bytes(part) if isinstance(part, int) else part for part in parts)
    cuts = cut([whole])
    done = cuts[:index]
    offset = sum(length for length, _ in done)
    assert done + cut([whole[offset:]]) == cuts


def test_every_chunk_has_the_digest_of_its_bytes_and_keeps_the_bounds():
    data = noise(3_000_000)
    chunker = Chunker(REAL)
    cuts = [*chunker.push(data), *chunker.finish()]
    assert b"".join(one.data for one in cuts) == data
    for one in cuts:
        assert blake3(one.data).digest() == one.digest
    assert all(64 * 1024 <= len(one.data) <= CHUNK_BYTES_MAX for one in cuts[:-1])


def test_an_insertion_changes_only_the_chunks_around_it():
    data = noise(20_000_000)
    changed = data[:7_000_000] + b"inserted" + data[7_000_000:]
    before, after = set(cut([data], REAL)), set(cut([changed], REAL))
    assert len(after - before) <= 3


def test_seeds_cut_differently():
    data = noise(4_000_000)
    assert cut([data], REAL) != cut([data], Cutter(ChunkerParameters(SEED + 1)))


def _golden():
    made = {}
    for name, data in {
        "empty": b"",
        "one byte": b"x",
        "exactly the minimum": noise(64 * 1024),
        "noise": noise(5_000_000),
        "zeros": bytes(3_500_000),
        "text": b"".join(b"line %d of a text that repeats itself\n" % i for i in range(60_000)),
    }.items():
        cuts = cut([data], REAL)
        made[name] = {
            "bytes": len(data),
            "blake3": blake3(data).hexdigest(),
            "lengths": [length for length, _ in cuts],
            "content_id": content_id(cuts).hex(),
        }
    return {"seed": SEED, "files": made}


def test_the_golden_boundaries_are_unchanged():
    assert _golden() == json.loads(GOLDEN.read_text())


def test_content_ids_follow_the_format():
    assert content_id([]) == EMPTY_CONTENT_ID == blake3(b"").digest()
    one = blake3(b"one").digest()
    assert content_id([(3, one)]) == one
    two = [(3, one), (4, blake3(b"four").digest())]
    packed = b"".join(length.to_bytes(4, "little") + digest for length, digest in two)
    assert content_id(two) == blake3(packed, derive_key_context="staddle.v1 content id").digest()
    hasher = ContentHasher()
    for pair in two:
        hasher.add(*pair)
    assert hasher.content_id() == content_id(two)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 0},
        {"seed": 2**63},
        {"seed": 1, "min_bytes": 0},
        {"seed": 1, "max_bytes": 2**21},
        {"seed": 1, "min_bytes": 2**19},
        {"seed": 1, "fixed_bytes": 0},
    ],
)
def test_parameters_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="chunk"):
        ChunkerParameters(**fields)


def test_the_pure_part_needs_no_native_chunker():
    code = (
        "import sys; sys.modules['pyfastcdc'] = None; import staddle.chunking as c; "
        "assert c.content_id([]) == c.EMPTY_CONTENT_ID"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chunks_within_a_piece_are_views_and_chunks_across_pieces_are_copies():
    pieces = [noise(1_100_000, seed) for seed in range(6)]
    chunker = Chunker(REAL)
    cuts = [cut for piece in pieces for cut in chunker.push(piece)] + chunker.finish()
    assert b"".join(cut.data for cut in cuts) == b"".join(pieces)
    ends = {sum(map(len, pieces[:n])) for n in range(1, 6)}
    start = 0
    for cut in cuts:
        stop = start + len(cut.data)
        if any(start < end < stop for end in ends):
            assert memoryview(cut.data.obj).nbytes == len(cut.data)
        else:
            assert any(cut.data.obj is piece for piece in pieces)
        start = stop


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True, parents=True)
    GOLDEN.write_text(json.dumps(_golden(), indent=1) + "\n")


@pytest.mark.slow
def test_small_pieces_cost_no_more_memory_than_their_bytes():
    data = noise(1_000_000)
    chunker = Chunker(REAL)
    tracemalloc.start()
    for at in range(0, len(data), 2):
        chunker.push(data[at : at + 2])
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert chunker.pending_bytes == len(data)
    assert held_bytes < 1.5 * len(data)
