"""`make bench-report`: the tables and plots of docs/performance.md, from the results of a run of `make bench`.

Between the two marks in that page everything is written anew; what stands around them is left alone.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import MEASURES, OURS, Figures, Results, cell, stored, wall
from benchmarks.peers import LIMIT, Phase
from benchmarks.processes import MIB

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
PLOTS: Final = PAGE.with_suffix("")
BEGIN: Final = "<!-- results: written by make bench-report -->\n"
END: Final = "<!-- end of results -->\n"
FACTS: Final = ("processor", "memory", "file system", "system", "libraries", "compared", "file cache")


def read_results(path: Path) -> tuple[Results, dict[str, Any]]:
    """The measurements of a file that `make bench` has written, and all else that it says."""
    record: dict[str, Any] = json.loads(path.read_text())
    results = Results()
    known = {field.name for field in fields(Figures)}
    for case in record["cases"]:
        results.titles[case["name"]] = case["title"]
        results.data_bytes[case["name"]] = case["data_bytes"]
        results.limits[case["name"]] = case["limits"]
    for each in record["measurements"]:
        for figures in each["rounds"]:
            chosen = Figures(**{name: value for name, value in figures.items() if name in known})
            results.add(each["case"], Phase(each["phase"]), each["peer"], chosen)
    return results, record


def page_of(results: Results, record: dict[str, Any]) -> str:
    """The tables and plots, as Markdown."""
    facts = [f"{name}: {record['machine'][name]}" for name in FACTS if name in record["machine"]]
    lines = ["; ".join(facts) + ".", ""]
    for case in results.titles:
        lines += [*_case(results, case), ""]
    return "\n".join(lines)


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


def draw(results: Results, case: str, to: Path) -> None:
    """A bar for each program and phase, as an image file."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "staddle"  # else the same figures make another file each time
    names = list(dict.fromkeys(peer for name, _, peer in results.figures if name == case))
    phases = [phase for phase in Phase if any((case, phase, name) in results.figures for name in names)]
    figure = Figure(figsize=(9, 0.6 + 0.22 * len(phases) * (len(names) + 1)), layout="constrained")
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
    figure.savefig(to, metadata={"Date": None})


def written(page: str, results: str) -> str:
    """The page with other results between its marks. Raises ValueError where it has no marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks its marks {BEGIN.strip()} and {END.strip()}")
    return f"{head}{BEGIN}\n{results}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-report", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "results", nargs="*", type=Path, help="files of results (the newest); what a later one has counts"
    )
    given = parser.parse_args(arguments)
    paths = given.results or sorted((Path(__file__).parent / "results").glob("*.json"))[-1:]
    if not paths:
        sys.exit("There are no results: run make bench first.")
    results, record = read_results(paths[0])
    for path in paths[1:]:
        more, _ = read_results(path)
        results.figures.update(more.figures)
        results.titles = more.titles | results.titles
        results.data_bytes = more.data_bytes | results.data_bytes
        results.limits = more.limits | results.limits
    PAGE.write_text(written(PAGE.read_text(), page_of(results, record)))
    PLOTS.mkdir(exist_ok=True)
    for case in results.titles:
        draw(results, case, PLOTS / f"{case}.svg")
    print(f"Wrote {PAGE.name} and {len(results.titles)} plots from {', '.join(path.name for path in paths)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
