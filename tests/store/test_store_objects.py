"""The contract of Blobs over a real S3 server, and what the object store backend adds to it."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store
from seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from staddle_server.base.errors import Unavailable
from staddle_server.base.threads import Threads
from staddle_server.store.backends import object_store
from staddle_server.store.blobs import Blobs
from staddle_server.store.open import open_blobs
from staddle_server.store.testing import BlobsContract

pytestmark = pytest.mark.xdist_group("s3")


def opened(s3: S3Server, tmp_path: Path, *endpoints: str) -> Blobs:
    """Empty blobs on a prefix that nobody else has."""
    return open_blobs(s3.url(f"tests/{uuid.uuid4().hex}", *endpoints), os.environ, str(tmp_path))


class TestObjectBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, s3: S3Server, tmp_path: Path) -> Blobs:
        return opened(s3, tmp_path)


# --- credentials, buckets


def test_credentials_come_from_a_file_by_profile(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = other\naws_secret_access_key = wrong\n"
        f"[backups]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    environ = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_PROFILE": "backups"}
    right = open_blobs(s3.url("tests/credentials"), environ, str(tmp_path))
    right.put("a", b"1")
    assert right.read("a", 0, 1) == b"1"
    wrong = open_blobs(s3.url("tests/credentials"), environ | {"AWS_PROFILE": "default"}, str(tmp_path))
    with pytest.raises(Unavailable, match=r"refuses it \(HTTP 403") as caught:
        wrong.put("b", b"1")
    assert "wrong" not in caught.value.message


def test_rotated_credentials_in_a_file_are_used_without_a_restart(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"

    def write(secret: str) -> None:
        new = tmp_path / "credentials.new"
        new.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n")
        new.replace(path)

    write("outdated")
    environ = {"AWS_SHARED_CREDENTIALS_FILE": str(path)}
    blobs = open_blobs(s3.url(f"tests/{uuid.uuid4().hex}"), environ, str(tmp_path))
    with pytest.raises(Unavailable, match=r"refuses it \(HTTP 403"):
        blobs.put("a", b"1")
    write(SECRET_KEY)
    ended = time.monotonic() + 60
    while time.monotonic() < ended:
        with contextlib.suppress(Unavailable):
            blobs.put("a", b"1")
            break
    assert blobs.read("a", 0, 1) == b"1"
    path.unlink()  # about to be replaced: the keys that were read last still work
    blobs.put("b", b"2")


@pytest.mark.parametrize("act", ["read", "size", "delete", "list"])
def test_a_bucket_that_is_gone_is_unavailable_and_never_an_object_that_is_missing(
    s3: S3Server, tmp_path: Path, act: str
) -> None:
    blobs = open_blobs(s3.url("x").replace(f"//{BUCKET}/", "//no-such-bucket/"), os.environ, str(tmp_path))
    with pytest.raises(Unavailable, match="HTTP 404 NoSuchBucket"):
        {
            "read": lambda: blobs.read("a", 0, 1),
            "size": lambda: blobs.size("a"),
            "delete": lambda: blobs.delete("a"),
            "list": lambda: list(blobs.list("a")),
        }[act]()


def test_a_listing_of_many_pages_is_whole_and_sorted_whether_it_is_deep_or_flat(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PAGE_NAMES", 20)
    blobs = opened(s3, tmp_path)
    deep = [f"packs/t/{shard}/{number:04x}" for shard in ("0a", "0b", "b") for number in range(30)]
    # Names beside the shards; an engine that keeps directories has "b" before "b-".
    beside = ["packs/t/0a.x", "packs/t/b-/1", "packs/t/c"]
    flat = [f"records/t/{number:04x}" for number in range(50)]
    with Threads(8, "put") as threads:
        list(threads.map(lambda name: blobs.put(name, name.encode()), deep + beside + flat))
    assert list(blobs.list("packs/t")) == [(name, len(name)) for name in sorted(deep + beside)]
    assert [name for name, _ in blobs.list("packs/t/b")] == deep[60:]
    assert [name for name, _ in blobs.list("records/t")] == flat
    assert next(blobs.list("packs/t")) == ("packs/t/0a.x", 12)  # and the rest is never asked for


def test_objects_of_others_in_the_bucket_are_passed_over(s3: S3Server, tmp_path: Path) -> None:
    prefix = f"tests/{uuid.uuid4().hex}"
    blobs = open_blobs(s3.url(prefix), os.environ, str(tmp_path))
    blobs.put("a/1", b"1")
    foreign = S3Store(BUCKET, prefix=prefix, endpoint=s3.endpoint, client_options={"allow_http": True})
    for name in ("a/READ_ME", "tmp/x", "Other"):
        obstore.put(foreign, name, b"not ours")
    assert list(blobs.list("")) == [("a/1", 1)]


def test_a_pack_being_gathered_has_no_name_on_the_disk_either(s3: S3Server, tmp_path: Path) -> None:
    blobs = opened(s3, tmp_path)
    before = set(tmp_path.iterdir())
    writer = blobs.create()
    writer.write(b"x" * 100_000)
    assert set(tmp_path.iterdir()) == before
    writer.abort()
