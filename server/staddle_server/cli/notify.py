"""`staddle-server notify`."""

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from staddle._base.figures import age

from staddle_server.app.bootstrap import open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.notify_file import targets_of
from staddle_server.app.owner import act_as_owner
from staddle_server.app.settings import LISTEN_DEFAULT, OperatorError, Settings
from staddle_server.base.clock import NS
from staddle_server.catalog import Alarm, AlarmKey, Catalog, TargetState
from staddle_server.catalog.validation import rfc3339, utc_minute
from staddle_server.cli.options import json_option, print_rows, settings_from, settings_options
from staddle_server.cli.text import say
from staddle_server.upkeep.events.kinds import WARNING
from staddle_server.upkeep.notify.delivery import AnyTarget, try_each
from staddle_server.upkeep.notify.notice import TEST, Notice

_SETTINGS: Final = settings_options(only=frozenset({"data", "notify"}))


class NoTargetError(OperatorError):
    """There is no notification target, or none of that name."""


@click.group()
def notify() -> None:
    """List and test the notification targets."""


@notify.command("list")
@_SETTINGS
@json_option
def list_(*, as_json: bool, **flags: str | None) -> None:
    """List the targets, with what was last delivered to each, and what waits.

    Runs beside a server.
    """
    settings = _settings(flags)
    targets = targets_of(settings.data, settings.notify, os.environ)
    with _catalog(settings) as catalog:
        states = catalog.deliveries.states()
    known = [(target, states.get(target.name, TargetState(target.name))) for target in targets]
    now_ns = time.time_ns()
    rows: list[dict[str, Any]] = [
        _object(target, state) if as_json else _row(target, state, now_ns) for target, state in known
    ]
    print_rows(rows, as_json=as_json, empty=f"No target: {_hint(settings)}.")
    if not as_json:
        for target, state in known:
            if state.failing_ns is not None:
                say(f"Failing since {utc_minute(state.failing_ns)}: {target.name}, {state.error}.")


@notify.command("test")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_SETTINGS
def test(*, names: tuple[str, ...], **flags: str | None) -> None:
    """Send a test message to each target, or to those named, and print how each try ended.

    A ping service gets its regular ping. Exit codes: 0: all were reached; 1: one was not.
    """
    settings = _settings(flags)
    targets = {each.name: each for each in targets_of(settings.data, settings.notify, os.environ)}
    if not targets:
        raise NoTargetError(f"there is no notification target: {_hint(settings)}")
    if unknown := [name for name in names if name not in targets]:
        raise NoTargetError(f"no target is named {unknown[0]!r}: there are {', '.join(targets)}")
    with _catalog(settings) as catalog:
        events = catalog.events.open(time.time_ns()).events
    chosen = [targets[name] for name in dict.fromkeys(names)] or list(targets.values())
    failed = False
    for target, error in try_each(chosen, _notice(), events, time.time_ns()):
        failed = failed or bool(error)
        say(f"{target.name} ({target.kind}): {f'failed: {error}' if error else 'delivered'}")
    if failed:
        sys.exit(1)


def _settings(flags: dict[str, str | None]) -> Settings:
    settings = settings_from({**flags, "listen": LISTEN_DEFAULT})
    act_as_owner(settings.data)
    return settings


@contextmanager
def _catalog(settings: Settings) -> Iterator[Catalog]:
    with open_rooms(DataDirectory(settings.data), only_look=True) as rooms:
        yield rooms.catalog


def _notice() -> Notice:
    now_ns = time.time_ns()
    alarm = Alarm(
        AlarmKey(TEST, "", "", ""),
        WARNING,
        "This is a test message of Staddle: nothing is wrong.",
        "There is nothing to do.",
        now_ns,
    )
    return Notice(f"{secrets.token_hex(16)}.{TEST}", TEST, alarm, now_ns, None)


def _object(target: AnyTarget, state: TargetState) -> dict[str, object]:
    def told(time_ns: int | None) -> str | None:
        return None if time_ns is None else rfc3339(time_ns)

    return {
        "target": target.name,
        "kind": target.kind,
        "tried": told(state.tried_ns),
        "reached": told(state.reached_ns),
        "failing_since": told(state.failing_ns),
        "error": state.error,
        "waiting": state.pending,
        "given_up": state.given_up,
    }


def _row(target: AnyTarget, state: TargetState, now_ns: int) -> dict[str, str]:
    reached_ns = state.reached_ns
    works = "fails" if state.failing_ns is not None else "works" if reached_ns is not None else "not used yet"
    return {
        "target": target.name,
        "kind": target.kind,
        "state": works,
        "reached": "never" if reached_ns is None else f"{age(max(0, now_ns - reached_ns) / NS)} ago",
        "waiting": f"{state.pending:,}",
        "given up": f"{state.given_up:,}",
    }


def _hint(settings: Settings) -> str:
    return f"targets stand in {settings.notify or settings.data / 'notify.toml'}, see docs/monitoring.md"
