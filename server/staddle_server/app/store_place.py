"""Where the store of a data directory lies: in the directory, or in an object store that
DIR/store.url names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from staddle_server.app.owner import owner_of
from staddle_server.app.settings import OperatorError
from staddle_server.store.backends.object_urls import PROBES, parse_object_url
from staddle_server.store.birth import birth_ns
from staddle_server.store.blobs import FORMAT_NAME, TEMPORARY, BlobMissing, Blobs
from staddle_server.store.files import Files, make_durable, sync_directory, write_synced
from staddle_server.store.open import check_engine, open_blobs

NOT_STORED: Final = frozenset({TEMPORARY, "lost+found"})
"""What an unmarked store may contain."""
STORE_DIRECTORIES: Final = frozenset(
    {"keys", "packs", "records", "heads", "marks", "parity", "copies", TEMPORARY}
)
"""Directories of a store that are created on demand."""
_FILLED: Final = ("keys", "packs", "records")
URL_NAME: Final = "store.url"
URL_BYTES_MAX: Final = 16 * 1024


class DataDirectoryError(OperatorError):
    """The directory is unusable. The message says why, and what to do."""


class StorePlace(Protocol):
    """A place for a store, which may or may not exist. Its text names it in messages."""

    @property
    def is_shared(self) -> bool:
        """Whether several servers can use the store."""

    def is_marked(self) -> bool:
        """Return whether a store exists. Raises DataDirectoryError for a place with other content."""

    def is_filled(self) -> bool:
        """Return whether the store has anything that a catalog would know of."""

    def lost(self) -> DataDirectoryError:
        """Return the error for a missing store: why, and what to do."""

    def make(self) -> None:
        """Make the place durable, and check it, without changing its content.

        Raises OSError, and as `check` does.
        """

    def check(self) -> None:
        """Test whether the place does what backups need. Raises UnsafeStore, and as `open` does."""

    def open(self) -> Blobs:
        """Return the store's blobs. Raises as open_blobs does."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store for this process if the place has locks.

        Raises DataDirectoryError if another one holds it.
        """

    def birth_ns(self, name: str) -> int | None:
        """Return when the object was created, which a copy never shares; None if the place does not say."""


class DirectoryPlace:
    """The directory DIR/store, or the target of a link of that name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    @property
    def is_shared(self) -> bool:
        return False

    def is_marked(self) -> bool:
        try:
            names = set(os.listdir(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise unreadable(self._path, error) from error
        if FORMAT_NAME in names:
            self._require_directories(names)
            return True
        if names & set(_FILLED):
            raise DataDirectoryError(
                f"{self._path / 'format'} is missing, but the store is filled: nothing was changed; restore the file from a copy "
                "(docs/format.md describes it)"
            )
        foreign = names - NOT_STORED
        if foreign:
            raise DataDirectoryError(
                f"{self._path} is not empty and is not a Staddle store: it has no file `format` (found "
                f"{', '.join(sorted(foreign)[:3])}): nothing was changed; is another file system mounted there?"
            )
        return False

    def is_filled(self) -> bool:
        try:
            return any(below.is_dir() and any(below.iterdir()) for below in map(self._path.joinpath, _FILLED))
        except OSError as error:
            raise unreadable(self._path, error) from error

    def lost(self) -> DataDirectoryError:
        if not os.path.lexists(self._path):
            flaw = "is missing"
        elif not self._path.exists():
            flaw = f"is a link to {os.readlink(self._path)}, which is missing"
        elif not self._path.is_dir():
            flaw = "is not a directory"
        else:
            flaw = "is not a store (it has no file `format`)"
        return DataDirectoryError(
            f"{self._path} {flaw}: is its file system mounted? Nothing was changed; mount it, or restore the store"
        )

    def make(self) -> None:
        make_durable(str(self._path))

    def check(self) -> None:
        """Do nothing: the system calls of a directory report what fails."""

    def open(self) -> Blobs:
        return open_blobs(str(self._path))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Another data directory may lead to the same store.

        Without locks of the file system, nothing is held.
        """
        marked = self._path / FORMAT_NAME
        try:
            descriptor = os.open(marked, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            try:
                descriptor = os.open(marked, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise unreadable(marked, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DataDirectoryError(
                f"a server on another data directory uses {self._path}: one store has one server"
            ) from None
        except OSError:
            pass  # a network file system without locks
        try:
            yield
        finally:
            os.close(descriptor)

    def birth_ns(self, name: str) -> int | None:
        try:
            return birth_ns(str(self._path / name))
        except OSError:
            return None

    def _require_directories(self, names: set[str]) -> None:
        """Raise DataDirectoryError for a store's directory that is something else: each may be on a separate
        disk.
        """
        for path in (self._path / name for name in sorted(names & STORE_DIRECTORIES)):
            if path.is_dir():
                continue
            if path.is_symlink() and not path.exists():
                flaw = f"is a link to {os.readlink(path)}, which is missing: is its file system mounted? Nothing was changed"
            else:
                flaw = "is not a directory: nothing was changed; move it elsewhere, and restore the directory if it had any content"
            raise DataDirectoryError(f"{path} {flaw}")


class ObjectStorePlace:
    """A prefix of a bucket. Packs on their way to it are collected in the data directory."""

    def __init__(self, url: str, data: Path, environ: Mapping[str, str]) -> None:
        self._url = url
        self._data = data
        self._environ = environ
        self._text = str(parse_object_url(url))

    def __str__(self) -> str:
        return self._text

    @property
    def is_shared(self) -> bool:
        return True

    def is_marked(self) -> bool:
        blobs = self.open()
        if _is_marked(blobs):
            return True
        filled = self.is_filled()
        foreign = (name for name, _ in blobs.list("") if not name.startswith(f"{PROBES}/"))
        found = next(foreign, None)
        if (filled or found is not None) and _is_marked(blobs):
            return True  # another server created the store meanwhile
        if filled:
            raise DataDirectoryError(
                f"{self}/{FORMAT_NAME} is missing, but the store is filled: nothing was changed; restore the object "
                "(docs/format.md describes it). If object lock keeps it below a delete marker, `staddle-server lock --unhide` "
                "removes the marker"
            )
        if found is not None:
            raise DataDirectoryError(
                f"{self} is not empty and is not a Staddle store: it has no object `format` (found {found}): nothing was "
                "changed; choose another prefix"
            )
        return False

    def is_filled(self) -> bool:
        blobs = self.open()
        return any(next(blobs.list(prefix), None) is not None for prefix in _FILLED)

    def lost(self) -> DataDirectoryError:
        return DataDirectoryError(
            f"{self} is not a store (it has no object `format`): is it the right bucket and prefix? Nothing was changed"
        )

    def make(self) -> None:
        """Do nothing: the bucket must exist, and a prefix needs no creation."""
        self.check()

    def check(self) -> None:
        check_engine(self._url, self._environ, str(self._data))

    def open(self) -> Blobs:
        return open_blobs(self._url, self._environ, str(self._data))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold nothing: an object store has no locks; a second server's mark shows at the next
        start or stop.
        """
        yield

    def birth_ns(self, name: str) -> int | None:  # noqa: ARG002  a copy of a bucket cannot be told from it
        return None


def _is_marked(blobs: Blobs) -> bool:
    try:
        blobs.size(FORMAT_NAME)
    except BlobMissing:
        return False
    return True


def place_of(data: Path, wanted: str, environ: Mapping[str, str]) -> StorePlace:
    """Return the place of a data directory's store: `wanted` (a URL, or empty) for one without a store.

    Raises DataDirectoryError if the directory has its store elsewhere, or DIR/store.url is unusable.
    """
    path = data / "store"
    known = _recorded(data)
    if not (known or wanted):
        return DirectoryPlace(path)
    if os.path.lexists(path):
        raise DataDirectoryError(
            f"{data} has a store in {path}, but {'--store' if wanted else URL_NAME} names another: nothing was changed; leave it "
            "out, or name a directory without a store"
        )
    if known and wanted and str(parse_object_url(known)) != str(parse_object_url(wanted)):
        raise DataDirectoryError(
            f"{data} has its store at {parse_object_url(known)}, but --store names {parse_object_url(wanted)}: nothing was "
            f"changed; to use another copy of the store, remove {data / URL_NAME} first"
        )
    return ObjectStorePlace(wanted or known, data, environ)


def record_place(data: Path, wanted: str) -> None:
    """Write DIR/store.url, so that every command finds the store. The directory must exist.

    Raises OSError.
    """
    if wanted and _recorded(data) != wanted:
        write_url(data / URL_NAME, wanted)


def _recorded(data: Path) -> str:
    url = read_url(data / URL_NAME, "store")
    try:
        if url:
            parse_object_url(url)
    except ValueError as error:
        raise DataDirectoryError(
            f"{data / URL_NAME} is not the URL of a store ({error}): restore the URL"
        ) from error
    return url


def read_url(path: Path, what: str) -> str:
    """Return the URL in a file of the data directory, which says where `what` is; empty without the file.

    Raises DataDirectoryError for a file that is empty or unreadable.
    """
    try:
        with open(path, encoding="utf-8") as file:
            url = file.read(URL_BYTES_MAX).strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DataDirectoryError(f"{path} is not the URL of a {what}: restore the URL") from error
    if not url:
        raise DataDirectoryError(f"{path} is empty: restore the URL of the {what}")
    return url


def write_url(path: Path, url: str) -> None:
    """Replace the file with one that contains the URL: durable on return. Raises OSError."""
    files = Files()
    with contextlib.suppress(FileNotFoundError):
        files.unlink(f"{path}.new")
    write_synced(files, f"{path}.new", f"{url}\n".encode())
    files.replace(f"{path}.new", str(path))
    sync_directory(files, str(path.parent))


def unreadable(path: Path, error: OSError) -> DataDirectoryError:
    """Return the error for an unreadable file, with who can read it."""
    if error.errno in {errno.EACCES, errno.EPERM}:
        with contextlib.suppress(OSError):
            return DataDirectoryError(
                f"cannot read {path}: {error.strerror}; run this as root or as the owner, {owner_of(path)}"
            )
    return DataDirectoryError(f"cannot read {path}: {error.strerror}")
