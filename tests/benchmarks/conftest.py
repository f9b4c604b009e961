"""The benchmarks are not an installed package: they are imported from the top of the project."""

import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks read /proc: Linux only", allow_module_level=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They measure and serve no client: `make test-all` tries them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another place for results, with unchanged memory settings."""
    from benchmarks.programs import machine
    from benchmarks.tables import sections

    monkeypatch.setattr(sections, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(machine, "touch_free_memory", lambda size: 0)
    return tmp_path / "results"


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest waits, and unchanged memory settings, since the figures are not used."""
    from benchmarks import compare

    monkeypatch.setattr(compare, "SETTLE_S", 2.1)
    monkeypatch.setattr(compare, "REMOVED_S", 0.0)
    monkeypatch.setattr(compare, "touched_bytes", lambda size: 0)
    monkeypatch.setattr(compare.machine, "touch_free_memory", lambda size: 0)
