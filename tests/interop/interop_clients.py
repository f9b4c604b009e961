"""Runs the clients in other languages, and skips tests where one cannot be built."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

import interop_build
import pytest


def need(leaves_out: str, *programs: str) -> None:
    """Skips the test, or fails it where nothing may be left out, unless these programs are here."""
    reasons = [reason for each in programs if (reason := interop_build.missing(each))]
    if not reasons:
        return
    text = f"{leaves_out} left out: {'; '.join(reasons)}"
    if os.environ.get("STADDLE_TEST_REQUIRE") == "all":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@dataclass(frozen=True)
class Ran:
    """The result of a client that prints JSON."""

    exit_status: int
    output: str
    errors: str

    @property
    def answer(self) -> dict[str, Any]:
        """The single answered message."""
        assert self.exit_status == 0, self.errors
        answer: dict[str, Any] = json.loads(self.output)
        return answer


@dataclass(frozen=True)
class Foreign:
    """A client in another language, to be run as a command."""

    name: str
    command: tuple[str, ...]
    # The precision with which its language can set a file's time.
    time_unit_ns: int

    def run(self, address: str, token: str, *arguments: str | bytes) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, "STADDLE_SERVER": address, "STADDLE_TOKEN": token},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=120,
            check=False,
        )
