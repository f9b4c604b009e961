"""How time and memory grow, as tables, exponents and plots: the section `growth` of docs/performance.md."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.programs.peers import Phase
from benchmarks.programs.processes import MIB
from benchmarks.tables import sections
from benchmarks.tables.figures import OURS, Of, Results, cell, stored, wall
from benchmarks.tables.sections import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND: Final = "growth"
STEEP: Final = 1.1
"""A power of the size that is more than linear, and more than what one measurement differs from the next."""
SHORT_S: Final = 0.05
"""Less time is only a few ticks of the CPU clock, which says nothing about growth."""


class Series(NamedTuple):
    """One kind of work at several sizes."""

    name: str
    title: str
    unit: str
    per_mib: bool
    per_entry: bool


SERIES: Final = (
    Series("image", "an image", "MiB", per_mib=True, per_entry=False),
    Series("tree", "a tree of small files", "files", per_mib=True, per_entry=True),
    Series("catalog", "a fixed image, and what is in the catalog before", "chunks", per_mib=True, per_entry=False),
    Series("catalog-tree", "a fixed tree, and what is in the catalog before", "chunks", per_mib=True, per_entry=True),
    Series("million", "tiny files", "files", per_mib=False, per_entry=True),
)  # fmt: skip

MEASURES: Final[tuple[tuple[str, Of, str], ...]] = (
    ("client CPU", lambda figures: figures.client_cpu_s, ".2f"),
    ("server CPU", lambda figures: figures.server_cpu_s, ".2f"),
    ("client MiB", lambda figures: figures.client_bytes / MIB, ".0f"),
    ("server MiB", lambda figures: figures.server_bytes / MIB, ".0f"),
    ("stored MiB", lambda figures: stored(figures) / MIB, ".1f"),
    ("catalog MiB", lambda figures: figures.catalog_bytes / MIB, ".1f"),
)
TIMES: Final = {"wall s", "client CPU", "server CPU"}
GROWING: Final = (("wall s", wall, ".2f"), *MEASURES)


@dataclass
class Grown:
    """The measurements of records of growth; what a later record has counts."""

    results: Results = field(default_factory=Results)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, series: Series) -> list[dict[str, Any]]:
        """The cases of a series, smallest first."""
        found = [case for case in self.cases.values() if case["series"] == series.name]
        return sorted(found, key=lambda case: int(case["size"]))

    def phases(self, cases: Sequence[dict[str, Any]], program: str = OURS) -> list[Phase]:
        names = [case["name"] for case in cases]
        return [phase for phase in Phase if any((name, phase, program) in self.results.figures for name in names)]  # fmt: skip

    def programs(self, cases: Sequence[dict[str, Any]]) -> list[str]:
        names = {case["name"] for case in cases}
        return list(dict.fromkeys(peer for name, _, peer in self.results.figures if name in names))

    def line(self, cases: Sequence[dict[str, Any]], phase: Phase, of: Of, program: str = OURS) -> list[tuple[int, float]]:  # fmt: skip
        """Sizes and what was measured at them, where that is not nothing."""
        found = [(int(case["size"]), self.results.median(case["name"], phase, program, of)) for case in cases]
        return [(size, value) for size, value in found if value]


def grown(records: Sequence[Record]) -> Grown:
    together = Grown()
    for record in records:
        together.cases.update({case["name"]: case for case in record["cases"]})
        together.results.take(record["measurements"])
    return together


def power(line: Sequence[tuple[int, float]]) -> float | None:
    """With which power of the size the last step grew: 1 is linear, 0 not at all. None if it is not a step."""
    if len(line) < 2:
        return None
    (small, before), (large, after) = line[-2:]
    return math.log(after / before) / math.log(large / small)


# --- tables


def text(records: Sequence[Record]) -> str:
    """All series, as Markdown."""
    together = grown(records)
    lines = [sections.facts(records[0]), ""]
    for series in SERIES:
        if cases := together.of(series):
            lines += [*_series(together, series, cases), ""]
    return "\n".join(lines)


def _series(together: Grown, series: Series, cases: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield f"### {_upper(series.title)}"
    yield ""
    rounds = [
        len(found) for (name, _, _), found in together.results.figures.items() if name == cases[-1]["name"]
    ]
    yield f"{_what(series, cases)} {f'Medians of {max(rounds)} rounds.' if max(rounds) > 1 else 'One round.'}"
    yield ""
    yield f"![{_upper(series.title)}](performance/{KIND}-{series.name}.svg)"
    yield ""
    yield from _table(together, series, cases)
    yield ""
    yield from _powers(together, series, cases)
    if len(together.programs(cases)) > 1:
        yield ""
        yield from _others(together, series, cases)


def _upper(words: str) -> str:
    return words[:1].upper() + words[1:]


def _what(series: Series, cases: Sequence[dict[str, Any]]) -> str:
    sizes = ", ".join(f"{case['size']:,}" for case in cases)
    if not all("index_bytes" in case for case in cases):
        return f"{sizes} {series.unit}."
    each = ", ".join(f"{case['index_bytes'] / case['size']:.1f}" for case in cases)
    return f"{_upper(cases[0]['title'])}, beside {sizes} chunks, which take {each} bytes each in the catalog."  # fmt: skip


def _table(together: Grown, series: Series, cases: Sequence[dict[str, Any]]) -> Iterable[str]:
    heads = [
        "wall s",
        *(["ms a MiB"] if series.per_mib else []),
        *(["µs an entry"] if series.per_entry else []),
    ]
    heads += [name for name, _, _ in MEASURES]
    yield f"| phase | {series.unit} | " + " | ".join(heads) + " |"
    yield "|---" * (len(heads) + 2) + "|"
    for phase in together.phases(cases):
        for case in cases:
            seconds = together.results.median(case["name"], phase, OURS, wall)
            if seconds is None:
                continue
            cells = [cell(seconds, ".2f"), *_shares(series, case, seconds)]
            cells += [
                cell(together.results.median(case["name"], phase, OURS, of), form) for _, of, form in MEASURES
            ]
            yield f"| {phase} | {case['size']:,} | " + " | ".join(cells) + " |"


def _shares(series: Series, case: dict[str, Any], seconds: float) -> Iterator[str]:
    if series.per_mib:
        yield format(seconds * 1e3 / (case["data_bytes"] / MIB), ".2f")
    if series.per_entry:
        yield format(seconds * 1e6 / case["entries"], ".1f")


def _powers(together: Grown, series: Series, cases: Sequence[dict[str, Any]]) -> Iterable[str]:
    """With which power of the size everything grew in the last step, and what was more than linear."""
    if len(cases) < 2:
        return
    step = f"from {cases[-2]['size']:,} to {cases[-1]['size']:,} {series.unit}"
    yield f"| grows, {step}, with the power | " + " | ".join(name for name, _, _ in GROWING) + " |"
    yield "|---" * (len(GROWING) + 1) + "|"
    steep = []
    for phase in together.phases(cases):
        powers = [power(_lasting(name, together.line(cases, phase, of))) for name, of, _ in GROWING]
        yield f"| {phase} | " + " | ".join("-" if each is None else f"{each:.2f}" for each in powers) + " |"
        steep += [
            f"{phase}, {name} ({each:.2f})"
            for (name, _, _), each in zip(GROWING, powers, strict=True)
            if each is not None and each > STEEP
        ]
    yield ""
    yield f"More than linear: {'; '.join(steep)}." if steep else "Nothing grows faster than linearly."


def _lasting(name: str, line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Nothing, if an end of the last step is too short to be measured."""
    return [] if name in TIMES and any(value < SHORT_S for _, value in line[-2:]) else line


def _others(together: Grown, series: Series, cases: Sequence[dict[str, Any]]) -> Iterable[str]:
    programs = together.programs(cases)
    yield f"| wall s | {series.unit} | " + " | ".join(programs) + " |"
    yield "|---" * (len(programs) + 2) + "|"
    for phase in together.phases(cases):
        for case in cases:
            cells = [
                cell(together.results.median(case["name"], phase, name, wall), ".2f") for name in programs
            ]
            yield f"| {phase} | {case['size']:,} | " + " | ".join(cells) + " |"


# --- plots


def plots(records: Sequence[Record], directory: Path) -> Iterable[Path]:
    """Time and memory over the size, both axes logarithmic, for each series."""
    together = grown(records)
    for series in SERIES:
        if cases := together.of(series):
            yield _plot(together, series, cases, directory / f"{KIND}-{series.name}.svg")


def _plot(together: Grown, series: Series, cases: Sequence[dict[str, Any]], to: Path) -> Path:
    programs = together.programs(cases)
    figure = sections.figure(11 if len(programs) == 1 else 15, 4.5)
    time, space, *others = figure.subplots(1, 2 if len(programs) == 1 else 3)
    phases = together.phases(cases)
    for number, phase in enumerate(phases):
        time.plot(*_columns(together.line(cases, phase, wall)), "o-", color=f"C{number}", label=phase)
        of_server = together.line(cases, phase, lambda figures: figures.server_cpu_s)
        time.plot(*_columns(of_server), ".:", color=f"C{number}")
    _linear(time, together.line(cases, phases[0], wall))
    _finish(time, series, cases, "seconds; dotted: processor of the server")
    for name, of, _ in MEASURES[2:]:
        space.plot(*_columns(_most(together, cases, phases, of)), "o-", label=name.removesuffix(" MiB"))
    _finish(space, series, cases, "MiB, the most of all phases")
    for axes in others:
        phase = phases[-1] if not phases[-1].restores else phases[-2]
        for name in programs:
            axes.plot(*_columns(together.line(cases, phase, wall, name)), "o-", label=name)
        _finish(axes, series, cases, f"{phase}, seconds")
    figure.suptitle(_upper(series.title))
    return sections.keep(figure, to)


def _most(
    together: Grown, cases: Sequence[dict[str, Any]], phases: Sequence[Phase], of: Of
) -> list[tuple[int, float]]:
    """The most of all phases, at each size."""
    most: dict[int, float] = {}
    for phase in phases:
        for size, value in together.line(cases, phase, of):
            most[size] = max(value, most.get(size, 0.0))
    return list(most.items())


def _columns(line: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [size for size, _ in line], [value for _, value in line]


def _linear(axes: "Axes", line: Sequence[tuple[int, float]]) -> None:
    """What would be linear, from the first point of a line on."""
    if len(line) > 1:
        (first, value), (last, _) = line[0], line[-1]
        axes.plot([first, last], [value, value * last / first], "--", color="grey", label="linear")


def _finish(axes: "Axes", series: Series, cases: Sequence[dict[str, Any]], label: str) -> None:
    sizes = [case["size"] for case in cases]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(series.unit)
    axes.set_title(label, fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
