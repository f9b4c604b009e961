"""A hostile server, and the client that reads its answers: nothing outside the target changes, no wrong data is accepted."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from blake3 import blake3
from fuzz_engine import MIB, Check, Target, mutate_bytes
from google.protobuf.message import DecodeError
from staddle import Client, StaddleError
from staddle.chunking import content_id
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

SERVICE = "staddle.v1.StaddleService"
Part = sv.RestorePart
WRITTEN_BYTES_MAX = 4 * MIB
"""A server may say how large a file is; for the fuzzing, not too large."""


class HostileServer:
    """Answers every call with prepared bytes."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.details = b""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if not details.method.startswith(f"/{SERVICE}/"):
            return None
        if details.method.endswith("/Restore"):
            return grpc.unary_stream_rpc_method_handler(self._restore)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _restore(self, request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        """The messages: as they are, or, where the client asks for less, what it asks for of them."""
        asked = sv.RestoreRequest.FromString(request)
        if asked.view != sv.ENTRY_VIEW_BASIC and not asked.exact:
            yield from self.messages
            return
        parts = [part for message in self.messages for part in parts_of(message) or ()]
        blocks = [block for block in blocks_of(parts) if _is_asked(block, asked)]
        if asked.view == sv.ENTRY_VIEW_BASIC:
            blocks = [[_without_data(block[0])] for block in blocks]
        yield with_end([part for block in blocks for part in block])

    def _answer(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.details:
            context.set_trailing_metadata([("grpc-status-details-bin", self.details)])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        return self.messages[0]


@contextmanager
def hostile() -> Iterator[tuple[HostileServer, Client]]:
    """Such a server, and a client of it."""
    server_side = HostileServer()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[server_side])  # type: ignore[list-item]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", "token", retry_s=0) as client:
            yield server_side, client
    finally:
        server.stop(None).wait()


# ---------------------------------------------------------------------- restores


def file_parts(path: str, chunks: list[bytes], **fields: Any) -> list[Part]:
    """A file as a restore brings it."""
    data = b"".join(chunks)
    identity = content_id((len(chunk), blake3(chunk).digest()) for chunk in chunks)
    content = pb.Content(size_bytes=len(data), content_id=identity)
    entry = pb.Entry(path=path, type=pb.ENTRY_TYPE_FILE, content=content, **fields)
    if len(chunks) < 2:
        entry.data = data
        return [Part(entry=entry)]
    return [
        Part(entry=entry),
        Part(data=sv.Data(data=data, chunk_lengths=[len(chunk) for chunk in chunks])),
        Part(entry_end=sv.EntryEnd(size_bytes=len(data), content_id=identity)),
    ]


def _parts() -> list[Part]:
    holes = [pb.Hole(offset_bytes=10, length_bytes=100), pb.Hole(offset_bytes=300, length_bytes=50)]
    zeros = [bytes(1000)] * 3
    sparse = file_parts("d/sparse", zeros, holes=holes)
    sparse[1] = Part(data=sv.Data(zero_bytes=3000, chunk_lengths=[1000] * 3))
    return [
        Part(
            header=sv.RestoreHeader(
                backup=pb.Backup(id="ab" * 16, dataset="d", number=1, entry_count=2**20, data_bytes=2**60)
            )
        ),
        Part(entry=pb.Entry(path="", type=pb.ENTRY_TYPE_DIRECTORY, mode=0o755)),
        *file_parts("a", [b"one"], mode=0o640, mtime_ns=10**18, xattrs=[pb.Xattr(name="user.a", value=b"1")]),
        Part(entry=pb.Entry(path="d", type=pb.ENTRY_TYPE_DIRECTORY, mode=0o700, mtime_ns=5)),
        *file_parts("d/big", [b"x" * 4000, b"y" * 3000]),
        *file_parts("d/linked-1", [b"same"], link_group=b"7@"),
        *file_parts("d/linked-2", [b"same"], link_group=b"7@"),
        *sparse,
        Part(entry=pb.Entry(path="fifo", type=pb.ENTRY_TYPE_FIFO, mode=0o600)),
        Part(entry=pb.Entry(path="in", type=pb.ENTRY_TYPE_SYMLINK, link_target="d")),
        Part(entry=pb.Entry(path="out", type=pb.ENTRY_TYPE_SYMLINK, link_target="../outside")),
        *file_parts("z", []),
    ]


def with_end(parts: list[Part]) -> bytes:
    """The parts with an end whose counts are right."""
    entries = [part.entry for part in parts if part.HasField("entry")]
    ended = sum(part.entry_end.size_bytes for part in parts if part.HasField("entry_end"))
    inline = sum(e.content.size_bytes for e in entries if e.HasField("data") or not e.content.size_bytes)
    damages = sum(part.HasField("damage") for part in parts)
    end = sv.End(entry_count=len(entries), data_bytes=min(ended + inline, 2**64 - 1), damage_count=damages)
    return sv.RestoreResponse(parts=[*parts, Part(end=end)]).SerializeToString()


def parts_of(data: bytes) -> list[Part] | None:
    """The parts of a message; None if it is invalid."""
    try:
        return list(sv.RestoreResponse.FromString(data).parts)
    except DecodeError:
        return None


def blocks_of(parts: list[Part]) -> list[list[Part]]:
    """What belongs together: an entry with its data and its end. The stream's own end is left out."""
    blocks: list[list[Part]] = []
    for part in parts:
        if part.WhichOneof("part") in {"header", "entry"} or not blocks:
            blocks.append([])
        if not part.HasField("end"):
            blocks[-1].append(part)
    return [block for block in blocks if block]


def _is_asked(block: list[Part], asked: sv.RestoreRequest) -> bool:
    path = block[0].entry.raw_path or block[0].entry.path.encode()
    wanted = {each.encode() for each in asked.paths} | set(asked.raw_paths)
    return not block[0].HasField("entry") or not asked.exact or path in wanted


def _without_data(part: Part) -> Part:
    made = Part.FromString(part.SerializeToString())
    if made.HasField("entry"):
        made.entry.ClearField("data")
    return made


PATHS = (
    "..", "../outside/x", "/etc/x", "a\0b", "a/../../outside", "./a", "d//x", "d/", "x" * 300, "x" * 1025, "y/" * 600 + "y",
    "out/x", "in/x", "out", "in", "a/below", "fifo/x", "d/big/x", "d", "", ".staddle-x", "d/linked-1", "CON", "\\", "a\n\x1b[31m",
)  # fmt: skip
NEAR = (
    "out/file",
    "out",
    "in/x",
    "in/big",
    "a/below",
    "fifo/x",
    "d/big/x",
    "d",
    "",
    "d/linked-1",
    "d/new",
    "a",
    "\xff",
    "d/out",
)
"""Paths that the protocol allows, and that meet with what is there."""
TARGETS_OF_LINKS = ("/", "..", "../outside", "", "x" * 5000, "a\0b", "/proc/self/root", ".", "out")
NUMBERS = (0, 1, 4095, 2**31, 2**32 - 1, 2**53, 2**63 - 1)


def _restore_seeds() -> list[bytes]:
    """An honest stream; and for each path, and each name beside a path, that means harm, one that is honest but for that."""
    honest, link = (
        _parts(),
        Part(entry=pb.Entry(path="out", type=pb.ENTRY_TYPE_SYMLINK, link_target="../outside")),
    )
    start = honest[:2]
    harmful = [[*start, *file_parts(path, [b"harm"])] for path in PATHS]
    harmful += [[*start, link, *file_parts(path, [b"harm"])] for path in ("out/x", "out/file", "out/../x")]
    harmful += [
        [*start, Part(entry=pb.Entry(path="l", type=pb.ENTRY_TYPE_SYMLINK, link_target=target))]
        for target in TARGETS_OF_LINKS
    ]
    harmful.append([*start, *file_parts("f", [b"x"], xattrs=[pb.Xattr(name="user.a\0b", value=b"1")])])
    return [with_end(parts) for parts in (honest, *harmful)]


def _mutate_restore(chance: random.Random, data: bytes) -> bytes:
    """A stream with a few things changed, so that all around them is as the protocol says."""
    parts = parts_of(data)
    if parts is None or chance.random() < 0.03:
        return mutate_bytes(chance, data)
    blocks = blocks_of(parts)
    for _ in range(chance.choice((1, 1, 2, 3))):
        if blocks:
            _change_blocks(chance, blocks)
    if chance.random() < 0.9:
        blocks.sort(key=lambda block: _key(block[0]) if block[0].HasField("entry") else b"")
        if chance.random() < 0.9:
            blocks = list(
                {_key(block[0]) if block[0].HasField("entry") else None: block for block in blocks}.values()
            )
    changed = [part for block in blocks for part in block]
    if chance.random() < 0.1:
        _change_parts(chance, changed)
    return (
        with_end(changed) if chance.random() < 0.97 else sv.RestoreResponse(parts=changed).SerializeToString()
    )


def _key(part: Part) -> bytes:
    return (part.entry.raw_path or part.entry.path.encode()).replace(b"/", b"\0")


def _change_blocks(chance: random.Random, blocks: list[list[Part]]) -> None:
    at = chance.randrange(len(blocks))
    block = [Part.FromString(part.SerializeToString()) for part in blocks[at]]
    match chance.randrange(5):
        case 0 if block[0].HasField("entry"):
            _set_path(chance, block[0].entry)
            blocks.append(block)
        case 1 if at:
            del blocks[at]
        case _ if block[0].HasField("entry"):
            _change_entry(chance, block[0].entry)
            blocks[at] = block


def _change_parts(chance: random.Random, parts: list[Part]) -> None:
    """Breaks the order, or what is neither an entry."""
    at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    match chance.randrange(4):
        case 0:
            parts.insert(other, parts[at])
        case 1:
            del parts[at]
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            _change_other(chance, parts[at])


def _set_path(chance: random.Random, entry: pb.Entry) -> None:
    entry.ClearField("raw_path")
    entry.path = chance.choice(PATHS if chance.random() < 0.3 else NEAR)
    if chance.random() < 0.1:
        entry.raw_path = chance.choice((b"\xff", b"../\xff", b"d/\xff\xfe", b"/"))


def _change_entry(chance: random.Random, entry: pb.Entry) -> None:
    match chance.randrange(14):
        case 0 | 1 | 2:
            _set_path(chance, entry)
        case 3 | 4:
            entry.type = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 99))  # type: ignore[assignment]
        case 5:
            entry.link_target = chance.choice(TARGETS_OF_LINKS)
        case 6:
            entry.mode = chance.choice((0, 0o777, 0o4755, 0o170000, 2**32 - 1))
        case 7:
            entry.uid = entry.gid = chance.choice(NUMBERS[:5])
        case 8:
            entry.mtime_ns = chance.choice((*NUMBERS, -1, -(2**63), 2**63 - 1))
        case 9:
            entry.content.size_bytes = chance.choice((*NUMBERS, 2**64 - 1))
        case 10:
            name = chance.choice(
                ("user.x", "user.a\0b", "", "x" * 300, "trusted.x", "system.posix_acl_access", "security.x")
            )
            entry.xattrs.add(name=name, value=chance.choice((b"", b"x", bytes(70_000))))
        case 11:
            entry.holes.add(
                offset_bytes=chance.choice((*NUMBERS, 2**64 - 1)),
                length_bytes=chance.choice((*NUMBERS, 2**64 - 1)),
            )
        case 12:
            entry.link_group = chance.choice((b"7@", b"", bytes(70)))
        case _:
            entry.device_major = entry.device_minor = chance.choice(NUMBERS[:5])
            entry.data = chance.choice((b"", b"one", b"same"))  # fmt: skip


def _change_other(chance: random.Random, part: Part) -> None:
    which = part.WhichOneof("part")
    if which == "data":
        part.data.chunk_lengths[:] = chance.choice(([], [0], [2**32 - 1], [1] * 50, [1000] * 3))
        if chance.random() < 0.5:
            part.data.zero_bytes = chance.choice((0, 1, 3000, 2**64 - 1))
    elif which == "entry_end":
        part.entry_end.size_bytes = chance.choice((*NUMBERS, 2**64 - 1))
    elif which == "header":
        part.header.backup.id = chance.choice(("", "x", "ab" * 16))
        part.header.backup.begin_time.seconds = chance.choice((0, 2**62, -(2**62)))
        part.header.backup.commit_time.nanos = chance.choice((0, -1, 2**31 - 1))


@contextmanager
def _restores() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as tmp, hostile() as (server, client):
        top = Path(tmp)
        (top / "outside").mkdir()
        (top / "outside" / "file").write_bytes(b"left alone")
        before = _seen(top)

        def check(data: bytes) -> str:
            if _writes(data) > WRITTEN_BYTES_MAX:
                return "too large to be tried"
            server.messages = _split(data)
            target = top / "target"
            said = []
            try:
                # Into an empty target, then over the result.
                for overwrite in ("always", "if-changed"):
                    said.append(_restore(client, target, overwrite))
                    _check_contents(target, data)
                    assert _seen(top) == before, "something outside the target was changed"
            finally:
                _remove(target)
            return "; ".join(said)

        yield check


def _restore(client: Client, target: Path, overwrite: Any) -> str:
    try:
        report = client.restore("d", target, overwrite=overwrite, retry_s=0)
    except StaddleError as error:
        return f"{type(error).__name__} {error.message}"
    return " ".join(sorted({problem.message[:60] for problem in report.problems})) or "restored"


def _writes(data: bytes) -> int:
    """The number of zero bytes that a stream describes."""
    parts = parts_of(data) or []
    return sum(min(part.data.zero_bytes, sum(part.data.chunk_lengths)) for part in parts)


def _split(data: bytes) -> list[bytes]:
    """One message, or one for each few parts."""
    parts = parts_of(data)
    if parts is None:
        return [data]
    step = 1 + len(data) % 5
    return [
        sv.RestoreResponse(parts=parts[at : at + step]).SerializeToString()
        for at in range(0, len(parts), step)
    ] or [b""]


def _seen(top: Path) -> list[tuple[Any, ...]]:
    """Everything beside the target, with its stat except access times."""
    found = []
    for path in (top, top / "outside", top / "outside" / "file"):
        status = path.lstat()
        names = sorted(set(os.listdir(path)) - {"target"}) if path.is_dir() else []
        times = (status.st_mtime_ns, status.st_ctime_ns) if path != top else ()
        found.append(
            (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_nlink if path != top else 0,
                *times,
                *names,
            )
        )
        found.append(os.listxattr(path))
    assert (top / "outside" / "file").read_bytes() == b"left alone"
    return found


def _check_contents(target: Path, data: bytes) -> None:
    """Every file that lies there has bytes whose content id the stream named; nothing half-written is left."""
    parts = parts_of(data) or []
    sizes = {part.entry.content.size_bytes for part in parts if part.HasField("entry")} | {0}
    named_ids = {part.entry.content.content_id for part in parts if part.HasField("entry")} | {
        blake3(b"").digest()
    }
    for directory, _, names in os.walk(os.fsencode(target)):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            named = any(_key(part).endswith(name) for part in parts if part.HasField("entry"))
            assert named or not name.startswith(b".staddle-"), "a temporary file was left"
            if stat.S_ISREG(status.st_mode):
                assert status.st_size in sizes
                if status.st_size < 1000:
                    os.chmod(path, 0o600)
                    with open(path, "rb") as file:
                        assert blake3(file.read()).digest() in named_ids, (
                            "bytes without a matching content id"
                        )


def _remove(target: Path) -> None:
    try:
        shutil.rmtree(target, ignore_errors=False)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):  # deeper than Python can
        subprocess.run(["/bin/rm", "-rf", str(target)], check=True)


TARGETS = [
    Target("restore", _restores, _restore_seeds, _mutate_restore, growth_bytes_max=96 * MIB, short_runs=100),
]  # fmt: skip
