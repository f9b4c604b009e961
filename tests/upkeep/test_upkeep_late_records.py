"""A record that a stalled server writes after its backup was purged and forgotten does not bring the backup back."""

import threading
from contextlib import ExitStack, contextmanager

import postgres_server
import pytest
from garbage_left import Garbage
from postgres_server import only_in_a_file
from rebuilt import rebuilt
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import open_catalog
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.wrapped import WrappedWriter
from staddle_server.tenancy.records import as_noted, finish_missing
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.copies import mend_all
from thin import back_up, backups

MASTER = bytes(range(32))


class Stalling(DirectoryBlobs):
    """A store whose next puts of records wait until they may go on, or fail."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.waits = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.fails = False

    def put(self, name, data):
        if name.startswith("records/"):
            if self.fails:
                raise Unavailable("STORE_UNAVAILABLE", "the store does not answer")
            self.waits.set()
            assert self.goes_on.wait(60)
        super().put(name, data)


@pytest.fixture
def garbage(running):
    running.wrap = lambda blobs: Stalling(str(running.root / "store"))
    return Garbage(running)


class Other:
    """Another server of the same installation."""

    def __init__(self, running) -> None:
        self.catalog = open_catalog(running.catalog_place)
        self.blobs = Stalling(str(running.root / "store"))
        tenants = Tenants(self.blobs, self.catalog, KeyStore(self.blobs, MASTER))
        self.tenant = tenants.get(running.tenant)

    def finish(self) -> int:
        return finish_missing(self.tenant, self.catalog)


@pytest.fixture
def other(garbage):
    made = Other(garbage.running)
    yield made
    made.catalog.close()


def committed_without_a_record(garbage) -> str:
    """Commits a backup whose record cannot be written yet."""
    garbage.running.blobs.fails = True
    with pytest.raises(Exception, match="does not answer"):
        back_up(garbage.running.stub(), "www", {"a": b"1"})
    garbage.running.blobs.fails = False
    (made,) = backups(garbage.running.stub(), "www")
    return made.id


@contextmanager
def stalled(other):
    """The other server writes what is pending, and stalls in the middle of it."""
    other.blobs.goes_on.clear()
    wrote = []
    thread = threading.Thread(target=lambda: wrote.append(other.finish()))
    thread.start()
    assert other.blobs.waits.wait(60)
    yield
    other.blobs.goes_on.set()
    thread.join()
    assert wrote == [1]


def purge_and_forget(garbage) -> None:
    garbage.delete("www")
    garbage.later(8)
    garbage.collect_all()
    garbage.reap_grace()
    garbage.collect_all()
    assert garbage.count("backups") == 0


def records(garbage):
    return set(garbage.objects("records"))


def assert_gone(garbage, tmp_path, backup) -> None:
    assert not [name for name in records(garbage) if name.endswith(backup)]
    garbage.collect_all()
    place = postgres_server.new_url() if garbage.running.catalog_url else tmp_path / "rebuilt.db"
    with rebuilt(garbage.running.root / "store", place) as (catalog, _):
        assert catalog.datasets.list_page(garbage.running.tenant, "", 10) == []


@postgres_server.on_both_databases_in_test_all
def test_a_record_put_by_a_server_that_was_stalled_is_removed_again(garbage, other, tmp_path):
    backup = committed_without_a_record(garbage)
    with stalled(other):
        purge_and_forget(garbage)
        assert not [name for name in records(garbage) if name.endswith(backup)]
    assert_gone(garbage, tmp_path, backup)


def test_a_record_that_another_server_wrote_meanwhile_stays(garbage, other):
    backup = committed_without_a_record(garbage)
    with stalled(other):
        garbage.delete("www")
        head = other.tenant.records.head.read()
    assert [name for name in records(garbage) if name.endswith(backup)]
    assert other.tenant.records.head.read() == head, "the head names the newest record still"
    garbage.collect()


@postgres_server.on_both_databases_in_test_all
def test_what_a_put_brought_back_when_its_server_was_dead_is_removed_by_the_next_collection(
    garbage, tmp_path
):
    back_up(garbage.running.stub(), "www", {"a": b"1"})
    (made,) = backups(garbage.running.stub(), "www")
    blobs = garbage.running.blobs
    before = {name: blobs.read(name, 0, size) for name, size in blobs.list("records")}
    purge_and_forget(garbage)
    gone = before.keys() - records(garbage)
    assert any(name.endswith(made.id) for name in gone)
    for name in gone:
        blobs.put(name, before[name])
    garbage.collect_all()
    assert gone & records(garbage) == set()
    assert_gone(garbage, tmp_path, made.id)


def test_a_copy_that_was_made_too_late_brings_no_record_back_for_long(garbage, tmp_path):
    back_up(garbage.running.stub(), "www", {"a": b"1"})
    (made,) = backups(garbage.running.stub(), "www")
    running = garbage.running
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    (name,) = [name for name in records(garbage) if name.endswith(made.id)]
    data = running.blobs.read(name, 0, running.blobs.size(name))
    purge_and_forget(garbage)
    running.blobs.put(f"copies/{name}", data)
    assert mend_all(tenants, running.catalog, running.keys).restored == (name,)
    garbage.collect_all()
    assert_gone(garbage, tmp_path, made.id)
    assert not [copy for copy in garbage.objects("copies") if copy.endswith(made.id)]


@only_in_a_file
def test_a_collector_that_lost_its_lease_notes_no_record_as_removed(garbage):
    running = garbage.running
    fence = running.catalog.gc_lease.acquire("slow", running.clock.now_ns(), 60)
    garbage.reap_grace()
    running.catalog.gc_lease.acquire("next", running.clock.now_ns(), 60)
    with pytest.raises(Exception, match="Another process is collecting"):
        running.catalog.purge.remove_records(running.tenant, fence, [bytes(16)], running.clock.now_ns())
    assert garbage.count("removed_records") == 0


def test_the_note_of_a_removed_record_ends_after_months(garbage):
    running = garbage.running
    fence = running.catalog.gc_lease.acquire("a test", running.clock.now_ns(), 60)
    for number, days in enumerate((0, 89, 2)):
        garbage.later(days)
        running.catalog.purge.remove_records(
            running.tenant, fence, [bytes([number]) * 16], running.clock.now_ns()
        )
    assert running.catalog.purge.removed_records(running.tenant, [bytes([n]) * 16 for n in range(3)]) == {
        b"\1" * 16,
        b"\2" * 16,
    }


class _Then(WrappedWriter):
    """Runs something after an object was replaced."""

    def __init__(self, inner, then) -> None:
        super().__init__(inner)
        self.then = then

    def replace(self, name):
        super().replace(name)
        self.then()


class Meeting(Stalling):
    """A store that runs something once, after the next head was written through it."""

    then = None

    def create(self):
        return _Then(super().create(), self.meet)

    def meet(self) -> None:
        then, self.then = self.then, None
        if then is not None:
            then()


def decide(running, count: int) -> None:
    """Decisions whose records are pending."""
    for _ in range(count):
        running.catalog.tenants.keep_records(running.tenant, [as_noted(running.tenant, "decided")])


def assert_head_is_right(other) -> None:
    recorded = other.catalog.verification.recorded(other.tenant.id)
    assert other.tenant.records.head.read() == recorded
    assert other.catalog.backups.pending_records(other.tenant.id) == []


def test_a_stalled_server_does_not_set_the_head_of_the_records_back(garbage, other):
    running = garbage.running
    decide(running, 1)
    mine = running.service._uploads._tenants.get(running.tenant)
    with stalled(other):
        decide(running, 3)
        assert finish_missing(mine, running.catalog) == 4
    assert_head_is_right(other)


def test_a_server_whose_head_was_set_back_before_it_was_done_renews_it(garbage, other):
    running = garbage.running
    first = Other(running)
    first.blobs = Meeting(str(running.root / "store"))
    tenant = Tenants(first.blobs, first.catalog, KeyStore(first.blobs, MASTER)).get(running.tenant)
    decide(running, 1)
    leave = ExitStack()
    leave.enter_context(stalled(other))
    decide(running, 3)
    first.blobs.then = leave.close  # the other one writes its only record, and the head, and is done
    assert finish_missing(tenant, first.catalog) == 4
    assert first.blobs.then is None
    assert_head_is_right(other)
    first.catalog.close()
