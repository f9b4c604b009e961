"""What this library says where the system gives no thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from staddle._base.threads import is_no_thread, start_thread
from staddle._errors import ExhaustedError


def no_thread() -> ExhaustedError:
    """The error for it."""
    return ExhaustedError(
        "The system gives this process no more threads: raise its limit of processes (`ulimit -u`, TasksMax, the "
        "container's limit of pids) or its memory, and try again."
    )


def start(name: str, run: Callable[[], object]) -> threading.Thread:
    """A daemon thread that runs. Raises ExhaustedError where the system gives none."""
    try:
        return start_thread(name, run)
    except RuntimeError as error:
        raise of_runtime_error(error) from error


def of_runtime_error(error: RuntimeError) -> ExhaustedError | RuntimeError:
    """What to raise for an error of a library that may have started a thread."""
    return no_thread() if is_no_thread(error) else error
