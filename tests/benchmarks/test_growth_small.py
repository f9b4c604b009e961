"""`make bench-growth`, with little data: its measurements at each size, the reported growth, and the filled catalogs."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from staddle_server.catalog import indexed_id

from benchmarks import growth, report
from benchmarks.data import chunk_index, corpora
from benchmarks.data import files as data
from benchmarks.programs.peers import Copy, Phase, Staddle
from benchmarks.programs.processes import Server, run, staddle, tree_bytes
from benchmarks.tables import growth as growth_report
from benchmarks.tables import sections
from benchmarks.tables.figures import Figures, Results

pytestmark = pytest.mark.usefixtures("quickly")

TINY = growth.Sizes((1, 2), (40, 80), (500, 1_000), (60, 120), 1, 40)


def record_of(sizes: dict[int, float], series: str = "image") -> sections.Record:
    """Figures of a first backup that takes so many seconds at each size."""
    results = Results()
    for size, seconds in sizes.items():
        results.add(f"{series}-{size}", Phase.FIRST, "staddle", Figures(seconds, 0.0, 1.0, 1.0, 1, 1, 1, 1))
    return {
        "kind": growth_report.KIND,
        "machine": {"system": "some"},
        "cases": [
            {"name": f"{series}-{size}", "title": "a case", "series": series, "size": size, "entries": 10, "data_bytes": size * data.MIB}
            for size in sizes
        ],
        "measurements": results.to_record(),
    }  # fmt: skip


# --- a whole run


@pytest.mark.slow
def test_every_part_is_measured_at_every_size_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "RESULTS", tmp_path / "results")
    (tmp_path / "work").mkdir()
    words = "--image-mib 1 --files 40 --chunks 1000 500 --tiny 60 --fixed-mib 1 --fixed-files 40"
    assert growth.main([*words.split(), "--work", str(tmp_path / "work")]) == 0
    assert not list((tmp_path / "work").iterdir())
    (path,) = sections.newest()
    record = sections.load(path)
    assert path.name.startswith("growth-")
    assert [case["name"] for case in record["cases"]] == [
        "image-1", "tree-40", "catalog-500", "catalog-tree-500", "catalog-1000", "catalog-tree-1000", "million-60",
    ]  # fmt: skip
    found = growth_report.grown([record]).results.figures
    phases = {case: {phase for name, phase, _ in found if name == case} for case, _, _ in found}
    assert phases["catalog-500"] == {Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.RESTORE}
    assert phases["tree-40"] == phases["image-1"] | {Phase.TEN} == phases["catalog-tree-500"] | {Phase.TEN}
    assert phases["million-60"] == {Phase.FIRST, Phase.UNCHANGED, Phase.TEN}
    for (each,) in found.values():
        assert (
            min(each.seconds, each.client_cpu_s, each.client_bytes, each.server_bytes, each.catalog_bytes) > 0
        )


class Breaks(Copy):
    """Restores something else, except the first time."""

    opened = 0

    def open(self, place: Path) -> None:
        super().open(place)
        self.opened += 1

    def restore(self, target, paths):  # type: ignore[no-untyped-def]
        command = super().restore(target, paths)
        return command if self.opened == 1 else command._replace(argv=["cp", "-a", "/etc/hostname", target])


@pytest.mark.slow
def test_figures_measured_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "RESULTS", tmp_path / "results")
    (tmp_path / "work").mkdir()
    run_of = growth.Growth(tmp_path / "work", [Staddle(), Breaks()], TINY, rounds=1)
    with pytest.raises(SystemExit, match="did not give back"):
        growth.measure(run_of, ["sizes"], {})
    (path,) = sections.newest()
    assert [case["name"] for case in sections.load(path)["cases"]] == ["image-1"]


def test_sizes_are_taken_smallest_first_and_others_stay_as_usual() -> None:
    given = growth.parsed(["--full", "--files", "9", "3", "9"])
    assert growth.sizes_of(given).files == (3, 9)
    assert growth.sizes_of(given).image_mib == growth.FULL.image_mib
    assert given.rounds == 3


@pytest.mark.parametrize(
    "words", ["--files 0", "--chunks 1000000001", "--rounds -1", "--tiny 1 2 3 4 5 6 7 8 9"]
)
def test_sizes_beyond_their_limits_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.parsed(words.split())
    assert "1 to 1,000,000,000" in (said := capsys.readouterr().err) or "at most 8" in said


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(SystemExit, match="Unknown program tar"):
        growth.programs_of(growth.parsed(["--peers", "tar"]))
    assert [each.name for each in growth.programs_of(growth.parsed([]))] == ["staddle"]


# --- catalogs


@pytest.mark.slow
def test_a_server_with_chunks_without_packs_makes_and_restores_backups(tmp_path: Path) -> None:
    bytes_each = growth.make_filled(tmp_path / "filled", 5_000)
    assert 55 < bytes_each < 75
    (tmp_path / "source").mkdir()
    content = os.urandom(300_000)
    (tmp_path / "source" / "file").write_bytes(content)
    with Server(tmp_path / "filled") as server:
        run(staddle("backup", tmp_path / "source", "--dataset", "d"), env=server.environment).checked()
        run(staddle("restore", "d", "--target", tmp_path / "out"), env=server.environment).checked()
    assert (tmp_path / "out" / "file").read_bytes() == content
    logged = [json.loads(line) for line in (tmp_path / "filled.log").read_text().splitlines()]
    assert {line["level"] for line in logged} == {"info"}


def test_the_server_of_a_filled_catalog_neither_collects_nor_scrubs(tmp_path: Path) -> None:
    from staddle_server.app import settings_reading as config

    growth.make_filled(tmp_path / "filled", 10)
    settings = config.load({"data": str(tmp_path / "filled")}, {})
    assert (settings.gc_every_s, settings.scrub_period_s) == (0, 0)


def test_a_catalog_is_filled_with_chunks_that_lie_in_packs_as_in_a_real_one(
    tmp_path: Path,
) -> None:
    growth.make_filled(tmp_path / "filled", 1_000)
    with closing(sqlite3.connect(tmp_path / "filled" / "catalog.db")) as catalog:
        counts = catalog.execute(
            "SELECT chunk_count, count(*) FROM packs JOIN chunks ON chunks.pack = packs.row "
            "GROUP BY packs.row ORDER BY packs.row"
        ).fetchall()
        ids = set(catalog.execute("SELECT id_head, id_tail FROM chunks"))
        (beyond,) = catalog.execute(
            "SELECT count(*) FROM packs JOIN chunks ON chunks.pack = packs.row "
            "WHERE segment_offset + segment_length > size_bytes"
        ).fetchone()
        places = catalog.execute('SELECT DISTINCT pack, segment_offset, "offset" FROM chunks').fetchall()
    assert counts == [(300, 300), (300, 300), (300, 300), (100, 100)]
    assert ids == {indexed_id(chunk_index.digest_of(number)) for number in range(1_000)}
    assert beyond == 0
    assert len(places) == 1_000


# --- ten changes


def test_ten_changes_write_over_ten_files_of_any_tree_and_the_same_seed_over_the_same(tmp_path: Path) -> None:
    changed = []
    for root in ("one", "two"):
        data.make_tree(tmp_path / root, 200, "seed", odd=False)
        before = {path: path.read_bytes() for path in (tmp_path / root).rglob("*") if path.is_file()}
        corpora.change_ten(tmp_path / root, "change")
        changed.append(
            {
                str(path.relative_to(tmp_path / root))
                for path, content in before.items()
                if not path.is_symlink() and path.read_bytes() != content
            }
        )
    assert len(changed[0]) == 10
    assert changed[0] == changed[1]


def test_ten_changes_follow_no_links_and_work_with_fewer_files(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("not to be changed")
    (tmp_path / "tree" / "empty").mkdir(parents=True)
    (tmp_path / "tree" / "out").symlink_to("../elsewhere")
    (tmp_path / "tree" / "to a file").symlink_to("../elsewhere/file")
    with pytest.raises(ValueError, match="no file to change"):
        corpora.change_ten(tmp_path / "tree", "seed")
    (tmp_path / "tree" / "own").write_text("old")
    corpora.change_ten(tmp_path / "tree", "seed")
    assert (tmp_path / "tree" / "own").read_text() != "old"
    assert (tmp_path / "elsewhere" / "file").read_text() == "not to be changed"


def test_tiny_files_lie_so_many_to_a_directory(tmp_path: Path) -> None:
    corpora.make_many(tmp_path / "many", 25, "seed", per_directory=10)
    assert sorted(len(files) for _, _, files in os.walk(tmp_path / "many") if files) == [5, 10, 10]


# --- the report


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([(1, 1.0), (4, 4.0)], 1.0),
        ([(1, 3.0), (10, 300.0)], 2.0),
        ([(1, 9.0), (4, 2.0), (16, 2.0)], 0.0),
        ([(4, 2.0)], None),
        ([], None),
    ],
)
def test_the_power_is_that_of_the_last_step(line: list[tuple[int, float]], expected: float | None) -> None:
    assert growth_report.power(line) == (None if expected is None else pytest.approx(expected))


def test_only_growth_beyond_linear_is_named() -> None:
    linear = growth_report.text([record_of({16: 4.0, 1: 0.25, 4: 1.0})])
    assert "Nothing grows faster than linearly." in linear
    assert "| first backup | 1 | 0.25 | 250.00 |" in linear
    assert linear.index("| first backup | 4 |") < linear.index("| first backup | 16 |")
    steep = growth_report.text([record_of({1: 0.25, 4: 4.0})])
    assert "More than linear: first backup, wall s (2.00)." in steep


def test_times_too_short_to_measure_give_no_growth() -> None:
    text = growth_report.text([record_of({1: 0.01, 4: 4.0})])
    assert "Nothing grows faster than linearly." in text
    assert "| first backup | - | 0.00 | 0.00 |" in text


def test_parts_of_several_runs_make_one_section_and_a_later_run_counts(tmp_path: Path) -> None:
    records = [record_of({1: 1.0, 4: 2.0}), record_of({1: 7.0}), record_of({5: 3.0}, series="tree")]
    text = growth_report.text(records)
    assert "### An image\n" in text
    assert "### A tree of small files\n" in text
    assert "| first backup | 1 | 7.00 |" in text
    assert "| first backup | 1 | 1.00 |" not in text
    page = tmp_path / "page.md"
    page.write_text(report.PAGE.read_text())
    pytest.importorskip("matplotlib")
    drawn = report.write(page, tmp_path, records)
    assert [path.name for path in drawn] == ["growth-image.svg", "growth-tree.svg"]
    assert text in page.read_text()


@pytest.mark.slow
def test_the_same_figures_make_the_same_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (plot,) = growth_report.plots([record_of({1: 1.0, 4: 2.0})], tmp_path / name)
        plots.append(plot.read_bytes())
    assert plots[0] == plots[1]


def test_the_share_of_the_catalog_in_the_store_is_measured(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        assert 0 < server.catalog_bytes < server.stored_bytes == tree_bytes(tmp_path / "server")
