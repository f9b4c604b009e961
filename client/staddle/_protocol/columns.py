"""Entries as columns: many of them in one message, without a message object for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import compress, islice, repeat
from operator import lt
from struct import Struct
from typing import Any, Final, NamedTuple, cast

from staddle._errors import ProtocolError
from staddle._protocol.convert import (
    COMPONENT_BYTES_MAX,
    ENTRY_TYPES,
    field_for,
    link_target_of,
    path_fault,
    rare_values,
    sort_key,
)
from staddle._protocol.entry_rules import (
    CONTENT_ID_BYTES,
    LINK_TARGET_BYTES_MAX,
    OWNER_BYTES_MAX,
    check_entry,
)
from staddle._types.entries import Entry
from staddle.v1 import resources_pb2 as pb

READ_AGAIN: Final = 1
INCOMPLETE: Final = 2
IMPLIED: Final = 4
CHUNKS_MAX: Final = 16
COLUMN_ENTRIES_MAX: Final = 4096
"""In the columns of one message; more cannot be meant."""
"""A longer list of chunks does not go into columns."""
_DIGEST: Final = Struct(f"{CONTENT_ID_BYTES}s")
_TYPES: Final = bytes(kind for kind in pb.EntryType.values() if kind)
_DEVICES: Final = frozenset({pb.ENTRY_TYPE_CHAR_DEVICE, pb.ENTRY_TYPE_BLOCK_DEVICE})
_RARE_FIELDS: Final = ("link_group", "device_major", "device_minor")


class EntryRow(NamedTuple):
    """One entry with everything that a column has of it. None: it has no such value."""

    path: bytes
    type: int
    flags: int
    mode: int | None
    uid: int | None
    gid: int | None
    mtime_ns: int | None
    ctime_ns: int | None
    inode: int | None
    owner: str
    group: str
    size_bytes: int = 0
    """Of a regular file, as the content id is."""
    content_id: bytes = b""
    link_target: bytes = b""
    rare: pb.Entry | None = None
    """Further fields of an entry that has some."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.type == pb.ENTRY_TYPE_FILE


def row_of(entry: pb.Entry, chunks: Sequence[tuple[int, bytes]] = ()) -> EntryRow | None:
    """An entry with a file's chunks, at most CHUNKS_MAX, as a row; None: it lacks values that every row has."""
    if not (entry.HasField("mode") and entry.HasField("uid") and entry.HasField("gid")):
        return None
    if not (entry.HasField("mtime_ns") and entry.HasField("ctime_ns") and entry.HasField("inode")):
        return None
    content = entry.content
    return EntryRow(
        entry.raw_path or entry.path.encode(),
        entry.type,
        READ_AGAIN * entry.read_again + INCOMPLETE * entry.incomplete,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.ctime_ns,
        entry.inode,
        entry.owner,
        entry.group,
        content.size_bytes,
        content.content_id,
        link_target_of(entry),
        _rare_of(entry, chunks),
    )


def _rare_of(entry: pb.Entry, chunks: Sequence[tuple[int, bytes]]) -> pb.Entry | None:
    """The fields that no column has; None if there are none."""
    rare = pb.Entry()
    for name in _RARE_FIELDS:
        if value := getattr(entry, name):
            setattr(rare, name, value)
    rare.xattrs.extend(entry.xattrs)
    rare.holes.extend(entry.holes)
    if len(chunks) > 1:
        for length, digest in chunks:
            rare.content.chunks.add(length_bytes=length, digest=digest)
    return rare if entry.type in _DEVICES or rare.ByteSize() else None


def columns_of(rows: Sequence[EntryRow], profile: pb.ChunkerProfile.ValueType) -> pb.EntryColumns:
    """The columns of entries, at least one, which must be in order, and have the same values (`presence`).

    `profile` is that of their contents.
    """
    (
        paths,
        types,
        flags,
        modes,
        uids,
        gids,
        mtimes,
        ctimes,
        inodes,
        owners,
        groups,
        sizes,
        ids,
        targets,
        rare,
    ) = zip(*rows, strict=True)
    kinds = bytes(types)
    names = {name: place for place, name in enumerate(dict.fromkeys(("", *owners, *groups)))}
    is_file = list(map(pb.ENTRY_TYPE_FILE.__eq__, kinds))
    places_of_rare = [place for place, each in enumerate(rare) if each is not None]
    return pb.EntryColumns(
        paths=b"\0".join(paths),
        types=kinds,
        flags=bytes(flags) if any(flags) else b"",
        modes=_whole(modes),
        uids=_whole(uids),
        gids=_whole(gids),
        mtimes_ns=_whole(mtimes),
        ctimes_ns=_whole(ctimes),
        inodes=_whole(inodes),
        names=[name for name in names if name],
        owners=map(names.__getitem__, owners) if any(owners) else (),
        groups=map(names.__getitem__, groups) if any(groups) else (),
        sizes=compress(sizes, is_file),
        content_ids=b"".join(compress(ids, is_file)),
        profile=profile,
        link_targets=b"\0".join(compress(targets, map(pb.ENTRY_TYPE_SYMLINK.__eq__, kinds))),
        rare_at=places_of_rare,
        rare=map(rare.__getitem__, places_of_rare),
    )


def presence(row: EntryRow) -> tuple[bool, ...]:
    """Which values an entry has that may be missing: a column has them of all its entries, or of none."""
    return (
        row.mode is None,
        row.uid is None,
        row.gid is None,
        row.mtime_ns is None,
        row.ctime_ns is None,
        row.inode is None,
    )


def _whole(column: Sequence[int | None]) -> Sequence[int]:
    """A column for a message; empty if the entries have no such value."""
    return () if column[0] is None else cast("Sequence[int]", column)


# --- from a server


def rows_in(columns: pb.EntryColumns) -> list[EntryRow]:
    """The entries in columns of a server, in order. Raises ProtocolError for what could not have been stored."""
    types = columns.types
    count = len(types)
    if not 0 < count <= COLUMN_ENTRIES_MAX or types.translate(None, _TYPES):
        raise ProtocolError(
            "The server sent columns with no or too many entries, or with one of an unknown type."
        )
    files, links = types.count(pb.ENTRY_TYPE_FILE), types.count(pb.ENTRY_TYPE_SYMLINK)
    paths = _checked_paths(columns.paths, count)
    ids, joined = columns.content_ids, columns.link_targets
    if (
        (joined.count(b"\0") + 1 if links else len(joined)) != links
        or len(columns.sizes) != files
        or len(ids) != files * CONTENT_ID_BYTES
    ):
        raise ProtocolError("The server sent columns of contents or link targets with another length.")
    targets = joined.split(b"\0") if links else []
    if targets and not (all(targets) and max(map(len, targets)) <= LINK_TARGET_BYTES_MAX):
        raise ProtocolError("The server sent a link target that is empty or too long.")
    is_file = list(map(pb.ENTRY_TYPE_FILE.__eq__, types))
    names = ["", *columns.names]
    return list(
        map(
            EntryRow,
            paths,
            types,
            _column(columns.flags, count, 0),
            _column(columns.modes, count, None),
            _column(columns.uids, count, None),
            _column(columns.gids, count, None),
            _column(columns.mtimes_ns, count, None),
            _column(columns.ctimes_ns, count, None),
            _column(columns.inodes, count, None),
            _named(names, columns.owners, count),
            _named(names, columns.groups, count),
            _spread(columns.sizes, is_file, 0),
            _spread([each for (each,) in _DIGEST.iter_unpack(ids)], is_file, b""),
            _spread(targets, [each == pb.ENTRY_TYPE_SYMLINK for each in types], b""),
            _rare_in(columns, paths),
        )
    )


def _checked_paths(joined: bytes, count: int) -> list[bytes]:
    """Valid paths in order."""
    received = joined.count(b"\0") + 1
    if received != count:
        raise ProtocolError(
            f"The server sent columns whose paths and types differ in number: {received}, {count}."
        )
    paths = joined.split(b"\0")
    # Most columns skip the look at each path.
    if (
        joined[:1] in {b"/", b"."}
        or joined[-1:] == b"/"
        or any(each in joined for each in (b"//", b"/.", b"\0.", b"/\0", b"\0/"))
        or max(map(len, paths)) > COMPONENT_BYTES_MAX
    ):
        for path in paths:
            if wrong := path_fault(path):
                raise ProtocolError(f"The server sent the path {path!r}: {wrong}.")
    keys = [sort_key(path) for path in paths]
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise ProtocolError("The server sent columns whose paths are out of order.")
    return paths


def _column(values: Sequence[Any], count: int, default: Any) -> Iterable[Any]:
    if values and len(values) != count:
        raise ProtocolError(f"The server sent columns of different lengths: {len(values)}, {count}.")
    return values[:] if values else repeat(default, count)


def _named(names: list[str], places: Sequence[int], count: int) -> Iterable[str]:
    if places and max(places) >= len(names):
        raise ProtocolError(f"The server sent an owner with the place {max(places)}, beyond the last name.")
    if max(map(len, names)) > OWNER_BYTES_MAX:
        raise ProtocolError(
            f"The server sent an owner's name that is too long: the limit is {OWNER_BYTES_MAX} bytes."
        )
    return map(names.__getitem__, _column(places, count, 0))


def _spread(values: Sequence[Any], has: Sequence[bool], default: Any) -> Iterable[Any]:
    """The values at the positions that have one, and the default elsewhere."""
    following = iter(values)
    return (next(following) if each else default for each in has)


def _rare_in(columns: pb.EntryColumns, paths: Sequence[bytes]) -> list[pb.Entry | None]:
    rare: list[pb.Entry | None] = [None] * len(paths)
    if len(columns.rare_at) != len(columns.rare) or any(place >= len(paths) for place in columns.rare_at):
        raise ProtocolError("The server sent columns with rare fields of no entry.")
    for place, entry in zip(columns.rare_at, columns.rare, strict=True):
        if rare[place] is not None:
            raise ProtocolError(f"The server sent the rare fields of {paths[place]!r} twice.")
        check_entry(paths[place], entry)
        rare[place] = entry
    if any(kind in _DEVICES and entry is None for kind, entry in zip(columns.types, rare, strict=True)):
        raise ProtocolError("The server sent columns with a device that has no number.")
    return rare


def message_of_row(row: EntryRow) -> pb.Entry:
    """An entry as a message; without chunks, and without the profile of its content."""
    entry = pb.Entry(
        type=cast("pb.EntryType.ValueType", row.type),
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        owner=row.owner,
        group=row.group,
        mtime_ns=row.mtime_ns,
        ctime_ns=row.ctime_ns,
        inode=row.inode,
    )
    setattr(entry, *field_for("path", row.path))
    if row.flags:
        entry.read_again = bool(row.flags & READ_AGAIN)
        entry.implied = bool(row.flags & IMPLIED)
        entry.incomplete = bool(row.flags & INCOMPLETE)
    if row.is_file:
        content = entry.content
        content.size_bytes, content.content_id = row.size_bytes, row.content_id
    elif row.link_target:
        setattr(entry, *field_for("link_target", row.link_target))
    if row.rare is not None:
        for name in _RARE_FIELDS:
            setattr(entry, name, getattr(row.rare, name))
        entry.xattrs.extend(row.rare.xattrs)
        entry.holes.extend(row.rare.holes)
        if row.rare.HasField("file_digest"):
            entry.file_digest.CopyFrom(row.rare.file_digest)
    return entry


def entry_of_row(row: EntryRow) -> Entry:
    """An entry as the server lists it."""
    entry = Entry(
        row.path,
        ENTRY_TYPES[cast("pb.EntryType.ValueType", row.type)],
        row.mode,
        row.uid,
        row.gid,
        row.owner,
        row.group,
        row.mtime_ns,
        row.ctime_ns,
        row.inode,
        row.size_bytes,
        row.content_id.hex(),
        link_target_bytes=row.link_target,
        read_again=bool(row.flags & READ_AGAIN),
        implied=bool(row.flags & IMPLIED),
        incomplete=bool(row.flags & INCOMPLETE),
    )
    if row.rare is None:
        return entry
    return replace(entry, **rare_values(row.rare, entry.type))
