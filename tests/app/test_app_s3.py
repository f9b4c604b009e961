"""A server whose store is a prefix of a bucket, as an operator runs it: from `init --store` to a rebuild from the bucket."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from click.testing import CliRunner, Result
from seaweed import S3Server
from servers import NOTHING_BY_ITSELF, ServerProcess
from staddle.v1 import service_pb2 as sv
from staddle_server.cli.run import group
from staddle_server.store.blobs import replace_object
from staddle_server.store.open import open_blobs
from thin import back_up, backups, noise, restore

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
def url(s3: S3Server) -> str:
    """A prefix that nothing lies below."""
    return s3.url(f"app/{uuid.uuid4().hex}")


@pytest.fixture
def data(tmp_path: Path, url: str) -> Path:
    """A data directory whose store is in the bucket."""
    made = run("init", "--data", tmp_path / "d", "--store", url).output
    assert f"The store is {url.partition('?')[0]}.\n" in made
    return tmp_path / "d"


@pytest.fixture
def server(data: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(data)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def run(*arguments: object, code: int = 0) -> Result:
    settings = {name: None for name in os.environ if name.startswith("STADDLED_")}
    done = CliRunner().invoke(group, [str(argument) for argument in arguments], env=settings)
    assert done.exit_code == code, done.output
    return done


def staddle(server: ServerProcess, *arguments: object) -> str:
    done = forked.run(
        [str(forked.BIN / "staddle"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "STADDLE_CONFIG": str(server.config)},
    )
    return done.stdout


def tree(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_backups_in_a_bucket_survive_a_kill_and_the_loss_of_everything_but_the_master_key(
    server: ServerProcess, tmp_path: Path, url: str
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "large").write_bytes(noise(3_000_000, seed=1))
    for number in range(30):
        (source / "sub" / f"{number}").write_bytes(noise(2_000 + number, seed=number))
    staddle(server, "backup", source, "--dataset", "files")
    (source / "sub" / "3").write_bytes(b"changed")
    staddle(server, "backup", source, "--dataset", "files")
    server.kill()
    server.start()
    staddle(server, "restore", "files", "--target", tmp_path / "first")
    assert tree(tmp_path / "first") == tree(source)

    server.kill()
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(server.data / "master.key", bare)
    told = run("rebuild", "--data", bare, "--store", url).output
    assert "Everything in the store was used." in told
    again = ServerProcess(bare)
    again.start()
    try:
        staddle(again, "restore", "files", "--target", tmp_path / "second")
        assert tree(tmp_path / "second") == tree(source)
        assert len(backups(again.stub(), "files")) == 2
    finally:
        assert again.stop() == 0


@pytest.mark.slow
def test_every_command_finds_the_store_by_the_data_directory_alone(
    server: ServerProcess, data: Path, url: str
) -> None:
    assert not (data / "store").exists()
    content = noise(200_000, seed=5)
    back_up(server.stub(), "set", {"a": content})
    checked = run("check", "--read-data", "--data", data, "--json").output.splitlines()[-1]
    assert json.loads(checked)["damage"] == 0
    assert json.loads(checked)["packs_read"] == 1
    assert "nothing to collect" in run("gc", "--data", data).output
    assert "No damage is left." in run("repair", "--data", data).output

    blobs = open_blobs(url, os.environ, str(data))
    (pack,) = [name for name, _ in blobs.list("packs")]
    blobs.delete(pack)
    assert "DAMAGE" in run("check", "--data", data, code=1).output
    back_up(server.stub(), "set", {"a": content})
    assert restore(server.stub(), "set").files == {"a": content}


@pytest.mark.slow
def test_what_no_backup_needs_leaves_the_bucket_and_what_one_needs_is_compacted(
    server: ServerProcess, data: Path, url: str
) -> None:
    kept, gone = noise(60_000, seed=7), noise(900_000, seed=8)
    first = back_up(server.stub(), "set", {"a": kept, "b": gone})
    back_up(server.stub(), "set", {"a": kept})
    blobs = open_blobs(url, os.environ, str(data))
    before = dict(blobs.list("packs"))
    server.stub().DeleteBackup(sv.DeleteBackupRequest(dataset="set", backup=first.id))
    for _ in range(2):  # the first condemns, the second removes
        run("gc", "--grace", "0", "--yes", "--data", data)
    after = dict(blobs.list("packs"))
    assert sum(after.values()) < 200_000 < sum(before.values())
    assert restore(server.stub(), "set").files == {"a": kept}
    assert "No damage" in run("check", "--read-data", "--data", data).output


@pytest.mark.slow
def test_a_restore_through_the_cache_reads_each_segment_once_and_checks_read_the_bucket(
    data: Path, tmp_path: Path, url: str
) -> None:
    cached = ServerProcess(data, flags=(*NOTHING_BY_ITSELF, "--cache", "64MiB"))
    cached.start()
    content = noise(200_000, seed=6)
    try:
        back_up(cached.stub(), "set", {"a": content})
        assert restore(cached.stub(), "set").files == {"a": content}
        assert sum(path.stat().st_size for path in (data / "cache").rglob("*") if path.is_file()) > 200_000
        blobs = open_blobs(url, os.environ, str(data))
        (pack,) = [name for name, _ in blobs.list("packs")]
        stored = bytearray(blobs.read(pack, 0, blobs.size(pack)))
        stored[100_000] ^= 1
        replace_object(blobs, pack, bytes(stored))
        assert restore(cached.stub(), "set").files == {"a": content}
        assert "DAMAGE" in run("check", "--read-data", "--data", data, code=1).output
    finally:
        cached.stop()
    plain = ServerProcess(data)
    plain.start()
    plain.stop()
    assert not (data / "cache").exists()


# --- what is refused, before anything is changed


def test_a_bucket_that_holds_a_store_gets_no_new_master_key(data: Path, tmp_path: Path, url: str) -> None:
    refused = run("init", "--data", tmp_path / "other", "--store", url, code=1).output
    assert "master.key is missing" in refused
    assert not (tmp_path / "other" / "master.key").exists()
    (data / "catalog.db").unlink()
    assert "staddle-server rebuild --data" in run("serve", "--data", data, code=1).output


def test_a_prefix_with_other_objects_is_no_place_for_a_store(tmp_path: Path, url: str) -> None:
    open_blobs(url, os.environ, str(tmp_path)).put("photos/1.jpg", b"x")
    refused = run("init", "--data", tmp_path / "d", "--store", url, code=1).output
    assert "is not a Staddle store" in refused
    assert "photos/1.jpg" in refused


def test_a_directory_has_one_store(data: Path, tmp_path: Path, s3: S3Server, url: str) -> None:
    elsewhere = s3.url("app/elsewhere")
    assert "has its store at s3://" in run("serve", "--data", data, "--store", elsewhere, code=1).output
    run("init", "--data", tmp_path / "local")
    refused = run("serve", "--data", tmp_path / "local", "--store", url, code=1).output
    assert "/store, but --store names another" in refused
    assert not (tmp_path / "local" / "store.url").exists()


def test_another_way_to_the_same_bucket_is_taken_over(data: Path, s3: S3Server, url: str) -> None:
    moved = url.replace(s3.endpoint, f"http://localhost:{s3.port}")
    server = ServerProcess(data, flags=(*NOTHING_BY_ITSELF, "--store", moved))
    server.start()
    server.stop()
    assert (data / "store.url").read_text() == f"{moved}\n"
    assert "No damage" in run("check", "--data", data).output


@pytest.mark.slow
def test_an_older_state_of_the_bucket_is_refused(server: ServerProcess, data: Path, url: str) -> None:
    assert server.stop() == 0
    blobs = open_blobs(url, os.environ, str(data))
    (mark,) = [name for name, _ in blobs.list("marks")]
    blobs.delete(mark)
    refused = run("gc", "--data", data, code=1).output
    assert f"{url.partition('?')[0]} is older than " in refused
    assert "catalog.db" in refused


def test_a_bucket_that_does_not_answer_is_named_and_nothing_is_made(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    refused = run("init", "--data", tmp_path / "d", "--store", s3.url("app/denied"), code=1).output
    assert "refuses it (HTTP 403" in refused
    assert "sesame" not in refused
    assert not (tmp_path / "d").exists()
