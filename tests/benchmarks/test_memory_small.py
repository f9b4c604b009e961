"""`make bench-memory` measures every phase, and fails if the server exceeds its bound."""

from pathlib import Path

import pytest

from benchmarks import memory

SMALL = ["--streams", "2", "--image", "4", "--files", "60", "--work"]


@pytest.mark.slow
def test_each_phase_is_measured_and_a_small_run_is_within_the_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert memory.main([*SMALL, str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok  ") for line in lines) == 7
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_beyond_the_bound_is_reported_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "BOUND_MIB", 20)
    assert memory.main([*SMALL, str(tmp_path)]) == 1
    assert "OVER" in capsys.readouterr().out


def test_each_further_stream_may_take_ten_mebibytes() -> None:
    assert [memory.bound_mib(streams) for streams in (1, 8, 9, 24)] == [250, 250, 260, 410]
