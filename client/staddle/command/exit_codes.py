"""How a command ends: its exit codes, and the ends that are not the library's errors."""

from typing import ClassVar, Final

from staddle import StaddleError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INCOMPLETE: Final = 3
"""Done, but some paths were not read, kept changing, are damaged or could not be written."""
NEEDED: Final = 4
"""Somebody is needed: what `staddle status` looks at is not all well."""
INTERRUPTED: Final = 130


class SourceError(StaddleError):
    """The source ended early, so no backup was made."""

    default_reason: ClassVar[str] = "SOURCE_FAILED"


class Interruption(Exception):  # noqa: N818 - no error: the user interrupted it
    """Ctrl-C, and what is left."""

    def __init__(self, message: str, *, resumable: bool) -> None:
        super().__init__(message)
        self.message = message
        self.resumable = resumable
