"""Deletion, protection and retention policies, as users type them."""

from __future__ import annotations

import os
import pty
import re
from pathlib import Path

import pytest
from command_line import CommandLine
from thin import back_up


@pytest.fixture
def backups(running) -> list[str]:
    """The ids of three backups of `www`, the oldest first."""
    stub = running.stub()
    return [
        back_up(stub, "www", {"a": b"Hello %d!" % number * 1000}, tags={"n": f"{number}"}).id
        for number in range(3)
    ]


def listed(staddle: CommandLine, *more: str) -> list[str]:
    return [record["id"] for record in staddle("list", "www", "--json", *more).records[:-1]]


def test_a_backup_is_deleted_listed_as_deleted_and_undeleted(
    staddle: CommandLine, backups: list[str]
) -> None:
    oldest, _, newest = backups
    done = staddle("delete", "www", newest[:8], "--yes")
    (line,) = done.lines
    assert line.startswith(f"Deleted backup {newest[:8]} of www (number 3, begun ")
    assert re.search(r"Until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00, `staddle undelete` brings back", line)
    assert listed(staddle) == [backups[1], oldest]
    assert listed(staddle, "--deleted") == [newest]
    heading, row, summary = staddle("list", "www", "--deleted").lines
    assert heading.split("  ")[0] == "ID"
    assert "UNDELETE UNTIL" in heading
    assert row.startswith(f"{newest[:8]}  ")
    assert summary == "1 deleted backup of www, which `staddle undelete` brings back."
    done = staddle("undelete", "www", newest[:8])
    assert done.lines[0].startswith(f"Undeleted backup {newest[:8]} of www (number 3")
    assert listed(staddle) == [newest, backups[1], oldest]
    assert staddle("list", "www", "--deleted").lines == ["0 deleted backups of www."]


def test_several_backups_are_deleted_by_one_command_each_once(
    staddle: CommandLine, backups: list[str]
) -> None:
    done = staddle("delete", "www", backups[0], backups[1][:8], backups[0][:8], "--yes")
    assert [line.split()[0] for line in done.lines] == ["ID", backups[0][:8], backups[1][:8], "Deleted"]
    assert done.lines[-1].startswith("Deleted 2 backups of www. Until ")
    assert listed(staddle) == [backups[2]]
    back = staddle("undelete", "www", backups[0], "--json").summary["backup"]
    assert (back["id"], back["delete_time"], back["purge_time"]) == (backups[0], None, None)


def test_json_shows_the_deleted_backups_and_their_end(staddle: CommandLine, backups: list[str]) -> None:
    done = staddle("delete", "www", backups[0], "--yes", "--json")
    record, summary = done.records
    assert record["id"] == backups[0]
    assert record["purge_time"] > record["delete_time"]
    assert summary == {"summary": "delete", "dataset": "www", "deleted_count": 1}


def test_an_invalid_name_among_others_deletes_nothing(staddle: CommandLine, backups: list[str]) -> None:
    done = staddle("delete", "www", backups[0], "ffffffff", "--yes", code=1)
    assert "has no backup ffffffff" in done.err
    assert "`staddle list www`" in done.err
    for name in ("latest", "abc", "zzzz", ""):
        done = staddle("delete", "www", name, "--yes", code=2)
        assert "invalid backup" in done.err
    assert len(listed(staddle)) == 3


def test_deletions_ask_for_confirmation_or_need_yes(staddle: CommandLine, backups: list[str]) -> None:
    staddle("retention", "set", "www", "--keep-last", "1")
    for words in (("delete", "www", backups[0]), ("retention", "apply", "www")):
        for more in ((), ("--json",)):
            done = staddle(*words, *more, given=b"y\n", code=2)
            assert "--yes" in done.err
            assert done.out == b""
    assert len(listed(staddle)) == 3


def asked(staddle: CommandLine, answer: bytes, *words: str) -> tuple[int, str, str]:
    """Run it with a terminal as standard input, and type an answer."""
    ours, theirs = pty.openpty()
    running = staddle.start(*words, stdin=theirs)
    os.close(theirs)
    os.write(ours, answer)
    out, err = running.communicate(timeout=60)
    os.close(ours)
    return running.returncode, out.decode(), err.decode()


def test_a_question_is_answered_with_yes_or_nothing_is_done(staddle: CommandLine, backups: list[str]) -> None:
    for answer in (b"n\n", b"\n", b"\x04"):
        code, _, err = asked(staddle, answer, "delete", "www", backups[0])
        assert code == 1
        assert f"Delete backup {backups[0][:8]} of www" in err
        assert "Nothing was done." in err
    assert len(listed(staddle)) == 3
    code, out, _ = asked(staddle, b"y\n", "delete", "www", backups[0])
    assert (code, out.split()[0]) == (0, "Deleted")
    staddle("retention", "set", "www", "--keep-last", "1")
    code, out, err = asked(staddle, b"n\n", "retention", "apply", "www")
    assert code == 1
    assert "1 of 2 backups of www would be deleted, which frees" in err
    code, out, err = asked(staddle, b"yes\n", "retention", "apply", "www")
    assert (code, out.splitlines()[-1].split(".")[0]) == (0, "Deleted 1 backup of www")
    assert listed(staddle) == [backups[2]]


# --- protecting


def test_a_held_backup_is_not_deleted_and_the_list_says_why(staddle: CommandLine, backups: list[str]) -> None:
    assert "PROTECTED" not in staddle("list", "www").lines[0]
    done = staddle("hold", "www", backups[0][:8], "--reason", "case 17")
    assert re.fullmatch(rf"Held backup {backups[0][:8]} of www since .*: case 17\.", done.lines[0])
    lines = staddle("list", "www").lines
    assert lines[0].split() == [
        "ID",
        "NUMBER",
        "KIND",
        "BEGAN",
        "ENTRIES",
        "SIZE",
        "STORED",
        "CHANGES",
        "PROTECTED",
        "TAGS",
    ]
    assert "held: case 17" in lines[3]
    assert "held" not in lines[1]
    done = staddle("delete", "www", backups[0], "--yes", code=1)
    assert "cannot be deleted: a legal hold since" in done.err
    error = staddle("delete", "www", backups[0], "--yes", "--json", code=1).error
    assert (error["reason"], error["by"], error["backup"]) == ("PROTECTED", "hold", backups[0])
    done = staddle("release", "www", backups[0][:8])
    assert done.lines == [f"Released: there is no hold on backup {backups[0][:8]} of www."]
    staddle("delete", "www", backups[0], "--yes")


def test_a_dataset_is_held_with_all_its_backups(staddle: CommandLine, backups: list[str]) -> None:
    summary = staddle("hold", "www", "--reason", "audit\u202e", "--json").summary
    assert (summary["dataset"], summary["backup"], summary["hold"]["reason"]) == ("www", None, "audit\u202e")
    shown = staddle("list", "www").lines[1]
    assert "dataset held: audit\\u202e" in shown, "a reason cannot control the terminal"
    assert "since" in staddle("retention", "show", "www").lines[0]
    staddle("delete", "www", backups[0], "--yes", code=1)
    assert staddle("release", "www").lines == ["Released: there is no hold on the dataset www."]
    staddle("delete", "www", backups[0], "--yes")


def test_a_retained_backup_shows_its_end(staddle: CommandLine, backups: list[str]) -> None:
    done = staddle("retain", "www", backups[0], "--until", "2031-12-31")
    assert done.lines[0].endswith(" until 2031-12-31 23:59:59+00:00.")
    summary = staddle("retain", "www", backups[0], "--until", "2030-01-01", "--json").summary
    assert summary["backup"]["retain_until_time"].startswith("2031-12-31T23:59:59"), "it can only be extended"
    assert "until 2031-12-31 23:59:59+00:00" in staddle("list", "www").lines[3]
    error = staddle("delete", "www", backups[0], "--yes", "--json", code=1).error
    assert (error["by"], error["until"][:19]) == ("retention", "2031-12-31T23:59:59")
    assert "has passed" in staddle("retain", "www", backups[0], "--until", "2020-01-01", code=2).err
    for wrong in ("3d", "sometime", ""):
        assert "--until" in staddle("retain", "www", backups[0], "--until", wrong, code=2).err


# --- policies


def test_a_policy_is_set_shown_planned_and_applied(staddle: CommandLine, backups: list[str]) -> None:
    lines = staddle("retention", "show", "www").lines
    assert lines == ["www has no policy: none of its backups is deleted automatically."]
    rules = ["--keep-last", "1", "--keep-within", "0", "--keep-tag", "n=1", "--minimum", "0"]
    lines = staddle("retention", "set", "www", *rules).lines
    assert lines[:-1] == ["keep last  1", "keep tags  n=1", "time zone  UTC"]
    *rows, summary = staddle("retention", "plan", "www").lines
    assert [row.split()[0] for row in rows] == ["ID", "stays", "stays", "goes"]
    assert rows[1].endswith("last 1 of 1, the newest")
    assert rows[2].endswith("it has the tag n=1")
    assert rows[3].endswith("no rule keeps it")
    found = re.fullmatch(
        r"1 of 3 backups of www would be deleted, which frees [\d.]+ K?i?B once their grace period is over\. "
        r"`staddle retention apply www --plan ([0-9a-f]{32})` deletes just these\.",
        summary,
    )
    assert found, summary
    assert len(listed(staddle)) == 3
    done = staddle("retention", "apply", "www", "--plan", found[1])
    assert done.lines[0].startswith("Deleted 1 backup of www. Until ")
    assert listed(staddle) == [backups[2], backups[1]]
    assert (
        staddle("retention", "apply", "www", "--yes").lines[-1]
        == "The policy of www keeps every backup: nothing was deleted."
    )
    done = staddle("undelete", "www", backups[0])
    assert f"`staddle hold www {backups[0][:8]}` keeps it" in done.err, "the policy would delete it again"
    staddle("hold", "www", backups[0], "--reason", "x")
    assert staddle("undelete", "www", backups[0]).err == ""


def test_a_plan_is_printed_as_json(staddle: CommandLine, backups: list[str]) -> None:
    staddle("retention", "set", "www", "--keep-last", "2")
    *records, summary = staddle("retention", "plan", "www", "--json").records
    assert [(each["backup"]["id"], each["goes"], each["damaged"]) for each in records] == [
        (backups[2], False, False),
        (backups[1], False, False),
        (backups[0], True, False),
    ]
    assert records[2]["reasons"] == ["no rule keeps it"]
    assert summary["free_bytes"] > 0
    assert (summary["delete_count"], summary["keep_count"], len(summary["plan_token"])) == (1, 2, 32)
    fast = staddle("retention", "plan", "www", "--fast", "--json").summary
    assert fast == {**summary, "free_bytes": None}
    applied = staddle("retention", "apply", "www", "--plan", summary["plan_token"], "--json").summary
    assert (applied["deleted_count"], applied["deleted_backup_ids"]) == (1, [backups[0]])
    again = staddle("retention", "apply", "www", "--plan", summary["plan_token"], "--json").summary
    assert again == applied, "a replay"


def test_an_outdated_plan_is_refused_with_what_to_do(
    staddle: CommandLine, backups: list[str], running
) -> None:
    staddle("retention", "set", "www", "--keep-last", "2")
    token = staddle("retention", "plan", "www", "--json").summary["plan_token"]
    back_up(running.stub(), "www", {"a": b"new"})
    done = staddle("retention", "apply", "www", "--plan", token, code=1)
    assert "nothing was deleted" in done.err
    assert "`staddle retention plan www` makes a new one." in done.err
    assert len(listed(staddle)) == 4


def test_all_rules_can_be_set_and_removed(staddle: CommandLine, backups: list[str]) -> None:
    words = (
        "--keep-last 2 --keep-within 1y --keep-hourly 3 --keep-daily 4 --keep-weekly 5 --keep-monthly 6 --keep-yearly 7 "
        "--keep-tag pin --keep-tag n= --time-zone Europe/Berlin --minimum 36h"
    )
    expected = {
        "keep_last": 2,
        "keep_hourly": 3,
        "keep_daily": 4,
        "keep_weekly": 5,
        "keep_monthly": 6,
        "keep_yearly": 7,
        "keep_tags": [{"key": "pin", "value": None}, {"key": "n", "value": ""}],
        "time_zone": "Europe/Berlin",
        "keep_within_s": 365 * 86_400,
    }
    summary = staddle("retention", "set", "www", *words.split(), "--json").summary
    assert (summary["policy"], summary["minimum_s"], summary["hold"]) == (expected, 36 * 3600, None)
    assert staddle("retention", "show", "www").lines[:-1] == [
        "keep last          2",
        "keep within        365d of the newest",
        "keep hourly        3",
        "keep daily         4",
        "keep weekly        5",
        "keep monthly       6",
        "keep yearly        7",
        "keep tags          pin n=",
        "time zone          Europe/Berlin",
        "minimum retention  36h after each commit",
    ]
    summary = staddle("retention", "set", "www", "--minimum", "0", "--json").summary
    assert (summary["policy"], summary["minimum_s"]) == (expected, 0)
    assert staddle("retention", "set", "www", "--none", "--json").summary["policy"] is None


def test_an_invalid_policy_is_a_usage_error(staddle: CommandLine, backups: list[str]) -> None:
    for words, said in (
        ((), "Give the rules"),
        (("--none", "--keep-last", "1"), "--none"),
        (("--time-zone", "Europe/Berlin"), "a rule"),
        (("--keep-last", "1000001"), "--keep-last"),
        (("--keep-within", "101y"), "--keep-within"),
        (("--keep-tag", "=x"), "--keep-tag"),
        (("--keep-last", "1", "--time-zone", "Europe/Atlantis"), "unknown time zone 'Europe/Atlantis'"),
    ):
        assert said in staddle("retention", "set", "www", *words, code=2).err
    assert staddle("retention", "show", "www", "--json").summary["policy"] is None


def test_a_caller_who_is_not_an_admin_may_only_look(
    staddle: CommandLine, backups: list[str], running
) -> None:
    writer = {"STADDLE_TOKEN": running.token("writer")}
    staddle("retention", "plan", "www", **writer)
    staddle("retention", "show", "www", **writer)
    for words in (("delete", "www", backups[0], "--yes"), ("retention", "apply", "www", "--plan", "00")):
        error = staddle(*words, "--json", code=1, **writer).error
        assert error["reason"] == "PERMISSION_DENIED", words


# --- restores that delete


def test_a_restore_that_deletes_asks_first_and_reports_its_deletions(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    staddle("backup", source, "--dataset", "www")
    target = tmp_path / "target"
    staddle("restore", "www", "--target", target)
    (target / "extra\x1b").touch()
    (target / "etc" / "extra").touch()
    (target / "hello.txt").write_text("changed")
    words = ("restore", "www", "--target", str(target), "--delete")
    for more in ((), ("--json",)):
        done = staddle(*words, *more, given=b"y\n", code=2)
        assert "--yes" in done.err
    done = staddle(*words, "--dry-run")
    assert done.lines[:2] == ["- etc/extra", "- extra\\x1b"]
    assert "nothing to make, 1 file to replace, 7 B to fetch; 6 already there; 2 to delete" in done.lines[2]
    done = staddle(*words, "--dry-run", "--json")
    assert [record["path"] for record in done.records[:-1]] == ["etc/extra", "extra\x1b"]
    code, _, err = asked(staddle, b"n\n", *words)
    assert code == 1
    assert f"Delete 2 paths in {target} that the backup does not have?" in err
    assert (target / "hello.txt").read_text() == "changed"
    assert (target / "etc" / "extra").exists()
    code, out, _ = asked(staddle, b"y\n", *words)
    assert code == 0
    assert "1 entry written" in out
    assert "2 deleted" in out
    assert not (target / "etc" / "extra").exists()
    (target / "again").touch()
    assert staddle(*words, "--yes", "--json").summary["entries_deleted"] == 1
    assert staddle("restore", "www", "--target", target, "--yes", code=2).out == b""
