"""The bytes that `staddle backup --from-command` and `staddle backup -` read."""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from staddle._base.figures import counted
from staddle.command.exit_codes import SourceError
from staddle.command.text import escaped

PIECE_BYTES: Final = 1024 * 1024
TERMINATE_S: Final = 5.0


class CommandOutput:
    """What a command prints, in pieces. It is started when the first piece is asked for, and ended when this is left.

    After its last byte it must exit 0: otherwise iterating raises SourceError, so that a part is never taken for the whole.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Raises SourceError if the command does not exist."""
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self.size_bytes = 0
        if shutil.which(words[0]) is None:
            raise SourceError(
                f"The command {escaped(words[0])} was not found, or cannot be executed. Nothing was backed up.",
                facts={"command": words[0]},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        if process.stdout is not None:
            process.stdout.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(TERMINATE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __iter__(self) -> Iterator[bytes]:
        try:
            self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE)  # noqa: S603 - to run it is what the user asks for
        except OSError as error:
            raise SourceError(
                f"The command {escaped(self._words[0])} could not be started: {error.strerror}. Nothing was backed up.",
                facts={"command": self._words[0]},
            ) from error
        if self._process.stdout is None:
            raise SourceError("The command has no output that could be read.")
        for piece in _pieces(self._process.stdout.fileno()):
            self.size_bytes += len(piece)
            yield piece
        self._check(self._process.wait())

    def _check(self, status: int) -> None:
        if status == 0:
            return
        how = f"exited with {status}" if status > 0 else f"was ended by {_signal_name(-status)}"
        raise SourceError(
            f"The command {escaped(self._words[0])} {how} after {counted(self.size_bytes, 'byte')}, so nothing was backed up.",
            facts={"command": self._words[0], "exit_status": str(status)},
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def standard_input() -> Iterator[bytes]:
    """The bytes of standard input, in pieces. Raises SourceError if it is closed."""
    if sys.stdin is None:
        raise SourceError("Standard input is closed, so there is nothing to back up.")
    return _pieces(sys.stdin.fileno())


def _pieces(descriptor: int) -> Iterator[bytes]:
    """What comes, in pieces of PIECE_BYTES; the last one may be smaller.

    A signal that arrives just before a read begins does not end the read: so signals are waited for together with what comes.
    """
    with _signals() as signals:
        poll = select.poll()
        for each in (descriptor, signals):
            poll.register(each, select.POLLIN)
        held: list[bytes] = []
        size_bytes = 0
        while True:
            while signals in (ready := {each for each, _ in poll.poll()}):
                os.read(signals, 4096)  # whatever the handler raises is raised here
                if descriptor in ready:
                    break
            data = os.read(descriptor, PIECE_BYTES - size_bytes)
            held.append(data)
            size_bytes += len(data)
            if size_bytes == PIECE_BYTES or (size_bytes and not data):
                yield b"".join(held)
                held, size_bytes = [], 0
            if not data:
                return


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read as soon as a signal has arrived; its handler runs in the main thread's next step."""
    reader, writer = os.pipe()
    for each in (reader, writer):
        os.set_blocking(each, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
