"""Several servers: which one is asked, when it is left, and where an upload stays."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from balancer import Balancer
from client_pki import Authority, serve_tls
from memory_servers import NOT_SERVING, SERVING, Member, members, nobody
from memory_service import CHUNK, TOKEN, Running
from staddle import Client, ConflictError, ConnectError, PreconditionError, UnavailableError
from staddle._transport.advice import retry_words
from staddle._transport.retry import RetryNotice
from staddle.v1 import service_pb2 as sv

MIB = 1024 * 1024


@pytest.fixture
def pair() -> Iterator[list[Member]]:
    with members(2) as made:
        yield made


@pytest.fixture
def three() -> Iterator[list[Member]]:
    with members(3) as made:
        yield made


def client_of(servers: list[Member], *more: str, **options) -> Client:
    return Client(",".join([*(each.address for each in servers), *more]), TOKEN, **options)


def used_by(client: Client, servers: list[Member]) -> tuple[Member, list[Member]]:
    """The server that this client asks, and the others."""
    client.info()
    used = next(each for each in servers if each.address == client.address)
    return used, [each for each in servers if each is not used]


def test_clients_spread_over_the_servers_and_each_stays_at_one(pair: list[Member]) -> None:
    random.seed(1)
    for _ in range(16):
        with client_of(pair) as client:
            before = [len(each.calls) for each in pair]
            for _ in range(3):
                client.info()
            assert sorted(len(each.calls) - old for each, old in zip(pair, before, strict=True)) == [0, 3]
    assert all(each.calls for each in pair)


def test_a_server_that_does_not_answer_is_left_at_once_and_named(
    pair: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(pair, retry_s=60) as client:
        used, (other,) = used_by(client, pair)
        used.stop()
        assert client.info().version == "0.0.0"
        assert client.address == other.address
        assert f"The server at {used.address} does not serve" in caplog.text
        assert f"Continuing with the server at {other.address}." in caplog.text
        caplog.clear()
        client.info()
        assert not caplog.records
        # And back, once the other one goes and the first one is there again.
        used.start()
        other.stop()
        assert client.info().version == "0.0.0"
        assert client.address == used.address


def test_a_client_whose_first_server_is_not_there_uses_the_other(pair: list[Member]) -> None:
    pair[1].stop()
    for seed in range(4):
        random.seed(seed)
        with client_of(pair) as client:
            assert client.info().version == "0.0.0"


def test_if_no_server_answers_one_error_names_them_all() -> None:
    with nobody() as one, nobody() as other, Client(f"{one},{other}", TOKEN) as client:
        with pytest.raises(ConnectError) as caught:
            client.info()
        message = str(caught.value)
        assert message.startswith("None of 2 servers answers: ")
        assert all(f"{address} (connection refused)" in message for address in (one, other))
        assert caught.value.facts["address"].split(",") != [one]


def test_a_client_that_awaits_its_servers_finds_the_one_that_comes_up(pair: list[Member]) -> None:
    for each in pair:
        each.stop()
    with client_of(pair, await_server=True, retry_s=60) as client:
        starter = threading.Timer(0.3, pair[1].start)
        starter.start()
        try:
            assert client.info().version == "0.0.0"
        finally:
            starter.join()
        assert client.address == pair[1].address


def test_servers_whose_health_check_fails_are_not_used(pair: list[Member]) -> None:
    pair[0].set_health(NOT_SERVING)
    for seed in range(4):
        random.seed(seed)
        with client_of(pair) as client:
            client.info()
    assert pair[0].calls == []
    pair[1].set_health(NOT_SERVING)
    with client_of(pair, retry_s=0) as client, pytest.raises(UnavailableError, match="None of 2 servers"):
        client.info()
    pair[0].set_health(SERVING)
    with client_of(pair, retry_s=0) as client:
        assert client.info().version == "0.0.0"


def test_a_draining_server_is_left_without_the_wait_it_asks_for(pair: list[Member]) -> None:
    with client_of(pair, retry_s=0) as client:
        used, (other,) = used_by(client, pair)
        used.drain()
        client.info()
        assert client.address == other.address


def test_what_may_not_be_repeated_is_done_by_another_server_if_the_first_never_got_it(
    pair: list[Member],
) -> None:
    with client_of(pair) as client:
        backup = client.backup_stream("d", name="f", source=[b"one"]).backup
        used, (other,) = used_by(client, pair)
        used.stop()
        assert client.delete_backup("d", backup.id).id == backup.id
        assert other.calls[-1] == "DeleteBackup"


def test_what_may_not_be_repeated_is_not_if_its_answer_was_lost(pair: list[Member]) -> None:
    with client_of(pair) as client:
        backup = client.backup_stream("d", name="f", source=[b"one"]).backup
        used, (other,) = used_by(client, pair)

        def lose(method: str, context: grpc.ServicerContext) -> None:
            if method == "DeleteBackup":
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

        used.before = lose
        with pytest.raises(ConnectError) as lost:
            client.delete_backup("d", backup.id)
        assert "the change may have been made" in " ".join(lost.value.__notes__)
        assert "DeleteBackup" not in other.calls
        # The next call does not meet that server again.
        client.info()
        assert client.address == other.address


def test_close_ends_the_calls_of_all_servers(pair: list[Member]) -> None:
    client = client_of(pair)
    used, _ = used_by(client, pair)
    used.stop()
    client.info()
    client.close()
    with pytest.raises(Exception, match="closed"):
        client.info()


# ------------------------------------------------------------------------------------------- names


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The IP addresses of the name servers.test, at each look-up; the last ones stay."""
    found = [["127.0.0.1", "127.0.0.2"]]
    asked = socket.getaddrinfo

    def look_up(host, port, *others, **named):
        if host != "servers.test":
            return asked(host, port, *others, **named)
        now = found.pop(0) if len(found) > 1 else found[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in now]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return found


def on_both(authority: Authority, *names: str) -> list[Running]:
    """Servers with certificates for these names, at the same port of 127.0.0.1 and 127.0.0.2."""
    first = serve_tls(authority, names[0])
    second = serve_tls(authority, names[1], address=f"127.0.0.2:{first.address.rpartition(':')[2]}")
    return [first, second]


def test_a_name_with_several_records_is_several_servers_of_that_name(
    tmp_path: Path, records: list[list[str]]
) -> None:
    authority = Authority(tmp_path / "pki", "an authority")
    servers = on_both(authority, "servers.test", "servers.test")
    port = servers[0].address.rpartition(":")[2]
    try:
        with Client(f"servers.test:{port}", TOKEN, ca=authority.file) as client:
            client.info()
            used = next(each for each in servers if each.service.calls)
            assert client.address.startswith("127.0.0.")
            used.stop()
            client.info()
            assert all(each.service.calls for each in servers)
    finally:
        for each in servers:
            each.stop()


def test_a_record_whose_server_has_another_certificate_gets_no_call(
    tmp_path: Path, records: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "pki", "an authority")
    servers = on_both(authority, "servers.test", "other-name")
    port = servers[0].address.rpartition(":")[2]
    try:
        for seed in range(4):
            random.seed(seed)
            with Client(f"servers.test:{port}", TOKEN, ca=authority.file) as client:
                client.info()
        assert servers[1].service.calls == []
        assert f"127.0.0.2:{port} does not serve (its certificate is for another name)" in caplog.text
        servers[0].stop()
        with (
            Client(f"servers.test:{port}", TOKEN, ca=authority.file) as client,
            pytest.raises(ConnectError, match="None of 2 servers answers"),
        ):
            client.info()
    finally:
        for each in servers:
            each.stop()


def test_a_name_is_looked_up_again_after_all_its_servers_have_failed(
    tmp_path: Path, records: list[list[str]]
) -> None:
    authority = Authority(tmp_path / "pki", "an authority")
    records.insert(0, ["127.0.0.3", "127.0.0.4"])  # nobody listens there
    servers = on_both(authority, "servers.test", "servers.test")
    server = f"servers.test:{servers[0].address.rpartition(':')[2]}"
    try:
        with Client(server, TOKEN, ca=authority.file, await_server=True, retry_s=60) as client:
            assert client.info().version == "0.0.0"
    finally:
        for each in servers:
            each.stop()


def test_before_a_takeover_the_server_that_continues_is_named() -> None:
    for reason in ("RESUME_REQUIRED", "WRONG_SERVER"):
        error = ConflictError("…", reason=reason)
        error.address = "b:7443"
        words = retry_words(RetryNotice(error, 1, 0.1, 600.0))
        assert words == "This backup continues on the server at b:7443 from its last checkpoint."


# ------------------------------------------------------------------------------------------- uploads


def pieces(count: int) -> list[bytes]:
    made = random.Random(5)
    return [made.randbytes(CHUNK) for _ in range(count)]


def restored(client: Client, path: str = "f") -> bytes:
    return client.read("d", path)


def test_all_calls_of_an_upload_carry_one_key_and_others_none(pair: list[Member]) -> None:
    with client_of(pair) as client:
        with client.upload("d") as upload:
            upload.put("f", [b"x" * MIB])
        client.info()
        used, _ = used_by(client, pair)
    keys = {key for method, key in used.keys if method in {"BeginUpload", "Backup", "CheckpointUpload"}}
    assert len(keys) == 1
    assert None not in keys
    assert {key for method, key in used.keys if method in {"GetServerInfo", "GetBackup"}} == {None}


def test_an_upload_continues_on_another_server_when_its_own_goes(pair: list[Member]) -> None:
    data = pieces(64)
    with client_of(pair) as client:
        used, (other,) = used_by(client, pair)

        def source() -> Iterator[bytes]:
            yield from data[:32]
            used.stop()
            yield from data[32:]

        report = client.backup_stream("d", name="f", source=source())
        assert report.resumed
        assert restored(client) == b"".join(data)
    assert other.calls.count("ResumeUpload") == 1
    assert other.refused <= 1


def test_a_call_goes_to_the_configured_server_that_writes_its_upload(pair: list[Member]) -> None:
    with client_of(pair) as writer, writer.upload("d") as upload:
        upload.put("f", b"x")
        ((upload_id, owner),) = pair[0].owners.items()
        (other,) = (each for each in pair if each is not owner)
        request = sv.CheckpointUploadRequest(upload_id=upload_id, epoch=1)
        owner.set_health(NOT_SERVING)
        with client_of(pair) as client:
            assert used_by(client, pair)[0] is other
            owner.set_health(SERVING)
            for _ in range(2):
                client.call("CheckpointUpload", request)
        assert (other.refused, owner.calls.count("CheckpointUpload")) == (1, 2)
    assert "ResumeUpload" not in owner.calls + other.calls


def test_an_upload_leaves_a_draining_server_and_can_be_taken_over_at_the_other(pair: list[Member]) -> None:
    with client_of(pair, retry_s=0) as client:
        used, (other,) = used_by(client, pair)
        upload = client.call("BeginUpload", sv.BeginUploadRequest(dataset="d", request_id="r")).upload
        used.drain()
        with pytest.raises(PreconditionError) as caught:
            client.call("CheckpointUpload", sv.CheckpointUploadRequest(upload_id=upload.id, epoch=1))
        assert (caught.value.reason, caught.value.address) == ("WRONG_SERVER", other.address)
        assert caught.value.upload == upload.id
        client.call("ResumeUpload", sv.ResumeUploadRequest(upload_id=upload.id))
        client.call("CheckpointUpload", sv.CheckpointUploadRequest(upload_id=upload.id, epoch=2))
    assert other.calls[-2:] == ["ResumeUpload", "CheckpointUpload"]


def test_two_uploads_of_one_client_stay_each_at_its_server(pair: list[Member]) -> None:
    with client_of(pair) as client:
        used, (other,) = used_by(client, pair)
        first = client.upload("one")
        first.__enter__()
        first.put("f", [b"1" * MIB])
        used.before = lambda method, context: (
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed") if method == "GetServerInfo" else None
        )
        client.info()
        assert client.address == other.address
        with client.upload("two") as second:
            second.put("f", [b"2" * MIB])
            first.put("g", [b"1" * MIB])
            second.put("g", [b"2" * MIB])
        first.__exit__(None, None, None)
    assert used.refused == other.refused == 0
    assert "ResumeUpload" not in used.calls + other.calls


def test_a_token_never_goes_to_a_server_that_only_a_server_names(pair: list[Member]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap, client_of(pair[:1]) as client:
        trap.setblocking(False)
        pair[1].endpoint = f"127.0.0.1:{trap.getsockname()[1]}"
        with client.upload("d") as upload:
            upload.put("f", [b"x" * MIB])
            pair[0].owners[upload.id] = pair[1]
            # The next call is answered with the trap's address; the upload is taken over where it is configured.
            upload.put("g", [b"y" * MIB])
        assert restored(client, "g") == b"y" * MIB
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert pair[0].owners[upload.id] is pair[0]


def test_servers_that_name_each_other_for_ever_do_not_move_an_upload_for_ever(pair: list[Member]) -> None:
    with client_of(pair, retry_s=0) as client:
        used, (other,) = used_by(client, pair)

        for each, named in ((used, other), (other, used)):

            def elsewhere(method: str, context: grpc.ServicerContext, each=each, named=named) -> None:
                if method == "AbortUpload":
                    each.refuse_upload(context, "u", named.address)

            each.before = elsewhere
        with client.upload("d") as upload:
            upload.put("f", [b"x"])
            (found,) = used.uploads.values()
        with pytest.raises(PreconditionError) as caught:
            client.abort_upload(open_upload(found.message))
        assert caught.value.reason == "WRONG_SERVER"
    assert (used.calls + other.calls).count("AbortUpload") == 2


def open_upload(message):
    from staddle._protocol.convert import open_upload_of

    return open_upload_of(message)


# ------------------------------------------------------------------------------------------- balancers


@pytest.fixture
def balancer(three: list[Member], request: pytest.FixtureRequest) -> Iterator[Balancer]:
    made = Balancer([each.address for each in three], by_upload=request.param)
    try:
        yield made
    finally:
        made.stop()


def send_through(balancer: Balancer) -> bytes:
    data = pieces(600)
    with Client(balancer.address, TOKEN) as client:
        client.backup_stream("d", name="f", source=data)
        assert restored(client) == b"".join(data)


@pytest.mark.parametrize("balancer", [True], indirect=True)
def test_behind_a_balancer_that_hashes_the_key_an_upload_stays_at_one_server(
    balancer: Balancer, three: list[Member]
) -> None:
    send_through(balancer)
    assert [each.refused for each in three] == [0, 0, 0]
    assert "ResumeUpload" not in [call for each in three for call in each.calls]
    assert len(set(three[0].owners.values())) == 1


@pytest.mark.parametrize("balancer", [False], indirect=True)
def test_behind_a_balancer_that_deals_calls_out_an_upload_is_not_taken_to_and_fro(
    balancer: Balancer, three: list[Member]
) -> None:
    for each in three:
        each.endpoint = f"{each.address.rpartition(':')[0]}:1"  # its own address, which clients cannot reach
    send_through(balancer)
    assert sum(each.refused for each in three) > 0
    assert [call for each in three for call in each.calls].count("ResumeUpload") <= 1
