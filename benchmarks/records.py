"""Results that stay: a file of JSON for each run, in benchmarks/results/, and how plots of them are drawn."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS: Final = Path(__file__).parent / "results"


def write(kind: str, facts: Mapping[str, str], figures: Mapping[str, Any]) -> Path:
    """Writes what was measured, and on which machine, to KIND-TIME.json; gives its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{time.strftime('%Y-%m-%dT%H-%M-%S')}.json"
    path.write_text(json.dumps({"kind": kind, "machine": dict(facts), **figures}, indent=1) + "\n")
    return path


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


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, without a window."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "staddle"  # else the same figures make another file each time
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", to: Path) -> None:
    """Writes an image file that is the same for the same figure."""
    figure.savefig(to, metadata={"Date": None})
