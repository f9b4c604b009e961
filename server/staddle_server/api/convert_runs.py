"""Runs, expectations and troubled datasets as messages."""

from __future__ import annotations

from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert
from staddle_server.api.convert_policy import whole_seconds
from staddle_server.base import limits
from staddle_server.base.types import RunOutcome
from staddle_server.catalog import BackupRun, Expectation, ExpectedDataset, RunFilter, Troubled
from staddle_server.upkeep.lifecycle.runs import FailedRun

EXPECT_S_MIN = 60


def filter_of(m: sv.ListRunsRequest) -> RunFilter:
    """Convert what a caller wants to see of the runs."""
    known = {int(outcome) for outcome in RunOutcome}
    if not known.issuperset(m.outcomes):
        raise convert.bad("outcomes", "unknown outcome")
    return RunFilter(
        dataset=convert.dataset_name(m.dataset) if m.dataset else "",
        since_ns=convert.ns_of(m.since_time, "since_time") if m.HasField("since_time") else None,
        until_ns=convert.ns_of(m.until_time, "until_time") if m.HasField("until_time") else None,
        outcomes=frozenset(map(RunOutcome, m.outcomes)),
    )


def failed_of(m: sv.ReportRunRequest) -> FailedRun:
    """Convert the report of a run that failed."""
    return FailedRun(
        request_id=convert.words(m.request_id, "request_id", limits.REQUEST_ID_BYTES_MAX),
        dataset=convert.dataset_name(m.dataset),
        upload=convert.identifier(m.upload_id, "upload_id") if m.upload_id else b"",
        host=convert.words(m.host, "host", limits.HOST_BYTES_MAX),
        reason=convert.words(m.reason, "reason", limits.RUN_REASON_BYTES_MAX, empty=False),
        duration_s=whole_seconds(m.duration, "duration", limits.UPLOAD_LIFE_S),
    )


def expectation_of(m: sv.SetExpectationRequest) -> tuple[int, int, int]:
    """Convert an expectation: every and grace in seconds, and until when it is muted (0: not)."""
    every_s = whole_seconds(m.every, "every", limits.EXPECT_S_MAX)
    if every_s < EXPECT_S_MIN:
        raise convert.bad("every", f"the shortest period is {EXPECT_S_MIN} seconds")
    mute_until_ns = 0
    if m.HasField("mute_until_time"):
        mute_until_ns = convert.ns_of(m.mute_until_time, "mute_until_time")
        if not 0 < mute_until_ns < 2**63:
            raise convert.bad("mute_until_time", "use a time after 1970 and before 2262")
    return every_s, whole_seconds(m.grace, "grace", limits.EXPECT_S_MAX), mute_until_ns


def run_out(run: BackupRun) -> pb.Run:
    """Convert a run."""
    return pb.Run(
        id=run.id.hex(),
        dataset=run.dataset,
        outcome=int(run.outcome),  # type: ignore[arg-type] # the numbers are the same
        reason=run.reason,
        principal=run.principal,
        host=run.host,
        begin_time=convert.timestamp(run.begin_ns),
        end_time=None if run.end_ns is None else convert.timestamp(run.end_ns),
        entry_count=run.entry_count,
        data_bytes=run.data_bytes,
        stored_bytes=run.stored_bytes,
        problem_count=run.problem_count,
        backup_id=run.backup.hex(),
        reported=run.reported,
    )


def expectation_out(dataset: str, expectation: Expectation, success_ns: int) -> pb.Expectation:
    """Convert a dataset's expectation."""
    until_ns = expectation.mute_until_ns
    return pb.Expectation(
        dataset=dataset,
        every=convert.duration(expectation.every_s),
        grace=convert.duration(expectation.grace_s),
        mute_until_time=convert.timestamp(until_ns) if until_ns else None,
        set_time=convert.timestamp(expectation.since_ns),
        success_time=convert.timestamp(success_ns) if success_ns else None,
        late_time=convert.timestamp(expectation.late_ns(success_ns)),
    )


def expected_out(expected: ExpectedDataset) -> pb.Expectation:
    """Convert a dataset that has an expectation."""
    return expectation_out(expected.name, expected.expectation, expected.success_ns)


def trouble_out(troubled: Troubled) -> pb.Trouble:
    """Convert a dataset that needs somebody."""
    late_ns, success_ns, expectation = troubled.late_since_ns, troubled.success_ns, troubled.expectation
    return pb.Trouble(
        dataset=troubled.dataset,
        late_since_time=None if late_ns is None else convert.timestamp(late_ns),
        success_time=convert.timestamp(success_ns) if success_ns else None,
        expectation=expectation and expectation_out(troubled.dataset, expectation, success_ns),
        run=None if troubled.run is None else run_out(troubled.run),
    )
