"""A server whose bucket has object lock: every command works on it, and an attacker with its keys deletes nothing."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner, Result
from seaweed import LOCKED_BUCKET, S3Server
from servers import ServerProcess
from staddle.v1 import service_pb2 as sv
from staddle_server.app.settings import parse_site
from staddle_server.cli.run import group
from thin import back_up, backups, noise, restore

pytestmark = pytest.mark.xdist_group("s3")


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(group, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.slow
def test_backups_in_a_bucket_with_locks_are_checked_collected_copied_and_rebuilt(
    s3: S3Server, tmp_path: Path
) -> None:
    prefix = f"app/{uuid.uuid4().hex}"
    url, data = s3.locked_url(prefix, "object-lock=7d"), tmp_path / "d"
    run("init", "--data", data, "--store", url)
    server = ServerProcess(data)
    server.start()
    assert "object lock: what live backups need cannot be deleted for at least 7d" in server.log()
    kept, gone = noise(300_000, seed=1), noise(900_000, seed=2)
    first = back_up(server.stub(), "set", {"a": kept, "b": gone})
    back_up(server.stub(), "set", {"a": kept})
    server.stub().DeleteBackup(sv.DeleteBackupRequest(dataset="set", backup=first.id))

    # Packs that were never extended: their objects are hidden, and stay until their locks are over.
    for _ in range(2):
        run("gc", "--grace", "0", "--yes", "--data", data)
    checked = run("check", "--read-data", "--data", data, "--json").output.splitlines()[-1]
    assert json.loads(checked)["damage"] == 0
    assert "No damage is left." in run("repair", "--data", data).output
    run("replicate", "--data", data, "--to", tmp_path / "second" / "store", "--verify")
    assert restore(server.stub(), "set").files == {"a": kept}
    server.kill()  # it would lock the newest version of each pack, whoever put it

    client = s3.client()
    found = client.list_object_versions(Bucket=LOCKED_BUCKET, Prefix=prefix)
    wanted = ("/packs/", "/records/", "/keys/", "/format")
    needed = [each for each in found["Versions"] if any(kind in each["Key"] for kind in wanted)]
    assert len(needed) >= 8
    for each in needed:
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(Bucket=LOCKED_BUCKET, Key=each["Key"], VersionId=each["VersionId"])

    # The attacker hides everything, and writes over some. An operator makes the first versions the newest again.
    for each in needed:
        s3.hide(each["Key"])
        if "/packs/" in each["Key"]:
            client.put_object(Bucket=LOCKED_BUCKET, Key=each["Key"], Body=b"garbage")
    assert "/format is missing, but the store is filled" in run("check", "--data", data, code=1).output
    known = {each["VersionId"] for each in [*found["Versions"], *found["DeleteMarkers"]]}
    now = client.list_object_versions(Bucket=LOCKED_BUCKET, Prefix=prefix)
    for each in [*now["Versions"], *now["DeleteMarkers"]]:
        if each["VersionId"] not in known and any(kind in each["Key"] for kind in wanted):
            client.delete_object(Bucket=LOCKED_BUCKET, Key=each["Key"], VersionId=each["VersionId"])

    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(data / "master.key", bare)
    assert "Everything in the store was used." in run("rebuild", "--data", bare, "--store", url).output
    again = ServerProcess(bare)
    again.start()
    try:
        assert restore(again.stub(), "set").files == {"a": kept}
        assert len(backups(again.stub(), "set")) == 1
    finally:
        assert again.stop() == 0


def test_a_bucket_that_cannot_lock_is_refused_at_the_start(s3: S3Server, tmp_path: Path) -> None:
    url = f"{s3.url('app/none')}&object-lock=30d"
    told = run("init", "--data", tmp_path / "d", "--store", url, code=1).output
    assert "s3://staddle-tests/app/none cannot lock objects: the bucket keeps no versions" in told


def test_a_second_place_takes_no_lock() -> None:
    with pytest.raises(ValueError, match="object-lock is for the store itself"):
        parse_site("s3://backups/second?object-lock=30d")
