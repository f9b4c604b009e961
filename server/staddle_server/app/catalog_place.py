"""Where the catalog of a data directory lies: in the directory itself, or in a database that DIR/catalog.url
names.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Protocol

from staddle._base.figures import counted

from staddle_server.app.store_place import DataDirectoryError, read_url, write_url
from staddle_server.catalog import Replacement, alone, has_catalog, name_of, replacement, servers_of

URL_NAME: Final = "catalog.url"
_PARTS: Final = ("", "-wal", "-shm", "-journal")
"""SQLite's files beside a database belong to it: apart, they would be lost, or taken for part of another one.
"""


class CatalogPlace(Protocol):
    """A place for a catalog. Its text names it in messages."""

    @property
    def place(self) -> str:
        """What opens the catalog."""

    @property
    def new_place(self) -> str:
        """What opens a catalog that is built to replace this one."""

    @property
    def is_shared(self) -> bool:
        """Whether servers on other data directories may use the same catalog."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep other servers of the catalog from starting and stopping meanwhile.

        Raises Unavailable if one takes too long.
        """

    def require_unserved(self, own: str) -> None:
        """Raise DataDirectoryError if a server uses the catalog, except on the directory with this identity,
        which is locked.
        """

    def is_there(self) -> bool:
        """Return whether there is a catalog, or an empty file in its place."""

    def is_made(self) -> bool:
        """Return whether the catalog that is there holds tables."""

    def prepare_new(self) -> None:
        """Prepare for a new catalog: drop what an interrupted rebuild left."""

    def drop_new(self) -> None:
        """Drop a new catalog that was not installed."""

    def install_new(self, aside: str) -> str | None:
        """Give the new catalog, which must be closed, its place; one that exists is set aside under a name
        with `aside`.

        Returns where that is; None: there was none. Interrupted at any point, the old catalog is whole, in
        its place or aside.
        """


class FilePlace:
    """The file DIR/catalog.db."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = Path(f"{path}.new")

    def __str__(self) -> str:
        return str(self._path)

    @property
    def place(self) -> str:
        return str(self._path)

    @property
    def new_place(self) -> str:
        return str(self._new)

    @property
    def is_shared(self) -> bool:
        return False

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: the data directory is locked."""
        return contextlib.nullcontext()

    def require_unserved(self, own: str) -> None:
        """Do nothing: the data directory is locked."""

    def is_there(self) -> bool:
        return self._path.exists()

    def is_made(self) -> bool:
        return self._path.exists() and self._path.stat().st_size > 0

    def prepare_new(self) -> None:
        self.drop_new()

    def drop_new(self) -> None:
        for part in _PARTS:
            Path(f"{self._new}{part}").unlink(missing_ok=True)

    def install_new(self, aside: str) -> str | None:
        """Raise DataDirectoryError if the name for the old one is taken, or the new one is not closed."""
        for part in _PARTS[1:]:
            if Path(f"{self._new}{part}").exists():
                raise DataDirectoryError(f"{self._new} is still in use: nothing was changed; run this again")
        old = [part for part in _PARTS if Path(f"{self._path}{part}").exists()]
        kept = Path(f"{self._path}.{aside}")
        for part in old:
            try:
                os.link(f"{self._path}{part}", f"{kept}{part}")
            except FileExistsError as error:
                raise DataDirectoryError(f"{kept}{part} exists already, and is not overwritten") from error
        _sync(self._path.parent)
        # The database first: without it no server starts, and SQLite's files beside it never meet another
        # one.
        for part in old:
            Path(f"{self._path}{part}").unlink()
            _sync(self._path.parent)
        _sync(self._new)
        self._new.rename(self._path)
        _sync(self._path.parent)
        return str(kept) if old else None


class DatabasePlace:
    """A database of PostgreSQL, which must exist. Its tables are made as they are needed."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return name_of(self._url)

    @property
    def place(self) -> str:
        return self._url

    @property
    def new_place(self) -> str:
        return self._replacement().place

    @property
    def is_shared(self) -> bool:
        return True

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return alone(self._url)

    def require_unserved(self, own: str) -> None:
        live = [server for server in servers_of(self._url) if server.alive and server.identity.place != own]
        if live:
            one = live[0].identity
            raise DataDirectoryError(
                f"{counted(len(live), 'server')} with other data directories use {self}, such as {one.name} at {one.endpoint}: "
                "nothing was changed; stop all servers first. One that was killed counts as dead after 20 s"
            )

    def is_there(self) -> bool:
        return has_catalog(self._url)

    def is_made(self) -> bool:
        return True  # its tables and their version are created in one transaction

    def prepare_new(self) -> None:
        self._replacement().prepare()

    def drop_new(self) -> None:
        self._replacement().drop()

    def install_new(self, aside: str) -> str | None:
        name = f"staddle_{aside.lower().replace('.', '_')}"
        kept = self._replacement().install(name)
        return None if kept is None else f"the schema {kept} of {self}"

    def _replacement(self) -> Replacement:
        return replacement(self._url)


def catalog_place_of(data: Path, wanted: str) -> CatalogPlace:
    """Return the place of the catalog of a data directory: `wanted` (a URL, or empty) for one that has none
    yet.

    Raises DataDirectoryError if the directory has its catalog elsewhere, or DIR/catalog.url cannot be read.
    """
    path, known = data / "catalog.db", _recorded(data)
    if not (known or wanted):
        return FilePlace(path)
    if os.path.lexists(path):
        raise DataDirectoryError(
            f"{data} has a catalog in {path}, and {'--catalog' if wanted else URL_NAME} names another: nothing was changed; "
            "omit it, or move the file elsewhere and build the other one with `staddle-server rebuild`"
        )
    if known and wanted and _name(known) != _name(wanted):
        raise DataDirectoryError(
            f"{data} has its catalog at {_name(known)}, and --catalog names {_name(wanted)}: nothing was changed; if the "
            f"same database is reached another way now, remove {data / URL_NAME} first"
        )
    _name(wanted or known)
    return DatabasePlace(wanted or known)


def _name(url: str) -> str:
    try:
        return name_of(url)
    except ValueError as error:
        raise DataDirectoryError(str(error)) from None


def record_catalog_place(data: Path, wanted: str) -> None:
    """Write DIR/catalog.url, so that every command finds the catalog. The directory must exist.

    Raises OSError.
    """
    if wanted and _recorded(data) != wanted:
        write_url(data / URL_NAME, wanted)


def _recorded(data: Path) -> str:
    return read_url(data / URL_NAME, "catalog")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
