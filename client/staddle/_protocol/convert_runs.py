"""Runs, expectations and troubles, between the wire's messages and the library's values."""

import datetime
from typing import Any, Final

from staddle._errors import ProtocolError
from staddle._protocol.convert import datetime_of, timedelta_of
from staddle._types.runs import Event, EventSeverity, Expectation, Run, RunOutcome, Trouble
from staddle.v1 import resources_pb2 as pb

OUTCOMES: Final = {
    pb.RUN_OUTCOME_RUNNING: RunOutcome.RUNNING,
    pb.RUN_OUTCOME_DONE: RunOutcome.DONE,
    pb.RUN_OUTCOME_DONE_WITH_PROBLEMS: RunOutcome.PROBLEMS,
    pb.RUN_OUTCOME_FAILED: RunOutcome.FAILED,
    pb.RUN_OUTCOME_ABANDONED: RunOutcome.ABANDONED,
}
OUTCOMES_TO_WIRE: Final = {outcome: number for number, outcome in OUTCOMES.items()}


def run_of(message: pb.Run) -> Run:
    """A run from the server's message."""
    outcome = OUTCOMES.get(message.outcome)
    if outcome is None:
        raise ProtocolError(f"The server sent a run with the unknown outcome {message.outcome}.")
    return Run(
        id=message.id,
        dataset=message.dataset,
        outcome=outcome,
        reason=message.reason,
        principal=message.principal,
        host=message.host,
        begin_time=datetime_of(message.begin_time),
        end_time=time_or_none(message, "end_time"),
        entry_count=message.entry_count,
        data_bytes=message.data_bytes,
        stored_bytes=message.stored_bytes,
        problem_count=message.problem_count,
        backup_id=message.backup_id,
        reported=message.reported,
    )


def expectation_of(message: pb.Expectation) -> Expectation:
    """A dataset's expectation from the server's message."""
    return Expectation(
        dataset=message.dataset,
        every=timedelta_of(message.every),
        grace=timedelta_of(message.grace),
        mute_until=time_or_none(message, "mute_until_time"),
        set_time=datetime_of(message.set_time),
        success_time=time_or_none(message, "success_time"),
        late_time=datetime_of(message.late_time),
    )


def trouble_of(message: pb.Trouble) -> Trouble:
    """A dataset that needs somebody, from the server's message."""
    return Trouble(
        dataset=message.dataset,
        late_since=time_or_none(message, "late_since_time"),
        success_time=time_or_none(message, "success_time"),
        expectation=expectation_of(message.expectation) if message.HasField("expectation") else None,
        run=run_of(message.run) if message.HasField("run") else None,
    )


def event_of(message: pb.Event) -> Event:
    """An event from the server's message."""
    if message.severity not in set(EventSeverity):
        raise ProtocolError(f"The server sent an event with the unknown severity {message.severity[:40]!r}.")
    return Event(
        id=message.id,
        kind=message.kind,
        severity=EventSeverity(message.severity),
        dataset=message.dataset,
        of_service=message.of_service,
        server=message.server,
        text=message.text,
        advice=message.advice,
        since_time=datetime_of(message.since_time),
        begin_time=datetime_of(message.begin_time),
        over_time=time_or_none(message, "over_time"),
    )


def time_or_none(message: Any, field: str) -> datetime.datetime | None:
    """A time that may be unset. Raises ProtocolError for one out of range."""
    return datetime_of(getattr(message, field)) if message.HasField(field) else None
