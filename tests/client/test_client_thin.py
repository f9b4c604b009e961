"""The thin path: data is in a backup once committed, and only then, whatever happens on the way."""

import contextlib
import io
import random
import threading

import grpc
import pytest
from extent import extent
from memory_service import TOKEN, MemoryService, Running, rpc_abort
from staddle import (
    BadRequestError,
    Client,
    ConnectError,
    NoBaseError,
    StaddleError,
    UnfinishedError,
    UploadClosedError,
)
from staddle._upload.resend_buffer import MIB, REPLAY_BYTES_MAX

KIB = 1024


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def stored(memory: MemoryService, dataset: str, number: int = -1) -> dict[bytes, bytes]:
    return {path: each.data for path, each in memory.backups[dataset][number].entries.items()}


def cut_once(
    memory: MemoryService, after_bytes: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
) -> list[int]:
    """The stream breaks once, when so many bytes of data came. Answers where it broke."""
    broke: list[int] = []

    def on_part(_part, context: grpc.ServicerContext) -> None:
        if memory.received_bytes >= after_bytes and not broke:
            broke.append(memory.received_bytes)
            context.abort(code, "the connection broke")

    memory.on_part = on_part
    return broke


def test_a_clean_exit_commits_everything_that_was_put(client: Client, memory: MemoryService) -> None:
    big = random_bytes(3 * MIB + 5)
    with client.upload("orders", tags={"day": "monday"}) as upload:
        upload.put("a.json", b"{}", mode=0o600, mtime_ns=-5)
        upload.put("empty", b"")
        upload.put("big.bin", big)
        upload.put("dir/from-file", io.BytesIO(big[:100]))
        upload.put("dir/from-pieces", iter([b"one", b"", bytearray(b"two"), memoryview(b"three")]))
        upload.put(b"not-utf8-\xff", b"x")
        upload.mkdir("hollow", mode=0o700)
        upload.symlink("link", "../elsewhere")
    assert stored(memory, "orders") == {
        b"a.json": b"{}",
        b"empty": b"",
        b"big.bin": big,
        b"dir/from-file": big[:100],
        b"dir/from-pieces": b"onetwothree",
        b"not-utf8-\xff": b"x",
        b"hollow": b"",
        b"link": b"",
    }
    kept = memory.backups["orders"][0].entries
    assert (kept[b"a.json"].entry.mode, kept[b"a.json"].entry.mtime_ns) == (0o600, -5)
    assert not kept[b"empty"].entry.HasField("mode")
    assert kept[b"link"].entry.link_target == "../elsewhere"
    report = upload.report
    assert report.backup.id == memory.backups["orders"][0].message.id
    assert report.backup.tags == {"day": "monday"}
    assert report.backup.data_bytes == report.sent_bytes == len(big) + 2 + 100 + 11 + 1
    assert report.complete
    assert not report.resumed


def test_an_exception_aborts_and_leaves_no_backup(client: Client, memory: MemoryService) -> None:
    upload = client.upload("orders")
    with pytest.raises(ZeroDivisionError), upload:
        upload.put("a", 1 / 0)  # type: ignore[arg-type] # never reached
    assert "orders" not in memory.backups
    assert memory.unary_calls[-1] == "AbortUpload"
    with pytest.raises(UnfinishedError):
        _ = upload.report


def test_a_source_that_fails_leaves_no_backup_even_if_the_failure_is_caught(
    client: Client, memory: MemoryService
) -> None:
    def failing():
        yield b"some"
        raise OSError("the disk is gone")

    with contextlib.ExitStack() as stack:
        upload = stack.enter_context(client.upload("orders"))
        with pytest.raises(OSError, match="disk is gone"):
            upload.put("a", failing())
        with pytest.raises(UploadClosedError):
            upload.put("b", b"2")
        with pytest.raises(UnfinishedError, match="disk is gone") as caught:
            stack.close()
    assert isinstance(caught.value.__cause__, OSError)
    assert "orders" not in memory.backups


def test_a_wrong_argument_is_refused_before_anything_is_sent(client: Client, memory: MemoryService) -> None:
    with client.upload("orders") as upload:
        for path in (
            "/etc",
            "a/../b",
            "a//b",
            ".",
            "a\0b",
            "x" * 1025,
            "x/" * 1024 + "x",
            ("x" * 999 + "/") * 17 + "x",
        ):
            with pytest.raises(BadRequestError):
                upload.put(path, b"")
        with pytest.raises(BadRequestError, match="mode"):
            upload.put("a", b"", mode=-1)
        with pytest.raises(BadRequestError, match="profile"):
            upload.put("a", b"", profile="wavelets")
        upload.put("a", b"1")
    assert stored(memory, "orders") == {b"a": b"1"}


def test_text_is_not_a_source(client: Client) -> None:
    with pytest.raises(TypeError, match="must yield bytes, not str"), client.upload("orders") as upload:
        upload.put("a", "text")  # type: ignore[arg-type] # on purpose


def test_an_upload_can_be_used_only_once_and_only_while_open(client: Client) -> None:
    upload = client.upload("orders")
    with pytest.raises(UploadClosedError):
        upload.put("a", b"1")
    with upload:
        upload.put("a", b"1")
    with pytest.raises(UploadClosedError):
        upload.put("b", b"2")
    with pytest.raises(UploadClosedError), upload:
        pass


def test_removal_and_scope_reach_the_server(client: Client, memory: MemoryService) -> None:
    with client.upload("orders") as upload:
        upload.put("a", b"1")
    with client.upload("orders", kind="incremental", scope="changes") as upload:
        upload.put("b/c", b"2")
        upload.put("d", b"3")
        upload.remove("b")
    assert upload.report.backup.scope == "changes"
    assert upload.report.backup.kind == "incremental"
    assert stored(memory, "orders") == {b"d": b"3"}


def test_messages_are_about_one_mebibyte_and_small_files_share_them(
    client: Client, memory: MemoryService
) -> None:
    with client.upload("orders") as upload:
        for number in range(2000):
            upload.put(f"{number:04}", b"x" * 1000)
        upload.put("big", random_bytes(8 * MIB))
    assert max(memory.message_sizes) < 3 * MIB
    assert len(memory.message_sizes) < 200


def test_threads_share_an_upload_and_every_file_stays_whole(client: Client, memory: MemoryService) -> None:
    contents = {f"{number}": random_bytes(400 * KIB, number) for number in range(8)}
    with client.upload("orders") as upload:
        threads = [threading.Thread(target=upload.put, args=item) for item in contents.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stored(memory, "orders") == {name.encode(): data for name, data in contents.items()}


def test_a_stream_is_one_file(client: Client, memory: MemoryService) -> None:
    dump = random_bytes(2 * MIB + 17)
    report = client.backup_stream("orders-db", name="dump.sql", source=io.BytesIO(dump), mtime_ns=7)
    assert stored(memory, "orders-db") == {b"dump.sql": dump}
    assert report.backup.kind == "full"
    assert (report.sent_bytes, report.backup.data_bytes) == (len(dump), len(dump))


def test_a_broken_stream_resumes_at_the_durable_point_without_seeking_the_source(
    client: Client, memory: MemoryService
) -> None:
    dump = random_bytes(60 * MIB)
    broke = cut_once(memory, 50 * MIB)
    notices: list[str] = []
    report = client.backup_stream(
        "db",
        name="dump",
        source=(dump[at : at + 100_001] for at in range(0, len(dump), 100_001)),
        progress=lambda progress: notices.append(progress.notice) if progress.notice else None,
    )
    assert broke
    assert stored(memory, "db") == {b"dump": dump}
    assert report.resumed
    assert memory.calls.count("ResumeUpload") == 1
    assert "CheckpointUpload" in memory.calls
    assert memory.received_bytes < broke[0] + len(dump), "durable data was not sent again"
    assert notices
    assert "Trying again" in notices[0]


def test_a_stream_that_breaks_before_anything_is_durable_is_sent_again_from_the_start(
    client: Client, memory: MemoryService
) -> None:
    cut_once(memory, 2 * MIB)
    data = {f"{number:03}": random_bytes(300 * KIB, number) for number in range(20)}
    with client.upload("orders") as upload:
        for name, content in data.items():
            upload.put(name, content)
    assert stored(memory, "orders") == {name.encode(): content for name, content in data.items()}
    assert upload.report.resumed


def test_a_server_restart_during_an_upload_costs_only_time(listening: Running) -> None:
    memory = listening.service
    pieces = [random_bytes(MIB, number) for number in range(8)]

    def source():
        for number, piece in enumerate(pieces):
            if number == 5:
                listening.restart()
            yield piece

    with Client(listening.address, TOKEN) as client:
        client.backup_stream("db", name="dump", source=source())
    assert stored(memory, "db") == {b"dump": b"".join(pieces)}


def test_a_commit_with_a_lost_answer_is_found_and_not_repeated(client: Client, memory: MemoryService) -> None:
    memory.after_commit = lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
    with client.upload("orders") as upload:
        upload.put("a", b"1")
    assert len(memory.backups["orders"]) == 1
    assert upload.report.backup.id == memory.backups["orders"][0].message.id
    assert "GetUpload" in memory.calls


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]
)
def test_a_lost_status_is_not_trusted(client: Client, memory: MemoryService, code: grpc.StatusCode) -> None:
    cut_once(memory, 1, code)
    client.backup_stream("db", name="dump", source=[b"abc"])
    assert stored(memory, "db") == {b"dump": b"abc"}


def test_a_refusal_of_the_server_is_not_retried(client: Client, memory: MemoryService) -> None:
    def refuse(_part, context: grpc.ServicerContext) -> None:
        rpc_abort(context, grpc.StatusCode.INVALID_ARGUMENT, "PATH_CONFLICT", "a is no directory", path="a/b")

    memory.on_part = refuse
    with (
        pytest.raises(BadRequestError, match="a is no directory") as caught,
        client.upload("orders") as upload,
    ):
        upload.put("a/b", b"1")
    assert caught.value.reason == "PATH_CONFLICT"
    assert caught.value.facts == {"path": "a/b"}
    assert memory.calls.count("Backup") == 1
    assert memory.unary_calls[-1] == "AbortUpload"


def test_another_writer_ends_the_upload(client: Client, memory: MemoryService) -> None:
    def take_over(_part, context: grpc.ServicerContext) -> None:
        for upload in memory.uploads.values():
            upload.message.epoch += 1
            memory._upload(context, upload.message.id, upload.message.epoch - 1)

    memory.on_part = take_over
    with pytest.raises(StaddleError) as caught, client.upload("orders") as upload:
        upload.put("a", b"1")
    assert caught.value.reason == "STALE_EPOCH"


def test_when_the_time_for_retries_is_used_up_the_last_error_says_so(listening: Running) -> None:
    with Client(listening.address, TOKEN) as client:

        def source():
            yield b"x" * MIB
            listening.stop()
            yield from [b"y" * MIB] * 200

        with pytest.raises(ConnectError, match=listening.address) as caught:
            client.backup_stream("db", name="dump", source=source(), retry_s=0.7)
    notes = " ".join(caught.value.__notes__)
    assert "Given up after" in notes
    assert "could not be aborted" in notes
    assert "db" not in listening.service.backups


def test_objections_of_the_server_are_raised_when_an_upload_is_opened(client: Client) -> None:
    with pytest.raises(NoBaseError) as caught, client.upload("orders", kind="differential"):
        pass
    assert caught.value.facts == {"dataset": "orders"}
    with pytest.raises(BadRequestError, match="auto, full"):
        client.upload("orders", kind="sometimes")
    with pytest.raises(BadRequestError, match="Unicode"):
        client.upload("a\udcff")


def test_memory_stays_flat_with_a_server_that_makes_data_durable_only_on_request(
    client: Client, memory: MemoryService
) -> None:
    piece, pieces = bytes(MIB), extent(130, 250)
    held: list[int] = []

    def source(upload):
        for _ in range(pieces):
            held.append(upload._stream._replay.held_bytes)
            yield piece

    with client.upload("db") as upload:
        upload.put("zeros", source(upload))
    assert max(held) <= 97 * MIB
    assert stored(memory, "db") == {b"zeros": piece * pieces}


def test_a_checkpoint_that_was_taken_too_early_is_repeated(client: Client, memory: MemoryService) -> None:
    upload = client.upload("db")
    asked: list[int] = []

    def moves() -> bool:
        """The first checkpoint is taken before any data arrived, and answered when the client's buffer is full."""
        asked.append(upload._stream._replay.held_bytes)
        if len(asked) == 1:
            wait = threading.Event()
            while upload._stream._replay.held_bytes < REPLAY_BYTES_MAX:
                wait.wait(0.01)
        return len(asked) > 1

    memory.checkpoint_moves = moves
    with upload:
        upload.put("zeros", [bytes(MIB)] * 120)
    assert stored(memory, "db") == {b"zeros": bytes(120 * MIB)}
    assert len(asked) > 1
