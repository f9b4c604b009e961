"""The state of the protocol in memory: entries, uploads and backups."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blake3 import blake3
from staddle.chunking import ContentHasher
from staddle.v1 import resources_pb2 as pb

CHUNK = 64 * 1024


def sort_key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def path_of(message) -> bytes:
    return message.raw_path or message.path.encode()


def chunks_of(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def content_id(data: bytes) -> bytes:
    hasher = ContentHasher()
    for chunk in chunks_of(data):
        hasher.add(len(chunk), blake3(chunk).digest())
    return hasher.content_id()


@dataclass
class Stored:
    entry: pb.Entry
    data: bytes = b""


@dataclass
class Opened:
    entry: pb.Entry
    data: bytearray = field(default_factory=bytearray)


@dataclass
class State:
    """The state of an upload."""

    position: int = 0
    entry_count: int = 0
    data_bytes: int = 0
    entries: dict[bytes, Stored] = field(default_factory=dict)
    opened: Opened | None = None

    def durable(self) -> State:
        state = self.copied()
        if state.opened is not None:
            del state.opened.data[len(state.opened.data) // CHUNK * CHUNK :]
        return state

    def copied(self) -> State:
        opened = self.opened and Opened(self.opened.entry, self.opened.data.copy())
        return replace(self, entries=dict(self.entries), opened=opened)

    def point(self) -> pb.DurablePoint:
        point = pb.DurablePoint(
            position=self.position, entry_count=self.entry_count, data_bytes=self.data_bytes
        )
        if self.opened is not None:
            point.open_entry.CopyFrom(self.opened.entry)
            point.open_offset_bytes = len(self.opened.data)
        return point

    def take(self, entry: pb.Entry, data: bytes) -> None:
        kept = pb.Entry()
        kept.CopyFrom(entry)
        for name in ("data", "continue_at_bytes", "profile"):
            kept.ClearField(name)
        if kept.type == pb.ENTRY_TYPE_UNSPECIFIED:
            kept.type = pb.ENTRY_TYPE_FILE
        if kept.type == pb.ENTRY_TYPE_FILE:
            kept.content.size_bytes = len(data)
            kept.content.content_id = content_id(data)
        self.entries[path_of(kept)] = Stored(kept, data)
        self.position += 1
        self.entry_count += 1
        self.data_bytes += len(data)


@dataclass
class OpenUpload:
    message: pb.Upload
    received: State = field(default_factory=State)
    durable: State = field(default_factory=State)

    def shown(self) -> pb.Upload:
        self.message.durable.CopyFrom(self.durable.point())
        return self.message


@dataclass
class StoredBackup:
    message: pb.Backup
    entries: dict[bytes, Stored]
