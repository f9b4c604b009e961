"""Runs, expectations, status and events: the methods that `Client` has for them."""

import datetime
from collections.abc import Iterable, Iterator
from typing import Final

from staddle._errors import named
from staddle._protocol.arguments import choice, duration_to_wire, timestamp_to_wire
from staddle._protocol.convert import text
from staddle._protocol.convert_runs import (
    OUTCOMES_TO_WIRE,
    event_of,
    expectation_of,
    run_of,
    time_or_none,
    trouble_of,
)
from staddle._transport.calls import Calls
from staddle._transport.failure_report import FailureReport, report_request
from staddle._transport.pages import pages_of
from staddle._types.runs import Event, Expectation, Run, RunOutcome, Status, Trouble
from staddle.v1 import service_pb2 as sv

PAGE: Final = 1_000


class RunMethods:
    """The methods of `Client` for runs, expectations, status and events."""

    _calls: Calls

    def runs(
        self,
        dataset: str = "",
        *,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        outcomes: Iterable[str] = (),
    ) -> Iterator[Run]:
        """Attempts to back up, the latest first: of all datasets, or of one.

        Only those that began at `since` or later, and before `until` (without a zone: local), with one of `outcomes` (running, done,
        problems, failed, abandoned).
        """
        request = sv.ListRunsRequest(
            dataset=text("dataset", dataset),
            since_time=None if since is None else timestamp_to_wire("since", since),
            until_time=None if until is None else timestamp_to_wire("until", until),
            outcomes=[OUTCOMES_TO_WIRE[choice("outcomes", each, RunOutcome)] for each in outcomes],
            page_size=PAGE,
        )
        return self._calls.pages("ListRuns", request, "runs", run_of)

    def report_run(
        self,
        dataset: str,
        reason: str,
        *,
        upload_id: str = "",
        host: str = "",
        duration: datetime.timedelta = datetime.timedelta(0),
    ) -> Run:
        """Reports that an attempt to back up failed, and why: it is then in the list of runs. `backup` and `upload` do so by themselves.

        `upload_id` is the upload that it began, which stays as it is. Of `reason`, at most 1,024 bytes are kept. Needs the role writer.
        """
        request = report_request(
            text("dataset", dataset),
            reason,
            upload_id=upload_id,
            host=host,
            duration_s=duration.total_seconds(),
        )
        return run_of(self._calls.call("ReportRun", request).run)

    def reporting(self, dataset: str, *, host: str = "") -> FailureReport:
        """Around what comes before a backup, such as making a dump: an error that ends it is reported as a failed run.

            with client.reporting("orders"):
                dump = make_dump()
            client.backup(dump, dataset="orders")

        Of an error that is not the library's or the system's, only its kind is reported.
        """
        return FailureReport(self._calls, text("dataset", dataset), host)

    def set_expectation(
        self,
        dataset: str,
        every: datetime.timedelta,
        *,
        grace: datetime.timedelta = datetime.timedelta(0),
        mute_until: datetime.datetime | None = None,
    ) -> Expectation:
        """Sets how often a dataset must have a new backup. It is late once `every` and `grace` have passed since its newest one.

        A dataset that does not exist is made. Until `mute_until` (without a zone: local) it needs nobody. Needs the role admin.
        """
        request = sv.SetExpectationRequest(
            dataset=text("dataset", dataset),
            every=duration_to_wire("every", every),
            grace=duration_to_wire("grace", grace),
            mute_until_time=None if mute_until is None else timestamp_to_wire("mute_until", mute_until),
        )
        return expectation_of(self._calls.call("SetExpectation", request).expectation)

    def delete_expectation(self, dataset: str) -> None:
        """Removes a dataset's expectation: it is never late from now on. Needs the role admin."""
        self._calls.call("DeleteExpectation", sv.DeleteExpectationRequest(dataset=text("dataset", dataset)))

    def expectations(self) -> Iterator[Expectation]:
        """The datasets that have an expectation, by name."""
        request = sv.ListExpectationsRequest(page_size=PAGE)
        return self._calls.pages("ListExpectations", request, "expectations", expectation_of)

    def status(self) -> Status:
        """Which datasets need somebody: late ones, and those whose latest run failed, was abandoned or had problems."""
        troubles: list[Trouble] = []
        for page in pages_of(self._calls, "GetStatus", sv.GetStatusRequest(page_size=PAGE), "troubles"):
            with named(self._calls.address):
                troubles += map(trouble_of, page.troubles)
        return Status(
            tuple(troubles),
            dataset_count=page.dataset_count,
            expected_count=page.expected_count,
            muted_count=page.muted_count,
            oldest_success_time=time_or_none(page, "oldest_success_time"),
        )

    def events(
        self,
        dataset: str = "",
        *,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        kinds: Iterable[str] = (),
        open_only: bool = False,
    ) -> Iterator[Event]:
        """What the service found to be wrong, the newest first: about all of this tenant, or about one dataset.

        Only what was found at `since` or later, and before `until` (without a zone: local), of one of `kinds`, such as "late" or "damage"; with
        `open_only` only what is not over. Administrators also see what concerns the service as a whole, and what to do. The service keeps
        past events for 90 days.
        """
        request = sv.ListEventsRequest(
            dataset=text("dataset", dataset),
            kinds=[text("kinds", each) for each in kinds],
            since_time=None if since is None else timestamp_to_wire("since", since),
            until_time=None if until is None else timestamp_to_wire("until", until),
            open_only=open_only,
            page_size=PAGE,
        )
        return self._calls.pages("ListEvents", request, "events", event_of)
