"""The output of a command, and standard input, as a backup of one file."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import CommandLine
from staddle.command.input_stream import standard_input


def python(script: str) -> list[str]:
    return ["--", sys.executable, "-c", script]


def test_the_output_of_a_command_becomes_a_backup_if_it_exits_0(staddle: CommandLine) -> None:
    script = "import sys; [sys.stdout.write(f'row {n}\\n') for n in range(300_000)]"
    done = staddle(
        "backup", "--dataset", "orders", "--name", "dumps/all.sql", "--from-command", *python(script)
    )
    assert done.lines[0].startswith("Backup ")
    dumped = staddle("cat", "orders", "dumps/all.sql").out
    assert dumped == b"".join(b"row %d\n" % number for number in range(300_000))


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("print('half of it', flush=True); raise SystemExit(3)", "exited with 3 after 11 bytes"),
        ("raise SystemExit(1)", "exited with 1 after 0 bytes"),
        ("import os; print('x' * 3_000_000, flush=True); os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
    ],
)
def test_a_command_that_fails_leaves_no_backup(staddle: CommandLine, script: str, how: str) -> None:
    staddle("backup", "--dataset", "orders", "--name", "a", "--from-command", "--", "echo", "good")
    failed = staddle(
        "backup", "--dataset", "orders", "--name", "a", "--from-command", *python(script), code=1
    )
    assert how in failed.err
    assert "nothing was backed up" in failed.err
    assert failed.out == b""
    assert len(staddle("list", "orders", "--json").records) == 2
    assert staddle("cat", "orders", "a").out == b"good\n"


def test_the_standard_error_of_a_command_is_shown(staddle: CommandLine) -> None:
    script = "import sys; print('careful', file=sys.stderr); print(sys.stdin.read())"
    words = ["backup", "--dataset", "orders", "--name", "a", "--from-command", *python(script)]
    done = staddle(*words, given=b"a password")
    assert done.err == "careful\n"
    assert staddle("cat", "orders", "a").out == b"a password\n"


def test_a_missing_command_is_reported_before_anything_is_sent(staddle: CommandLine) -> None:
    words = ["backup", "--dataset", "orders", "--name", "a", "--from-command", "--", "no-such-command"]
    error = staddle(*words, "--json", code=1)  # behind `--` it belongs to the command
    assert "no-such-command" in error.err
    assert staddle("backup", "--json", *words[1:], code=1).error["reason"] == "SOURCE_FAILED"
    assert staddle("list").lines[0].startswith("No datasets")


def test_the_command_is_not_run_if_its_output_cannot_be_stored(
    unconfigured: CommandLine, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    unconfigured.variables = {"STADDLE_SERVER": "127.0.0.1:1", "STADDLE_TOKEN": "x"}
    unconfigured("backup", "--dataset", "d", "--name", "a", "--from-command", "--", "touch", touched, code=1)
    assert not touched.exists()


def test_standard_input_becomes_a_backup(staddle: CommandLine) -> None:
    data = os.urandom(3_000_000)
    done = staddle("backup", "-", "--dataset", "disk", "--name", "disk.img", "--json", given=data)
    assert done.summary["data_bytes"] == len(data)
    assert staddle("cat", "disk", "disk.img").out == data
    emptied = ("backup", "-", "--dataset", "disk", "--name", "disk.img", "--max-removed", "100")
    staddle(*emptied, given=b"")
    assert staddle("cat", "disk", "disk.img").out == b""


def test_a_stream_never_replaces_the_backups_of_a_directory(staddle: CommandLine, source: Path) -> None:
    staddle("backup", source, "--dataset", "www")
    refused = staddle("backup", "-", "--dataset", "www", "--name", "dump", "--json", given=b"x", code=1)
    assert refused.error["reason"] == "ROOT_DIFFERS"


def test_an_interrupted_stream_leaves_nothing_and_ends_its_command(
    staddle: CommandLine, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"import os, sys, time; print('begun', flush=True); open({str(fifo)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    running = staddle.start(
        "backup", "--json", "--dataset", "d", "--name", "a", "--from-command", *python(script)
    )
    child = int(fifo.read_text())  # it has begun
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, b""), err
    assert b'"reason": "INTERRUPTED"' in err
    assert b'"resumable": false' in err
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert staddle("list", "d", "--json").summary["backup_count"] == 0


def test_a_signal_that_does_not_interrupt_the_read_still_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal may arrive just before the read, or in another thread: then the read would wait for more bytes."""
    reader, writer = os.pipe()
    written = threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not over.wait(60):
            written.set()
            os.write(writer, b"late\n")

    over = threading.Event()
    with open(reader) as given:
        monkeypatch.setattr("sys.stdin", given)
        other = threading.Timer(0.2, interrupt)
        other.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                next(iter(standard_input()))
        finally:
            over.set()
            other.join()
            os.close(writer)
    assert not written.is_set()


def test_the_command_waits_for_a_restarting_server_and_says_so(
    unconfigured: CommandLine, server, tmp_path: Path
) -> None:
    unconfigured.variables = {"STADDLE_CONFIG": str(server.config)}
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    script = (
        "import sys; sys.stdout.write('a' * 3_000_000); sys.stdout.flush();"
        f"open({str(begun)!r}, 'w').close(); open({str(go_on)!r}).read(); sys.stdout.write('b' * 3_000_000)"
    )
    backup = unconfigured.start("backup", "--dataset", "d", "--name", "a", "--from-command", *python(script))
    begun.read_bytes()
    server.kill()
    go_on.write_bytes(b"")
    assert backup.stderr is not None
    said = backup.stderr.readline()
    assert b"Trying again in" in said
    server.flags += ("--listen", server.address)
    server.start()
    out, err = backup.communicate(timeout=60)
    assert backup.returncode == 0, err
    assert b"it resumed an earlier run" in out
    assert unconfigured("cat", "d", "a").out == b"a" * 3_000_000 + b"b" * 3_000_000


def test_closed_standard_streams_do_not_break_a_backup_or_restore(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    def closed(redirections: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        line = f'"$0" -m staddle.command "$@" {redirections}'
        return subprocess.run(
            ["sh", "-c", line, sys.executable, *arguments],
            env=staddle.environment,
            capture_output=True,
            check=False,
        )

    for redirections in (">&-", "2>&-", "<&- >&- 2>&-"):
        assert closed(redirections, "backup", str(source), "--dataset", "www").returncode == 0
        target = tmp_path / redirections.replace(" ", "")
        assert closed(redirections, "restore", "www", "--target", str(target)).returncode == 0
        assert {each.name for each in target.iterdir()} == {each.name for each in source.iterdir()}
    (name, *_) = (each.name for each in source.iterdir() if each.is_file())
    for words in (["restore", "www", "--format", "tar"], ["cat", "www", name]):
        refused = closed(">&-", *words)
        assert refused.returncode == 2
        assert b"Standard output is closed" in refused.stderr
    asked = closed("<&-", "restore", "www", "--target", str(target), "--delete")
    assert asked.returncode == 2
    assert b"add --yes" in asked.stderr


def test_an_empty_path_restores_nothing(staddle: CommandLine, source: Path, tmp_path: Path) -> None:
    staddle("backup", str(source), "--dataset", "www")
    refused = staddle("restore", "www", "", "--target", str(tmp_path / "t"), "--delete", "--yes", code=2)
    assert "PATH is empty" in refused.err
    assert not (tmp_path / "t").exists()
