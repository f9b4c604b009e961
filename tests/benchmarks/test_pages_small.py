"""`make bench-pages` at a small size."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

from benchmarks import pages


def test_every_page_is_asked_for_and_the_time_of_each_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    pages.main(["--backups", "40", "--datasets", "8", "--count", "2"])
    said = capsys.readouterr().out
    assert all(title in said for title in pages.PAGES)
    assert said.count(" ms") == 3 * len(pages.PAGES)


def test_a_page_over_the_limit_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LIMIT_MS", 0.0)
    assert pages.main(["--backups", "8", "--datasets", "8", "--count", "1"]) == 1
