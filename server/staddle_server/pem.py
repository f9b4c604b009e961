"""Certificates and private keys from PEM files as people have them: copied, pasted, mounted, in the wrong file.

Reads what can only mean one thing: Windows line ends, a byte order mark, text around the blocks, indented blocks, blocks on one line,
certificates and key in one file. Names everything else, with the command that converts it.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from staddle_server import given
from staddle_server.config import OperatorError

PEM_BYTES_MAX: Final = 1024 * 1024
_BEGIN: Final = "-----BEGIN "
_LABEL: Final = re.compile(r"[A-Z0-9 ]{1,40}")
_HEADER: Final = re.compile(r"[A-Za-z-]+:.*\n(?:[ \t].*\n)*")
_CERTIFICATES: Final = frozenset({"CERTIFICATE", "X509 CERTIFICATE"})
_KEY: Final = "PRIVATE KEY"
_ENCRYPTED: Final = "ENCRYPTED PRIVATE KEY"
_OPENSSH: Final = "OPENSSH PRIVATE KEY"


class TlsError(OperatorError):
    """Certificates or keys cannot be used. The message names the file and says why."""


class Block(NamedTuple):
    """One block of a PEM file."""

    label: str
    der: bytes
    is_encrypted: bool


class PemFile(NamedTuple):
    """The blocks of a file."""

    path: Path
    blocks: list[Block]

    @property
    def has_certificate(self) -> bool:
        """Whether there is a certificate in it."""
        return any(block.label in _CERTIFICATES for block in self.blocks)

    @property
    def has_key(self) -> bool:
        """Whether there is a private key in it."""
        return any(block.label.endswith(_KEY) for block in self.blocks)

    def certificates(self) -> list[x509.Certificate]:
        """The certificates, each once, in their order. Raises TlsError if there are none, or one is damaged."""
        try:
            found = [
                x509.load_der_x509_certificate(each.der)
                for each in self.blocks
                if each.label in _CERTIFICATES
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
    if "LS0tLS1CRUdJTi" in text:
        raise TlsError(f"{path} is a PEM file in base64 once more: decode it with `base64 -d`")
    return PemFile(path, _blocks(text, path))


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


def _blocks(text: str, path: Path) -> list[Block]:
    # Line ends that a variable or a JSON string has kept as two characters.
    text = text.replace("\\r", "").replace("\\n", "\n")
    blocks = []
    position = text.find(_BEGIN)
    while position >= 0:
        begin = position + len(_BEGIN)
        label, dashes, _ = text[begin : begin + 64].partition("-----")
        if not dashes or _LABEL.fullmatch(label) is None:
            raise TlsError(f"{path} has a line with BEGIN that no PEM file has")
        begin += len(label) + len(dashes)
        end = text.find(f"-----END {label}-----", begin)
        position = text.find(_BEGIN, begin)
        if end < 0 or 0 <= position < end:
            raise TlsError(f"{path} is cut off: a block {label} has no END line")
        blocks.append(_block(label, text[begin:end], path))
    return blocks


def _block(label: str, body: str, path: Path) -> Block:
    lines = "\n".join(line.strip() for line in body.strip().split("\n")) + "\n"
    headers = ""
    while (header := _HEADER.match(lines)) is not None:
        headers += header[0]
        lines = lines[header.end() :]
    try:
        der = base64.b64decode("".join(lines.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise TlsError(f"{path} is damaged: a block {label} is not base64") from error
    return Block(label, der, label == _ENCRYPTED or "ENCRYPTED" in headers)


_DER_HEAD: Final = re.compile(rb"\x30(?:\x82..|\x81.|[\x00-\x7f])(.)(.)?(.)?(.)?", re.DOTALL)
_SEQUENCE: Final = b"\x30"
_INTEGER: Final = b"\x02"
_OBJECT: Final = b"\x06"


def _binary(data: bytes, path: Path) -> str:
    """What a file is that holds no text, with the command that makes PEM of it; "": it may be PEM."""
    if data.startswith((b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")):
        return f"a Java key store: `keytool -importkeystore -srckeystore {path} -destkeystore NEW.p12 -deststoretype pkcs12`"
    head = _DER_HEAD.match(data)
    if head is None or data.isascii():
        return ""
    first, length, number = head[1], head[2], head[3]
    if first == _INTEGER and length == b"\x01" and number == b"\x03":
        return f"a PKCS#12 file: convert it with `openssl pkcs12 -in {path} -nodes -out NEW.pem`"
    if first == _INTEGER:
        return f"a private key in DER: convert it with `openssl pkey -inform DER -in {path} -out NEW.key`"
    if first == _OBJECT:
        return f"PKCS#7: convert it with `openssl pkcs7 -inform DER -print_certs -in {path} -out NEW.pem`"
    if first == _SEQUENCE:
        return f"a certificate in DER: convert it with `openssl x509 -inform DER -in {path} -out NEW.pem`"
    return ""
