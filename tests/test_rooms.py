"""The rooms of the project import downwards only, and each knows no more than it needs.

app, cli → wire → upkeep → session → { chunking | store | catalog | manifest } → types, errors, limits
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TOP: Final = Path(__file__).parents[1]
SOURCES: Final = (TOP / "client" / "staddle", TOP / "server" / "staddle_server")

BASE: Final = frozenset({"types", "errors", "limits", "logs", "threads", "__init__"})
SIBLINGS: Final = frozenset({"store", "catalog", "manifest"})
ABOVE: Final = "app"
"""Every module that lies in no room: what joins the rooms, and what surrounds a server."""
MAY_IMPORT: Final = {
    "base": BASE,
    "store": BASE | {"store"},
    "catalog": BASE | {"catalog"},
    "manifest": BASE | {"manifest"},
    "session": BASE | SIBLINGS | {"session"},
    "upkeep": BASE | SIBLINGS | {"session", "upkeep"},
    "wire": BASE | SIBLINGS | {"session", "upkeep", "wire"},
    ABOVE: BASE | SIBLINGS | {"session", "upkeep", "wire", ABOVE},
}
WHY: Final = {
    "base": "types, errors and limits stand below all rooms, and know none",
    "store": "siblings do not import each other: session joins them, and either can be replaced alone",
    "catalog": "siblings do not import each other: session joins them, and either can be replaced alone",
    "manifest": "siblings do not import each other: session joins them, and either can be replaced alone",
    "session": "one backup or restore from start to commit knows nothing of how calls arrive",
    "upkeep": "what looks after stored backups knows nothing of how calls arrive",
    "wire": "what serves calls knows nothing of how the server was configured and joined",
    ABOVE: "",
}
OUTSIDE: Final = {
    "grpc": (
        frozenset({"wire", ABOVE}),
        "only wire, and what joins it, knows gRPC: the same service must be able to stand behind another protocol",
    ),
    "grpc_health": (frozenset({"wire", ABOVE}), "only wire, and what joins it, knows gRPC"),
    "grpc_reflection": (frozenset({"wire"}), "only wire knows gRPC"),
    "grpc_status": (frozenset({"wire"}), "only wire knows gRPC"),
    "google": (
        frozenset({"wire", ABOVE}),
        "protobuf messages are turned into values in wire, and go no further",
    ),
    "sqlalchemy": (
        frozenset({"catalog"}),
        "SQL is the catalog's own: another database must not touch another room",
    ),
    "alembic": (frozenset({"catalog"}), "SQL is the catalog's own"),
    "sqlite3": (frozenset({"catalog"}), "SQL is the catalog's own"),
    "cryptography": (frozenset({"store", ABOVE}), "sealing is the store's own; above, only TLS needs it"),
    "zstandard": (frozenset({"store"}), "compression is the store's own"),
    "click": (frozenset({ABOVE}), "only the command line talks to a terminal"),
}
OF_THE_CLIENT: Final = {
    "staddle.v1": (
        frozenset({"wire", ABOVE}),
        "protobuf messages are turned into values in wire, and go no further",
    ),
    "staddle._blocks": (
        frozenset({ABOVE}),
        "certificates and keys are read alike on both sides; only TLS needs them",
    ),
    "staddle._given": (
        frozenset({ABOVE}),
        "what people write, copy and mount is read alike on both sides",
    ),
    "staddle._pem": (
        frozenset({ABOVE}),
        "certificates and keys are read alike on both sides; only TLS needs them",
    ),
    "staddle._encoding": (
        frozenset({"wire"}),
        "fields that are written by hand are messages as much as those of the generated code",
    ),
    "staddle._figures": (
        frozenset(MAY_IMPORT),
        "counts, sizes and durations are written and read alike on both sides",
    ),
    "staddle._fitted": (
        frozenset({ABOVE}),
        "only commands write to a terminal, and both do it alike",
    ),
    "staddle._standard": (
        frozenset({ABOVE}),
        "standard streams are opened before anything else, on both sides",
    ),
    "staddle._threads": (
        frozenset({"base"}),
        "pools of threads are the same on both sides, and the server's rooms take them from its own base",
    ),
    "staddle.chunking": (
        frozenset({"session", "wire", "manifest"}),
        "the server cuts and names content as the client does, with the same code",
    ),
}


class Import(NamedTuple):
    """One import: where it stands, and the absolute name of what it brings."""

    path: Path
    line: int
    name: str

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(TOP)}:{self.line}"


def imports(path: Path) -> Iterator[Import]:
    """Every import in a file, also those inside functions; relative ones are made absolute."""
    package = package_of(path)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(path, node.lineno, f"{module}.{alias.name}") for alias in node.names)


def package_of(path: Path) -> list[str]:
    root = next(source for source in SOURCES if path.is_relative_to(source)).parent
    return list(path.relative_to(root).parent.parts)


def room_of(parts: list[str]) -> str:
    """The room of a name below staddle_server, given as its parts: ["store", "pack"]."""
    first = parts[0] if parts else "__init__"
    if first in BASE:
        return "base"
    return first if first in MAY_IMPORT else ABOVE


def broken(found: Import) -> str | None:
    """Why this import of a server module may not be; None: it may."""
    parts = [*package_of(found.path)[1:], found.path.stem]
    room = room_of(parts)
    target = found.name.split(".")
    if target[0] == "staddle_server":
        to = room_of([part for part in target[1:2] if not part.startswith("__version__")])
        allowed = MAY_IMPORT[room]
        if to != "base" and to not in allowed:
            return f"{room} may not import {to}: {WHY[room]}"
        return None
    if target[0] == "staddle":
        name = ".".join(target[:2])
        rooms, why = OF_THE_CLIENT.get(
            name,
            (
                frozenset(),
                "the server uses nothing of the client but the protos' code, how its fields are written, and chunking",
            ),
        )
    else:
        rooms, why = OUTSIDE.get(target[0], (frozenset(MAY_IMPORT), ""))
    return None if room in rooms else f"{room} may not import {found.name}: {why}"


def files(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*.py") if "v1" not in path.parts)


SERVER_FILES: Final = files(SOURCES[1])


def test_the_walk_finds_every_room() -> None:
    found = {room_of([*package_of(path)[1:], path.stem]) for path in SERVER_FILES}
    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SERVER_FILES, ids=lambda path: str(path.relative_to(SOURCES[1])))
def test_a_module_of_the_server_imports_only_what_its_room_may(path: Path) -> None:
    assert [f"{each.where}: {why}" for each in imports(path) if (why := broken(each))] == []


def test_the_client_never_imports_the_server() -> None:
    found = [
        each.where
        for path in files(SOURCES[0])
        for each in imports(path)
        if each.name.split(".")[0] == "staddle_server"
    ]
    assert found == [], "other services install the client without the server"


@pytest.mark.parametrize(
    ("room", "line", "says"),
    [
        ("store", "from staddle_server.catalog import Catalog", "siblings do not import each other"),
        ("store", "from ..catalog.packs import Packs", "siblings do not import each other"),
        ("store", "def f():\n    import staddle_server.manifest.tree", "siblings do not import each other"),
        ("catalog", "from staddle_server import session", "siblings do not import each other"),
        ("session", "import grpc", "only wire"),
        ("session", "from staddle.v1 import service_pb2", "turned into values in wire"),
        ("session", "from staddle_server.config import Settings", "knows nothing of how calls arrive"),
        (
            "wire",
            "from staddle_server.app import run_server",
            "knows nothing of how the server was configured",
        ),
        ("session", "from staddle_server.upkeep import reached", "knows nothing of how calls arrive"),
        ("upkeep", "import grpc", "only wire"),
        ("wire", "import sqlalchemy.orm", "SQL is the catalog's own"),
        ("manifest", "from staddle import Client", "uses nothing of the client"),
    ],
)
def test_an_import_that_breaks_the_rule_is_found_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, line: str, says: str
) -> None:
    source = tmp_path / "staddle_server"
    path = source / room / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    monkeypatch.setattr("test_rooms.SOURCES", (source,))
    (why,) = [broken(each) for each in imports(path)]
    assert why is not None
    assert says in why
