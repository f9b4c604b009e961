"""The part of an open upload's state that each checkpoint makes durable."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from staddle_server.base.errors import Fault
from staddle_server.base.types import Entry, Root
from staddle_server.manifest.content import ContentState


class Run(NamedTuple):
    """A sorted run of entries; `tier` counts how often it was merged from smaller ones."""

    tier: int
    root: Root


class OpenEntry(msgspec.Struct, frozen=True, array_like=True):
    """A file with chunks still to come: its metadata, and its list of chunks so far."""

    entry: Entry
    content: ContentState
    size_bytes: int


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """An upload's durable point, as the catalog stores it for this package.

    Attributes:
        position: Entries and removals accepted.
        entry_count: Entries accepted, as Finish counts them.
        data_bytes: Bytes of the regular files among them.
        last_path: The path of the last complete entry; None for none.
        put_entries_number: The last PutEntries call in it.
        runs: Sorted runs, oldest first.
        open_entry: The entry in transfer.
        stored_bytes: What the upload's packs add to the store.
        put_entries_digest: The digest of that call's changes; empty for no call.

    """

    position: int = 0
    entry_count: int = 0
    data_bytes: int = 0
    last_path: bytes | None = None
    put_entries_number: int = 0
    runs: tuple[Run, ...] = ()
    open_entry: OpenEntry | None = None
    stored_bytes: int = 0
    put_entries_digest: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Progress)


def encode_progress(progress: Progress) -> bytes:
    """Encode the progress for the catalog."""
    return _encoder.encode(progress)


def decode_progress(data: bytes) -> Progress:
    """Decode what encode_progress returned; empty data is the beginning. Raises Fault for anything else."""
    if not data:
        return Progress()
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:  # text that is not UTF-8 is a ValueError
        raise Fault("INTERNAL", f"the durable point of this upload is unreadable: {e}") from e
