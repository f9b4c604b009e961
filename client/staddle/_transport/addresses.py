"""Addresses of servers: read, compared, and looked up.

A setting may name several servers of one service, and a name may have several addresses.
"""

import ipaddress
import os
import socket
import sys
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from staddle._base.figures import counted
from staddle._errors import ConfigError
from staddle._transport.settings import ABSTRACT, UNIX_PREFIX, after_unix, split_servers

DEFAULT_PORT: Final = 7443
ADDRESSES_MAX: Final = 16
"""Of one setting, and of one name."""
UNIX_PATH_BYTES_MAX: Final = 107 if sys.platform == "linux" else 103
"""What the system takes of a socket's path."""
PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""With one of these, a proxy looks the names up."""
Lookup = Callable[[str, int], list[str]]
"""The IP addresses of a name; takes a port, too. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's host and port, or the absolute path of its Unix socket."""

    host: str
    port: int
    path: str = ""
    name: str = ""
    """The name that was looked up, where `host` is one of its IP addresses. The server's certificate is for the name."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads HOST, HOST:PORT, [IPV6], [IPV6]:PORT or unix:PATH. Raises ConfigError."""
        socket = after_unix(text)
        if socket is not None:
            return cls("", 0, _socket_path(text, socket))
        host, port = text, ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise _bad_address(text)
            port = rest[1:]
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        if not host or any(letter.isspace() or letter in "/@?#%,[]" for letter in host):
            raise _bad_address(text)
        if not port:
            return cls(host, DEFAULT_PORT)
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise _bad_address(text)
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether it is this machine, and cannot be another one."""
        if self.path or self.host == "localhost":
            return True
        return _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback

    @property
    def target(self) -> str:
        """How gRPC names it: it reads a path as a part of a URI."""
        return UNIX_PREFIX + urllib.parse.quote(self.path) if self.path else str(self)

    @property
    def place(self) -> tuple[str, int, str]:
        """What two spellings of one address have in common."""
        host = str(ipaddress.ip_address(self.host)) if _is_ip(self.host) else self.host.lower()
        return host, self.port, self.path

    @property
    def has_name(self) -> bool:
        """Whether its host is a name that may stand for several machines."""
        return not self.path and not self.loopback and not _is_ip(self.host)

    def __str__(self) -> str:
        if self.path:
            return UNIX_PREFIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _bad_address(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a server's address: write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}, or unix:PATH."
    )


def _socket_path(text: str, path: str) -> str:
    """The absolute path in `text`, which is unix:PATH or unix:///PATH; `path` is what follows the prefix."""
    if path.startswith(ABSTRACT):
        raise ConfigError(
            f"{text!r} names an abstract socket, and no server listens on one: write unix:PATH (unix:./@NAME for a file whose name "
            "begins with @)."
        )
    if path.startswith("//"):
        path = path[2:] if path.startswith("///") else ""
    if not path or path.endswith("/") or not path.isprintable():
        raise _bad_address(text)
    path = os.path.abspath(os.path.expanduser(path))
    if (length := len(os.fsencode(path))) > UNIX_PATH_BYTES_MAX:
        raise ConfigError(
            f"{UNIX_PREFIX}{path} is not a server's address: the system takes at most {UNIX_PATH_BYTES_MAX} bytes as a socket's path, "
            f"and this one has {length}."
        )
    return path


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def addresses_of(text: str) -> tuple[Address, ...]:
    """The addresses of the setting `server`: one, or several with commas between them, of servers of one service.

    Raises ConfigError for what is no address, for one that stands there twice, and for more than ADDRESSES_MAX.
    """
    parts = split_servers(text)
    if len(parts) > 1 and not all(parts):
        raise ConfigError(
            f"server {text!r} has a comma without an address beside it: write HOST:PORT,HOST:PORT."
        )
    if len(parts) > ADDRESSES_MAX:
        raise ConfigError(
            f"server has {counted(len(parts), 'address', 'addresses')}: give at most {ADDRESSES_MAX}."
        )
    addresses = tuple(map(Address.parse, parts))
    places = [address.place for address in addresses]
    for number, address in enumerate(addresses):
        if address.place in places[:number]:
            raise ConfigError(f"server has the address {address} twice: give each server once.")
    if len({bool(address.path) for address in addresses}) > 1:
        raise ConfigError(
            f"server {text!r} mixes Unix sockets and HOST:PORT: a Unix socket reaches one server of this machine, so name it alone. "
            "The path of a socket has no comma."
        )
    return addresses


def look_up(name: str, port: int) -> list[str]:
    """The IP addresses of a name, each once, in the order in which the system prefers them. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def expanded(address: Address, lookup: Lookup = look_up) -> tuple[Address, ...]:
    """The servers behind a name: one address for each record, or just `address`.

    A name with one IPv4 and one IPv6 address is one server. A name that cannot be looked up is left to gRPC, which says why.
    """
    if not address.has_name or any(os.environ.get(each) for each in PROXY_VARIABLES):
        return (address,)
    try:
        hosts = lookup(address.host, address.port)
    except (OSError, UnicodeError):
        return (address,)
    six = sum(":" in host for host in hosts)
    if max(six, len(hosts) - six) < 2:
        return (address,)
    return tuple(Address(host, address.port, name=address.host) for host in hosts[:ADDRESSES_MAX])
