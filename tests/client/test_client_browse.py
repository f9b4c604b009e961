"""Browsing and reading: lists, selected backups, bytes of files."""

import asyncio
import datetime
import io
import itertools
import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc
import pytest
from memory_service import TOKEN, MemoryService, Running, rpc_abort
from staddle import (
    AuthenticationError,
    BackupNotFoundError,
    BadRequestError,
    CancelledError,
    Client,
    ConnectError,
    DamageError,
    DatasetNotFoundError,
    EntryType,
    NotAFileError,
    PathNotFoundError,
    ProtocolError,
    ServerError,
    UnavailableError,
)
from staddle._transport.pages import PageGuard

MIB = 1024 * 1024


def put(client: Client, dataset: str, **files: bytes) -> str:
    with client.upload(dataset) as upload:
        for name, data in files.items():
            upload.put(name.replace("__", "/"), data)
    return upload.report.backup.id


def test_lists_return_all_pages(client: Client) -> None:
    ids = [put(client, "www", a=bytes([number])) for number in range(5)]
    put(client, "other", a=b"")
    assert [each.id for each in client.backups("www")] == ids[::-1]
    assert [each.name for each in client.datasets()] == ["other", "www"]
    newest = next(each for each in client.datasets() if each.name == "www").newest_backup
    assert newest is not None
    assert newest.id == ids[-1]


def test_a_list_whose_pages_form_a_loop_is_refused(client: Client, memory: MemoryService) -> None:
    for number in range(5):
        put(client, "www", a=bytes([number]))
    memory.same_page = True
    with pytest.raises(ProtocolError, match="has an item twice"):
        list(client.backups("www"))


def test_an_endless_list_of_damaged_entries_is_refused(
    client: Client, memory: MemoryService, tmp_path: Path
) -> None:
    def bounded(_method: str, context: grpc.ServicerContext) -> None:
        if len(memory.calls) > 100:
            rpc_abort(context, grpc.StatusCode.INTERNAL, "INTERNAL", "The client asks for ever.")

    memory.same_page, memory.before = True, bounded
    with pytest.raises(ProtocolError, match="does not end"):
        client.backup(tmp_path, dataset="www", thin=True, cache=False)


def follow(guard: PageGuard, tokens: Iterable[str], item_count: int) -> None:
    for token in tokens:
        guard.check(token, [None] * item_count, 0)


@pytest.mark.parametrize("before", [0, 1, 5, 40])
@pytest.mark.parametrize("around", [1, 2, 3, 7, 30])
def test_a_page_token_that_returns_to_an_earlier_page_is_refused(before: int, around: int) -> None:
    guard = PageGuard("ListDatasets")
    tokens = itertools.chain(
        (f"before {n}" for n in range(before)), itertools.cycle([f"around {n}" for n in range(around)])
    )
    with pytest.raises(ProtocolError, match="does not end"):
        follow(guard, itertools.islice(tokens, 4 * (before + around) + 4), 1)


def test_endless_empty_pages_are_refused_and_long_lists_are_not() -> None:
    guard = PageGuard("ListDatasets")
    for n in range(5_000):
        guard.check(str(n), [None] * (n % 500 == 0), 0)
    with pytest.raises(ProtocolError, match="empty pages"):
        follow(guard, map(str, range(5_000, 6_500)), 0)


def test_entries_are_one_level_or_all_below(client: Client) -> None:
    with client.upload("www") as upload:
        upload.mkdir("d")
        upload.put("d/e", b"12", mode=0o640)
        upload.put("d/f", b"3")
        upload.put(b"z\xff", b"")
    assert [each.path for each in client.entries("www")] == ["d", "z\udcff"]
    assert [each.path_bytes for each in client.entries("www")] == [b"d", b"z\xff"]
    below = list(client.entries("www", "d"))
    assert [(each.path, each.type, each.size_bytes, each.mode) for each in below] == [
        ("d/e", EntryType.FILE, 2, 0o640),
        ("d/f", EntryType.FILE, 1, None),
    ]
    assert [each.path for each in client.entries("www", recursive=True)] == ["d", "d/e", "d/f", "z\udcff"]
    with pytest.raises(PathNotFoundError):
        client.entries("www", "nowhere")


def test_changes_compare_the_last_two_backups_by_default(client: Client) -> None:
    first = put(client, "www", a=b"1", b=b"1")
    put(client, "www", a=b"2", b=b"1", c=b"1")
    put(client, "www", a=b"2", c=b"1")

    def changes(*backups: str) -> list[tuple[str, str]]:
        return [(each.type.value, each.path) for each in client.changes("www", *backups)]

    assert changes() == [("removed", "b")]
    assert changes(first) == [("content", "a"), ("removed", "b"), ("added", "c")]
    assert changes(first, first) == []


def test_a_single_backup_cannot_be_compared(client: Client) -> None:
    put(client, "www", a=b"1")
    with pytest.raises(BackupNotFoundError, match="fewer than two"):
        client.changes("www")


def test_a_backup_is_selected_by_prefix_time_or_age(client: Client, memory: MemoryService) -> None:
    first = put(client, "www", a=b"1")
    second = put(client, "www", a=b"2")
    begun = client.get_backup("www", first).begin_time
    assert client.get_backup("www").id == second
    assert client.get_backup("www", "latest").id == second
    assert client.get_backup("www", first[:-1] + first[-1]).id == first
    assert client.get_backup("www", at=begun).id == first
    assert client.get_backup("www", at=begun.isoformat(timespec="seconds")).id == first
    assert client.get_backup("www", at="5s").id == first
    assert client.get_backup("www", at=datetime.timedelta(0)).id == second
    with pytest.raises(BackupNotFoundError):
        client.get_backup("www", at=begun - datetime.timedelta(seconds=1))
    with pytest.raises(BadRequestError, match="exclude each other"):
        client.get_backup("www", first, at=begun)
    with pytest.raises(DatasetNotFoundError) as caught:
        client.get_backup("nobody")
    assert caught.value.facts == {"dataset": "nobody"}


def test_a_deleted_backup_is_hidden_until_it_is_undeleted(client: Client) -> None:
    gone = put(client, "www", a=b"1")
    kept = put(client, "www", a=b"2")
    assert client.delete_backup("www", gone).delete_time is not None
    assert [each.id for each in client.backups("www")] == [kept]
    assert [each.id for each in client.backups("www", show_deleted=True)] == [kept, gone]
    assert client.undelete_backup("www", gone).delete_time is None
    assert [each.id for each in client.backups("www")] == [kept, gone]


def test_info_names_the_caller_and_hides_the_seed(client: Client) -> None:
    info = client.info()
    assert (info.tenant, info.principal, info.role) == ("default", "tests", "writer")
    reported = info.condition
    assert (reported.takes_backups, reported.clock_in_doubt, reported.damaged_packs) == (False, True, 3)
    assert reported.clock_jump.total_seconds() == pytest.approx(-7200)
    assert info.chunker.seed == 7
    assert "seed" not in repr(info)
    assert info.limits["upload_lease"] == 300
    assert info.limits["read_range_bytes_max"] == 3 * MIB


# ---------------------------------------------------------------- reading


@pytest.fixture
def content(client: Client) -> bytes:
    content = random.Random(3).randbytes(5 * MIB + 11)
    put(client, "www", d__big=content, small=b"0123456789", empty=b"")
    return content


def test_read_returns_all_bytes_or_a_range(client: Client, content: bytes) -> None:
    assert client.read("www", "d/big") == content
    assert client.read("www", "d/big", offset=MIB - 3, length=3 * MIB) == content[MIB - 3 : 4 * MIB - 3]
    assert client.read("www", "small", offset=8, length=100) == b"89"
    assert client.read("www", "small", offset=100) == b""
    assert client.read("www", "empty") == b""
    with pytest.raises(BadRequestError):
        client.read("www", "small", offset=-1)


def test_an_open_file_seeks_and_reads_like_a_local_one(client: Client, content: bytes) -> None:
    local = io.BytesIO(content)
    chance = random.Random(5)
    with client.open("www", "d/big") as remote:
        assert remote.readable()
        assert remote.seekable()
        assert not remote.writable()
        for _ in range(40):
            whence = chance.choice([io.SEEK_SET, io.SEEK_END, io.SEEK_CUR])
            offset = chance.randrange(len(content))
            offset = -offset if whence == io.SEEK_END else offset
            size = chance.choice([0, 1, 100, 70_000, 3 * MIB])
            assert remote.seek(offset, whence) == local.seek(offset, whence)
            assert remote.read(size) == local.read(size)
            assert remote.tell() == local.tell()
        with pytest.raises((ValueError, OSError)):
            remote.seek(-1)
        remote.seek(0)
        assert remote.read() == content
    with pytest.raises(ValueError, match="closed"):
        remote.read(1)


def test_an_open_file_keeps_reading_its_backup(client: Client, content: bytes) -> None:
    with client.open("www", "d/big") as remote:
        assert remote.read(10) == content[:10]
        put(client, "www", d__big=b"something else")
        remote.seek(4 * MIB)
        assert remote.read(10) == content[4 * MIB : 4 * MIB + 10]
    assert client.read("www", "d/big") == b"something else"


def test_small_files_are_read_with_one_call(client: Client, memory: MemoryService, content: bytes) -> None:
    memory.calls.clear()
    assert client.read("www", "small") == b"0123456789"
    with client.open("www", "small") as remote:
        assert remote.readlines() == [b"0123456789"]
    assert memory.calls == ["ReadRange", "ReadRange"]


def test_an_unreadable_path_is_refused_with_the_reason(
    client: Client, memory: MemoryService, content: bytes
) -> None:
    with client.upload("www") as upload:
        upload.mkdir("d")
        upload.put("x", b"1")
    with pytest.raises(NotAFileError):
        client.open("www", "d")
    with pytest.raises(PathNotFoundError):
        client.read("www", "nowhere")
    with pytest.raises(BadRequestError):
        client.read("www", "../etc/passwd")
    memory.damaged.add(b"x")
    with pytest.raises(DamageError) as caught:
        client.read("www", "x")
    assert caught.value.report is None


# ---------------------------------------------------------------- calls


def test_a_missing_server_is_reported_quickly_with_its_address_and_what_to_do() -> None:
    with Client("127.0.0.1:1", TOKEN) as client, pytest.raises(ConnectError) as caught:
        client.info()
    message = str(caught.value)
    assert "127.0.0.1:1" in message
    assert "staddle-server serve --data DIR" in message
    assert "refused" in message
    assert caught.value.facts["address"] == "127.0.0.1:1"


def test_a_wrong_token_is_an_authentication_error(listening: Running) -> None:
    with Client(listening.address, "wrong") as client, pytest.raises(AuthenticationError) as caught:
        client.info()
    assert caught.value.reason == "UNAUTHENTICATED"
    assert "wrong" not in repr(client)


def test_a_temporary_failure_is_retried_and_a_permanent_one_is_not(
    client: Client, memory: MemoryService
) -> None:
    failures = iter([("UNAVAILABLE", "DRAINING", 0.01), ("RESOURCE_EXHAUSTED", "TOO_MANY", 0.01)])

    def fail(_method: str, context: grpc.ServicerContext) -> None:
        for code, reason, retry_after_s in failures:
            rpc_abort(context, grpc.StatusCode[code], reason, "Later.", retry_after_s=retry_after_s)

    memory.before = fail
    assert client.info().tenant == "default"
    assert memory.calls == ["GetServerInfo"] * 3

    memory.calls.clear()
    memory.before = lambda _method, context: rpc_abort(
        context, grpc.StatusCode.INTERNAL, "INTERNAL", "A fault."
    )
    with pytest.raises(ServerError, match="A fault"):
        client.info()
    assert len(memory.calls) == 1


def test_a_full_disk_is_not_retried(client: Client, memory: MemoryService) -> None:
    memory.before = lambda _method, context: rpc_abort(
        context, grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "No room."
    )
    with pytest.raises(Exception, match="No room"):
        client.info()
    assert len(memory.calls) == 1


def test_a_deletion_with_an_unknown_outcome_is_not_repeated(client: Client, memory: MemoryService) -> None:
    client.info()
    memory.before = lambda _method, context: context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
    memory.calls.clear()
    with pytest.raises(UnavailableError):
        client.delete_backup("www", "abcd")
    assert memory.calls == ["DeleteBackup"]


def test_closing_a_client_ends_calls_on_other_threads(listening: Running) -> None:
    waiting = threading.Event()
    done = threading.Event()

    def block(_method: str, _context: grpc.ServicerContext) -> None:
        waiting.set()
        done.wait(60)

    listening.service.before = block
    client = Client(listening.address, TOKEN)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            client.info()
        except CancelledError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert waiting.wait(60)
    client.close()
    thread.join(60)
    done.set()
    assert len(caught) == 1
    with pytest.raises(CancelledError, match="closed"):
        client.info()
    client.close()


def test_closing_a_client_ends_the_wait_between_retries(listening: Running) -> None:
    client = Client(listening.address, TOKEN, retry_s=60)
    client.info()
    failed = threading.Event()

    def fail(_method: str, context: grpc.ServicerContext) -> None:
        failed.set()
        rpc_abort(context, grpc.StatusCode.UNAVAILABLE, "DRAINING", "Later.", retry_after_s=0.99)

    listening.service.before = fail
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            client.info()
        except CancelledError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert failed.wait(60)
    client.close()
    thread.join(60)
    assert caught


def test_coroutines_use_the_client_through_to_thread(client: Client) -> None:
    put(client, "www", a=b"1", b=b"2")

    async def both() -> list[bytes]:
        reads = [asyncio.to_thread(client.read, "www", name) for name in ("a", "b")]
        return list(await asyncio.gather(*reads))

    assert asyncio.run(both()) == [b"1", b"2"]


def test_a_streamed_answer_that_is_not_read_completely_is_cancelled(client: Client) -> None:
    from staddle.v1 import service_pb2 as sv

    put(client, "www", **{f"f{number}": bytes(60_000) for number in range(50)})
    messages = client.stream("Restore", sv.RestoreRequest(dataset="www"))
    assert next(messages).parts[0].HasField("header")
    messages.close()
    with pytest.raises(ValueError, match="streams no answer"):
        client.stream("Backup", sv.RestoreRequest())
    with pytest.raises(DatasetNotFoundError):
        client.stream("Restore", sv.RestoreRequest(dataset="nobody"))


def test_an_answer_of_another_length_is_refused(
    client: Client, memory: MemoryService, content: bytes
) -> None:
    stored = memory.backups["www"][0].entries[b"d/big"]
    with client.open("www", "d/big") as remote:
        stored.data = stored.data[: 3 * MIB]
        remote.seek(2 * MIB)
        with pytest.raises(ProtocolError):
            remote.read(MIB)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("kind", lambda client: client.backup("/", dataset="www", kind="some")),
        ("profile", lambda client: client.backup("/", dataset="www", profile="some")),
        ("overwrite", lambda client: client.restore("www", "/nowhere", overwrite="some")),
        ("format", lambda client: client.write_archive("www", io.BytesIO(), format="some")),
        ("scope", lambda client: client.upload("www", scope="some")),
    ],
)
def test_a_word_that_an_argument_does_not_know_is_refused_before_anything_is_sent(
    field: str, call: Callable[[Client], object]
) -> None:
    with Client("127.0.0.1:1", "token") as nobody, pytest.raises(BadRequestError) as caught:
        call(nobody)
    assert caught.value.facts == {"field": field}
    assert str(caught.value).startswith(f"{field} is one of ")
    assert str(caught.value).endswith(", not 'some'.")
