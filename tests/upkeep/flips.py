"""A small store with one object of every kind; each bit of it is flipped, one at a time.

The suite flips a sample of the bits; as a program this flips all of them or `--count` (from the top of the checkout):

    .venv/bin/python tests/upkeep/flips.py --count 20000 --seed 7
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from sql import sql

if __name__ == "__main__":
    TESTS = Path(__file__).parents[1]
    sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent / "client"), str(TESTS.parent / "server")]

from harm import check, damage, objects, repair
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle_server.base.errors import Damaged
from staddle_server.base.types import Entry, Role, TokenRole
from staddle_server.catalog import Principal
from staddle_server.manifest.content import with_attributes
from staddle_server.restore.browse import Reads
from staddle_server.restore.restore import SentDamage, SentData, SentEnd, SentEntry, SentZeros
from staddle_server.store.blobs import check_format, create_format
from staddle_server.tenancy.tenant import Tenants
from thin import Source, back_up, noise

TEXT = b"a line of text that is like all the others\n" * 40
XATTRS = [pb.Xattr(name=b"user.large", value=b"0123456789" * 400)]
BIT_KINDS = ("packs", "records", "keys", "format")


def build(running: Any) -> dict[str, dict[str, bytes]]:
    """Fills a service's store: the files of each dataset, by path."""
    create_format(running.blobs)
    stub = running.stub()
    first = {"text": TEXT, "noise": noise(700, 1)} | {f"small/{n}": b"%d" % n for n in range(6)}
    back_up(stub, "tree", first)
    source = Source(stub, "list")
    chunks = [b"chunk %d of a list " % n * 2 for n in range(24)]
    source.put_chunks(chunks)
    refs = [pb.ChunkRef(digest=blake3(chunk).digest(), length_bytes=len(chunk)) for chunk in chunks]
    listed = b"".join(chunks)
    many = [pb.Entry(path=f"many/{n:03}", type=pb.ENTRY_TYPE_SYMLINK, link_target="to") for n in range(260)]
    content = pb.Content(chunks=refs, size_bytes=len(listed))
    source.put_entries(
        pb.Entry(path="listed", content=content),
        pb.Entry(path="attributed", data=b"x", xattrs=XATTRS),
        *many,
    )
    source.entries, source.bytes = 2 + len(many), len(listed) + 1
    source.commit()
    return {"tree": first, "list": {"listed": listed, "attributed": b"x"}}


def _whole(entry: Entry, attributes: bytes | None) -> Entry:
    return entry if attributes is None else with_attributes(entry, attributes)


@dataclass
class Seen:
    """What a reader gets of a backup."""

    files: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, Entry] = field(default_factory=dict)
    damages: list[SentDamage] = field(default_factory=list)


class Subject:
    """The store under test, read as a service reads it, with no memory between two reads."""

    def __init__(self, running: Any, files: dict[str, dict[str, bytes]]) -> None:
        self.running = running
        self.expected = {name: {k.encode(): v for k, v in each.items()} for name, each in files.items()}
        self.openers = ThreadPoolExecutor(1)
        self.principal = Principal(running.tenant, bytes(16), "flips", TokenRole.ADMIN)
        self.sound = {name: self.restore(name) for name in self.expected}
        self.backups = {name: running.catalog.backups.resolve(running.tenant, name) for name in self.expected}
        for name, seen in self.sound.items():
            assert seen.files == self.expected[name]
            assert not seen.damages
        assert {root.level for root in (each.root for each in self.backups.values())} == {0, 1}, (
            "one has index pages"
        )
        assert self.sound["list"].entries[b"listed"].content.root is not None, "and a list of chunks"
        self.needs = {name: self._segments_of(name) for name in self.expected}

    def reads(self) -> Reads:
        tenants = Tenants(self.running.blobs, self.running.catalog, self.running.keys)
        return Reads(self.running.catalog, tenants, self.running.clock, self.openers)

    def restore(self, dataset: str) -> Seen:
        """A complete restore. Raises Damaged if it cannot even begin."""
        reads, seen = self.reads(), Seen()
        backup = self.running.catalog.backups.resolve(self.running.tenant, dataset)
        open_path, parts = b"", []
        for event in reads.restore(self.principal, backup, data=True, refs=False).events([], exact=False):
            match event:
                case SentEntry(entry, data, attributes):
                    open_path, parts = entry.path, []
                    seen.entries[entry.path] = _whole(entry, attributes)
                    if data is not None:
                        seen.files[entry.path] = bytes(data)
                case SentData(data):
                    parts.append(bytes(data))
                case SentZeros(length):
                    parts.append(bytes(length))
                case SentEnd():
                    seen.files[open_path] = b"".join(parts)
                case SentDamage():
                    seen.damages.append(event)
        return seen

    def _segments_of(self, dataset: str) -> dict[bytes, set[tuple[bytes, int]]]:
        """Where the data of each file lies."""
        tenant = Tenants(self.running.blobs, self.running.catalog, self.running.keys).get(self.running.tenant)
        found = {}
        for path, entry in self.sound[dataset].entries.items():
            digests = [] if entry.content is None else [ref.digest for ref in entry.content.chunks]
            ids = [tenant.chunk_id(Role.DATA, digest) for digest in digests]
            places = self.running.catalog.chunks.find(self.running.tenant, ids)
            found[path] = {(p.segment.pack, p.segment.offset) for each in places.values() for p in each}
        return found

    def forget_marks(self) -> None:
        """Forget all earlier findings."""
        with self.running.catalog.database.write() as connection:
            sql(connection, "DELETE FROM pack_damage")
            sql(connection, "UPDATE packs SET damaged = false")

    # --- what must hold while one object is damaged

    def check_readers(self, path: Path, at: int | None) -> bool:
        """Restore, list and ReadRange return nothing wrong. Returns whether everything came back."""
        whole = True
        for dataset in self.expected:
            whole &= self._check_restore(dataset, path, at)
            whole &= self._check_list(dataset)
            whole &= self._check_ranges(dataset)
        return whole

    def _check_restore(self, dataset: str, path: Path, at: int | None) -> bool:
        sound, expected = self.sound[dataset], self.expected[dataset]
        try:
            seen = self.restore(dataset)
        except Damaged:
            assert "packs" not in path.parts, "damage in a pack is named in the stream"
            return False
        wrong = [name for name, data in seen.files.items() if expected.get(name) != data]
        assert wrong == [], f"{wrong[0]!r} came back wrong"
        for name, entry in seen.entries.items():
            if entry != sound.entries[name]:
                assert any(each.path == name for each in seen.damages), f"{name!r} has wrong metadata"
        lost = set(expected) - set(seen.files)
        assert not lost or seen.damages, f"{lost} are missing without a report"
        named = {each.path for each in seen.damages if not each.subtree}
        if not any(each.subtree for each in seen.damages):
            assert lost <= named | set(), "each file that is lost is named"
        if at is not None and "packs" in path.parts:
            self._check_spared(dataset, path, at, seen)
        return not lost and not seen.damages

    def _check_spared(self, dataset: str, path: Path, at: int, seen: Seen) -> None:
        """Files without data in the damaged segment come back, unless their page was damaged."""
        if at < 48 or any(each.subtree for each in seen.damages):
            return
        pack = bytes.fromhex(path.name)
        named = {each.path for each in seen.damages}
        for name, places in self.needs[dataset].items():
            begins = [offset for where, offset in places if where == pack and offset <= at]
            if not begins:
                assert name in seen.files or name in named or seen.entries[name].content is None

    def _check_list(self, dataset: str) -> bool:
        try:
            listed = list(
                self.reads().entries(self.principal, self.backups[dataset], b"", recursive=True, after=None)
            )
        except Damaged:
            return False
        assert {entry.path: _whole(entry, attributes) for entry, attributes in listed} == self.sound[
            dataset
        ].entries
        return True

    def _check_ranges(self, dataset: str) -> bool:
        whole = True
        reads = self.reads()
        for name, data in list(self.expected[dataset].items())[:3]:
            try:
                found = reads.read_range(self.principal, self.backups[dataset], name, 1, len(data))
            except Damaged:
                whole = False
                continue
            assert (found.data, found.file_size) == (data[1:], len(data))
        return whole

    def check_named(self, path: Path) -> None:
        """A check that reads everything reports this object as damaged."""
        name = str(path.relative_to(self.running.root / "store"))
        if name == "format":
            with pytest.raises(Damaged, match="format"):
                check_format(self.running.blobs)
            return
        self.forget_marks()
        found, _ = check(self.running, read=True)
        bad = damage(found)
        assert bad, f"damage in {name} went unnoticed"
        kind = name.split("/", maxsplit=1)[0]
        if kind == "packs":
            assert any(path.name in (each.pack, each.message) or path.name in each.message for each in bad), (
                bad
            )
        elif kind == "records":
            assert any(each.object == name for each in found), found
        else:
            assert any(each.kind == "keys" for each in bad), bad


def regions(subject: Subject) -> Iterator[tuple[Path, int]]:
    """Every byte of every object."""
    for path in [
        *objects(subject.running),
        *objects(subject.running, "records"),
        *objects(subject.running, "keys"),
    ]:
        for at in range(path.stat().st_size):
            yield path, at
    path = subject.running.root / "store" / "format"
    for at in range(path.stat().st_size):
        yield path, at


def flip_and_look(subject: Subject, path: Path, at: int, bit: int) -> bool:
    """Flip one bit, check, and flip it back. Returns whether everything came back nevertheless."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    return replace_and_look(subject, path, bytes(data), at)


def replace_and_look(subject: Subject, path: Path, data: bytes, at: int | None = None) -> bool:
    """The same with other bytes in place of the object's; `at`: where one of them differs, if it is only one."""
    sound = path.read_bytes()
    path.write_bytes(data)
    try:
        whole = subject.check_readers(path, at)
        subject.check_named(path)
    finally:
        path.write_bytes(sound)
        subject.forget_marks()
    return whole


def _running(root: Path) -> Any:
    return Running(root)


def main() -> None:
    parser = argparse.ArgumentParser(description="Flips bits of a small store, one at a time.")
    parser.add_argument("--count", type=int, help="so many bits, chosen by chance; all of them if left out")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        running = _running(Path(root))
        subject = Subject(running, build(running))
        bits = [(path, at, bit) for path, at in regions(subject) for bit in range(8)]
        chosen = (
            bits
            if asked.count is None
            else random.Random(asked.seed).sample(bits, min(asked.count, len(bits)))
        )
        begun_s, whole, kinds = time.monotonic(), 0, collections.Counter[str]()
        for number, (path, at, bit) in enumerate(chosen, 1):
            whole += flip_and_look(subject, path, at, bit)
            kinds[path.relative_to(running.root / "store").parts[0]] += 1
            if number % 200 == 0:
                print(
                    f"{number} of {len(chosen)} flips, {number / (time.monotonic() - begun_s):.0f} a second",
                    flush=True,
                )
        counts = ", ".join(f"{count} in {kind}" for kind, count in sorted(kinds.items()))
        print(
            f"{len(chosen)} of {len(bits)} bits flipped ({counts}) in {time.monotonic() - begun_s:.0f} s: none unnoticed, nothing "
            f"wrong returned; {whole} of them affect no reader"
        )
        assert repair(running)[1].damage == 0
        running.stop()


if __name__ == "__main__":
    main()
