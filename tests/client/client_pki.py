"""A private certificate authority, and a server with a certificate from it."""

import datetime
import ipaddress
import pathlib

import grpc
from memory_service import MemoryService, Running, start


class Authority:
    """A private CA, and the certificates that it signs."""

    def __init__(self, directory: pathlib.Path, name: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self._directory = directory
        directory.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name
        self.certificate = self._sign(name, self._key, ca=True)
        self.file = directory / "ca.pem"
        self.file.write_bytes(_pem(self.certificate))

    def issue(
        self, name: str, *, begins_h: float = -1, ends_h: float = 1
    ) -> tuple[pathlib.Path, pathlib.Path]:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        cert_file, key_file = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert_file.write_bytes(_pem(self._sign(name, key, ca=False, begins_h=begins_h, ends_h=ends_h)))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file

    def _sign(self, name: str, key, *, ca: bool, begins_h: float = -1, ends_h: float = 1):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        alternatives = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if name == "other-name":
            alternatives = alternatives[:1]
        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(self._name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(hours=begins_h))
            .not_valid_after(now + datetime.timedelta(hours=ends_h))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _pem(certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def serve_tls(
    authority: Authority,
    name: str = "server",
    *,
    mutual: bool = False,
    begins_h: float = -1,
    ends_h: float = 1,
    address: str = "",
) -> Running:
    """A server with a certificate of the authority, with its validity in hours from now."""
    cert, key = authority.issue(name, begins_h=begins_h, ends_h=ends_h)
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())],
        root_certificates=authority.file.read_bytes() if mutual else None,
        require_client_auth=mutual,
    )
    memory = MemoryService()
    server, listening = start(memory, address, credentials)
    return Running(memory, listening, server)
