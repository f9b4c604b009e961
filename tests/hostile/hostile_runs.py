"""Runs and events that no server would send."""

from __future__ import annotations

from typing import Any

from hostile_server import ID, run
from staddle.v1 import resources_pb2 as pb

BAD_RUNS: dict[str, pb.Run] = {
    "none": pb.Run(),
    "another dataset's": run(dataset="other"),
    "an id that is a path": run(id="/etc/passwd"),
    "an unknown outcome": run(outcome=99),
    "a backup that is none": run(backup_id="x"),
    "counts at their limit": run(data_bytes=2**64 - 1),
    "a time beyond all": run(end_time={"seconds": 2**62}),
}


def event(**fields: Any) -> pb.Event:
    return pb.Event(**{"id": ID, "kind": "late", "severity": "critical", "dataset": "d", **fields})


BAD_EVENTS: dict[str, pb.Event] = {
    "none": pb.Event(),
    "another dataset's": event(dataset="other"),
    "an id that is a path": event(id="/etc/passwd"),
    "an unknown severity": event(severity="\x1b[31m"),
    "one that is over": event(over_time={"seconds": 1}),
    "a time beyond all": event(since_time={"seconds": 2**62}),
}
