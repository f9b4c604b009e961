"""The command as a user runs it: a process with arguments, an environment, and output."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked

SECONDS_MAX = 120


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """Its standard output."""
        return self.out.decode().splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The same as JSON, one object a line."""
        return [json.loads(line) for line in self.lines]

    @property
    def summary(self) -> dict[str, Any]:
        """The last of these; no other is one."""
        *before, last = self.records
        assert "summary" in last
        assert not any("summary" in record for record in before)
        return last

    @property
    def error(self) -> dict[str, Any]:
        """The one JSON object on standard error."""
        (line,) = self.err.splitlines()
        return json.loads(line)


@dataclass
class CommandLine:
    """Runs `staddle` with these variables and no other settings."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What the process gets."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("STADDLE")}
        return kept | {"HOME": str(self.home), "COLUMNS": "120", "TZ": "UTC"} | self.variables

    def words(self, *arguments: str | bytes | Path) -> list[bytes]:
        """The command line."""
        return [os.fsencode(Path(sys.executable).with_name("staddle")), *map(os.fsencode, arguments)]

    def __call__(
        self, *arguments: str | bytes | Path, given: bytes = b"", code: int = 0, **variables: str
    ) -> Done:
        """Run it; asserts the exit code."""
        done = forked.run(
            self.words(*arguments),
            given=given,
            capture_output=True,
            timeout=SECONDS_MAX,
            env=self.environment | variables,
            cwd=self.home,
            check=False,
        )
        result = Done(done.returncode, done.stdout, done.stderr.decode())
        assert result.code == code, f"exit code {result.code}\n{result.out!r}\n{result.err}"
        return result

    def start(self, *arguments: str | bytes | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start it as a user does, in a new interpreter."""
        piped = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            self.words(*arguments), env=self.environment, cwd=self.home, **(piped | options)
        )


def shown(staddle: CommandLine, *arguments: str, columns: int = 80, code: int = 0) -> list[str]:
    """What a terminal of this width shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        staddle.words(*arguments),
        stdout=theirs,
        env=staddle.environment | {"COLUMNS": str(columns)},
        cwd=staddle.home,
    )
    os.close(theirs)
    data = b""
    try:
        while piece := os.read(ours, 65_536):
            data += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == code
    return data.decode().splitlines()
