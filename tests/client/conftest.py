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
def running() -> Iterator[Running]:
    memory = MemoryService()
    server, address = start(memory)
    running = Running(memory, address, server)
    yield running
    running.stop()


@pytest.fixture
def memory(running: Running) -> MemoryService:
    return running.service


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.address, TOKEN) as client:
        yield client
