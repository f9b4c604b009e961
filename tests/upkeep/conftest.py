"""A place for a second copy of the store, for the tests of replication."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the copy is made."""
    return tmp_path / "second" / "store"


@pytest.fixture
def scratch(tmp_path: Path) -> Any:
    """Files for rebuilt catalogs."""
    numbers = itertools.count()

    def new() -> Path:
        return tmp_path / f"rebuilt-{next(numbers)}.db"

    return new
