"""TLS of the server: its certificates, which clients it accepts, and how its own health probe trusts it."""

import datetime
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID
from staddle._base.figures import counted
from staddle._base.pem_files import are_swapped

from staddle_server.app import pem
from staddle_server.app.pem import TlsError
from staddle_server.app.settings import Settings

WARN: Final = datetime.timedelta(days=30)
"""How long before a certificate's expiry the warnings begin."""
WARN_EVERY_S: Final = 86_400.0
LOOK_EVERY_S: Final = 60.0
CURVES: Final = frozenset({"secp256r1", "secp384r1"})
_log = logging.getLogger(__name__)

Signature = tuple[tuple[int, ...], ...]
Now = Callable[[], datetime.datetime]


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class TlsFiles(NamedTuple):
    """The server's PEM files; `client_ca` makes it mutual TLS."""

    certificate: Path
    key: Path
    client_ca: Path | None


class Validity(NamedTuple):
    """What a certificate's dates mean at some moment."""

    is_valid: bool
    words: str
    """Which certificate expires or begins when, and what to do; "" if it lasts for longer than WARN."""


class Identity(NamedTuple):
    """The files' checked content in gRPC's form: the leaf first, then its issuers."""

    files: TlsFiles
    certificates: bytes
    key: bytes
    client_ca: bytes | None
    chain: list[x509.Certificate]
    client_authorities: list[x509.Certificate]

    @property
    def leaf(self) -> x509.Certificate:
        """The server's own certificate."""
        return self.chain[0]

    @property
    def ends(self) -> datetime.datetime:
        """When the first of the certificates that clients are shown expires."""
        return self._first_to_expire().not_valid_after_utc

    def _first_to_expire(self) -> x509.Certificate:
        # Clients have the root themselves.
        shown = [self.leaf, *(each for each in self.chain[1:] if each.issuer != each.subject)]
        return min(shown, key=lambda each: each.not_valid_after_utc)

    def validity(self, now: datetime.datetime) -> Validity:
        """Return what the certificates' dates mean at `now`: of the chain the first to expire, of the
        clients' authorities the last.
        """
        first = self._first_to_expire()
        found = _validity(f"the certificate {self.files.certificate}", first, now)
        if found.words or not self.client_authorities:
            return found
        last = max(self.client_authorities, key=lambda each: each.not_valid_after_utc)
        return _validity(f"the clients' authority {self.files.client_ca}", last, now)


def _validity(name: str, certificate: x509.Certificate, now: datetime.datetime) -> Validity:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if ends <= now:
        return Validity(
            is_valid=False,
            words=f"{name} expired at {ends:%Y-%m-%d %H:%M} UTC: TLS connections fail until it is renewed",
        )
    if begins > now:
        return Validity(
            is_valid=False,
            words=f"{name} is not valid before {begins:%Y-%m-%d %H:%M} UTC, and the clock of this machine says "
            f"{now:%Y-%m-%d %H:%M} UTC: TLS connections fail until then",
        )
    if ends - now <= WARN:
        return Validity(
            is_valid=True,
            words=f"{name} expires at {ends:%Y-%m-%d %H:%M} UTC, in {counted((ends - now).days, 'day')}: renew it",
        )
    return Validity(is_valid=True, words="")


def files_of(settings: Settings) -> TlsFiles | None:
    """Return the files of these settings; None without TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def load(files: TlsFiles) -> Identity:
    """Read and check the files; Identity.validity says what their dates mean. Raises TlsError.

    The certificate of the key comes first, whatever the order in the file.
    """
    certificate_file, key_file = pem.read(files.certificate), pem.read(files.key)
    if are_swapped(certificate_file, key_file):
        raise TlsError(
            f"{files.certificate} holds the private key and {files.key} the certificate: swap --tls-cert and --tls-key"
        )
    certificates, keys = pem.certificates_in(certificate_file), pem.keys_in(key_file)
    pairs = [(each, key) for each in certificates for key in keys if _belong(each, key)]
    if not pairs:
        names = ", ".join(each.subject.rfc4514_string() or "one without a name" for each in certificates[:3])
        raise TlsError(f"{files.key} is not the key of {files.certificate}, which holds {names}")
    leaf, key = pairs[0]
    _refuse_client(leaf, files.certificate)
    _refuse_kind(leaf, files.certificate)
    if not any(_names(leaf)):
        raise TlsError(
            f"{files.certificate} names no host (subject alternative name), so clients refuse it: create one that does "
            "(`openssl req` takes -addext subjectAltName=DNS:NAME)"
        )
    chain = pem.chain(leaf, certificates)
    authorities = pem.certificates_in(pem.read(files.client_ca)) if files.client_ca is not None else []
    return Identity(
        files,
        pem.to_pem(chain),
        pem.key_to_pem(key),
        pem.to_pem(authorities) if authorities else None,
        chain,
        authorities,
    )


def _belong(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    return bool(certificate.public_key() == key.public_key())


def _refuse_client(leaf: x509.Certificate, path: Path) -> None:
    """Refuse a certificate whose stated purpose excludes servers, as every client would."""
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purposes):
        raise TlsError(f"{path} is not a server's certificate: its extended key usage lacks serverAuth")


def _has_issuer_elsewhere(leaf: x509.Certificate) -> bool:
    """Return whether the certificate says where to get its issuer's: public authorities with intermediate
    ones do.
    """
    try:
        access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return any(each.access_method == AuthorityInformationAccessOID.CA_ISSUERS for each in access)


def _refuse_kind(leaf: x509.Certificate, path: Path) -> None:
    """Refuse kinds of keys with which gRPC does not listen, or no gRPC client connects, without
    saying why.
    """
    key = leaf.public_key()
    if isinstance(key, rsa.RSAPublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES
    ):
        return
    kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    raise TlsError(
        f"{path} has a key of a kind that gRPC does not use ({kind.removesuffix('PublicKey')}): use RSA, or ECDSA with P-256 or P-384"
    )


class ServerCertificates:
    """The certificates that the server shows. They follow the files, and warn before their expiry.

    A file that is broken, half replaced or expired changes nothing: the last good ones stay, and the log says
    so once.
    """

    def __init__(
        self, files: TlsFiles, now: Now = _utc_now, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the files.

        Raises TlsError if they are unusable; expired ones are usable: renewing them needs no restart.
        """
        self._files = files
        self._now = now
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        try:
            self._seen = signature(files)
        except OSError:
            self._seen = ()  # reading them says why
        self._identity = load(files)
        self._pending: Identity | None = None
        self._refused_until: datetime.datetime | None = None
        self._looked_s = self._warned_s = monotonic_s()
        _log.info(
            "TLS is on",
            extra={"fields": {"expires": _expiry(self._identity), "mutual": files.client_ca is not None}},
        )
        self.warn()

    def advise(self, endpoint: str) -> None:
        """Log what prevents clients from connecting to `endpoint`, a host, that a server cannot determine for
        certain.
        """
        leaf = self._identity.leaf
        if endpoint and not _is_for(leaf, endpoint):
            _log.warning(
                "the certificate %s is not for %s, the --endpoint that clients connect to: they refuse it unless they set server_name",
                self._files.certificate,
                endpoint,
            )
        if len(self._identity.chain) == 1 and _has_issuer_elsewhere(leaf):
            _log.warning(
                "%s holds only the server's certificate, without that of the authority that signed it: clients without that "
                "one refuse it. Use the full chain (fullchain.pem)",
                self._files.certificate,
            )

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files; with a client CA, clients must show a
        certificate of it.
        """
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._identity),
            self.fetch,  # type: ignore[arg-type]  # the stubs forget that None means: unchanged
            require_client_authentication=self._files.client_ca is not None,
        )

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before each new connection. Return None if nothing has changed. Never raises."""
        self.look()
        with self._lock:
            pending, self._pending = self._pending, None
        return None if pending is None else _configuration(pending)

    def ends_s(self) -> float:
        """Return when the first of the certificates that clients are shown expires, in seconds since 1970."""
        return self.identity.ends.timestamp()

    @property
    def identity(self) -> Identity:
        """The certificates that a new connection is to be shown."""
        self.look()
        return self._identity

    def look(self, *, again: bool = False) -> None:
        """Read the files if they have changed, or in any case with `again`. Never raises."""
        with self._lock:
            try:
                self._look(again=again)
            except (TlsError, OSError) as error:
                _log.warning("certificates have changed but are unusable; the old ones stay: %s", error)
            except Exception:  # noqa: BLE001  gRPC's callback must never raise: it would end all new connections
                _log.exception("certificates could not be read again; the old ones stay")

    def _look(self, *, again: bool) -> None:
        now = self._now()
        is_due = self._refused_until is not None and self._refused_until <= now
        seen = signature(self._files)
        if seen == self._seen and not is_due and not again:
            return
        self._seen = seen
        self._refused_until = None
        identity = load(self._files)
        found = identity.validity(now)
        if not found.is_valid and self._identity.validity(now).is_valid:
            if identity.leaf.not_valid_before_utc > now:
                self._refused_until = identity.leaf.not_valid_before_utc
            raise TlsError(found.words)
        self._identity = self._pending = identity
        _log.info("certificates were read again", extra={"fields": {"expires": _expiry(identity)}})
        self.warn()

    def tick(self) -> None:
        """Called every second or so: check the files every minute, and warn every day. Never raises."""
        now_s = self._monotonic_s()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self.look()
        if now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            self.warn()

    def warn(self) -> None:
        """Log that the certificates have expired, or expire soon."""
        found = self.validity()
        if found.words:
            _log.log(logging.WARNING if found.is_valid else logging.ERROR, "%s", found.words)

    def validity(self) -> Validity:
        """Return what the certificates' dates mean now."""
        return self._identity.validity(self._now())


def signature(files: TlsFiles) -> Signature:
    """Return a value that changes when one of the files, or a link's target, is replaced, written or made
    readable. Raises OSError.
    """
    stats = [path.stat() for path in files if path is not None]
    return tuple(
        (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in stats
    )


def _expiry(identity: Identity) -> str:
    return f"{identity.leaf.not_valid_after_utc:%Y-%m-%d}"


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificates)], root_certificates=identity.client_ca
    )


def probe_credentials(files: TlsFiles) -> tuple[grpc.ChannelCredentials, str]:
    """Return the credentials of this machine's health probe, and the name to expect.

    It trusts exactly the server's own certificate, and shows it if asked for one. Raises TlsError.
    """
    identity = load(files)
    pair = (identity.key, identity.certificates) if files.client_ca is not None else (None, None)
    leaf = identity.leaf.public_bytes(serialization.Encoding.PEM)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=leaf, private_key=pair[0], certificate_chain=pair[1]
    )
    return credentials, server_name(identity.leaf)


def name_to_expect(files: TlsFiles, host: str) -> str:
    """Return the name that a client connecting to `host` must expect instead; empty if the certificate is for
    `host`.

    Raises TlsError.
    """
    leaf = load(files).leaf
    return "" if _is_for(leaf, host) else server_name(leaf)


def server_name(certificate: x509.Certificate) -> str:
    """Return the first name in the certificate, which has one."""
    hosts, addresses = _names(certificate)
    return hosts[0].replace("*", "probe") if hosts else addresses[0]


def _is_for(certificate: x509.Certificate, host: str) -> bool:
    """Return whether a client that connects to `host` accepts the certificate's names."""
    hosts, addresses = _names(certificate)
    host = host.lower().removesuffix(".")
    # A wildcard stands for one label.
    patterns = {host, f"*.{host.partition('.')[2]}"}
    return host in addresses or any(each.lower() in patterns for each in hosts)


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Return host names and addresses, as text."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    return names.get_values_for_type(x509.DNSName), [
        str(each) for each in names.get_values_for_type(x509.IPAddress)
    ]
