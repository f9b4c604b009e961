"""`make bench-servers` divides the same uploads between one server and several, and fails if one of them fails."""

import json
import select
import sys
from pathlib import Path

import pytest

from benchmarks import two_servers
from benchmarks.programs.processes import Program

SMALL = ["--mib", "3", "--uploads", "3", "--work"]


pytestmark = pytest.mark.usefixtures("results")


@pytest.mark.slow
def test_every_upload_is_made_with_each_number_of_servers_in_each_round(
    tmp_path: Path, results: Path
) -> None:
    (tmp_path / "work").mkdir()
    assert two_servers.main([*SMALL, str(tmp_path / "work"), "--rounds", "2"]) == 0
    (path,) = results.glob("servers-*.json")
    record = json.loads(path.read_text())
    assert (record["kind"], record["uploads"], record["data_bytes"]) == ("servers", 3, 3 << 20)
    assert [(case["way"], case["servers"]) for case in record["cases"]] == [
        (way, count) for way in two_servers.WAYS for count in (1, 2)
    ]
    for case in record["cases"]:
        assert len(case["rounds"]) == 2
        assert all(value > 0 for each in case["rounds"] for value in each.values())
    assert not list((tmp_path / "work").iterdir()), "it leaves nothing behind"


@pytest.mark.slow
def test_an_upload_that_fails_ends_the_run(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(two_servers.WAYS, "cut by the client", ("--kind", "incremental"))  # no base exists
    with pytest.raises(SystemExit, match="Nothing was measured"):
        two_servers.main([*SMALL, str(tmp_path), "--rounds", "1"])
    assert not results.exists()


def test_killing_a_program_that_has_just_ended_is_harmless() -> None:
    with Program([sys.executable, "-c", "pass"]) as program:
        select.select([program.pidfd], [], [])
        program.kill()
        assert program.wait().code == 0
        program.kill()


@pytest.mark.slow
def test_a_server_that_got_nothing_ends_the_run(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_servers.Server, "pack_bytes", 0)
    with pytest.raises(SystemExit, match="got nothing"):
        two_servers.main([*SMALL, str(tmp_path), "--rounds", "1"])
    assert not results.exists()


@pytest.mark.parametrize(
    "wrong", [["--count", "4"], ["--count", "0"], ["--uploads", "99"], ["--rounds", "0"], ["--mib", "1"]]
)
def test_impossible_measurements_are_refused(
    tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        two_servers.main([*SMALL, str(tmp_path), *wrong])
    assert ended.value.code == 2
    assert "at most as many servers" in (said := capsys.readouterr().err) or "at least one round" in said


def test_the_section_has_medians(tmp_path: Path) -> None:
    rounds = [{"seconds": s, "servers_cpu_s": 1.0, "clients_cpu_s": 2.0} for s in (1.0, 9.0, 2.0)]
    cases = [{"way": way, "servers": count, "rounds": rounds} for way in two_servers.WAYS for count in (1, 2)]
    record = {"uploads": 4, "data_bytes": 1 << 30, "cases": cases}
    text = "\n".join(two_servers.section(record))
    assert "| cut by the client | 2 | 2.00 | 512 | 1.00 | 2.00 |" in text
    pytest.importorskip("matplotlib")
    two_servers.draw(record, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")
