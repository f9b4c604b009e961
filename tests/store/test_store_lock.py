"""Object lock: what is locked cannot be deleted with the store's own keys; what is not is given back for good."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from seaweed import LOCKED_BUCKET, S3Server
from staddle_server.base.clock import NS
from staddle_server.base.errors import Unavailable
from staddle_server.store.backends import object_probe, object_urls
from staddle_server.store.backends.object_probe import LockLacking
from staddle_server.store.backends.object_store import ObjectBlobs
from staddle_server.store.blobs import BlobExists, BlobMissing, replace_object
from staddle_server.store.locks import lock_of
from staddle_server.store.open import check_engine, open_blobs
from staddle_server.store.testing import BlobsContract

pytestmark = pytest.mark.xdist_group("s3")

DAY_S = 86_400


class Locked:
    """A store with locks, and a client with its keys."""

    def __init__(self, s3: S3Server, spool: Path, options: str = "object-lock=2d") -> None:
        self.prefix = f"tests/{uuid.uuid4().hex}"
        blobs = open_blobs(s3.locked_url(self.prefix, options), os.environ, str(spool))
        assert isinstance(blobs, ObjectBlobs)
        assert blobs.lock is not None
        self.blobs, self.lock = blobs, blobs.lock
        self.s3, self.client = s3, s3.client()

    def for_seconds(self, span_s: float) -> None:
        """Let locks end within the test."""
        self.blobs.lock = self.lock = self.lock.with_span(span_s)

    def head(self, name: str, **version: str) -> Any:
        return self.client.head_object(Bucket=LOCKED_BUCKET, Key=f"{self.prefix}/{name}", **version)

    def hide(self, name: str) -> None:
        self.s3.hide(f"{self.prefix}/{name}")

    def delete(self, name: str, **rest: Any) -> None:
        self.client.delete_object(Bucket=LOCKED_BUCKET, Key=f"{self.prefix}/{name}", **rest)

    def locked_s(self, name: str) -> float:
        """How long from now the newest version is locked."""
        return float(self.head(name)["ObjectLockRetainUntilDate"].timestamp() - time.time())

    def versions(self) -> list[tuple[str, int]]:
        return [(each.name, len(each.versions)) for each in self.lock.histories("")]


@pytest.fixture
def locked(s3: S3Server, tmp_path: Path) -> Locked:
    return Locked(s3, tmp_path)


class TestLockedBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, locked: Locked) -> ObjectBlobs:
        return locked.blobs


def test_what_a_restore_needs_is_locked_with_its_put_and_nothing_else(locked: Locked) -> None:
    for name in ("format", "keys/a", "packs/a", "records/a"):
        locked.blobs.put(name, b"1")
        assert 3 * DAY_S - 60 < locked.locked_s(name) <= 3 * DAY_S
    for name in ("heads/a", "parity/a", "marks/a", "copies/records/a"):
        locked.blobs.put(name, b"1")
        assert "ObjectLockMode" not in locked.head(name)


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_a_locked_pack_cannot_be_deleted_with_the_keys_of_the_store(
    s3: S3Server, tmp_path: Path, mode: str
) -> None:
    locked = Locked(s3, tmp_path, f"object-lock=1d&lock-mode={mode}")
    locked.blobs.put("packs/a", b"precious")
    head = locked.head("packs/a")
    version = head["VersionId"]
    assert head["ObjectLockMode"] == mode.upper()
    with pytest.raises(ClientError, match="AccessDenied"):
        locked.delete("packs/a", VersionId=version)
    if mode == "compliance":
        with pytest.raises(ClientError, match="AccessDenied"):
            locked.delete("packs/a", VersionId=version, BypassGovernanceRetention=True)
    locked.hide("packs/a")
    with pytest.raises(BlobMissing):
        locked.blobs.read("packs/a", 0, 8)
    (history,) = locked.lock.histories("packs")
    assert history.is_hidden
    assert [each.id for each in history.versions if not each.is_marker] == [version]


def test_a_lock_is_extended_and_never_shortened_and_a_shorter_span_later_is_no_failure(
    locked: Locked,
) -> None:
    locked.blobs.put("packs/a", b"1")
    longer = locked.lock.with_span(10 * DAY_S)
    until_ns = longer.extend("packs/a")
    assert abs(until_ns / NS - time.time() - 15 * DAY_S) < 60
    assert locked.lock.extend("packs/a") == until_ns
    assert locked.locked_s("packs/a") > 15 * DAY_S - 60
    with pytest.raises(FileNotFoundError):
        locked.lock.extend("packs/b")


def test_an_object_that_was_put_and_not_locked_is_locked_by_the_next_attempt(
    locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, locked.blobs.lock = locked.blobs.lock, None
    locked.blobs.put("records/a", b"1")
    locked.blobs.lock = lock
    with pytest.raises(BlobExists):
        locked.blobs.put("records/a", b"1")
    assert locked.locked_s("records/a") > 2 * DAY_S


@pytest.mark.slow
def test_what_is_deleted_after_its_lock_is_gone_by_version_and_before_it_is_hidden(locked: Locked) -> None:
    locked.for_seconds(8)
    locked.blobs.put("packs/a", b"1")
    replace_object(locked.blobs, "packs/a", b"2")
    locked.blobs.put("packs/b", b"1")
    locked.blobs.put("heads/a", b"1")
    locked.blobs.delete("heads/a")
    locked.blobs.delete("packs/b")
    assert locked.versions() == [("packs/a", 2), ("packs/b", 2)]
    assert [name for name, _ in locked.blobs.list("")] == ["packs/a"]
    time.sleep(max(0.0, locked.locked_s("packs/a")) + 1.1)
    locked.blobs.delete("packs/a")
    assert locked.versions() == [("packs/b", 2)]


def test_versions_are_listed_over_pages(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        for _ in range(1 + number % 3):
            replace_object(locked.blobs, f"heads/{number}", b"1")
    (endpoint,) = locked.blobs.endpoints
    client = endpoint.locking._client
    whole = client.list_object_versions
    monkeypatch.setattr(client, "list_object_versions", lambda **given: whole(MaxKeys=2, **given))
    assert locked.versions() == [
        ("heads/0", 1),
        ("heads/1", 2),
        ("heads/2", 3),
        ("heads/3", 1),
        ("heads/4", 2),
    ]
    for history in locked.lock.histories("heads"):
        assert [each.is_latest for each in history.versions].count(True) == 1
        assert history.versions[0].is_latest


# --- what the bucket or the engine lacks


def test_a_bucket_with_locks_passes_the_test_of_the_start(s3: S3Server, tmp_path: Path) -> None:
    url = s3.locked_url(f"tests/{uuid.uuid4().hex}")
    check_engine(url, os.environ, str(tmp_path))
    lock = lock_of(open_blobs(url, os.environ, str(tmp_path)))
    assert lock is not None
    assert len(list(lock.histories(""))) == 1  # locked for a few seconds more


def test_a_bucket_without_locks_is_refused_by_name(s3: S3Server, tmp_path: Path) -> None:
    url = f"{s3.url('tests/none')}&object-lock=30d"
    with pytest.raises(
        LockLacking, match=r"s3://staddle-tests/tests/none cannot lock objects: the bucket keeps no versions"
    ):
        check_engine(url, os.environ, str(tmp_path))
    with pytest.raises(Unavailable, match=r"could not lock packs/a: .* refuses it \(HTTP 400"):
        open_blobs(url, os.environ, str(tmp_path)).put("packs/a", b"1")
    client = s3.client()
    client.create_bucket(Bucket="versions-alone")
    client.put_bucket_versioning(Bucket="versions-alone", VersioningConfiguration={"Status": "Enabled"})
    s3.await_versions("versions-alone")
    with pytest.raises(LockLacking, match="created without object lock"):
        check_engine(url.replace("staddle-tests", "versions-alone"), os.environ, str(tmp_path))


def test_an_engine_that_deletes_what_is_locked_is_refused_by_name(
    locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    (endpoint,) = locked.blobs.endpoints
    monkeypatch.setattr(endpoint.locking._client, "put_object_retention", lambda **_: {})
    with pytest.raises(LockLacking, match="it deletes an object that is locked"):
        object_probe.check(locked.blobs)


def test_an_engine_with_another_time_is_refused(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_probe, "CLOCKS_APART_S_MAX", -1.0)
    with pytest.raises(LockLacking, match="its clock and this machine's are"):
        object_probe.check(locked.blobs)


def test_the_url_says_for_how_long_and_in_which_mode() -> None:
    place = object_urls.parse_object_url("s3://backups/p?object-lock=30d")
    assert (place.lock_s, place.lock_mode) == (30 * DAY_S, "compliance")
    assert (
        object_urls.parse_object_url("s3://backups/p?object-lock=7d&lock-mode=governance").lock_mode
        == "governance"
    )
    assert object_urls.parse_object_url("s3://backups/p").lock_s == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("object-lock=1h", "a duration from 1d to"),
        ("object-lock=forever", "a duration from 1d to"),
        ("object-lock=30d&lock-mode=legal", "compliance or governance"),
        ("lock-mode=governance", "says nothing without object-lock"),
    ],
)
def test_a_lock_that_cannot_be_meant_is_refused(options: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        object_urls.parse_object_url(f"s3://backups/p?{options}")
