"""Second copies of small, important objects: records and keys (docs/format.md, "Copies")."""

import enum
import heapq
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Generic, TypeVar

from staddle_server.base.errors import Damaged
from staddle_server.store.blobs import BlobMissing, Blobs, replace_object

PREFIX: Final = "copies/"

T = TypeVar("T")


class CopyState(enum.Enum):
    """What `Copies.mend` found and did."""

    WHOLE = "whole"
    """Both were intact."""
    COPIED = "copied"
    """The copy was missing or damaged, and was written again."""
    RESTORED = "restored"
    """The object was missing or damaged, and was restored from its copy."""


def copy_name(name: str) -> str:
    """Return the name of an object's copy."""
    return f"{PREFIX}{name}"


class Copies(Generic[T]):
    """Objects of one kind that may have a second copy. Thread-safe.

    `parse` decodes an object's bytes, given the object's name (not the copy's), and raises Damaged for bytes
    that are not that object's. Bytes that it accepts count as the object's, wherever they were read.
    """

    def __init__(self, blobs: Blobs, parse: Callable[[str, bytes], T], bytes_max: int) -> None:
        self._blobs = blobs
        self._parse = parse
        self._bytes_max = bytes_max

    def read(self, name: str) -> T:
        """Return the object's content, from its copy if the object is missing or damaged.

        Raises BlobMissing or Damaged.
        """
        return self.found(name)[0]

    def found(self, name: str) -> tuple[T, bytes]:
        """Return the object's content and its intact bytes, from its copy if the object is missing or damaged.

        Raises BlobMissing or Damaged.
        """
        try:
            return self._opened(name, name)
        except Damaged as damage:
            try:
                return self._opened(name, copy_name(name))
            except Damaged:
                raise damage from None

    def names(self, prefix: str) -> Iterator[str]:
        """Yield, sorted, the names below a prefix of all objects that exist or have a copy."""
        last = ""
        for name in heapq.merge(self._names(prefix), self._copied(prefix)):
            if name != last:
                yield name
                last = name

    def lacking(self, prefix: str) -> Iterator[str]:
        """Yield, sorted, the names below a prefix of the objects without a copy."""
        copied = self._copied(prefix)
        have = next(copied, None)
        for name in self._names(prefix):
            while have is not None and have < name:
                have = next(copied, None)
            if have != name:
                yield name

    def remove(self, name: str) -> None:
        """Remove the object and its copy, if they exist.

        Durable on return; an interrupted call can be repeated.
        """
        for at in (copy_name(name), name):
            with suppress(BlobMissing):
                self._blobs.delete(at)

    def mend(self, name: str) -> CopyState:
        """Restore a missing or damaged object or copy from the other. Durable on return.

        Raises Damaged if both are lost.
        """
        data = self._right(name, name)
        copy = self._right(name, copy_name(name))
        if data is not None:
            if copy == data:
                return CopyState.WHOLE
            replace_object(self._blobs, copy_name(name), data)
            return CopyState.COPIED
        if copy is not None:
            replace_object(self._blobs, name, copy)
            return CopyState.RESTORED
        self._parse(name, self._bytes(name, name))
        raise Damaged(f"the stored object {name} changed while it was read")

    # --- parts

    def _names(self, prefix: str) -> Iterator[str]:
        for name, _ in self._blobs.list(prefix):
            yield name

    def _copied(self, prefix: str) -> Iterator[str]:
        for name, _ in self._blobs.list(copy_name(prefix)):
            yield name.removeprefix(PREFIX)

    def _opened(self, name: str, at: str) -> tuple[T, bytes]:
        data = self._bytes(name, at)
        return self._parse(name, data), data

    def _bytes(self, name: str, at: str) -> bytes:
        """Return the bytes of the object or of its copy.

        A missing copy is reported under the object's name.
        """
        try:
            size = self._blobs.size(at)
            if size > self._bytes_max:
                raise Damaged(
                    f"the stored object {at} is damaged: {size} bytes are more than any object of its kind has"
                )
            return self._blobs.read(at, 0, size)
        except BlobMissing as missing:
            raise BlobMissing(name) from missing

    def _right(self, name: str, at: str) -> bytes | None:
        try:
            data = self._bytes(name, at)
            self._parse(name, data)
        except Damaged:
            return None
        return data
