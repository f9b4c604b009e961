"""The thin path for a directory: all bytes travel, in one Backup stream, and the server cuts them.

Small files stand inline and share messages. It needs nothing but what the thin client installs.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

from staddle._backup.capture import Capture, captures, to_send
from staddle._backup.changes import Changed, Difference, Removed
from staddle._backup.entries import BackupTally, add_holes
from staddle._errors import StaddleError
from staddle._fs.found import WallClock
from staddle._fs.metadata import OwnerNames, set_path
from staddle._protocol.convert import PROFILES_TO_WIRE, path_of
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from staddle._transport.calls import Calls

INLINE_BYTES_MAX: Final = 256 * 1024
MESSAGE_BYTES: Final = 1024 * 1024
DATA_BYTES: Final = 1024 * 1024
PARTS_MAX: Final = 16_384


class ThinAttempt:
    """Sends differences to an upload in one stream, whose end commits it."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __call__(
        self, upload: pb.Upload, differences: Generator[Difference], tally: BackupTally, clock: WallClock
    ) -> pb.Backup:
        """Raises what reading or the stream failed with; the upload's durable point says how far it came."""
        messages = _Messages(upload, differences, tally, clock)
        call = self._calls.start_backup(iter(messages), upload.id)
        try:
            response = call.result(upload)
        except StaddleError:
            if messages.failure is not None:
                raise messages.failure from None
            raise
        finally:
            call.cancel()
            messages.stop()
        return response.backup


class _Messages:
    """The messages of one stream. gRPC's thread draws from it; a failure is kept, and ends the stream without Finish."""

    def __init__(
        self, upload: pb.Upload, differences: Generator[Difference], tally: BackupTally, clock: WallClock
    ) -> None:
        self._upload = upload
        self._differences = differences
        self._tally = tally
        self._clock = clock
        self._names = OwnerNames()
        self._entry_count = upload.durable.entry_count
        self._data_bytes = upload.durable.data_bytes
        self._stopped = threading.Event()
        self._done = threading.Event()
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """Has the drawing thread close what it reads from, when it next looks."""
        self._stopped.set()

    def __iter__(self) -> Iterator[sv.BackupRequest]:
        parts: list[sv.BackupPart] = []
        size = 0
        try:
            for part in self._parts():
                part_bytes = part.ByteSize()
                if parts and (size + part_bytes > MESSAGE_BYTES or len(parts) >= PARTS_MAX):
                    yield sv.BackupRequest(parts=parts)
                    parts, size = [], 0
                if self._stopped.is_set():
                    return
                parts.append(part)
                size += part_bytes
            yield sv.BackupRequest(parts=parts)
        except Exception as error:  # noqa: BLE001 - raised again by the thread that waits for the answer
            self.failure = error
        finally:
            self._differences.close()

    def _parts(self) -> Iterator[sv.BackupPart]:
        yield sv.BackupPart(
            continue_upload=sv.ContinueUpload(
                upload_id=self._upload.id,
                epoch=self._upload.epoch,
                position=self._upload.durable.position,
            )
        )
        for each in to_send(self._differences, self._names, self._tally):
            if isinstance(each, Removed):
                yield _remove(each.path)
            elif isinstance(each, Changed):
                yield from self._changed(each)
            else:
                yield self._counted(each, 0)
        finish = sv.Finish(
            entry_count=self._entry_count,
            data_bytes=self._data_bytes,
            problem_count=self._tally.problem_count,
        )
        yield sv.BackupPart(finish=finish)

    def _changed(self, changed: Changed) -> Iterator[sv.BackupPart]:
        try:
            for part in self._file(changed):
                changed.sent = True
                yield part
        except OSError as error:
            self._tally.failed(changed.found.path, error)

    def _counted(self, entry: pb.Entry, size: int) -> sv.BackupPart:
        self._entry_count += 1
        self._data_bytes += size
        self._tally.entries_done += 1
        return sv.BackupPart(entry=entry)

    def _file(self, changed: Changed) -> Iterator[sv.BackupPart]:
        with closing(captures(changed, self._clock, self._names, self._tally)) as readings:
            for reading in readings:
                reading.entry.profile = PROFILES_TO_WIRE[self._tally.profile]
                if reading.opened.status.st_size <= INLINE_BYTES_MAX and not reading.opened.unsized:
                    yield from self._inline(reading)
                else:
                    yield from self._streamed(reading)

    def _inline(self, reading: Capture) -> Iterator[sv.BackupPart]:
        """A small file as one part, or none if it changed meanwhile and is to be read once more."""
        opened, entry = reading.opened, reading.entry
        data = b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in opened.pieces())
        if not reading.counts():
            return
        self._tally.read_bytes += len(data)
        self._tally.sent_bytes += len(data)
        add_holes(entry, opened.holes, len(data))
        entry.read_again = reading.read_again
        entry.data = data
        yield self._counted(entry, len(data))

    def _streamed(self, reading: Capture) -> Iterator[sv.BackupPart]:
        """A large file: its entry, its bytes, its end. Whatever happens to the file, the entry is ended."""
        opened, entry = reading.opened, reading.entry
        offset = self._continued_at(entry)
        if offset:
            entry.continue_at_bytes = offset
        add_holes(entry, opened.holes, opened.status.st_size)
        entry.read_again = opened.racy
        yield self._counted(entry, 0)
        size = offset
        failure: OSError | None = None
        try:
            for piece in opened.pieces(offset):
                size += piece if isinstance(piece, int) else len(piece)
                yield from self._data_of(piece)
        except OSError as error:
            failure = error
        if size < opened.status.st_size and opened.holes:
            # The holes that were announced must lie inside the file; it is sent again, or reported as a mixture.
            yield sv.BackupPart(data=sv.Data(zero_bytes=opened.status.st_size - size))
            size = opened.status.st_size
            opened.padded = True
        self._data_bytes += size
        if failure is None:
            reading.counts()
        yield sv.BackupPart(entry_end=sv.EntryEnd(size_bytes=size, read_again=reading.read_again))
        if failure is not None:
            raise failure

    def _data_of(self, piece: bytes | int) -> Iterator[sv.BackupPart]:
        if isinstance(piece, int):
            yield sv.BackupPart(data=sv.Data(zero_bytes=piece))
            return
        self._tally.read_bytes += len(piece)
        self._tally.sent_bytes += len(piece)
        self._tally.watch()
        view = memoryview(piece)
        for start in range(0, len(piece), DATA_BYTES):
            yield sv.BackupPart(data=sv.Data(data=bytes(view[start : start + DATA_BYTES])))

    def _continued_at(self, entry: pb.Entry) -> int:
        """Where to resume the file that was open when the upload broke off, if it is still the same."""
        durable = self._upload.durable
        if not durable.HasField("open_entry") or path_of(durable.open_entry) != path_of(entry):
            return 0
        same = all(
            getattr(durable.open_entry, name) == getattr(entry, name)
            for name in ("mtime_ns", "ctime_ns", "inode")
        )
        return durable.open_offset_bytes if same else 0


def _remove(path: bytes) -> sv.BackupPart:
    remove = pb.Remove()
    set_path(remove, path)
    return sv.BackupPart(remove=remove)
