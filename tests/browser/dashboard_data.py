"""A service with something on every page of the dashboard: good, late, failed, incomplete, running, damaged."""

from __future__ import annotations

import random
import struct
import zlib

from google.protobuf.duration_pb2 import Duration
from servers import Running
from sqlalchemy import select, update
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import Alarm, AlarmKey, EventChanges, schema
from staddle_server.catalog.collection_runs import CollectionRun
from staddle_server.store.space import MinFree, Space
from thin import back_up

NS = 10**9
HOUR_NS = 3600 * NS
DAY_NS = 24 * HOUR_NS
NAMES = {
    "billing-db": 24,
    "git": 12,
    "home/anna": 20,
    "host-a/etc": 6,
    "logs": 3,
    "mail": 16,
    "orders-db": 60,
    "photos": 8,
    "/srv/www": 20,
    "wiki": 14,
    "<b>odd</b> & \"name\" 'quoted'": 3,
}
LATE = {"mail": 3, "photos": 2}
UNEXPECTED = ("logs",)


def picture() -> bytes:
    """A PNG of 320 by 200 points."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes(v for x in range(320) for v in (x * 255 // 320, y, 160)) for y in range(200)
    )
    head = struct.pack(">IIBBBBB", 320, 200, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    )


def fill(running: Running, *, troubled: bool = True) -> None:
    """Make the data. Without `troubled`, all is well."""
    running.service._space = Space([str(running.root)], MinFree(size_bytes=1))
    chance = random.Random(7)
    now_ns = running.clock.now_ns()
    for name, count in NAMES.items():
        _backups(running, name, count, now_ns, chance)
    _collections(running, now_ns)
    _alarms(running, now_ns, troubled=troubled)
    free = running.service._space.free()[0].free_bytes
    for hour in range(24 * 15, 0, -1):
        spent = hour * max(1, free // (24 * 120))
        running.catalog.space_samples.note("", {str(running.root): free + spent}, now_ns - hour * HOUR_NS)


def _backups(running: Running, name: str, count: int, now_ns: int, chance: random.Random) -> None:
    stub = running.stub()
    for number in range(count):
        files = {
            f"dir{each % 3}/file{each}.txt": f"version {number // (each + 1)} of {each} in {name}\n".encode()
            * 40
            for each in range(8)
        }
        files |= {"readme.md": b"# Read me\n\n<script>alert(1)</script>\n", "dir0/picture.png": picture()}
        files |= {"binary.dat": chance.randbytes(3000)} if number % 5 == 4 else {}
        made = back_up(
            stub, name, files, host="db1.example", tags={"job": "nightly"} if number % 7 == 0 else {}
        )
        begin_ns = now_ns - (count - 1 - number) * DAY_NS - 5 * HOUR_NS - chance.randrange(HOUR_NS)
        took_ns = chance.randrange(40, 90) * NS * (7 if number == count - 5 else 1)
        moved(running, made.id, begin_ns, took_ns, int(made.stored_bytes * chance.uniform(600, 1400)))
    with running.catalog.database.write() as connection:
        this = update(schema.datasets).where(schema.datasets.c.name == name)
        connection.execute(this.values(success_ns=begin_ns + took_ns, host="db1.example"))
    if name not in UNEXPECTED:
        period = Duration(seconds=86_400)
        stub.SetExpectation(
            sv.SetExpectationRequest(dataset=name, every=period, grace=Duration(seconds=7200))
        )


def _collections(running: Running, now_ns: int) -> None:
    """Four collections, as they would be in a service of some size; the second one failed."""
    fence = running.catalog.gc_lease.acquire("test", now_ns, 60.0)
    for number in range(4):
        figures = {
            "backups_walked": 180 + number,
            "backups_purged": 3,
            "backups_hidden": 2,
            "chunks_looked_up": 1_234_567,
            "packs_looked_at": 6000,
            "bytes_looked_at": 380 << 30,
            "packs_condemned": 700,
            "bytes_condemned": 44 << 30,
            "packs_compacted": 500,
            "bytes_compacted": 31 << 30,
            "packs_written": 180,
            "bytes_written": 11 << 30,
            "packs_reaped": 400,
            "bytes_freed": 25 << 30,
            "packs_waiting": 1200,
            "bytes_waiting": 75 << 30,
            "free_by_ns": now_ns + DAY_NS,
        }
        begun_ns = now_ns - (3 - number) * 6 * HOUR_NS - HOUR_NS
        failure = "the store does not answer: connection refused" if number == 1 else ""
        run = CollectionRun(begun_ns, begun_ns + 95 * NS, {} if failure else figures, failure)
        running.catalog.collections.note(running.tenant, fence, run)
    running.catalog.gc_lease.release(fence)


def moved(running: Running, backup: str, begin_ns: int, took_ns: int, stored_bytes: int) -> None:
    """Let a backup, and its run, be of another time and size."""
    times = {"begin_ns": begin_ns, "stored_bytes": stored_bytes}
    with running.catalog.database.write() as connection:
        this = schema.backups.c.id == bytes.fromhex(backup)
        upload = connection.execute(select(schema.backups.c.upload).where(this)).scalar_one()
        connection.execute(update(schema.backups).where(this).values(**times, commit_ns=begin_ns + took_ns))
        run = update(schema.runs).where(schema.runs.c.id == upload)
        connection.execute(run.values(**times, end_ns=begin_ns + took_ns))


def _alarms(running: Running, now_ns: int, *, troubled: bool) -> None:
    stub = running.stub()
    stub.SetRetention(
        sv.SetRetentionRequest(dataset="orders-db", policy={"keep_daily": 14, "keep_weekly": 4})
    )
    stub.SetHold(sv.SetHoldRequest(dataset="wiki", reason="case 17"))
    newest = stub.GetBackup(sv.GetBackupRequest(dataset="git")).backup
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="git", backup=newest.id))
    running.token("reader", name="monitoring-host")
    if not troubled:
        return
    why = 'The command pg_dump exited with 1: connection to server at "db2" (10.0.0.7), port 5432 failed'
    stub.ReportRun(sv.ReportRunRequest(dataset="billing-db", host="db2.example", reason=why, request_id="1"))
    upload = bytes.fromhex(
        stub.BeginUpload(sv.BeginUploadRequest(dataset="orders-db", host="db1.example")).upload.id
    )
    with running.catalog.database.write() as connection:
        for name, days in LATE.items():
            this = update(schema.datasets).where(schema.datasets.c.name == name)
            connection.execute(this.values(success_ns=now_ns - days * DAY_NS))
        this = update(schema.uploads).where(schema.uploads.c.id == upload)
        connection.execute(this.values(data_bytes=3 << 30))
        run = update(schema.runs).where(schema.runs.c.id == upload)
        connection.execute(run.values(begin_ns=now_ns - 40 * NS))
        incomplete = select(schema.runs.c.id).join(
            schema.datasets, schema.runs.c.dataset == schema.datasets.c.row
        )
        newest_run = incomplete.where(schema.datasets.c.name == "home/anna").order_by(
            schema.runs.c.begin_ns.desc()
        )
        problems = {"outcome": 3, "problem_count": 2}
        id_ = connection.execute(newest_run.limit(1)).scalar_one()
        connection.execute(update(schema.runs).where(schema.runs.c.id == id_).values(**problems))
    open_event(running, now_ns)


def open_event(running: Running, now_ns: int) -> None:
    """Let the service have found that its second site is behind."""
    text = "On host-a, the copy at the second site is 3 days behind."
    advice = "Look at `staddle-server replicate --status`."
    found = Alarm(AlarmKey("second-site", "", "", "/mnt/copy"), "warning", text, advice, now_ns - 3 * DAY_NS)
    events = running.catalog.events
    opened = events.open(now_ns)
    events.change(opened.fence, EventChanges(begun=[found]), lambda _: [], "test", now_ns)
