"""Tenants: separate domains of keys and deduplication."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, select, update

from staddle_server.base import errors
from staddle_server.base.types import NO_LINK
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, SharedTurn, insert_or_ignore, locking
from staddle_server.catalog.decisions import keep_pending
from staddle_server.catalog.validation import check_id, check_name
from staddle_server.catalog.values import PendingRecord, TenantRow

_t = schema.tenants.c
GC_FAILURE_CHARS_MAX = 1000
DECISION_WAIT_S: Final = 30.0


class TenantRows:
    """All tenants. They are never removed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: dict[bytes, int] = {}
        self._ids: dict[int, bytes] = {}
        self._deciding = threading.RLock()

    def create(
        self,
        tenant: bytes,
        name: str,
        now_ns: int,
        *,
        record: bytes,
        keys_version: int = 1,
        wrapped_keys: bytes = b"",
    ) -> TenantRow:
        """Create a tenant, and keep its record, the first of its chain, as pending under the tenant's own id.

        BAD_FIELD for an invalid or taken name.
        """
        check_id("tenant", tenant)
        check_name("tenant", name)
        with self._database.write() as connection:
            made = connection.execute(
                insert_or_ignore(connection, schema.tenants),
                {
                    "id": tenant,
                    "name": name,
                    "created_ns": now_ns,
                    "keys_version": keys_version,
                    "wrapped_keys": wrapped_keys,
                    "records_sequence": 0,
                    "records_link": NO_LINK,
                    "records_rebuilt": 0,
                },
            )
            if made.rowcount != 1:
                raise errors.BadRequest("BAD_FIELD", f"Tenant {name!r} exists already", field="name")
            keep_pending(connection, self.row(connection, tenant), [PendingRecord(tenant, tenant, record)])
        return TenantRow(tenant, name, now_ns, keys_version, wrapped_keys)

    def get(self, tenant: bytes) -> TenantRow | None:
        """Return the tenant with this id."""
        return self._one(_select().where(_t.id == tenant))

    def get_by_name(self, name: str) -> TenantRow | None:
        """Return the tenant with this name."""
        return self._one(_select().where(_t.name == name))

    def list_all(self) -> list[TenantRow]:
        """Return all tenants by name."""
        with self._database.read() as connection:
            return [_tenant(row) for row in connection.execute(_select().order_by(_t.name))]

    def set_keys(self, tenant: bytes, keys_version: int, wrapped_keys: bytes) -> None:
        """Store the newest wrapped keys. Ignores an older version."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.tenants)
                .where(_t.id == tenant, _t.keys_version < keys_version)
                .values(keys_version=keys_version, wrapped_keys=wrapped_keys)
            )

    def newest_record(self, tenant: bytes) -> int:
        """Return the number of the newest decided record."""
        return self._record_number(tenant, _t.records_sequence)

    def rebuilt_record(self, tenant: bytes) -> int:
        """Return the number of the newest record that the catalog was rebuilt from; 0 if it was not rebuilt."""
        return self._record_number(tenant, _t.records_rebuilt)

    def _record_number(self, tenant: bytes, column: ColumnElement[int]) -> int:
        with self._database.look_up() as connection:
            query = select(column).where(_t.row == self.row(connection, tenant))
            return int(connection.execute(query).scalar_one())

    def keep_records(self, tenant: bytes, records: Iterable[PendingRecord]) -> None:
        """Keep records as pending that state no decision: what was lost, or what may be forgotten."""
        with self._database.write() as connection:
            keep_pending(connection, self.row(connection, tenant), records)

    def set_grace(self, tenant: bytes, grace_s: int, record: PendingRecord) -> None:
        """Set how long deleted backups can be undeleted; keep `record` as pending in the same transaction."""
        with self._database.write() as connection:
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(grace_s=grace_s))
            keep_pending(connection, self.row(connection, tenant), [record])

    @contextmanager
    def deciding(self, tenant: bytes, now_ns: int) -> Iterator[int]:
        """Give a decision its time, one decision at a time, so that times follow the order of decisions.

        The time is now or, if the clock was set back, later than every earlier decision. It only orders
        records: expiry and protection follow the clock. Other servers of the catalog wait for the block.

        Raises:
            Unavailable: Another server is in such a block, and has not left it after DECISION_WAIT_S.

        """
        # Not the tenant's row: the decision's own transaction locks it.
        lock = int.from_bytes(tenant[:8], "big", signed=True)
        with (
            self._deciding,
            self._database.alone(SharedTurn(lock, "deciding for this tenant"), DECISION_WAIT_S),
        ):
            yield self._decide(tenant, now_ns)

    def _decide(self, tenant: bytes, now_ns: int) -> int:
        with self._database.write() as connection:
            mine = locking(select(_t.decided_ns).where(_t.id == tenant))
            decided_ns = max(now_ns, int(connection.execute(mine).scalar_one()) + 1)
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(decided_ns=decided_ns))
        return decided_ns

    def set_gc_failure(self, tenant: bytes, why: str) -> None:
        """Record why the tenant's last collection stopped; "" if it did not."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.tenants)
                .where(_t.id == tenant, _t.gc_failure != why[:GC_FAILURE_CHARS_MAX])
                .values(gc_failure=why[:GC_FAILURE_CHARS_MAX])
            )

    def set_gc_waits(self, tenant: bytes, *, waits: bool) -> None:
        """Set whether collection waits for an operator."""
        with self._database.write() as connection:
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(gc_waits=waits))

    def row(self, connection: Connection, tenant: bytes) -> int:
        """Return the tenant's small internal number, for this package's tables."""
        known = self._rows.get(tenant)
        if known is not None:
            return known
        row = connection.execute(select(_t.row).where(_t.id == tenant)).scalar()
        if row is None:
            raise no_tenant(tenant)
        self._rows[tenant] = int(row)
        return int(row)

    def id_of(self, connection: Connection, row: int) -> bytes:
        """Return the id of the tenant with this number."""
        known = self._ids.get(row)
        if known is None:
            known = self._ids[row] = bytes(
                connection.execute(select(_t.id).where(_t.row == row)).scalar_one()
            )
        return known

    def _one(self, query: Select[Any]) -> TenantRow | None:
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _tenant(row)


def no_tenant(tenant: bytes) -> errors.Fault:
    """Return the error for a tenant that this server does not have."""
    return errors.Fault("INTERNAL", f"tenant {tenant.hex()} is not in the catalog")


def _select() -> Select[Any]:
    return select(
        _t.id,
        _t.name,
        _t.created_ns,
        _t.keys_version,
        _t.wrapped_keys,
        _t.grace_s,
        _t.gc_waits,
        _t.gc_failure,
    )


def _tenant(row: Row[Any]) -> TenantRow:
    return TenantRow(
        row.id,
        row.name,
        row.created_ns,
        row.keys_version,
        row.wrapped_keys,
        row.grace_s,
        row.gc_waits,
        row.gc_failure,
    )
