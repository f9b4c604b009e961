"""A copy of the store at a second place: whenever the copying stops, a rebuild there finds whole backups."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from rebuilt import delete
from second_place import (
    Cut,
    Files,
    KilledError,
    collect,
    contents_at,
    kept_of,
    objects,
    problems_at,
    replicate,
)
from servers import Running
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.second_site import SecondSite
from staddle_server.base.errors import Conflict
from staddle_server.base.limits import GRACE_S
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.collector import Collector
from staddle_server.upkeep.held_lease import LEASE_S
from staddle_server.upkeep.replication.packs import PackCopier
from thin import back_up, noise


def some_backups(running: Running) -> dict[str, Files]:
    """Backups of two tenants, one of them deleted, by id."""
    stub, other = running.stub(), running.stub(tenant=running.make_tenant("other"))
    first = {"a": noise(300_000, 1), "b": noise(200_000, 2), "c": b"small"}
    second = first | {"b": noise(250_000, 3)}
    made = {
        back_up(stub, "www", first).id: first,
        back_up(stub, "www", second).id: second,
        back_up(other, "db", first).id: first,
    }
    delete(stub, "www", next(iter(made)))
    return made


# ------------------------------------------------------------------ everything arrives


def test_a_copy_has_every_backup_and_its_rebuild_finds_no_fault(
    running: Running, place: Path, scratch: Any
) -> None:
    made = some_backups(running)
    report = replicate(running, place)
    assert report.problems == []
    assert report.objects == report.packs + report.records + report.keys
    assert report.whole_ns
    assert contents_at(place, scratch()) == made
    assert problems_at(place, scratch()) == []
    here, there = objects(running.root / "store"), objects(place)
    assert there.pop("format") == b"staddle store 1\n"
    assert here.keys() == there.keys()
    assert all(there[name] == data for name, data in here.items() if not name.startswith("heads/"))


def test_when_nothing_is_new_a_run_reads_only_the_catalog(running: Running, place: Path) -> None:
    some_backups(running)
    replicate(running, place)
    place.rename(place.with_name("away"))
    report = replicate(running, place)
    assert report.idle
    assert not place.exists()


def test_a_second_run_sends_only_what_is_new(running: Running, place: Path, scratch: Any) -> None:
    made = some_backups(running)
    replicate(running, place)
    before = objects(place)
    files = {"new": noise(100_000, 9)}
    made[back_up(running.stub(), "www", files).id] = files
    report = replicate(running, place)
    assert (report.packs, report.records, report.keys) == (1, 1, 0)
    assert {name for name in objects(place) if name not in before and name.startswith("packs/")}
    assert contents_at(place, scratch()) == made


def test_the_catalog_knows_how_far_a_place_is_behind(running: Running, place: Path) -> None:
    some_backups(running)
    report = replicate(running, place)
    (state,) = running.catalog.replicas.list_all()
    assert state.is_whole
    assert state.whole_ns == report.whole_ns
    back_up(running.stub(), "www", {"x": noise(500_000, 5)})
    (state,) = running.catalog.replicas.list_all()
    assert not state.is_whole
    assert (state.packs_behind, state.records_behind) == (1, 1)
    assert 500_000 < state.bytes_behind < 600_000


# ------------------------------------------------------------------ records last


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_after_every_object_a_rebuild_at_the_place_lists_only_whole_backups(
    running: Running, place: Path, scratch: Any, every: int
) -> None:
    made = some_backups(running)
    stub = running.stub()
    for number in itertools.count():
        if number == 3:  # what was listed is purged, and moved to other packs
            files = {"c": b"small", "d": noise(150_000, 4)}
            made[back_up(stub, "www", files).id] = files
            delete(stub, "www", back_up(stub, "www", {"gone": noise(120_000, 6)}).id)
            collect(running)
        try:
            replicate(running, place, wrap=lambda blobs: Cut(blobs, every), compare=True)
        except KilledError:
            found = contents_at(place, scratch()) if (place / "keys").exists() else {}
            assert found.items() <= made.items()
            continue
        break
    assert number > 3
    kept = dict(itertools.islice(made.items(), 1, None))  # the first one was deleted, and is purged now
    found = contents_at(place, scratch())
    assert kept.items() <= found.items() <= made.items()
    replicate(running, place, compare=True, grace_s=0)
    assert contents_at(place, scratch()) == kept
    assert problems_at(place, scratch()) == []


def test_a_backup_that_is_purged_before_its_record_is_copied_does_not_come_back(
    running: Running, place: Path, scratch: Any
) -> None:
    made = some_backups(running)
    gone = next(iter(made))
    with pytest.raises(KilledError):  # the keys and the first objects are there
        replicate(running, place, wrap=lambda blobs: Cut(blobs, 4))
    collect(running)
    replicate(running, place)
    assert contents_at(place, scratch()).keys() == made.keys() - {gone}
    assert problems_at(place, scratch()) == []
    running.clock.ahead_s += 3 * 86_400  # and its records are removed
    collect(running)
    replicate(running, place, compare=True)
    assert contents_at(place, scratch()).keys() == made.keys() - {gone}
    assert problems_at(place, scratch()) == []


def test_the_record_of_a_purged_backup_waits_until_it_is_known_there_to_be_purged(
    running: Running, place: Path, scratch: Any
) -> None:
    stub, files = running.stub(), {"a": noise(100_000, 8)}
    gone = back_up(stub, "www", {"a": noise(100_000, 7)}).id
    kept = back_up(stub, "www", files).id
    delete(stub, "www", gone)
    running.clock.ahead_s += GRACE_S + 1
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    Collector(running.catalog, tenants, running.clock).collect()
    assert running.catalog.purge.known(running.tenant, [bytes.fromhex(gone)]) == {bytes.fromhex(gone): True}
    assert len(running.catalog.purge.live(running.tenant)) == 1, "its pack is not live any more"
    steps, whole = 0, False
    while not whole:
        try:
            replicate(running, place, wrap=lambda blobs: Cut(blobs, 1))
            whole = True
        except KilledError:
            steps += 1
            found = contents_at(place, scratch()) if (place / "keys").exists() else {}
            assert found.items() <= {kept: files}.items()
    assert steps > 6
    assert contents_at(place, scratch()) == {kept: files}
    assert problems_at(place, scratch()) == [], "no record is missing there"


def test_a_pack_that_is_removed_while_packs_are_copied_is_no_fault(
    running: Running, place: Path, scratch: Any
) -> None:
    made = some_backups(running)
    gone = next(iter(made))

    class Collecting(Cut):
        """The collector removes packs while the first one is on its way."""

        def create(self) -> Any:
            if self.left:
                self.left = 0
                collect(running)
            return self.inner.create()

        def put(self, name: str, data: bytes) -> None:
            self.inner.put(name, data)

    report = replicate(running, place, wrap=lambda blobs: Collecting(blobs, 1))
    assert report.problems == []
    assert contents_at(place, scratch()).keys() == made.keys() - {gone}
    replicate(running, place)  # and the record that says what may be absent
    assert problems_at(place, scratch()) == []


def test_what_a_collection_moves_to_another_pack_while_packs_are_copied_is_copied_too(
    running: Running, place: Path, scratch: Any
) -> None:
    stub, small, large = running.stub(), noise(60_000, 1), noise(900_000, 2)
    first = back_up(stub, "www", {"a": small, "b": large}).id
    kept = back_up(stub, "www", {"a": small}).id  # from the same pack
    delete(stub, "www", first)

    class Compacting(WrappedBlobs):
        """That pack is compacted and removed before it is sent."""

        done = False

        def size(self, name: str) -> int:
            if name.startswith("packs/") and not self.done:
                self.done = True
                collect(running)
            return super().size(name)

    before = running.catalog.purge.live(running.tenant)
    report = replicate(running, place, wrap=Compacting)
    assert running.catalog.purge.live(running.tenant).isdisjoint(before)
    assert report.problems == []
    assert contents_at(place, scratch()) == {kept: {"a": small}}


# ------------------------------------------------------------------ one at a time


def test_only_one_process_copies_to_a_place_and_a_dead_one_is_followed_after_its_lease(
    running: Running, place: Path
) -> None:
    some_backups(running)
    replicas = running.catalog.replicas
    lease = replicas.lease(str(place))
    fence = lease.acquire("process 1", running.clock.now_ns(), LEASE_S)
    dead = replicas.begin(str(place), fence, running.clock.now_ns())
    with pytest.raises(Conflict, match="process 1 is copying to"):
        replicate(running, place)
    lease.renew(fence, running.clock.now_ns(), 0.0)  # its time is over
    replicate(running, place)
    with pytest.raises(Conflict, match="Another process is copying to"):
        replicas.note_copied(dead, 1)


def test_a_run_that_is_asked_to_stop_ends_and_the_next_one_continues(
    running: Running, place: Path, scratch: Any
) -> None:
    made = some_backups(running)
    asked = itertools.count()
    report = replicate(running, place, stopping=lambda: next(asked) > 6)
    assert report.stopped
    assert not report.whole_ns
    replicate(running, place)
    assert contents_at(place, scratch()) == made


def test_every_byte_that_is_sent_counts_against_the_rate(running: Running, place: Path) -> None:
    some_backups(running)
    kept, counted = kept_of(running), []
    second = SecondSite(DataDirectory(running.root), str(place), os.environ)
    with second.opened(known=False) as site:
        fence = running.catalog.replicas.lease(site.name).acquire("test", 0, LEASE_S)
        replica = running.catalog.replicas.begin(site.name, fence, 0)
        waiting = running.catalog.replicas.waiting(replica, 1 << 40)
        for pack in waiting:
            copier = PackCopier(
                kept.tenants.get(pack.tenant), running.catalog, site, lambda size, _: counted.append(size)
            )
            assert copier.copy(pack, verify=False, replace=False) == pack.size_bytes
    assert len(waiting) == 3
    assert sum(counted) == sum(pack.size_bytes for pack in waiting)
