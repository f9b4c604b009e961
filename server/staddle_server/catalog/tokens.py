"""Tokens: who may call, and as what. The catalog keeps only a hash of a token's text."""

import base64
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Row, Select, or_, select, update

from staddle_server.base import errors
from staddle_server.base.types import TokenRole
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, later, locking, notify, rows_in
from staddle_server.catalog.decisions import keep_pending
from staddle_server.catalog.known_tokens import FoundToken, KnownTokens
from staddle_server.catalog.rows import token_is_valid, unknown_token
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import ID_BYTES, batches, check_name
from staddle_server.catalog.values import PendingRecord, Principal, Token

_PREFIX: Final = "staddle_"
_SECRET_BYTES: Final = 32
_TOKEN_CHARS: Final = len(_PREFIX) + 43

_t = schema.tokens.c
_LOOKED_AT = (_t.tenant, _t.id, _t.name, _t.role, _t.expires_ns, _t.revoked_ns)


class Tokens:
    """The tokens of all tenants."""

    def __init__(
        self,
        database: Database,
        tenants: TenantRows,
        random: Callable[[int], bytes],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._random = random
        self._known = KnownTokens(database, monotonic_s)

    def create(
        self,
        tenant: bytes,
        name: str,
        role: TokenRole,
        now_ns: int,
        expires_ns: int | None = None,
        *,
        record: PendingRecord | None = None,
    ) -> str:
        """Create a token and return its text, which cannot be read again.

        Keeps `record` as pending in the same transaction. BAD_FIELD for an invalid name, or that of another
        unrevoked token of the tenant.
        """
        check_name("token", name)
        secret = base64.urlsafe_b64encode(self._random(_SECRET_BYTES)).rstrip(b"=").decode()
        token = _PREFIX + secret
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            made = connection.execute(
                insert_or_ignore(connection, schema.tokens),
                {
                    "id": self._random(ID_BYTES),
                    "tenant": tenant_row,
                    "name": name,
                    "role": role.value,
                    "hash": _hash(token),
                    "created_ns": now_ns,
                    "expires_ns": expires_ns,
                    "revoked_ns": None,
                },
            )
            if made.rowcount != 1:
                raise errors.BadRequest("BAD_FIELD", f"Token {name!r} exists already", field="name")
            keep_pending(connection, tenant_row, [record] if record else [])
        return token

    def list_all(self, tenant: bytes) -> list[Token]:
        """Return all tokens of the tenant, including revoked ones, in order of creation."""
        with self._database.read() as connection:
            query = _select().where(_t.tenant == self._tenants.row(connection, tenant))
            rows = connection.execute(query.order_by(_t.created_ns, _t.id))
            return [_token(tenant, row) for row in rows]

    def ending(self, after_ns: int, before_ns: int, most: int) -> list[tuple[str, Token]]:
        """Return the unrevoked tokens of all tenants that end between these times, with their tenant's name,
        the first to end first.
        """
        tenant = schema.tenants.c
        query = (
            _select()
            .add_columns(tenant.id.label("tenant_id"), tenant.name.label("tenant_name"))
            .join(schema.tenants, tenant.row == _t.tenant)
            .where(_t.revoked_ns.is_(None), _t.expires_ns > after_ns, _t.expires_ns <= before_ns)
            .order_by(_t.expires_ns)
            .limit(most)
        )
        with self._database.read() as connection:
            return [(row.tenant_name, _token(row.tenant_id, row)) for row in connection.execute(query)]

    def revoke(self, tenant: bytes, token: str, now_ns: int, *, record: PendingRecord | None = None) -> Token:
        """Revoke a token, given by name or hexadecimal id. Keeps `record` as pending in the same transaction.

        It is invalid for this object at once, for others on a distant database after REMEMBERED_S at the
        latest. BAD_FIELD if no such token is valid.
        """
        named = _t.name == token
        id_ = _from_hex(token)
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            query = _select().where(
                _t.tenant == tenant_row,
                _t.revoked_ns.is_(None),
                named if id_ is None else or_(named, _t.id == id_),
            )
            row = connection.execute(locking(query)).first()
            if row is None:
                raise errors.BadRequest("BAD_FIELD", f"No token {token[:80]!r} to revoke", field="token")
            connection.execute(update(schema.tokens).where(_t.id == row.id).values(revoked_ns=now_ns))
            notify(connection, row.id)
            keep_pending(connection, tenant_row, [record] if record else [])
            revoked = _token(tenant, connection.execute(_select().where(_t.id == row.id)).one())
        self._known.forget(revoked.id)
        return revoked

    def authenticate(self, token: str, now_ns: int) -> Principal:
        """Return the principal of this token. At most one indexed read, before every call.

        Unauthenticated if it is unknown, revoked or expired, without saying which.
        """
        if len(token) == _TOKEN_CHARS and token.startswith(_PREFIX):
            key = _hash(token)
            found = self._known.look_up(key, lambda: self._find(key))
            if found is not None and (found.expires_ns is None or now_ns < found.expires_ns):
                return found.principal
        raise unknown_token()

    def _find(self, key: bytes) -> FoundToken | None:
        with self._database.look_up() as connection:
            for row in rows_in(connection, _LOOKED_AT, {}, _t.hash, (key,)):
                tenant_row, id_, name, role, expires_ns, revoked_ns = row
                if revoked_ns is None:
                    tenant = self._tenants.id_of(connection, tenant_row)
                    return FoundToken(Principal(tenant, id_, name, TokenRole(role)), expires_ns)
        return None

    def note_used(self, uses: Mapping[bytes, int]) -> None:
        """Note when tokens, given by id, were used, if no later use is known."""
        with self._database.write() as connection:
            # In the order of their ids: another server that notes the same waits, and both end.
            for token, used_ns in sorted(uses.items()):
                earlier = or_(_t.used_ns.is_(None), _t.used_ns < used_ns)
                later(
                    connection, update(schema.tokens).where(_t.id == token, earlier).values(used_ns=used_ns)
                )

    def logouts(self, token: bytes) -> int:
        """Return how often sessions of the token with this id were ended. Unauthenticated if it is unknown."""
        with self._database.look_up() as connection:
            count = connection.execute(select(_t.logouts).where(_t.id == token)).scalar()
        if count is None:
            raise unknown_token()
        return int(count)

    def end_sessions(self, token: bytes, logouts: int) -> None:
        """End the sessions that the token with this id began when its count of logouts was this one."""
        with self._database.write() as connection:
            current = (_t.id == token, _t.logouts == logouts)
            later(connection, update(schema.tokens).where(*current).values(logouts=logouts + 1))

    def of_session(self, token: bytes, logouts: int, now_ns: int) -> Principal:
        """Return the principal of a session that the token with this id began at this count of logouts. Unauthenticated
        if the token is unknown, revoked or expired, or the session was ended.
        """
        query = select(*_LOOKED_AT).where(_t.id == token, token_is_valid(now_ns), _t.logouts == logouts)
        with self._database.look_up() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise unknown_token()
            tenant = self._tenants.id_of(connection, row.tenant)
        return Principal(tenant, row.id, row.name, TokenRole(row.role))

    def valid(self, tokens: Iterable[bytes], now_ns: int) -> set[bytes]:
        """Return which of these tokens, given by id, are neither revoked nor expired."""
        found: set[bytes] = set()
        with self._database.look_up() as connection:
            for some in batches(tokens):
                query = select(_t.id).where(_t.id.in_(some), token_is_valid(now_ns))
                found.update(connection.execute(query).scalars())
        return found


def _hash(token: str) -> bytes:
    # The secret has 256 random bits and cannot be guessed: a plain hash is enough.
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _from_hex(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if len(text) == 2 * ID_BYTES else None
    except ValueError:
        return None


def _select() -> Select[Any]:
    return select(_t.id, _t.name, _t.role, _t.created_ns, _t.expires_ns, _t.revoked_ns, _t.used_ns)


def _token(tenant: bytes, row: Row[Any]) -> Token:
    role = TokenRole(row.role)
    return Token(row.id, tenant, row.name, role, row.created_ns, row.expires_ns, row.revoked_ns, row.used_ns)
