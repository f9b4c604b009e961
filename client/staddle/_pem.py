"""Certificates and private keys from PEM files as people have them: copied, pasted, mounted, in the wrong file.

Reads what can only mean one thing: Windows line ends, a byte order mark, text around the blocks, indented blocks, blocks on one line,
certificates and key in one file. Names everything else, with the command that converts it.
"""

import logging
import stat
from typing import Final, NamedTuple

from staddle._blocks import (
    BEGIN,
    CERTIFICATES,
    PEM_BYTES_MAX,
    PEM_IN_BASE64,
    Block,
    BrokenBlockError,
    blocks_of,
    kind_of_binary,
)
from staddle._errors import ConfigError
from staddle._given import read, text_of

_log = logging.getLogger("staddle")
_warned: set[str] = set()
_KEY: Final = "PRIVATE KEY"


class PemFile(NamedTuple):
    """The blocks of a file that the setting `name` names."""

    name: str
    path: str
    blocks: list[Block]

    def certificates(self) -> list[bytes]:
        """The certificates, each once, in their order. Raises ConfigError if there are none."""
        found = [each.pem for each in self.blocks if each.label in CERTIFICATES]
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
        if self.name == "key" and set(labels) <= CERTIFICATES:
            return ", but a certificate: are cert and key swapped?"
        return f", but: {', '.join(labels)}"

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"{self.name} {self.path} {what}.", facts={"path": self.path})


def read_pem(name: str, path: str) -> PemFile:
    """The blocks of the PEM file that the setting `name` names. Raises ConfigError."""
    if BEGIN in path:
        raise ConfigError(f"{name} must name a file, and what was given is a certificate or key itself.")
    data, mode = read(path, PEM_BYTES_MAX, "a PEM file")
    if name == "key" and mode & stat.S_IROTH and path not in _warned:
        _warned.add(path)
        _log.warning("key %s is a private key, and others can read it: chmod 600 it.", path)
    if not data.strip():
        raise ConfigError(f"{name} {path} is empty, not a PEM file.", facts={"path": path})
    if binary := kind_of_binary(data, path):
        raise ConfigError(f"{name} {path} is not a PEM file, but {binary}.", facts={"path": path})
    text = text_of(data, path)
    if PEM_IN_BASE64 in text:
        raise ConfigError(
            f"{name} {path} is a PEM file in base64 once more: decode it with `base64 -d`.",
            facts={"path": path},
        )
    try:
        blocks = blocks_of(text)
    except BrokenBlockError as error:
        raise ConfigError(
            f"{name} {path} is a damaged PEM file: {_words_of(error)}.", facts={"path": path}
        ) from error
    if not blocks:
        raise ConfigError(f"{name} {path} is not a PEM file.", facts={"path": path})
    return PemFile(name, path, blocks)


def _words_of(broken: BrokenBlockError) -> str:
    return {
        "begin": "a line with BEGIN is not one of PEM",
        "end": f"it is cut off, as a block {broken.label} has no END line",
        "base64": f"a block {broken.label} is not base64",
    }[broken.flaw]
