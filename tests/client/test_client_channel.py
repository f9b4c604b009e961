"""The connection: addresses, TLS, platforms, and asyncio's stubs."""

import asyncio
import pathlib
import socket
import time
from pathlib import Path

import grpc
import pytest
from client_pki import Authority, serve_tls
from memory_service import TOKEN, Running
from staddle import Client, ConfigError, ConnectError, UnsupportedError
from staddle._transport.addresses import Address
from staddle._transport.channel import refuse_other_platforms, tune_malloc
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1.service_pb2_grpc import StaddleServiceStub


@pytest.mark.parametrize(
    ("text", "shown", "loopback"),
    [
        ("localhost", "localhost:7443", True),
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.9.9.9", "127.9.9.9:7443", True),
        ("[::1]:80", "[::1]:80", True),
        ("::1", "[::1]:7443", True),
        ("[2001:db8::1]", "[2001:db8::1]:7443", False),
        ("backup.example.com:443", "backup.example.com:443", False),
        ("10.0.0.1", "10.0.0.1:7443", False),
        ("localhost.example.com", "localhost.example.com:7443", False),
    ],
)
def test_addresses_are_parsed(text: str, shown: str, loopback: bool) -> None:
    address = Address.parse(text)
    assert (str(address), address.loopback) == (shown, loopback)


@pytest.mark.parametrize(
    "text",
    ["", ":1", "host:port", "host:0", "host:70000", "https://host", "[::1", "[::1]x", "a b", "host:١", "a/b"],
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["unix:/run/s 50%☂", "unix:///run/s 50%☂", "UNIX:/run/s 50%☂"])
def test_a_unix_socket_counts_as_this_machine(text: str) -> None:
    address = Address.parse(text)
    assert (str(address), address.loopback) == ("unix:/run/s 50%☂", True)
    assert address.target == "unix:/run/s%2050%25%E2%98%82"


def test_a_relative_socket_path_is_relative_to_the_working_directory_or_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Address.parse("unix:s")) == f"unix:{tmp_path}/s"
    file = tmp_path / "below" / "client.toml"
    file.parent.mkdir()
    file.write_text(f'server = "unix:s"\ntoken = "{TOKEN}"\n')
    file.chmod(0o600)
    with Client.from_config(file) as client:
        assert client.address == f"unix:{file.parent}/s"
    file.write_text(f'server = "UNIX:./@s"\ntoken = "{TOKEN}"\n')
    with Client.from_config(file) as client:
        assert client.address == f"unix:{file.parent}/@s"
    file.write_text(f'server = "unix:@s"\ntoken = "{TOKEN}"\n')
    with pytest.raises(ConfigError, match="abstract socket"):
        Client.from_config(file)


@pytest.mark.parametrize(
    "text", ["unix:", "unix:/run/", "unix://host/s", "unix:/a\nb", "unix:/\udcff", "unix:@s"]
)
def test_an_invalid_unix_socket_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="unix:PATH"):
        Address.parse(text)


def test_a_socket_with_a_too_long_path_is_named() -> None:
    with pytest.raises(ConfigError, match=r"at most \d+ bytes as a socket's path, and this one has 121"):
        Address.parse("unix:/" + "x" * 120)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "tökén"])
def test_an_invalid_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("localhost", token)
    assert not token or token not in str(caught.value)


def test_plain_text_is_refused_beyond_this_machine() -> None:
    with pytest.raises(ConfigError, match="without TLS") as caught:
        Client("backup.example.com", TOKEN)
    assert "STADDLE_CA" in str(caught.value)
    Client("backup.example.com", TOKEN, ca="system").close()


def test_unusable_certificates_are_refused_immediately(tmp_path: pathlib.Path) -> None:
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("hello")
    with pytest.raises(ConfigError, match="ca: cannot read"):
        Client("localhost", TOKEN, ca=tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match="not a PEM"):
        Client("localhost", TOKEN, ca=no_pem)
    with pytest.raises(ConfigError, match="belong together"):
        Client("localhost", TOKEN, ca="system", cert=no_pem)
    with pytest.raises(ConfigError, match="need ca"):
        Client("localhost", TOKEN, cert=no_pem, key=no_pem)


def test_connecting_to_an_idle_peer_fails_within_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        begun_s = time.monotonic()
        with Client(address, TOKEN) as client, pytest.raises(ConnectError, match=address):
            client.info()
        assert time.monotonic() - begun_s < 15  # gRPC alone would wait 20 s


@pytest.mark.parametrize(
    ("system", "machine"), [("win32", "AMD64"), ("linux", "riscv64"), ("freebsd14", "x86_64")]
)
def test_other_platforms_are_refused_by_name(system: str, machine: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{system} on {machine}"):
        refuse_other_platforms(system, machine)


@pytest.mark.parametrize(
    ("system", "machine"),
    [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64")],
)
def test_tested_platforms_are_accepted(system: str, machine: str) -> None:
    refuse_other_platforms(system, machine)


def test_malloc_is_tuned_under_glibc() -> None:
    import platform

    assert tune_malloc() == (platform.libc_ver()[0] == "glibc")


# ---------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path / "pki", "an authority")


def test_tls_connects_only_to_servers_of_the_authority(authority: Authority, tmp_path) -> None:
    stranger = Authority(tmp_path / "stranger", "a stranger")
    running = serve_tls(authority)
    try:
        with Client(running.address, TOKEN, ca=authority.file) as client:
            assert client.info().tenant == "default"
        with (
            Client(running.address, TOKEN, ca=stranger.file) as client,
            pytest.raises(ConnectError) as caught,
        ):
            client.info()
        assert caught.value.facts["tls"] == "unknown-authority"
        with Client(running.address, TOKEN) as client, pytest.raises(ConnectError):
            client.info()
    finally:
        running.stop()


def test_the_name_in_the_certificate_is_checked_and_can_be_set(authority: Authority) -> None:
    running = serve_tls(authority, "other-name")
    try:
        with Client(running.address, TOKEN, ca=authority.file) as client, pytest.raises(ConnectError):
            client.info()
        with Client(running.address, TOKEN, ca=authority.file, server_name="other-name") as client:
            assert client.info().tenant == "default"
    finally:
        running.stop()


def test_mutual_tls_needs_a_client_certificate(authority: Authority) -> None:
    running = serve_tls(authority, mutual=True)
    cert, key = authority.issue("client")
    try:
        with Client(running.address, TOKEN, ca=authority.file, cert=cert, key=key) as client:
            assert client.info().tenant == "default"
        with Client(running.address, TOKEN, ca=authority.file) as client, pytest.raises(ConnectError):
            client.info()
    finally:
        running.stop()


# ---------------------------------------------------------------- asyncio


def test_generated_stubs_work_with_asyncio(listening: Running) -> None:
    metadata = (("authorization", f"Bearer {TOKEN}"),)

    async def back_up_and_restore() -> list[sv.RestorePart]:
        async with grpc.aio.insecure_channel(listening.address) as channel:
            stub = StaddleServiceStub(channel)
            begun = await stub.BeginUpload(sv.BeginUploadRequest(dataset="aio"), metadata=metadata)
            upload = begun.upload
            first = sv.ContinueUpload(upload_id=upload.id, epoch=upload.epoch)

            async def parts():
                yield sv.BackupRequest(parts=[sv.BackupPart(continue_upload=first)])
                entry = pb.Entry(path="a", data=b"hello")
                yield sv.BackupRequest(parts=[sv.BackupPart(entry=entry)])
                finish = sv.Finish(entry_count=1, data_bytes=5)
                yield sv.BackupRequest(parts=[sv.BackupPart(finish=finish)])

            response = await stub.Backup(parts(), metadata=metadata)
            assert response.backup.data_bytes == 5
            restore = stub.Restore(sv.RestoreRequest(dataset="aio"), metadata=metadata)
            return [part async for message in restore for part in message.parts]

    parts = asyncio.run(back_up_and_restore())
    assert [part.WhichOneof("part") for part in parts] == ["header", "entry", "end"]
    assert parts[1].entry.data == b"hello"
