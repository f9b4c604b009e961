"""Files that a person writes, copies or mounts: reads them within bounds, and says what is wrong with one that is unusable."""

import codecs
import os
import pwd
import select
import stat
from pathlib import Path
from typing import Final

PIPE_S: Final = 5.0
"""How long the writer of a pipe may stay silent."""
_READ_BYTES: Final = 64 * 1024
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class GivenError(Exception):
    """A file cannot be used. The message names it and says why; it never repeats what is in it."""


def read(path: Path, bytes_max: int, what: str, *, pipe_s: float | None = PIPE_S) -> bytes:
    """The bytes of the file `path`, of which `bytes_max` are plausible for `what` ("a settings file").

    Reads a regular file, /dev/null, and a pipe whose writer is not silent for longer than `pipe_s`; None refuses pipes.
    Raises GivenError.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise GivenError(f"cannot read {path}: {_why_not(path, error)}") from error
    try:
        data = _read(descriptor, path, bytes_max, what, pipe_s)
    except OSError as error:
        raise GivenError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise GivenError(f"{path} is larger than {bytes_max} bytes: this is not {what}")
    return data


def _read(descriptor: int, path: Path, bytes_max: int, what: str, pipe_s: float | None) -> bytes:
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise GivenError(
            f"cannot read {path}: Is a directory, not {what} (containers make a directory where the file to mount does not exist)"
        )
    if kind == stat.S_IFIFO and pipe_s is not None:
        return _read_pipe(descriptor, path, bytes_max, pipe_s)
    is_null = kind == stat.S_IFCHR and status.st_rdev == os.makedev(1, 3)
    if kind != stat.S_IFREG and not is_null:
        raise GivenError(f"cannot read {path}: it is a pipe, a socket or a device, not {what}")
    parts = []
    wanted = bytes_max + 1
    while wanted and (part := os.read(descriptor, min(wanted, _READ_BYTES))):
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


def _read_pipe(descriptor: int, path: Path, bytes_max: int, pipe_s: float) -> bytes:
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    data = bytearray()
    while len(data) <= bytes_max:
        if not ready.poll(pipe_s * 1000):
            raise GivenError(
                f"cannot read {path}: it is a pipe, and nothing was written to it in {pipe_s:g} s"
            )
        part = os.read(descriptor, _READ_BYTES)
        if not part:
            break
        data += part
    return bytes(data)


def text_of(data: bytes, path: Path) -> str:
    r"""The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one, and \r\n and \r as one line end.

    Raises GivenError, which names the line that is not text.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, len(mark) + error.start) + 1
        raise GivenError(f"{path} is not text in UTF-8 (line {line}): save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unquoted(text: str) -> str:
    """A value as it was meant: without spaces, line ends, byte order marks and one pair of quotes around it."""
    text = text.strip().strip("\ufeff\u200b").strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].strip()
    return text


def _why_not(path: Path, error: OSError | ValueError) -> str:
    """Why a file cannot be opened, and whose it is where that matters."""
    if isinstance(error, ValueError):  # a NUL in the name
        return str(error)
    try:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            return f"it is a link to {os.readlink(path)}, which does not exist"
        if isinstance(error, PermissionError):
            status = path.stat()
            mode = stat.S_IMODE(status.st_mode)
            return (
                f"{error.strerror}: it belongs to {_user(status.st_uid)} with mode {mode:04o}, and this process runs as "
                f"{_user(os.geteuid())}"
            )
    except OSError:
        pass  # a directory above it is closed, too
    return error.strerror or str(error)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
