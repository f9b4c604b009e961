"""What check and repair find and do, as data: one finding is one line, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from staddle_server.base.clock import Clock
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.tenancy.tenant import Tenants

DAMAGE: Final = "damage"
"""Something is lost, or no longer protected: what `check` exits 1 for."""
HEALED: Final = "healed"
"""Damaged, without consequence: everything referred to is intact elsewhere."""
NOTE: Final = "note"
"""Worth a line, but not damage."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. Ids and digests are hexadecimal; what does not apply is empty, an offset then -1.

    Attributes:
        kind: Its subject, a stable word (docs/operations.md lists them).
        severity: DAMAGE, HEALED or NOTE.
        message: What is wrong, and what repairs it.

    """

    kind: str
    severity: str
    message: str
    tenant: str = ""
    pack: str = ""
    segment: int = -1
    chunk: str = ""
    chunks: int = 0
    dataset: str = ""
    backup: str = ""
    number: int = 0
    path: str = ""
    object: str = ""

    def as_json(self) -> dict[str, str | int]:
        """Return the fields that apply."""
        said = {key: value for key, value in asdict(self).items() if value not in {"", 0, -1}}
        if self.segment == 0:
            said["segment"] = 0
        return said


Emit = Callable[[Finding], None]
"""Takes each finding as soon as it is certain."""


@dataclass(frozen=True)
class Kept:
    """What is checked and repaired: a catalog and a store, with the keys to both and a clock."""

    catalog: Catalog
    blobs: Blobs
    keys: KeyStore
    tenants: Tenants
    clock: Clock
