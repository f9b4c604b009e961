"""The blocks of a PEM file, and what a file is that has none: the same for the client's files and the server's."""

import base64
import binascii
import re
from typing import Final, Literal, NamedTuple

CERTIFICATES: Final = frozenset({"CERTIFICATE", "X509 CERTIFICATE"})
BEGIN: Final = "-----BEGIN "
PEM_BYTES_MAX: Final = 1024 * 1024
PEM_IN_BASE64: Final = "LS0tLS1CRUdJTi"
"""How base64 of a PEM file begins."""
_LABEL: Final = re.compile(r"[A-Z0-9 ]{1,40}")
_HEADER: Final = re.compile(r"[A-Za-z-]+:.*\n(?:[ \t].*\n)*")
_DER_HEAD: Final = re.compile(rb"\x30(?:\x82..|\x81.|[\x00-\x7f])(.)(.)?(.)?", re.DOTALL)
_JAVA_HEADS: Final = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")
_SEQUENCE: Final = b"\x30"
_INTEGER: Final = b"\x02"
_OBJECT: Final = b"\x06"


class BrokenBlockError(ValueError):
    """A block is not whole.

    Attributes:
        flaw: "begin": a BEGIN line is none of PEM; "end": the block has no END line; "base64": its body is none.
        label: What kind of block it is; "" with "begin".

    """

    def __init__(self, flaw: Literal["begin", "end", "base64"], label: str = "") -> None:
        super().__init__(flaw, label)
        self.flaw = flaw
        self.label = label


class PemBlock(NamedTuple):
    """One block of a PEM file."""

    label: str
    der: bytes
    is_encrypted: bool

    @property
    def pem(self) -> bytes:
        """The block alone, as libraries take it."""
        text = base64.b64encode(self.der).decode()
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        label = "CERTIFICATE" if self.label in CERTIFICATES else self.label
        return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()


def blocks_of(text: str) -> list[PemBlock]:
    """All blocks, also indented, on one line, and with other text around them. Raises BrokenBlockError."""
    # Line ends that a variable or a JSON string has kept as two characters.
    text = text.replace("\\r", "").replace("\\n", "\n")
    blocks = []
    position = text.find(BEGIN)
    while position >= 0:
        begin = position + len(BEGIN)
        label, dashes, _ = text[begin : begin + 64].partition("-----")
        if not dashes or _LABEL.fullmatch(label) is None:
            raise BrokenBlockError("begin")
        begin += len(label) + len(dashes)
        end = text.find(f"-----END {label}-----", begin)
        position = text.find(BEGIN, begin)
        if end < 0 or 0 <= position < end:
            raise BrokenBlockError("end", label)
        blocks.append(_block(label, text[begin:end]))
    return blocks


def _block(label: str, body: str) -> PemBlock:
    lines = "\n".join(line.strip() for line in body.strip().split("\n")) + "\n"
    headers = ""
    while (header := _HEADER.match(lines)) is not None:
        headers += header[0]
        lines = lines[header.end() :]
    try:
        der = base64.b64decode("".join(lines.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BrokenBlockError("base64", label) from error
    return PemBlock(label, der, label.startswith("ENCRYPTED") or "ENCRYPTED" in headers)


def kind_of_binary(data: bytes, path: object) -> str:
    """What the file `path` is that holds no text, with the command that makes PEM of it; "": it may be PEM."""
    if data.startswith(_JAVA_HEADS):
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
