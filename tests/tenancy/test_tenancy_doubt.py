"""When a reader finds damage in a pack, no other part of that pack is relied on unread."""

from dataclasses import replace

import grpc
import pytest
from blake3 import blake3
from staddle.v1 import resources_pb2 as pb
from staddle_server.base.types import Role
from staddle_server.catalog import WHOLE_PACK
from staddle_server.store.blobs import BlobUnreadable
from staddle_server.store.pack import PackReader
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.pack_check import Examiner
from staddle_server.tenancy.tenant import Tenants
from thin import Source, back_up, noise, reason, restore

LARGE, SMALL = noise(9_000_000, 3), {f"d{i % 7}/f{i:03}": b"%d" % i for i in range(300)}
FILES = SMALL | {"large": LARGE}


@pytest.fixture
def stored(running):
    """One backup in one pack, with segments of data and of its manifest; and the reader of chunks."""
    backup = back_up(running.stub(), "www", FILES)
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    return Stored(running, bytes.fromhex(backup.manifest_digest), tenant)


class Stored:
    def __init__(self, running, root, tenant):
        self.running, self.root, self.tenant = running, root, tenant
        (self.path,) = (path for path in (running.root / "store" / "packs").rglob("*") if path.is_file())
        self.id = bytes.fromhex(self.path.name)
        self.segments = {chunk.place.segment: None for chunk in tenant.packs.footer(self.id).chunks}

    def read(self, role, digest):
        """Reads a chunk as a restore does."""
        return ChunkReader(self.tenant, self.running.catalog).chunk(role, digest)

    def first_chunk(self, role):
        """A digest: the root page of the manifest, or a part of the large file."""
        if role is Role.MANIFEST:
            return self.root
        return blake3(Source(self.running.stub(), "cut").cut(LARGE)[3]).digest()

    def segment_of(self, role, digest):
        ((place,),) = ChunkReader(self.tenant, self.running.catalog).locate(role, [digest]).values()
        return place.segment

    def zero(self, segments=None):
        """Zeroes some segments, or all of the pack, at the same size."""
        data = bytearray(self.path.read_bytes())
        for each in segments or ():
            data[each.offset : each.offset + each.length] = bytes(each.length)
        # Only the times of the file change: its size stays right.
        self.path.write_bytes(data if segments else bytes(len(data)))

    def marks(self):
        return self.running.catalog.verification.live_pack(self.running.tenant, self.id).marks

    def scrub(self):
        pack = self.running.catalog.verification.live_pack(self.running.tenant, self.id)
        return Examiner(self.tenant, self.running.catalog, self.running.clock).read(pack)


@pytest.mark.parametrize("role", [Role.MANIFEST, Role.DATA])
def test_a_full_backup_does_not_rely_on_a_zeroed_pack_once_a_reader_found_one_segment(stored, role):
    stub = stored.running.stub()
    assert not stored.scrub().faults, "it was read before, and the scrubber does not come soon"
    stored.zero()
    with pytest.raises(Exception, match="damaged"):
        stored.read(role, stored.first_chunk(role))
    assert {segment.offset for segment in stored.segments} <= stored.marks()
    full = back_up(stub, "www", FILES, kind=pb.BACKUP_KIND_FULL)
    assert full.stored_bytes > len(LARGE)
    found = restore(stub, "www")
    assert found.damages == []
    assert found.files == FILES


@pytest.mark.parametrize("role", [Role.MANIFEST, Role.DATA])
def test_an_upload_that_relied_on_a_pack_before_its_damage_was_found_misses_chunks_at_the_commit(
    stored, role
):
    stub = stored.running.stub()
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    chunks = source.cut(LARGE)
    assert source.missing(chunks) == []
    source.put_entries(source.entry("large", LARGE, mode=0o600))
    source.entries, source.bytes = 1, len(LARGE)
    stored.zero()
    with pytest.raises(Exception, match="damaged"):
        stored.read(role, stored.first_chunk(role))
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert reason(failed.value) == "MISSING_CHUNKS"
    listed = source.state()
    assert listed.state == pb.UPLOAD_STATE_OPEN
    source.put_chunks(source.missing(chunks))
    source.put_entries(source.entry("large", LARGE, mode=0o600))
    source.entries, source.bytes = 2, 2 * len(LARGE)
    source.commit()
    assert restore(stub, "www").files == {"large": LARGE}


def test_sound_chunks_of_a_damaged_pack_are_relied_on_after_it_was_read(stored):
    digest = stored.first_chunk(Role.DATA)
    first = stored.segment_of(Role.DATA, digest)
    other = next(segment for segment in stored.segments if segment != first)
    stored.zero([first, other])
    with pytest.raises(Exception, match="damaged"):
        stored.read(Role.DATA, digest)
    assert stored.marks() == {first.offset, other.offset}
    full = back_up(stored.running.stub(), "www", FILES, kind=pb.BACKUP_KIND_FULL)
    assert full.stored_bytes < first.length + other.length + 200_000
    assert restore(stored.running.stub(), "www").files == FILES


def test_a_pack_with_known_damage_is_read_once(stored):
    digest = stored.first_chunk(Role.DATA)
    first = stored.segment_of(Role.DATA, digest)
    last = next(segment for segment in reversed(stored.segments) if segment != first)
    stored.zero([first])
    doubt = stored.running.catalog.packs.doubt
    assert doubt(stored.running.tenant, stored.id, first.offset), "the first finder reads the pack"
    assert not doubt(stored.running.tenant, stored.id, first.offset), "a second finder does not"
    assert not doubt(stored.running.tenant, stored.id, last.offset), (
        "nor does one that finds more before it was read"
    )
    assert stored.marks() == {first.offset, last.offset, WHOLE_PACK}
    stored.running.catalog.packs.believe(stored.running.tenant, stored.id)
    assert not doubt(stored.running.tenant, stored.id, first.offset)
    assert stored.marks() == {first.offset, last.offset}


class OneBadSector(WrappedBlobs):
    """The blobs of a disk that cannot read one place."""

    def __init__(self, blobs, offset):
        super().__init__(blobs)
        self._offset = offset

    def read(self, name, offset, length):
        if offset == self._offset and name.startswith("packs/"):
            raise BlobUnreadable(name, "EIO")
        return super().read(name, offset, length)


def test_a_doubted_pack_with_an_unreadable_place_counts_as_entirely_damaged(stored):
    digest = stored.first_chunk(Role.DATA)
    first = stored.segment_of(Role.DATA, digest)
    other = next(segment for segment in stored.segments if segment != first)
    stored.zero([first])
    blobs = OneBadSector(stored.running.blobs, other.offset)
    stored.tenant = replace(stored.tenant, blobs=blobs, packs=PackReader(blobs, stored.tenant.keys))
    with pytest.raises(Exception, match="damaged"):
        stored.read(Role.DATA, digest)
    assert stored.marks() == {first.offset, WHOLE_PACK}
    source = Source(stored.running.stub(), "other")
    assert source.missing(source.cut(LARGE)) == source.cut(LARGE)


def test_a_doubted_pack_that_could_not_be_read_counts_as_damaged_until_the_scrubber_has_read_it(stored):
    digest = stored.first_chunk(Role.DATA)
    segment = stored.segment_of(Role.DATA, digest)
    assert not stored.scrub().faults
    verification = stored.running.catalog.verification
    assert verification.due(1, 10) == []
    stored.zero([segment])
    # The state after a server that ended while reading the pack.
    stored.running.catalog.packs.doubt(stored.running.tenant, stored.id, segment.offset)
    source = Source(stored.running.stub(), "other")
    assert source.missing(source.cut(LARGE)) == source.cut(LARGE)
    assert [pack.id for pack in verification.due(1, 10)] == [stored.id], "the scrubber reads it next"
    stored.scrub()
    assert stored.marks() == {segment.offset}
    missing = source.missing(source.cut(LARGE))
    assert 0 < len(missing) < len(source.cut(LARGE))
