"""Messages from bytes: a few bytes can stand for a large object, so a message is counted before it is used.

An empty entry of four bytes becomes an object of several hundred. Repeated fields of a message and of its
entries are counted before decoding, and again after it, one message at a time: numbers can be encoded in
longer ways than the byte count searches for. Small messages cannot be too large, and skip this.

Bulk data of PutChunks and Backup is not decoded: it stays in place, and handlers get a view of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from staddle._protocol.encoding import BYTES, field, tag
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api.answering import Reading
from staddle_server.api.encoding import Piece
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import ENTRIES_PER_CALL_MAX, ITEMS_PER_MESSAGE_MAX, PARTS_PER_MESSAGE_MAX
from staddle_server.store.blobs import compact

SERVICE: Final = sv.DESCRIPTOR.services_by_name["StaddleService"]
M = TypeVar("M", bound=Message)

FIELDS_MAX: Final = PARTS_PER_MESSAGE_MAX + 64
"""Fields at the top of a message: the repeated ones, and a few more."""
_FIELD_BYTES_MIN: Final = 2


def _number(type_: type[Message], name: str) -> int:
    number: int = type_.DESCRIPTOR.fields_by_name[name].number
    return number


_PARTS: Final = _number(sv.BackupRequest, "parts")
_CHUNK_DATA: Final = _number(sv.PutChunksRequest, "data")
_DATA_TAGS: Final = (tag(sv.BackupPart, "data")[0], tag(sv.Data, "data")[0])
_ENTRY_TAGS: Final = {tag(type_, "entry")[0] for type_ in (sv.BackupPart, sv.EntryChange)}
_CONTENT_FIELD: Final = _number(pb.Entry, "content")
_ITEM_FIELDS: Final = {_number(pb.Entry, "xattrs"), _number(pb.Entry, "holes")}
_ITEM_TAGS: Final = (tag(pb.Entry, "xattrs"), tag(pb.Entry, "holes"), tag(pb.Content, "chunks"))

_one_at_a_time: Final = threading.Lock()


def decoder(type_: type[M]) -> Callable[[bytes], M]:
    """Return the function that decodes messages of a type.

    It raises BadRequest (BAD_FIELD) for invalid bytes, and for too much in a message.
    """

    def read(data: bytes) -> M:
        try:
            return type_.FromString(data)
        except DecodeError as error:
            raise _unreadable(type_.DESCRIPTOR.name) from error

    def decode(data: bytes) -> M:
        if len(data) <= _FIELD_BYTES_MIN * FIELDS_MAX:
            return read(data)
        with _one_at_a_time:
            if (
                len(data) <= _FIELD_BYTES_MIN * ITEMS_PER_MESSAGE_MAX
            ):  # too many items, and no memory for them
                _count_fields(data)
                return read(data)
            _check_fields(data)
            message = read(data)
            if _items_in(message) > ITEMS_PER_MESSAGE_MAX:
                raise _too_many_items()
            return message

    return decode


def weigher(type_: type[Message]) -> Callable[[bytes], int]:
    """Return the function that estimates, from its bytes, the decoded memory of a message; rather too high
    than too low.
    """
    tags = [tag(type_, field.name) for field in type_.DESCRIPTOR.fields if field.is_repeated]

    def weigh(data: bytes) -> int:
        return 3 * len(data) + _REPEATED_BYTES * min(FIELDS_MAX, sum(map(data.count, tags)))

    return weigh


_REPEATED_BYTES: Final = 128
_ITEM_BYTES: Final = 256
_ENTRY_BYTES: Final = 2048
"""The cost of a repeated field, of an attribute, hole or reference, and of an entry: as a message plus as a
value.
"""


class PutChunks(NamedTuple):
    """A PutChunksRequest, and its data."""

    request: sv.PutChunksRequest
    data: memoryview


def put_chunks(message: bytes) -> PutChunks:
    """Decode a PutChunksRequest, with its data as a view of the message. Raises as `decoder` does."""
    view = memoryview(message)
    data, rest, kept = view[:0], bytearray(), 0
    for number, kind, begin, start, end in _fields(message):
        if number == _CHUNK_DATA and kind == BYTES:
            rest += view[kept:begin]
            data, kept = view[start:end], end
    rest += view[kept:]
    return PutChunks(_put_chunks(bytes(rest)), data)


_put_chunks: Final = decoder(sv.PutChunksRequest)


class PutEntries(NamedTuple):
    """A PutEntriesRequest with only its head decoded: which upload it is for.

    Its changes are thousands of objects, so they are decoded when it is their turn.
    """

    head: sv.PutEntriesRequest
    message: bytes

    def weigh(self) -> int:
        """Return the most memory that the decoded request may take, see `weigher`."""
        items = min(ITEMS_PER_MESSAGE_MAX, sum(map(self.message.count, _ITEM_TAGS)))
        entries = min(ENTRIES_PER_CALL_MAX, _entries_of(self.message))
        return 3 * len(self.message) + _ENTRY_BYTES * entries + _ITEM_BYTES * items

    def read(self) -> sv.PutEntriesRequest:
        """Decode the whole request. Raises as `decoder` does."""
        request = _whole_put_entries(self.message)
        if (request.upload_id, request.epoch) != (self.head.upload_id, self.head.epoch):
            raise BadRequest(
                "BAD_FIELD", "upload_id and epoch must come before the changes", field="upload_id"
            )
        return request


_put_entries: Final = decoder(sv.PutEntriesRequest)
_CHANGES: Final = _number(sv.PutEntriesRequest, "changes")


def put_entries(message: bytes) -> PutEntries:
    """Decode a PutEntriesRequest up to its changes. Raises as `decoder` does."""
    end = len(message)
    for number, _, begin, _, _ in _fields(message):
        if number == _CHANGES:
            end = begin
            break
    head = _put_entries(message[:end])
    if not head.upload_id:  # its fields are not in the order of their numbers
        head = _whole_put_entries(message)
        del head.changes[:]
    return PutEntries(head, message)


def _whole_put_entries(message: bytes) -> sv.PutEntriesRequest:
    if len(message) > _COLUMNS_SMALL_BYTES:
        for _ in _column_counts(message):
            pass
    return _put_entries(message)


def _entries_of(message: bytes) -> int:
    """Return how many entries a PutEntriesRequest has; of one with many changes the most it may have."""
    entries = 0
    for seen, count in enumerate(_column_counts(message), 1):
        if seen > _CHANGES_COUNTED_MAX:
            return ENTRIES_PER_CALL_MAX
        entries += max(1, count)
    return entries


def _column_counts(message: bytes) -> Iterator[int]:
    """Yield for each change of a PutEntriesRequest how many entries are in its columns; 0: it has none.

    Raises BadRequest for columns with more values than entries could have: a byte would become eight.
    """
    total = 0
    late: list[tuple[int, int]] = []
    """Where entries are that `_check_fields` does not see: in columns, or behind another field."""
    for number, kind, _, first, end in _fields(message):
        if number != _CHANGES or kind != BYTES:
            continue
        count, at = 0, first
        while at < end:
            begin = at
            inner, _, value, at = field(message, begin)
            if inner == _COLUMNS:
                count += _check_values(message, value, min(at, end), late)
            elif inner == _ENTRY and begin > first:
                late.append((value, min(at, end)))
        total += count
        if total > ENTRIES_PER_CALL_MAX:
            raise BadRequest(
                "BAD_FIELD",
                f"changes: the limit is {ENTRIES_PER_CALL_MAX} entries and removals a call",
                field="changes",
            )
        yield count
    if sum(end - start for start, end in late) > _FIELD_BYTES_MIN * ITEMS_PER_MESSAGE_MAX:
        items = (each for start, end in late for each in _items_of_entry(message, start, end))
        if any(count > ITEMS_PER_MESSAGE_MAX for count, _ in enumerate(items, 1)):
            raise _too_many_items()


def _check_values(data: bytes, at: int, end: int, rare: list[tuple[int, int]]) -> int:
    """Return how many entries columns have by their types, and add where `rare` has its entries.

    Raises BadRequest as _column_counts does.
    """
    entries = numbers = others = 0
    while at < end:
        number, kind, start, at = field(data, at)
        if number == _TYPES:
            entries += at - start
        elif number in _NUMBER_COLUMNS:
            numbers += at - start if kind == BYTES else 1
        else:
            others += 1
            if number == _RARE:
                rare.append((start, min(at, end)))
        if others > _OTHERS_MOST or numbers > _NUMBERS_MOST:
            break
    if numbers > _NUMBER_BYTES_MAX * len(_NUMBER_COLUMNS) * entries or others > 4 * entries + _OTHERS_MAX:
        raise BadRequest("BAD_FIELD", "columns: there are more values than entries", field="columns")
    return entries


_ENTRY: Final = _number(sv.EntryChange, "entry")
_RARE: Final = _number(pb.EntryColumns, "rare")
_COLUMNS: Final = _number(sv.EntryChange, "columns")
_TYPES: Final = _number(pb.EntryColumns, "types")
_NUMBER_COLUMNS: Final = frozenset(
    each.number
    for each in pb.EntryColumns.DESCRIPTOR.fields
    if each.is_repeated and each.type not in {each.TYPE_MESSAGE, each.TYPE_STRING}
)
_NUMBER_BYTES_MAX: Final = 10
_OTHERS_MAX: Final = 64
_OTHERS_MOST: Final = 4 * ENTRIES_PER_CALL_MAX + _OTHERS_MAX
_NUMBERS_MOST: Final = _NUMBER_BYTES_MAX * len(_NUMBER_COLUMNS) * ENTRIES_PER_CALL_MAX
"""More than these cannot be right, however many entries follow."""
_COLUMNS_SMALL_BYTES: Final = 64 * 1024
"""Columns in a smaller message cannot be too large."""
_CHANGES_COUNTED_MAX: Final = 256


def backup_parts(message: bytes) -> Iterator[sv.BackupPart | Piece]:
    """Yield the parts of a BackupRequest, each decoded on demand.

    Bytes stand for a part that is `data.data` and nothing else. Raises as `decoder` does, at the part that
    exceeds the limit.
    """
    view = memoryview(message)
    count = items = 0
    for number, kind, begin, start, end in _fields(message):
        if number != _PARTS or kind != BYTES:
            _backup(message[begin:end])  # unknown fields are skipped, if they are valid
            continue
        count += 1
        if count > PARTS_PER_MESSAGE_MAX:
            raise _too_many_parts()
        data = _data_alone(message, start, end)
        if data is None:
            request = _backup(message[begin:end])
            items += _items_in(request)
            if items > ITEMS_PER_MESSAGE_MAX:
                raise _too_many_items()
            yield request.parts[0]
        else:
            yield compact(view[data])


_backup: Final = decoder(sv.BackupRequest)


def _data_alone(message: bytes, start: int, end: int) -> slice | None:
    """Return the position of the bytes that the BackupPart between `start` and `end` consists of,
    if it does.
    """
    for expected in _DATA_TAGS:
        if start == end or message[start] != expected:
            return None
        _, _, start, stop = field(message, start)
        if stop != end:
            return None
    return slice(start, end)


def _too_many_parts() -> BadRequest:
    return BadRequest("BAD_FIELD", f"parts: the limit is {PARTS_PER_MESSAGE_MAX} a message", field="parts")


def _too_many_items() -> BadRequest:
    return BadRequest(
        "BAD_FIELD",
        f"entries: the limit is {ITEMS_PER_MESSAGE_MAX} extended attributes, holes and chunk references a message",
        field="entry",
    )


def _unreadable(name: str) -> BadRequest:
    return BadRequest("BAD_FIELD", f"the message is not a valid {name}", field="message")


def _count_fields(data: bytes) -> None:
    """Raise BadRequest for more than FIELDS_MAX fields."""
    for _ in _fields(data):
        pass


def _check_fields(data: bytes) -> None:
    """Raise BadRequest for more than FIELDS_MAX fields, or more than ITEMS_PER_MESSAGE_MAX items in the
    entries.

    Reads only field headers, and entries only if the bytes of items' tags are frequent: these may be data.
    """
    suspects = 0
    for _, _, _, start, end in _fields(data):
        if start < end and data[start] in _ENTRY_TAGS:
            suspects += sum(data.count(tag, start, end) for tag in _ITEM_TAGS)
    if suspects > ITEMS_PER_MESSAGE_MAX:
        # Count no more than necessary to see that there are too many.
        for items, _ in enumerate(_items(data), 1):
            if items > ITEMS_PER_MESSAGE_MAX:
                raise _too_many_items()


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each top-level field of a message: number, type, start, start of its value, end.

    Raises BadRequest for more than FIELDS_MAX, and for a truncated one.
    """
    at, count = 0, 0
    while at < len(data):
        count += 1
        if count > FIELDS_MAX:
            raise _too_many_parts()
        begin = at
        number, kind, start, at = field(data, begin)
        if at > len(data):
            raise _unreadable("a message of this service")
        yield number, kind, begin, start, at


def _items(data: bytes) -> Iterator[int]:
    """Yield where the attributes, holes and chunk references in the entries of a message begin."""
    for _, _, _, start, end in _fields(data):
        if start < end and data[start] in _ENTRY_TAGS:
            _, _, inner, stop = field(data, start)
            yield from _items_of_entry(data, inner, min(stop, end))


def _items_of_entry(data: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        number, _, start, at = field(data, at)
        if at > end:  # truncated, or a group, whose content cannot be counted
            raise _unreadable("a message of this service")
        if number in _ITEM_FIELDS:
            yield start
        elif number == _CONTENT_FIELD:
            while start < at:
                yield start
                _, _, _, start = field(data, start)
            if start > at:
                raise _unreadable("a message of this service")


def _items_in(message: Message) -> int:
    """Return how many attributes, holes and chunk references the entries of a message have."""
    items = 0
    for entry in _entries(message):
        items += len(entry.xattrs) + len(entry.holes)
        if entry.HasField("content"):
            items += len(entry.content.chunks)
    return items


def _entries(message: Message) -> Iterator[pb.Entry]:
    if isinstance(message, sv.BackupRequest):
        yield from (part.entry for part in message.parts if part.HasField("entry"))
    elif isinstance(message, sv.PutEntriesRequest):
        for change in message.changes:
            if change.HasField("entry"):
                yield change.entry
            elif change.HasField("columns"):
                yield from change.columns.rare


_BULK: Final[dict[str, Callable[[bytes], Any]]] = {
    "Backup": backup_parts,
    "PutChunks": put_chunks,
    "PutEntries": put_entries,
}
"""How messages are read that are mostly data, or whose content waits for its turn; all others are simply
decoded.
"""


def reading_of(method: str) -> Reading:
    """Return how the messages of a method of the service are read."""
    type_: type[Message] = getattr(sv, SERVICE.methods_by_name[method].input_type.name)
    # Bulk stays as bytes; its memory is counted where it is decoded.
    weigh = len if method in _BULK else weigher(type_)
    return Reading(_BULK.get(method) or decoder(type_), weigh)
