"""`staddle backup`: a directory or file, standard input, or what a command prints."""

import os
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import click

from staddle import BackupKind, BackupReport
from staddle._base import figures
from staddle._fs.chosen_paths import source_of
from staddle._fs.excludes import excludes_of, lines_of
from staddle._protocol.convert import path_fault
from staddle._types.options import SourceArguments
from staddle.command import json_output, text
from staddle.command.backup_dry_run import plan
from staddle.command.exit_codes import DONE, INCOMPLETE, Interruption
from staddle.command.expected_total import ExpectedTotal
from staddle.command.input_stream import CommandOutput, standard_input
from staddle.command.options import (
    BACKUP_RETRY_S,
    Session,
    command,
    pattern_file_option,
    percent,
    reading,
    size_bytes,
    tag,
)
from staddle.command.output import Output
from staddle.command.path_lists import STDIN, listed_paths
from staddle.command.problems import tell_notes, tell_problems
from staddle.command.progress import watched

STREAM_ROOT: Final = "-"
"""The root of a dataset whose one file is streamed: another one than any directory, so that neither replaces the other unasked."""
KINDS: Final = [kind.value for kind in BackupKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The options of the command, by their names."""

    dataset: str
    kind: str
    files_from: tuple[str, ...]
    files_from0: tuple[str, ...]
    exclude: tuple[str, ...]
    exclude_file: tuple[str, ...]
    exclude_if_present: tuple[str, ...]
    exclude_larger_than: int | None
    no_exclude_caches: bool
    max_removed: float | None
    one_file_system: bool
    tags: tuple[tuple[str, str], ...]
    name: str | None
    from_command: bool
    thin: bool
    new_root: bool
    dry_run: bool
    verbose: bool
    no_cache: bool
    cache_dir: str | None
    host: str | None

    def is_for_a_path(self) -> bool:
        """Whether something is given that only a backup of a PATH can have."""
        return bool(
            self.files_from
            or self.files_from0
            or self.exclude
            or self.exclude_file
            or self.exclude_if_present
            or self.exclude_larger_than is not None
            or self.no_exclude_caches
            or self.one_file_system
        )

    def of_source(self, paths: Sequence[str]) -> SourceArguments:
        """The same as arguments of the library, for PATHs. Reads the files of patterns and the lists of paths."""
        lists = self.files_from or self.files_from0
        return {
            "kind": self.kind,
            "paths": listed_paths(self.files_from, self.files_from0) if lists else None,
            "exclude": _patterns(paths, self.exclude_file, self.exclude),
            "exclude_caches": not self.no_exclude_caches,
            "exclude_if_present": self.exclude_if_present,
            "exclude_larger_than_bytes": self.exclude_larger_than,
            "one_file_system": self.one_file_system,
            "max_removed_percent": self.max_removed,
            "new_root": self.new_root,
            "host": self.host,
        }


@command(
    "backup",
    "Back up directories, files, or what a command prints.",
    "staddle backup /srv/www --dataset www --exclude '*.tmp'",
    "staddle backup --dataset db --name dump.sql --from-command -- pg_dump orders",
    "zcat old.sql.gz | staddle backup - --dataset orders --name dump.sql",
)
@click.argument("source", metavar="[PATH... | - | -- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--dataset",
    metavar="NAME",
    required=True,
    help="Add the backup to this dataset; the first backup creates it.",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="Choose what to read. full: everything; incremental: what changed since the newest backup; differential: what changed in content since the newest full one; auto: incremental if there is a backup, else full.",
)
@click.option(
    "--files-from",
    metavar="FILE",
    multiple=True,
    help="Back up only what FILE names, one path a line, relative to PATH; `-` is standard input. Repeatable.",
)
@click.option(
    "--files-from0",
    metavar="FILE",
    multiple=True,
    help="Read such a list with NUL behind each path, as `find -print0` writes it. Repeatable.",
)
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Leave out what matches, as in .gitignore. Repeatable.",
)
@pattern_file_option("exclude")
@click.option(
    "--exclude-if-present",
    metavar="FILE",
    multiple=True,
    help="Leave out the contents of directories that hold a file of this name. Repeatable.",
)
@click.option(
    "--exclude-larger-than",
    callback=reading(size_bytes),
    metavar="SIZE",
    help="Leave out files that are larger: 500k, 20M, 1G.",
)
@click.option(
    "--no-exclude-caches",
    is_flag=True,
    help="Also back up the contents of directories marked by CACHEDIR.TAG, and of data directories of a Staddle server.",
)
@click.option(
    "--max-removed",
    callback=reading(percent),
    metavar="PERCENT",
    help="Refuse a backup that has lost more than this of the entries of the one before. Of a stream, its bytes count. By default only an empty PATH or stream is refused; 100 allows everything.",
)
@click.option(
    "--one-file-system", is_flag=True, help="Do not enter file systems that are mounted below PATH."
)
@click.option(
    "--tag",
    "tags",
    callback=reading(tag),
    metavar="K=V",
    multiple=True,
    help="Attach a tag to the backup. Repeatable.",
)
@click.option("--name", metavar="NAME", help="Name the file in the backup, with `-` and --from-command.")
@click.option(
    "--from-command",
    is_flag=True,
    help="Back up what the command behind `--` prints, only if it exits 0.",
)
@click.option("--thin", is_flag=True, help="Send all bytes, and let the server find out which are new.")
@click.option(
    "--new-root",
    is_flag=True,
    help="Accept that the dataset comes from another host or path than before, and read everything.",
)
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Send and change nothing; show how much is new, changed, removed and unchanged.",
)
@click.option("-v", "--verbose", is_flag=True, help="Name every path that --dry-run would send or remove.")
@click.option(
    "--no-cache", is_flag=True, help="Ask the server what the base holds, instead of the local cache."
)
@click.option(
    "--cache-dir",
    metavar="DIR",
    help="Keep the local cache in DIR, instead of ~/.cache/staddle.",
)
@click.option(
    "--host",
    metavar="NAME",
    help="Record this host name instead of the machine's (a container has a new one each time).",
)
def backup(session: Session, /, source: tuple[str, ...], **options: Any) -> int:
    """Back up a directory or a file, standard input (`-`), or what a command prints (--from-command).

    Several PATHs become one backup, whose root is the directory that all of them lie in. A dataset has one root, which is the same each time.
    What cannot be read is named, and the rest is backed up: exit code 3.
    Running the same command again resumes an interrupted backup of a PATH.
    """
    given = Given(**options)
    if given.verbose and not given.dry_run:
        raise click.UsageError("-v names the paths of a --dry-run: add -n.")
    tags = _tags(given.tags)
    if given.from_command or source == (STDIN,):
        if given.is_for_a_path():
            raise click.UsageError("Exclusions and --files-from need a PATH.")
        if given.dry_run:
            raise click.UsageError("--dry-run is for a PATH: a stream cannot be looked at before it is sent.")
        program = _program(source) if given.from_command else None
        report = _backup_stream(session, program, _stored_name(given.name), given, tags)
        return _tell(session.output, report, all_sent=True)
    paths = _paths(source, given.name)
    arguments = given.of_source(paths)
    if given.dry_run:
        return plan(session, paths, given.dataset, arguments, verbose=given.verbose)
    report = _backup_path(session, paths, given, arguments, tags)
    return _tell(session.output, report, all_sent=given.thin)


# --- what was asked for


def _tags(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for key, value in pairs:
        if key in tags:
            raise click.UsageError(f"--tag {key}=… is given twice: give each key once.")
        tags[key] = value
    return tags


def _program(source: tuple[str, ...]) -> tuple[str, ...]:
    if not source:
        raise click.UsageError(
            "--from-command needs a command, behind `--`: --from-command -- pg_dump orders"
        )
    return source


def _stored_name(name: str | None) -> bytes:
    """The name that a stream's bytes get."""
    if name is None:
        raise click.UsageError("--name is missing: name the file in the backup.")
    raw = os.fsencode(name)
    fault = path_fault(raw) if raw else "it is empty"
    if fault:
        raise click.UsageError(f"invalid --name {text.escaped(raw)}: {fault}.")
    return raw


def _paths(source: tuple[str, ...], name: str | None) -> tuple[str, ...]:
    if not source:
        raise click.UsageError("PATH is missing: name the directory or file to back up.")
    if STDIN in source:
        raise click.UsageError("`-` is standard input, which is backed up alone. A file of that name is ./-")
    if name is not None:
        raise click.UsageError("--name is for `-` and --from-command; a PATH keeps its names.")
    if len(source) > 1 and not os.path.lexists(source[0]) and shutil.which(source[0]):
        raise click.UsageError(
            f"{text.escaped(source[0])} does not exist; for what a command prints, add --from-command."
        )
    return source


def _patterns(paths: Iterable[str], files: Iterable[str], given: Iterable[str]) -> tuple[str, ...]:
    """All patterns. Reads each file once, and reports a bad pattern before anything is sent."""
    try:
        patterns = (*(line for file in files for line in lines_of(file)), *given)
        excludes_of(patterns, root=source_of([os.fsencode(path) for path in paths]).root)
    except ValueError as error:
        raise click.UsageError(f"--exclude: {error}.") from error
    return patterns


# --- the work


def _backup_path(
    session: Session,
    paths: Sequence[str],
    given: Given,
    arguments: SourceArguments,
    tags: Mapping[str, str],
) -> BackupReport:
    with session.connect(cache_dir=given.cache_dir) as client:
        expected = ExpectedTotal(client, given.dataset, paths, arguments)
        try:
            with watched(session.output, expected.total) as progress:
                return client.backup(
                    paths,
                    dataset=given.dataset,
                    tags=tags,
                    thin=given.thin,
                    cache=not given.no_cache,
                    retry_s=session.budget_s(BACKUP_RETRY_S),
                    progress=progress,
                    **arguments,
                )
        except KeyboardInterrupt:
            raise Interruption(
                "Interrupted: no backup was made yet. What was sent is kept for some days; "
                "run the same command again to resume.",
                resumable=True,
            ) from None


def _backup_stream(
    session: Session,
    program: tuple[str, ...] | None,
    name: bytes,
    given: Given,
    tags: Mapping[str, str],
) -> BackupReport:
    with ExitStack() as stack:
        client = stack.enter_context(session.connect())
        host = socket.gethostname() if given.host is None else given.host
        with client.reporting(given.dataset, host=host):
            source = standard_input() if program is None else stack.enter_context(CommandOutput(program))
        try:
            return client.backup_stream(
                given.dataset,
                name=name,
                source=source,
                kind=given.kind,
                tags=tags,
                host=host,
                root=STREAM_ROOT,
                new_root=given.new_root,
                max_removed_percent=given.max_removed,
                retry_s=session.budget_s(BACKUP_RETRY_S),
                progress=stack.enter_context(watched(session.output)),
            )
        except KeyboardInterrupt:
            raise Interruption(
                "Interrupted: nothing was backed up. A stream cannot be resumed; run the command again.",
                resumable=False,
            ) from None


# --- what to say


def _tell(output: Output, report: BackupReport, *, all_sent: bool) -> int:
    """Names every problem, then sums up; answers the exit code. `all_sent`: only the server knows what of it was new."""
    output.acted("backup")
    tell_notes(output, report.notes)
    tell_problems(output, report.problems, report.warnings)
    backup = report.backup
    record = {
        **json_output.of_backup(backup),
        "complete": report.complete,
        "problem_count": len(report.problems),
        "note_count": len(report.notes),
        "warnings": list(report.warnings),
        "entries_unchanged": report.entries_unchanged,
        "read_bytes": report.read_bytes,
        "sent_bytes": report.sent_bytes,
        "reused_bytes": _reused_bytes(report),
        "seconds": round(report.seconds, 3),
        "resumed": report.resumed,
    }
    output.summary("backup", record, _summed_up(report, all_sent=all_sent))
    return DONE if report.complete else INCOMPLETE


def _reused_bytes(report: BackupReport) -> int:
    """Bytes of the backup that did not have to be sent."""
    return max(0, report.backup.data_bytes - report.sent_bytes)


def _summed_up(report: BackupReport, *, all_sent: bool) -> str:
    backup = report.backup
    sent = f"{figures.size(report.sent_bytes)} {'sent' if all_sent else 'new'}"
    head = (
        f"Backup {text.short_id(backup.id)} of {text.escaped(backup.dataset)} ({text.kind(backup)}, number {backup.number}): "
        f"{figures.counted(backup.entry_count, 'entry', 'entries')}, {figures.size(backup.data_bytes)}"
    )
    parts = [
        head,
        f"{sent}, {figures.size(_reused_bytes(report))} reused",
        f"stored {figures.size(backup.stored_bytes)}",
        text.changes(backup.changes) or "nothing changed",
        f"{text.seconds(report.seconds)}",
    ]
    words = "; ".join(parts)
    if backup.changes.metadata_kept:
        words += f"; {figures.counted(backup.changes.metadata_kept, 'entry keeps', 'entries keep')} the full one's metadata"
    if report.resumed:
        words += "; it resumed an earlier run"
    if report.problems:
        words += f"; {figures.counted(len(report.problems), 'path was', 'paths were')} not backed up whole"
    return words + "."
