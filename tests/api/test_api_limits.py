"""Many callers, slow callers, and shutdown: limits, stalled readers, draining, kill -9."""

import json
import logging
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.grpc.health import WATCHES_MAX
from staddle_server.api.slots import FIRST_S, IDLE_S, Slots
from staddle_server.base.logs import CALLS
from thin import (
    Part,
    Source,
    back_up,
    backups,
    begin,
    datasets,
    finish,
    large,
    messages,
    noise,
    open_upload,
    reason,
    restore,
    small,
    wait_until,
)


@pytest.fixture
def image(running):
    """A dataset large enough to fill every buffer of a stalled reader."""
    stub = running.stub()
    data = noise(40_000_000)
    stub.Backup(messages([begin("img"), *large("f", data), finish(1, len(data))]))
    return stub


def test_sixty_four_stalled_restores_delay_no_other_call(running, image):
    stalled = [image.Restore(sv.RestoreRequest(dataset="img")) for _ in range(64)]
    for call in stalled:
        next(iter(call))
    # Without a separate slot and thread these two would never be answered.
    assert running.stub("reader", name="quick").GetServerInfo(sv.GetServerInfoRequest()).tenant == "default"
    assert back_up(running.stub("writer"), "small", {"a": b"1"}).number == 1
    for call in stalled:
        call.cancel()


def test_a_stream_above_the_limit_is_refused_with_a_retry_time(running, image):
    running.service._gate.streams._slots_max = 3
    stalled = [image.Restore(sv.RestoreRequest(dataset="img")) for _ in range(3)]
    for call in stalled:
        next(iter(call))
    with pytest.raises(grpc.RpcError) as refused:
        restore(image, "img")
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value) == "TOO_MANY"
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(refused.value).details[1].Unpack(retry)
    assert retry.retry_delay.seconds > 0
    assert datasets(image) == ["img"], "unary calls still work"
    for call in stalled:
        call.cancel()
    wait_until(lambda: running.service._gate.streams.idle)
    assert restore(image, "img").end.damage_count == 0, "slots are freed when readers disconnect"


def test_draining_refuses_new_calls_and_ends_streams_at_a_checkpoint(running):
    stub = running.stub()
    reached, ended = threading.Event(), threading.Event()
    data = noise(3_000_000)

    def requests():
        yield from messages([begin("www", request_id="r"), *large("a", data), small("b", b"2")])
        reached.set()
        ended.wait(60)

    call = stub.Backup.future(requests())
    assert reached.wait(60)
    open_upload(stub, "r")
    channel = grpc.insecure_channel(running.address)
    drained = threading.Thread(target=running.service.drain, args=(4.0,))
    drained.start()
    health = health_pb2_grpc.HealthStub(channel)
    down = health_pb2.HealthCheckResponse.NOT_SERVING
    wait_until(lambda: health.Check(health_pb2.HealthCheckRequest()).status == down)
    with pytest.raises(grpc.RpcError) as refused:
        datasets(stub)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(refused.value) == "DRAINING"
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(timeout=60)
    ended.set()
    drained.join(60)
    channel.close()
    running.start()
    stub = running.stub()
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload
    assert upload.state == pb.UPLOAD_STATE_OPEN
    assert upload.durable.entry_count == 2


def test_an_idle_upload_is_suspended_and_can_be_resumed(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    running.clock.ahead_s = running.lease_s + 10
    wait_until(lambda: not running.service._uploads._writers)
    with pytest.raises(grpc.RpcError) as failed:
        source.put_file("b", b"2")
    assert reason(failed.value) == "RESUME_REQUIRED"
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert source.upload.durable.entry_count == 1
    source.entries, source.bytes, source.number = 1, 1, 1
    source.put_file("b", b"2")
    source.commit()


def test_waiting_data_becomes_durable_without_further_calls(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    running.clock.ahead_s = 6
    wait_until(lambda: source.state().durable.entry_count)
    assert source.state().durable.entry_count == 1


def test_many_uploads_of_one_dataset_at_once_all_become_backups(running):
    done, errors = [], []

    def one(index):
        try:
            stub = running.stub("writer", name=f"w{index}")
            files = {f"f{j}": noise(150_000, index * 10 + j if j else 0) for j in range(6)}
            done.append((back_up(stub, "www", files), files))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(backup.number for backup, _ in done) == list(range(1, 9))
    for backup, files in done:
        found = restore(running.stub(), "www", backup=pb.BackupSelector(backup=backup.id))
        assert found.files == files


def test_many_small_checkpoints_and_runs_make_the_same_manifest_as_one(running, monkeypatch):
    from staddle_server.upload import received

    files = {f"d{i % 7}/f{i}": bytes([i % 256]) * (i % 50) for i in range(600)}
    stub = running.stub()
    whole = back_up(stub, "one", files)
    monkeypatch.setattr(received, "CHECKPOINT_ENTRIES", 5)
    monkeypatch.setattr(received, "RUNS_MERGE", 4)
    many = back_up(stub, "many", files)
    assert many.manifest_digest == whole.manifest_digest
    assert restore(stub, "many").files == files


def test_health_needs_no_token_and_reflection_any_valid_one(running):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    channel = grpc.insecure_channel(running.address)
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "staddle.v1.StaddleService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as denied:
        list(reflection.ServerReflectionInfo(iter([ask])))
    assert denied.value.code() == grpc.StatusCode.UNAUTHENTICATED
    metadata = [("authorization", f"Bearer {running.token('reader')}")]
    (answer,) = reflection.ServerReflectionInfo(iter([ask]), metadata=metadata)
    assert "staddle.v1.StaddleService" in {s.name for s in answer.list_services_response.service}
    channel.close()


# ------------------------------------------------------------------ a server in its own process


def test_acknowledged_backups_survive_kill_9(server):
    files = {f"f{i}": noise(400_000, i) for i in range(10)}
    for step in range(3):
        files[f"step{step}"] = noise(1000, 50 + step)
        backup = back_up(server.stub(), "www", files)
        server.kill()
        server.start()
        found = restore(server.stub(), "www")
        assert found.backup.id == backup.id
        assert found.files == files


def test_after_a_kill_during_a_stream_no_backup_exists_and_the_upload_resumes(server):
    stub = server.stub()
    data = noise(30_000_000)
    reached, go = threading.Event(), threading.Event()

    def requests():
        parts = [begin("www", request_id="r"), small("a", b"1"), *large("b", data)]
        yield from messages([*parts, Part(checkpoint=sv.Checkpoint())])

    stub.Backup(requests())
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload

    def more():
        id_ = {"upload_id": upload.id, "epoch": upload.epoch, "position": upload.durable.position}
        yield sv.BackupRequest(parts=[Part(continue_upload=sv.ContinueUpload(**id_)), small("c", b"3")])
        reached.set()
        go.wait(60)

    call = stub.Backup.future(more())
    assert reached.wait(60)
    server.kill()
    go.set()
    with pytest.raises(grpc.RpcError):
        call.result(timeout=60)
    server.start()
    stub = server.stub()
    assert backups(stub, "www") == []
    upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
    assert upload.durable.entry_count == 2
    id_ = {"upload_id": upload.id, "epoch": upload.epoch, "position": upload.durable.position}
    rest = [Part(continue_upload=sv.ContinueUpload(**id_)), small("c", b"3"), finish(3, len(data) + 2)]
    stub.Backup(messages(rest))
    assert restore(stub, "www").files == {"a": b"1", "b": data, "c": b"3"}
    left = list((server.data / "store" / "tmp").iterdir())
    assert left == [], "the unfinished files of a killed server are swept"


def test_the_log_has_one_line_a_call_with_facts_and_no_secrets(server):
    stub = server.stub()
    back_up(stub, "www", {"secret-name.txt": b"secret data"})
    restore(stub, "www")
    with pytest.raises(grpc.RpcError):
        restore(stub, "nothing")
    server.stop()
    import tomllib

    log = server.log()
    assert "secret" not in log
    assert tomllib.loads(server.config.read_text())["token"] not in log
    lines = [json.loads(line) for line in log.splitlines()]
    calls = {(line["method"], line["outcome"]): line for line in lines if line["message"] == "call"}
    backup = calls[("Backup", "OK")]
    assert (backup["tenant"], backup["dataset"], backup["entries"], backup["bytes"]) == (
        "default",
        "www",
        1,
        11,
    )
    assert backup["seconds"] >= 0
    assert calls[("Restore", "OK")]["entries"] == 1
    assert calls[("Restore", "NOT_FOUND")]["reason"] == "DATASET_NOT_FOUND"


def test_frequent_calls_of_an_upload_are_logged_only_if_they_fail(running, caplog):
    with caplog.at_level(logging.DEBUG, logger=CALLS):
        source = Source(running.stub(), "www")
        source.put_file("a", b"data")
        with pytest.raises(grpc.RpcError):
            source.put_entries(pb.Entry(path="/not/relative"))
        source.number -= 1
        source.commit()
        wait_until(lambda: len(caplog.records) >= 6)  # a line is written after its call was answered
    logged = {(each.levelname, each.fields["method"], each.fields["outcome"]) for each in caplog.records}
    assert logged == {
        ("INFO", "BeginUpload", "OK"),
        ("DEBUG", "FindMissingChunks", "OK"),
        ("DEBUG", "PutChunks", "OK"),
        ("DEBUG", "PutEntries", "OK"),
        ("INFO", "PutEntries", "INVALID_ARGUMENT"),
        ("INFO", "CommitUpload", "OK"),
    }


def test_a_stream_without_a_message_is_ended_and_frees_its_slot(running, monkeypatch):
    running.only_by_hand(monkeypatch)
    sends = threading.Event()

    def nothing():
        sends.wait(60)
        yield from ()

    call = running.stub("writer").Backup.future(nothing())
    streams = running.service._gate.streams
    wait_until(lambda: not streams.idle)
    assert streams.end_idle() == 0
    running.clock.ahead_s = FIRST_S + 1
    assert streams.end_idle() == 1
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(timeout=60)
    sends.set()
    wait_until(lambda: streams.idle)


def test_a_tenant_at_its_stream_limit_leaves_streams_for_others(running):
    sends = threading.Event()

    def nothing():
        sends.wait(60)
        yield from ()

    greedy = running.stub("writer")
    streams = running.service._gate.streams
    held = [greedy.Backup.future(nothing()) for _ in range(96)]
    wait_until(lambda: len(streams._slots) == 96)
    with pytest.raises(grpc.RpcError, match="at most 96 streams of one tenant") as refused:
        back_up(greedy, "www", {"a": b"1"})
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY")
    other = running.stub(tenant=running.make_tenant("other"))
    back_up(other, "www", {"a": b"1"})
    assert restore(other, "www").files == {"a": b"1"}
    for call in held:
        call.cancel()
    sends.set()


def test_an_unread_restore_is_ended_after_a_while(running, image, monkeypatch):
    running.only_by_hand(monkeypatch)
    stalled = image.Restore(sv.RestoreRequest(dataset="img"))
    next(stalled)
    streams = running.service._gate.streams
    assert streams.end_idle() == 0

    def ended() -> int:
        running.clock.ahead_s += IDLE_S + 1
        return streams.end_idle()

    wait_until(ended)
    with pytest.raises(grpc.RpcError) as cut:
        list(stalled)
    assert cut.value.code() == grpc.StatusCode.CANCELLED


def test_a_stream_with_progress_keeps_its_slot(running):
    now_s = 0.0
    streams = Slots(1, lambda: now_s)

    class Context:
        def add_callback(self, callback):
            return True

        def cancel(self):
            raise AssertionError("it was ended")

    place = streams.enter(Context())
    for _ in place.moving(iter("messages")):
        now_s += IDLE_S
        assert streams.end_idle() == 0


def test_the_number_of_health_watchers_is_limited(running):
    channel = grpc.insecure_channel(running.address)
    health = health_pb2_grpc.HealthStub(channel)
    watching = []
    for _ in range(WATCHES_MAX):  # one by one: of many that have not sent a request yet, the first are ended
        watching.append(health.Watch(health_pb2.HealthCheckRequest()))
        assert next(watching[-1]).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as refused:
        next(health.Watch(health_pb2.HealthCheckRequest()))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert datasets(running.stub()) == []
    for each in watching:
        each.cancel()
    channel.close()
