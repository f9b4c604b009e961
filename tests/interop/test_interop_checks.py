"""The clients in other languages verify everything: wrong data from a server never becomes a restored file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from blake3 import blake3
from interop_clients import Foreign
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc

Part = sv.RestorePart
ONE = b"first chunk " * 10
TWO = b"second chunk " * 10
PAIRS = b"".join(len(each).to_bytes(4, "little") + blake3(each).digest() for each in (ONE, TWO))
CONTENT_ID = blake3(PAIRS, derive_key_context="staddle.v1 content id").digest()
HEADER = Part(header=sv.RestoreHeader(backup=pb.Backup(id="0" * 32)))


class Scripted(service_pb2_grpc.StaddleServiceServicer):
    """Answers Restore with given parts, one a message."""

    parts: Iterable[sv.RestorePart] = ()

    def Restore(self, request, context) -> Iterator[sv.RestoreResponse]:  # noqa: N802 - gRPC's name
        for part in self.parts:
            yield sv.RestoreResponse(parts=[part])


@pytest.fixture
def restored(foreign: Foreign, tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Let a client restore given parts; return its exit code and error output."""
    scripted = Scripted()
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_StaddleServiceServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def run(*parts: sv.RestorePart) -> tuple[int, str]:
        scripted.parts = parts
        done = foreign.run(f"127.0.0.1:{port}", "any", "restore", "any", bytes(tmp_path / "target"))
        return done.returncode, done.stderr

    yield run
    server.stop(0).wait()
    pool.shutdown()


def inline(path: str, data: bytes, content_id: bytes | None = None) -> sv.RestorePart:
    content = pb.Content(size_bytes=len(data), content_id=content_id or blake3(data).digest())
    return Part(entry=pb.Entry(path=path, type=pb.ENTRY_TYPE_FILE, data=data, content=content))


def link(path: str, target: str) -> sv.RestorePart:
    return Part(entry=pb.Entry(path=path, type=pb.ENTRY_TYPE_SYMLINK, link_target=target))


def streamed(
    data: bytes = ONE + TWO, lengths: tuple[int, ...] = (len(ONE), len(TWO))
) -> list[sv.RestorePart]:
    size = len(ONE + TWO)
    content = pb.Content(size_bytes=size, content_id=CONTENT_ID)
    return [
        Part(entry=pb.Entry(path="file", type=pb.ENTRY_TYPE_FILE, content=content)),
        Part(data=sv.Data(data=data, chunk_lengths=lengths)),
        Part(entry_end=sv.EntryEnd(size_bytes=size, content_id=CONTENT_ID)),
    ]


def end(entries: int, size: int) -> sv.RestorePart:
    return Part(end=sv.End(entry_count=entries, data_bytes=size))


def test_a_correct_stream_is_restored(restored, tmp_path: Path) -> None:
    status, complaint = restored(HEADER, *streamed(), inline("small", b"x"), end(2, len(ONE + TWO) + 1))
    assert (status, complaint) == (0, "")
    assert (tmp_path / "target" / "file").read_bytes() == ONE + TWO


def test_a_stream_without_its_end_is_a_failure(restored) -> None:
    status, complaint = restored(HEADER, *streamed())
    assert status == 1
    assert "ended without its end" in complaint


def test_an_end_with_other_counts_is_a_failure(restored) -> None:
    assert restored(HEADER, *streamed(), end(2, len(ONE + TWO)))[0] == 1


@pytest.mark.parametrize(
    "parts",
    [
        streamed(data=ONE + TWO[:-1] + b"!"),
        streamed(data=ONE + TWO[:-1]),
        streamed(lengths=(len(ONE) + 1, len(TWO) - 1)),
        streamed(lengths=(len(ONE),)),
        [inline("file", b"x", blake3(b"y").digest())],
        [inline("file", b"", blake3(b"y").digest())],
    ],
    ids=["flipped", "short", "other chunks", "bytes of no chunk", "inline", "empty"],
)
def test_bytes_without_their_content_id_are_a_failure(restored, parts: list[sv.RestorePart]) -> None:
    size = sum(each.entry.content.size_bytes for each in parts)
    status, complaint = restored(HEADER, *parts, end(1, size))
    assert status == 1
    assert complaint


@pytest.mark.parametrize("path", ["../escaped", "/escaped", "link/escaped", "a//b", "./a", ".."])
def test_nothing_is_written_outside_the_target(restored, tmp_path: Path, path: str) -> None:
    status, complaint = restored(HEADER, link("link", ".."), inline(path, b"x"), end(2, 1))
    assert status == 1
    assert complaint
    assert [each.name for each in tmp_path.iterdir()] == ["target"]
    assert [each.name for each in (tmp_path / "target").iterdir()] == ["link"]
