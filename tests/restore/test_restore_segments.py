"""Segments that are sent as stored: only what the reader may read, only where it pays, and never damaged data."""

import random

import pytest
import zstandard
from blake3 import blake3
from extent import extent
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from test_restore_damage import damage
from thin import Source, back_up, content_id, noise, restore

KEPT = 8


class Opened:
    """A restore with segments, read as the protocol says, by an independent client."""

    def __init__(self, stub, dataset, **fields):
        self.files, self.damages, self.segments, self.inline, self.pieces = {}, [], [], 0, 0
        open_path, chunks = None, []
        for response in stub.Restore(sv.RestoreRequest(dataset=dataset, segments=True, **fields)):
            assert response.ByteSize() <= 4 << 20
            for part in response.parts:
                match part.WhichOneof("part"):
                    case "segment":
                        self.segments.append(self._inflated(part.segment))
                    case "entry":
                        open_path, chunks = part.entry.path, []
                        if part.HasField("piece"):
                            chunk = self._piece(part.piece)
                            assert blake3(chunk).digest() == part.entry.content.content_id
                            self.files[open_path] = chunk
                        elif part.entry.HasField("data"):
                            self.files[open_path] = part.entry.data
                            self.inline += 1
                    case "pieces":
                        chunks += map(self._piece, part.pieces.pieces)
                    case "data":
                        data = part.data.data or bytes(part.data.zero_bytes)
                        for length in part.data.chunk_lengths:
                            chunks.append(data[:length])
                            data = data[length:]
                        self.inline += bool(part.data.data)
                    case "entry_end":
                        assert content_id(chunks) == part.entry_end.content_id
                        self.files[open_path] = b"".join(chunks)
                    case "damage":
                        self.damages.append(part.damage.path)
                    case "end":
                        self.end = part.end

    def _inflated(self, segment):
        raw = segment.data if segment.raw else zstandard.ZstdDecompressor().decompress(segment.data)
        assert len(raw) == segment.raw_bytes <= 3 << 20
        return raw

    def _piece(self, piece):
        assert len(self.segments) - KEPT <= piece.segment < len(self.segments)
        self.pieces += 1
        found = self.segments[piece.segment][piece.offset_bytes : piece.offset_bytes + piece.length_bytes]
        assert len(found) == piece.length_bytes
        return found


def words(size, seed):
    """Bytes that compress."""
    return random.Random(seed).randbytes(size // 8).hex().encode() * 4


FILES = {
    **{f"small/{i:03}": words(800 + 37 * i, i) for i in range(300)},
    "large/text": words(3_000_000, 1),
    "large/noise": noise(2_500_000, 2),
    "large/zeros": bytes(3_000_000),
    "empty": b"",
}


def uploaded(stub, dataset, files, **fields):
    source = Source(stub, dataset, **fields)
    for path, data in files.items():
        source.put_file(path, data)
    return source.commit()


def test_a_backup_is_sent_as_stored_and_restores_byte_for_byte(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    found = Opened(stub, "www")
    assert found.files == FILES
    assert (found.damages, found.end.entry_count) == ([], restore(stub, "www").end.entry_count)
    assert found.end.data_bytes == sum(map(len, FILES.values()))
    assert found.pieces > 300
    assert found.inline == 1  # the empty file
    stored = sum(map(len, found.segments))
    assert stored < 1.02 * sum(len(data) for path, data in FILES.items() if path != "large/zeros")


def test_a_client_that_does_not_request_segments_gets_none(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    kinds = {
        part.WhichOneof("part")
        for response in stub.Restore(sv.RestoreRequest(dataset="www"))
        for part in response.parts
    }
    assert kinds.isdisjoint({"segment", "pieces"})


def test_a_selection_that_needs_little_of_a_segment_does_not_send_all_of_it(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    chosen = [f"small/{i:03}" for i in range(0, 300, 30)]
    found = Opened(stub, "www", paths=chosen)
    assert found.files == {path: FILES[path] for path in chosen}
    assert found.segments == []


def test_segments_shared_with_a_deleted_backup_are_sent_file_by_file(running):
    stub = running.stub()
    secret = noise(400_000, 7)
    first = back_up(stub, "www", {"a": noise(900_000, 8), "b": secret})
    files = {"a": noise(900_000, 8)}
    back_up(stub, "other", files)
    assert len(Opened(stub, "other").segments) > 0
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=first.id))
    found = Opened(stub, "other")
    assert found.files == files
    assert found.segments == []
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=first.id))
    assert len(Opened(stub, "other").segments) > 0


def test_a_damaged_segment_costs_its_files_only_and_is_named(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    damaged = "small/150"
    damage(running, Role.DATA, blake3(FILES[damaged]).digest())
    found, plain = Opened(stub, "www"), restore(stub, "www")
    assert damaged in found.damages
    assert found.damages == [each.path for each in plain.damages]
    assert {path: data for path, data in found.files.items() if path not in found.damages} == plain.files
    assert found.end == plain.end


@pytest.mark.parametrize("seed", range(extent(1, 4)))
def test_files_with_many_shared_chunks_and_segments_restore_correctly(running, seed):
    stub = running.stub()
    chance = random.Random(seed)
    blocks = [noise(chance.randrange(70_000, 300_000), 100 + i) for i in range(40)]
    files = {
        f"f{i:03}": b"".join(chance.choice(blocks) for _ in range(chance.randrange(1, 12))) for i in range(60)
    }
    back_up(stub, "www", dict(chance.sample(sorted(files.items()), len(files))))
    assert Opened(stub, "www").files == files


def test_segments_are_sent_for_data_only(running):
    import grpc
    from thin import reason

    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    request = sv.RestoreRequest(dataset="www", segments=True, view=sv.ENTRY_VIEW_BASIC)
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Restore(request))
    assert reason(refused.value) == "BAD_FIELD"


def test_segments_compressed_by_clients_are_sent_unchanged(running):
    stub = running.stub()
    files = {f"f{i}": words(200_000, i) for i in range(12)}
    uploaded(stub, "www", files)
    found = Opened(stub, "www")
    assert found.files == files
    assert found.inline == 0


def test_other_kinds_of_entries_are_unaffected(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_entries(
        pb.Entry(path="d", type=pb.ENTRY_TYPE_DIRECTORY, mode=0o755),
        pb.Entry(path="d/link", type=pb.ENTRY_TYPE_SYMLINK, link_target="x"),
    )
    source.entries = 2
    source.commit()
    with_segments = list(stub.Restore(sv.RestoreRequest(dataset="www", segments=True)))
    assert with_segments == list(stub.Restore(sv.RestoreRequest(dataset="www")))


def test_a_partly_inflated_segment_is_opened_again_for_the_rest(running):
    from staddle_server.tenancy.chunk_reader import ChunkReader
    from staddle_server.tenancy.tenant import Tenants

    stub = running.stub()
    files = {f"f{i:02}": words(30_000, i) for i in range(20)}
    back_up(stub, "www", files)
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    reader = ChunkReader(tenant, running.catalog)
    digests = {path: blake3(data).digest() for path, data in files.items()}
    places = reader.locate(Role.DATA, digests.values())
    order = sorted(files, key=lambda path: places[digests[path]][0].offset)
    first = places[digests[order[0]]][0]
    started = tenant.packs.segment(first.segment, first.offset + first.length)
    assert len(started.data) == first.length < started.raw_bytes
    reader.keep(first.segment, started)
    for path in [order[0], order[-1], order[1], order[0]]:
        assert reader.chunk(Role.DATA, digests[path], places[digests[path]]) == files[path]
    assert running.catalog.packs.damaged_count(running.tenant) == 0
