"""Records are the truth: they give the same state in any reading order, and despite jumping clocks."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle_server.base.limits import GRACE_S
from staddle_server.base.types import Authors, ChangeCounts, Kind, Root, Scope
from staddle_server.catalog import Expectation
from staddle_server.store.records import (
    CommittedRecord,
    DeletedRecord,
    ExpectedRecord,
    HeldRecord,
    PolicyRecord,
    PurgedRecord,
    Record,
    ReleasedRecord,
    RetainedRecord,
    TenantRecord,
    TenantSettingsRecord,
    UndeletedRecord,
)
from staddle_server.upkeep.record_history import History

NOW = 9_000


def backup_id(n: int) -> bytes:
    return bytes([n]) * 16


def committed(n: int, *, number: int | None = None, dataset: str = "www", at: int | None = None, **said):
    at = n * 10 if at is None else at
    record = CommittedRecord(
        backup=backup_id(n),
        dataset=dataset,
        number=number or n,
        kind=Kind.FULL,
        scope=Scope.WHOLE,
        base=b"",
        begin_ns=at - 5,
        commit_ns=at,
        root=Root(0, bytes(32), 1, 2),
        stored_bytes=3,
        changes=ChangeCounts(1, 2, 3, 4, 5),
        tags={"a": "b"},
        host="h",
        source_root="/r",
        principal="p",
        upload=bytes([n]) * 15 + b"u",
        request_id=f"r{n}",
        begun_by="b",
        written_by=("w", "v"),
        more_writers=True,
    )
    return msgspec.structs.replace(record, **said)


def state(records: list[Record]):
    """The state that a history results in."""
    history = History()
    for record in records:
        history.add(record, repr(record))  # as in the store: one object per decision
    notes = []
    datasets = {}
    for dataset in history.datasets(2**62):
        datasets[dataset] = list(history.backups(dataset.name, NOW, notes.append))
    return history.grace_s, datasets, sorted(notes), history.purged, history.orphans()


def one(records: list[Record]):
    """The only backup of the only dataset."""
    _, datasets, _, _, _ = state(records)
    ((_, (backup,)),) = datasets.items()
    return backup


def test_a_backup_is_rebuilt_from_its_record():
    record = committed(3, retain_until_ns=77, base=backup_id(9), kind=Kind.INCREMENTAL)
    found = one([record])
    assert (found.id, found.number, found.upload, found.base) == (
        backup_id(3),
        3,
        record.upload,
        backup_id(9),
    )
    assert (found.begin_ns, found.commit_ns, found.root) == (25, 30, record.root)
    assert found.changes == ChangeCounts(1, 2, 3, 4, 5)
    assert (found.tags, found.host, found.source_root) == ({"a": "b"}, "h", "/r")
    assert (found.principal, found.request_id, found.stored_bytes) == ("p", "r3", 3)
    assert found.authors == Authors("b", ("w", "v"), more_writers=True)
    assert (found.deleted_ns, found.hold_ns, found.hold_reason, found.retain_until_ns) == (None, None, "", 77)


def test_the_latest_deletion_or_undeletion_counts_and_the_grace_starts_again():
    deleted, undeleted = DeletedRecord(backup_id(1), 100), UndeletedRecord(backup_id(1), 200)
    assert one([committed(1), undeleted, deleted]).deleted_ns is None
    assert one([committed(1), undeleted, deleted, DeletedRecord(backup_id(1), 300)]).deleted_ns == NOW


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_between_simultaneous_decisions_the_one_that_keeps_more_counts(names):
    history = History()
    history.add(committed(1), "c")
    for name, record in zip(
        names, (DeletedRecord(backup_id(1), 100), UndeletedRecord(backup_id(1), 100)), strict=True
    ):
        history.add(record, name)
    held, released = HeldRecord(backup_id(1), "www", "why", 100), ReleasedRecord(backup_id(1), "www", 100)
    for name, hold in zip(names, (held, released), strict=True):
        history.add(hold, name)
    (backup,) = history.backups("www", NOW, lambda _: None)
    assert (backup.deleted_ns, backup.hold_ns) == (None, 100)


def test_a_purged_backup_never_comes_back_and_its_number_is_not_reused():
    _, datasets, _, purged, orphans = state(
        [UndeletedRecord(backup_id(2), 10**6), PurgedRecord(backup_id(2), 5), committed(1), committed(2)]
    )
    ((dataset, backups),) = datasets.items()
    assert [backup.id for backup in backups] == [backup_id(1)]
    assert (dataset.last_number, purged, orphans) == (2, 1, set())


def test_retention_is_only_ever_extended():
    record = committed(1, retain_until_ns=500)
    retained = [RetainedRecord(backup_id(1), 900, 1), RetainedRecord(backup_id(1), 700, 99)]
    assert one([record]).retain_until_ns == 500
    assert one([*retained, record]).retain_until_ns == 900
    assert one([record, RetainedRecord(backup_id(1), 400, 1)]).retain_until_ns == 500


def test_holds_of_backups_and_of_datasets_are_separate_and_the_latest_counts():
    held = HeldRecord(backup_id(1), "www", "case 12", 50)
    found = one([committed(1), held])
    assert (found.hold_ns, found.hold_reason) == (50, "case 12")
    assert one([committed(1), held, ReleasedRecord(b"", "www", 60)]).hold_ns == 50
    assert one([committed(1), ReleasedRecord(backup_id(1), "www", 50), held]).hold_ns == 50
    released = one([committed(1), ReleasedRecord(backup_id(1), "www", 51), held])
    assert (released.hold_ns, released.hold_reason) == (None, "")
    _, datasets, *_ = state([HeldRecord(b"", "www", "all of it", 70), committed(1)])
    ((dataset, (backup,)),) = datasets.items()
    assert (dataset.hold_ns, dataset.hold_reason, backup.hold_ns) == (70, "all of it", None)


def test_the_latest_policy_and_settings_count_even_for_a_dataset_without_backups():
    grace, datasets, *_ = state(
        [
            PolicyRecord("new", '{"keep_last":9}', 60, 200),
            PolicyRecord("new", '{"keep_last":3}', 30, 100),
            TenantSettingsRecord(7, 2),
            TenantSettingsRecord(5, 1),
            TenantRecord("default", 1),
        ]
    )
    ((dataset, backups),) = datasets.items()
    assert (dataset.policy, dataset.min_retention_s, dataset.created_ns) == ('{"keep_last":9}', 60, 100)
    assert (backups, grace) == ([], 7)
    assert state([])[0] == GRACE_S


def test_the_latest_expectation_counts_and_of_two_at_once_the_one_that_expects():
    first, other = ExpectedRecord("new", 60, 5, 9, 7, 100), ExpectedRecord("new", 0, 0, 0, 0, 100)
    for records, expected in (
        ([first, other], Expectation(60, 5, 9, 7)),
        ([first, ExpectedRecord("new", 0, 0, 0, 0, 101)], None),
        ([first, ExpectedRecord("new", 30, 0, 9, 0, 99)], Expectation(60, 5, 9, 7)),
    ):
        _, datasets, *_ = state(records)
        ((dataset, backups),) = datasets.items()
        assert (dataset.expectation, dataset.success_ns, backups) == (expected, 0, [])


def test_a_dataset_has_the_time_of_its_newest_commit_also_of_a_purged_one():
    _, datasets, *_ = state([committed(1, at=500), committed(2, at=400), PurgedRecord(backup_id(1), 600)])
    assert [dataset.success_ns for dataset in datasets] == [500]


def test_a_dataset_has_the_root_of_its_newest_backup_and_the_age_of_its_oldest():
    _, datasets, *_ = state(
        [
            committed(3, host="", source_root="/three"),
            committed(1, host="one", source_root="/one"),
            committed(2, host="two", source_root=""),
        ]
    )
    ((dataset, backups),) = datasets.items()
    assert (dataset.host, dataset.root) == ("two", "/three")
    assert (dataset.created_ns, dataset.last_number) == (5, 3)
    assert [backup.number for backup in backups] == [1, 2, 3]


def test_decisions_about_a_backup_without_a_record_are_reported():
    assert state([DeletedRecord(backup_id(7), 1)])[4] == {backup_id(7)}
    assert state([RetainedRecord(backup_id(7), 1, 1)])[4] == {backup_id(7)}
    assert state([HeldRecord(backup_id(7), "www", "", 1)])[4] == {backup_id(7)}
    assert state([DeletedRecord(backup_id(7), 1), PurgedRecord(backup_id(7), 2)])[4] == set()


def test_duplicate_numbers_from_a_copied_catalog_are_replaced_and_keep_the_order():
    records = [committed(n) for n in (1, 2, 3)] + [
        committed(4, number=2, at=400),
        committed(5, number=3, at=500),
        committed(6, number=4, at=600),
    ]
    _, datasets, notes, _, _ = state(records)
    ((dataset, backups),) = datasets.items()
    assert [(each.id[0], each.number) for each in backups] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]
    assert dataset.last_number == 6
    assert [(note.backup[0], note.before, note.number) for note in notes] == [(4, 2, 4), (5, 3, 5), (6, 4, 6)]


def test_a_clock_that_went_back_changes_no_number():
    _, datasets, notes, *_ = state([committed(1, at=900), committed(2, at=100)])
    ((_, backups),) = datasets.items()
    assert [(each.id[0], each.number) for each in backups] == [(1, 1), (2, 2)]
    assert notes == []


def test_of_two_backups_from_one_upload_it_names_the_first():
    upload = backup_id(99)
    _, datasets, *_ = state([committed(1, upload=upload), committed(2, upload=upload)])
    ((_, backups),) = datasets.items()
    assert [each.upload for each in backups] == [upload, backup_id(2)]


IDS = st.integers(1, 4)
TIMES = st.integers(1, 6)
DATASETS = st.sampled_from(["www", "db"])
DECISIONS = st.one_of(
    st.builds(lambda n, at: DeletedRecord(backup_id(n), at), IDS, TIMES),
    st.builds(lambda n, at: UndeletedRecord(backup_id(n), at), IDS, TIMES),
    st.builds(lambda n, at: PurgedRecord(backup_id(n), at), st.just(4), TIMES),
    st.builds(
        lambda n, d, at: HeldRecord(backup_id(n) if n else b"", d, f"{at}", at),
        st.integers(0, 4),
        DATASETS,
        TIMES,
    ),
    st.builds(
        lambda n, d, at: ReleasedRecord(backup_id(n) if n else b"", d, at), st.integers(0, 4), DATASETS, TIMES
    ),
    st.builds(lambda n, until, at: RetainedRecord(backup_id(n), until, at), IDS, TIMES, TIMES),
    st.builds(lambda d, s, at: PolicyRecord(d, f"{s}", s, at), DATASETS, TIMES, TIMES),
    st.builds(lambda d, s, at: ExpectedRecord(d, s % 3, s, at, 0, at), DATASETS, TIMES, TIMES),
    st.builds(TenantSettingsRecord, TIMES, TIMES),
)
COMMITS = st.lists(st.tuples(IDS, IDS, TIMES), unique_by=lambda one: one[0]).map(
    lambda found: [committed(n, number=number, at=at + 5) for n, number, at in found]
)


@given(COMMITS, st.lists(DECISIONS, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_reading_records_does_not_matter(commits, decisions, rng: random.Random):
    records = [*commits, *decisions]
    before = state(records)
    rng.shuffle(records)
    assert state(records) == before


@given(COMMITS, st.lists(DECISIONS, max_size=12))
def test_every_committed_backup_is_listed_once_with_a_unique_number_unless_purged(commits, decisions):
    _, datasets, _, purged, _ = state([*commits, *decisions])
    found = [backup for backups in datasets.values() for backup in backups]
    gone = {record.backup for record in decisions if isinstance(record, PurgedRecord)}
    assert {each.id for each in found} == {each.backup for each in commits} - gone
    assert len(found) + purged == len(commits)
    for dataset, backups in datasets.items():
        numbers = [backup.number for backup in backups]
        assert numbers == sorted(set(numbers))
        assert dataset.last_number >= max(numbers, default=0)


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_after_repeated_deletions_and_undeletions_the_last_one_counts(turns: list[bool]):
    records: list[Record] = [committed(1)]
    for at, delete in enumerate(turns, 1):
        records.append((DeletedRecord if delete else UndeletedRecord)(backup_id(1), at))
    assert (one(records).deleted_ns is not None) is turns[-1]


@pytest.mark.parametrize("record", [PolicyRecord("x", "", 0, 3), HeldRecord(b"", "x", "", 3)])
def test_a_decision_about_a_dataset_without_backups_keeps_the_dataset(record):
    _, datasets, *_ = state([record])
    assert [(dataset.name, dataset.created_ns, dataset.last_number) for dataset in datasets] == [("x", 3, 0)]
