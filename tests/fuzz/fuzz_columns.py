"""Entries as columns, field by field and byte by byte: what is accepted is what would be accepted as entries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from blake3 import blake3
from fuzz_engine import Check, Target, documented, mutate_bytes
from fuzz_messages import mutate_message
from google.protobuf.message import DecodeError
from staddle._errors import ProtocolError
from staddle._protocol.columns import entry_of_row, message_of_row, rows_in
from staddle._protocol.convert import entry_of, path_fault, sort_key
from staddle._protocol.entry_rules import check_entry
from staddle.chunking import EMPTY_CONTENT_ID, content_id
from staddle.v1 import resources_pb2 as pb
from staddle_server.api.convert_columns import columns_of
from staddle_server.base.errors import BadRequest
from staddle_server.manifest.column_checks import check_columns
from staddle_server.manifest.content import store_attributes
from staddle_server.manifest.entries import check_whole
from staddle_server.manifest.leaves import leaf_of
from staddle_server.manifest.pages import encode_leaf, leaf_page


class _Sink:
    @staticmethod
    def write(data: bytes) -> bytes:
        return blake3(data).digest()


@contextmanager
def _columns() -> Iterator[Check]:
    store = partial(store_attributes, sink=_Sink())

    def check(data: bytes) -> str:
        try:
            message = pb.EntryColumns.FromString(data)
        except DecodeError:
            return "no message"
        try:
            found = check_columns(columns_of(message, "columns"))
            stored = found.stored(store)
        except BadRequest as error:
            return documented(error, "BAD_FIELD", "DIGEST_MISMATCH")
        assert list(found.keys) == sorted(set(found.keys))
        refs = []
        for key, entry, kept in zip(found.keys, found, stored, strict=True):
            check_whole(entry)
            assert key == entry.path.replace(b"/", b"\0")
            assert kept == store(entry)
            refs.extend(entry.content.chunks if entry.content else ())
        assert refs == found.refs
        assert leaf_page(leaf_of(stored.columns)) == encode_leaf(list(stored))
        return f"{len(found)} entries"

    yield check


@contextmanager
def _rows() -> Iterator[Check]:
    """The same from a server, as a client reads it."""

    def check(data: bytes) -> str:
        try:
            message = pb.EntryColumns.FromString(data)
        except DecodeError:
            return "no message"
        try:
            rows = rows_in(message)
        except ProtocolError as error:
            return error.message
        keys = [sort_key(row.path) for row in rows]
        assert keys == sorted(set(keys))
        assert len(rows) == len(message.types)
        for row in rows:
            assert not path_fault(row.path)
            entry = message_of_row(row)
            check_entry(row.path, entry)
            assert entry_of_row(row) == entry_of(entry)
        return f"{len(rows)} rows"

    yield check


def _seeds() -> list[bytes]:
    digest = blake3(b"x").digest()
    few = pb.EntryColumns(paths=b"\0a", types=b"\2\1", sizes=[0], content_ids=EMPTY_CONTENT_ID)
    chunks = [(2**20, digest), (5, digest)]
    all_kinds = pb.EntryColumns(
        paths=b"\0a\0a-\0b/c\0\xff", types=b"\2\1\3\1\5", flags=b"\2\1\0\0\1",
        modes=[0o755] * 5, uids=[1] * 5, gids=[2**32 - 1] * 5, mtimes_ns=[-(2**63)] * 5, ctimes_ns=[7] * 5, inodes=[2**64 - 1] * 5,
        names=["root", "é"], owners=[1, 2, 0, 1, 1], groups=[2] * 5,
        sizes=[1, 2**20 + 5], content_ids=digest + content_id(chunks), profile=pb.CHUNKER_PROFILE_FIXED, link_targets=b"..",
        rare_at=[1, 3, 4],
        rare=[
            pb.Entry(xattrs=[pb.Xattr(name="user.a", value=b"1")], link_group=b"g"),
            pb.Entry(
                content=pb.Content(chunks=[pb.ChunkRef(length_bytes=size, digest=each) for size, each in chunks]),
                holes=[pb.Hole(offset_bytes=3, length_bytes=9)],
            ),
            pb.Entry(device_major=1, device_minor=3),
        ],
    )  # fmt: skip
    return [few.SerializeToString(), all_kinds.SerializeToString()]


def _mutate(chance: random.Random, data: bytes) -> bytes:
    """Mostly one field, so that all around it stays right; else any bytes."""
    if chance.random() < 0.3:
        return mutate_bytes(chance, data)
    try:
        message = pb.EntryColumns.FromString(data)
    except DecodeError:
        return mutate_bytes(chance, data)
    name = chance.choice(["paths", "types", "flags", "content_ids", "link_targets", None, None])
    if name is None:
        mutate_message(chance, message)
    else:
        setattr(message, name, mutate_bytes(chance, getattr(message, name)))
    return message.SerializeToString()


TARGETS = [
    Target("columns", _columns, _seeds, _mutate, short_runs=4000),
    Target("rows", _rows, _seeds, _mutate, short_runs=4000),
]
