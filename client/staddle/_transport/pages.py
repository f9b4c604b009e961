"""Lists that a server sends page by page, followed only as long as they can end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from staddle._base.figures import counted, size
from staddle._errors import ProtocolError, named
from staddle._protocol.convert import path_of, sort_key, time_ns_of
from staddle.v1 import resources_pb2 as pb

if TYPE_CHECKING:
    from staddle._transport.retry import Retry

EMPTY_PAGES_MAX: Final = 1_000
"""A page may be shorter than was asked for, but a list of nothing but empty ones does not end."""
PAGES_MAX: Final = 1_000_000
KEPT_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of all pages of a list that is kept whole: a list of entries is not."""


def _changed_path(change: Any) -> bytes:
    return sort_key(path_of(change.after if change.HasField("after") else change.before))


ORDERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "ListUploads": lambda upload: upload.id,
    "ListBackups": lambda backup: -backup.number,
    "ListEntries": lambda entry: sort_key(path_of(entry)),
    "ListChanges": _changed_path,
    "PlanRetention": lambda planned: -planned.backup.number,
    "ListRuns": lambda run: (-time_ns_of(run.begin_time), -int(run.id, 16)),
}
"""A value that rises from one item of a list to the next. Datasets come in the catalog's order."""
STREAMED: Final = frozenset({"ListEntries", "ListChanges"})


class Caller(Protocol):
    """Makes unary calls to one server."""

    @property
    def address(self) -> str:
        """The server's address, for messages."""

    def call(self, method: str, request: Any, *, retry: Retry | None = None) -> Any:
        """The answer to one request. Raises StaddleError."""


class PageGuard:
    """Looks at each page of one list. Keeps one token and one item's place, so that a list of any length costs nothing."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._order = ORDERS.get(method)
        self._last: Any = None
        self._kept = ""
        """An earlier token, renewed at the powers of two: every loop comes back to it (Brent's algorithm)."""
        self._count = 0
        self._empty = 0
        self._bytes = 0

    def _ends(self, item: Any) -> tuple[Any, Any]:
        """The places of the first and last of what an item stands for: columns for many entries, all else for itself."""
        if isinstance(item, pb.EntryColumns):
            return sort_key(item.paths.partition(b"\0")[0]), sort_key(item.paths.rpartition(b"\0")[2])
        assert self._order is not None
        place = self._order(item)
        return place, place

    def check(self, token: str, items: Sequence[Any], size_bytes: int) -> None:
        """Takes a page: its items, its size, and the token of the next one. Raises ProtocolError for a list out of order, or without end."""
        self._empty = 0 if items else self._empty + 1
        self._bytes += size_bytes
        if self._empty > EMPTY_PAGES_MAX:
            raise ProtocolError(f"The server sent {self._empty} empty pages of {self._method} in a row.")
        if self._method not in STREAMED and self._bytes > KEPT_BYTES_MAX:
            raise ProtocolError(
                f"The server's pages of {self._method} hold more than {size(KEPT_BYTES_MAX)}."
            )
        for first, last in () if self._order is None else map(self._ends, items):
            if self._last is not None and first <= self._last:
                raise ProtocolError(
                    f"The server's list of {self._method} is out of order, or has an item twice."
                )
            self._last = last
        if not token:
            return
        if token == self._kept:
            raise ProtocolError(
                f"The server's pages of {self._method} lead back to themselves: the list does not end."
            )
        self._count += 1
        if self._count > PAGES_MAX:
            raise ProtocolError(
                f"The server sent {counted(self._count, 'page')} of {self._method}: the list does not end."
            )
        if self._count & (self._count - 1) == 0:
            self._kept = token


def pages_of(
    calls: Caller, method: str, request: Any, *fields: str, retry: Retry | None = None
) -> Iterator[Any]:
    """The answers of a call that lists, one for each page, whose items are in `fields`.

    Raises what the call fails with, and ProtocolError, which names the server, for a list that is out of order or does not end.
    """
    guard = PageGuard(method)
    while True:
        page = calls.call(method, request, retry=retry)
        items = [item for field in fields for item in getattr(page, field)]
        with named(calls.address):
            guard.check(page.next_page_token, items, page.ByteSize())
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
