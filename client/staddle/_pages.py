"""Lists that a server sends page by page, followed only as long as they can end."""

from __future__ import annotations

from typing import Final

from staddle._errors import ProtocolError

EMPTY_PAGES_MAX: Final = 1_000
"""A page may be shorter than was asked for, but a list of nothing but empty ones does not end."""


class PageGuard:
    """Looks at each page of one list. Keeps one token, so that a list of any length costs nothing."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._kept = ""
        """An earlier token, renewed at the powers of two: every loop comes back to it (Brent's algorithm)."""
        self._count = 0
        self._empty = 0

    def check(self, token: str, item_count: int) -> None:
        """Takes the token of the next page, and what this one held. Raises ProtocolError for a list that does not end."""
        self._empty = 0 if item_count else self._empty + 1
        if self._empty > EMPTY_PAGES_MAX:
            raise ProtocolError(f"The server sent {self._empty} empty pages of {self._method} in a row.")
        if not token:
            return
        if token == self._kept:
            raise ProtocolError(
                f"The server's pages of {self._method} lead back to themselves: the list does not end."
            )
        self._count += 1
        if self._count & (self._count - 1) == 0:
            self._kept = token
