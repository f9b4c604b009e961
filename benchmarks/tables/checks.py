"""Checks of running programs: each is one line, PASS or FAIL, with seconds and the peak memory of client and server."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.programs.processes import MIB, Finished, ProgramError, Server, run, staddle

GIB: Final = 1024 * MIB
MEMORY_BYTES_MAX: Final = 250 * MIB
"""What server and client may have, whatever the size of the data."""
DATASET: Final = "big"


class CheckError(Exception):
    """Something is not as it should be. The message says what."""


@dataclass
class Check:
    """One check under way: the programs that it runs are watched."""

    server: Server
    details: list[str] = field(default_factory=list)
    seconds: float = 0.0
    client_bytes: int = 0

    def run(self, argv: Sequence[str | Path], *codes: int) -> Finished:
        """Runs a client to its end. Raises ProgramError if that is not a good one."""
        return self.note(run(argv, env=self.server.environment)).checked(*codes)

    def note(self, finished: Finished) -> Finished:
        """Adds what a client took."""
        self.seconds += finished.seconds
        self.client_bytes = max(self.client_bytes, finished.peak_bytes)
        return finished

    def backup(self, source: Path, *options: str, dataset: str = DATASET) -> dict[str, Any]:
        """`staddle backup`; answers its summary."""
        return self.run(staddle("backup", source, "--dataset", dataset, *options)).summary

    def restore(self, target: Path, *options: str, dataset: str = DATASET) -> dict[str, Any]:
        """`staddle restore`; answers its summary."""
        return self.run(staddle("restore", dataset, "--target", target, *options)).summary

    def expect(self, condition: bool, otherwise: str) -> None:
        """Raises CheckError unless it is so."""
        if not condition:
            raise CheckError(otherwise)

    def say(self, detail: str) -> None:
        """Something for the end of the line."""
        self.details.append(detail)


class Checks:
    """All checks: runs them one after another, writes a line for each, counts."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    @contextmanager
    def check(self, title: str, server: Server) -> Iterator[Check]:
        """One check. An error in it is its failure, and the next checks still run."""
        check = Check(server)
        server.reset_peak()
        if sys.stdout.isatty():
            print(f"....  {title}", end="\r", flush=True)
        fault = ""
        try:
            yield check
            self._check_memory(check)
        except (CheckError, ProgramError, OSError, LookupError, ValueError) as error:
            fault = str(error) or repr(error)
        self.passed += not fault
        self.failed += bool(fault)
        print(
            f"{'FAIL' if fault else 'PASS'}  {title:<46} {check.seconds:7.1f} s"
            f"   client {check.client_bytes // MIB:4} MiB   server {server.peak_bytes // MIB:4} MiB"
            f"   {fault or ', '.join(check.details)}",
            flush=True,
        )

    def _check_memory(self, check: Check) -> None:
        for name, size in (("client", check.client_bytes), ("server", check.server.peak_bytes)):
            check.expect(
                size <= MEMORY_BYTES_MAX,
                f"the {name} had {size / MIB:.0f} MiB, and {MEMORY_BYTES_MAX // MIB} are the most it may have",
            )


def size(count: int) -> str:
    """Bytes, to be read."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
