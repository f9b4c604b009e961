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
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from staddle_server.config import Address, OperatorError
from staddle_server.store.directory import Files, sync_directory, write_synced

CLIENT_TOML_BYTES_MAX: Final = 64 * 1024
NOT_DATA: Final = frozenset(
    {"client.toml", "client.toml.new", "server.toml", "server.lock", "tls", "lost+found", "master.key.new"}
)
"""What may lie in a directory that is still to be made: settings, certificates, what a new file system holds, what a crash left."""


class DataDirectoryError(OperatorError):
    """The directory cannot be used. The message says why, and what to do."""


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
        """Tells a directory that was made from one that is still to be made (or made to the end).

        Raises DataDirectoryError if it is neither: a foreign one, or one that has lost a part that nothing can replace.
        """
        names = self._names() - NOT_DATA
        if not names:
            return False
        ours = names & {"master.key", "catalog.db", "store"}
        if not ours:
            raise DataDirectoryError(
                f"{self.path} is not empty and holds no Staddle data: name an empty or a new directory "
                f"(found {', '.join(sorted(names)[:3])})"
            )
        if "master.key" not in ours:
            raise DataDirectoryError(
                f"{self.master_key} is missing, and without it nothing in {self.path} can be read: put the key back"
            )
        if "catalog.db" not in ours and self._is_filled():
            raise DataDirectoryError(
                f"{self.catalog} is missing, but {self.store} is filled: put the newest copy of the catalog back, or make it "
                f"anew from the store with `staddle-server rebuild --data {self.path}` (a new, empty one would hide every backup)"
            )
        return ours == {"master.key", "catalog.db", "store"}

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
        for path in (self.master_key, self.store):
            if not path.exists():
                raise DataDirectoryError(
                    f"{path} is missing: a catalog is rebuilt from master.key and store/, so put it back from a copy"
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
            raise DataDirectoryError(f"cannot read {self.path}: {error.strerror}") from error

    def _is_filled(self) -> bool:
        """Whether anything lies in the store that a catalog would know of."""
        return any(below.is_dir() and any(below.iterdir()) for below in map(self.store.joinpath, _FILLED))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory, whatever is in it, for this process. Raises DataDirectoryError as `claimed` does."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryError(f"cannot write in {self.path}: {error.strerror}") from error
        with os.fdopen(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read(32).strip() or "unknown"
                raise DataDirectoryError(
                    f"a server already runs on {self.path} (process {holder}); one directory has one server, or one rebuild"
                ) from None
            file.truncate()
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


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


def client_address(listening: Address, endpoint: Address | None) -> Address:
    """Where a client on this machine finds a server that listens there."""
    if endpoint is not None:
        return endpoint
    if listening.is_wildcard:
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
        with path.open("rb") as file:
            table = tomllib.loads(file.read(CLIENT_TOML_BYTES_MAX).decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataDirectoryError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataDirectoryError(
            f"{path} is broken ({error}): remove it, and the next start makes it again"
        ) from error
    return {key: value for key, value in table.items() if isinstance(value, str)}
