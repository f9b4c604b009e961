"""Many entries as columns: as they travel, and as leaves hold them, with no object for each entry.

An object is made only for an entry that somebody looks at, or that has more than the columns say.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, repeat
from typing import Any, Final, cast, overload

import msgspec

from staddle_server.base.types import (
    Attributes,
    ChunkRef,
    Content,
    Entry,
    EntryType,
    ListRoot,
    Profile,
    sort_key,
)

_FILE: Final = EntryType.FILE.value
_SYMLINK: Final = EntryType.SYMLINK.value
_TYPES: Final = tuple(EntryType)
_PROFILES: Final = {each.value: each for each in Profile}


class Rare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one entry has beside its columns. `chunks`: of a file with several; else `root`, if any."""

    device: tuple[int, int] | None = None
    link_group: bytes = b""
    attributes: Attributes | None = None
    attributes_ref: ChunkRef | None = None
    file_digest: bytes = b""
    chunks: tuple[ChunkRef, ...] = ()
    root: ListRoot | None = None


NOTHING_RARE: Final = Rare()


class Columns(msgspec.Struct, frozen=True, gc=False):
    """Entries in order: for each a path and a type; a column has as many values as that, or none.

    `sizes`, `content_ids` and `profiles` have a value for each file, `link_targets` for each symlink. `flags`
    are those of Entry. Lengths are the caller's to check, values are not: see `check_columns`.
    """

    paths: Sequence[bytes]
    types: bytes
    flags: bytes = b""
    modes: Sequence[int | None] = ()
    uids: Sequence[int | None] = ()
    gids: Sequence[int | None] = ()
    mtimes_ns: Sequence[int | None] = ()
    ctimes_ns: Sequence[int | None] = ()
    inodes: Sequence[int | None] = ()
    owners: Sequence[str] = ()
    groups: Sequence[str] = ()
    sizes: Sequence[int] = ()
    content_ids: Sequence[bytes] = ()
    profiles: bytes = b""
    link_targets: Sequence[bytes] = ()
    rare: dict[int, Rare] = {}

    def __len__(self) -> int:
        return len(self.types)

    def files_before(self, at: int) -> int:
        """Return how many files come before a position: the place of a file in the columns of files."""
        return self.types.count(_FILE, 0, at)

    def part(self, start: int, stop: int) -> "Columns":
        """Return the entries from one position up to another."""
        if start == 0 and stop == len(self):
            return self
        files = slice(self.files_before(start), self.files_before(stop))
        links = slice(self.types.count(_SYMLINK, 0, start), self.types.count(_SYMLINK, 0, stop))
        parts: dict[str, Any] = {
            **{name: getattr(self, name)[start:stop] for name in _OF_ALL},
            **{name: getattr(self, name)[files] for name in _OF_FILES},
        }
        rare = {at - start: each for at, each in self.rare.items() if start <= at < stop}
        return Columns(**parts, link_targets=self.link_targets[links], rare=rare)


_OF_ALL: Final = Columns.__struct_fields__[:11]
_OF_FILES: Final = Columns.__struct_fields__[11:14]
_DEFAULTS: Final[dict[str, Any]] = {"flags": 0, "owners": "", "groups": ""}


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the entries of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    whole: dict[str, Any] = {
        **{name: _joined(parts, name) for name in _OF_ALL},
        **{name: _chain(parts, name) for name in (*_OF_FILES, "link_targets")},
    }
    firsts = accumulate(map(len, parts), initial=0)
    rare = {
        first + at: each for first, part in zip(firsts, parts, strict=False) for at, each in part.rare.items()
    }
    return Columns(**whole, rare=rare)


def _joined(parts: Sequence[Columns], name: str) -> Any:
    if not any(getattr(part, name) for part in parts):
        return getattr(parts[0], name)[:0]
    values = [getattr(part, name) or [_DEFAULTS.get(name)] * len(part) for part in parts]
    return (
        bytes(chain.from_iterable(values))
        if name in {"types", "flags"}
        else list(chain.from_iterable(values))
    )


def _chain(parts: Sequence[Columns], name: str) -> Any:
    values = chain.from_iterable(getattr(part, name) for part in parts)
    return bytes(values) if name == "profiles" else list(values)


class CheckedColumns(Sequence[Entry]):
    """Columns that would be accepted as entries: a sequence of these, each made when it is looked at.

    Attributes:
        columns: What was checked.
        keys: The sort key of each entry.

    """

    def __init__(self, columns: Columns, keys: Sequence[bytes]) -> None:
        self.columns = columns
        self.keys = keys
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            start, stop, _ = at.indices(len(self))
            return entries_in(self.columns.part(start, stop)) if start < stop else []
        return entry_at(self.columns, at if at >= 0 else at + len(self))

    def __iter__(self) -> Iterator[Entry]:
        return iter(entries_in(self.columns))

    def row(self, at: int) -> tuple[Any, ...]:
        """Return all that an entry has beside its path, to compare it with that of another."""
        if not self._rows:
            columns = self.columns
            contents = zip(columns.sizes, columns.content_ids, columns.profiles, strict=True)
            self._rows = list(zip(*_fields(columns, contents), strict=False))
        return *self._rows[at], self.columns.rare.get(at)

    @property
    def data_bytes(self) -> int:
        """The bytes of all files."""
        return sum(self.columns.sizes)

    @property
    def refs(self) -> list[ChunkRef]:
        """All chunks that files refer to by themselves, in order."""
        return list(chain.from_iterable(refs_of(self.columns)))

    def lacking(self, absent: Collection[bytes]) -> list[int]:
        """Return the positions of files with a chunk among these."""
        files = (at for at, kind in enumerate(self.columns.types) if kind == _FILE)
        return [
            at
            for at, refs in zip(files, refs_of(self.columns), strict=True)
            if any(ref.digest in absent for ref in refs)
        ]

    def stored(self, store: Callable[[Entry], Entry]) -> "CheckedColumns":
        """Return the entries as a manifest holds them; `store` returns an entry whose large attributes are
        stored.
        """
        rare = self.columns.rare
        if all(each.attributes is None for each in rare.values()):
            return self
        kept = dict(rare)
        for at, each in rare.items():
            entry = store(entry_at(self.columns, at))
            kept[at] = msgspec.structs.replace(
                each, attributes=entry.attributes, attributes_ref=entry.attributes_ref
            )
        return CheckedColumns(msgspec.structs.replace(self.columns, rare=kept), self.keys)


def refs_of(columns: Columns) -> list[Sequence[ChunkRef]]:
    """Return the chunks that each file names itself."""
    refs: list[Sequence[ChunkRef]] = [
        (ref,) if ref.length else ()
        for ref in map(ChunkRef._make, zip(columns.sizes, columns.content_ids, strict=True))
    ]
    for at, rare in columns.rare.items():
        if rare.chunks or rare.root is not None:
            refs[columns.files_before(at)] = rare.chunks
    return refs


def digests_of(columns: Columns) -> list[bytes]:
    """Return the digests of all chunks that files name themselves."""
    if any(rare.chunks or rare.root is not None for rare in columns.rare.values()):
        return [ref.digest for refs in refs_of(columns) for ref in refs]
    return list(compress(columns.content_ids, columns.sizes))


def columns_of(entries: Sequence[Entry], rare: dict[int, Rare] | None = None) -> Columns:
    """Return valid entries as columns; `rare` has what `rare_of` says of each, if that is known.

    Raises:
        ValueError: An entry does not have what its type demands.

    """
    (
        paths, types, modes, uids, gids, mtimes_ns, ctimes_ns, inodes, contents, targets, owners, groups,
        *_, flags,
    ) = cast(Any, zip(*map(msgspec.structs.astuple, entries), strict=True))  # fmt: skip
    files: list[Content] = [content for content in contents if content is not None]
    links = [target for target in targets if target is not None]
    kinds = bytes(types)
    if (len(files), len(links)) != (kinds.count(_FILE), kinds.count(_SYMLINK)):
        raise ValueError("each file has a content, each symlink a target, and nothing else has")
    if rare is None:
        rare = {at: each for at, each in enumerate(map(rare_of, entries)) if each is not NOTHING_RARE}
    return Columns(
        paths, kinds, bytes(flags), modes, uids, gids, mtimes_ns, ctimes_ns, inodes, owners, groups,
        [content.size for content in files],
        [content.content_id for content in files],
        bytes([content.profile for content in files]),
        links,
        rare,
    )  # fmt: skip


def rare_of(entry: Entry) -> Rare:
    """Return what an entry has beside its columns; NOTHING_RARE itself, if that is nothing."""
    content = entry.content
    # Of an empty file, and of one chunk, size and id say all.
    listed = content is not None and (
        content.root is not None or len(content.chunks) != (1 if content.size else 0)
    )
    if not (
        listed
        or entry.device is not None
        or entry.link_group
        or entry.attributes is not None
        or entry.attributes_ref is not None
        or entry.file_digest
    ):
        return NOTHING_RARE
    return Rare(
        entry.device,
        entry.link_group,
        entry.attributes,
        entry.attributes_ref,
        entry.file_digest,
        content.chunks if listed and content is not None else (),
        content.root if listed and content is not None else None,
    )


def _fields(columns: Columns, contents: Iterable[Any]) -> Sequence[Iterable[Any]]:
    """Return the fields of all entries that are columns, from the type to the group, and flags; `contents` are
    those of the files.
    """
    types, nothing = columns.types, repeat(None)
    return (
        types,
        columns.modes or nothing,
        columns.uids or nothing,
        columns.gids or nothing,
        columns.mtimes_ns or nothing,
        columns.ctimes_ns or nothing,
        columns.inodes or nothing,
        _spread(contents, types, _FILE) if columns.sizes else nothing,
        _spread(columns.link_targets, types, _SYMLINK) if columns.link_targets else nothing,
        columns.owners or repeat(""),
        columns.groups or repeat(""),
        columns.flags or repeat(0),
    )


def _spread(values: Iterable[Any], types: bytes, kind: int) -> Iterable[Any]:
    """Return the values for entries of a type, and None for each other."""
    following = iter(values)
    return (
        following
        if types.count(kind) == len(types)
        else [next(following) if each == kind else None for each in types]
    )


def entries_in(columns: Columns) -> list[Entry]:
    """Return all entries as objects."""
    contents = [
        Content(size, identity, _PROFILES[profile], (ChunkRef(size, identity),) if size else ())
        for size, identity, profile in zip(columns.sizes, columns.content_ids, columns.profiles, strict=True)
    ]
    kinds, *others, flags = _fields(columns, contents)
    made = list(
        map(
            Entry,
            columns.paths,
            map(_TYPES.__getitem__, kinds),
            *others,
            repeat(None),  # device
            repeat(b""),  # link_group
            repeat(None),  # attributes
            repeat(None),  # attributes_ref
            repeat(b""),  # file_digest
            flags,
        )
    )
    for at in columns.rare:
        made[at] = entry_at(columns, at)
    return made


def entry_at(columns: Columns, at: int) -> Entry:
    """Return the entry at a position as an object."""

    def of(values: Sequence[Any], default: Any = None) -> Any:
        return values[at] if values else default

    kind = _TYPES[columns.types[at]]
    content, target = None, None
    rare = columns.rare.get(at, NOTHING_RARE)
    if kind is EntryType.FILE:
        place = columns.files_before(at)
        size, identity = columns.sizes[place], columns.content_ids[place]
        chunks = rare.chunks or ((ChunkRef(size, identity),) if size and rare.root is None else ())
        content = Content(size, identity, _PROFILES[columns.profiles[place]], chunks, rare.root)
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
        rare.attributes_ref,
        rare.file_digest,
        of(columns.flags, 0),
    )


def keys_of(paths: Iterable[bytes]) -> list[bytes]:
    """Return the sort keys of paths."""
    return list(map(sort_key, paths))
