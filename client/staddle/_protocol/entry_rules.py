"""What an entry of a server may hold: names that a file system can have, and no more than the protocol allows."""

from __future__ import annotations

from typing import Final

from staddle._errors import ProtocolError
from staddle._protocol.convert import link_target_of
from staddle.v1 import resources_pb2 as pb

LINK_TARGET_BYTES_MAX: Final = 4_096
LINK_GROUP_BYTES_MAX: Final = 64
XATTRS_MAX: Final = 1_024
XATTR_BYTES_MAX: Final = 1024 * 1024
HOLES_MAX: Final = 32_768
CONTENT_ID_BYTES: Final = 32
OWNER_BYTES_MAX: Final = 256
CHUNKS_MAX: Final = 65_536
"""In one message."""


def check_entry(path: bytes, entry: pb.Entry) -> None:
    """Raises ProtocolError for an entry that could not have been stored."""
    _check_names(path, entry)
    _check_sizes(path, entry)


def attribute_bytes(entry: pb.Entry) -> int:
    """What the extended attributes of an entry take."""
    return sum(len(xattr.name) + len(xattr.raw_name) + len(xattr.value) for xattr in entry.xattrs)


def _check_names(path: bytes, entry: pb.Entry) -> None:
    """What a file system is given beside the path: no file system has names that hold NUL."""
    if b"\0" in link_target_of(entry):
        raise ProtocolError(f"{path!r}: the server sent a link target that holds NUL.")
    for xattr in entry.xattrs:
        name = xattr.raw_name or xattr.name.encode()
        if not name or b"\0" in name:
            raise ProtocolError(f"{path!r}: the server sent an extended attribute with the name {name!r}.")


def _check_sizes(path: bytes, entry: pb.Entry) -> None:
    """What may be kept of an entry for longer is bounded, as the protocol says: a server must not fill the memory."""
    for what, size, size_max in (
        ("a link target", len(link_target_of(entry)), LINK_TARGET_BYTES_MAX),
        ("a link group", len(entry.link_group), LINK_GROUP_BYTES_MAX),
        ("extended attributes", len(entry.xattrs), XATTRS_MAX),
        ("bytes of extended attributes", attribute_bytes(entry), XATTR_BYTES_MAX),
        ("holes", len(entry.holes), HOLES_MAX),
        ("a content id", len(entry.content.content_id), CONTENT_ID_BYTES),
        ("chunks at once", len(entry.content.chunks), CHUNKS_MAX),
        ("an owner's name", max(len(entry.owner), len(entry.group)), OWNER_BYTES_MAX),
        ("a digest", len(entry.file_digest.blake3), CONTENT_ID_BYTES),
    ):
        if size > size_max:
            raise ProtocolError(f"{path!r}: {what} of {size}, over {size_max}.")
