"""Information about the server."""

from __future__ import annotations

from typing import Final

from staddle.v1 import service_pb2 as sv

from staddle_server import __version__
from staddle_server.api import convert
from staddle_server.api.gate import Call
from staddle_server.base import limits
from staddle_server.base.clock import Clock
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Server, Servers, ServerState
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.condition import Condition, Conditions
from staddle_server.upkeep.integrity.lock_standing import LockStanding
from staddle_server.upkeep.replication.lag import SiteLag

PEERS_MAX: Final = 1_000
_STATES: Final = {
    ServerState.LIVE: sv.PeerServer.STATE_LIVE,
    ServerState.DRAINING: sv.PeerServer.STATE_DRAINING,
    ServerState.DEAD: sv.PeerServer.STATE_DEAD,
}


class InfoCalls:
    """Answers GetServerInfo."""

    def __init__(
        self,
        tenants: Tenants,
        servers: Servers,
        clock: Clock,
        conditions: Conditions,
        *,
        streams_max: int,
        lease_s: float,
        life_s: float,
    ) -> None:
        self._tenants = tenants
        self._servers = servers
        self._conditions = conditions
        self._clock = clock
        self._limits = sv.Limits(
            message_bytes_max=limits.MESSAGE_BYTES_MAX,
            put_chunks_bytes_max=limits.PUT_CHUNKS_BYTES_MAX,
            put_chunks_inflated_bytes_max=limits.PUT_CHUNKS_INFLATED_BYTES_MAX,
            chunks_per_call_max=limits.CHUNKS_PER_CALL_MAX,
            entries_per_call_max=limits.ENTRIES_PER_CALL_MAX,
            read_range_bytes_max=limits.READ_RANGE_BYTES_MAX,
            path_bytes_max=limits.PATH_BYTES_MAX,
            streams_max=streams_max,
            upload_lease=convert.duration(lease_s),
            upload_life=convert.duration(life_s),
        )

    def get_server_info(self, _request: sv.GetServerInfoRequest, call: Call) -> sv.GetServerInfoResponse:
        tenant = self._tenants.get(call.principal.tenant)
        return sv.GetServerInfoResponse(
            version=__version__,
            tenant=tenant.name,
            principal=call.principal.name,
            role=call.principal.role.name.lower(),
            chunker=convert.chunker_out(tenant.cutter.parameters),
            limits=self._limits,
            server_time=convert.timestamp(self._clock.now_ns()),
            condition=_condition_out(
                self._conditions.of(tenant.id), for_admin=call.principal.role is TokenRole.ADMIN
            ),
            servers=map(_peer_out, self._listed()),
        )

    def _listed(self) -> list[Server]:
        """The servers; where that is too many, the dead ones are left out first."""
        return sorted(self._servers.list_all(), key=lambda each: not each.alive)[:PEERS_MAX]


def _peer_out(server: Server) -> sv.PeerServer:
    """A server without what only operators need: its host, and what it does for other tenants."""
    return sv.PeerServer(
        endpoint=server.identity.endpoint,
        state=_STATES[server.state],
        version=server.identity.version,
        start_time=convert.timestamp(server.started_ns),
    )


def _condition_out(condition: Condition, *, for_admin: bool) -> sv.ServerCondition:
    clock, damage = condition.clock, condition.damage
    message = sv.ServerCondition(
        takes_backups=condition.takes_backups,
        damaged_packs=damage.packs,
        damaged_segments=damage.segments,
        damaged_footers=damage.footers,
        warnings=condition.warnings if for_admin else (),
        missing_objects=condition.lost.missing,
        hidden_objects=condition.lost.hidden,
        object_lock=None if condition.lock is None else _lock_out(condition.lock),
        second_site=None if condition.site is None else _site_out(condition.site),
    )
    if clock is not None and clock.jump_ns:
        message.clock_in_doubt = True
        message.clock_jump.FromNanoseconds(clock.jump_ns)
        message.clock_wait.FromNanoseconds(clock.left_ns)
    return message


def _lock_out(lock: LockStanding) -> sv.StoreLock:
    return sv.StoreLock(
        promise=convert.duration(lock.promise_s),
        packs_until=None if lock.packs_until_ns is None else convert.timestamp(lock.packs_until_ns),
        records_until=None if lock.others_until_ns is None else convert.timestamp(lock.others_until_ns),
        late=bool(lock.warnings),
    )


def _site_out(site: SiteLag) -> sv.SecondSite:
    """The copy without its place, which only operators need."""
    return sv.SecondSite(
        lag=None if site.lag_s is None else convert.duration(site.lag_s),
        bytes_behind=site.bytes_behind,
        late=bool(site.warning),
    )
