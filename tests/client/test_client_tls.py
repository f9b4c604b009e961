"""Errors of a client for unusable certificates, keys and tokens: its own, and the server's."""

import base64
import os
import pathlib

import pytest
import staddle._base.given_files as given
from client_pki import Authority, serve_tls
from memory_service import TOKEN, MemoryService, Running, start
from staddle import Client, ConfigError, ConnectError
from staddle._base.pem_files import read_pem
from staddle._transport.settings import Settings, load_settings
from staddle._transport.tls import load
from staddle._transport.token import token_of


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path / "pki", "an authority")


def refused(running: Running, **settings: object) -> ConnectError:
    """The error that a client with these settings gets."""
    try:
        with (
            Client(running.address, TOKEN, **settings) as client,  # type: ignore[arg-type]
            pytest.raises(ConnectError) as caught,
        ):
            client.info()
    finally:
        running.stop()
    return caught.value


# ---------------------------------------------------------------- the server's


def test_an_expired_server_certificate_is_named_with_its_date(authority: Authority) -> None:
    error = refused(serve_tls(authority, begins_h=-2000, ends_h=-1000), ca=authority.file)
    assert error.facts["tls"] == "expired"
    assert "expired at 20" in str(error)
    assert "This machine's clock says 20" in str(error)


def test_a_server_certificate_that_is_not_valid_yet_is_named_with_its_date(authority: Authority) -> None:
    error = refused(serve_tls(authority, begins_h=1000, ends_h=2000), ca=authority.file)
    assert error.facts["tls"] == "not-yet-valid"
    assert "is not valid before 20" in str(error)


def test_a_server_certificate_for_another_name_is_named_with_the_setting_that_helps(
    authority: Authority,
) -> None:
    error = refused(serve_tls(authority, "other-name"), ca=authority.file)
    assert error.facts["tls"] == "other-name"
    assert "another name than 127.0.0.1: set server_name" in str(error)


def test_a_server_certificate_of_an_unknown_authority_is_named_with_the_expected_one(
    authority: Authority, tmp_path: pathlib.Path
) -> None:
    stranger = Authority(tmp_path / "stranger", "a stranger")
    error = refused(serve_tls(authority), ca=stranger.file)
    assert error.facts["tls"] == "unknown-authority"
    assert f"not of ca {stranger.file}" in str(error)


def test_a_server_or_client_without_tls_is_reported(authority: Authority) -> None:
    memory = MemoryService()
    server, address = start(memory)
    error = refused(Running(memory, address, server), ca=authority.file)
    assert (error.facts["tls"], "does not use TLS" in str(error)) == ("plain", True)
    error = refused(serve_tls(authority))
    assert (error.facts["tls"], "uses TLS, and ca is not set" in str(error)) == ("tls", True)


def test_a_server_that_requires_a_client_certificate_is_reported(
    authority: Authority, tmp_path: pathlib.Path
) -> None:
    error = refused(serve_tls(authority, mutual=True), ca=authority.file)
    assert error.facts["tls"] == "client-certificate"
    assert "Set cert and key" in str(error)
    cert, key = Authority(tmp_path / "stranger", "a stranger").issue("client")
    error = refused(serve_tls(authority, mutual=True), ca=authority.file, cert=cert, key=key)
    assert f"may not accept the client's certificate {cert}" in str(error)
    cert, key = authority.issue("client", begins_h=-20, ends_h=-10)
    error = refused(serve_tls(authority, mutual=True), ca=authority.file, cert=cert, key=key)
    assert f"the client's certificate {cert} has expired" in str(error)


def test_an_address_without_a_server_is_reported_as_unreachable(authority: Authority) -> None:
    running = serve_tls(authority)
    running.stop()
    with Client(running.address, TOKEN, ca=authority.file) as client, pytest.raises(ConnectError) as caught:
        client.info()
    assert "tls" not in caught.value.facts
    assert "No Staddle server answers" in str(caught.value)


# ---------------------------------------------------------------- the client's

MEND = {
    "Windows line ends": lambda text: text.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16, as PowerShell writes": lambda text: text.decode().encode("utf-16"),
    "text before": lambda text: b"subject=CN = x\n" + text + b"\nend of mail\n",
    "indented, as in YAML": lambda text: b"".join(b"    " + line for line in text.splitlines(keepends=True)),
    "on one line": lambda text: text.replace(b"\n", b" "),
    "line ends as two characters": lambda text: text.replace(b"\n", b"\\n"),
}


@pytest.mark.parametrize("how", MEND)
def test_an_unambiguous_pem_file_is_read(authority: Authority, tmp_path: pathlib.Path, how: str) -> None:
    cert, key = authority.issue("client")
    plain = read_pem(cert).certificates(), read_pem(key).private_keys()
    for path in (cert, key):
        path.write_bytes(MEND[how](path.read_bytes()))
    assert (read_pem(cert).certificates(), read_pem(key).private_keys()) == plain


def test_certificates_and_key_from_one_file_are_sent_in_the_required_order(
    authority: Authority, tmp_path: pathlib.Path
) -> None:
    running = serve_tls(authority, mutual=True)
    cert, key = authority.issue("client")
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + key.read_bytes() + cert.read_bytes())
    try:
        with Client(running.address, TOKEN, ca=both, cert=both, key=both) as client:
            assert client.info().tenant == "default"
    finally:
        running.stop()


def test_the_key_that_matches_the_certificate_is_used_from_several(
    authority: Authority, tmp_path: pathlib.Path
) -> None:
    cert, key = authority.issue("client")
    _, other = authority.issue("other")
    several = tmp_path / "several.key"
    several.write_bytes(other.read_bytes() + key.read_bytes())
    (block,) = read_pem(key).private_keys()
    assert load(Settings(ca=str(authority.file), cert=str(cert), key=str(several))).key == block.pem


def test_mismatching_or_wrong_files_are_refused_immediately_by_name(
    authority: Authority, tmp_path: pathlib.Path
) -> None:
    cert, key = authority.issue("client")
    _, other = authority.issue("other")
    ca = authority.file
    der = tmp_path / "der.crt"
    der.write_bytes(base64.b64decode("".join(cert.read_text().splitlines()[1:-1])))
    empty = tmp_path / "empty"
    empty.write_text("\n")
    cut = tmp_path / "cut.key"
    cut.write_bytes(key.read_bytes()[:-30])
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    java = tmp_path / "java.jks"
    java.write_bytes(b"\xfe\xed\xfe\xed\0\0\0\2")
    twice = tmp_path / "twice"
    twice.write_bytes(base64.b64encode(cert.read_bytes()))
    locked = tmp_path / "locked.key"
    locked.write_text(key.read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
    for settings, words in (
        ({"ca": ca, "cert": key, "key": cert}, "swap cert and key"),
        ({"ca": ca, "cert": cert, "key": other}, "is not the key of cert"),
        ({"ca": ca, "cert": cert, "key": locked}, "openssl pkey -in"),
        ({"ca": ca, "cert": cert, "key": cut}, "is cut off"),
        ({"ca": key}, "holds no certificate, but: PRIVATE KEY"),
        ({"ca": der}, "openssl x509 -inform DER"),
        ({"ca": empty}, "is empty"),
        ({"ca": twice}, "base64 -d"),
        ({"ca": tmp_path}, "is a directory"),
        ({"ca": link}, "a link to nowhere, which does not exist"),
        ({"ca": java}, "keytool -importkeystore"),
        ({"ca": "/dev/zero"}, "a device"),
        ({"ca": cert.read_text()}, "a certificate or key itself"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            Client("localhost", TOKEN, **settings)
        assert key.read_text().splitlines()[1] not in str(caught.value)


def test_an_expiring_client_certificate_gives_one_warning(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    lasts = authority.issue("lasts", ends_h=31 * 24)
    ends = authority.issue("ends", ends_h=29 * 24 + 1)
    expired = authority.issue("expired", begins_h=-20, ends_h=-10)
    for cert, key in (lasts, ends, ends, expired):
        Client("localhost", TOKEN, ca=authority.file, cert=cert, key=key).close()
    first, second = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith("cert ")
    ]
    assert first.startswith(f"cert {ends[0]} expires at 20")
    assert first.endswith("in 29 days: renew it.")
    assert second.startswith(f"cert {expired[0]} expired at 20")


def test_a_private_key_readable_by_others_gives_one_warning(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = authority.issue("client", ends_h=31 * 24)
    settings = Settings(ca=str(authority.file), cert=str(cert), key=str(key))
    key.chmod(0o640)
    load(settings)
    assert caplog.records == []
    key.chmod(0o644)
    for _ in range(2):
        load(settings)
    (record,) = caplog.records
    assert record.getMessage() == f"key {key} is a private key, and others can read it: chmod 600 it."


# ---------------------------------------------------------------- tokens and settings

SECRET = "staddle_" + "aB3_-" * 8 + "xyz"


@pytest.mark.parametrize(
    "pasted",
    [
        f" {SECRET}\n",
        f"{SECRET}\r\n",
        f"\ufeff{SECRET}",
        f'"{SECRET}"',
        f"'{SECRET}'\n",
        f"Bearer {SECRET}",
        f"Authorization: Bearer {SECRET}\r\n",
        f"export STADDLE_TOKEN={SECRET}",
        f'STADDLE_TOKEN="{SECRET}"',
        f"{SECRET[:20]}\n  {SECRET[20:]}\n",
        f"{SECRET[:20]}\u200b{SECRET[20:]}",
        f"\u00a0{SECRET}\u00a0",
    ],
)
def test_a_pasted_token_is_understood(pasted: str) -> None:
    assert token_of(pasted) == SECRET


@pytest.mark.parametrize(
    "pasted", [f"{SECRET[:20]} {SECRET}", "/run/secrets/token", f"{SECRET}/x", "tökén", "Bearer "]
)
def test_a_malformed_token_is_refused_and_never_repeated(pasted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        token_of(pasted)
    assert pasted not in str(caught.value)
    assert SECRET[:20] not in str(caught.value)


def test_variables_are_read_as_docker_and_windows_write_them() -> None:
    settings = load_settings(
        environment={"STADDLE_SERVER": '"host:1"\r', "STADDLE_TOKEN": f"{SECRET}\n", "STADDLE_CA": " \r\n"},
        default_files=(),
    )
    assert (settings.server, settings.token, settings.ca) == ("host:1", SECRET, "")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_settings_file_is_read_as_windows_writes_it(tmp_path: pathlib.Path, encoding: str) -> None:
    file = tmp_path / "client.toml"
    file.write_bytes('server = "host:1"\r\ntoken = "t"\r\nserver-name = "n"\r\n'.encode(encoding))
    settings = load_settings(file, environment={})
    assert (settings.server, settings.token, settings.server_name) == ("host:1", "t", "n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'serve = "x"\n', "unknown key serve .is server meant"),
        (b'[client]\nserver = "x"\n', r"section \[client\]"),
        (b'server = ["x"]\n', "server must be a string, not a list"),
        (b'server = "x"\nserver = "y"\n', "line 2"),
        (b'server-name = "x"\nserver_name = "y"\n', "server_name twice"),
        (b'server = "x"\ntoken = ' + SECRET.encode(), "values stand in quotes"),
        (b'server = "x"\ntoken = "\xff"\n', r"not text in UTF-8 .line 2"),
    ],
)
def test_a_wrong_settings_file_says_what_is_wrong_and_where_and_no_secret(
    tmp_path: pathlib.Path, text: bytes, words: str
) -> None:
    file = tmp_path / "client.toml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_settings(file, environment={})
    assert str(file) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_directory_a_device_or_a_pipe_without_a_writer_is_refused_without_waiting(
    tmp_path: pathlib.Path,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (str(tmp_path), "/dev/zero"):
        with pytest.raises(ConfigError, match="it is a d"):
            load_settings(path, environment={})
    with pytest.raises(given.GivenError, match=r"nothing was written to it in 0.01 s"):
        given.read(str(pipe), 100, "a file", pipe_s=0.01)
    reader, writer = os.pipe()
    os.write(writer, b"x" * 50)
    os.close(writer)
    assert given.read(f"/dev/fd/{reader}", 100, "a file")[0] == b"x" * 50
    os.close(reader)
    assert load_settings(os.devnull, environment={}, server="s", token="t").server == "s"
