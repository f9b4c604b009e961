"""The chain of records: check and rebuild name any missing one, and repair restores it while the catalog has it."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest
from harm import check, damage, flip, kept, objects, repair
from hypothesis import given
from hypothesis import strategies as st
from postgres_server import only_in_a_file
from rebuilt import rebuild_in_place
from sql import sql
from staddle.v1 import service_pb2 as sv
from staddle_server.base.clock import SystemClock
from staddle_server.base.types import NO_LINK, Place
from staddle_server.store.blobs import Blobs
from staddle_server.store.records import (
    ForgottenRecord,
    NotedRecord,
    Stored,
    TenantRecord,
    TenantSettingsRecord,
    sequence_of,
)
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.records import as_noted, as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.collector import Collector
from staddle_server.upkeep.integrity.record_check import lost_records
from staddle_server.upkeep.integrity.repair import Repair
from staddle_server.upkeep.rebuild.catalog_age import records_unknown
from staddle_server.upkeep.record_chain import BREAKS_MAX, Chain, Span, merge_spans, subtract
from thin import back_up, backups, restore


class Asked(WrappedBlobs):
    """A store that remembers what was listed and read."""

    def __init__(self, blobs: Blobs) -> None:
        super().__init__(blobs)
        self.forget()

    def forget(self) -> None:
        self.listed: list[str] = []
        self.read_names: list[str] = []

    def list(self, prefix):
        self.listed.append(prefix)
        return super().list(prefix)

    def read(self, name, offset, length):
        self.read_names.append(name)
        return super().read(name, offset, length)


NUMBERS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=12
)


def numbers(spans) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


@given(NUMBERS, NUMBERS)
def test_spans_are_sets_of_numbers(some, others):
    merged, without = merge_spans(some), merge_spans(others)
    assert numbers(merged) == numbers(some)
    assert all(one.last + 1 < two.first for one, two in pairwise(merged))
    assert numbers(subtract(merged, without)) == numbers(some) - numbers(others)


@given(st.sets(st.integers(1, 80)), NUMBERS, st.integers(0, 90))
def test_a_number_is_missing_if_it_is_neither_found_nor_excused(there, forgotten, upto):
    chain = Chain()
    for number in sorted(there):
        chain.take(f"records/{'0' * 32}/{number:012x}-{'0' * 32}", None)
    chain.forget(forgotten)
    assert numbers(chain.missing(upto)) == set(range(1, upto + 1)) - there - numbers(forgotten)


def test_a_record_that_does_not_link_to_the_previous_one_is_named():
    link, other = b"1" * 32, b"2" * 32
    record = TenantRecord("default", 1)
    names = [f"records/{'0' * 32}/{number:012x}-{'0' * 32}" for number in (1, 2)]
    for previous, breaks in ((link, 0), (other, 1), (NO_LINK, 0)):
        chain = Chain()
        chain.take(names[0], Stored(record, Place(1, NO_LINK), link))
        chain.take(names[1], Stored(record, Place(2, previous), other))
        assert len(chain.breaks) == breaks
    many = Chain()
    for number in range(1, BREAKS_MAX + 3):
        for _ in range(2):
            many.take(f"records/{'0' * 32}/{number:012x}-{'0' * 32}", None)
    assert [each.sequence for each in many.breaks] == [*range(3, BREAKS_MAX + 3)], "the newest"
    unread = Chain()
    unread.take(names[0], None)
    unread.take(names[1], Stored(record, Place(2, link), other))
    assert unread.breaks == [], "the link of an unreadable record is unknown"


def decide(running) -> None:
    """Three backups: one is held, and one is deleted and undeleted."""
    stub = running.stub()
    made = [back_up(stub, "www", {"a": b"%d" % n}) for n in range(3)]
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=made[0].id))
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=made[0].id))
    stub.SetHold(sv.SetHoldRequest(dataset="www", backup=made[1].id, reason="case 12"))


def test_a_rebuild_names_any_missing_records(running):
    decide(running)
    records = objects(running, "records")
    assert len(records) == 7, "the tenant, three commits, three decisions"
    for number, record in enumerate(records, 1):
        data = record.read_bytes()
        record.unlink()
        report, _ = rebuild_in_place(running)
        (message,) = [each.message for each in report.problems if each.what.startswith("records/")]
        assert message.startswith(f"record {number} of tenant default is missing")
        record.write_bytes(data)
    report, _ = rebuild_in_place(running)
    assert report.problems == []


def test_a_missing_or_damaged_head_is_named_and_rewritten(running):
    decide(running)
    (head,) = objects(running, "heads")
    for spoil in (head.unlink, lambda: flip(head, 50)):
        spoil()
        report, _ = rebuild_in_place(running)
        assert [each.what for each in report.problems] == [f"heads/{running.tenant.hex()}"]
        assert [each.kind for each in damage(check(running)[0])] == ["head"]
        assert damage(repair(running)[0]) == []
        assert check(running)[0] == []


def test_a_record_that_is_written_during_a_check_is_not_damage(running):
    """Its object is in the store already, and the head is about to follow."""
    decide(running)
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    running.catalog.tenants.keep_records(tenant.id, [as_pending(tenant.id, TenantSettingsRecord(60, 5))])
    (pending,) = running.catalog.backups.pending_records(tenant.id)
    tenant.records.put(pending.body, pending.place, pending.id)
    assert check(running)[0] == []
    assert finish_missing(tenant, running.catalog) == 1
    assert tenant.records.head.read() == pending.place.sequence


def test_lost_records_that_the_catalog_has_are_named_by_check_and_rewritten_by_repair(running):
    decide(running)
    for record in objects(running, "records")[1:6:2]:
        record.unlink()
    found, _ = check(running)
    gaps = [each.message.partition(" of tenant")[0] for each in found if each.kind == "record-missing"]
    assert gaps == ["record 2", "record 4", "record 6"]
    assert damage(repair(running)[0]) == []
    assert check(running)[0] == []
    report, _ = rebuild_in_place(running)
    assert report.problems == []
    assert len(backups(running.stub(), "www")) == 3


def test_records_that_a_rebuild_missed_stay_damage_until_they_are_given_up_by_name(running):
    decide(running)
    objects(running, "records")[-1].unlink()
    rebuild_in_place(running)
    for _ in range(2):
        assert [each.kind for each in damage(repair(running)[0])] == ["record-missing"]
        assert [each.kind for each in damage(check(running)[0])] == ["record-missing"]
    back_up(running.stub(), "www", {"a": b"later"})
    found = []
    Repair(kept(running), found.append, accept_lost_records=True).run(running.catalog.tenants.list_all())
    assert damage(found) == []
    assert check(running)[0] == []
    assert restore(running.stub(), "www").files == {"a": b"later"}


def test_lost_records_are_found_by_one_listing_and_the_records_that_excuse_gaps(running):
    """After a loss was accepted, and after a collection, every start would otherwise read all records."""
    decide(running)
    objects(running, "records")[-1].unlink()
    rebuild_in_place(running)
    Repair(kept(running), lambda _: None, accept_lost_records=True).run(running.catalog.tenants.list_all())
    for each in backups(running.stub(), "www")[1:]:
        running.stub().DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=each.id))
    for _ in range(3):
        tenants = Tenants(running.blobs, running.catalog, running.keys)
        Collector(running.catalog, tenants, SystemClock()).collect(grace_s=0)
    back_up(running.stub(), "www", {"a": b"later"})
    asked = Asked(running.blobs)
    tenant = Tenants(asked, running.catalog, running.keys).get(running.tenant)
    assert lost_records(tenant, running.catalog) == []
    listed = list(tenant.records.list())
    assert len(listed) < sequence_of(listed[-1]), "there are gaps"
    excuses = [name for name in listed if isinstance(tenant.records.read(name), ForgottenRecord)]
    assert 1 <= len(excuses) < len(listed)
    asked.forget()
    assert lost_records(tenant, running.catalog) == []
    assert sorted(asked.read_names) == excuses
    assert [name for name in asked.listed if name.startswith("records")] == [
        f"records/{running.tenant.hex()}"
    ]
    objects(running, "records")[0].unlink()
    assert [str(span) for span in lost_records(tenant, running.catalog)] == ["record 1"]


def test_the_collector_records_which_records_it_removes_so_they_leave_no_gap(running):
    decide(running)
    stub = running.stub()
    for _ in range(2):
        for each in backups(stub, "www")[1:]:
            stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=each.id))
            stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=each.id))
        running.catalog.tenants.keep_records(running.tenant, [as_noted(running.tenant, "a token was made")])
        finish_missing(
            Tenants(running.blobs, running.catalog, running.keys).get(running.tenant), running.catalog
        )
        for _ in range(3):
            tenants = Tenants(running.blobs, running.catalog, running.keys)
            report = Collector(running.catalog, tenants, SystemClock()).collect(grace_s=0)
            assert [tenant.failure for tenant in report.tenants] == [""]
        back_up(stub, "www", {"a": b"more"})
    records = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant).records
    kinds = [type(records.read(name)) for name in records.list()]
    assert kinds.count(ForgottenRecord) == 1, "a later one replaces the earlier ones"
    assert NotedRecord not in kinds
    assert sequence_of(list(records.list())[-1]) > 2 * len(kinds), "most records are gone"
    assert check(running)[0] == []
    report, _ = rebuild_in_place(running)
    assert report.problems == []


def test_a_collection_can_be_stopped_between_two_records_that_it_removes(running):
    notes = [as_noted(running.tenant, "a token was revoked") for _ in range(20)]
    running.catalog.tenants.keep_records(running.tenant, notes)
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    tenant = tenants.get(running.tenant)
    finish_missing(tenant, running.catalog)

    def left() -> int:
        return sum(isinstance(tenant.records.read(name), NotedRecord) for name in tenant.records.list())

    collector = Collector(running.catalog, tenants, SystemClock())
    collector.collect(lambda: left() < 15)
    assert left() == 14
    assert check(running)[0] == []
    collector.collect()
    assert left() == 0
    assert check(running)[0] == []


@only_in_a_file
def test_records_of_a_diverged_history_are_named(running, tmp_path):
    """A catalog is put back from an older copy, and decides other things under numbers that were given already."""
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    running.stop()
    shutil.copytree(running.root, tmp_path / "older")
    running.start()
    back_up(running.stub(), "www", {"a": b"2"})
    running.stop()
    for path in running.root.glob("catalog.db*"):
        path.unlink()
    shutil.copy(tmp_path / "older" / "catalog.db", running.root / "catalog.db")
    running.start()
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    assert records_unknown(tenant, running.catalog) == 1, "which is what start-up refuses"
    back_up(running.stub(), "www", {"a": b"3"})
    assert records_unknown(tenant, running.catalog) == 1, "the number was given again"
    kinds = {each.kind for each in damage(check(running)[0])}
    assert kinds == {"record-order", "unknown-backup"}

    report, _ = rebuild_in_place(running)
    (problem,) = report.problems
    assert "two histories of this store were mixed; both are used" in str(problem)
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    assert records_unknown(tenant, running.catalog) == 0
    found = check(running)[0]
    assert [(each.kind, each.severity) for each in found] == [("record-order", "healed")]
    assert "nothing is left to do" in found[0].message
    assert repair(running)[0] == found
    back_up(running.stub(), "www", {"a": b"4"})
    assert check(running)[0] == found, "what follows continues one history"


@pytest.mark.parametrize("lost", ["record", "head"])
def test_either_a_record_or_the_head_reveals_an_older_catalog(running, lost):
    back_up(running.stub(), "www", {"a": b"1"})
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    assert records_unknown(tenant, running.catalog) == 0
    with running.catalog.database.write() as connection:
        sql(connection, "UPDATE tenants SET records_sequence = records_sequence - 1")
    objects(running, f"{lost}s")[-1].unlink()
    assert records_unknown(tenant, running.catalog) == 1


def test_spans_are_printed_in_words():
    assert [str(Span(3, 3)), str(Span(3, 5))] == ["record 3", "records 3 to 5"]
