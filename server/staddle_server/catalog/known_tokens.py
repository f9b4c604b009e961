"""Tokens that were found valid a moment ago, so that most calls need no look-up in a distant database."""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from staddle_server.base.limits import TOKENS_REMEMBERED_MAX
from staddle_server.catalog.database import Database
from staddle_server.catalog.values import Principal

REMEMBERED_S: Final = 5.0
"""How long a token may count after another server revoked it, if that server's notice is lost."""


class FoundToken(NamedTuple):
    """A token that is not revoked, with its end."""

    principal: Principal
    expires_ns: int | None


class _Remembered(NamedTuple):
    found: FoundToken
    since_s: float


class KnownTokens:
    """Valid tokens by the hash of their text, for REMEMBERED_S at most. Thread-safe.

    Keeps nothing if the database is as near as memory. Invalid tokens are never kept, so they cannot fill
    it.
    """

    def __init__(self, database: Database, now_s: Callable[[], float]) -> None:
        self._database = database
        self._now_s = now_s
        self._lock = threading.Lock()
        self._kept: dict[bytes, _Remembered] = {}
        self._revocations = 0

    def look_up(self, key: bytes, find: Callable[[], FoundToken | None]) -> FoundToken | None:
        """Return the token that is kept under this key, or else what `find` returns."""
        if not self._database.is_distant:
            return find()
        with self._lock:
            self._hear()
            kept = self._kept.get(key)
        begun_s = self._now_s()
        if kept is not None and begun_s - kept.since_s < REMEMBERED_S:
            return kept.found
        self._database.listen()
        with self._lock:
            self._hear()
            before = self._revocations
        found = find()
        with self._lock:
            self._hear()
            self._kept.pop(key, None)
            # A revocation during the search may be one that `find` did not see.
            if found is not None and before == self._revocations:
                self._kept[key] = _Remembered(found, begun_s)
                if len(self._kept) > TOKENS_REMEMBERED_MAX:
                    del self._kept[next(iter(self._kept))]
        return found

    def forget(self, token: bytes) -> None:
        """Forget the token with this id: it was revoked."""
        with self._lock:
            self._forget(token)

    def _hear(self) -> None:
        """Forget what other servers revoked."""
        notices = self._database.heard()
        if notices is None:
            self._kept.clear()
            self._revocations += 1
            return
        for token in notices:
            self._forget(token)

    def _forget(self, token: bytes) -> None:
        self._revocations += 1
        for key in [key for key, kept in self._kept.items() if kept.found.principal.token == token]:
            del self._kept[key]
