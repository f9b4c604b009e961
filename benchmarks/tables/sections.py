"""The sections of docs/performance.md that are made from results: one for each kind of benchmark, between its marks.

A benchmark saves what it measured with `save`, under the name of its kind; `benchmarks/report.py` lists the sections.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS: Final = Path(__file__).parents[1] / "results"
PEERS: Final = "peers"
"""The kind of results that name none."""
FACTS: Final = ("processor", "memory", "file system", "system", "libraries", "compared", "file cache")

Record = Mapping[str, Any]
"""A file of results: its "kind", "machine" (facts in words), and what its benchmark measured."""
Render = Callable[[Sequence[Record]], str]
"""Makes Markdown of records of one kind. What a later record has counts instead of the same of an earlier one."""
Draw = Callable[[Sequence[Record], Path], Iterable[Path]]
"""Writes the plots of the same records into a directory, and names them."""


class Section(NamedTuple):
    """A part of the page: which kind of results it shows, the word in its marks, and how it is made."""

    kind: str
    mark: str
    render: Render
    draw: Draw

    @property
    def begin(self) -> str:
        return f"<!-- {self.mark}: written by make bench-report -->\n"

    @property
    def end(self) -> str:
        return f"<!-- end of {self.mark} -->\n"

    def written(self, page: str, text: str) -> str:
        """The page with other text between the marks. Raises ValueError where it lacks them."""
        head, begin, rest = page.partition(self.begin)
        _, end, tail = rest.partition(self.end)
        if not begin or not end:
            raise ValueError(f"the page lacks its marks {self.begin.strip()} and {self.end.strip()}")
        return f"{head}{begin}\n{text}\n{end}{tail}"


# --- files of results


def save(kind: str, record: Record, directory: Path | None = None) -> Path:
    """Writes all single measurements of a run; medians and ratios can be had from them."""
    directory = directory or RESULTS
    directory.mkdir(exist_ok=True)
    stem = "" if kind == PEERS else f"{kind}-"
    path = directory / f"{stem}{time.strftime('%Y-%m-%dT%H-%M-%S')}.json"
    path.write_text(json.dumps({"kind": kind, **record}, indent=1) + "\n")
    return path


def load(path: Path) -> Record:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def kind_of(record: Record) -> str:
    return str(record.get("kind", PEERS))


def newest(directory: Path | None = None) -> list[Path]:
    """The newest file of each kind, by the time in its name."""
    found: dict[str, Path] = {}
    for path in sorted((directory or RESULTS).glob("*.json")):
        found[kind_of(load(path))] = path
    return list(found.values())


# --- what sections share


def facts(record: Record) -> str:
    """What was measured with, in a line."""
    machine = record["machine"]
    return "; ".join(f"{name}: {machine[name]}" for name in FACTS if name in machine) + "."


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def in_columns(head: list[str], rows: list[list[str]]) -> str:
    """The same table for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(widths[at]) for at, cell in enumerate(row) if at)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def figure(width: float, height: float) -> "Figure":
    """A figure to draw in. The same figures make the same file, if `keep` writes it."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "staddle"
    return Figure(figsize=(width, height), layout="constrained")


def keep(drawn: "Figure", to: Path) -> Path:
    """Writes a figure as SVG, without the time."""
    drawn.savefig(to, metadata={"Date": None})
    return to
