"""Object lock of S3, for which obstore has no requests: retention, versions, removal by version.

Through botocore (the extra `lock`), one client for each endpoint. Import this module only where a URL asks for
a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import botocore.session
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from staddle_server.base.clock import NS
from staddle_server.store.backends.credentials import FileCredentials, Keys
from staddle_server.store.backends.object_errors import LockRequestError, StoreFailure, failure_of_answer
from staddle_server.store.locks import MARGIN, ObjectVersions, Version, purge

T = TypeVar("T")

CONNECT_S: Final = 5
READ_S: Final = 60
CONNECTIONS_MAX: Final = 32
ENGINE_TIME_S: Final = 60.0
"""How long the engine's time is kept by this machine's monotonic clock before it is asked again."""
_REFUSED: Final = 403
_MISSING: Final = 404
_MARKER: Final = 405
"""What S3 answers where the newest version is the marker of a deletion."""


class Bucket(NamedTuple):
    """Where the objects are, and how the bucket is addressed. `ca` is a file, or empty."""

    name: str
    prefix: str
    region: str
    virtual_hosted: bool
    ca: str


class LockEndpoint:
    """The requests at one endpoint. Each raises LockRequestError, or FileNotFoundError for a missing object."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def flaw(self) -> str:
        """Return what the bucket lacks for locks; empty if nothing."""
        if self._call("get_bucket_versioning").get("Status") != "Enabled":
            return "the bucket keeps no versions"
        try:
            found = self._call("get_object_lock_configuration")
        except (FileNotFoundError, LockRequestError) as error:
            if isinstance(error, LockRequestError) and error.failure.passing:
                raise
            return f"the bucket was created without object lock, or the engine has none ({error})"
        if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            return "the bucket was created without object lock"
        return ""

    def now(self) -> datetime:
        """Return the engine's time."""
        answer = self._call("get_bucket_versioning")
        try:
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError) as error:
            raise LockRequestError(StoreFailure("it does not tell its time", passing=False)) from error

    def retain(self, name: str, version: str, mode: str, until: datetime) -> None:
        """Lock a version, or the newest."""
        retention = {"Mode": mode, "RetainUntilDate": until}
        self._call("put_object_retention", name, version, Retention=retention)

    def retained(self, name: str, version: str) -> datetime | None:
        """Return until when a version, or the newest, is locked."""
        found: datetime | None = self._call("head_object", name, version).get("ObjectLockRetainUntilDate")
        return found

    def remove(self, name: str, version: str) -> None:
        """Remove a version for good."""
        self._call("delete_object", name, version)

    def page(self, prefix: str, after: tuple[str, str]) -> tuple[list[tuple[str, Version]], tuple[str, str]]:
        """Return versions below a prefix after a marker, by name, and the marker of the next page, if any."""
        markers = {
            key: value for key, value in zip(("KeyMarker", "VersionIdMarker"), after, strict=True) if value
        }
        answer = self._call("list_object_versions", Prefix=f"{self._prefix}{prefix}", **markers)
        found = [
            (
                each["Key"].removeprefix(self._prefix),
                Version(
                    each["VersionId"], _ns(each["LastModified"]), each["IsLatest"], kind == "DeleteMarkers"
                ),
            )
            for kind in ("Versions", "DeleteMarkers")
            for each in answer.get(kind, ())
        ]
        following = (answer.get("NextKeyMarker", ""), answer.get("NextVersionIdMarker", ""))
        return found, following if answer.get("IsTruncated") else ("", "")

    def _call(self, request: str, name: str = "", version: str = "", **rest: Any) -> Any:
        arguments: dict[str, Any] = {"Bucket": self._bucket, **rest}
        if name:
            arguments["Key"] = f"{self._prefix}{name}"
        if version:
            arguments["VersionId"] = version
        try:
            return getattr(self._client, request)(**arguments)
        except ClientError as error:
            failure = _failure(error)
            if name and failure.status in {_MISSING, _MARKER}:
                raise FileNotFoundError(name) from error
            raise LockRequestError(failure) from error
        except BotoCoreError as error:
            passing = isinstance(error, HTTPClientError)
            cause = "the connection broke" if passing else f"{type(error).__name__}"
            raise LockRequestError(StoreFailure(cause, passing=passing)) from error


class Ask(Protocol):
    """Retries a request at the endpoints: ObjectBlobs.ask_lock."""

    def __call__(self, action: str, call: Callable[[LockEndpoint], T]) -> T:
        """Raises FileNotFoundError and Unavailable."""


class BucketLock:
    """The locks of the objects of one store: what ObjectLock promises."""

    def __init__(self, span_s: float, mode: str, ask: Ask) -> None:
        self.span_s = span_s
        self.mode = mode
        self._ask = ask
        self._time: tuple[int, float] | None = None
        """The engine's time (ns), and this machine's monotonic time then."""

    def flaw(self) -> str:
        """Return what the bucket lacks for locks; empty if nothing."""
        return self._ask("ask for object lock", lambda endpoint: endpoint.flaw())

    def with_span(self, span_s: float) -> BucketLock:
        """Return locks of the same objects for another time."""
        return BucketLock(span_s, self.mode, self._ask)

    def now_ns(self) -> int:
        asked_s = time.monotonic()
        now = self._ask("ask for the time", lambda endpoint: endpoint.now())
        self._time = (_ns(now), asked_s)
        return self._time[0]

    def extend(self, name: str, version: str = "") -> int:
        until_ns = self._engine_ns() + round(self.span_s * (1 + MARGIN)) * NS
        until = datetime.fromtimestamp(until_ns // NS, UTC)

        def retain(endpoint: LockEndpoint) -> int:
            try:
                endpoint.retain(name, version, self.mode, until)
            except LockRequestError as error:
                if error.failure.status != _REFUSED:
                    raise
                # Refused, too, is a lock that is shorter than the present one: the span was reduced.
                present = endpoint.retained(name, version)
                if present is None or present < until:
                    raise
                return _ns(present)
            return _ns(until)

        return self._ask(f"lock {name}", retain)

    def histories(self, prefix: str) -> Iterator[ObjectVersions]:
        waiting: dict[str, list[Version]] = {}
        after = ("", "")
        while True:
            found, after = self._ask(
                f"list the versions of {prefix or 'the store'}",
                partial(LockEndpoint.page, prefix=prefix, after=after),
            )
            for name, version in found:
                waiting.setdefault(name, []).append(version)
            last = max((name for name, _ in found), default="") if after[0] else None
            for name in sorted(waiting):
                if name != last:  # more versions of the last name may follow
                    versions = waiting.pop(name)
                    # Of one second, the engine lists the newer version first.
                    newest_first = sorted(versions, key=lambda each: (not each.is_latest, -each.modified_ns))
                    yield ObjectVersions(name, tuple(newest_first))
            if last is None:
                return

    def remove(self, name: str, version: str) -> bool:
        def remove(endpoint: LockEndpoint) -> bool:
            try:
                endpoint.remove(name, version)
            except FileNotFoundError:
                return True
            except LockRequestError as error:
                if error.failure.status != _REFUSED:
                    raise
                # Without the right to remove versions the answer is the same.
                until = endpoint.retained(name, version)
                if until is None or _ns(until) <= self._engine_ns():
                    raise
                return False
            return True

        return self._ask(f"remove a version of {name}", remove)

    def purge(self, name: str) -> None:
        """Remove all versions of a deleted object that are not locked, and then the marker of its deletion."""
        for history in self.histories(name):
            if history.name == name and history.is_hidden:
                purge(self, history)

    def _engine_ns(self) -> int:
        """Return the engine's time, without asking if it was asked just now."""
        if self._time is None or time.monotonic() - self._time[1] >= ENGINE_TIME_S:
            return self.now_ns()
        at_ns, asked_s = self._time
        return at_ns + round((time.monotonic() - asked_s) * NS)


def lock_endpoint(bucket: Bucket, endpoint: str, credentials: Keys | FileCredentials | None) -> LockEndpoint:
    """Return the requests at one endpoint. Connects to nothing yet.

    Without `credentials`, botocore finds those that obstore does: web identities, and roles.
    """
    session = botocore.session.Session()
    if credentials is not None:
        session.register_component("credential_provider", _Resolver(credentials))
    client = session.create_client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=bucket.region,
        verify=bucket.ca or None,
        config=Config(
            s3={"addressing_style": "virtual" if bucket.virtual_hosted else "path"},
            # Retries happen in ObjectBlobs.
            retries={"total_max_attempts": 1},
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            max_pool_connections=CONNECTIONS_MAX,
            # Some engines do not know S3's newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return LockEndpoint(client, bucket.name, bucket.prefix)


class _Resolver:
    """Gives botocore the credentials that obstore has."""

    def __init__(self, given: Keys | FileCredentials) -> None:
        self._given = given

    def load_credentials(self) -> _Given:
        return _Given(self._given)


class _Given:
    """What botocore needs of credentials. They are looked up for each request: those of a file may change."""

    method = "given"
    account_id = None

    def __init__(self, given: Keys | FileCredentials) -> None:
        self._given = given

    def get_frozen_credentials(self) -> Any:
        return ReadOnlyCredentials(*(self._given if isinstance(self._given, Keys) else self._given.keys()))

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        return lambda: getattr(self.get_frozen_credentials(), name)


def _failure(error: ClientError) -> StoreFailure:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(error.response.get("Error", {}).get("Code", ""))
    return failure_of_answer(status, code if code.isalnum() and not code.isdecimal() else "")


def _ns(time: datetime) -> int:
    return int(time.timestamp()) * NS
