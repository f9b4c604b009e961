"""Unix sockets to listen on: their owner, who may connect, and the remains of a crash."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Final

from staddle_server.app.addresses import UNIX_PATH_BYTES_MAX, UnixAddress
from staddle_server.app.settings import OperatorError

LOCK_S: Final = 2.0
LOCK_LOOK_S: Final = 0.05


class ListenError(OperatorError):
    """The server cannot listen at the given address."""


@contextlib.contextmanager
def place_for(address: UnixAddress, mode: int) -> Iterator[None]:
    """Prepare a place where the body can bind the socket; then the socket has the mode, and never had more.

    Removes a socket without a server first. Raises ListenError for a socket in use, and for anything that is
    not a socket; nothing is changed then.
    """
    with _locked(address):
        _remove_stale(address)
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)
        os.chmod(address.path, mode)


@contextlib.contextmanager
def private(parent: str) -> Iterator[UnixAddress]:
    """Return an address for this process's user only, in a new directory below `parent`.

    If `parent` is empty, or not for this user, uses the directory for temporary files. The directory is
    removed at the end, with its content. Raises ListenError if it cannot be created.
    """
    if not (parent and os.access(parent, os.W_OK | os.X_OK)):
        parent = ""
    try:
        made = tempfile.TemporaryDirectory(prefix="staddle-", dir=parent or None, ignore_cleanup_errors=True)
    except OSError as error:
        raise ListenError(f"a directory for the server's own socket cannot be created: {error}") from error
    with made as directory:
        address = UnixAddress(os.path.join(os.path.abspath(directory), "own"))
        if len(os.fsencode(address.path)) > UNIX_PATH_BYTES_MAX:
            raise ListenError(
                f"{address.path} is too long for a socket: set TMPDIR or RUNTIME_DIRECTORY to a directory with a shorter name"
            )
        yield address


def identity(address: UnixAddress) -> tuple[int, int] | None:
    """Return what distinguishes this socket from another one of the same path; None if it does not exist."""
    try:
        found = os.lstat(address.path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove(address: UnixAddress, made: tuple[int, int] | None) -> None:
    """Remove the socket that was made there, and no other one."""
    if made is not None and identity(address) == made:
        with contextlib.suppress(OSError):
            os.unlink(address.path)


@contextlib.contextmanager
def _locked(address: UnixAddress) -> Iterator[None]:
    """Keep other servers out of the directory: two that start at once must not both remove what the other has
    bound.
    """
    parent = os.path.dirname(address.path)
    try:
        directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {address}: {parent}: {error.strerror}; the directory must exist, and belong to the server's user"
        ) from error
    try:
        if not _lock(directory):
            raise ListenError(f"cannot listen on {address}: another program holds {parent} locked; try again")
        yield
    finally:
        os.close(directory)


def _lock(directory: int) -> bool:
    """Wait briefly for the lock: another server needs it for an instant. Return whether it was taken."""
    until_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return False
            time.sleep(LOCK_LOOK_S)
        else:
            return True


def _remove_stale(address: UnixAddress) -> None:
    try:
        found = os.lstat(address.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(
            f"cannot listen on {address}: {address.path} is not a socket, and was left alone; choose another path, or move it away"
        )
    why = _alive(address)
    if why:
        raise ListenError(f"cannot listen on {address}: {why}; choose another path with --listen")
    try:
        os.unlink(address.path)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {address}: the socket that an earlier server left cannot be removed: {error.strerror}"
        ) from error


def _alive(address: UnixAddress) -> str:
    """Return why the socket must stay; empty if no server listens on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            return ""
        except BlockingIOError:
            pass  # its queue is full
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                return f"a socket exists, and whether a server uses it cannot be determined: {error.strerror}"
    return "another program listens there already"
