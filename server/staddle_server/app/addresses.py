"""Addresses and paths as operators write them."""

import os
import re
import urllib.parse
from pathlib import Path
from typing import Final, NamedTuple

from staddle._base.given_files import unquoted

UNIX_PREFIX: Final = "unix:"
ABSTRACT: Final = "@"
"""Other programs' notation for a socket without a file."""
UNIX_PATH_BYTES_MAX: Final = 107
"""The system's limit for a socket's path."""
LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost"})


class Address(NamedTuple):
    """A host and a port. The host of an IPv6 address has no brackets; port 0 requests a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_NAMES or self.host == "::1" or _is_loopback_ipv4(self.host)

    @property
    def is_wildcard(self) -> bool:
        return self.host in {"0.0.0.0", "::"}

    @property
    def target(self) -> str:
        """The address for gRPC."""
        return str(self)

    @property
    def picks_port(self) -> bool:
        return self.port == 0

    def with_port(self, port: int) -> "Address":
        return Address(self.host, port)


class UnixAddress(NamedTuple):
    """A Unix socket, by its absolute path. Only this machine can reach it, and its mode says who may."""

    path: str

    def __str__(self) -> str:
        return f"{UNIX_PREFIX}{self.path}"

    @property
    def target(self) -> str:
        """The address for gRPC, which reads the path as part of a URI."""
        return UNIX_PREFIX + urllib.parse.quote(self.path)

    @property
    def host(self) -> str:
        """Empty: a socket has no host."""
        return ""

    @property
    def is_loopback(self) -> bool:
        return True

    @property
    def is_wildcard(self) -> bool:
        return False

    @property
    def picks_port(self) -> bool:
        return False

    def with_port(self, _port: int) -> "UnixAddress":
        return self


def parse_address(text: str) -> Address | UnixAddress:
    """Parse HOST:PORT, with an IPv6 host in brackets, or unix:PATH. Raises ValueError."""
    socket = after_unix(text)
    if text.lower().startswith("unix-abstract:") or (socket or "").startswith(ABSTRACT):
        raise ValueError(
            "every user of this machine can connect to an abstract socket: use a path, as in unix:PATH"
            " (unix:./@NAME for a file whose name begins with @)"
        )
    if socket is not None:
        return UnixAddress(_socket_path(socket))
    match = re.fullmatch(
        r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]{1,253})):(?P<port>[0-9]{1,5})", text
    )
    if match is None:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:7443 or [::1]:7443, or unix:PATH")
    port = int(match["port"])
    if port > 65_535:
        raise ValueError("the highest port is 65535")
    return Address(match["v6"] or match["host"], port)


def after_unix(text: str) -> str | None:
    """Return what follows `unix:`, in any case; None if the text is not a Unix socket."""
    return text[len(UNIX_PREFIX) :] if text.lower().startswith(UNIX_PREFIX) else None


def _socket_path(text: str) -> str:
    """Return the absolute path of a socket. Raises ValueError."""
    if text.startswith("//"):
        if not text.startswith("///"):
            raise ValueError("a Unix socket has no host: use unix:PATH or unix:///PATH")
        text = text[2:]
    if not text or text.endswith("/"):
        raise ValueError("expected the path of a socket after unix:")
    if not text.isprintable():
        raise ValueError("a socket's path must be UTF-8 without control characters")
    path = str(parse_path(text))
    if (length := len(os.fsencode(path))) > UNIX_PATH_BYTES_MAX:
        raise ValueError(
            f"the system's limit for a socket's path is {UNIX_PATH_BYTES_MAX} bytes, and {path} has {length}: choose a shorter one"
        )
    return path


def parse_endpoint(text: str) -> Address | UnixAddress:
    """Parse an address that clients can connect to: neither port 0 nor a wildcard. Raises ValueError."""
    address = parse_address(text)
    if address.picks_port or address.is_wildcard:
        raise ValueError("clients connect to this address: give a host name and a port")
    return address


def parse_path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("a path cannot contain NUL")
    if not os.path.lexists(text):
        # A Windows line end, or quotes that Docker keeps from an env file.
        text = unquoted(text)
    if text.startswith("-----BEGIN "):
        raise ValueError("expected the name of a file, not its content")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError("this home directory does not exist") from error


def _is_loopback_ipv4(host: str) -> bool:
    return re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None
