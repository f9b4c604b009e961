"""`staddle-server parity`."""

import json
import sys
import time
from typing import Final

import click
from staddle._base.figures import counted, size

from staddle_server.app.bootstrap import Rooms, open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.base.clock import SystemClock
from staddle_server.base.limits import PARITY_PERCENT_MAX
from staddle_server.catalog import PackParity
from staddle_server.cli.options import data_option, json_option
from staddle_server.cli.text import Line, say
from staddle_server.tenancy.tenant import keys_damage
from staddle_server.upkeep.held_lease import leased
from staddle_server.upkeep.integrity.copies import CopiesReport, copy_new, mend_all
from staddle_server.upkeep.integrity.parity import (
    TASK,
    Outcome,
    ParityReport,
    RepairReport,
    forget_lost,
    make_all,
    remove_orphans,
    repair_pack,
)

RANGES_SHOWN: Final = 5


@click.command()
@data_option
@click.option(
    "--percent",
    type=click.IntRange(1, PARITY_PERCENT_MAX),
    default=10,
    show_default=True,
    help="How much of a pack can be lost and still be repaired. Parity takes about as much space.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Repair packs that are marked as damaged, records and keys, instead of creating parity.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Read all packs that have parity, and the parity itself, and create parity again where it does not match.",
)
@json_option
def parity(data: DataDirectory, percent: int, *, repair: bool, verify: bool, as_json: bool) -> None:
    """Create parity for packs, and copies of records and keys.

    Handles the packs that have no parity yet. Can be stopped at any time and run again. With --repair,
    repairs what is damaged. Exit code 1: something that was checked is still damaged.
    """
    if repair and verify:
        raise click.UsageError(
            "--repair and --verify cannot be combined: verify first, then repair what it finds"
        )
    with open_rooms(data) as rooms:
        if repair:
            whole = _repair(rooms, as_json=as_json)
        else:
            whole = _make(rooms, percent, verify=verify, as_json=as_json)
    if not whole:
        sys.exit(1)


# --- making


def _make(rooms: Rooms, percent: int, *, verify: bool, as_json: bool) -> bool:
    names = _names(rooms)
    tenants = rooms.tenants()
    progress = _ParityProgress(names, as_json=as_json)
    # The servers' task would make parity of the same packs, with another percentage.
    with leased(rooms.catalog.tasks.lease(TASK), SystemClock()) as held:
        lost = forget_lost(tenants, rooms.catalog, rooms.blobs, read=verify)
        report = make_all(tenants, rooms.catalog, percent, stopping=lambda: held.lost, tick=progress.tick)
        progress.end()
        orphans = sum(remove_orphans(rooms.blobs, rooms.catalog, tenant) for tenant in names)
    if not report.finished:
        raise click.ClickException("a server makes parity by now: what was done stays done; run this again")
    copies = copy_new(tenants, rooms.catalog, rooms.keys)
    if as_json:
        _print_damaged_json(report, names)
        _print_json(
            "parity",
            packs=report.packs,
            pack_bytes=report.pack_bytes,
            parity_bytes=report.parity_bytes,
            damaged=len(report.damaged),
            made_again=lost,
            removed=orphans,
            **_copies_fields(copies),
        )
    else:
        _say_made(rooms, report, percent, names)
        if lost:
            say(f"The parity of {counted(lost, 'pack')} was missing, truncated or damaged.")
        if orphans:
            say(
                f"Removed the parity of {counted(orphans, 'pack')} that {'are' if orphans > 1 else 'is'} gone."
            )
        _say_copies(copies)
    return not report.damaged and not copies.damaged


class _ParityProgress:
    """Prints the progress: each pack as JSON, or a line on the terminal that is overwritten."""

    def __init__(self, names: dict[bytes, str], *, as_json: bool) -> None:
        self._names = names
        self._as_json = as_json
        self._line = Line(on=not as_json)
        self._packs = self._bytes = 0

    def tick(self, pack: PackParity, parity_bytes: int) -> None:
        if self._as_json:
            _print_json(
                "made",
                tenant=_name(self._names, pack.tenant),
                pack=pack.pack.hex(),
                pack_bytes=pack.size_bytes,
                parity_bytes=parity_bytes,
            )
        self._packs += 1
        self._bytes += pack.size_bytes
        self._line.show(f"{counted(self._packs, 'pack')}, {size(self._bytes)} …")

    def end(self) -> None:
        self._line.clear()


def _say_made(rooms: Rooms, report: ParityReport, percent: int, names: dict[bytes, str]) -> None:
    if report.packs:
        say(
            f"Created parity of {percent} % for {counted(report.packs, 'pack')} ({size(report.pack_bytes)}): "
            f"{size(report.parity_bytes)}."
        )
    totals = rooms.catalog.packs.parity_totals()
    say(
        f"Packs with parity: {totals.with_parity} of {totals.packs}; {size(totals.parity_bytes)} for "
        f"{size(totals.pack_bytes)}."
    )
    for tenant, _, why in report.damaged:
        say(f"No parity, tenant {_name(names, tenant)}: {why}", err=True)
    without = totals.packs - totals.with_parity - len(report.damaged)
    if without > 0:
        say(
            f"{counted(without, 'pack')} {'were' if without > 1 else 'was'} marked as damaged earlier, or published meanwhile."
        )


def _print_damaged_json(report: ParityReport, names: dict[bytes, str]) -> None:
    for tenant, pack, why in report.damaged:
        _print_json("damaged", tenant=_name(names, tenant), pack=pack.hex(), reason=why)


# --- repairing


def _repair(rooms: Rooms, *, as_json: bool) -> bool:
    tenants = rooms.tenants()
    copies = mend_all(tenants, rooms.catalog, rooms.keys)
    outcomes: list[Outcome] = []
    for tenant, name in _names(rooms).items():
        packs = rooms.catalog.packs.damaged(tenant)
        if packs and keys_damage(rooms.keys, tenant) is not None:
            outcomes += [Outcome.BEYOND] * len(
                packs
            )  # the tenant's keys are, which is reported with the copies
            continue
        for pack in packs:
            report = repair_pack(tenants.get(tenant), rooms.catalog, pack, time.time_ns())
            outcomes.append(report.outcome)
            _print_repair_json(report, name) if as_json else _say_repair(report, name)
    repaired, sound = outcomes.count(Outcome.REPAIRED), outcomes.count(Outcome.SOUND)
    left = len(outcomes) - repaired - sound
    if as_json:
        _print_json("repair", repaired=repaired, sound=sound, not_repaired=left, **_copies_fields(copies))
    else:
        _say_copies(copies)
        if not outcomes:
            say("No pack is marked as damaged.")
        else:
            say(
                f"{counted(len(outcomes), 'pack')} marked as damaged: {repaired} repaired, {sound} found intact, "
                f"{left} not repaired."
            )
    return not left and not copies.damaged


def _say_repair(report: RepairReport, tenant: str) -> None:
    where = f"tenant {tenant}, pack {report.pack.hex()}"
    match report.outcome:
        case Outcome.SOUND:
            say(f"{where}: intact, its mark was removed")
        case Outcome.REPAIRED:
            say(f"{where}: repaired, {_restored(report)}")
        case _:
            say(f"{where}: NOT repaired: {report.found}", err=True)


def _restored(report: RepairReport) -> str:
    """Return in words what was done to the pack."""
    parts = [f"{counted(length, 'byte')} at {offset}" for offset, length in report.ranges[:RANGES_SHOWN]]
    if len(report.ranges) > RANGES_SHOWN:
        rest = report.ranges[RANGES_SHOWN:]
        parts.append(
            f"{counted(sum(each.length for each in rest), 'byte')} in {counted(len(rest), 'further place')}"
        )
    if report.found_bytes is None:
        parts.append("the whole object was missing")
    elif report.found_bytes > report.pack_bytes:
        parts.append(f"dropped {counted(report.found_bytes - report.pack_bytes, 'byte')} after its end")
    return "; ".join(parts)


def _print_repair_json(report: RepairReport, tenant: str) -> None:
    _print_json(
        report.outcome.value.replace(" ", "_"),
        tenant=tenant,
        pack=report.pack.hex(),
        ranges=[list(each) for each in report.ranges],
        found_bytes=report.found_bytes,
        pack_bytes=report.pack_bytes,
        reason=report.found,
    )


# --- words


def _names(rooms: Rooms) -> dict[bytes, str]:
    return {tenant.id: tenant.name for tenant in rooms.catalog.tenants.list_all()}


def _name(names: dict[bytes, str], tenant: bytes) -> str:
    """Return the tenant's name; its id if it was created a moment ago."""
    return names.get(tenant, tenant.hex())


def _say_copies(copies: CopiesReport) -> None:
    if copies.copied:
        say(f"Copied {counted(copies.copied, 'object')} of records and keys.")
    for name in copies.restored:
        say(f"{name}: restored from its copy")
    for why in copies.damaged:
        say(f"NOT restored: {why}; its copy is not intact either", err=True)


def _copies_fields(copies: CopiesReport) -> dict[str, object]:
    return {
        "copied": copies.copied,
        "restored": list(copies.restored),
        "damaged_small_objects": list(copies.damaged),
    }


def _print_json(what: str, **fields: object) -> None:
    click.echo(json.dumps({"what": what, **fields}))
