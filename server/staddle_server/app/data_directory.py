"""The data directory: its owner, its current user, and the file for the local command.

docs/format.md draws it. A server locks the directory while it runs, and while it is being created;
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
from staddle_server.app.catalog_place import URL_NAME as CATALOG_URL_NAME
from staddle_server.app.catalog_place import CatalogPlace, catalog_place_of, record_catalog_place
from staddle_server.app.owner import owner_of
from staddle_server.app.store_place import (
    URL_NAME,
    DataDirectoryError,
    StorePlace,
    place_of,
    record_place,
    unreadable,
)
from staddle_server.store.files import Files, make_durable, sync_directory, write_synced

HOLDER_BYTES_MAX: Final = 300
"""The size limit of a process and a host name in the lock."""
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
        "cache",
        URL_NAME,
        f"{URL_NAME}.new",
        CATALOG_URL_NAME,
        f"{CATALOG_URL_NAME}.new",
    }
)
"""What an uninitialised directory may contain: settings, certificates, a new file system's files, a crash's
remains.
"""


@dataclass(frozen=True)
class DataDirectory:
    """The places in a data directory."""

    path: Path
    wanted_store: str = ""
    """The URL of an object store for the store; empty if the directory decides."""
    wanted_catalog: str = ""
    """The URL of a database for the catalog; empty if the directory decides."""
    wanted_key: str = ""
    """Where a master key is that is given to a new directory (see given_key.py); empty for none."""

    @property
    def place(self) -> StorePlace:
        """The place of the store. Raises DataDirectoryError if two places are named."""
        return place_of(self.path, self.wanted_store, os.environ)

    @property
    def master_key(self) -> Path:
        return self.path / "master.key"

    @property
    def catalog(self) -> Path:
        """The file of a catalog that is in the directory."""
        return self.path / "catalog.db"

    @property
    def catalog_place(self) -> CatalogPlace:
        """Where the catalog is, or is to be. Raise DataDirectoryError where two places are named."""
        return catalog_place_of(self.path, self.wanted_catalog)

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
        """Return whether the directory was created completely; False if it is missing, empty, or was
        interrupted.

        Raises DataDirectoryError, having changed nothing, for a foreign directory, and for one that has lost
        a part or holds something else in its place (a store that is not mounted, an empty catalog): a new
        part would hide every backup.
        """
        names = self._names() - NOT_DATA
        place = self.place
        if not names:
            self._refuse_lost()
            place.is_marked()  # refuses a bucket with other content
            if not place.is_filled():
                self._refuse_without_its_store()
                return False
        elif not names & {"master.key", "catalog.db", "store"}:
            raise DataDirectoryError(
                f"{self.path} is not empty and is not a Staddle data directory: name an empty or a new directory "
                f"(found {', '.join(sorted(names)[:3])})"
            )
        catalog = self.catalog_place
        self._has_file(self.catalog)
        has_key = self._has_file(self.master_key)
        has_store, filled = place.is_marked(), place.is_filled()
        # Read last: while another server creates both, the catalog comes before what fills the store.
        has_catalog = catalog.is_there()
        if os.path.lexists(self.store) and not self.store.is_dir():
            raise place.lost()
        if not has_key:
            self._refuse_keyless(has_catalog=has_catalog, has_store=has_store, filled=filled)
            return False
        if not has_store:
            # The store is created before the key: with a key, a store must have existed.
            raise place.lost()
        if has_catalog and catalog.is_made():
            return True
        if filled:
            raise self._no_catalog(has_catalog=has_catalog)
        return False

    def _refuse_keyless(self, *, has_catalog: bool, has_store: bool, filled: bool) -> None:
        """Raise DataDirectoryError for a directory without a master key whose catalog or store needs one that
        is not given.
        """
        if self.wanted_key:
            if has_catalog and not has_store:
                raise self.place.lost()
            if filled and not has_catalog:
                raise self._no_catalog(has_catalog=False)
        elif has_catalog or filled:
            raise DataDirectoryError(
                f"{self.master_key} is missing, and without it the data in {self.path} is unreadable: restore the key from its copy. "
                "Nothing was changed. Without a copy of the key, the data is lost. A further server of an existing catalog and store "
                "gets their key with --master-key"
            )

    def _no_catalog(self, *, has_catalog: bool) -> DataDirectoryError:
        flaw, replace = ("is empty", " --replace") if has_catalog else ("is missing", "")
        return DataDirectoryError(
            f"{self.catalog_place} {flaw}, but {self.place} is filled: restore the newest copy of the catalog, or rebuild it "
            f"from the store with `staddle-server rebuild{replace} --data {self.path}` (a new, empty one would hide every "
            "backup)"
        )

    def _refuse_lost(self) -> None:
        """Raise DataDirectoryError for a directory that contains only the files of the end of a
        first start.
        """
        if self.client_toml.is_file():
            raise DataDirectoryError(
                f"{self.client_toml} shows that a server ran here, but master.key, catalog.db and store/ are missing (not mounted?): "
                f"restore them; or remove {self.client_toml} to create a new, empty server here"
            )

    def _refuse_without_its_store(self) -> None:
        """Raise DataDirectoryError for an existing catalog that would get a new, empty store."""
        if not self.place.is_shared and self.catalog_place.is_there():
            raise DataDirectoryError(
                f"{self.catalog_place} exists already, and its store is not in {self.place}: nothing was changed. Is the file system of the "
                "store mounted? For a further server, name the store, which must be in a bucket (--store), and the key (--master-key). "
                "For a new service, name an empty database"
            )

    def _has_file(self, path: Path) -> bool:
        """Return whether the file exists. Raises DataDirectoryError for anything else of that name."""
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise DataDirectoryError(
                    f"{path} is a link to {os.readlink(path)}, which is missing: is its file system mounted? Nothing was changed"
                ) from None
            return False
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.S_ISDIR(status.st_mode):
            raise DataDirectoryError(
                f"{path} is a directory instead of a file: nothing was changed; containers create a directory if the file to "
                "mount does not exist"
            )
        if not stat.S_ISREG(status.st_mode):
            raise DataDirectoryError(f"{path} is not a regular file: nothing was changed")
        return True

    def disks(self) -> list[Path]:
        """Return the directory, and its store if that is on another disk; skip what cannot be read."""
        seen: dict[int, Path] = {}
        for path in (self.path, self.store):
            with contextlib.suppress(OSError):
                seen.setdefault(path.stat().st_dev, path)
        return list(seen.values())

    def require(self) -> None:
        """Raise DataDirectoryError unless a server can run here."""
        if not self.is_complete():
            raise DataDirectoryError(
                f"{self.path} is not initialised: `staddle-server init --data {self.path}` creates a data directory"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for this process, creating it (open to its owner only) if it is missing.

        Refuses a foreign directory before writing anything to it. Raises DataDirectoryError with the name of
        the process that holds it, if another one does.
        """
        complete = self.is_complete()
        try:
            if not complete:
                make_durable(str(self.path))
        except OSError as error:
            raise DataDirectoryError(f"cannot create {self.path}: {error.strerror}") from error
        with self.locked():
            self.record_place()
            yield

    def record_place(self) -> None:
        """Record where store and catalog are, for all later commands. The caller has locked the directory."""
        try:
            record_place(self.path, self.wanted_store)
            record_catalog_place(self.path, self.wanted_catalog)
        except OSError as error:
            raise DataDirectoryError(f"cannot write in {self.path}: {error.strerror}") from error

    def require_rebuildable(self) -> None:
        """Raise DataDirectoryError without key and store, which a rebuild needs."""
        self._has_file(self.catalog)
        if not self._has_file(self.master_key):
            raise DataDirectoryError(
                f"{self.master_key} is missing: a rebuild needs master.key and store/, so restore it from a copy"
            )
        place = self.place
        if not place.is_marked():
            raise place.lost()
        if not place.is_filled():
            raise DataDirectoryError(
                f"{place} is empty, so the catalog cannot be rebuilt from it: is the right file system mounted? Nothing was changed"
            )

    def _names(self) -> set[str]:
        try:
            return set(os.listdir(self.path))
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise unreadable(self.path, error) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory, whatever its content, for this process.

        Raises DataDirectoryError as `claimed` does.
        """
        try:
            # Through a link, two directories could share one lock.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.lock, flags, 0o600)
        except OSError as error:
            raise self._no_lock(error) from error
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataDirectoryError(
                    f"{self.lock} is not a regular file: remove it; a server creates it again"
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
                    f"cannot lock {self.lock}: {error.strerror}. The file system must support locks (flock), which keep two servers out of "
                    "one directory"
                ) from error
            # Only the lock counts; the holder's name is optional, and a full disk has no space for it.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            yield

    def identity(self) -> str:
        """Return what tells this directory from every other one that is in use, while it is locked."""
        found = self.lock.stat()
        return f"{_boot()}:{found.st_dev}:{found.st_ino}"

    def _no_lock(self, error: OSError) -> DataDirectoryError:
        """Return why the lock cannot be opened."""
        if error.errno == errno.ELOOP:
            return DataDirectoryError(
                f"{self.lock} is a link: remove it, because through a link two directories could share one lock; a server creates it again"
            )
        if error.errno == errno.EISDIR:
            return DataDirectoryError(
                f"{self.lock} is a directory instead of a file: remove it; a server creates it again"
            )
        if error.errno == errno.EROFS:
            return DataDirectoryError(
                f"{self.path} is on a read-only file system, but a server must write there: mount it with write access"
            )
        if error.errno in {errno.EACCES, errno.EPERM}:
            with contextlib.suppress(OSError):
                path = self.lock if self.lock.exists() else self.path
                return DataDirectoryError(
                    f"cannot write {path}: {error.strerror}; it belongs to {owner_of(path)}: run this as root or as that user"
                )
        return DataDirectoryError(f"cannot write in {self.path}: {error.strerror}")

    def store_locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store, which must exist, for this process: see StorePlace.locked."""
        return self.place.locked()


def _boot() -> str:
    """Return which boot of which machine this is; the host's name if the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _holder(data: bytes) -> str:
    """Return the lock's holder from the file: a process, and its host if that is another one."""
    words = "".join(each for each in data.decode(errors="replace") if each.isprintable()).split()
    if not words or not words[0].isdecimal():
        return "process unknown"
    host = f" on {words[1]}" if len(words) > 1 and words[1] != socket.gethostname() else ""
    return f"process {words[0]}{host}"


@dataclass(frozen=True)
class ClientConfig:
    """What DIR/client.toml tells the local command, in the client's own keys: the server's address, and an
    admin token.
    """

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
    """Return where a local client finds a server that listens there."""
    if endpoint is not None:
        return endpoint
    if isinstance(listening, Address) and listening.is_wildcard:
        return Address("::1" if ":" in listening.host else "127.0.0.1", listening.port)
    return listening


def write_client_config(path: Path, config: ClientConfig) -> None:
    """Replace the whole file; only its owner can read it."""
    lines = [
        "# Made by staddle-server, which updates the address at each start. It contains an admin token: keep it secret.",
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
    """Return the file's strings, by key; empty if the file is missing.

    Raises DataDirectoryError for a foreign file.
    """
    try:
        if not os.path.lexists(path):
            return {}
        data, _ = read(path, CLIENT_TOML_BYTES_MAX, "a client.toml", pipe_s=None)
        table = tomllib.loads(text_of(data, path))
    except GivenError as error:
        raise DataDirectoryError(f"{error}; if you remove it, the next start creates it again") from error
    except (ValueError, RecursionError) as error:
        raise DataDirectoryError(
            f"{path} is broken ({error}): remove it, and the next start creates it again"
        ) from error
    return {key: value for key, value in table.items() if isinstance(value, str)}
