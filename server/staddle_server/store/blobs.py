"""Blobs: immutable, uniquely named objects, and what every place that keeps them promises.

Three protocols, each on top of the one before: to read, to write, to remove. One contract suite runs over all implementations
(staddle_server.store.testing).
"""

import re
from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

from staddle_server.base.errors import Damaged, Fault, Unavailable

Buffer: TypeAlias = bytes | bytearray | memoryview


def compact(data: bytes | memoryview) -> bytes | memoryview:
    """What is to be kept for a while: a copy of a view that would keep more than four times what it shows, else the data itself."""
    sparse = isinstance(data, memoryview) and 4 * len(data) < memoryview(data.obj).nbytes
    return bytes(data) if sparse else data


NAME_CHARS_MAX: Final = 512
COMPONENT_CHARS_MAX: Final = 128
TEMPORARY: Final = "tmp"
"""The first component that no name has: below it lies what is being written."""

FORMAT_NAME: Final = "format"
FORMAT_TEXT: Final = b"staddle store 1\n"

_COMPONENT: Final = re.compile(r"[0-9a-z.-]+", re.ASCII)


class BlobMissing(Damaged):
    """There is no object of that name. Never raised for a backend that does not answer."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the stored object {name} is missing")
        self.name = name


class BlobShort(Damaged):
    """The object ends before the bytes that were asked for."""

    def __init__(self, name: str, offset: int, length: int, size: int) -> None:
        super().__init__(f"the stored object {name} has {size} bytes; {length} at {offset} were asked for")
        self.name = name
        self.offset = offset
        self.length = length
        self.size = size


class BlobUnreadable(Unavailable):
    """The disk cannot read these bytes, or cannot just now; it may well read others."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(
            "STORE_UNAVAILABLE", f"the stored object {name} cannot be read ({cause})", retry_after_s=30.0
        )
        self.name = name


class BlobExists(Fault):
    """The name is taken: what is there stays, and is durable; what was written is discarded."""

    def __init__(self, name: str) -> None:
        super().__init__("INTERNAL", f"a stored object has the name {name} already; nothing was overwritten")
        self.name = name


class BlobWriter(Protocol):
    """An object being written. Ends with one `commit` or `abort`; one that failed can only be aborted."""

    def write(self, data: Buffer) -> None:
        """Append `data`, which may be reused on return. Raises Exhausted or Unavailable."""

    def commit(self, name: str) -> None:
        """Give the object its name: whole and durable on return, absent (or not yet acknowledged) otherwise.

        Raises BlobExists, Exhausted or Unavailable; the writer is finished in any case.
        """

    def replace(self, name: str) -> None:
        """Give the object its name in place of the object that may have it: durable on return.

        At every moment before, also after a crash, the name has the old object or the new one, whole. For repair and for
        parity alone: all else is written once. Raises Exhausted or Unavailable; the writer is finished in any case.
        """

    def abort(self) -> None:
        """Discard what was written. Never raises; does nothing on a finished writer."""


class ReadableBlobs(Protocol):
    """What a place for objects offers to those who know an object by its name. Safe to use from several threads.

    A backend that does not answer raises Unavailable("STORE_UNAVAILABLE"), never BlobMissing, and never lists nothing.
    """

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises BlobShort, BlobMissing or BlobUnreadable."""

    def size(self, name: str) -> int:
        """The object's size in bytes. Raises BlobMissing."""


class WritableBlobs(ReadableBlobs, Protocol):
    """What a place for objects offers to those who also add objects. One without room raises Exhausted("STORE_FULL")."""

    @property
    def failed(self) -> str | None:
        """Why nothing is written any more until a restart; None while writing works, or may work again by itself."""

    def check_writable(self) -> None:
        """Raise Unavailable while `failed`: for those who would decide what can then not be written."""

    def create(self) -> BlobWriter:
        """Begin an object; it has no name before it is whole."""

    def put(self, name: str, data: bytes) -> None:
        """Write a whole small object; the promises of BlobWriter.commit."""


class Blobs(WritableBlobs, Protocol):
    """A place for objects, with all that it offers: also to those who look for what is there, and remove it."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names below `prefix` (whole components; "" for all) with sizes in bytes, sorted as strings."""

    def delete(self, name: str) -> None:
        """Remove the object, durably. Raises BlobMissing."""

    def sweep(self) -> int:
        """Remove what dead writers left behind; their number. Harms no object and no writer of any process that lives."""


def check_name(name: str) -> str:
    """`name`, if an object may have it: components of 0-9 a-z . - joined by "/". Raises ValueError."""
    components = name.split("/")
    if len(name) > NAME_CHARS_MAX or components[0] == TEMPORARY:
        raise ValueError(f"{name!r} is not a name for a stored object")
    for component in components:
        if not is_component(component):
            raise ValueError(
                f"{name!r} is not a name for a stored object: {component!r} cannot be part of one"
            )
    return name


def is_component(text: str) -> bool:
    """Whether `text` may stand between the slashes of a name."""
    return (
        len(text) <= COMPONENT_CHARS_MAX
        and _COMPONENT.fullmatch(text) is not None
        and text not in {".", ".."}
    )


def check_prefix(prefix: str) -> str:
    """`prefix`, if names can lie below it: a name, or "" for all. Raises ValueError."""
    return check_name(prefix) if prefix else prefix


def check_range(offset: int, length: int) -> None:
    """Raise ValueError for a range that no object has."""
    if offset < 0 or length < 0:
        raise ValueError(f"{length} bytes at {offset} is no range")


def replace_object(blobs: WritableBlobs, name: str, data: bytes) -> None:
    """Write a whole small object in place of the damaged one that may have its name. Durable on return; never neither of them.

    For repair alone: what is not damaged is written once. Raises what the blobs raise.
    """
    writer = blobs.create()
    try:
        writer.write(data)
        writer.replace(name)
    finally:
        writer.abort()


def create_format(blobs: WritableBlobs) -> None:
    """Mark an empty store as one of this format. Raises BlobExists if it is marked already."""
    blobs.put(FORMAT_NAME, FORMAT_TEXT)


def check_format(blobs: ReadableBlobs) -> None:
    """Raise BlobMissing if the store is not marked, Damaged if it is of a format that this version does not know."""
    size = blobs.size(FORMAT_NAME)
    if size != len(FORMAT_TEXT) or blobs.read(FORMAT_NAME, 0, size) != FORMAT_TEXT:
        raise Damaged(
            f"the stored object {FORMAT_NAME} does not say {FORMAT_TEXT.decode().strip()!r}: "
            "the store is of another version, or damaged"
        )
