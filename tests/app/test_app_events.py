"""Events and notifications of a server process, and the commands that show them."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from receivers import Receiver, misbehaving, receiving
from servers import NOTHING_BY_ITSELF, ServerProcess
from staddle_server.cli.run import group
from thin import wait_until

FULL = (*NOTHING_BY_ITSELF, "--min-free", "100%")
"""A server whose disk counts as nearly full, which is an event."""
WORDS = (
    f"The disk of the server on {socket.gethostname()} is nearly full. Backups are refused; restores work."
)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that does not run yet, with its data directory."""
    made = ServerProcess(tmp_path / "data", flags=FULL)
    assert run("init", "--data", made.data).exit_code == 0
    yield made
    made.kill()


def run(*words: object) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words], env={"COLUMNS": "80"})


def targets(server: ServerProcess) -> list[dict[str, object]]:
    listed = run("notify", "list", "--json", "--data", server.data)
    return [json.loads(line) for line in listed.stdout.splitlines()]


def configure(server: ServerProcess, **urls: str) -> None:
    text = "".join(
        f'[[target]]\nname = "{name}"\nkind = "webhook"\nurl = "{url}"\ntimeout = "30s"\n'
        for name, url in urls.items()
    )
    (server.data / "notify.toml").write_text(text)


def claims_end(server: ServerProcess) -> None:
    """Let the time pass for which the dead server claimed what it was sending."""
    with contextlib.closing(sqlite3.connect(server.data / "catalog.db")) as catalog, catalog:
        catalog.execute("UPDATE deliveries SET next_ns = 1 WHERE state = 0")


@pytest.mark.slow
def test_what_a_server_sent_before_kill_9_but_did_not_mark_is_sent_again_with_the_same_id(
    server: ServerProcess, receiver: Receiver
) -> None:
    got = threading.Event()
    first: list[bytes] = []

    def take_and_never_answer(connection: socket.socket, over: threading.Event) -> None:
        data = connection.recv(65_536)
        while b"\r\n\r\n" not in data or not data.endswith(b"}"):
            data += connection.recv(65_536)
        first.append(data)
        got.set()
        over.wait(60)

    with misbehaving(take_and_never_answer) as port:
        configure(server, hook=f"http://127.0.0.1:{port}/")
        server.start()
        assert got.wait(60)
        server.kill()
    (sent,) = re.findall(rb"Staddle-Id: (\S+)", first[0])
    claims_end(server)
    configure(server, hook=receiver.url())
    server.start()
    again = receiver.next()
    assert again.headers["Staddle-Id"] == sent.decode()
    assert again.value["text"] == WORDS
    listed = json.loads(run("events", "--json", "--data", server.data).stdout)
    assert f"{listed['id']}.began" == sent.decode()
    wait_until(lambda: all(row["reached"] for row in targets(server)))
    with contextlib.closing(sqlite3.connect(server.data / "catalog.db")) as catalog, catalog:
        assert catalog.execute("SELECT count(*) FROM deliveries WHERE state = 0").fetchone() == (0,)
    assert receiver.all() == []


def test_a_sighup_reads_the_targets_again_and_unusable_ones_change_nothing(
    server: ServerProcess, receiver: Receiver
) -> None:
    (server.data / "notify.toml").write_text("")
    server.start()
    assert server.process is not None
    (server.data / "notify.toml").write_text("[[target]]\nname = 'x'\n")
    server.process.send_signal(signal.SIGHUP)
    (line,) = server.logged("SIGHUP: the notification targets are unusable, and the previous ones stay")
    assert "target x needs kind" in str(line["message"])
    configure(server, hook=receiver.url())
    server.process.send_signal(signal.SIGHUP)
    assert receiver.next().value["text"] == WORDS
    assert server.stop() == 0


def test_a_server_does_not_start_with_unusable_targets_and_makes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text("[[target]]\nname = 'x'\nkind = 'pigeon'\n")
    done = run("serve", "--data", tmp_path / "new", "--notify", file)
    assert done.exit_code == 2
    assert "targets.toml: target x: kind: use webhook or ping or smtp or command or apprise" in done.output
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_target_that_hangs_delays_no_other_and_no_stop(server: ServerProcess, receiver: Receiver) -> None:
    with misbehaving(lambda _, over: over.wait(60)) as port:
        configure(server, hangs=f"http://127.0.0.1:{port}/", hook=receiver.url())
        server.start()
        assert receiver.next().value["text"] == WORDS
        begun_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun_s < 25, "the try may last 30 s"


def test_the_commands_say_what_is_wrong_since_when_and_where_it_went(
    server: ServerProcess, receiver: Receiver
) -> None:
    assert run("events", "--data", server.data).stderr == "No event.\n"
    assert run("events", "--open", "--data", server.data).stderr == "No open event.\n"
    assert "No target: targets stand in " in run("notify", "list", "--data", server.data).stderr
    none = run("notify", "test", "--data", server.data)
    assert (none.exit_code, "there is no notification target" in none.output) == (1, True)
    configure(server, hook=receiver.url(), down="http://127.0.0.1:1/")
    assert "not used yet" in run("notify", "list", "--data", server.data).stdout
    server.start()
    receiver.next()
    server.logged("notification target down cannot be reached")
    wait_until(lambda: any(row["reached"] for row in targets(server)))
    assert server.stop() == 0
    shown = run("events", "--open", "--data", server.data).stdout
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d UTC  restore-only, critical, open\n"
        rf"    {re.escape(WORDS)}\n"
        r"    Delete backups and collect \(`staddle-server gc`\), or add space; `staddle-server health`\s+shows how\s+much "
        r"is free\.\n",
        shown,
    )
    listed = run("notify", "list", "--data", server.data).stdout
    assert re.search(r"^hook    webhook  works  \d+s ago +0 +0$", listed, re.MULTILINE)
    assert re.search(r"^down    webhook  fails  never +1 +0$", listed, re.MULTILINE)
    assert re.search(
        r"^Failing since .* UTC: down, no connection with 127\.0\.0\.1: Connection refused\.$",
        listed,
        re.MULTILINE,
    )
    assert [(row["target"], row["waiting"], bool(row["error"])) for row in targets(server)] == [
        ("hook", 0, False),
        ("down", 1, True),
    ]


def test_notify_test_tries_each_target_and_says_how_that_ended(
    server: ServerProcess, receiver: Receiver
) -> None:
    configure(server, hook=receiver.url(), down="http://127.0.0.1:1/")
    done = run("notify", "test", "--data", server.data)
    assert done.exit_code == 1
    assert done.stdout == (
        "hook (webhook): delivered\n"
        "down (webhook): failed: no connection with 127.0.0.1: Connection refused\n"
    )
    assert receiver.next().value["state"] == "test"
    done = run("notify", "test", "hook", "--data", server.data)
    assert (done.exit_code, done.stdout) == (0, "hook (webhook): delivered\n")
    unknown = run("notify", "test", "hok", "--data", server.data)
    assert (unknown.exit_code, "no target is named 'hok': there are hook, down" in unknown.output) == (
        1,
        True,
    )


def test_a_ping_goes_on_while_all_is_well_and_health_needs_no_target(
    tmp_path: Path, receiver: Receiver
) -> None:
    server = ServerProcess(tmp_path / "data")
    assert run("init", "--data", server.data).exit_code == 0
    (server.data / "notify.toml").write_text(
        f'[[target]]\nname = "beat"\nkind = "ping"\nurl = "{receiver.url("/uuid")}"\nevery = "30s"\n'
    )
    server.start()
    try:
        ping = receiver.next()
        assert (ping.path, ping.body) == ("/uuid", b"All is well.")
        asked = subprocess.run(
            [*server.command, "health", "--data", str(server.data)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (asked.returncode, "Warning" in asked.stderr) == (0, False)
    finally:
        assert server.stop() == 0
