"""Full, closed or unread standard output: commands finish their work and fail, and revoke tokens that were not shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import forked
import pytest
from extent import extent
from staddle_server.cli.run import group
from test_app_cli import COMMAND, run

REDIRECTIONS = {">/dev/full": "No space left on device", ">&-": "it is closed"}


def with_stdout(redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed command with such a standard output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STADDLED_")}
    words = ["sh", "-c", f'exec "$0" "$@" {redirection}', COMMAND, *map(str, arguments)]
    return subprocess.run(words, env=clean, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d"
    done = run("init", "--data", path)
    assert done.returncode == 0, done.stderr
    return path


def states(data: Path) -> dict[str, str]:
    """The tokens by name, and whether they are good."""
    lines = run("token", "list", "--json", "--data", data).stdout.splitlines()
    return {row["name"]: row["state"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("options", extent([()], [(), ("--json",)]))
@pytest.mark.parametrize("redirection", extent([">&-"], list(REDIRECTIONS)))
def test_a_token_that_cannot_be_shown_is_revoked_again(
    data: Path, redirection: str, options: tuple[str, ...]
) -> None:
    create = ("token", "create", "--role", "writer", "--name", "web1", "--data", data, *options)
    done = with_stdout(redirection, *create)
    assert done.returncode == 1
    assert "the token web1 was not shown, and is revoked again" in done.stderr
    assert REDIRECTIONS[redirection] in done.stderr
    assert "Keep it" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert states(data) == {"local": "good", "web1": "revoked"}
    again = run(*create)
    assert again.returncode == 0, again.stderr


def test_a_token_whose_reader_has_gone_is_revoked_again(data: Path) -> None:
    unread, written = os.pipe()
    os.close(unread)
    try:
        words = [COMMAND, "token", "create", "--role", "reader", "--name", "web2", "--data", data]
        done = subprocess.run(
            words, stdout=written, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(written)
    assert done.returncode == 1
    assert "the token web2 was not shown, and is revoked again" in done.stderr
    assert states(data)["web2"] == "revoked"


def test_a_token_that_was_shown_stays_even_if_later_output_fails(data: Path) -> None:
    done = with_stdout("2>/dev/full", "token", "create", "--role", "reader", "--name", "web3", "--data", data)
    assert done.returncode == 0
    assert done.stdout.startswith("staddle_")
    assert states(data)["web3"] == "good"


@pytest.mark.parametrize("redirection", extent([">&-"], list(REDIRECTIONS)))
def test_a_command_that_cannot_print_its_result_finishes_reports_that_and_fails(
    data: Path, redirection: str
) -> None:
    made = with_stdout(redirection, "tenant", "create", "acme", "--data", data)
    listed = with_stdout(redirection, "tenant", "list", "--data", data)
    helped = with_stdout(redirection, "--help")
    for done in (made, listed, helped):
        assert done.returncode == 1
        assert done.stderr == f"Error: cannot write to standard output: {REDIRECTIONS[redirection]}\n"
    assert "acme" in run("tenant", "list", "--data", data).stdout


@pytest.mark.parametrize("redirection", extent([">/dev/full"], list(REDIRECTIONS)))
def test_the_exit_code_of_a_probe_depends_on_the_server_only(data: Path, redirection: str) -> None:
    said = run("health", "--data", data, "--timeout", "1s")
    done = with_stdout(redirection, "health", "--data", data, "--timeout", "1s")
    assert (done.returncode, done.stderr) == (said.returncode, said.stderr)


CLOSED = (sys.executable, Path(forked.__file__).with_name("closed_stdout.py"), "staddle-server")
LOST = f"Error: cannot write to standard output: {REDIRECTIONS['>&-']}\n"
ARGUMENTS = {
    "init": (),
    "adopt": (),
    "cert": ("--dir", "certificates"),
    "check": (),
    "clock": (),
    "gc": (),
    "health": ("--help",),
    "parity": (),
    "rebuild": ("--replace",),
    "repair": (),
    "replicate": ("--to", "copy"),
    "serve": ("--help",),
    "tenant create": ("acme",),
    "tenant list": (),
    "tenant set": ("acme", "--grace", "2d"),
    "token create": ("--role", "reader", "--name", "r"),
    "token list": (),
    "token revoke": ("local",),
    "uploads": (),
    "servers": (),
    "drill": (),
    "events": (),
    "notify list": (),
    "notify test": ("--help",),
    "lock": (),
}


def test_every_command_whose_standard_output_is_closed_does_its_work_and_fails(tmp_path: Path) -> None:
    names = set()
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            below = command.commands if isinstance(command, click.Group) else [""]
            names |= {f"{name} {each}".strip() for each in below}
    assert {*ARGUMENTS} == names
    data = tmp_path / "d"
    for name, more in ARGUMENTS.items():
        arguments = [*name.split(), *more]
        if name != "cert" and "--help" not in arguments:
            arguments += ["--data", data]
        done = forked.run([*CLOSED, *arguments], capture_output=True, timeout=60, cwd=tmp_path)
        said = done.stderr.decode()
        assert (done.returncode, done.stdout) == (1, b""), (name, said)
        assert said.endswith(
            "; the token r was not shown, and is revoked again\n" if name == "token create" else LOST
        ), name
    assert (tmp_path / "certificates" / "server.crt").exists()
    assert states(data) == {"local": "revoked", "r": "revoked"}
    assert "acme" in run("tenant", "list", "--data", data).stdout
