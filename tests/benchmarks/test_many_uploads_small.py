"""`make bench-clients` gets every upload committed, even those that wait, and reports failures."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import many_uploads
from benchmarks.programs import upload_driver
from benchmarks.programs.upload_driver import Asked, Outcome

pytestmark = pytest.mark.usefixtures("results")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_uploads, "IDLE_S", 0.3)


def only_record(results: Path) -> dict[str, Any]:
    (path,) = results.glob("clients-*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@pytest.mark.slow
def test_all_uploads_of_both_ways_are_committed_and_measured(tmp_path: Path, results: Path) -> None:
    (tmp_path / "work").mkdir()
    sizes = ["--mib", "3", "--count", "1", "--count", "5", "--drivers", "2"]
    assert many_uploads.main([*sizes, "--work", str(tmp_path / "work")]) == 0
    record = only_record(results)
    assert record["kind"] == "clients"
    assert [(case["way"], case["count"]) for case in record["cases"]] == [
        ("source", 1), ("source", 5), ("thin", 1), ("thin", 5),
    ]  # fmt: skip
    for case in record["cases"]:
        assert case["failures"] == case["refusals"] == []
        assert len(case["finish_s"]) == case["count"]
        assert case["mib_per_s"] > 0
        assert 0 < case["jain_together"] <= 1.0001
        assert case["server_bytes"] > 20 << 20
        assert case["server_threads"] > 3
        assert case["idle_ms"]["count"] > 0
    assert not list((tmp_path / "work").iterdir()), "it leaves nothing behind"


@pytest.mark.slow
def test_uploads_that_the_server_has_no_room_for_wait_and_are_committed(
    tmp_path: Path, results: Path
) -> None:
    counts = ["--count", "6", "--count", "1"]
    small = ["--mib", "4", *counts, "--way", "thin", "--streams-max", "2", "--work", str(tmp_path)]
    assert many_uploads.main(small) == 0
    case, alone = only_record(results)["cases"]
    assert case["failures"] == []
    assert alone["refusals"] == [], "each measurement has its own server"
    assert {each["method"] for each in case["refusals"]} == {"Backup"}
    assert sum(each["times"] for each in case["refusals"]) >= 4
    assert case["seconds"] > 2, "they waited as long as the server had asked"


@pytest.mark.slow
@pytest.mark.parametrize("way", upload_driver.WAYS)
def test_an_upload_without_a_correct_backup_fails_the_run(
    tmp_path: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    split = many_uploads.split

    def lossy(data: Path, sources: Path, count: int) -> int:
        size = split(data, sources, count)
        (upload_driver.source_of(sources, 1) / upload_driver.NAME).unlink()
        return size

    monkeypatch.setattr(many_uploads, "split", lossy)
    assert many_uploads.main(["--mib", "1", "--count", "2", "--way", way, "--work", str(tmp_path)]) == 1
    assert "FAILED: client-001" in capsys.readouterr().out
    (case,) = only_record(results)["cases"]
    assert case["failures"]


@pytest.mark.slow
def test_uploads_that_end_immediately_are_measured_too(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_uploads, "LOOK_S", 60.0)
    assert many_uploads.main(["--mib", "1", "--count", "1", "--way", "thin", "--work", str(tmp_path)]) == 0
    assert only_record(results)["cases"][0]["server_threads"] > 3


def test_fairness_is_one_where_all_have_the_same_and_one_nth_where_one_has_everything() -> None:
    assert many_uploads.jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert many_uploads.jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert many_uploads.jain([0.0]) == 0.0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(each) for each in range(1, 101)]
    assert [many_uploads.percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [
        1,
        50,
        95,
        99,
        100,
    ]
    assert many_uploads.percentile([7.0], 0.99) == 7.0
    assert many_uploads.percentile([], 0.5) == 0.0


def test_the_progress_of_an_upload_is_interpolated_between_samples() -> None:
    outcome = Outcome(0, begun_s=10.0, ended_s=14.0, progress=[(11.0, 100), (12.0, 300)])
    at = {10.0: 0.0, 10.5: 50.0, 11.0: 100.0, 11.5: 200.0, 13.0: 350.0, 14.0: 400.0, 20.0: 400.0}
    assert {moment: many_uploads.handed_over(outcome, moment, 400) for moment in at} == at


def test_only_the_uploads_part_before_the_first_end_counts_as_all_at_work() -> None:
    fast = Outcome(0, 10.0, 11.0, progress=[(10.5, 100)])
    slow = Outcome(1, 10.0, 14.0, progress=[(11.0, 0), (13.0, 100)])
    found = many_uploads.of_uploads([fast, slow], 100)
    assert found["together_s"] == pytest.approx(1.0)
    assert found["jain_together"] == pytest.approx(0.5), "one had everything"
    assert found["slowest_to_fastest"] == pytest.approx(4.0)
    assert found["mib_per_s"] == pytest.approx(200 / many_uploads.MIB / 4)


def test_calls_of_the_bystander_are_grouped_by_the_concurrent_load() -> None:
    outcomes = [Outcome(0, begun_s=10.0, ended_s=20.0)]
    asked = [Asked("GetServerInfo", 9.0, 0.001, "OK"), Asked("GetServerInfo", 11.0, 0.5, "OK")]
    asked += [Asked("ListDatasets", 12.0, 9.0, "RESOURCE_EXHAUSTED"), Asked("ListDatasets", 30.0, 7.0, "OK")]
    found = many_uploads.of_bystander(asked, outcomes)
    assert found["idle_ms"]["max"] == pytest.approx(1.0)
    assert found["beside_ms"]["max"] == pytest.approx(500.0)
    assert found["beside_failed"] == 1


def some_record() -> dict[str, Any]:
    latencies = {"count": 9, "p50": 1.5, "p99": 20.0, "max": 30.0}
    case = {
        "drivers": 4, "bytes_each": 1 << 20, "mib_per_s": 123.4, "finish_s": [1.0, 2.0, 4.0], "together_s": 1.0,
        "jain_together": 0.9, "jain": 0.8, "slowest_to_fastest": 4.0, "idle_ms": latencies, "beside_ms": latencies,
        "beside_failed": 2, "server_bytes": 200 << 20, "server_threads": 77, "server_cpu_s": 3.0, "clients_cpu_s": 4.0,
        "refusals": [{"method": "Backup", "detail": "too many", "times": 5}], "failures": [],
    }  # fmt: skip
    cases = [case | {"way": way, "count": count} for way in upload_driver.WAYS for count in (1, 8)]
    return {"data_bytes": 512 << 20, "drivers": 4, "cases": cases}


def test_the_section_shows_refusals_and_whether_everything_was_committed() -> None:
    record = some_record()
    lines = many_uploads.section(record)
    row = (
        "| 8, thin | 123 | 2.00 | 4.00 | 4.00 | 0.90 | 0.80 | 4.0 | 1.5 | 20.0 | 30.0 | 200 | 77 | 3.00 | 5 |"
    )
    assert row in lines
    assert "- 8, thin: refused and tried again: Backup 5 (too many)." in lines
    assert "- 8, thin: 2 small calls failed." in lines
    assert any("Every upload became a backup" in line for line in lines)
    record["cases"][0]["failures"] = ["client-000: it broke"]
    assert any("1 uploads failed" in line for line in many_uploads.section(record))


@pytest.mark.slow
def test_the_same_figures_give_the_same_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        many_uploads.draw(some_record(), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
