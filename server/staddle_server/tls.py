"""TLS of the server: what it shows, whom it lets in, and how its own health probe trusts it."""

import datetime
import logging
import threading
from pathlib import Path
from typing import Final, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from staddle_server.config import OperatorError, Settings

PEM_BYTES_MAX: Final = 1024 * 1024
_log = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int], ...]


class TlsError(OperatorError):
    """Certificates or keys cannot be used. The message names the file and says why."""


class TlsFiles(NamedTuple):
    """Where the server's PEM files are; `client_ca` makes it mutual TLS."""

    certificate: Path
    key: Path
    client_ca: Path | None


class Identity(NamedTuple):
    """What the files held, checked."""

    certificates: bytes
    key: bytes
    client_ca: bytes | None
    leaf: x509.Certificate


def files_of(settings: Settings) -> TlsFiles | None:
    """None: no TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def load(files: TlsFiles, now: datetime.datetime) -> Identity:
    """Reads and checks the files: PEM, the key is the certificate's, valid today. Raises TlsError."""
    certificates = _pem(files.certificate)
    key = _pem(files.key)
    client_ca = _pem(files.client_ca) if files.client_ca is not None else None
    leaf = _certificates(files.certificate, certificates)[0]
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise TlsError(f"{files.key} is no private key in PEM without a passphrase") from error
    if private.public_key() != leaf.public_key():
        raise TlsError(f"{files.key} is not the key of {files.certificate}")
    if leaf.not_valid_after_utc <= now:
        raise TlsError(
            f"{files.certificate} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it"
        )
    if leaf.not_valid_before_utc > now:
        raise TlsError(
            f"{files.certificate} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )
    if files.client_ca is not None and client_ca is not None:
        _certificates(files.client_ca, client_ca)
    return Identity(certificates, key, client_ca, leaf)


def _pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > PEM_BYTES_MAX:
        raise TlsError(f"{path} is larger than {PEM_BYTES_MAX} bytes: this is no certificate or key")
    return data


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise TlsError(f"{path} holds no certificate in PEM") from error


class _Reloader:
    """Hands gRPC the newest good certificates: it asks before each new connection.

    A file that is broken, or half replaced, changes nothing: the last good ones stay, and the log says so once.
    """

    def __init__(self, files: TlsFiles, seen: Signature) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = seen

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """None: nothing has changed. Never raises."""
        with self._lock:
            try:
                seen = signature(self._files)
                if seen == self._seen:
                    return None
                self._seen = seen
                identity = load(self._files, datetime.datetime.now(datetime.UTC))
                _log.info("certificates were read again", extra={"fields": {"expires": _expiry(identity)}})
                return _configuration(identity)
            except (TlsError, OSError) as error:
                _log.warning("certificates have changed and cannot be used; the old ones stay: %s", error)
            except Exception:  # noqa: BLE001  gRPC's callback must never raise: it would end all new connections
                _log.exception("certificates could not be read again; the old ones stay")
            return None


def signature(files: TlsFiles) -> Signature:
    """Differs when one of the files was replaced or written. Raises OSError."""
    stats = [path.stat() for path in files if path is not None]
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)


def _expiry(identity: Identity) -> str:
    return f"{identity.leaf.not_valid_after_utc:%Y-%m-%d}"


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificates)], root_certificates=identity.client_ca
    )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files; with a client CA, clients must show a certificate of it. Raises TlsError."""
    try:
        seen = signature(files)
    except OSError as error:
        raise TlsError(f"cannot read {error.filename}: {error.strerror}") from error
    identity = load(files, datetime.datetime.now(datetime.UTC))
    _log.info(
        "TLS is on", extra={"fields": {"expires": _expiry(identity), "mutual": files.client_ca is not None}}
    )
    return grpc.dynamic_ssl_server_credentials(
        _configuration(identity),
        _Reloader(files, seen).fetch,  # type: ignore[arg-type]  # the stubs forget that None means: unchanged
        require_client_authentication=files.client_ca is not None,
    )


def probe_credentials(files: TlsFiles) -> tuple[grpc.ChannelCredentials, str]:
    """How this machine's health probe connects: it trusts exactly the server's own certificate, and shows it if asked for one.

    Answers the credentials, and the name to expect. Raises TlsError.
    """
    identity = load(files, datetime.datetime.now(datetime.UTC))
    pair = (identity.key, identity.certificates) if files.client_ca is not None else (None, None)
    leaf = identity.leaf.public_bytes(serialization.Encoding.PEM)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=leaf, private_key=pair[0], certificate_chain=pair[1]
    )
    return credentials, server_name(identity.leaf)


def name_to_expect(files: TlsFiles, host: str) -> str:
    """The name that a client which connects to `host` must expect instead; empty if the certificate is for `host`.

    Raises TlsError.
    """
    leaf = load(files, datetime.datetime.now(datetime.UTC)).leaf
    hosts, addresses = _names(leaf)
    return "" if host in hosts or host in addresses else server_name(leaf)


def server_name(certificate: x509.Certificate) -> str:
    """The first name that the certificate is for. Raises TlsError if it has none."""
    hosts, addresses = _names(certificate)
    if not hosts and not addresses:
        raise TlsError("the certificate names no host (subject alternative name): clients would refuse it")
    return hosts[0].replace("*", "probe") if hosts else addresses[0]


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Host names and addresses, as text."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    return names.get_values_for_type(x509.DNSName), [
        str(each) for each in names.get_values_for_type(x509.IPAddress)
    ]
