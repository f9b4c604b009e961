"""Restores by patterns: which paths are restored, which are sent, and how the directories above them are made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from fs_trees import nodes_of, seeded_bytes
from staddle._errors import BadRequestError
from staddle._restore import run
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from test_fs_archive import archive
from test_fs_restore import MTIME_NS, Server, file, other, restore

TREE = [
    other("", mode=0o750),
    other("etc", mode=0o711),
    other("etc/old", mode=0o700),
    file("etc/old/a.conf", b"old"),
    other("etc/private", mode=0o700),
    file("etc/private/key.conf", b"key"),
    file("etc/private/notes", seeded_bytes(3, 5_000)),
    file("etc/x.conf", b"x"),
    other("srv", mode=0o755),
    file("srv/data", seeded_bytes(4, 5_000)),
    other("srv/link.conf", pb.ENTRY_TYPE_SYMLINK, link_target="data"),
]


def files_in(target: Path) -> list[str]:
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())


def travelled(server: Server) -> list[str]:
    """The paths whose bytes were requested; none where all were."""
    return [
        path
        for request in server.requests
        if request.view == sv.ENTRY_VIEW_DATA
        for path in (request.paths or ["everything"])
    ]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"include": ["*.conf"]}, ["etc/old/a.conf", "etc/private/key.conf", "etc/x.conf", "srv/link.conf"]),
        (
            {"include": ["*.conf"], "exclude": ["old/"]},
            ["etc/private/key.conf", "etc/x.conf", "srv/link.conf"],
        ),
        ({"include": ["etc/private", "!notes"]}, ["etc/private/key.conf"]),
        ({"include": ["/x.conf"]}, []),
        ({"exclude": ["etc"]}, ["srv/data", "srv/link.conf"]),
        ({"exclude": ["etc/*", "!x.conf"]}, ["etc/x.conf", "srv/data", "srv/link.conf"]),
        ({"exclude": ["private/", "!key.conf"], "include": ["etc"]}, ["etc/old/a.conf", "etc/x.conf"]),
        ({"include": ["*.conf"], "paths": (b"etc/old", b"srv")}, ["etc/old/a.conf", "srv/link.conf"]),
        ({"exclude": ["etc/old"], "paths": (b"etc/old/a.conf", b"etc/x.conf")}, ["etc/x.conf"]),
    ],
)
def test_included_paths_are_restored_and_nothing_else_is_sent(
    patterns: dict[str, list[str]], expected: list[str], tmp_path: Path
) -> None:
    server = Server(*TREE)
    report = restore(server, tmp_path / "target", **patterns)
    assert report.problems == ()
    assert files_in(tmp_path / "target") == expected
    assert sorted(travelled(server)) == [path for path in expected if not path.endswith("link.conf")]


def test_directories_above_what_is_included_are_as_in_the_backup_and_existing_ones_stay(
    tmp_path: Path,
) -> None:
    target = tmp_path / "target"
    restore(Server(*TREE), target, include=["key.conf"])
    made = [target, target / "etc", target / "etc" / "private"]
    assert [mode_of(path) for path in made] == [0o750, 0o711, 0o700]
    assert {path.stat().st_mtime_ns for path in made} == {MTIME_NS}
    assert sorted(path.name for path in target.rglob("*")) == ["etc", "key.conf", "private"]
    again = tmp_path / "again"
    (again / "etc").mkdir(parents=True)
    (again / "etc").chmod(0o755)
    restore(Server(*TREE), again, include=["key.conf"])
    assert [mode_of(again / "etc"), mode_of(again / "etc" / "private")] == [0o755, 0o700]


def test_many_directories_above_included_paths_are_made_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WAYS_MAX", 2)
    items = [other("", mode=0o750)]
    for one in "abc":
        items.append(other(one, mode=0o710))
        for two in "abc":
            items.append(other(f"{one}/{two}", mode=0o700))
            items += [file(f"{one}/{two}/keep"), file(f"{one}/{two}/leave")]
    target = tmp_path / "target"
    server = Server(*items)
    report = restore(server, target, include=["keep"])
    assert report.entries_written == 9
    assert {mode_of(path) for path in target.iterdir()} == {0o710}
    assert {mode_of(path) for path in target.glob("*/*")} == {0o700}
    assert {path.stat().st_mtime_ns for path in target.rglob("*")} == {MTIME_NS}
    assert len([each for each in server.requests if each.view == sv.ENTRY_VIEW_DATA]) > 3


@pytest.mark.parametrize("first", [1, 4, 8])
def test_a_selective_restore_resumes_where_its_stream_broke(first: int, tmp_path: Path) -> None:
    server = Server(*TREE)
    server.break_after = [first, 1]
    report = restore(server, tmp_path / "target", include=["*.conf"], retry_s=5.0)
    assert report.problems == ()
    assert len(files_in(tmp_path / "target")) == 4
    assert mode_of(tmp_path / "target" / "etc" / "private") == 0o700


def test_a_pattern_that_matched_nothing_is_a_warning(tmp_path: Path) -> None:
    report = restore(Server(*TREE), tmp_path / "target", include=["x.conf", "*.ini"], exclude=["nothing/"])
    assert [warning.partition(":")[0] for warning in report.warnings] == [
        "Patterns of --include that matched nothing",
        "Patterns of --exclude that matched nothing",
    ]
    assert "'*.ini'" in report.warnings[0]
    assert "x.conf" not in report.warnings[0]


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_an_impossible_pattern_is_refused_before_any_call(field: str, tmp_path: Path) -> None:
    server = Server(*TREE)
    with pytest.raises(BadRequestError) as caught:
        restore(server, tmp_path / "target", **{field: ["[z-a]"]})
    assert caught.value.facts["field"] == field
    assert server.requests == []
    assert not (tmp_path / "target").exists()


def test_a_preview_counts_what_would_be_selected_and_changes_nothing(tmp_path: Path) -> None:
    server = Server(*TREE)
    report = restore(server, tmp_path / "target", include=["*.conf"], exclude=["old"], dry_run=True)
    assert report.entries_written == 3
    assert not (tmp_path / "target").exists()
    assert travelled(server) == []


# --- with a server


def test_a_hard_link_to_an_excluded_file_comes_with_its_content(protected, tmp_path: Path) -> None:
    source = protected.source
    (source / "a").mkdir()
    (source / "a" / "first").write_bytes(seeded_bytes(1, 700_000))
    os.link(source / "a" / "first", source / "second")
    os.link(source / "a" / "first", source / "third")
    protected.backup()
    protected.restore(tmp_path / "target", exclude=["a"])
    assert files_in(tmp_path / "target") == ["second", "third"]
    assert (tmp_path / "target" / "third").read_bytes() == seeded_bytes(1, 700_000)
    assert (tmp_path / "target" / "second").samefile(tmp_path / "target" / "third")


def test_excluded_names_in_the_target_stay_as_they_are(protected, tmp_path: Path) -> None:
    (protected.source / "logs").mkdir()
    (protected.source / "logs" / "now").write_text("of the backup")
    (protected.source / "page").write_text("of the backup")
    protected.backup()
    target = tmp_path / "target"
    (target / "logs").mkdir(parents=True)
    (target / "logs" / "now").write_text("mine")
    before = nodes_of(target / "logs")
    protected.restore(target, exclude=["logs/"], overwrite="always")
    assert nodes_of(target / "logs") == before
    assert (target / "page").read_text() == "of the backup"


def test_an_absolute_pattern_below_the_root_of_the_backup_matches_there(protected, tmp_path: Path) -> None:
    for name in ("keep", "leave"):
        (protected.source / name).write_text(name)
    protected.backup()
    protected.restore(tmp_path / "target", exclude=[f"{protected.source}/leave"])
    assert files_in(tmp_path / "target") == ["keep"]


def test_names_that_are_not_utf8_are_matched_and_restored(protected, tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(protected.source), b"-\xff\n.conf")
    with open(odd, "wb") as made:
        made.write(b"odd")
    (protected.source / "plain").write_text("plain")
    protected.backup()
    protected.restore(tmp_path / "target", include=["*.conf"])
    assert os.listdir(os.fsencode(tmp_path / "target")) == [b"-\xff\n.conf"]
    protected.restore(tmp_path / "rest", exclude=["-*.conf"])
    assert os.listdir(tmp_path / "rest") == ["plain"]


class Damaged(Server):
    """After some entries the listing reports them, or the page after them, as damaged."""

    def __init__(self, places: dict[str, bool]) -> None:
        super().__init__(*TREE)
        self.places = places

    def _parts(self, request):
        count = 0
        for part in super()._parts(request):
            if part.HasField("end"):
                part.end.damage_count += count
            yield part
            path = part.entry.path
            if part.HasField("entry") and path in self.places and request.view == sv.ENTRY_VIEW_BASIC:
                count += 1
                damage = sv.Damage(path=path, message="a page is gone", subtree=self.places[path])
                yield sv.RestorePart(damage=damage)


@pytest.mark.parametrize("how", ["directory", "archive"])
@pytest.mark.parametrize(
    ("patterns", "places", "named"),
    [
        ({"exclude": ["old/"]}, {"etc/old": True, "etc/old/a.conf": False}, []),
        ({"exclude": ["old/"]}, {"etc/old/a.conf": True}, ["etc/old/a.conf"]),
        ({"exclude": ["srv/"]}, {"srv": True, "srv/link.conf": True}, ["srv/link.conf"]),
        ({"exclude": ["*.conf"]}, {"etc/x.conf": False}, []),
        ({"exclude": ["old/"]}, {"etc/private": True, "srv/data": False}, ["etc/private", "srv/data"]),
        ({"include": ["*.conf"]}, {"srv/data": False}, []),
        ({"include": ["*.conf"]}, {"srv": True, "etc/x.conf": False}, ["etc/x.conf", "srv"]),
    ],
)
def test_damage_that_may_affect_selected_paths_is_reported(
    how: str, patterns: dict[str, list[str]], places: dict[str, bool], named: list[str], tmp_path: Path
) -> None:
    server = Damaged(places)
    if how == "archive":
        report, _ = archive(server, **patterns)
    else:
        report = restore(server, tmp_path / "target", **patterns)
    assert [problem.path for problem in report.problems] == named
    assert {problem.kind for problem in report.problems} <= {ProblemKind.DAMAGED}
    assert report.complete is not bool(named)
