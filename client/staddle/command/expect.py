"""`staddle expect`: how often a dataset must have a new backup."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

import click

from staddle import Expectation
from staddle._base import figures
from staddle.command import json_output, text
from staddle.command.options import Session, command, end_of, long_duration, reading
from staddle.command.output import Output

if TYPE_CHECKING:
    from staddle import Client

GRACE_PART: Final = 10
"""Without --grace, a backup may be later by this part of the period."""


@command(
    "expect",
    "Say how often a dataset must have a new backup.",
    "staddle expect www --every 24h --grace 2h",
    "staddle expect www --mute 2026-12-27",
    "staddle expect www --remove",
    "staddle expect",
)
@click.argument("dataset", required=False)
@click.option(
    "--every",
    metavar="DURATION",
    callback=reading(long_duration),
    help="Expect a new backup at least so often: 24h, 7d.",
)
@click.option(
    "--grace",
    metavar="DURATION",
    callback=reading(long_duration),
    help="How much later a backup may be: 2h. By default, a tenth of --every.",
)
@click.option(
    "--mute",
    metavar="UNTIL",
    callback=reading(end_of),
    help="Leave the dataset out of `staddle status` until then: a date or a time.",
)
@click.option("--unmute", is_flag=True, help="End --mute now.")
@click.option("--remove", is_flag=True, help="Expect nothing of the dataset any more.")
def expect(
    session: Session,
    dataset: str | None,
    *,
    every: datetime.timedelta | None,
    grace: datetime.timedelta | None,
    mute: datetime.datetime | None,
    unmute: bool,
    remove: bool,
) -> None:
    """Set or remove how often a dataset must have a new backup, or list what is expected.

    A dataset is late once --every and --grace have passed since its newest backup was committed; `staddle status` then names it. One that
    has no backup yet can be expected, too. What is not given stays as it is. Setting needs an admin token.
    """
    settings = (every, grace, mute)
    if dataset is None:
        if any(each is not None for each in settings) or unmute or remove:
            raise click.UsageError("DATASET is missing: name the dataset.")
        with session.connect() as client:
            _list(session.output, list(client.expectations()))
        return
    if remove and (unmute or any(each is not None for each in settings)):
        raise click.UsageError("--remove stands alone.")
    if mute is not None and unmute:
        raise click.UsageError("--mute and --unmute exclude each other.")
    with session.connect() as client:
        if remove:
            client.delete_expectation(dataset)
            session.output.acted("removal")
            words = f"Nothing is expected of {text.escaped(dataset)} any more."
            session.output.summary("expect", {"dataset": dataset, "removed": True}, words)
            return
        before = _present(client, dataset)
        if before is None and every is None:
            raise click.UsageError(
                f"Nothing is expected of {text.escaped(dataset)} yet: say how often, with --every 24h."
            )
        if before is None or unmute or any(each is not None for each in settings):
            made = _set(client, dataset, before, settings, unmute=unmute)
            session.output.acted("expectation")
        else:
            made = before
    session.output.summary("expect", json_output.of_expectation(made), _said(made))


def _present(client: Client, dataset: str) -> Expectation | None:
    return next((each for each in client.expectations() if each.dataset == dataset), None)


def _set(
    client: Client,
    dataset: str,
    before: Expectation | None,
    settings: tuple[datetime.timedelta | None, datetime.timedelta | None, datetime.datetime | None],
    *,
    unmute: bool,
) -> Expectation:
    every, grace, mute = settings
    if every is None:
        assert before is not None
        every = before.every
    if grace is None:
        grace = before.grace if before is not None else _usual_grace(every)
    if mute is None and before is not None and not unmute:
        mute = before.mute_until
    return client.set_expectation(dataset, every, grace=grace, mute_until=mute)


def _usual_grace(every: datetime.timedelta) -> datetime.timedelta:
    """A part of the period, in whole hours or minutes."""
    seconds = every.total_seconds() / GRACE_PART
    unit_s = 3600 if seconds >= 3600 else 60
    return datetime.timedelta(seconds=max(1, round(seconds / unit_s)) * unit_s)


def _said(made: Expectation) -> str:
    words = f"A backup of {text.escaped(made.dataset)} is expected every {text.length(made.every)}; late from {text.local(made.late_time)}"
    if made.mute_until is not None:
        words += f", muted until {text.local(made.mute_until)}"
    return words + "."


def _list(output: Output, expected: list[Expectation]) -> None:
    if output.as_json:
        for each in expected:
            output.record(json_output.of_expectation(each))
    elif expected:
        output.table(
            map(_row, expected), heading=("DATASET", "EVERY", "GRACE", "NEWEST", "LATE FROM", "MUTED")
        )
    words = f"{figures.counted(len(expected), 'dataset is', 'datasets are')} expected to have new backups."
    if not expected:
        words = "Nothing is expected yet. `staddle expect DATASET --every 24h` begins."
    output.summary("expect", {"expectation_count": len(expected)}, words)


def _row(expected: Expectation) -> tuple[str, ...]:
    return (
        text.escaped(expected.dataset),
        text.length(expected.every),
        text.length(expected.grace) if expected.grace else "0",
        "never" if expected.success_time is None else text.minute(expected.success_time),
        text.minute(expected.late_time),
        "" if expected.mute_until is None else text.minute(expected.mute_until),
    )
