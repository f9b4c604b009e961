"""`make bench-report`: the tables and plots of docs/performance.md, from the results of benchmarks.

It replaces everything between the marks of a section; it keeps the text around them, and sections without results.
A further kind of results is one more line of SECTIONS, and its marks in the page.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import cpu, many_uploads, streams, two_servers
from benchmarks.programs.peers import LIMIT, Phase
from benchmarks.programs.processes import MIB
from benchmarks.tables import growth, sections
from benchmarks.tables.figures import MEASURES, OURS, Results, cell, stored, wall
from benchmarks.tables.sections import Record, Section

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
PLOTS: Final = PAGE.with_suffix("")

# --- beside other programs


def results_of(records: Sequence[Record]) -> Results:
    """The measurements of files that `make bench` has written; what a later one has counts, in the order of the first."""
    results = Results()
    for record in records:
        for case in record["cases"]:
            results.titles[case["name"]] = case["title"]
            results.data_bytes[case["name"]] = case["data_bytes"]
            results.limits[case["name"]] = case["limits"]
        results.take(record["measurements"])
    return results


def peers_text(records: Sequence[Record]) -> str:
    """The tables and plots, as Markdown."""
    results = results_of(records)
    lines = [sections.facts(records[0]), ""]
    for case in results.titles:
        lines += [*_case(results, case), ""]
    return "\n".join(lines)


def peers_plots(records: Sequence[Record], directory: Path) -> Iterable[Path]:
    """A plot of each case."""
    results = results_of(records)
    for case in results.titles:
        yield _draw(results, case, directory / f"{case}.svg")


def _case(results: Results, case: str) -> Iterable[str]:
    names = list(dict.fromkeys(peer for name, _, peer in results.figures if name == case))
    phases = [phase for phase in Phase if any((case, phase, name) in results.figures for name in names)]
    title = results.titles[case]
    rounds = max(len(found) for (name, _, _), found in results.figures.items() if name == case)
    yield f"### {title[:1].upper()}{title[1:]}"
    yield ""
    yield f"Medians of {rounds} rounds." if rounds > 1 else "One round."
    yield ""
    yield f"![Wall time of {title}](performance/{case}.svg)"
    yield ""
    yield "| wall s | " + " | ".join(names) + " | best other / staddle |"
    yield "|---" * (len(names) + 2) + "|"
    for phase in phases:
        cells = [cell(results.median(case, phase, name, wall), ".2f") for name in names]
        ratio = results.ratio(case, phase, OURS, wall)
        yield f"| {phase} | " + " | ".join(cells) + f" | {cell(ratio, '.2f')} |"
    yield ""
    ours = [name for name in names if name.startswith(OURS)]
    yield "| Staddle | " + " | ".join(name for name, _, _ in MEASURES) + " |"
    yield "|---" * (len(MEASURES) + 1) + "|"
    for phase in phases:
        for name in ours:
            if (case, phase, name) in results.figures:
                cells = [cell(results.median(case, phase, name, of), form) for _, of, form in MEASURES]
                yield f"| {phase}, {name} | " + " | ".join(cells) + " |"
    yield ""
    last = [phase for phase in phases if not phase.restores][-1]
    kept = [
        f"{name} {value / MIB:,.0f}"
        for name in names
        if name != LIMIT and (value := results.median(case, last, name, stored)) is not None
    ]
    yield f"Stored after all backups, MiB: {', '.join(kept)}."
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in results.limits[case].items())
    yield f"One core alone, seconds: {parts}."


def _draw(results: Results, case: str, to: Path) -> Path:
    """A bar for each program and phase."""
    names = list(dict.fromkeys(peer for name, _, peer in results.figures if name == case))
    phases = [phase for phase in Phase if any((case, phase, name) in results.figures for name in names)]
    figure = sections.figure(9, 0.6 + 0.22 * len(phases) * (len(names) + 1))
    axes = figure.subplots()
    for number, name in enumerate(names):
        measured = [(at, results.median(case, phase, name, wall)) for at, phase in enumerate(phases)]
        bars = [(at, value) for at, value in measured if value is not None]
        axes.barh(
            [at * (len(names) + 1) + number for at, _ in bars],
            [value for _, value in bars],
            label=name,
            height=0.9,
        )
    axes.set_yticks([at * (len(names) + 1) + (len(names) - 1) / 2 for at in range(len(phases))], phases)
    axes.invert_yaxis()
    axes.set_xlabel("seconds, until it is on the disk")
    axes.set_title(results.titles[case])
    axes.legend()
    return sections.keep(figure, to)


# --- all of it


def _of_newest(
    kind: str, section: Callable[[Record], Sequence[str]], draw: Callable[[Record, Path], None]
) -> Section:
    """A section that shows the last record alone, with one plot."""

    def plots(records: Sequence[Record], directory: Path) -> Iterable[Path]:
        to = directory / f"{kind}.svg"
        draw(records[-1], to)
        return [to]

    return Section(kind, kind, lambda records: "\n".join(section(records[-1])), plots)


SECTIONS: Final = (
    Section(sections.PEERS, "results", peers_text, peers_plots),
    Section(growth.KIND, "growth", growth.text, growth.plots),
    *(_of_newest(each.KIND, each.section, each.draw) for each in (many_uploads, two_servers, streams, cpu)),
)


def write(page: Path, plots: Path, records: Sequence[Record]) -> list[Path]:
    """Writes the sections that there are records for, and answers their plots. Raises ValueError for records that no section shows."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(sections.kind_of(record), []).append(record)
    if unknown := by_kind.keys() - {section.kind for section in SECTIONS}:
        raise ValueError(f"no section shows results of the kind {', '.join(sorted(unknown))}")
    plots.mkdir(exist_ok=True)
    drawn: list[Path] = []
    for section in SECTIONS:
        if found := by_kind.get(section.kind):
            page.write_text(section.written(page.read_text(), section.render(found)))
            drawn += section.draw(found, plots)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-report", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        help="files of results (the newest of each kind); what a later one of a kind has counts",
    )
    given = parser.parse_args(arguments)
    paths = given.results or sections.newest()
    if not paths:
        sys.exit("No results: run make bench first.")
    drawn = write(PAGE, PLOTS, [sections.load(path) for path in paths])
    print(f"Wrote {PAGE.name} and {len(drawn)} plots from {', '.join(path.name for path in paths)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
