"""Runs and expectations: how each attempt ended, which datasets are late, and what is kept of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle_server.base import errors, limits
from staddle_server.base.types import RunOutcome
from staddle_server.catalog import Concern, Expectation, PendingRecord, RunFilter, RunReport, Terms, runs

SECOND = 1_000_000_000
HOUR = 3600
DAY = 24 * HOUR
TERMS = Terms(300, 7 * DAY)
EVERYTHING = RunFilter()


def listed(world, asked=EVERYTHING, limit=100, tenant=None, **more):
    return world.catalog.runs.list_page(
        tenant or world.tenant, asked, limit, now_ns=world.now, terms=TERMS, **more
    )


def outcomes(world, **more):
    return [run.outcome for run in listed(world, **more)]


def report(world, reason="exit status 1", dataset="www", principal=None, **more):
    said = RunReport(
        id=more.pop("id", None) or world.id(),
        dataset=dataset,
        upload=more.pop("upload", b""),
        host=more.pop("host", "web1"),
        reason=reason,
        begin_ns=more.pop("begin_ns", world.now),
        end_ns=world.now,
    )
    return world.catalog.runs.report(principal or world.ann, said, now_ns=world.now, terms=TERMS)


def expect(world, dataset="www", every_s=DAY, grace_s=2 * HOUR, mute_until_ns=0):
    asked = Expectation(every_s, grace_s, world.now, mute_until_ns)
    return world.catalog.expectations.set(
        world.tenant,
        dataset,
        asked,
        lambda after: PendingRecord(world.id(), world.tenant, repr(after).encode()),
    )


def troubled(world, tenant=None):
    return {each.dataset: each for each in world.catalog.expectations.troubled(world.now, TERMS, tenant)}


# --- how a run ends


def test_a_run_is_known_from_its_begin_and_done_with_its_backup(world):
    upload = world.begin(host="web1").upload
    (run,) = listed(world)
    assert (run.id, run.outcome, run.end_ns) == (upload.id, RunOutcome.RUNNING, None)
    assert (run.dataset, run.principal, run.host, run.begin_ns) == ("www", "ann", "web1", world.now)
    world.now += 60 * SECOND
    backup = world.commit(upload)
    (run,) = listed(world)
    assert (run.outcome, run.backup, run.end_ns) == (RunOutcome.DONE, backup.id, world.now)
    assert (run.entry_count, run.data_bytes, run.stored_bytes) == (12, 3456, 789)
    assert run.begin_ns == upload.begin_ns
    assert not troubled(world)


def test_problems_that_the_client_counted_need_somebody_until_a_run_without_any(world):
    world.commit(world.begin().upload, problem_count=3)
    (run,) = listed(world)
    assert (run.outcome, run.problem_count) == (RunOutcome.PROBLEMS, 3)
    assert troubled(world)["www"].concern is Concern.PROBLEMS
    world.now += SECOND
    world.backup()
    assert not troubled(world)


def test_a_silent_client_abandons_its_run_as_soon_as_its_lease_is_over(world):
    upload = world.begin().upload
    world.now = upload.lease_expires_ns - 1
    assert outcomes(world) == [RunOutcome.RUNNING]
    world.now += 1
    (run,) = listed(world)
    assert (run.outcome, run.end_ns) == (RunOutcome.ABANDONED, upload.lease_expires_ns)
    assert troubled(world)["www"].concern is Concern.FAILED
    assert troubled(world)["www"].run == run


def test_an_abandoned_run_has_the_reason_and_the_size_of_its_last_checkpoint(world):
    upload = world.begin().upload
    world.checkpoint(upload)
    world.catalog.uploads.set_failure(world.tenant, upload.id, upload.epoch, "the stream broke")
    world.now += 3600 * SECOND
    (run,) = listed(world)
    assert (run.outcome, run.reason) == (RunOutcome.ABANDONED, "the stream broke")
    assert (run.entry_count, run.data_bytes, run.stored_bytes) == (2, 1, 0)


@pytest.mark.parametrize("way", ["resume", "take over"])
def test_a_resumed_upload_is_the_same_run(world, way):
    upload = world.begin().upload
    report(world, "no route to host", upload=upload.id)
    assert outcomes(world) == [RunOutcome.FAILED]
    world.now += 3600 * SECOND
    if way == "resume":
        again = world.catalog.uploads.resume(world.tenant, upload.id, world.bob, world.now, TERMS)
    else:
        again = world.begin(take_over=True).upload
    (run,) = listed(world)
    assert (run.id, run.outcome, run.reason, run.end_ns) == (upload.id, RunOutcome.RUNNING, "", None)
    assert run.begin_ns == upload.begin_ns
    world.commit(again)
    assert outcomes(world) == [RunOutcome.DONE]


def test_a_lease_that_a_wrong_clock_gave_does_not_let_a_run_go_on_for_ever(world):
    world.now += 1000 * DAY * SECOND
    world.begin()
    world.now -= 1000 * DAY * SECOND
    assert outcomes(world) == [RunOutcome.ABANDONED]


def test_an_aborted_and_an_expired_upload_are_abandoned_runs(world):
    aborted, expired = world.begin().upload, world.begin(dataset="db").upload
    world.catalog.uploads.abort(world.tenant, aborted.id, 1, world.now)
    world.now = expired.expires_ns
    world.catalog.uploads.expire(world.now)
    by_id = {run.id: run for run in listed(world)}
    assert {run.outcome for run in by_id.values()} == {RunOutcome.ABANDONED}
    assert (by_id[aborted.id].reason, by_id[aborted.id].end_ns) == (runs.ABORTED, aborted.begin_ns)
    assert (by_id[expired.id].reason, by_id[expired.id].end_ns) == (runs.EXPIRED, world.now)


def test_a_failure_that_the_client_reported_outlives_the_end_of_its_upload(world):
    upload = world.begin().upload
    world.catalog.uploads.abort(world.tenant, upload.id, 1, world.now)
    run = report(world, "too much was removed", upload=upload.id)
    assert (run.outcome, run.reason) == (RunOutcome.FAILED, "too much was removed")
    other = world.begin().upload
    report(world, "permission denied", upload=other.id)
    world.now = other.expires_ns
    world.catalog.uploads.expire(world.now)
    assert {(run.outcome, run.reason) for run in listed(world)} == {
        (RunOutcome.FAILED, "too much was removed"),
        (RunOutcome.FAILED, "permission denied"),
    }


def test_a_replayed_begin_and_a_replayed_commit_make_no_further_run(world):
    upload = world.begin(request_id="r1").upload
    assert world.begin(request_id="r1").replayed
    world.commit(upload, backup=b"b" * 16)
    (before,) = listed(world)
    world.now += SECOND
    world.commit(upload, backup=b"b" * 16)
    assert listed(world) == [before]


# --- reports


def test_a_run_that_failed_before_it_began_an_upload_is_kept_and_its_dataset_exists_for_runs_alone(world):
    run = report(world, dataset="new", begin_ns=world.now - 5 * SECOND)
    assert listed(world, RunFilter("new")) == [run]
    assert (run.outcome, run.reported, run.reason) == (RunOutcome.FAILED, True, "exit status 1")
    assert (run.begin_ns, run.end_ns, run.host) == (world.now - 5 * SECOND, world.now, "web1")
    with pytest.raises(errors.NotFound):
        world.catalog.datasets.get(world.tenant, "new")
    assert world.catalog.datasets.list_page(world.tenant, "", 10) == []
    assert set(troubled(world)) == {"new"}


def test_a_replayed_report_changes_nothing_and_another_one_with_its_id_is_refused(world):
    run = report(world)
    world.now += SECOND
    assert report(world, id=run.id) == run
    for other in ({"reason": "another"}, {"dataset": "db"}, {"principal": world.eve}):
        with pytest.raises(errors.AlreadyExists, match="request id"):
            report(world, id=run.id, **other)
    assert listed(world) == [run]


def test_a_report_does_not_undo_a_backup(world):
    upload = world.begin().upload
    world.commit(upload)
    assert report(world, upload=upload.id).outcome is RunOutcome.DONE


def test_only_the_holder_of_an_upload_reports_its_failure(world):
    upload = world.begin().upload
    for stranger in (world.bob, world.eve):
        with pytest.raises(errors.NotFound, match="does not exist"):
            report(world, upload=upload.id, principal=stranger)
    with pytest.raises(errors.NotFound, match="does not exist"):
        report(world, upload=world.id())
    assert outcomes(world) == [RunOutcome.RUNNING]


def test_reports_of_one_dataset_replace_its_oldest_ones(world, monkeypatch):
    monkeypatch.setattr(limits, "REPORTS_DATASET_MAX", 3)
    world.backup()
    for number in range(5):
        report(world, f"number {number}")
        world.now += SECOND
    assert [run.reason for run in listed(world) if run.reported] == ["number 4", "number 3", "number 2"]
    assert len(listed(world)) == 4


def test_reports_of_a_tenant_have_a_limit_and_leave_other_tenants_alone(world, monkeypatch):
    monkeypatch.setattr(limits, "REPORTS_TENANT_MAX", 3)
    for number in range(3):
        report(world, dataset=f"d{number}")
    with pytest.raises(errors.Exhausted, match="reported 3 failed runs"):
        report(world, dataset="d3")
    world.now += SECOND
    newest = report(world, "again", dataset="d0")
    assert listed(world, RunFilter("d0")) == [newest]
    assert report(world, dataset="d0", principal=world.eve)


def test_reports_do_not_make_datasets_without_end(world, monkeypatch):
    monkeypatch.setattr(limits, "REPORTED_DATASETS_MAX", 2)
    report(world, dataset="a")
    report(world, dataset="b")
    with pytest.raises(errors.Exhausted, match="2 datasets of this tenant are known from reports alone"):
        report(world, dataset="c")
    world.backup("a")
    assert report(world, dataset="c")


# --- lists


def test_runs_are_listed_latest_first_in_pages_and_by_what_is_asked(world):
    for number in range(5):
        world.backup("www" if number % 2 else "db")
    world.begin()
    everything = listed(world)
    assert [run.begin_ns for run in everything] == sorted((run.begin_ns for run in everything), reverse=True)
    pages, before = [], None
    while not pages or pages[-1].more:
        pages.append(listed(world, limit=2, before=before))
        before = (pages[-1][-1].begin_ns, pages[-1][-1].id)
    assert [run for page in pages for run in page] == everything
    assert len(pages) == 3
    assert {run.dataset for run in listed(world, RunFilter("db"))} == {"db"}
    running = RunFilter(outcomes=frozenset({RunOutcome.RUNNING}))
    assert listed(world, running) == everything[:1]
    since = RunFilter(since_ns=everything[2].begin_ns, until_ns=everything[0].begin_ns)
    assert listed(world, since) == everything[1:3]
    with pytest.raises(errors.NotFound, match="'nowhere'"):
        listed(world, RunFilter("nowhere"))


def test_no_tenant_sees_the_runs_of_another(world):
    world.backup()
    expect(world, "late")
    world.now += 100 * DAY * SECOND
    assert listed(world, tenant=world.eve.tenant) == []
    assert troubled(world, world.eve.tenant) == {}
    assert world.catalog.expectations.list_page(world.eve.tenant, "", 10) == []
    assert set(troubled(world)) == {"late"}
    with pytest.raises(errors.NotFound):
        listed(world, RunFilter("www"), tenant=world.eve.tenant)


# --- what is kept


def test_old_runs_go_but_the_newest_success_and_the_newest_failure_of_each_dataset_stay(world):
    for _ in range(3):
        world.backup("www")
        world.backup("db")
        report(world, "older")
        world.now += SECOND
    kept = {run.id for run in listed(world, RunFilter("www"))[:2]} | {listed(world, RunFilter("db"))[0].id}
    running = world.begin().upload
    world.now += 100 * DAY * SECOND
    assert world.catalog.runs.trim(world.now) == 9 - 3
    assert {run.id for run in listed(world)} == kept | {running.id}
    assert world.catalog.runs.trim(world.now) == 0


def test_a_dataset_keeps_no_more_than_its_limit_of_runs(world):
    failure = report(world)
    world.now += SECOND
    for _ in range(7):
        world.backup()
    world.backup("db")
    latest = listed(world, RunFilter("www"))[:4]
    assert world.catalog.runs.trim(0, most=4) == 3
    assert listed(world, RunFilter("www")) == [*latest, failure]
    assert len(listed(world, RunFilter("db"))) == 1


@pytest.mark.parametrize("way", ["upload", "expectation"])
def test_a_dataset_that_only_reports_named_exists_from_its_first_upload_or_expectation(world, way):
    reported = report(world, dataset="new")
    world.now += SECOND
    if way == "upload":
        world.backup("new")
    else:
        expect(world, "new")
    (dataset,) = world.catalog.datasets.list_page(world.tenant, "", 10)
    assert (dataset.name, dataset.created_ns) == ("new", reported.begin_ns + SECOND)
    assert world.catalog.runs.trim(0, world.now + DAY * SECOND) == 0
    assert listed(world, RunFilter("new"))[-1] == reported


def test_a_name_that_only_reports_had_is_forgotten_after_a_time(world):
    report(world, dataset="typo")
    report(world, dataset="typo")
    world.backup("www")
    assert world.catalog.runs.trim(0, world.now + 1) == 2
    assert [run.dataset for run in listed(world)] == ["www"]
    assert troubled(world) == {}


# --- expectations


def test_a_dataset_that_never_had_a_backup_is_late_from_when_it_was_expected(world):
    begun = world.now
    expect(world, "new")
    world.now = begun + 26 * HOUR * SECOND
    assert troubled(world) == {}
    world.now += 1
    late = troubled(world)["new"]
    assert (late.concern, late.late_since_ns, late.success_ns) == (
        Concern.LATE,
        begun + 26 * HOUR * SECOND,
        0,
    )
    assert late.run is None
    world.backup("new")
    assert troubled(world) == {}


def test_deleting_and_purging_the_newest_backup_does_not_make_its_dataset_late(world):
    expect(world)
    backup = world.backup()
    world.now += DAY * SECOND
    record = PendingRecord(world.id(), world.tenant, b"deleted")
    world.catalog.backups.delete(world.tenant, backup.id, world.now, record)
    assert troubled(world) == {}
    (expected,) = world.catalog.expectations.list_page(world.tenant, "", 10)
    assert expected.success_ns == backup.commit_ns


def test_a_muted_dataset_needs_nobody_until_the_time_is_over(world):
    until = world.now + 7 * DAY * SECOND
    expect(world, mute_until_ns=until)
    report(world)
    world.now = until - 1
    assert troubled(world) == {}
    world.now = until
    assert troubled(world)["www"].concern is Concern.LATE
    assert troubled(world)["www"].run is not None


def test_changing_an_expectation_keeps_when_it_began_and_an_equal_one_keeps_no_record(world):
    begun = world.now
    assert expect(world, "www").expectation.since_ns == begun
    pending = len(world.pending())
    world.now += SECOND
    assert expect(world, "www").expectation.since_ns == begun
    assert len(world.pending()) == pending
    assert expect(world, "www", every_s=HOUR).expectation == Expectation(HOUR, 2 * HOUR, begun)
    assert len(world.pending()) == pending + 1


def test_a_removed_expectation_leaves_the_dataset_without_one(world):
    expect(world)
    for wanted in (2, 2):
        record = PendingRecord(world.id(), world.tenant, b"removed")
        world.catalog.expectations.remove(world.tenant, "www", record)
        assert len(world.pending()) == wanted
    world.now += 100 * DAY * SECOND
    assert troubled(world) == {}
    assert world.catalog.expectations.list_page(world.tenant, "", 10) == []
    with pytest.raises(errors.NotFound):
        world.catalog.expectations.remove(world.tenant, "nowhere", record)


def test_a_failure_needs_somebody_until_a_backup_is_committed_also_while_the_next_run_runs(world):
    world.backup()
    report(world)
    assert troubled(world)["www"].concern is Concern.FAILED
    world.now += SECOND
    running = world.begin().upload
    assert troubled(world)["www"].run.reason == "exit status 1"
    world.now += SECOND
    world.commit(running)
    assert troubled(world) == {}


def test_a_short_failure_beside_a_longer_success_needs_nobody_once_that_is_committed(world):
    long = world.begin().upload
    world.now += SECOND
    report(world)
    assert "www" in troubled(world)
    world.now += SECOND
    world.commit(long)
    assert troubled(world) == {}


def test_times_noted_by_a_clock_that_was_ahead_count_from_now_on(world):
    right = world.now
    world.now += 1000 * DAY * SECOND
    expect(world)
    world.backup()
    world.now = right
    assert troubled(world) == {}
    world.catalog.expectations.clamp(world.now, world.now + 3 * HOUR * SECOND)
    assert troubled(world) == {}
    world.now += 26 * HOUR * SECOND
    assert troubled(world) == {}
    world.now += 1
    assert troubled(world)["www"].concern is Concern.LATE


def test_the_totals_count_datasets_and_name_the_oldest_success(world):
    first = world.backup("a")
    world.backup("b")
    expect(world, "b")
    expect(world, "c", mute_until_ns=world.now + SECOND)
    totals = world.catalog.expectations.totals(world.tenant, world.now)
    assert totals == (3, 2, 1, first.commit_ns)
    assert world.catalog.expectations.totals(world.eve.tenant, world.now) == (0, 0, 0, 0)


TIMES = st.integers(0, 2**62)
LENGTHS = st.integers(1, limits.EXPECT_S_MAX)


@given(LENGTHS, st.integers(0, limits.EXPECT_S_MAX), TIMES, TIMES, TIMES)
def test_lateness_follows_from_the_success_alone_and_never_goes_back(every_s, grace_s, since, success, delta):
    expectation = Expectation(every_s, grace_s, since)
    late_ns = expectation.late_ns(success)
    assert late_ns - (success or since) == (every_s + grace_s) * SECOND
    if success:
        assert expectation.late_ns(success + delta) - late_ns == delta
        assert expectation._replace(since_ns=since + delta).late_ns(success) == late_ns


@pytest.mark.parametrize("seed", range(20))
def test_the_query_and_the_values_agree_on_who_is_late(world, seed):
    world.seeded.seed(seed)
    random = world.seeded
    for number in range(12):
        name = f"d{number}"
        if random.random() < 0.7:
            mute = world.now + random.randrange(1, 60) * HOUR * SECOND if random.random() < 0.3 else 0
            expect(world, name, random.randrange(1, 48) * HOUR, random.randrange(4) * HOUR, max(0, mute))
        if random.random() < 0.7:
            world.backup(name)
        world.now += random.randrange(3 * HOUR) * SECOND
    for step in range(30):
        found = troubled(world)
        expected = {}
        page = world.catalog.expectations.list_page(world.tenant, "", 100)
        for each in page:
            late_ns = each.expectation.late_ns(each.success_ns)
            if world.now > late_ns and not each.expectation.is_muted(world.now):
                expected[each.name] = late_ns
        assert {name: each.late_since_ns for name, each in found.items()} == expected, step
        world.now += random.randrange(4 * HOUR) * SECOND
