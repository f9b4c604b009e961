"""How much a test tries: a sample every day, with `make test`; all of it with `make test-all`, which CI runs."""

from __future__ import annotations

import os
from typing import TypeVar

_Value = TypeVar("_Value")
EVERYDAY = os.environ.get("STADDLE_TEST_EXTENT") != "all"


def extent(everyday: _Value, full: _Value) -> _Value:
    """A count, a step or a list of cases: for every day, or for the run of everything."""
    return everyday if EVERYDAY else full


def examples(full: int) -> int:
    """How many examples a property is tried with: a quarter every day."""
    return extent(max(full // 4, 20), full)
