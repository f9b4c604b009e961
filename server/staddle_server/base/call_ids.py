"""The id of a call: in its log line, in every other line that is logged for it, and with its errors."""

import os
import re
from contextvars import ContextVar
from typing import Final

CALL_KEY: Final = "staddle-call"
"""Its name in metadata and headers, both ways."""
CURRENT: Final[ContextVar[str]] = ContextVar("staddle_call", default="")
"""The call that this thread works for; empty for none."""
_GIVEN: Final = re.compile(r"[0-9A-Za-z-]{8,64}")


def call_id(given: str) -> str:
    """Return the id that a client gave to its call, or a new one if it gave none that can be logged as it is."""
    return given if _GIVEN.fullmatch(given) else os.urandom(8).hex()
