"""Whether an object store does what backups need: tested with a few small objects, which are
removed again.
"""

import contextlib
import itertools
import os
import time
from typing import Final

from staddle._base.figures import counted, duration

from staddle_server.base.clock import NS
from staddle_server.base.errors import Fault, StaddleError
from staddle_server.store.backends.object_lock import BucketLock
from staddle_server.store.backends.object_store import ObjectBlobs
from staddle_server.store.backends.object_urls import PROBES
from staddle_server.store.blobs import BlobMissing, BlobShort

_BYTES: Final = 4096
CLOCKS_APART_S_MAX: Final = 3600.0
PROBE_LOCK_S: Final = 20.0


class UnsafeStore(Fault):
    """The object store fails a requirement of backups. The message says which."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(
            "INTERNAL",
            f"{place} is not safe to keep backups in: {what}. Use another engine, or another version of it",
        )


class LockLacking(Fault):
    """The URL asks for object lock, and the bucket or the engine has none that protects."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(
            "INTERNAL",
            f"{place} cannot lock objects: {what}. Object lock needs a bucket that was created with it; or leave object-lock "
            "out of the URL",
        )


def check(blobs: ObjectBlobs) -> None:
    """Raise LockLacking, and UnsafeStore, naming the engine's fault, and Unavailable if it does not answer."""
    root = f"{PROBES}/{os.urandom(8).hex()}"
    names = [f"{root}/{shard}/{number}" for shard in "01" for number in "01"]
    try:
        _check_objects(blobs, names)
        _check_list(blobs, root, names)
        _check_removal(blobs, root, names)
        if blobs.lock is not None:
            _check_lock(blobs, blobs.lock, names[0])
    finally:
        for name in names:
            with contextlib.suppress(StaddleError):
                blobs.delete(name)


def _check_lock(blobs: ObjectBlobs, lock: BucketLock, name: str) -> None:
    """Raise LockLacking if a locked object can be deleted, or the locks' end cannot be trusted."""
    if flaw := lock.flaw():
        raise LockLacking(blobs.place, flaw)
    apart_s = abs(lock.now_ns() - time.time_ns()) / NS
    if apart_s > CLOCKS_APART_S_MAX:
        raise LockLacking(
            blobs.place,
            f"its clock and this machine's are {duration(round(apart_s))} apart, so locks would end at a wrong time: set the clocks",
        )
    probe = lock.with_span(PROBE_LOCK_S)
    probe.extend(name)
    for version in next(probe.histories(name)).versions:
        if version.is_latest and probe.remove(name, version.id):
            raise LockLacking(blobs.place, "it deletes an object that is locked")


def _check_objects(blobs: ObjectBlobs, names: list[str]) -> None:
    def require(fact: bool, what: str) -> None:
        if not fact:
            raise UnsafeStore(blobs.place, what)

    for name in names:
        data = os.urandom(_BYTES)
        blobs.put(name, data)
        try:
            require(blobs.read(name, 0, _BYTES) == data, "it does not return an object as it was put")
            require(blobs.read(name, 1000, 100) == data[1000:1100], "it answers a range with other bytes")
        except BlobMissing:
            require(False, "an object that was put cannot be read")
        except BlobShort:
            require(False, "it reports a wrong size of an object")
    with contextlib.suppress(BlobShort):
        blobs.read(names[0], _BYTES - 10, 20)
        require(False, "it answers a range past the end of an object with bytes")
    newer = os.urandom(_BYTES)
    blobs.publish(names[0], newer, replace=True)
    require(
        blobs.read(names[0], 0, _BYTES) == newer, "it returns the old content of an object that was replaced"
    )


def _check_list(blobs: ObjectBlobs, root: str, names: list[str]) -> None:
    listed = list(itertools.islice(blobs.raw_names(root), 2 * len(names)))
    if sorted(listed) != [(name, _BYTES) for name in names]:
        told = ", ".join(
            f"{name.removeprefix(f'{root}/')} of {counted(size, 'byte')}" for name, size in listed
        )
        raise UnsafeStore(
            blobs.place,
            f"it does not list what was put, with its size: of {counted(len(names), 'object')} of {_BYTES:,} bytes it lists "
            + (told or "none"),
        )
    if [name for name, _ in listed] != names:
        raise UnsafeStore(blobs.place, "it does not list names in byte order")
    if [name for name, _ in blobs.raw_names(root, names[1])] != names[2:]:
        raise UnsafeStore(blobs.place, "it cannot list from a given name, so no listing could be resumed")


def _check_removal(blobs: ObjectBlobs, root: str, names: list[str]) -> None:
    blobs.delete(names[-1])
    with contextlib.suppress(BlobMissing):
        blobs.size(names[-1])
        raise UnsafeStore(blobs.place, "an object that was deleted still exists")
    if [name for name, _ in blobs.raw_names(root)] != names[:-1]:
        raise UnsafeStore(blobs.place, "it lists an object that was deleted")
