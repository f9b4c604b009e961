"""The HTTP listener of a server: its socket, its TLS, and the libraries that it needs."""

import contextlib
import importlib.util
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from typing import Final

from staddle_server.app.addresses import Address
from staddle_server.app.pem import TlsError
from staddle_server.app.service import Service
from staddle_server.app.settings import OperatorError
from staddle_server.app.tls import Identity, ServerCertificates
from staddle_server.app.unix_sockets import ListenError

LIBRARIES: Final = ("starlette", "uvicorn", "prometheus_client", "jinja2")
"""What the extra `http` installs."""


def check_libraries() -> None:
    """Raise OperatorError if the extra `http` is not installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise OperatorError(
            f"--http needs {' and '.join(missing)}, which this installation lacks: pip install 'staddle[http]'"
        )


class HttpDoor:
    """The place of the HTTP listener, taken before the server starts.

    Attributes:
        address: Where it listens, with its actual port.
        observer: Counts what the service does, for the metrics.

    """

    def __init__(
        self, address: Address, listening: socket.socket, certificates: ServerCertificates | None
    ) -> None:
        """Raises TlsError if OpenSSL does not take the certificates."""
        # The extra `http` may not be installed.
        from staddle_server.api.http.metrics import Metrics
        from staddle_server.api.http.server import Opening

        self.address = address.with_port(listening.getsockname()[1])
        self.observer = Metrics()
        tls = ends = None
        if certificates is not None:
            tls, ends = HttpTls(certificates), certificates.ends_s
        self._opening = Opening(listening, tls, self.observer, ends)

    def open(self, service: Service) -> None:
        """Let the service serve there. Raises ListenError."""
        try:
            service.start_http(self._opening)
        except OSError as error:
            raise _unusable(self.address, error) from error


@contextlib.contextmanager
def door_at(address: Address | None, certificates: ServerCertificates | None) -> Iterator[HttpDoor | None]:
    """Take the place of the HTTP listener, if the settings have one.

    Raises:
        ListenError: Another program has it, or this machine does not have that address.
        OperatorError: The extra `http` is not installed.
        TlsError: OpenSSL does not take the certificates.

    """
    if address is None:
        yield None
        return
    check_libraries()
    with _bound(address) as listening:
        yield HttpDoor(address, listening, certificates)


@contextlib.contextmanager
def _bound(address: Address) -> Iterator[socket.socket]:
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
    except OSError as error:
        raise _unusable(address, error) from error
    with made:
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
            made.bind(place)
        except OSError as error:
            raise _unusable(address, error) from error
        yield made


def _unusable(address: Address, error: OSError) -> ListenError:
    return ListenError(
        f"cannot listen on {address} for HTTP: {error.strerror or error}; choose another address with --http"
    )


class HttpTls:
    """The TLS context of new HTTP connections, from the same certificates as gRPC's."""

    def __init__(self, certificates: ServerCertificates) -> None:
        """Raises TlsError if OpenSSL does not take the certificates."""
        self._certificates = certificates
        self._lock = threading.Lock()
        self._identity = certificates.identity
        self._context = _context(self._identity)

    def __call__(self) -> ssl.SSLContext:
        """Return the context, with the files' newest usable content."""
        identity = self._certificates.identity
        with self._lock:
            if identity is not self._identity:
                self._identity, self._context = identity, _context(identity)
            return self._context


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        with _file_of(identity.key + identity.certificates) as path:
            context.load_cert_chain(path)
        if identity.client_ca is not None:
            context.load_verify_locations(cadata=identity.client_ca.decode())
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise TlsError(
            f"OpenSSL does not take the certificate {identity.files.certificate}: {error}"
        ) from error
    return context


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """Return a file with this content, for a library that reads only files; in memory where that is possible."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("staddle-tls"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.name
