"""The calls that a server in this process answers, counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from staddle_server.logs import CALLS


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """The calls that the server answered, by method, as its log has them."""
    calls: Counter[str] = Counter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            calls[record.fields["method"]] += 1

    log, handler = logging.getLogger(CALLS), Counting(logging.DEBUG)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield calls
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
