import os
from collections.abc import Iterator

import pytest
from memory_service import TOKEN, MemoryService, Running, start
from staddle import Client


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in list(os.environ):
        if name.startswith("STADDLE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def listening() -> Iterator[Running]:
    """The protocol in memory, for cases that would need a damaged real server."""
    memory = MemoryService()
    server, address = start(memory)
    listening = Running(memory, address, server)
    yield listening
    listening.stop()


@pytest.fixture
def memory(listening: Running) -> MemoryService:
    return listening.service


@pytest.fixture
def client(listening: Running) -> Iterator[Client]:
    with Client(listening.address, TOKEN) as client:
        yield client
