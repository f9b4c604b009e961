"""The order of statements that the protocol depends on, where other transactions may run between them."""

import pytest
from garbage_left import Garbage
from postgres_server import only_in_a_file
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from staddle_server.app.service import Service
from staddle_server.app.settings import ServiceSettings
from thin import back_up, noise


@pytest.fixture
def garbage(running):
    made = Garbage(running)
    back_up(running.stub(), "gone", {"a": noise(100_000)})
    made.delete("gone")
    return made


def _statements(garbage, monkeypatch, method):
    """The statements of one call of a method of Collection, as PostgreSQL would get them."""
    catalog, seen = garbage.running.catalog, []
    original = getattr(catalog.marks, method)
    calls = []

    def note(_connection, clause, *_):
        if calls:
            seen.append(" ".join(str(clause.compile(dialect=postgresql.dialect())).split()))

    def watched(*arguments, **more):
        calls.append(1)
        try:
            return original(*arguments, **more)
        finally:
            calls.clear()

    monkeypatch.setattr(catalog.marks, method, watched)
    event.listen(catalog.database.engine, "before_execute", note)
    garbage.collect_all()
    return [said for number, said in enumerate(seen) if number == 0 or said != seen[number - 1]]


def test_condemning_locks_the_packs_first_and_reads_claims_in_a_separate_statement(garbage, monkeypatch):
    fence, lock, claims, *changes = _statements(garbage, monkeypatch, "condemn")
    assert "FROM tasks" in fence
    assert fence.endswith("FOR NO KEY UPDATE")
    assert "claims" not in lock
    assert "packs.state" in lock
    assert lock.endswith("FOR NO KEY UPDATE OF packs")
    assert "FROM claims, uploads" in claims
    assert [said.split()[0] for said in changes] == ["UPDATE", "DELETE"]


def test_a_mark_ends_old_claims_then_lists_all_roots_at_once_then_packs(garbage, monkeypatch):
    said = _statements(garbage, monkeypatch, "begin_mark")
    fence, *rest = (text for text in said if not text.startswith("SELECT marks"))
    assert fence.endswith("FOR NO KEY UPDATE")
    changes = [" ".join(text.split()[:3]) for text in rest if not text.startswith("SELECT")]
    assert changes == [
        "INSERT INTO marks",
        "DELETE FROM claims",
        "INSERT INTO mark_roots",
        "INSERT INTO mark_packs",
    ]


@only_in_a_file
def test_a_server_collects_when_a_collection_is_due(garbage):
    running = garbage.running
    running.clock.ahead_s += 8 * 86_400
    every_s = 6 * 3600
    service = Service(
        running.catalog,
        running.blobs,
        running.keys,
        ServiceSettings(streams_max=1, lease_s=300, upload_life_s=86_400, gc_every_s=every_s),
        clock=running.clock,
    )
    try:
        service._schedule.look()
        assert running.catalog.tasks.last("gc").outcome == "backups purged: 1, packs condemned: 1"
        running.clock.ahead_s += 86_401
        service._schedule.look()
        assert "packs removed: 1" in running.catalog.tasks.last("gc").outcome
        assert garbage.objects() == []
    finally:
        service.drain(0)
