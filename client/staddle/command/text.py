"""Values in words: names without control characters, sizes, times, counts. Nothing here writes."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Final

from staddle import Backup, BackupKind, ChangeCounts, Entry, EntryType
from staddle._base.figures import duration
from staddle._base.printable import escaped_letter, printable
from staddle._types.entries import path_to_str

ID_DIGITS: Final = 8
REASON_CHARS: Final = 50

_NS: Final = 1_000_000_000
_TYPE_LETTERS: Final = {
    EntryType.FILE: "-",
    EntryType.DIRECTORY: "d",
    EntryType.SYMLINK: "l",
    EntryType.FIFO: "p",
    EntryType.CHAR_DEVICE: "c",
    EntryType.BLOCK_DEVICE: "b",
    EntryType.SOCKET: "s",
}

INCOMPLETE: Final = " (incomplete: not everything in it could be read)"
"""Behind the name of a directory."""
UNCERTAIN: Final = " (uncertain: its directory is incomplete)"
"""Behind a path that was perhaps not read."""


def escaped(name: str | bytes) -> str:
    r"""A name as printable text that stands for it alone: `\n`, `\x1b`, `\xff` (a byte that is not UTF-8), `\u202e`, and `\\` for a backslash."""
    return printable(path_to_str(name) if isinstance(name, bytes) else name)


def one_line(message: str) -> str:
    """A message as one printable line. Backslashes stay: what a message quotes is escaped already."""
    if message.isprintable():
        return message
    return "".join(
        letter if letter == "\\" else escaped_letter(letter) for letter in message.replace("\n", " ")
    )


def is_utf8(name: bytes) -> bool:
    """Whether a name is text."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def seconds(duration_s: float) -> str:
    """A duration, to be read: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def local(moment: datetime.datetime) -> str:
    """A moment in local time, with its zone, as `--at` takes it."""
    try:
        return moment.astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError):
        return moment.isoformat(" ", "seconds")


def minute(moment: datetime.datetime) -> str:
    """A moment in local time, to the minute and without its zone, for tables: 2026-05-01 14:30."""
    return local(moment)[:16]


def second(moment: datetime.datetime) -> str:
    """The same to the second, as `--at` takes it."""
    return local(moment)[:19]


def shortened(words: str, width: int) -> str:
    """Words cut to a number of letters; 0: as they are."""
    return words if not width or len(words) <= width else words[: max(0, width - 1)] + "…"


def protection(backup: Backup) -> str:
    """Why a backup cannot be deleted now, shortly: held, or until when it is retained; empty: it can be."""
    for hold, what in ((backup.hold, "held"), (backup.dataset_hold, "dataset held")):
        if hold is not None:
            reason = escaped(hold.reason)
            return f"{what}: {reason if len(reason) <= REASON_CHARS else reason[: REASON_CHARS - 1] + '…'}"
    until = backup.retain_until_time
    if until is not None and until > datetime.datetime.now(datetime.UTC):
        return f"until {local(until)}"
    return ""


def length(of: datetime.timedelta) -> str:
    """A length of time in its largest whole unit, as options take it: 36h, 14d."""
    return duration(of.days * 86_400 + of.seconds)


def rfc3339(time_ns: int) -> str | None:
    """Nanoseconds since 1970 as RFC 3339 in UTC, with all of them; None outside the years 1 to 9999."""
    whole_s, rest_ns = divmod(time_ns, _NS)
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=whole_s)
    except OverflowError:
        return None
    return f"{moment.isoformat()}.{rest_ns:09d}Z"


def rfc3339_of(moment: datetime.datetime) -> str:
    """A moment as RFC 3339 in UTC, to the microsecond."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def short_id(backup_id: str) -> str:
    """The first digits of an id: enough to name it by, but for an odd chance."""
    return backup_id[:ID_DIGITS]


def id_digits(ids: Sequence[str]) -> int:
    """How many digits distinguish these ids; at least ID_DIGITS."""
    digits = ID_DIGITS
    for one, other in zip(ordered := sorted(ids), ordered[1:], strict=False):
        while digits < len(one) and one[:digits] == other[:digits]:
            digits += 1
    return digits


def which(backup: Backup) -> str:
    """A backup, so that a reader knows which one was picked."""
    return f"backup {short_id(backup.id)} of {escaped(backup.dataset)} (number {backup.number}, begun {local(backup.begin_time)})"


def kind(backup: Backup) -> str:
    """The kind of a backup."""
    return "unknown" if backup.kind is BackupKind.AUTO else backup.kind.value


def changes(counts: ChangeCounts) -> str:
    """How a backup differs from its base, in the letters of `staddle diff`."""
    parts = (
        ("+", counts.added),
        ("-", counts.removed),
        ("~", counts.content_changed),
        ("m", counts.metadata_changed),
    )
    return " ".join(f"{letter}{count}" for letter, count in parts if count)


def tags(of: Mapping[str, str]) -> str:
    """Tags as they were given, K=V."""
    return " ".join(f"{escaped(key)}={escaped(value)}" for key, value in sorted(of.items()))


def origin(host: str, root: str) -> str:
    """Where a dataset comes from, host:root."""
    return escaped(f"{host}:{root}") if host or root else ""


def mode(entry: Entry) -> str:
    """Type and permissions as ls writes them; question marks where they are not known."""
    letter = _TYPE_LETTERS[entry.type]
    if entry.mode is None:
        return letter + "?" * 9
    letters = [each if entry.mode >> (8 - place) & 1 else "-" for place, each in enumerate("rwxrwxrwx")]
    for place, bit, mark in ((2, 0o4000, "s"), (5, 0o2000, "s"), (8, 0o1000, "t")):
        if entry.mode & bit:
            letters[place] = mark if letters[place] == "x" else mark.upper()
    return letter + "".join(letters)


def path_shown(entry: Entry) -> str:
    """The path of an entry, relative to the root; a directory's ends with a slash, and the root is `./`."""
    name = escaped(entry.path_bytes)
    return f"{name or '.'}/" if entry.type is EntryType.DIRECTORY else name
