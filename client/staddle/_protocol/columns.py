"""Entries as columns: many of them in one message, without a message object for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Final, NamedTuple

from staddle._protocol.convert import link_target_of
from staddle.v1 import resources_pb2 as pb

READ_AGAIN: Final = 1
INCOMPLETE: Final = 2
CHUNKS_MAX: Final = 16
"""A longer list of chunks does not go into columns."""
_RARE_FIELDS: Final = ("link_group", "device_major", "device_minor")


class EntryRow(NamedTuple):
    """One entry with everything that a column has of it."""

    path: bytes
    type: int
    flags: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
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
    is_device = entry.type in {pb.ENTRY_TYPE_CHAR_DEVICE, pb.ENTRY_TYPE_BLOCK_DEVICE}
    return rare if is_device or rare.ByteSize() else None


def columns_of(rows: Sequence[EntryRow], profile: pb.ChunkerProfile.ValueType) -> pb.EntryColumns:
    """The columns of entries, at least one, which must be in order; `profile` is that of their contents."""
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
    places = {name: place for place, name in enumerate(dict.fromkeys(("", *owners, *groups)))}
    is_file = list(map(pb.ENTRY_TYPE_FILE.__eq__, kinds))
    columns = pb.EntryColumns(
        paths=b"\0".join(paths),
        types=kinds,
        flags=bytes(flags) if any(flags) else b"",
        modes=modes,
        uids=uids,
        gids=gids,
        mtimes_ns=mtimes,
        ctimes_ns=ctimes,
        inodes=inodes,
        names=[name for name in places if name],
        owners=map(places.__getitem__, owners),
        groups=map(places.__getitem__, groups),
        sizes=compress(sizes, is_file),
        content_ids=b"".join(compress(ids, is_file)),
        profile=profile,
        link_targets=b"\0".join(compress(targets, map(pb.ENTRY_TYPE_SYMLINK.__eq__, kinds))),
    )
    places_of_rare = [place for place, each in enumerate(rare) if each is not None]
    columns.rare_at.extend(places_of_rare)
    columns.rare.extend(map(rare.__getitem__, places_of_rare))
    return columns
