"""Every RPC of the service in one table, and a service to try them on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from blake3 import blake3
from direct import Stub
from google.protobuf.timestamp_pb2 import Timestamp
from servers import Running
from sqlalchemy import event
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import TokenRole
from staddle_server.store.blobs import Blobs, BlobWriter
from staddle_server.store.wrapped import WrappedBlobs
from thin import Source, back_up, begin, finish, messages, noise, small, wait_until

FILES = 2500


HOUR_S = 3600


UNCHANGED = "backups", "datasets", "pending_records", "upload_requests"


class Place:
    """A service with two large, entirely different backups, a policy, a lost pack, and one call at a time."""

    def __init__(self, running: Running) -> None:
        self.running = running
        running.only_by_hand(pytest.MonkeyPatch())
        self.keeper = Stub(running.token("admin"))
        self.names = iter(range(1_000_000))
        self._action: Callable[[], None] = lambda: None
        self._at = 0
        self._acting = False
        self._caller: int | None = None
        self.steps = 0
        event.listen(running.catalog.database.engine, "begin", lambda _: self.step())
        for mode in (0o600, 0o644):
            entries = [small(f"f{n:05}", b"", mode=mode) for n in range(FILES)]
            made = self.keeper.Backup(messages([begin("www"), *entries, finish(FILES, 0)]))
            self.backup = made.backup.id
        self.older = self.keeper.ListBackups(sv.ListBackupsRequest(dataset="www")).backups[-1].id
        back_up(self.keeper, "big", {"big": noise(6 << 20)})
        self.keeper.SetRetention(
            sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=1))
        )
        # Known damage makes uploads search their base.
        before = set(self.packs())
        back_up(self.keeper, "lost", {"a": b"1"})
        (lost,) = set(self.packs()) - before
        running.catalog.packs.mark_lost(running.tenant, [bytes.fromhex(lost)])

    def packs(self) -> list[str]:
        return [path.name for path in (self.running.root / "store" / "packs").rglob("*") if path.is_file()]

    # ------------------------------------------------------------------ steps

    def step(self) -> None:
        """The current call takes a step, from its own thread or from one that opens for it."""
        thread = threading.current_thread()
        if self._acting or not (thread.ident == self._caller or thread.name.startswith(("open", "call"))):
            return
        self.steps += 1
        if self.steps == self._at:
            self._acting = True
            try:
                self._action()
            finally:
                self._acting = False

    @contextmanager
    def acting(self, at: int, action: Callable[[], None]) -> Iterator[None]:
        """Count the steps of this thread, and run something before one of them."""
        self._at, self._action, self.steps, self._caller = at, action, 0, threading.get_ident()
        try:
            yield
        finally:
            self._caller = None

    # ------------------------------------------------------------------ tokens

    def token(self, role: str = "admin") -> str:
        """A new token, which has an hour."""
        now_ns = self.running.clock.now_ns()
        self.name = f"t{next(self.names)}"
        return self.running.catalog.tokens.create(
            self.running.tenant, self.name, TokenRole[role.upper()], now_ns, now_ns + HOUR_S * 10**9
        )

    def revoke(self) -> None:
        self.running.catalog.tokens.revoke(self.running.tenant, self.name, self.running.clock.now_ns())
        self.running.service._gate.end_invalid()

    @contextmanager
    def time(self) -> Iterator[None]:
        """A context that restores the clock at its end."""
        try:
            yield
        finally:
            self.running.clock.ahead_s = 0.0

    def expire(self) -> None:
        """Let the hour of the last token pass."""
        self.running.clock.ahead_s = HOUR_S + 1.0
        self.running.service._gate.end_invalid()

    # ------------------------------------------------------------------ observed state

    def state(self) -> dict[str, list[Any]]:
        """Everything that a call may change."""
        with self.running.catalog.database.read() as catalog:
            return {name: catalog.exec_driver_sql(f"SELECT * FROM {name}").all() for name in UNCHANGED}

    def decided(self) -> list[Any]:
        """The same for final decisions: backups, and their fate."""
        return self.state()["backups"]

    def assert_nothing_held(self) -> None:
        service = self.running.service
        gate = service._gate
        assert not gate._calls
        assert not gate.streams._slots
        assert not gate.calls._slots
        assert not gate.streams._waiting
        assert not gate.calls._waiting
        # The compression and publication for an upload end soon after the call.
        wait_until(lambda: gate.decoded.used(self.running.tenant) == 0)
        for writer in service._uploads._all():
            assert writer._lock.acquire(timeout=60), "a writer's turn"
            writer._lock.release()
        assert self.running.catalog.database._turn.acquire(timeout=60), "the turn of the writers"
        self.running.catalog.database._turn.release()
        assert self.plan(), "slots for plans, which are few"

    # ------------------------------------------------------------------ requests

    def upload(self, stub: Stub, entries: int = 1) -> Source:
        """An open upload of this caller with some entries that are not durable."""
        source = Source(stub, f"u{next(self.names)}")
        paths = [f"f{n:05}" for n in range(entries)]
        for start in range(0, entries, 1000):
            source.put_entries(*(pb.Entry(path=path, data=b"") for path in paths[start : start + 1000]))
        source.entries = entries
        return source

    def plan(self) -> str:
        return self.keeper.PlanRetention(
            sv.PlanRetentionRequest(dataset="www", without_free_bytes=True)
        ).plan_token


class Row(NamedTuple):
    """The row of a method.

    Attributes:
        role: The least that it needs.
        request: Makes a valid request for a caller; a list of them where it streams.
        works: Whether it works on what is as large as the caller likes; else it is one small piece of work, which nothing cuts off.
        outlives_caller: Whether it continues without its caller, who asks later for the outcome.

    """

    role: TokenRole
    request: Callable[[Place, Stub], Any]
    works: bool = False
    outlives_caller: bool = False


def in_ten_days(place: Place) -> Timestamp:
    return Timestamp(seconds=place.running.clock.now_ns() // 10**9 + 10 * 86_400)


def named(request: Callable[..., Any], **more: Any) -> Callable[[Place, Stub], Any]:
    """A request that names a backup."""
    return lambda place, _: request(dataset="www", backup=place.backup, **more)


def of_upload(request: Callable[..., Any], entries: int = 1, **more: Any) -> Callable[[Place, Stub], Any]:
    """A request for an upload of the caller."""
    return lambda place, stub: request(**place.upload(stub, entries).id, **more)


def commit(place: Place, stub: Stub) -> Any:
    source = place.upload(stub, FILES)
    return sv.CommitUploadRequest(**source.id, entry_count=FILES, data_bytes=0)


def thin_backup(place: Place, _: Stub) -> list[sv.BackupRequest]:
    parts = [small(f"f{n:05}", b"1") for n in range(FILES)]
    some = [sv.BackupRequest(parts=parts[start : start + 100]) for start in range(0, FILES, 100)]
    first = sv.BackupRequest(parts=[begin(f"b{next(place.names)}")])
    return [first, *some, sv.BackupRequest(parts=[finish(FILES, FILES)])]


def incremental(place: Place, _: Stub) -> sv.BeginUploadRequest:
    return sv.BeginUploadRequest(dataset="www", request_id=f"r{next(place.names)}")


def of_incremental(place: Place, stub: Stub) -> sv.GetUploadRequest:
    upload = stub.BeginUpload(incremental(place, stub)).upload
    return sv.GetUploadRequest(upload_id=upload.id)


def find_changes(place: Place, _: Stub) -> sv.ListChangesRequest:
    two = {
        "from_backup": pb.BackupSelector(backup=place.older),
        "to_backup": pb.BackupSelector(backup=place.backup),
    }
    return sv.ListChangesRequest(dataset="www", page_size=10_000, **two)


R, W, A = TokenRole.READER, TokenRole.WRITER, TokenRole.ADMIN


ROWS = {
    "Backup": Row(W, thin_backup, works=True),
    "BeginUpload": Row(W, incremental, works=True),
    "GetUpload": Row(W, of_incremental, works=True),
    "ResumeUpload": Row(
        W, lambda place, stub: sv.ResumeUploadRequest(upload_id=place.upload(stub).upload.id)
    ),
    "CheckpointUpload": Row(W, of_upload(sv.CheckpointUploadRequest)),
    "RenewUpload": Row(W, of_upload(sv.RenewUploadRequest)),
    "CommitUpload": Row(W, commit, works=True, outlives_caller=True),
    "AbortUpload": Row(W, of_upload(sv.AbortUploadRequest)),
    "ListUploads": Row(A, lambda _, __: sv.ListUploadsRequest()),
    "FindMissingChunks": Row(W, of_upload(sv.FindMissingChunksRequest, digests=[bytes(32)])),
    "PutChunks": Row(
        W,
        of_upload(
            sv.PutChunksRequest,
            chunks=[pb.ChunkRef(digest=blake3(b"1").digest(), length_bytes=1)],
            data=b"1",
            raw=True,
        ),
    ),
    "PutEntries": Row(
        W,
        of_upload(
            sv.PutEntriesRequest, number=2, changes=[sv.EntryChange(entry=pb.Entry(path="new", data=b""))]
        ),
    ),
    "Restore": Row(R, lambda _, __: sv.RestoreRequest(dataset="www"), works=True),
    "ReadRange": Row(R, lambda _, __: sv.ReadRangeRequest(dataset="big", path="big", length_bytes=3 << 20)),
    "ListDatasets": Row(R, lambda _, __: sv.ListDatasetsRequest()),
    "ListBackups": Row(R, lambda _, __: sv.ListBackupsRequest(dataset="www")),
    "GetBackup": Row(R, lambda _, __: sv.GetBackupRequest(dataset="www")),
    "ListEntries": Row(
        R,
        lambda _, __: sv.ListEntriesRequest(dataset="www", recursive=True, page_size=10_000),
        works=True,
    ),
    "ListChanges": Row(R, find_changes, works=True),
    "DeleteBackup": Row(A, named(sv.DeleteBackupRequest)),
    "UndeleteBackup": Row(A, named(sv.UndeleteBackupRequest)),
    "SetHold": Row(A, named(sv.SetHoldRequest, reason="case")),
    "ReleaseHold": Row(A, named(sv.ReleaseHoldRequest)),
    "RetainBackup": Row(
        A,
        lambda place, stub: named(sv.RetainBackupRequest, until_time=in_ten_days(place))(place, stub),
    ),
    "GetRetention": Row(R, lambda _, __: sv.GetRetentionRequest(dataset="www")),
    "SetRetention": Row(
        A, lambda _, __: sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=7))
    ),
    "PlanRetention": Row(R, lambda _, __: sv.PlanRetentionRequest(dataset="www"), works=True),
    "ApplyRetention": Row(
        A,
        lambda place, _: sv.ApplyRetentionRequest(dataset="www", plan_token=place.plan()),
        works=True,
    ),
    "ListRuns": Row(R, lambda _, __: sv.ListRunsRequest(page_size=1000)),
    "ReportRun": Row(W, lambda _, __: sv.ReportRunRequest(dataset="www", reason="exit status 1")),
    "SetExpectation": Row(A, lambda _, __: sv.SetExpectationRequest(dataset="www", every={"seconds": 3600})),
    "DeleteExpectation": Row(A, lambda _, __: sv.DeleteExpectationRequest(dataset="www")),
    "ListExpectations": Row(R, lambda _, __: sv.ListExpectationsRequest()),
    "ListEvents": Row(R, lambda _, __: sv.ListEventsRequest(dataset="www")),
    "GetStatus": Row(R, lambda _, __: sv.GetStatusRequest()),
    "GetServerInfo": Row(R, lambda _, __: sv.GetServerInfoRequest()),
}


WORKS = [name for name, row in ROWS.items() if row.works]


class Stepping(WrappedBlobs):
    """Blobs; each use is a step of the current call."""

    def __init__(self, blobs: Blobs) -> None:
        super().__init__(blobs)
        self.place: Place | None = None

    def _step(self) -> None:
        if self.place is not None:
            self.place.step()

    def read(self, name: str, offset: int, length: int) -> bytes:
        self._step()
        return super().read(name, offset, length)

    def size(self, name: str) -> int:
        self._step()
        return super().size(name)

    def create(self) -> BlobWriter:
        self._step()
        return super().create()

    def put(self, name: str, data: bytes) -> None:
        self._step()
        super().put(name, data)
