"""What the tests of the session share: a service on a disk that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from failing_disk import FailingFiles
from staddle_server.store.directory import DirectoryBlobs


@pytest.fixture
def disk(running) -> Iterator[FailingFiles]:
    """The disk below `running`."""
    files = FailingFiles()
    running.stop()
    running.wrap = lambda blobs: DirectoryBlobs(str(running.root / "store"), files)
    running.start()
    yield files
    files.mend()
