"""`staddle backup` reports what it leaves out, refuses impossible options, and reads pattern files once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine


def paths_of(staddle: CommandLine) -> set[str]:
    return {record["path"] for record in staddle("ls", "data", "-R", "--json").records if "path" in record}


def test_patterns_come_from_standard_input_and_a_pattern_without_a_match_is_a_warning(
    staddle: CommandLine, source: Path
) -> None:
    words = ("backup", source, "--dataset", "data", "--exclude-file", "/dev/stdin")
    done = staddle(*words, given=b"\xef\xbb\xbf" + os.fsencode(source / "etc") + b"\r\nnothing\r\n")
    assert paths_of(staddle) == {"hello.txt", "link"}
    assert "warning: These exclude patterns matched nothing: 'nothing'." in done.err


def test_an_impossible_pattern_is_a_usage_error(staddle: CommandLine, source: Path) -> None:
    for pattern in ("[z-a]", "!", "", "../x", str(source)):
        done = staddle("backup", source, "--dataset", "data", "--exclude", pattern, code=2)
        assert f"invalid pattern {pattern!r}" in done.err


def test_a_cache_is_left_out_with_a_note_and_exit_code_0(staddle: CommandLine, source: Path) -> None:
    (source / "etc" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    done = staddle("backup", source, "--dataset", "data")
    assert "note: left out: etc: it is marked as a cache by CACHEDIR.TAG" in done.err
    assert paths_of(staddle) == {"etc", "etc/CACHEDIR.TAG", "hello.txt", "link"}
    (note,) = [
        each for each in staddle("backup", source, "--dataset", "data", "--json").records if "note" in each
    ]
    assert (note["note"], note["path"]) == ("skipped", "etc")
    staddle("backup", source, "--dataset", "data", "--no-exclude-caches")
    assert "etc/conf" in paths_of(staddle)


def test_marked_directories_and_large_files_are_left_out(staddle: CommandLine, source: Path) -> None:
    (source / "etc" / "deep" / ".nobackup").touch()
    options = ("--exclude-if-present", ".nobackup", "--exclude-larger-than", "10k")
    staddle("backup", source, "--dataset", "data", *options)
    assert paths_of(staddle) == {"etc", "etc/conf", "etc/deep", "etc/deep/.nobackup", "hello.txt", "link"}
    staddle("backup", source, "--dataset", "data", "--exclude-larger-than", "9.9KiB")
    assert "etc/conf" not in paths_of(staddle)


def test_an_emptied_path_is_refused_unless_the_option_allows_it(staddle: CommandLine, source: Path) -> None:
    staddle("backup", source, "--dataset", "data")
    shutil.rmtree(source / "etc")
    done = staddle("backup", source, "--dataset", "data", "--max-removed", "10%", code=1)
    assert "--max-removed" in done.err
    (source / "hello.txt").unlink()
    (source / "link").unlink()
    assert "--max-removed 100" in staddle("backup", source, "--dataset", "data", code=1).err
    staddle("backup", source, "--dataset", "data", "--max-removed", "100")
    staddle("backup", source, "--dataset", "data")


@pytest.mark.parametrize("more", [[], ["--no-cache"], ["--thin"], ["--kind", "full"], ["--dry-run"]])
def test_an_empty_directory_in_the_place_of_a_file_is_refused(
    staddle: CommandLine, source: Path, more: list[str]
) -> None:
    file = source / "hello.txt"
    staddle("backup", file, "--dataset", "data")
    file.unlink()
    file.mkdir()
    assert "--max-removed 100" in staddle("backup", file, "--dataset", "data", *more, code=1).err
    assert paths_of(staddle) == {"hello.txt"}
    staddle("backup", file, "--dataset", "data", *more, "--max-removed", "100")
    staddle("backup", file, "--dataset", "data", "--max-removed", "100")
    staddle("backup", file, "--dataset", "data", *more)


@pytest.mark.parametrize("kind", ["auto", "full"])
def test_a_stream_that_has_become_empty_is_refused_unless_the_option_allows_it(
    staddle: CommandLine, kind: str
) -> None:
    def printed(command: str, *more: str, code: int = 0) -> str:
        stored = ("backup", "--dataset", "dump", "--name", "f", "--kind", kind, "--from-command", *more, "--")
        return staddle(*stored, "sh", "-c", command, code=code).err

    printed("true")
    printed("printf 0123456789")
    err = printed("true", code=1)
    assert "The stream is empty" in err
    assert "--max-removed 100" in err
    assert staddle("cat", "dump", "f").out == b"0123456789"
    assert "more than 50 %" in printed("printf 0123", "--max-removed", "50%", code=1)
    printed("printf 01234", "--max-removed", "50%")
    empty = ("backup", "-", "--dataset", "dump", "--name", "f")
    assert "The stream is empty" in staddle(*empty, given=b"", code=1).err
    staddle(*empty, "--max-removed", "100", given=b"")
    staddle(*empty, given=b"")


def test_a_fully_excluded_path_does_not_count_as_emptied(staddle: CommandLine, source: Path) -> None:
    all_excluded = ("backup", source, "--dataset", "data", "--exclude", "*")
    assert "Everything in" in staddle(*all_excluded).err
    staddle("backup", source, "--dataset", "data")
    for more in ([], ["--no-cache"], ["--thin"], ["--kind", "full"], ["--dry-run"]):
        err = staddle(*all_excluded, *more, code=1).err
        assert "is excluded, and the backup before has entries in it" in err
        assert "mounted" not in err
        assert "--max-removed 100" in err
    assert "is excluded." in staddle(*all_excluded, "--max-removed", "100").err


def test_a_source_that_is_neither_directory_nor_file_is_refused_with_what_to_do(
    staddle: CommandLine, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = staddle("backup", tmp_path / "pipe", "--dataset", "data", code=2)
    assert "is a pipe" in done.err
    assert "staddle backup - " in done.err


def test_a_dry_run_reports_what_would_be_sent_and_makes_no_backup(staddle: CommandLine, source: Path) -> None:
    words = ("backup", source, "--dataset", "data", "--exclude", "nothing")
    first = staddle(*words, "-n")
    assert "Would back up to data (full): 7 (10.0 KiB) new; 0 (0 B) changed" in first.out.decode()
    assert "matched nothing: 'nothing'" in first.err
    assert len(first.lines) == 1
    assert staddle("list", "--json").summary["dataset_count"] == 0
    staddle(*words)
    (source / "etc" / b"odd\n\xff".decode("utf-8", "surrogateescape")).write_text("new")
    (source / "hello.txt").unlink()
    listed = staddle(*words, "--dry-run", "-v")
    assert listed.lines[:2] == ["~ ./", "~ etc"]  # and files too recent to be trusted
    assert [line for line in listed.lines[:-1] if line[0] != "~"] == ["+ etc/odd\\n\\xff", "- hello.txt"]
    reported = staddle(*words, "--dry-run", "--json")
    named = [(each["change"], each["path"]) for each in reported.records[:-1]]
    assert [each for each in named if each[0] != "changed"] == [
        ("new", "etc/odd\\n\\xff"),
        ("removed", "hello.txt"),
    ]
    assert reported.summary["new"] == {"entries": 1, "data_bytes": 3}
    assert reported.summary["removed"] == {"entries": 1, "data_bytes": 7}
    assert reported.summary["dry_run"]
    assert staddle("list", "data", "--json").summary["backup_count"] == 1
    assert "add -n" in staddle(*words, "-v", code=2).err
    assert (
        "--dry-run is for a PATH" in staddle("backup", "-", "--dataset", "d", "--name", "f", "-n", code=2).err
    )


def test_several_paths_are_backed_up_in_one_command(staddle: CommandLine, source: Path) -> None:
    (source / "-dash").write_text("x")
    done = staddle(
        *("backup", "--dataset", "data", "--", source / "etc" / "deep", f"{source}/./-dash", source / "-dash")
    )
    assert "5 entries" in done.out.decode()
    assert paths_of(staddle) == {"-dash", "etc", "etc/deep", "etc/deep/empty"}
    missing = staddle("backup", source / "etc", source / "nothing", "--dataset", "data", code=1)
    assert "nothing: No such file" in missing.err
    named = staddle("backup", source / "etc", "small-name", "--dataset", "data", code=1)
    assert "Cannot use small-name: No such file" in named.err
    assert "Cannot use '': No such file" in staddle("backup", "", "--dataset", "data", code=1).err
    usual = staddle("backup", "--dataset", "data", "--", "ls", "-l", code=2)
    assert "--from-command" in usual.err
    assert "backed up alone" in staddle("backup", source, "-", "--dataset", "data", code=2).err


def test_a_list_is_read_once_from_a_file_or_a_pipe(staddle: CommandLine, source: Path) -> None:
    (source / " two words ").touch()
    (source / "#hash").touch()
    (source / "new\nline").touch()
    words = ("backup", source, "--dataset", "data")
    text = (
        b"\xef\xbb\xbf# why\r\n\r\n two words \r\n./#hash\r\n" + os.fsencode(source / "etc" / "deep") + b"/"
    )
    for data in (text, text.decode("utf-8-sig").encode("utf-16")):
        done = staddle(*words, "--files-from", "-", given=data)
        assert paths_of(staddle) == {" two words ", "#hash", "etc", "etc/deep", "etc/deep/empty"}
    staddle(*words, "--files-from0", "/dev/stdin", given=b"new\nline\0hello.txt\0\0")
    assert paths_of(staddle) == {"new\nline", "hello.txt"}
    done = staddle(*words, "--files-from", "-", given=b"hello.txt\ngone\n", code=3)
    assert "not read: gone: it was named, and does not exist" in done.err
    assert paths_of(staddle) == {"hello.txt"}
    for data, why in ((b"a\0b\0", "--files-from0"), (b"../x\n", "not a path below"), (b"# no\n", "empty")):
        assert why in staddle(*words, "--files-from", "-", given=data, code=2).err
    assert "only once" in staddle(*words, "--files-from", "-", "--files-from0", "-", code=2).err
    assert (
        "need a PATH" in staddle(*("backup", "-", *words[2:]), "--name", "f", "--files-from", "x", code=2).err
    )


def test_a_restore_accepts_patterns_and_pattern_files(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    staddle("backup", source, "--dataset", "www")
    (tmp_path / "list").write_text("# what is small\r\n*.txt\r\nempty\r\n")
    words = ("restore", "www", "--target")
    done = staddle(*words, tmp_path / "a", "--include-file", tmp_path / "list", "--include", "*.ini")
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == ["deep", "empty", "etc", "hello.txt"]
    assert "matched nothing: '*.ini'" in done.err
    staddle(*words, tmp_path / "b", "--exclude-file", "-", given=b"etc/*\n!conf\n")
    assert sorted(path.name for path in (tmp_path / "b").rglob("*")) == ["conf", "etc", "hello.txt", "link"]
    done = staddle(*words, tmp_path / "c", "--include", "../x", code=2)
    assert "--include" in done.err
    assert not (tmp_path / "c").exists()
