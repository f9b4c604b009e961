"""Object lock over time: what live backups need stays locked, what they do not is given back after its lock."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from garbage_left import Garbage
from seaweed import LOCKED_BUCKET, S3Server
from servers import Running
from staddle_server.base.clock import NS
from staddle_server.base.errors import Unavailable
from staddle_server.store.backends.object_store import ObjectBlobs
from staddle_server.store.blobs import BlobExists, Blobs, create_format, replace_object
from staddle_server.store.locks import ObjectLock, ObjectVersions, unhide
from staddle_server.store.open import open_blobs
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.hidden import hidden_objects
from staddle_server.upkeep.integrity.lock import Locker, lock_tasks
from staddle_server.upkeep.integrity.watch import Integrity
from staddle_server.upkeep.schedule import Schedule, StoppedError, Stopping, Task
from thin import back_up, noise, restore

pytestmark = pytest.mark.xdist_group("s3")

DAY_S = 86_400
FILES = {"a": noise(400_000, 1), "b": noise(300_000, 2)}
OTHERS = {"c": noise(500_000, 3)}


class LockedStore:
    """A service on a bucket with locks, its collector, and the keys of its store in other hands."""

    def __init__(self, s3: S3Server, root: Path) -> None:
        self.prefix = f"upkeep/{uuid.uuid4().hex}"
        opened = open_blobs(s3.locked_url(self.prefix, "object-lock=30d"), os.environ, str(root))
        assert isinstance(opened, ObjectBlobs)
        assert opened.lock is not None
        self.blobs, self.days = opened, opened.lock
        self.s3, self.client = s3, s3.client()
        self.running = Running(root, wrap=self._moved)
        self.garbage = Garbage(self.running)

    def hide(self, name: str) -> None:
        self.s3.hide(f"{self.prefix}/{name}")

    def _moved(self, directory: Blobs) -> Blobs:
        if not self.packs():
            for name, size in directory.list(""):
                with suppress(BlobExists):
                    self.blobs.put(name, directory.read(name, 0, size))
        return self.blobs

    def locker(self, span_s: float = 30 * DAY_S) -> Locker:
        return Locker(kept(self.running), self.lock(span_s))

    def lock(self, span_s: float = 30 * DAY_S) -> ObjectLock:
        return self.days.with_span(span_s)

    def put_for(self, span_s: float) -> None:
        """Lock what is put from now on for this long."""
        self.blobs.lock = self.days.with_span(span_s)

    def until_s(self, name: str, **version: str) -> float:
        """For how long from now an object is locked."""
        head = self.client.head_object(Bucket=LOCKED_BUCKET, Key=f"{self.prefix}/{name}", **version)
        return float(head["ObjectLockRetainUntilDate"].timestamp() - time.time())

    def history(self, name: str) -> ObjectVersions:
        (found,) = [each for each in self.days.histories(name) if each.name == name]
        return found

    def packs(self) -> list[str]:
        return [name for name, _ in self.blobs.list("packs")]


def kept(running: Running) -> Kept:
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    return Kept(running.catalog, running.blobs, running.keys, tenants, running.clock)


@pytest.fixture
def store(s3: S3Server, tmp_path: Path) -> Iterator[LockedStore]:
    made = LockedStore(s3, tmp_path)
    try:
        yield made
    finally:
        made.running.stop()


def test_locks_are_extended_for_live_packs_and_not_for_condemned_ones(store: LockedStore) -> None:
    store.put_for(2 * DAY_S)
    stub = store.running.stub()
    back_up(stub, "gone", FILES)
    (gone,) = store.packs()
    back_up(stub, "kept", OTHERS)
    (kept,) = set(store.packs()) - {gone}
    store.garbage.delete("gone")
    store.garbage.later(8)
    assert store.garbage.collect().sum_of("packs_condemned") == 1
    assert str(store.locker().extend_packs()) == "1 lock was extended"
    assert store.until_s(kept) > 45 * DAY_S - 600
    assert store.until_s(gone) < 3 * DAY_S
    assert store.locker().extend_packs().extended == 0, "half of the margin is left"
    # A promise that is longer makes them due at once.
    assert store.locker(60 * DAY_S).extend_packs().extended == 1


def test_a_run_that_is_stopped_or_fails_goes_on_with_those_that_end_first(
    store: LockedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staddle_server.upkeep.integrity.lock._BATCH", 1)
    stub = store.running.stub()
    for number in range(3):
        back_up(stub, f"set-{number}", {"a": noise(100_000, number)})
    asked = iter([False, True])
    assert store.locker(40 * DAY_S).extend_packs(lambda: next(asked)).extended == 1
    assert store.locker(40 * DAY_S).extend_packs().extended == 2


@pytest.mark.slow
def test_a_condemned_pack_stays_while_it_is_locked_and_then_its_space_comes_back_by_version(
    store: LockedStore,
) -> None:
    clock = store.running.clock
    clock.ahead_s = -60  # the collector's clock says when the lock is over
    store.put_for(2)
    back_up(store.running.stub(), "gone", FILES)
    (pack,) = store.packs()
    store.put_for(30 * DAY_S)
    store.locker(10).extend_packs()
    store.garbage.delete("gone")
    locked_s = store.until_s(pack)
    ends_s = time.time() + locked_s
    assert 3 < locked_s <= 16
    report = store.garbage.collect(grace_s=0)
    assert (report.sum_of("packs_condemned"), report.sum_of("packs_reaped")) == (1, 0)
    (tenant,) = [each for each in report.tenants if each.packs_waiting]
    assert tenant.free_by_ns is not None
    assert abs(tenant.free_by_ns / NS - ends_s) < 5
    assert store.history(pack).versions[0].is_latest
    clock.ahead_s = 60
    time.sleep(max(0.0, store.until_s(pack)) + 1.1)
    assert store.garbage.collect(grace_s=0).sum_of("packs_reaped") == 1
    assert list(store.days.histories(pack)) == []


def test_keys_records_and_the_format_are_extended_by_listing(store: LockedStore) -> None:
    store.put_for(2 * DAY_S)
    create_format(store.blobs)
    back_up(store.running.stub(), "set", FILES)
    records = store.garbage.objects("records")
    assert min(map(store.until_s, records)) < 3 * DAY_S
    report = store.locker().look_at_versions()
    assert report.replaced == []
    for name in (*records, "format", *store.garbage.objects("keys")):
        assert store.until_s(name) > 45 * DAY_S - 600
    assert store.until_s(*store.packs()) < 3 * DAY_S


def test_a_pack_that_an_attacker_hides_or_replaces_stays_locked_and_is_reported(store: LockedStore) -> None:
    store.put_for(2 * DAY_S)
    stub = store.running.stub()
    back_up(stub, "one", FILES)
    (hidden,) = store.packs()
    back_up(stub, "two", OTHERS)
    (replaced,) = set(store.packs()) - {hidden}
    originals = {name: store.history(name).versions[0].id for name in (hidden, replaced)}
    store.hide(hidden)
    store.client.put_object(Bucket=LOCKED_BUCKET, Key=f"{store.prefix}/{replaced}", Body=b"garbage")
    assert store.locker().extend_packs().missing in ([hidden], [])  # an engine may lock the marker
    report = store.locker().look_at_versions()
    assert (report.hidden, report.replaced) == ([hidden], [replaced])
    assert "1 object is hidden in the bucket by delete markers" in str(report)
    assert "1 object was replaced; all versions stay locked" in str(report)
    for name, version in originals.items():
        assert store.until_s(name, VersionId=version) > 45 * DAY_S - 600


def test_hidden_records_and_keys_are_named_stay_locked_and_become_visible_again(
    store: LockedStore, caplog: pytest.LogCaptureFixture
) -> None:
    running = store.running
    create_format(store.blobs)
    store.put_for(2 * DAY_S)
    back_up(running.stub(), "set", FILES)
    hidden = [store.garbage.objects("records")[-1], *store.packs(), *store.garbage.objects("keys")]
    for name in hidden[:2]:
        store.hide(name)
    watch = Integrity(kept(running), every_s=0)
    watch.start()
    assert not watch.is_whole
    assert (watch.lost[running.tenant].missing, watch.lost[running.tenant].hidden) == (1, 1)
    for name in hidden[:2]:
        assert f"1 object is hidden in the bucket by delete markers ({name})" in caplog.text
    assert "run `staddle-server lock --unhide`" in caplog.text

    store.hide(hidden[2])
    watch.look_for_lost(lambda: False)
    assert f"1 object is hidden in the bucket by delete markers ({hidden[2]})" in caplog.text
    assert list(hidden_objects(kept(running), store.days)) == [hidden[2]], "no record opens without keys"
    assert unhide(store.days, hidden[2])
    assert sorted(hidden_objects(kept(running), store.days)) == sorted(hidden[:2])

    # Hidden for longer than the promise: what nothing needs would be removed now.
    running.clock.ahead_s = 60 * DAY_S
    time.sleep(4.1)
    report = store.locker(2).look_at_versions()
    assert (report.removed, report.hidden) == (0, sorted(hidden[:2]))
    assert store.locker().look_at_versions().hidden
    for name in hidden[:2]:
        (original,) = [each for each in store.history(name).versions if not each.is_marker]
        assert store.until_s(name, VersionId=original.id) > 45 * DAY_S - 600
        assert unhide(store.days, name)
    watch.look_for_lost(lambda: False)
    assert running.tenant not in watch.lost
    assert list(hidden_objects(kept(running), store.days)) == []
    assert restore(running.stub(), "set").files == FILES


def test_a_record_that_may_be_absent_is_not_called_hidden(store: LockedStore) -> None:
    store.blobs.put("records/00/a", b"1")
    store.blobs.delete("records/00/a")
    back_up(store.running.stub(), "gone", FILES)
    store.garbage.delete("gone")
    store.garbage.later(8)
    for _ in range(3):
        store.garbage.later(8)
        store.garbage.collect(grace_s=0)
    assert [each for each in store.days.histories("records") if each.is_hidden], "records were removed"
    assert list(hidden_objects(kept(store.running), store.days)) == []
    assert store.locker().look_at_versions().hidden == []


def test_a_bucket_that_keeps_no_versions_any_more_fails_the_task_by_name(
    store: LockedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store.blobs.endpoints[0].locking._client  # type: ignore[union-attr]
    asked = client.get_bucket_versioning
    monkeypatch.setattr(
        client, "get_bucket_versioning", lambda **given: asked(**given) | {"Status": "Suspended"}
    )
    with pytest.raises(Unavailable, match="cannot lock objects any more: the bucket keeps no versions"):
        store.locker().extend_packs()


def test_a_run_that_is_stopped_is_due_again_at_once(store: LockedStore) -> None:
    running = store.running
    back_up(running.stub(), "set", FILES)
    stopped, looks = [True], []

    def versions(stopping: Stopping) -> str:
        looks.append(stopping())
        if stopped.pop():
            raise StoppedError
        return ""

    schedule = Schedule([Task("versions", 3600, versions)], running.catalog, running.clock)
    schedule.look()
    assert running.catalog.tasks.last("versions").begun_ns is None
    stopped.append(False)
    schedule.look()
    schedule.look()
    assert len(looks) == 2
    assert running.catalog.tasks.last("versions").ended_ns is not None
    tasks = {task.name: task for task in lock_tasks(kept(running))}
    with pytest.raises(StoppedError):
        tasks["versions"].run(lambda: True)


@pytest.mark.slow
def test_old_versions_are_removed_when_nothing_needs_them_and_their_lock_is_over(
    store: LockedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staddle_server.upkeep.integrity.lock.DAY_S", 0.0)
    store.locker().look_at_versions()
    replace_object(store.blobs, "heads/a", b"1")
    replace_object(store.blobs, "heads/a", b"2")
    store.client.put_object(Bucket=LOCKED_BUCKET, Key=f"{store.prefix}/Photos/1", Body=b"not ours")
    store.client.put_object(Bucket=LOCKED_BUCKET, Key=f"{store.prefix}/Photos/1", Body=b"not ours")
    store.put_for(6)
    store.blobs.put("records/00/a", b"1")
    ends_s = store.until_s("records/00/a")
    store.blobs.delete("records/00/a")
    store.put_for(30 * DAY_S)
    short = store.locker(1)
    time.sleep(max(0.0, ends_s) + 1.1)
    report = short.look_at_versions()
    assert (report.removed, report.kept) == (2, 0)
    assert len(store.history("heads/a").versions) == 1
    assert len(store.history("Photos/1").versions) == 2
    assert list(store.days.histories("records/00/")) == []


@pytest.mark.slow
def test_a_version_that_was_replaced_just_now_stays_and_older_ones_go(
    store: LockedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staddle_server.upkeep.integrity.lock.DAY_S", 10.0)
    for content in (b"1", b"2"):
        replace_object(store.blobs, "heads/a", content)
    time.sleep(11.1)
    replace_object(store.blobs, "heads/a", b"3")
    report = store.locker().look_at_versions()
    assert report.removed == 1
    assert len(store.history("heads/a").versions) == 2


def test_what_is_hidden_and_still_locked_stays_and_is_told(store: LockedStore) -> None:
    store.blobs.put("records/00/a", b"1")
    store.blobs.delete("records/00/a")
    time.sleep(1.1)
    assert store.locker(0.5).look_at_versions().kept == 1
    assert store.locker().look_at_versions().kept == 0, "hidden for less than the promise: not even tried"


def test_an_engine_that_refuses_to_extend_fails_the_task_by_name(
    store: LockedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(store.running.stub(), "set", FILES)
    client = store.blobs.endpoints[0].locking._client  # type: ignore[union-attr]
    retain = client.put_object_retention
    monkeypatch.setattr(
        client, "put_object_retention", lambda **given: retain(**given | {"Bucket": "staddle-tests"})
    )
    with pytest.raises(Unavailable, match=r"could not lock packs/.* refuses it \(HTTP 4"):
        store.locker(90 * DAY_S).extend_packs()


def test_a_store_with_locks_has_the_tasks_and_one_without_has_none(
    store: LockedStore, running: Running
) -> None:
    tasks = {task.name: task for task in lock_tasks(kept(store.running))}
    assert tasks["lock"].every_s == DAY_S
    assert tasks["versions"].every_s == 3.75 * DAY_S
    assert tasks["lock"].run(lambda: False) == ""
    assert lock_tasks(kept(running)) == []
