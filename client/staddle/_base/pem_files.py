"""Certificates and private keys from PEM files as people have them: copied, pasted, mounted, in the wrong file.

Reads what can only mean one thing: Windows line ends, a byte order mark, text around the blocks, indented blocks, blocks on one line,
certificates and key in one file. Names everything else, with the command that converts it. The same for the client's files and the server's.
"""

from pathlib import Path
from typing import Final, NamedTuple

from staddle._base.given_files import PIPE_S, GivenError, read, text_of
from staddle._base.pem_blocks import (
    CERTIFICATES,
    PEM_BYTES_MAX,
    PEM_IN_BASE64,
    BrokenBlockError,
    PemBlock,
    blocks_of,
    kind_of_binary,
)

_KEY: Final = "PRIVATE KEY"


class PemError(GivenError):
    """A file holds no certificate or key that can be used. The message names it and says why, without a full stop."""


class PemFile(NamedTuple):
    """The blocks of a file, and its mode."""

    path: str
    mode: int
    blocks: list[PemBlock]

    @property
    def has_certificate(self) -> bool:
        """Whether it has a certificate."""
        return any(block.label in CERTIFICATES for block in self.blocks)

    @property
    def has_key(self) -> bool:
        """Whether it has a private key."""
        return any(block.label.endswith(_KEY) for block in self.blocks)

    def certificates(self) -> list[PemBlock]:
        """The certificates, each once, in their order. Raises PemError if there are none."""
        if not self.has_certificate:
            raise PemError(f"{self.path} holds no certificate{self._instead()}")
        return list({block.der: block for block in self.blocks if block.label in CERTIFICATES}.values())

    def private_keys(self) -> list[PemBlock]:
        """The private keys. Raises PemError if there are none, or one needs a passphrase or is of SSH."""
        if not self.has_key:
            raise PemError(f"{self.path} holds no private key{self._instead()}")
        found = [block for block in self.blocks if block.label.endswith(_KEY)]
        if any(block.is_encrypted for block in found):
            raise PemError(
                f"{self.path} holds a private key with a passphrase: decrypt it with "
                f"`openssl pkey -in {self.path} -out NEW.key`, and keep that file readable by its owner only"
            )
        if any(block.label.startswith("OPENSSH") for block in found):
            raise PemError(f"{self.path} holds an SSH key: TLS needs the key that belongs to the certificate")
        return found

    def _instead(self) -> str:
        """What the file has instead."""
        labels = sorted({block.label for block in self.blocks})
        if len(labels) == 1 and labels[0].endswith("CERTIFICATE REQUEST"):
            return ", but a certificate request: use the certificate that the authority makes from it"
        return f", but: {', '.join(labels)}"


def read_pem(path: str | Path, *, pipe_s: float | None = PIPE_S) -> PemFile:
    """The blocks of a PEM file, at least one; `pipe_s` as in `read`. Raises GivenError."""
    data, mode = read(path, PEM_BYTES_MAX, "a PEM file", pipe_s=pipe_s)
    if not data.strip():
        raise PemError(f"{path} is empty, not a PEM file")
    if binary := kind_of_binary(data, path):
        raise PemError(f"{path} is not a PEM file, but {binary}")
    text = text_of(data, path)
    if PEM_IN_BASE64 in text:
        raise PemError(f"{path} is a PEM file in base64 once more: decode it with `base64 -d`")
    try:
        blocks = blocks_of(text)
    except BrokenBlockError as error:
        raise PemError(f"{path} {_words_of(error)}") from error
    if not blocks:
        raise PemError(f"{path} is not a PEM file")
    return PemFile(str(path), mode, blocks)


def are_swapped(certificate: PemFile, key: PemFile) -> bool:
    """Whether the file for the certificate holds the key alone, and the file for the key the certificate."""
    return certificate.has_key and key.has_certificate and not (certificate.has_certificate or key.has_key)


def _words_of(broken: BrokenBlockError) -> str:
    return {
        "begin": "has a line with BEGIN that no PEM file has",
        "end": f"is cut off: a block {broken.label} has no END line",
        "base64": f"is damaged: a block {broken.label} is not base64",
    }[broken.flaw]
