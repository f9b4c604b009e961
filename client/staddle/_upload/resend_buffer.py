"""Data that was sent but is not durable yet: the queue of a Backup stream, which the next stream sends again.

A server that restarts, or a connection that breaks, loses what was received after the last checkpoint. Everything since then
is kept here, so that a source need be read only once, seekable or not.
"""

import enum
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final

from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

MIB: Final = 1024 * 1024
MESSAGE_BYTES: Final = 1 * MIB
MESSAGE_PARTS_MAX: Final = 10_000
LINGER_S: Final = 0.02
"""So long a message waits for more, while it has less than MESSAGE_BYTES."""
REPLAY_BYTES_MAX: Final = 96 * MIB
CHECKPOINT_BYTES: Final = 32 * MIB
"""So many bytes after the last durable point, the next one is asked for."""
FULL_WAIT_S: Final = 0.05
PART_OVERHEAD_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part of the stream, and where in the upload it stands.

    Attributes:
        position: of its entry or removal once that is complete, counted from 1.
        part: as it is sent.
        offset: DATA only: where in the file its bytes begin; -1 for other parts.
        begins_file: an entry whose data follow.

    """

    position: int
    part: sv.BackupPart
    offset: int = -1
    begins_file: bool = False

    @property
    def size_bytes(self) -> int:
        """Its approximate memory."""
        return len(self.part.data.data) + len(self.part.entry.data) + PART_OVERHEAD_BYTES

    @property
    def end(self) -> int:
        """DATA only: where in the file its bytes end."""
        return self.offset + len(self.part.data.data)


class Outcome(enum.Enum):
    """The outcome of a record."""

    TAKEN = enum.auto()
    FULL = enum.auto()
    ENDED = enum.auto()


class Replay:
    """Records on their way, for one producer and one stream at a time.

    Each `messages` iterator is one stream; the newest one alone gets anything.
    """

    def __init__(self, *, bytes_max: int = REPLAY_BYTES_MAX, linger_s: float = LINGER_S) -> None:
        self._bytes_max = bytes_max
        self._linger_s = linger_s
        self._changed = threading.Condition()
        self._records: deque[SentPart] = deque()
        self._bytes = 0
        self._unsent: deque[SentPart] = deque()
        self._unsent_bytes = 0
        self._generation = 0
        self._running = False

    @property
    def held_bytes(self) -> int:
        """The bytes not known to be durable."""
        return self._bytes

    def append(self, record: SentPart) -> Outcome:
        """Takes the next record, unless the stream has ended, or too much is not durable and stays so for FULL_WAIT_S."""
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._bytes < self._bytes_max or not self._running, FULL_WAIT_S
            )
            if not self._running:
                return Outcome.ENDED
            if not room:
                return Outcome.FULL
            size = record.size_bytes
            self._records.append(record)
            self._bytes += size
            was_empty = not self._unsent
            self._unsent.append(record)
            self._unsent_bytes += size
            if was_empty or self._unsent_bytes >= MESSAGE_BYTES or record.part.HasField("finish"):
                self._changed.notify_all()
            return Outcome.TAKEN

    def trim(self, durable: pb.DurablePoint) -> None:
        """Release durable data."""
        with self._changed:
            self._trim(durable)
            self._changed.notify_all()

    def _trim(self, durable: pb.DurablePoint) -> None:
        while self._records and self._records[0].position <= durable.position:
            self._bytes -= self._records.popleft().size_bytes
        if not (self._records and _is_open(self._records[0], durable)):
            return
        opening = self._records.popleft()
        while (
            self._records
            and self._records[0].offset >= 0
            and self._records[0].end <= durable.open_offset_bytes
        ):
            self._bytes -= self._records.popleft().size_bytes
        self._records.appendleft(opening)

    def restart(self, first: sv.BackupPart, durable: pb.DurablePoint) -> Iterator[sv.BackupRequest]:
        """The messages of a new stream: `first`, what is not durable, and then whatever is appended."""
        with self._changed:
            self._trim(durable)
            self._generation += 1
            self._running = True
            self._unsent = deque(_from(durable, self._records))
            self._unsent_bytes = sum(record.size_bytes for record in self._unsent)
            self._changed.notify_all()
            generation = self._generation
        return self._messages(first, generation)

    def stop(self, generation: int | None = None) -> None:
        """The stream has ended: end the waits for it. A late report about an older stream is ignored."""
        with self._changed:
            if generation is None or generation == self._generation:
                self._running = False
                self._changed.notify_all()

    @property
    def generation(self) -> int:
        """Which stream is the newest, counted from 1."""
        return self._generation

    def _messages(self, first: sv.BackupPart, generation: int) -> Iterator[sv.BackupRequest]:
        yield sv.BackupRequest(parts=[first])
        while (parts := self._take(generation)) is not None:
            yield sv.BackupRequest(parts=parts)
            if parts[-1].HasField("finish"):
                return

    def _take(self, generation: int) -> list[sv.BackupPart] | None:
        """The parts of the next message; None: this stream is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._unsent or self._is_over(generation))
            end_s = monotonic() + self._linger_s
            while not (self._is_over(generation) or self._full()) and (left_s := end_s - monotonic()) > 0:
                self._changed.wait(left_s)
            if self._is_over(generation):
                return None
            parts: list[sv.BackupPart] = []
            taken = 0
            while self._unsent and taken < MESSAGE_BYTES and len(parts) < MESSAGE_PARTS_MAX:
                record = self._unsent.popleft()
                taken += record.size_bytes
                parts.append(record.part)
            self._unsent_bytes -= taken
            return parts

    def _is_over(self, generation: int) -> bool:
        return not self._running or generation != self._generation

    def _full(self) -> bool:
        return self._unsent_bytes >= MESSAGE_BYTES or (
            bool(self._unsent) and self._unsent[-1].part.HasField("finish")
        )


def _is_open(record: SentPart, durable: pb.DurablePoint) -> bool:
    """Whether a record begins the file that the server has in part."""
    entry, opened = record.part.entry, durable.open_entry
    return (
        record.begins_file
        and durable.HasField("open_entry")
        and (entry.path, entry.raw_path) == (opened.path, opened.raw_path)
    )


def _from(durable: pb.DurablePoint, records: deque[SentPart]) -> Iterator[SentPart]:
    """What is not durable of `records`, whose first is the first that is not. An open file resumes at its durable byte."""
    if not (records and _is_open(records[0], durable)):
        yield from records
        return
    opening, offset = records[0], durable.open_offset_bytes
    part = sv.BackupPart()
    part.CopyFrom(opening.part)
    part.entry.continue_at_bytes = offset
    if offset:
        part.entry.ClearField("file_digest")  # the server could hash only the rest
    yield SentPart(opening.position, part, begins_file=True)
    for record in list(records)[1:]:
        if record.position == opening.position and 0 <= record.offset < offset:
            rest = record.part.data.data[offset - record.offset :]
            yield SentPart(record.position, sv.BackupPart(data=sv.Data(data=rest)), offset)
        else:
            yield record
