"""Every RPC of the service, in one table: what it answers to a token that ends, and what it does once its caller has gone.

A new method without a row fails here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from blake3 import blake3
from call_log import each_call
from cut import Line
from direct import Failed, Stub, WideDoor, open_door
from extent import extent
from google.protobuf.timestamp_pb2 import Timestamp
from servers import Running
from sqlalchemy import event
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc
from staddle_server.api.grpc.server import SERVICE
from staddle_server.base.types import TokenRole
from staddle_server.store.blobs import Blobs, BlobWriter
from staddle_server.store.wrapped import WrappedBlobs
from thin import Source, back_up, begin, finish, info, messages, noise, small, wait_until

FILES = 2500
HOUR_S = 3600
STEPS_AFTER_MAX = 16
"""Transactions, and reads and writes of the store, that a call may take once it is no longer wanted."""
UNCHANGED = "backups", "datasets", "pending_records", "upload_requests"


class Place:
    """A service with two large backups that differ everywhere, a policy, a lost pack, and one call at a time."""

    def __init__(self, running: Running) -> None:
        self.running = running
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
        # Damage that is known makes uploads look through their base.
        before = set(self.packs())
        back_up(self.keeper, "lost", {"a": b"1"})
        (lost,) = set(self.packs()) - before
        running.catalog.packs.mark_lost(running.tenant, [bytes.fromhex(lost)])

    def packs(self) -> list[str]:
        return [path.name for path in (self.running.root / "store" / "packs").rglob("*") if path.is_file()]

    # ------------------------------------------------------------------ steps

    def step(self) -> None:
        """The call under way takes a step; from a thread of its own or from one that opens for it."""
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
        """While it lasts, the steps of this thread are counted, and before one of them something happens."""
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
        """What moves the clock inside has moved it back outside."""
        try:
            yield
        finally:
            self.running.clock.ahead_s = 0.0

    def expire(self) -> None:
        """The hour of the last token passes."""
        self.running.clock.ahead_s = HOUR_S + 1.0
        self.running.service._gate.end_invalid()

    # ------------------------------------------------------------------ what is looked at

    def state(self) -> dict[str, list[Any]]:
        """All that a call may decide."""
        with self.running.catalog.database.read() as catalog:
            return {name: catalog.exec_driver_sql(f"SELECT * FROM {name}").all() for name in UNCHANGED}

    def decided(self) -> list[Any]:
        """The same of what is decided in the end: backups, and what becomes of them."""
        return self.state()["backups"]

    def assert_nothing_held(self) -> None:
        service = self.running.service
        gate = service._gate
        assert not gate._calls
        assert not gate.streams._slots
        assert not gate.calls._slots
        assert not gate.streams._waiting
        assert not gate.calls._waiting
        # What compresses and publishes for an upload ends soon after the call.
        wait_until(lambda: gate.decoded.used(self.running.tenant) == 0)
        for writer in service._uploads._all():
            assert writer._lock.acquire(timeout=20), "a writer's turn"
            writer._lock.release()
        assert self.running.catalog.database._turn.acquire(timeout=20), "the turn of those that write"
        self.running.catalog.database._turn.release()
        assert self.plan(), "places for plans, of which there are few"

    # ------------------------------------------------------------------ what is asked for

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
    """What stands of a method.

    Attributes:
        role: The least that it needs.
        request: Makes a valid request for a caller; a list of them where it streams.
        works: Whether it works on what is as large as the caller likes; else it is one small piece of work, which nothing cuts off.
        goes_on: Whether it goes on without its caller, who asks afterwards what became of it.

    """

    role: TokenRole
    request: Callable[[Place, Stub], Any]
    works: bool = False
    goes_on: bool = False


def in_ten_days(place: Place) -> Timestamp:
    return Timestamp(seconds=place.running.clock.now_ns() // 10**9 + 10 * 86_400)


def named(request: Callable[..., Any], **more: Any) -> Callable[[Place, Stub], Any]:
    """A request that names a backup."""
    return lambda place, _: request(dataset="www", backup=place.backup, **more)


def of_upload(request: Callable[..., Any], entries: int = 1, **more: Any) -> Callable[[Place, Stub], Any]:
    """A request that is about an upload of the caller."""
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
    "CommitUpload": Row(W, commit, works=True, goes_on=True),
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
    "GetServerInfo": Row(R, lambda _, __: sv.GetServerInfoRequest()),
}
WORKS = [name for name, row in ROWS.items() if row.works]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    """One service for all rows: no call in this file may change what it keeps."""
    with open_door(WideDoor):
        running = Running(tmp_path_factory.mktemp("every"), wrap=Stepping, lease_s=1e6)
        made = Place(running)
        running.blobs.place = made
        yield made
        running.stop()


class Stepping(WrappedBlobs):
    """Blobs, each use of which is a step of the call under way."""

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


def outcome(stub: Stub, method: str, request: Any, each: Callable[[], None] = lambda: None) -> str:
    """How a call ends: OK, or its reason, or its code."""

    def asked() -> Iterator[Any]:
        for message in request:
            each()
            yield message

    try:
        getattr(stub, method)(asked() if isinstance(request, list) else request)
    except Failed as failed:
        try:
            return info(failed).reason
        except (AssertionError, LookupError, AttributeError):
            return failed.code().name
    return "OK"


def test_every_method_has_a_row_and_needs_the_role_that_stands_there(place):
    assert set(ROWS) == {method.name for method in SERVICE.methods}
    before = place.state()
    for method, row in ROWS.items():
        request = row.request(place, Stub(place.token()))
        lower = [role for role in TokenRole if role < row.role]
        for role in lower:
            assert outcome(Stub(place.token(role.name)), method, request) == "PERMISSION_DENIED", method
    assert before["backups"] == place.decided()


@pytest.mark.parametrize("method", ROWS)
def test_a_token_that_has_ended_is_refused_by_the_next_call(place, method):
    revoked = Stub(place.token())
    request = ROWS[method].request(place, revoked)
    place.revoke()
    before = place.state()
    assert outcome(revoked, method, request) == "UNAUTHENTICATED"
    expired = Stub(place.token())
    with place.time():
        place.expire()
        assert outcome(expired, method, request) == "UNAUTHENTICATED"
    assert place.state() == before
    place.assert_nothing_held()


@pytest.mark.parametrize("method", ROWS)
def test_a_message_that_comes_after_its_token_has_ended_does_nothing(place, method):
    request = ROWS[method].request(place, Stub(place.token()))
    stub = Stub(place.token(), before_message=place.revoke)
    before = place.state()
    assert outcome(stub, method, request) == "UNAUTHENTICATED"
    assert place.state() == before
    place.assert_nothing_held()


SOME_STEPS = extent((1, 4, 25, 150), (1, 2, 4, 9, 25, 60, 150))


def at_steps(place: Place, method: str, action: Callable[[Stub], None]) -> Iterator[tuple[str, int, bool]]:
    """Makes the call again and again while something happens ever later in it, until it ends before that.

    Each time: the outcome, the steps that it took afterwards, and whether anything was decided.
    """
    for at in SOME_STEPS:
        stub = Stub(place.token())
        request = ROWS[method].request(place, stub)
        before = place.decided()
        with place.time():
            with place.acting(at, lambda caller=stub: action(caller)):
                found = outcome(stub, method, request, place.step)
            steps = place.steps
        decided = place.decided() != before
        if method == "ApplyRetention" and decided:
            place.keeper.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=place.older))
        place.assert_nothing_held()
        if steps < at:
            assert found == "OK"
            return
        yield found, steps - at, decided


@pytest.mark.parametrize("method", WORKS)
def test_work_ends_with_the_token_that_asked_for_it_and_nothing_of_it_commits(place, method):
    ends = list(at_steps(place, method, lambda _: place.expire()))
    assert "UNAUTHENTICATED" in {found for found, *_ in ends}
    for found, steps_after, decided in ends:
        assert steps_after <= STEPS_AFTER_MAX or ROWS[method].goes_on, ends
        if found != "OK":
            assert (found, decided) == ("UNAUTHENTICATED", False)


@pytest.mark.parametrize("method", [name for name in WORKS if not ROWS[name].goes_on])
def test_work_ends_once_nobody_waits_for_it(place, method):
    ends = list(at_steps(place, method, lambda stub: stub.context.end()))
    assert "CANCELLED" in {found for found, *_ in ends}
    for found, steps_after, decided in ends:
        assert steps_after <= STEPS_AFTER_MAX, ends
        if found != "OK":
            assert (found, decided) == ("CANCELLED", False)


# ---------------------------------------------------------------------- over gRPC: deadlines and connections


@pytest.fixture
def outcomes() -> Iterator[dict[str, str]]:
    """How the server says that calls ended, by method."""
    found: dict[str, str] = {}
    with each_call(lambda fields: found.update({fields["method"]: fields["outcome"]})):
        yield found


def has_gone(place: Place) -> bool:
    """Whether the server knows that its caller has gone."""
    return not place.running.service._gate._calls


def wait_until_done(place: Place) -> None:
    """Waits until no thread works for a call, and the library has said that all have ended."""
    service = place.running.service
    wait_until(lambda: has_gone(place) and service._gate.streams.idle and not service._wire._threads._load)


def end_far(
    place: Place, line: Line, token: str, method: str, request: Any, *, timeout_s: float | None
) -> str:
    """Makes a call over a connection of its own; how it ends for the client, once the server is done with it, too."""
    metadata = [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(line.address, options=[("grpc.enable_retries", 0)]) as channel:
        call = getattr(service_pb2_grpc.StaddleServiceStub(channel), method)
        try:
            answer = call(
                iter(request) if isinstance(request, list) else request, timeout=timeout_s, metadata=metadata
            )
            if method == "Restore":
                list(answer)
        except grpc.RpcError as error:
            code = error.code().name
        else:
            code = "OK"
    wait_until_done(place)
    return code


def leave_at(
    place: Place, method: str, at: int, outcomes: dict[str, str], *, cut: bool
) -> tuple[str, int, bool]:
    """The deadline of a call passes, or its connection is cut, before a step of it.

    How it then ended for the server, the steps that it took afterwards, and whether anything was decided.
    """
    timeout_s = None if cut else 0.2
    while True:
        token = place.token()
        request = ROWS[method].request(place, Stub(token))
        before, outcomes[method] = place.decided(), ""
        left = []
        with Line(place.running.port) as line:

            def leave(line: Line = line, left: list[int] = left) -> None:
                if has_gone(place):  # who calls is not even known
                    place._at += 1
                    return
                if cut:
                    line.cut()
                wait_until(lambda: has_gone(place))
                left.append(place.steps)

            with place.acting(at, leave):
                code = end_far(place, line, token, method, request, timeout_s=timeout_s)
                steps = place.steps
        found, decided = outcomes[method], place.decided() != before
        restore_rows(place, method)
        place.assert_nothing_held()
        if left:
            assert code == ("UNAVAILABLE" if cut else "DEADLINE_EXCEEDED")
            return found, steps - left[0], decided
        if code == "OK":
            return "OK", 0, decided
        assert code == "DEADLINE_EXCEEDED"
        timeout_s = 2 * (timeout_s or 0.0)  # it passed before the step: the machine is busy


def restore_rows(place: Place, method: str) -> None:
    """What one small call may have decided is as before."""
    undone = {
        "DeleteBackup": named(sv.UndeleteBackupRequest),
        "SetHold": named(sv.ReleaseHoldRequest),
        "SetRetention": lambda *_: sv.SetRetentionRequest(
            dataset="www", policy=pb.RetentionPolicy(keep_last=1)
        ),
        "ApplyRetention": lambda *_: sv.UndeleteBackupRequest(dataset="www", backup=place.older),
    }
    if method in undone:
        request = undone[method](place, place.keeper)
        outcome(place.keeper, type(request).__name__.removesuffix("Request"), request)


BOTH_ENDS = pytest.mark.parametrize("cut", [False, True], ids=["deadline", "connection"])


def check_left(
    place: Place, method: str, steps: tuple[int, ...], outcomes: dict[str, str], *, cut: bool
) -> None:
    row, ends = ROWS[method], []
    for at in steps:
        found, after, decided = leave_at(place, method, at, outcomes, cut=cut)
        ends.append(found)
        if row.works and not row.goes_on:
            assert after <= 2 * STEPS_AFTER_MAX, (at, after)  # gRPC notices a moment later
            assert found == "OK" or not decided, (at, found)
    if row.works and not row.goes_on:
        assert "CANCELLED" in ends, ends
    assert {*ends} <= {"OK", "CANCELLED"}, ends


@BOTH_ENDS
@pytest.mark.parametrize("method", ROWS)
def test_a_caller_whose_deadline_passes_or_whose_connection_breaks_leaves_nothing_held(
    place, outcomes, method, *, cut
):
    steps = extent((4,), SOME_STEPS) if ROWS[method].works else (1,)
    check_left(place, method, steps, outcomes, cut=cut)


def test_a_stream_whose_connection_breaks_in_the_middle_commits_nothing(place, outcomes):
    request = thin_backup(place, place.keeper)
    before = place.decided()
    with Line(place.running.port) as line:

        def half() -> Iterator[sv.BackupRequest]:
            yield from request[: len(request) // 2]
            wait_until(lambda: not has_gone(place))
            line.cut()
            wait_until(lambda: has_gone(place))
            yield from request[len(request) // 2 :]

        metadata = [("authorization", f"Bearer {place.token()}")]
        with grpc.insecure_channel(line.address) as channel, pytest.raises(grpc.RpcError) as broken:
            service_pb2_grpc.StaddleServiceStub(channel).Backup(half(), metadata=metadata)
    assert broken.value.code() == grpc.StatusCode.UNAVAILABLE
    wait_until_done(place)
    assert outcomes["Backup"] == "CANCELLED"
    assert place.decided() == before
    place.assert_nothing_held()
