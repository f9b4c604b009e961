"""`staddle-server rebuild`."""

import json
import shlex
import time
from dataclasses import asdict

import click
from staddle._base.figures import counted

from staddle_server.app import run
from staddle_server.app.bootstrap import Rebuilt
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.disk_reserve import give_up_at_start
from staddle_server.app.owner import act_as_owner
from staddle_server.cli.options import settings_from, settings_options
from staddle_server.cli.text import Line, say
from staddle_server.upkeep.rebuild.run import RebuildReport


@click.command()
@settings_options(only=frozenset({"data", "store", "catalog"}))
@click.option("--replace", is_flag=True, help="Set an existing catalog aside, under a name with the time.")
@click.option("--dry-run", is_flag=True, help="Report what a rebuild would find, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rebuild(*, replace: bool, dry_run: bool, as_json: bool, **flags: str | None) -> None:
    """Rebuild the catalog of DIR from its store and master.key.

    No server may run on DIR. Exit codes: 0: everything in the store was used; 1: something was unusable and
    is listed, and everything else is in the catalog.
    """
    settings = settings_from(flags)
    act_as_owner(settings.data)
    directory = DataDirectory(settings.data, settings.store, settings.catalog)
    directory.require_rebuildable()
    if directory.catalog_place.is_there() and not (replace or dry_run):
        raise click.ClickException(
            f"{directory.catalog_place} exists. A rebuild is for a catalog that is lost or damaged: --replace sets this one "
            "aside first; --dry-run shows what a rebuild would find"
        )
    give_up_at_start(directory.path, directory.store)
    begun_s = time.monotonic()
    with directory.locked(), directory.store_locked(), Line() as line:
        if not dry_run:
            directory.catalog_place.require_unserved(directory.identity())
        directory.record_place()
        rebuilt = run.rebuild(
            directory, settings, lambda what, count: line.show(f"{count:,} {what} …"), dry_run=dry_run
        )
    seconds = time.monotonic() - begun_s
    if as_json:
        click.echo(json.dumps(_as_json(rebuilt, seconds)))
    else:
        say(f"Found in {directory.place}, in {seconds:.1f} s:")
        _say_found(rebuilt.report)
        _say_next(directory, rebuilt, dry_run=dry_run)
    if rebuilt.report.problem_count:
        raise SystemExit(1)


def _as_json(rebuilt: Rebuilt, seconds: float) -> dict[str, object]:
    report = asdict(rebuilt.report)
    problems = [{"what": each.what, "message": each.message} for each in rebuilt.report.problems]
    return {**report, "problems": problems, "seconds": round(seconds, 3), "aside": rebuilt.aside}


def _say_found(report: RebuildReport) -> None:
    say(f"tenants   {report.tenants:,}")
    say(f"datasets  {report.datasets:,}")
    say(f"backups   {report.backups:,}{_of_these(report)}")
    say(f"records   {report.records:,}")
    say(f"packs     {report.packs:,}, with {counted(report.chunks, 'chunk')}")
    for note in report.notes:
        say(f"Note: {note}.")
    if not report.problem_count:
        say("Everything in the store was used.")
        return
    say(f"{counted(report.problem_count, 'thing')} could not be used; everything else was:")
    for problem in report.problems:
        named = problem.what in problem.message
        say(f"  {problem.message}" if named else f"  {problem.what}: {problem.message}")
    if report.problem_count > len(report.problems):
        say(f"  … and {report.problem_count - len(report.problems):,} more")


def _of_these(report: RebuildReport) -> str:
    deleted = f"; {report.deleted:,} of them deleted, and can be undeleted" if report.deleted else ""
    return deleted + (f"; {report.purged:,} more are purged" if report.purged else "")


def _say_next(directory: DataDirectory, rebuilt: Rebuilt, *, dry_run: bool) -> None:
    if dry_run:
        say("This was a dry run: nothing was changed.")
        return
    say(f"Created {directory.catalog_place}.")
    if rebuilt.aside is not None:
        say(f"The previous catalog is now {rebuilt.aside}.")
    own = f"; the one in {directory.client_toml} is new already" if rebuilt.token else ""
    say(f"Tokens are gone: give every client a new one with `staddle-server token create`{own}.")
    say("Open uploads are gone: run those backups again; what they had stored is not sent again.")
    say("Deleted backups can be undeleted for their whole grace period, counted from now.")
    say(
        "Garbage collection waits for you: check first that every backup exists, then run `staddle-server gc --after-rebuild`."
    )
    click.echo(f"Next: staddle-server serve --data {shlex.quote(str(directory.path))}")
