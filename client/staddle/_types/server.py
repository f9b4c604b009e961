"""What a server says about itself."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Chunker:
    """The parameters with which the tenant's data is cut. The seed is kept like a credential."""

    min_bytes: int
    avg_bytes: int
    max_bytes: int
    normalization: int
    seed: int = field(repr=False)
    fixed_bytes: int


@dataclass(frozen=True, slots=True)
class ServerCondition:
    """What an operator should know of a server, as of a few seconds ago."""

    takes_backups: bool = True
    """Its store takes writes, and its disks have room."""
    clock_in_doubt: bool = False
    """Its clock jumped and is not believed: nothing is purged, expired, collected or deleted by policy."""
    clock_jump: datetime.timedelta = datetime.timedelta()
    """How far the clock jumped; negative: back."""
    clock_wait: datetime.timedelta = datetime.timedelta()
    """The jump is believed once so much more time has passed."""
    damaged_packs: int = 0
    """Packs of the tenant that are gone or damaged as a whole."""
    damaged_segments: int = 0
    damaged_footers: int = 0
    """Damaged parts of others."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself, and of the token that asks."""

    version: str
    tenant: str
    principal: str
    role: str
    chunker: Chunker
    server_time: datetime.datetime
    limits: Mapping[str, float]
    """By the names of the message Limits; durations in seconds."""
    condition: ServerCondition = ServerCondition()
