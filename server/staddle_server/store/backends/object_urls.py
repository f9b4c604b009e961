"""URLs of object stores: parsing them, which needs no extra, and opening them, which needs `s3`."""

import os
import re
import ssl
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from staddle._base.figures import duration, duration_s
from staddle._base.given_files import GivenError
from staddle._base.pem_files import read_pem

from staddle_server.base.errors import Fault
from staddle_server.store.backends.credentials import FileCredentials, file_credentials, keys_of_environment

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Config

    from staddle_server.store.backends.object_lock import LockEndpoint
    from staddle_server.store.backends.object_store import ObjectBlobs

EXTRA: Final = "s3"
CONNECT_S: Final = 5
READ_S: Final = 120
"""The deadline of a whole answer; the longest is a part of a pack."""
WRITE_S: Final = 300
"""The deadline of a pack's upload. Far below the time that removed packs stay readable."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", re.ASCII)
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,128}(/[A-Za-z0-9._-]{1,128}){0,15}", re.ASCII)
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "s3": frozenset({"endpoint", "region", "virtual-hosted", "ca", "object-lock", "lock-mode"}),
    "gs": frozenset(),
    "az": frozenset(),
}
SCHEMES: Final = frozenset(_OPTIONS)
ENDPOINTS_MAX: Final = 32
PROBES: Final = "probe"
"""The prefix of the objects with which an engine is tested."""


LOCK_S_MIN: Final = 86_400
LOCK_S_MAX: Final = 3650 * 86_400
LOCK_MODES: Final = ("compliance", "governance")


class LockExtraMissing(Fault):
    """The library for object lock is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "INTERNAL",
            "object lock needs botocore, which is not installed: pip install 'staddle[server,s3,lock]'",
        )


class S3ExtraMissing(Fault):
    """The library for object stores is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "INTERNAL",
            f"a store in an object store needs obstore, which is not installed: pip install 'staddle[server,{EXTRA}]'",
        )


class ObjectPlace(NamedTuple):
    """The content of an object store's URL. Its text has no options."""

    scheme: str
    bucket: str
    prefix: str
    endpoints: tuple[str, ...] = ()
    region: str = ""
    virtual_hosted: bool = False
    ca: str = ""
    lock_s: float = 0.0
    """How long what backups need is locked at least; 0: not at all."""
    lock_mode: str = LOCK_MODES[0]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_object_url(url: str) -> ObjectPlace:
    """Parse scheme://bucket/prefix?endpoint=…&endpoint=…&region=…&virtual-hosted=true&ca=FILE&object-lock=30d&lock-mode=governance.

    Raises ValueError, which repeats no possible secret.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if "@" in parts.netloc:
        raise ValueError(
            "credentials do not belong in the URL of a store: put them in the environment or a file"
        )
    if parts.fragment or not _BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"expected {scheme}://BUCKET/PREFIX")
    prefix = unquote(parts.path).strip("/")
    if prefix and (_PREFIX.fullmatch(prefix) is None or not {".", ".."}.isdisjoint(prefix.split("/"))):
        raise ValueError("a prefix is made of letters, digits, '.', '_' and '-', with '/' between its parts")
    found: dict[str, list[str]] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _OPTIONS[scheme]:
            known = ", ".join(sorted(_OPTIONS[scheme])) or "none"
            raise ValueError(f"a URL {scheme}:// has an option that is not known; options: {known}")
        found.setdefault(key, []).append(value)
    return ObjectPlace(scheme, parts.netloc, prefix, **_options(found))


def _options(found: dict[str, list[str]]) -> dict[str, Any]:
    endpoints = tuple(_endpoint(value) for value in found.pop("endpoint", []))
    if len(endpoints) > ENDPOINTS_MAX:
        raise ValueError(f"a store has at most {ENDPOINTS_MAX} endpoints")
    if twice := sorted(key for key, values in found.items() if len(values) > 1):
        raise ValueError(f"the URL has {twice[0]} twice")
    one = {key: values[0] for key, values in found.items()}
    region, hosted, ca = one.get("region", ""), one.get("virtual-hosted", "false"), one.get("ca", "")
    if region and not _REGION.fullmatch(region):
        raise ValueError("a region is made of letters, digits and '-'")
    if hosted not in {"true", "false"}:
        raise ValueError("virtual-hosted is true or false")
    if ca and not os.path.isabs(ca):
        raise ValueError("ca is an absolute path of a file with certificates (PEM)")
    return {
        "endpoints": endpoints,
        "region": region,
        "virtual_hosted": hosted == "true",
        "ca": ca,
        **_lock_options(one),
    }


def _lock_options(one: dict[str, str]) -> dict[str, Any]:
    if "object-lock" not in one:
        if "lock-mode" in one:
            raise ValueError("lock-mode says nothing without object-lock")
        return {}
    try:
        lock_s = duration_s(one["object-lock"], LOCK_S_MIN, LOCK_S_MAX)
    except ValueError:
        least, most = duration(LOCK_S_MIN), duration(LOCK_S_MAX)
        raise ValueError(f"object-lock is a duration from {least} to {most}, such as 30d") from None
    mode = one.get("lock-mode", LOCK_MODES[0])
    if mode not in LOCK_MODES:
        raise ValueError("lock-mode is " + " or ".join(LOCK_MODES))
    return {"lock_s": lock_s, "lock_mode": mode}


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    plain = not (parts.query or parts.fragment or parts.path.strip("/") or "@" in parts.netloc)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise ValueError(
            "an endpoint is http://HOST:PORT or https://HOST:PORT, without a user, a path or options"
        )
    return f"{parts.scheme}://{parts.netloc}"


def open_object_url(url: str, environ: Mapping[str, str], spool: str) -> "ObjectBlobs":
    """Return the blobs at `url`; packs are collected in the directory `spool`. Connects to nothing yet.

    obstore takes credentials from the environment, web identities and instance roles, and renews what
    expires; credentials files of AWS are read here, again when they change. Raises ValueError for an invalid URL, S3ExtraMissing, and Fault for an unreadable file.
    """
    place = parse_object_url(url)
    try:
        from obstore.exceptions import BaseError

        from staddle_server.store.backends.object_store import Endpoint, ObjectBlobs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "obstore":
            raise
        raise S3ExtraMissing from error
    certificates = _certificates(place.ca)
    credentials = file_credentials(environ) if place.scheme == "s3" else None
    opened = partial(_opened, place, environ=environ, credentials=credentials, certificates=certificates)
    try:
        endpoints = [
            Endpoint(
                opened(endpoint, timeout_s=READ_S),
                opened(endpoint, timeout_s=WRITE_S),
                _locking(place, endpoint, environ, credentials),
            )
            for endpoint in place.endpoints or ("",)
        ]
    except BaseError as error:
        from staddle_server.store.backends.object_errors import failure_of

        raise Fault("INTERNAL", f"{place} cannot be opened: {failure_of(error).cause}") from error
    blobs = ObjectBlobs(str(place), endpoints, spool)
    if place.lock_s:
        from staddle_server.store.backends.object_lock import BucketLock

        blobs.lock = BucketLock(place.lock_s, place.lock_mode.upper(), blobs.ask_lock)
    return blobs


def _locking(
    place: ObjectPlace, endpoint: str, environ: Mapping[str, str], credentials: FileCredentials | None
) -> "LockEndpoint | None":
    """Return the requests for object lock at one endpoint; None for a store without."""
    if not place.lock_s:
        return None
    try:
        from staddle_server.store.backends.object_lock import Bucket, lock_endpoint
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "botocore":
            raise
        raise LockExtraMissing from error
    # As obstore finds it.
    region = place.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    bucket = Bucket(place.bucket, place.prefix, region, place.virtual_hosted, place.ca)
    return lock_endpoint(bucket, endpoint, credentials or keys_of_environment(environ))


def _opened(
    place: ObjectPlace,
    endpoint: str,
    environ: Mapping[str, str],
    credentials: FileCredentials | None,
    *,
    certificates: str,
    timeout_s: int,
) -> "ObjectStore":
    from obstore.store import AzureStore, GCSStore, S3Store

    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=timeout_s),
        "allow_http": endpoint.startswith("http:"),
        **({"root_certificate": certificates} if certificates else {}),
    }
    common: dict[str, Any] = {
        "prefix": place.prefix or None,
        "client_options": client,
        # Retries happen in ObjectBlobs, which knows whether they are safe, and at which endpoint.
        "retry_config": {"max_retries": 0},
    }
    if place.scheme == "gs":
        return GCSStore(place.bucket, **common)
    if place.scheme == "az":
        return AzureStore(place.bucket, **common)
    config: dict[str, Any] = {"disable_bulk_delete": True}
    if keys := keys_of_environment(environ):
        # obstore reads the process's environment, which may not be the one that was given.
        config |= {key: value for key, value in keys._asdict().items() if value}
    if place.virtual_hosted:
        config["virtual_hosted_style_request"] = True
    if endpoint:
        hosted = endpoint.replace("://", f"://{place.bucket}.", 1) if place.virtual_hosted else endpoint
        # Both, or an environment variable would override the URL.
        config |= {"endpoint": hosted, "aws_endpoint_url_s3": hosted}
    if place.region:
        config["region"] = place.region
    return S3Store(place.bucket, config=cast("S3Config", config), credential_provider=credentials, **common)


def _certificates(path: str) -> str:
    if not path:
        return ""
    try:
        blocks = read_pem(path, pipe_s=None).certificates()  # it is read at each start
        found = b"".join(block.pem for block in blocks).decode()
        ssl.create_default_context(cadata=found)
    except GivenError as error:
        raise Fault("INTERNAL", f"the store's URL: ca: {error}") from error
    except ssl.SSLError as error:
        raise Fault("INTERNAL", f"the store's URL: ca: a certificate in {path} is damaged") from error
    return found
