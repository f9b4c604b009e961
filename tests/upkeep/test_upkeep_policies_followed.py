"""A server that follows retention policies on schedule: what it deletes, and what it leaves alone."""

from __future__ import annotations

import logging
import threading

import grpc
import pytest
from policy_calls import DAY, hold, ids, plan, set_policy, several
from postgres_server import only_in_a_file
from sqlalchemy import text
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Precondition
from staddle_server.store import records as rec
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.records import as_pending
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.lifecycle import planning
from staddle_server.upkeep.lifecycle.policies import Policies
from thin import back_up, backups, reason, wait_until

# --- on schedule


@only_in_a_file
def test_the_server_follows_policies_on_schedule_and_logs_what_it_deleted(running, caplog):
    running.retention_every_s = 3600.0
    running.restart()
    stub, eve = running.stub(), running.stub(tenant=running.make_tenant("eve"))
    mine, hers, free = several(running, stub, 4), several(running, eve, 3), several(running, stub, 3, "free")
    set_policy(stub, keep_last=2)
    set_policy(eve, keep_daily=1)
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 4, "an operator has time to look at the plan of a new policy"
    running.clock.ahead_s += 3601
    with caplog.at_level(logging.INFO):
        running.service._schedule.look()
    assert ids(backups(stub, "www")) == [mine[3].id, mine[2].id]
    assert ids(backups(eve, "www")) == [hers[2].id]
    assert ids(backups(stub, "free")) == ids(reversed(free)), "no policy, no deletion"
    assert mine[0].id in caplog.text
    assert running.catalog.tasks.last("retention").outcome == "4 backups deleted"
    several(running, stub, 1)
    running.clock.ahead_s -= DAY
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 3, "it is not due yet"
    running.clock.ahead_s += DAY
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 2


def test_a_server_that_is_set_to_follow_no_policies_deletes_nothing(running):
    stub = running.stub()
    several(running, stub, 3)
    set_policy(stub, keep_last=1)
    running.clock.ahead_s += 400 * DAY
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 3


def test_a_dataset_with_an_unusable_policy_loses_nothing_and_stops_no_other(running, caplog):
    running.retention_every_s = 3600.0
    running.restart()
    stub = running.stub()
    several(running, stub, 3, "a")
    several(running, stub, 3, "b")
    for dataset in ("a", "b"):
        set_policy(stub, dataset, keep_last=1)
    running.clock.ahead_s += 3601
    with running.catalog.database.write() as connection:
        connection.execute(text("UPDATE datasets SET policy = 'of another version' WHERE name = 'a'"))
    running.service._schedule.look()
    assert len(backups(stub, "a")) == 3
    assert len(backups(stub, "b")) == 1
    assert (
        running.catalog.tasks.last("retention").outcome == "2 backups deleted, 1 dataset failed: see the log"
    )
    assert "retention of dataset 'a' failed" in caplog.text
    with pytest.raises(grpc.RpcError) as caught:
        plan(stub, "a")
    assert reason(caught.value) == "STORE_UNAVAILABLE"


def test_a_server_that_is_shutting_down_deletes_nothing_more(running):
    stub = running.stub()
    several(running, stub, 3)
    set_policy(stub, keep_last=1)
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    policies = Policies(running.catalog, tenants, running.clock, 1.0)
    running.clock.ahead_s += 60
    assert policies.run(lambda: True) == ""
    assert len(backups(stub, "www")) == 3
    assert policies.run(lambda: False) == "2 backups deleted"


class SlowBlobs(WrappedBlobs):
    """A store whose reads wait for a signal."""

    def __init__(self, blobs):
        super().__init__(blobs)
        self.go = threading.Event()
        self.go.set()
        self.waiting = 0

    def read(self, *asked):
        self.waiting += 1
        assert self.go.wait(60)
        return super().read(*asked)


def test_the_number_of_concurrent_plans_is_limited_and_other_calls_proceed(running):
    running.stop()
    running.wrap = SlowBlobs
    running.start()
    stub = running.stub()
    several(running, stub, 2)
    set_policy(stub, keep_last=1)
    running.blobs.waiting = 0
    running.blobs.go.clear()
    others = running.stub(tenant=running.make_tenant("theirs"))
    running.blobs.go.set()
    several(running, others, 2)
    set_policy(others, keep_last=1)
    running.blobs.waiting = 0
    running.blobs.go.clear()
    calls = [
        stub.PlanRetention.future(sv.PlanRetentionRequest(dataset="www"))
        for _ in range(planning.PLANS_TENANT_MAX)
    ]
    wait_until(lambda: running.blobs.waiting == planning.PLANS_TENANT_MAX)
    with pytest.raises(grpc.RpcError) as caught:
        plan(stub)
    assert reason(caught.value) == "TOO_MANY"
    assert len(backups(stub, "www")) == 2
    calls.append(others.PlanRetention.future(sv.PlanRetentionRequest(dataset="www")))
    wait_until(lambda: running.blobs.waiting == planning.PLANS_MAX)
    running.blobs.go.set()
    for call in calls:
        assert call.result().delete_count == 1
    assert plan(stub).delete_count == 1


def test_a_change_between_a_plan_and_its_transaction_is_seen_by_the_transaction(running):
    """A window that callers cannot hit at will: the plan is valid when compared, and outdated when applied."""
    stub = running.stub()
    made = several(running, stub, 3)
    set_policy(stub, keep_last=1)
    catalog = running.catalog.retention
    seen = catalog.state(running.tenant, "www")
    gone = [bytes.fromhex(each.id) for each in made[:2]]

    def application(expected):
        now_ns = running.clock.now_ns()
        return catalog.apply(
            running.tenant,
            "www",
            "a plan",
            expected=expected,
            backups=gone,
            now_ns=now_ns,
            deleted=lambda backup: as_pending(running.tenant, rec.DeletedRecord(backup, now_ns)),
        )

    back_up(stub, "www", {"a": b"new"})
    with pytest.raises(Precondition) as caught:
        application(seen)
    assert caught.value.reason == "PLAN_CHANGED"
    hold(stub, "www", made[0])
    with pytest.raises(Precondition) as caught:
        application(catalog.state(running.tenant, "www"))
    assert caught.value.reason == "PROTECTED", "whatever a plan says"
    assert len(backups(stub, "www")) == 4, "all or nothing"
    stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=made[0].id))
    seen = catalog.state(running.tenant, "www")
    first = application(seen)
    assert len(first.backups) == 2
    assert application(seen) == first, "the later of two concurrent calls gets the first answer"
