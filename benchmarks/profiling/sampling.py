"""What a process does with its processor time: stacks that py-spy samples, weighed with what the system counted for each thread.

py-spy takes every thread for active that the system would let run, also one that waits for a processor or has just been woken; and it
sees no thread that never runs Python, such as those of gRPC's core. So samples say only how a thread's time is divided; how much that
is says the scheduler (/proc/PID/task/TID/schedstat). A thread that sleeps has none, and counts for nothing. py-spy reads memory and does
not stop the process (--nonblocking): stopping it for each sample, or unwinding native frames, doubled what was to be measured.
Instead of native frames there are source lines, which name the function that is called.
"""

import linecache
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

from benchmarks.profiling import stages
from benchmarks.programs.processes import BIN, ProgramError, catches

RATE: Final = 200
LOOK_S: Final = 0.02
"""How often threads are looked at: what one does after that at its end is not seen."""
NS: Final = 10**9
STOP_S: Final = 60.0
TEXT_CHARS_MAX: Final = 200
STACKS_BYTES_MAX: Final = 1 << 30


def sampler() -> Path | None:
    """py-spy; None: it is not installed."""
    here = BIN / "py-spy"
    found = str(here) if here.exists() else shutil.which("py-spy")
    return Path(found) if found else None


class Thread(NamedTuple):
    """A thread, the processor time that it has used, and how long it waited for a processor while it was runnable."""

    name: str
    cpu_ns: int
    queued_ns: int


def threads_of(pid: int) -> dict[int, Thread]:
    """All current threads of a process."""
    found = {}
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError, IndexError, ValueError):
                task = Path(f"/proc/{pid}/task/{name}")
                used, queued, _ = map(int, (task / "schedstat").read_text().split())
                found[int(name)] = Thread((task / "comm").read_text().strip(), used, queued)
    return found


@dataclass(slots=True)
class Sampled:
    """What was seen of a process."""

    samples: int = 0
    cpu_s: float = 0.0
    """Of all threads that were seen, by the scheduler's count."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of it."""

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


class Sampling:
    """Samples a running process as long as it lasts, or until the with statement is left; `sampled` has what came of it."""

    def __init__(self, pid: int, rate: int = RATE) -> None:
        self._pid = pid
        self._rate = rate
        self._directory = tempfile.TemporaryDirectory(prefix="staddle-samples-")  # closed by __exit__
        self._file = Path(self._directory.name) / "stacks"
        self._before: dict[int, Thread] = {}
        self._threads: dict[int, Thread] = {}
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._look, name="look", daemon=True)
        self.sampled = Sampled()

    def __enter__(self) -> Self:
        """Returns when it samples. Raises ProgramError if that cannot be."""
        program = sampler()
        if program is None:
            raise ProgramError("py-spy is not installed")
        self._before = threads_of(self._pid)
        argv = [str(program), "record", "--nonblocking", "--full-filenames", "--threads", "--format", "raw"]
        self._process = subprocess.Popen(
            [*argv, "--rate", str(self._rate), "--output", str(self._file), "--pid", str(self._pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = self._wait_for_start()
        if not said.startswith("py-spy> Sampling"):
            self._directory.cleanup()
            raise ProgramError(
                f"py-spy cannot sample (it needs root, or kernel.yama.ptrace_scope = 0): {said[-300:]}"
            )
        self._wait_until_it_can_be_stopped()
        self._watch.start()
        return self

    def _wait_for_start(self) -> str:
        assert self._process.stdout is not None
        said = ""
        line: str
        for line in self._process.stdout:
            if line.startswith("py-spy> Sampling"):
                return line
            said += line
        self._process.wait()
        return said.strip() or "it said nothing"

    def _wait_until_it_can_be_stopped(self) -> None:
        """py-spy says that it samples just before it sets its handler: SIGINT in between would end it, with nothing written."""
        deadline_s = time.monotonic() + STOP_S
        while not catches(self._process.pid, signal.SIGINT) and self._process.poll() is None:
            if time.monotonic() > deadline_s:
                self._process.kill()
                break
            time.sleep(0.001)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping.set()
        self._watch.join()
        self._process.send_signal(signal.SIGINT)
        try:
            said = self._last_words()
            if kind is None:
                if not self._file.exists():
                    raise ProgramError(f"py-spy wrote nothing: {said.strip()[-300:]}")
                self.sampled = weighed(read_stacks(self._file), self._used())
        finally:
            self._directory.cleanup()

    def _last_words(self) -> str:
        try:
            return self._process.communicate(timeout=STOP_S)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.communicate()[0]

    def _look(self) -> None:
        while True:
            self._threads.update(threads_of(self._pid))
            if self._stopping.wait(LOOK_S):
                self._threads.update(threads_of(self._pid))
                return

    def _used(self) -> dict[int, Thread]:
        """Of each thread, what it used since the beginning."""
        none = Thread("", 0, 0)
        return {
            tid: Thread(
                name,
                used - self._before.get(tid, none).cpu_ns,
                queued - self._before.get(tid, none).queued_ns,
            )
            for tid, (name, used, queued) in self._threads.items()
        }


Where = tuple[str, bool]
"""A stage, and whether its innermost frame is one in which a thread waits."""


def read_stacks(path: Path) -> dict[int, Counter[Where]]:
    """The samples of each thread by where it was, from a file of py-spy's."""
    if path.stat().st_size > STACKS_BYTES_MAX:
        raise ProgramError(f"py-spy wrote more than {STACKS_BYTES_MAX} bytes")
    found: dict[int, Counter[Where]] = defaultdict(Counter)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            stack, _, count = line.rstrip("\n").rpartition(" ")
            thread, *raw = stack.split(";")
            if (named := re.match(r"thread \((\d+)\)", thread)) and count.isdecimal() and raw:
                frames = [described(frame) for frame in raw]
                found[int(named[1])][stages.stage_of(frames), stages.waits(frames[-1])] += int(count)
    return dict(found)


_FRAME: Final = re.compile(r"(?P<function>.*) \((?P<file>.*):(?P<line>\d{1,9})\)")


def described(frame: str) -> str:
    """A frame of py-spy's, `FUNCTION (FILE:LINE)`, as `stages` reads it, with the source line.

    What was read while the process changed it may be anything: only a name that a source can have is looked up.
    """
    if (parts := _FRAME.fullmatch(frame)) is None:
        return frame
    named = parts["file"].isprintable() and parts["file"].endswith(".py")
    text = linecache.getline(parts["file"], int(parts["line"])).strip() if named else ""
    return f"{parts['file']} {parts['function']}: {text[:TEXT_CHARS_MAX]}"


def weighed(samples: Mapping[int, Counter[Where]], used: Mapping[int, Thread]) -> Sampled:
    """Divides the time of each thread as its samples say; one without samples goes by its name."""
    sampled = Sampled()
    for tid, thread in used.items():
        seconds = thread.cpu_ns / NS
        sampled.cpu_s += seconds
        counts = samples.get(tid)
        if not counts:
            sampled.add(stages.stage_of_thread(thread.name), seconds)
            continue
        weights = _at_work(counts, thread)
        whole = sum(weights.values())
        for stage, weight in weights.items():
            sampled.add(stage, seconds * weight / whole)
    sampled.samples = sum(counts.total() for counts in samples.values())
    return sampled


def _at_work(counts: Counter[Where], thread: Thread) -> dict[str, float]:
    """The samples of a thread by stage, without those in which it only stood in the queue for a processor.

    A thread stands there above all when something that it waited for has come: so they are taken from the frames that wait.
    """
    queued = counts.total() * thread.queued_ns / max(1, thread.cpu_ns + thread.queued_ns)
    waited = sum(count for (_, waits), count in counts.items() if waits)
    kept = 1.0 - min(waited, queued) / waited if waited else 1.0
    weights: dict[str, float] = {}
    for (stage, waits), count in counts.items():
        weights[stage] = weights.get(stage, 0.0) + count * (kept if waits else 1.0)
    if not any(weights.values()):  # it did nothing but wake up
        weights = {stage: float(count) for (stage, _), count in counts.items()}
    return weights
