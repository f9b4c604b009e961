"""`staddle-server token`."""

import contextlib
import secrets
import time
from collections.abc import Iterator

import click
from staddle._base.standard_streams import StdoutError, stdout_failure

from staddle_server.app.bootstrap import (
    DEFAULT_TENANT,
    Rooms,
    create_token,
    open_rooms,
    revoke_token,
    tenant_named,
)
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.settings import OperatorError, SettingsError
from staddle_server.base.clock import NS, SystemClock
from staddle_server.base.errors import StaddleError
from staddle_server.base.types import TokenRole
from staddle_server.catalog import TenantRow, Token
from staddle_server.catalog.validation import rfc3339, utc_minute
from staddle_server.cli.options import data_option, duration, json_option, print_rows
from staddle_server.tenancy.clock_guard import ClockGuard


@click.group()
def token() -> None:
    """Create, list and revoke tokens.

    A token identifies a caller and decides its tenant and role.
    """


_tenant_option = click.option(
    "--tenant",
    metavar="NAME",
    default=DEFAULT_TENANT,
    show_default=True,
    help="Tenant that the token belongs to.",
)


@token.command()
@click.option(
    "--role",
    required=True,
    type=click.Choice([role.name.lower() for role in TokenRole]),
    help="reader: browse and restore; writer: also back up; admin: also delete and undelete; monitor: read metrics.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name in lists and logs: 1 to 64 characters out of a-z 0-9 . _ -; generated if omitted.",
)
@click.option(
    "--expires",
    metavar="DURATION",
    help="How long the token is valid, such as 90d; without limit if omitted.",
)
@_tenant_option
@data_option
@json_option
def create(
    *, role: str, name: str | None, expires: str | None, tenant: str, data: DataDirectory, as_json: bool
) -> None:
    """Create a token and print it.

    The token is shown only once.
    """
    life_ns = None if expires is None else _life_ns(expires)
    name = name or f"{role}-{secrets.token_hex(3)}"
    with open_rooms(data) as rooms:
        now_ns = _believed_ns(rooms)
        expires_ns = None if life_ns is None else now_ns + life_ns
        owner = tenant_named(rooms, tenant)
        text = create_token(rooms, owner, name, TokenRole[role.upper()], now_ns, expires_ns=expires_ns)
        with _revoked_unless_shown(rooms, owner, name):
            if as_json:
                row = {"token": text, "name": name, "role": role, "tenant": tenant}
                print_rows([row], as_json=True, empty="")
            else:
                click.echo(text)
            if (failure := stdout_failure()) is not None:
                raise failure
    if not as_json:
        with contextlib.suppress(OSError):
            words = f"This is the token {name} ({role} of {tenant}). Keep it: it is shown only once."
            click.echo(words, err=True)


def _believed_ns(rooms: Rooms) -> int:
    """Return the time by which the server judges whether tokens have expired."""
    return ClockGuard(rooms.catalog, SystemClock()).look().believed_ns


@contextlib.contextmanager
def _revoked_unless_shown(rooms: Rooms, tenant: TenantRow, name: str) -> Iterator[None]:
    """Revoke the token if the body, which shows it, fails.

    Raises OperatorError if that could not be written.
    """
    try:
        yield
    except BaseException as error:
        try:
            revoke_token(rooms, tenant, name, time.time_ns())
            outcome = f"the token {name} was not shown, and is revoked again"
        except StaddleError as e:
            outcome = (
                f"the token {name} was not shown, and could not be revoked ({e.message}): "
                f"`staddle-server token revoke {name} --tenant {tenant.name}`"
            )
        if not isinstance(error, OSError):
            raise
        raise OperatorError(f"{StdoutError(error.errno, error.strerror)}; {outcome}") from error


@token.command("list")
@_tenant_option
@data_option
@json_option
def list_(tenant: str, data: DataDirectory, as_json: bool) -> None:
    """List the tokens of a tenant, without their secrets.

    When each was last used is known to within minutes. --json has their ids, too.
    """
    with open_rooms(data) as rooms:
        now_ns = _believed_ns(rooms)
        found = rooms.catalog.tokens.list_all(tenant_named(rooms, tenant).id)
    rows = [_object(each, now_ns) if as_json else _row(each, now_ns) for each in found]
    print_rows(rows, as_json=as_json, empty=f"The tenant {tenant} has no tokens.")


def _object(token: Token, now_ns: int) -> dict[str, str]:
    return {
        "name": token.name,
        "role": token.role.name.lower(),
        "state": _state(token, now_ns),
        "id": token.id.hex(),
        "created": rfc3339(token.created_ns),
        "expires": "" if token.expires_ns is None else rfc3339(token.expires_ns),
        "used": "" if token.used_ns is None else rfc3339(token.used_ns),
    }


def _row(token: Token, now_ns: int) -> dict[str, str]:
    """Return the same for people: days, and the last use to the minute."""
    shown = _object(token, now_ns)
    shown["created"] = shown["created"][:10]
    shown["expires"] = shown["expires"][:10] or "never"
    shown["used"] = "-" if token.used_ns is None else utc_minute(token.used_ns)
    del shown["id"]
    return shown


@token.command()
@click.argument("token", metavar="NAME|ID")
@_tenant_option
@data_option
def revoke(token: str, tenant: str, data: DataDirectory) -> None:
    """Revoke a token, by its name or id.

    The server refuses the next call with it.
    """
    with open_rooms(data) as rooms:
        ended = revoke_token(rooms, tenant_named(rooms, tenant), token, time.time_ns())
    click.echo(f"Revoked the token {ended.name} of {tenant}.")


def _state(token: Token, now_ns: int) -> str:
    if token.revoked_ns is not None:
        return "revoked"
    return "expired" if token.expires_ns is not None and token.expires_ns <= now_ns else "good"


def _life_ns(text: str) -> int:
    """Return how long a token is valid. Raises SettingsError."""
    seconds = duration("--expires", text)
    if seconds <= 0:
        raise SettingsError(f"--expires is {text!r}: the token would never be valid")
    return int(seconds * NS)
