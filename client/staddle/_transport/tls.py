"""TLS of the client: what it trusts and shows, and why a handshake fails, in words.

gRPC says of most failed handshakes that it cannot connect. So after one, Python's own TLS tries the same, and what it says is explained.
"""

import datetime
import itertools
import logging
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from staddle._base.figures import counted
from staddle._base.given_files import GivenError
from staddle._base.pem_blocks import BEGIN
from staddle._base.pem_files import PemFile, are_swapped, read_pem
from staddle._errors import ConfigError
from staddle._transport.settings import Settings

if TYPE_CHECKING:
    import ssl

SYSTEM_CA: Final = "system"
"""As `ca`: the public certificate authorities that gRPC brings."""
PROBE_S: Final = 1.5
WARN: Final = datetime.timedelta(days=30)
"""How long before its end the client's certificate is warned of."""
_log = logging.getLogger("staddle")
_warned: set[str] = set()
_readable: set[str] = set()
_MAY_BE_TLS: Final = re.compile(
    r"(?i)handshake|certificate|verif|ssl|tls|socket closed|reset|broken pipe|EOF|removed"
)

_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_OTHER_NAME: Final = frozenset({62, 64})
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})
"""Of OpenSSL's x509_vfy.h."""

# Validity is a sequence of two times, each in one of two forms.
_TIME: Final = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY: Final = re.compile(rb"\x30." + _TIME + _TIME, re.DOTALL)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the client trusts, and what it shows; None for `trusted`: the public authorities."""

    trusted: bytes | None
    chain: bytes | None
    key: bytes | None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC connects with."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.trusted, private_key=self.key, certificate_chain=self.chain
        )


def load(settings: Settings) -> Identity:
    """What the settings name. Raises ConfigError for a file that cannot be used, and for a certificate and a key that do not fit."""
    trusted = None
    if settings.ca != SYSTEM_CA:
        with _reading("ca", settings.ca):
            trusted = b"".join(block.pem for block in read_pem(settings.ca).certificates())
    if not settings.cert:
        return Identity(trusted, None, None)
    with _reading("cert", settings.cert):
        cert_file = read_pem(settings.cert)
    with _reading("key", settings.key):
        key_file = read_pem(settings.key)
    _warn_of_readable(key_file)
    if are_swapped(cert_file, key_file):
        raise ConfigError(
            f"cert {settings.cert} holds the private key and key {settings.key} the certificate: swap cert and key."
        )
    with _reading("cert", settings.cert):
        certificates = [block.pem for block in cert_file.certificates()]
    with _reading("key", settings.key):
        keys = [block.pem for block in key_file.private_keys()]
    chain, key = _pair(certificates, keys, settings)
    _warn_of_end(chain, settings.cert)
    return Identity(trusted, chain, key)


@contextmanager
def _reading(name: str, path: str) -> Iterator[None]:
    """Turns what is wrong with the file that the setting `name` names into a ConfigError."""
    if BEGIN in path:
        raise ConfigError(f"{name} must name a file, and what was given is a certificate or key itself.")
    try:
        yield
    except GivenError as error:
        raise ConfigError(f"{name}: {error}.", facts={"path": path}) from error


def _warn_of_readable(file: PemFile) -> None:
    """Says once in the log that every user of the machine can read the private key."""
    if file.mode & stat.S_IROTH and file.path not in _readable:
        _readable.add(file.path)
        _log.warning("key %s is a private key, and others can read it: chmod 600 it.", file.path)


def _warn_of_end(chain: bytes, path: str) -> None:
    """Says once in the log that the client's certificate ends soon, or has ended."""
    import ssl

    leaf = chain.decode().split("-----END", 1)[0] + "-----END CERTIFICATE-----\n"
    _, ends = _dates(ssl.PEM_cert_to_DER_cert(leaf))
    now = datetime.datetime.now(datetime.UTC)
    if ends is None or ends - now > WARN or path in _warned:
        return
    _warned.add(path)
    if ends <= now:
        _log.warning("cert %s expired at %s: servers refuse it until it is renewed.", path, _shown(ends))
    else:
        _log.warning(
            "cert %s expires at %s, in %s: renew it.", path, _shown(ends), counted((ends - now).days, "day")
        )


def _pair(certificates: list[bytes], keys: list[bytes], settings: Settings) -> tuple[bytes, bytes]:
    """The certificates, that of the key first, and the key: files may have been put together in any order."""
    import ssl

    for first, key in itertools.product(certificates, keys):
        chain = b"".join([first, *(each for each in certificates if each != first)])
        try:
            _show(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), chain, key)
        except ssl.SSLError as error:
            if error.reason not in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
                raise ConfigError(
                    f"cert {settings.cert} and key {settings.key} cannot be used: {error.reason or error}."
                ) from error
        else:
            return chain, key
    raise ConfigError(f"key {settings.key} is not the key of cert {settings.cert}.")


def _show(context: "ssl.SSLContext", chain: bytes, key: bytes) -> None:
    """Has the context show a certificate. Its library only reads files, so this one is in memory; raises ssl.SSLError."""
    if sys.platform != "linux":
        return
    descriptor = os.memfd_create("staddle", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, chain + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a handshake fails: a word to decide by, and a sentence."""

    kind: str
    message: str


def explain(
    host: str, port: int, identity: Identity | None, settings: Settings, detail: str
) -> Failure | None:
    """Why the connection failed of which gRPC says `detail`; None: not for a reason of TLS that can be found within seconds.

    `identity` None: the client does not use TLS.
    """
    if not _MAY_BE_TLS.search(detail):
        return None
    try:
        if identity is None:
            return _explain_plain(host, port)
        return _explain_tls(host, port, identity, settings)
    except OSError:  # also ssl.SSLError: it fails in another way than was looked for
        return None


def _explain_plain(host: str, port: int) -> Failure | None:
    with _connected(_unchecked(), host, port, host):
        return Failure(
            "tls",
            f"The server at {host}:{port} uses TLS, and ca is not set: set it to the file of the server's authority (STADDLE_CA, "
            "`ca` in client.toml).",
        )


def _explain_tls(host: str, port: int, identity: Identity, settings: Settings) -> Failure | None:
    import ssl

    where = f"The server at {host}:{port}"
    try:
        with _connected(_checked(identity), host, port, settings.server_name or host) as stream:
            # Since TLS 1.3 a client hears only now that its certificate is refused; else the server speaks first.
            if not stream.recv(1):
                return _client_refused(where, identity, settings)
    except ssl.SSLCertVerificationError as error:
        return _certificate_refused(where, host, port, error, settings)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in {
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "PACKET_LENGTH_TOO_LONG",
            "RECORD_LAYER_FAILURE",
        }:
            return Failure("plain", f"{where} does not use TLS: leave ca away, or use the port that has TLS.")
        if "ALERT" in reason:
            return _client_refused(where, identity, settings)
        return None
    except ConnectionError:
        return _client_refused(where, identity, settings)
    return None


def _client_refused(where: str, identity: Identity, settings: Settings) -> Failure:
    """What a server that ends the connection after the handshake has against its client."""
    if identity.chain is None:
        why = "it may ask for a certificate of the client. Set cert and key"
    elif _has_expired(settings.cert):
        why = f"the client's certificate {settings.cert} has expired. Renew it"
    else:
        why = f"it may not accept the client's certificate {settings.cert}. Use one of the authority that the server expects"
    return Failure("client-certificate", f"{where} ends the connection: {why}.")


def _certificate_refused(
    where: str, host: str, port: int, error: "ssl.SSLCertVerificationError", settings: Settings
) -> Failure:
    """Why the server's certificate is not accepted."""
    code = error.verify_code
    now = datetime.datetime.now(datetime.UTC)
    clock = f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC."
    if code in _OTHER_NAME:
        return Failure(
            "other-name",
            f"{where} shows a certificate for another name than {settings.server_name or host}: set server_name to a name that it has.",
        )
    if code in _UNKNOWN_AUTHORITY:
        trusted = "the public authorities" if settings.ca == SYSTEM_CA else f"ca {settings.ca}"
        return Failure(
            "unknown-authority",
            f"{where} shows a certificate that is not of {trusted}: is it the right server, and the right authority?",
        )
    if code not in {_EXPIRED, _NOT_YET_VALID}:
        return Failure("certificate", f"{where} shows a certificate that is refused: {error.verify_message}.")
    begins, ends = _dates_shown(host, port, settings.server_name or host)
    if code == _EXPIRED:
        if ends is not None and ends <= now:
            return Failure(
                "expired",
                f"The certificate of the server at {host}:{port} expired at {_shown(ends)}: renew it there. {clock}",
            )
        return Failure(
            "expired", f"{where} has a certificate of an authority that has expired: renew that. {clock}"
        )
    since = f" before {_shown(begins)}" if begins is not None and begins > now else " yet"
    return Failure(
        "not-yet-valid",
        f"The certificate of the server at {host}:{port} is not valid{since}: is the clock right? {clock}",
    )


def _shown(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _checked(identity: Identity) -> "ssl.SSLContext":
    """What gRPC checks."""
    import ssl

    if identity.trusted is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=identity.trusted.decode())
        # As gRPC does: a certificate that is itself trusted needs no authority.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    if identity.chain is not None and identity.key is not None:
        _show(context, identity.chain, identity.key)
    return context


def _unchecked() -> "ssl.SSLContext":
    """For looking at what a server shows; nothing is ever sent to it."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


@contextmanager
def _connected(context: "ssl.SSLContext", host: str, port: int, name: str) -> "Iterator[ssl.SSLSocket]":
    with (
        socket.create_connection((host, port), timeout=PROBE_S) as connection,
        context.wrap_socket(connection, server_hostname=name) as stream,
    ):
        yield stream


def _dates_shown(
    host: str, port: int, name: str
) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """From when and until when the server's own certificate is valid, where that can be seen."""
    try:
        with _connected(_unchecked(), host, port, name) as stream:
            return _dates(stream.getpeercert(binary_form=True) or b"")
    except OSError:
        return None, None


def _has_expired(path: str) -> bool:
    try:
        blocks = read_pem(path).blocks
    except GivenError:
        return False
    now = datetime.datetime.now(datetime.UTC)
    return any(ends is not None and ends <= now for _, ends in (_dates(block.der) for block in blocks))


def _dates(certificate: bytes) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """The validity in a certificate in DER."""
    found = _VALIDITY.search(certificate)
    if found is None:
        return None, None
    return _moment(found[1], found[2]), _moment(found[3], found[4])


def _moment(short: bytes | None, long: bytes | None) -> datetime.datetime | None:
    text = (long or b"").decode()
    if short is not None:
        # Two digits of a year are of 1950 to 2049 (RFC 5280).
        text = ("19" if short >= b"5" else "20") + short.decode()
    try:
        return datetime.datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None
