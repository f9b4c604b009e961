"""Logs: one line per event, and one per call, on standard error.

An event is a message and named fields, given as `extra={"fields": {...}}`; the rooms below use `logging` as it is. Lines are JSON, or text where
a person reads along. Whatever looks like a credential is taken out here, once more, behind everybody's back.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Final, TextIO

LOGGER: Final = "staddle_server"
CALLS: Final = "staddle_server.calls"
"""The logger of the one line per call; its fields are documented in docs/operations.md."""
MESSAGE_CHARACTERS_MAX: Final = 8_192
REDACTED: Final = "[redacted]"

_CREDENTIALS: Final = re.compile(
    r"(?i)\bbearer\s+\S+|\bstaddle_[a-z0-9_-]{43}|staddle-master-key-1 \S+( \S+)?|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END|\Z)"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def redact(text: str) -> str:
    """The text without what looks like a token or a key."""
    return _CREDENTIALS.sub(REDACTED, text)


def _clean(text: str) -> str:
    """One line, whatever was in it: control characters and lone surrogates are escaped."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", redact(text)[:MESSAGE_CHARACTERS_MAX])


def _fields(record: logging.LogRecord) -> dict[str, object]:
    given = getattr(record, "fields", None)
    if not isinstance(given, Mapping):
        return {}
    return {
        _clean(str(name)): value if isinstance(value, bool | int | float | None) else _clean(str(value))
        for name, value in given.items()
    }


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, then the fields; `error` holds a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage())[:MESSAGE_CHARACTERS_MAX],
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """Time, level if it is more than information, message, then name=value."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [time.strftime("%H:%M:%S", time.localtime(record.created))]
        if record.levelno > logging.INFO:
            parts.append(record.levelname.lower() + ":")
        parts.append(_clean(record.getMessage()))
        parts.extend(
            f"{name}={_plain(value)}" for name, value in _fields(record).items() if value not in {None, ""}
        )
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + redact(self.formatException(record.exc_info))
        return line


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text else text


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def setup(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Logs of the server, and warnings of the libraries, go to `stream` (standard error) from now on.

    `log_format` is "json", "text", or "auto": text where the stream is a terminal.
    """
    stream = stream or sys.stderr
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, JsonFormatter | TextFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(getattr(logging, level.upper()))
    logging.captureWarnings(capture=True)
