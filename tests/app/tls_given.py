"""Certificates, keys and a server that uses them, for the tests of TLS."""

import datetime
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health as health_service
from grpc_health.v1 import health_pb2_grpc
from staddle_server.app import certificates as certs
from staddle_server.app import tls
from staddle_server.app.addresses import Address

NOW = datetime.datetime.now(datetime.UTC)


DAY = datetime.timedelta(days=1)


def make_certificates(directory: Path) -> Path:
    """An authority, a server's certificate and two clients', in this new directory."""
    certs.make(directory, ["backup.example.org", "192.0.2.7"], ["web1", "web2"], 30, NOW)
    return directory


@contextmanager
def serving(files: tls.TlsFiles) -> Iterator[Address]:
    """A health service with these files on a free port of loopback."""
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(health_service.HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", tls.ServerCertificates(files).credentials())
    server.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        server.stop(0).wait()
        pool.shutdown()


def files(directory: Path, *, mutual: bool = False) -> tls.TlsFiles:
    return tls.TlsFiles(
        directory / "server.crt", directory / "server.key", directory / "ca.crt" if mutual else None
    )


def as_given(directory: Path, certificate: bytes, key: bytes) -> tls.TlsFiles:
    """The two as files; without the server's own key."""
    (directory / "given.crt").write_bytes(certificate)
    (directory / "given.key").write_bytes(key)
    return tls.TlsFiles(directory / "given.crt", directory / "given.key", None)


def alternative(host: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(host)])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if record.levelno >= logging.WARNING
    ]
    caplog.clear()
    return found
