"""`staddle uploads`: backups that have begun and have not ended."""

from __future__ import annotations

import click

from staddle import OpenUpload
from staddle._base import figures
from staddle.command import text
from staddle.command.exit_codes import FAILED
from staddle.command.options import Session, command, confirmed, require_somebody, yes_option


@command(
    "uploads",
    "List open uploads, or abort some.",
    "staddle uploads",
    "staddle uploads www",
    "staddle uploads --abort 3f9c0a12",
)
@click.argument("dataset", required=False)
@click.option(
    "--abort",
    metavar="ID",
    multiple=True,
    help="Abort the upload with this id, or with these first digits. Repeatable.",
)
@yes_option
def uploads(session: Session, dataset: str | None, abort: tuple[str, ...], *, yes: bool) -> int | None:
    """List the open uploads of all datasets, or of one: backups that run, and interrupted ones that can be resumed.

    With --abort, the server refuses the writers of these uploads from then on, and the next collections free their space.
    Needs an admin token.
    """
    if abort:
        require_somebody(session, yes=yes)
    with session.connect() as client:
        listed = list(client.uploads(dataset or ""))
        if not abort:
            _list(session, listed)
            return None
        found = [_picked(listed, prefix) for prefix in dict.fromkeys(abort)]
        what = ", ".join(f"{text.short_id(each.id)} of {text.escaped(each.dataset)}" for each in found)
        if not confirmed(session, f"Abort {what}?", yes=yes):
            return FAILED
        for each in found:
            client.abort_upload(each)
            session.output.record(_record(each))
    session.output.acted("abort")
    session.output.summary("uploads", {"aborted_count": len(found)}, f"Aborted {what}.")
    return None


def _picked(listed: list[OpenUpload], prefix: str) -> OpenUpload:
    found = [each for each in listed if prefix and each.id.startswith(prefix.lower())]
    if len(found) != 1:
        many = "more than one open upload has" if found else "no open upload has"
        raise click.UsageError(
            f"--abort {prefix!r}: {many} an id that begins so; `staddle uploads` lists them."
        )
    return found[0]


def _list(session: Session, listed: list[OpenUpload]) -> None:
    if session.output.as_json:
        for each in listed:
            session.output.record(_record(each))
    elif listed:
        heading = ("ID", "DATASET", "BY", "BEGAN", "ENTRIES", "SIZE", "UNTIL", "LAST FAILURE")
        session.output.table(map(_row, listed), heading=heading, right=frozenset({4, 5}))
    words = f"{figures.counted(len(listed), 'open upload')}." if listed else "No open uploads."
    session.output.summary("uploads", {"upload_count": len(listed)}, words)


def _row(upload: OpenUpload) -> tuple[str, ...]:
    return (
        text.short_id(upload.id),
        text.escaped(upload.dataset),
        text.escaped(upload.principal),
        text.local(upload.begin_time),
        f"{upload.durable_entries:,}",
        figures.size(upload.durable_bytes),
        text.local(upload.expire_time),
        text.escaped(upload.last_failure),
    )


def _record(upload: OpenUpload) -> dict[str, object]:
    return {
        "id": upload.id,
        "dataset": upload.dataset,
        "principal": upload.principal,
        "host": upload.host,
        "root": upload.root,
        "begin_time": text.rfc3339_of(upload.begin_time),
        "lease_expire_time": text.rfc3339_of(upload.lease_expire_time),
        "expire_time": text.rfc3339_of(upload.expire_time),
        "durable_entries": upload.durable_entries,
        "durable_bytes": upload.durable_bytes,
        "last_failure": upload.last_failure,
    }
