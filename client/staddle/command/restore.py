"""`staddle restore`."""

from dataclasses import asdict
from typing import cast, get_args

import click

from staddle import DamageError, EntryCounts, ProblemKind, RestoreReport
from staddle._base import figures
from staddle._types.options import ArchiveFormat, Overwrite
from staddle.command import json_output, text
from staddle.command.exit_codes import DONE, FAILED, INCOMPLETE, Interruption
from staddle.command.options import (
    RESTORE_RETRY_S,
    Session,
    command,
    confirmed,
    dataset_argument,
    picking,
    reading,
    require_somebody,
    selecting,
    stored_path,
    yes_option,
)
from staddle.command.output import Output
from staddle.command.problems import tell_problems
from staddle.command.progress import watched
from staddle.command.restore_archive import STDOUT, Wanted, write_archive


@command(
    "restore",
    "Restore a backup, or some paths of it.",
    "staddle restore www --target /tmp/www",
    "staddle restore www --target /tmp/www --at 2026-05-01 etc/nginx",
    "staddle restore www --format tar etc/nginx | tar -tv",
)
@dataset_argument
@click.argument("paths", metavar="[PATH]...", nargs=-1, callback=reading(stored_path))
@click.option(
    "--target",
    metavar="DIR",
    help="Restore to DIR, which is created if it does not exist; `-` writes an archive to standard output.",
)
@click.option(
    "--format",
    "archive",
    type=click.Choice(get_args(ArchiveFormat)),
    help="Write an archive to standard output, without --target. The default of `--target -` is tar.",
)
@picking
@selecting
@click.option(
    "--overwrite",
    type=click.Choice(get_args(Overwrite)),
    default="if-changed",
    show_default=True,
    help="Choose what to do with files that exist: keep them, replace what differs, or replace everything.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Compare existing files by content, not by size and time.",
)
@click.option(
    "--delete",
    is_flag=True,
    help="Delete what the backup does not have from the directories that are restored, at the end. Asks first.",
)
@yes_option
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Write nothing, and show what would be written. With --verify, name what differs from the backup; exit code 3 if anything does.",
)
def restore(
    session: Session,
    dataset: str,
    paths: tuple[bytes, ...],
    *,
    target: str | None,
    archive: str | None,
    backup: str | None,
    at: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    overwrite: str,
    verify: bool,
    delete: bool,
    yes: bool,
    dry_run: bool,
) -> int:
    """Restore a backup, or PATHs of it with all below them, under a directory, or as an archive to standard output.

    Without --backup and --at it is the newest one. PATHs are relative to the backup's root, exactly as `staddle ls` shows them; if one is
    not there, nothing is written. With --include, only what matches one of the patterns is restored, and the directories above it. What is damaged or cannot be written is named, and the rest is restored: exit code 3.
    """
    if b"" in paths:
        raise click.UsageError("PATH is empty. To restore everything, leave it out.")
    if archive is not None or target == STDOUT:
        _refuse_for_archive(target)
        wanted = Wanted(dataset, paths, backup, at, include, exclude)
        return write_archive(session, wanted, cast("ArchiveFormat", archive or "tar"))
    if target is None:
        raise click.UsageError(
            "--target is missing: name a directory, or `-` for an archive to standard output."
        )
    if yes and not delete:
        raise click.UsageError("--yes is for --delete: nothing else is asked.")
    if delete and not dry_run:
        require_somebody(session, yes=yes)
    report = _restored(
        session,
        dataset,
        paths,
        target=target,
        backup=backup,
        at=at,
        include=include,
        exclude=exclude,
        overwrite=cast("Overwrite", overwrite),
        verify=verify,
        delete=delete,
        yes=yes,
        dry_run=dry_run,
    )
    if report is None:
        return FAILED
    if not dry_run:
        session.output.acted("restore")
    tell_problems(session.output, report.problems, report.warnings)
    if dry_run:
        _tell_deleted(session.output, report)
    _sum_up(session.output, report, dry_run=dry_run, verify=verify)
    return DONE if report.complete else INCOMPLETE


def _refuse_for_archive(target: str | None) -> None:
    if target not in {None, STDOUT}:
        raise click.UsageError("--format writes to standard output: leave --target out, and write `> FILE`.")
    context = click.get_current_context()
    for name in ("overwrite", "verify", "delete", "yes", "dry_run"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} is for a --target that is a directory.")


def _restored(
    session: Session,
    dataset: str,
    paths: tuple[bytes, ...],
    *,
    target: str,
    backup: str | None,
    at: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    overwrite: Overwrite,
    verify: bool,
    delete: bool,
    yes: bool,
    dry_run: bool,
) -> RestoreReport | None:
    """Restores; None if the user was asked and declined."""

    def confirm(count: int) -> None:
        where = text.escaped(target)
        with session.output.asking():
            if not confirmed(
                session,
                f"Delete {figures.counted(count, 'path')} in {where} that the backup does not have?",
                yes=yes,
            ):
                raise _DeclinedError

    with session.connect() as client:
        try:
            with watched(session.output) as progress:
                return client.restore(
                    dataset,
                    target,
                    backup=backup,
                    at=at,
                    paths=paths,
                    include=include,
                    exclude=exclude,
                    overwrite=overwrite,
                    verify=verify,
                    delete=delete,
                    confirm_delete=confirm,
                    dry_run=dry_run,
                    retry_s=session.budget_s(RESTORE_RETRY_S),
                    progress=progress,
                )
        except _DeclinedError:
            return None
        except DamageError as error:
            if error.report is None:
                raise
            return error.report
        except KeyboardInterrupt:
            raise Interruption(
                "Interrupted: the restore is incomplete. Run the same command again; it fetches only what is missing.",
                resumable=True,
            ) from None


def _kinds(counts: EntryCounts) -> str:
    """Counts in words: 2 directories, 1 file; or nothing."""
    parts = (
        (counts.directories, "directory", "directories"),
        (counts.files, "file", "files"),
        (counts.symlinks, "symbolic link", "symbolic links"),
        (counts.others, "special file", "special files"),
    )
    return ", ".join(figures.counted(*part) for part in parts if part[0]) or "nothing"


class _DeclinedError(Exception):
    """Nothing shall be deleted, and so nothing is restored."""


def _tell_deleted(output: Output, report: RestoreReport) -> None:
    """Names what would be deleted."""
    if output.as_json:
        for path in report.deleted_paths:
            output.record({"delete": True, **json_output.name("path", path)})
        return
    output.table((f"- {text.escaped(path)}",) for path in report.deleted_paths)
    if report.entries_deleted > len(report.deleted_paths):
        output.notice(
            f"{figures.counted(report.entries_deleted - len(report.deleted_paths), 'more path')} would be deleted"
        )


def _sum_up(output: Output, report: RestoreReport, *, dry_run: bool, verify: bool) -> None:
    record = {
        "dry_run": dry_run,
        "backup": json_output.of_backup(report.backup),
        **json_output.name("target", report.target),
        "complete": report.complete,
        "problem_count": len(report.problems),
        "warnings": list(report.warnings),
        "entries_written": report.entries_written,
        "entries_unchanged": report.entries_unchanged,
        "entries_deleted": report.entries_deleted,
        "data_bytes": report.data_bytes,
        **({"made": asdict(report.made), "replaced": asdict(report.replaced)} if dry_run else {}),
        "seconds": round(report.seconds, 3),
    }
    target = text.escaped(report.target)
    entries = figures.counted(report.entries_written, "entry", "entries")
    if dry_run and verify:
        words = f"Compared {text.which(report.backup)} with {target}: {entries} not as in the backup; {report.entries_unchanged:,} the same"
    elif dry_run:
        words = (
            f"Would restore {text.which(report.backup)} to {target}: {_kinds(report.made)} to make, "
            f"{_kinds(report.replaced)} to replace, {figures.size(report.data_bytes)} to fetch; {report.entries_unchanged:,} already there"
        )
    else:
        words = (
            f"Restored {text.which(report.backup)} to {target}: {entries} written, {figures.size(report.data_bytes)}; "
            f"{report.entries_unchanged:,} already there"
        )
    if report.entries_deleted:
        words += f"; {report.entries_deleted:,} {'to delete' if dry_run else 'deleted'}"
    words += f"; {text.seconds(report.seconds)}"
    kept = sum(problem.kind is ProblemKind.NOT_DELETED for problem in report.problems)
    if kept:
        words += f"; {kept:,} not deleted"
    if len(report.problems) > kept and not dry_run:
        words += f"; {figures.counted(len(report.problems) - kept, 'path is', 'paths are')} not restored"
    output.summary("restore", record, words + ".")
