"""Tables that fit a terminal of 80 columns."""

from __future__ import annotations

import pytest
from command_line import CommandLine, shown
from servers import Running
from staddle.command.tables import narrowed
from thin import back_up

HEADING = ("ID", "KIND", "SIZE", "TAGS")
ROWS = [
    HEADING,
    ("3f9c2b1a", "incremental", "1.2 GB", "why=nightly env=production"),
    ("aa", "full", "2 B", ""),
]


@pytest.mark.parametrize(
    ("width", "left", "tags"),
    [
        (0, HEADING, "why=nightly env=production"),
        (100, HEADING, "why=nightly env=production"),
        (57, HEADING, "why=nightly env=production"),
        (56, HEADING, "why=nightly env=producti…"),
        (43, HEADING, "why=nightly…"),
        (42, ("ID", "SIZE", "TAGS"), "why=nightly env=product…"),
        (20, ("ID", "TAGS"), "why=nightly…"),
    ],
)
def test_the_least_important_columns_go_first_and_the_last_is_cut(width, left, tags) -> None:
    rows = narrowed(ROWS, width, least=("KIND", "SIZE"), cut={"TAGS"})
    assert rows[0] == left
    assert rows[1][-1] == tags


def test_an_empty_column_goes_before_any_other() -> None:
    rows = [("ID", "WHY", "SIZE"), ("1", "", "2 B")]
    assert narrowed(rows, 8, least=("SIZE",)) == [("ID", "SIZE"), ("1", "2 B")]
    assert narrowed(rows, 80, least=("SIZE",)) == rows


@pytest.fixture
def tagged(running: Running) -> None:
    stub = running.stub()
    for number in range(3):
        tags = {"why": "nightly", "release": f"2026.11.{number}", "ticket": "OPS-4711"} if number else {}
        back_up(stub, "www", {"a": b"%d" % number * 9000}, tags=tags, host=f"h{number}", new_root=True)
    back_up(
        stub,
        "a-dataset-with-quite-a-long-name/that-goes-on-for-a-while",
        {"a": b"1"},
        host="h",
        root="/srv/x",
    )


@pytest.mark.usefixtures("tagged")
def test_lists_fit_a_terminal_and_a_pipe_has_everything(staddle: CommandLine) -> None:
    staddle("hold", "www", "latest", "--reason", "case 2026-117, a long story", code=2)
    newest = staddle("list", "www", "-n", "1", "--json").records[0]["id"]
    staddle("hold", "www", newest, "--reason", "case 2026-117, a long story about a case")
    for arguments in (["list"], ["list", "www"], ["list", "www", "-n", "1"]):
        lines = shown(staddle, *arguments)
        assert max(map(len, lines)) <= 80, lines
        assert len(lines) >= 3
    heading = shown(staddle, "list", "www")[0].split()
    assert heading[0] == "ID"
    assert {"BEGAN", "PROTECTED", "TAGS"} <= {*heading}
    assert "CHANGES" not in heading
    assert "CHANGES" in staddle("list", "www").lines[0]
    first = staddle("list", "www").lines[1]
    assert "ticket=OPS-4711" in first
    assert ":" in first
    assert "+00:00" not in first
    staddle("delete", "www", staddle("list", "www", "--json").records[1]["id"], "--yes")
    assert max(map(len, shown(staddle, "list", "www", "--deleted"))) <= 80


@pytest.mark.usefixtures("tagged")
def test_a_list_has_the_backups_that_were_asked_for(staddle: CommandLine) -> None:
    def numbers(*more: str) -> list[int]:
        return [each["number"] for each in staddle("list", "www", "--json", *more).records[:-1]]

    assert numbers("--tag", "why=nightly") == [3, 2]
    assert numbers("--tag", "why", "--tag", "release=2026.11.1") == [2]
    assert numbers("--host", "h0") == [1]
    assert numbers("--since", "1h", "-n", "2") == [3, 2]
    assert numbers("--until", "2001-01-01") == []
    assert numbers("--held") == []
    assert numbers("--deleted", "-n", "1") == []
    assert staddle("list", "www", "-n", "2").lines[-1].startswith("The newest 2 backups of www, which added ")
    assert staddle("list", "www", "-n", "3").lines[-1].startswith("3 backups of www")
    assert staddle("list", "www", "-n", "2", "--json").summary["more"] is True


def test_a_wrong_use_of_the_filters_is_explained(staddle: CommandLine) -> None:
    assert "need a DATASET" in staddle("list", "--tag", "a", code=2).err
    assert "need a DATASET" in staddle("list", "--deleted", code=2).err
    assert "--tag is given twice" in staddle("list", "www", "--tag", "a=1", "--tag", "a=2", code=2).err
    assert "in the future" in staddle("list", "www", "--since", "2126-01-01", code=2).err
