"""The scan: order, excludes, unreadable paths, deep trees, file system boundaries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fs_trees import open_below, plant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from staddle._fs.excludes import all_patterns, excludes_of
from staddle._fs.found import Found, Marked
from staddle._fs.metadata import holes_of, largest, link_group
from staddle._fs.scan import Scan
from staddle._fs.walk import DESCRIPTORS_MAX

components = st.lists(
    st.sampled_from([b"a", b"a.b", b"a-b", b"a b", b"b", b"A", b"\xc3\xa9", b"\xff", b"a\x01", b"0"]),
    min_size=1,
    max_size=4,
)


def paths_of(root: Path | bytes, **options) -> list[bytes]:
    problems: list[tuple[bytes, str]] = []
    scan = Scan(os.fsencode(root), lambda path, why: problems.append((path, why)), **options)
    paths = [found.path for found in scan]
    assert problems == []
    return paths


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sets(components.map(tuple), max_size=12))
def test_paths_are_sorted_by_component_and_each_directory_precedes_its_content(
    tmp_path_factory, trees: set[tuple[bytes, ...]]
) -> None:
    root = os.fsencode(tmp_path_factory.mktemp("scan"))
    expected = {b""}
    for parts in trees:
        os.makedirs(os.path.join(root, *parts), exist_ok=True)
        expected.update(b"/".join(parts[: count + 1]) for count in range(len(parts)))
    paths = paths_of(root)
    assert paths == sorted(expected, key=lambda path: path.replace(b"/", b"\0"))


def test_a_path_that_is_one_file_is_one_entry_with_its_base_name(tmp_path: Path) -> None:
    (tmp_path / "only").write_text("this")
    (tmp_path / "other").write_text("not this")
    assert paths_of(tmp_path / "only") == [b"only"]


def test_a_missing_root_is_an_error_and_not_an_empty_tree(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths_of(tmp_path / "nowhere")


def test_excludes_work_as_in_gitignore_and_prune_directories(tmp_path: Path) -> None:
    for name in (
        "keep.txt",
        "x.o",
        "deep/y.o",
        "deep/important.o",
        "build/z",
        "src/build/z",
        "top",
        "src/top",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    patterns = tmp_path / "patterns"
    patterns.write_text("# a comment\n*.o\n\nbuild/\n")
    excluded = excludes_of(all_patterns("exclude_files", [patterns], ["!important.o", "/top", "patterns"]))
    assert paths_of(tmp_path, excluded=excluded) == [
        b"",
        b"deep",
        b"deep/important.o",
        b"keep.txt",
        b"src",
        b"src/top",
    ]


def test_an_excluded_directory_is_not_even_opened(public_path: Path, as_ordinary_user) -> None:
    (public_path / "secret").mkdir(mode=0o000)
    with as_ordinary_user():
        assert paths_of(public_path, excluded=excludes_of(["secret/"])) == [b""]


def test_names_that_are_not_utf8_can_be_excluded(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.o"))).touch()
    assert paths_of(tmp_path, excluded=excludes_of(["*.o"])) == [b""]


def test_unreadable_paths_are_reported_and_the_scan_continues(public_path: Path, as_ordinary_user) -> None:
    (public_path / "closed").mkdir()
    (public_path / "closed" / "hidden").touch()
    (public_path / "closed").chmod(0o000)
    (public_path / "open").touch()
    problems = []
    with as_ordinary_user():
        scan = Scan(os.fsencode(public_path), lambda path, why: problems.append((path, why)))
        walked = list(scan)
    assert [found.path for found in walked if isinstance(found, Found)] == [b"", b"closed", b"open"]
    assert [mark.found.path for mark in walked if isinstance(mark, Marked)] == [b"closed"]
    assert problems == [(b"closed", "Permission denied")]
    (public_path / "closed").chmod(0o755)


def test_a_tree_deeper_than_the_open_directories_is_walked_completely(tmp_path: Path) -> None:
    depth = 3 * DESCRIPTORS_MAX
    directory = tmp_path
    for _ in range(depth):
        directory /= "d"
        directory.mkdir()
        (directory / "after").touch()
    most = 0
    paths = []
    for found in Scan(os.fsencode(tmp_path), pytest.fail):
        paths.append(found.path)
        most = max(most, len(open_below(tmp_path)))
    assert len(paths) == 1 + 2 * depth
    assert 1 < most <= DESCRIPTORS_MAX + 4
    assert paths == sorted(paths, key=lambda path: path.replace(b"/", b"\0"))


def test_a_directory_that_is_moved_away_while_it_is_read_does_not_lead_out_of_the_tree(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    inner = root.joinpath(*["d"] * (DESCRIPTORS_MAX + 8))
    inner.mkdir(parents=True)
    (root / "d" / "z-after").touch()
    (tmp_path / "z-secret").touch()
    problems = []
    paths = []
    marked = []
    for found in Scan(os.fsencode(root), lambda path, why: problems.append(path)):
        if isinstance(found, Marked):
            marked.append(found.found.path)
            continue
        paths.append(found.path)
        if found.path.count(b"/") == DESCRIPTORS_MAX + 6:
            (root / "d" / "d").rename(tmp_path / "moved")
    assert b"d/z-after" not in paths
    assert problems == [b"d/z-after"]
    assert marked == [b"d"]
    assert not any(b"secret" in path for path in paths)


def test_directories_completed_before_a_resume_are_not_opened(tmp_path: Path) -> None:
    plant(tmp_path / "t")
    everything = paths_of(tmp_path / "t")
    skipped = paths_of(tmp_path / "t", skip=lambda path: path == b"a")
    assert set(everything) - set(skipped) == {b"a/x"}


def test_an_abandoned_scan_leaves_no_directory_open(tmp_path: Path) -> None:
    plant(tmp_path / "t")
    walk = iter(Scan(os.fsencode(tmp_path / "t"), pytest.fail))
    for _ in range(5):
        next(walk)
    assert open_below(tmp_path) != []
    walk.close()
    assert open_below(tmp_path) == []


def test_found_paths_have_the_time_of_their_stat(tmp_path: Path) -> None:
    ticks = iter(range(100))
    seen = [found.seen_ns for found in Scan(os.fsencode(tmp_path), pytest.fail, clock=lambda: next(ticks))]
    assert seen == [0]


def test_the_largest_of_too_many_holes_are_kept_in_order() -> None:
    holes = [(start * 100, 1 + start % 7) for start in range(50)]
    kept = largest(holes, 10)
    assert len(kept) == 10
    assert kept == sorted(kept)
    assert min(length for _, length in kept) >= max(
        length for hole in holes if hole not in kept for length in hole[1:]
    )


def test_the_holes_of_a_sparse_file_are_its_unallocated_ranges(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b") as file:
        file.truncate(10 * 2**20)
        for start in (0, 3 * 2**20, 7 * 2**20):
            file.seek(start)
            file.write(b"x" * 4096)
        file.flush()
        holes = holes_of(file.fileno(), 10 * 2**20)
    assert [start for start, _ in holes] == [4096, 3 * 2**20 + 4096, 7 * 2**20 + 4096]
    assert sum(length for _, length in holes) == 10 * 2**20 - 3 * 4096


def test_link_groups_are_short_and_differ_between_mounts() -> None:
    long = b"m/" * 500
    assert link_group(7, b"") == b"7@"
    assert len({link_group(7, b""), link_group(8, b""), link_group(7, b"mnt"), link_group(7, long)}) == 4
    assert len(link_group(2**64 - 1, long)) <= 64


def test_one_file_system_stops_at_a_mount_point(tmp_path: Path, only_root: None) -> None:
    mounted = next(
        (
            line.split()[1]
            for line in Path("/proc/mounts").read_text().splitlines()
            if line.split()[1] == "/proc"
        ),
        None,
    )
    if mounted is None:
        pytest.skip("no /proc is mounted here")
    excluded = excludes_of(["/*", "!/proc"])
    assert paths_of("/", one_file_system=True, excluded=excluded) == [b"", b"proc"]


def test_each_file_system_is_synced_once_when_it_is_entered(tmp_path: Path) -> None:
    if not os.path.ismount("/proc"):
        pytest.skip("no /proc is mounted here")
    synced: list[int] = []
    excluded = excludes_of(["/*", "!/proc", "/proc/*", "!/proc/sys", "/proc/sys/*"])
    paths = paths_of(
        "/", excluded=excluded, sync=lambda descriptor: synced.append(os.fstat(descriptor).st_dev)
    )
    assert paths == [b"", b"proc", b"proc/sys"]
    assert synced == [os.stat("/").st_dev, os.stat("/proc").st_dev]
    (tmp_path / "f").touch()
    synced.clear()
    assert paths_of(tmp_path / "f", sync=lambda descriptor: synced.append(os.fstat(descriptor).st_dev)) == [
        b"f"
    ]
    assert synced == [tmp_path.stat().st_dev]
