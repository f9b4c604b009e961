"""ListEvents: what the service found to be wrong."""

from __future__ import annotations

from typing import Final

from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert, convert_events
from staddle_server.api.gate import Call
from staddle_server.api.page_tokens import PageTokens
from staddle_server.base import limits
from staddle_server.catalog import Events
from staddle_server.tenancy.tenant import Tenants

PAGE: Final = 100
PAGE_BYTES: Final = 2 * limits.MIB


class EventCalls:
    """Answers these calls."""

    def __init__(self, events: Events, tenants: Tenants) -> None:
        self._events = events
        self._tenants = tenants

    def list_events(self, request: sv.ListEventsRequest, call: Call) -> sv.ListEventsResponse:
        call.facts["dataset"] = request.dataset
        asked = convert_events.filter_of(request, call)
        limit = convert.size(request.page_size, "page_size", PAGE, limits.SHORT_PAGE_SIZE_MAX)
        tokens = PageTokens(self._tenants.get(call.principal.tenant).secrets.token_key)
        query = ("events", *asked)
        before = tokens.read(query, request.page_token, int) if request.page_token else None
        found = self._events.list_page(asked, limit, before)
        page = convert.fitting((convert_events.event_out(each, call) for each in found), PAGE_BYTES)
        more = tokens.make(query, found[len(page) - 1].row) if found.more or len(found) > len(page) else ""
        return sv.ListEventsResponse(events=page, next_page_token=more)
