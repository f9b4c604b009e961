"""Second copies of small objects that much hangs on: records and keys (docs/format.md, "Copies")."""

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
    """Both were right."""
    COPIED = "copied"
    """The copy was missing or damaged, and was made."""
    RESTORED = "restored"
    """The object was missing or damaged, and was made again from its copy."""


def copy_name(name: str) -> str:
    """The name of an object's copy."""
    return f"{PREFIX}{name}"


class Copies(Generic[T]):
    """Objects of one kind, of which there may be a second copy. Thread-safe.

    `parse` gives what an object's bytes say, by its name (not the copy's), and raises Damaged if they are not that object's:
    bytes that it takes for right are the object's, wherever they were read.
    """

    def __init__(self, blobs: Blobs, parse: Callable[[str, bytes], T], bytes_max: int) -> None:
        self._blobs = blobs
        self._parse = parse
        self._bytes_max = bytes_max

    def read(self, name: str) -> T:
        """What the object says, from its copy if the object itself is missing or damaged. Raises BlobMissing or Damaged."""
        try:
            return self._parse(name, self._bytes(name, name))
        except Damaged as damage:
            try:
                return self._parse(name, self._bytes(name, copy_name(name)))
            except Damaged:
                raise damage from None

    def names(self, prefix: str) -> Iterator[str]:
        """The names below a prefix of all objects that are there or have a copy, sorted."""
        last = ""
        for name in heapq.merge(self._names(prefix), self._copied(prefix)):
            if name != last:
                yield name
                last = name

    def lacking(self, prefix: str) -> Iterator[str]:
        """The names below a prefix of the objects that have no copy, sorted."""
        copied = self._copied(prefix)
        have = next(copied, None)
        for name in self._names(prefix):
            while have is not None and have < name:
                have = next(copied, None)
            if have != name:
                yield name

    def remove(self, name: str) -> None:
        """Removes the object and its copy, those of them that there are. Durable on return; cut off, it can be done again."""
        for at in (copy_name(name), name):
            with suppress(BlobMissing):
                self._blobs.delete(at)

    def mend(self, name: str) -> CopyState:
        """See that object and copy are both there and right. Durable on return. Raises Damaged if neither is right."""
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
        raise Damaged(f"the stored object {name} changes while it is read")

    # --- parts

    def _names(self, prefix: str) -> Iterator[str]:
        for name, _ in self._blobs.list(prefix):
            yield name

    def _copied(self, prefix: str) -> Iterator[str]:
        for name, _ in self._blobs.list(copy_name(prefix)):
            yield name.removeprefix(PREFIX)

    def _bytes(self, name: str, at: str) -> bytes:
        """The bytes of the object or its copy. A missing copy is no damage of its own."""
        try:
            size = self._blobs.size(at)
            if size > self._bytes_max:
                raise Damaged(
                    f"the stored object {at} is damaged: it has {size} bytes, more than any of its kind"
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
