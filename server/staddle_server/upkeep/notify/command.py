"""A command of the operator's own: it gets each message as JSON on its standard input."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, ClassVar, Final

from staddle_server.upkeep.notify.attempt import Attempt, TargetError
from staddle_server.upkeep.notify.notice import Notice
from staddle_server.upkeep.notify.targets import TIMEOUT_S, Filter

OUTPUT_BYTES_MAX: Final = 4096
SHOWN_CHARS: Final = 200
POLL_S: Final = 0.1
_READ_BYTES: Final = 16 * 1024
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Command:
    """A program and its arguments, run without a shell in a session of its own."""

    kind: ClassVar[str] = "command"
    most: ClassVar[int] = 1
    name: str
    filter: Filter
    words: Sequence[str]
    timeout_s: float = TIMEOUT_S

    def send(self, notices: Sequence[Notice], attempt: Attempt, now_ns: int) -> None:  # noqa: ARG002 - a target's
        """Run it for each message. TargetError: it failed, or took too long and was killed."""
        for notice in notices:
            run_child(self.words[0], self.words, notice.as_json(), environment(), attempt)


def environment() -> dict[str, str]:
    """Return the whole environment of a command: nothing of the server's, which may have secrets."""
    return {"PATH": PATH, "LANG": "C.UTF-8"}


def run_child(
    name: str, words: Sequence[str], given: bytes, environ: Mapping[str, str], attempt: Attempt
) -> None:
    """Run a program that gets `given` on its standard input; its exit code 0 is success. Messages call it
    `name`.

    Whatever it started in its session is killed when it ends, or when the time is over. TargetError.
    """
    try:
        process = subprocess.Popen(  # noqa: S603  the operator's own command, without a shell
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise TargetError(f"cannot run {name}: {getattr(error, 'strerror', None) or error}") from error
    output = bytearray()
    try:
        _feed(process, given, output, attempt)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    if process.returncode:
        said = output.decode("utf-8", "replace").strip()[-SHOWN_CHARS:]
        ended = (
            f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        )
        raise TargetError(f"{name} ended with {ended}" + (f": {said}" if said else " and no output"))


def _feed(process: subprocess.Popen[bytes], given: bytes, output: bytearray, attempt: Attempt) -> None:
    """Write and read until the program ends; keep the first bytes of its output. TargetError: too late."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    left = memoryview(given)
    with selectors.DefaultSelector() as waits:
        for stream, event in ((stdin, selectors.EVENT_WRITE), (stdout, selectors.EVENT_READ)):
            os.set_blocking(stream.fileno(), False)
            waits.register(stream, event)
        while True:
            ended = process.poll() is not None
            ready = waits.select(0 if ended else min(POLL_S, attempt.left_s())) if waits.get_map() else []
            for key, _ in ready:
                if key.fileobj is stdout:
                    if not _keep(stdout, output):
                        waits.unregister(stdout)
                    continue
                left = _written(stdin, left)
                if not left:
                    waits.unregister(stdin)
                    with contextlib.suppress(OSError):
                        stdin.close()
            if ended:
                return
            if not waits.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(POLL_S, attempt.left_s()))


def _keep(stream: IO[bytes], output: bytearray) -> bool:
    """Read what is there, and keep as much as there is room for; return False at the end."""
    try:
        part = os.read(stream.fileno(), _READ_BYTES)
    except BlockingIOError:
        return True
    output += part[: max(0, OUTPUT_BYTES_MAX - len(output))]
    return bool(part)


def _written(stream: IO[bytes], left: memoryview) -> memoryview:
    """Write what fits; return what is left, which is nothing if nobody reads it."""
    try:
        return left[os.write(stream.fileno(), left) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]
