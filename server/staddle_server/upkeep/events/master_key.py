"""Alarms of the file of the master key: a server needs it only at its start, and so notices too late by itself."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from staddle_server.catalog import Alarm
from staddle_server.store.keys import KeyStore, MasterKeyError, load_master_key
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.kinds import CRITICAL, WARNING, alarm

KEPT: Final = (
    "Put the right file back from its copy while this server still runs: once it has stopped, it does not start "
    "without it. Without any copy, nothing that is stored can ever be read again."
)


class _KeyFault(NamedTuple):
    subject: str
    severity: str
    text: str
    advice: str


class MasterKeyFile:
    """The file that the master key of this server came from."""

    kinds: Final = frozenset({kinds.MASTER_KEY.name})

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._host = socket.gethostname()

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:  # noqa: ARG002 - it is looked at now
        """Yield one alarm if the file is missing, unreadable, or of another key, or if every user can read it."""
        fault = _fault_of(self._keys)
        if fault is not None:
            yield alarm(
                kinds.MASTER_KEY,
                fault.severity,
                f"On {self._host}, {fault.text}.",
                fault.advice,
                server=server,
                subject=fault.subject,
            )


def _fault_of(keys: KeyStore) -> _KeyFault | None:
    if not keys.file:
        return None
    try:
        found = load_master_key(keys.file)
    except MasterKeyError as error:
        return _KeyFault("unusable", CRITICAL, error.message, KEPT)
    if not keys.is_master(found):
        words = f"{keys.file} holds another master key than the one that the server works with"
        return _KeyFault("another key", CRITICAL, words, KEPT)
    try:
        mode = os.stat(keys.file).st_mode
    except OSError:  # it went a moment ago; the next look says so
        return None
    # A group may be what gives the server itself its access, as in Kubernetes.
    if mode & stat.S_IROTH:
        words = f"every user of the machine can read the master key {keys.file}"
        return _KeyFault("open to all", WARNING, words, f"Run `chmod 600 {keys.file}`.")
    return None
