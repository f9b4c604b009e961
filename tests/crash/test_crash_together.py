"""Clock, disk, network and clients fail together, by a seed: every promise holds after each episode.

The long form: make together ARGS="--runs 1000 --seed 1", or STADDLE_TEST_LONG=1 here; STADDLE_TEST_SEED gives the first seed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crash_together import simulate

LONG = bool(os.environ.get("STADDLE_TEST_LONG"))
FIRST = int(os.environ.get("STADDLE_TEST_SEED", "1"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + (200 if LONG else 2)))
def test_combined_failures_lose_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    figures = simulate(tmp_path, seed)
    assert figures["acknowledged"] > 0
    assert figures["restored"] > 0
