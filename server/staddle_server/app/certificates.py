"""A private certificate authority for operators without one: its certificate, the server's, and the clients'.

Keys are ECDSA P-256, unencrypted, readable by their owner only. Existing files are never overwritten: to
renew a certificate, move the old files away first. An existing authority in the directory is reused.
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from staddle_server.app import pem
from staddle_server.app.settings import OperatorError

AUTHORITY_DAYS: Final = 3650
DAYS_DEFAULT: Final = 825
DAYS_MAX: Final = 3650
NAMES_MAX: Final = 100
EARLIER: Final = datetime.timedelta(minutes=10)
"""How far certificates begin in the past, for clocks that are a little behind."""
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
KEY_MODE: Final = 0o600
CERTIFICATE_MODE: Final = 0o644


class CertificateError(OperatorError):
    """A certificate cannot be created. The message says why, and what to do."""


class Issued(NamedTuple):
    """A certificate and its key, in memory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class IdentityFiles(NamedTuple):
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def files_of(directory: Path, stem: str) -> IdentityFiles:
    return IdentityFiles(directory / f"{stem}.crt", directory / f"{stem}.key")


def make(
    directory: Path, hosts: Sequence[str], clients: Sequence[str], days: int, now: datetime.datetime
) -> list[IdentityFiles]:
    """Create the authority if it is missing, the server's certificate if `hosts` is not empty, one for each
    client.

    Returns what was created, in this order. Checks everything before it writes anything. Raises
    CertificateError.
    """
    server_names = [_general_name(host) for host in dict.fromkeys((*hosts, *LOCAL_NAMES))] if hosts else []
    for client in clients:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", client) is None:
            raise CertificateError(
                f"{client!r} is not a valid client name: use letters, digits and . _ - @, at most 64"
            )
    if len(server_names) > NAMES_MAX or len(clients) > NAMES_MAX:
        raise CertificateError(f"the limit is {NAMES_MAX} names at a time")
    targets = [("server", True)] * bool(hosts) + [
        (f"client-{client}", False) for client in dict.fromkeys(clients)
    ]
    for stem, _ in targets:
        _refuse_existing(files_of(directory, stem))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, made = _authority(directory, now)
    for stem, is_server in targets:
        name = hosts[0] if is_server else stem.removeprefix("client-")
        pair = _leaf(authority, name, server_names if is_server else [], days, now)
        made.append(_write(files_of(directory, stem), pair, chain=[authority.certificate]))
    return made


def _authority(directory: Path, now: datetime.datetime) -> tuple[Issued, list[IdentityFiles]]:
    files = files_of(directory, "ca")
    if files.certificate.exists() and files.key.exists():
        return _read(files, now), []
    _refuse_existing(files)
    pair = _self_signed(now)
    return pair, [_write(files, pair, chain=[])]


def _refuse_existing(files: IdentityFiles) -> None:
    for path in files:
        if os.path.lexists(path):
            raise CertificateError(
                f"{path} exists and is never overwritten: move it away first, or use another directory"
            )


def _read(files: IdentityFiles, now: datetime.datetime) -> Issued:
    try:
        certificate = pem.certificates_in(pem.read(files.certificate))[0]
        key = pem.keys_in(pem.read(files.key))[0]
    except pem.TlsError as error:
        raise CertificateError(f"cannot use the authority in {files.certificate.parent}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateError(f"{files.key} is not the key of {files.certificate}")
    ends = certificate.not_valid_after_utc
    if ends <= now:
        raise CertificateError(
            f"the authority {files.certificate} expired at {ends:%Y-%m-%d %H:%M} UTC, so its signatures are not accepted: move ca.crt and "
            "ca.key away to create a new one, which every client must get"
        )
    return Issued(certificate, key)


def _self_signed(now: datetime.datetime) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Staddle private authority")])
    ends = now + datetime.timedelta(days=AUTHORITY_DAYS)
    builder = _builder(name, name, key, ends, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Issued(builder.sign(key, hashes.SHA256()), key)


def _leaf(
    authority: Issued, name: str, alternatives: Iterable[x509.GeneralName], days: int, now: datetime.datetime
) -> Issued:
    """Create a server's certificate if there are alternative names, else a client's.

    A server's is also valid for a client: the health probe beside the server uses it under mutual TLS.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    # A certificate that outlives its authority would become invalid early, without a warning.
    ends = min(now + datetime.timedelta(days=days), authority.certificate.not_valid_after_utc)
    builder = _builder(subject, authority.certificate.subject, key, ends, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = list(alternatives)
    if names:
        purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return Issued(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    ends: datetime.datetime,
    now: datetime.datetime,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(ends)
        .add_extension(identifier, critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
        if len(host) > 253 or re.fullmatch(rf"(\*\.)?{label}(\.{label})*", host) is None:
            raise CertificateError(f"{host!r} is neither a host name nor an IP address") from None
        return x509.DNSName(host)


def _write(files: IdentityFiles, pair: Issued, chain: list[x509.Certificate]) -> IdentityFiles:
    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificates = b"".join(
        each.public_bytes(serialization.Encoding.PEM) for each in (pair.certificate, *chain)
    )
    _create(files.key, key, KEY_MODE)
    _create(files.certificate, certificates, CERTIFICATE_MODE)
    return files


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
