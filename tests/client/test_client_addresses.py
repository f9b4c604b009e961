"""The setting `server` with several addresses, and names that stand for several servers."""

import pathlib
import socket

import pytest
from memory_service import TOKEN
from staddle import Client, ConfigError
from staddle._transport.addresses import ADDRESSES_MAX, Address, addresses_of, expanded


def test_several_addresses_stand_between_commas() -> None:
    assert [str(each) for each in addresses_of("a, b:80 ,[::1]:9")] == ["a:7443", "b:80", "[::1]:9"]
    assert [str(each) for each in addresses_of("unix:/run/a,unix:/run/b")] == ["unix:/run/a", "unix:/run/b"]
    assert len(addresses_of(",".join(f"s{number}" for number in range(ADDRESSES_MAX)))) == ADDRESSES_MAX


@pytest.mark.parametrize("text", ["a,", ",a", "a,,b", "a, ,b", ","])
def test_a_comma_without_an_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="comma without an address"):
        addresses_of(text)


@pytest.mark.parametrize("text", ["a,a", "a,b,a:7443", "[::1],[0::1]", "a,A", "unix:/run/a,unix:/run/a"])
def test_the_same_address_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="twice"):
        addresses_of(text)


def test_a_unix_socket_beside_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixes Unix sockets and HOST:PORT"):
        addresses_of("unix:/run/a,b")


def test_too_many_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"17 addresses: give at most {ADDRESSES_MAX}"):
        addresses_of(",".join(f"s{number}" for number in range(ADDRESSES_MAX + 1)))


def test_an_invalid_address_is_named_among_valid_ones() -> None:
    with pytest.raises(ConfigError, match="'b:x' is not a server's address"):
        addresses_of("a,b:x,c")


@pytest.mark.parametrize("server", ["localhost,backup.example", "backup.example,127.0.0.1", "::1,10.0.0.1"])
def test_plain_text_is_refused_if_one_address_is_beyond_this_machine(server: str) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        Client(server, TOKEN)
    Client(server, TOKEN, ca="system").close()


def test_relative_sockets_in_a_file_are_relative_to_it(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'server = "unix:a, unix:b"\ntoken = "{TOKEN}"\n')
    file.chmod(0o600)
    with Client.from_config(file) as client:
        assert client.service == f"unix:{tmp_path}/a,unix:{tmp_path}/b"


def test_a_name_with_several_records_is_as_many_servers() -> None:
    found = expanded(Address("backup.example", 7443), lambda *_: ["10.0.0.1", "10.0.0.2", "fd00::1"])
    assert [str(each) for each in found] == ["10.0.0.1:7443", "10.0.0.2:7443", "[fd00::1]:7443"]
    assert {each.name for each in found} == {"backup.example"}


@pytest.mark.parametrize("records", [["10.0.0.1"], ["10.0.0.1", "fd00::1"], []])
def test_a_name_with_one_record_of_a_kind_is_one_server(records: list[str]) -> None:
    name = Address("backup.example", 7443)
    assert expanded(name, lambda *_: records) == (name,)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "10.0.0.1", "::1"])
def test_only_names_of_other_machines_are_looked_up(host: str) -> None:
    address = Address(host, 7443)
    assert expanded(address, lambda *_: ["10.0.0.1", "10.0.0.2"]) == (address,)


def test_a_name_that_cannot_be_looked_up_is_left_to_grpc() -> None:
    def fails(_name: str, _port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    assert expanded(Address("backup.example", 1), fails) == (Address("backup.example", 1),)


def test_a_proxy_looks_names_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    name = Address("backup.example", 7443)
    assert expanded(name, lambda *_: ["10.0.0.1", "10.0.0.2"]) == (name,)
