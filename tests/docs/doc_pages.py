"""Reads the documents: their blocks of code, their links and headings, and what a block of output stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = [*sorted(TOP.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
ELLIPSIS = "…"

# Values that differ between runs, in the order of replacement.
_VARYING = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "TIME"),
    (r"\b[0-9a-f]{8}(?:[0-9a-f]{24})?\b", "ID"),
    (r"\S+:(?=/|-$)", "HOST:"),
    (r"\d[\d,.]* (?:[KMG]iB|B)\b", "SIZE"),
    (r"\d[\d,.]*", "N"),
    (r"\s+", " "),
)


@dataclass(frozen=True)
class Block:
    """A fenced block: the words behind its fence, the text in it, and the line of the fence."""

    words: tuple[str, ...]
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the lines that are shown below it."""

    text: str
    shown: tuple[str, ...]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    found = re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE)
    return [Block(tuple(m[1].split()), m[2], text.count("\n", 0, m.start()) + 1) for m in found]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block: lines that begin with `$ `, and what stands below each."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        first, *shown = part.splitlines()
        while first.endswith("\\"):
            first = first[:-1] + shown.pop(0)
        yield Command(first, tuple(shown))


def fixed(line: str) -> str:
    """A line of output without values that differ between runs: ids, times, sizes, numbers, the host, the spacing."""
    for pattern, word in _VARYING:
        line = re.sub(pattern, word, line)
    return line.strip()


def missing_line(shown: tuple[str, ...], output: str) -> str | None:
    """The first shown line that is missing from the output, in this order; `…` stands for any lines."""
    lines = iter([fixed(line) for line in output.splitlines()])
    for line in shown:
        if line.strip() != ELLIPSIS and fixed(line) not in lines:
            return line
    return None


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Where a page's links lead."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)
