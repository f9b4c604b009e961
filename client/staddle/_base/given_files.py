"""Files and values that people write, copy or mount: read within bounds, and a clear reason for each unusable one.

The same for the client's files and the server's.
"""

import codecs
import os
import pwd
import select
import stat
from pathlib import Path
from typing import Final

PIPE_S: Final = 5.0
"""How long the writer of a pipe may stay silent."""
INVISIBLE: Final = "\ufeff\u200b\u200c\u200d\u2060"
"""What editors and chats put around and into a value that is pasted."""
_READ_BYTES: Final = 64 * 1024
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class GivenError(Exception):
    """A file cannot be used. The message names it and says why, without a full stop; it never repeats what is in it."""


def read(path: str | Path, bytes_max: int, what: str, *, pipe_s: float | None = PIPE_S) -> tuple[bytes, int]:
    """The bytes of the file `path`, of which `bytes_max` are plausible for `what` ("a PEM file"), and its mode.

    Reads a regular file, /dev/null, and a pipe whose writer is not silent for longer than `pipe_s`; None refuses pipes.
    Raises GivenError.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise GivenError(f"cannot read {path}: {_why_not(Path(path), error)}") from error
    try:
        status = os.fstat(descriptor)
        if flaw := _flaw(status, what, pipes=pipe_s is not None):
            raise GivenError(f"cannot read {path}: it is {flaw}")
        is_pipe = stat.S_ISFIFO(status.st_mode)
        data = _read(descriptor, path, bytes_max + 1, pipe_s if is_pipe else None)
    except OSError as error:
        raise GivenError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise GivenError(f"{path} is larger than {bytes_max} bytes: it is not {what}")
    return data, status.st_mode


def _flaw(status: os.stat_result, what: str, *, pipes: bool) -> str:
    """What the file is if it cannot be read as `what`; empty if it can."""
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return f"a directory, not {what} (containers make a directory where the file to mount does not exist)"
    if stat.S_ISFIFO(mode):
        return "" if pipes else f"a pipe, not {what}"
    # Service managers and containers put other nodes of the same device in a file's place.
    is_null = stat.S_ISCHR(mode) and status.st_rdev == os.stat(os.devnull).st_rdev
    return "" if stat.S_ISREG(mode) or is_null else f"a device or a socket, not {what}"


def _read(descriptor: int, path: str | Path, wanted: int, pipe_s: float | None) -> bytes:
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    data = bytearray()
    while len(data) < wanted:
        if pipe_s is not None and not ready.poll(pipe_s * 1000):
            raise GivenError(
                f"cannot read {path}: it is a pipe, and nothing was written to it in {pipe_s:g} s"
            )
        part = os.read(descriptor, min(_READ_BYTES, wanted - len(data)))
        if not part:
            break
        data += part
    return bytes(data)


def text_of(data: bytes, path: str | Path) -> str:
    r"""The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one; \r\n and \r as one line end.

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
    """The intended value, without surrounding spaces, line ends, invisible characters and one pair of quotes."""
    text = text.strip().strip(INVISIBLE).strip()
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
