"""`staddle-server replicate` as an operator uses it: to a directory or a bucket, killed and resumed, then served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import forked
import pytest
from click.testing import CliRunner, Result
from servers import ServerProcess
from staddle_server.cli.run import group
from staddle_server.upkeep.held_lease import LEASE_S
from thin import back_up, backups, noise, restore, wait_until


def run(*arguments: object, code: int = 0) -> Result:
    settings = {name: None for name in os.environ if name.startswith("STADDLED_")}
    done = CliRunner().invoke(group, [str(argument) for argument in arguments], env=settings)
    assert done.exit_code == code, done.output
    return done


def fill(server: ServerProcess, count: int = 2, first: int = 0) -> dict[str, dict[str, bytes]]:
    """Backups by id."""
    made = {}
    for number in range(first, first + count):
        files = {"a": noise(300_000, number), "b": b"%d" % number}
        made[back_up(server.stub(), "www", files).id] = files
    return made


def require_all(data: Path, made: dict[str, dict[str, bytes]], *more: object) -> None:
    """A server on this directory has these backups, byte for byte."""
    told = run("rebuild", "--data", data, *more).output
    assert "Everything in the store was used." in told
    promoted = ServerProcess(data)
    promoted.start()
    try:
        stub = promoted.stub()
        assert {backup.id for backup in backups(stub, "www")} == made.keys()
        for backup, files in made.items():
            selected = {"backup": {"backup": backup}}
            assert restore(stub, "www", **selected).files == files
    finally:
        assert promoted.stop() == 0


def test_a_copy_beside_a_server_is_reported_in_words_as_json_and_as_a_table(
    server: ServerProcess, tmp_path: Path
) -> None:
    place = tmp_path / "second" / "store"
    assert "copied to no other place" in run("replicate", "--data", server.data, "--status").output
    fill(server)
    told = run("replicate", "--data", server.data, "--to", place).output
    assert f"Copied 2 packs, 4 records and 1 keys object to {place}: " in told.replace("\n", " ")
    assert "Everything decided before 20" in told
    again = json.loads(run("replicate", "--data", server.data, "--to", place, "--json").output)
    assert (again["idle"], again["packs"], again["problems"]) == (True, 0, [])
    fill(server, 1, first=2)
    (state,) = json.loads("[" + run("replicate", "--data", server.data, "--status", "--json").output + "]")
    assert (state["place"], state["state"]) == (str(place), "idle")
    assert state["behind"].endswith("KiB")
    assert "Copied 1 pack" in run("replicate", "--data", server.data, "--to", place, "--verify").output
    assert "is forgotten" in run("replicate", "--data", server.data, "--to", place, "--forget").output


@pytest.mark.slow
def test_what_cannot_be_copied_is_named_and_the_exit_code_says_so(
    server: ServerProcess, tmp_path: Path
) -> None:
    fill(server)
    pack = next(path for path in (server.data / "store" / "packs").rglob("*") if path.is_file())
    pack.write_bytes(b"\0" * pack.stat().st_size)
    told = run("replicate", "--data", server.data, "--to", tmp_path / "copy", code=1).output
    assert pack.name in told.replace("\n", "")
    assert "PROBLEM" in told
    refused = run("replicate", "--data", server.data, "--to", server.data / "store", code=1).output
    assert "is the store itself" in refused
    assert "--to PLACE" in run("replicate", "--data", server.data, code=2).output
    assert "credentials" in run("replicate", "--data", server.data, "--to", "s3://u:p@b/x", code=2).output


@pytest.mark.slow
def test_a_server_copies_by_itself_and_the_copy_is_served_after_it_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "second" / "store"
    first = ServerProcess(tmp_path / "first")
    first.flags = (*first.flags, "--replicate-to", str(place), "--replicate-every", "1s")
    first.start()
    try:
        made = fill(first)
        records = first.data / "store" / "records"
        count = len([path for path in records.rglob("*") if path.is_file()])
        wait_until(lambda: len([path for path in (place / "records").rglob("*") if path.is_file()]) == count)
        wait_until(lambda: "lag" in run("replicate", "--data", first.data, "--status").output)
    finally:
        first.kill()
    shutil.copy(first.data / "master.key", place.parent)
    shutil.rmtree(first.data)
    require_all(place.parent, made)


@pytest.mark.slow
def test_a_killed_copy_is_continued_after_its_lease(server: ServerProcess, tmp_path: Path) -> None:
    made = fill(server, 6)
    place = tmp_path / "second" / "store"
    command = ["replicate", "--data", server.data, "--to", place]
    slow = forked.start(
        [forked.BIN / "staddle-server", *map(str, command), "--rate", "200KiB"], stdout=subprocess.DEVNULL
    )
    wait_until(lambda: any(path.is_file() for path in (place / "packs").rglob("*")))
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    assert not (place / "records").exists(), "records come last"
    assert "is copying to" in run(*command, code=1).output
    end_s = time.monotonic() + LEASE_S + 60
    while CliRunner().invoke(group, list(map(str, command))).exit_code:
        assert time.monotonic() < end_s
        time.sleep(1)
    shutil.copy(server.data / "master.key", place.parent)
    require_all(place.parent, made)


@pytest.mark.slow
@pytest.mark.xdist_group("s3")
def test_a_store_moves_into_a_bucket_to_another_and_back_to_a_directory(
    server: ServerProcess, s3, tmp_path: Path
) -> None:
    made = fill(server)
    urls = [s3.url(f"replica/{uuid.uuid4().hex}") for _ in range(2)]
    run("replicate", "--data", server.data, "--to", urls[0], "--verify")
    assert json.loads(run("replicate", "--data", server.data, "--to", urls[0], "--json").output)["idle"]
    assert server.stop() == 0
    for number, (url, to) in enumerate(((urls[0], urls[1]), (urls[1], str(tmp_path / "back" / "store")))):
        data = tmp_path / f"at-{number}"
        data.mkdir()
        shutil.copy(server.data / "master.key", data)
        require_all(data, made, "--store", url)
        told = run("replicate", "--data", data, "--to", to).output
        assert "Everything decided before" in told
    shutil.copy(server.data / "master.key", tmp_path / "back")
    require_all(tmp_path / "back", made)
    refused = run("replicate", "--data", server.data, "--to", urls[0], "--verify", code=1).output
    assert "a server has started or stopped on it" in refused.replace("\n", " ")
