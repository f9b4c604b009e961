"""Memory that is released when it is no longer needed, and segments that are opened once for many files."""

import gc
import weakref
from collections import Counter

import pytest
from blake3 import blake3
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from staddle_server.restore.restore import WINDOW_STEPS
from staddle_server.store.pack import PackReader
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.chunk_writer import ChunkSink
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upload.uploads import Uploads
from thin import Part, Source, back_up, begin, finish, messages, noise, restore


@pytest.fixture
def opened(monkeypatch):
    """How often each segment was opened."""
    counts = Counter()
    segment = PackReader.segment

    def counted(self, ref, *more):
        counts[ref] += 1
        return segment(self, ref, *more)

    monkeypatch.setattr(PackReader, "segment", counted)
    return counts


def test_the_writer_of_an_upload_is_released_after_the_commit(running, monkeypatch):
    writers = []
    install = Uploads._install

    def noted(self, writer):
        writers.append(weakref.ref(writer))
        return install(self, writer)

    monkeypatch.setattr(Uploads, "_install", noted)
    gc.collect()
    gc.disable()  # nothing may refer to it
    try:
        stub = running.stub()
        source = Source(stub, "www")
        source.put_file("a", noise(100_000))
        source.commit()
        back_up(stub, "thin", {"a": noise(100_000)})
        restore(stub, "www")  # the threads have taken another call since
        assert len(writers) == 2
        assert [writer() for writer in writers] == [None, None]
    finally:
        gc.enable()


def test_a_new_chunk_in_a_large_message_keeps_only_its_own_bytes(running, monkeypatch):
    """Only the last bytes of forty files are new: chunks that wait for their look-up must not keep forty messages."""
    stub = running.stub()
    body = noise(2 << 20)
    files = {f"f{n:02}": body + b"tail %03d" % n for n in range(40)}

    def parts():
        yield begin("www")
        for path, data in files.items():
            yield Part(entry=pb.Entry(path=path, profile=pb.CHUNKER_PROFILE_FIXED))
            yield Part(data=sv.Data(data=data))
            yield Part(entry_end=sv.EntryEnd())
        yield finish(len(files), sum(map(len, files.values())))

    kept = []
    take = ChunkSink.take

    def noted(self, role, digest, data):
        take(self, role, digest, data)
        waiting = [view for view in self._asking[role].values() if isinstance(view, memoryview)]
        kept.append(sum({id(view.obj): len(view.obj) for view in waiting}.values()))

    monkeypatch.setattr(ChunkSink, "take", noted)
    stub.Backup(messages(parts()))
    assert max(kept) < 8 << 20
    assert restore(stub, "www").files == files


def test_scattered_files_open_each_segment_once_for_a_window(running, opened):
    """As in a tree: every third file is in another segment, in turn."""
    stub = running.stub()
    parts = [{f"f{n:04}": noise(20_000, n) for n in range(k, 300, 6)} for k in range(6)]
    for number, files in enumerate(parts):
        back_up(stub, f"part{number}", files)
    everything = {path: data for files in parts for path, data in files.items()}
    back_up(stub, "all", everything)
    opened.clear()
    assert restore(stub, "all").files == everything
    data = {ref: count for ref, count in opened.items() if ref.length > 500_000}
    windows = 1 + 3 * len(everything) // WINDOW_STEPS
    assert len(data) == 6
    assert max(data.values()) <= windows + 1


def test_expected_chunks_outlive_their_segment_until_their_last_read(running, opened):
    stub = running.stub()
    contents = [noise(30_000, n) for n in range(4)]
    digests = []
    for n, content in enumerate(contents):
        source = Source(stub, f"d{n}")
        (chunk,) = source.cut(content)
        source.put_file("f", content)
        source.commit()
        digests.append(blake3(chunk).digest())
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    reader = ChunkReader(tenant, running.catalog, kept_bytes=1)
    order = [0, 1, 0, 2, 0, 3, 1]
    opened.clear()
    reader.expect(Role.DATA, [digests[n] for n in order])
    for n in order:
        assert reader.chunk(Role.DATA, digests[n]) == contents[n]
    assert sorted(opened.values()) == [1, 1, 1, 1]
    assert not reader._saved, "a segment that was read as often as expected is released"
    reader.chunk(Role.DATA, digests[0])
    assert sum(opened.values()) == 5
    reader.expect(Role.DATA, [digests[0]])
    reader.chunk(Role.DATA, digests[1])
    reader.expect(Role.DATA, [])
    assert not reader._saved
