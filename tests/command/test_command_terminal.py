"""Output on a terminal compared with output to a pipe."""

import io
import os
import pty
import re
import subprocess
from contextlib import redirect_stderr
from pathlib import Path

from command_line import CommandLine
from staddle import Progress
from staddle.command.output import Output
from staddle.command.progress import watched


def on_a_terminal(
    staddle: CommandLine, *arguments: str | Path, stdout: bool = False
) -> tuple[int, bytes, bytes]:
    """Runs it with standard error on a terminal, and `stdout` too if that is true: exit code, standard output, what the terminal was sent."""
    ours, theirs = pty.openpty()
    running = staddle.start(*arguments, stderr=theirs, stdout=theirs if stdout else subprocess.PIPE)
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux answers so when the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    out, _ = running.communicate(timeout=60)
    return running.returncode, out or b"", bytes(shown)


def test_progress_is_shown_on_a_terminal_only(staddle: CommandLine, source: Path, tmp_path: Path) -> None:
    code, out, shown = on_a_terminal(staddle, "backup", source, "--dataset", "www")
    assert code == 0
    assert out.count(b"\n") == 1
    assert b"0 entries" in shown
    assert b"\x1b[2K" in shown  # the line is cleared at the end
    assert staddle("backup", source, "--dataset", "www").err == ""
    code, out, shown = on_a_terminal(staddle, "restore", "www", "--target", tmp_path / "out")
    assert (code, out.count(b"\n")) == (0, 1)
    assert b"at 0 B/s" in shown
    code, out, shown = on_a_terminal(staddle, "restore", "www", "--target", tmp_path / "out", "--json")
    assert (code, shown) == (0, b"")


def test_lines_are_wrapped_between_words_on_a_terminal_only(staddle: CommandLine, source: Path) -> None:
    staddle.variables["COLUMNS"] = "40"
    code, out, shown = on_a_terminal(
        staddle, "backup", source, "--dataset", "www", "--exclude", "nothing", stdout=True
    )
    assert code == 0
    plain = re.sub(rb"\x1b\[[?0-9]*[a-zA-Z]", b"", out + shown).decode()
    said = [line for line in plain.splitlines() if line.startswith(("staddle:", "Backup", "  "))]
    assert len(said) > 4
    assert max(map(len, said)) <= 40
    assert "These exclude patterns matched nothing" in " ".join(plain.split())
    assert len(staddle("backup", source, "--dataset", "www").lines) == 1


def test_errors_stay_on_the_terminal_when_the_progress_line_is_cleared(
    staddle: CommandLine, source: Path
) -> None:
    code, out, shown = on_a_terminal(staddle, "backup", source, "--dataset", "www", "--kind", "differential")
    assert (code, out) == (1, b"")
    assert b"--kind full" in shown


def test_a_retry_is_reported_to_a_pipe_too() -> None:
    written = io.StringIO()
    with redirect_stderr(written), watched(Output(as_json=False)) as show:
        show(Progress("send", path="a"))
        show(Progress("retry", notice="No answer. Trying again in 1 s."))
    assert written.getvalue() == "staddle: No answer. Trying again in 1 s.\n"
