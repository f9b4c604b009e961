"""What a backup names as its origin: a host, and a root on it."""

from __future__ import annotations

import os
import socket
from typing import Final

from staddle._types.options import BackupOptions

TEXT_BYTES_MAX: Final = {"host": 255, "root": 16 * 1024}


def host_of(options: BackupOptions) -> str:
    """The host that was given, or this machine's name."""
    return _text("host", socket.gethostname() if options.host is None else options.host)


def root_text(root: bytes) -> str:
    """A root as text."""
    return _text("root", os.fsdecode(root))


def _text(field: str, value: str) -> str:
    """Text for the wire: what is not Unicode is escaped, what is too long is cut."""
    raw = value.encode("utf-8", "backslashreplace")[: TEXT_BYTES_MAX[field]]
    return raw.decode("utf-8", "ignore")
