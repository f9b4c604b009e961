"""The top level has only the documented entries, the version is in one place, and the files for contributors' tools are valid."""

import ast
import re
import tomllib
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
import staddle_server
import yaml

TOP: Final = Path(__file__).parents[1]
NAMED: Final = {
    "protos": "the protocol",
    "server": "the server, and how to deploy it",
    "client": "the library and the command",
    "tests": "",
    "benchmarks": "",
    "docs": "",
    "Makefile": "every task",
    "pyproject.toml": "what to install, and the settings of every tool",
    "README.md": "for newcomers",
    "CHANGELOG.md": "for users",
    "CONTRIBUTING.md": "for contributors",
    "SECURITY.md": "how to report a vulnerability",
    "LICENSE": "",
}
"""What may lie at the top, besides names that begin with a dot and what .gitignore names."""


def ignored(name: str) -> bool:
    patterns = [line.strip("/") for line in (TOP / ".gitignore").read_text().splitlines()]
    return any(fnmatch(name, pattern) for pattern in patterns)


def test_the_top_level_has_only_the_documented_entries() -> None:
    found = {each.name for each in TOP.iterdir() if not each.name.startswith(".")}
    assert {name for name in found if not ignored(name)} == set(NAMED)


def test_the_version_is_written_once_and_the_package_is_installed_with_it() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert version("staddle") == staddle_server.__version__
    literals = [
        f"{path.relative_to(TOP)}: {line}"
        for source in (TOP / "client", TOP / "server")
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"_{0,2}version_{0,2}\b.*= *[\"']\d", line, re.IGNORECASE)
    ]
    assert literals == [f'server/staddle_server/__init__.py: __version__ = "{staddle_server.__version__}"']


@pytest.mark.parametrize("name", ["Makefile", "pyproject.toml", ".ci/run", ".github/workflows/release.yml"])
def test_the_files_named_in_tool_settings_exist(name: str) -> None:
    text = (TOP / name).read_text()
    paths = set(re.findall(r"(?<![\w/.-])(?:tests|protos|client|server|\.ci)/[\w/.-]*\w(?!\*)", text))
    assert paths
    assert [path for path in sorted(paths) if not (TOP / path).exists()] == []


# --- files for contributors' tools

WORKFLOWS: Final = sorted((TOP / ".github" / "workflows").glob("*.yml"))


def test_pre_commit_runs_what_make_check_runs() -> None:
    settings = yaml.safe_load((TOP / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in settings["repos"] for hook in repository["hooks"]]
    assert [(hook["entry"], hook["language"]) for hook in hooks] == [("make check", "system")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_read_access_only_and_pin_their_actions(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/checkout@v4"))
            # Foreign input, such as the name of a tag, reaches a shell only as a variable.
            assert "${{" not in step.get("run", "")


def test_the_workflows_run_the_ci_script_and_build_the_release_on_a_tag() -> None:
    read = {path.name: yaml.safe_load(path.read_text()) for path in WORKFLOWS}
    assert [step["run"] for step in read["ci.yml"]["jobs"]["run"]["steps"] if "run" in step] == [".ci/run"]
    release = read["release.yml"]
    assert release[True] == {"push": {"tags": ["v*"]}}  # `on` is a boolean in YAML 1.1
    commands = "\n".join(step.get("run", "") for job in release["jobs"].values() for step in job["steps"])
    assert "python -m build" in commands
    (dockerfile,) = re.findall(r"docker build --file (\S+)", commands)
    assert (TOP / dockerfile).exists()


@pytest.mark.parametrize(
    "path", sorted((TOP / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_every_issue_form_is_valid_and_has_a_field(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked) > 0
    assert any(field.get("validations", {}).get("required") for field in asked)


LINES_MAX: Final = 500
FUNCTION_LINES_MAX: Final = 60
LONG_FOR_A_REASON: Final = {
    "server/staddle_server/catalog/migrations/versions": "a migration is one list of tables"
}


def python_files() -> list[Path]:
    folders = [TOP / name for name in ("client", "server", "tests", "benchmarks")]
    found = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for path in found if "v1" not in path.parts and "node_modules" not in path.parts]


def test_no_file_is_so_long_that_it_holds_several_subjects() -> None:
    lines = {str(path.relative_to(TOP)): path.read_bytes().count(b"\n") for path in python_files()}
    assert {path: count for path, count in lines.items() if count > LINES_MAX} == {}


PROTO_NAMES: Final = {"resources_pb2 as pb", "service_pb2 as sv"}


def test_no_two_modules_of_the_tests_share_a_name() -> None:
    """All of them are imported by their bare names, so the second one would be the first one again."""
    names = [path.name for path in (TOP / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def test_the_protos_are_imported_under_one_pair_of_names() -> None:
    renamed = {
        f"{path.relative_to(TOP)}: {name}"
        for path in python_files()
        for name in re.findall(r"^ *from staddle\.v1 import (\w+ as \w+)$", path.read_text(), re.MULTILINE)
        if name not in PROTO_NAMES
    }
    assert renamed == set()


STRING_OR_COMMENT: Final = re.compile(
    r"""\#[^\n]* | (\"{3}|'{3}) (?:[^\\] | \\.)*? \1 | "(?:\\. | [^"\\\n])*" | '(?:\\. | [^'\\\n])*'""",
    re.DOTALL | re.VERBOSE,
)
STATEMENT: Final = re.compile(r"( *)((?:async )?def )?[\w@]")


def lines_of_functions(source: str) -> list[int]:
    """How many lines each function has at most: up to the next statement that is not in it. To parse takes ten times as long."""
    found: list[int] = []
    inside: list[tuple[int, int]] = []
    code = STRING_OR_COMMENT.sub(lambda part: "\n" * part[0].count("\n"), source)
    for number, line in enumerate([*code.split("\n"), "end"]):
        if statement := STATEMENT.match(line):
            indent = statement.end(1)
            while inside and inside[-1][0] >= indent:
                found.append(number - inside.pop()[1])
            if statement[2]:
                inside.append((indent, number))
    return found


def long_functions(source: str) -> list[str]:
    return [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]


def test_no_function_is_longer_than_a_screen() -> None:
    sources = {
        str(path.relative_to(TOP)): path.read_text()
        for path in python_files()
        if str(path.parent.relative_to(TOP)) not in LONG_FOR_A_REASON
    }
    lines = {path: lines_of_functions(source) for path, source in sources.items()}
    assert sum(map(len, lines.values())) > 5_000
    suspected = [path for path, counts in lines.items() if max(counts, default=0) > FUNCTION_LINES_MAX]
    found = {path: long_functions(sources[path]) for path in suspected}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_function_that_is_too_long_is_found_whatever_its_strings_hold() -> None:
    filling = "        x = 1\n" * (FUNCTION_LINES_MAX // 2 - 6)
    text = "        x = '''\ndef g():\n    \\'''\"\n'''  # \"\"\" it's\n"
    before, after = "class A:\n    async def f(\n        self,\n    ):\n", "\ndef h():\n    pass\n"
    for size, expected in ((FUNCTION_LINES_MAX, []), (FUNCTION_LINES_MAX + 1, ["f, line 2"])):
        body = filling + text + filling
        source = before + body + "        x = 1\n" * (size - 3 - body.count("\n")) + after
        assert long_functions(source) == expected
        assert sorted(lines_of_functions(source)) == [3, size + 1]  # with the empty line behind each
