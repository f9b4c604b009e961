"""The client's cache of the content of backups: a directory with a file for each backup that may be the next base.

It spares an incremental the fetching of the base's entries, and a full backup the sending of those that it read and found the same. A
cache that is missing, damaged, of another version or of another backup is as none: the entries are fetched, or sent. A file is used only for the very backup that the server names as the base of an upload, and is
written only by the run that made this backup, from what it sent and what it proved unchanged. It holds the names of files: it is for its
owner's eyes only, and is not believed where others could have written it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Final

from blake3 import blake3

from staddle._backup.cache.file import ABSENT, ID_BYTES, CacheError, CacheReader, CacheWriter, is_cache_of
from staddle._backup.cache.recorder import CacheRecorder
from staddle._fs.omissions import CACHE_TAG, CACHE_TAG_TEXT

DIRECTORY_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
FILES_MAX: Final = 10_000
UNFINISHED_PREFIX: Final = ".new-"
UNFINISHED_S: Final = 24 * 3600
"""A file that was not finished for so long was left by a process that was killed."""
FULL_SUFFIX: Final = ".full"
LATER_SUFFIX: Final = ".later"
OWN_NAME: Final = b"staddle"
PREFIX_DIGITS: Final = 32
_HEX_DIGITS: Final = frozenset("0123456789abcdef")

_log = logging.getLogger("staddle")


def default_place(environment: Mapping[str, str]) -> str:
    """The default place of the cache; empty if the system has none."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # which the specification has ignored
        home = os.path.expanduser("~")
        base = os.path.join(home, ".cache") if os.path.isabs(home) else ""
    return os.path.join(base, "staddle") if base else ""


class Cache:
    """The files of one dataset at one server."""

    def __init__(self, place: str | bytes, server: str, dataset: str) -> None:
        """`place` is the directory; it is made when something is written. In one that holds other things, the cache is
        below it: the mark of a cache makes backups leave out all that is in a directory.
        """
        self._place = _own_place(os.path.abspath(os.fsencode(place)))
        self._scope = blake3(f"{server}\0{dataset}".encode()).digest()
        self._prefix = self._scope.hex()[:PREFIX_DIGITS] + "-"

    def find(self, backup_id: str) -> CacheReader | None:
        """The cached content of a backup, completely verified; None if it is not cached."""
        raw_id = _raw_id(backup_id)
        if raw_id is None or self._place is None:
            return None
        for suffix in (LATER_SUFFIX, FULL_SUFFIX):
            reader = self._open(f"{self._prefix}{backup_id}{suffix}", raw_id)
            if reader is not None:
                return reader
        return None

    def has_all(self, backup_id: str, entry_count: int) -> bool:
        """Whether a backup is cached, and with as many entries as it has."""
        reader = self.find(backup_id)
        if reader is None:
            return False
        with closing(reader):
            try:
                return reader.count_all() + (not reader.root[0] & ABSENT) == entry_count
            except CacheError:
                return False

    def _open(self, name: str, backup_id: bytes) -> CacheReader | None:
        try:
            path = self._path(name)
            if not _is_own(os.stat(os.path.dirname(path))):
                return None
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if (
                stat.S_ISREG(status.st_mode)
                and _is_own(status)
                and is_cache_of(descriptor, backup_id, self._scope)
            ):
                return CacheReader(descriptor)
        except OSError as error:
            _log.debug("The cache %s cannot be read: %s", name, error)
        os.close(descriptor)
        return None

    def record(self, *, differential: bool) -> CacheRecorder | None:
        """Begin the cache of the current backup; None if the place is not writable. End it with `keep` or `discard`."""
        if self._place is None or not _is_free(self._place):
            _log.debug("No cache: its directory has other things in it")
            return None
        try:
            os.makedirs(self._place, mode=0o700, exist_ok=True)
            if not _is_own(os.stat(self._place)):
                _log.debug("The cache directory %r is not used: others may write there", self._place)
                return None
            self._mark()
            path = self._path(UNFINISHED_PREFIX + secrets.token_hex(8))
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _log.debug("No cache: %s", error)
            return None
        return CacheRecorder(CacheWriter(descriptor, path), differential=differential)

    def _mark(self) -> None:
        """Mark the directory so that backups, ours and other programs', may skip it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileExistsError):
            descriptor = os.open(self._path(os.fsdecode(CACHE_TAG)), flags, 0o600)
            try:
                os.write(descriptor, CACHE_TAG_TEXT)
            finally:
                os.close(descriptor)

    def keep(self, record: CacheRecorder, backup_id: str, *, full: bool) -> None:
        """After the commit: complete the file, give it its name, and remove the files that it replaces."""
        raw_id = _raw_id(backup_id)
        try:
            if raw_id is not None and record.writer.finish(raw_id, self._scope):
                name = f"{self._prefix}{backup_id}{FULL_SUFFIX if full else LATER_SUFFIX}"
                os.rename(record.writer.path, self._path(name))
                self._tidy(name, full=full)
        except OSError as error:
            _log.debug("No cache of the backup %s: %s", backup_id, error)

    def discard(self, record: CacheRecorder) -> None:
        """Close the file, and remove it unless it was kept."""
        record.writer.close()
        self._remove(record.writer.path)

    def _path(self, name: str) -> bytes:
        assert self._place is not None  # else nothing is found or recorded
        return os.path.join(self._place, os.fsencode(name))

    def _tidy(self, newest: str, *, full: bool) -> None:
        """Keep the newest cache of this dataset and that of its newest full backup; overall, stay within the limit."""
        now_s = time.time()
        stays: list[tuple[float, int, str]] = []
        for name, status in _listed(os.path.dirname(self._path(newest))):
            if name.startswith(UNFINISHED_PREFIX):
                useless = status.st_mtime < now_s - UNFINISHED_S
            else:
                useless = name.startswith(self._prefix) and (full or not name.endswith(FULL_SUFFIX))
            if useless and name != newest:
                self._remove(self._path(name))
            elif name.endswith((FULL_SUFFIX, LATER_SUFFIX)):
                stays.append((status.st_mtime if name != newest else math.inf, status.st_size, name))
        room = DIRECTORY_BYTES_MAX
        for number, (_, size, name) in enumerate(sorted(stays, reverse=True)):
            room -= size
            if name != newest and (room < 0 or number >= FILES_MAX):
                self._remove(self._path(name))

    def _remove(self, path: bytes) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.debug("The cache %r cannot be removed: %s", path, error)


def _own_place(place: bytes) -> bytes | None:
    """The directory, if it is absent, empty or marked by this cache; otherwise one in it of which this is so. None: there is none."""
    return next((each for each in (place, os.path.join(place, OWN_NAME)) if _is_free(each)), None)


def _is_free(place: bytes) -> bool:
    """Whether nothing but this cache is, or was, in a directory."""
    try:
        if not os.listdir(place):
            return True
        with open(os.path.join(place, CACHE_TAG), "rb") as tag:
            return tag.read(len(CACHE_TAG_TEXT) + 1) == CACHE_TAG_TEXT
    except FileNotFoundError:
        return not os.path.lexists(place)
    except OSError:
        return False


def _raw_id(backup_id: str) -> bytes | None:
    """The bytes of a backup's id; None for an invalid id, which must not become a file name."""
    if len(backup_id) != 2 * ID_BYTES or not set(backup_id) <= _HEX_DIGITS:
        return None
    return bytes.fromhex(backup_id)


def _listed(place: bytes) -> list[tuple[str, os.stat_result]]:
    """The files of a directory, without those that vanish meanwhile."""
    found = []
    for name in os.listdir(os.fsdecode(place)):
        with suppress(FileNotFoundError):
            found.append((name, os.lstat(os.path.join(place, os.fsencode(name)))))
    return found


def _is_own(status: os.stat_result) -> bool:
    """Whether only this user and root can have written the file with this stat."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
