"""The databases that the tests of the catalog run on."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import postgres_server


class Databases(NamedTuple):
    """How a test gets a database of one kind, each by its URL: an empty one, and one that has the tables."""

    empty: Callable[[Path], str]
    ready: Callable[[Path], str]


def new_sqlite(place: Path) -> str:
    return f"sqlite:///{place}/catalog.db"


DATABASES: Final = {
    "sqlite": Databases(new_sqlite, new_sqlite),
    "postgresql": Databases(lambda _: postgres_server.new_url(), lambda _: postgres_server.ready_url()),
}
"""The databases that the suite runs on, by name."""
