"""`make bench-index` fills, measures and removes an index in both databases, and fails if it finds too few chunks."""

from __future__ import annotations

from pathlib import Path

import postgres_server
import pytest

from benchmarks import chunk_rows


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_rows, "FIRST_SIZE", 3_000)
    monkeypatch.setattr(chunk_rows, "PUBLISHED", 1)
    monkeypatch.setattr(chunk_rows, "LOOK_UPS", 2)
    monkeypatch.setattr(chunk_rows, "CLAIMS", 1)


@pytest.mark.parametrize("database", chunk_rows.DATABASES)
def test_an_index_is_filled_and_measured_and_leaves_nothing_behind(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if database == "postgresql":
        postgres_server.need()
    assert chunk_rows.main(["--rows", "3e3", "--database", database, "--work", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines[1:])
    rows, bytes_a_row, rate, *_ = lines[-1].split()
    assert rows == "3,000"
    assert 60 < float(bytes_a_row) < 500
    assert float(rate.replace(",", "")) > 0
    assert not list(tmp_path.iterdir())


def test_an_index_that_lacks_chunks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_rows, "_bulk_sqlite", lambda _: lambda _first, _count: None)
    with pytest.raises(SystemExit, match="chunks were"):
        chunk_rows.main(["--rows", "3e3", "--database", "sqlite", "--work", str(tmp_path)])
