"""Copies of records and keys, made by a running server."""

import time

from staddle_server.base.types import TokenRole
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.copies import CopiesReport, copies_task, copy_new, mend_all
from thin import back_up, restore


def parts(running):
    return Tenants(running.blobs, running.catalog, running.keys), running.catalog, running.keys


def small(running):
    return {name for prefix in ("keys", "records") for name, _ in running.blobs.list(prefix)}


def copied(running):
    return {name.removeprefix("copies/") for name, _ in running.blobs.list("copies")}


def test_records_and_keys_of_all_tenants_are_copied_once(running):
    other = running.make_tenant("other")
    for tenant in (None, other):
        back_up(running.stub(tenant=tenant), "www", {"a": b"1"})
    task = copies_task(*parts(running), on=True)
    assert task.run(bool) == f"{len(small(running))} records and keys were copied"
    assert copied(running) == small(running)
    assert task.run(bool) == ""
    back_up(running.stub(), "www", {"a": b"2"})
    assert copy_new(*parts(running)) == CopiesReport(1)
    assert copies_task(*parts(running), on=False).every_s == 0


def test_a_stopped_run_of_copying_resumes_where_it_was(running):
    for number in range(3):
        back_up(running.stub(), f"set{number}", {"a": b"1"})
    stops = iter([False, False, True])
    assert copy_new(*parts(running), lambda: next(stops)).copied == 2
    assert copy_new(*parts(running)).copied == len(small(running)) - 2


def test_lost_or_damaged_objects_are_restored_from_copies_or_named(running):
    back_up(running.stub(), "www", {"a": b"1"})
    back_up(running.stub(), "www", {"a": b"2"})
    copy_new(*parts(running))
    before = {name: running.blobs.read(name, 0, running.blobs.size(name)) for name in small(running)}
    store = running.root / "store"
    *records, last = sorted(name for name in before if name.startswith("records"))
    (key,) = (name for name in before if name.startswith("keys"))
    (store / key).unlink()
    (store / records[0]).write_bytes(b"damaged")
    (store / "copies" / records[1]).write_bytes(b"damaged")
    for name in (last, f"copies/{last}"):
        (store / name).write_bytes(b"damaged")
    running.stop()
    running.start()
    assert restore(running.stub(), "www").files == {"a": b"2"}, "keys are read from their copy"
    report = mend_all(*parts(running))
    assert report.copied == 1
    assert sorted(report.restored) == sorted([key, records[0]])
    (named,) = report.damaged
    assert last in named
    assert {name: (store / name).read_bytes() for name in before if name != last} == {
        name: data for name, data in before.items() if name != last
    }
    assert (store / last).read_bytes() == b"damaged"


def test_a_tenant_without_keys_does_not_stop_copying_for_others(running):
    other = running.make_tenant("other")
    back_up(running.stub(), "www", {"a": b"1"})
    running.catalog.tokens.create(other, "w", TokenRole.WRITER, time.time_ns())
    (key,) = (running.root / "store" / "keys" / other.hex()).iterdir()
    key.write_bytes(b"damaged")
    report = copy_new(*parts(running))
    assert len(report.damaged) == 2
    assert key.name in report.damaged[0]
    assert "the records of tenant other are unreadable" in report.damaged[1]
    assert copied(running) == {name for name in small(running) if other.hex() not in name}
