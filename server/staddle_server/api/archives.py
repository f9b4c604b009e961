"""A backup, or a part of it, as an archive: bytes for whatever transport."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from staddle._base.figures import counted
from staddle._protocol.archive_formats import Archive, BadContentError, CannotHoldError, LinkSources
from staddle._protocol.archive_tar import TarArchive
from staddle._protocol.archive_zip import ZipArchive
from staddle.v1 import resources_pb2 as pb

from staddle_server.api import convert
from staddle_server.base.errors import BadRequest, Damaged
from staddle_server.base.limits import ARCHIVE_PIECE_BYTES, MIB
from staddle_server.manifest.content import with_attributes
from staddle_server.manifest.entries import shown
from staddle_server.restore.restore import (
    Event,
    Restore,
    SentDamage,
    SentData,
    SentEnd,
    SentEntry,
    SentZeros,
)
from staddle_server.store.blobs import compact
from staddle_server.store.compressed_streams import compressed

NOBODY: Final = (0, 0)
"""The owner, by number, of entries that have none: not that of the server's process."""
NAMED_MAX: Final = 20
"""Paths that a note names."""
ZIP_ENTRIES_MAX: Final = 1_000_000
ZIP_NAMES_BYTES_MAX: Final = 256 * MIB
"""A zip ends with a list of its members, which waits in a temporary file meanwhile: 350 bytes and a name for each."""
END_BYTES_IN_MEMORY: Final = 8 * MIB

MEDIA_TYPES: Final = {"tar": "application/x-tar", "tar.zst": "application/zstd", "zip": "application/zip"}
"""Of each format, by the name that callers use."""


OnLack = Callable[[int, int], None]


def archive_pieces(
    restore: Restore,
    paths: list[bytes],
    form: str,
    time_ns: int,
    *,
    large: threading.Lock,
    on_lack: OnLack,
) -> Iterator[bytes]:
    """Yield an archive of the selected paths; with none, of everything. Each piece has some 256 KiB or more.

    `time_ns` is the time of entries without one; `large` lets a tenant convert large attributes one at a time.
    `on_lack` is told how many entries the archive lacks so far, and how many it has without something.

    Raises:
        Damaged: A part cannot be read. The archive is cut off there, in the middle: it must not look complete.
        BadRequest: BAD_FIELD, a zip would have too many entries.

    """
    pieces = _pieces(restore.events(paths, exact=False), form, time_ns, large, on_lack)
    return compressed(pieces) if form == "tar.zst" else pieces


def too_many_for_zip() -> BadRequest:
    """Return the error for a zip of too many entries."""
    return BadRequest(
        "BAD_FIELD",
        f"format: a zip has at most {ZIP_ENTRIES_MAX:,} entries, and {ZIP_NAMES_BYTES_MAX // MIB} MiB of names: use tar "
        "or tar.zst, or choose a part of the backup with path",
        field="format",
    )


def _pieces(
    events: Iterator[Event], form: str, time_ns: int, large: threading.Lock, on_lack: OnLack
) -> Iterator[bytes]:
    # An archive that nobody reads must not hold a temporary file.
    yield from _Writing(form, time_ns, large, on_lack).pieces(events)


class _Output:
    """What the archive has written and nobody has taken yet."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self.size = 0
        self.file: IO[bytes] | None = None
        """Where everything goes instead, while it is set."""

    def write(self, data: bytes) -> int:
        """Take all of it."""
        if self.file is not None:
            return self.file.write(data)
        self._waiting.append(data)
        self.size += len(data)
        return len(data)

    def take(self) -> bytes:
        """Return all of it."""
        taken, self._waiting, self.size = self._waiting, [], 0
        return taken[0] if len(taken) == 1 else b"".join(taken)


class _ArchiveLack:
    """What an archive lacks: how many, and the first ones in words."""

    def __init__(self) -> None:
        self.count = 0
        self._named: list[str] = []

    def note(self, what: str) -> None:
        """Add one."""
        self.count += 1
        if len(self._named) < NAMED_MAX:
            self._named.append(what)

    @property
    def named(self) -> str:
        """A line each."""
        return "\n".join([*self._named, *(["…"] if self.count > len(self._named) else [])])


class _Writing:
    """One archive in the making."""

    def __init__(self, form: str, time_ns: int, large: threading.Lock, on_lack: OnLack) -> None:
        self._output = _Output()
        self._zip = ZipArchive(self._output, time_ns) if form == "zip" else None
        self._archive: Archive = self._zip or TarArchive(self._output, time_ns, NOBODY)
        self._large = large
        self._links = LinkSources()
        self._path = b""
        self._open: pb.Entry | None = None
        """The file whose bytes follow."""
        self._left_out, self._reduced = _ArchiveLack(), _ArchiveLack()
        """Entries that are not in the archive, and those that are there without something."""
        self._on_lack = on_lack
        self._entries = self._names_bytes = 0

    def pieces(self, events: Iterator[Event]) -> Iterator[bytes]:
        """Yield the archive. Raises as `archive_pieces` does."""
        output = self._output
        try:
            for event in events:
                self._take(event)
                if output.size >= ARCHIVE_PIECE_BYTES:
                    yield output.take()
            yield from self._finished()
        except BadContentError as error:
            path = shown(self._path)
            raise Damaged(f"{path} {error}: the archive ends there", path=path) from error
        finally:
            if self._zip is not None:
                self._zip.abandon()  # closes its temporary file; a complete one is closed already

    def _finished(self) -> Iterator[bytes]:
        """Yield the rest, with the archive's end. That of a zip is written at once, and may be large."""
        output = self._output
        if self._zip is not None:
            if self._left_out.count or self._reduced.count:
                self._zip.comment(self._note())
            if output.size:
                yield output.take()
            with SpooledTemporaryFile(max_size=END_BYTES_IN_MEMORY) as output.file:
                self._archive.finish()
                output.file.seek(0)
                while piece := output.file.read(ARCHIVE_PIECE_BYTES):
                    yield piece
            return
        self._archive.finish()
        if output.size:
            yield output.take()

    def _take(self, event: Event) -> None:
        match event:
            case SentEntry(entry, data, attributes):
                self._path, self._open = entry.path, None
                if not entry.path:
                    return  # an archive's root is where it will be unpacked
                self._count()
                if attributes is None:
                    self._entry(convert.entry_out(entry), data)
                else:
                    with self._large:
                        self._entry(convert.entry_out(with_attributes(entry, attributes)), data)
            case SentData(data):
                if self._open is not None:
                    self._archive.write(compact(data))
            case SentZeros(length):
                if self._open is not None:
                    self._archive.write_zeros(length)
            case SentEnd():
                self._end()
            case SentDamage(path, message):
                raise Damaged(
                    f"{shown(path)} is damaged: {message}; the archive ends there. Restore gives all the rest",
                    path=shown(path),
                )
            case _:
                raise AssertionError(event)

    def _count(self) -> None:
        self._entries += 1
        self._names_bytes += len(self._path)
        if self._zip is not None and (
            self._entries > ZIP_ENTRIES_MAX or self._names_bytes > ZIP_NAMES_BYTES_MAX
        ):
            raise too_many_for_zip()

    def _entry(self, entry: pb.Entry, data: object) -> None:
        path = self._path
        try:
            if entry.type != pb.ENTRY_TYPE_FILE:
                self._reduce(self._archive.add(path, entry))
                return
            source = self._links.find(entry)
            if source is not None and self._archive.link(path, entry, source):
                return  # its bytes, if they follow, are in the archive already
            self._reduce(self._archive.begin(path, entry))
        except CannotHoldError as error:
            self._left_out.note(f"{shown(path)}: {error}")
            self._on_lack(self._left_out.count, self._reduced.count)
            return
        self._open = entry
        if isinstance(data, bytes | memoryview):
            self._archive.write(compact(memoryview(data)))
            self._end()

    def _end(self) -> None:
        entry, self._open = self._open, None
        if entry is not None:
            self._archive.end()
            self._links.add(self._path, entry)

    def _reduce(self, lost: str) -> None:
        """Note what of an entry the format could not hold; empty for nothing."""
        if lost:
            self._reduced.note(f"{shown(self._path)}: {lost}")
            self._on_lack(self._left_out.count, self._reduced.count)

    def _note(self) -> str:
        parts = []
        if count := self._left_out.count:
            words = counted(count, "entry of the backup is", "entries of the backup are")
            parts.append(f"{words} not in this archive:\n{self._left_out.named}")
        if count := self._reduced.count:
            words = counted(count, "entry is", "entries are")
            parts.append(f"{words} in it without extended attributes:\n{self._reduced.named}")
        return "\n".join(parts)
