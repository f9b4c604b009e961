"""Whose data a command works on: root acts as the owner of the data directory, so that the server can read
the result.
"""

import contextlib
import ctypes
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from staddle_server.app.settings import OperatorError

ROOT: Final = 0
_INSTALLED: Final = (Path(os.__file__).parent, Path(__file__).parent)
"""Python's library and Staddle, parts of which are loaded on demand."""
_MADE_BY_SERVER: Final = ("catalog.db", "store/format")
_PR_SET_KEEPCAPS: Final = 8
_CAPABILITY_VERSION: Final = 0x2008_0522
_CAPABILITIES_KEPT: Final = 1 << 2 | 1 << 10
"""CAP_DAC_READ_SEARCH: an installation or a TLS key that only root can read. CAP_NET_BIND_SERVICE: a port
below 1024.
"""


class OwnerError(OperatorError):
    """Root cannot act as the owner of the data. The message says why, and what to do."""


class Owner(NamedTuple):
    """A user and a group, by number."""

    uid: int
    gid: int

    def __str__(self) -> str:
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"uid {self.uid}"


def owner_of(path: Path) -> Owner:
    """Return the owner of the data directory `path`; of the nearest existing parent, if it does not exist.

    A part whose owner is not root decides, because root may own the others: a volume, a mounted or linked key, a catalog
    that root has restored. Raises OSError.
    """
    made, key = _owners(path / name for name in _MADE_BY_SERVER), _owners([path / "master.key"])
    others = [owner for owner in (*made, *key) if owner.uid != ROOT]
    # A key that belongs to root may come from elsewhere, so alone it says nothing.
    if others or made:
        return (others or made)[0]
    return _owners((path, *path.parents))[0]


def _owners(paths: Iterable[Path]) -> list[Owner]:
    """The owners of those that exist. Raises OSError."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            found.append(Owner(status.st_uid, status.st_gid))
    return found


def act_as_owner(path: Path) -> Owner | None:
    """Switch the process for good to the owner of the data directory `path`, if root runs it for another
    user.

    Takes the owner's groups too, and keeps root's rights to read and to use low ports. Returns the owner, or
    None if nothing changed. Call it before anything in the directory is opened. Raises OwnerError if the
    system refuses the switch.
    """
    if os.geteuid() != ROOT:
        return None
    try:
        owner = owner_of(path)
    except OSError as error:
        raise OwnerError(f"cannot read {path}: {error.strerror}") from error
    if owner.uid == ROOT:
        return None
    try:
        _become(owner)
    except OSError as error:
        raise OwnerError(
            f"{path} belongs to {owner}, and root cannot act as that user here ({error.strerror}): nothing was changed; "
            "run this as that user"
        ) from error
    for installed in _INSTALLED:
        try:
            os.scandir(installed).close()
        except OSError as error:
            raise OwnerError(
                f"{path} belongs to {owner}, who cannot read {installed}: nothing was changed; "
                "install Staddle where that user can read it"
            ) from error
    return owner


def _groups(owner: Owner) -> list[int]:
    """Return the groups of the owner; only the group of their files for a user without an account."""
    try:
        account = pwd.getpwuid(owner.uid)
    except KeyError:
        return [owner.gid]
    return sorted({owner.gid, *os.getgrouplist(account.pw_name, account.pw_gid)})


def _become(owner: Owner) -> None:
    """Switch user and groups. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    keeps = libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setgroups(_groups(owner))
    os.setresgid(owner.gid, owner.gid, owner.gid)
    os.setresuid(owner.uid, owner.uid, owner.uid)
    if keeps:
        _keep_capabilities(libc)


def _keep_capabilities(libc: ctypes.CDLL) -> None:
    """Reduce the rights of this thread, and of those that it starts, to what is kept. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of 32 rights each, twice
    kept = -1
    if libc.capget(header, sets) == 0:
        kept = sets[1] & _CAPABILITIES_KEPT
        sets[:] = [kept, kept, 0, 0, 0, 0]
    if kept < 0 or libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
