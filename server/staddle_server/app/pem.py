"""Certificates and private keys of a server, from the PEM files that `staddle._base.pem_files` reads."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from staddle._base.given_files import GivenError
from staddle._base.pem_blocks import PemBlock
from staddle._base.pem_files import PemFile, read_pem

from staddle_server.app.settings import OperatorError


class TlsError(OperatorError):
    """Certificates or keys are unusable. The message names the file and says why."""


def read(path: Path) -> PemFile:
    """Return the blocks of a PEM file. Raises TlsError."""
    try:
        return read_pem(path, pipe_s=None)  # it is read again when it changes, which a pipe cannot support
    except GivenError as error:
        raise TlsError(str(error)) from error


def certificates_in(file: PemFile) -> list[x509.Certificate]:
    """Return the certificates, each once, in order. Raises TlsError without any, or for a damaged one."""
    try:
        return [x509.load_der_x509_certificate(block.der) for block in file.certificates()]
    except GivenError as error:
        raise TlsError(str(error)) from error
    except ValueError as error:
        raise TlsError(f"{file.path}: a certificate in it is damaged: {error}") from error


def keys_in(file: PemFile) -> list[PrivateKeyTypes]:
    """Return the private keys. Raises TlsError without any, or for an unusable one."""
    try:
        return [_key(file, block) for block in file.private_keys()]
    except GivenError as error:
        raise TlsError(str(error)) from error


def _key(file: PemFile, block: PemBlock) -> PrivateKeyTypes:
    try:
        return serialization.load_der_private_key(block.der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError(
            f"{file.path}: the private key in it is damaged, or of a kind that TLS does not use"
        ) from error


def to_pem(certificates: list[x509.Certificate]) -> bytes:
    """Return the certificates in gRPC's form."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def key_to_pem(key: PrivateKeyTypes) -> bytes:
    """Return a private key in gRPC's form."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def chain(leaf: x509.Certificate, others: list[x509.Certificate]) -> list[x509.Certificate]:
    """Return the leaf, then each certificate's issuer in TLS order, then the rest."""
    ordered, rest = [leaf], [each for each in others if each != leaf]
    while (issuer := next((each for each in rest if _issued(ordered[-1], each)), None)) is not None:
        ordered.append(issuer)
        rest.remove(issuer)
    return ordered + rest


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
