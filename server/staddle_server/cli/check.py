"""`staddle-server check` and `staddle-server repair`."""

import json
import os
import secrets
import sys
from dataclasses import asdict
from random import Random
from typing import Final

import click
from staddle._base.figures import counted, percent, size

from staddle_server.app.bootstrap import Rooms, open_rooms, tenant_named
from staddle_server.app.data_directory import DataDirectory
from staddle_server.catalog import TenantRow
from staddle_server.cli.options import data_option, json_option
from staddle_server.cli.text import Line, say
from staddle_server.store.blobs import TEMPORARY
from staddle_server.upkeep.integrity.check import Check, CheckPlan, CheckProgress, Summary
from staddle_server.upkeep.integrity.findings import DAMAGE, HEALED, NOTE, Finding
from staddle_server.upkeep.integrity.repair import Repair, Repaired

PATHS_SHOWN: Final = 20
WORDS: Final = {DAMAGE: "DAMAGE", HEALED: "healed", NOTE: "note"}

_tenant_option = click.option("--tenant", metavar="NAME", help="Only this tenant; all tenants if omitted.")


def _percent(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    try:
        share = None if value is None else percent(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error
    if share == 0:
        raise click.BadParameter("0 reads nothing: omit the option")
    return share


@click.command()
@click.option(
    "--read-data",
    metavar="[=PERCENT]",
    is_flag=False,
    flag_value="100",
    callback=_percent,
    help="Also read every byte and check every digest; with =PERCENT, only of a random part of the packs, a different one each time.",
)
@click.option(
    "--seed",
    metavar="N",
    type=int,
    help="Choose the same packs as an earlier check with this number.",
)
@_tenant_option
@data_option
@json_option
def check(
    *, read_data: float | None, seed: int | None, tenant: str | None, data: DataDirectory, as_json: bool
) -> None:
    """Compare the catalog with the store.

    Reports what is missing or damaged, and marks it as damaged, so that the next backup of the same data
    heals it. Runs beside a server. Exit codes: 0: nothing is damaged; 1: something is.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    plan = CheckPlan(read=read_data is not None, share=(read_data or 100) / 100, random=Random(seed))  # noqa: S311  no secret
    with open_rooms(data, only_look=True) as rooms, Line() as line:
        printer = _FindingPrinter(line, as_json=as_json)
        checked = Check(rooms.kept(), plan, printer, _progress(line))
        summary = checked.run(_tenants(rooms, tenant), all_tenants=tenant is None)
        summary.temporary = _temporary_files(data)
    printer.end()
    if as_json:
        click.echo(json.dumps({"kind": "summary", **asdict(summary), "seed": seed}))
    else:
        _sum_up(summary, read_data, seed, is_older=printer.found_older_catalog)
    if summary.damage:
        sys.exit(1)


@click.command()
@click.option("--dry-run", is_flag=True, help="Report what would be done, and change nothing.")
@click.option(
    "--accept-lost-records",
    is_flag=True,
    help="Accept the loss of records that a rebuild did not find, and of their decisions. If a copy of them exists, restore that instead.",
)
@_tenant_option
@data_option
@json_option
def repair(
    *, dry_run: bool, accept_lost_records: bool, tenant: str | None, data: DataDirectory, as_json: bool
) -> None:
    """Repair what can be repaired.

    Restores keys, records, the index, and what is still readable in damaged packs; discards nothing. Covers
    known damage and what a look at each pack finds: run `check --read-data` first. Runs beside a server. Ends
    with a check, which lists what is left and how to repair it. Exit codes: 0: nothing is left; 1: something
    is.
    """
    with open_rooms(data) as rooms, Line() as line:
        printer = _FindingPrinter(line, as_json=as_json)
        repairing = Repair(
            rooms.kept(), printer, _progress(line), dry_run=dry_run, accept_lost_records=accept_lost_records
        )
        done = repairing.run(_tenants(rooms, tenant), all_tenants=tenant is None)
    printer.end()
    if as_json:
        click.echo(json.dumps({"kind": "summary", **asdict(done)}))
    else:
        _sum_up_repair(done, dry_run=dry_run)
    if done.damage:
        sys.exit(1)


def _tenants(rooms: Rooms, name: str | None) -> list[TenantRow]:
    return rooms.catalog.tenants.list_all() if name is None else [tenant_named(rooms, name)]


def _temporary_files(data: DataDirectory) -> int:
    try:
        return len(os.listdir(data.store / TEMPORARY))
    except FileNotFoundError:
        return 0


# --- what is printed


class _FindingPrinter:
    """Prints findings: all of them as JSON; in words, a limited number of damaged paths, as one pack may hold
    thousands.
    """

    def __init__(self, line: Line, *, as_json: bool) -> None:
        self._line = line
        self._as_json = as_json
        self._paths = 0
        self.found_older_catalog = False

    def __call__(self, finding: Finding) -> None:
        """Print the next finding."""
        self.found_older_catalog |= finding.kind == "older-catalog"
        if self._as_json:
            self._line.clear()
            click.echo(json.dumps(finding.as_json()))
            return
        if finding.kind == "path":
            self._paths += 1
            if self._paths > PATHS_SHOWN:
                return
        self._line.clear()
        tenant = f"tenant {finding.tenant}: " if finding.tenant not in {"", "default"} else ""
        say(f"{WORDS[finding.severity]}: {tenant}{finding.message}")

    def end(self) -> None:
        """Print the summary after the last one."""
        self._line.clear()
        if self._paths > PATHS_SHOWN:
            say(f"… and {counted(self._paths - PATHS_SHOWN, 'more path')}: --json lists all of them.")


def _sum_up(summary: Summary, read_data: float | None, seed: int, *, is_older: bool) -> None:
    read = "" if read_data is None else f", {summary.packs_read} of them read ({size(summary.bytes_read)})"
    say(
        f"Checked {counted(summary.packs, 'pack')}{read}, {counted(summary.records, 'record')} and "
        f"{counted(summary.backups, 'backup')} of {counted(summary.tenants, 'tenant')}."
    )
    if read_data is not None and read_data < 100:
        say(f"The same packs again: --read-data={read_data:g} --seed {seed}")
    if summary.orphans:
        say(
            f"{counted(summary.orphans, 'object')} ({size(summary.orphan_bytes)}) without an owner: being written now, "
            "or left by a crash, and the collector removes them."
        )
    if summary.temporary:
        say(
            f"{counted(summary.temporary, 'temporary file')} in store/tmp: being written, or left by a crash."
        )
    if summary.healed:
        say(f"{counted(summary.healed, 'damaged thing')} without consequence: nothing needs it any more.")
    if not summary.damage:
        unread = "" if read_data is not None else " (The data itself was not read: --read-data.)"
        say(f"No damage.{unread}")
        return
    paths = (
        f" {counted(summary.paths, 'path')} in backups cannot be restored completely."
        if summary.paths
        else ""
    )
    say(f"{counted(summary.damage, 'finding')} of damage.{paths}")
    if is_older:  # which every other command refuses
        say("Next: restore the newest copy of the catalog, or run `staddle-server rebuild --replace`.")
    else:
        say(
            "Next: check the disk (dmesg, SMART), then `staddle-server repair`, then back up the same data again."
        )


def _sum_up_repair(done: Repaired, *, dry_run: bool) -> None:
    would = "Would repair" if dry_run else "Repaired"
    say(
        f"{would}: {counted(done.parity_packs, 'pack')} from parity, {counted(done.chunks, 'chunk')} saved ({size(done.bytes)}), the index of {counted(done.index_packs, 'pack')}, "
        f"{counted(done.records, 'record')}, keys of {counted(done.keys, 'tenant')}, {counted(done.cleared, 'wrong mark')}."
    )
    if done.damage:
        say(
            f"{counted(done.damage, 'finding')} of damage left; {counted(done.paths, 'path')} in backups cannot be restored completely. "
            "Each line above says how to repair it. The next FULL backup that still has the lost data heals it."
        )
    else:
        say("No damage is left." if not dry_run else "Nothing would be left damaged.")


def _progress(line: Line) -> CheckProgress:
    def tell(doing: str, done: int, total: int) -> None:
        share = f" {min(100, 100 * done // total)} %" if total else ""
        line.show(f"{doing}: {size(done) if doing == 'reading' else f'{done:,}'}{share}")

    return tell
