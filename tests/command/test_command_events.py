"""Events, as people see them."""

from __future__ import annotations

import pytest
from command_line import CommandLine, shown
from servers import Running
from staddle_server.catalog import Alarm, AlarmKey, EventChanges

LONG = "The dataset www of tenant default is late: its newest backup is of 2026-11-28 03:00, and one is expected every 24h."
ADVICE = "Check that its client still runs. Look at `staddle runs` for this dataset; to change what is expected, use `staddle expect`."


def find(running: Running, kind: str, subject: str, words: str = LONG, tenant: str = "default") -> None:
    """As the service does; its own watch may be faster."""
    events, now_ns = running.catalog.events, running.clock.now_ns()
    alarm = Alarm(AlarmKey(kind, tenant, "", subject), "critical", words, ADVICE)
    while not events.change(
        events.open(now_ns).fence, EventChanges(begun=[alarm]), lambda _: [], "test", now_ns
    ):
        pass


def test_events_say_since_when_what_is_wrong_and_what_to_do(staddle: CommandLine, running: Running) -> None:
    find(running, "late", "www")
    find(running, "damage", "", "A pack is damaged.")
    head, text, advice, *others, summary = staddle("events").lines
    assert head.endswith("  damage, critical, open")
    assert text == "    A pack is damaged."
    assert advice == f"    {ADVICE}"
    assert len(others) == 3
    assert summary == "2 events: open."
    (late, counted) = staddle("events", "www", "--kind", "late", "--open", "--since", "1h", "--json").records
    assert (late["kind"], late["dataset"], late["over_time"]) == ("late", "www", None)
    assert counted == {"summary": "events", "event_count": 1, "open_count": 1, "more": False}
    assert staddle("events", "-n", "1").lines[-1] == "The newest 1 event: open; `-n 0` shows all."


def test_a_reader_is_not_told_what_only_an_administrator_can_do(
    staddle: CommandLine, running: Running
) -> None:
    find(running, "late", "www")
    find(running, "lock", "", "The object lock is late.", tenant="")
    lines = staddle("events", STADDLE_TOKEN=running.token("reader")).lines
    assert [line for line in lines if ADVICE in line or "object lock" in line] == []
    assert lines[-1] == "1 event: open."


def test_without_events_that_is_said(staddle: CommandLine) -> None:
    assert staddle("events").lines == ["No events."]
    assert staddle("events", "--open").lines == ["No open events."]


def test_events_are_broken_between_words_on_a_terminal(staddle: CommandLine, running: Running) -> None:
    find(running, "late", "www")
    lines = shown(staddle, "events")
    assert max(map(len, lines)) <= 80
    assert len(lines) > 5
    assert all(line.startswith("    ") for line in lines[1:-1])


@pytest.mark.parametrize("command", ["runs", "events"])
def test_a_period_in_which_nothing_can_lie_is_refused(staddle: CommandLine, command: str) -> None:
    future = staddle(command, "--since", "2126-01-01", code=2).err
    assert "--since 2126-01-01 is in the future" in future
    none = staddle(command, "--since", "1d", "--until", "2d", code=2).err
    assert "--since 1d is later than --until 2d" in none
    unknown = staddle(command, "--since", "yesterday", code=2).err
    assert "yesterday" in unknown


def test_an_unknown_kind_is_answered_with_those_that_there_are(staddle: CommandLine) -> None:
    refused = staddle("events", "--kind", "nope", code=2)
    assert "--kind: unknown kind; there are late, failed, " in refused.err
