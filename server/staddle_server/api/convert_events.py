"""Events as messages, and who may see which."""

from __future__ import annotations

from typing import Final

from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert
from staddle_server.api.gate import Call
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Event, EventFilter
from staddle_server.upkeep.events.kinds import FOR_ADMINISTRATORS, KINDS, OF_A_DATASET

KINDS_MAX: Final = 64


def shown_to(call: Call) -> EventFilter:
    """Return which events a caller may see: those of the tenant, and as an administrator also those that concern
    the service as a whole, which have no tenant, and those of kinds that are for administrators.
    """
    if _is_admin(call):
        return EventFilter(tenants=frozenset({call.tenant, ""}))
    return EventFilter(tenants=frozenset({call.tenant}), hidden_kinds=FOR_ADMINISTRATORS)


def filter_of(m: sv.ListEventsRequest, call: Call) -> EventFilter:
    """Convert what a caller wants to see of the events."""
    if len(m.kinds) > KINDS_MAX:
        raise convert.bad("kinds", f"the limit is {KINDS_MAX}")
    if not KINDS.keys() >= set(m.kinds):
        raise convert.bad("kinds", f"unknown kind; there are {', '.join(KINDS)}")
    return shown_to(call)._replace(
        kinds=frozenset(m.kinds),
        subject=convert.dataset_name(m.dataset) if m.dataset else "",
        subject_kinds=OF_A_DATASET if m.dataset else frozenset(),
        since_ns=convert.ns_of(m.since_time, "since_time") if m.HasField("since_time") else None,
        until_ns=convert.ns_of(m.until_time, "until_time") if m.HasField("until_time") else None,
        open_only=m.open_only,
    )


def event_out(event: Event, call: Call) -> pb.Event:
    """Convert an event. How servers are named, and what to do about them, concerns administrators."""
    alarm, key = event.alarm, event.alarm.key
    since_ns = event.began_ns if alarm.since_ns is None else alarm.since_ns
    return pb.Event(
        id=event.id.hex(),
        kind=key.kind,
        severity=alarm.severity,
        dataset=key.subject if key.kind in OF_A_DATASET else "",
        of_service=not key.tenant,
        server=key.server if _is_admin(call) else "",
        text=alarm.text,
        advice=alarm.advice if _is_admin(call) else "",
        since_time=convert.timestamp(since_ns),
        begin_time=convert.timestamp(event.began_ns),
        over_time=None if event.over_ns is None else convert.timestamp(event.over_ns),
    )


def _is_admin(call: Call) -> bool:
    return call.principal.role is TokenRole.ADMIN
