"""The expiry of certificates: warnings in log and health, and how renewed ones are noticed."""

import logging
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from staddle_server.app import certificates as certs
from staddle_server.app import health_probe, tls
from tls_given import DAY, NOW, alternative, as_given, files, make_certificates, serving, warnings_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certs") / "tls")


# --- dates


class Times:
    """A clock that a test sets: the wall clock's time, and the seconds that have passed."""

    def __init__(self) -> None:
        self.now = NOW
        self.passed_s = 0.0

    def certificates(self, of: tls.TlsFiles) -> tls.ServerCertificates:
        return tls.ServerCertificates(of, lambda: self.now, lambda: self.passed_s)

    def pass_days(self, days: float) -> None:
        self.now += days * DAY
        self.passed_s += days * 86_400


def test_a_certificate_warns_daily_from_thirty_days_before_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs.make(tmp_path, ["localhost"], [], 32, NOW)
    times = Times()
    held = times.certificates(files(tmp_path))
    assert (held.validity().words, warnings_of(caplog)) == ("", [])
    times.pass_days(2.5)
    held.tick()
    ((level, words),) = warnings_of(caplog)
    assert level == logging.WARNING
    assert f"{tmp_path}/server.crt expires at" in words
    assert "in 29 days: renew it" in words
    assert held.validity().words
    times.pass_days(0.5)
    held.tick()
    assert warnings_of(caplog) == []
    times.pass_days(30)
    held.tick()
    ((level, words),) = warnings_of(caplog)
    assert level == logging.ERROR
    assert "expired at" in words
    times.certificates(files(tmp_path))
    assert [level for level, _ in warnings_of(caplog)] == [logging.ERROR], "also at a start"


def test_a_certificate_that_is_not_valid_yet_is_reported_with_its_start_and_the_clock(made: Path) -> None:
    found = tls.load(files(made)).validity(NOW - DAY)
    assert not found.is_valid
    assert "is not valid before" in found.words
    assert f"{NOW - DAY:%Y-%m-%d %H:%M} UTC" in found.words


def test_the_earliest_expiry_of_a_chain_counts_except_that_of_a_root(
    tmp_path: Path,
) -> None:
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "between", "server")}

    def signed(name: str, by: str, days: int) -> bytes:
        subject, issuer = (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (name, by)
        )
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
        builder = builder.public_key(keys[name].public_key()).serial_number(1)
        builder = builder.not_valid_before(NOW - 100 * DAY).not_valid_after(NOW + days * DAY)
        builder = builder.add_extension(alternative("localhost"), critical=False)
        return builder.sign(keys[by], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    key = keys["server"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    def words(between_days: int, root_days: int) -> str:
        chain = signed("root", "root", root_days) + signed("between", "root", between_days)
        given = as_given(tmp_path, chain + signed("server", "between", 90), key)
        loaded = tls.load(given)
        assert [each.subject.rfc4514_string() for each in loaded.chain] == [
            "CN=server",
            "CN=between",
            "CN=root",
        ]
        return loaded.validity(NOW).words

    assert words(between_days=60, root_days=-1) == ""
    assert "in 19 days" in words(between_days=20, root_days=900)
    assert "expired at" in words(between_days=-1, root_days=900)


def test_an_expiring_client_authority_is_named_unless_another_one_lasts(tmp_path: Path) -> None:
    certs.make(tmp_path / "lasts", ["localhost"], [], 4000, NOW)
    certs.make(tmp_path / "old", ["localhost"], [], 3, NOW - 3640 * DAY)
    old, new = ((tmp_path / name / "ca.crt").read_bytes() for name in ("old", "lasts"))
    mutual = files(tmp_path / "lasts", mutual=True)._replace(client_ca=tmp_path / "both.crt")
    (tmp_path / "both.crt").write_bytes(old)
    assert "the clients' authority" in tls.load(mutual).validity(NOW).words
    (tmp_path / "both.crt").write_bytes(old + new)
    assert tls.load(mutual).validity(NOW).words == ""


def test_a_renewed_certificate_is_noticed_within_a_minute_even_behind_a_swapped_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs.make(tmp_path / "one", ["localhost"], [], 10, NOW)
    certs.make(tmp_path / "two", ["localhost"], [], 90, NOW)
    (tmp_path / "live").symlink_to("one")
    times = Times()
    held = times.certificates(files(tmp_path / "live"))
    assert held.validity().words
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "live")
    times.passed_s += 61
    held.tick()
    assert not held.validity().words


def test_a_valid_certificate_is_replaced_only_once_the_new_one_is_valid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs.make(tmp_path / "used", ["localhost"], [], 90, NOW)
    certs.make(tmp_path / "early", ["localhost"], [], 90, NOW + 2 * DAY)
    times = Times()
    held = times.certificates(files(tmp_path / "used"))
    for name in ("server.crt", "server.key"):
        (tmp_path / "used" / name).write_bytes((tmp_path / "early" / name).read_bytes())
    assert held.fetch() is None
    ((_, words),) = warnings_of(caplog)
    assert "the old ones stay: the certificate" in words
    assert "is not valid before" in words
    assert held.fetch() is None
    assert warnings_of(caplog) == [], "once"
    times.pass_days(2)
    assert held.fetch() is not None


def test_the_health_probe_names_an_expired_certificate(
    tmp_path: Path,
) -> None:
    certs.make(tmp_path, ["localhost"], [], 3, NOW - 10 * DAY)
    with serving(files(tmp_path)) as address, pytest.raises(health_probe.ProbeError, match="expired at"):
        health_probe.check(address, files(tmp_path), 5)
