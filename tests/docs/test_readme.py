"""README.md works when pasted, shows the real output, and no document has a broken link."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import PAGES, TOP, Block, anchors, blocks, commands, links, missing_line
from google.protobuf import json_format
from staddle.v1 import errors_pb2, service_pb2
from staddle_server import __version__
from wire_transcript import SERVICE, Transcript, json_values

README = TOP / "README.md"
BIN = Path(sys.executable).parent
SQL = "create table orders (id int);\n"
# In place of the one program of the README that a machine may lack: it knows one database.
PG_DUMP = f"""#!/bin/sh
[ "$1" = orders ] || {{ echo "pg_dump: error: database \\"$1\\" does not exist" >&2; exit 1; }}
printf '%s' '{SQL}'
"""


class Shell:
    """Runs what the README shows, at the top of the project, with /tmp as a directory of the test's own."""

    def __init__(self, tmp_path: Path, config: Path) -> None:
        self.tmp = tmp_path / "tmp"
        self.tmp.mkdir()
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "pg_dump").write_text(PG_DUMP)
        (programs / "pg_dump").chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}
        path = os.pathsep.join([str(programs), str(BIN), inherited["PATH"]])
        self.environment = {**inherited, "PATH": path, "STADDLE_CONFIG": str(config), "LC_ALL": "C.UTF-8"}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command; what it printed and complained of comes in one stream, as a person sees it."""
        done = subprocess.run(
            [each.replace("/tmp/staddle-try", f"{self.tmp}/staddle-try") for each in command],
            cwd=TOP,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        done.stdout = done.stdout.replace(f"{self.tmp}/", "/tmp/")
        return done

    def backups(self, dataset: str) -> list[str]:
        """The short ids of a dataset's backups, oldest first."""
        lines = self.run("staddle", "list", dataset, "--json").stdout.splitlines()
        return [each["id"][:8] for each in map(json.loads, lines) if "id" in each][::-1]


@pytest.fixture
def shell(server, tmp_path: Path) -> Shell:
    return Shell(tmp_path, server.config)


def of_kind(*words: str) -> list[Block]:
    """The README's blocks that begin with these words."""
    return [block for block in blocks(README) if block.words[: len(words)] == words]


# --- the shown commands


def test_the_commands_of_the_readme_work_when_pasted_and_print_what_it_shows(shell: Shell) -> None:
    shown_ids = ["a9e0d846", "0a25318f"]
    for block in of_kind("console"):
        for command in commands(block):
            text = command.text
            if any(each in text for each in shown_ids):
                for shown, made in zip(shown_ids, shell.backups("docs"), strict=True):
                    text = text.replace(shown, made)
            done = shell.run("bash", "-c", text)
            assert (done.returncode != 0) == ("fails" in block.words), f"$ {text}\n{done.stdout}"
            assert missing_line(command.shown, done.stdout) is None, f"$ {text}\n{done.stdout}"
    assert (shell.tmp / "staddle-try" / "before" / "fidelity.md").read_bytes() == (
        TOP / "docs" / "fidelity.md"
    ).read_bytes()
    assert shell.run("staddle", "cat", "orders-db", "dump.sql").stdout.endswith(SQL)


def test_a_shown_line_that_is_not_printed_is_noticed() -> None:
    came = "Backup 0a1b2c3d of docs (full, number 7): 2 entries, 1.5 MiB.\n"
    assert missing_line(("Backup a9e0d846 of docs (full, number 1): 5 entries, 36.2 KiB.",), came) is None
    assert missing_line(("Backup a9e0d846 of docs (differential, number 1): 5 entries, 36.2 KiB.",), came)
    assert missing_line(("…", "Done."), came) == "Done."


def test_backing_up_the_output_of_a_command_is_the_first_shown_command() -> None:
    first = next(commands(of_kind("console")[0])).text
    assert re.fullmatch(r"staddle backup --dataset \S+ --name dump\.sql --from-command -- pg_dump .*", first)


def test_the_library_in_ten_lines_runs(shell: Shell) -> None:
    (block,) = of_kind("python")
    assert len([line for line in block.text.splitlines() if line]) <= 10
    source = shell.tmp / "staddle-try" / "docs"
    shutil.copytree(TOP / "docs", source)
    done = shell.run(sys.executable, "-W", "error", "-c", block.text)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("b'{\"total\": 12}'\n")
    restored = shell.tmp / "staddle-try" / "out" / "command.md"
    assert restored.read_bytes() == (source / "command.md").read_bytes()


def test_make_has_every_target_that_readme_and_contributing_name() -> None:
    named = set()
    for page in (README, TOP / "CONTRIBUTING.md"):
        shown = "\n".join(block.text for block in blocks(page) if block.words[:1] == ("sh",))
        named |= set(re.findall(r"^(?:[A-Z]+=\S+ )?make ([a-z-]+)", shown, re.MULTILINE))
        named |= set(re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z-]+)[^`]*`", page.read_text()))
    assert {"demo", "test", "serve", "check", "coverage", "bench", "big"} <= named
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets
    sh = [line.split("#")[0].strip() for block in of_kind("sh") for line in block.text.splitlines()]
    assert sh[:2] == ["make demo", "make test"]


def test_pictures_exist_and_are_small() -> None:
    pages = [TOP / "README.md", *(TOP / "docs").glob("*.md")]
    pictures = {
        page.parent / path
        for page in pages
        for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text())
    }
    assert pictures
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size > 150 * 1024} == {}


def test_make_serve_uses_the_documented_places() -> None:
    makefile = (TOP / "Makefile").read_text()
    assert "--data staddle-data" in makefile
    assert "LISTEN ?= 127.0.0.1:7443" in makefile
    assert "VENV ?= .venv" in makefile


# --- in any language


def test_the_grpcurl_example_is_a_valid_request(running) -> None:
    (block,) = of_kind("sh", "grpcurl")
    found = re.search(
        r"127\.0\.0\.1:7443 staddle\.v1\.StaddleService/(\w+) <<'END'\n(.*)^END\n",
        block.text,
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None
    request = Block(("json", found[1]), found[2], block.line)
    (answer,) = of_kind("json", "answer")
    assert Transcript(running.stub()).play(request, answer) == []


@pytest.mark.slow  # the program is built first
@pytest.mark.timeout(1500)
def test_the_grpcurl_example_works_when_pasted(shell: Shell, server) -> None:
    (block,) = of_kind("sh", "grpcurl")
    path = os.pathsep.join([str(_grpcurl().parent), shell.environment["PATH"]])
    done = shell.run("bash", "-c", block.text.replace("127.0.0.1:7443", server.address), PATH=path)
    assert done.returncode == 0, done.stdout
    (said,) = json_values(done.stdout)
    assert json_format.ParseDict(said, service_pb2.BackupResponse()).backup.data_bytes == 13
    assert shell.run("staddle", "cat", "orders-json", "2026/05/a.json").stdout.endswith('\n{"total": 12}')


def _grpcurl() -> Path:
    """The program, built if it does not exist yet; without Go the test skips with the reason."""
    build = _module(TOP / "tests" / "interop" / "interop_build.py")
    reason = build.missing("go")
    if reason is None:
        made = build.grpcurl()
        assert isinstance(made, Path)
        return made
    text = f"grpcurl left out: {reason}"
    if os.environ.get("STADDLE_TEST_REQUIRE") == "all":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _module(path: Path) -> ModuleType:
    described = importlib.util.spec_from_file_location(path.stem, path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


# --- all documents


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_no_link_is_broken(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"https?://", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert file.is_relative_to(TOP), link
        if anchor:
            assert anchor in anchors(file), link


def test_every_page_is_in_the_index() -> None:
    index = {(TOP / "docs" / link).resolve() for link in links(TOP / "docs" / "README.md")}
    pages = [page for page in PAGES if page.parent != TOP / "docs" / "decisions"]
    assert {page for page in pages if page.name != "README.md"} <= index


def test_every_call_and_every_reason_is_named_in_the_protocol_page() -> None:
    text = (TOP / "docs" / "protocol.md").read_text()
    reasons = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - not a dict
    for name in {*SERVICE.methods_by_name, *reasons}:
        assert f"`{name}`" in text, name


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
