"""The data of the benchmarks, and the comparison that judges restored data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from benchmarks.data import files as data
from benchmarks.data import listing


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    data.make_tree(tmp_path / "tree", 200, "seed")
    return tmp_path / "tree"


def listed(root: Path, to: str) -> Path:
    file = root.parent / to
    listing.write_listing(root, file)
    return file


def test_the_same_seed_gives_the_same_tree_with_the_same_times(tmp_path: Path, tree: Path) -> None:
    data.make_tree(tmp_path / "again", 200, "seed")
    assert listing.differences(listed(tree, "one"), listed(tmp_path / "again", "two")) == []


def test_another_seed_gives_another_tree(tmp_path: Path, tree: Path) -> None:
    data.make_tree(tmp_path / "other", 200, "another seed")
    assert listing.differences(listed(tree, "one"), listed(tmp_path / "other", "two"))


def test_a_tree_counts_its_files_and_bytes_correctly(tmp_path: Path) -> None:
    made = data.make_tree(tmp_path / "tree", 300, "seed", odd=False)
    lines = list(listing.read_listing(listed(tmp_path / "tree", "lines")))
    assert sum(line.type != "d" for line in lines) == made.files == 300
    assert sum(line.size for line in lines) == made.data_bytes


def test_an_image_has_its_size_and_compresses_to_about_half(tmp_path: Path) -> None:
    data.make_image(tmp_path / "image", 24 * data.MIB + 1, "seed")
    raw = (tmp_path / "image").read_bytes()
    assert len(raw) == 24 * data.MIB + 1
    assert 0.2 < len(zstandard.compress(raw, 1)) / len(raw) < 0.8


def test_an_image_without_holes_has_the_same_bytes(tmp_path: Path) -> None:
    data.make_image(tmp_path / "with", 24 * data.MIB, "seed")
    data.make_image(tmp_path / "without", 24 * data.MIB, "seed", holes=False)
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()
    assert (tmp_path / "with").stat().st_blocks < (tmp_path / "without").stat().st_blocks


def test_a_change_changes_a_few_files_in_every_way(tree: Path) -> None:
    before = {line.path: line for line in listing.read_listing(listed(tree, "before"))}
    changed = data.change_tree(tree, "change", share=0.1)
    after = {line.path: line for line in listing.read_listing(listed(tree, "after"))}
    files = {path for path, line in (before | after).items() if line.type == "-"}
    differ = {path for path in files if before.get(path) != after.get(path)}
    assert all(changed.counts.values())
    assert len(differ) == sum(changed.counts.values()) + changed.counts["rename"]
    assert changed.data_bytes >= sum(
        after[path].size
        for path in differ & after.keys()
        if before.get(path, after[path]).what != after[path].what
    )


def test_a_file_may_be_changed_repeatedly(tree: Path) -> None:
    for number in range(12):
        before = sum(1 for path in tree.rglob("*") if path.is_file())
        changed = data.change_tree(tree, f"change {number}", share=0.9)
        after = sum(1 for path in tree.rglob("*") if path.is_file())
        assert after - before == changed.counts["add"] - changed.counts["remove"], "no file was overwritten"


def test_a_little_change_leaves_most_of_an_image_alone(tmp_path: Path) -> None:
    data.make_image(tmp_path / "image", 8 * data.MIB, "seed")
    before = (tmp_path / "image").read_bytes()
    written = data.change_image(tmp_path / "image", "change", stretches=3)
    after = (tmp_path / "image").read_bytes()
    assert len(after) == len(before)
    assert 0 < sum(a != b for a, b in zip(before, after, strict=True)) <= written <= 3 * 64 * data.KIB


def swap_a_byte(tree: Path) -> None:
    path = tree / data.ODD / "linked"
    status = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def unlink_a_hard_link(tree: Path) -> None:
    path = tree / data.ODD / "linked too"
    status, raw = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(raw)
    path.chmod(status.st_mode & 0o7777)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def fill_a_hole(tree: Path) -> None:
    path = tree / data.ODD / "sparse"
    status, raw = path.stat(), path.read_bytes()
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "spoil",
    [
        swap_a_byte,
        unlink_a_hard_link,
        fill_a_hole,
        lambda tree: (tree / data.ODD / "empty").chmod(0o711),
        lambda tree: os.utime(tree / data.ODD, ns=(1, 1)),
        lambda tree: os.setxattr(tree / data.ODD / "empty", "user.other", b"x"),
        lambda tree: (tree / data.ODD / "dangling").unlink(),
        lambda tree: (tree / data.ODD / "one more").touch(),
    ],
    ids=[
        "a byte",
        "a hard link",
        "a hole",
        "a mode",
        "the time of a directory",
        "an attribute",
        "one missing",
        "one more",
    ],
)
def test_the_comparison_finds_differences(tree: Path, spoil: Callable[[Path], None]) -> None:
    before = listed(tree, "before")
    assert listing.differences(before, listed(tree, "same")) == []
    spoil(tree)
    assert listing.differences(before, listed(tree, "after"))


def test_a_differential_keeps_the_metadata_of_unchanged_content(tree: Path) -> None:
    full = listed(tree, "full")
    odd = tree / data.ODD
    (odd / "empty").chmod(0o600)
    (odd / ("long-" + "n" * 250)).write_bytes(b"other content")
    listing.write_differential(full, listed(tree, "live"), tree.parent / "expected")
    found = listing.differences(full, tree.parent / "expected")
    assert len(found) == 1
    assert "long-" in found[0]
