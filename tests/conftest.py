"""Shared by all tests: a service in this process, and a server in a separate one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
import seaweed
from extent import examples
from hypothesis import HealthCheck, settings
from servers import STARTED, Running, ServerProcess

# Deadlines mean nothing on a machine that other work shares. The examples are the same in every run, so that
# a failure comes from the change under test; STADDLE_TEST_RANDOM=1 tries new ones.
settings.register_profile(
    "staddle",
    max_examples=examples(100),
    deadline=None,
    derandomize="STADDLE_TEST_RANDOM" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("staddle")

# A background job of a shell ignores Ctrl-C, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


LOG_BYTES = 8_000


def _text(written: str | bytes | None) -> str:
    return written.decode("utf-8", "backslashreplace") if isinstance(written, bytes) else written or ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two workers more than processors, which use the moments in which other tests wait."""
    return len(os.sched_getaffinity(0)) + 2 if hasattr(os, "sched_getaffinity") else 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives the mark `root` to all that uses `only_root`, so that a run as root can choose it."""
    for item in items:
        if "only_root" in getattr(item, "fixturenames", ()):
            item.add_marker("root")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Tests and modules live to the end, so Python's garbage collector need not visit them again."""
    gc.collect()
    gc.freeze()


NAME_CHARS_MAX = 100


@pytest.hookimpl
def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Large parameters do not become part of a test's name, which every worker sends with every report."""
    if isinstance(val, str | bytes) and len(val) > NAME_CHARS_MAX:
        return f"{argname} of {len(val)}"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the output of its command and its server.

    Printed and logged names may not be Unicode, which the parallel test runner cannot pass on.
    """
    report = yield
    if report.skipped and (lost := _in_no_part(item, str(call.excinfo.value) if call.excinfo else "")):
        report.outcome, report.longrepr = "failed", lost
    if report.failed:
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
            report.sections.append(("Standard error of the command", _text(error.stderr)[-LOG_BYTES:]))
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, ServerProcess):
                report.sections.append((f"Log of the server `{name}`", value.log()[-LOG_BYTES:]))
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


NOWHERE = ("no Azurite", "only with STADDLE_TEST_LONG=1")
"""Why a slow test may be skipped for every user: the beginnings of the reasons."""


def _in_no_part(item: pytest.Item, why: str) -> str:
    """The fault of a slow test that an ordinary user skips and that does not ask for root; "" if there is none.

    CI runs slow tests as an ordinary user, and as root those with the mark `root` only: others would never run.
    """
    marks = {each.name for each in item.iter_markers()}
    missed = "slow" in marks and "root" not in marks and os.geteuid() != 0 and not why.startswith(NOWHERE)
    if not missed or os.environ.get("STADDLE_TEST_REQUIRE") != "all":
        return ""
    return (
        f"{item.nodeid}: no part of CI runs this slow test ({why}): if it needs root, let it use `only_root`"
    )


@pytest.fixture
def only_root() -> None:
    """Skips the test for other users. Its tests have the mark `root`."""
    if os.geteuid() != 0:
        pytest.skip("only root may do this")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep their caches out of the user's home."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def catalog_url(request: pytest.FixtureRequest) -> str:
    """Where the catalog of `running` is: "" for a file, or an empty database (`on_both_databases`).

    STADDLE_TEST_CATALOG=postgresql: in PostgreSQL for all tests that do not say it.
    """
    kind = getattr(request, "param", os.environ.get("STADDLE_TEST_CATALOG", "sqlite"))
    return postgres_server.new_url() if kind == "postgresql" else ""


@pytest.fixture
def running(tmp_path: Path, catalog_url: str) -> Iterator[Running]:
    """A service in this process, on a new directory."""
    made = Running(tmp_path, catalog_url=catalog_url)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(autouse=True)
def no_server_left() -> Iterator[None]:
    """Ends the servers that a failed test left: the tests after it would fail because of them."""
    before = set(STARTED)
    yield
    for left in STARTED - before:
        left.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server in a separate process."""
    made = ServerProcess(tmp_path / "server-data")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.S3Server]:
    """A real S3 server. Its tests are two groups, `s3` and `chaos`, so that two workers start one each.

    Tests with clusters of their own are a third group, `cluster`. All as one group would end long after the others.
    """
    with seaweed.running(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def s3(s3_server: seaweed.S3Server, monkeypatch: pytest.MonkeyPatch) -> seaweed.S3Server:
    """The S3 server, with its credentials in the environment."""
    for name, value in seaweed.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return s3_server
