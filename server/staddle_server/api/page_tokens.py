"""Page tokens: where a list continues, bound to the query that returned them."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TypeVar

import msgspec
from blake3 import blake3

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import PAGE_TOKEN_BYTES_MAX

T = TypeVar("T")

_TAG_BYTES = 16
_BOUND = msgspec.msgpack.Encoder(order="deterministic")
"""Equal queries are equal bytes in every process, which may iterate over the same set in another order."""


class PageTokens:
    """Creates and checks the page tokens of one tenant."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, query: tuple[object, ...], position: object) -> str:
        """Return the token to continue after `position` in the list that `query` names."""
        body = msgspec.msgpack.encode(position)
        return base64.urlsafe_b64encode(self._tag(query, body) + body).decode("ascii").rstrip("=")

    def read(self, query: tuple[object, ...], token: str, type_: type[T]) -> T:
        """Return the position in a token.

        Raises:
            BadRequest: BAD_PAGE_TOKEN, the token is not from this query.

        """
        try:
            if len(token) > PAGE_TOKEN_BYTES_MAX:
                raise ValueError("too long")
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            tag, body = data[:_TAG_BYTES], data[_TAG_BYTES:]
            if not hmac.compare_digest(tag, self._tag(query, body)):
                raise ValueError("not ours")
            return msgspec.msgpack.decode(body, type=type_)
        except (ValueError, binascii.Error, msgspec.MsgspecError) as e:
            raise BadRequest(
                "BAD_PAGE_TOKEN",
                "page_token: invalid for this query; repeat the query without it",
                field="page_token",
            ) from e

    def _tag(self, query: tuple[object, ...], body: bytes) -> bytes:
        bound = _BOUND.encode((query, body))
        return blake3(bound, key=self._key).digest(_TAG_BYTES)
