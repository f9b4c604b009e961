"""The harness of `make bench`, with Staddle and cp on little data: measuring, comparing, reporting."""

import argparse
import json
import time
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import staddle._errors
import staddle_server.base.errors

from benchmarks import compare, report
from benchmarks.data import cases, corpora, files
from benchmarks.programs import library_speed, machine, processes
from benchmarks.programs.peers import Copy, Phase, Staddle, StaddleThin
from benchmarks.tables import figures, sections
from benchmarks.tables.figures import Figures, Results, wall


def taken(seconds: float) -> Figures:
    return Figures(seconds, 0.0, 1.0, 1.0, 1, 1, 1, 1)


def measured(place: Path, case: cases.Case, *peers: object, rounds: int = 1) -> Results:
    results = Results()
    results.titles[case.name] = case.title
    results.data_bytes[case.name] = case.data_bytes
    results.limits[case.name] = library_speed.measure(case.source)
    time.sleep(compare.SETTLE_S)
    compare.Run(place, case, list(peers), results, cold=False).rounds(rounds)  # type: ignore[arg-type]
    return results


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.slow
def test_an_image_goes_through_all_its_phases_and_is_restored(tmp_path: Path) -> None:
    results = measured(tmp_path, cases.image(tmp_path, 4 * files.MIB, None), Staddle(), StaddleThin(), Copy())
    assert {phase for _, phase, peer in results.figures if peer == "staddle"} == {
        Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.CHANGED, Phase.INSERTED, Phase.RESTORE,
    }  # fmt: skip
    first = results.figures["image", Phase.FIRST, "staddle"][0]
    assert first.seconds > 0
    assert first.server_bytes > 0
    assert first.stored_bytes > 2 * files.MIB
    assert results.figures["image", Phase.FIRST, "staddle --thin"][0].wire_bytes > 4 * files.MIB
    assert results.figures["image", Phase.RESTORE, "cp"][0].server_bytes == 0


@pytest.mark.slow
def test_a_tree_is_restored_whole_in_parts_and_one_file(tmp_path: Path) -> None:
    results = measured(tmp_path, cases.tree(tmp_path, 300, None), Staddle())
    assert {Phase.RESTORE, Phase.SCATTERED, Phase.ONE} <= {phase for _, phase, _ in results.figures}


@pytest.mark.slow
def test_a_case_that_keeps_its_repositories_makes_them_once(tmp_path: Path) -> None:
    results = measured(tmp_path, cases.many(tmp_path, 600), Staddle(), rounds=2)
    assert len(results.figures["many", Phase.FIRST, "staddle"]) == 1
    assert len(results.figures["many", Phase.TEN, "staddle"]) == 2


def test_the_measured_code_is_compiled_as_in_an_installation() -> None:
    compiled = [
        Path(cache_from_source(module.__file__)) for module in (staddle._errors, staddle_server.base.errors)
    ]
    for file in compiled:
        file.unlink(missing_ok=True)
    processes.compile_ours.cache_clear()
    processes.staddle()
    assert all(file.exists() for file in compiled)


class Forger(Copy):
    """Restores something else."""

    def restore(self, target, paths):  # type: ignore[no-untyped-def]
        return super().restore(target, paths)._replace(argv=["cp", "-a", "/etc/hostname", target])


@pytest.mark.slow
def test_a_wrong_restore_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="did not give back"):
        measured(tmp_path, cases.tree(tmp_path, 20, None), Forger())


@pytest.mark.slow
def test_figures_measured_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path, seed: str) -> None:
        raise OSError("no space")

    def broken(place: Path, given: argparse.Namespace) -> list[cases.Case]:
        made = [cases.tree(place, 20, None), cases.text(place, files.MIB)]
        for case in made:
            case.edits[Phase.CHANGED] = fail
        return made

    monkeypatch.setattr(sections, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(compare, "make_cases", broken)
    with pytest.raises(OSError, match="no space"):
        compare.main(["--rounds", "1", "--only", "staddle", "--work", str(tmp_path)])
    (path,) = (tmp_path / "results").iterdir()
    record = sections.load(path)
    assert [case["name"] for case in record["cases"]] == ["tree"]
    assert {each["phase"] for each in record["measurements"]} >= {"first backup", "rescan"}


@pytest.mark.parametrize("name", corpora.KINDS)
def test_each_kind_is_the_same_from_the_same_seed_and_changes_a_little(tmp_path: Path, name: str) -> None:
    make, change = corpora.KINDS[name]
    for root in ("one", "two"):
        make(tmp_path / root, 1 * files.MIB, "seed")
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
    size = corpora.BLOCK_BYTES + files.MIB
    corpora.make_blocks(tmp_path / "image", size, "seed", tmp_path / "libraries")
    raw = (tmp_path / "image").read_bytes()
    assert len(raw) == size
    assert b"library " not in raw[: corpora.BLOCK_BYTES]
    assert raw.endswith(b"library " * 10)


def test_an_insertion_or_change_leaves_the_rest_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1_000_000))
    corpora.insert_bytes(path, "seed", 1000)
    assert path.stat().st_size == 1_001_000
    assert path.read_bytes()[1000:] == bytes(1_000_000)
    corpora.change_bytes(path, "seed", 10_000, 100)
    assert 5_000 < sum(byte != 0 for byte in path.read_bytes()[1000:]) <= 10_000


def test_the_comparison_is_with_the_best_other_program() -> None:
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


def a_page(*kept: sections.Section) -> str:
    return "before\n" + "".join(f"{each.begin}old {each.kind}\n{each.end}between\n" for each in kept)


def saved(place: Path, *, seconds: float, case: str = "case") -> Path:
    results = Results(titles={case: "a case"}, data_bytes={case: 7}, limits={case: {"read": 0.5}})
    for peer in ("staddle", "other", "cp"):
        results.add(case, Phase.FIRST, peer, taken(seconds))
    record = compare.record_of(results, argparse.Namespace(rounds=5, cold=False), {"system": "some"})
    return sections.save("peers", record, place)


def test_results_are_written_read_and_made_into_a_page(tmp_path: Path) -> None:
    record = sections.load(saved(tmp_path, seconds=3.0))
    assert record["rounds"] == 5
    text = report.peers_text([record])
    assert "system: some." in text
    assert "One round." in text
    assert "| first backup | 3.00 | 3.00 | 3.00 | 1.00 |" in text


def test_later_results_replace_earlier_ones_and_the_rest_stays(tmp_path: Path) -> None:
    records = [
        sections.load(saved(tmp_path, seconds=seconds, case=case))
        for seconds, case in ((3.0, "one"), (4.0, "two"), (5.0, "one"))
    ]
    text = report.peers_text(records)
    assert "3.00" not in text
    assert text.index("| first backup | 5.00 |") < text.index("| first backup | 4.00 |")


def test_unknown_figures_of_another_version_are_ignored() -> None:
    figures = {"seconds": 2.0, "sync_s": 0.0, "client_cpu_s": 1.0, "server_cpu_s": 1.0, "client_bytes": 1}
    figures |= {"server_bytes": 1, "stored_bytes": 1, "wire_bytes": 1, "unknown": 1}
    results = Results()
    results.take([{"case": "case", "phase": "first backup", "peer": "staddle", "rounds": [figures]}])
    assert results.figures["case", Phase.FIRST, "staddle"] == [Figures(2.0, 0.0, 1.0, 1.0, 1, 1, 1, 1)]


def test_each_section_is_written_between_its_own_marks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, other = (
        sections.Section(kind, kind, lambda records: f"{len(records)} new", lambda records, place: [])
        for kind in ("peers", "other")
    )
    monkeypatch.setattr(report, "SECTIONS", (peers, other))
    page = tmp_path / "page.md"
    page.write_text(a_page(peers, other))
    # A record without a kind is one of `make bench`, as they were before there were others.
    report.write(page, tmp_path / "plots", [{}, {"kind": "peers"}])
    assert "2 new" in page.read_text()
    assert "old peers" not in page.read_text()
    assert "old other" in page.read_text()
    report.write(page, tmp_path / "plots", [{"kind": "other"}])
    assert page.read_text() == a_page(peers, other).replace("old peers", "\n2 new").replace(
        "old other", "\n1 new"
    )


def test_a_page_without_marks_and_results_of_no_section_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        report.SECTIONS[0].written("no marks", "text")
    with pytest.raises(ValueError, match="no section shows results of the kind unheard"):
        report.write(page, tmp_path, [{"kind": "unheard"}])


def test_the_page_has_the_marks_of_every_section() -> None:
    page = report.PAGE.read_text()
    assert [section.kind for section in report.SECTIONS if section.written(page, "text") == page] == []


def test_the_newest_results_of_each_kind_are_taken(tmp_path: Path) -> None:
    for name, kind in (("2026-01.json", None), ("2026-02.json", "peers"), ("growth-2025.json", "growth")):
        (tmp_path / name).write_text(json.dumps({} if kind is None else {"kind": kind}))
    assert [path.name for path in sections.newest(tmp_path)] == ["2026-02.json", "growth-2025.json"]


@pytest.mark.parametrize(
    ("kind", "task", "slow"),
    [("ext4", "4288\n", False), ("ext4", "<none>\n", True), ("ext4", None, True), ("xfs", None, False)],
)
def test_only_ext4_without_a_journal_is_slow_to_make_files_after_many_were_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, task: str | None, slow: bool
) -> None:
    if task is not None:
        (tmp_path / "vdz").mkdir()
        (tmp_path / "vdz" / "journal_task").write_text(task)
    monkeypatch.setattr(machine, "EXT4", tmp_path)
    monkeypatch.setattr(machine, "_mounted", lambda place: ("/dev/vdz", kind))
    assert machine.remembers_removed_files(tmp_path) is slow
    assert ("journal" in machine.describe(tmp_path)["file system"]) is slow
