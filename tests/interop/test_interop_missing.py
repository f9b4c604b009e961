"""Without Go, Node or Java a test skips and says so; where all tools are required, it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.outcomes import Failed, Skipped
from interop_clients import need


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty PATH, with no tools required."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("STADDLE_TEST_REQUIRE", raising=False)
    return tmp_path


def program(path: Path, name: str, says: str) -> None:
    (path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (path / name).chmod(0o755)


def test_a_missing_tool_skips_the_test_with_the_reason(path: Path) -> None:
    with pytest.raises(
        Skipped, match=r"the client in Node left out: node 20\.19 or newer is not on PATH; npm 10"
    ):
        need("the client in Node", "node", "npm")


def test_a_missing_tool_fails_the_test_if_all_are_required(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STADDLE_TEST_REQUIRE", "all")
    with pytest.raises(Failed, match=r"grpcurl left out: go 1\.24 or newer is not on PATH"):
        need("grpcurl", "go")


def test_an_outdated_tool_counts_as_missing(path: Path) -> None:
    program(path, "go", "go version go1.23.9 linux/amd64")
    with pytest.raises(Skipped, match=r"go 1\.24 or newer is needed, and this is go version go1\.23\.9"):
        need("the client in Go", "go")


def test_no_test_is_skipped_with_recent_tools(path: Path) -> None:
    program(path, "go", "go version go1.24 linux/amd64")
    program(path, "node", "v20.19.0")
    program(path, "npm", "10.8.2")
    program(path, "javac", "javac 25")
    program(path, "mvn", "\x1b[1mApache Maven 3.6.3\x1b[m")
    need("nothing", "go", "node", "npm", "javac", "mvn")


def test_colour_codes_are_not_part_of_a_version(path: Path) -> None:
    program(path, "mvn", "\x1b[1mApache Maven 3.5.4\x1b[m")
    with pytest.raises(Skipped, match=r"mvn 3\.6 or newer is needed, and this is .*Apache Maven 3\.5\.4"):
        need("the client in Java", "mvn")
