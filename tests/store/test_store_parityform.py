"""The layout of parity objects, and the erasure code, read by hand per docs/format.md."""

from __future__ import annotations

import struct

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle_server.base.limits import PACK_BYTES_MAX
from staddle_server.store import parityform as form
from staddle_server.store.keys import secrets_of
from staddle_server.store.packform import PACK_BYTES_MIN
from staddle_server.store.reedsolomon import Code
from test_store_parity import BLOCK, EXAMPLES, KEYS, sample


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pack_bytes", 2**63),
        ("pack_bytes", 0),
        ("block_bytes", 0),
        ("block_bytes", 1),
        ("block_bytes", 2**32 - 1),
        ("rows", 0),
        ("rows", 2**32 - 1),
        ("columns", 0),
        ("columns", 2**16 - 1),
        ("columns", 7),
        ("parity", 0),
        ("parity", 2**16 - 1),
        ("parity", 250),
    ],
)
def test_a_head_with_an_impossible_number_is_refused(field: str, value: int) -> None:
    key, tenant, pack = bytes(32), bytes(16), bytes(16)
    geometry = form.plan(1_300_000, 10)
    assert form.decode_head(form.encode_head(geometry, tenant, pack, key), tenant, pack, key) == geometry
    forged = form.encode_head(geometry._replace(**{field: value}), tenant, pack, key)
    with pytest.raises(form.FormError, match="impossible"):
        form.decode_head(forged, tenant, pack, key)


@pytest.mark.parametrize(
    "geometry",
    [
        form.plan(2**40, 10),
        form.plan(PACK_BYTES_MAX + 1, 10),
        form.plan(PACK_BYTES_MIN - 1, 10),
        form.Geometry(10_000, 100, 1, 100, 10),
        form.Geometry(3_000, 4_096, 1, 1, 1),
    ],
)
def test_a_consistent_head_that_fits_no_pack_is_refused(geometry: form.Geometry) -> None:
    key, tenant, pack = bytes(32), bytes(16), bytes(16)
    with pytest.raises(form.FormError, match="impossible"):
        form.decode_head(form.encode_head(geometry, tenant, pack, key), tenant, pack, key)


@pytest.mark.parametrize("percent", [0, 101, -1])
def test_an_impossible_percentage_is_refused(percent: int) -> None:
    with pytest.raises(ValueError, match="1 to 100 percent"):
        form.plan(1_000_000, percent)


def test_every_flipped_bit_of_a_head_is_found() -> None:
    key, tenant, pack = bytes(32), bytes(16), bytes(range(16))
    head = form.encode_head(form.plan(1_300_000, 10), tenant, pack, key)
    assert len(head) == form.HEAD_BYTES
    for bit in range(len(head) * 8):
        damaged = bytearray(head)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(form.FormError):
            form.decode_head(damaged, tenant, pack, key)


def times(a: int, b: int) -> int:
    """Multiplication in the field of 256 elements with the polynomial 0x11D."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


INVERSE = {a: next(b for b in range(1, 256) if times(a, b) == 1) for a in range(1, 256)}


@settings(max_examples=40 * EXAMPLES // 100, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 40), st.randoms())
def test_the_erasure_code_is_the_documented_one_and_enough_blocks_restore_a_row(
    columns: int, parity: int, block_bytes: int, seeded
) -> None:
    code = Code(columns, parity, block_bytes)
    row = [seeded.randbytes(block_bytes) for _ in range(columns)]
    encoded = code.encode(row)
    for index in {0, parity // 2, parity - 1}:
        expected = bytearray(block_bytes)
        for column in range(columns):
            factor = INVERSE[(columns + index) ^ column]
            for at in range(block_bytes):
                expected[at] ^= times(factor, row[column][at])
        assert encoded[index] == expected
    blocks = dict(enumerate(row + encoded))
    kept = {index: blocks[index] for index in seeded.sample(sorted(blocks), columns)}
    assert code.restore(kept) == row


@pytest.mark.parametrize(("size", "rows", "columns", "parity"), [(300_000, 1, 74, 8), (1_300_000, 4, 80, 8)])
def test_a_parity_object_reads_by_hand_as_the_format_describes(
    size: int, rows: int, columns: int, parity: int
) -> None:
    one, key = sample(size, 10), secrets_of(KEYS).parity_key
    held, data = one.blobs.objects[one.parity_name], one.data
    head = held[:96]
    assert struct.unpack("<IQIHH", head[12:32]) == (BLOCK, len(data), rows, columns, parity)
    assert held[-96:] == head
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    parity_blocks = [held[96 + BLOCK * number :][:BLOCK] for number in range(rows * parity)]
    checks = b"".join(blake3(block, key=key).digest()[:8] for block in blocks + parity_blocks)
    assert held[96 + BLOCK * rows * parity : -96] == checks
    for number, index, at in ((0, 0, 0), (rows - 1, parity - 1, BLOCK - 1), (rows // 2, 3, 100)):
        expected = 0
        for column in range(columns):
            byte = data[(column * rows + number) * BLOCK :][:BLOCK].ljust(BLOCK, b"\0")[at]
            expected ^= times(INVERSE[(columns + index) ^ column], byte)
        assert parity_blocks[number * parity + index][at] == expected


def test_an_impossible_code_and_blocks_that_form_no_row_are_refused() -> None:
    for numbers in ((0, 1, 16), (1, 0, 16), (200, 56, 16), (1, 1, 0)):
        with pytest.raises(ValueError, match="invalid code"):
            Code(*numbers)
    code = Code(3, 2, 16)
    with pytest.raises(ValueError, match="a row has 3 blocks of 16"):
        code.encode([bytes(16)] * 2)
    with pytest.raises(ValueError, match="a row has 3 blocks of 16"):
        code.encode([bytes(15)] * 3)
    with pytest.raises(ValueError, match="3 blocks are required"):
        code.restore({0: bytes(16), 4: bytes(16)})


def test_block_checks_depend_on_the_key() -> None:
    assert form.check_of(b"block", bytes(32)) == blake3(b"block", key=bytes(32)).digest()[:8]
