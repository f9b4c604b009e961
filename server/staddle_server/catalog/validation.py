"""Names, times and tags as text, and the catalog's own checks."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, TypeVar

import msgspec

from staddle_server.base import errors, limits
from staddle_server.base.types import Authors

ID_BYTES: Final = 16
BATCH: Final = 1000
"""Values bound to one statement; SQLite allows 32,766, and longer lists gain nothing."""

_NAME = re.compile(r"[a-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_T = TypeVar("_T")


def check_name(what: str, name: str) -> None:
    """Check a tenant's or token's name: 1 to 64 of a-z, 0-9, dot, underscore, hyphen."""
    if _NAME.fullmatch(name) is None:
        raise errors.BadRequest(
            "BAD_FIELD",
            f"The name of a {what} must be 1 to 64 of a-z 0-9 . _ -, not {name[:80]!r}",
            field="name",
        )


def check_dataset(name: str) -> None:
    """Check a dataset's name: 1 to 255 bytes of UTF-8 without control characters."""
    if not 1 <= len(name.encode("utf-8", "replace")) <= limits.DATASET_BYTES_MAX or _CONTROL.search(name):
        raise errors.BadRequest(
            "BAD_FIELD",
            f"The name of a dataset must be 1 to {limits.DATASET_BYTES_MAX} bytes of UTF-8 without control characters",
            field="dataset",
        )


def check_id(what: str, value: bytes) -> None:
    """Check the length of an id. Only Staddle makes ids, so a wrong length is its fault, not the caller's."""
    if len(value) != ID_BYTES:
        raise ValueError(f"the id of a {what} has {ID_BYTES} bytes, not {len(value)}")


def stored_text(text: str) -> str:
    r"""Return a text as a catalog can keep it: bytes of a path that are not UTF-8 as \xff."""
    raw = text.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def rfc3339(time_ns: int) -> str:
    """Return a time as RFC 3339 in UTC, truncated to microseconds."""
    return (_EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat().replace("+00:00", "Z")


def utc_minute(time_ns: int) -> str:
    """Return a time for people: 2026-11-30 12:05 UTC."""
    return f"{rfc3339(time_ns)[:16].replace('T', ' ')} UTC"


def pack_tags(tags: Mapping[str, str] | None) -> str:
    """Return one text for equal tags, whatever their order."""
    return json.dumps(dict(tags or {}), sort_keys=True, separators=(",", ":"))


def unpack_tags(text: str) -> dict[str, str]:
    """Return the tags that `pack_tags` packed."""
    tags: dict[str, str] = json.loads(text)
    return tags


def pack_authors(authors: Authors) -> str:
    """Return authors as stored in a column: a JSON array of the fields."""
    return msgspec.json.encode(authors).decode()


def unpack_authors(text: str) -> Authors:
    """Return the authors that `pack_authors` packed."""
    return msgspec.json.decode(text, type=Authors)


def batches(values: Iterable[_T], size: int = BATCH) -> Iterator[list[_T]]:
    """Yield the values in lists of at most `size`."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
