"""Leaves as bytes: entries as columns (docs/format.md, "Leaf"), in the one form that these entries have."""

import sys
from collections.abc import Sequence
from itertools import islice
from operator import lt
from struct import Struct, pack, unpack
from typing import Final, Never

import msgspec

from staddle_server.base import errors, limits
from staddle_server.base.types import Entry, EntryType, Profile
from staddle_server.manifest.column_checks import check_stored_columns
from staddle_server.manifest.columns import (
    NOTHING_RARE,
    CheckedColumns,
    Columns,
    Rare,
    columns_of,
    joined,
    rare_of,
)
from staddle_server.manifest.entries import DIGEST_BYTES, shown

ENTRY_WEIGHT: Final = 100
"""What an entry weighs beside its path, link target, names and rare fields: its columns take less."""
LEAF_ENTRIES_MAX: Final = (limits.PAGE_BYTES_MAX + limits.ENTRY_BYTES_MAX) // ENTRY_WEIGHT

_RARE_BYTES_MAX: Final = limits.ENTRY_BYTES_MAX // 4
"""What is rare in one entry, encoded: the rest is for its path, link target and names."""

Packed = int | bytes | tuple[bytes, int | bytes] | None
"""A column of numbers: see `_pack`."""

_TYPES: Final = bytes(EntryType)
_PROFILES: Final = bytes(Profile)
_FILE: Final = EntryType.FILE.value
_SYMLINK: Final = EntryType.SYMLINK.value
_DIGEST: Final = Struct(f"{DIGEST_BYTES}s")
_encoder: Final = msgspec.msgpack.Encoder()


class Leaf(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What msgpack holds of a leaf."""

    paths: bytes
    types: bytes
    flags: int | bytes
    modes: Packed
    uids: Packed
    gids: Packed
    mtimes_ns: Packed
    ctimes_ns: Packed
    inodes: Packed
    names: list[str]
    owners: int | bytes
    groups: int | bytes
    sizes: int | bytes | None
    content_ids: bytes
    profiles: int | bytes | None
    link_targets: bytes
    rare: list[tuple[int, Rare]]


# ---------------------------------------------------------------------- columns of numbers


def _pack(values: Sequence[int | None], code: str) -> Packed:
    """Return a column: None, nothing is set; a number, that is the value of all; else all values, byte by
    byte: first the lowest of each, in order. Where only some are set, a mask (a byte for each, 1 or 0) and
    the column of these.
    """
    if not values:
        return None
    if None not in values:
        return _pack_set(values, code)  # type: ignore[arg-type] # none is None
    present = [value for value in values if value is not None]
    if not present:
        return None
    return bytes([value is not None for value in values]), _pack_set(present, code)


def _pack_set(values: Sequence[int], code: str) -> int | bytes:
    first = values[0]
    if values.count(first) == len(values):
        return first
    if code == "B":
        return bytes(values)
    packed = pack(f"<{len(values)}{code}", *values)
    width = len(packed) // len(values)
    return b"".join([packed[at::width] for at in range(width)])


def _unpack(column: Packed, code: str, count: int, what: str) -> Sequence[int | None]:
    """Return the values of a column of `count` entries; none, if none is set. Raises Damaged."""
    if column is None:
        return ()
    if not isinstance(column, tuple):
        return _unpack_set(column, code, count, what)
    mask, column = column
    if len(mask) != count or mask.translate(None, b"\0\1") or not 0 < sum(mask) < count:
        _damaged(f"the mask of the {what} does not fit")
    following = iter(_unpack_set(column, code, sum(mask), what))
    return [next(following) if each else None for each in mask]


def _unpack_set(column: int | bytes, code: str, count: int, what: str) -> Sequence[int]:
    low, high, width = _RANGES[code]
    if isinstance(column, int):
        if not low <= column <= high:
            _damaged(f"the {what} are out of range")
        return (column,) * count
    if len(column) != width * count:
        _damaged(f"the {what} are not one for each entry")
    if width == 1:
        values: Sequence[int] = column
    else:
        rows = bytearray(len(column))
        for at in range(width):
            rows[at::width] = column[at * count : (at + 1) * count]
        values = unpack(f"<{count}{code}", rows)
    if not count or values.count(values[0]) == count:
        _damaged(f"the {what} are not in their shortest form")
    return values


_RANGES: Final = {
    code: (-(2 ** (8 * width - 1)) if code == "q" else 0, 2 ** (8 * width - (code == "q")) - 1, width)
    for code, width in (("B", 1), ("H", 2), ("I", 4), ("q", 8), ("Q", 8))
}


# ---------------------------------------------------------------------- encode and decode


def leaf_of(columns: Columns) -> Leaf:
    """Return the leaf of these entries, which must be valid and in order."""
    owners, groups = columns.owners or ("",), columns.groups or ("",)
    names = sorted({*owners, *groups})
    place = {name: at for at, name in enumerate(names)}
    return Leaf(
        b"\0".join(columns.paths),
        columns.types,
        _pack_set(columns.flags or b"\0", "B"),
        _pack(columns.modes, "H"),
        _pack(columns.uids, "I"),
        _pack(columns.gids, "I"),
        _pack(columns.mtimes_ns, "q"),
        _pack(columns.ctimes_ns, "q"),
        _pack(columns.inodes, "Q"),
        names,
        _pack_set(list(map(place.__getitem__, owners)), "H"),
        _pack_set(list(map(place.__getitem__, groups)), "H"),
        _pack_set(columns.sizes, "Q") if columns.sizes else None,
        b"".join(columns.content_ids),
        _pack_set(columns.profiles, "B") if columns.profiles else None,
        b"\0".join(columns.link_targets),
        [(at, rare) for at, rare in sorted(columns.rare.items()) if rare != NOTHING_RARE],
    )


def checked_columns(leaf: Leaf, body: bytes, *, run: bool) -> CheckedColumns:
    """Check all that a leaf says, which was decoded from `body`. Raises Damaged."""
    if _encoder.encode(leaf) != body:
        _damaged("a leaf is not in its shortest form")
    types = leaf.types
    if not types:
        _damaged("a leaf is empty")
    if len(types) > LEAF_ENTRIES_MAX:
        _damaged("a leaf has too many entries")
    if types.translate(None, _TYPES):
        _damaged("an entry has an unknown type")
    try:
        return check_stored_columns(_columns(leaf), run=run)
    except errors.BadRequest as error:
        raise errors.Damaged(f"a page of a manifest has an invalid value: {error.message}") from error


def _columns(leaf: Leaf) -> Columns:
    types = leaf.types
    count, files = len(types), types.count(_FILE)
    owners, groups = _names(leaf)
    if len(leaf.content_ids) != files * DIGEST_BYTES:
        _damaged("the content ids are not one for each file")
    if (
        (leaf.sizes is None or leaf.profiles is None)
        if files
        else (leaf.sizes, leaf.profiles) != (None, None)
    ):
        _damaged("the sizes are not one for each file")
    profiles = b"" if leaf.profiles is None else bytes(_unpack_set(leaf.profiles, "B", files, "profiles"))
    if profiles.translate(None, _PROFILES):
        _damaged("a profile is unknown")
    flags = leaf.flags
    return Columns(
        _split(leaf.paths, count, "paths"),
        types,
        b"" if flags == 0 else bytes(_unpack_set(flags, "B", count, "flags")),
        _unpack(leaf.modes, "H", count, "modes"),
        _unpack(leaf.uids, "I", count, "uids"),
        _unpack(leaf.gids, "I", count, "gids"),
        _unpack(leaf.mtimes_ns, "q", count, "mtimes"),
        _unpack(leaf.ctimes_ns, "q", count, "ctimes"),
        _unpack(leaf.inodes, "Q", count, "inodes"),
        owners,
        groups,
        () if leaf.sizes is None else _unpack_set(leaf.sizes, "Q", files, "sizes"),
        [digest for (digest,) in _DIGEST.iter_unpack(leaf.content_ids)],
        profiles,
        _split(leaf.link_targets, types.count(_SYMLINK), "link targets"),
        _rare(leaf, count),
    )


def _split(values: bytes, count: int, what: str) -> Sequence[bytes]:
    found = values.split(b"\0") if count else []
    if len(found) != count or (values and not count):
        _damaged(f"the {what} are not one for each entry")
    return found


def _names(leaf: Leaf) -> tuple[Sequence[str], Sequence[str]]:
    """Return the owner and the group of each entry."""
    count, names = len(leaf.types), leaf.names
    owners = _unpack_set(leaf.owners, "H", count, "owners")
    groups = _unpack_set(leaf.groups, "H", count, "groups")
    if {*owners, *groups} != set(range(len(names))) or not all(map(lt, names, islice(names, 1, None))):
        _damaged("the names of owners and groups do not fit")
    # A tree has few distinct names, and many pages are in memory at once.
    names = list(map(sys.intern, names))
    if names == [""]:
        return (), ()
    return [names[at] for at in owners], [names[at] for at in groups]


def _rare(leaf: Leaf, count: int) -> dict[int, Rare]:
    places = [at for at, _ in leaf.rare]
    if places and (places[0] < 0 or places[-1] >= count or not all(map(lt, places, islice(places, 1, None)))):
        _damaged("the places of rare fields do not fit")
    if any(rare == NOTHING_RARE for _, rare in leaf.rare):
        _damaged("rare fields of an entry are all unset")
    return dict(leaf.rare)


# ---------------------------------------------------------------------- an unfinished leaf


class LeafWriter:
    """The entries of an unfinished leaf, and what they weigh."""

    def __init__(self) -> None:
        self._parts: list[Columns] = []
        self._entries: list[Entry] = []
        """After the parts."""
        self._rare: dict[int, Rare] = {}
        self.weight = 0

    def add(self, entry: Entry) -> None:
        """Add a valid entry. Raises ValueError if no page has room for it."""
        weight = ENTRY_WEIGHT + len(entry.path) + _bytes_of(entry.owner) + _bytes_of(entry.group)
        if entry.link_target is not None:
            weight += len(entry.link_target)
        if (rare := rare_of(entry)) is not NOTHING_RARE:
            weight += _weight_of_rare(entry.path, rare)
            self._rare[len(self._entries)] = rare
        self.weight += weight
        self._entries.append(entry)

    def extend(self, columns: Columns, weight: int) -> None:
        """Add valid entries that have this weight."""
        self._gather()
        self._parts.append(columns)
        self.weight += weight

    def _gather(self) -> None:
        if self._entries:
            self._parts.append(columns_of(self._entries, self._rare))
            self._entries, self._rare = [], {}

    def take(self) -> Leaf:
        """Return the leaf, and begin the next one."""
        self._gather()
        leaf = leaf_of(joined(self._parts))
        self._parts, self.weight = [], 0
        return leaf


def weight_of(columns: Columns) -> int:
    """Return what entries weigh together. Raises ValueError if no page has room for one of them."""
    names = sum(
        _bytes_of(name) * each.count(name) for each in (columns.owners, columns.groups) for name in set(each)
    )
    texts = sum(map(len, columns.paths)) + sum(map(len, columns.link_targets))
    rare = sum(_weight_of_rare(columns.paths[at], each) for at, each in columns.rare.items())
    return ENTRY_WEIGHT * len(columns) + texts + names + rare


def _bytes_of(name: str) -> int:
    return len(name) if name.isascii() else len(name.encode())


def _weight_of_rare(path: bytes, rare: Rare) -> int:
    weight = len(_encoder.encode(rare))
    if weight > _RARE_BYTES_MAX:
        raise ValueError(
            f"{shown(path)!r} is too large for a page: its attributes were not stored separately"
        )
    return weight


def _damaged(what: str) -> Never:
    raise errors.Damaged(f"A manifest is damaged: {what}.")
