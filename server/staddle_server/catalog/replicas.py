"""Other places that the store is copied to: what is there already, and who copies."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, select, update

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore
from staddle_server.catalog.leases import COLLECTOR, Lease
from staddle_server.catalog.tasks import OUTCOME_CHARS_MAX
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches

_r = schema.replicas.c
_t = schema.replica_tenants.c
_c = schema.replica_packs.c
_g = schema.replica_gone.c
_p = schema.packs.c
_LIVE: Final = _p.state == schema.PACK_LIVE


class Replica(NamedTuple):
    """One place, for the holder of its lease with this fence."""

    row: int
    place: str
    fence: int


class ReplicaState(NamedTuple):
    """What is known of one place. Times are None where nothing of the kind has happened."""

    place: str
    begun_ns: int | None
    whole_ns: int | None
    compared_ns: int | None
    outcome: str
    packs_behind: int
    bytes_behind: int
    records_behind: int
    parities_behind: int
    has_copies: bool
    """Something was copied there."""

    @property
    def is_whole(self) -> bool:
        """Return whether nothing is left to copy."""
        return not (self.packs_behind or self.records_behind or self.parities_behind)


class SnapshotTenant(NamedTuple):
    """A tenant in a snapshot: its records up to `sequence` are durable."""

    tenant: bytes
    name: str
    keys_version: int
    sequence: int


class Snapshot(NamedTuple):
    """One state of the catalog: all packs that its durable records need have rows up to `last_pack`."""

    tenants: tuple[SnapshotTenant, ...]
    last_pack: int


class WaitingPack(NamedTuple):
    """A live pack, or its parity, that is not at the place yet."""

    row: int
    tenant: bytes
    pack: bytes
    size_bytes: int
    parity_bytes: int


class CopiedPack(NamedTuple):
    """A pack that was copied, by id; `live`: it still counts here."""

    row: int
    pack: bytes
    size_bytes: int
    live: bool


class PackState(NamedTuple):
    """What the catalog says of a pack: whether it is live, or is not written to the end yet."""

    live: bool
    writing: bool
    size_bytes: int


class GoneObject(NamedTuple):
    """An object at the place that this store does not have any more."""

    name: str
    seen_ns: int
    listed: bool


class Replicas:
    """The places that the store is copied to.

    Writing methods check the fence first (STALE_EPOCH); each is one short transaction.
    """

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- runs

    def lease(self, place: str) -> Lease:
        """Return the lease on copying to `place`."""
        return Lease(self._database, f"replicate to {place}", f"copying to {place}")

    def begin(self, place: str, fence: int, now_ns: int) -> Replica:
        """Record that the holder of the lease with this fence begins to copy to `place`."""
        with self._database.write() as connection:
            self.lease(place).require(connection, fence)
            connection.execute(insert_or_ignore(connection, schema.replicas), {"place": place, "outcome": ""})
            row = connection.execute(select(_r.row).where(_r.place == place)).scalar_one()
            connection.execute(update(schema.replicas).where(_r.row == row).values(begun_ns=now_ns))
        return Replica(int(row), place, fence)

    def end(self, replica: Replica, outcome: str, *, whole_ns: int | None = None) -> None:
        """Record what came of a run; `whole_ns`: everything decided before is there."""
        values: dict[str, Any] = {"outcome": outcome[:OUTCOME_CHARS_MAX]}
        if whole_ns is not None:
            values["whole_ns"] = whole_ns
        with self._database.write() as connection:
            self._require(connection, replica)
            connection.execute(update(schema.replicas).where(_r.row == replica.row).values(**values))

    def forget(self, place: str) -> bool:
        """Forget all that is known of a place; return whether it was known."""
        with self._database.write() as connection:
            row = connection.execute(select(_r.row).where(_r.place == place)).scalar()
            for table in (schema.replica_tenants, schema.replica_packs, schema.replica_gone):
                connection.execute(delete(table).where(table.c.replica == row))
            return bool(connection.execute(delete(schema.replicas).where(_r.row == row)).rowcount)

    # --- what is to be copied

    def list_all(self) -> list[ReplicaState]:
        """Return what is known of every place, by name."""
        with self._database.read() as connection:
            return [
                _state_of(connection, row)
                for row in connection.execute(select(schema.replicas).order_by(_r.place)).all()
            ]

    def get(self, place: str) -> ReplicaState | None:
        """Return what is known of one place."""
        with self._database.read() as connection:
            row = connection.execute(select(schema.replicas).where(_r.place == place)).one_or_none()
            return None if row is None else _state_of(connection, row)

    def snapshot(self) -> Snapshot:
        """Return the tenants with their newest durable records, and the newest pack, as of one moment."""
        tenants, pending = schema.tenants.c, schema.pending_records.c
        first = select(func.min(pending.sequence)).where(pending.tenant == tenants.row).scalar_subquery()
        query = select(tenants.id, tenants.name, tenants.keys_version, tenants.records_sequence, first)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(tenants.id)).all()
            last = connection.execute(select(func.coalesce(func.max(_p.row), 0))).scalar_one()
        return Snapshot(
            tuple(
                SnapshotTenant(row[0], row[1], row[2], row[3] if row[4] is None else row[4] - 1)
                for row in found
            ),
            int(last),
        )

    def waiting(
        self, replica: Replica, last_pack: int, *, after: int = 0, limit: int = 100
    ) -> list[WaitingPack]:
        """Return live packs up to row `last_pack` that are not there, by row after `after`."""
        return self._packs(and_(_p.row <= last_pack, ~_is_copied(replica.row)), after, limit)

    def collections(self) -> tuple[int, bool]:
        """Return the fence of the newest collection or repair, and whether it may still be at work.

        Only these two move chunks from one pack to another.
        """
        with self._database.read() as connection:
            query = select(schema.tasks.c.fence, schema.tasks.c.holder).where(
                schema.tasks.c.name == COLLECTOR
            )
            row = connection.execute(query).one_or_none()
        return (0, False) if row is None else (int(row.fence), row.holder != "")

    def waiting_parity(self, replica: Replica, *, after: int = 0, limit: int = 100) -> list[WaitingPack]:
        """Return live packs that are there without the parity that they have here, by row after `after`."""
        return self._packs(_lacks_parity(replica.row), after, limit)

    def note_copied(self, replica: Replica, pack: int, parity_bytes: int = 0) -> None:
        """Record that the pack with this row is there, and how long its parity there is; 0 for none."""
        with self._database.write() as connection:
            self._require(connection, replica)
            this = {"replica": replica.row, "pack": pack}
            new = {**this, "parity_bytes": parity_bytes}
            connection.execute(insert_or_ignore(connection, schema.replica_packs), new)
            connection.execute(
                update(schema.replica_packs)
                .where(_c.replica == replica.row, _c.pack == pack)
                .values(parity_bytes=parity_bytes)
            )

    def progress(self, replica: Replica, tenant: bytes) -> tuple[int, int]:
        """Return the version of the tenant's keys and the number of the newest record that are there."""
        with self._database.read() as connection:
            this = (_t.replica == replica.row, _t.tenant == self._tenants.row(connection, tenant))
            row = connection.execute(select(_t.keys_version, _t.sequence).where(*this)).one_or_none()
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def note_progress(self, replica: Replica, tenant: bytes, keys_version: int, sequence: int) -> None:
        """Record the tenant's keys and records that are there."""
        with self._database.write() as connection:
            self._require(connection, replica)
            row = self._tenants.row(connection, tenant)
            values = {"keys_version": keys_version, "sequence": sequence}
            new = {"replica": replica.row, "tenant": row, **values}
            connection.execute(insert_or_ignore(connection, schema.replica_tenants), new)
            connection.execute(
                update(schema.replica_tenants)
                .where(_t.replica == replica.row, _t.tenant == row)
                .values(**values)
            )

    # --- comparison with what is there

    def copied(
        self, replica: Replica, tenant: bytes, *, after: bytes = b"", limit: int = 1000
    ) -> list[CopiedPack]:
        """Return packs of the tenant that were copied, by id after `after`."""
        with self._database.read() as connection:
            query = (
                select(_p.row, _p.id, _p.size_bytes, _p.state)
                .join_from(schema.replica_packs, schema.packs, _c.pack == _p.row)
                .where(
                    _c.replica == replica.row,
                    _p.tenant == self._tenants.row(connection, tenant),
                    _p.id > after,
                )
            )
            rows = connection.execute(query.order_by(_p.id).limit(limit))
            return [
                CopiedPack(row.row, row.id, row.size_bytes, row.state == schema.PACK_LIVE) for row in rows
            ]

    def states(self, tenant: bytes, packs: Iterable[bytes]) -> dict[bytes, PackState]:
        """Return what the catalog says of these packs; it does not know the others."""
        found: dict[bytes, PackState] = {}
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            for some in batches(packs):
                query = select(_p.id, _p.state, _p.size_bytes).where(mine, _p.id.in_(some))
                for row in connection.execute(query):
                    live, writing = row.state == schema.PACK_LIVE, row.state == schema.PACK_WRITING
                    found[row.id] = PackState(live, writing, row.size_bytes)
        return found

    def has_live(self, tenant: bytes) -> bool:
        """Return whether the tenant has a live pack."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            return connection.execute(select(_p.row).where(mine, _LIVE).limit(1)).first() is not None

    def note_missing(self, replica: Replica, packs: Sequence[int]) -> None:
        """Record that the packs with these rows are not there after all."""
        for some in batches(packs):
            with self._database.write() as connection:
                self._require(connection, replica)
                connection.execute(
                    delete(schema.replica_packs).where(_c.replica == replica.row, _c.pack.in_(some))
                )

    def note_compared(self, replica: Replica, now_ns: int) -> None:
        """Record that all objects there were listed and compared, and forget packs without a row."""
        with self._database.write() as connection:
            self._require(connection, replica)
            known = exists().where(_p.row == _c.pack)
            connection.execute(delete(schema.replica_packs).where(_c.replica == replica.row, ~known))
            connection.execute(
                update(schema.replicas).where(_r.row == replica.row).values(compared_ns=now_ns)
            )

    # --- what is gone here

    def gone(self, replica: Replica, prefix: str) -> dict[str, GoneObject]:
        """Return the objects there below a prefix that are gone here, and since when that is known."""
        below = (_g.name >= f"{prefix}/", _g.name < f"{prefix}0")  # "0" sorts right after "/"
        query = select(_g.name, _g.seen_ns, _g.listed).where(_g.replica == replica.row, *below)
        with self._database.read() as connection:
            return {row.name: GoneObject(*row) for row in connection.execute(query.order_by(_g.name))}

    def note_gone(self, replica: Replica, names: Mapping[str, bool], now_ns: int) -> None:
        """Record that these objects there are gone here, and whether each may still be listed.

        Known ones keep their time.
        """
        for some in batches(names.items()):
            with self._database.write() as connection:
                self._require(connection, replica)
                connection.execute(
                    insert_or_ignore(connection, schema.replica_gone),
                    [
                        {"replica": replica.row, "name": name, "seen_ns": now_ns, "listed": listed}
                        for name, listed in some
                    ],
                )

    def drop_gone(self, replica: Replica, names: Collection[str]) -> None:
        """Remove these objects from those that are gone: they were removed there too, or are back."""
        for some in batches(names):
            with self._database.write() as connection:
                self._require(connection, replica)
                connection.execute(
                    delete(schema.replica_gone).where(_g.replica == replica.row, _g.name.in_(some))
                )

    # --- parts

    def _require(self, connection: Connection, replica: Replica) -> None:
        self.lease(replica.place).require(connection, replica.fence)

    def _packs(self, wanted: ColumnElement[bool], after: int, limit: int) -> list[WaitingPack]:
        query = (
            select(_p.row, schema.tenants.c.id, _p.id, _p.size_bytes, _p.parity_bytes)
            .join_from(schema.packs, schema.tenants, _p.tenant == schema.tenants.c.row)
            .where(_LIVE, _p.row > after, wanted)
        )
        with self._database.read() as connection:
            return [WaitingPack(*row) for row in connection.execute(query.order_by(_p.row).limit(limit))]


def _is_copied(replica: int) -> ColumnElement[bool]:
    return exists().where(_c.replica == replica, _c.pack == _p.row)


def _lacks_parity(replica: int) -> ColumnElement[bool]:
    other = exists().where(_c.replica == replica, _c.pack == _p.row, _c.parity_bytes != _p.parity_bytes)
    return and_(_p.parity_bytes > 0, other)


def _state_of(connection: Connection, row: Any) -> ReplicaState:
    packs, size = connection.execute(_behind(row.row)).one()
    tenants = schema.tenants.c
    there = select(_t.sequence).where(_t.replica == row.row, _t.tenant == tenants.row).scalar_subquery()
    records = select(func.coalesce(func.sum(tenants.records_sequence - func.coalesce(there, 0)), 0))
    parities = select(func.count()).where(_LIVE, _lacks_parity(row.row))
    return ReplicaState(
        row.place,
        row.begun_ns,
        row.whole_ns,
        row.compared_ns,
        row.outcome,
        int(packs),
        int(size),
        int(connection.execute(records).scalar_one()),
        int(connection.execute(parities).scalar_one()),
        bool(connection.execute(select(exists().where(_t.replica == row.row))).scalar_one()),
    )


def _behind(replica: int) -> Select[Any]:
    return select(func.count(), func.coalesce(func.sum(_p.size_bytes), 0)).where(_LIVE, ~_is_copied(replica))
