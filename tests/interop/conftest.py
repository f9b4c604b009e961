"""Third-party clients. Without Go, Node or Java the tests skip and say so; CI skips none."""

from __future__ import annotations

from pathlib import Path

import interop_build
import pytest
from interop_clients import Foreign, need

# The first test that needs a client also builds it, which takes minutes before the first download.
MAKING_S = 1500


BUILT = {"go", "node", "java", "foreign", "everyone", "grpcurl_program"}
"""Fixtures with a program that is built first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            if BUILT.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(MAKING_S))
            item.add_marker(
                pytest.mark.xdist_group("interop")
            )  # the clients are built once, not by each worker


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


@pytest.fixture(scope="session")
def java() -> Foreign:
    need("the client in Java", "javac", "mvn")
    # Java sets the times of symbolic links in microseconds, and times before 1970 in seconds.
    return Foreign("java", interop_build.java_client(), 1_000)


@pytest.fixture(params=["go", "node", "java"])
def foreign(request: pytest.FixtureRequest) -> Foreign:
    """Each client in another language."""
    made: Foreign = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def everyone(go: Foreign, node: Foreign, java: Foreign) -> list[Foreign]:
    """All of them, to see that they agree."""
    return [go, node, java]
