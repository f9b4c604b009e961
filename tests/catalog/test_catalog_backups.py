"""Backups and datasets: listing, selection, deletion and restoring, and the records of these decisions."""

import pytest
from sqlalchemy import delete
from staddle_server.base import errors
from staddle_server.base.types import NO_LINK, Kind, record_link
from staddle_server.catalog import BackupFilter, PendingRecord
from staddle_server.catalog import backups as listing
from staddle_server.catalog.schema import backups

SECOND = 1_000_000_000


def _delete(world, backup, **other):
    record = PendingRecord(world.id(), world.tenant, b"sealed")
    return world.catalog.backups.delete(other.get("tenant", world.tenant), backup.id, world.now, record)


def _undelete(world, backup, **other):
    record = PendingRecord(world.id(), world.tenant, b"sealed too")
    return world.catalog.backups.undelete(other.get("tenant", world.tenant), backup.id, world.now, record)


def _commit_as(world, id_hex, **said):
    made = world.commit(world.begin(**said).upload, backup=bytes.fromhex(id_hex))
    world.now += SECOND
    return made


def test_backups_are_listed_newest_first_in_pages(world):
    made = [world.backup() for _ in range(5)]
    first = world.catalog.backups.list_page(world.tenant, "www", limit=3)
    rest = world.catalog.backups.list_page(world.tenant, "www", limit=3, before_number=first[-1].number)
    assert first + rest == made[::-1]


def test_an_unknown_dataset_is_named_in_the_error(world):
    world.backup()
    for tenant, name in ((world.tenant, "other"), (world.eve.tenant, "www")):
        for call in (
            world.catalog.datasets.get,
            lambda t, n: world.catalog.backups.list_page(t, n, limit=1),
            world.catalog.backups.resolve,
        ):
            with pytest.raises(errors.NotFound) as caught:
                call(tenant, name)
            assert (caught.value.reason, caught.value.facts) == ("DATASET_NOT_FOUND", {"dataset": name})


def test_datasets_are_listed_by_name_with_their_newest_backup(world):
    for name in ("b", "ä", "B", "a"):
        world.begin(dataset=name)
    world.backup("b")
    newest = world.backup("b")
    hidden = world.backup("b")
    _delete(world, hidden)
    first = world.catalog.datasets.list_page(world.tenant, "", 2)
    rest = world.catalog.datasets.list_page(world.tenant, first[-1].name, 10)
    assert [dataset.name for dataset in first + rest] == ["B", "a", "b", "ä"]
    assert [dataset.backup_count for dataset in first + rest] == [0, 0, 2, 0]
    assert [dataset.newest_backup for dataset in first + rest] == [None, None, newest, None]
    assert world.catalog.datasets.get(world.tenant, "b") == rest[0]
    assert world.catalog.datasets.list_page(world.eve.tenant, "", 10) == []


def test_nothing_or_latest_picks_the_highest_number(world):
    early = world.begin().upload
    world.now += SECOND
    late = world.begin().upload
    world.commit(late)
    second = world.commit(early)
    for said in ("", "latest"):
        assert world.catalog.backups.resolve(world.tenant, "www", backup=said) == second


def test_a_time_picks_the_newest_capture_that_began_by_then(world):
    early = world.begin().upload
    world.now += SECOND
    late = world.begin().upload
    newer = world.commit(late)
    older = world.commit(early)
    resolve = world.catalog.backups.resolve
    assert resolve(world.tenant, "www", at_ns=late.begin_ns + SECOND) == newer
    assert resolve(world.tenant, "www", at_ns=late.begin_ns) == newer
    assert resolve(world.tenant, "www", at_ns=late.begin_ns - 1) == older
    with pytest.raises(errors.NotFound) as caught:
        resolve(world.tenant, "www", at_ns=early.begin_ns - 1)
    assert caught.value.reason == "BACKUP_NOT_FOUND"
    assert caught.value.facts == {"dataset": "www", "earliest": "2023-11-14T22:13:20Z"}


def test_a_unique_prefix_picks_and_a_shared_one_does_not(world):
    one = _commit_as(world, "abcd1" + "0" * 27)
    two = _commit_as(world, "abcd2" + "f" * 27)
    resolve = world.catalog.backups.resolve
    for prefix in ("abcd1", "ABCD10", "abcd1" + "0" * 27):
        assert resolve(world.tenant, "www", backup=prefix) == one
    assert resolve(world.tenant, "www", backup="abcd2") == two
    with pytest.raises(errors.BadRequest) as caught:
        resolve(world.tenant, "www", backup="abcd")
    assert (caught.value.reason, caught.value.facts) == ("AMBIGUOUS_BACKUP", {"backup": "abcd"})
    with pytest.raises(errors.NotFound) as missing:
        resolve(world.tenant, "www", backup="abcd3")
    assert missing.value.facts == {"dataset": "www", "backup": "abcd3"}
    _delete(world, two)
    assert resolve(world.tenant, "www", backup="abcd") == one


@pytest.mark.parametrize("prefix", ["abc", "ghij", "a" * 33, "abcd ", "ab%d", "１２３４"])
def test_an_invalid_prefix_is_a_bad_field(world, prefix):
    world.backup()
    with pytest.raises(errors.BadRequest) as caught:
        world.catalog.backups.resolve(world.tenant, "www", backup=prefix)
    assert caught.value.facts == {"field": "backup"}


def test_a_prefix_is_looked_up_in_its_own_dataset(world):
    _commit_as(world, "abcd" + "1" * 28, dataset="other")
    mine = _commit_as(world, "abcd" + "2" * 28)
    assert world.catalog.backups.resolve(world.tenant, "www", backup="abcd") == mine


def test_a_deleted_backup_is_hidden_everywhere_until_it_is_undeleted(world):
    kept, hidden = world.backup(), world.backup()
    backups = world.catalog.backups
    deleted, changed = _delete(world, hidden)
    assert changed
    assert deleted.deleted_ns == world.now
    assert backups.list_page(world.tenant, "www", limit=9) == [kept]
    assert backups.list_page(world.tenant, "www", limit=9, show_deleted=True) == [deleted, kept]
    assert backups.resolve(world.tenant, "www") == kept
    assert backups.resolve(world.tenant, "www", at_ns=world.now) == kept
    with pytest.raises(errors.NotFound):
        backups.resolve(world.tenant, "www", backup=hidden.id.hex())
    assert backups.resolve(world.tenant, "www", backup=hidden.id.hex(), include_deleted=True) == deleted
    shown, changed = _undelete(world, hidden)
    assert changed
    assert shown == hidden
    assert backups.resolve(world.tenant, "www") == hidden


def test_deleting_twice_changes_and_records_nothing_more(world):
    backup = world.backup()
    first, _ = _delete(world, backup)
    world.now += SECOND
    assert _delete(world, backup) == (first, False)
    assert len(world.pending()) == 1
    assert _undelete(world, backup) == (backup, True)
    assert _undelete(world, backup) == (backup, False)
    assert len(world.pending()) == 2


def test_another_tenants_backup_is_neither_seen_nor_deleted(world):
    backup = world.backup()
    for call in (
        lambda: world.catalog.backups.get(world.eve.tenant, backup.id),
        lambda: _delete(world, backup, tenant=world.eve.tenant),
        lambda: _undelete(world, backup, tenant=world.eve.tenant),
    ):
        with pytest.raises(errors.NotFound) as caught:
            call()
        assert caught.value.reason == "BACKUP_NOT_FOUND"
    assert world.catalog.backups.get(world.tenant, backup.id) == backup
    assert world.pending() == []


def test_start_up_finds_every_decision_without_a_durable_record_in_the_order_of_its_chain(world):
    one, two = world.backup(), world.backup()
    record = PendingRecord(world.id(), world.tenant, b"sealed body")
    world.catalog.backups.delete(world.tenant, one.id, world.now, record)
    pending = world.catalog.backups.pending_records(world.tenant)
    assert [each.id for each in pending] == [world.tenant, one.id, two.id, record.id]
    assert [each.body for each in pending][1:] == [
        b"committed " + one.id,
        b"committed " + two.id,
        b"sealed body",
    ]
    assert [each.place.sequence for each in pending] == [1, 2, 3, 4]
    world.catalog.backups.mark_records_written(world.eve.tenant, [one.id, record.id])
    assert world.catalog.backups.pending_records(world.tenant) == pending
    world.catalog.backups.mark_records_written(world.tenant, [one.id, record.id])
    assert world.catalog.backups.pending_records(world.tenant) == [pending[0], pending[2]]
    assert [each.id for each in world.catalog.backups.pending_records(world.eve.tenant)] == [world.eve.tenant]


def test_each_record_names_the_link_of_the_one_before_it(world):
    world.backup()
    world.backup()
    pending = world.catalog.backups.pending_records(world.tenant)
    link = NO_LINK
    for record in pending:
        assert record.place.previous == link
        link = record_link(world.tenant, record.id, record.place, record.body)
    assert world.catalog.tenants.newest_record(world.tenant) == len(pending) == 3


def test_a_decision_that_is_rolled_back_leaves_no_gap_in_the_chain(world):
    backup = world.backup()
    with pytest.raises(errors.NotFound):
        _delete(world, backup, tenant=world.eve.tenant)
    _delete(world, backup)
    assert [each.place.sequence for each in world.catalog.backups.pending_records(world.tenant)] == [1, 2, 3]


def test_the_number_of_a_removed_backup_is_not_reused(world):
    first = world.backup(kind=Kind.FULL)
    with world.catalog.database.write() as connection:
        connection.execute(delete(backups).where(backups.c.id == first.id))
    assert world.backup().number == 2


@pytest.mark.parametrize(
    ("among", "which"),
    [
        (BackupFilter(), [4, 3, 2, 1, 0]),
        (BackupFilter(host="a"), [4, 2, 0]),
        (BackupFilter(tags=(("env", "prod"),)), [0]),
        (BackupFilter(tags=(("env", None),)), [2, 1, 0]),
        (BackupFilter(tags=(("env", None), ("team", "a"))), [0]),
        (BackupFilter(tags=(("env", ""),)), []),
        (BackupFilter(tags=(("EN", None),)), []),
        (BackupFilter(tags=(("y", "%_"),)), [4]),
        (BackupFilter(tags=(("ü", 'a"\\'),)), [3]),
        (BackupFilter(tags=(("y", "__"),)), []),
        (BackupFilter(tags=((",", None),)), []),
        (BackupFilter(held=True), [1]),
    ],
)
def test_backups_are_filtered_by_host_tags_and_holds(world, among, which):
    tags = (
        {"env": "prod", "team": "a"},
        {"env": "Prod"},
        {"env": "test", "x": 'say "env":"prod"', 'y"env': "prod"},
        {"ü": 'a"\\'},
        {"x": '{"env":"prod"', "y": "%_", "z": ",", "zz": "v"},
    )
    made = [
        world.backup(tags=each, host="ab"[number % 2], new_root=True, kind=Kind.FULL)
        for number, each in enumerate(tags)
    ]
    record = PendingRecord(world.id(), world.tenant, b"sealed")
    world.catalog.retention.hold_backup(world.tenant, made[1].id, "case", world.now, record)
    found = world.catalog.backups.list_page(world.tenant, "www", limit=10, among=among)
    assert [each.id for each in found] == [made[number].id for number in which]


def test_a_time_filters_by_the_begin_of_backups(world):
    made = [world.backup() for _ in range(4)]
    among = BackupFilter(since_ns=made[1].begin_ns, until_ns=made[3].begin_ns)
    first = world.catalog.backups.list_page(world.tenant, "www", limit=1, among=among)
    assert (first, first.more) == ([made[2]], True)
    rest = world.catalog.backups.list_page(
        world.tenant, "www", limit=1, before_number=made[2].number, among=among
    )
    assert (rest, rest.more) == ([made[1]], False)


def _pages(world, among, before=None):
    while True:
        page = world.catalog.backups.list_page(
            world.tenant, "www", limit=2, among=among, before_number=before
        )
        yield [each.number for each in page]
        if not page.more:
            return
        before = page.reached


def test_a_page_looks_at_so_many_backups_and_is_empty_if_none_of_them_was_asked_for(world, monkeypatch):
    monkeypatch.setattr(listing, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(listing, "LOOKED_AT_MAX", 4)
    for number in range(1, 14):
        world.backup(tags={"env": "prod"} if number in {1, 7, 10, 11, 12} else {}, host="a")
    found = list(_pages(world, BackupFilter(tags=(("env", None),))))
    assert found == [[12, 11], [10, 7], [], [1]]
    assert list(_pages(world, BackupFilter(tags=(("env", "test"),)))) == [[], [], [], []]
    assert list(_pages(world, BackupFilter(host="b"))) == [[], [], [], []]
    assert [number for page in _pages(world, BackupFilter()) for number in page] == list(range(13, 0, -1))


def test_a_page_looks_at_so_many_bytes_of_tags(world, monkeypatch):
    monkeypatch.setattr(listing, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(listing, "LOOKED_AT_BYTES_MAX", 5000)
    for _ in range(8):
        world.backup(tags={"x": "v" * 1000})
    assert list(_pages(world, BackupFilter(tags=(("y", None),)))) == [[], []]


def test_a_list_ends_where_its_caller_is_gone(world, monkeypatch):
    monkeypatch.setattr(listing, "ROWS_AT_ONCE", 2)
    for _ in range(8):
        world.backup()
    looks = iter([None, None])

    with pytest.raises(StopIteration):
        world.catalog.backups.list_page(
            world.tenant, "www", limit=9, among=BackupFilter(host="b"), check=lambda: next(looks)
        )
