"""The protos stay compatible with their checked-in image; a change that breaks clients is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "golden" / "protos" / "staddle-v1.binpb"
# buf comes with the development dependencies, beside the interpreter.
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The protos and their settings, to change."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    return tmp_path


def breaks(checkout: Path) -> str:
    """The breaking changes that buf reports; empty if none."""
    done = subprocess.run(
        [str(BUF), "breaking", "protos", "--against", str(KEPT)],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in {0, 100}, done.stderr
    return done.stdout


def change(checkout: Path, old: str, new: str) -> None:
    file = checkout / "protos" / "staddle" / "v1" / "resources.proto"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_the_protos_are_compatible_with_the_kept_image(checkout: Path) -> None:
    assert breaks(checkout) == ""


def test_a_new_field_breaks_nothing(checkout: Path) -> None:
    last = "  bool incomplete = 27;\n"
    change(checkout, last, last + "  string comment = 28;\n")
    assert breaks(checkout) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  string link_target = 12;\n", ""),
        ("string link_target = 12;", "string target = 12;"),
        ("string link_target = 12;", "bytes link_target = 12;"),
        ("string link_target = 12;", "string link_target = 28;"),
    ],
    ids=["removed", "renamed", "another type", "another number"],
)
def test_a_changed_field_is_breaking_and_named(checkout: Path, old: str, new: str) -> None:
    change(checkout, old, new)
    assert "resources.proto" in breaks(checkout)
