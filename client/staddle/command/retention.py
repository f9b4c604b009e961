"""`staddle retention`: which backups of a dataset stay, what its policy would delete now, and doing that."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from staddle import AppliedRetention, Retention, RetentionPlan, RetentionPolicy, RetentionTag
from staddle._base import figures
from staddle.command import json_output, text
from staddle.command.exit_codes import DONE, FAILED
from staddle.command.options import (
    Session,
    command,
    confirmed,
    count,
    dataset_argument,
    kept_tag,
    long_duration,
    reading,
    require_somebody,
    yes_option,
)
from staddle.command.output import Output

if TYPE_CHECKING:
    from staddle import Client

_COUNTS: Final = ("hourly", "daily", "weekly", "monthly", "yearly")
P = Callable[..., Any]


@click.group(
    "retention",
    short_help="Show, set, plan or apply a retention policy.",
    help="Decide which backups of a dataset are kept, and which are deleted.\n\n\b\n"
    "  staddle retention set www --keep-last 3 --keep-daily 7 --keep-weekly 5\n"
    "  staddle retention plan www\n  staddle retention apply www",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def retention() -> None:
    """The group of what follows."""


# --- show


@command("show", "Show what keeps a dataset's backups.", "staddle retention show www")
@dataset_argument
def show(session: Session, dataset: str) -> None:
    """Show a dataset's policy, its minimum retention, and its legal hold."""
    with session.connect() as client:
        _show(session.output, dataset, client.get_retention(dataset))


def _show(output: Output, dataset: str, found: Retention) -> None:
    if not output.as_json:
        output.table(_rows(found))
    name = text.escaped(dataset)
    if found.policy is None:
        words = f"{name} has no policy: none of its backups is deleted automatically."
    else:
        words = f"{name} has a policy, which the server applies automatically; `staddle retention plan {name}` shows what it would delete now."
    output.summary("retention", {"dataset": dataset, **json_output.of_retention(found)}, words)


def _rows(found: Retention) -> list[tuple[str, str]]:
    rows = [] if found.policy is None else _policy_rows(found.policy)
    if found.minimum:
        rows.append(("minimum retention", f"{text.length(found.minimum)} after each commit"))
    if found.hold is not None:
        rows.append(("held", f"since {text.local(found.hold.time)}: {text.escaped(found.hold.reason)}"))
    return rows


def _policy_rows(policy: RetentionPolicy) -> list[tuple[str, str]]:
    rows = [("keep last", f"{policy.keep_last:,}")] if policy.keep_last else []
    if policy.keep_within:
        rows.append(("keep within", f"{text.length(policy.keep_within)} of the newest"))
    for name in _COUNTS:
        number = getattr(policy, f"keep_{name}")
        if number:
            rows.append((f"keep {name}", f"{number:,}"))
    if policy.keep_tags:
        rows.append(("keep tags", " ".join(map(_tag, policy.keep_tags))))
    return [*rows, ("time zone", text.escaped(policy.time_zone))]


def _tag(tag: RetentionTag) -> str:
    return text.escaped(tag.key if tag.value is None else f"{tag.key}={tag.value}")


# --- set


def _keep_options(function: P) -> P:
    """Adds an option for each rule, in the order in which they are shown."""
    options = [
        click.option("--keep-last", callback=reading(count), metavar="N", help="Keep the newest N."),
        click.option(
            "--keep-within",
            metavar="DURATION",
            callback=reading(long_duration),
            help="Keep those of so long before the newest one: 36h, 14d, 4w, 1y.",
        ),
        *(
            click.option(
                f"--keep-{name}",
                callback=reading(count),
                metavar="N",
                help=f"Keep the newest of each of the last N {unit} in which there is one.",
            )
            for name, unit in zip(_COUNTS, ("hours", "days", "weeks", "months", "years"), strict=True)
        ),
        click.option(
            "--keep-tag",
            "keep_tags",
            metavar="K[=V]",
            multiple=True,
            callback=reading(kept_tag),
            help="Keep those that have this tag; repeatable.",
        ),
        click.option(
            "--time-zone",
            metavar="ZONE",
            help="Begin hours and days in ZONE, such as Europe/Berlin; the default is UTC.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command(
    "set",
    "Set a dataset's policy, or its minimum retention.",
    "staddle retention set www --keep-last 3 --keep-daily 7 --keep-monthly 12",
    "staddle retention set www --keep-within 30d --time-zone Europe/Berlin",
    "staddle retention set www --minimum 30d",
    "staddle retention set www --none",
)
@dataset_argument
@_keep_options
@click.option("--none", is_flag=True, help="Remove the policy: nothing is deleted automatically any more.")
@click.option(
    "--minimum",
    metavar="DURATION",
    callback=reading(long_duration),
    help="Protect every backup for this long after its commit: 30d, 7y. 0 ends that for new backups; existing backups keep their time.",
)
def set_(
    session: Session, dataset: str, *, none: bool, minimum: datetime.timedelta | None, **rules: Any
) -> None:
    """Set the policy of a dataset: a backup is kept if any of the rules keeps it. The rules given here replace the whole policy.

    Without any rule the policy does not change; --none removes it. The newest backup, the newest undamaged one, and held or retained
    backups are always kept. --minimum is not a rule: it protects every younger backup from every caller.
    """
    given = {name: value for name, value in rules.items() if value}
    policy = RetentionPolicy(**given) if given else None
    if policy is not None and policy == RetentionPolicy(time_zone=policy.time_zone):
        raise click.UsageError("--time-zone alone keeps no backup: add a rule.")
    if none and policy is not None:
        raise click.UsageError("--none removes the policy: give no rules with it.")
    if none:
        policy = RetentionPolicy()
    if policy is None and minimum is None:
        raise click.UsageError("Give the rules of the policy, --none, or --minimum.")
    with session.connect() as client:
        found = client.set_retention(dataset, policy, minimum=minimum)
    session.output.acted("change")
    _show(session.output, dataset, found)


# --- plan


@command("plan", "Show what the policy would delete now, and why.", "staddle retention plan www")
@dataset_argument
@click.option(
    "--fast",
    is_flag=True,
    help="Do not compute how much space would be freed; for that, the server reads all backups of the tenant.",
)
def plan(session: Session, dataset: str, *, fast: bool) -> None:
    """Show for every backup of a dataset why it stays or goes, and how much space would be freed. Changes nothing."""
    with session.connect() as client:
        made = client.plan_retention(dataset, free_bytes=not fast)
    _show_plan(session.output, made)
    going = len(made.going)
    words = f"{_going(made)}{_freed(made)}."
    if going:
        words += f" `staddle retention apply {text.escaped(dataset)} --plan {made.token}` deletes just these."
    record = {
        "dataset": dataset,
        "delete_count": going,
        "keep_count": len(made.backups) - going,
        "plan_token": made.token,
        "free_bytes": made.free_bytes,
        "free_bytes_unknown": made.free_bytes_unknown or None,
    }
    session.output.summary("retention", record, words)


def _show_plan(output: Output, made: RetentionPlan) -> None:
    if output.as_json:
        for each in made.backups:
            output.record(json_output.of_planned(each))
        return
    digits = text.id_digits([each.backup.id for each in made.backups])
    rows = (
        (
            "goes" if each.goes else "stays",
            each.backup.id[:digits],
            str(each.backup.number),
            text.local(each.backup.begin_time),
            ", ".join(map(text.escaped, each.reasons)) + (" (damaged)" if each.damaged else ""),
        )
        for each in made.backups
    )
    if made.backups:
        output.table(rows, heading=("", "ID", "NUMBER", "BEGAN", "WHY"), right=frozenset({2}))


def _going(made: RetentionPlan) -> str:
    all_of_them = figures.counted(len(made.backups), "backup")
    going = len(made.going)
    return f"{going:,} of {all_of_them} of {text.escaped(made.dataset)} would be deleted"


def _freed(made: RetentionPlan) -> str:
    if made.free_bytes_unknown:
        return f"; how much space this frees is not known: {text.escaped(made.free_bytes_unknown)}"
    if made.free_bytes is None or not made.going:
        return ""
    return f", which frees {figures.size(made.free_bytes)} once their grace period is over"


# --- apply


@command(
    "apply",
    "Delete the backups that the policy does not keep.",
    "staddle retention apply www",
    "staddle retention apply www --yes",
)
@dataset_argument
@click.option(
    "--plan",
    "plan_token",
    metavar="TOKEN",
    help="Delete exactly what `staddle retention plan` showed, by the token in its last line; fail if anything has changed since.",
)
@yes_option
def apply(session: Session, dataset: str, *, plan_token: str | None, yes: bool) -> int:
    """Delete the backups that a dataset's policy does not keep. Shows the plan and asks first, or carries out an earlier plan (--plan).

    Deletes all of them or none: if a backup was added, deleted or held since the plan was made, the command fails. Deleted backups can
    be undeleted until their grace period is over.
    """
    if plan_token is None:
        require_somebody(session, yes=yes)
    with session.connect() as client:
        if plan_token is not None:
            return _applied(session.output, dataset, client.apply_retention(dataset, plan_token))
        return _plan_and_apply(session, client, dataset, yes=yes)


def _plan_and_apply(session: Session, client: Client, dataset: str, *, yes: bool) -> int:
    made = client.plan_retention(dataset, free_bytes=not yes)
    _show_plan(session.output, made)
    if not made.going:
        return _applied(session.output, dataset, AppliedRetention((), None))
    if not confirmed(session, f"{_going(made)}{_freed(made)}. Delete?", yes=yes):
        return FAILED
    return _applied(session.output, dataset, client.apply_retention(dataset, made.token))


def _applied(output: Output, dataset: str, applied: AppliedRetention) -> int:
    deleted = len(applied.deleted_backup_ids)
    output.acted("deletion" if deleted else "check")
    name = text.escaped(dataset)
    words = f"The policy of {name} keeps every backup: nothing was deleted."
    if applied.purge_time is not None:
        until = text.local(applied.purge_time)
        words = f"Deleted {figures.counted(deleted, 'backup')} of {name}. Until {until}, `staddle undelete` brings back what was deleted."
    record = {
        "dataset": dataset,
        "deleted_count": deleted,
        "deleted_backup_ids": list(applied.deleted_backup_ids),
        "purge_time": None if applied.purge_time is None else text.rfc3339_of(applied.purge_time),
    }
    output.summary("retention", record, words)
    return DONE


for _each in (show, set_, plan, apply):
    retention.add_command(_each)
