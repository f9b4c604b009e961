"""Values that the catalog returns about packs: their parity and damage, marks, and what is garbage."""

from dataclasses import dataclass
from typing import NamedTuple

from staddle_server.base.types import (
    Root,
)


class PackParity(NamedTuple):
    """A live pack and the length of its parity object; 0 for none.

    Attributes:
        row: Where the next page of a list of packs continues.
        tenant: The id of the tenant.
        pack: The pack's id.
        size_bytes: The pack's length.
        parity_bytes: The length of its parity object.

    """

    row: int
    tenant: bytes
    pack: bytes
    size_bytes: int
    parity_bytes: int


class KnownDamage(NamedTuple):
    """Known damage in a tenant that a backup may need: whole packs, and single segments of others.

    `footers`: headers and footers of packs. Only a rebuild of the catalog needs them, no backup: they count
    until repaired.
    """

    epoch: int
    packs: int
    segments: int
    footers: int = 0


class ParityTotals(NamedTuple):
    """How many live packs exist, and how many have parity; with their bytes."""

    packs: int
    pack_bytes: int
    with_parity: int
    parity_bytes: int


class LeftOverPack(NamedTuple):
    """A pack that was begun and can never become live: its writer lost the upload."""

    tenant: bytes
    pack: bytes
    upload: bytes
    created_ns: int


class Mark(NamedTuple):
    """A mark, by its number. `walked`: all its roots were; `resumed`: an earlier collector began it."""

    number: int
    walked: bool
    resumed: bool


class MarkRoot(NamedTuple):
    """A manifest that a mark walks, by its backup."""

    backup: bytes
    root: Root


class MarkedPack(NamedTuple):
    """A live pack of a mark.

    `row` is where the next page begins; `reached` is opaque; `claimed`: by a claim that counts.
    """

    row: int
    pack: bytes
    size_bytes: int
    chunk_count: int
    damaged: bool
    reached: bytes
    claimed: bool


class PurgeableBackup(NamedTuple):
    """A deleted backup that nothing protects any more."""

    backup: bytes
    dataset: str
    number: int
    deleted_ns: int


class GoneBackup(NamedTuple):
    """A purged backup whose row still exists."""

    backup: bytes
    commit_ns: int
    purged_ns: int


class CondemnedPack(NamedTuple):
    """A pack that is out of the index, and whose object still exists."""

    pack: bytes
    size_bytes: int
    condemned_ns: int


class Waiting(NamedTuple):
    """Totals of condemned packs: how many, how large, and when the first and the last can be removed."""

    packs: int
    size_bytes: int
    first_ns: int | None
    last_ns: int | None


class LockDue(NamedTuple):
    """A live pack whose object lock is to be extended, its tenant, and until when it is locked (0: unknown)."""

    row: int
    tenant: bytes
    pack: bytes
    locked_until_ns: int


class Orphan(NamedTuple):
    """An object without a row, and when it was first seen so."""

    name: str
    size_bytes: int
    seen_ns: int


@dataclass(frozen=True, slots=True)
class LivePack:
    """A live pack in the catalog.

    `marks` are the offsets of damaged segments; WHOLE_PACK: all of it; FOOTER: its header or footer.
    """

    tenant: bytes
    id: bytes
    size_bytes: int
    chunk_count: int
    verified_ns: int | None
    marks: frozenset[int]
