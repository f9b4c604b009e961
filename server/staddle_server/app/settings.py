"""The server's settings: from flags, then the environment, then a TOML file, then defaults.

One table, OPTIONS, holds them all; the command line, the environment and the file are read through it, and
docs/operations.md lists it (a test compares). Nothing below `app` looks at the environment.
"""

import difflib
import os
import re
import tomllib
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from staddle._base.figures import duration, duration_s, percent, size_bytes
from staddle._base.given_files import PIPE_S, GivenError, read, text_of, unquoted

from staddle_server.base import limits
from staddle_server.store.space import MinFree

VARIABLE_PREFIX: Final = "STADDLED_"
CONFIG_VARIABLE: Final = "STADDLED_CONFIG"
CONFIG_NAME: Final = "server.toml"
CONFIG_BYTES_MAX: Final = 1024 * 1024
UNIX_PREFIX: Final = "unix:"
ABSTRACT: Final = "@"
"""How other programs write a socket without a file."""
UNIX_PATH_BYTES_MAX: Final = 107
"""What the system takes of a socket's path."""
LISTEN_DEFAULT: Final = "127.0.0.1:7443"
LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
LOG_FORMATS: Final = ("auto", "json", "text")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LEVEL_NAMES: Final = {"warn": "warning", "err": "error"}
"""What other programs call them."""


class OperatorError(Exception):
    """Something that whoever runs the server must mend. The message says what, and how."""


class SettingsError(OperatorError):
    """A setting is unknown, malformed or missing. The message names it, and where it came from."""


class Address(NamedTuple):
    """A host and a port. The host of an IPv6 address has no brackets; port 0 asks for a free one."""

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
        """How gRPC names it."""
        return str(self)

    @property
    def picks_port(self) -> bool:
        return self.port == 0

    def with_port(self, port: int) -> "Address":
        return Address(self.host, port)


class UnixAddress(NamedTuple):
    """A Unix socket, by its absolute path. Only this machine reaches it, and its mode says who there does."""

    path: str

    def __str__(self) -> str:
        return f"{UNIX_PREFIX}{self.path}"

    @property
    def target(self) -> str:
        """How gRPC names it: it reads the path as a part of a URI."""
        return UNIX_PREFIX + urllib.parse.quote(self.path)

    @property
    def host(self) -> str:
        """A socket has none."""
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


@dataclass(frozen=True)
class Settings:
    """What a server runs with. Times are seconds."""

    data: Path
    listen: Address | UnixAddress
    socket_mode: int
    endpoint: Address | UnixAddress | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    streams_max: int
    lease_s: float
    upload_life_s: float
    drain_s: float
    retention_every_s: float
    parity_percent: int
    gc_every_s: float
    min_free: MinFree
    scrub_period_s: float
    scrub_bytes_per_s: int
    log_format: str
    log_level: str


class Option(NamedTuple):
    """One setting: `field` of Settings, `name` on the command line (`--name`), in the file, and, in capitals, in the environment."""

    field: str
    name: str
    metavar: str
    parse: Callable[[str], object]
    default: str
    help: str

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.name.upper().replace("-", "_")

    @property
    def key(self) -> str:
        """Its name in the file."""
        return self.name.replace("-", "_")


def parse_address(text: str) -> Address | UnixAddress:
    """HOST:PORT, with an IPv6 host in brackets, or unix:PATH. Raises ValueError."""
    socket = _after_unix(text)
    if text.lower().startswith("unix-abstract:") or (socket or "").startswith(ABSTRACT):
        raise ValueError(
            "every user of this machine can connect to an abstract socket: name a path, as in unix:PATH"
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
        raise ValueError("a port is at most 65535")
    return Address(match["v6"] or match["host"], port)


def _after_unix(text: str) -> str | None:
    """What follows `unix:`, in any case; None: it is no Unix socket."""
    return text[len(UNIX_PREFIX) :] if text.lower().startswith(UNIX_PREFIX) else None


def _socket_path(text: str) -> str:
    """The absolute path of a socket. Raises ValueError."""
    if text.startswith("//"):
        if not text.startswith("///"):
            raise ValueError("a Unix socket has no host: write unix:PATH or unix:///PATH")
        text = text[2:]
    if not text or text.endswith("/"):
        raise ValueError("expected the path of a socket after unix:")
    if not text.isprintable():
        raise ValueError("a socket's path is UTF-8 without control characters")
    path = str(parse_path(text))
    if (length := len(os.fsencode(path))) > UNIX_PATH_BYTES_MAX:
        raise ValueError(
            f"the system takes at most {UNIX_PATH_BYTES_MAX} bytes as a socket's path, and {path} has {length}: choose a shorter one"
        )
    return path


def parse_endpoint(text: str) -> Address | UnixAddress:
    """An address that clients can connect to: neither port 0 nor a wildcard. Raises ValueError."""
    address = parse_address(text)
    if address.picks_port or address.is_wildcard:
        raise ValueError("clients connect to this address: it needs a host name and a port")
    return address


def parse_mode(text: str) -> int:
    """A mode in octal that lets the owner read and write, such as 0660. Raises ValueError."""
    if re.fullmatch(r"(0o?)?[0-7]{3}", text) is None or int(text[-3:], 8) & 0o600 != 0o600:
        raise ValueError("expected a mode in octal that lets the owner read and write, such as 0660 or 0600")
    return int(text[-3:], 8)


def parse_min_free(text: str) -> MinFree:
    """Reads "auto", a size, or a part such as "2%". Raises ValueError."""
    text = text.strip()
    if text.lower() == "auto":
        return MinFree()
    try:
        if text.endswith("%"):
            return MinFree(part=percent(text) / 100)
        return MinFree(size_bytes=size_bytes(text))
    except ValueError:
        raise ValueError("use auto, a size such as 256MiB, or a part of the disk such as 2%") from None


def _size(least_bytes: int) -> Callable[[str], int]:
    return lambda text: size_bytes(text, least_bytes)


def _duration(least_s: float, most_s: float) -> Callable[[str], float]:
    return lambda text: duration_s(text, least_s, most_s, bare=True)


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,9}", text) is None or not least <= int(text) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return int(text)

    return parse


def _one_of(*words: str, also: Mapping[str, str] = MappingProxyType({})) -> Callable[[str], str]:
    """One of the words in any case, or another name of it."""

    def parse(text: str) -> str:
        word = also.get(text.lower(), text.lower())
        if word not in words:
            raise ValueError("expected " + " or ".join(words))
        return word

    return parse


def parse_path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("a path cannot hold NUL")
    if not os.path.lexists(text):
        # A line end of Windows, or quotes that an env file of Docker keeps.
        text = unquoted(text)
    if text.startswith("-----BEGIN "):
        raise ValueError("expected the name of a file, not what is in it")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError("there is no such home directory") from error


OPTIONS: Final = (
    Option("data", "data", "DIR", parse_path, "", "Data directory: keys, catalog and store."),
    Option(
        "listen",
        "listen",
        "HOST:PORT|unix:PATH",
        parse_address,
        LISTEN_DEFAULT,
        "Where to listen: a host and port (0: any free port), or a Unix socket. Addresses beyond loopback need TLS.",
    ),
    Option(
        "socket_mode",
        "socket-mode",
        "MODE",
        parse_mode,
        "0660",
        "Mode of the Unix socket, in octal. Users who can write to it can connect; they still need a token.",
    ),
    Option(
        "endpoint",
        "endpoint",
        "HOST:PORT|unix:PATH",
        parse_endpoint,
        "",
        "Address that clients use, if it differs from --listen (a proxy, a container).",
    ),
    Option(
        "tls_cert",
        "tls-cert",
        "FILE",
        parse_path,
        "",
        "Certificate chain of the server (PEM). Reloaded when it changes.",
    ),
    Option("tls_key", "tls-key", "FILE", parse_path, "", "Private key of the server (PEM)."),
    Option(
        "tls_client_ca",
        "tls-client-ca",
        "FILE",
        parse_path,
        "",
        "Mutual TLS: accept only clients with a certificate of this authority (PEM).",
    ),
    Option(
        "streams_max",
        "streams-max",
        "N",
        _whole_number(1, 1024),
        str(limits.STREAMS_MAX),
        "Concurrent Backup and Restore streams; any further one gets TOO_MANY.",
    ),
    Option(
        "lease_s",
        "lease",
        "DURATION",
        _duration(10, 86_400),
        duration(limits.LEASE_S),
        "How long an upload stays reserved for its writer after the writer was last heard from.",
    ),
    Option(
        "upload_life_s",
        "upload-life",
        "DURATION",
        _duration(60, 365 * 86_400),
        duration(limits.UPLOAD_LIFE_S),
        "How long an open upload can be resumed.",
    ),
    Option(
        "drain_s",
        "drain",
        "DURATION",
        _duration(0, 86_400),
        "20s",
        "How long open streams may continue after SIGTERM; then they end at a checkpoint.",
    ),
    Option(
        "retention_every_s",
        "retention-every",
        "DURATION",
        _duration(0, 365 * 86_400),
        duration(limits.RETENTION_EVERY_S),
        "How often to apply the retention policies of datasets; 0: never.",
    ),
    Option(
        "parity_percent",
        "parity",
        "PERCENT",
        _whole_number(0, limits.PARITY_PERCENT_MAX),
        "0",
        "Parity of new packs: how much of a pack can be lost and still be repaired; 0: none.",
    ),
    Option(
        "gc_every_s",
        "gc-every",
        "DURATION",
        _duration(0, 365 * 86_400),
        duration(limits.GC_EVERY_S),
        "How often to collect garbage; 0: never.",
    ),
    Option(
        "min_free",
        "min-free",
        "auto|SIZE|PERCENT%",
        parse_min_free,
        "auto",
        "Take backups only while this much of each disk is free. auto: 1 %, at most 1 GiB; 0: use the whole disk.",
    ),
    Option(
        "scrub_period_s",
        "scrub-period",
        "DURATION",
        _duration(0, 3650 * 86_400),
        "30d",
        "How often to read and check everything that is stored; 0: never.",
    ),
    Option(
        "scrub_bytes_per_s",
        "scrub-rate",
        "SIZE",
        _size(64 * limits.KIB),
        "20MiB",
        "How many bytes per second the scrubber reads at most.",
    ),
    Option(
        "log_format",
        "log-format",
        "|".join(LOG_FORMATS),
        _one_of(*LOG_FORMATS),
        "auto",
        "auto: text on a terminal, else JSON lines.",
    ),
    Option(
        "log_level",
        "log-level",
        "|".join(LOG_LEVELS),
        _one_of(*LOG_LEVELS, also=LEVEL_NAMES),
        "info",
        "Least severe level that is logged.",
    ),
)

_BY_KEY: Final = {option.key: option for option in OPTIONS}


def load(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    config: str | None = None,
    *,
    again: bool = False,
) -> Settings:
    """The settings, each from the first place that has it: flag, environment (empty is unset), file, default.

    `flags` is by field. The file is `config`, else STADDLED_CONFIG, else DIR/server.toml if there is one; a file that
    is named must exist. `again`: it was read before, so that a pipe, which is empty now, is refused. Raises SettingsError.
    """
    flag_texts = {_BY_FIELD[field]: text for field, text in flags.items() if text is not None}
    variables = {option: environ.get(option.variable, "") for option in OPTIONS}
    variable_texts = {option: text for option, text in variables.items() if unquoted(text)}
    named_file = config or unquoted(environ.get(CONFIG_VARIABLE, "")) or None
    data = next((texts[_DATA] for texts in (flag_texts, variable_texts) if _DATA in texts), None)
    file_path, file_texts = _read_config(named_file, data, again=again)
    values: dict[str, object] = {}
    for option in OPTIONS:
        text, origin = option.default, "the default"
        if option in flag_texts:
            text, origin = flag_texts[option], f"--{option.name}"
        elif option in variable_texts:
            text, origin = variable_texts[option], option.variable
        elif option in file_texts:
            text, origin = file_texts[option], f"{option.key} in {file_path}"
        values[option.field] = _parse(option, text, origin)
    return _checked(values)


def _parse(option: Option, text: str, origin: str) -> object:
    if text == "" and option.default == "":
        return None
    try:
        return option.parse(text if option.parse is parse_path else unquoted(text))
    except ValueError as error:
        shown = "something else" if "-----BEGIN " in text else repr(text[:200])
        raise SettingsError(f"{origin} is {shown}: {error}") from error


_UNQUOTED: Final = ("Invalid value", "after a statement")
"""What tomllib says of text without quotes."""


def _read_config(named: str | None, data: str | None, *, again: bool) -> tuple[Path, dict[Option, str]]:
    try:
        path = parse_path(named) if named else parse_path(data or ".") / CONFIG_NAME
    except ValueError as error:
        raise SettingsError(f"cannot read the settings file of {named or data!r}: {error}") from error
    try:
        if named is None and (data is None or not _exists(path)):
            return path, {}
        raw, _ = read(path, CONFIG_BYTES_MAX, "a settings file", pipe_s=None if again else PIPE_S)
        table = tomllib.loads(text_of(raw, path))
    except GivenError as error:
        raise SettingsError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also numbers too long, lists in lists in lists
        hint = "; text stands in quotes" if any(words in str(error) for words in _UNQUOTED) else ""
        raise SettingsError(f"{path} is not TOML: {error}{hint}") from error
    texts: dict[Option, str] = {}
    for key, value in table.items():
        option = _known(key, value, path)
        if option in texts:
            raise SettingsError(f"{path} has {option.key} twice")
        texts[option] = _text(option, value, path)
    return path, texts


def _exists(path: Path) -> bool:
    """Raises OSError where that cannot be known."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _known(key: str, value: object, path: Path) -> Option:
    name = key.replace("-", "_").lower()
    option = _BY_KEY.get(name)
    if option is None and isinstance(value, dict):
        raise SettingsError(f"{path} has a section [{key}]: settings stand at the top, without a section")
    if option is None:
        near = difflib.get_close_matches(name, _BY_KEY, n=1, cutoff=0.0)[0]
        raise SettingsError(f"{path}: there is no setting {key!r}; the nearest one is {near!r}")
    return option


_KINDS: Final[Mapping[type, str]] = {bool: "true or false", list: "a list", dict: "a table"}


def _text(option: Option, value: object, path: Path) -> str:
    """A value of the file as a flag would give it. Paths in the file are relative to it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = _KINDS.get(type(value), type(value).__name__)
        raise SettingsError(f"{path}: {option.key} must be a string or a number, not {kind}")
    if option.parse is parse_path and value:
        return str(path.parent / os.path.expanduser(str(value)))
    socket = _after_unix(unquoted(str(value)))
    if option.parse in {parse_address, parse_endpoint} and socket is not None:
        socket = os.path.expanduser(socket)
        return UNIX_PREFIX + (socket if socket.startswith(("/", ABSTRACT)) else str(path.parent / socket))
    return str(value)


def _checked(values: dict[str, object]) -> Settings:
    if values["data"] is None:
        raise SettingsError(
            "say where the data directory is: --data DIR, STADDLED_DATA, or data in the settings file"
        )
    settings = Settings(**values)  # type: ignore[arg-type]  # the table gives each field its own type; a test walks it
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("--tls-cert and --tls-key belong together: give both or neither")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise SettingsError("--tls-client-ca needs --tls-cert and --tls-key")
    if not settings.listen.is_loopback and settings.tls_cert is None:
        raise SettingsError(
            f"{settings.listen} can be reached from beyond this machine, and nothing starts there without TLS: give "
            "--tls-cert and --tls-key (`staddle-server cert` makes them), or listen on 127.0.0.1 or unix:PATH"
        )
    return settings


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none, each with the nearest that there is: a typing error switches nothing on.

    Those that orchestrators make up for a service of this name are left out.
    """
    known = {option.variable for option in OPTIONS} | {CONFIG_VARIABLE}
    found = []
    for name in sorted(set(environ) - known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name.startswith(VARIABLE_PREFIX) and near and "_SERVICE_" not in name and "_PORT" not in name:
            found.append(f"{name} (is {near[0]} meant?)")
    return found


def _is_loopback_ipv4(host: str) -> bool:
    return re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


_BY_FIELD: Final = {option.field: option for option in OPTIONS}
_DATA: Final = _BY_FIELD["data"]
