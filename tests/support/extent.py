"""How much a test tries: a sample with `make test`; everything with `make test-all`, which CI runs."""

from __future__ import annotations

import os
from typing import TypeVar

_Value = TypeVar("_Value")
EVERYDAY = os.environ.get("STADDLE_TEST_EXTENT") != "all"


def extent(everyday: _Value, full: _Value) -> _Value:
    """A count, a step or a list of cases: the sample, or everything."""
    return everyday if EVERYDAY else full


def examples(full: int) -> int:
    """The number of examples of a property: a quarter with `make test`."""
    return extent(max(full // 4, 20), full)
