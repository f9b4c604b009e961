"""One contract over all doors: gRPC, HTTP with JSON and with encoded messages, and REST answer every unary call alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from direct import Failed, Stub, WideDoor, open_door
from every_call import ROWS, Place, Stepping
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from http_door import JSON, PROTO, HttpError, HttpStub, ask, call, open_http
from rest_door import TABLE, NoAddressError, RestStub, address_of
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import slots
from staddle_server.api.messages import SERVICE
from staddle_server.base.limits import CALLS_TOKEN_MAX
from staddle_server.base.types import TokenRole
from thin import info

UNARY = [each.name for each in SERVICE.methods if not (each.client_streaming or each.server_streaming)]
AT_REST = {each.name for each in TABLE} & set(UNARY)
STREAMS = [each.name for each in SERVICE.methods if each.name not in UNARY]


class Doors:
    """A service with both doors."""

    def __init__(self, place: Place, port: int) -> None:
        self.place, self.port = place, port

    def stub(self, door: str, token: str) -> Any:
        if door == "grpc":
            return Stub(token)
        if door == "rest":
            return RestStub(self.port, token)
        return HttpStub(self.port, token, JSON if door == "json" else PROTO)

    def outcomes(self, method: str, request: Any, token: str) -> dict[str, tuple[str, str]]:
        """How the same call ends at each door that has it: code and reason."""
        return {door: ending(self.stub(door, token), method, request) for door in doors_for(method, request)}


def doors_for(method: str, request: Any) -> list[str]:
    try:
        address_of(method, request)
    except NoAddressError:
        return ["grpc", "json", "proto"]
    return ["grpc", "json", "proto", "rest"]


def ending(stub: Any, method: str, request: Any) -> tuple[str, str]:
    try:
        getattr(stub, method)(request)
    except Failed as failed:
        return failed.code().name, info(failed).reason
    except HttpError as failed:
        return failed.code, failed.reason
    return "OK", ""


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with open_door(WideDoor):
        running = Running(tmp_path_factory.mktemp("doors"), wrap=Stepping, lease_s=1e6)
        place = Place(running)
        yield Doors(place, open_http(running))
        running.stop()


@pytest.mark.parametrize("method", UNARY)
def test_every_unary_method_answers_a_valid_request(doors: Doors, method: str) -> None:
    for door in ("json", "proto", *(["rest"] if method in AT_REST else [])):
        answer_and_undo(doors, method, door)


def answer_and_undo(doors: Doors, method: str, door: str) -> None:
    place = doors.place
    token = place.token()
    request = ROWS[method].request(place, Stub(token))
    assert ending(doors.stub(door, token), method, request) == ("OK", ""), door
    place.keeper.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=place.older))
    place.keeper.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=place.backup))
    place.keeper.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=place.backup))
    place.assert_nothing_held()


@pytest.mark.parametrize("method", UNARY)
def test_every_method_asks_for_the_same_role_at_both_doors(doors: Doors, method: str) -> None:
    place = doors.place
    request = ROWS[method].request(place, Stub(place.token()))
    for role in TokenRole:
        if role < ROWS[method].role:
            found = doors.outcomes(method, request, place.token(role.name))
            assert set(found.values()) == {("PERMISSION_DENIED", "PERMISSION_DENIED")}
    refused = {("UNAUTHENTICATED", "UNAUTHENTICATED")}
    assert set(doors.outcomes(method, request, "unknown").values()) == refused
    ended = place.token()
    place.revoke()
    found = doors.outcomes(method, request, ended)
    assert set(found.values()) == refused
    assert ("rest" in found) == (method in AT_REST)


FAR = Timestamp(seconds=-62_135_596_800)
"""Year 1: before what the catalog can hold."""
LATE = Timestamp(seconds=253_402_300_799)
BAD: dict[str, Callable[[], Any]] = {
    "ListBackups": lambda: sv.ListBackupsRequest(dataset="x" * 300),
    "ListDatasets": lambda: sv.ListDatasetsRequest(page_token="no token"),
    "GetBackup": lambda: sv.GetBackupRequest(dataset="nowhere"),
    "ListEntries": lambda: sv.ListEntriesRequest(dataset="www", path="../x"),
    "ListChanges": lambda: sv.ListChangesRequest(
        dataset="www", from_backup=pb.BackupSelector(backup="zz"), to_backup=pb.BackupSelector(backup="zz")
    ),
    "ReadRange": lambda: sv.ReadRangeRequest(dataset="big", path="big", length_bytes=1 << 30),
    "BeginUpload": lambda: sv.BeginUploadRequest(dataset="www", request_id="r" * 200),
    "GetUpload": lambda: sv.GetUploadRequest(upload_id="00" * 16),
    "PutChunks": lambda: sv.PutChunksRequest(upload_id="00" * 16, data=b"1", raw=True),
    "PutEntries": lambda: sv.PutEntriesRequest(
        upload_id="00" * 16, changes=[sv.EntryChange(entry=pb.Entry(path="/"))]
    ),
    "FindMissingChunks": lambda: sv.FindMissingChunksRequest(upload_id="00" * 16, digests=[b"short"]),
    "SetHold": lambda: sv.SetHoldRequest(dataset="www", reason="r" * 5000),
    "SetRetention": lambda: sv.SetRetentionRequest(
        dataset="www", policy=pb.RetentionPolicy(keep_within=Duration(seconds=-5))
    ),
}


@pytest.mark.parametrize("method", UNARY)
def test_the_same_bad_request_has_the_same_error_at_both_doors(doors: Doors, method: str) -> None:
    token = doors.place.token()
    empty = getattr(sv, SERVICE.methods_by_name[method].input_type.name)()
    for request in (empty, *((BAD[method](),) if method in BAD else ())):
        found = doors.outcomes(method, request, token)
        assert len(set(found.values())) == 1, found
        if request is not empty:
            assert found["grpc"][0] != "OK", method
    doors.place.assert_nothing_held()


def test_reads_answer_the_same_message_at_both_doors(doors: Doors) -> None:
    token = doors.place.token()
    for method in ("ListDatasets", "ListBackups", "GetBackup", "ListEntries", "ListChanges", "ReadRange"):
        request = ROWS[method].request(doors.place, Stub(token))
        names = doors_for(method, request)
        assert ("rest" in names) == (method != "ReadRange")
        answers = [getattr(doors.stub(door, token), method)(request) for door in names]
        for answer in answers:
            answer.ClearField("next_page_token") if hasattr(answer, "next_page_token") else None
        assert all(answer == answers[0] for answer in answers), method


@pytest.mark.parametrize(
    "request_",
    [
        sv.ReadRangeRequest(dataset="nowhere", path="f00001", length_bytes=1),
        sv.ReadRangeRequest(dataset="www", path="nothing", length_bytes=1),
        sv.ReadRangeRequest(dataset="www", path="../f00001", length_bytes=1),
        sv.ReadRangeRequest(dataset="www", path="", length_bytes=1),
        sv.ReadRangeRequest(dataset="www", path="f", backup=pb.BackupSelector(backup="0000"), length_bytes=1),
    ],
)
def test_a_file_over_rest_has_the_errors_of_read_range(doors: Doors, request_: sv.ReadRangeRequest) -> None:
    token = doors.place.token("reader")
    backup = request_.backup.backup or "latest"
    address = f"/v1/datasets/{request_.dataset}/backups/{backup}/files/{request_.path}"
    found = ask(doors.port, address, None, {"authorization": f"Bearer {token}"})
    expected = doors.outcomes("ReadRange", request_, token)
    assert {(HttpError(found).code, HttpError(found).reason)} == set(expected.values())


@pytest.mark.parametrize("method", STREAMS)
def test_a_method_with_streams_says_that_it_needs_grpc(doors: Doors, method: str) -> None:
    found = call(doors.port, method, None)
    assert (found.status, found.said["code"]) == (501, "unimplemented")
    assert "over gRPC" in found.said["message"]
    found = call(doors.port, method, None, kind="application/connect+json")
    assert (found.status, found.body[0]) == (200, 2)
    assert b"unimplemented" in found.body


def test_calls_at_both_doors_count_against_one_limit(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "WAIT_S", 0.05)
    token, gate = doors.place.token(), doors.place.running.service._gate
    principal = doors.place.running.catalog.tokens.authenticate(token, doors.place.running.clock.now_ns())

    class Line:
        def add_callback(self, _callback: Callable[[], None]) -> bool:
            return True

        def cancel(self) -> None: ...

    held = [gate.calls.enter(Line(), principal.token, principal.tenant) for _ in range(CALLS_TOKEN_MAX)]
    try:
        found = doors.outcomes("ListDatasets", sv.ListDatasetsRequest(), token)
    finally:
        for each in held:
            gate.calls.leave(each)
    assert list(found.values()) == [("RESOURCE_EXHAUSTED", "TOO_MANY")] * 4
    found = doors.outcomes("ListDatasets", sv.ListDatasetsRequest(), token)
    assert list(found.values()) == [("OK", "")] * 4


def test_a_server_that_drains_refuses_at_both_doors(doors: Doors) -> None:
    gate, token = doors.place.running.service._gate, doors.place.token()
    gate.draining = True
    try:
        found = doors.outcomes("ListDatasets", sv.ListDatasetsRequest(), token)
        retry = call(doors.port, "ListDatasets", token).headers["retry-after"]
    finally:
        gate.draining = False
    assert list(found.values()) == [("UNAVAILABLE", "DRAINING")] * 4
    assert retry == "2"


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ListRuns", sv.ListRunsRequest(since_time=FAR, until_time=LATE)),
        ("GetBackup", sv.GetBackupRequest(dataset="www", backup=pb.BackupSelector(at=LATE))),
        (
            "SetExpectation",
            sv.SetExpectationRequest(dataset="www", every={"seconds": 3600}, mute_until_time=LATE),
        ),
    ],
)
def test_a_time_beyond_what_the_catalog_holds_is_a_time_all_the_same(
    doors: Doors, method: str, request_: Any
) -> None:
    found = doors.outcomes(method, request_, doors.place.token())
    assert found == dict.fromkeys(("grpc", "json", "proto", "rest"), ("OK", ""))
