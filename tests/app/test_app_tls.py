"""TLS and mutual TLS: the certificates from `staddle-server cert`, and who gets access with them."""

import base64
import logging
import os
import stat
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509 import verification
from staddle_server.app import certificates as certs
from staddle_server.app import health_probe, tls
from staddle_server.app.addresses import Address
from staddle_server.app.certificates import CertificateError
from tls_given import DAY, NOW, alternative, as_given, files, make_certificates, serving, warnings_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certs") / "tls")


def ask(address: Address, credentials: grpc.ChannelCredentials) -> str:
    """What an independent client gets: the status, or the code of the failure."""
    with grpc.secure_channel(str(address), credentials) as channel:
        try:
            channel.unary_unary(health_probe.METHOD)(b"", timeout=60)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def client_credentials(directory: Path, name: str | None) -> grpc.ChannelCredentials:
    pair = certs.files_of(directory, f"client-{name}") if name else None
    return grpc.ssl_channel_credentials(
        (directory / "ca.crt").read_bytes(),
        pair.key.read_bytes() if pair else None,
        pair.certificate.read_bytes() if pair else None,
    )


# --- created certificates


def test_a_strict_verifier_accepts_the_server_certificate_for_its_names_only(
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


def test_a_client_certificate_cannot_be_used_as_a_server(made: Path) -> None:
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


def test_cert_overwrites_nothing_and_then_creates_nothing(tmp_path: Path) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CertificateError, match=r"server\.crt exists and is never overwritten"):
        certs.make(tmp_path, ["other"], ["web1"], 30, NOW)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_existing_authority_signs_later_certificates(made: Path, tmp_path: Path) -> None:
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


def test_no_certificate_outlives_its_authority_and_an_expired_one_signs_nothing(tmp_path: Path) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    ends = authority.not_valid_after_utc
    (late,) = certs.make(tmp_path, [], ["late"], 825, ends - 10 * DAY)
    assert x509.load_pem_x509_certificate(late.certificate.read_bytes()).not_valid_after_utc == ends
    with pytest.raises(CertificateError, match=r"expired at .* so its signatures are not accepted"):
        certs.make(tmp_path, [], ["later"], 825, ends)
    assert not (tmp_path / "client-later.crt").exists()


@pytest.mark.parametrize(
    ("hosts", "clients"), [(["a b"], []), ([""], []), (["-x"], []), ([], ["../x"]), ([], ["a\nb"])]
)
def test_an_invalid_name_is_refused_before_anything_is_created(
    tmp_path: Path, hosts: list[str], clients: list[str]
) -> None:
    with pytest.raises(CertificateError):
        certs.make(tmp_path / "new", hosts, clients, 30, NOW)
    assert not (tmp_path / "new").exists()


# --- access


def test_with_tls_only_a_client_that_trusts_the_authority_connects(made: Path, tmp_path: Path) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    with serving(files(made)) as address:
        assert ask(address, client_credentials(made, None)) == "OK"
        assert ask(address, client_credentials(tmp_path, None)) == "UNAVAILABLE"


def test_with_mutual_tls_only_a_client_with_a_certificate_of_the_authority_connects(
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
def test_the_health_probe_connects_with_the_files_of_the_server(made: Path, mutual: bool) -> None:
    with serving(files(made, mutual=mutual)) as address:
        health_probe.check(address, files(made, mutual=mutual), 5)


def test_the_health_probe_trusts_no_other_server(made: Path, tmp_path: Path) -> None:
    certs.make(tmp_path, ["localhost"], [], 30, NOW)
    with (
        serving(files(tmp_path)) as address,
        pytest.raises(health_probe.ProbeError, match="no answer from"),
    ):
        health_probe.check(address, files(made), 5)


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
        tls.load(tls.TlsFiles(tmp_path / "missing", made / "server.key", None))
    with pytest.raises(tls.TlsError, match=r"client-web1\.key is not the key of .*server\.crt"):
        tls.load(tls.TlsFiles(made / "server.crt", made / "client-web1.key", None))
    with pytest.raises(tls.TlsError, match=r"server\.key holds no certificate"):
        tls.load(tls.TlsFiles(made / "server.key", made / "server.key", None))
    with pytest.raises(tls.TlsError, match="no private key"):
        tls.load(tls.TlsFiles(made / "server.crt", made / "server.crt", None))
    with pytest.raises(tls.TlsError, match=r"server\.key holds no certificate"):
        tls.load(tls.TlsFiles(made / "server.crt", made / "server.key", made / "server.key"))


def test_a_file_far_too_large_is_not_read(made: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 40)
    with pytest.raises(tls.TlsError, match="larger than"):
        tls.load(tls.TlsFiles(large, made / "server.key", None))


def test_the_client_file_has_a_server_name_only_if_the_certificate_lacks_the_address(made: Path) -> None:
    assert tls.name_to_expect(files(made), "127.0.0.1") == ""
    assert tls.name_to_expect(files(made), "localhost") == ""
    assert tls.name_to_expect(files(made), "10.1.2.3") == "backup.example.org"


MEND = {
    "Windows line ends": lambda text: text.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16, as PowerShell writes": lambda text: text.decode().encode("utf-16"),
    "text before": lambda text: b"Certificate:\n    Data: \xc3\xa9\n" + text + b"\nend of mail\n",
    "indented, as in YAML": lambda text: b"".join(b"    " + line for line in text.splitlines(keepends=True)),
    "on one line": lambda text: text.replace(b"\n", b" "),
    "line ends as two characters": lambda text: text.replace(b"\n", b"\\n"),
    "no line end at the end": lambda text: text.rstrip(),
    "twice": lambda text: text + text,
}


@pytest.mark.parametrize("how", MEND)
def test_an_unambiguous_file_is_read(made: Path, tmp_path: Path, how: str) -> None:
    certificate, key = (made / "server.crt").read_bytes(), (made / "server.key").read_bytes()
    given = as_given(tmp_path, MEND[how](certificate), MEND[how](key))
    assert tls.load(given).certificates == tls.load(files(made)).certificates
    assert tls.load(given).key == tls.load(files(made)).key


def test_certificates_and_key_may_share_a_file_in_any_order(made: Path, tmp_path: Path) -> None:
    certificate, key = (made / "server.crt").read_bytes(), (made / "server.key").read_bytes()
    authority = (made / "ca.crt").read_bytes()
    both = authority + key + certificate
    loaded = tls.load(as_given(tmp_path, both, both))
    assert [each.subject.rfc4514_string() for each in loaded.chain] == [
        "CN=backup.example.org",
        "CN=Staddle private authority",
    ]
    with serving(tls.TlsFiles(tmp_path / "given.crt", tmp_path / "given.crt", None)) as address:
        assert ask(address, client_credentials(made, None)) == "OK"


def _converted(made: Path, how: str) -> tuple[bytes, bytes]:
    """The server's certificate and key in another form."""
    from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12

    certificate, key = (made / "server.crt").read_bytes(), (made / "server.key").read_bytes()
    leaf, loaded = x509.load_pem_x509_certificate(certificate), serialization.load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    plain = serialization.NoEncryption()
    pkcs8, der, pem = (
        serialization.PrivateFormat.PKCS8,
        serialization.Encoding.DER,
        serialization.Encoding.PEM,
    )
    old = serialization.PrivateFormat.TraditionalOpenSSL
    secret = serialization.BestAvailableEncryption(b"open sesame")
    request = x509.CertificateSigningRequestBuilder().subject_name(leaf.subject).sign(loaded, hashes.SHA256())
    return {
        "swapped": (key, certificate),
        "empty": (b" \n", key),
        "certificate in DER": (leaf.public_bytes(der), key),
        "key in DER": (certificate, loaded.private_bytes(der, pkcs8, plain)),
        "old key in DER": (certificate, loaded.private_bytes(der, old, plain)),
        "PKCS#12": (pkcs12.serialize_key_and_certificates(b"x", loaded, leaf, None, secret), key),
        "PKCS#7": (pkcs7.serialize_certificates([leaf], der), key),
        "encrypted key": (certificate, loaded.private_bytes(pem, pkcs8, secret)),
        "encrypted old key": (certificate, loaded.private_bytes(pem, old, secret)),
        "request": (request.public_bytes(pem), key),
        "public key": (
            certificate,
            loaded.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        ),
        "base64 twice": (base64.b64encode(certificate), key),
        "cut off": (certificate, key[:-40]),
        "a damaged line": (certificate.replace(b"M", b"?", 3), key),
        "of a client": ((made / "client-web1.crt").read_bytes(), (made / "client-web1.key").read_bytes()),
    }[how]


NAMED = {
    "swapped": "swap --tls-cert and --tls-key",
    "empty": r"given\.crt is empty",
    "certificate in DER": "openssl x509 -inform DER",
    "key in DER": "openssl pkey -inform DER",
    "old key in DER": "openssl pkey -inform DER",
    "PKCS#12": "openssl pkcs12 -in",
    "PKCS#7": "openssl pkcs7 -inform DER",
    "encrypted key": "openssl pkey -in .*given.key",
    "encrypted old key": "openssl pkey -in .*given.key",
    "request": "certificate request",
    "public key": "no private key, but: PUBLIC KEY",
    "base64 twice": "base64 -d",
    "cut off": r"given\.key is cut off",
    "a damaged line": r"given\.crt is damaged: a block CERTIFICATE is not base64",
    "of a client": "lacks serverAuth",
}


@pytest.mark.parametrize("how", NAMED)
def test_a_file_of_another_kind_is_named_with_what_to_do(made: Path, tmp_path: Path, how: str) -> None:
    certificate, key = _converted(made, how)
    with pytest.raises(tls.TlsError, match=NAMED[how]) as caught:
        tls.load(as_given(tmp_path, certificate, key))
    secret = (made / "server.key").read_bytes().splitlines()[1].decode()
    assert secret not in str(caught.value)


def self_signed(
    directory: Path,
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> tls.TlsFiles:
    """A certificate that no authority has signed, and its key, as files."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + 90 * DAY)
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    certificate = builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return as_given(directory, certificate, pem)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (ec.generate_private_key(ec.SECP521R1()), "secp521r1"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
    ids=["Ed25519", "P-521", "secp256k1"],
)
def test_a_key_type_that_no_client_supports_is_refused_by_name(
    tmp_path: Path, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, kind: str
) -> None:
    given = self_signed(tmp_path, key, alternative("localhost"))
    with pytest.raises(tls.TlsError, match=rf"gRPC does not use \({kind}\): use RSA"):
        tls.load(given)


def test_a_certificate_without_a_host_name_is_refused_with_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(tls.TlsError, match=r"given\.crt names no host .*subjectAltName"):
        tls.load(self_signed(tmp_path, ec.generate_private_key(ec.SECP256R1())))


def test_certificates_that_clients_will_refuse_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                x509.oid.AuthorityInformationAccessOID.CA_ISSUERS,
                x509.UniformResourceIdentifier("http://authority.example/issuer.crt"),
            )
        ]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    held = tls.ServerCertificates(self_signed(tmp_path, key, alternative("*.example.org")))
    for good in ("", "backup.example.org", "BACKUP.example.org."):
        held.advise(good)
    assert warnings_of(caplog) == []
    for other in ("example.org", "a.backup.example.org", "192.0.2.7"):
        held.advise(other)
        ((_, words),) = warnings_of(caplog)
        assert f"is not for {other}, the --endpoint" in words
    tls.ServerCertificates(self_signed(tmp_path, key, alternative("localhost"), issuer)).advise("localhost")
    ((_, words),) = warnings_of(caplog)
    assert "fullchain.pem" in words


def test_an_unreadable_file_is_named_without_waiting(made: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for path, words in (
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is a pipe"),
        (Path("/dev/zero"), "device"),
        (tmp_path / "link", "a link to nowhere, which does not exist"),
    ):
        with pytest.raises(tls.TlsError, match=words):
            tls.load(tls.TlsFiles(path, made / "server.key", None))
    with pytest.raises(tls.TlsError, match=r"server\.key holds no certificate, but: PRIVATE KEY"):
        tls.load(tls.TlsFiles(made / "server.crt", made / "server.key", made / "server.key"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_another_user_is_named_with_its_owner(made: Path, tmp_path: Path) -> None:
    key = tmp_path / "closed.key"
    key.touch(0o000)
    with pytest.raises(tls.TlsError, match=r"Permission denied: it belongs to .* with mode 0000"):
        tls.load(tls.TlsFiles(made / "server.crt", key, None))
