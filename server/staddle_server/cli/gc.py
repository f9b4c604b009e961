"""`staddle-server gc`."""

from __future__ import annotations

import dataclasses
import json
import sys

import click
from staddle._base.figures import counted, size

from staddle_server.app.bootstrap import Rooms, open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.signals import asked_to_stop
from staddle_server.base.clock import SystemClock
from staddle_server.base.limits import GRACE_S_MAX, REAP_GRACE_S
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import data_option, duration, json_option
from staddle_server.cli.text import Line, say
from staddle_server.upkeep.gc.collector import CollectionReport, Collector, Show
from staddle_server.upkeep.gc.tenant_run import TenantReport


@click.command()
@click.option("--dry-run", is_flag=True, help="Report what would be done, and change nothing.")
@click.option(
    "--grace",
    metavar="DURATION",
    help="Use this instead of each tenant's grace period, this once. A shorter one also ends the wait of packs that are about to be "
    "removed. 0 frees everything now.",
)
@click.option(
    "--after-rebuild",
    is_flag=True,
    help="Also collect tenants that have waited for an operator since their catalog was rebuilt.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
@json_option
def gc(
    *, dry_run: bool, grace: str | None, after_rebuild: bool, yes: bool, data: DataDirectory, as_json: bool
) -> None:
    """Free space that no backup needs any more.

    Purges deleted backups whose grace period is over, and collects garbage. Runs beside a server, backups and
    restores. The server does the same every --gc-every. Exit codes: 0: done; 1: a tenant could not be
    collected, and the report says why.
    """
    grace_s = None if grace is None else int(duration("--grace", grace, GRACE_S_MAX))
    with open_rooms(data) as rooms, Line() as line:
        collector = Collector(rooms.catalog, rooms.tenants(), SystemClock(), show=_progress(line))
        if not dry_run and not yes:
            _ask(collector, rooms, line, grace_s, after_rebuild=after_rebuild)
        with asked_to_stop() as stopping:
            if dry_run:
                report = collector.look_ahead(stopping, grace_s=grace_s)
            else:
                report = collector.collect(stopping, grace_s=grace_s, after_rebuild=after_rebuild)
    if as_json:
        for tenant in report.tenants:
            click.echo(json.dumps({"dry_run": dry_run, **_row(tenant)}))
    else:
        _tell(report, dry_run=dry_run)
    if report.stopped:
        raise click.ClickException("interrupted: what was done stays done, and the next collection continues")
    if report.failed:
        sys.exit(1)


def _ask(collector: Collector, rooms: Rooms, line: Line, grace_s: int | None, *, after_rebuild: bool) -> None:
    """Ask before anything is ended early; do not ask if nothing is."""
    tenants = rooms.catalog.tenants.list_all()
    waiting = [tenant.name for tenant in tenants if tenant.gc_waits] if after_rebuild else []
    shortens = grace_s is not None and (
        grace_s < REAP_GRACE_S or any(grace_s < tenant.grace_s for tenant in tenants)
    )
    if not shortens and not waiting:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            "this ends grace periods early or collects after a rebuild: confirm with --yes, or run it on a terminal"
        )
    if shortens:
        ahead = collector.look_ahead(grace_s=grace_s)
        line.clear()
        say(
            f"This purges {counted(ahead.sum_of('backups_purged'), 'deleted backup')}, which then cannot be undeleted, and removes "
            f"{counted(ahead.sum_of('packs_reaped'), 'pack')} ({size(ahead.sum_of('bytes_freed'))}) now.",
            err=True,
        )
    for name in waiting:
        say(
            f"The catalog of the tenant {name} was rebuilt: what the rebuild did not find will be removed.",
            err=True,
        )
    click.confirm("Continue?", abort=True, err=True)


# --- the report


def _tell(report: CollectionReport, *, dry_run: bool) -> None:
    for tenant in report.tenants:
        lines = list(_lines(tenant, dry_run=dry_run))
        say(f"{tenant.tenant}: {lines[0]}" if len(lines) == 1 else f"{tenant.tenant}:")
        for line in lines if len(lines) > 1 else ():
            say(f"  {line}")


def _lines(tenant: TenantReport, *, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    t = tenant
    into = f"{t.packs_written} ({'about ' if dry_run else ''}{size(t.bytes_written)})"
    first = "" if t.purge_from_ns is None else f"; the first goes after {_minute(t.purge_from_ns)}"
    hidden = f"{counted(t.backups_hidden, 'deleted backup')} can still be undeleted{first}"
    entries = (
        (t.backups_purged, f"{counted(t.backups_purged, 'deleted backup')} {would}purged"),
        (t.backups_hidden, hidden),
        (
            t.packs_condemned,
            f"{counted(t.packs_condemned, 'pack')} without live data ({size(t.bytes_condemned)}) {would}condemned",
        ),
        (
            t.packs_compacted,
            f"{counted(t.packs_compacted, 'pack')} ({size(t.bytes_compacted)}) {would}compacted into {into}",
        ),
        (
            t.packs_left_over,
            f"{counted(t.packs_left_over, 'pack')} that a dead upload or collector began {would}removed",
        ),
        (t.bytes_freed, f"{size(t.bytes_freed)} {would}freed now"),
        (t.packs_waiting, f"{size(t.bytes_waiting)} {'would ' if dry_run else ''}become free {_when(t)}"),
        (
            t.orphans,
            f"{counted(t.orphans, 'object')} ({size(t.bytes_orphaned)}) unknown to the catalog: kept for now",
        ),
        (
            t.packs_absent,
            f"{counted(t.packs_absent, 'pack')} of the catalog cannot be found in the store: data is missing",
        ),
        (
            t.chunks_missing,
            f"{counted(t.chunks_missing, 'chunk')} that backups need cannot be found in any pack: data is missing",
        ),
        (t.failure, f"NOT COLLECTED: {t.failure}"),
    )
    return [line for there, line in entries if there] or ["nothing to collect"]


def _when(tenant: TenantReport) -> str:
    if tenant.free_from_ns is None or tenant.free_by_ns is None:
        return "later"
    first, last = _minute(tenant.free_from_ns), _minute(tenant.free_by_ns)
    return f"at the first collection after {first}" if first == last else f"between {first} and {last}"


def _minute(time_ns: int) -> str:
    return rfc3339(time_ns)[:16].replace("T", " ") + " UTC"


def _row(tenant: TenantReport) -> dict[str, object]:
    row: dict[str, object] = dataclasses.asdict(tenant)
    for name in ("free_from", "free_by", "purge_from"):
        time_ns = row.pop(f"{name}_ns")
        row[name] = rfc3339(time_ns) if isinstance(time_ns, int) else None
    return row


def _progress(line: Line) -> Show:
    def show(tenant: str, what: str, done: int, of: int) -> None:
        line.show(f"{tenant}: {what} {done:,}{f' of {of:,}' if of else ''} …")

    return show
