"""An upload belongs to one of several servers: the others name it, or let the upload be resumed once it is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from postgres_server import on_both_databases_in_test_all
from servers import Running
from several_servers import beat, fall_silent, sharing
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import ServerIdentity
from thin import (
    Part,
    Source,
    back_up,
    begin,
    finish,
    info,
    messages,
    noise,
    reason,
    restore,
    small,
    wait_until,
)

pytestmark = on_both_databases_in_test_all


@pytest.fixture
def servers(tmp_path, catalog_url) -> Iterator[list[Running]]:
    with sharing(tmp_path, catalog_url, 3) as made:
        yield made


def refusal(call: Callable[[], object]) -> str:
    """The reason why a call failed."""
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return reason(failed.value)


def at(server: Running, source: Source) -> Source:
    """The same upload, called at another server."""
    other = object.__new__(Source)
    other.__dict__ = {**source.__dict__, "stub": server.stub()}
    return other


def test_any_server_restores_what_another_one_stored(servers):
    first, second, third = servers
    files = {"a": noise(300_000), "b": b"small"}
    back_up(first.stub(), "www", files)
    back_up(second.stub(), "www", files | {"c": b"new"})
    assert restore(third.stub(), "www").files == files | {"c": b"new"}


def test_another_server_refuses_to_write_and_names_the_one_that_does(servers):
    first, second, _ = servers
    source = Source(first.stub(), "www", request_id="r")
    source.put_file("a", noise(200_000))
    elsewhere = at(second, source)
    calls: list[Callable[[], object]] = [
        lambda: elsewhere.missing([b"x"]),
        lambda: elsewhere.put_chunks([b"x"]),
        lambda: elsewhere.put_entries(source.entry("b", b"")),
        lambda: elsewhere.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id)),
        elsewhere.commit,
        lambda: elsewhere.stub.Backup(
            messages([Part(continue_upload=sv.ContinueUpload(**source.id, position=0))])
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert reason(failed.value) == "WRONG_SERVER"
        assert info(failed.value).metadata["upload"] == source.upload.id
        assert info(failed.value).metadata["endpoint"] == first.address
        assert first.address in failed.value.details()
    source.entries = 1
    source.commit()
    assert restore(second.stub(), "www").files == {"a": noise(200_000)}


def test_every_server_answers_where_to_write_an_upload(servers):
    first, second, third = servers
    source = Source(first.stub(), "www", request_id="r")
    asked = sv.GetUploadRequest(upload_id=source.upload.id)
    assert source.upload.endpoint == ""  # the address that was called
    assert second.stub().GetUpload(asked).upload.endpoint == first.address
    assert second.stub().ListUploads(sv.ListUploadsRequest()).uploads[0].endpoint == first.address
    replayed = second.stub().BeginUpload(sv.BeginUploadRequest(dataset="www", request_id="r")).upload
    assert (replayed.id, replayed.endpoint) == (source.upload.id, first.address)
    resumed = second.stub().ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert resumed.endpoint == ""
    for other in (first, third):
        assert other.stub().GetUpload(asked).upload.endpoint == second.address


def test_a_thin_backup_repeated_at_another_server_learns_where_the_first_one_runs(servers):
    first, second, _ = servers
    upload = first.stub().BeginUpload(sv.BeginUploadRequest(dataset="www", request_id="r")).upload
    again = [begin("www", request_id="r"), small("a", b"1"), finish(1, 1)]
    assert refusal(lambda: second.stub().Backup(messages(again))) == "WRONG_SERVER"
    fall_silent(first)
    assert refusal(lambda: second.stub().Backup(messages(again))) == "RESUME_REQUIRED"
    beat(first)
    made = first.stub().Backup(messages(again))
    assert made.upload.id == upload.id
    # Once there is a backup, every server gives the answer that was lost.
    assert second.stub().Backup(messages(again)).backup == made.backup


def _killed(server: Running, _stub: object) -> None:
    fall_silent(server)


def _draining(server: Running, _stub: object) -> None:
    server.service._heartbeat.drain()


def _stopped(server: Running, _stub: object) -> None:
    server.service._heartbeat.stop()


@pytest.mark.parametrize("gone", [_killed, _draining, _stopped])
def test_an_upload_is_resumed_at_another_server_once_its_own_is_gone(servers, gone):
    first, second, third = servers
    source = Source(first.stub(), "www")
    source.put_file("a", noise(200_000))
    first.stub().CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("lost", b"not durable")
    elsewhere = at(second, source)
    assert refusal(lambda: elsewhere.missing([b"x"])) == "WRONG_SERVER"
    gone(first, source.stub)
    assert refusal(lambda: elsewhere.missing([b"x"])) == "RESUME_REQUIRED"
    elsewhere.upload = elsewhere.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert elsewhere.upload.durable.entry_count == 1
    elsewhere.entries, elsewhere.bytes, elsewhere.number = 1, 200_000, 1
    elsewhere.put_file("b", b"new")
    assert refusal(lambda: at(third, elsewhere).missing([b"x"])) == "WRONG_SERVER"
    elsewhere.commit()
    assert restore(third.stub(), "www").files == {"a": noise(200_000), "b": b"new"}


def test_a_server_whose_upload_was_taken_over_publishes_nothing_more(servers):
    first, second, _ = servers
    source = Source(first.stub(), "www")
    source.put_file("a", noise(200_000, 1))
    fall_silent(first)  # suspended: it comes back with everything in memory
    elsewhere = at(second, source)
    elsewhere.upload = elsewhere.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert elsewhere.upload.durable.entry_count == 0
    elsewhere.entries = elsewhere.bytes = elsewhere.number = 0
    elsewhere.put_file("b", b"new")
    beat(first)
    assert refusal(source.commit) == "STALE_EPOCH"
    assert refusal(lambda: source.put_chunks([b"x"])) == "STALE_EPOCH"
    elsewhere.commit()
    assert restore(first.stub(), "www").files == {"b": b"new"}


def test_the_server_that_an_upload_left_names_the_one_that_writes_it_now(servers):
    """Behind a balancer, a call of the new epoch may reach it before it has looked at the catalog."""
    first, second, _ = servers
    source = Source(first.stub(), "www")
    source.put_file("a", noise(200_000))
    elsewhere = at(second, source)
    elsewhere.upload = elsewhere.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    elsewhere.entries = elsewhere.bytes = elsewhere.number = 0
    back = at(first, elsewhere)
    assert refusal(lambda: back.put_chunks([b"x"])) == "WRONG_SERVER"
    elsewhere.put_file("b", b"new")
    made = elsewhere.commit()
    back = at(first, elsewhere)
    assert refusal(lambda: back.put_chunks([b"x"])) == "UPLOAD_CLOSED"
    assert back.commit().id == made.id  # a replay
    assert refusal(source.commit) == "STALE_EPOCH"


@pytest.mark.parametrize("end", ["resumed", "aborted"])
def test_a_server_frees_what_it_holds_for_an_upload_that_another_one_took_or_ended(servers, end):
    first, second, _ = servers
    source = Source(first.stub(), "www")
    source.put_file("a", noise(200_000))
    uploads = first.service._uploads
    assert len(uploads._all()) == 1
    if end == "resumed":
        second.stub().ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id))
    else:
        second.stub().AbortUpload(sv.AbortUploadRequest(**source.id))
    first.clock.ahead_s += 6
    wait_until(lambda: not uploads._all())
    expected = "STALE_EPOCH" if end == "resumed" else "UPLOAD_CLOSED"
    assert refusal(lambda: source.put_chunks([b"x"])) == expected


def test_an_earlier_server_at_the_same_address_is_no_other_server(servers):
    first, second, _ = servers
    source = Source(first.stub(), "www")
    second.service._heartbeat.stop()
    # As one behind the same balancer, or in the place of a killed one.
    second.service._heartbeat.start(ServerIdentity(second.service._id, "", "", first.address, "", ""))
    assert refusal(lambda: at(second, source).missing([b"x"])) == "RESUME_REQUIRED"
