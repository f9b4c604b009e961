"""The harness of `make bench`, with Staddle and cp on little data: what it measures, how it compares, what it writes."""

import argparse
import json
import time
from pathlib import Path

import pytest

from benchmarks import bench, cases, corpora, data, figures, limits, report
from benchmarks.figures import Figures, Results, wall
from benchmarks.peers import Copy, Phase, Staddle, StaddleThin


def taken(seconds: float) -> Figures:
    return Figures(seconds, 0.0, 1.0, 1.0, 1, 1, 1, 1)


def measured(place: Path, case: cases.Case, *peers: object, rounds: int = 1) -> Results:
    results = Results()
    results.titles[case.name] = case.title
    results.data_bytes[case.name] = case.data_bytes
    results.limits[case.name] = limits.measure(case.source)
    time.sleep(bench.SETTLE_S)
    bench.Run(place, case, list(peers), results, cold=False).rounds(rounds)  # type: ignore[arg-type]
    return results


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SETTLE_S", 2.1)
    monkeypatch.setattr(bench, "touched_bytes", lambda size: 0)
    monkeypatch.setattr(bench.machine, "touch_free_memory", lambda size: 0)


def test_an_image_goes_through_all_its_phases_and_comes_back(tmp_path: Path) -> None:
    results = measured(tmp_path, cases.image(tmp_path, 4 * data.MIB, None), Staddle(), StaddleThin(), Copy())
    assert {phase for _, phase, peer in results.figures if peer == "staddle"} == {
        Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.CHANGED, Phase.INSERTED, Phase.RESTORE,
    }  # fmt: skip
    first = results.figures["image", Phase.FIRST, "staddle"][0]
    assert first.seconds > 0
    assert first.server_bytes > 0
    assert first.stored_bytes > 2 * data.MIB
    assert results.figures["image", Phase.FIRST, "staddle --thin"][0].wire_bytes > 4 * data.MIB
    assert results.figures["image", Phase.RESTORE, "cp"][0].server_bytes == 0


def test_a_tree_is_restored_whole_in_parts_and_one_file(tmp_path: Path) -> None:
    results = measured(tmp_path, cases.tree(tmp_path, 300, None), Staddle())
    assert {Phase.RESTORE, Phase.SCATTERED, Phase.ONE} <= {phase for _, phase, _ in results.figures}


def test_a_case_that_keeps_its_repositories_makes_them_once(tmp_path: Path) -> None:
    results = measured(tmp_path, cases.many(tmp_path, 600), Staddle(), rounds=2)
    assert len(results.figures["many", Phase.FIRST, "staddle"]) == 1
    assert len(results.figures["many", Phase.TEN, "staddle"]) == 2


class Forger(Copy):
    """Gives back something else."""

    def restore(self, target, paths):  # type: ignore[no-untyped-def]
        return super().restore(target, paths)._replace(argv=["cp", "-a", "/etc/hostname", target])


def test_what_comes_back_otherwise_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="did not give back"):
        measured(tmp_path, cases.tree(tmp_path, 20, None), Forger())


@pytest.mark.parametrize("name", corpora.KINDS)
def test_each_kind_is_the_same_from_the_same_seed_and_changes_a_little(tmp_path: Path, name: str) -> None:
    make, change = corpora.KINDS[name]
    for root in ("one", "two"):
        make(tmp_path / root, 1 * data.MIB, "seed")
    contents = [sorted(path.read_bytes() for path in (tmp_path / root).iterdir()) for root in ("one", "two")]
    assert contents[0] == contents[1]
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    change(tmp_path / "one", "change")
    after = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert before != after


def test_an_image_has_noise_and_library_bytes_by_turns_and_takes_them_from_a_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "a.so").write_bytes(b"library " * 1000)
    size = corpora.BLOCK_BYTES + data.MIB
    corpora.make_blocks(tmp_path / "image", size, "seed", tmp_path / "libraries")
    raw = (tmp_path / "image").read_bytes()
    assert len(raw) == size
    assert b"library " not in raw[: corpora.BLOCK_BYTES]
    assert raw.endswith(b"library " * 10)


def test_insertion_and_change_leave_the_rest_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1_000_000))
    corpora.insert_bytes(path, "seed", 1000)
    assert path.stat().st_size == 1_001_000
    assert path.read_bytes()[1000:] == bytes(1_000_000)
    corpora.change_bytes(path, "seed", 10_000, 100)
    assert 5_000 < sum(byte != 0 for byte in path.read_bytes()[1000:]) <= 10_000


def test_the_best_other_program_is_compared_and_neither_ours_nor_the_limit() -> None:
    results = Results()
    for peer, seconds in (
        ("staddle", 2.0),
        ("staddle --thin", 1.0),
        ("cp", 0.1),
        ("slow", 9.0),
        ("fast", 5.0),
    ):
        results.add("case", Phase.FIRST, peer, taken(seconds))
    results.add("case", Phase.FIRST, "staddle", taken(2.5))
    results.add("case", Phase.FIRST, "staddle", taken(40.0))
    assert results.best("case", Phase.FIRST, wall) == ("fast", 5.0)
    assert results.ratio("case", Phase.FIRST, "staddle", wall) == pytest.approx(2.0)
    assert results.ratio("case", Phase.RESCAN, "staddle", wall) is None
    assert figures.cell(None, ".2f") == "-"


def test_results_are_written_read_again_and_become_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    results = Results(titles={"case": "a case"}, data_bytes={"case": 7}, limits={"case": {"read": 0.5}})
    for peer in ("staddle", "other", "cp"):
        results.add("case", Phase.FIRST, peer, taken(3.0))
    path = bench.write_results(results, argparse.Namespace(rounds=5, cold=False), {"system": "some"})
    read, record = report.read_results(path)
    assert read == results
    assert json.loads(path.read_text())["rounds"] == 5
    page = report.page_of(read, record)
    assert "system: some." in page
    assert "One round." in page
    assert "| first backup | 3.00 | 3.00 | 3.00 | 1.00 |" in page
    whole = f"before\n{report.BEGIN}old\n{report.END}after\n"
    assert report.written(whole, page).startswith(f"before\n{report.BEGIN}")
    assert "old" not in report.written(whole, page)
    with pytest.raises(ValueError, match="marks"):
        report.written("no marks", page)
