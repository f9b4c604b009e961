"""Forecast of a collection, without changes."""

from __future__ import annotations

from collections import deque

from staddle_server.base.clock import NS
from staddle_server.upkeep.gc.compaction import CompactionCandidate, has_room, is_candidate, is_worth_it
from staddle_server.upkeep.gc.live_chunks import Reached
from staddle_server.upkeep.gc.mark import walk_roots
from staddle_server.upkeep.gc.preflight import look_at_objects, read_decided
from staddle_server.upkeep.gc.sweep import tell_waiting
from staddle_server.upkeep.gc.tenant_run import Turn


def forecast(turn: Turn) -> None:
    """Fill the turn's report with what a collection now would do; for compaction, approximately.

    Raises as `collect_tenant` does, where that would.
    """
    read_decided(turn)
    objects = look_at_objects(turn)
    report, removal, tenant = turn.report, turn.catalog.purge, turn.tenant.id
    purgeable = [
        found.backup for found in removal.purgeable(tenant, turn.clock.now_ns(), turn.graces.purge_s)
    ]
    report.backups_purged = len(purgeable)
    report.packs_absent = objects.absent
    report.orphans, report.bytes_orphaned = len(objects.orphans), sum(objects.orphans.values())
    reached = Reached(turn.tenant, turn.catalog)
    deque(walk_roots(turn, reached, removal.roots(tenant, purgeable)), maxlen=0)
    _forecast_packs(turn, reached)
    _forecast_bytes(turn)


def _forecast_packs(turn: Turn, reached: Reached) -> None:
    report = turn.report
    group: list[CompactionCandidate] = []
    for pack, (size_bytes, chunk_count) in turn.catalog.purge.unclaimed(turn.tenant.id).items():
        live = len(reached.packs[pack]) if pack in reached.packs else 0
        candidate = CompactionCandidate(size_bytes, chunk_count, live)
        report.packs_looked_at += 1
        report.bytes_looked_at += size_bytes
        if not live:
            report.packs_condemned += 1
            report.bytes_condemned += size_bytes
        elif is_candidate(candidate):
            if group and not has_room(group, candidate):
                _forecast_group(turn, group)
                group = []
            group.append(candidate)
    _forecast_group(turn, group)


def _forecast_group(turn: Turn, group: list[CompactionCandidate]) -> None:
    if is_worth_it(group):
        turn.report.packs_compacted += len(group)
        turn.report.bytes_compacted += sum(pack.size_bytes for pack in group)
        turn.report.packs_written += 1
        turn.report.bytes_written += sum(pack.live_bytes for pack in group)


def _forecast_bytes(turn: Turn) -> None:
    """Compute which bytes become free at once, and which later."""
    report, removal = turn.report, turn.catalog.purge
    tell_waiting(turn)
    now = removal.condemned(turn.tenant.id, turn.reaped_before_ns(), turn.clock.now_ns(), limit=2**31 - 1)
    report.packs_reaped, report.bytes_freed = len(now), sum(pack.size_bytes for pack in now)
    report.packs_waiting -= len(now)
    report.bytes_waiting -= report.bytes_freed
    new_packs = report.packs_condemned + report.packs_compacted
    new_bytes = report.bytes_condemned + report.bytes_compacted
    if not turn.graces.reap_s:
        report.packs_reaped += new_packs
        report.bytes_freed += new_bytes
        return
    report.packs_waiting += new_packs
    report.bytes_waiting += new_bytes
    if new_packs:
        by_ns = turn.clock.now_ns() + turn.graces.reap_s * NS
        report.free_from_ns = report.free_from_ns or by_ns
        report.free_by_ns = by_ns
