"""`staddle-server drill`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import click
from staddle._base.figures import counted, duration, size

from staddle_server.app.bootstrap import Rooms, open_rooms, tenant_named
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.signals import asked_to_stop
from staddle_server.base.errors import NotFound
from staddle_server.base.threads import Threads
from staddle_server.catalog import Backup
from staddle_server.cli.options import data_option, json_option
from staddle_server.cli.text import Line, say
from staddle_server.upkeep.integrity.drill import Drilled, Drilling
from staddle_server.upkeep.schedule import StoppedError

PAGE = 1000


@click.command()
@click.argument("datasets", metavar="[DATASET]...", nargs=-1)
@click.option("--tenant", metavar="NAME", help="Only this tenant; all tenants if omitted.")
@data_option
@json_option
def drill(*, datasets: tuple[str, ...], tenant: str | None, data: DataDirectory, as_json: bool) -> None:
    """Prove that the newest backup of each DATASET can be restored.

    Reads all of it as a restore does and compares every file with what was backed up, but writes nothing. Without
    DATASET: of all datasets. The server does the same in the background (--drill-period). Runs beside a server. Exit
    codes: 0: all can be restored whole; 1: something cannot; 2: no such dataset.
    """
    failed = done = 0
    stopped = False
    with (
        open_rooms(data) as rooms,
        Threads(min(8, os.cpu_count() or 1) + 1, thread_name_prefix="open") as opener,
    ):
        drills = Drilling(rooms.kept(), opener)
        with asked_to_stop() as stopping, Line() as line:
            for backup in _chosen(rooms, datasets, tenant):
                line.show(f"reading {backup.dataset} #{backup.number} ...")
                try:
                    drilled = drills.drill(backup, stopping)
                except StoppedError:
                    stopped = True
                    break
                line.clear()
                done += 1
                failed += bool(drilled.fault)
                click.echo(json.dumps(_object(drilled, rooms)) if as_json else _words(drilled))
    if failed:
        say(f"{counted(failed, 'dataset')} cannot be restored whole.", err=True)
    if stopped:
        say("Interrupted; the drills that ended are kept.", err=True)
        sys.exit(130)
    if failed:
        sys.exit(1)
    if not done and not as_json:
        click.echo("There is no backup yet.")


def _chosen(rooms: Rooms, datasets: tuple[str, ...], tenant: str | None) -> Iterator[Backup]:
    """Yield the newest backups, each as it is when its turn comes."""
    tenants = rooms.catalog.tenants.list_all() if tenant is None else [tenant_named(rooms, tenant)]
    if datasets:
        for name in datasets:
            found = [backup for each in tenants if (backup := _newest(rooms, each.id, name)) is not None]
            if not found:
                raise click.UsageError(f"No tenant has a backup of a dataset '{name}'.")
            yield from found
        return
    for each in tenants:
        after = ""
        while page := rooms.catalog.datasets.list_page(each.id, after, PAGE):
            for dataset in page:
                backup = _newest(rooms, each.id, dataset.name)
                if backup is not None:
                    yield backup
            after = page[-1].name


def _newest(rooms: Rooms, tenant: bytes, dataset: str) -> Backup | None:
    try:
        return rooms.catalog.drills.newest(tenant, dataset)
    except NotFound:
        return None


def _words(drilled: Drilled) -> str:
    which = f"{drilled.backup.dataset} #{drilled.backup.number}"
    if drilled.fault:
        return f"{which}: CANNOT BE RESTORED WHOLE: {drilled.fault}"
    proof = drilled.proof
    return (
        f"{which}: {counted(proof.entries, 'entry', 'entries')}, {size(proof.data_bytes)}, "
        f"all as backed up ({duration(round(drilled.took_s, 1))})"
    )


def _object(drilled: Drilled, rooms: Rooms) -> dict[str, object]:
    names = {each.id: each.name for each in rooms.catalog.tenants.list_all()}
    return {
        "tenant": names.get(drilled.backup.tenant, ""),
        "dataset": drilled.backup.dataset,
        "backup": drilled.backup.id.hex(),
        "number": drilled.backup.number,
        "entries": drilled.proof.entries,
        "data_bytes": drilled.proof.data_bytes,
        "faults": drilled.proof.faults,
        "fault": drilled.fault,
        "seconds": round(drilled.took_s, 3),
    }
