"""What several rooms' tests share: a service in this process, and a server in one of its own."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
from extent import examples
from hypothesis import HealthCheck, settings
from servers import Running, ServerProcess

# How long an example takes says nothing where other work shares the machine. The examples are the same in every run, so that
# a failure is the fault of the change that is tried; STADDLE_TEST_RANDOM=1 looks for new ones.
settings.register_profile(
    "staddle",
    max_examples=examples(100),
    deadline=None,
    derandomize="STADDLE_TEST_RANDOM" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("staddle")

# A shell's background job ignores Ctrl-C, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


LOG_BYTES = 8_000


def _text(written: str | bytes | None) -> str:
    return written.decode("utf-8", "backslashreplace") if isinstance(written, bytes) else written or ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than processors: many tests wait for a moment, and another one uses it."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 4


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The tests themselves and all modules stay to the end: no collection of garbage goes through them again and again."""
    gc.collect()
    gc.freeze()


NAME_CHARS_MAX = 100


@pytest.hookimpl
def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Megabytes that a test is tried with are not its name, which every worker would send with every report."""
    if isinstance(val, str | bytes) and len(val) > NAME_CHARS_MAX:
        return f"{argname} of {len(val)}"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows what its command and its server wrote.

    What a test prints and logs may hold names that are no Unicode; what runs the tests side by side cannot pass that on.
    """
    report = yield
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


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests remember of backups lies in no home."""
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
    """A service in this process, on a directory of its own."""
    made = Running(tmp_path, catalog_url=catalog_url)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server in a process of its own."""
    made = ServerProcess(tmp_path / "server-data")
    made.start()
    try:
        yield made
    finally:
        made.stop()
