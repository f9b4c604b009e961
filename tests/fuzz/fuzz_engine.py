"""Fuzzing that knows what it changes: valid inputs are mutated, and what ends in a new way is mutated further.

A target takes bytes and says in a few words how that ended. It raises for whatever breaks its promise: an error that nobody
documented, a wrong answer. The engine adds two promises that all targets make: each input is done within a time, and
memory stays within a bound.
"""

from __future__ import annotations

import hashlib
import random
import re
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

Check = Callable[[bytes], str]
"""Takes an input, and gives its outcome. Raises if the target's promise is broken."""
Mutate = Callable[[random.Random, bytes], bytes]

CORPUS: Final = Path(__file__).parent / "corpus"
INPUT_S_MAX: Final = 15.0
INPUT_BYTES_MAX: Final = 8 << 20
POOL_MAX: Final = 4_000
OUTCOME_CHARS_MAX: Final = 200
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Target:
    """One thing that reads what others wrote.

    Attributes:
        name: What the driver calls it.
        open: Gives the check, and holds what it needs meanwhile.
        seeds: Valid inputs, from which the others are made.
        mutate: Makes an input from another one.
        growth_bytes_max: So much larger the process may become.
        short_runs: Inputs that `make test-all` tries; `make test` tries a third.

    """

    name: str
    open: Callable[[], AbstractContextManager[Check]]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate
    growth_bytes_max: int = 64 * MIB
    short_runs: int = 400


@dataclass
class Report:
    """The result of a run."""

    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    found: list[bytes] = field(default_factory=list)
    """The first input of each outcome that no earlier one had."""


class BrokenPromiseError(AssertionError):
    """A target did what it must never do; `data` is the input."""

    def __init__(self, target: str, data: bytes, what: str) -> None:
        super().__init__(f"{target}: {what}; input {name_of(data)}, {len(data)} bytes: {data[:200]!r}")
        self.data = data


def name_of(data: bytes) -> str:
    """The name of an input in the corpus."""
    return hashlib.sha256(data).hexdigest()[:16]


def corpus(target: str) -> list[bytes]:
    """The kept inputs of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*")) if path.is_file()]


def run(target: Target, runs: int, seed: int, seconds: float | None = None) -> Report:
    """Tries so many inputs, or for so long; the same ones for the same seed. Raises BrokenPromiseError."""
    chance = random.Random(f"{target.name} {seed}")
    report = Report(target.name, seed)
    pool = [*target.seeds(), *corpus(target.name)]
    with target.open() as check:
        for data in pool:
            attempt(target, check, data, report, None)
        _forget_peak()
        begun_s, grown_from = time.monotonic(), _peak_bytes()
        seeds = len(pool)
        while report.inputs < runs and (seconds is None or time.monotonic() - begun_s < seconds):
            # Inputs that recently ended in a new way are mutated more often than the rest.
            recent = pool[-64:] if chance.random() < 0.4 else pool
            data = target.mutate(chance, chance.choice(recent))[:INPUT_BYTES_MAX]
            report.inputs += 1
            if attempt(target, check, data, report, grown_from):
                report.found.append(data)
                pool.append(data)
                if len(pool) > POOL_MAX:
                    del pool[chance.randrange(seeds, len(pool) - 64)]
    report.seconds = time.monotonic() - begun_s
    return report


def attempt(target: Target, check: Check, data: bytes, report: Report, grown_from: int | None) -> bool:
    """Tries one input; whether it ended in a new way. Raises BrokenPromiseError."""
    begun_s = time.monotonic()
    try:
        outcome = shape(check(data))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise BrokenPromiseError(target.name, data, what) from error
    took_s = time.monotonic() - begun_s
    report.slowest_s = max(report.slowest_s, took_s)
    if took_s > INPUT_S_MAX:
        raise BrokenPromiseError(target.name, data, f"it took {took_s:.1f} s")
    if grown_from is not None:
        report.growth_bytes = max(report.growth_bytes, _peak_bytes() - grown_from)
        if report.growth_bytes > target.growth_bytes_max:
            raise BrokenPromiseError(target.name, data, f"memory grew by {report.growth_bytes >> 20} MiB")
    report.outcomes[outcome] = report.outcomes.get(outcome, 0) + 1
    return report.outcomes[outcome] == 1


def documented(error: Any, *reasons: str) -> str:
    """The outcome of an error of ours that may be met here. Raises AssertionError for one with another reason."""
    if error.reason not in reasons:
        raise AssertionError(f"reason {error.reason}: {error.message}")
    return f"{error.reason} {error.message}"


def _forget_peak() -> None:
    """Reset the peak (Linux); elsewhere a bound below an earlier peak is never reached."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_PARTICULAR: Final = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8,}|[0-9]+|[^\x00-\x7f]+")


def shape(outcome: str) -> str:
    """An outcome without what is particular to one input: names and numbers."""
    return _PARTICULAR.sub("#", outcome[: 4 * OUTCOME_CHARS_MAX])[:OUTCOME_CHARS_MAX]


# ---------------------------------------------------------------------- mutations

INTERESTING: Final = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**56,
    2**63,
    2**64 - 1,
)


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """A few changes of the bytes: flipped, set, put in, taken out, repeated, cut off, or numbers that mean trouble."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _mutate_once(chance, out)
    return bytes(out)


def _mutate_once(chance: random.Random, out: bytearray) -> None:
    at = chance.randrange(len(out) + 1)
    length = min(len(out) - at, chance.choice((1, 1, 2, 4, 8, 32, 300)))
    match chance.randrange(8):
        case 0 if at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(out):
            out[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        case 2:
            out[at:at] = chance.randbytes(chance.choice((1, 1, 2, 4, 16)))
        case 3:
            del out[at : at + length]
        case 4:
            out[at:at] = out[at : at + length] * chance.choice((1, 1, 3))
        case 5:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(INTERESTING) % (1 << (8 * size))
            out[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
        case 6 if len(out) > 1:
            other = chance.randrange(len(out))
            out[at : at + length] = out[other : other + length]
        case 7 if chance.random() < 0.3:
            del out[at:]
        case _:
            out += chance.randbytes(1)


def mutate_text(chance: random.Random, data: bytes, words: Sequence[str]) -> bytes:
    """As mutate_bytes, or a word that means something put in, or in the place of a line."""
    if chance.random() < 0.4:
        return mutate_bytes(chance, data)
    lines = data.decode("utf-8", "replace").split("\n")
    at = chance.randrange(len(lines))
    word = chance.choice(words)
    if chance.random() < 0.5:
        lines.insert(at, word)
    else:
        cut = chance.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:cut] + word + lines[at][cut + chance.choice((0, 0, 1, 4)) :]
    return "\n".join(lines).encode("utf-8", "replace")


def mutate_msgpack(chance: random.Random, data: bytes) -> bytes:
    """One value somewhere in a msgpack body changed, so that what is around it stays right; or its bytes."""
    if chance.random() < 0.25:
        return mutate_bytes(chance, data)
    try:
        tree = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return mutate_bytes(chance, data)
    for _ in range(chance.choice((1, 1, 2))):
        tree = _changed(chance, tree)
    return msgspec.msgpack.encode(tree)


def _changed(chance: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with one thing in it changed, the deeper the likelier."""
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        match chance.randrange(12):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[: at + 1], *value[at:]]
            case 2:
                return [*value[:at], *reversed(value[at:])]
            case 3:
                return [*value, _value(chance, depth)]
            case _:
                return [*value[:at], _changed(chance, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, chance.choice(("", "x", "type", "backup", "at_ns")): _value(chance, depth)}
            case _:
                return {**value, key: _changed(chance, value[key], depth + 1)}
    if isinstance(value, bytes) and value and chance.random() < 0.5:
        return mutate_bytes(chance, value)
    if isinstance(value, int) and chance.random() < 0.5:
        return min(max(value + chance.choice((-1, 1, -value, value, 1 << 32)), -(2**63)), 2**64 - 1)
    return _value(chance, depth)


def _value(chance: random.Random, depth: int) -> Any:
    """Any value that msgpack can hold."""
    match chance.randrange(11):
        case 0:
            return chance.choice(INTERESTING)
        case 1:
            return -chance.choice(INTERESTING[:-2])
        case 2:
            return bytes(chance.choice((0, 1, 16, 31, 32, 33, 64, 65, 1025, 16_385)))
        case 3:
            return chance.choice(("", "x", "é" * 300, "\0", "../..", "\x7f", "y" * 1025))
        case 4:
            return None
        case 5:
            return chance.choice((True, False, 1.5, float("nan"), float("inf")))
        case 6:
            return {}
        case 7:
            return msgspec.msgpack.Ext(chance.randrange(-128, 128), b"x")
        case 8:
            nested: Any = []
            for _ in range(chance.choice((1, 3, 500))):
                nested = [nested]
            return nested
        case 9:
            return [_value(chance, depth + 1) for _ in range(chance.randrange(4))] if depth < 6 else []
        case _:
            return chance.choice((b"a/../b", b"/", b"..", b"a\0b", b"\xff", b"a/" * 600))
