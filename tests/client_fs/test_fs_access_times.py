"""A backup does not change the access times of what it reads, where the system allows that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from staddle._fs.chosen_paths import source_of
from staddle._fs.file_reader import OPEN_FLAGS, open_file, read_small
from staddle._fs.noatime import open_quietly
from staddle._fs.scan import Scan

LONG_AGO_NS = 10**18
BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOATIME"), reason="this system has no O_NOATIME")


def age(path: Path) -> None:
    """Sets times that any reading moves, also where a file system writes access times only now and then."""
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def require_moving_times(path: Path) -> None:
    """Skip where reading does not change access times, so the test could not see anything."""
    for each in (path / "control-file", path / "control-directory"):
        each.mkdir() if each.name.endswith("directory") else each.write_text("read")
        age(each)
    (path / "control-file").read_text()
    os.listdir(path / "control-directory")
    moved = [(path / name).stat().st_atime_ns for name in ("control-file", "control-directory")]
    if LONG_AGO_NS in moved:
        pytest.skip("this file system does not move access times")


@BOTH_WAYS
def test_a_backup_changes_no_access_time_of_files_and_directories(
    thin: bool, protected, tmp_path: Path
) -> None:
    require_moving_times(tmp_path)
    top = protected.source
    (top / "d/e").mkdir(parents=True)
    (top / "cache").mkdir()
    (top / "cache" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (top / "small").write_bytes(b"x" * 100)
    (top / "d/e/large").write_bytes(os.urandom(3_000_000))
    with (top / "sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.write(b"x")
    everything = [top, *sorted(top.rglob("*"))]
    for number in range(3):
        for each in everything:
            age(each)
        if number == 2:
            protected.backup(
                [top / "d", top / "small", top / "cache"], new_root=True, dataset="some", thin=thin
            )
        else:  # the second one with the cache, and changed files by their new ctime
            assert protected.backup(thin=thin).complete
        assert {each: each.stat().st_atime_ns for each in everything} == dict.fromkeys(
            everything, LONG_AGO_NS
        )


def test_files_of_other_users_are_read_and_noatime_is_tried_once(
    only_root, as_ordinary_user, public_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (public_path / "d").mkdir()
    for number in range(20):
        (public_path / "d" / f"of-root-{number}").write_bytes(b"root")
        (public_path / "d" / f"own-{number}").write_bytes(b"own")
        os.chown(public_path / "d" / f"own-{number}", 65_534, 65_534)
        (public_path / "d" / f"dir-{number}").mkdir()
    real, asked = os.open, []

    def opened(path, flags, *rest, **options):
        if flags & os.O_NOATIME:
            asked.append(os.fsdecode(path))
        return real(path, flags, *rest, **options)

    read = []
    with as_ordinary_user():
        monkeypatch.setattr(os, "open", opened)
        for found in Scan(os.fsencode(public_path), pytest.fail):
            if found.is_file():
                data = read_small(found, 100)
                with open_file(found, lambda: 2**62) as file:
                    read += [data, *file.pieces()]
        monkeypatch.undo()
    assert sorted(read) == sorted([b"root", b"own"] * 40)
    assert len([name for name in asked if name.startswith("own")]) == 40
    assert (
        len([name for name in asked if not name.startswith("own")]) <= 2
    )  # the root, and one more of its owner


def test_a_refusal_for_one_user_does_not_apply_to_another(
    only_root, as_ordinary_user, public_path: Path
) -> None:
    require_moving_times(public_path)
    file = public_path / "f"
    file.write_text("x")
    file.chmod(0o644)
    age(file)
    with as_ordinary_user():
        os.close(open_quietly(os.fsencode(file), OPEN_FLAGS, owner=0))
    descriptor = open_quietly(os.fsencode(file), OPEN_FLAGS, owner=0)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)
    assert file.stat().st_atime_ns == LONG_AGO_NS


def test_the_directories_above_a_path_keep_their_access_times(protected, tmp_path: Path) -> None:
    require_moving_times(tmp_path)
    (protected.source / "a/b").mkdir(parents=True)
    (protected.source / "c").mkdir()
    for each in (protected.source, protected.source / "a", protected.source / "a/b"):
        age(each)
    source = source_of([os.fsencode(protected.source / "a/b"), os.fsencode(protected.source / "c")])
    assert len(list(Scan(source.root, pytest.fail, chosen=source.chosen))) == 4
    for each in (protected.source, protected.source / "a", protected.source / "a/b"):
        assert each.stat().st_atime_ns == LONG_AGO_NS
