"""What repair changes in the catalog: new packs for salvaged data, and lost index rows.

A repair pack is like one of a compaction: no upload, and the collector's fence as its epoch. So repair takes
the collector's lease while it writes, and no collection runs beside it.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, delete, select, update

from staddle_server.base.types import PackSummary, StoredChunk
from staddle_server.catalog import schema
from staddle_server.catalog.chunks import index_pack, indexed_id
from staddle_server.catalog.database import Database, insert_or_ignore, locking
from staddle_server.catalog.leases import require_fence
from staddle_server.catalog.packs import mark_damage
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches

_p = schema.packs.c
_k = schema.claims.c
_c = schema.chunks.c


class Salvage:
    """Writes of repair, which holds the collectors' lease and begins its packs as a compaction
    does.
    """

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def publish(
        self, tenant: bytes, fence: int, summary: PackSummary | None, sources: Collection[bytes], now_ns: int
    ) -> None:
        """Make a pack with data salvaged from `sources` live; the sources count as damaged as a whole from
        now on.

        None: nothing needed salvaging, all of it lies elsewhere too.

        Claims of a source also claim the new pack: an open upload may rely on a chunk that was intact when it
        claimed it. Marks and claims meet on the row of the source, so no later claim relies on what is
        salvaged here.

        Raises:
            Conflict: STALE_EPOCH, the lease is lost; nothing was changed.

        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            locked = [
                row
                for some in batches(sorted(sources))
                for row in connection.execute(
                    locking(
                        select(_p.row)
                        .where(_p.tenant == tenant_row, _p.id.in_(some), _p.state == schema.PACK_LIVE)
                        .order_by(_p.row)
                    )
                ).scalars()
            ]
            _mark_whole(connection, locked)
            if summary is None:
                return
            new = connection.execute(
                select(_p.row).where(
                    _p.tenant == tenant_row,
                    _p.id == summary.pack,
                    _p.state == schema.PACK_WRITING,
                    _p.epoch == fence,
                )
            ).scalar_one()
            for some in batches(locked):
                uploads = select(_k.upload).where(_k.pack.in_(some)).distinct()
                for upload in connection.execute(uploads).scalars().all():
                    connection.execute(
                        insert_or_ignore(connection, schema.claims), {"upload": upload, "pack": new}
                    )
            connection.execute(
                update(schema.packs)
                .where(_p.row == new)
                .values(
                    state=schema.PACK_LIVE,
                    size_bytes=summary.size_bytes,
                    chunk_count=len(summary.chunks),
                    verified_ns=now_ns,
                )
            )
            index_pack(connection, new, summary)

    def reindex(self, tenant: bytes, pack: bytes, chunks: Sequence[StoredChunk], *, all_of_it: bool) -> bool:
        """Write a live pack's index rows for these chunks again, in place of wrong ones.

        With `all_of_it` the pack has no other chunks, so rows of others are removed. Return whether the pack
        was still live.
        """
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            this = (_p.tenant == tenant_row, _p.id == pack, _p.state == schema.PACK_LIVE)
            row = connection.execute(locking(select(_p.row).where(*this))).scalar()
            if row is None:
                return False
            mine = delete(schema.chunks).where(_c.pack == row)
            if all_of_it:
                connection.execute(mine)
            else:
                for some in batches({indexed_id(chunk.chunk_id) for chunk in chunks}):
                    heads, tails = zip(*some, strict=True)
                    connection.execute(mine.where(_c.id_head.in_(heads), _c.id_tail.in_(tails)))
            index_pack(connection, row, PackSummary(pack, 0, list(chunks)))
            return True


def _mark_whole(connection: Connection, pack_rows: Collection[int]) -> None:
    """Mark packs as damaged as a whole. The caller has locked their rows."""
    for row in pack_rows:
        mark_damage(connection, row, schema.WHOLE_PACK)
