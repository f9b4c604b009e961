"""Logs: one line per event, and one per call, on standard error.

An event is a message and named fields, given as `extra={"fields": {...}}`; all packages use `logging`
directly. Lines are JSON, or text for a terminal. Everything that looks like a credential is removed here, as
a last safeguard.
"""

import json
import logging
import math
import os
import re
import stat
import sys
import time
from collections.abc import Mapping
from queue import SimpleQueue
from threading import Lock
from typing import Final, TextIO

from staddle._base.threads import start_thread

from staddle_server.base.call_ids import CURRENT

LOGGER: Final = "staddle_server"
CALLS: Final = "staddle_server.calls"
"""The logger of the one line per call; docs/operations.md documents its fields."""
MESSAGE_CHARACTERS_MAX: Final = 8_192
QUEUE_BYTES_MAX: Final = 1024 * 1024
"""Lines that standard error cannot take yet; more are dropped and counted."""
FLUSH_S: Final = 1.0
"""How long the server's exit waits for them."""
PAUSE_S: Final = 0.1
"""Replaces a line that did not fit into memory."""
REDACTED: Final = "[redacted]"

_CREDENTIALS: Final = re.compile(
    r"(?i)\bbearer\s+\S+|\bstaddle_[a-z0-9_-]{43}|staddle-master-key-1 \S+( \S+)?|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END|\Z)"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def redact(text: str) -> str:
    """Return the text without anything that looks like a token or a key."""
    return _CREDENTIALS.sub(REDACTED, text)


def _clean(text: str) -> str:
    """Return the text as one line: control characters and lone surrogates are escaped."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", redact(text)[:MESSAGE_CHARACTERS_MAX])


def _fields(record: logging.LogRecord) -> dict[str, object]:
    given = getattr(record, "fields", None)
    if not isinstance(given, Mapping):
        return {}
    return {_clean(str(name)): _value(value) for name, value in given.items()}


def _value(value: object) -> object:
    """Return a field's value: numbers stay numbers, also in a list; everything else becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON cannot represent these numbers
    if isinstance(value, bool | int | float | None):
        return value
    if type(value) is list or type(value) is tuple:  # an address is also a tuple, with its own text
        return [_value(each) for each in value]
    return _clean(str(value))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, then the fields; `error` holds
    a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage())[:MESSAGE_CHARACTERS_MAX],
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if call := CURRENT.get():
            line.setdefault("call", call)
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """Time, level if above information, message, then name=value."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [time.strftime("%H:%M:%S", time.localtime(record.created))]
        if record.levelno > logging.INFO:
            parts.append(record.levelname.lower() + ":")
        parts.append(_clean(record.getMessage()))
        parts.extend(
            f"{name}={_plain(value)}"
            for name, value in _fields(record).items()
            if value not in (None, "", [])
        )
        if (call := CURRENT.get()) and "call" not in _fields(record):
            parts.append(f"call={call}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + redact(self.formatException(record.exc_info))
        return line


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_plain(each) for each in value)
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text else text


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


class BackgroundHandler(logging.Handler):
    """Writes lines to a file descriptor on a separate thread, so that logging never waits for a slow reader.

    At most QUEUE_BYTES_MAX wait; more lines are dropped, and a line reports how many once writing works
    again.

    The queue and the locks are in C: Python's own stay locked if an allocation fails during release, and
    block all loggers.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._queue: SimpleQueue[bytes | Lock | None] = SimpleQueue()
        """Lines; locks to release once everything before them is written; None for the end."""
        self._lock = Lock()
        self._bytes = 0
        self._dropped = 0
        self._writable = False
        self._closed = False
        start_thread("log", self._run)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or count it as dropped."""
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001  a record that cannot be formatted is the caller's fault, as in every handler
            self.handleError(record)
            return
        with self._lock:
            if self._bytes + len(line) > QUEUE_BYTES_MAX:
                self._dropped += 1
                return
            self._queue.put(line)
            self._bytes += len(line)

    def flush(self) -> None:
        """Wait until everything is written, at most FLUSH_S; return at once if closed."""
        if self._closed:
            return
        written = Lock()
        written.acquire()
        self._queue.put(written)
        written.acquire(timeout=FLUSH_S)

    def close(self) -> None:
        """Write what is possible in FLUSH_S, and end the thread when it leaves its write.

        A second close does nothing.
        """
        if not self._closed:
            self.flush()
            self._closed = True
            self._queue.put(None)
        super().close()

    def _run(self) -> None:
        while True:
            try:
                if not self._write_next():
                    return
            except Exception:  # noqa: BLE001  no memory for the line: it counts as dropped, and the next one is tried
                with self._lock:
                    self._dropped += 1
                time.sleep(PAUSE_S)

    def _write_next(self) -> bool:
        """Return False at the end."""
        found = self._queue.get()
        if found is None:
            return False
        if isinstance(found, bytes):
            with self._lock:
                self._bytes -= len(found)
            self._writable = self._write(found)
            with self._lock:
                self._dropped += not self._writable
        else:
            found.release()
        dropped = self._dropped
        if dropped and self._writable and self._queue.empty() and self._write(self._dropped_line(dropped)):
            with self._lock:
                self._dropped -= dropped
        return True

    def _dropped_line(self, dropped: int) -> bytes:
        words = f"{dropped} log lines were dropped: standard error was not read, or could not be written"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, words, None, None)
        return (self.format(record) + "\n").encode()

    def _write(self, line: bytes) -> bool:
        """Return whether the line, or its beginning, was written.

        May block without limit: only this thread waits.
        """
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # the reader is gone, or the disk is full
            return False
        return True


def never_block(descriptor: int) -> None:
    """Let writes to a pipe fail with BlockingIOError instead of waiting for its reader.

    For output that bypasses the log: C libraries, and Python itself. Opens the pipe again, so that other
    processes with it are not affected. Other kinds of files stay unchanged.
    """
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(again, descriptor)
            os.close(again)
    except OSError as error:
        logging.getLogger(LOGGER).debug("descriptor %d stays unchanged: %s", descriptor, error)


def _handler(stream: TextIO | None) -> logging.Handler:
    try:
        descriptor = sys.stderr.fileno() if stream is None else -1
    except (AttributeError, OSError, ValueError):  # standard error is closed, or is not a file
        descriptor = -1
    if descriptor < 0:
        return logging.StreamHandler(stream or sys.stderr)
    return BackgroundHandler(os.dup(descriptor))


def setup(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send the server's logs, and the libraries' warnings, to `stream` (standard error) from now on.

    `log_format` is "json", "text", or "auto": text on a terminal. Logging to standard error never waits for
    its reader: see BackgroundHandler.
    """
    as_text = log_format == "text" or (log_format == "auto" and (stream or sys.stderr).isatty())
    handler = _handler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, JsonFormatter | TextFormatter):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)
    logging.captureWarnings(capture=True)


def set_level(level: str) -> None:
    """Set the lowest level that the server logs from now on, such as "info"."""
    logging.getLogger(LOGGER).setLevel(getattr(logging, level.upper()))
