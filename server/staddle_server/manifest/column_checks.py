"""Columns checked as a whole: what is accepted equals what is accepted of so many entries (entries.py)."""

from collections.abc import Iterator, Sequence
from itertools import islice
from operator import lt
from typing import Final, Never, cast

from staddle.chunking import EMPTY_CONTENT_ID, content_id

from staddle_server.base import errors, limits
from staddle_server.base.types import ChunkRef, EntryType, Flag
from staddle_server.manifest.columns import CheckedColumns, Columns, entry_at, keys_of
from staddle_server.manifest.entries import check_path, check_whole, shown

_REMOVED: Final = EntryType.REMOVED.value
_FILE: Final = EntryType.FILE.value
_SYMLINK: Final = EntryType.SYMLINK.value
_OF_ROOT: Final = (EntryType.DIRECTORY, EntryType.REMOVED)
_DEVICES: Final = bytes([EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE])
_NO_DEVICES: Final = bytes(each for each in range(256) if each not in _DEVICES)
_INCOMPLETE: Final = Flag.INCOMPLETE.value
_PLAIN_FLAGS: Final = bytes(flags for flags in range(256) if not flags & _INCOMPLETE)


def check_columns(columns: Columns) -> CheckedColumns:
    """Check all that sent columns say, as check_whole does entry by entry, and that paths are in order.

    Raises:
        BadRequest: BAD_FIELD with the facts field and path; DIGEST_MISMATCH, a content id is not that of the
            chunks.

    """
    keys = _checked_paths(columns)
    for at in _out_of_order(keys):
        before = shown(columns.paths[at - 1])
        _bad(columns, "paths", at, f"it must come after {before!r}, in the order of entries")
    _check_values(columns)
    for at, rare in columns.rare.items():
        if rare.chunks:
            _check_list(columns, at, rare.chunks)
    _check_rare(columns)
    return CheckedColumns(columns, keys)


def check_stored_columns(columns: Columns, *, run: bool) -> CheckedColumns:
    """Check columns of a leaf in the same way; in a run, a removal may precede the entry of its path.

    What a content id says of several chunks is not checked: whoever reads them does that.

    Raises:
        BadRequest: BAD_FIELD with the facts field and path.

    """
    types = columns.types
    keys = _checked_paths(columns)
    for at in _out_of_order(keys):
        if not run or keys[at] != keys[at - 1] or types[at - 1] or not types[at]:
            _bad(columns, "paths", at, "the entries of a leaf are not in order")
    if _REMOVED in types:
        for at in _of_types(columns, bytes([_REMOVED])):
            if not run:
                _bad(columns, "types", at, "a manifest contains a removal")
            check_whole(entry_at(columns, at))
    _check_values(columns)
    _check_rare(columns)
    return CheckedColumns(columns, keys)


def _checked_paths(columns: Columns) -> list[bytes]:
    """Return the sort keys of valid paths."""
    paths = columns.paths
    joined = b"\0".join(paths)
    # Most batches skip the check of each path.
    if (
        b"//" in joined
        or b"/." in joined
        or b"\0." in joined
        or b"/\0" in joined
        or b"\0/" in joined
        or joined[:1] in {b"/", b"."}
        or joined[-1:] == b"/"
        or max(map(len, paths)) > limits.COMPONENT_BYTES_MAX
    ):
        for path in paths:
            check_path(path)
    for at in range(min(2, len(paths))):  # in a run, a removal of the root may precede it
        if not paths[at] and columns.types[at] not in _OF_ROOT:
            _bad(columns, "types", at, "the root (the empty path) is not a directory")
    return keys_of(paths)


def _out_of_order(keys: Sequence[bytes]) -> Iterator[int]:
    """Yield the positions of keys that do not come after the key before."""
    if not all(map(lt, keys, islice(keys, 1, None))):
        yield from (at for at in range(1, len(keys)) if keys[at - 1] >= keys[at])


def _check_values(columns: Columns) -> None:
    _check_numbers(columns)
    _check_contents(columns)
    _check_links(columns)


def _check_rare(columns: Columns) -> None:
    for at in columns.rare:
        check_whole(entry_at(columns, at))


def _check_numbers(columns: Columns) -> None:
    for at, mode in enumerate(columns.modes) if _largest(columns.modes) > 0o7777 else ():
        if mode is not None and mode > 0o7777:
            _bad(columns, "modes", at, "the mode is over 07777")
    for name in {*columns.owners, *columns.groups}:
        if len(name.encode()) > limits.OWNER_BYTES_MAX:
            field = "owners" if name in columns.owners else "groups"
            at = (columns.owners if name in columns.owners else columns.groups).index(name)
            _bad(columns, field, at, f"the name is over {limits.OWNER_BYTES_MAX} bytes")
    if columns.flags.translate(None, _PLAIN_FLAGS):
        for at, (flags, kind) in enumerate(zip(columns.flags, columns.types, strict=True)):
            if flags & _INCOMPLETE and kind != EntryType.DIRECTORY:
                _bad(columns, "flags", at, "only a directory can be incomplete")
    for at in _of_types(columns, _DEVICES) if columns.types.translate(None, _NO_DEVICES) else ():
        rare = columns.rare.get(at)
        if rare is None or rare.device is None:
            _bad(columns, "rare", at, "the device has no number")


def _check_contents(columns: Columns) -> None:
    """Check sizes and content ids, and the chunks of files with several."""
    sizes, ids = columns.sizes, columns.content_ids
    listed = {at: rare for at, rare in columns.rare.items() if rare.chunks or rare.root is not None}
    if sizes and (max(sizes) > limits.CHUNK_BYTES_MAX or 0 in sizes):
        for at, size, digest in zip(_of_types(columns, bytes([_FILE])), sizes, ids, strict=True):
            if size > limits.FILE_BYTES_MAX:
                _bad(columns, "sizes", at, "the size is out of range")
            if size > limits.CHUNK_BYTES_MAX and at not in listed:
                _bad(columns, "rare", at, f"a file of {size} bytes needs a list of its chunks")
            if not size and digest != EMPTY_CONTENT_ID:
                _bad(columns, "content_ids", at, "the content id is not that of an empty file")
    for at, rare in listed.items():
        if columns.types[at] != _FILE:
            _bad(columns, "rare", at, "only a file has content")
        if rare.root is None and not 2 <= len(rare.chunks) <= limits.CHUNKS_INLINE_MAX:
            _bad(columns, "rare", at, f"a list in columns has 2 to {limits.CHUNKS_INLINE_MAX} chunks")


def _check_list(columns: Columns, at: int, chunks: Sequence[ChunkRef]) -> None:
    place = columns.files_before(at)
    size, identity = columns.sizes[place], columns.content_ids[place]
    for ref in chunks:
        if len(ref.digest) != len(EMPTY_CONTENT_ID) or not 1 <= ref.length <= limits.CHUNK_BYTES_MAX:
            _bad(
                columns,
                "rare",
                at,
                f"a chunk has a digest of 32 bytes and 1 to {limits.CHUNK_BYTES_MAX} bytes",
            )
    total = sum(ref.length for ref in chunks)
    if (total, content_id(chunks)) != (size, identity):
        path = shown(columns.paths[at])
        raise errors.BadRequest(
            "DIGEST_MISMATCH",
            f"{path!r}: its chunks have {total} bytes and another content id than columns.content_ids states "
            f"for {size} bytes",
            path=path,
        )


def _check_links(columns: Columns) -> None:
    targets = columns.link_targets
    if targets and not (all(targets) and max(map(len, targets)) <= limits.LINK_TARGET_BYTES_MAX):
        for at, target in zip(_of_types(columns, bytes([_SYMLINK])), targets, strict=True):
            if not target:
                _bad(columns, "link_targets", at, "the symlink has no target")
            if len(target) > limits.LINK_TARGET_BYTES_MAX:
                what = f"the target is over {limits.LINK_TARGET_BYTES_MAX} bytes"
                _bad(columns, "link_targets", at, what)


def _of_types(columns: Columns, types: bytes) -> list[int]:
    """Return the positions of entries of these types."""
    return [at for at, kind in enumerate(columns.types) if kind in types]


def _largest(values: Sequence[int | None]) -> int:
    """Return the largest of the values that are set; 0 for none."""
    if None in values:
        values = [value for value in values if value is not None]
    return max(cast("Sequence[int]", values), default=0)


def _bad(columns: Columns, field: str, at: int, what: str) -> Never:
    path = shown(columns.paths[at])
    raise errors.BadRequest(
        "BAD_FIELD", f"{path!r}: {what} (columns.{field})", field=f"columns.{field}", path=path
    )
