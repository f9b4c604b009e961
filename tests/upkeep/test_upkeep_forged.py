"""A manifest that is forged as a tree of valid pages: every reader names the damage, and nothing else is lost."""

import time

import grpc
import pytest
from blake3 import blake3
from harm import check, damage, kept, repair
from sql import sql
from staddle.chunking import content_id
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import ChunkRef, Content, Entry, EntryType, ListRoot, Role, Root
from staddle_server.catalog import DurableUpdate, Terms
from staddle_server.manifest.content import ITEM
from staddle_server.manifest.pages import Child, PageKind, encode_index, encode_leaf
from staddle_server.store.pack import Codec
from staddle_server.store.pack_writer import PackWriter
from staddle_server.upkeep.gc.collector import Collector
from thin import Source, back_up, messages, noise, reason, restore, small
from thin import begin as begin_part
from thin import finish as finish_part

KEPT = {"kept": noise(300_000, 7), "other": b"few"}
CHUNK = b"a sound chunk of the tenant"
REF = ChunkRef(len(CHUNK), blake3(CHUNK).digest())
HIGHEST = 15


class Forger:
    """Writes pages that no upload would write."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}

    def write(self, data: bytes) -> bytes:
        digest = blake3(data).digest()
        self.chunks[digest] = data
        return digest

    def leaf(self, *entries: Entry) -> Child:
        data_bytes = sum(entry.content.size for entry in entries if entry.content)
        return Child(entries[-1].path, self.write(encode_leaf(list(entries))), len(entries), data_bytes)

    def index(self, level: int, *children: Child) -> Child:
        digest = self.write(encode_index(level, list(children)))
        entries, data_bytes = (
            sum(getattr(child, of) for child in children) for of in ("entries", "data_bytes")
        )
        return Child(children[-1].last, digest, entries, data_bytes)

    def listed(self, level: int, *items: tuple[int, bytes]) -> tuple[int, bytes]:
        data = bytes([PageKind.LIST, level]) + b"".join(ITEM.pack(*item) for item in items)
        return sum(length for length, _ in items), self.write(data)


def root(level: int, top: Child) -> Root:
    return Root(level, top.digest, top.entries, top.data_bytes)


def named(path: str) -> Entry:
    return Entry(path.encode(), EntryType.DIRECTORY, mode=0o755)


def sized(path: str, *refs: ChunkRef) -> Entry:
    content = Content(sum(ref.length for ref in refs), content_id(refs), chunks=refs)
    return Entry(path.encode(), EntryType.FILE, content=content)


def shared(forger: Forger) -> Root:
    """240 pages with some 10^9 paths through them."""
    level = [forger.leaf(named(f"{number:02}")) for number in range(16)]
    for height in range(1, HIGHEST):
        level = [forger.index(height, *level[: at + 1]) for at in range(len(level))]
    return root(HIGHEST, forger.index(HIGHEST, *level))


def overlapping(forger: Forger) -> Root:
    first, second = forger.leaf(named("b"), named("c")), forger.leaf(named("a"), named("d"))
    return root(1, forger.index(1, first, second))


def of_other_bytes(forger: Forger) -> Root:
    first, second = forger.leaf(named("a"), named("b")), forger.leaf(named("c"), named("d"))
    return root(1, forger.index(1, first, Child(second.last, second.digest, second.entries, 2**62)))


def chunk_of_other_length(forger: Forger) -> Root:
    return root(0, forger.leaf(sized("a", ChunkRef(REF.length + 1, REF.digest)), sized("b", REF, REF)))


def chunk_of_other_length_in_a_list(forger: Forger) -> Root:
    size, digest = forger.listed(0, *[(REF.length, REF.digest)] * 20, (REF.length + 1, REF.digest))
    content = Content(size, bytes(32), root=ListRoot(0, digest))
    return root(0, forger.leaf(Entry(b"a", EntryType.FILE, content=content), sized("b", REF, REF)))


FORGED = {
    "pages that are shared all the way down": shared,
    "a page that overlaps the one before it": overlapping,
    "a page of other bytes": of_other_bytes,
    "a chunk of another length": chunk_of_other_length,
    "a chunk of another length in a list": chunk_of_other_length_in_a_list,
}


def put(running, forger: Forger, dataset: str, forged: Root) -> None:
    """Stores the pages, and makes them the manifest of the dataset's only backup."""
    source = Source(running.stub(), "scratch")
    upload, epoch = bytes.fromhex(source.upload.id), source.upload.epoch
    tenant, now_ns = kept(running).tenants.get(running.tenant), time.time_ns()
    writer = PackWriter(tenant.blobs, tenant.keys)
    running.catalog.packs.begin(tenant.id, upload, epoch, writer.pack, now_ns)
    for digest, data in forger.chunks.items():
        writer.append(Role.MANIFEST, [ChunkRef(len(data), digest)], Codec.RAW, data, len(data))
    running.catalog.uploads.checkpoint(
        tenant.id,
        upload,
        epoch,
        packs=[writer.finish()],
        durable=DurableUpdate(b"", 0, 0, 0),
        now_ns=now_ns,
        terms=Terms(300, 3600),
    )
    with running.catalog.database.write() as connection:
        changed = sql(
            connection,
            "UPDATE backups SET root_level = ?, root_digest = ?, entry_count = ?, data_bytes = ?"
            " WHERE dataset = (SELECT datasets.row FROM datasets WHERE name = ?)",
            (forged.level, forged.digest, forged.entries, forged.data_bytes, dataset),
        )
        assert changed.rowcount == 1
    source.stub.AbortUpload(sv.AbortUploadRequest(**source.id))


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_manifest_is_damage_for_every_reader_and_affects_no_other_backup(running, forged):
    stub = running.stub()
    back_up(stub, "kept", KEPT)
    back_up(stub, "www", {"a": CHUNK})
    forger = Forger()
    put(running, forger, "www", FORGED[forged](forger))

    found = restore(stub, "www")
    assert found.damages, "named in a restore"
    assert all(path not in found.files for path in (damaged.path for damaged in found.damages))
    found, summary = check(running, read=True)
    assert summary.damage, "named by check"
    assert {each.dataset for each in damage(found)} == {"www"}
    for call in (
        lambda: stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="a", length_bytes=1000)),
        lambda: stub.ListEntries(sv.ListEntriesRequest(dataset="www", recursive=True, page_size=1000)),
    )[:: 1 if "length" in forged else -1][:1]:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert reason(refused.value) == "DAMAGED"

    _, repaired = repair(running)
    assert repaired.chunks == 0, "none of it can be repaired, and repair ends"
    running.clock.ahead_s += 40 * 86_400
    Collector(running.catalog, kept(running).tenants, running.clock).collect(grace_s=0)
    assert restore(stub, "kept").files == KEPT, "a collection removes nothing live"
    assert (
        stub.Backup(
            messages(
                [begin_part("www", kind=pb.BACKUP_KIND_FULL), small("a", CHUNK), finish_part(1, len(CHUNK))]
            )
        ).backup.number
        == 2
    )
    assert restore(stub, "www").files == {"a": CHUNK}


def test_a_chunk_list_whose_levels_repeat_is_looked_up_once(running):
    """The list of a pebibyte of zeros, which needs only 1,000 messages."""
    stub = running.stub()
    back_up(stub, "www", {"a": CHUNK})
    forger = Forger()
    size, digest = forger.listed(0, *[(REF.length, REF.digest)] * 20)
    for level in range(1, 6):
        size, digest = forger.listed(level, *[(size, digest)] * 20)
    content = Content(size, bytes(32), root=ListRoot(5, digest))
    put(running, forger, "www", root(0, forger.leaf(Entry(b"a", EntryType.FILE, content=content))))
    found, summary = check(running, read=True)
    assert not damage(found)
    assert summary.chunks < 100
