"""Clients that are not ours. Where Go or Node is missing, their tests say what is left out; CI leaves nothing out."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import interop_build
import pytest

# The first test that needs a client also makes it, which takes minutes where nothing is downloaded yet.
MAKING_S = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(MAKING_S))


def need(leaves_out: str, *programs: str) -> None:
    """Skips the test, or fails it where nothing may be left out, unless these programs are here."""
    reasons = [reason for each in programs if (reason := interop_build.missing(each))]
    if not reasons:
        return
    text = f"{leaves_out} left out: {'; '.join(reasons)}"
    if os.environ.get("STADDLE_TEST_REQUIRE") == "all":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@dataclass(frozen=True)
class Foreign:
    """A client in another language, to be run as a command."""

    name: str
    command: tuple[str, ...]
    # How exactly its language can set a file's time.
    time_unit_ns: int

    def run(self, address: str, token: str, *arguments: str | bytes) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, "STADDLE_SERVER": address, "STADDLE_TOKEN": token},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="session")
def grpcurl_program() -> Path:
    need("grpcurl", "go")
    return interop_build.grpcurl()


@pytest.fixture(scope="session")
def go() -> Foreign:
    need("the client in Go", "go")
    return Foreign("go", (str(interop_build.go_client()),), 1)


@pytest.fixture(scope="session")
def node() -> Foreign:
    need("the client in Node", "node", "npm")
    return Foreign("node", ("node", str(interop_build.node_client())), 1_000_000)


@pytest.fixture(params=["go", "node"])
def foreign(request: pytest.FixtureRequest) -> Foreign:
    """Each of the clients in other languages."""
    made: Foreign = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def everyone(go: Foreign, node: Foreign) -> list[Foreign]:
    """All of them, to see that they agree."""
    return [go, node]
