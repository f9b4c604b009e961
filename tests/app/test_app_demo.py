"""`make demo` works on a copy, reports the truth, and prints commands that work when pasted."""

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from extent import extent
from staddle_server import demo


def tree(path: Path) -> Path:
    """A small directory with everything that is hard to copy."""
    path.mkdir()
    (path / "big.txt").write_bytes(b"x" * 300_000)
    (path / "small.txt").write_text("small\n")
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "sub" / "deep" / "read-only").write_text("read only\n")
    (path / "sub" / "deep" / "read-only").chmod(0o400)
    (path / "link").symlink_to("small.txt")
    (path / "dangling").symlink_to("/nowhere/at/all")
    (path / "a name with 'quotes' and\nnewline").write_text("odd\n")
    with open(os.fsencode(path) + b"/not-utf-8-\xff", "wb") as file:
        file.write(b"bytes")
    os.mkfifo(path / "fifo")
    (path / "node_modules").mkdir()
    (path / "node_modules" / "x.js").write_text("x")
    return path


def state(path: Path) -> dict[bytes, tuple[str, int]]:
    """Everything about a tree that a demonstration could have changed."""
    found = demo.digests(path)
    return {
        name: (what, os.lstat(os.path.join(os.fsencode(path), name)).st_mtime_ns)
        for name, what in found.items()
    }


# --- the copy


def test_the_copy_equals_the_source_except_for_the_counted_files(tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    before = state(source)
    copied = demo.copy_tree(source, tmp_path / "copy", ("node_modules",))
    there, here = demo.digests(tmp_path / "copy"), demo.digests(source)
    assert set(here) - set(there) == {b"fifo", b"node_modules", b"node_modules/x.js"}
    assert {name: what for name, what in there.items() if not what.startswith("4")} == {
        name: what for name, what in here.items() if name in there and not what.startswith("4")
    }
    assert (copied.special, copied.too_much, copied.unreadable) == (1, 0, [])
    assert state(source) == before


def test_the_copy_stops_at_its_limit_and_counts_what_was_left_out(tmp_path: Path) -> None:
    copied = demo.copy_tree(tree(tmp_path / "source"), tmp_path / "copy", (), bytes_max=1000)
    assert copied.too_much == 1
    assert not (tmp_path / "copy" / "big.txt").exists()
    assert (tmp_path / "copy" / "small.txt").exists()


def test_the_demonstration_changes_removes_and_makes_a_file_of_the_copy(tmp_path: Path) -> None:
    demo.copy_tree(tree(tmp_path / "source"), tmp_path / "copy", ("node_modules",))
    before = demo.digests(tmp_path / "copy")
    said = demo.change_something(tmp_path / "copy")
    after = demo.digests(tmp_path / "copy")
    assert [line.split()[0] for line in said] == ["changed", "removed", "made"]
    assert all("\n" not in line for line in said)
    assert len(after.keys() - before.keys()) == 1
    assert len(before.keys() - after.keys()) == 1
    assert before[b"big.txt"] != after[b"big.txt"]


@pytest.mark.parametrize("files", [0, 1])
def test_a_nearly_empty_source_is_enough(tmp_path: Path, files: int) -> None:
    for number in range(files):
        (tmp_path / f"{number}").write_text("x")
    assert len(demo.change_something(tmp_path)) == 1 + files


def test_a_directory_that_no_demonstration_made_is_never_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "demo-data"
    base.mkdir()
    (base / "thesis.odt").write_text("dear")
    assert demo.main(["--source", str(tmp_path), "--base", str(base)]) == 1
    assert "is not from a demonstration" in capsys.readouterr().err
    assert (base / "thesis.odt").read_text() == "dear"


def test_a_source_that_is_not_a_directory_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--source", str(tmp_path / "nowhere"), "--base", str(tmp_path / "b")]) == 1
    assert "is not a directory" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


# --- the complete run


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The directory of the run, its source, and its output. With all tests it runs twice, the second time over the first."""
    here = tmp_path_factory.mktemp("demo with space")
    source = tree(here / "source")
    before = state(source)
    for _ in range(extent(1, 2)):
        done = subprocess.run(
            [sys.executable, "-m", "staddle_server.demo", "--source", source],
            cwd=here,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert state(source) == before
    return here, source, done.stdout


@pytest.mark.xdist_group("demo")  # one worker runs it for all
def test_the_demonstration_backs_up_changes_restores_and_compares(shown: tuple[Path, Path, str]) -> None:
    here, _, said = shown
    for command in ("backup", "list", "diff", "restore"):
        assert f"  $ staddle {command}" in said
    assert "big.txt" in said
    assert re.search(r"Compared \d+ paths: everything is as before the change", said)
    restored = here / "demo-data" / "restored"
    assert (restored / "big.txt").stat().st_size == 300_000
    assert stat.S_IMODE((restored / "sub" / "deep" / "read-only").stat().st_mode) == 0o400


@pytest.mark.xdist_group("demo")  # one worker runs it for all
def test_the_demonstration_stops_the_server_that_it_started(shown: tuple[Path, Path, str]) -> None:
    here, _, _ = shown
    pid = int((here / "demo-data" / "server" / "server.lock").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.xdist_group("demo")  # one worker runs it for all
def test_the_commands_at_the_end_work_when_pasted(shown: tuple[Path, Path, str]) -> None:
    here, _, said = shown
    ending = said[said.index("paste these") :].splitlines()[1:]
    commands = [
        line.strip() for line in ending[: next(i for i, line in enumerate(ending) if not line.strip())]
    ]
    assert len(commands) >= 6
    address = re.search(r"http://127\.0\.0\.1:\d+/", said)
    assert address
    look = f"import urllib.request; print(urllib.request.urlopen('{address[0]}').read().decode())"
    commands += [f"{shlex.quote(sys.executable)} -c {shlex.quote(look)}", "kill %1"]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands)],
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<h1>Staddle</h1>" in done.stdout
    token = re.search(r"Log in with this token: (staddle_\S+)", said)
    assert token
    assert token[1] in (here / "demo-data" / "server" / "client.toml").read_text()
    assert demo.digests(here / "demo-data" / "restored-again") == demo.digests(
        here / "demo-data" / "restored"
    )
