"""An earlier version of a file suggests where chunks end: the cuts are the same, and less is scanned."""

from dataclasses import replace
from itertools import pairwise

import pytest
from extent import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from staddle.chunking import EXPECTED_AHEAD, Chunker, ChunkerParameters, Cutter, Expected
from test_chunking import REAL, SMALL, cut, noise

GEAR_OF_ZERO = 0x3B5D3C7D207E37DC
"""What FastCDC's table has for a zero byte, to which the seed is added."""

blocks = st.lists(st.builds(noise, st.integers(0, 3_000), st.integers(0, 5)), min_size=1, max_size=8)


class Scanning(Cutter):
    """Count the bytes that were scanned for cuts."""

    def __init__(self, parameters: ChunkerParameters) -> None:
        super().__init__(parameters)
        self.scanned = 0

    def lengths(self, window):
        for length in super().lengths(window):
            self.scanned += length
            yield length


def expected_cut(pushes, chunks, cutter=SMALL):
    return cut(pushes, cutter, expected=Expected(chunks, cutter.parameters))


@given(blocks, st.data())
@settings(deadline=None, max_examples=examples(300))
def test_cuts_are_the_same_for_any_earlier_version(parts, data) -> None:
    """Blocks of an earlier version are kept, lost, doubled, moved, or zeros; pushed pieces begin and end anywhere."""
    earlier = cut([b"".join(parts)])
    now = b"".join(data.draw(st.lists(st.sampled_from([*parts, b"!", bytes(2_500)]), max_size=10)))
    ends = [0, *sorted(data.draw(st.lists(st.integers(0, len(now)), max_size=6))), len(now)]
    pieces = [now[start:end] for start, end in pairwise(ends)]
    pushes = [len(piece) if piece and not any(piece) else piece for piece in pieces]
    assert expected_cut(pushes, earlier) == cut([now])


@given(blocks, st.lists(st.integers(0, 7_000), max_size=20), st.booleans())
@example(parts=[noise(3_000)], lengths=[64, 64], last=False)
@settings(deadline=None, max_examples=examples(200))
def test_wrong_expectations_cost_only_time(parts, lengths, last: bool) -> None:
    """Right digests with wrong lengths, wrong digests with right lengths, and lengths that no chunk has."""
    whole = b"".join(parts)
    right = cut([whole])
    lies = [(length, digest) for length, (_, digest) in zip(lengths, right, strict=False)]
    lies += [(length, digest[::-1]) for length, digest in right]
    assert expected_cut(parts, [*right, *lies] if last else [*lies, *right]) == right


def test_counted_zeros_do_not_match_an_earlier_chunk() -> None:
    """With seeds whose zeros end chunks early, followed by another chunk of that length."""
    for seed in (GEAR_OF_ZERO ^ 1 << bit for bit in (60, 61, 62)):
        cutter = Cutter(replace(SMALL.parameters, seed=seed))
        length = len(cutter.zeros.data)
        assert length < SMALL.parameters.max_bytes
        for head in (noise(2_400 + more) for more in range(length)):
            chunks = cut([head, bytes(9_000), noise(3_000)], cutter)
            for tail in (0, 1, length // 2, length - 1):
                pushes = [head, 20 * length + tail, noise(length - tail)]
                assert expected_cut(pushes, chunks, cutter) == cut(pushes, cutter)


def test_the_last_chunk_before_a_change_is_scanned() -> None:
    """The byte after a chunk decides whether it ends there, and some bytes do not let it end."""
    whole = noise(40_000)
    chunks = cut([whole])
    moved, end = 0, 0
    for length, _ in chunks[:60]:
        end += length
        for byte in range(0, 256, 5):
            changed = whole[:end] + bytes([byte]) + noise(3_000, byte)
            plain = cut([changed])
            moved += length not in [each[0] for each in plain]
            assert expected_cut([changed], chunks) == plain
    assert moved, "the tested case did not occur"


def test_unchanged_data_is_hardly_scanned() -> None:
    data = noise(30_000_000)
    chunks = cut([data], REAL)
    changed = data[:9_000_000] + b"0123456789" * 2_000 + data[9_000_000:20_000_000] + data[23_000_000:]
    for now, most in ((data, 0.4), (changed, 0.5)):
        cutter = Scanning(REAL.parameters)
        pieces = [now[start : start + 4_000_000] for start in range(0, len(now), 4_000_000)]
        assert expected_cut(pieces, chunks, cutter) == cut([now], REAL)
        assert cutter.scanned < most * len(now)


def test_only_the_nearby_part_of_an_earlier_version_is_requested() -> None:
    data = noise(200_000)
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            for chunk in cut([data])[:-1]:
                drawn += 1
                yield chunk

    chunker = Chunker(SMALL, expected=Expected(endless(), SMALL.parameters))
    assert drawn == EXPECTED_AHEAD
    passed = len(chunker.push(data))
    assert EXPECTED_AHEAD < drawn <= EXPECTED_AHEAD + passed


@pytest.mark.parametrize("length", [0, 63, 1_025])
def test_an_impossible_length_ends_the_expectations(length: int) -> None:
    data = noise(20_000)
    chunks = cut([data])
    source = iter([*chunks[:5], (length, chunks[5][1]), *chunks[6:]])
    assert expected_cut([data], source) == chunks
    assert [*source] == chunks[6:], "nothing after it was requested"
