"""Files and values that a person writes, copies or mounts: reads them within bounds, and says what is wrong with an unusable one."""

import codecs
import os
import re
import select
import stat
from typing import Final

from staddle._errors import ConfigError

PIPE_S: Final = 5.0
"""How long the writer of a pipe may stay silent."""
_READ_BYTES: Final = 64 * 1024
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_INVISIBLE: Final = "\ufeff\u200b\u200c\u200d\u2060"
_TOKEN: Final = re.compile(r"staddle_[A-Za-z0-9_-]{43}")
_BEFORE_TOKEN: Final = re.compile(
    r"(?i)(?:export\s+)?(?:staddle_token\s*=|token\s*=|(?:authorization\s*:\s*)?bearer(?:\s|$))\s*"
)


def read(path: str, bytes_max: int, what: str, *, pipe_s: float = PIPE_S) -> tuple[bytes, int]:
    """The bytes of the file `path`, of which `bytes_max` are plausible for `what` ("a PEM file"), and its mode.

    Reads a regular file, /dev/null, and a pipe whose writer is not silent for longer than `pipe_s`. Raises ConfigError.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read: {why}.", facts={"path": path}) from error
    try:
        mode = os.fstat(descriptor).st_mode
        data = _read(descriptor, path, bytes_max, what, pipe_s)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", facts={"path": path}) from error
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise ConfigError(f"{path} has more than {bytes_max} bytes: it is not {what}.", facts={"path": path})
    return data, mode


def _read(descriptor: int, path: str, bytes_max: int, what: str, pipe_s: float) -> bytes:
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    is_null = kind == stat.S_IFCHR and os.path.samestat(status, os.stat(os.devnull))
    if kind == stat.S_IFDIR:
        raise ConfigError(f"{path} cannot be read: it is a directory, not {what}.", facts={"path": path})
    if kind not in {stat.S_IFREG, stat.S_IFIFO} and not is_null:
        raise ConfigError(
            f"{path} cannot be read: it is a device or a socket, not {what}.", facts={"path": path}
        )
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    data = bytearray()
    while len(data) <= bytes_max:
        if kind == stat.S_IFIFO and not ready.poll(pipe_s * 1000):
            raise ConfigError(
                f"{path} cannot be read: it is a pipe, and nothing was written to it in {pipe_s:g} s.",
                facts={"path": path},
            )
        part = os.read(descriptor, min(_READ_BYTES, bytes_max + 1 - len(data)))
        if not part:
            break
        data += part
    return bytes(data)


def text_of(data: bytes, path: str) -> str:
    r"""The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one; \r\n and \r as one line end.

    Raises ConfigError, which names the line that is not text.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, len(mark) + error.start) + 1
        raise ConfigError(
            f"{path} is not text in UTF-8 (line {line}): save it as UTF-8.", facts={"path": path}
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unquoted(text: str) -> str:
    """A value as it was meant: without spaces, line ends, invisible characters and one pair of quotes around it."""
    text = text.strip().strip(_INVISIBLE).strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].strip()
    return text


def token_of(text: str) -> str:
    """A token as it was meant: also with `Bearer` or the variable's name before it, or wrapped over lines.

    Raises ConfigError for what cannot be one; its message never repeats what was given.
    """
    text = unquoted(text)
    if (before := _BEFORE_TOKEN.match(text)) is not None:
        text = unquoted(text[before.end() :])
    squeezed = "".join(text.translate(dict.fromkeys(map(ord, _INVISIBLE))).split())
    if _TOKEN.fullmatch(squeezed):
        return squeezed
    if text and text.isascii() and text.isprintable() and " " not in text and "/" not in text:
        return text
    if text.startswith(("/", "./", "../", "~/")):
        why = "It looks like the path of a file: set what is in the file"
    else:
        why = "It is empty or holds characters that no token has"
    raise ConfigError(
        f"The token cannot be used. {why}; a token is one word that `staddle-server token create` prints."
    )
