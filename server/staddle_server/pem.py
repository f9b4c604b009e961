"""Certificates and private keys from PEM files as people have them: copied, pasted, mounted, in the wrong file.

Reads what can only mean one thing: Windows line ends, a byte order mark, text around the blocks, indented blocks, blocks on one line,
certificates and key in one file. Names everything else, with the command that converts it.
"""

from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from staddle._blocks import (
    CERTIFICATES,
    PEM_BYTES_MAX,
    PEM_IN_BASE64,
    Block,
    BrokenBlockError,
    blocks_of,
    kind_of_binary,
)

from staddle_server import given
from staddle_server.config import OperatorError

_KEY: Final = "PRIVATE KEY"
_OPENSSH: Final = "OPENSSH PRIVATE KEY"


class TlsError(OperatorError):
    """Certificates or keys cannot be used. The message names the file and says why."""


class PemFile(NamedTuple):
    """The blocks of a file."""

    path: Path
    blocks: list[Block]

    @property
    def has_certificate(self) -> bool:
        """Whether there is a certificate in it."""
        return any(block.label in CERTIFICATES for block in self.blocks)

    @property
    def has_key(self) -> bool:
        """Whether there is a private key in it."""
        return any(block.label.endswith(_KEY) for block in self.blocks)

    def certificates(self) -> list[x509.Certificate]:
        """The certificates, each once, in their order. Raises TlsError if there are none, or one is damaged."""
        try:
            found = [
                x509.load_der_x509_certificate(each.der) for each in self.blocks if each.label in CERTIFICATES
            ]
        except ValueError as error:
            raise TlsError(f"{self.path}: a certificate in it is damaged: {error}") from error
        if not found:
            raise TlsError(f"{self.path} holds no certificate in PEM{self._instead()}")
        return list(dict.fromkeys(found))

    def keys(self) -> list[PrivateKeyTypes]:
        """The private keys. Raises TlsError if there are none, or one is encrypted or damaged."""
        blocks = [block for block in self.blocks if block.label.endswith(_KEY)]
        if not blocks:
            raise TlsError(f"{self.path} is no private key in PEM{self._instead()}")
        return [self._key(block) for block in blocks]

    def _key(self, block: Block) -> PrivateKeyTypes:
        if block.is_encrypted:
            raise TlsError(
                f"{self.path} is no private key in PEM without a passphrase: decrypt it with "
                f"`openssl pkey -in {self.path} -out NEW.key`, and keep that file readable by its owner only"
            )
        if block.label == _OPENSSH:
            raise TlsError(f"{self.path} holds an SSH key: TLS needs the key that belongs to the certificate")
        try:
            return serialization.load_der_private_key(block.der, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TlsError(
                f"{self.path}: the private key in it is damaged, or of a kind that TLS does not use"
            ) from error

    def _instead(self) -> str:
        """What there is in place of what was looked for."""
        labels = sorted({block.label for block in self.blocks})
        if not labels:
            return ""
        if len(labels) == 1 and labels[0].endswith("CERTIFICATE REQUEST"):
            return ", but a certificate request: give what the authority answers to it"
        return f", but: {', '.join(labels)}"


def read(path: Path) -> PemFile:
    """The blocks of a PEM file. Raises TlsError."""
    try:
        # They are read again when they change, which a pipe cannot give.
        data = given.read(path, PEM_BYTES_MAX, "a certificate or key", pipe_s=None)
        if not data.strip():
            raise TlsError(f"{path} is empty")
        if binary := _binary(data, path):
            raise TlsError(f"{path} is not PEM, but {binary}")
        text = given.text_of(data, path)
    except given.GivenError as error:
        raise TlsError(str(error)) from error
    if PEM_IN_BASE64 in text:
        raise TlsError(f"{path} is a PEM file in base64 once more: decode it with `base64 -d`")
    try:
        return PemFile(path, blocks_of(text))
    except BrokenBlockError as error:
        raise TlsError(f"{path} {_words_of(error)}") from error


def to_pem(certificates: list[x509.Certificate]) -> bytes:
    """The certificates, as gRPC takes them."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def key_to_pem(key: PrivateKeyTypes) -> bytes:
    """A private key, as gRPC takes it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def chain(leaf: x509.Certificate, others: list[x509.Certificate]) -> list[x509.Certificate]:
    """The leaf, then each certificate's issuer as TLS wants them, then what does not belong to the chain."""
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


def _words_of(broken: BrokenBlockError) -> str:
    return {
        "begin": "has a line with BEGIN that no PEM file has",
        "end": f"is cut off: a block {broken.label} has no END line",
        "base64": f"is damaged: a block {broken.label} is not base64",
    }[broken.flaw]


def _binary(data: bytes, path: Path) -> str:
    """What a file is that holds no text, with the command that makes PEM of it; "": it may be PEM."""
    if data.startswith((b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")):
        return f"a Java key store: `keytool -importkeystore -srckeystore {path} -destkeystore NEW.p12 -deststoretype pkcs12`"
    return kind_of_binary(data, path)
