"""Certificates and private keys from PEM files as people have them: copied, pasted, mounted, in the wrong file.

Reads what can only mean one thing: Windows line ends, a byte order mark, text around the blocks, indented blocks, blocks on one line,
certificates and key in one file. Names everything else, with the command that converts it.
"""

import base64
import binascii
import re
from typing import Final, NamedTuple

from staddle._errors import ConfigError
from staddle._given import read, text_of

PEM_BYTES_MAX: Final = 1024 * 1024
_BEGIN: Final = "-----BEGIN "
_LABEL: Final = re.compile(r"[A-Z0-9 ]{1,40}")
_HEADER: Final = re.compile(r"[A-Za-z-]+:.*\n(?:[ \t].*\n)*")
_CERTIFICATES: Final = frozenset({"CERTIFICATE", "X509 CERTIFICATE"})
_KEY: Final = "PRIVATE KEY"


class Block(NamedTuple):
    """One block of a PEM file."""

    label: str
    der: bytes
    is_encrypted: bool

    @property
    def pem(self) -> bytes:
        """The block alone, as libraries take it."""
        text = base64.b64encode(self.der).decode()
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        label = "CERTIFICATE" if self.label in _CERTIFICATES else self.label
        return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()


class PemFile(NamedTuple):
    """The blocks of a file that the setting `name` names."""

    name: str
    path: str
    blocks: list[Block]

    def certificates(self) -> list[bytes]:
        """The certificates, each once, in their order. Raises ConfigError if there are none."""
        found = [each.pem for each in self.blocks if each.label in _CERTIFICATES]
        if not found:
            raise self._error(f"holds no certificate{self._instead()}")
        return list(dict.fromkeys(found))

    def private_key(self) -> bytes:
        """The first private key. Raises ConfigError if there is none, or it is encrypted."""
        block = next((each for each in self.blocks if each.label.endswith(_KEY)), None)
        if block is None:
            raise self._error(f"holds no private key{self._instead()}")
        if block.is_encrypted:
            raise self._error(
                f"holds a private key with a passphrase: decrypt it with `openssl pkey -in {self.path} -out NEW.key`, and keep that "
                "file readable by its owner only"
            )
        if block.label.startswith("OPENSSH"):
            raise self._error("holds an SSH key: TLS needs the key that belongs to the certificate")
        return block.pem

    def _instead(self) -> str:
        labels = sorted({block.label for block in self.blocks})
        if any(label.endswith(_KEY) for label in labels) and self.name == "cert":
            return ", but a private key: are cert and key swapped?"
        if self.name == "key" and set(labels) <= _CERTIFICATES:
            return ", but a certificate: are cert and key swapped?"
        return f", but: {', '.join(labels)}"

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"{self.name} {self.path} {what}.", facts={"path": self.path})


def read_pem(name: str, path: str) -> PemFile:
    """The blocks of the PEM file that the setting `name` names. Raises ConfigError."""
    if _BEGIN in path:
        raise ConfigError(f"{name} must name a file, and what was given is a certificate or key itself.")
    data, _ = read(path, PEM_BYTES_MAX, "a PEM file")
    if not data.strip():
        raise ConfigError(f"{name} {path} is empty, not a PEM file.", facts={"path": path})
    if binary := _binary(data, path):
        raise ConfigError(f"{name} {path} is not a PEM file, but {binary}.", facts={"path": path})
    text = text_of(data, path)
    if "LS0tLS1CRUdJTi" in text:
        raise ConfigError(
            f"{name} {path} is a PEM file in base64 once more: decode it with `base64 -d`.",
            facts={"path": path},
        )
    try:
        blocks = _blocks(text)
    except ValueError as error:
        raise ConfigError(f"{name} {path} is a damaged PEM file: {error}.", facts={"path": path}) from error
    if not blocks:
        raise ConfigError(f"{name} {path} is not a PEM file.", facts={"path": path})
    return PemFile(name, path, blocks)


def _blocks(text: str) -> list[Block]:
    """Raises ValueError for a block that is not whole."""
    # Line ends that a variable or a JSON string has kept as two characters.
    text = text.replace("\\r", "").replace("\\n", "\n")
    blocks = []
    position = text.find(_BEGIN)
    while position >= 0:
        begin = position + len(_BEGIN)
        label, dashes, _ = text[begin : begin + 64].partition("-----")
        if not dashes or _LABEL.fullmatch(label) is None:
            raise ValueError("a line with BEGIN is not one of PEM")
        begin += len(label) + len(dashes)
        end = text.find(f"-----END {label}-----", begin)
        position = text.find(_BEGIN, begin)
        if end < 0 or 0 <= position < end:
            raise ValueError(f"it is cut off, as a block {label} has no END line")
        blocks.append(_block(label, text[begin:end]))
    return blocks


def _block(label: str, body: str) -> Block:
    lines = "\n".join(line.strip() for line in body.strip().split("\n")) + "\n"
    headers = ""
    while (header := _HEADER.match(lines)) is not None:
        headers += header[0]
        lines = lines[header.end() :]
    try:
        der = base64.b64decode("".join(lines.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a block {label} is not base64") from error
    return Block(label, der, label.startswith("ENCRYPTED") or "ENCRYPTED" in headers)


_DER_HEAD: Final = re.compile(rb"\x30(?:\x82..|\x81.|[\x00-\x7f])(.)(.)?(.)?", re.DOTALL)
_SEQUENCE: Final = b"\x30"
_INTEGER: Final = b"\x02"
_OBJECT: Final = b"\x06"


def _binary(data: bytes, path: str) -> str:
    """What a file is that holds no text, with the command that makes PEM of it; "": it may be PEM."""
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
