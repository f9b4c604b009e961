"""The rooms of both sides import downwards only, siblings never import each other, and each imports only what it needs.

client: command → facade → { _backup | _restore | _upload } → { _fs | _transport } → _protocol → base
server: cli → app → api → upkeep → { upload | restore } → tenancy → { store | catalog | manifest } → base
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

TOP: Final = Path(__file__).parents[1]


class Side(NamedTuple):
    """One of the two packages, and its rooms: what each may import besides itself and the base, and the reason."""

    source: Path
    below: dict[str, frozenset[str]]
    why: dict[str, str]
    facade: str
    """The room of the modules that lie beside the rooms."""
    base: frozenset[str]
    """Packages and modules that belong to the base."""

    @property
    def package(self) -> str:
        return self.source.name

    def room_of(self, parts: list[str]) -> str:
        """The room of a name below the package, given as its parts: ["store", "pack"]."""
        first = parts[0] if parts else self.facade
        if first in self.base:
            return "base"
        return first if first in self.below else self.facade

    def files(self) -> list[Path]:
        return sorted(path for path in self.source.rglob("*.py") if "v1" not in path.parts)


def stairs(*floors: str | tuple[str, ...]) -> dict[str, frozenset[str]]:
    """What each room may import, where each floor may import all floors after it."""
    rooms = [(floor,) if isinstance(floor, str) else floor for floor in floors]
    return {
        room: frozenset(lower for later in rooms[place + 1 :] for lower in later)
        for place, floor in enumerate(rooms)
        for room in floor
    }


CLIENT: Final = Side(
    TOP / "client" / "staddle",
    stairs(
        "command",
        "facade",
        ("_backup", "_restore", "_upload"),
        ("_fs", "_transport"),
        "_protocol",
        "base",
    ),
    {
        "command": "",
        "facade": "other services import the facade without the command",
        "_backup": "backup, restore and upload do not know each other: the facade joins them",
        "_restore": "backup, restore and upload do not know each other: the facade joins them",
        "_upload": "backup, restore and upload do not know each other: the facade joins them",
        "_fs": "the file system knows no server, and no backup: a walk takes an observer",
        "_transport": "calls and retries know no files: the same calls serve every room above",
        "_protocol": "messages and values know neither connections nor files",
        "base": "errors, types and figures know no room",
    },
    "facade",
    frozenset({"_base", "_errors", "_types", "chunking", "v1", "__version__"}),
)
SERVER: Final = Side(
    TOP / "server" / "staddle_server",
    stairs(
        ("cli", "demo"),
        "app",
        "api",
        "upkeep",
        ("upload", "restore"),
        "tenancy",
        ("store", "catalog", "manifest"),
        "base",
    ),
    {
        "cli": "",
        "demo": "",
        "app": "the service is joined without the commands that start it",
        "api": "what serves calls does not know how the server was configured and joined",
        "upkeep": "what looks after stored backups does not know how calls arrive",
        "upload": "one backup from start to commit does not know how calls arrive, and restores do not know uploads",
        "restore": "one restore or look does not know how calls arrive, and uploads do not know restores",
        "tenancy": "a tenant's keys and chunks serve uploads, restores and upkeep alike, and know none of them",
        "store": "siblings do not import each other: tenancy joins them, and either can be replaced alone",
        "catalog": "siblings do not import each other: tenancy joins them, and either can be replaced alone",
        "manifest": "siblings do not import each other: tenancy joins them, and either can be replaced alone",
        "base": "types, errors and limits know no room",
    },
    "app",
    frozenset({"base", "__version__"}),
)
SIDES: Final = (CLIENT, SERVER)
GRPC_ONLY: Final = (
    "only api/grpc, and what joins it, knows gRPC: the same service must be able to stand behind HTTP"
)
TRANSPORTS: Final = ("staddle_server.api.grpc.", "staddle_server.api.http.")
"""The parts of the room api that nothing else in it imports, and that do not import each other."""
HTTP_ONLY: Final = "only api/http, and what joins it, knows HTTP: a server without the extra must start"
OUTSIDE: Final = {
    ("staddle_server", "grpc"): (frozenset({"api.grpc", "app"}), GRPC_ONLY),
    ("staddle_server", "grpc_health"): (frozenset({"api.grpc", "app"}), GRPC_ONLY),
    ("staddle_server", "grpc_reflection"): (frozenset({"api.grpc"}), GRPC_ONLY),
    ("staddle_server", "grpc_status"): (frozenset({"api.grpc"}), GRPC_ONLY),
    ("staddle_server", "starlette"): (frozenset({"api.http"}), HTTP_ONLY),
    ("staddle_server", "uvicorn"): (frozenset({"api.http"}), HTTP_ONLY),
    ("staddle_server", "jinja2"): (frozenset({"api.http"}), HTTP_ONLY),
    ("staddle_server", "markupsafe"): (frozenset({"api.http"}), HTTP_ONLY),
    ("staddle_server", "opentelemetry"): (
        frozenset({"app"}),
        "rooms report to an observer, and know no tracing",
    ),
    ("staddle_server", "prometheus_client"): (frozenset({"api.http"}), HTTP_ONLY),
    ("staddle_server", "google"): (
        frozenset({"api", "app"}),
        "protobuf messages are turned into values in api, and go no further",
    ),
    ("staddle_server", "sqlalchemy"): (
        frozenset({"catalog"}),
        "SQL is the catalog's own: another database must not touch another room",
    ),
    ("staddle_server", "alembic"): (frozenset({"catalog"}), "SQL is the catalog's own"),
    ("staddle_server", "psycopg"): (frozenset({"catalog"}), "SQL is the catalog's own"),
    ("staddle_server", "sqlite3"): (frozenset({"catalog"}), "SQL is the catalog's own"),
    ("staddle_server", "cryptography"): (
        frozenset({"store", "app"}),
        "sealing is the store's own; above, only TLS needs it",
    ),
    ("staddle_server", "zstandard"): (frozenset({"store"}), "compression is the store's own"),
    ("staddle_server", "click"): (frozenset({"cli"}), "only the command line talks to a terminal"),
    ("staddle", "grpc"): (frozenset({"_transport"}), "only the transport handles gRPC and its errors"),
    ("staddle", "opentelemetry"): (frozenset({"_transport"}), "only calls carry the context of a trace"),
    ("staddle", "click"): (frozenset({"command"}), "only the command talks to a terminal"),
    ("staddle", "rich"): (frozenset({"command"}), "only the command talks to a terminal"),
}
"""By package and by what is imported from outside: the rooms (or parts of one) that may, and why no other."""
OF_THE_CLIENT: Final = {
    "staddle.v1": (
        frozenset({"api", "app"}),
        "protobuf messages are turned into values in api, and go no further",
    ),
    "staddle._protocol.archive_formats": (
        frozenset({"api"}),
        "an archive from the server and one from the client are the same",
    ),
    "staddle._protocol.archive_tar": (
        frozenset({"api"}),
        "an archive from the server and one from the client are the same",
    ),
    "staddle._protocol.archive_zip": (
        frozenset({"api"}),
        "an archive from the server and one from the client are the same",
    ),
    "staddle._protocol.encoding": (
        frozenset({"api"}),
        "fields that are written by hand are messages as much as those of the generated code",
    ),
    "staddle._protocol.columns": (
        frozenset({"api"}),
        "columns are messages, built alike on both sides",
    ),
    "staddle._base.figures": (
        frozenset(SERVER.below),
        "counts, sizes and durations are written and read alike on both sides",
    ),
    "staddle._base.given_files": (
        frozenset({"app", "cli", "store"}),
        "what people write, copy and mount is read alike on both sides; a store has a file of credentials",
    ),
    "staddle._base.interpreter": (
        frozenset({"cli"}),
        "how an interpreter was built is looked up alike for a user, the benchmarks and the Makefile",
    ),
    "staddle._base.pem_blocks": (
        frozenset({"app"}),
        "certificates and keys are read alike on both sides; only TLS needs them",
    ),
    "staddle._base.pem_files": (
        frozenset({"app", "store"}),
        "certificates and keys are read alike on both sides; only TLS needs them, also that of an object store",
    ),
    "staddle._base.printable": (
        frozenset({"api"}),
        "an odd name looks the same in a terminal and on a page",
    ),
    "staddle._base.standard_streams": (
        frozenset({"app", "cli"}),
        "standard streams are opened before anything else, on both sides",
    ),
    "staddle._base.terminal": (
        frozenset({"cli"}),
        "only commands write to a terminal, and both do it alike",
    ),
    "staddle._base.threads": (
        frozenset({"base"}),
        "pools of threads are the same on both sides, and the server's rooms take them from its own base",
    ),
    "staddle.chunking": (
        frozenset({"upload", "restore", "tenancy", "api", "manifest"}),
        "the server cuts and names content as the client does, with the same code",
    ),
}
"""What the server may use of the client, in which rooms, and why."""


class Import(NamedTuple):
    """One import: its place, and the absolute name that it imports."""

    path: Path
    line: int
    name: str

    @property
    def where(self) -> str:
        return f"{self.path.name}:{self.line}"


@cache
def import_statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Those of a module, also inside functions."""
    tree = ast.parse(source)
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(path: Path, side: Side) -> Iterator[Import]:
    """Every import in a file; relative ones are made absolute."""
    package = list(path.relative_to(side.source.parent).parent.parts)
    for node in import_statements(path.read_text()):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        else:
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(path, node.lineno, f"{module}.{alias.name}") for alias in node.names)


def module_of(path: Path, side: Side) -> list[str]:
    """The name of a file's module below its package, in parts; without the last part for a package itself."""
    parts = list(path.relative_to(side.source).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def broken(found: Import, side: Side) -> str | None:
    """Why this import is forbidden; None if it is allowed."""
    room = side.room_of(module_of(found.path, side))
    here = ".".join([side.package, *module_of(found.path, side)])
    target = found.name.split(".")
    if target[0] == side.package:
        to = side.room_of(target[1:])
        for transport in TRANSPORTS:
            if to == room and found.name.startswith(transport) and not here.startswith(transport):
                return f"{here} may not import {found.name}: the gate and what answers know no transport"
        if to == room or to in side.below[room]:
            return None
        return f"{room} may not import {to}: {side.why[room]}"
    if side is SERVER and target[0] == CLIENT.package:
        for name, (rooms, why) in OF_THE_CLIENT.items():
            if found.name == name or found.name.startswith(f"{name}."):
                return None if room in rooms else f"{room} may not import {found.name}: {why}"
        return f"{room} may not import {found.name}: the server uses nothing else of the client"
    if target[0] in {each.package for each in SIDES}:
        return f"{room} may not import {found.name}: other services install the client without the server"
    rooms, why = OUTSIDE.get((side.package, target[0]), (frozenset(side.below), ""))
    part = ".".join(module_of(found.path, side)[:2])
    return None if {room, part} & rooms else f"{room} may not import {found.name}: {why}"


ALL_FILES: Final = [(side, path) for side in SIDES for path in side.files()]


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.package)
def test_every_room_has_a_module(side: Side) -> None:
    assert {side.room_of(module_of(path, side)) for path in side.files()} == set(side.below)


@pytest.mark.parametrize(
    ("side", "path"), ALL_FILES, ids=[str(path.relative_to(side.source.parent)) for side, path in ALL_FILES]
)
def test_a_module_imports_only_what_its_room_may(side: Side, path: Path) -> None:
    assert [f"{each.where}: {why}" for each in imports(path, side) if (why := broken(each, side))] == []


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.package)
def test_no_modules_import_each_other_in_a_circle(side: Side) -> None:
    """This includes imports inside functions and for types: related code shares a module, shared code is below."""
    known = {".".join([side.package, *module_of(path, side)]): path for path in side.files()}
    arrows = {
        name: {to for each in imports(path, side) if (to := owner_of(each.name, known)) and to != name}
        for name, path in known.items()
    }
    assert circles(arrows) == []


def owner_of(name: str, known: dict[str, Path]) -> str | None:
    """The module that an imported name is or is in; None for generated code and other packages."""
    if name.startswith("staddle.v1."):
        return None
    while name not in known:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


NAMED_APART: Final = {
    CLIENT.package: {*CLIENT.below, "base"},
    SERVER.package: {"api", "app", "cli", "upkeep", "upload", "restore", "tenancy"},
}
"""The rooms of each side in which no class has the name of another class of that side, in any room."""
ROW_AND_THING: Final = frozenset({"Tenant", "Tenants", "Uploads"})
"""Names that the server's catalog has for rows, and the rooms above for what the rows describe."""


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.package)
def test_every_class_has_a_unique_name(side: Side) -> None:
    """This includes classes that are private to a module: a search for a name finds one thing."""
    found: dict[str, list[list[str]]] = {}
    for path in side.files():
        for name in re.findall(r"^ *class _*(\w+)", path.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(module_of(path, side))
    shared = {
        name: modules
        for name, modules in found.items()
        if len(modules) > 1
        and name not in ROW_AND_THING
        and any(side.room_of(module) in NAMED_APART[side.package] for module in modules)
    }
    assert shared == {}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach one another, each sorted (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for to in sorted(arrows[name]):
            if to not in index:
                visit(to)
                low[name] = min(low[name], low[to])
            elif to in stack:
                low[name] = min(low[name], index[to])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in arrows:
        if name not in index:
            visit(name)
    return sorted(found)


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("side", "room", "line", "says"),
    [
        (SERVER, "store", "from staddle_server.catalog import Catalog", "siblings do not import each other"),
        (SERVER, "store", "from ..catalog.packs import Packs", "siblings do not import each other"),
        (
            SERVER,
            "store",
            "def f():\n    import staddle_server.manifest.tree",
            "siblings do not import each other",
        ),
        (SERVER, "catalog", "from staddle_server import tenancy", "siblings do not import each other"),
        (SERVER, "upload", "import grpc", "only api/grpc"),
        (SERVER, "upload", "from staddle.v1 import service_pb2", "turned into values in api"),
        (
            SERVER,
            "upload",
            "from staddle_server.restore.browse import Browser",
            "restores do not know uploads",
        ),
        (SERVER, "tenancy", "from staddle_server.upload.writer import Writer", "know none of them"),
        (
            SERVER,
            "api",
            "from staddle_server.app.run import run_server",
            "does not know how the server was configured",
        ),
        (
            SERVER,
            "restore",
            "from staddle_server.upkeep.gc import mark",
            "does not know how calls arrive",
        ),
        (SERVER, "upkeep", "import grpc", "only api/grpc"),
        (SERVER, "api", "import grpc", "only api/grpc"),
        (SERVER, "api", "from grpc_status import rpc_status", "only api/grpc"),
        (SERVER, "api", "from staddle_server.api.grpc.status import status_of", "know no transport"),
        (SERVER, "api", "import sqlalchemy.orm", "SQL is the catalog's own"),
        (SERVER, "manifest", "from staddle import Client", "nothing else of the client"),
        (CLIENT, "_backup", "from staddle._restore.run import Restore", "do not know each other"),
        (CLIENT, "_backup", "from staddle._client import Client", "do not know each other"),
        (CLIENT, "_upload", "from staddle import Client", "do not know each other"),
        (CLIENT, "_fs", "from staddle._transport.calls import Calls", "knows no server"),
        (CLIENT, "_fs", "from staddle._backup.cache import recorder", "takes an observer"),
        (CLIENT, "_protocol", "from staddle._fs.found import Found", "neither connections nor files"),
        (CLIENT, "_base", "from staddle._protocol import convert", "know no room"),
        (CLIENT, "_restore", "import grpc", "only the transport"),
        (CLIENT, "_fs", "import staddle_server.base.limits", "without the server"),
    ],
)
def test_a_forbidden_import_is_found_with_the_reason(
    tmp_path: Path, side: Side, room: str, line: str, says: str
) -> None:
    elsewhere = side._replace(source=tmp_path / side.package)
    path = elsewhere.source / room / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    (why,) = [
        broken(each._replace(path=side.source / room / "x.py"), side) for each in imports(path, elsewhere)
    ]
    assert why is not None
    assert says in why
