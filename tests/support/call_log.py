"""The log of a server in this process about the calls that it answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from staddle_server.base.logs import CALLS


@contextmanager
def each_call(take: Callable[[Mapping[str, Any]], object]) -> Iterator[None]:
    """Pass the log fields of each call that ends inside the context to `take`."""

    class Taking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            take(record.fields)

    log, handler = logging.getLogger(CALLS), Taking(logging.DEBUG)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
