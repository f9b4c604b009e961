"""Three servers, their database and their store fail under load: what was acknowledged is there, and everybody gets on.

The long form: make chaos ARGS="--minutes 30 --seed 1".
"""

from __future__ import annotations

from pathlib import Path

import postgres_server
import pytest
import seaweed
from chaos_run import chaos

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]


@pytest.mark.timeout(600)  # a minute and a half where nothing else runs
def test_servers_database_and_store_fail_under_load_and_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    postgres_server.need()
    seaweed.require()
    run = chaos(tmp_path, seed=901, minutes=0.3, stopped_s=22.0)
    assert run.figures["faults"] >= 2
    assert run.figures["acknowledged"] > 0
    assert run.figures["restored"] > 0
