"""Calls about attempts to back up, expectations, and who needs somebody."""

from __future__ import annotations

from typing import Final

from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert, convert_runs
from staddle_server.api.gate import Call
from staddle_server.api.page_tokens import PageTokens
from staddle_server.base import limits
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.lifecycle.runs import RunHistory, severity

PAGE: Final = 100
PAGE_BYTES: Final = 2 * limits.MIB


class RunCalls:
    """Answers these calls."""

    def __init__(self, runs: RunHistory, tenants: Tenants) -> None:
        self._runs = runs
        self._tenants = tenants

    # ------------------------------------------------------------------ runs

    def list_runs(self, request: sv.ListRunsRequest, call: Call) -> sv.ListRunsResponse:
        call.facts["dataset"] = request.dataset
        asked = convert_runs.filter_of(request)
        limit, tokens = _limit(request), self._tokens(call)
        query = ("runs", asked.dataset, asked.since_ns, asked.until_ns, sorted(asked.outcomes))
        before = tokens.read(query, request.page_token, tuple[int, bytes]) if request.page_token else None
        found = self._runs.list_page(call.principal, asked, limit, before)
        page = convert.fitting(map(convert_runs.run_out, found), PAGE_BYTES)
        more = ""
        if found.more or len(found) > len(page):
            last = found[len(page) - 1]
            more = tokens.make(query, (last.begin_ns, last.id))
        return sv.ListRunsResponse(runs=page, next_page_token=more)

    def report_run(self, request: sv.ReportRunRequest, call: Call) -> sv.ReportRunResponse:
        call.facts.update(dataset=request.dataset, upload=request.upload_id)
        run = self._runs.report(call.principal, convert_runs.failed_of(request))
        return sv.ReportRunResponse(run=convert_runs.run_out(run))

    # ------------------------------------------------------------------ expectations

    def set_expectation(self, request: sv.SetExpectationRequest, call: Call) -> sv.SetExpectationResponse:
        call.facts["dataset"] = request.dataset
        dataset = convert.dataset_name(request.dataset)
        said = convert_runs.expectation_of(request)
        expected = self._runs.expect(call.principal, dataset, *said)
        return sv.SetExpectationResponse(expectation=convert_runs.expected_out(expected))

    def delete_expectation(
        self, request: sv.DeleteExpectationRequest, call: Call
    ) -> sv.DeleteExpectationResponse:
        call.facts["dataset"] = request.dataset
        self._runs.expect_none(call.principal, convert.dataset_name(request.dataset))
        return sv.DeleteExpectationResponse()

    def list_expectations(
        self, request: sv.ListExpectationsRequest, call: Call
    ) -> sv.ListExpectationsResponse:
        limit, tokens, query = _limit(request), self._tokens(call), ("expectations",)
        after = tokens.read(query, request.page_token, str) if request.page_token else ""
        found = self._runs.expected(call.principal, after, limit)
        page = convert.fitting(map(convert_runs.expected_out, found), PAGE_BYTES)
        more = tokens.make(query, page[-1].dataset) if found.more or len(found) > len(page) else ""
        return sv.ListExpectationsResponse(expectations=page, next_page_token=more)

    # ------------------------------------------------------------------ status

    def get_status(self, request: sv.GetStatusRequest, call: Call) -> sv.GetStatusResponse:
        limit, tokens, query = _limit(request), self._tokens(call), ("status",)
        status = self._runs.status(call.principal)
        left = status.troubled
        if request.page_token:
            after = tokens.read(query, request.page_token, tuple[int, int, str])
            left = [each for each in left if severity(each) > after]
        page = convert.fitting(map(convert_runs.trouble_out, left[:limit]), PAGE_BYTES)
        totals = status.totals
        response = sv.GetStatusResponse(
            troubles=page,
            next_page_token=tokens.make(query, severity(left[len(page) - 1]))
            if len(left) > len(page)
            else "",
            dataset_count=totals.datasets,
            expected_count=totals.expected,
            muted_count=totals.muted,
        )
        if totals.oldest_success_ns:
            response.oldest_success_time.CopyFrom(convert.timestamp(totals.oldest_success_ns))
        return response

    def _tokens(self, call: Call) -> PageTokens:
        return PageTokens(self._tenants.get(call.principal.tenant).secrets.token_key)


def _limit(request: sv.ListRunsRequest | sv.ListExpectationsRequest | sv.GetStatusRequest) -> int:
    return convert.size(request.page_size, "page_size", PAGE, limits.SHORT_PAGE_SIZE_MAX)
