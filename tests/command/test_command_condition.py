"""What `staddle info` says of the condition of a server."""

from __future__ import annotations

import datetime

import pytest
from staddle import SecondSite, ServerCondition, StoreLock
from staddle.command.server_condition import rows, warnings
from staddle_server.upkeep.integrity.lock_standing import lock_standing
from staddle_server.upkeep.replication.lag import SiteLag

DAY = datetime.timedelta(days=1)
MOMENT = datetime.datetime(2026, 12, 24, 12, tzinfo=datetime.UTC)
LATER = MOMENT + DAY


def test_a_server_without_lock_and_second_site_has_no_rows_and_no_warnings() -> None:
    assert list(rows(ServerCondition())) == []
    assert list(warnings(ServerCondition())) == []


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        (StoreLock(30 * DAY), "at least 30d"),
        (StoreLock(30 * DAY, LATER, MOMENT), "at least 30d; now until 2026-12-24 or later"),
        (StoreLock(30 * DAY, LATER), "at least 30d; now until 2026-12-25 or later"),
    ],
)
def test_the_lock_is_as_good_as_the_first_one_that_ends(lock: StoreLock, said: str) -> None:
    assert list(rows(ServerCondition(lock=lock))) == [("object lock", said)]


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (SecondSite(None), "not complete yet"),
        (SecondSite(None, 5 << 20), "not complete yet, 5.0 MiB missing"),
        (SecondSite(datetime.timedelta(0)), "complete"),
        (SecondSite(datetime.timedelta(hours=3, seconds=9), 2048), "3h behind, 2.0 KiB missing"),
    ],
)
def test_the_second_site_says_how_far_it_is_behind(site: SecondSite, said: str) -> None:
    assert list(rows(ServerCondition(second_site=site))) == [("second site", said)]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (ServerCondition(takes_backups=False), "the server restores and takes no backups"),
        (ServerCondition(clock_in_doubt=True, clock_jump=-2 * DAY), "its clock, which jumped by 2d"),
        (ServerCondition(damaged_packs=1, damaged_footers=2), "stored data is damaged (1 pack, 2 footers)"),
        (ServerCondition(missing_objects=1), "1 record or key is missing in the store"),
        (ServerCondition(missing_objects=2, hidden_objects=2), "somebody has hidden 2 objects in the store"),
        (ServerCondition(lock=StoreLock(DAY, late=True)), "the object lock is not extended in time"),
        (ServerCondition(second_site=SecondSite(late=True)), "the copy at the second site is too far behind"),
    ],
)
def test_what_an_operator_should_look_at_is_one_warning(condition: ServerCondition, said: str) -> None:
    (warning,) = warnings(condition)
    assert said in warning
    assert "`staddle-server " in warning


def test_info_prints_rows_and_warnings_and_json_has_both(staddle, running) -> None:
    assert staddle("info").err == ""
    running.service.store_watch.site = SiteLag("/second", 7200.0, 1 << 20, "late")
    lock = lock_standing(running.catalog, 86_400.0, running.clock.now_ns())
    running.service.store_watch.lock = lock._replace(warnings=("late",))
    shown = staddle("info")
    assert (
        "staddle: warning: the object lock is not extended in time: `staddle-server lock` says why."
        in shown.err
    )
    assert "staddle: warning: the copy at the second site is too far behind" in shown.err
    assert [line.split(maxsplit=2)[2] for line in shown.lines if line.startswith(("object", "second"))] == [
        "at least 1d",
        "2h behind, 1.0 MiB missing",
    ]
    reported = staddle("info", "--json").summary["condition"]
    assert reported["lock"] == {
        "promise_s": 86400.0,
        "packs_until": None,
        "records_until": None,
        "late": True,
    }
    assert reported["second_site"] == {"lag_s": 7200.0, "bytes_behind": 1 << 20, "late": True}
