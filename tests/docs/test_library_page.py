"""docs/library.md is true: its examples run, and it names everything public."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import staddle
from doc_pages import DOCS, blocks
from staddle._types.options import SourceArguments

PAGE = DOCS / "library.md"
TEXT = PAGE.read_text()
PUBLIC = {name for name, _ in inspect.getmembers(staddle.Client) if not name.startswith("_")}


@pytest.fixture
def www(tmp_path: Path) -> Path:
    """The content of /srv/www in the examples."""
    root = tmp_path / "srv" / "www"
    (root / "img").mkdir(parents=True)
    (root / "index.html").write_text("<!doctype html>\n<p>hello</p>\n")
    (root / "img" / "logo.bin").write_bytes(bytes(range(256)) * 1000)
    (root / "left-out.tmp").write_text("x")
    return root


def test_the_examples_run_one_after_another(server, www: Path, tmp_path: Path) -> None:
    examples = [block.text for block in blocks(PAGE) if block.words == ("python",)]
    assert len(examples) >= 9
    program = re.sub(r'"/(srv|tmp)/', rf'"{tmp_path}/\1/', "\n".join(examples))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**_without_settings(), "STADDLE_CONFIG": str(server.config)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    size = sum(path.stat().st_size for path in www.rglob("*") if path.is_file())
    assert said[0].endswith(f" full {size} ()")
    assert "b'<!doctype html>' b'\\xfc\\xfd\\xfe\\xff'" in said
    assert any(line.startswith("the oldest is from 2") for line in said)
    assert "[b'{\"total\": 12}', b'{\"total\": 3}']" in said
    assert {line for line in said if line.startswith(("added", "removed"))} == {
        "added 2026/06/c.json",
        "removed 2026/05/b.json",
    }
    assert (tmp_path / "tmp/www-again/img/logo.bin").read_bytes() == (www / "img/logo.bin").read_bytes()
    assert not (tmp_path / "tmp/www-again/left-out.tmp").exists()
    assert (tmp_path / "tmp/www-then/index.html").exists()
    assert sorted(os.listdir(tmp_path / "tmp/www-some")) == ["img", "index.html"]
    assert os.listdir(tmp_path / "tmp/www") == ["index.html"]


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}


@pytest.mark.parametrize("name", sorted(PUBLIC - {"address", "service"}))
def test_every_method_of_the_client_is_named(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"address", "service"}))
def test_every_optional_argument_of_a_method_is_named(name: str) -> None:
    parameters = inspect.signature(getattr(staddle.Client, name)).parameters.values()
    arguments = {each.name for each in parameters if each.default is not inspect.Parameter.empty}
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        arguments |= set(SourceArguments.__annotations__)
    assert [each for each in sorted(arguments) if not re.search(rf"\b{each}\b", TEXT)] == []


def test_every_exception_is_in_the_table() -> None:
    table = TEXT[TEXT.index("| exception |") : TEXT.index("Which reason has")]
    known = {name for name in staddle.__all__ if name.endswith("Error")} - {"StaddleError"}
    assert set(re.findall(r"`(\w+Error)`", table)) == known
    for parent, children in re.findall(r"^\| `(\w+Error)`: (.*?) \|", table, re.MULTILINE):
        below = {each.__name__ for each in getattr(staddle, parent).__subclasses__()}
        assert set(re.findall(r"`(\w+)`", children)) == below


@pytest.mark.parametrize("name", ["BackupReport", "RestoreReport", "PathProblem", "Progress"])
def test_every_field_of_a_report_is_named(name: str) -> None:
    row = re.search(rf"^\| `{name}` \| (.*) \|$", TEXT, re.MULTILINE)
    assert row is not None
    type_ = getattr(staddle, name)
    properties = {key for key, value in vars(type_).items() if isinstance(value, property)}
    fields = {field.name for field in dataclasses.fields(type_)}
    kinds = {str(kind) for kind in staddle.ProblemKind} if name == "PathProblem" else set()
    assert set(re.findall(r"`([\w-]+)`", row[1])) == fields | properties | kinds


def test_every_setting_has_its_row() -> None:
    for field in dataclasses.fields(staddle.Settings):
        assert f"`STADDLE_{field.name.upper()}`" in TEXT
