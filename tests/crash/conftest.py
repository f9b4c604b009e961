"""A shared recording of a server at work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_disk import Event
from crash_power import Cuts, record
from crash_work import OPERATIONS

SEED = 7


@dataclass
class Recorded:
    """The events in the directory `root` since a first start."""

    root: Path
    events: list[Event]

    def cuts(self, scratch: Path, *lying: str) -> Cuts:
        """Power cuts on a disk that ignores the syncs of these steps."""
        return Cuts(self.events, self.root, scratch, lying)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Every operation at least once."""
    root = tmp_path_factory.mktemp("recorded")
    return Recorded(root, record(root, SEED, operations=len(set(OPERATIONS))))
