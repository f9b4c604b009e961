"""The file of the master key is looked at while the server runs, and not only at its next start."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import Running
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.keys import KeyStore, create_master_key
from staddle_server.upkeep.events.master_key import MasterKeyFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "master.key"
    create_master_key(str(made))
    return made


def found(keys: KeyStore) -> list[tuple[str, str, str]]:
    """Severity, subject and words of each alarm."""
    return [
        (each.severity, each.key.subject, f"{each.text} {each.advice}")
        for each in MasterKeyFile(keys).alarms("here:7443", 1)
    ]


def test_a_file_as_it_was_read_is_no_alarm(file: Path) -> None:
    keys = KeyStore.from_file(MemoryBlobs(), str(file))
    assert found(keys) == []
    file.chmod(0o640)  # a group gives the server its access in some places
    assert found(keys) == []


def test_a_missing_file_is_put_back_before_the_server_stops(file: Path) -> None:
    keys = KeyStore.from_file(MemoryBlobs(), str(file))
    line = file.read_bytes()
    file.unlink()
    ((severity, subject, words),) = found(keys)
    assert (severity, subject) == ("critical", "unusable")
    assert f"{file} does not exist" in words
    assert "while this server still runs" in words
    file.write_bytes(line)
    file.chmod(0o600)
    assert found(keys) == []


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 10_000])
def test_a_file_that_is_no_key_is_an_alarm_that_does_not_repeat_it(file: Path, content: bytes) -> None:
    keys = KeyStore.from_file(MemoryBlobs(), str(file))
    file.write_bytes(content)
    ((severity, subject, words),) = found(keys)
    assert (severity, subject) == ("critical", "unusable")
    assert "nonsense" not in words


def test_another_key_in_the_file_is_an_alarm_without_either_key(file: Path, tmp_path: Path) -> None:
    keys = KeyStore.from_file(MemoryBlobs(), str(file))
    other = tmp_path / "other"
    create_master_key(str(other))
    lines = file.read_text().split()[1], other.read_text().split()[1]
    other.replace(file)
    ((severity, subject, words),) = found(keys)
    assert (severity, subject) == ("critical", "another key")
    assert not any(line in words for line in lines)


def test_a_file_that_every_user_can_read_is_an_alarm_with_its_remedy(file: Path) -> None:
    keys = KeyStore.from_file(MemoryBlobs(), str(file))
    file.chmod(0o644)
    ((severity, subject, words),) = found(keys)
    assert (severity, subject) == ("warning", "open to all")
    assert f"chmod 600 {file}" in words


def test_a_running_service_finds_it_and_it_is_over(running: Running, file: Path) -> None:
    running.keys.file = str(file)  # of another key than that of the service
    running.service._events.look()
    (event,) = running.catalog.events.open(running.clock.now_ns()).events
    assert (event.alarm.key.kind, event.alarm.key.subject) == ("master-key", "another key")
    running.keys.file = ""
    running.service._events.look()
    (event,) = running.catalog.events.open(running.clock.now_ns()).events
    assert event.absent_ns is not None
