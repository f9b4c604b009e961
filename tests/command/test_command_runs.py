"""Runs, expectations and status, as people see them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import CommandLine, shown
from sqlalchemy import update
from staddle_server.catalog import schema
from thin import back_up, wait_until

DAY = 86_400


def runs(staddle: CommandLine, *more: str) -> list[dict]:
    return staddle("runs", "--json", *more).records[:-1]


def only(staddle: CommandLine, *more: str) -> dict:
    (run,) = runs(staddle, *more)
    return run


# --- runs


def test_a_backup_is_a_run_with_who_where_when_and_how_much(staddle: CommandLine, source: Path) -> None:
    made = staddle("backup", source, "--dataset", "www", "--host", "web1", "--json").summary
    run = only(staddle)
    assert (run["dataset"], run["outcome"], run["host"], run["backup_id"]) == (
        "www",
        "done",
        "web1",
        made["id"],
    )
    assert run["principal"].startswith("admin")
    assert (run["entry_count"], run["data_bytes"]) == (made["entry_count"], made["data_bytes"])
    assert run["stored_bytes"] == made["stored_bytes"]
    heading, row, summary = staddle("runs", "www").lines
    assert heading.split() == ["BEGAN", "TOOK", "OUTCOME", "FROM", "WHAT"]
    assert "done" in row
    assert "web1 (admin" in row  # with the token, where there is room
    assert summary == "1 run: 1 done."


@pytest.mark.parametrize("thin", [False, True], ids=["source", "thin"])
def test_a_path_that_cannot_be_read_is_a_problem_of_the_run(
    staddle: CommandLine, source: Path, thin: bool
) -> None:
    (source / "gone").mkdir()
    (source / "gone" / ("x" * 200)).symlink_to("y" * 4095)  # longer than the server takes
    before = staddle("backup", source, "--dataset", "www", *(["--thin"] if thin else []))
    assert before.code == 0
    os.mkfifo(source / "pipe")
    locked = source / "locked"
    locked.write_bytes(b"1")
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root reads it all the same
        locked.unlink()
        return
    staddle("backup", source, "--dataset", "www", *(["--thin"] if thin else []), code=3)
    assert runs(staddle)[0]["outcome"] == "problems"
    assert runs(staddle)[0]["problem_count"] == 1
    assert staddle("status", "--json", code=4).records[0]["concern"] == "problems"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere",), "No such file or directory: nowhere"),
        (("--from-command", "--name", "x", "--", "false"), "The command false exited with 1 after 0 bytes"),
        (("--from-command", "--name", "x", "--", "no-such-program"), "The command no-such-program was not"),
    ],
    ids=["unreadable", "failed command", "no command"],
)
def test_a_backup_that_fails_before_it_sends_anything_is_a_failed_run(
    staddle: CommandLine, arguments: tuple[str, ...], reason: str
) -> None:
    failed = staddle("backup", "--dataset", "www", "--host", "web1", *arguments, code=1)
    assert failed.out == b""
    run = only(staddle)
    assert (run["outcome"], run["host"], run["backup_id"]) == ("failed", "web1", None)
    assert run["reason"].startswith(reason)
    (line, summary) = staddle("status", code=4).lines
    assert line.split()[:2] == ["failed", "www"]
    assert reason.split(":", maxsplit=1)[0] in line
    assert summary == "1 dataset needs somebody: 1 failed."


def test_a_source_that_lost_too_much_is_a_failed_run_of_its_upload(
    staddle: CommandLine, source: Path
) -> None:
    staddle("backup", source, "--dataset", "www")
    for path in ("hello.txt", "link"):
        (source / path).unlink()
    staddle("backup", source, "--dataset", "www", "--max-removed", "1%", code=1)
    failed, done = runs(staddle)
    assert (failed["outcome"], done["outcome"]) == ("failed", "done")
    assert not failed["reported"], "it had begun an upload"
    assert "removed" in failed["reason"]
    staddle("backup", source, "--dataset", "www")
    assert staddle("status").lines[-1].startswith("Nothing failed: 1 dataset")


def test_a_killed_client_leaves_an_abandoned_run_and_the_next_one_resumes_it(
    staddle: CommandLine, running
) -> None:
    process = subprocess.Popen(
        staddle.words("backup", "--dataset", "www", "--from-command", "--name", "x", "--", "sleep", "60"),
        env=staddle.environment,
        cwd=staddle.home,
        start_new_session=True,
    )
    wait_until(lambda: len(runs(staddle)) == 1)
    assert only(staddle)["outcome"] == "running"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: staddle("uploads", "--json").records[0]["last_failure"])
    running.clock.ahead_s = 301.0
    assert only(staddle)["outcome"] == "abandoned"
    assert staddle("status", code=4).lines[0].split()[:2] == ["failed", "www"]


def test_runs_are_filtered_by_outcome_time_and_dataset_and_limited(staddle: CommandLine, running) -> None:
    stub = running.stub()
    for _ in range(3):
        back_up(stub, "www", {"a": b"1"})
    back_up(stub, "db", {"a": b"1"})
    staddle("backup", "nowhere", "--dataset", "db", code=1)
    assert len(runs(staddle)) == 5
    assert [run["outcome"] for run in runs(staddle, "db")] == ["failed", "done"]
    assert [run["outcome"] for run in runs(staddle, "--outcome", "failed")] == ["failed"]
    assert len(runs(staddle, "--outcome", "failed", "--outcome", "done")) == 5
    assert runs(staddle, "--until", "1h") == []
    assert len(runs(staddle, "--since", "1h")) == 5
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert len(runs(staddle, "--since", today, "--until", today)) == 5
    few = staddle("runs", "-n", "2")
    assert few.lines[-1] == "The latest 2 runs: 1 done, 1 failed; `-n 0` shows all."
    assert len(runs(staddle, "-n", "0")) == 5
    assert staddle("runs", "nowhere", "--json", code=1).error["reason"] == "DATASET_NOT_FOUND"
    for wrong in (("--since", "soon"), ("--outcome", "lost"), ("-n", "x")):
        staddle("runs", *wrong, code=2)


# --- expectations


def test_an_expectation_is_set_changed_muted_listed_and_removed(staddle: CommandLine) -> None:
    assert staddle("expect").lines == [
        "Nothing is expected yet. `staddle expect DATASET --every 24h` begins."
    ]
    made = staddle("expect", "www", "--every", "24h", "--json").summary
    assert (made["every_s"], made["grace_s"], made["mute_until"]) == (DAY, 2 * 3600, None)
    assert made["success_time"] is None
    made = staddle("expect", "www", "--grace", "2h", "--mute", "2031-12-31", "--json").summary
    assert (made["every_s"], made["grace_s"], made["mute_until"][:10]) == (DAY, 7200, "2031-12-31")
    assert staddle("expect", "www", "--json").summary == made
    heading, row, summary = staddle("expect").lines
    assert heading.split("  ")[0] == "DATASET"
    assert row.split()[:4] == ["www", "1d", "2h", "never"]
    assert summary == "1 dataset is expected to have new backups."
    assert staddle("expect", "www", "--unmute", "--json").summary["mute_until"] is None
    assert staddle("expect", "www", "--remove").lines == ["Nothing is expected of www any more."]
    assert staddle("expect", "--json").records[:-1] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("www",),
        ("www", "--grace", "1h"),
        ("--every", "24h"),
        ("www", "--remove", "--every", "24h"),
        ("www", "--mute", "2031-12-31", "--unmute"),
        ("www", "--every", "often"),
        ("www", "--every", "1s"),
    ],
)
def test_what_cannot_be_expected_is_wrong_usage(staddle: CommandLine, arguments: tuple[str, ...]) -> None:
    assert staddle("expect", *arguments, code=2).out == b""
    assert staddle("expect", "--json").records[:-1] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--every", "1s"), "--every: the shortest period is 60 seconds"),
        (("--every", "90y"), "--every: use whole seconds, at most 3,660 days"),
        (("--every", "1d", "--grace", "90y"), "--grace: use whole seconds, at most 3,660 days"),
    ],
)
def test_a_period_that_the_server_refuses_is_named_by_its_option(
    staddle: CommandLine, words: tuple[str, ...], said: str
) -> None:
    assert said in staddle("expect", "www", *words, code=2).err


# --- status


def grow_old(running, dataset: str, seconds: float) -> None:
    """Let what is known of a dataset lie back so much longer."""
    _d = schema.datasets.c
    back_ns = int(seconds * 1e9)
    with running.catalog.database.write() as connection:
        for column in (_d.success_ns, _d.expect_ns):
            older = update(schema.datasets).where(_d.name == dataset, column > 0)
            connection.execute(older.values({column.name: column - back_ns}))


def test_a_dataset_whose_client_never_connects_is_late(staddle: CommandLine, running) -> None:
    staddle("expect", "www", "--every", "24h", "--grace", "2h")
    assert staddle("status").lines == ["No backups yet: 1 dataset."]
    grow_old(running, "www", 26 * 3600 + 3 * DAY)
    (line, summary) = staddle("status", code=4).lines
    assert line.split(maxsplit=2) == ["late", "www", "for 3d, it never had a backup"]
    assert summary == "1 dataset needs somebody: 1 late."
    record, summary = staddle("status", "--json", code=4).records
    assert (record["concern"], record["success_time"], record["run"]) == ("late", None, None)
    assert (summary["needed"], summary["late"], summary["expected_count"]) == (True, 1, 1)
    back_up(running.stub(), "www", {"a": b"1"})
    assert staddle("status").lines[-1].startswith("All well: 1 dataset, 1 of them expected; ")


def test_a_clock_that_jumps_ahead_makes_no_dataset_late(staddle: CommandLine, running, monkeypatch) -> None:
    back_up(running.stub(), "www", {"a": b"1"})
    staddle("expect", "www", "--every", "24h", "--grace", "2h")
    right_ns = running.clock.now_ns
    monkeypatch.setattr(running.clock, "now_ns", lambda: right_ns() + 30 * DAY * 10**9)
    running.service.clock_watch.look()
    found = staddle("status", code=4).lines
    assert [line.split()[0] for line in found[:-1]] == ["server"]
    assert found[-1] == "The server needs somebody; the datasets do not."


def test_the_worst_comes_first_and_a_muted_dataset_is_only_counted(staddle: CommandLine, running) -> None:
    for name in ("b", "c", "d"):
        staddle("expect", name, "--every", "24h")
    grow_old(running, "b", 10 * DAY)
    grow_old(running, "c", 20 * DAY)
    grow_old(running, "d", 30 * DAY)
    staddle("expect", "d", "--mute", "2031-12-31")
    staddle("backup", "nowhere", "--dataset", "a", code=1)
    found = staddle("status", code=4).lines
    assert [line.split()[:2] for line in found[:-1]] == [["late", "c"], ["late", "b"], ["failed", "a"]]
    assert found[-1] == "3 datasets need somebody: 2 late, 1 failed. 1 muted."


def test_known_damage_needs_somebody(staddle: CommandLine, running) -> None:
    back_up(running.stub(), "www", {"a": b"1"})
    (pack,) = [path.name for path in (running.root / "store" / "packs").rglob("*") if path.is_file()]
    running.catalog.packs.mark_lost(running.tenant, [bytes.fromhex(pack)])
    running.service._integrity.look()
    line, summary = staddle("status", code=4).lines
    assert line.split(maxsplit=1)[0] == "server"
    assert "stored data is damaged (1 pack)" in line
    assert staddle("status", "--json", code=4).summary["warnings"] == [line.split(maxsplit=1)[1]]
    assert summary == "The server needs somebody; the datasets do not."


# --- what reaches a terminal

HOSTILE = "\x1b]0;owned\x07\u202e" + "long " * 60


def test_no_reason_or_name_steers_the_terminal_or_breaks_the_table(staddle: CommandLine, running) -> None:
    """Texts that no call accepts, as if an old catalog held them."""
    staddle("backup", "nowhere", "--dataset", "x" * 200, "--host", "h" * 200, code=1)
    with running.catalog.database.write() as connection:
        connection.execute(update(schema.runs).values(reason=HOSTILE, principal=HOSTILE, host=HOSTILE))
    for command in ("runs", "status"):
        lines = shown(staddle, command, code=4 if command == "status" else 0)
        assert max(map(len, lines)) <= 80, lines
        assert all(line.isprintable() for line in lines)
        piped = staddle(command, code=4 if command == "status" else 0)
        assert "\\x1b]0;owned\\x07\\u202e" in piped.out.decode()
        assert all(line.isprintable() for line in piped.lines)
        assert staddle(command, "--json", code=4 if command == "status" else 0).out.isascii()


def test_the_tables_fit_a_terminal_of_80_columns(staddle: CommandLine, running, source: Path) -> None:
    staddle("backup", source, "--dataset", "orders-db", "--host", "web1.example.org")
    staddle("backup", "/no/such/directory/anywhere/on/this/machine", "--dataset", "www", code=1)
    staddle("expect", "orders-db", "--every", "24h", "--mute", "2031-12-31")
    for command in ("runs", "status", "expect"):
        lines = shown(staddle, command, code=4 if command == "status" else 0)
        assert max(map(len, lines)) <= 80, lines
