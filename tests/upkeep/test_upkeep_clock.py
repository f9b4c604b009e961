"""After a jump of the clock nothing irreversible happens until it is right, confirmed, or the time has really passed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import forked
import grpc
import pytest
from garbage_left import Garbage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harm import kept
from rebuilt import rebuilt
from servers import MovedClock
from sql import sql
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import TokenRole
from staddle_server.catalog import open_catalog
from staddle_server.catalog.clocks import Clocks
from staddle_server.tenancy.clock_guard import ClockGuard, ClockInDoubt
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.scrub import Scrubber
from staddle_server.upkeep.lifecycle.policies import Policies
from thin import Source, back_up, backups, reason

DAY = 86_400
YEAR = 365 * DAY
NS = 10**9


class JumpingClock(MovedClock):
    """`ahead_s` lets time pass; `jump_s` sets the wall clock alone."""

    jump_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() + int(self.jump_s * NS)


@pytest.fixture
def garbage(running):
    running.clock = JumpingClock()
    return Garbage(running)


@pytest.fixture
def catalog(tmp_path):
    made = open_catalog(str(tmp_path / "guarded.db"))
    yield made
    made.close()


def guard(garbage) -> ClockGuard:
    return ClockGuard(garbage.running.catalog, garbage.running.clock)


def failures(report) -> str:
    return " ".join(tenant.failure for tenant in report.tenants)


def deleted_long_ago(garbage):
    """A backup that is deleted, in its grace of seven days, and one that stays."""
    stub = garbage.running.stub()
    gone = back_up(stub, "www", {"a": b"1"})
    back_up(stub, "www", {"a": b"2"})
    garbage.delete("www", gone.id)
    return gone


@pytest.mark.parametrize("jump_s", [YEAR, 8 * DAY, -YEAR, -4 * 3600, 4 * 3600])
def test_after_a_jump_nothing_is_purged_or_collected_and_the_report_says_why(garbage, jump_s):
    gone = deleted_long_ago(garbage)
    garbage.running.clock.jump_s = jump_s
    report = garbage.collector().collect()
    assert "the clock jumped " + ("forward" if jump_s > 0 else "back") in failures(report)
    assert "staddle-server clock --confirm" in failures(report)
    assert report.sum_of("backups_purged") == report.sum_of("packs_condemned") == 0
    garbage.running.clock.jump_s = 0
    stub = garbage.running.stub()
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=gone.id))
    assert gone.id in {each.id for each in backups(stub, "www")}
    garbage.collect()


def test_even_a_shorter_grace_by_an_administrator_purges_nothing_while_the_clock_is_in_doubt(garbage):
    deleted_long_ago(garbage)
    garbage.running.clock.jump_s = YEAR
    assert garbage.collector().collect(grace_s=0).sum_of("backups_purged") == 0


def test_neither_a_small_correction_nor_passing_time_is_a_jump(garbage):
    deleted_long_ago(garbage)
    garbage.running.clock.jump_s = 2 * 3600
    assert garbage.collect().sum_of("backups_purged") == 0, "its grace is not over"
    garbage.running.clock.ahead_s += 8 * DAY
    assert garbage.collect().sum_of("backups_purged") == 1


def test_small_steps_add_up_to_a_jump(garbage):
    deleted_long_ago(garbage)
    for _ in range(100):
        garbage.running.clock.jump_s += 2 * 3600
        guard(garbage).look()
    assert "the clock jumped forward" in failures(garbage.collector().collect())


@pytest.mark.parametrize("restart", [False, True])
def test_a_jump_is_accepted_once_an_administrator_confirms_it(garbage, restart):
    deleted_long_ago(garbage)
    garbage.running.clock.jump_s = YEAR
    if restart:
        garbage.running.restart()
    assert "the clock jumped" in failures(garbage.collector().collect())
    assert guard(garbage).confirm().jump_ns > 0
    assert garbage.collect().sum_of("backups_purged") == 1


def test_a_jump_is_accepted_as_soon_as_that_time_has_really_passed(garbage):
    deleted_long_ago(garbage)
    garbage.running.clock.jump_s = 20 * DAY
    for _ in range(20):
        assert "the clock jumped" in failures(garbage.collector().collect())
        garbage.running.clock.ahead_s += DAY
    garbage.running.restart()
    assert garbage.collect().sum_of("backups_purged") == 1


def test_a_second_jump_restarts_the_wait(garbage):
    garbage.running.clock.jump_s = 2 * DAY
    guard(garbage).look()
    garbage.running.clock.ahead_s += 1.5 * DAY
    guard(garbage).look()
    garbage.running.clock.jump_s = 3 * DAY
    assert guard(garbage).look().left_ns == pytest.approx(3 * DAY * NS, rel=0.01)


def test_policies_delete_nothing_while_the_clock_is_in_doubt_and_retention_still_protects(garbage):
    running = garbage.running
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=1)))
    until = Timestamp(seconds=running.clock.now_ns() // NS + 30 * DAY)
    stub.RetainBackup(sv.RetainBackupRequest(dataset="www", backup=first.id, until_time=until))
    back_up(stub, "www", {"a": b"2"})
    running.clock.ahead_s += 60
    running.clock.jump_s = YEAR
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    policies = Policies(running.catalog, tenants, running.clock, 1.0)
    with pytest.raises(ClockInDoubt):
        policies.run(lambda: False)
    plan = stub.PlanRetention(sv.PlanRetentionRequest(dataset="www"))
    stub.ApplyRetention(sv.ApplyRetentionRequest(dataset="www", plan_token=plan.plan_token))
    with pytest.raises(grpc.RpcError) as caught:
        stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=first.id))
    assert reason(caught.value) == "PROTECTED"
    assert first.id in {each.id for each in backups(stub, "www")}
    guard(garbage).confirm()
    assert policies.run(lambda: False) == "1 backup deleted"


def test_a_jump_expires_an_upload_only_once_it_is_confirmed(running):
    running.clock = JumpingClock()
    running.restart()
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    late = Source(stub, "late")
    running.clock.jump_s = running.upload_life_s + DAY
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    source.commit()
    by_id = sv.GetUploadRequest(upload_id=late.upload.id)
    running.service._uploads._expire()
    assert stub.GetUpload(by_id).upload.state == pb.UPLOAD_STATE_OPEN
    ClockGuard(running.catalog, running.clock).confirm()
    running.service._uploads._expire()
    assert stub.GetUpload(by_id).upload.state == pb.UPLOAD_STATE_EXPIRED
    with pytest.raises(grpc.RpcError) as closed:
        stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=late.upload.id))
    assert reason(closed.value) == "UPLOAD_CLOSED"


def test_a_deletion_under_a_slow_clock_gets_its_full_grace_once_the_clock_is_right(garbage):
    stub = garbage.running.stub()
    back_up(stub, "www", {"a": b"1"})
    back_up(stub, "www", {"a": b"2"})
    garbage.running.clock.jump_s = -YEAR
    garbage.delete("www")
    garbage.running.clock.jump_s = 0
    assert garbage.collect().sum_of("backups_purged") == 0
    garbage.later(8)
    assert garbage.collect().sum_of("backups_purged") == 1


# --- started while the clock is wrong


@pytest.fixture
def jumping(running):
    running.clock = JumpingClock()
    running.restart()
    return running


def expire(running) -> None:
    running.service._uploads._expire()


def upload_is_open(source: Source) -> bool:
    asked = sv.GetUploadRequest(upload_id=source.upload.id)
    return source.stub.GetUpload(asked).upload.state == pb.UPLOAD_STATE_OPEN


def test_a_glance_reads_nothing_until_a_minute_has_passed_or_the_clock_jumps(jumping, monkeypatch):
    guard = ClockGuard(jumping.catalog, jumping.clock)
    reads, read = [], Clocks.get
    monkeypatch.setattr(Clocks, "get", lambda clocks, boot: reads.append(boot) or read(clocks, boot))
    guard.glance()
    reads.clear()
    jumping.clock.ahead_s += 59
    assert (guard.glance().jump_ns, reads) == (0, [])
    jumping.clock.ahead_s += 2
    assert (guard.glance().jump_ns, len(reads)) == (0, 1)
    jumping.clock.jump_s = YEAR
    assert guard.glance().jump_ns > 0.99 * YEAR * NS
    assert guard.glance().jump_ns > 0.99 * YEAR * NS
    assert len(reads) == 3


def test_an_upload_under_a_slow_clock_gets_its_full_life_once_the_clock_is_right(
    jumping,
):
    stub = jumping.stub()
    old = Source(stub, "old")
    jumping.clock.jump_s = -YEAR
    new = Source(stub, "new")
    new.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**new.id))
    stub.RenewUpload(sv.RenewUploadRequest(**old.id))
    jumping.clock.jump_s = 0
    jumping.clock.ahead_s += jumping.upload_life_s - DAY
    expire(jumping)
    assert upload_is_open(old)
    assert upload_is_open(new)
    jumping.clock.ahead_s += 2 * DAY
    expire(jumping)
    assert not upload_is_open(old)
    assert not upload_is_open(new)


def test_an_upload_under_a_fast_clock_gets_no_longer_life_or_lease(jumping):
    jumping.clock.jump_s = YEAR
    ahead = Source(jumping.stub("writer", name="ahead"), "www")
    left = Source(jumping.stub("writer", name="ahead"), "other")
    jumping.clock.jump_s = 0
    other = jumping.stub("writer", name="other")
    taken = other.ResumeUpload(sv.ResumeUploadRequest(upload_id=ahead.upload.id)).upload
    assert taken.epoch == ahead.upload.epoch + 1
    with pytest.raises(grpc.RpcError) as refused:
        other.CheckpointUpload(sv.CheckpointUploadRequest(**left.id))
    assert reason(refused.value) == "RESUME_REQUIRED"
    expire(jumping)
    assert upload_is_open(left)
    jumping.clock.ahead_s += jumping.upload_life_s + DAY
    expire(jumping)
    assert not upload_is_open(left)


def test_an_upload_can_be_taken_over_while_the_clock_is_ahead(jumping):
    begun = Source(jumping.stub(), "www", take_over=True)
    jumping.clock.jump_s = YEAR
    again = Source(jumping.stub(), "www", take_over=True)
    assert (again.begun.taken_over, again.upload.id) == (True, begun.upload.id)


def test_a_slow_clock_does_not_shorten_the_minimum_retention_of_a_backup(jumping):
    stub = jumping.stub()
    back_up(stub, "www", {"a": b"1"})
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", minimum=Duration(seconds=10 * DAY)))
    jumping.clock.jump_s = -YEAR
    made = back_up(stub, "www", {"a": b"2"})
    jumping.clock.jump_s = 0
    jumping.clock.ahead_s += 9 * DAY
    with pytest.raises(grpc.RpcError) as refused:
        stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=made.id))
    assert reason(refused.value) == "PROTECTED"
    jumping.clock.ahead_s += 2 * DAY
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=made.id))


def test_a_backup_made_under_a_slow_clock_does_not_count_as_old(jumping):
    stub = jumping.stub()
    before = back_up(stub, "www", {"a": b"1"})
    jumping.clock.jump_s = -YEAR
    made = back_up(stub, "www", {"a": b"2"})
    assert before.begin_time.ToNanoseconds() < made.begin_time.ToNanoseconds()
    assert before.commit_time.ToNanoseconds() < made.commit_time.ToNanoseconds()


def test_a_token_expires_at_its_time_despite_clock_jumps(jumping):
    now_ns, make = jumping.clock.now_ns(), jumping.catalog.tokens.create
    expired, good = (
        jumping.stub_with(make(jumping.tenant, name, TokenRole.READER, now_ns, now_ns + days * DAY * NS))
        for name, days in (("expired", 1), ("good", 20))
    )
    jumping.clock.ahead_s += 2 * DAY
    jumping.service.clock_watch.look()
    for jump_s in (0, -YEAR, YEAR):
        jumping.clock.jump_s = jump_s
        with pytest.raises(grpc.RpcError) as refused:
            expired.ListDatasets(sv.ListDatasetsRequest())
        assert reason(refused.value) == "UNAUTHENTICATED"
        good.ListDatasets(sv.ListDatasetsRequest())
    jumping.clock.ahead_s += 20 * DAY
    with pytest.raises(grpc.RpcError):
        good.ListDatasets(sv.ListDatasetsRequest())


def test_a_rebuild_under_a_slow_clock_keeps_the_grace_of_deleted_backups(garbage, tmp_path):
    gone = deleted_long_ago(garbage)
    running = garbage.running
    with rebuilt(running.root / "store", tmp_path / "new.db", running.clock.now_ns() - YEAR * NS) as (
        catalog,
        _,
    ):
        (tenant,) = catalog.tenants.list_all()
        assert (
            catalog.backups.get(tenant.id, bytes.fromhex(gone.id)).deleted_ns
            >= gone.commit_time.ToNanoseconds()
        )


def test_a_policy_set_under_a_fast_clock_is_followed_once_the_clock_is_right(garbage):
    running = garbage.running
    stub = running.stub()
    for n in range(2):
        back_up(stub, "www", {"a": b"%d" % n})
    running.clock.jump_s = YEAR
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=1)))
    running.clock.jump_s = 0
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    policies = Policies(running.catalog, tenants, running.clock, 3600.0)
    assert policies.run(lambda: False) == "1 backup deleted"


def test_packs_read_under_a_fast_clock_are_due_again_once_the_clock_is_right(garbage):
    back_up(garbage.running.stub(), "www", {"a": b"1"})
    scrubber = Scrubber(kept(garbage.running), period_s=30 * DAY, bytes_per_s=1e12, busy=lambda: False)
    scrub = scrubber.task().run
    garbage.running.clock.jump_s = YEAR
    assert scrub(lambda: False).startswith("1 pack read")
    garbage.running.clock.jump_s = 0
    assert scrub(lambda: False).startswith("1 pack read")
    assert scrub(lambda: False) == ""


# --- over a reboot, during which no clock counts


def after_reboot(catalog, clock, off_s: float, boot: str = "the next boot") -> ClockGuard:
    """Simulate a machine that was off, for a time given by its clock."""
    clock.jump_s += off_s
    return ClockGuard(catalog, clock, boot)


@pytest.mark.parametrize(
    ("off_s", "believed"), [(60, True), (2.9 * DAY, True), (-3600, True), (3.1 * DAY, False)]
)
def test_after_a_reboot_an_absence_of_days_is_accepted_and_a_longer_one_is_not(catalog, off_s, believed):
    clock = JumpingClock()
    ClockGuard(catalog, clock).look()
    found = after_reboot(catalog, clock, off_s)
    assert (found.look().jump_ns == 0) is believed


def test_after_a_month_off_an_administrator_confirms_or_a_month_passes(catalog):
    clock = JumpingClock()
    ClockGuard(catalog, clock).look()
    found = after_reboot(catalog, clock, 30 * DAY)
    with pytest.raises(ClockInDoubt, match="forward by 30 days"):
        found.require()
    clock.ahead_s += 31 * DAY
    assert found.require() == pytest.approx(clock.now_ns(), abs=60 * NS)


def test_a_reboot_does_not_end_an_earlier_doubt(catalog):
    clock = JumpingClock()
    ClockGuard(catalog, clock).look()
    clock.jump_s = 2 * DAY
    assert ClockGuard(catalog, clock).look().jump_ns
    found = after_reboot(catalog, clock, 600)
    with pytest.raises(ClockInDoubt):
        found.require()


def test_after_reboots_the_newest_boot_is_continued_even_if_an_earlier_clock_was_ahead(catalog):
    clock = JumpingClock()
    ClockGuard(catalog, clock, "ahead").look()
    clock.jump_s = -30 * DAY
    right = ClockGuard(catalog, clock, "right")
    assert right.look().jump_ns
    right.confirm()
    assert after_reboot(catalog, clock, 60).look().jump_ns == 0


def test_a_catalog_without_a_clock_reading_uses_its_newest_commit(garbage):
    back_up(garbage.running.stub(), "www", {"a": b"1"})
    with garbage.running.catalog.database.write() as connection:
        sql(connection, "DELETE FROM clock")
    garbage.running.clock.jump_s = -YEAR
    assert guard(garbage).look().jump_ns < 0


# --- reporting


def upkeep_health(running) -> int:
    with grpc.insecure_channel(running.address) as channel:
        ask = health_pb2.HealthCheckRequest(service="staddle.v1.StaddleService/upkeep")
        return health_pb2_grpc.HealthStub(channel).Check(ask).status


def test_log_and_health_report_a_doubted_clock_and_the_end_of_the_doubt(garbage, caplog):
    running = garbage.running
    running.clock.jump_s = YEAR
    with caplog.at_level(logging.WARNING):
        running.restart()
        running.service.clock_watch.look()
        running.clock.ahead_s += 2 * 3600
        running.service.clock_watch.look()
        assert caplog.text.count("the clock jumped forward by 365 days") == 2, "once, and again after an hour"
        assert upkeep_health(running) == health_pb2.HealthCheckResponse.NOT_SERVING
        reported = condition(running)
        assert reported.clock_in_doubt
        assert round(reported.clock_jump.seconds / DAY) == 365
        assert 0 < reported.clock_wait.seconds <= YEAR - 2 * 3600
        running.clock.jump_s = 0
        running.restart()
    assert upkeep_health(running) == health_pb2.HealthCheckResponse.SERVING
    reported = condition(running)
    assert (reported.takes_backups, reported.clock_in_doubt, reported.HasField("clock_jump")) == (
        True,
        False,
        False,
    )


def condition(running) -> sv.ServerCondition:
    return running.stub("reader").GetServerInfo(sv.GetServerInfoRequest()).condition


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(
        [str(Path(sys.executable).with_name("staddle-server")), *arguments],
        capture_output=True,
        check=False,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("STADDLE")},
    )


def test_the_command_shows_the_doubt_of_a_running_server_and_confirms_the_clock(server):
    catalog = open_catalog(str(server.data / "catalog.db"))
    seen = catalog.clock.get("")
    assert seen is not None
    assert catalog.clock.put(seen._replace(offset_ns=seen.offset_ns - YEAR * NS), seen), "as if it had jumped"
    shown = command("clock", "--data", str(server.data))
    assert (shown.returncode, "the clock jumped forward by 365 days" in shown.stdout) == (3, True)
    reported = json.loads(command("clock", "--json", "--data", str(server.data)).stdout)
    assert (reported["believed"], round(reported["jump_seconds"] / DAY)) == (False, 365)
    collected = command("gc", "--data", str(server.data))
    assert collected.returncode == 1
    assert "NOT COLLECTED: the clock jumped" in collected.stdout
    assert command("clock", "--confirm", "--data", str(server.data)).returncode == 0
    assert command("clock", "--data", str(server.data)).stdout.startswith("Trusted")
    assert command("gc", "--data", str(server.data)).returncode == 0
    catalog.close()
