"""What was measured, medians of it, and tables to read in a terminal."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from benchmarks.programs.peers import LIMIT, Phase
from benchmarks.programs.processes import MIB

OURS: Final = "staddle"


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement. Memory is the peak, of client and server apart; a program without a server has 0 there."""

    seconds: float
    """Until all that was written is on the disk."""
    sync_s: float
    """The part of it after the program had ended."""
    client_cpu_s: float
    server_cpu_s: float
    client_bytes: int
    server_bytes: int
    stored_bytes: int
    wire_bytes: int
    catalog_bytes: int = 0
    """The part of what is stored that is the server's catalog."""


Of = Callable[[Figures], float]
Key = tuple[str, Phase, str]
"""Case, phase, program."""


@dataclass
class Results:
    """All measurements of one run."""

    figures: dict[Key, list[Figures]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    data_bytes: dict[str, int] = field(default_factory=dict)
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    """What one core takes for a part of the work, in seconds, by case."""

    def add(self, case: str, phase: Phase, peer: str, figures: Figures) -> None:
        self.figures.setdefault((case, phase, peer), []).append(figures)

    def to_record(self) -> list[dict[str, Any]]:
        """All single measurements, for a file of results."""
        return [
            {"case": case, "phase": phase.value, "peer": peer, "rounds": [asdict(each) for each in found]}
            for (case, phase, peer), found in self.figures.items()
        ]

    def leave_out_unmeasured(self) -> None:
        """Forgets cases of which nothing was measured."""
        measured = {case for case, _, _ in self.figures}
        self.titles = {case: title for case, title in self.titles.items() if case in measured}

    def take(self, measurements: Iterable[Mapping[str, Any]]) -> None:
        """Those of a file of results, instead of what is here of the same; figures that are not known any more are left out."""
        known = {each.name for each in fields(Figures)}
        for each in measurements:
            self.figures[each["case"], Phase(each["phase"]), each["peer"]] = [
                Figures(**{name: value for name, value in taken.items() if name in known})
                for taken in each["rounds"]
            ]

    def median(self, case: str, phase: Phase, peer: str, of: Of) -> float | None:
        """None: it was not measured."""
        found = self.figures.get((case, phase, peer))
        return statistics.median(map(of, found)) if found else None

    def best(self, case: str, phase: Phase, of: Of) -> tuple[str, float] | None:
        """The other program that takes least, and how much. None: there was none."""
        others = {
            peer: value
            for name, each, peer in self.figures
            if (name, each) == (case, phase) and not peer.startswith(OURS) and peer != LIMIT
            if (value := self.median(case, phase, peer, of)) is not None
        }
        return min(others.items(), key=lambda item: item[1]) if others else None

    def ratio(self, case: str, phase: Phase, ours: str, of: Of) -> float | None:
        """What the best other program takes, divided by what we take. None: one of them was not measured."""
        best, own = self.best(case, phase, of), self.median(case, phase, ours, of)
        return best[1] / own if best and own else None


def wall(figures: Figures) -> float:
    return figures.seconds


def stored(figures: Figures) -> float:
    return figures.stored_bytes


MEASURES: Final[tuple[tuple[str, Of, str], ...]] = (
    ("wall s", wall, ".2f"),
    ("of it sync", lambda figures: figures.sync_s, ".2f"),
    ("client CPU", lambda figures: figures.client_cpu_s, ".2f"),
    ("server CPU", lambda figures: figures.server_cpu_s, ".2f"),
    ("client MiB", lambda figures: figures.client_bytes / MIB, ".0f"),
    ("server MiB", lambda figures: figures.server_bytes / MIB, ".0f"),
    ("wire MiB", lambda figures: figures.wire_bytes / MIB, ".1f"),
    ("stored MiB", lambda figures: figures.stored_bytes / MIB, ".1f"),
)


def tables(results: Results, names: Sequence[str]) -> str:
    """Everything, to be read."""
    return "\n".join(line for case in results.titles for line in (*_table(results, case, names), ""))


def _table(results: Results, case: str, names: Sequence[str]) -> Iterable[str]:
    rounds = max(len(found) for (name, _, _), found in results.figures.items() if name == case)
    yield f"{results.titles[case]}; medians of {rounds}; `ratio`: the best other program's wall time to this one's"
    if limits := results.limits.get(case):
        yield "  one core alone: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in limits.items())
    heads = [name for name, _, _ in MEASURES]
    yield f"  {'':<14}{'':<16}" + "".join(f"{head:>12}" for head in heads) + f"{'ratio':>8}"
    for phase in Phase:
        for name in names:
            if (case, phase, name) not in results.figures:
                continue
            cells = [cell(results.median(case, phase, name, of), form) for _, of, form in MEASURES]
            ratio = results.ratio(case, phase, name, wall) if name.startswith(OURS) else None
            yield (
                f"  {phase:<14}{name:<16}"
                + "".join(f"{each:>12}" for each in cells)
                + f"{cell(ratio, '.2f'):>8}"
            )


def cell(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if not value else format(value, form)
