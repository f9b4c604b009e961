"""docs/architecture.md draws the rooms of the import rule, and names existing modules and functions."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest
from doc_pages import DOCS, TOP, blocks
from test_rooms import CLIENT, OF_THE_CLIENT, SERVER, Side
from wire_transcript import SERVICE

PAGE: Final = DOCS / "architecture.md"
TEXT: Final = PAGE.read_text()
PREFIXES: Final = {"c_": CLIENT, "s_": SERVER}
CODE: Final = re.compile(r"`([^`\n]+)`")


def section(title: str) -> str:
    """The text below a heading, up to the next heading of its level or above."""
    marks = re.search(rf"^(#+) {re.escape(title)}\n", TEXT, re.MULTILINE)
    assert marks, title
    return re.split(rf"^#{{2,{len(marks[1])}}} ", TEXT[marks.end() :], maxsplit=1, flags=re.MULTILINE)[0]


# --- the picture


def drawn(picture: str) -> tuple[dict[str, str], set[tuple[str, str]], set[tuple[str, str]]]:
    """The parts of a picture: nodes with their labels, arrows, and dotted arrows."""
    nodes = dict(re.findall(r'^ +(\w+)\["([^"]+)"\]$', picture, re.MULTILINE))
    arrows: dict[str, set[tuple[str, str]]] = {"-->": set(), "-.->": set()}
    for froms, kind, tos in re.findall(r"^ +([\w &]+) (-->|-\.->) ([\w &]+)$", picture, re.MULTILINE):
        arrows[kind] |= {(a, b) for a in froms.split(" & ") for b in tos.split(" & ")}
    return nodes, arrows["-->"], arrows["-.->"]


def reached(arrows: set[tuple[str, str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = {start}
    while ahead:
        ahead = {to for begin, to in arrows if begin in ahead} - found
        found |= ahead
    return found


PICTURE: Final = next(block.text for block in blocks(PAGE) if block.words == ("mermaid",))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_picture_has_the_rooms_of_the_import_rule_and_their_arrows(prefix: str) -> None:
    nodes, arrows, _ = drawn(PICTURE)
    side = PREFIXES[prefix]
    ours = {node: label for node, label in nodes.items() if node.startswith(prefix)}
    assert sorted(ours.values()) == sorted(side.below)
    assert {ours[node]: {nodes[to] for to in reached(arrows, node)} for node in ours} == {
        room: set(below) for room, below in side.below.items()
    }


def test_the_picture_shows_what_the_server_uses_of_the_client() -> None:
    nodes, _, dotted = drawn(PICTURE)
    assert {begin for begin, _ in dotted} == {"server"}
    assert {nodes[to] for _, to in dotted} == {CLIENT.room_of(name.split(".")[1:]) for name in OF_THE_CLIENT}


def test_every_line_of_the_picture_is_understood() -> None:
    nodes, arrows, dotted = drawn(PICTURE)
    assert set(nodes) | {"server"} == {each for arrow in arrows | dotted for each in arrow}
    known = re.compile(
        r'^(flowchart TD| *subgraph \w+\["[\w/]+"\]| *end| +\w+\["\w+"\]| +[\w &]+ (-->|-\.->) [\w &]+)$'
    )
    assert [line for line in PICTURE.splitlines() if not known.match(line)] == []


# --- the tables of rooms


def packages(side: Side) -> set[str]:
    """Every directory with modules, and the rooms that are a module."""
    below = {str(path.parent.relative_to(side.source)) for path in side.files()}
    modules = {f"{room}.py" for room in side.below if (side.source / f"{room}.py").exists()}
    return {each for each in below if each != "." and not each.endswith("versions")} | modules


@pytest.mark.parametrize(("title", "side"), [("Client", CLIENT), ("Server", SERVER)])
def test_every_room_and_every_subroom_has_a_line(title: str, side: Side) -> None:
    rows = [row for row in re.findall(r"^\| ([^|]+) \|", section(title), re.MULTILINE) if row[:3] != "---"]
    assert {row.strip("`") for row in rows} - {"room", "facade"} == packages(side)


# --- the ways, and where to add


def file_of(path: str) -> Path | None:
    """What a path of the page names: below one of the packages, or below the top; None: nothing, or two things."""
    found = [each / path for each in (CLIENT.source, SERVER.source, TOP) if (each / path).exists()]
    return found[0] if len(found) == 1 else None


def names_of(path: str) -> set[str]:
    """The classes, functions and constants of a module, and the methods, alone and as Class.method."""
    found: set[str] = set()
    file = file_of(path)
    assert file is not None, path
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            found |= {node.name} | methods | {f"{node.name}.{name}" for name in methods}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return found


@pytest.mark.parametrize("title", ["The way of a backup", "The way of a restore"])
def test_each_way_has_ten_lines_and_names_what_its_modules_have(title: str) -> None:
    lines = re.findall(r"^\d+\. (.+(?:\n +.+)*)$", section(title), re.MULTILINE)
    assert len(lines) == 10
    for line in lines:
        module = ""
        for word in CODE.findall(line):
            if word.endswith(".py"):
                module = word
            else:
                known = set(SERVICE.methods_by_name) | (names_of(module) if module else set())
                assert word in known, f"{module} has no {word}"


def test_every_path_that_the_page_names_exists() -> None:
    words = set(CODE.findall(re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)))
    paths = {word for word in words if ("/" in word or word.endswith(".py")) and "…" not in word}
    assert len(paths) > 40
    assert [path for path in sorted(paths) if file_of(path) is None] == []


def test_every_table_that_a_new_feature_extends_exists() -> None:
    named = re.findall(r"`(\w+)`(?:\s+or\s+`(\w+)`)?\s+(?:of|in)\s+`([\w/]+\.py)`", TEXT)
    assert {table for table, *_ in named} >= {"methods", "RULES", "METHODS", "COMMANDS", "ARGUMENTS"}
    missing = [
        f"{path}: {name}" for *tables, path in named for name in tables if name and name not in names_of(path)
    ]
    assert missing == []
