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
class StoreLock:
    """The object lock of a server's store: until when nobody can delete what backups need."""

    promise: datetime.timedelta
    """It is locked for at least this long, at any time."""
    packs_until: datetime.datetime | None = None
    """When the lock of the least protected pack ends, at the earliest; None: not known."""
    records_until: datetime.datetime | None = None
    """When the first lock of a key or record ends, at the earliest; None: not known."""
    late: bool = False
    """Locks are extended too late, or not at all."""


@dataclass(frozen=True, slots=True)
class SecondSite:
    """How far the copy of a server's store at a second site is behind."""

    lag: datetime.timedelta | None = None
    """Everything that was decided longer ago is there; None: the copy was never whole."""
    bytes_behind: int = 0
    """Bytes of packs that are not there yet."""
    late: bool = False
    """It has been behind for longer than it should be."""


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
    missing_objects: int = 0
    """Records and keys of the tenant that the store lacks."""
    hidden_objects: int = 0
    """Objects of the tenant that somebody with the store's credentials has hidden; object lock keeps them."""
    lock: StoreLock | None = None
    """The store's object lock, if it has one."""
    second_site: SecondSite | None = None
    """The copy at a second site, if the server makes one."""
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
