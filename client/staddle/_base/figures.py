"""Counts, sizes, durations and percentages as people read and write them, the same in both commands.

What reads a text raises ValueError with what to write instead; the caller names the option and the text.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

DURATION_S_MAX: Final = 100 * 366 * 86_400.0
BYTES_MAX: Final = 2**63 - 1

_SIZE_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%?")
_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_DURATION: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,9})? ?[A-Za-z]{1,7} ?)+")
_DURATION_PART: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,7})")
_WHOLE_UNITS_S: Final = (("d", 86_400), ("h", 3600), ("m", 60))
_UNITS_S: Final = {
    unit: seconds
    for seconds, units in (
        (365 * 86_400.0, "y year years"),
        (7 * 86_400.0, "w week weeks"),
        (86_400.0, "d day days"),
        (3_600.0, "h hr hrs hour hours"),
        (60.0, "m min mins minute minutes"),
        (1.0, "s sec secs second seconds"),
    )
    for unit in units.split()
}


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 entry, 1,234 entries."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def size(count_bytes: int) -> str:
    """A number of bytes in the largest binary unit that leaves at least one of it."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    amount = float(count_bytes)
    for unit in _SIZE_UNITS:
        amount /= 1024
        if amount < 1023.95 or unit == _SIZE_UNITS[-1]:
            break
    return f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    """The shortest spelling that `duration_s` reads back: 36h, 14d."""
    for unit, unit_s in _WHOLE_UNITS_S:
        if seconds and seconds % unit_s == 0:
            return f"{int(seconds // unit_s)}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def age(seconds: float) -> str:
    """A duration in whole units of the largest kind that it reaches, cut: 45s, 3h, 12d."""
    unit, unit_s = next((each for each in _WHOLE_UNITS_S if seconds >= each[1]), ("s", 1))
    return f"{int(seconds // unit_s)}{unit}"


def duration_s(
    text: str, least_s: float = 0.0, most_s: float = DURATION_S_MAX, *, bare: bool = False
) -> float:
    """The seconds in 90s, 5m, 1h30m, 7 days, 2w or 1y. A number alone is 0, or with `bare` any number of seconds. Raises ValueError."""
    text = text.strip()
    if text == "0" or (bare and _NUMBER.fullmatch(text)):
        seconds = float(text)
    else:
        parts = _DURATION_PART.findall(text) if _DURATION.fullmatch(text) else []
        if any(unit == "M" for _, unit in parts):
            raise ValueError("M could be minutes or months: use m for minutes, or d for days")
        if not parts or any(unit.lower() not in _UNITS_S for _, unit in parts):
            raise ValueError("use a number with s, m, h, d, w or y, such as 90s, 2h or 1h30m")
        seconds = sum(float(count) * _UNITS_S[unit.lower()] for count, unit in parts)
    if seconds < least_s:
        raise ValueError(f"it is too short, use at least {duration(least_s)}")
    if seconds > most_s:
        raise ValueError(f"it is too long, use at most {duration(most_s)}")
    return seconds


def size_bytes(text: str, least_bytes: int = 0) -> int:
    """The bytes in 500, 100k, 20 MiB or 1.5G; all units are binary. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    unit = "" if found is None else (found[2] or "").lower()
    if found is None or ("." in found[1] and not unit):
        raise ValueError("use a whole number of bytes, or a number with k, M, G or T, such as 512k or 20M")
    total = int(Decimal(found[1]) * 1024 ** " kmgt".index(unit or " "))
    if total > BYTES_MAX:
        raise ValueError("it is too large, use less than 8,388,608T")
    if total < least_bytes:
        raise ValueError(f"it is too small, use at least {size(least_bytes)}")
    return total


def percent(text: str) -> float:
    """The percentage in 10, 2.5 or 10%: a number from 0 to 100. Raises ValueError."""
    found = _PERCENT.fullmatch(text.strip())
    if found is None or float(found[1]) > 100:
        raise ValueError("use a number from 0 to 100, such as 10")
    return float(found[1])
