"""What loads slowly is loaded by the commands that need it."""

import subprocess
import sys

import pytest
import staddle

SLOW = {"grpc", "google.protobuf"}
"""They take longer to load than all else together."""


def loaded(*words: str) -> set[str]:
    """The modules that an interpreter loads for this."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True, timeout=60
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize(
    "words",
    [("-c", "import staddle; staddle.Backup, staddle.StaddleError"), ("-m", "staddle.command", "--version")],
    ids=["import", "version"],
)
def test_neither_importing_the_library_nor_the_version_loads_grpc(words: tuple[str, ...]) -> None:
    assert not SLOW & loaded(*words)


def test_help_loads_no_grpc() -> None:
    assert "grpc" not in loaded("-m", "staddle.command", "--help")
    assert "grpc" not in loaded("-m", "staddle.command", "backup", "--help")


def test_the_client_is_loaded_on_use() -> None:
    assert loaded("-c", "from staddle import Client, Upload") >= SLOW


def test_every_name_of_the_library_is_there_and_listed() -> None:
    for name in staddle.__all__:
        assert getattr(staddle, name).__name__ == name
    assert set(staddle.__all__) <= set(dir(staddle))
    with pytest.raises(AttributeError, match="module 'staddle' has no attribute 'Clinet'"):
        _ = staddle.Clinet
