"""Browsing: which backup, its content, differences, and bytes of one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from staddle_server.base.clock import Clock
from staddle_server.base.errors import BadRequest, Damaged
from staddle_server.base.limits import READ_RANGE_BYTES_MAX
from staddle_server.base.types import Entry, EntryType, Root
from staddle_server.catalog import Backup, Catalog, Principal
from staddle_server.manifest.compare import Changed, compare
from staddle_server.manifest.content import chunks_of, read_attributes
from staddle_server.manifest.entries import I64_MAX, I64_MIN, check_path, shown
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.restore.file_bytes import FileBytes
from staddle_server.restore.restore import Restore, path_not_found
from staddle_server.restore.search import Limit, Matches, NamePattern, PathHistory, search, versions
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.tenant import Tenants

BACKUPS_AT_ONCE: Final = 200
Check = Callable[[], None]
"""Raises once the caller is gone or may not read any more. Loops over many pages call it at each."""


def unchecked() -> None:
    """Do nothing: for reads without a call."""


class Selector(NamedTuple):
    """Selects a backup of a dataset: an id, a unique prefix, or "latest"; or the newest begun at or before a
    time.

    With nothing set, the newest one.
    """

    backup: str = ""
    at_ns: int | None = None
    ago_ns: int | None = None


class FileRange(NamedTuple):
    """Bytes of one file."""

    data: bytes
    file_size: int
    content_id: bytes


class Listed(NamedTuple):
    """An entry of a listing, with its separately stored attributes, encoded."""

    entry: Entry
    attributes: bytes | None


def _listed(entry: Entry, reader: ChunkReader) -> Listed:
    return Listed(entry, read_attributes(entry, reader))


def _found(manifest: Manifest, path: bytes) -> Entry:
    entry = manifest.find(path)
    if entry is None:
        raise path_not_found(path)
    return entry


class Reads:
    """Everything that reads backups."""

    def __init__(self, catalog: Catalog, tenants: Tenants, clock: Clock, openers: Executor) -> None:
        self._catalog = catalog
        self._tenants = tenants
        self._clock = clock
        self._openers = openers

    def pick(self, principal: Principal, dataset: str, selector: Selector) -> Backup:
        """Return the selected backup.

        Raises:
            NotFound: DATASET_NOT_FOUND, BACKUP_NOT_FOUND.
            BadRequest: AMBIGUOUS_BACKUP.

        """
        at_ns = selector.at_ns
        if selector.ago_ns is not None:
            at_ns = self._clock.now_ns() - selector.ago_ns
        if at_ns is not None:
            at_ns = min(max(at_ns, I64_MIN), I64_MAX)  # no backup has a time outside the catalog's range
        return self._catalog.backups.resolve(principal.tenant, dataset, backup=selector.backup, at_ns=at_ns)

    def restore(
        self,
        principal: Principal,
        backup: Backup,
        *,
        data: bool,
        refs: bool,
        segments: bool = False,
        check: Check = unchecked,
    ) -> Restore:
        """Return a restore of a backup; see Restore."""
        return Restore(
            self._tenants.get(principal.tenant),
            self._catalog,
            backup.root,
            self._openers,
            data=data,
            refs=refs,
            segments=segments,
            check=check,
        )

    def entries(
        self,
        principal: Principal,
        backup: Backup,
        path: bytes,
        *,
        recursive: bool,
        after: bytes | None,
        check: Check = unchecked,
    ) -> Iterator[Listed]:
        """Yield in order the entries in a directory, or all below it, or the single entry that is not a
        directory.

        Raises:
            NotFound: PATH_NOT_FOUND.
            Damaged: A part of the manifest is unreadable; raised where the listing reaches it.

        """
        check_path(path)
        reader = self._reader(principal, check)
        manifest = Manifest(backup.root, reader)
        if path:
            entry = _found(manifest, path)
            if entry.type is not EntryType.DIRECTORY:
                return iter([_listed(entry, reader)] if after is None else [])
        found = manifest.walk(path, after=after) if recursive else manifest.children(path, after=after)
        return self._whole(found, path, reader)

    def _reader(self, principal: Principal, check: Check) -> ChunkReader:
        return ChunkReader(self._tenants.get(principal.tenant), self._catalog, check=check)

    def _whole(self, found: Iterator[Entry | Gap], path: bytes, reader: ChunkReader) -> Iterator[Listed]:
        for entry in found:
            if isinstance(entry, Gap):
                raise Damaged(
                    f"the listing cannot continue after {shown(entry.after or b'')}: {entry.message}; Restore returns the rest",
                    path=shown(entry.after or b""),
                )
            if entry.path != path:
                yield _listed(entry, reader)

    def chunks(
        self, principal: Principal, entry: Entry, limit: int, check: Check = unchecked
    ) -> Sequence[tuple[int, bytes]]:
        """Return the first chunks of an entry's content, (length, digest)."""
        if entry.content is None:
            return ()
        if entry.content.root is None:
            return entry.content.chunks
        reader = self._reader(principal, check)
        return [ref for _, (_, ref) in zip(range(limit), chunks_of(entry.content, reader), strict=False)]

    def changes(
        self,
        principal: Principal,
        before: Backup,
        after: Backup,
        behind: bytes | None,
        check: Check = unchecked,
    ) -> Iterator[Changed]:
        """Yield the differences between two backups in order; reads only the pages that differ."""
        reader = self._reader(principal, check)
        return compare(before.root, after.root, reader, after=behind)

    def search(
        self,
        principal: Principal,
        backup: Backup,
        below: bytes,
        pattern: NamePattern,
        *,
        after: bytes | None,
        most: int,
        limit: Limit,
        check: Check = unchecked,
    ) -> Matches:
        """Return entries below a directory whose names match; see `search`.

        Raises:
            NotFound: PATH_NOT_FOUND.
            Damaged: A page on the way to the directory is unreadable.

        """
        check_path(below)
        manifest = Manifest(backup.root, self._reader(principal, check))
        if below:
            _found(manifest, below)
        return search(manifest, below, pattern, after=after, most=most, limit=limit)

    def versions(
        self,
        principal: Principal,
        dataset: str,
        path: bytes,
        *,
        before_number: int | None,
        most: int,
        limit: Limit,
        check: Check = unchecked,
    ) -> PathHistory:
        """Return the versions of a path in the backups of a dataset below a number; see `versions`.

        Raises:
            NotFound: DATASET_NOT_FOUND.

        """
        check_path(path)
        nothing = Manifest(Root(0, b"", 0, 0), self._reader(principal, check))

        def find(backup: Backup) -> Entry | None:
            return nothing.beside(backup.root).find(path)

        return versions(self._backups(principal, dataset, before_number, check), find, most, limit)

    def _backups(
        self, principal: Principal, dataset: str, before_number: int | None, check: Check
    ) -> Iterator[Backup]:
        more = True
        while more:
            check()
            page = self._catalog.backups.list_page(
                principal.tenant, dataset, limit=BACKUPS_AT_ONCE, before_number=before_number
            )
            yield from page
            more, before_number = page.more, page.reached

    def read_range(
        self,
        principal: Principal,
        backup: Backup,
        path: bytes,
        offset: int,
        length: int,
        *,
        check: Check = unchecked,
    ) -> FileRange:
        """Return bytes of one file; fewer at its end.

        Raises:
            BadRequest: More bytes requested than allowed.
            NotFound: PATH_NOT_FOUND.
            Precondition: NOT_A_FILE.
            Damaged: A chunk in that range is unreadable.

        """
        if length > READ_RANGE_BYTES_MAX:
            raise BadRequest(
                "BAD_FIELD", f"the limit is {READ_RANGE_BYTES_MAX} bytes a call", field="length_bytes"
            )
        file = self.file(principal, backup, path, check)
        data = b"".join(file.pieces(offset, offset + length))
        return FileRange(data, file.content.size, file.content.content_id)

    def file(self, principal: Principal, backup: Backup, path: bytes, check: Check = unchecked) -> FileBytes:
        """Open one file for reading.

        Raises:
            NotFound: PATH_NOT_FOUND.
            Precondition: NOT_A_FILE.
            Damaged: A page on the way to it is unreadable.

        """
        check_path(path)
        tenant = self._tenants.get(principal.tenant)
        return FileBytes(tenant, self._catalog, backup.root, path, opener=self._openers, check=check)
