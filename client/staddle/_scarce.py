"""What this library says where the system gives no thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from staddle._errors import ExhaustedError
from staddle._threads import is_no_thread

if TYPE_CHECKING:
    import threading


def no_thread() -> ExhaustedError:
    """The error for it."""
    return ExhaustedError(
        "The system gives this process no further thread: raise its limit of processes (`ulimit -u`, TasksMax, the "
        "container's limit of pids) or its memory, and try again."
    )


def start(thread: threading.Thread) -> None:
    """Starts a thread. Raises ExhaustedError where the system gives none."""
    try:
        thread.start()
    except RuntimeError as error:
        raise of_runtime_error(error) from error


def of_runtime_error(error: RuntimeError) -> ExhaustedError | RuntimeError:
    """What to raise for an error of a library that may have started a thread."""
    return no_thread() if is_no_thread(error) else error
