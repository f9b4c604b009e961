"""Blobs in an object store, through obstore: S3 and compatible engines, Google Cloud Storage, Azure.

An object is put with one request under a name that is used once. No promise relies on conditional puts, which
some engines ignore. Needs the extra `s3`: import this module only through staddle_server.store.open.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from typing import IO, TYPE_CHECKING, Final, NamedTuple, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from staddle_server.base.errors import Exhausted, StaddleError, Unavailable
from staddle_server.base.limits import MIB
from staddle_server.base.threads import Threads
from staddle_server.store.backends.object_errors import NO_RANGE, StoreFailure, failure_of
from staddle_server.store.blobs import (
    TEMPORARY,
    BlobExists,
    BlobMissing,
    BlobShort,
    Buffer,
    check_name,
    check_prefix,
    check_range,
    is_component,
)
from staddle_server.store.files import NO_ROOM
from staddle_server.store.locks import is_locked_kind

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from staddle_server.store.backends.object_lock import BucketLock, LockEndpoint

T = TypeVar("T")

PATIENCE_S: Final = 30.0
"""How long a request is retried after its first failure, before the caller gets STORE_UNAVAILABLE."""
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 5.0
RETRY_AFTER_S: Final = 30.0
PAGE_NAMES: Final = 1000
"""Names in one page of a listing; S3 returns no more."""
DEEP_CHILDREN_MAX: Final = 4
"""A first page with names in so few children of its prefix means many pages: they are read ahead, child by
child.
"""
LISTED_AT_ONCE: Final = 8
COMPARED_BYTES: Final = 8 * MIB
"""A doubtful object is read and compared in parts of this size."""


class Endpoint(NamedTuple):
    """One way to the same objects."""

    reading: ObjectStore
    writing: ObjectStore
    """The same with a longer deadline."""
    locking: LockEndpoint | None = None
    """Its requests for object lock, if the store uses it."""


class _ShortAnswerError(BaseError):
    """An answer had fewer bytes than requested, but the object has them: the answer was cut off."""


class ObjectBlobs:
    """Blobs in an object store. Several processes may share one; thread-safe.

    Temporary failures are retried for PATIENCE_S, at the next endpoint, with growing pauses.

    Attributes:
        failed: Always None: an object store that does not answer may answer again.
        lock: The locks of objects, if the store uses them: see staddle_server.store.locks.

    """

    failed: str | None = None
    lock: BucketLock | None = None

    def __init__(
        self,
        place: str,
        endpoints: Sequence[Endpoint],
        spool: str,
        *,
        pause: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`place` names the store in messages; `spool` is the directory of unlinked files that collect
        objects.
        """
        self.place = place
        self.endpoints = tuple(endpoints)
        self._spool = spool
        self._pause = pause
        self._now_s = now_s
        self._preferred = 0
        """The endpoint that answered last."""
        self._naming: set[str] = set()
        self._named = threading.Condition()

    def check_writable(self) -> None:
        """Do nothing: an object store may be writable again at any time."""

    def create(self) -> ObjectWriter:
        with _spooling():
            return ObjectWriter(self, tempfile.TemporaryFile(dir=self._spool))

    def put(self, name: str, data: bytes) -> None:
        self.publish(name, data, replace=False)

    def read(self, name: str, offset: int, length: int) -> bytes:
        check_name(name)
        check_range(offset, length)
        return self._there(name, f"read {name}", lambda endpoint: _read(endpoint, name, offset, length))

    def size(self, name: str) -> int:
        check_name(name)
        return self._there(name, f"stat {name}", lambda endpoint: _head(endpoint, name))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """List as Blobs promises.

        A store that fits one page may answer in any order; a larger one must be sorted. Engines that keep
        directories sort "a/b" before "a-b". Staddle's names sort the same either way.
        """
        check_prefix(prefix)
        return self._sorted(prefix)

    def delete(self, name: str) -> None:
        self.size(name)  # a store gives the same answer whether or not the object existed
        with contextlib.suppress(FileNotFoundError):
            self._ask(f"delete {name}", lambda endpoint: obstore.delete(endpoint.writing, name))
        if self.lock is not None:
            self.lock.purge(name)

    def sweep(self) -> int:
        """Return 0: the spool file has no name, and a put is complete or absent."""
        return 0

    # --- what writers share

    def publish(self, name: str, data: Buffer, *, replace: bool) -> None:
        """Put `data` under `name` with one request.

        Raises as BlobWriter.commit or BlobWriter.replace does.
        """
        check_name(name)
        with self._only_one(name):
            if not replace and self._exists(name):
                self._lock(name)  # whoever wrote it may have failed before this
                raise BlobExists(name)
            tried = False
            version = ""

            def put(endpoint: Endpoint) -> None:
                nonlocal tried, version
                if tried:
                    # The reply may have been lost, not the request: check before sending it again.
                    same = _compare(endpoint, name, memoryview(data))
                    if same:
                        return
                    if same is False and not replace:
                        raise BlobExists(name)
                tried = True
                version = obstore.put(endpoint.writing, name, data, use_multipart=False)["version"] or ""

            try:
                self._ask(f"write {name}", put)
            except FileNotFoundError as error:
                raise self._error(
                    f"write {name}", StoreFailure("HTTP 404: no such bucket", passing=False)
                ) from error
            self._lock(name, version)

    def raw_names(self, prefix: str, after: str | None = None) -> Iterator[tuple[str, int]]:
        """Yield names below `prefix` with sizes, after `after`, in the engine's order.

        A failure resumes after the last name.
        """
        stream: Iterator[Sequence[ObjectMeta]] | None = None
        last = after

        def page(endpoint: Endpoint) -> Sequence[ObjectMeta] | None:
            nonlocal stream
            pages = stream or iter(
                obstore.list(endpoint.reading, prefix or None, offset=last, chunk_size=PAGE_NAMES)
            )
            stream = None  # a failed stream is not used again
            found = next(pages, None)
            stream = pages
            return found

        while (found := self._ask(f"list {prefix or 'the store'}", page)) is not None:
            for meta in found:
                last = meta["path"]
                if _is_name(last):
                    yield last, meta["size"]

    def ask_lock(self, action: str, call: Callable[[LockEndpoint], T]) -> T:
        """Return the result of a request for object lock, retried like all others.

        Raises FileNotFoundError and Unavailable.
        """

        def at(endpoint: Endpoint) -> T:
            assert endpoint.locking is not None
            return call(endpoint.locking)

        return self._ask(action, at)

    # --- parts

    def _lock(self, name: str, version: str = "") -> None:
        """Lock a version, or the newest, if its kind is locked: from then on nobody can delete it."""
        if self.lock is None or not is_locked_kind(name):
            return
        try:
            self.lock.extend(name, version)
        except FileNotFoundError as error:
            raise self._error(f"lock {name}", StoreFailure("it was deleted", passing=True)) from error

    def _sorted(self, prefix: str) -> Iterator[tuple[str, int]]:
        names = self.raw_names(prefix)
        first = sorted(islice(names, PAGE_NAMES))
        last = ""
        for name, size in self._by_child(prefix) if _is_deep(prefix, first) else chain(first, names):
            if name <= last:
                raise Unavailable(
                    "STORE_UNAVAILABLE",
                    f"{self.place} gave {name} after {last}: a store must list names in the order of their bytes",
                    retry_after_s=RETRY_AFTER_S,
                )
            last = name
            yield name, size

    def _by_child(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the names below `prefix`, child by child; reads the first pages of the next few ahead."""

        def begin(child: str) -> Iterator[tuple[str, int]]:
            names = self.raw_names(child)
            return chain(sorted(islice(names, PAGE_NAMES)), names)

        found = self._ask(
            f"list {prefix}", lambda endpoint: obstore.list_with_delimiter(endpoint.reading, prefix)
        )
        objects = {meta["path"]: meta["size"] for meta in found["objects"] if _is_name(meta["path"])}
        # A child with names below it sorts as if it ended in "/".
        children = sorted([f"{child.rstrip('/')}/" for child in found["common_prefixes"]] + [*objects])
        waiting: deque[tuple[str, Future[Iterator[tuple[str, int]]] | None]] = deque()
        with Threads(LISTED_AT_ONCE, thread_name_prefix="list") as threads:
            for child in chain(children, [None] * LISTED_AT_ONCE):
                if child is not None:
                    below = child.endswith("/")
                    waiting.append((child, threads.submit(begin, child[:-1]) if below else None))
                if waiting and (child is None or len(waiting) > LISTED_AT_ONCE):
                    name, names = waiting.popleft()
                    yield from [(name, objects[name])] if names is None else names.result()

    def _there(self, name: str, action: str, call: Callable[[Endpoint], T]) -> T:
        """Return the result of `call`.

        Raises BlobMissing if the store answers and the object does not exist.
        """
        try:
            return self._ask(action, call)
        except FileNotFoundError as error:
            # A missing bucket gives 404 too; a listing distinguishes the two.
            self._ask(action, lambda endpoint: next(iter(obstore.list(endpoint.reading, name)), None))
            raise BlobMissing(name) from error

    def _exists(self, name: str) -> bool:
        try:
            self._ask(f"stat {name}", lambda endpoint: _head(endpoint, name))
        except FileNotFoundError:
            return False
        return True

    def _ask(self, action: str, call: Callable[[Endpoint], T]) -> T:
        """Return the result of `call` at some endpoint.

        Raises FileNotFoundError, Exhausted, Unavailable, and what `call` raises.
        """
        began_s: float | None = None
        attempts = 0
        while True:
            place = self._preferred
            try:
                return call(self.endpoints[place])
            except FileNotFoundError:
                raise
            except (BaseError, OSError) as error:
                failure = failure_of(error)
                now_s = self._now_s()
                began_s = now_s if began_s is None else began_s
                if not failure.passing or now_s - began_s >= PATIENCE_S:
                    raise self._error(action, failure) from error
            attempts += 1
            if self._preferred == place:
                self._preferred = (place + 1) % len(self.endpoints)
            if attempts % len(self.endpoints) == 0:
                round_ = attempts // len(self.endpoints)
                self._pause(min(PAUSE_S_MAX, PAUSE_S * 2**round_) * random.uniform(0.5, 1.0))  # noqa: S311  no secret

    def _error(self, action: str, failure: StoreFailure) -> StaddleError:
        if failure.full:
            return Exhausted("STORE_FULL", f"could not {action}: {self.place} has no space left ({failure})")
        what = "does not answer" if failure.passing else "refuses it"
        return Unavailable(
            "STORE_UNAVAILABLE",
            f"could not {action}: the object store {self.place} {what} ({failure})",
            retry_after_s=RETRY_AFTER_S,
        )

    @contextlib.contextmanager
    def _only_one(self, name: str) -> Iterator[None]:
        """Let one thread of this process at a time create a name, from the check to the put."""
        with self._named:
            self._named.wait_for(lambda: name not in self._naming)
            self._naming.add(name)
        try:
            yield
        finally:
            with self._named:
                self._naming.discard(name)
                self._named.notify_all()


class ObjectWriter:
    """An object of ObjectBlobs in writing, collected in a file without a name."""

    def __init__(self, blobs: ObjectBlobs, file: IO[bytes]) -> None:
        self._blobs = blobs
        self._file: IO[bytes] | None = file
        self._broken = False

    def write(self, data: Buffer) -> None:
        file = self._open()
        self._broken = True
        with _spooling():
            file.write(data)
        self._broken = False

    def commit(self, name: str) -> None:
        self._publish(name, replace=False)

    def replace(self, name: str) -> None:
        self._publish(name, replace=True)

    def abort(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _publish(self, name: str, *, replace: bool) -> None:
        file = self._open()
        try:
            with _spooling():
                file.flush()
                size = file.tell()
            if not size:
                self._blobs.publish(name, b"", replace=replace)
                return
            # Mapped, a pack is sent from the page cache, without memory of its own. Its last view, perhaps in
            # the traceback of an error, unmaps it.
            with _spooling():
                data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            self._blobs.publish(name, memoryview(data), replace=replace)
        finally:
            self.abort()

    def _open(self) -> IO[bytes]:
        if self._file is None or self._broken:
            raise ValueError("this writer is finished or has failed")
        return self._file


# --- what one endpoint answers; FileNotFoundError: it has no such object


def _head(endpoint: Endpoint, name: str) -> int:
    return obstore.head(endpoint.reading, name)["size"]


def _read(endpoint: Endpoint, name: str, offset: int, length: int) -> bytes:
    if length:
        try:
            data = obstore.get_range(endpoint.reading, name, start=offset, length=length).to_bytes()
        except BaseError as error:
            if failure_of(error).status != NO_RANGE:
                raise
        else:
            if len(data) == length:
                return data
    size = _head(endpoint, name)
    if offset + length > size:
        raise BlobShort(name, offset, length, size)
    if length:
        raise _ShortAnswerError("the answer was shorter than the range")
    return b""


def _compare(endpoint: Endpoint, name: str, data: memoryview) -> bool | None:
    """Return whether the object has these bytes; None if it does not exist."""
    try:
        if _head(endpoint, name) != len(data):
            return False
        for offset in range(0, len(data), COMPARED_BYTES):
            part = data[offset : offset + COMPARED_BYTES]
            if _read(endpoint, name, offset, len(part)) != part:
                return False
    except FileNotFoundError:
        return None
    except BlobShort:
        return False
    return True


def _is_deep(prefix: str, page: Sequence[tuple[str, int]]) -> bool:
    """Return whether a first page is full and lies in a few children of `prefix`."""
    if not prefix or len(page) < PAGE_NAMES:
        return False
    return len({name[len(prefix) + 1 :].partition("/")[0] for name, _ in page}) <= DEEP_CHILDREN_MAX


def _is_name(name: str) -> bool:
    """Return whether the name may be Staddle's; others may share the bucket."""
    components = name.split("/")
    return components[0] != TEMPORARY and all(map(is_component, components))


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    """Translate OSError of the spool file: no space left becomes Exhausted, anything else Unavailable."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or "unknown error"
        if error.errno in NO_ROOM:
            raise Exhausted(
                "STORE_FULL",
                f"could not collect a pack in the data directory: its disk has no space left ({cause})",
            ) from error
        raise Unavailable(
            "STORE_UNAVAILABLE",
            f"could not collect a pack in the data directory ({cause})",
            retry_after_s=RETRY_AFTER_S,
        ) from error
