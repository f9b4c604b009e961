"""Tenants: the key and dedup domains."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from staddle_server import errors
from staddle_server.catalog import schema
from staddle_server.catalog.dialect import Database, insert_or_ignore
from staddle_server.catalog.values import PendingRecord, Tenant
from staddle_server.catalog.words import check_id, check_name

_t = schema.tenants.c
GC_FAILURE_CHARS_MAX = 1000


class Tenants:
    """The tenants that there are. They are never removed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: dict[bytes, int] = {}
        self._ids: dict[int, bytes] = {}
        self._deciding = threading.RLock()

    def create(
        self, tenant: bytes, name: str, now_ns: int, *, keys_version: int = 1, wrapped_keys: bytes = b""
    ) -> Tenant:
        """Makes a tenant. BAD_FIELD for a name that is not one, or is taken.

        Its record counts as missing until `mark_record_written`.
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
                    "record_written": False,
                },
            )
            if made.rowcount != 1:
                raise errors.BadRequest("BAD_FIELD", f"There is already a tenant {name!r}", field="name")
        return Tenant(tenant, name, now_ns, keys_version, wrapped_keys, record_written=False)

    def get(self, tenant: bytes) -> Tenant | None:
        """The tenant with this id."""
        return self._one(_select().where(_t.id == tenant))

    def get_by_name(self, name: str) -> Tenant | None:
        """The tenant with this name."""
        return self._one(_select().where(_t.name == name))

    def list_all(self, *, unrecorded_only: bool = False) -> list[Tenant]:
        """All of them, by name; or only those whose record is not known to be durable."""
        query = _select().order_by(_t.name)
        if unrecorded_only:
            query = query.where(~_t.record_written)
        with self._database.read() as connection:
            return [_tenant(row) for row in connection.execute(query)]

    def set_keys(self, tenant: bytes, keys_version: int, wrapped_keys: bytes) -> None:
        """Remembers the newest wrapped keys. An older version than is known changes nothing."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.tenants)
                .where(_t.id == tenant, _t.keys_version < keys_version)
                .values(keys_version=keys_version, wrapped_keys=wrapped_keys)
            )

    def mark_record_written(self, tenant: bytes) -> None:
        """Its record is durable in the store."""
        with self._database.write() as connection:
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(record_written=True))

    def set_grace(self, tenant: bytes, grace_s: int, now_ns: int, record: PendingRecord) -> None:
        """How long a deleted backup can be brought back from now on; keeps `record` as pending in the same transaction."""
        check_id("record", record.id)
        with self._database.write() as connection:
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(grace_s=grace_s))
            connection.execute(
                insert(schema.pending_records),
                {
                    "id": record.id,
                    "tenant": self.row(connection, tenant),
                    "body": record.body,
                    "created_ns": now_ns,
                },
            )

    @contextmanager
    def deciding(self, tenant: bytes, now_ns: int) -> Iterator[int]:
        """While it lasts one thing is decided, of which the record has this time.

        That is now or, if the clock was set back, later than every decision before it. One thing at a time, so that decisions
        have their times in the order in which they are made. (With several servers the tenant's row would have to be locked.)
        Nothing else goes by this time: what a time ends, and what it protects, goes by the clock.
        """
        with self._deciding:
            yield self._decide(tenant, now_ns)

    def _decide(self, tenant: bytes, now_ns: int) -> int:
        with self._database.write() as connection:
            mine = select(_t.decided_ns).where(_t.id == tenant).with_for_update()
            decided_ns = max(now_ns, int(connection.execute(mine).scalar_one()) + 1)
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(decided_ns=decided_ns))
        return decided_ns

    def set_gc_failure(self, tenant: bytes, why: str) -> None:
        """Why the tenant's last collection stopped; "": it did not."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.tenants)
                .where(_t.id == tenant, _t.gc_failure != why[:GC_FAILURE_CHARS_MAX])
                .values(gc_failure=why[:GC_FAILURE_CHARS_MAX])
            )

    def set_gc_waits(self, tenant: bytes, *, waits: bool) -> None:
        """Whether collection waits for an operator."""
        with self._database.write() as connection:
            connection.execute(update(schema.tenants).where(_t.id == tenant).values(gc_waits=waits))

    def row(self, connection: Connection, tenant: bytes) -> int:
        """The tenant's small internal number, for this room's tables."""
        known = self._rows.get(tenant)
        if known is not None:
            return known
        row = connection.execute(select(_t.row).where(_t.id == tenant)).scalar()
        if row is None:
            raise errors.Fault("INTERNAL", f"There is no tenant {tenant.hex()} in the catalog")
        self._rows[tenant] = int(row)
        return int(row)

    def id_of(self, connection: Connection, row: int) -> bytes:
        """The id of the tenant with this number."""
        known = self._ids.get(row)
        if known is None:
            known = self._ids[row] = bytes(
                connection.execute(select(_t.id).where(_t.row == row)).scalar_one()
            )
        return known

    def _one(self, query: Select[Any]) -> Tenant | None:
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _tenant(row)


def _select() -> Select[Any]:
    return select(
        _t.id,
        _t.name,
        _t.created_ns,
        _t.keys_version,
        _t.wrapped_keys,
        _t.record_written,
        _t.grace_s,
        _t.gc_waits,
        _t.gc_failure,
    )


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        row.id,
        row.name,
        row.created_ns,
        row.keys_version,
        row.wrapped_keys,
        row.record_written,
        row.grace_s,
        row.gc_waits,
        row.gc_failure,
    )
