"""Counts the calls that a server in this process answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from call_log import each_call


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """The calls that the server answered, by method, as its log has them."""
    calls: Counter[str] = Counter()
    with each_call(lambda fields: calls.update([fields["method"]])):
        yield calls
