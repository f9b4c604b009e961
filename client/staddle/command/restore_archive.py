"""A restore to standard output, as an archive."""

import sys
from typing import Final, NamedTuple

import click

from staddle import DamageError, RestoreReport
from staddle._base import figures
from staddle._types.options import ArchiveFormat
from staddle.command import json_output, text
from staddle.command.exit_codes import DONE, INCOMPLETE, Interruption
from staddle.command.options import RESTORE_RETRY_S, Session, require_stdout
from staddle.command.problems import tell_problems
from staddle.command.progress import watched

STDOUT: Final = "-"


class Wanted(NamedTuple):
    """Which backup, and what of it. The fields are arguments of the library."""

    dataset: str
    paths: tuple[bytes, ...]
    backup: str | None
    at: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]


def write_archive(session: Session, wanted: Wanted, archive_format: ArchiveFormat) -> int:
    """Writes it; answers the exit code."""
    output = session.output
    require_stdout()
    if sys.stdout.isatty():
        raise click.UsageError(
            "An archive is not for a terminal: write `> FILE`, or pipe it to another program."
        )
    output.give_away_stdout()
    report = _written(session, wanted, archive_format)
    sys.stdout.flush()
    tell_problems(output, report.problems, report.warnings)
    record = {
        "format": archive_format,
        "backup": json_output.of_backup(report.backup),
        "complete": report.complete,
        "problem_count": len(report.problems),
        "warnings": list(report.warnings),
        "entries_written": report.entries_written,
        "data_bytes": report.data_bytes,
        "seconds": round(report.seconds, 3),
    }
    words = (
        f"Wrote {text.which(report.backup)} as {archive_format}: {figures.counted(report.entries_written, 'entry', 'entries')}, "
        f"{figures.size(report.data_bytes)}; {text.seconds(report.seconds)}"
    )
    if report.problems:
        words += (
            f"; {figures.counted(len(report.problems), 'path is', 'paths are')} not in it as in the backup"
        )
    output.summary("restore", record, words + ".")
    return DONE if report.complete else INCOMPLETE


def _written(session: Session, wanted: Wanted, archive_format: ArchiveFormat) -> RestoreReport:
    with session.connect() as client:
        try:
            with watched(session.output) as progress:
                return client.write_archive(
                    wanted.dataset,
                    sys.stdout.buffer,
                    format=archive_format,
                    backup=wanted.backup,
                    at=wanted.at,
                    paths=wanted.paths,
                    include=wanted.include,
                    exclude=wanted.exclude,
                    retry_s=session.budget_s(RESTORE_RETRY_S),
                    progress=progress,
                )
        except DamageError as error:
            if error.report is None:
                raise
            return error.report
        except KeyboardInterrupt:
            raise Interruption("Interrupted: the archive is not complete.", resumable=False) from None
