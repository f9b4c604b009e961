"""Blobs: immutable, uniquely named objects, and the promises of every place that stores them.

Three protocols, each built on the one before: read, write, remove. One contract suite runs over all
implementations (staddle_server.store.testing).
"""

import re
from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

from staddle_server.base.errors import Damaged, Fault, Unavailable

Buffer: TypeAlias = bytes | bytearray | memoryview


def compact(data: bytes | memoryview) -> bytes | memoryview:
    """Return `data` for keeping: a copy if it is a view that would keep alive over four times its
    own size.
    """
    sparse = isinstance(data, memoryview) and 4 * len(data) < memoryview(data.obj).nbytes
    return bytes(data) if sparse else data


NAME_CHARS_MAX: Final = 512
COMPONENT_CHARS_MAX: Final = 128
TEMPORARY: Final = "tmp"
"""A first component that no object name has: unfinished objects lie below it."""

FORMAT_NAME: Final = "format"
FORMAT_TEXT: Final = b"staddle store 1\n"

_COMPONENT: Final = re.compile(r"[0-9a-z.-]+", re.ASCII)


class BlobMissing(Damaged):
    """No object has this name. Never raised for a backend that does not respond."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the stored object {name} is missing")
        self.name = name


class BlobShort(Damaged):
    """The object ends before the end of the requested range."""

    def __init__(self, name: str, offset: int, length: int, size: int) -> None:
        super().__init__(f"the stored object {name} has {size} bytes; {length} at {offset} were requested")
        self.name = name
        self.offset = offset
        self.length = length
        self.size = size


class BlobUnreadable(Unavailable):
    """The disk cannot read these bytes now; it may still read others."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(
            "STORE_UNAVAILABLE", f"the stored object {name} cannot be read ({cause})", retry_after_s=30.0
        )
        self.name = name


class BlobExists(Fault):
    """The name is taken. The existing object stays and is durable; the new data is discarded."""

    def __init__(self, name: str) -> None:
        super().__init__("INTERNAL", f"the stored object {name} exists already; nothing was overwritten")
        self.name = name


class BlobWriter(Protocol):
    """An object in writing.

    Finish it with one `commit` or `abort`; after a failure only `abort` is allowed.
    """

    def write(self, data: Buffer) -> None:
        """Append `data`; the caller may reuse the buffer on return. Raises Exhausted or Unavailable."""

    def commit(self, name: str) -> None:
        """Give the object its name: complete and durable on return, otherwise absent (or not yet
        acknowledged).

        Raises BlobExists, Exhausted or Unavailable; the writer is finished in any case.
        """

    def replace(self, name: str) -> None:
        """Give the object its name, replacing any object that has it: durable on return.

        Until then, also across a crash, the name has the old object or the new one, complete. Only repair and
        parity replace objects: all others are written once. Raises Exhausted or Unavailable; the writer is
        finished in any case.
        """

    def abort(self) -> None:
        """Discard the written data. Never raises; does nothing on a finished writer."""


class ReadableBlobs(Protocol):
    """What a place for objects offers to callers that know an object by its name. Thread-safe.

    A backend that does not respond raises Unavailable("STORE_UNAVAILABLE"), never BlobMissing, and never
    returns an empty list.
    """

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises BlobShort, BlobMissing or BlobUnreadable."""

    def size(self, name: str) -> int:
        """Return the object's size in bytes. Raises BlobMissing."""


class WritableBlobs(ReadableBlobs, Protocol):
    """What a place for objects offers to callers that also add objects.

    A full one raises Exhausted("STORE_FULL").
    """

    @property
    def failed(self) -> str | None:
        """Why the store refuses writes until a restart; None while writes work or may work again
        without one.
        """

    def check_writable(self) -> None:
        """Raise Unavailable if `failed`: for callers about to decide something that could not be written."""

    def create(self) -> BlobWriter:
        """Begin an object; it has no name until it is complete."""

    def put(self, name: str, data: bytes) -> None:
        """Write a small object in one call, with the promises of BlobWriter.commit."""


class Blobs(WritableBlobs, Protocol):
    """A place for objects with all its operations, including listing and removal."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the names below `prefix` (complete components; "" for all) with sizes in bytes, in string
        order.
        """

    def delete(self, name: str) -> None:
        """Remove the object durably. Raises BlobMissing."""

    def sweep(self) -> int:
        """Remove what dead writers left behind, and return how many.

        Leaves objects and live writers of any process alone.
        """


def check_name(name: str) -> str:
    """Return `name` if it is valid: components of 0-9 a-z . - joined by "/". Raises ValueError."""
    components = name.split("/")
    if len(name) > NAME_CHARS_MAX or components[0] == TEMPORARY:
        raise ValueError(f"invalid name for a stored object: {name!r}")
    for component in components:
        if not is_component(component):
            raise ValueError(f"invalid name for a stored object: {name!r} (component {component!r})")
    return name


def is_component(text: str) -> bool:
    """Return whether `text` may stand between the slashes of a name."""
    return (
        len(text) <= COMPONENT_CHARS_MAX
        and _COMPONENT.fullmatch(text) is not None
        and text not in {".", ".."}
    )


def check_prefix(prefix: str) -> str:
    """Return `prefix` if names can lie below it: a name, or "" for all. Raises ValueError."""
    return check_name(prefix) if prefix else prefix


def check_range(offset: int, length: int) -> None:
    """Raise ValueError for an invalid range."""
    if offset < 0 or length < 0:
        raise ValueError(f"invalid range: {length} bytes at {offset}")


def replace_object(blobs: WritableBlobs, name: str, data: bytes) -> None:
    """Write a small object in place of a damaged one: durable on return, and the name always has one of the
    two.

    Only repair replaces objects: undamaged ones are written once. Raises what the blobs raise.
    """
    writer = blobs.create()
    try:
        writer.write(data)
        writer.replace(name)
    finally:
        writer.abort()


def create_format(blobs: WritableBlobs) -> None:
    """Mark an empty store as one of this format. Raises BlobExists if it is already marked."""
    blobs.put(FORMAT_NAME, FORMAT_TEXT)


def check_format(blobs: ReadableBlobs) -> None:
    """Check the store's format.

    Raises BlobMissing if the store is not marked, Damaged for an unknown format.
    """
    size = blobs.size(FORMAT_NAME)
    if size != len(FORMAT_TEXT) or blobs.read(FORMAT_NAME, 0, size) != FORMAT_TEXT:
        raise Damaged(
            f"the stored object {FORMAT_NAME} does not contain {FORMAT_TEXT.decode().strip()!r}: "
            "the store is of another version, or damaged"
        )
