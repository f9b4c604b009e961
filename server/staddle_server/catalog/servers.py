"""The servers that share this catalog, each with the time of its last heartbeat by the database's clock."""

import enum
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, delete, func, insert, or_, select, update

from staddle_server.base.clock import NS
from staddle_server.base.limits import SERVER_DEAD_S, SERVER_FORGOTTEN_S
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, later, now_ns

_s, _t, _u = schema.servers.c, schema.tasks.c, schema.uploads.c
DEAD_NS = int(SERVER_DEAD_S * NS)
FORGOTTEN_NS = int(SERVER_FORGOTTEN_S * NS)


class ServerIdentity(NamedTuple):
    """What a server says about itself.

    Attributes:
        id: Random, new at each start.
        place: Its data directory: at most one server runs on it at a time. Empty if unknown.
        name: Its host.
        endpoint: Where clients reach it.
        version: Its version of Staddle.
        process: The holder of the leases that it takes.

    """

    id: bytes
    place: str
    name: str
    endpoint: str
    version: str
    process: str


class ServerState(enum.Enum):
    """Whether a server can be used. DEAD: its last heartbeat is old. DRAINING: it takes no new work."""

    LIVE = "live"
    DRAINING = "draining"
    DEAD = "dead"


class Server(NamedTuple):
    """A server that uses this catalog, or did until a day ago.

    Attributes:
        identity: What it says about itself.
        started_ns: When it registered.
        beat_ns: Its last heartbeat.
        silent_ns: How long ago that was.
        draining: It finishes its work and takes no more.
        alive: Its last heartbeat is recent.

    """

    identity: ServerIdentity
    started_ns: int
    beat_ns: int
    silent_ns: int
    draining: bool
    alive: bool

    @property
    def state(self) -> ServerState:
        """Whether it can be used."""
        if not self.alive:
            return ServerState.DEAD
        return ServerState.DRAINING if self.draining else ServerState.LIVE


class Working(NamedTuple):
    """What servers do.

    Attributes:
        uploads: By the server's id, how many open uploads it writes, or wrote.
        tasks: By the server's process, what it has the lease of, sorted by name.

    """

    uploads: Mapping[bytes, int]
    tasks: Mapping[str, Sequence[str]]


class Servers:
    """The list of servers. All times are the database's, so the servers' own clocks may differ."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, me: ServerIdentity, *, draining: bool) -> None:
        """Record that this server lives, and register it if it is unknown.

        An earlier server on the same data directory is gone: its row is removed, as are rows that have been
        dead for a day.
        """
        with self._database.write() as connection:
            now = now_ns(connection, time.time_ns())
            known = connection.execute(
                update(schema.servers).where(_s.id == me.id).values(beat_ns=now, draining=draining)
            )
            if known.rowcount:
                later(connection, delete(schema.servers).where(_s.beat_ns < now - FORGOTTEN_NS))
                return
            gone = _s.beat_ns < now - FORGOTTEN_NS
            if me.place:
                gone = or_(gone, _s.place == me.place)
            later(connection, delete(schema.servers).where(gone))
            values = {**me._asdict(), "started_ns": now, "beat_ns": now, "draining": draining}
            connection.execute(insert(schema.servers).values(**values))

    def remove(self, server: bytes) -> None:
        """Remove a server that has stopped."""
        with self._database.write() as connection:
            connection.execute(delete(schema.servers).where(_s.id == server))

    def list_all(self) -> list[Server]:
        """Return all servers, in the order of their start."""
        with self._database.read() as connection:
            query = _select(now_ns(connection, time.time_ns())).order_by(_s.started_ns, _s.id)
            return [_server_of(row) for row in connection.execute(query)]

    def working(self) -> Working:
        """Return what the servers do."""
        with self._database.read() as connection:
            counted = (
                select(_u.server, func.count().label("uploads")).where(schema.IS_OPEN).group_by(_u.server)
            )
            uploads = {row.server: row.uploads for row in connection.execute(counted)}
            held = select(_t.holder, _t.name).where(_t.expires_ns > now_ns(connection, time.time_ns()))
            tasks: dict[str, list[str]] = {}
            for holder, name in connection.execute(held.order_by(_t.name)):
                tasks.setdefault(holder, []).append(name)
        return Working(uploads, tasks)

    def writing_elsewhere(self, owner: bytes, this: bytes) -> Server | None:
        """Return the server `owner` if clients must send their writes to it rather than to `this`.

        None: it is this one, or a dead, draining or unknown one. So is one with the endpoint of this one: an
        earlier server at that address, or one behind the same balancer.
        """
        if not owner or owner == this:
            return None
        with self._database.look_up() as connection:
            query = _select(now_ns(connection, time.time_ns())).where(_s.id.in_((owner, this)))
            found = {server.identity.id: server for server in map(_server_of, connection.execute(query))}
        other, mine = found.get(owner), found.get(this)
        if other is None or not other.alive or other.draining or not other.identity.endpoint:
            return None
        if mine is not None and mine.identity.endpoint == other.identity.endpoint:
            return None
        return other


def _select(now: Any) -> Select[Any]:
    return select(schema.servers, now)


def _server_of(row: Row[Any]) -> Server:
    identity = ServerIdentity(row.id, row.place, row.name, row.endpoint, row.version, row.process)
    silent_ns = row.now_ns - row.beat_ns
    # A heartbeat far in the future comes from before the database's clock was set back.
    alive = abs(silent_ns) <= DEAD_NS
    return Server(identity, row.started_ns, row.beat_ns, silent_ns, row.draining, alive)
