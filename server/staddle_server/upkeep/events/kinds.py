"""The kinds of alarms, and how one is written."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from blake3 import blake3

from staddle_server.catalog import Alarm, AlarmKey
from staddle_server.catalog.validation import stored_text

WARNING: Final = "warning"
CRITICAL: Final = "critical"
SEVERITIES: Final = (WARNING, CRITICAL)
TEXT_CHARS_MAX: Final = 1000
SUBJECT_BYTES_MAX: Final = 1024
"""Of a longer subject there is the beginning and a digest: an index row of PostgreSQL has little more room."""
_UNPRINTABLE: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class AlarmKind(NamedTuple):
    """One kind of alarm.

    Attributes:
        name: Its name in settings and messages.
        begins: Says in a few words that it began.
        ends: Says that it is over.

    """

    name: str
    begins: str
    ends: str


LATE: Final = AlarmKind("late", "A backup is late", "A late dataset has a new backup")
FAILED: Final = AlarmKind("failed", "A backup failed", "A dataset whose backup failed has a new one")
PROBLEMS: Final = AlarmKind("problems", "A backup is incomplete", "A dataset has a complete backup again")
DAMAGE: Final = AlarmKind("damage", "Stored data is damaged", "No damage is left")
DRILL: Final = AlarmKind("drill", "A drill failed", "A drill no longer reports damage")
RESTORE_ONLY: Final = AlarmKind("restore-only", "A server refuses backups", "A server takes backups again")
STORE: Final = AlarmKind("store", "The store cannot be used", "The store can be used again")
DISK: Final = AlarmKind("disk", "A disk will soon be full", "A disk has room again")
LOCK: Final = AlarmKind("lock", "The object lock is late", "The object lock is extended in time again")
SECOND_SITE: Final = AlarmKind("second-site", "The second site is behind", "The second site has caught up")
CLOCK: Final = AlarmKind("clock", "The clock of a server jumped", "The clock of a server is trusted again")
CERTIFICATE: Final = AlarmKind("certificate", "A certificate ends", "A certificate was renewed")
MASTER_KEY: Final = AlarmKind(
    "master-key",
    "The file of the master key is not as it must be",
    "The file of the master key is right again",
)
TOKEN: Final = AlarmKind("token", "A token ends", "A token no longer ends soon")
TARGET: Final = AlarmKind("target", "A notification target fails", "A notification target works again")
KINDS: Final = {
    kind.name: kind
    for kind in (
        LATE,
        FAILED,
        PROBLEMS,
        DAMAGE,
        DRILL,
        RESTORE_ONLY,
        STORE,
        DISK,
        LOCK,
        SECOND_SITE,
        CLOCK,
        CERTIFICATE,
        MASTER_KEY,
        TOKEN,
        TARGET,
    )
}
OF_A_DATASET: Final = frozenset({LATE.name, FAILED.name, PROBLEMS.name, DRILL.name})
"""The kinds whose subject is a dataset."""
FOR_ADMINISTRATORS: Final = frozenset({TOKEN.name})
"""The kinds that name what only administrators may list."""


def alarm(
    kind: AlarmKind,
    severity: str,
    text: str,
    advice: str,
    *,
    tenant: str = "",
    server: str = "",
    subject: str = "",
    since_ns: int | None = None,
) -> Alarm:
    """Return an alarm whose words are one printable line each, and bounded. Its subject stays exact: "a b" and
    "a  b" are two datasets.
    """
    key = AlarmKey(kind.name, tenant, server, _bounded(stored_text(subject)))
    return Alarm(key, severity, printable(text), printable(advice), since_ns)


def _bounded(subject: str) -> str:
    raw = subject.encode()
    if len(raw) <= SUBJECT_BYTES_MAX:
        return subject
    digest = blake3(raw).hexdigest(16)
    return f"{raw[: SUBJECT_BYTES_MAX - len(digest) - 3].decode('utf-8', 'ignore')}…{digest}"


def printable(text: str, most: int = TEXT_CHARS_MAX) -> str:
    """Return a text as one line without control characters, cut to `most` characters."""
    line = _UNPRINTABLE.sub(" ", text.encode("utf-8", "replace").decode()).strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"
