"""A digest of all that an entry says: two entries with the same digest are the same."""

from __future__ import annotations

from struct import Struct
from typing import Final

from blake3 import blake3

from staddle._protocol.columns import EntryRow

_NUMBERS: Final = Struct("<BBIIIqqQQB")


def digest_of(row: EntryRow, profile: int = 0) -> bytes:
    """The digest of an entry, 32 bytes; `profile` is that of a file's content. The row's list of chunks must be
    left out: the content id stands for it.
    """
    numbers = _NUMBERS.pack(
        row.type,
        row.flags,
        row.mode,
        row.uid,
        row.gid,
        row.mtime_ns,
        row.ctime_ns,
        row.inode,
        row.size_bytes,
        profile,
    )
    # No path, link target or name has a NUL, and only files have a content id, of 32 bytes.
    texts = b"\0".join((row.path, row.link_target, row.owner.encode(), row.group.encode(), b""))
    rare = b"" if row.rare is None else row.rare.SerializeToString(deterministic=True)
    return blake3(b"".join((numbers, row.content_id, texts, rare))).digest()
