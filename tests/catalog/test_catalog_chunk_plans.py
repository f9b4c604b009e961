"""PostgreSQL looks chunks up by their indexes, whatever it knows of the table, and a row of the index stays short."""

from urllib.parse import quote

import postgres_server
import pytest
from databases import DATABASES
from sqlalchemy import event, text
from staddle_server.base.types import StoredChunk
from test_catalog_chunks import _stored

ROW_BYTES_MAX = 110
ROWS = 200_000
PACKS = 20_000
REPEATS = 12
"""After five executions psycopg prepares a statement; after five more, PostgreSQL may plan for unknown values."""
EXPLAIN = "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0 -c auto_explain.log_level=notice"
FILL_PACKS = f"""INSERT INTO packs (tenant, id, state, upload, epoch, size_bytes, chunk_count, damaged, created_ns)
    SELECT 1, decode(md5(n::text), 'hex'), 2, '', 0, 1, 1, FALSE, 1 FROM generate_series(1, {PACKS}) AS n"""
FILL_CHUNKS = f"""INSERT INTO chunks SELECT hashtextextended(n::text, 0), hashtextextended(n::text, 1),
    1 + n % {PACKS}, 64, 100, 0, 100 FROM generate_series(1, {ROWS}) AS n"""

FILL_CLAIMS = "INSERT INTO claims SELECT :upload, packs.row FROM packs"


@pytest.fixture
def databases():
    """The tests of this module are about PostgreSQL."""
    return DATABASES["postgresql"]


@pytest.fixture
def ready_url():
    return f"{postgres_server.ready_url()}&options={quote(EXPLAIN)}"


class Plans:
    """The plans of all statements that a catalog executes."""

    def __init__(self, catalog):
        self._seen = []
        event.listen(catalog.database.engine, "connect", self._listen)
        catalog.database.engine.dispose()

    def _listen(self, link, _record):
        link.add_notice_handler(lambda notice: self._seen.append(notice.message_primary))

    def of(self, call):
        """The plans of a call, repeated until its statements are prepared, of what reads or deletes chunks."""
        self._seen.clear()
        for number in range(REPEATS):
            call(number)
        plans = [plan for plan in self._seen if " on chunks" in plan and "Insert on" not in plan]
        assert len(plans) >= REPEATS
        return plans


@pytest.fixture
def filled(world):
    """A catalog with many rows that were never counted."""
    upload = world.begin(dataset="large").upload.id
    with world.catalog.database.write() as connection:
        connection.execute(text(FILL_PACKS))
        connection.execute(text(FILL_CHUNKS))
        connection.execute(text(FILL_CLAIMS), {"upload": upload})
    return world


def _reads_all(plan, *tables):
    return any(f"Seq Scan on {table}" in plan for table in tables)


@pytest.mark.parametrize("counted", [False, True], ids=["without statistics", "analyzed"])
def test_chunks_are_found_and_removed_by_an_index_whatever_the_database_knows(filled, counted):
    world, catalog, tenant = filled, filled.catalog, filled.tenant
    ids = world.digests(1000)
    _, stored = _stored(world, ids)
    packs = [_stored(world, world.digests(20))[1] for _ in range(REPEATS)]
    uploads = [world.begin(world.bob).upload.id for _ in range(REPEATS)]
    fence = catalog.gc_lease.acquire("collector", world.now, 3600)
    if counted:
        with catalog.database.write() as connection:
            connection.execute(text("ANALYZE"))
    plans = Plans(catalog)
    looked_up = [
        *plans.of(lambda _: catalog.chunks.find(tenant, ids)),
        *plans.of(lambda _: catalog.chunks.find(tenant, ids[:1])),
        *plans.of(lambda _: catalog.chunks.find(tenant, world.digests(1000))),
        *plans.of(lambda number: catalog.chunks.claim(tenant, uploads[number], 1, ids)),
        *plans.of(lambda number: catalog.chunks.claim(tenant, uploads[number], 1, ids)),
    ]
    for plan in looked_up:
        assert "chunks_id" in plan
        assert not _reads_all(plan, "chunks", "packs", "claims"), plan
    mark = catalog.marks.begin_mark(tenant, fence, world.now).number
    some = [StoredChunk(*each) for each in stored.chunks[:50]]
    of_packs = [
        *plans.of(lambda _: catalog.verification.indexed(tenant, stored.pack)),
        *plans.of(lambda _: catalog.salvage.reindex(tenant, stored.pack, stored.chunks, all_of_it=True)),
        *plans.of(lambda _: catalog.salvage.reindex(tenant, stored.pack, some, all_of_it=False)),
    ]
    with catalog.database.write() as connection:
        connection.execute(text("DELETE FROM claims"))
    gone = []
    of_packs += plans.of(
        lambda number: gone.append(
            catalog.marks.condemn(tenant, fence, mark, [packs[number].pack], now_ns=world.now)
        )
    )
    assert all(gone)
    for plan in of_packs:
        assert "chunks_pack" in plan or "chunks_id" in plan
        assert not _reads_all(plan, "chunks"), plan


def test_a_row_of_the_chunk_index_is_short(filled):
    with filled.catalog.database.read() as connection:
        size = connection.execute(text("SELECT pg_total_relation_size('chunks')")).scalar_one()
    assert size / ROWS <= ROW_BYTES_MAX
