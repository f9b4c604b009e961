"""This table lists every use of the wall clock, with the effect of a jump. Everything else uses a monotonic clock.

A clock may jump by years, and back. A new use needs a row that says what a jump does.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[1]
SOURCES: Final = (TOP / "client" / "staddle", TOP / "server" / "staddle_server")
ASKS: Final = frozenset(
    {"now_ns", "time_ns", "time", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}
)
ASKED: Final = re.compile(rf"\.\s*(?:{'|'.join(ASKS)})\b")
"""What the source of a file that asks has in it: the others need no parsing."""
MODULES: Final = frozenset({"time", "datetime"})

USES: Final = {
    "a time that is written down, shown, or made into a name, and by which nothing is ended or deleted": """
        staddle._protocol.archive_zip _dos_time
        staddle_server.app.run _leave_mark_of_stop
        staddle_server.app.run _made
        staddle_server.app.run initialise
        staddle_server.app.run local_token
        staddle_server.app.run rebuild
        staddle_server.app.run run_server
        staddle_server.upkeep.gc.collector Collector._collect
        staddle_server.cli.tenants create
        staddle_server.cli.tenants set_
        staddle_server.cli.tokens _revoked_unless_shown
        staddle_server.cli.tokens revoke
        staddle_server.cli.notify _notice
        staddle_server.cli.notify list_
        staddle_server.cli.notify test
        staddle_server.cli.uploads uploads
        staddle_server.cli.parity _repair
        staddle_server.cli.replicate _print_states
        staddle_server.cli.lock _print
        staddle_server.demo _run
        staddle_server.base.logs TextFormatter.format
        staddle_server.base.logs _utc
        staddle_server.app.bootstrap _aside
        staddle_server.tenancy.clock_guard _utc
        staddle_server.upkeep.lifecycle.deletion Deletion.undelete
        staddle_server.upload.publisher Publisher.begin
        staddle_server.upkeep.integrity.check _TenantCheck._look_at_records
        staddle_server.tenancy.pack_check Examiner.read
        staddle_server.upkeep.lifecycle.holds Holds.hold_backup
        staddle_server.upkeep.lifecycle.holds Holds.hold_dataset
        staddle_server.upkeep.lifecycle.holds Holds.release_backup
        staddle_server.upkeep.lifecycle.holds Holds.release_dataset
        staddle_server.upkeep.integrity.repair _TenantRepair._from_parity
        staddle_server.upkeep.integrity.repair _TenantRepair._mend_records
        staddle_server.upkeep.integrity.repair _SavedPacks._open_writer
        staddle_server.upkeep.integrity.repair _SavedPacks._publish
        staddle_server.upkeep.integrity.repair _SavedPacks.take
        staddle_server.api.grpc.info InfoCalls.get_server_info
        staddle_server.app.service Service.start_http
    """,
    "the clock itself, and who decides whether it is believed": """
        staddle_server.base.clock SystemClock.now_ns
        staddle_server.tenancy.clock_guard ClockGuard.believed_ns
        staddle_server.tenancy.clock_guard ClockGuard.confirm
        staddle_server.tenancy.clock_guard ClockGuard.glance
        staddle_server.tenancy.clock_guard ClockGuard.look
    """,
    "a clock that gives no time while it is in doubt, or one that only foretells": """
        staddle_server.upkeep.gc.collector collect_tenant
        staddle_server.upkeep.replication.run _ReplicationRun._remove
        staddle_server.upkeep.gc.compaction _Copier._begin
        staddle_server.upkeep.gc.compaction _compact
        staddle_server.upkeep.gc.dry_run _forecast_bytes
        staddle_server.upkeep.gc.dry_run forecast
        staddle_server.upkeep.gc.mark condemn_unreached
        staddle_server.upkeep.gc.mark walk_mark
        staddle_server.upkeep.gc.sweep _say_forgotten
        staddle_server.upkeep.gc.sweep forget
        staddle_server.upkeep.gc.sweep purge
        staddle_server.upkeep.gc.sweep reap
        staddle_server.upkeep.gc.sweep sweep_orphans
        staddle_server.upkeep.gc.sweep tell_waiting
        staddle_server.upkeep.gc.tenant_run Turn.reaped_before_ns
    """,
    "a lease or a life, which counts from the later time while the clock is in doubt, and is shortened if the clock was ahead": """
        staddle_server.upload.publisher Publisher._publish
        staddle_server.upload.uploads Uploads._held
        staddle_server.upload.uploads Uploads.abort
        staddle_server.upload.uploads Uploads.begin
        staddle_server.upload.uploads Uploads.renew
        staddle_server.upload.uploads Uploads.resume
        staddle_server.upkeep.gc.collector Collector.collect
        staddle_server.upkeep.gc.collector _Leased.tick
        staddle_server.upkeep.held_lease HeldLease.renew
        staddle_server.upkeep.held_lease leased
        staddle_server.upkeep.integrity.repair _TenantRepair._turn
    """,
    "when something is due again, which it also is if its last time lies ahead": """
        staddle_server.upkeep.replication.run Replication.run
        staddle_server.upkeep.replication.run _ReplicationRun.run
        staddle_server.upkeep.schedule Schedule._is_due
        staddle_server.upkeep.schedule Schedule._look
        staddle_server.upkeep.schedule Schedule._run_here
        staddle_server.upkeep.integrity.drill Drilling._window
        staddle_server.upkeep.integrity.drill Drilling.drill
        staddle_server.upkeep.integrity.scrub Scrubber._bounds_ns
        staddle_server.upkeep.integrity.scrub Scrubber._read
        staddle_server.upkeep.integrity.scrub Scrubber._repair
        staddle_server.upkeep.integrity.scrub Scrubber._tried
    """,
    "when parity was switched on: packs that were begun before, by the clock, have none until `staddle-server parity` makes it": """
        staddle_server.upkeep.shared_setting SharedSetting.__init__
    """,
    "the time of an object store, which is refused at the start if it is another one": """
        staddle_server.store.backends.object_probe _check_lock
    """,
    "when a library asks for credentials again: a rotated secret is used later by as much as the clock was set back": """
        staddle_server.store.backends.credentials FileCredentials.__call__
    """,
    "whether servers live, each by its next heartbeat; with SQLite there is only this one": """
        staddle_server.catalog.servers Servers.beat
        staddle_server.catalog.servers Servers.list_all
        staddle_server.catalog.servers Servers.working
        staddle_server.catalog.servers Servers.writing_elsewhere
    """,
    "how long an object lock lasts and a second site is behind: a warning begins or ends early, and nothing else": """
        staddle_server.upkeep.store_watch StoreWatch.__init__
        staddle_server.upkeep.store_watch StoreWatch.look
    """,
    "the validity of certificates, which warns, or explains a refusal of the library": """
        staddle._transport.tls _certificate_refused
        staddle._transport.tls _has_expired
        staddle._transport.tls _warn_of_end
        staddle_server.cli.certificates cert
        staddle_server.app.health_probe _dates
        staddle_server.app.health_probe check
        staddle_server.app.tls _utc_now
    """,
    "a time that a caller means, or that limits what one may mean": """
        staddle._protocol.selectors _day
        staddle._protocol.selectors _jump_s
        staddle._protocol.selectors _local_now
        staddle._protocol.selectors _span_of_moment
        staddle.command.options _require_time_between
        staddle.command.text protection
        staddle_server.restore.browse Reads.pick
        staddle_server.upkeep.lifecycle.holds Holds.retain
    """,
    "when a file was read, beside its own times: in doubt it is read again": """
        staddle._backup.plan plan_backup
        staddle._fs.walk Walk
        staddle._backup.differences SourceDifferences._begun_ns
        staddle._backup.run backup_directory
    """,
    "files of the client's cache that were left unfinished, without which the next backup reads more": """
        staddle._backup.cache.store Cache._tidy
    """,
}
"""What a jump of the clock does, and where that is so."""


def places() -> Iterator[tuple[str, str]]:
    """Every function that reads the time of day, by module and name."""
    for source in SOURCES:
        for path in sorted(source.rglob("*.py")):
            if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
                module = ".".join(path.relative_to(source).with_suffix("").parts)
                text = path.read_text()
                for name in asking(ast.parse(text), "") if ASKED.search(text) else ():
                    yield f"{source.name}.{module}", name


def asking(node: ast.AST, inside: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from asking(child, f"{inside}.{child.name}".strip("."))
            continue
        if isinstance(child, ast.Attribute) and is_clock(child):
            yield inside
        yield from asking(child, inside)


def is_clock(found: ast.Attribute) -> bool:
    """`time.time_ns`, `datetime.datetime.now`, `clock.now_ns`: called here, or passed on to a caller."""
    if found.attr == "now_ns":
        return "clock" in ast.unparse(found.value).lower()
    return found.attr in ASKS and ast.unparse(found.value).split(".")[0] in MODULES


def test_every_use_of_the_wall_clock_is_listed_with_the_effect_of_a_jump() -> None:
    listed = [" ".join(line.split()) for lines in USES.values() for line in lines.split("\n") if line.strip()]
    assert len(listed) == len(set(listed))
    found = {f"{module} {name}" for module, name in places()}
    assert found - set(listed) == set(), "new uses: use a monotonic clock, or say here what a jump does"
    assert set(listed) - found == set(), "uses that no longer exist"
