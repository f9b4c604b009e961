"""A tar into an upload: its members become entries, as the thin path's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from staddle_server.base.limits import KIB, MIB
from staddle_server.base.memory_budget import Held
from staddle_server.base.types import Attributes, Entry, EntryType, Scope
from staddle_server.manifest.entries import check_path, shown
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload.intake import Sent
from staddle_server.upload.stream import BackupStream
from staddle_server.upload.tar_header import TarError
from staddle_server.upload.tar_reader import Member, TarReader
from staddle_server.upload.writer import UploadWriter

WHOLE_BYTES_MAX: Final = 256 * KIB
"""A file up to this size is taken at once."""
LINK_BYTES: Final = 400
"""A hard link that waits for the end of the tar, as objects, beside its names."""
LINKS_BYTES_MAX: Final = 32 * MIB
"""Hard links that wait: some 60,000. With more, those are made at once, which takes a pass over all entries."""
DESCRIBED_FACTOR: Final = 20
"""Bytes of memory for each byte of extended headers."""
DESCRIBED_SMALL_BYTES: Final = 16 * KIB
GROUP_CONTEXT: Final = "staddle.v1 link group of a tar"
TOGETHER: Final = 1024
"""Linked entries that are taken at once."""


class TakenTar(NamedTuple):
    """What a tar brought: its entries and bytes as the upload counts them, and members that lost something."""

    entry_count: int
    data_bytes: int
    problem_count: int


class _TarLink(NamedTuple):
    target: bytes
    number: int
    """Of the member."""


class TarUpload:
    """Takes one tar into the upload of a writer, which takes nothing else meanwhile. Not thread-safe."""

    def __init__(
        self, writer: UploadWriter, tenant: Tenant, check: Callable[[], None], described: Held, links: Held
    ) -> None:
        """`check` raises once the caller is gone. `described` and `links` count memory."""
        self._writer = writer
        self._stream = BackupStream(writer, tenant)
        self._check = check
        self._described = described
        self._links_held = links
        self._changes = writer.upload.scope is Scope.CHANGES
        self._links: dict[bytes, _TarLink] = {}
        """Hard links, by path. A tar does not say of a file that links to it follow: they wait, for a pass over
        all entries, at the end if possible.
        """
        self._targets: dict[bytes, int] = {}
        """Files that links name, each with the number of the last member at its path that came after a link."""
        self._problems = 0

    def take(self, reader: TarReader) -> TakenTar:
        """Take all members. The upload can then be committed.

        Raises:
            TarError: See TarReader.
            BadRequest: An entry breaks a limit.
            Exhausted: TOO_MANY, it needs more memory than there is for the tenant.

        """
        for member in reader.members(self._weigh):
            self._check()
            self._weigh(member.described_bytes)
            self._take(member, reader)
        self._stream.end()
        self._make_links()
        received = self._writer.received_so_far()
        return TakenTar(received.entry_count, received.data_bytes, self._problems)

    def _weigh(self, size: int) -> None:
        """Count the memory of the extended headers of one member."""
        counts = size * DESCRIBED_FACTOR if size > DESCRIBED_SMALL_BYTES else 0
        self._described.change(counts - self._described.size)

    def _take(self, member: Member, reader: TarReader) -> None:
        self._check_above(member.path)
        if member.link is not None:
            self._note_link(member.path, member.link, reader.member_count)
            return
        if member.lists_names and self._changes:
            raise TarError(
                "it is of GNU's incremental format, which lists what still exists; a backup of changes does not "
                "read such lists: send a whole tar, or name what is gone with remove=PATH",
                member.path,
            )
        self._problems += member.has_text_acl
        self._forget_link(member.path)
        if member.path in self._targets:
            self._targets[member.path] = reader.member_count
        entry = _entry_of(member)
        if member.type is not EntryType.FILE:
            self._stream.entry(Sent(entry))
        elif member.size <= WHOLE_BYTES_MAX and member.sparse is None:
            self._stream.entry(Sent(entry, data=_bytes_of(reader)))
        else:
            self._stream.entry(Sent(entry, size=member.size))
            for piece in reader.data():
                self._check()
                if isinstance(piece, int):
                    self._stream.zeros(piece)
                else:
                    self._stream.data(piece)
            self._stream.entry_end(None, b"", read_again=False)

    # ------------------------------------------------------------------ hard links

    def _check_above(self, path: bytes) -> None:
        """Refuse a member below a hard link that waits, or below a file that one names: they are no directories."""
        if not self._links:
            return
        end = path.find(b"/")
        while end >= 0:
            above = path[:end]
            if above in self._links or above in self._targets:
                raise TarError(
                    f"{shown(above)!r} above it is in the tar as a hard link, or as the file of one: make a new tar, "
                    "instead of adding to an old one",
                    path,
                )
            end = path.find(b"/", end + 1)

    def _note_link(self, path: bytes, target: bytes, number: int) -> None:
        for name in (path, target):
            if not name:
                raise TarError("it is a hard link with the root of the tar, which is a directory", path)
            check_path(name)
        first = self._links.get(target)
        if first is not None:
            target = first.target
        if path == target:  # a file that is in the tar twice
            return
        self._forget_link(path)
        if path in self._targets:
            self._targets[path] = number
        self._links_held.change(LINK_BYTES + len(path) + len(target))
        self._links[path] = _TarLink(target, number)
        self._targets.setdefault(target, 0)
        if self._links_held.size >= LINKS_BYTES_MAX:
            self._make_links()

    def _forget_link(self, path: bytes) -> None:
        """Forget a link that a later member replaces."""
        self._links.pop(path, None)

    def _make_links(self) -> None:
        """Add the links that wait, each with the content of its file, which joins them in a group."""
        if not self._links:
            return
        names: dict[bytes, list[bytes]] = {}
        for path, link in self._links.items():
            if self._targets[link.target] > link.number:
                raise TarError(
                    f"it is a hard link to {shown(link.target)!r}, which is in the tar once more after it: make a new "
                    "tar, instead of adding to an old one",
                    path,
                )
            names.setdefault(link.target, []).append(path)
        batch: list[Entry] = []
        for target in self._writer.received_so_far().find(names):
            self._check()
            if target.type is not EntryType.FILE:
                continue
            linked = target
            if not target.link_group:
                group = blake3(target.path, derive_key_context=GROUP_CONTEXT).digest(16)
                linked = msgspec.structs.replace(target, link_group=group)
                batch.append(linked)
            for path in names.pop(target.path):
                batch.append(msgspec.structs.replace(linked, path=path))
                if len(batch) >= TOGETHER:
                    self._writer.put_entries(batch)
                    batch = []
        self._writer.put_entries(batch)
        for target_path, paths in names.items():
            raise TarError(
                f"it is a hard link to {shown(target_path)!r}, which is not a file of this tar: put both into it",
                paths[0],
            )
        self._links.clear()
        self._targets.clear()
        self._links_held.close()


def _bytes_of(reader: TarReader) -> bytes:
    """Return the bytes of a small file without holes."""
    return b"".join(piece for piece in reader.data() if not isinstance(piece, int))


def _entry_of(member: Member) -> Entry:
    holes = member.sparse.holes if member.sparse is not None else ()
    return Entry(
        member.path,
        member.type,
        member.mode,
        member.uid,
        member.gid,
        member.mtime_ns,
        link_target=member.target,
        owner=member.owner,
        group=member.group,
        device=member.device,
        attributes=Attributes(member.xattrs, holes) if member.xattrs or holes else None,
    )
