"""Statements of tests for either database of a catalog."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, text


def sql(connection: Connection, statement: str, values: Sequence[object] = ()) -> CursorResult[Any]:
    """Execute a statement with a `?` for each value."""
    numbers = itertools.count()
    named = re.sub(r"\?", lambda _: f":value{next(numbers)}", statement)
    return connection.execute(text(named), {f"value{number}": value for number, value in enumerate(values)})
