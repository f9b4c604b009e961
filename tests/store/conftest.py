"""Shared by the tests of the store: blobs and fixed keys."""

from pathlib import Path

import pytest
from staddle_server.base.types import TenantKeys
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import Blobs
from store_data import tenant_keys

pytest.register_assert_rewrite("staddle_server.store.testing")


@pytest.fixture
def keys() -> TenantKeys:
    return tenant_keys("here", (1, 2))


@pytest.fixture
def other_keys() -> TenantKeys:
    return tenant_keys("elsewhere", (1, 2))


@pytest.fixture
def memory() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture(params=["directory", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return DirectoryBlobs(str(tmp_path)) if request.param == "directory" else MemoryBlobs()
