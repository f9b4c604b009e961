"""Sessions: who is logged in, as a sealed cookie that any server of the same catalog reads.

A session names a token by its id, and ends with it. Nothing is stored, so people can log in while the catalog
takes no writes (docs/decisions/2026-11-30-sessions-of-the-dashboard.md).
"""

from __future__ import annotations

import binascii
import hmac
import secrets
from collections.abc import Callable
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from staddle_server.api.page_tokens import PageTokens
from staddle_server.base.clock import NS
from staddle_server.base.errors import BadRequest, Fault, PermissionDenied, Unauthenticated
from staddle_server.base.limits import SESSION_S
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Catalog, Principal
from staddle_server.tenancy.tenant import Tenants

NONCE_BYTES: Final = 16
SKEW_S: Final = 60.0
"""How far the clock of the server that opened a session may be ahead of this one's."""
COOKIE_CHARS_MAX: Final = 512
LOGIN: Final = "login"
SESSION: Final = "session"
_QUERY: Final = ("dashboard session",)
"""What no list of the service has as its query: a page token is never a session."""


class Login(NamedTuple):
    """Somebody who is logged in.

    Attributes:
        principal: As whom.
        form_key: What a form must contain to be from one of this session's pages.
        logouts: How often people had logged out with its token when it began.

    """

    principal: Principal
    form_key: str
    logouts: int


class Sessions:
    """Opens sessions and finds them again."""

    def __init__(self, catalog: Catalog, tenants: Tenants, now_ns: Callable[[], int]) -> None:
        self._catalog = catalog
        self._tenants = tenants
        self._now_ns = now_ns

    def open(self, principal: Principal, request: Request, response: Response) -> None:
        """Log a principal in: the browser gets a cookie.

        Raises:
            PermissionDenied: Its role reads no backups.
            Unauthenticated: Its token is gone.

        """
        if principal.role < TokenRole.READER:
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"This token has the role {principal.role.name.lower()}: it reads metrics, and no pages. "
                "Log in with a token that has the role reader, writer or admin",
                role="reader",
            )
        end_ns = self._now_ns() + int(SESSION_S * NS)
        logouts = self._catalog.tokens.logouts(principal.token)
        position = (principal.token, end_ns, logouts, secrets.token_bytes(NONCE_BYTES))
        value = f"{principal.tenant.hex()}.{self._tokens(principal.tenant).make(_QUERY, position)}"
        set_cookie(request, response, SESSION, value, int(SESSION_S))

    def find(self, request: Request) -> Login:
        """Return the session of a request.

        Raises:
            Unauthenticated: It has none, or the session is over, or its token.

        """
        value = request.cookies.get(cookie_name(request, SESSION), "")
        tenant_hex, _, sealed = value.partition(".")
        if not sealed or len(value) > COOKIE_CHARS_MAX:
            raise _none()
        try:
            tokens = self._tokens(bytes.fromhex(tenant_hex))
            token, end_ns, logouts, nonce = tokens.read(_QUERY, sealed, tuple[bytes, int, int, bytes])
        except (BadRequest, Fault, ValueError, binascii.Error):
            raise _none() from None
        now_ns = self._now_ns()
        # One that ends later than any that another server makes now comes from a wrong clock.
        if not now_ns < end_ns <= now_ns + int((SESSION_S + SKEW_S) * NS):
            raise _none()
        principal = self._catalog.tokens.of_session(token, logouts, now_ns)
        return Login(principal, tokens.make(("dashboard form", nonce), b""), logouts)

    def end(self, login: Login) -> None:
        """End a session wherever its cookie is, with all earlier ones of its token.

        Raises:
            StaddleError: The catalog takes no writes: only the browser's own cookie can go.

        """
        self._catalog.tokens.end_sessions(login.principal.token, login.logouts)

    def _tokens(self, tenant: bytes) -> PageTokens:
        return PageTokens(self._tenants.get(tenant).secrets.token_key)


def _none() -> Unauthenticated:
    return Unauthenticated("UNAUTHENTICATED", "You are not logged in")


def login_key(request: Request) -> str:
    """Return what the login form must contain: the value of a cookie that only this site's page sets."""
    return request.cookies.get(cookie_name(request, LOGIN), "")


def new_login_key() -> str:
    """Return the value of such a cookie."""
    return secrets.token_urlsafe(NONCE_BYTES)


def check_form(given: str, expected: str) -> None:
    """Check that a form was sent by one of the service's own pages. Raises PermissionDenied."""
    if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        raise PermissionDenied(
            "PERMISSION_DENIED",
            "This form is not from a page of this session: go back, reload the page, and try again",
            role="",
        )


def is_secure(request: Request) -> bool:
    """Return whether the browser's connection is encrypted, also if a proxy decrypts it."""
    return "https" in {request.url.scheme, request.headers.get("x-forwarded-proto", "")}


def cookie_name(request: Request, name: str) -> str:
    """Return the name of a cookie: with the prefix, no other host and no plain connection can set it."""
    return f"__Host-staddle-{name}" if is_secure(request) else f"staddle-{name}"


def has_cookie(request: Request, name: str) -> bool:
    """Return whether a request has a cookie of the service."""
    return cookie_name(request, name) in request.cookies


def set_cookie(request: Request, response: Response, name: str, value: str, age_s: int) -> None:
    """Set a cookie that no script and no other site's request has."""
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=age_s,
        httponly=True,
        samesite="strict",
        secure=is_secure(request),
    )


def drop_cookie(request: Request, response: Response, name: str) -> None:
    """Remove a cookie."""
    set_cookie(request, response, name, "", 0)
