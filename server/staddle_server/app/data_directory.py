"""The data directory: whose it is, who uses it now, and the file that lets the local command in.

docs/format.md draws it. The directory is locked by the server that runs on it, for as long as it runs, and while it is being made;
administration works beside that.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from staddle._base.given_files import GivenError, read, text_of

from staddle_server.app.addresses import Address, UnixAddress
from staddle_server.app.owner import owner_of
from staddle_server.app.settings import OperatorError
from staddle_server.store.blobs import FORMAT_NAME, TEMPORARY
from staddle_server.store.files import Files, sync_directory, write_synced

HOLDER_BYTES_MAX: Final = 300
"""A process and a host name, in the lock."""
CLIENT_TOML_BYTES_MAX: Final = 64 * 1024
NOT_DATA: Final = frozenset(
    {
        "client.toml",
        "client.toml.new",
        "server.toml",
        "server.lock",
        "tls",
        "lost+found",
        "master.key.new",
        "reserve",
        "reserve.inodes",
    }
)
"""What may lie in a directory that is still to be made: settings, certificates, what a new file system holds, what a crash left."""

NOT_STORED: Final = frozenset({TEMPORARY, "lost+found"})
"""What may lie in a store that is still to be marked as one."""


class DataDirectoryError(OperatorError):
    """The directory cannot be used. The message says why, and what to do."""


STORE_DIRECTORIES: Final = frozenset(
    {"keys", "packs", "records", "heads", "marks", "parity", "copies", TEMPORARY}
)
"""What is made in a store as it is needed."""

_FILLED: Final = ("keys", "packs", "records")
_CATALOG_PARTS: Final = ("", "-wal", "-shm", "-journal")
"""What SQLite keeps beside a database belongs to it: apart from it, it would be lost, or be taken for part of another one."""


@dataclass(frozen=True)
class DataDirectory:
    """The places in a data directory."""

    path: Path

    @property
    def master_key(self) -> Path:
        return self.path / "master.key"

    @property
    def catalog(self) -> Path:
        return self.path / "catalog.db"

    @property
    def new_catalog(self) -> Path:
        """Where a rebuild makes a catalog, before it takes its place."""
        return self.path / "catalog.db.new"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def client_toml(self) -> Path:
        return self.path / "client.toml"

    @property
    def lock(self) -> Path:
        return self.path / "server.lock"

    def is_complete(self) -> bool:
        """Whether the directory was made to the end. False: there is none, or it is empty, or making it was cut off.

        Raises DataDirectoryError, having changed nothing, for a foreign directory, and for one that has lost a part or holds
        something else in its place (a store that is not mounted, an empty catalog): a new part would hide every backup.
        """
        names = self._names() - NOT_DATA
        if not names:
            self._refuse_lost()
            return False
        if not names & {"master.key", "catalog.db", "store"}:
            raise DataDirectoryError(
                f"{self.path} is not empty and holds no Staddle data: name an empty or a new directory "
                f"(found {', '.join(sorted(names)[:3])})"
            )
        has_key, has_catalog = self._has_file(self.master_key), self._has_file(self.catalog)
        has_store, filled = self._has_store(), self._is_filled()
        if os.path.lexists(self.store) and not self.store.is_dir():
            raise self._no_store()
        if not has_key:
            if has_catalog or filled:
                raise DataDirectoryError(
                    f"{self.master_key} is missing, and without it nothing in {self.path} can be read: put the key back from its copy. "
                    "Nothing was changed. Without a copy of the key, what is stored here is lost"
                )
            return False
        if not has_store:
            # The store is made before the key: where there is a key, there was a store.
            raise self._no_store()
        if has_catalog and self.catalog.stat().st_size:
            return True
        if filled:
            flaw, replace = ("is empty", " --replace") if has_catalog else ("is missing", "")
            raise DataDirectoryError(
                f"{self.catalog} {flaw}, but {self.store} is filled: put the newest copy of the catalog back, or make it "
                f"anew from the store with `staddle-server rebuild{replace} --data {self.path}` (a new, empty one would hide every "
                "backup)"
            )
        return False

    def _refuse_lost(self) -> None:
        """Raises DataDirectoryError for a directory that holds just what a server wrote at the end of its first start."""
        if self.client_toml.is_file():
            raise DataDirectoryError(
                f"{self.client_toml} shows that a server ran here, but master.key, catalog.db and store/ are gone (not mounted?): "
                f"put them back; or remove {self.client_toml}, and a new, empty server is made here"
            )

    def _no_store(self) -> DataDirectoryError:
        if not os.path.lexists(self.store):
            flaw = "is missing"
        elif not self.store.exists():
            flaw = f"is a link to {os.readlink(self.store)}, which is missing"
        elif not self.store.is_dir():
            flaw = "is not a directory"
        else:
            flaw = "holds no store (it has no file `format`)"
        return DataDirectoryError(
            f"{self.store} {flaw}: is its file system mounted? Nothing was changed; mount it, or put the store back"
        )

    def _has_store(self) -> bool:
        """Whether the store is there and marked as one. Raises DataDirectoryError for a directory with something else in it."""
        try:
            names = set(os.listdir(self.store))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._unreadable(self.store, error) from error
        if "format" in names:
            self._require_directories(names)
            return True
        if names & set(_FILLED):
            raise DataDirectoryError(
                f"{self.store / 'format'} is missing, but the store is filled: nothing was changed; put the file back from a copy "
                "(docs/format.md says what it holds)"
            )
        foreign = names - NOT_STORED
        if foreign:
            raise DataDirectoryError(
                f"{self.store} is not empty and is no Staddle store, as it has no file `format` (found "
                f"{', '.join(sorted(foreign)[:3])}): nothing was changed; is another file system mounted there?"
            )
        return False

    def _require_directories(self, names: set[str]) -> None:
        """Raises DataDirectoryError if what should be a directory of the store is something else: each may be on a disk of its own."""
        for path in (self.store / name for name in sorted(names & STORE_DIRECTORIES)):
            if path.is_dir():
                continue
            if path.is_symlink() and not path.exists():
                flaw = f"is a link to {os.readlink(path)}, which is missing: is its file system mounted? Nothing was changed"
            else:
                flaw = "is not a directory: nothing was changed; move it elsewhere, and put the directory back if it held anything"
            raise DataDirectoryError(f"{path} {flaw}")

    def _has_file(self, path: Path) -> bool:
        """Whether there is such a file. Raises DataDirectoryError if there is something else of that name."""
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise DataDirectoryError(
                    f"{path} is a link to {os.readlink(path)}, which is missing: is its file system mounted? Nothing was changed"
                ) from None
            return False
        except OSError as error:
            raise self._unreadable(path, error) from error
        if stat.S_ISDIR(status.st_mode):
            raise DataDirectoryError(
                f"{path} is a directory and should be a file: nothing was changed; containers make a directory where the file to "
                "mount does not exist"
            )
        if not stat.S_ISREG(status.st_mode):
            raise DataDirectoryError(f"{path} is not a regular file: nothing was changed")
        return True

    @staticmethod
    def _unreadable(path: Path, error: OSError) -> DataDirectoryError:
        if error.errno in {errno.EACCES, errno.EPERM}:
            with contextlib.suppress(OSError):
                return DataDirectoryError(
                    f"cannot read {path}: {error.strerror}; run this as root or as the owner, {owner_of(path)}"
                )
        return DataDirectoryError(f"cannot read {path}: {error.strerror}")

    def disks(self) -> list[Path]:
        """The directory, and its store if that is on a disk of its own; of what cannot be looked at, nothing."""
        seen: dict[int, Path] = {}
        for path in (self.path, self.store):
            with contextlib.suppress(OSError):
                seen.setdefault(path.stat().st_dev, path)
        return list(seen.values())

    def require(self) -> None:
        """Raises DataDirectoryError unless a server can run here."""
        if not self.is_complete():
            raise DataDirectoryError(
                f"{self.path} is no data directory yet: `staddle-server init --data {self.path}` makes one"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the directory for this process, and makes it (open to its owner only) if it is not there.

        A foreign directory is refused before anything is written to it. Raises DataDirectoryError, which names the
        process that has it, if another one does.
        """
        complete = self.is_complete()
        try:
            if not complete:
                make_durable(self.path)
        except OSError as error:
            raise DataDirectoryError(f"cannot make {self.path}: {error.strerror}") from error
        with self.locked():
            yield

    def require_rebuildable(self) -> None:
        """Raises DataDirectoryError unless key and store are here, from which a catalog can be made."""
        self._has_file(self.catalog)
        if not self._has_file(self.master_key):
            raise DataDirectoryError(
                f"{self.master_key} is missing: a catalog is rebuilt from master.key and store/, so put it back from a copy"
            )
        if not self._has_store():
            raise self._no_store()
        if not self._is_filled():
            raise DataDirectoryError(
                f"{self.store} is empty, so no catalog can be made from it: is the right file system mounted? Nothing was changed"
            )

    def drop_new_catalog(self) -> None:
        """Removes what a rebuild that was cut off, or a rehearsal, has left."""
        for part in _CATALOG_PARTS:
            Path(f"{self.new_catalog}{part}").unlink(missing_ok=True)

    def install_catalog(self, aside: str) -> Path | None:
        """Gives the new catalog, which must be closed, its place; one that is there is set aside as catalog.db.`aside`.

        Gives the path of that; None: there was none. Wherever this is cut off, the old catalog is there whole, in its place or
        aside, and no server starts on half of it. Raises DataDirectoryError if that name is taken, or the new one is not closed.
        """
        for part in _CATALOG_PARTS[1:]:
            if Path(f"{self.new_catalog}{part}").exists():
                raise DataDirectoryError(
                    f"{self.new_catalog} is still in use: nothing was changed; run this again"
                )
        old = [part for part in _CATALOG_PARTS if Path(f"{self.catalog}{part}").exists()]
        kept = Path(f"{self.catalog}.{aside}")
        for part in old:
            try:
                os.link(f"{self.catalog}{part}", f"{kept}{part}")
            except FileExistsError as error:
                raise DataDirectoryError(f"{kept}{part} is there already: nothing is overwritten") from error
        _sync(self.path)
        # The database first: without it no server starts, and what SQLite kept beside it never meets another one.
        for part in old:
            Path(f"{self.catalog}{part}").unlink()
            _sync(self.path)
        _sync(self.new_catalog)
        self.new_catalog.rename(self.catalog)
        _sync(self.path)
        return kept if old else None

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self.path))
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise self._unreadable(self.path, error) from error

    def _is_filled(self) -> bool:
        """Whether anything lies in the store that a catalog would know of."""
        try:
            return any(below.is_dir() and any(below.iterdir()) for below in map(self.store.joinpath, _FILLED))
        except OSError as error:
            raise self._unreadable(self.store, error) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory, whatever is in it, for this process. Raises DataDirectoryError as `claimed` does."""
        try:
            # Through a link, two directories could have one lock.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.lock, flags, 0o600)
        except OSError as error:
            raise self._no_lock(error) from error
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataDirectoryError(
                    f"{self.lock} is not a regular file: remove it; a server makes it again"
                )
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirectoryError(
                    f"a server already runs on {self.path} ({_holder(file.read(HOLDER_BYTES_MAX))}); one directory has one server, "
                    "or one rebuild"
                ) from None
            except OSError as error:
                raise DataDirectoryError(
                    f"cannot lock {self.lock}: {error.strerror}. The file system must have locks (flock), which keep two servers from "
                    "one directory"
                ) from error
            # The lock is what counts; who has it is a courtesy, for which a full disk has no room.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            yield

    def _no_lock(self, error: OSError) -> DataDirectoryError:
        """Why the lock cannot be opened."""
        if error.errno == errno.ELOOP:
            return DataDirectoryError(
                f"{self.lock} is a link: remove it, as through a link two directories could have one lock; a server makes it again"
            )
        if error.errno == errno.EISDIR:
            return DataDirectoryError(
                f"{self.lock} is a directory and should be a file: remove it; a server makes it again"
            )
        if error.errno == errno.EROFS:
            return DataDirectoryError(
                f"{self.path} is on a read-only file system, and a server has to write there: mount it with write access"
            )
        if error.errno in {errno.EACCES, errno.EPERM}:
            with contextlib.suppress(OSError):
                path = self.lock if self.lock.exists() else self.path
                return DataDirectoryError(
                    f"cannot write {path}: {error.strerror}; it belongs to {owner_of(path)}: run this as root or as that user"
                )
        return DataDirectoryError(f"cannot write in {self.path}: {error.strerror}")

    @contextlib.contextmanager
    def store_locked(self) -> Iterator[None]:
        """Holds the store, which must be there, for this process: another data directory may lead to the same one.

        Where the file system has no locks, nothing is held. Raises DataDirectoryError if a server on another directory has it.
        """
        marked = self.store / FORMAT_NAME
        try:
            descriptor = os.open(marked, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            try:
                descriptor = os.open(marked, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise self._unreadable(marked, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DataDirectoryError(
                f"a server that runs on another data directory uses {self.store}: one store has one server"
            ) from None
        except OSError:
            pass  # a network file system without locks
        try:
            yield
        finally:
            os.close(descriptor)


def _holder(data: bytes) -> str:
    """Who has the lock, as the file says: a process, and its host where that is another one."""
    words = "".join(each for each in data.decode(errors="replace") if each.isprintable()).split()
    if not words or not words[0].isdecimal():
        return "process unknown"
    host = f" on {words[1]}" if len(words) > 1 and words[1] != socket.gethostname() else ""
    return f"process {words[0]}{host}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_durable(path: Path) -> None:
    """Makes a directory and those above it that are missing, each name synced into its parent.

    The name of one that is there already is synced too, where that can be done: a start that was cut off may have made it.
    Raises OSError.
    """
    files = Files()
    if path.is_dir():
        try:
            sync_directory(files, str(path.parent))
        except OSError as error:
            # The directory above may be somebody else's, or of a file system that syncs no directories.
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL}:
                raise
        return
    make_durable(path.parent)
    with contextlib.suppress(FileExistsError):
        files.make_directory(str(path))
    sync_directory(files, str(path.parent))


@dataclass(frozen=True)
class ClientConfig:
    """What DIR/client.toml tells the local command, in the client's own keys: where the server is, and an admin token."""

    server: str
    token: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    def __repr__(self) -> str:
        return f"ClientConfig(server={self.server}, token=…)"


def client_address(
    listening: Address | UnixAddress, endpoint: Address | UnixAddress | None
) -> Address | UnixAddress:
    """Where a client on this machine finds a server that listens there."""
    if endpoint is not None:
        return endpoint
    if isinstance(listening, Address) and listening.is_wildcard:
        return Address("::1" if ":" in listening.host else "127.0.0.1", listening.port)
    return listening


def write_client_config(path: Path, config: ClientConfig) -> None:
    """Replaces the file as a whole; only its owner can read it."""
    lines = [
        "# Made by staddle-server, which writes the address anew at each start. It holds an admin token: keep it to yourself.",
    ]
    for key, value in dataclasses.asdict(config).items():
        if value:
            lines.append(f"{key} = {json.dumps(value)}")
    files, temporary = Files(), f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        files.unlink(temporary)
    write_synced(files, temporary, ("\n".join(lines) + "\n").encode())
    files.replace(temporary, str(path))
    sync_directory(files, str(path.parent))


def read_client_config(path: Path) -> dict[str, str]:
    """The file's strings, by key; empty if there is no file. Raises DataDirectoryError if it is none of ours."""
    try:
        if not os.path.lexists(path):
            return {}
        data, _ = read(path, CLIENT_TOML_BYTES_MAX, "a client.toml", pipe_s=None)
        table = tomllib.loads(text_of(data, path))
    except GivenError as error:
        raise DataDirectoryError(f"{error}; if it is removed, the next start makes it again") from error
    except (ValueError, RecursionError) as error:
        raise DataDirectoryError(
            f"{path} is broken ({error}): remove it, and the next start makes it again"
        ) from error
    return {key: value for key, value in table.items() if isinstance(value, str)}
