"""Abuse of a real server: it answers with a clear error, stays up within its memory, and serves others."""

import random
import resource
import socket
import threading
from contextlib import ExitStack, suppress
from itertools import chain, repeat

import grpc
import pytest
import zstandard
from blake3 import blake3
from hostile_watch import SERVICE, Watch, bearer, channel
from servers import ServerProcess
from staddle._protocol.encoding import varint
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.grpc.server import connections_max
from staddle_server.base.limits import CONNECTIONS_MAX, FILES_WANTED, MESSAGE_BYTES_MAX, MIB
from thin import (
    Part,
    Source,
    begin,
    datasets,
    finish,
    info,
    messages,
    noise,
    reason,
    restore,
    small,
    wait_until,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
EMPTY = b"\0"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests: leftovers of one abuse are present in the next."""
    made = ServerProcess(tmp_path_factory.mktemp("hostile") / "data")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def field(type_, name: str) -> bytes:
    """The tag of a field whose number is small, for fields that hold bytes."""
    return bytes([type_.DESCRIPTOR.fields_by_name[name].number << 3 | 2])


def filled(piece: bytes) -> bytes:
    """The same piece as often as a message takes it."""
    return piece * ((MESSAGE_BYTES_MAX - 1000) // len(piece))


def in_one_entry(name: str, piece: bytes) -> bytes:
    """A stream's message whose one entry has a field as often as fits."""
    entry = pb.Entry(path="a")
    number = pb.Entry.DESCRIPTOR.fields_by_name[name].number if name != "chunks" else 1
    key = number << 3 | 2
    tag = bytes([key]) if key < 0x80 else bytes([key & 0x7F | 0x80, key >> 7])
    many = filled(tag + piece)
    (entry.content if name == "chunks" else entry).MergeFromString(many)
    return sv.BackupRequest(parts=[begin("dense"), Part(entry=entry)]).SerializeToString()


def in_columns(name: str, piece: bytes) -> bytes:
    """The columns of one entry, in which a field has values as long as the message has room for them."""
    columns = pb.EntryColumns(types=b"\2")
    many = piece if len(piece) > 1 else filled(piece)
    key = pb.EntryColumns.DESCRIPTOR.fields_by_name[name].number << 3 | 2
    columns.MergeFromString(varint(key) + varint(len(many)) + many)
    return sv.PutEntriesRequest(changes=[sv.EntryChange(columns=columns)]).SerializeToString()


def rare_of_attributes() -> bytes:
    key = pb.Entry.DESCRIPTOR.fields_by_name["xattrs"].number << 3 | 2
    return filled(varint(key) + EMPTY)


DENSE = {
    "parts": ("Backup", lambda: filled(b"\x0a" + EMPTY)),
    "entries": ("Backup", lambda: filled(b"\x0a\x02\x1a" + EMPTY)),
    "references": ("Backup", lambda: in_one_entry("chunks", EMPTY)),
    "attributes": ("Backup", lambda: in_one_entry("xattrs", EMPTY)),
    "holes": ("Backup", lambda: in_one_entry("holes", EMPTY)),
    "chunks": ("PutChunks", lambda: filled(field(sv.PutChunksRequest, "chunks") + EMPTY)),
    "changes": ("PutEntries", lambda: filled(field(sv.PutEntriesRequest, "changes") + b"\x02\x0a" + EMPTY)),
    "columns": ("PutEntries", lambda: filled(field(sv.PutEntriesRequest, "changes") + b"\x02\x22" + EMPTY)),
    "numbers in columns": ("PutEntries", lambda: in_columns("inodes", b"\x01")),
    "attributes in columns": ("PutEntries", lambda: in_columns("rare", rare_of_attributes())),
    "digests": ("FindMissingChunks", lambda: filled(field(sv.FindMissingChunksRequest, "digests") + EMPTY)),
    "paths": ("Restore", lambda: filled(field(sv.RestoreRequest, "paths") + EMPTY)),
    "tags": ("BeginUpload", lambda: filled(sv.BeginUploadRequest(tags={"": ""}).SerializeToString())),
    "groups": ("GetServerInfo", lambda: b"\x0b" + filled(b"\x0a" + EMPTY) + b"\x0c"),
}


def test_messages_that_decode_to_a_thousand_times_their_size_are_refused_in_bounded_memory(server):
    with Watch(server) as watch, channel(server) as connection:
        for name, (method, make) in DENSE.items():
            data = make()
            # As many at once as the promised memory allows.
            call = connection.stream_unary if method != "Restore" else connection.stream_stream
            under_way = []
            for _ in range(2):
                begun = call(SERVICE + method)
                sent = (
                    begun.future(iter([data]), metadata=bearer(server))
                    if method != "Restore"
                    else begun(iter([data]), metadata=bearer(server))
                )
                under_way.append(sent)
            for each in under_way:
                with pytest.raises(grpc.RpcError) as refused:
                    list(each) if method == "Restore" else each.result(timeout=60)
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
                assert reason(refused.value) in {"BAD_FIELD", "BAD_SEQUENCE"}, name
        watch.others_are_served()
        watch.memory_is_bounded()


def test_a_file_in_very_many_tiny_parts_restores_with_little_memory(server):
    pieces = [noise(2, seed) for seed in range(1000)]
    parts = [Part(data=sv.Data(data=piece)) for piece in pieces]
    message = sv.BackupRequest(parts=parts * 50)
    count = 6

    def requests():
        yield sv.BackupRequest(parts=[begin("tiny"), Part(entry=pb.Entry(path="a"))])
        yield from repeat(message, count)
        yield sv.BackupRequest(parts=[Part(entry_end=sv.EntryEnd()), finish(1, count * 100_000)])

    with Watch(server) as watch:
        server.stub().Backup(requests())
        assert restore(server.stub(), "tiny").files == {"a": b"".join(pieces) * 50 * count}
        watch.memory_is_bounded()
        assert watch.peak - watch.before < 60 * MIB


def _bombs() -> dict[str, bytes]:
    text = b"a line of text\n" * 5000
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
    compress = zstandard.ZstdCompressor().compress
    stated = zstandard.ZstdCompressor(write_content_size=True)
    return {
        "bomb": compress(bytes(512 * MIB)),
        "huge window": zstandard.ZstdCompressor(compression_params=wide).compress(noise(3 * MIB)),
        "dictionary": zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(text[:4000])).compress(
            text
        ),
        "two frames": compress(text) * 2,
        "skippable": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compress(text),
        "behind": compress(text) + b"x",
        # Says that it holds what was announced, and holds far more.
        "lies": stated.compress(bytes(MIB))[:5] + compress(bytes(512 * MIB))[5:],
    }


def test_zip_bombs_are_refused_without_being_inflated(server):
    source = Source(server.stub(), "bombs")
    refs = [pb.ChunkRef(digest=blake3(bytes(MIB)).digest(), length_bytes=MIB)]
    with Watch(server) as watch:
        for name, data in _bombs().items():
            request = sv.PutChunksRequest(**source.id, chunks=refs, data=data[: 3 * MIB])
            calls = [source.stub.PutChunks.future(request) for _ in range(8)]
            for call in calls:
                assert info(call.exception(timeout=60)).reason == "BAD_FRAME", name
        watch.others_are_served()
        watch.memory_is_bounded()
        assert watch.peak - watch.before < 80 * MIB
        source.put_file("still", b"up")
        source.commit()


def test_entries_that_would_lead_out_of_a_target_never_become_a_backup(server):
    for path in ("../x", "/etc/x", "a/../../x", "a\0b", "."):
        with pytest.raises(grpc.RpcError) as refused:
            server.stub().Backup(messages([begin("www"), small(path, b"1"), finish(1, 1)]))
        assert reason(refused.value) == "BAD_FIELD"
    # Paths below a link or a file do not form a tree.
    link = Part(entry=pb.Entry(path="d", type=pb.ENTRY_TYPE_SYMLINK, link_target="/etc"))
    for above in (link, small("d", b"1")):
        with pytest.raises(grpc.RpcError) as refused:
            server.stub().Backup(
                messages(
                    [begin("www"), above, small("d/x", b"1"), finish(2, 1 + above.entry.HasField("data"))]
                )
            )
        assert reason(refused.value) == "PATH_CONFLICT"
    # Twice and in any order: the later one counts.
    parts = [small("z", b"1"), small("a", b"22"), small("z", b"333"), finish(3, 6)]
    server.stub().Backup(messages([begin("paths"), *parts]))
    assert restore(server.stub(), "paths").files == {"a": b"22", "z": b"333"}


def test_thousands_of_idle_calls_streams_and_watchers_delay_no_other_caller(server):
    end = threading.Event()

    def nothing():
        end.wait(60)
        yield from ()

    with Watch(server) as watch, ExitStack() as stack:
        calls = []
        for _ in range(4):
            connection = stack.enter_context(channel(server))
            for method in (SERVICE + "GetServerInfo", SERVICE + "PutChunks", "/grpc.health.v1.Health/Check"):
                calls += [connection.stream_unary(method).future(nothing()) for _ in range(120)]
            calls += [
                connection.stream_unary(SERVICE + "Backup").future(nothing(), metadata=bearer(server))
                for _ in range(
                    22
                )  # together fewer than the limit of one tenant, since the others use the same tenant
            ]
        watch.others_are_served()
        watch.memory_is_bounded()
        assert watch.threads < 400
        end.set()
        for call in calls:
            call.cancel()


def test_idle_connections_are_limited_and_leave_file_handles_for_the_store(server):
    host, _, port = server.address.rpartition(":")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1500, soft - 200)
    with Watch(server) as watch, ExitStack() as stack:
        for at in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with suppress(OSError):  # the one over the limit is closed at once
                connection.sendall((b"", b"P", PREFACE)[at % 3])
        watch.others_are_served()
        watch.memory_is_bounded()
        assert watch.files >= count


def test_the_server_asks_for_files_and_gives_connections_no_more_than_half(server):
    assert server.process is not None
    files, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    assert files >= min(FILES_WANTED, hard if hard != resource.RLIM_INFINITY else FILES_WANTED)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        assert connections_max() == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert connections_max() == min(CONNECTIONS_MAX, soft // 2)


def test_garbage_on_the_port_and_huge_metadata_are_rejected(server):
    host, _, port = server.address.rpartition(":")
    chance = random.Random(5)
    with Watch(server) as watch, channel(server) as connection:
        for at in range(300):
            with socket.create_connection((host, int(port)), timeout=60) as raw, suppress(OSError):
                raw.sendall((PREFACE if at % 2 else b"") + chance.randbytes(chance.randrange(1, 5000)))
        ask = connection.unary_unary(SERVICE + "GetServerInfo")
        for metadata in ([("x", "y" * 60_000)], [(f"x-{at}", "y") for at in range(2000)]):
            with pytest.raises(grpc.RpcError) as refused:
                ask(b"", metadata=metadata, timeout=60)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        watch.others_are_served()
        watch.memory_is_bounded()


def test_wrong_tokens_at_a_high_rate_are_all_refused_and_delay_no_other_caller(server):
    end = threading.Event()
    codes: set[grpc.StatusCode] = set()

    def guess(seed):
        with channel(server) as connection:
            ask = connection.unary_unary(SERVICE + "ListDatasets")
            for number in chain.from_iterable(repeat(range(10**6))):
                if end.is_set():
                    return
                with pytest.raises(grpc.RpcError) as refused:
                    ask(b"", metadata=[("authorization", f"Bearer staddle_{seed}_{number}")], timeout=60)
                codes.add(refused.value.code())

    with Watch(server) as watch:
        guessing = [threading.Thread(target=guess, args=(seed,)) for seed in range(4)]
        for each in guessing:
            each.start()
        for _ in range(3):
            watch.others_are_served()
        end.set()
        for each in guessing:
            each.join()
        watch.memory_is_bounded()
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}


def test_cancels_at_any_moment_leave_nothing_behind(server):
    chance = random.Random(7)
    data = noise(3_000_000)
    with Watch(server) as watch:
        stub = server.stub()
        for turn in range(15):
            parts = [
                begin("cut", request_id=f"r{turn}"),
                *(small(f"f{at}", data[at * 1000 : at * 3000]) for at in range(300)),
                finish(300, 0),
            ]
            call = stub.Backup.future(messages(parts))
            threading.Event().wait(chance.random() * 0.02)
            call.cancel()
            reading = stub.Restore(sv.RestoreRequest(dataset=watch.newest))
            if chance.random() < 0.5:
                next(reading)
            reading.cancel()
        watch.others_are_served()
        watch.memory_is_bounded()
        wait_until(lambda: watch.threads < 300)
    assert "cut" not in datasets(server.stub()) or not list(
        stub.ListBackups(sv.ListBackupsRequest(dataset="cut")).backups
    )
    assert server.stop() == 0
    server.start()


def test_a_slowly_arriving_request_is_answered_and_delays_no_other_caller(server):
    """Connections that send a byte now and then, while others work."""
    host, _, port = server.address.rpartition(":")
    with Watch(server) as watch, ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(200)
        ]
        for at in range(len(PREFACE)):
            for each in slow:
                with suppress(OSError):
                    each.sendall(PREFACE[at : at + 1])
            if at % 16 == 0:
                watch.others_are_served()
        watch.memory_is_bounded()
