"""Addresses: which operation of the table a path names, and the parameters in it and in the query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from staddle_server.api.http.rest.operations import PATH, QUERY, Operation, RestParameter
from staddle_server.base.errors import BadRequest

QUERY_FIELDS_MAX: Final = 100
_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_REST: Final = "...}"


class AddressFound(NamedTuple):
    """The operations at an address, by verb, and the segments that are parameters of its path."""

    operations: Mapping[str, Operation]
    segments: Mapping[str, bytes]


class _Template(NamedTuple):
    parts: tuple[str, ...]
    operations: dict[str, Operation]

    def match(self, segments: list[bytes]) -> dict[str, bytes] | None:
        """Return the parameters in a path's segments, still encoded; None if it is another address."""
        parts = self.parts
        open_ended = parts[-1].endswith(_REST)
        if len(segments) < len(parts) if open_ended else len(segments) != len(parts):
            return None
        found = {}
        for number, part in enumerate(parts):
            segment = segments[number]
            if part.endswith(_REST):
                found[part[1 : -len(_REST)]] = b"/".join(segments[number:])
            elif not part.startswith("{"):
                if part.encode() != segment:
                    return None
            elif not segment:
                return None
            else:
                found[part[1:-1]] = segment
        return found


class Addresses:
    """All addresses of a table."""

    def __init__(self, table: Iterable[Operation]) -> None:
        addresses: dict[str, _Template] = {}
        for each in table:
            parts = tuple(each.path.split("/")[1:])
            addresses.setdefault(each.path, _Template(parts, {})).operations[each.verb] = each
        self._addresses = list(addresses.values())

    def find(self, path: bytes) -> AddressFound | None:
        """Return what a path, as it was sent, names; None if nothing."""
        segments = path.split(b"/")[1:]
        for address in self._addresses:
            found = address.match(segments)
            if found is not None:
                return AddressFound(address.operations, found)
        return None


def given(operation: Operation, segments: Mapping[str, bytes], query: bytes) -> dict[str, Any]:
    """Return the parameters of a request, by name.

    Raises:
        BadRequest: One is invalid, unknown, or given twice.

    """
    found: dict[str, Any] = {
        each.name: _read(each, _decoded(each.name, segments[each.name])) for each in operation.of(PATH)
    }
    known = {each.name: each for each in operation.of(QUERY)}
    for name, value in _fields(query):
        parameter = known.get(name)
        if parameter is None:
            raise BadRequest(
                "BAD_FIELD",
                f"{name[:80]!r} is not a parameter of this address"
                + (f"; it has {', '.join(known)}" if known else ", which has none in its query"),
                field=name,
            )
        if parameter.many:
            found.setdefault(name, []).append(_read(parameter, value))
        elif name in found:
            raise _bad(name, "given twice")
        else:
            found[name] = _read(parameter, value)
    for name, parameter in known.items():
        if parameter.required and name not in found:
            raise _bad(name, "required")
    return found


def _fields(query: bytes) -> Iterable[tuple[str, bytes]]:
    fields = [each for each in query.split(b"&") if each]
    if len(fields) > QUERY_FIELDS_MAX:
        raise _bad("query", f"the limit is {QUERY_FIELDS_MAX} parameters")
    for each in fields:
        encoded, _, value = each.replace(b"+", b" ").partition(b"=")
        name = _decoded("query", encoded).decode("utf-8", "replace")
        yield name, _decoded(name, value)


def _decoded(name: str, encoded: bytes) -> bytes:
    if _ESCAPE.search(encoded):
        raise _bad(name, 'a "%" must be followed by two hexadecimal digits; "%" itself is written %25')
    return unquote_to_bytes(encoded)


def _read(parameter: RestParameter, value: bytes) -> Any:
    try:
        return parameter.kind.read(value)
    except (ValueError, OverflowError) as error:
        raise _bad(parameter.name, str(error)) from None


def _bad(name: str, why: str) -> BadRequest:
    return BadRequest("BAD_FIELD", f"{name}: {why}", field=name)
