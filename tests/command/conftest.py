from pathlib import Path

import pytest
from command_line import CommandLine


@pytest.fixture
def unconfigured(tmp_path: Path) -> CommandLine:
    """The command without any configuration."""
    (tmp_path / "home").mkdir()
    return CommandLine(tmp_path / "home")


@pytest.fixture
def staddle(unconfigured: CommandLine, running) -> CommandLine:
    """The command, which finds a service in this process."""
    unconfigured.variables = {"STADDLE_SERVER": running.address, "STADDLE_TOKEN": running.token("admin")}
    return unconfigured


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory to back up."""
    root = tmp_path / "source"
    (root / "etc" / "deep").mkdir(parents=True)
    (root / "hello.txt").write_text("Hello!\n")
    (root / "etc" / "conf").write_bytes(bytes(range(256)) * 40)
    (root / "etc" / "deep" / "empty").touch()
    (root / "link").symlink_to("etc/conf")
    (root / "etc" / "conf").chmod(0o640)
    return root
