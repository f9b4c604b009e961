"""Programs that are run and watched: how long they took, how much processor and memory. And a Staddle server of one's own.

Memory is the peak of what was resident (VmHWM); processor is user and system time of all threads. Linux only.
"""

import compileall
import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, Self

MIB: Final = 1024 * 1024
LOOK_MS: Final = 10
"""How often a running program's memory is looked at. Peaks that are higher for less than that at its very end are missed."""
DEADLINE_S: Final = 3_600.0
START_S: Final = 60.0
STOP_S: Final = 60.0
BIN: Final = Path(sys.executable).parent
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class ProgramError(Exception):
    """A program did not do what it should. The message has its last words."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended, and what it took. `code` is negative after a signal."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    cpu_s: float
    kernel_s: float
    """The part of it in the system."""
    peak_bytes: int

    def checked(self, *codes: int) -> Self:
        """Itself. Raises ProgramError if it ended with a code that is not among `codes` (0)."""
        if self.code not in (codes or (0,)):
            words = " ".join((self.err.strip() or self.out.strip()).split("\n")[-3:])[-600:]
            raise ProgramError(
                f"`{' '.join(self.argv[:3])} …` ended with {self.code}: {words or 'and said nothing'}"
            )
        return self

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of `staddle … --json`."""
        lines = self.out.strip().splitlines()
        if not lines:
            raise ProgramError(f"`{' '.join(self.argv[:3])} …` printed no summary")
        summary: dict[str, Any] = json.loads(lines[-1])
        return summary


class Program:
    """A program that is running, or has ended. Use it in a with statement: nothing is left running.

    What it prints is in Finished.out, unless `out` takes it.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        out: IO[bytes] | None = None,
    ) -> None:
        self._argv = tuple(map(str, argv))
        self._files = ExitStack()
        scratch = (self._files.enter_context(tempfile.TemporaryFile()) for _ in range(2))  # noqa: SIM115 - the stack closes them
        self._out = None if out is not None else next(scratch)
        self._err = next(scratch)
        self._peak_bytes = 0
        self._begun_s = time.monotonic()
        self._process = subprocess.Popen(
            self._argv,
            env=clean_environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._out if out is None else out,
            stderr=self._err,
        )
        self.pidfd = os.pidfd_open(self._process.pid)
        self._finished: Finished | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._finished is None:
            self.kill()
            self.wait()
        self._files.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        if self._finished is None:
            with suppress(ProcessLookupError):  # Popen.send_signal would take its end away from `wait`
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def watch(self, until: Callable[[], bool]) -> bool:
        """Waits until it has ended (False), or something is so (True)."""
        while not self._ends_soon():
            if until():
                return True
        return False

    def wait(self) -> Finished:
        """Waits until it has ended."""
        while self._finished is None and not self._ends_soon():
            pass
        if self._finished is None:
            self._finished = self._reaped()
        return self._finished

    def _ends_soon(self) -> bool:
        """Waits for LOOK_MS, and looks at its memory; True: it has ended. Raises ProgramError after DEADLINE_S."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(LOOK_MS):
            return True
        self._peak_bytes = max(self._peak_bytes, peak_bytes(self._process.pid))
        if time.monotonic() - self._begun_s > DEADLINE_S:
            self.kill()
            raise ProgramError(f"`{' '.join(self._argv[:3])} …` had not ended after {DEADLINE_S:.0f} s")
        return False

    def _reaped(self) -> Finished:
        _, status, usage = os.wait4(self._process.pid, 0)
        seconds = time.monotonic() - self._begun_s
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        os.close(self.pidfd)
        # A child begins with its parent's peak: the kernel's own number says something only above that.
        if usage.ru_maxrss * 1024 > peak_bytes(os.getpid()):
            self._peak_bytes = max(self._peak_bytes, usage.ru_maxrss * 1024)
        return Finished(
            self._argv,
            code,
            "" if self._out is None else _text(self._out),
            _text(self._err),
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_stime,
            self._peak_bytes,
        )


def run(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Finished:
    """Runs a program to its end, whatever that is."""
    with Program(argv, env=env, cwd=cwd) as program:
        return program.wait()


@functools.cache
def compile_ours() -> None:
    """Compile Staddle's modules, as an installation does: in a checkout every start may compile them again."""
    for package in ("staddle", "staddle_server"):
        spec = find_spec(package)  # importing them would make this process larger than what it measures
        for place in (spec and spec.submodule_search_locations) or ():
            compileall.compile_dir(place, quiet=2)


def staddle(*arguments: str | Path) -> list[str | Path]:
    """The command line of `staddle … --json` of this environment."""
    compile_ours()
    return [BIN / "staddle", *arguments, "--json"]


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of the programs that are measured, and with `more`."""
    ours = ("STADDLE", "RESTIC_", "BORG_", "RUSTIC_", "BUPSTASH_")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | dict(more or {})


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


def peak_bytes(pid: int) -> int:
    """The most that a process had resident; 0 if it is gone."""
    return _status(pid, "VmHWM") * 1024


def thread_count(pid: int) -> int:
    """How many threads a process has now; 0 if it is gone."""
    return _status(pid, "Threads")


def processor_s(pid: int) -> tuple[float, float]:
    """Processor time of all threads of a process since it was started: all of it, and that in the system. Raises OSError if it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / TICKS_PER_S, system / TICKS_PER_S


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal itself; False if it has ended."""
    return bool(_status(pid, "SigCgt", base=16) >> (number - 1) & 1)


def _status(pid: int, name: str, *, base: int = 10) -> int:
    """A number of /proc/PID/status; 0 if the process is gone."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1], base)
    return 0


def tree_bytes(root: Path) -> int:
    """The sizes of all files below a directory, some of which may go away meanwhile."""
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(f"{directory}/{name}").st_size
    return total


@dataclass
class Server:
    """`staddle-server serve` on a separate directory, on loopback. Its log lies beside that directory."""

    data: Path
    address: str = "127.0.0.1:0"
    """Where it listens; port 0 becomes the one that it got, and stays that over restarts."""
    options: tuple[str | Path, ...] = ()
    """More of its command line."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _killed_peak_bytes: int = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def command(self) -> list[str | Path]:
        """The command line that starts it."""
        program = BIN / "staddle-server"
        place = ("--data", self.data, "--listen", self.address)
        return [program, "serve", *place, "--log-format", "json", *self.options]

    def start(self) -> None:
        """Starts it and waits until it listens."""
        compile_ours()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self.command,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        begun_s = time.monotonic()
        for line in self._process.stdout:
            if found := re.match(r"Listening on (\S+:\d+)", line):
                self.address = found[1]
                return
            if time.monotonic() - begun_s > START_S:
                break
        last = self._log.read_text(errors="replace")[-600:]
        self.kill()
        raise ProgramError(f"the server did not start: {last}")

    def pause(self) -> None:
        """Takes its processor time away, until `go_on`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        self._killed_peak_bytes = max(self._killed_peak_bytes, self.peak_bytes)
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As an operator would, with SIGTERM. Raises ProgramError if it does not end well."""
        code = self._end(signal.SIGTERM)
        if code:
            raise ProgramError(f"the server ended with {code} after SIGTERM")

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # one that is paused would never hear of it
        assert process.stdout is not None
        process.stdout.close()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ProgramError(f"the server was still there {STOP_S:.0f} s after a signal") from None

    # --- looking at it

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "STADDLE_CONFIG": str(self.data / "client.toml"),
            "STADDLE_CACHE_DIR": str(self.data.with_name(self.data.name + "-cache")),
        }

    @property
    def pid(self) -> int:
        """Its process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def reset_peak(self) -> None:
        """From now on `peak_bytes` is the peak since now."""
        self._killed_peak_bytes = 0
        if self.pid:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def peak_bytes(self) -> int:
        """The most it had resident, also before it was killed, since the last reset."""
        return max(self._killed_peak_bytes, peak_bytes(self.pid) if self.pid else 0)

    @property
    def cpu_s(self) -> float:
        """Processor time of all of its threads since it was started."""
        return processor_s(self.pid)[0]

    @property
    def kernel_s(self) -> float:
        """The part of it in the system."""
        return processor_s(self.pid)[1]

    @property
    def stored_bytes(self) -> int:
        """All files of its directory, the catalog included."""
        return tree_bytes(self.data)

    @property
    def catalog_bytes(self) -> int:
        """The catalog, with the journal beside it."""
        return sum(path.stat().st_size for path in self.data.glob("catalog.db*"))

    @property
    def pack_bytes(self) -> int:
        """Packs that are durable."""
        return tree_bytes(self.data / "store" / "packs")

    def calls(self, method: str) -> Iterator[dict[str, Any]]:
        """What its log says of calls of a method that ended well, from its beginning on."""
        for fields in self._logged(f'"method": "{method}"'):
            if fields["outcome"] == "OK":
                yield fields

    def refusals(self) -> Counter[tuple[str, str]]:
        """How often it said that there is too much at once, by method and by what there was too much of."""
        return Counter((call["method"], call["detail"]) for call in self._logged('"reason": "TOO_MANY"'))

    def _logged(self, text: str) -> Iterator[dict[str, Any]]:
        """The lines of its log that have such a text."""
        with self._log.open() as log:
            for line in log:
                if text in line:
                    yield json.loads(line)

    def received_bytes(self) -> int:
        """How many bytes of chunks came with PutChunks so far, uncompressed."""
        return sum(call["bytes"] for call in self.calls("PutChunks"))

    @property
    def _log(self) -> Path:
        return self.data.with_name(self.data.name + ".log")
