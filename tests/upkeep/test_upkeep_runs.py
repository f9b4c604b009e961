"""Runs, expectations and status, as callers see them: who may, what is refused, and what survives."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import grpc
import pytest
from rebuilt import rebuild_in_place
from sqlalchemy import func, select, update
from staddle import Client
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base import limits
from staddle_server.catalog import RunFilter, Terms, open_catalog, schema
from staddle_server.upkeep.lifecycle.runs import RunHistory
from thin import Source, back_up, reason

DAY = 86_400
TERMS = Terms(limits.LEASE_S, limits.UPLOAD_LIFE_S)


def report(stub, dataset="www", why="exit status 1", **more):
    return stub.ReportRun(sv.ReportRunRequest(dataset=dataset, reason=why, **more)).run


def runs(stub, **asked):
    return list(stub.ListRuns(sv.ListRunsRequest(**asked)).runs)


def expect(stub, dataset="www", every_s=DAY, **more):
    request = sv.SetExpectationRequest(dataset=dataset, every={"seconds": every_s}, **more)
    return stub.SetExpectation(request).expectation


def status(stub, **more):
    return stub.GetStatus(sv.GetStatusRequest(**more))


def grow_old(running, seconds: float) -> None:
    """Let all that is known of datasets lie back so much longer."""
    back_ns = int(seconds * 1e9)
    with running.catalog.database.write() as connection:
        for column in (schema.datasets.c.success_ns, schema.datasets.c.expect_ns):
            older = update(schema.datasets).where(column > 0)
            connection.execute(older.values({column.name: column - back_ns}))


def test_both_ways_of_sending_make_runs_and_an_upload_that_breaks_is_resumed_as_the_same(running):
    stub = running.stub("writer")
    thin = back_up(stub, "www", {"a": b"1"})
    source = Source(stub, "www")
    source.put_file("a", b"2")
    first, second = runs(stub)
    assert (first.id, first.outcome, first.backup_id) == (source.upload.id, pb.RUN_OUTCOME_RUNNING, "")
    assert (second.outcome, second.backup_id) == (pb.RUN_OUTCOME_DONE, thin.id)
    running.clock.ahead_s = 301.0
    (lost,) = runs(stub, outcomes=[pb.RUN_OUTCOME_ABANDONED])
    assert lost.id == source.upload.id
    stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id))
    assert [run.outcome for run in runs(stub)] == [pb.RUN_OUTCOME_RUNNING, pb.RUN_OUTCOME_DONE]


@pytest.mark.parametrize("thin", [True, False], ids=["thin", "source-side"])
def test_what_a_client_counts_as_problems_is_in_its_run(running, thin):
    stub = running.stub("writer")
    if thin:
        begun = sv.BackupPart(begin=sv.BeginUploadRequest(dataset="www"))
        finish = sv.BackupPart(finish=sv.Finish(problem_count=7))
        stub.Backup(iter([sv.BackupRequest(parts=[begun, finish])]))
    else:
        upload = stub.BeginUpload(sv.BeginUploadRequest(dataset="www")).upload
        stub.CommitUpload(sv.CommitUploadRequest(upload_id=upload.id, epoch=upload.epoch, problem_count=7))
    (run,) = runs(stub)
    assert (run.outcome, run.problem_count) == (pb.RUN_OUTCOME_DONE_WITH_PROBLEMS, 7)
    (trouble,) = status(stub).troubles
    assert trouble.run == run


def test_a_report_with_the_same_request_id_is_one_run_and_each_token_has_its_own(running):
    ann, bob = running.stub("writer"), running.stub("admin")
    one = report(ann, request_id="r1")
    assert report(ann, request_id="r1") == one
    assert report(bob, request_id="r1").id != one.id
    assert len(runs(ann)) == 2
    with pytest.raises(grpc.RpcError) as refused:
        report(ann, why="another", request_id="r1")
    assert reason(refused.value) == "REQUEST_ID_REUSED"
    report(ann)
    report(ann)
    assert len(runs(ann)) == 4


def test_any_number_of_reports_keeps_a_bounded_number_of_rows(running):
    stub = running.stub("writer")
    for number in range(limits.REPORTS_DATASET_MAX + 30):
        report(stub, why=f"{number} " + "x" * 1000)
    with running.catalog.database.read() as connection:
        count = connection.execute(select(func.count()).select_from(schema.runs)).scalar_one()
    assert count == limits.REPORTS_DATASET_MAX
    assert runs(stub)[0].reason.startswith(f"{limits.REPORTS_DATASET_MAX + 29} ")


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("ReportRun", {"dataset": "www"}, "reason"),
        ("ReportRun", {"reason": "x"}, "dataset"),
        ("ReportRun", {"dataset": "www", "reason": "a\x1b]0;x\x07"}, "reason"),
        ("ReportRun", {"dataset": "www", "reason": "x" * 1025}, "reason"),
        ("ReportRun", {"dataset": "www", "reason": "x", "host": "a\nb"}, "host"),
        ("ReportRun", {"dataset": "www", "reason": "x", "host": "h" * 256}, "host"),
        ("ReportRun", {"dataset": "www", "reason": "x", "upload_id": "../x"}, "upload_id"),
        ("ReportRun", {"dataset": "www", "reason": "x", "request_id": "r" * 129}, "request_id"),
        ("ReportRun", {"dataset": "www", "reason": "x", "duration": {"seconds": -1}}, "duration"),
        ("ReportRun", {"dataset": "www", "reason": "x", "duration": {"seconds": 2**60}}, "duration"),
        ("SetExpectation", {"dataset": "www"}, "every"),
        ("SetExpectation", {"dataset": "www", "every": {"seconds": 59}}, "every"),
        ("SetExpectation", {"dataset": "www", "every": {"seconds": 2**60}}, "every"),
        ("SetExpectation", {"dataset": "www", "every": {"seconds": 60, "nanos": 1}}, "every"),
        ("SetExpectation", {"dataset": "www", "every": {"seconds": 60}, "grace": {"seconds": -1}}, "grace"),
        (
            "SetExpectation",
            {"dataset": "www", "every": {"seconds": 60}, "mute_until_time": {"seconds": 2**40}},
            "mute_until_time",
        ),
        (
            "SetExpectation",
            {"dataset": "www", "every": {"seconds": 60}, "mute_until_time": {"seconds": 10**9}},
            "mute_until_time",
        ),
        ("SetExpectation", {"every": {"seconds": 60}}, "dataset"),
        ("SetExpectation", {"dataset": "a\x00b", "every": {"seconds": 60}}, "dataset"),
        ("DeleteExpectation", {}, "dataset"),
        ("ListRuns", {"page_size": 1001}, "page_size"),
        ("ListRuns", {"page_token": "bm9uc2Vuc2U"}, "page_token"),
        ("ListRuns", {"outcomes": [99]}, "outcomes"),
        ("ListRuns", {"since_time": {"seconds": 2**62}}, "since_time"),
        ("ListExpectations", {"page_size": 1001}, "page_size"),
        ("GetStatus", {"page_token": "bm9uc2Vuc2U"}, "page_token"),
    ],
)
def test_wrong_fields_are_refused_by_name_and_change_nothing(running, method, fields, field):
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, method)(getattr(sv, f"{method}Request")(**fields))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.value.details()
    assert runs(stub) == []
    assert status(stub).dataset_count == 0


def test_no_tenant_learns_of_runs_expectations_or_troubles_of_another(running):
    stub = running.stub()
    other = running.make_tenant("other")
    theirs = running.stub("admin", tenant=other)
    report(stub)
    expect(stub)
    upload = stub.BeginUpload(sv.BeginUploadRequest(dataset="www")).upload
    assert runs(theirs) == []
    assert not theirs.ListExpectations(sv.ListExpectationsRequest()).expectations
    assert status(theirs) == sv.GetStatusResponse()
    for call, expected in (
        (lambda: runs(theirs, dataset="www"), "DATASET_NOT_FOUND"),
        (lambda: theirs.DeleteExpectation(sv.DeleteExpectationRequest(dataset="www")), "DATASET_NOT_FOUND"),
        (lambda: report(theirs, upload_id=upload.id), "UPLOAD_NOT_FOUND"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert reason(refused.value) == expected
    page = stub.ListRuns(sv.ListRunsRequest(page_size=1))
    with pytest.raises(grpc.RpcError) as refused:
        theirs.ListRuns(sv.ListRunsRequest(page_size=1, page_token=page.next_page_token))
    assert reason(refused.value) == "BAD_PAGE_TOKEN"


def test_runs_expectations_and_troubles_come_in_pages_of_any_size(running):
    stub = running.stub()
    for number in range(7):
        expect(stub, f"d{number}")
        if number % 2:
            report(stub, f"d{number}")
    grow_old(running, 3 * DAY)
    expect(stub, "fine")
    with Client(running.address, token=running.token("reader")) as client:
        assert [each.dataset for each in client.expectations()] == [*(f"d{n}" for n in range(7)), "fine"]
        found = client.status()
        assert (len(found.troubles), found.dataset_count, found.expected_count) == (7, 8, 8)
        assert len(list(client.runs())) == 3

    def paged(method, field, **asked):
        items, token = [], ""
        while True:
            request = getattr(sv, f"{method}Request")(page_size=2, page_token=token, **asked)
            answer = getattr(stub, method)(request)
            assert len(getattr(answer, field)) <= 2
            items += getattr(answer, field)
            token = answer.next_page_token
            if not token:
                return items

    assert [each.dataset for each in paged("GetStatus", "troubles")] == [t.dataset for t in found.troubles]
    assert len(paged("ListRuns", "runs")) == 3
    assert len(paged("ListExpectations", "expectations")) == 8


def test_a_mute_that_has_passed_may_stay_as_it_is(running):
    stub = running.stub()
    until = {"seconds": running.clock.now_ns() // 10**9 + 60}
    expect(stub, mute_until_time=until)
    running.clock.ahead_s += 120
    assert expect(stub, every_s=2 * DAY, mute_until_time=until).every.seconds == 2 * DAY
    with pytest.raises(grpc.RpcError, match="it would mute nothing"):
        expect(stub, mute_until_time={"seconds": until["seconds"] + 1})


def test_an_expectation_survives_the_loss_of_the_catalog_with_the_time_of_the_last_success(running):
    stub = running.stub()
    made = back_up(stub, "www", {"a": b"1"})
    expect(stub, grace={"seconds": 60}, mute_until_time={"seconds": 2_000_000_000})
    expect(stub, "never")
    expect(stub, "gone")
    stub.DeleteExpectation(sv.DeleteExpectationRequest(dataset="gone"))
    before = stub.ListExpectations(sv.ListExpectationsRequest())
    assert before.expectations[1].success_time == made.commit_time
    rebuild_in_place(running)
    after = running.stub().ListExpectations(sv.ListExpectationsRequest())
    assert [each.dataset for each in after.expectations] == ["never", "www"]
    assert after == before


def test_changes_of_one_expectation_at_once_leave_what_the_last_record_says(running):
    stub = running.stub()
    threads = [threading.Thread(target=expect, args=(stub, "www", 3600 + n)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    before = stub.ListExpectations(sv.ListExpectationsRequest())
    rebuild_in_place(running)
    assert running.stub().ListExpectations(sv.ListExpectationsRequest()) == before


def test_the_server_removes_runs_that_are_older_than_it_keeps_them(running):
    stub = running.stub("writer")
    for _ in range(3):
        back_up(stub, "www", {"a": b"1"})
    with running.catalog.database.write() as connection:
        older = schema.runs.c.begin_ns - int(91 * DAY * 1e9)
        connection.execute(update(schema.runs).values(begin_ns=older))
    history = RunHistory(running.catalog, None, running.clock, TERMS, 90 * DAY)
    assert history.trim(lambda: True) == "", "a server that ends leaves them to the next one"
    assert history.trim(lambda: False) == "2 old runs removed"
    assert history.trim(lambda: False) == ""
    assert len(runs(stub)) == 1


def test_a_killed_server_leaves_a_run_that_is_abandoned_and_then_resumed(server):
    with Client.from_config(server.config) as client:
        upload = client.call("BeginUpload", sv.BeginUploadRequest(dataset="www")).upload
        server.kill()
        catalog = open_catalog(str(server.data / "catalog.db"))
        (tenant,) = catalog.tenants.list_all()

        def outcome(seconds: float) -> str:
            now_ns = time.time_ns() + int(seconds * 1e9)
            (run,) = catalog.runs.list_page(tenant.id, RunFilter(), 10, now_ns=now_ns, terms=TERMS)
            return run.outcome.name

        assert (outcome(0), outcome(limits.LEASE_S + 1)) == ("RUNNING", "ABANDONED")
        catalog.close()
    server.start()
    with Client.from_config(server.config) as client:
        client.call("ResumeUpload", sv.ResumeUploadRequest(upload_id=upload.id))
        (run,) = client.runs()
        assert (run.id, run.outcome) == (upload.id, "running")


def test_the_library_reports_why_an_upload_fails(running):
    def broken(error: type[BaseException]):
        yield b"1"
        raise error("secret")

    with Client(running.address, token=running.token("writer")) as client:
        with pytest.raises(LookupError):
            client.backup_stream("www", name="a", source=broken(LookupError), host="web1")
        (run,) = client.runs()
        assert (run.outcome, run.reported, run.host) == ("failed", False, "web1")
        assert run.reason == "The program that makes the backup failed with LookupError."
        with pytest.raises(KeyboardInterrupt):
            client.backup_stream("www", name="a", source=broken(KeyboardInterrupt))
        assert next(iter(client.runs())).outcome == "abandoned"
        run = client.report_run("www", "bell \x07\n" + "ü" * 2000, duration=timedelta(seconds=5))
        assert run.reason.startswith("bell \\x07 üü")
        assert len(run.reason.encode()) <= 1024
        assert run.end_time - run.begin_time == timedelta(seconds=5)
