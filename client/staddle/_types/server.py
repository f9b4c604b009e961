"""A server's version, limits and condition."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ChunkerInfo:
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
    """Its clock jumped and is not trusted: nothing is purged, expired, collected or deleted by policy."""
    clock_jump: datetime.timedelta = datetime.timedelta()
    """How far the clock jumped; negative: back."""
    clock_wait: datetime.timedelta = datetime.timedelta()
    """The jump is trusted after this much more time."""
    damaged_packs: int = 0
    """Packs of the tenant that are gone or damaged as a whole."""
    damaged_segments: int = 0
    damaged_footers: int = 0
    """Damaged parts of others."""
    warnings: tuple[str, ...] = ()
    """What else an administrator must know, in sentences; empty for other roles."""


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A server of a service that has several."""

    endpoint: str
    """Where clients reach this one."""
    state: str
    """live, draining (it takes no new work), dead (silent for 20 s), or unknown."""
    version: str
    start_time: datetime.datetime


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's version, limits and condition, and the role of the calling token."""

    version: str
    tenant: str
    principal: str
    role: str
    chunker: ChunkerInfo
    server_time: datetime.datetime
    limits: Mapping[str, float]
    """By the names of the message Limits; durations in seconds."""
    condition: ServerCondition = ServerCondition()
    servers: tuple[PeerServer, ...] = ()
    """The servers of the service, each with its address: the one that answered, too. Dead ones last."""
