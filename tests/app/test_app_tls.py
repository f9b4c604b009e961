"""TLS and mutual TLS: the certificates that `staddle-server cert` makes, and who is let in with them."""

import datetime
import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509 import verification
from grpc_health.v1 import health as health_service
from grpc_health.v1 import health_pb2_grpc
from staddle_server import certs, health, tls
from staddle_server.certs import CertificateError
from staddle_server.config import Address

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate and two clients'."""
    directory = tmp_path_factory.mktemp("certs") / "tls"
    certs.make(directory, ["backup.example.org", "192.0.2.7"], ["web1", "web2"], 30, NOW)
    return directory


@contextmanager
def serving(files: tls.TlsFiles) -> Iterator[Address]:
    """A health service with these files on a free port of loopback."""
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(health_service.HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(files))
    server.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        server.stop(0).wait()
        pool.shutdown()


def ask(address: Address, credentials: grpc.ChannelCredentials) -> str:
    """What a stranger's client gets: the status, or the code of the failure."""
    with grpc.secure_channel(str(address), credentials) as channel:
        try:
            channel.unary_unary(health.METHOD)(b"", timeout=5)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def files(directory: Path, *, mutual: bool = False) -> tls.TlsFiles:
    return tls.TlsFiles(
        directory / "server.crt", directory / "server.key", directory / "ca.crt" if mutual else None
    )


def client_credentials(directory: Path, name: str | None) -> grpc.ChannelCredentials:
    pair = certs.files_of(directory, f"client-{name}") if name else None
    return grpc.ssl_channel_credentials(
        (directory / "ca.crt").read_bytes(),
        pair.key.read_bytes() if pair else None,
        pair.certificate.read_bytes() if pair else None,
    )


# --- what is made


def test_a_strict_verifier_accepts_the_servers_certificate_for_each_of_its_names_and_no_other(
    made: Path,
) -> None:
    authority = x509.load_pem_x509_certificate((made / "ca.crt").read_bytes())
    leaf, *chain = x509.load_pem_x509_certificates((made / "server.crt").read_bytes())
    builder = verification.PolicyBuilder().store(verification.Store([authority])).time(NOW)
    for host in ("backup.example.org", "localhost"):
        builder.build_server_verifier(x509.DNSName(host)).verify(leaf, chain)
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("other.example.org")).verify(leaf, chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [
        "192.0.2.7",
        "127.0.0.1",
        "::1",
    ]


def test_a_clients_certificate_proves_a_client_and_cannot_pose_as_a_server(made: Path) -> None:
    authority = x509.load_pem_x509_certificate((made / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((made / "client-web1.crt").read_bytes())
    leaf.verify_directly_issued_by(authority)
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert leaf.subject.rfc4514_string() == "CN=web1"


def test_keys_can_be_read_by_their_owner_only(made: Path) -> None:
    for path in made.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_nothing_is_written_over_and_then_nothing_is_made_at_all(tmp_path: Path) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CertificateError, match=r"server\.crt exists and is not written over"):
        certs.make(tmp_path, ["other"], ["web1"], 30, NOW)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_authority_that_is_there_signs_what_comes_later(made: Path, tmp_path: Path) -> None:
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    added = certs.make(tmp_path, [], ["later"], 30, NOW)
    assert added == [certs.files_of(tmp_path, "client-later")]
    authority = x509.load_pem_x509_certificate((made / "ca.crt").read_bytes())
    x509.load_pem_x509_certificate(added[0].certificate.read_bytes()).verify_directly_issued_by(authority)


def test_an_authority_without_its_key_or_with_another_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes((made / "ca.crt").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.crt exists"):
        certs.make(tmp_path, ["localhost"], [], 30, NOW)
    (tmp_path / "ca.key").write_bytes((made / "server.key").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key is not the key of"):
        certs.make(tmp_path, ["localhost"], [], 30, NOW)


@pytest.mark.parametrize(
    ("hosts", "clients"), [(["a b"], []), ([""], []), (["-x"], []), ([], ["../x"]), ([], ["a\nb"])]
)
def test_a_name_that_is_none_is_refused_before_anything_is_made(
    tmp_path: Path, hosts: list[str], clients: list[str]
) -> None:
    with pytest.raises(CertificateError):
        certs.make(tmp_path / "new", hosts, clients, 30, NOW)
    assert not (tmp_path / "new").exists()


# --- who is let in


def test_with_tls_a_client_that_trusts_the_authority_gets_in_and_one_that_does_not_stays_out(
    made: Path, tmp_path: Path
) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    with serving(files(made)) as address:
        assert ask(address, client_credentials(made, None)) == "OK"
        assert ask(address, client_credentials(tmp_path, None)) == "UNAVAILABLE"


def test_with_mutual_tls_only_a_client_with_a_certificate_of_the_authority_gets_in(
    made: Path, tmp_path: Path
) -> None:
    certs.make(tmp_path, [], ["web1"], 30, NOW)
    (tmp_path / "ca.crt").write_bytes(
        (made / "ca.crt").read_bytes()
    )  # trusts the right server, shows a foreign certificate
    with serving(files(made, mutual=True)) as address:
        assert ask(address, client_credentials(made, "web1")) == "OK"
        assert ask(address, client_credentials(made, None)) == "UNAVAILABLE"
        assert ask(address, client_credentials(tmp_path, "web1")) == "UNAVAILABLE"


@pytest.mark.parametrize("mutual", [False, True])
def test_the_health_probe_gets_in_with_what_the_server_itself_has(made: Path, mutual: bool) -> None:
    with serving(files(made, mutual=mutual)) as address:
        health.check(address, files(made, mutual=mutual), 5)


def test_the_health_probe_trusts_no_other_server(made: Path, tmp_path: Path) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    with serving(files(tmp_path)) as address, pytest.raises(health.ProbeError, match="no server answers"):
        health.check(address, files(made), 5)


def test_renewed_certificates_are_used_without_a_restart_and_broken_ones_are_not(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    for name in ("server.crt", "server.key"):
        (used / name).write_bytes((made / name).read_bytes())
    renewed = tmp_path / "renewed"
    certs.make(renewed, ["localhost"], [], 30, NOW)
    with serving(files(used)) as address:
        assert ask(address, client_credentials(made, None)) == "OK"
        (used / "server.key").write_bytes((renewed / "server.key").read_bytes())  # half replaced
        with caplog.at_level(logging.WARNING):
            assert ask(address, client_credentials(made, None)) == "OK"
        assert "the old ones stay" in caplog.text
        (used / "server.crt").write_bytes((renewed / "server.crt").read_bytes())
        assert ask(address, client_credentials(renewed, None)) == "OK"
        assert ask(address, client_credentials(made, None)) == "UNAVAILABLE"


# --- what the server refuses to start with


def test_files_that_cannot_be_used_are_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(tls.TlsError, match=r"cannot read .*missing"):
        tls.server_credentials(tls.TlsFiles(tmp_path / "missing", made / "server.key", None))
    with pytest.raises(tls.TlsError, match=r"client-web1\.key is not the key of .*server\.crt"):
        tls.server_credentials(tls.TlsFiles(made / "server.crt", made / "client-web1.key", None))
    with pytest.raises(tls.TlsError, match=r"server\.key holds no certificate"):
        tls.server_credentials(tls.TlsFiles(made / "server.key", made / "server.key", None))
    with pytest.raises(tls.TlsError, match="no private key"):
        tls.server_credentials(tls.TlsFiles(made / "server.crt", made / "server.crt", None))
    with pytest.raises(tls.TlsError, match=r"server\.key holds no certificate"):
        tls.server_credentials(tls.TlsFiles(made / "server.crt", made / "server.key", made / "server.key"))


def test_an_expired_certificate_is_refused_with_the_day_it_expired(made: Path) -> None:
    with pytest.raises(tls.TlsError, match=r"expired at \d{4}-\d\d-\d\d"):
        tls.load(files(made), NOW + 31 * DAY)
    with pytest.raises(tls.TlsError, match="not valid before"):
        tls.load(files(made), NOW - DAY)


def test_a_file_far_too_large_is_not_read(made: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 40)
    with pytest.raises(tls.TlsError, match="larger than"):
        tls.load(tls.TlsFiles(large, made / "server.key", None), NOW)


def test_a_client_is_told_another_name_only_where_the_certificate_does_not_have_its_own(made: Path) -> None:
    assert tls.name_to_expect(files(made), "127.0.0.1") == ""
    assert tls.name_to_expect(files(made), "localhost") == ""
    assert tls.name_to_expect(files(made), "10.1.2.3") == "backup.example.org"
