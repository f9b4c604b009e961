"""Restores to standard output, in pipes as users make them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
from command_line import CommandLine


@pytest.fixture
def staddle(staddle: CommandLine, source: Path) -> CommandLine:
    """The command, with a backup of `source`."""
    with (source / "large").open("wb") as made:
        made.write(os.urandom(3_000_000))
    os.mkfifo(source / "pipe")
    staddle("backup", source, "--dataset", "www")
    return staddle


def piped(staddle: CommandLine, words: list[str], reader: list[str | Path]) -> tuple[int, int, bytes, str]:
    """The exit codes of the command and its reader, the reader's output, and the command's messages."""
    with staddle.start(*words) as writing:
        with subprocess.Popen(reader, stdin=writing.stdout, stdout=subprocess.PIPE) as reading:
            writing.stdout.close()
            out, _ = reading.communicate(timeout=120)
        err = writing.stderr.read().decode()
        return writing.wait(timeout=120), reading.returncode, out, err


def test_a_tar_archive_goes_through_a_pipe_into_tar(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    for words in (["--target", "-"], ["--format", "tar"]):
        target = tmp_path / words[0]
        target.mkdir()
        codes = piped(staddle, ["restore", "www", *words], ["tar", "-xpf", "-", "-C", target])
        assert codes[:3] == (0, 0, b"")
        assert "Wrote backup" in codes[3]
        assert (target / "large").read_bytes() == (source / "large").read_bytes()
        assert (target / "etc" / "conf").stat().st_mtime_ns == (source / "etc" / "conf").stat().st_mtime_ns
    _, _, out, _ = piped(staddle, ["restore", "www", "etc/deep", "hello.txt", "--target", "-"], ["tar", "-t"])
    assert out.decode().split() == ["etc/", "etc/deep/", "etc/deep/empty", "hello.txt"]


def test_a_restore_to_zip_reports_what_zip_cannot_hold(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    done = staddle("restore", "www", "--format", "zip", code=3)
    assert "pipe: a zip archive cannot hold a fifo" in done.err
    (tmp_path / "www.zip").write_bytes(done.out)
    with zipfile.ZipFile(tmp_path / "www.zip") as opened:
        assert opened.testzip() is None
        assert opened.read("large") == (source / "large").read_bytes()
    done = staddle("restore", "www", "--format", "zip", "--exclude", "pipe", "--json")
    said = [json.loads(line) for line in done.err.splitlines()]
    assert (said[-1]["summary"], said[-1]["format"], said[-1]["complete"]) == ("restore", "zip", True)


def test_a_closed_pipe_ends_the_command_silently(staddle: CommandLine) -> None:
    code, _, out, err = piped(staddle, ["restore", "www", "--format", "tar"], ["head", "-c", "5"])
    assert (code, len(out), err) == (-signal.SIGPIPE, 5, "")


def test_an_archive_is_not_written_to_a_terminal(staddle: CommandLine) -> None:
    ours, theirs = pty.openpty()
    running = staddle.start("restore", "www", "--target", "-", stdout=theirs)
    os.close(theirs)
    _, err = running.communicate(timeout=60)
    os.close(ours)
    assert running.returncode == 2
    assert b"not for a terminal" in err


def test_a_full_disk_is_a_failure_with_its_reason(staddle: CommandLine) -> None:
    with open("/dev/full", "wb") as full:
        running = staddle.start("restore", "www", "--format", "tar", stdout=full)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert b"No space left on device" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--target is missing"),
        (["--format", "tar", "--target", "x"], "leave --target out"),
        (["--format", "rar"], "rar"),
        (["--target", "-", "--delete"], "--delete is for"),
        (["--target", "-", "--dry-run"], "--dry-run is for"),
        (["--target", "-", "--overwrite", "if-changed"], "--overwrite is for"),
    ],
)
def test_conflicting_options_are_a_usage_error(
    words: list[str], says: str, unconfigured: CommandLine
) -> None:
    done = unconfigured("restore", "www", *words, code=2)
    assert says in done.err
    assert done.out == b""
