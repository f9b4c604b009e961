"""Names, times and tags as text, and the checks that this room makes on its own."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, TypeVar

import msgspec

from staddle_server.base import errors, limits
from staddle_server.base.types import Authors

NS: Final = 1_000_000_000
ID_BYTES: Final = 16
BATCH: Final = 1000
"""Values bound to one statement; SQLite takes 32,766, and longer lists gain nothing."""

_NAME = re.compile(r"[a-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_T = TypeVar("_T")


def check_name(what: str, name: str) -> None:
    """Tenants and tokens are named with 1 to 64 of a-z, 0-9, dot, underscore, hyphen."""
    if _NAME.fullmatch(name) is None:
        raise errors.BadRequest(
            "BAD_FIELD", f"The name of a {what} is 1 to 64 of a-z 0-9 . _ -, not {name[:80]!r}", field="name"
        )


def check_dataset(name: str) -> None:
    """1 to 255 bytes of UTF-8 without control characters."""
    if not 1 <= len(name.encode("utf-8", "replace")) <= limits.DATASET_BYTES_MAX or _CONTROL.search(name):
        raise errors.BadRequest(
            "BAD_FIELD",
            f"A dataset is named with 1 to {limits.DATASET_BYTES_MAX} bytes of UTF-8 without control characters",
            field="dataset",
        )


def check_id(what: str, value: bytes) -> None:
    """Ids are made by our own rooms: another length is their fault, not the caller's."""
    if len(value) != ID_BYTES:
        raise ValueError(f"the id of a {what} has {ID_BYTES} bytes, not {len(value)}")


def rfc3339(time_ns: int) -> str:
    """A time for people, in UTC, cut to microseconds."""
    return (_EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat().replace("+00:00", "Z")


def pack_tags(tags: Mapping[str, str] | None) -> str:
    """One text for equal tags, in whatever order they came."""
    return json.dumps(dict(tags or {}), sort_keys=True, separators=(",", ":"))


def unpack_tags(text: str) -> dict[str, str]:
    """What `pack_tags` packed."""
    tags: dict[str, str] = json.loads(text)
    return tags


def pack_authors(authors: Authors) -> str:
    """Authors as a column has them: a JSON array of the fields."""
    return msgspec.json.encode(authors).decode()


def unpack_authors(text: str) -> Authors:
    """What `pack_authors` packed."""
    return msgspec.json.decode(text, type=Authors)


def batches(values: Iterable[_T], size: int = BATCH) -> Iterator[list[_T]]:
    """The values in lists of at most `size`."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
