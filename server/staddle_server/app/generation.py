"""Whether catalog and store of a data directory are each other's newest state, and not copies.

Each start and each stop of a server leaves a mark in the store and records it in the catalog, with the
creation time of the mark's file. On a mismatch one part is older, or is a copy: numbers would be given twice,
and what one side knows would be lost.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Final, NamedTuple

from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.store_place import DataDirectoryError
from staddle_server.base.errors import Conflict, Exhausted, Unavailable
from staddle_server.catalog import Catalog, Generation
from staddle_server.catalog.validation import rfc3339
from staddle_server.store.blobs import BlobMissing, Blobs
from staddle_server.store.marks import Began, GenerationMark, marks_in, put_mark, read_mark

_log = logging.getLogger(__name__)

LOOKS_MAX: Final = 20
"""How often a command checks again while a starting server leaves its mark."""

OLDER_CATALOG: Final = "older catalog"
OLDER_STORE: Final = "older store"
COPY: Final = "copy"


class Flaw(NamedTuple):
    """A mismatch: which of the three kinds, and the last start that both know, or that the store records."""

    kind: str
    mark: GenerationMark
    began: Began


class Looked(NamedTuple):
    """One result: the mismatch (None: catalog and store belong together), what the catalog knows, and all
    marks.
    """

    flaw: Flaw | None
    known: Generation | None
    found: set[GenerationMark]


def look(directory: DataDirectory, blobs: Blobs, catalog: Catalog) -> Looked:
    """Compare catalog and store, with one listing of the marks. Raises what catalog and store raise."""
    for _ in range(LOOKS_MAX):
        known, found = catalog.generation.get(), marks_in(blobs)
        flaw = None if known is None else _compare(directory, blobs, known, found)
        if flaw is None or catalog.generation.get() == known:
            break
    return Looked(flaw, known, found)


def _compare(
    directory: DataDirectory, blobs: Blobs, known: Generation, found: set[GenerationMark]
) -> Flaw | None:
    current, intended = GenerationMark.parse(known.current), GenerationMark.parse(known.intended)
    if current is None:
        return None
    # An interrupted start has left its mark, or not; and marks before the current one are about to be
    # removed.
    newer = [mark for mark in found - {current, intended} if mark.number >= current.number]
    if newer:
        newest = max(newer)
        return Flaw(OLDER_CATALOG, newest, read_mark(blobs, newest))
    if current not in found:
        return Flaw(OLDER_STORE, current, Began("", ""))
    birth = directory.place.birth_ns(current.name)
    if None not in (birth, known.birth_ns) and birth != known.birth_ns:
        return Flaw(COPY, current, read_mark(blobs, current))
    return None


def refuse_older(directory: DataDirectory, blobs: Blobs, catalog: Catalog) -> Looked:
    """Raise DataDirectoryError if catalog or store is older than the other.

    A copy of both is fine for a command.
    """
    looked = look(directory, blobs, catalog)
    _refuse(directory, looked.flaw, {OLDER_CATALOG, OLDER_STORE})
    return looked


def leave_mark(
    directory: DataDirectory, blobs: Blobs, catalog: Catalog, now_ns: int, looked: Looked | None = None
) -> None:
    """Leave the mark of a server that starts or stops. The caller holds the directory and its store.

    Servers that share the catalog take turns.

    A disk that is full or refuses writes does not prevent the start: the previous mark then stays. Raises
    DataDirectoryError if catalog and store do not belong together, and what they raise.
    """
    with catalog.database.alone():
        if looked is not None:
            now = catalog.generation.get()
            if now != looked.known or (now is not None and now.intended):
                looked = None  # another server has left a mark since, or may have
        _leave(directory, blobs, catalog, now_ns, looked or look(directory, blobs, catalog))


def _leave(directory: DataDirectory, blobs: Blobs, catalog: Catalog, now_ns: int, looked: Looked) -> None:
    flaw, known, found = looked
    _refuse(directory, flaw, {OLDER_CATALOG, OLDER_STORE, COPY})
    current = None if known is None else GenerationMark.parse(known.current)
    # The remains of an interrupted start must go before another mark is intended, or they would look like a
    # newer one.
    left_over = found - {current} if current is not None else set()
    try:
        _remove(blobs, left_over)
        mark = GenerationMark.after(max((each.number for each in found), default=0))
        catalog.generation.intend(mark.text)
        put_mark(blobs, mark, Began(socket.gethostname(), rfc3339(now_ns)))
        try:
            catalog.generation.confirm(mark.text, directory.place.birth_ns(mark.name))
        except Conflict as overtaken:
            _log.warning("%s", overtaken.message)
            _remove(blobs, {mark})
            return
        _remove(blobs, found - left_over)
    except (Exhausted, Unavailable) as error:
        _log.warning("no mark is left in the store, and the last one stays: %s", error.message)


def _remove(blobs: Blobs, marks: set[GenerationMark]) -> None:
    for mark in marks:
        with contextlib.suppress(BlobMissing):
            blobs.delete(mark.name)


def adopt(directory: DataDirectory, blobs: Blobs, catalog: Catalog) -> Flaw | None:
    """Accept a copy, or an older store, as the valid one from now on; return what it was, None for no
    mismatch.

    Raises DataDirectoryError for a catalog that is older than its store: only a rebuild repairs that.
    """
    flaw = look(directory, blobs, catalog).flaw
    _refuse(directory, flaw, {OLDER_CATALOG})
    if flaw is not None and flaw.kind == COPY:
        catalog.generation.forget_birth()
    elif flaw is not None:
        catalog.generation.forget()
    return flaw


def _refuse(directory: DataDirectory, flaw: Flaw | None, kinds: set[str]) -> None:
    if flaw is None or flaw.kind not in kinds:
        return
    data = directory.path
    if flaw.kind == OLDER_CATALOG:
        raise DataDirectoryError(
            f"{directory.catalog_place} is older than its store: a server has started or stopped since{_when(flaw.began)}, with another "
            "catalog. Restore the newest copy of the catalog, or rebuild it from the store with "
            f"`staddle-server rebuild --replace --data {data}`"
        )
    if flaw.kind == OLDER_STORE:
        raise DataDirectoryError(
            f"{directory.place} is older than {directory.catalog_place}, or is not its store: the mark of the last start "
            f"({flaw.mark.text}) is missing in it. Restore the newest state of the store; if there is none, "
            f"`staddle-server adopt --data {data}` accepts this one, and `check` then lists what is lost"
        )
    raise DataDirectoryError(
        f"{data} is a copy, or was restored from one: the last server{_when(flaw.began)} ran on other files. If that one is retired, "
        f"`staddle-server adopt --data {data}` makes this one valid, and it can be served. Two that are served side by side would give "
        "the same numbers to different backups"
    )


def _when(began: Began) -> str:
    return f" (on {began.host}, at {began.at})" if began.host and began.at else ""
