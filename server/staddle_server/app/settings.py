"""The server's settings: one table, OPTIONS, defines them all.

The command line, the environment and the file are read through it (`settings_reading`), and
docs/operations.md lists it (a test compares).
"""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from staddle._base.figures import duration, duration_s, percent, size_bytes

from staddle_server.app.addresses import Address, UnixAddress, parse_address, parse_endpoint, parse_path
from staddle_server.base import limits
from staddle_server.base.places import scheme_of
from staddle_server.store.backends import object_urls
from staddle_server.store.space import MinFree

VARIABLE_PREFIX: Final = "STADDLED_"
LISTEN_DEFAULT: Final = "127.0.0.1:7443"
KEY_OF_VARIABLE: Final = "env:"
KEY_OF_COMMAND: Final = "command:"
KEY_KINDS: Final = (KEY_OF_VARIABLE, KEY_OF_COMMAND)
"""How the place of a master key begins that is no file."""
LOG_FORMATS: Final = ("auto", "json", "text")
METRICS_FOR: Final = ("token", "public")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LEVEL_NAMES: Final = {"warn": "warning", "err": "error"}
"""Other programs' names for them."""


class OperatorError(Exception):
    """A problem that the operator must fix. The message says what, and how."""


class SettingsError(OperatorError):
    """A setting is unknown, malformed or missing. The message names it, and its origin."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The settings of the service itself, wherever its data lies and however it is reached.

    Periods of 0: never.
    """

    streams_max: int = limits.STREAMS_MAX
    lease_s: float = limits.LEASE_S
    upload_life_s: float = limits.UPLOAD_LIFE_S
    endpoint: Address | UnixAddress | None = None
    """The address that clients are given; None for the one that they use."""
    retention_every_s: float = 0.0
    parity_percent: int = 0
    gc_every_s: float = 0.0
    scrub_period_s: float = 0.0
    scrub_bytes_per_s: float = 20 * limits.MIB
    drill_period_s: float = 0.0
    runs_kept_s: float = limits.RUNS_KEPT_S
    replicate_every_s: float = limits.REPLICATE_EVERY_S
    replicate_bytes_per_s: float = 0.0
    replicate_grace_s: float = limits.REPLICA_GRACE_S
    metrics: str = "token"
    metrics_datasets: int = limits.METRICS_DATASETS


@dataclass(frozen=True, kw_only=True)
class Settings(ServiceSettings):
    """The settings of a server. Times are seconds."""

    data: Path
    store: str
    catalog: str
    master_key: str
    listen: Address | UnixAddress
    socket_mode: int
    http: Address | None
    traces: str
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    drain_s: float
    min_free: MinFree
    cache_bytes: int
    replicate_to: str
    notify: Path | None
    log_format: str
    log_level: str


class Option(NamedTuple):
    """One setting: `field` of Settings, `name` on the command line (`--name`), in the file, and, in capitals,
    in the environment.
    """

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


def parse_mode(text: str) -> int:
    """Parse an octal mode that lets the owner read and write, such as 0660. Raises ValueError."""
    if re.fullmatch(r"(0o?)?[0-7]{3}", text) is None or int(text[-3:], 8) & 0o600 != 0o600:
        raise ValueError("expected a mode in octal that lets the owner read and write, such as 0660 or 0600")
    return int(text[-3:], 8)


def parse_http(text: str) -> Address:
    """Parse where to serve HTTP. Raises ValueError."""
    with contextlib.suppress(ValueError):
        address = parse_address(text)
        if isinstance(address, Address):
            return address
    raise ValueError("expected HOST:PORT, such as 127.0.0.1:7480 or [::1]:7480")


def parse_traces(text: str) -> str:
    """Return the URL of a collector of traces unchanged. Raises ValueError."""
    if scheme_of(text) not in {"http", "https"}:
        raise ValueError("expected http://HOST:PORT/v1/traces, or https")
    return text


def parse_store(text: str) -> str:
    """Return the URL of an object store unchanged. Raises ValueError, which repeats no part of it."""
    if scheme_of(text) not in object_urls.SCHEMES:
        raise ValueError("expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX")
    object_urls.parse_object_url(text)
    return text


def parse_catalog(text: str) -> str:
    """The URL of a database, as it is. Raises ValueError, which repeats no part of it."""
    if scheme_of(text) != "postgresql":
        raise ValueError("expected postgresql://USER@HOST:PORT/NAME")
    return text


def parse_site(text: str) -> str:
    """Return where a second place is: an absolute path, or the URL of an object store. Raises ValueError."""
    if scheme_of(text) == "file":
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
            raise ValueError("expected file:///absolute/path")
        text = unquote(parts.path)
    if scheme_of(text):
        if object_urls.parse_object_url(parse_store(text)).lock_s:
            raise ValueError(
                "object-lock is for the store itself: let the bucket lock with a default retention"
            )
        return text
    if not os.path.isabs(text):
        raise ValueError(
            "expected an absolute path, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        )
    return os.path.normpath(text)


def parse_key_place(text: str) -> str:
    """Return where a master key is: a file's absolute path, env:NAME, or command:WORDS. Raises ValueError."""
    if text.startswith(KEY_KINDS):
        kind, colon, rest = text.partition(":")
        if not rest.strip():
            raise ValueError(f"expected FILE, env:NAME or command:WORDS: nothing follows {kind}{colon}")
        return text
    return str(parse_path(text))


def parse_min_free(text: str) -> MinFree:
    """Parse "auto", a size, or a share such as "2%". Raises ValueError."""
    text = text.strip()
    if text.lower() == "auto":
        return MinFree()
    try:
        if text.endswith("%"):
            return MinFree(part=percent(text) / 100)
        return MinFree(size_bytes=size_bytes(text))
    except ValueError:
        raise ValueError("use auto, a size such as 256MiB, or a share of the disk such as 2%") from None


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
    """Return a parser for one of the words in any case, or another name of it."""

    def parse(text: str) -> str:
        word = also.get(text.lower(), text.lower())
        if word not in words:
            raise ValueError("expected " + " or ".join(words))
        return word

    return parse


OPTIONS: Final = (
    Option("data", "data", "DIR", parse_path, "", "Data directory: keys, catalog and store."),
    Option(
        "store",
        "store",
        "URL",
        parse_store,
        "",
        "Object store for a new data directory, such as s3://BUCKET/PREFIX; otherwise the store is in DIR.",
    ),
    Option(
        "catalog",
        "catalog",
        "URL",
        parse_catalog,
        "",
        "Database for the catalog of a new data directory, postgresql://USER@HOST/NAME; otherwise it is in DIR.",
    ),
    Option(
        "master_key",
        "master-key",
        "FILE|env:NAME|command:WORDS",
        parse_key_place,
        "",
        "Master key for a new data directory, such as that of the other servers of its store; otherwise a new one is created.",
    ),
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
        "http",
        "http",
        "HOST:PORT",
        parse_http,
        "",
        "Where to serve HTTP too: metrics, and calls as JSON. Needs the extra staddle[http]; TLS as for --listen.",
    ),
    Option(
        "metrics",
        "metrics",
        "|".join(METRICS_FOR),
        _one_of(*METRICS_FOR),
        "token",
        "Who may read the metrics of --http. token: tokens of the role monitor; public: everyone who can connect.",
    ),
    Option(
        "metrics_datasets",
        "metrics-datasets",
        "N",
        _whole_number(0, limits.METRICS_DATASETS_MAX),
        str(limits.METRICS_DATASETS),
        "How many datasets have metrics of their own; 0: none.",
    ),
    Option(
        "traces",
        "traces",
        "URL",
        parse_traces,
        "",
        "Where to send OpenTelemetry traces, by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces. Needs staddle[otel].",
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
        "runs_kept_s",
        "keep-runs",
        "DURATION",
        _duration(86_400, 3650 * 86_400),
        duration(limits.RUNS_KEPT_S),
        "How long to keep the list of attempts to back up.",
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
        "cache_bytes",
        "cache",
        "SIZE",
        _size(0),
        "0",
        "Size of a cache in DIR/cache for what restores read, if the store is remote; 0: none.",
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
        "drill_period_s",
        "drill-period",
        "DURATION",
        _duration(0, 3650 * 86_400),
        "7d",
        "How often to read the newest backup of each dataset as a restore does, at the scrub rate; 0: never.",
    ),
    Option(
        "replicate_to",
        "replicate-to",
        "PLACE",
        parse_site,
        "",
        "Second place that the store is copied to: an absolute path, or the URL of an object store.",
    ),
    Option(
        "replicate_every_s",
        "replicate-every",
        "DURATION",
        _duration(1, 365 * 86_400),
        duration(limits.REPLICATE_EVERY_S),
        "How often to copy what is new to the second place.",
    ),
    Option(
        "replicate_bytes_per_s",
        "replicate-rate",
        "SIZE",
        _size(0),
        "0",
        "How many bytes per second to send to the second place at most; 0: no limit.",
    ),
    Option(
        "replicate_grace_s",
        "replicate-grace",
        "DURATION",
        _duration(0, limits.GRACE_S_MAX),
        duration(limits.REPLICA_GRACE_S),
        "How long an object stays at the second place after it is gone here.",
    ),
    Option(
        "notify",
        "notify",
        "FILE",
        parse_path,
        "",
        "File of notification targets (TOML); otherwise DIR/notify.toml, if it exists.",
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
