"""`staddle delete`, `undelete`, `hold`, `release` and `retain`: what is deleted, what comes back, and what cannot be deleted."""

import datetime
from collections.abc import Callable
from typing import Any, Final

import click

from staddle import Backup
from staddle._base import figures
from staddle.command import json_output, text
from staddle.command.exit_codes import DONE, FAILED
from staddle.command.options import (
    Session,
    command,
    confirmed,
    dataset_argument,
    end_of,
    one_backup,
    reading,
    require_somebody,
    yes_option,
)

_Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
_ONE: Final[_Wrap] = click.argument("backup", callback=reading(one_backup))
_SOME: Final[_Wrap] = click.argument(
    "backups", metavar="BACKUP...", nargs=-1, required=True, callback=reading(one_backup)
)
_ONE_OR_ALL: Final[_Wrap] = click.argument("backup", required=False, callback=reading(one_backup))


# --- delete


@command(
    "delete",
    "Delete backups; they can be undeleted for a while.",
    "staddle delete www 3f9c0a12",
    "staddle delete www 3f9c0a12 77d1 --yes",
)
@dataset_argument
@_SOME
@yes_option
def delete(session: Session, dataset: str, backups: tuple[str, ...], *, yes: bool) -> int:
    """Delete BACKUPs of a dataset, named by their ids or the first digits of them.

    They are hidden at once, and nothing is lost yet: `staddle undelete` brings them back until their grace period is over (7 days,
    unless the server has another). Held and retained backups cannot be deleted.
    """
    require_somebody(session, yes=yes)
    with session.connect() as client:
        found = [client.get_backup(dataset, backup) for backup in dict.fromkeys(backups)]
        found = list({backup.id: backup for backup in found}.values())
        what = (
            text.which(found[0])
            if len(found) == 1
            else f"{figures.counted(len(found), 'backup')} of {text.escaped(dataset)}"
        )
        if not confirmed(session, f"Delete {what}?", yes=yes):
            return FAILED
        gone = []
        for backup in found:
            gone.append(client.delete_backup(dataset, backup.id))
            if session.output.as_json:
                session.output.record(json_output.of_backup(gone[-1]))
    session.output.acted("delete")
    if not session.output.as_json and len(gone) > 1:
        rows = ((text.short_id(each.id), str(each.number), text.local(each.begin_time)) for each in gone)
        session.output.table(rows, heading=("ID", "NUMBER", "BEGAN"), right=frozenset({1}))
    words = f"Deleted {text.which(gone[0]) if len(gone) == 1 else what}. Until {_until(gone)}, `staddle undelete` brings back what was deleted."
    session.output.summary("delete", {"dataset": dataset, "deleted_count": len(gone)}, words)
    return DONE


def _until(gone: list[Backup]) -> str:
    times = [backup.purge_time for backup in gone if backup.purge_time is not None]
    return text.local(min(times)) if times else "its grace period is over"


# --- undelete


@command(
    "undelete",
    "Bring a deleted backup back.",
    "staddle undelete www 3f9c0a12",
)
@dataset_argument
@_ONE
def undelete(session: Session, dataset: str, backup: str) -> None:
    """Bring a deleted BACKUP back, as it was. `staddle list DATASET --deleted` shows those that can be.

    If the dataset's policy does not keep it, the server deletes it again the next time it applies the policy: hold or retain it first.
    """
    with session.connect() as client:
        policy = client.get_retention(dataset).policy
        back = client.undelete_backup(dataset, backup)
    session.output.acted("undelete")
    if policy is not None and not text.protection(back):
        name, id_ = text.escaped(dataset), text.short_id(back.id)
        session.output.notice(
            f"the policy of {name} may delete it again: `staddle retention plan {name}` shows that; `staddle hold {name} {id_}` keeps it"
        )
    words = f"Undeleted {text.which(back)}."
    session.output.summary("undelete", {"backup": json_output.of_backup(back)}, words)


# --- holds


@command(
    "hold",
    "Place a legal hold, which prevents deletion until it is released.",
    "staddle hold www 3f9c0a12 --reason 'case 17'",
    "staddle hold www --reason audit",
)
@dataset_argument
@_ONE_OR_ALL
@click.option(
    "--reason", metavar="TEXT", required=True, help="Give the reason, which is shown with the backup."
)
def hold(session: Session, dataset: str, backup: str | None, *, reason: str) -> None:
    """Place a legal hold on a BACKUP, also a deleted one, or on a whole dataset with all its backups, also later ones.

    Until `staddle release`, neither a person nor a policy can delete what is held, and what was deleted before is not purged.
    """
    with session.connect() as client:
        placed = client.set_hold(dataset, backup, reason=reason)
    session.output.acted("hold")
    what = _what(dataset, backup)
    words = f"Held {what} since {text.local(placed.time)}: {text.escaped(placed.reason)}."
    record = {"dataset": dataset, "backup": backup, "hold": json_output.of_hold(placed)}
    session.output.summary("hold", record, words)


@command(
    "release",
    "Release a legal hold.",
    "staddle release www 3f9c0a12",
    "staddle release www",
)
@dataset_argument
@_ONE_OR_ALL
def release(session: Session, dataset: str, backup: str | None) -> None:
    """Release the hold of a BACKUP, or that of the dataset. Neither changes the other, nor a retention time."""
    with session.connect() as client:
        client.release_hold(dataset, backup)
    session.output.acted("release")
    words = f"Released: there is no hold on {_what(dataset, backup)}."
    session.output.summary("release", {"dataset": dataset, "backup": backup}, words)


def _what(dataset: str, backup: str | None) -> str:
    name = text.escaped(dataset)
    return f"the dataset {name}" if backup is None else f"backup {backup} of {name}"


# --- retain


@command(
    "retain",
    "Keep a backup from being deleted before a date.",
    "staddle retain www 3f9c0a12 --until 2031-12-31",
)
@dataset_argument
@_ONE
@click.option(
    "--until",
    metavar="TIME",
    required=True,
    callback=reading(end_of),
    help="Protect it until the end of this date, or until this time, such as 2031-12-31 or 2031-12-31T12:00:00Z.",
)
def retain(session: Session, dataset: str, backup: str, *, until: datetime.datetime) -> None:
    """Protect a BACKUP from deletion by anyone before a time. This cannot be undone: the time can only be moved later."""
    with session.connect() as client:
        kept = client.retain_backup(dataset, backup, until)
    session.output.acted("retain")
    when = "" if kept.retain_until_time is None else f" until {text.local(kept.retain_until_time)}"
    words = f"Retained {text.which(kept)}{when}."
    session.output.summary("retain", {"backup": json_output.of_backup(kept)}, words)
