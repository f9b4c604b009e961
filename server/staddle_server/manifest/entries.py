"""What an entry may be: every limit and type rule of docs/format.md, "Entries", checked on input and on
output.
"""

from typing import Final, Never

import msgspec
from staddle.chunking import EMPTY_CONTENT_ID

from staddle_server.base import errors, limits
from staddle_server.base.types import Attributes, ChunkRef, Content, Entry, EntryType, Flag

DIGEST_BYTES: Final = 32
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
FLAGS_MAX: Final = 255
I64_MIN: Final = -(2**63)
I64_MAX: Final = 2**63 - 1

_SHOWN_CHARACTERS_MAX: Final = 512
_INCOMPLETE: Final = Flag.INCOMPLETE.value
_TYPES_WITH_DEVICE: Final = (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)
_attributes_encoder: Final = msgspec.msgpack.Encoder()


def shown(path: bytes) -> str:
    """Return a path for messages and facts: readable, and short enough for an error's details."""
    text = path.decode("utf-8", "backslashreplace")
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "…"


def check_path(path: bytes) -> None:
    """Check a path relative to the root; b"" is the root itself. Raises BadRequest BAD_FIELD."""
    if not path:
        return
    if len(path) > limits.PATH_BYTES_MAX:
        _bad("path", path, f"the path has {len(path)} bytes; the limit is {limits.PATH_BYTES_MAX}")
    # Most paths return here, so that few need a check of each component.
    if (
        b"//" in path
        or b"\0" in path
        or b"/." in path
        or path[0] in b"/."
        or path[-1] == 0x2F
        or len(path) > limits.COMPONENT_BYTES_MAX
    ):
        _check_components(path)


def _check_components(path: bytes) -> None:
    if path.startswith(b"/"):
        _bad("path", path, "the path is absolute; paths are relative to the root, without a leading slash")
    if b"\0" in path:
        _bad("path", path, "the path holds a NUL byte")
    components = path.split(b"/")
    if len(components) > limits.PATH_COMPONENTS_MAX:
        _bad("path", path, f"the path has over {limits.PATH_COMPONENTS_MAX} components")
    for component in components:
        if not component:
            _bad("path", path, "the path has an empty component")
        if component in (b".", b".."):
            _bad("path", path, 'the path has a component "." or ".."')
        if len(component) > limits.COMPONENT_BYTES_MAX:
            _bad(
                "path",
                path,
                f"a component has {len(component)} bytes; the limit is {limits.COMPONENT_BYTES_MAX}",
            )


def check_entry(entry: Entry) -> None:
    """Check all that an entry says: limits, ranges, and which fields go with its type.

    A file may still be without content, since the bytes may come later; check_whole wants it. Raises
    BadRequest BAD_FIELD with the facts field and path.
    """
    path = entry.path
    check_path(path)
    kind = entry.type
    if kind == EntryType.REMOVED:
        if entry != Entry(path, EntryType.REMOVED):
            _bad("type", path, "a removal must have a path and nothing else")
        return
    if not path and kind != EntryType.DIRECTORY:
        _bad("type", path, "the root (the empty path) is not a directory")
    _check_numbers(entry)
    _check_by_type(entry)
    if entry.owner or entry.group:
        _check_name("owner", entry.owner, path)
        _check_name("group", entry.group, path)
    if len(entry.link_group) > limits.LINK_GROUP_BYTES_MAX:
        _bad("link_group", path, f"the link group is over {limits.LINK_GROUP_BYTES_MAX} bytes")
    if entry.attributes is not None or entry.attributes_ref is not None:
        _check_attributes(entry)


def check_whole(entry: Entry) -> None:
    """Check as check_entry does, for an entry of a manifest or run: a file has its content.

    Raises BadRequest.
    """
    check_entry(entry)
    if entry.type == EntryType.FILE and entry.content is None:
        _bad("content", entry.path, "the file has no content")


def _check_numbers(entry: Entry) -> None:
    path = entry.path
    if entry.mode is not None and not 0 <= entry.mode <= 0o7777:
        _bad("mode", path, "the mode is over 07777")
    if entry.uid is not None and not 0 <= entry.uid <= U32_MAX:
        _bad("uid", path, "the uid is out of range")
    if entry.gid is not None and not 0 <= entry.gid <= U32_MAX:
        _bad("gid", path, "the gid is out of range")
    if entry.mtime_ns is not None and not I64_MIN <= entry.mtime_ns <= I64_MAX:
        _bad("mtime_ns", path, "the time is out of range")
    if entry.ctime_ns is not None and not I64_MIN <= entry.ctime_ns <= I64_MAX:
        _bad("ctime_ns", path, "the time is out of range")
    if entry.inode is not None and not 0 <= entry.inode <= U64_MAX:
        _bad("inode", path, "the inode is out of range")
    if not 0 <= entry.flags <= FLAGS_MAX:
        _bad("flags", path, "the flags are out of range")
    if entry.flags & _INCOMPLETE and entry.type != EntryType.DIRECTORY:
        _bad("incomplete", path, "only a directory can be incomplete")


def _check_by_type(entry: Entry) -> None:
    path, kind = entry.path, entry.type
    if entry.content is not None:
        if kind != EntryType.FILE:
            _bad("content", path, "only a file has content")
        _check_content(entry.content, path)
    if kind == EntryType.SYMLINK or entry.link_target is not None:
        _check_link(entry)
    if entry.device is not None or kind in _TYPES_WITH_DEVICE:
        _check_device(entry)
    if entry.file_digest:
        if kind != EntryType.FILE:
            _bad("file_digest", path, "only a file has a digest")
        if len(entry.file_digest) != DIGEST_BYTES:
            _bad("file_digest", path, f"a digest has {DIGEST_BYTES} bytes")


def _check_content(content: Content, path: bytes) -> None:
    if not 0 <= content.size <= limits.FILE_BYTES_MAX:
        _bad("content.size_bytes", path, "the size is out of range")
    if len(content.content_id) != DIGEST_BYTES:
        _bad("content.content_id", path, f"a content id has {DIGEST_BYTES} bytes")
    if content.root is None:
        _check_inline(content, path)
        return
    if content.chunks:
        _bad("content.chunks", path, "chunks must be in the entry or in a list, not in both")
    if len(content.root.digest) != DIGEST_BYTES or not 0 <= content.root.level < limits.TREE_HEIGHT_MAX:
        _bad("content.root", path, "the root of the chunk list is out of range")
    if content.size <= limits.CHUNKS_INLINE_MAX:
        _bad("content.size_bytes", path, "a list of chunks has more bytes than that")


def _check_inline(content: Content, path: bytes) -> None:
    size, chunks = content.size, content.chunks
    if len(chunks) > limits.CHUNKS_INLINE_MAX:
        _bad("content.chunks", path, f"at most {limits.CHUNKS_INLINE_MAX} chunks may be in the entry")
    total = 0
    for ref in chunks:
        _check_ref(ref, "content.chunks", path)
        total += ref.length
    if total != size:
        _bad("content.size_bytes", path, f"the chunks have {total} bytes, not {size}")
    # Only contents that need no hashing; longer ones are checked against their id at every restore.
    expected = EMPTY_CONTENT_ID if not chunks else chunks[0].digest if len(chunks) == 1 else None
    if expected is not None and content.content_id != expected:
        _bad("content.content_id", path, "the content id does not match the chunks")


def _check_ref(ref: ChunkRef, field: str, path: bytes) -> None:
    if len(ref.digest) != DIGEST_BYTES:
        _bad(field, path, f"a digest has {DIGEST_BYTES} bytes")
    if not 1 <= ref.length <= limits.CHUNK_BYTES_MAX:
        _bad(field, path, f"a chunk has 1 to {limits.CHUNK_BYTES_MAX} bytes")


def _check_link(entry: Entry) -> None:
    target = entry.link_target
    if entry.type != EntryType.SYMLINK:
        _bad("link_target", entry.path, "only a symlink has a target")
    if not target:
        _bad("link_target", entry.path, "the symlink has no target")
    if len(target) > limits.LINK_TARGET_BYTES_MAX:
        _bad("link_target", entry.path, f"the target is over {limits.LINK_TARGET_BYTES_MAX} bytes")
    if b"\0" in target:
        _bad("link_target", entry.path, "the target holds a NUL byte")


def _check_device(entry: Entry) -> None:
    if entry.type not in _TYPES_WITH_DEVICE:
        _bad("device", entry.path, "only a device has a number")
    if entry.device is None:
        _bad("device", entry.path, "the device has no number")
    if not all(0 <= number <= U32_MAX for number in entry.device):
        _bad("device", entry.path, "the device number is out of range")


def _check_name(field: str, name: str, path: bytes) -> None:
    if len(name) > limits.OWNER_BYTES_MAX:
        _bad(field, path, f"the name is over {limits.OWNER_BYTES_MAX} bytes")
    if name.isascii():
        return
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        _bad(field, path, "the name is not Unicode")
    if length > limits.OWNER_BYTES_MAX:
        _bad(field, path, f"the name is over {limits.OWNER_BYTES_MAX} bytes")


def _check_attributes(entry: Entry) -> None:
    ref = entry.attributes_ref
    if entry.attributes is not None and ref is not None:
        _bad("attributes", entry.path, "attributes must be in the entry or in a chunk, not in both")
    if ref is not None:
        _check_ref(ref, "attributes", entry.path)
    if entry.attributes is not None:
        check_attributes(entry.attributes, entry)


def check_attributes(attributes: Attributes, entry: Entry) -> None:
    """Check extended attributes and holes against their limits and their entry.

    Raises BadRequest BAD_FIELD.
    """
    path = entry.path
    if len(attributes.xattrs) > limits.XATTRS_MAX:
        _bad("xattrs", path, f"there are over {limits.XATTRS_MAX} extended attributes")
    for name, value in attributes.xattrs:
        if not 1 <= len(name) <= limits.XATTR_NAME_BYTES_MAX or b"\0" in name:
            _bad("xattrs", path, "the name of an extended attribute is empty, too long, or holds a NUL byte")
        if len(value) > limits.XATTR_VALUE_BYTES_MAX:
            _bad("xattrs", path, f"an extended attribute is over {limits.XATTR_VALUE_BYTES_MAX} bytes")
    if len({xattr.name for xattr in attributes.xattrs}) != len(attributes.xattrs):
        _bad("xattrs", path, "an extended attribute appears twice")
    _check_holes(attributes, entry)
    # One byte of the chunk is its kind.
    if len(_attributes_encoder.encode(attributes)) > limits.ATTRIBUTES_BYTES_MAX - 1:
        _bad("xattrs", path, f"attributes and holes together are over {limits.ATTRIBUTES_BYTES_MAX} bytes")


def _check_holes(attributes: Attributes, entry: Entry) -> None:
    holes, path = attributes.holes, entry.path
    if not holes:
        return
    if entry.type != EntryType.FILE:
        _bad("holes", path, "only a file has holes")
    if len(holes) > limits.HOLES_MAX:
        _bad("holes", path, f"there are over {limits.HOLES_MAX} holes")
    size = limits.FILE_BYTES_MAX if entry.content is None else entry.content.size
    end = -1
    for offset, length in holes:
        if offset <= end or offset < 0 or length < 1:
            _bad("holes", path, "holes are empty, adjacent, or out of order")
        end = offset + length
    if end > size:
        _bad("holes", path, "a hole lies outside the file")


def implied_directory(path: bytes) -> Entry:
    """Return a directory that was not sent but has content."""
    return Entry(path, EntryType.DIRECTORY, flags=Flag.IMPLIED.value)


def removal(path: bytes) -> Entry:
    """Return a run's removal of `path` and everything below it from older data."""
    return Entry(path, EntryType.REMOVED)


def same_content(a: Entry, b: Entry) -> bool:
    """Return whether type, content, link target and device agree: everything except metadata."""
    if a.type != b.type or a.link_target != b.link_target or a.device != b.device:
        return False
    if a.content is None or b.content is None:
        return a.content is b.content
    return a.content.content_id == b.content.content_id


def same(a: Entry, b: Entry) -> bool:
    """Return whether two entries agree in content and metadata.

    The mark to read an entry again is neither.
    """
    if a == b:
        return True
    if (a.flags ^ b.flags) != Flag.READ_AGAIN:
        return False
    return msgspec.structs.replace(a, flags=b.flags) == b


def _bad(field: str, path: bytes, what: str) -> Never:
    text = shown(path)
    raise errors.BadRequest("BAD_FIELD", f"{text!r}: {what}", field=field, path=text)
