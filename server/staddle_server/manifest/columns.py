"""Many entries as columns: checked as a whole, and encoded as pages hold them, with no object for each entry.

What is accepted, and what becomes of it, equals that of so many entries (entries.py). An object exists only
for an entry that has more than the columns say.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, islice, repeat
from operator import lt
from typing import Any, Final, NamedTuple, Never

import msgspec
from staddle.chunking import EMPTY_CONTENT_ID, content_id

from staddle_server.base import errors, limits
from staddle_server.base.types import Attributes, ChunkRef, Content, Entry, EntryType, Flag, Profile, sort_key
from staddle_server.manifest.entries import check_path, check_whole, shown
from staddle_server.manifest.pages import encoder

_FILE: Final = EntryType.FILE.value
_SYMLINK: Final = EntryType.SYMLINK.value
_DEVICES: Final = bytes([EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE])
_INCOMPLETE: Final = Flag.INCOMPLETE.value
_PLAIN_FLAGS: Final = bytes(flags for flags in range(256) if not flags & _INCOMPLETE)


class Rare(msgspec.Struct, frozen=True, gc=False):
    """What one entry has beside its columns. `chunks`: of a file with several."""

    device: tuple[int, int] | None = None
    link_group: bytes = b""
    attributes: Attributes | None = None
    file_digest: bytes = b""
    chunks: tuple[ChunkRef, ...] = ()


class Columns(msgspec.Struct, frozen=True, gc=False):
    """Entries in order: for each a path and a type; a column has as many values as that, or none.

    `sizes` and `content_ids` have a value for each file, `link_targets` for each symlink. `flags` are those
    of Entry. Lengths are the caller's to check, values are not: see `check_columns`.
    """

    paths: list[bytes]
    types: bytes
    flags: bytes = b""
    modes: list[int] = []
    uids: list[int] = []
    gids: list[int] = []
    mtimes_ns: list[int] = []
    ctimes_ns: list[int] = []
    inodes: list[int] = []
    owners: list[str] = []
    groups: list[str] = []
    sizes: list[int] = []
    content_ids: list[bytes] = []
    link_targets: list[bytes] = []
    profile: Profile = Profile.CONTENT_DEFINED
    rare: dict[int, Rare] = {}

    def __len__(self) -> int:
        return len(self.types)


class Rows(NamedTuple):
    """Entries in path order, encoded as in pages."""

    keys: Sequence[bytes]
    types: bytes
    packed: Sequence[bytes]
    sizes: Sequence[int]
    """Of the content of each; 0 for other types."""


class CheckedColumns:
    """Columns that would be accepted as entries.

    Attributes:
        columns: What was checked.
        keys: The sort key of each entry.
        refs: All chunks that files refer to, in order.

    """

    def __init__(self, columns: Columns, keys: Sequence[bytes], rare: Mapping[int, Entry]) -> None:
        self.columns = columns
        self.keys = keys
        self._rare = rare
        self.refs = list(chain.from_iterable(self._refs()))

    def __len__(self) -> int:
        return len(self.columns)

    def _refs(self) -> Iterator[Sequence[ChunkRef]]:
        """Yield the chunks of each file."""
        columns = self.columns
        refs: list[Sequence[ChunkRef]] = [
            (ref,) if ref.length else ()
            for ref in map(ChunkRef._make, zip(columns.sizes, columns.content_ids, strict=True))
        ]
        for at, rare in columns.rare.items():
            if rare.chunks:
                refs[columns.types.count(_FILE, 0, at)] = rare.chunks
        yield from refs

    def lacking(self, absent: Collection[bytes]) -> list[int]:
        """Return the positions of files with a chunk among these."""
        files = compress(range(len(self)), map(_FILE.__eq__, self.columns.types))
        return [
            at
            for at, refs in zip(files, self._refs(), strict=True)
            if any(ref.digest in absent for ref in refs)
        ]

    def rows(self, store: Callable[[Entry], Entry]) -> Rows:
        """Return the entries encoded; `store` returns an entry whose large attributes are stored."""
        columns = self.columns
        is_file = [each == _FILE for each in columns.types]
        packed = list(map(encoder.encode, _rows(columns, is_file)))
        for at, entry in self._rare.items():
            packed[at] = encoder.encode(store(entry))
        return Rows(self.keys, columns.types, packed, _spread(columns.sizes, is_file, 0))


def _rows(columns: Columns, is_file: Sequence[bool]) -> Iterator[tuple[Any, ...]]:
    """Yield each entry as the tuple of its fields, which is encoded as an Entry is."""
    profile = columns.profile.value
    contents = [
        (size, digest, profile, ((size, digest),) if size else (), None)
        for size, digest in zip(columns.sizes, columns.content_ids, strict=True)
    ]
    nothing: Iterable[None] = repeat(None)
    targets: Iterable[bytes | None] = nothing
    if columns.link_targets:
        targets = _spread(columns.link_targets, [each == _SYMLINK for each in columns.types], None)
    return zip(
        columns.paths,
        columns.types,
        columns.modes or nothing,
        columns.uids or nothing,
        columns.gids or nothing,
        columns.mtimes_ns or nothing,
        columns.ctimes_ns or nothing,
        columns.inodes or nothing,
        _spread(contents, is_file, None),
        targets,
        columns.owners or repeat(""),
        columns.groups or repeat(""),
        nothing,  # device
        repeat(b""),  # link_group
        nothing,  # attributes
        nothing,  # attributes_ref
        repeat(b""),  # file_digest
        columns.flags or repeat(0),
    )  # fmt: skip


def _spread(values: Sequence[Any], has: Sequence[bool], default: Any) -> Sequence[Any]:
    """Return the values at the positions that have one, and the default elsewhere."""
    if len(values) == len(has):
        return values
    following = iter(values)
    return [next(following) if each else default for each in has]


def check_columns(columns: Columns) -> CheckedColumns:
    """Check all that columns say, as check_whole does entry by entry, and that paths are in order.

    Raises:
        BadRequest: BAD_FIELD with the facts field and path; DIGEST_MISMATCH, a content id is not that of the
            chunks.

    """
    keys = _checked_paths(columns)
    _check_numbers(columns)
    _check_contents(columns)
    _check_links(columns)
    rare = {at: entry_at(columns, at) for at in columns.rare}
    for entry in rare.values():
        check_whole(entry)
    return CheckedColumns(columns, keys, rare)


def _checked_paths(columns: Columns) -> list[bytes]:
    """Return the sort keys of valid paths in order."""
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
    keys = [sort_key(path) for path in paths]
    if not all(map(lt, keys, islice(keys, 1, None))):
        at = next(at for at in range(1, len(keys)) if keys[at - 1] >= keys[at])
        _bad(columns, "paths", at, f"it must come after {shown(paths[at - 1])!r}, in the order of entries")
    if not paths[0] and columns.types[0] != EntryType.DIRECTORY:
        _bad(columns, "types", 0, "the root (the empty path) is not a directory")
    return keys


def _check_numbers(columns: Columns) -> None:
    if columns.modes and max(columns.modes) > 0o7777:
        _bad(columns, "modes", _over(columns.modes, 0o7777), "the mode is over 07777")
    for name in {*columns.owners, *columns.groups}:
        if len(name.encode()) > limits.OWNER_BYTES_MAX:
            field = "owners" if name in columns.owners else "groups"
            at = (columns.owners if name in columns.owners else columns.groups).index(name)
            _bad(columns, field, at, f"the name is over {limits.OWNER_BYTES_MAX} bytes")
    if columns.flags.translate(None, _PLAIN_FLAGS):
        for at, (flags, kind) in enumerate(zip(columns.flags, columns.types, strict=True)):
            if flags & _INCOMPLETE and kind != EntryType.DIRECTORY:
                _bad(columns, "flags", at, "only a directory can be incomplete")
    for at in _of_types(columns, _DEVICES):
        rare = columns.rare.get(at)
        if rare is None or rare.device is None:
            _bad(columns, "rare", at, "the device has no number")


def _check_contents(columns: Columns) -> None:
    """Check sizes and content ids, and the chunks of files with several."""
    sizes, ids = columns.sizes, columns.content_ids
    files: Sequence[int] | None = None
    several = {at: rare.chunks for at, rare in columns.rare.items() if rare.chunks}
    if sizes and max(sizes) > limits.CHUNK_BYTES_MAX:
        files = _of_types(columns, bytes([_FILE]))
        for at, size in zip(files, sizes, strict=True):
            if size > limits.FILE_BYTES_MAX:
                _bad(columns, "sizes", at, "the size is out of range")
            if size > limits.CHUNK_BYTES_MAX and at not in several:
                _bad(columns, "rare", at, f"a file of {size} bytes needs a list of its chunks")
    if 0 in sizes:
        files = files or _of_types(columns, bytes([_FILE]))
        for at, size, digest in zip(files, sizes, ids, strict=True):
            if not size and digest != EMPTY_CONTENT_ID:
                _bad(columns, "content_ids", at, "the content id is not that of an empty file")
    for at, chunks in several.items():
        if columns.types[at] != _FILE:
            _bad(columns, "rare", at, "only a file has content")
        place = columns.types.count(_FILE, 0, at)
        _check_list(columns, at, chunks, (sizes[place], ids[place]))


def _check_list(columns: Columns, at: int, chunks: Sequence[ChunkRef], stated: tuple[int, bytes]) -> None:
    size, identity = stated
    if not 2 <= len(chunks) <= limits.CHUNKS_INLINE_MAX:
        _bad(columns, "rare", at, f"a list in columns has 2 to {limits.CHUNKS_INLINE_MAX} chunks")
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


def entry_at(columns: Columns, at: int) -> Entry:
    """Return the entry at a position as an object."""

    def of(values: Sequence[Any], default: Any = None) -> Any:
        return values[at] if values else default

    kind = EntryType(columns.types[at])
    content, target = None, None
    rare = columns.rare.get(at, Rare())
    if kind is EntryType.FILE:
        place = columns.types.count(_FILE, 0, at)
        size, identity = columns.sizes[place], columns.content_ids[place]
        chunks = rare.chunks or ((ChunkRef(size, identity),) if size else ())
        content = Content(size, identity, columns.profile, chunks)
    elif kind is EntryType.SYMLINK:
        target = columns.link_targets[columns.types.count(_SYMLINK, 0, at)]
    return Entry(
        columns.paths[at],
        kind,
        of(columns.modes),
        of(columns.uids),
        of(columns.gids),
        of(columns.mtimes_ns),
        of(columns.ctimes_ns),
        of(columns.inodes),
        content,
        target,
        of(columns.owners, ""),
        of(columns.groups, ""),
        rare.device,
        rare.link_group,
        rare.attributes,
        file_digest=rare.file_digest,
        flags=of(columns.flags, 0),
    )


def _of_types(columns: Columns, types: bytes) -> list[int]:
    """Return the positions of entries of these types."""
    return [at for at, kind in enumerate(columns.types) if kind in types]


def _over(values: Sequence[int], limit: int) -> int:
    return next(at for at, value in enumerate(values) if value > limit)


def _bad(columns: Columns, field: str, at: int, what: str) -> Never:
    path = shown(columns.paths[at])
    raise errors.BadRequest(
        "BAD_FIELD", f"{path!r}: {what} (columns.{field})", field=f"columns.{field}", path=path
    )
