"""`staddle list`, `staddle diff` and `staddle info`: what there is, and how it differs."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from staddle import (
    Backup,
    BackupNotFoundError,
    Change,
    ChangeType,
    Dataset,
    Drill,
    PeerServer,
    RetentionTag,
)
from staddle._base import figures
from staddle.command import json_output, server_condition, text
from staddle.command.options import (
    Session,
    at_most,
    backup_argument,
    between,
    command,
    dataset_argument,
    kept_tag,
    limited,
    reading,
)
from staddle.command.output import Output
from staddle.command.tables import narrowed

if TYPE_CHECKING:
    from staddle import Client

LETTERS: Final = {
    ChangeType.ADDED: "+",
    ChangeType.REMOVED: "-",
    ChangeType.CONTENT: "~",
    ChangeType.METADATA: "m",
}
LETTER_WORDS: Final = {
    ChangeType.ADDED: "added",
    ChangeType.REMOVED: "removed",
    ChangeType.CONTENT: "changed",
    ChangeType.METADATA: "only in metadata",
}
NUMBERS: Final = frozenset({"NUMBER", "BACKUPS", "ENTRIES", "SIZE", "STORED"})
"""Columns that are flush right."""


# --- list


class _Asked(NamedTuple):
    """Which backups of a dataset are listed."""

    limit: int
    since: datetime.datetime | None
    until: datetime.datetime | None
    tags: dict[str, str | None]
    host: str
    held: bool

    def of(self, client: Client, dataset: str, *, deleted: bool = False) -> tuple[list[Backup], bool]:
        """The newest of them, and whether there are more."""
        found = client.backups(
            dataset,
            # Deleted ones are told from others here.
            limit=None if deleted or not self.limit else self.limit + 1,
            since=self.since,
            until=self.until,
            tags=self.tags,
            host=self.host,
            held=self.held,
            show_deleted=deleted,
        )
        if deleted:
            found = (each for each in found if each.delete_time is not None)
        return at_most(found, self.limit)


@command(
    "list",
    "List the datasets, or the backups of one.",
    "staddle list",
    "staddle list www",
    "staddle list www -n 5 --tag why=nightly --since 30d",
    "staddle list www --deleted",
)
@click.argument("dataset", required=False)
@click.option("--deleted", is_flag=True, help="Show the deleted backups of DATASET, which can be undeleted.")
@click.option(
    "--tag",
    "tags",
    metavar="K[=V]",
    multiple=True,
    callback=reading(kept_tag),
    help="Only backups with this tag, of any value without =V. Repeatable: all must agree.",
)
@click.option("--host", metavar="NAME", default="", help="Only backups from this host.")
@click.option("--held", is_flag=True, help="Only backups with a legal hold of their own.")
@between("backups that began")
@limited("newest")
def list_(
    session: Session,
    dataset: str | None,
    *,
    deleted: bool,
    tags: tuple[RetentionTag, ...],
    host: str,
    held: bool,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
) -> None:
    """List the datasets, or the backups of one, newest first; or those that are deleted and can be undeleted.

    On a terminal, a list of backups leaves out its least important columns if they do not fit; `--json` has everything.
    """
    asked = _Asked(limit, since, until, {tag.key: tag.value for tag in tags}, host, held)
    if dataset is None and (deleted or any(asked)):
        raise click.UsageError("All options that choose backups need a DATASET: `staddle list DATASET`.")
    if len(asked.tags) < len(tags):
        raise click.UsageError("A key of --tag is given twice, but a backup has each key once.")
    with session.connect() as client:
        if dataset is None:
            _list_datasets(session.output, client)
        elif deleted:
            _list_deleted(session.output, client, dataset, asked)
        else:
            _list_backups(session.output, client, dataset, asked)


def _list_datasets(output: Output, client: Client) -> None:
    datasets = list(client.datasets())
    if output.as_json:
        for dataset in datasets:
            output.record(json_output.of_dataset(dataset))
    elif datasets:
        heading = ("NAME", "BACKUPS", "NEWEST", "SIZE", "PROVEN", "FROM")
        rows = [heading, *map(_dataset_row, datasets)]
        _table(output, narrowed(rows, output.width, least=("FROM", "SIZE"), cut={"NAME", "FROM"}))
    backups = sum(dataset.backup_count for dataset in datasets)
    words = f"{figures.counted(len(datasets), 'dataset')}, {figures.counted(backups, 'backup')}."
    if not datasets:
        words = "No datasets yet. `staddle backup PATH --dataset NAME` makes the first."
    output.summary("list", {"dataset_count": len(datasets), "backup_count": backups}, words)


def _table(output: Output, rows: Sequence[Sequence[str]]) -> None:
    heading, *others = rows
    right = frozenset(column for column, name in enumerate(heading) if name in NUMBERS)
    output.table(others, heading=heading, right=right)


def _dataset_row(dataset: Dataset) -> tuple[str, ...]:
    newest = dataset.newest_backup
    return (
        text.escaped(dataset.name),
        f"{dataset.backup_count:,}",
        "none" if newest is None else text.minute(newest.begin_time),
        "" if newest is None else figures.size(newest.data_bytes),
        _proven(dataset.drill),
        text.origin(dataset.host, dataset.root),
    )


def _proven(drill: Drill | None) -> str:
    """Whether a backup of the dataset can be restored, as far as the server has tried."""
    if drill is not None and drill.fault:
        return "DAMAGED"
    if drill is None or drill.proven_time is None:
        return "not yet"
    return f"#{drill.proven_number} {text.minute(drill.proven_time)[:10]}"


def _list_backups(output: Output, client: Client, dataset: str, asked: _Asked) -> None:
    backups, more = asked.of(client, dataset)
    if output.as_json:
        for backup in backups:
            output.record(json_output.of_backup(backup))
    elif backups:
        digits = text.id_digits([backup.id for backup in backups])
        heading = ["ID", "NUMBER", "KIND", "BEGAN", "ENTRIES", "SIZE", "STORED", "CHANGES", "TAGS"]
        rows = [_backup_row(backup, digits) for backup in backups]
        protections = list(map(text.protection, backups))
        if any(protections):
            # Most backups have none, and the line is long enough without.
            heading.insert(-1, "PROTECTED")
            rows = [(*row[:-1], word, row[-1]) for row, word in zip(rows, protections, strict=True)]
        least = ("CHANGES", "ENTRIES", "KIND", "STORED", "NUMBER", "SIZE")
        all_rows = [tuple(heading), *rows]
        _table(output, narrowed(all_rows, output.width, least=least, cut={"PROTECTED", "TAGS"}))
    stored_bytes = sum(backup.stored_bytes for backup in backups)
    words = _summed_up(
        backups, "backup", dataset, f"added {figures.size(stored_bytes)} to the store", more=more
    )
    record = {"dataset": dataset, "backup_count": len(backups), "stored_bytes": stored_bytes, "more": more}
    output.summary("list", record, words)


def _summed_up(listed: list[Backup], what: str, dataset: str, which: str, *, more: bool) -> str:
    words = f"{figures.counted(len(listed), what)} of {text.escaped(dataset)}"
    words += f", which {which}" if listed else ""
    return f"The newest {words}; `-n 0` shows all." if more else f"{words}."


def _list_deleted(output: Output, client: Client, dataset: str, asked: _Asked) -> None:
    deleted, more = asked.of(client, dataset, deleted=True)
    if output.as_json:
        for backup in deleted:
            output.record(json_output.of_backup(backup))
    elif deleted:
        digits = text.id_digits([backup.id for backup in deleted])
        heading = ("ID", "NUMBER", "BEGAN", "SIZE", "DELETED", "UNDELETE UNTIL", "PROTECTED")
        rows = [heading, *(_deleted_row(backup, digits) for backup in deleted)]
        _table(output, narrowed(rows, output.width, least=("DELETED", "SIZE"), cut={"PROTECTED"}))
    words = _summed_up(deleted, "deleted backup", dataset, "`staddle undelete` brings back", more=more)
    record = {"dataset": dataset, "backup_count": len(deleted), "more": more}
    output.summary("list", record, words)


def _deleted_row(backup: Backup, digits: int) -> tuple[str, ...]:
    return (
        backup.id[:digits],
        str(backup.number),
        text.second(backup.begin_time),
        figures.size(backup.data_bytes),
        "" if backup.delete_time is None else text.minute(backup.delete_time),
        "" if backup.purge_time is None else text.minute(backup.purge_time),
        text.protection(backup),
    )


def _backup_row(backup: Backup, digits: int) -> tuple[str, ...]:
    return (
        backup.id[:digits],
        str(backup.number),
        text.kind(backup),
        text.second(backup.begin_time),
        f"{backup.entry_count:,}",
        figures.size(backup.data_bytes),
        figures.size(backup.stored_bytes),
        text.changes(backup.changes),
        text.tags(backup.tags),
    )


# --- diff


@command(
    "diff",
    "Show what changed between two backups.",
    "staddle diff www",
    "staddle diff www 3f9c latest",
)
@dataset_argument
@backup_argument("a")
@backup_argument("b")
def diff(session: Session, dataset: str, a: str | None, b: str | None) -> None:
    """Show what changed between two backups: the last two, A and the newest, or A and B.

    + is added, - removed, ~ changed, m changed in metadata only (mode, owner, times). A and B are ids, first digits of ids, or `latest`.
    """
    with session.connect() as client:
        older, newer = _two_backups(client, dataset, a, b)
        counts = dict.fromkeys(ChangeType, 0)
        changes = _counting(client.changes(dataset, older.id, newer.id), counts)
        output = session.output
        if output.as_json:
            for change in changes:
                output.record(json_output.of_change(change))
        else:
            output.table(map(_change_row, changes))
    record = {
        **{kind.value: count for kind, count in counts.items()},
        "from": json_output.of_backup(older),
        "to": json_output.of_backup(newer),
    }
    output.summary("diff", record, _differences(counts, older, newer))


def _two_backups(client: Client, dataset: str, a: str | None, b: str | None) -> tuple[Backup, Backup]:
    if a is not None:
        return client.get_backup(dataset, a), client.get_backup(dataset, b)
    newest = list(itertools.islice(client.backups(dataset), 2))
    if len(newest) < 2:
        raise BackupNotFoundError(
            f"The dataset {text.escaped(dataset)} has {figures.counted(len(newest), 'backup')}, and a comparison needs two.",
            facts={"dataset": dataset},
        )
    return newest[1], newest[0]


def _counting(changes: Iterator[Change], counts: dict[ChangeType, int]) -> Iterator[Change]:
    for change in changes:
        counts[change.type] += 1
        yield change


def _change_row(change: Change) -> tuple[str]:
    entry = change.after or change.before
    path = text.escaped(change.path_bytes) if entry is None else text.path_shown(entry)
    mark = text.UNCERTAIN if change.uncertain else ""
    if entry is not None and entry.incomplete:
        mark += text.INCOMPLETE
    return (f"{LETTERS[change.type]} {path}{mark}",)


def _differences(counts: dict[ChangeType, int], older: Backup, newer: Backup) -> str:
    parts = [f"{count:,} {LETTER_WORDS[kind]} ({LETTERS[kind]})" for kind, count in counts.items() if count]
    return f"{', '.join(parts) or 'No differences'}, from {text.which(older)} to {text.which(newer)}."


# --- info


@command(
    "info",
    "Show which server answers, and what your token may do.",
    "staddle info",
    "staddle info --server backup.example:7443 --ca ca.pem",
)
def info(session: Session) -> None:
    """Show which server answers, and what your token may do there."""
    with session.connect() as client:
        about = client.info()
    output = session.output
    if not output.as_json:
        chunker = about.chunker
        rows = [
            ("server", client.address),
            *(
                (("addresses", client.service.replace(",", ", ")),)
                if client.service != client.address
                else ()
            ),
            ("version", text.escaped(about.version)),
            *_peers(about.servers),
            ("tenant", text.escaped(about.tenant)),
            ("token", f"{text.escaped(about.principal)}, {text.escaped(about.role)}"),
            ("time", text.local(about.server_time)),
            *server_condition.rows(about.condition),
            (
                "chunks",
                f"{figures.size(chunker.min_bytes)} to {figures.size(chunker.max_bytes)}, about {figures.size(chunker.avg_bytes)}",
            ),
            *((name.replace("_", " "), _limit(name, value)) for name, value in about.limits.items()),
        ]
        output.table(rows)
        for warning in server_condition.warnings(about.condition):
            output.notice(f"warning: {warning}.")
    words = f"Connected to {client.address} as {text.escaped(about.principal)} ({text.escaped(about.role)} of {text.escaped(about.tenant)})."
    output.summary(
        "info",
        {"server": client.address, "addresses": client.service.split(","), **json_output.of_info(about)},
        words,
    )


def _peers(servers: tuple[PeerServer, ...]) -> list[tuple[str, str]]:
    """A row for each server of a service that has several."""
    if len(servers) < 2:
        return []
    rows = [f"{text.escaped(each.endpoint)} ({text.escaped(each.version)}), {each.state}" for each in servers]
    return list(zip(["servers", *[""] * (len(rows) - 1)], rows, strict=True))


def _limit(name: str, value: float) -> str:
    if "_bytes_" in name:
        return figures.size(int(value))
    return f"{value:,}" if isinstance(value, int) else text.seconds(value)
