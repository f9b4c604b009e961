"""Parity: damage within the budget is repaired byte for byte, more is reported, nothing wrong is accepted."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle_server.base.limits import PARITY_BLOCK_BYTES
from staddle_server.base.types import PackSummary, Role, TenantKeys
from staddle_server.store import parityform as form
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import BlobMissing, Blobs
from staddle_server.store.files import Files
from staddle_server.store.keys import secrets_of
from staddle_server.store.pack import PackDamaged, PackReader, pack_name
from staddle_server.store.parity import (
    BeyondParity,
    PackRange,
    Parity,
    ParityDamaged,
    parity_name,
    parse_parity_name,
    verify_pack,
)
from store_data import Seeded, tenant_keys, write_pack, xored
from test_store_pack_damage import Forge, entry, row

BLOCK = PARITY_BLOCK_BYTES
EXAMPLES = int(os.environ.get("STADDLE_TEST_EXAMPLES", examples(100)))
"""Random damages that each property is shown; more in a long run."""
KEYS = tenant_keys("here", (1, 2))


class Sample:
    """A pack with its parity, in memory."""

    def __init__(self, data_bytes: int, percent: int) -> None:
        self.blobs = MemoryBlobs()
        self.summary = pack_of(self.blobs, data_bytes)
        self.pack = self.summary.pack
        self.parity = Parity(self.blobs, KEYS)
        self.parity_bytes = self.parity.make(self.pack, percent)
        self.name, self.parity_name = pack_name(KEYS.tenant, self.pack), parity_name(KEYS.tenant, self.pack)
        self.data = self.blobs.objects[self.name]
        self.geometry = form.plan(len(self.data), percent)

    def copy(self) -> Sample:
        """A copy that the test may damage."""
        made = object.__new__(Sample)
        made.__dict__.update(self.__dict__)
        made.blobs = MemoryBlobs()
        made.blobs.objects.update(self.blobs.objects)
        made.parity = Parity(made.blobs, KEYS)
        return made

    def damage(self, name: str, at: int, data: bytes) -> None:
        held = bytearray(self.blobs.objects[name])
        held[at : at + len(data)] = data
        self.blobs.objects[name] = bytes(held)

    @property
    def now(self) -> bytes:
        return self.blobs.objects[self.name]


def pack_of(blobs: Blobs, data_bytes: int, keys: TenantKeys = KEYS) -> PackSummary:
    seeded = Seeded(f"pack of {data_bytes}")
    sizes = [min(200_000, data_bytes - start) for start in range(0, data_bytes, 200_000)]
    segments = [(Role.DATA, [seeded(size)]) for size in sizes]
    return write_pack(blobs, keys, [*segments, (Role.MANIFEST, [b"a page", b"another"])])


@functools.cache
def sample(data_bytes: int, percent: int) -> Sample:
    return Sample(data_bytes, percent)


SIZES = [1, 3_000, 9_000, 300_000, 1_300_000]


@pytest.mark.parametrize("percent", [1, 10, 100])
@pytest.mark.parametrize("size", SIZES)
def test_parity_uses_its_percentage_and_a_little_more(size: int, percent: int) -> None:
    one = sample(size, percent)
    assert one.parity_bytes == len(one.blobs.objects[one.parity_name]) == one.geometry.object_bytes
    rounding = one.geometry.rows * min(BLOCK, len(one.data))
    wanted = one.geometry.rows * one.geometry.columns * min(BLOCK, len(one.data)) * percent / 100
    assert wanted <= one.geometry.rows * one.geometry.row_parity_bytes < wanted + rounding
    assert one.geometry.checks_bytes <= 8 * (2 + 2 * len(one.data) / BLOCK) + 16


@pytest.mark.parametrize("size", SIZES)
def test_any_single_lost_block_is_restored_byte_for_byte_and_named(size: int) -> None:
    one = sample(size, 1)
    for block in range(0, one.geometry.blocks, max(1, one.geometry.blocks // 20)):
        damaged = one.copy()
        length = min(BLOCK, len(one.data) - block * BLOCK)
        damaged.damage(damaged.name, block * BLOCK, xored(one.data[block * BLOCK :][:length]))
        mended = damaged.parity.mend(damaged.pack)
        assert damaged.now == one.data
        assert mended == ((PackRange(block * BLOCK, length),), len(one.data), len(one.data))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_a_lost_stretch_within_the_budget_is_restored_byte_for_byte(data: st.DataObject) -> None:
    one = sample(data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from([10, 25])))
    budget = max(1, one.geometry.rows * one.geometry.parity * BLOCK - BLOCK + 1)
    length = data.draw(st.integers(1, min(budget, len(one.data))))
    # A stretch touches one block more than it fills, unless it starts at a block's edge.
    blocks = one.geometry.rows * one.geometry.parity
    start = data.draw(st.integers(0, len(one.data) - length))
    if (start + length - 1) // BLOCK - start // BLOCK >= blocks:
        start -= start % BLOCK
    damaged = one.copy()
    damaged.damage(
        damaged.name, start, bytes(length) if data.draw(st.booleans()) else xored(one.data[start:][:length])
    )
    mended = damaged.parity.mend(damaged.pack)
    assert damaged.now == one.data
    for offset, size in mended.ranges:
        assert start - BLOCK < offset
        assert offset + size < start + length + BLOCK
    assert verify_pack(PackReader(damaged.blobs, KEYS), KEYS, damaged.pack) == len(one.data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_any_damage_to_a_pack_and_its_parity_is_repaired_or_left_unchanged(
    data: st.DataObject,
) -> None:
    one = sample(data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from([1, 10, 100])))
    damaged = one.copy()
    for name in data.draw(st.lists(st.sampled_from([one.name, one.parity_name]), min_size=1, max_size=6)):
        held = damaged.blobs.objects.get(name)
        if held is None:
            continue
        start, length = data.draw(st.integers(0, len(held))), data.draw(st.integers(0, len(held)))
        match data.draw(st.sampled_from(["flip", "zero", "cut", "extend", "shift", "lose"])):
            case "flip":
                held = (
                    held[:start]
                    + xored(held[start : start + 1], 1 << data.draw(st.integers(0, 7)))
                    + held[start + 1 :]
                )
            case "zero":
                held = held[:start] + bytes(len(held[start : start + length])) + held[start + length :]
            case "cut":
                held = held[:start]
            case "extend":
                held += bytes(length)
            case "shift":
                held = held[start:] + held[:start]
            case "lose":
                del damaged.blobs.objects[name]
                continue
        damaged.blobs.objects[name] = held
    before = dict(damaged.blobs.objects)
    refused = None
    try:
        damaged.parity.mend(damaged.pack)
    except (BeyondParity, ParityDamaged, BlobMissing) as error:
        refused = error
    if refused is None:
        assert damaged.now == one.data
    else:
        assert damaged.blobs.objects == before
        assert damaged.pack.hex() in refused.message


@pytest.mark.parametrize("size", [9_000, 1_300_000])
def test_one_block_beyond_the_budget_changes_nothing_and_says_how_much_is_lost(size: int) -> None:
    one = sample(size, 10)
    damaged = one.copy()
    for lost in range(one.geometry.parity + 1):
        at = lost * one.geometry.rows * BLOCK
        damaged.damage(damaged.name, at, xored(one.data[at : at + 1]))
    before = dict(damaged.blobs.objects)
    with pytest.raises(BeyondParity) as refused:
        damaged.parity.mend(damaged.pack)
    said = refused.value.message
    assert damaged.blobs.objects == before
    assert f"{one.geometry.parity + 1} of its {one.geometry.blocks} blocks" in said
    assert f"1 of its {one.geometry.rows} rows" in said
    assert "nothing was changed" in said


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("missing", [1, 7, 500])
def test_a_pack_that_is_too_short_or_too_long_is_restored(size: int, missing: int) -> None:
    one = sample(size, 10)
    cut = one.copy()
    cut.blobs.objects[cut.name] = one.data[:-missing]
    mended = cut.parity.mend(cut.pack)
    assert cut.now == one.data
    assert mended.found_bytes == max(0, len(one.data) - missing)
    assert sum(mended.ranges[-1]) == len(one.data)
    longer = one.copy()
    longer.blobs.objects[longer.name] += bytes(missing)
    assert longer.parity.mend(longer.pack) == ((), len(one.data) + missing, len(one.data))
    assert longer.now == one.data


def test_a_lost_pack_is_restored_where_the_parity_covers_all_of_it() -> None:
    for one in (sample(1, 1), sample(3_000, 10), sample(300_000, 100)):
        gone = one.copy()
        del gone.blobs.objects[gone.name]
        mended = gone.parity.mend(gone.pack)
        assert gone.now == one.data
        assert mended == ((PackRange(0, len(one.data)),), None, len(one.data))
    one = sample(300_000, 10).copy()
    del one.blobs.objects[one.name]
    with pytest.raises(BeyondParity):
        one.parity.mend(one.pack)
    assert one.name not in one.blobs.objects


def test_a_sound_pack_is_not_rewritten() -> None:
    one = sample(300_000, 10).copy()
    held = one.blobs.objects[one.name]
    assert one.parity.mend(one.pack) == ((), len(one.data), len(one.data))
    assert one.blobs.objects[one.name] is held


def test_every_flipped_bit_of_a_small_pack_is_repaired() -> None:
    one = sample(1, 1)
    for bit in range(len(one.data) * 8):
        damaged = one.copy()
        damaged.damage(damaged.name, bit // 8, xored(one.data[bit // 8 :][:1], 1 << bit % 8))
        damaged.parity.mend(damaged.pack)
        assert damaged.now == one.data


def test_parity_with_a_flipped_byte_still_repairs() -> None:
    one = sample(9_000, 50)
    assert one.geometry.parity == 2
    held = one.blobs.objects[one.parity_name]
    for at in [
        *range(form.HEAD_BYTES),
        *range(form.HEAD_BYTES, len(held), 37),
        *range(len(held) - 200, len(held)),
    ]:
        damaged = one.copy()
        damaged.damage(damaged.parity_name, at, xored(held[at : at + 1], 0x10))
        with pytest.raises(ParityDamaged):
            damaged.parity.check(damaged.pack)
        damaged.damage(damaged.name, 5_000, xored(one.data[5_000:5_010]))
        assert damaged.parity.mend(damaged.pack).ranges == (PackRange(4096, 4096),)
        assert damaged.now == one.data


def test_a_pack_and_its_parity_are_checked_against_each_other() -> None:
    for size in (1, 300_000, 1_300_000):
        one = sample(size, 10)
        one.parity.check(one.pack)
        for name in (one.name, one.parity_name):
            held = one.blobs.objects[name]
            for changed in (
                held[:-1],
                held + b"x",
                b"",
                xored(held[:1]) + held[1:],
                held[:-1] + xored(held[-1:]),
            ):
                damaged = one.copy()
                damaged.blobs.objects[name] = changed
                with pytest.raises(ParityDamaged, match=one.pack.hex()):
                    damaged.parity.check(damaged.pack)
    lost = sample(1, 10).copy()
    del lost.blobs.objects[lost.name]
    with pytest.raises(ParityDamaged):
        lost.parity.check(lost.pack)
    del lost.blobs.objects[lost.parity_name]
    with pytest.raises(BlobMissing, match="parity/"):
        lost.parity.check(lost.pack)


def test_forged_parity_is_never_trusted() -> None:
    """Even where an attacker has the parity key, the pack's own seals decide."""
    one = sample(300_000, 10)
    key = secrets_of(KEYS).parity_key
    liar = one.copy()
    other = Seeded("another content")(len(one.data))
    checks = b"".join(form.check_of(other[at : at + BLOCK], key) for at in range(0, len(other), BLOCK))
    liar.damage(liar.parity_name, one.geometry.checks_offset, checks)
    liar.blobs.objects[liar.name] = other
    with pytest.raises(ParityDamaged, match="what it restores is not the pack, so nothing was changed"):
        liar.parity.mend(liar.pack)
    assert liar.now == other


def test_the_parity_of_another_pack_or_tenant_is_refused() -> None:
    one, other = sample(9_000, 10).copy(), sample(3_000, 10)
    one.blobs.objects[one.parity_name] = other.blobs.objects[other.parity_name]
    with pytest.raises(ParityDamaged, match="cannot help: it belongs to another pack"):
        one.parity.mend(one.pack)
    stranger = Parity(one.blobs, tenant_keys("elsewhere"))
    one.blobs.objects[parity_name(tenant_keys("elsewhere").tenant, one.pack)] = sample(
        9_000, 10
    ).blobs.objects[one.parity_name]
    with pytest.raises(ParityDamaged, match="its head is damaged"):
        stranger.mend(one.pack)


def test_the_name_of_parity_identifies_its_tenant_and_pack() -> None:
    one = sample(1, 1)
    assert parse_parity_name(one.parity_name) == (KEYS.tenant, one.pack)
    for name in (one.name, one.parity_name + "0", "parity/x", f"parity/{one.name}", one.parity_name.upper()):
        with pytest.raises(ValueError):  # noqa: PT011  any kind of it
            parse_parity_name(name)


def test_no_parity_is_made_for_a_damaged_pack(keys: TenantKeys) -> None:
    blobs = MemoryBlobs()
    pack = pack_of(blobs, 9_000).pack
    name = pack_name(KEYS.tenant, pack)
    data = blobs.objects[name]
    for broken in (
        xored(data[:1]) + data[1:],
        data[:-1],
        data[:4000] + xored(data[4000:4001]) + data[4001:],
        b"",
    ):
        blobs.objects[name] = broken
        with pytest.raises(PackDamaged, match=pack.hex()):
            Parity(blobs, KEYS).make(pack, 10)
        assert list(blobs.list("parity")) == []
    del blobs.objects[name]
    with pytest.raises(BlobMissing):
        Parity(blobs, KEYS).make(pack, 10)


def test_new_parity_replaces_the_existing_one(blobs: Blobs) -> None:
    pack = pack_of(blobs, 9_000).pack
    first = Parity(blobs, KEYS).make(pack, 10)
    second = Parity(blobs, KEYS).make(pack, 100)
    assert second > first
    assert list(blobs.list("parity")) == [(parity_name(KEYS.tenant, pack), second)]


def test_a_pack_with_two_swapped_segments_fails_verification() -> None:
    blobs = MemoryBlobs()
    summary = write_pack(blobs, KEYS, [(Role.DATA, [b"first"]), (Role.DATA, [b"other"])])
    name = pack_name(KEYS.tenant, summary.pack)
    assert verify_pack(PackReader(blobs, KEYS), KEYS, summary.pack) == len(blobs.objects[name])
    first, other = (chunk.place.segment for chunk in summary.chunks)
    data = bytearray(blobs.objects[name])
    end = other.offset + other.length
    data[first.offset : end] = data[other.offset : end] + data[first.offset : other.offset]
    blobs.objects[name] = bytes(data)
    with pytest.raises(PackDamaged, match="segment 1 lies where segment 0 should"):
        verify_pack(PackReader(blobs, KEYS), KEYS, summary.pack)


@pytest.mark.parametrize(
    ("in_footer", "in_segment", "says"),
    [
        (b"chunk", b"chunk", ""),
        (b"other", b"chunk", "name different chunks"),
        (b"other", b"other", "does not match its digest"),
    ],
)
def test_a_sealed_pack_with_contradicting_parts_fails_verification(
    in_footer: bytes, in_segment: bytes, says: str
) -> None:
    forge = Forge()
    segment = forge.segment(entry(5, blake3(in_segment).digest()), b"chunk")
    forge.finish(segment, row(48, len(segment), 1, 5) + entry(5, blake3(in_footer).digest()))
    if says:
        with pytest.raises(PackDamaged, match=says):
            verify_pack(forge.reader(), forge.keys, forge.pack)
    else:
        verify_pack(forge.reader(), forge.keys, forge.pack)


class Cut(BaseException):
    """The process ends here."""


class CutFiles(Files):
    """Real files, until a number of changing steps is done."""

    def __init__(self) -> None:
        self.left = 10**9
        self.opened: set[int] = set()

    def __getattribute__(self, step: str) -> Any:
        real = super().__getattribute__(step)
        if step not in {"write", "sync", "link", "replace", "unlink", "sync_directory", "make_directory"}:
            return real

        def run(*arguments: Any) -> Any:
            if self.left == 0:
                raise Cut
            self.left -= 1
            return real(*arguments)

        return run

    def open(self, path: str, flags: int) -> int:
        descriptor = super().open(path, flags)
        self.opened.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        self.opened.discard(descriptor)
        super().close(descriptor)

    def end(self) -> None:
        """Close, and so unlock, every open file, as the system does when a process ends."""
        self.left = 10**9
        for descriptor in list(self.opened):
            self.close(descriptor)


@pytest.mark.parametrize("lost", [False, True])
def test_a_repair_interrupted_at_any_step_leaves_the_pack_unchanged_or_repaired(
    tmp_path: Path, lost: bool
) -> None:
    files = CutFiles()
    blobs = DirectoryBlobs(str(tmp_path), files)
    pack = pack_of(blobs, 9_000).pack
    Parity(blobs, KEYS).make(pack, 100)
    path = tmp_path / pack_name(KEYS.tenant, pack)
    whole = path.read_bytes()
    damaged = None if lost else whole[:5_000] + b"damaged" + whole[5_007:]
    outcomes = []
    for steps in range(200):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        files.left = steps
        try:
            Parity(blobs, KEYS).mend(pack)
            done = True
        except Cut:
            done = False
        files.end()
        found = path.read_bytes() if path.exists() else None
        assert found in (damaged, whole)
        outcomes.append(found == whole)
        DirectoryBlobs(str(tmp_path)).sweep()
        assert list((tmp_path / "tmp").iterdir()) == []
        Parity(DirectoryBlobs(str(tmp_path)), KEYS).mend(pack)
        assert path.read_bytes() == whole
        if done:
            break
    assert done
    assert outcomes.count(False) > 2
    assert outcomes == sorted(outcomes)
    assert outcomes.count(True) > 2
