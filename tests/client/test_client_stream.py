"""A Restore stream is trusted only as far as it can be verified."""

import random

import pytest
from blake3 import blake3
from memory_service import CHUNK, MemoryService, State, StoredBackup, restore_parts
from staddle import Client, ProtocolError
from staddle._protocol.restore_reader import (
    VIEW_BASIC,
    VIEW_REFERENCES,
    ChunksEvent,
    DamageEvent,
    DataEvent,
    EndEvent,
    EntryEvent,
    FileEndEvent,
    HeaderEvent,
    read_restore,
)
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

HEADER = sv.RestorePart(
    header=sv.RestoreHeader(backup=pb.Backup(id="ab" * 16, dataset="www", entry_count=100, data_bytes=2**31))
)
BIG = random.Random(1).randbytes(3 * CHUNK + 5)
HOLEY = bytes(CHUNK) + BIG[:CHUNK] + bytes(CHUNK)


@pytest.fixture
def backup() -> StoredBackup:
    state = State()
    state.take(pb.Entry(type=pb.ENTRY_TYPE_DIRECTORY), b"")
    state.take(pb.Entry(path="a", type=pb.ENTRY_TYPE_DIRECTORY), b"")
    state.take(pb.Entry(path="a/big"), BIG)
    state.take(pb.Entry(path="a-b"), b"sorts behind a/big")
    state.take(pb.Entry(path="empty"), b"")
    state.take(pb.Entry(path="holey"), HOLEY)
    state.take(pb.Entry(path="link", type=pb.ENTRY_TYPE_SYMLINK, link_target="a"), b"")
    return StoredBackup(HEADER.header.backup, state.entries)


def events(parts: list[sv.RestorePart], **options) -> list:
    return list(read_restore([sv.RestoreResponse(parts=[part]) for part in parts], **options))


def refused(parts: list[sv.RestorePart], match: str, **options) -> None:
    with pytest.raises(ProtocolError, match=match):
        events(parts, **options)


def index(parts: list[sv.RestorePart], kind: str, number: int = 0) -> int:
    return [at for at, part in enumerate(parts) if part.WhichOneof("part") == kind][number]


def test_an_honest_stream_gives_every_file_complete(backup: StoredBackup) -> None:
    files: dict[bytes, bytes] = {}
    opened = b""
    seen = events(restore_parts(backup))
    assert isinstance(seen[0], HeaderEvent)
    assert seen[-1] == EndEvent(7, len(BIG) + len(HOLEY) + 18, 0)
    for event in seen:
        if isinstance(event, EntryEvent):
            files[event.path] = event.entry.data
            opened = event.path
        elif isinstance(event, DataEvent):
            files[opened] += event.data + bytes(event.zero_bytes)
        elif isinstance(event, FileEndEvent):
            assert event.size_bytes == len(files[opened])
    assert list(files) == [b"", b"a", b"a/big", b"a-b", b"empty", b"holey", b"link"]
    assert (files[b"a/big"], files[b"holey"], files[b"a-b"]) == (BIG, HOLEY, b"sorts behind a/big")


@pytest.mark.parametrize("kind", ["data", "entry_end", "end"])
def test_every_cut_of_the_stream_is_noticed(backup: StoredBackup, kind: str) -> None:
    parts = restore_parts(backup)
    for length in range(len(parts)):
        refused(parts[:length], "stopped after")
    without = [part for at, part in enumerate(parts) if at != index(parts, kind)]
    refused(without, "unfinished|bytes came|stopped")


def test_a_flipped_bit_never_completes_a_file(backup: StoredBackup) -> None:
    for kind, number in (("data", 0), ("data", 3), ("entry", 3)):
        parts = restore_parts(backup)
        part = parts[index(parts, kind, number)]
        target = part.data if kind == "data" else part.entry
        flipped = bytearray(target.data)
        flipped[len(flipped) // 2] ^= 1
        target.data = bytes(flipped)
        refused(parts, "not what its content id says")


def test_other_cuts_of_the_same_bytes_are_noticed(backup: StoredBackup) -> None:
    parts = restore_parts(backup)
    data = parts[index(parts, "data")].data
    del data.chunk_lengths[:]
    data.chunk_lengths.extend([CHUNK // 2, CHUNK // 2])
    refused(parts, "not what its content id says")


def test_wrong_lengths_are_noticed(backup: StoredBackup) -> None:
    for lengths in ([CHUNK - 1], [CHUNK, 1], [], [CHUNK, 0]):
        parts = restore_parts(backup)
        data = parts[index(parts, "data")].data
        del data.chunk_lengths[:]
        data.chunk_lengths.extend(lengths)
        refused(parts, "whole chunks|a chunk of 0 bytes")


def test_zeros_and_bytes_at_once_are_refused(backup: StoredBackup) -> None:
    parts = restore_parts(backup)
    parts[index(parts, "data")].data.zero_bytes = CHUNK
    refused(parts, "both bytes and zeros")


def test_more_bytes_than_the_size_of_the_entry_are_refused(backup: StoredBackup) -> None:
    parts = restore_parts(backup)
    at = index(parts, "data")
    refused([*parts[: at + 4], parts[at], *parts[at + 4 :]], "more data came")


def test_the_order_is_checked(backup: StoredBackup) -> None:
    parts = restore_parts(backup)
    at = index(parts, "entry", 1)
    refused([*parts[: at + 1], parts[at], *parts[at + 1 :]], "out of order")
    parts[at].entry.path = "z"
    refused(parts, "out of order")


@pytest.mark.parametrize("path", ["../etc/passwd", "/etc", "a/../../b", "a//b", "a/./b", "a\0b", "x" * 1025])
def test_a_path_that_leads_out_is_refused(backup: StoredBackup, path: str) -> None:
    parts = restore_parts(backup)
    parts[-2].entry.path = path
    refused(parts, "The server sent the path")


def test_wrong_counts_at_the_end_are_refused(backup: StoredBackup) -> None:
    for field in ("entry_count", "data_bytes", "damage_count"):
        parts = restore_parts(backup)
        setattr(parts[-1].end, field, getattr(parts[-1].end, field) + 1)
        refused(parts, "end says")


def test_misplaced_parts_are_refused(backup: StoredBackup) -> None:
    parts = restore_parts(backup)
    data, end = parts[index(parts, "data")], parts[index(parts, "entry_end")]
    content = sv.RestorePart(content=sv.ContentPart())
    refused(parts[1:], "did not begin with its header")
    refused([parts[0], *parts], "two headers")
    refused([parts[0], data], "outside a file")
    refused([parts[0], end], "not open")
    refused([*parts, parts[1]], "after its end")
    refused([parts[0], content], "not requested")
    refused([parts[0], sv.RestorePart()], "too old")


def test_damage_is_reported_by_name_and_the_rest_still_comes(backup: StoredBackup) -> None:
    seen = events(restore_parts(backup, {b"a/big"}))
    damages = [event for event in seen if isinstance(event, DamageEvent)]
    assert damages == [DamageEvent(b"a/big", "a segment cannot be opened", 0, subtree=False)]
    assert seen[-1] == EndEvent(7, len(HOLEY) + 18, 1)


def test_damage_in_the_middle_of_a_file_ends_only_that_file(backup: StoredBackup) -> None:
    parts = restore_parts(backup)
    damage = sv.RestorePart(damage=sv.Damage(path="a/big", message="gone", offset_bytes=CHUNK))
    at = index(parts, "data")
    parts[at + 1 : index(parts, "entry_end") + 1] = [damage]
    parts[-1].end.data_bytes -= len(BIG)
    parts[-1].end.damage_count = 1
    assert isinstance(events(parts)[-1], EndEvent)
    damage.damage.path = "a"
    refused(parts, "in the middle of")


def test_the_other_views_have_no_bytes(backup: StoredBackup) -> None:
    whole = restore_parts(backup)
    parts = [part for part in whole if part.WhichOneof("part") not in {"data", "entry_end"}]
    for part in parts:
        part.entry.ClearField("data") if part.HasField("entry") else None
    assert isinstance(events(parts, view=VIEW_BASIC)[-1], EndEvent)
    named = []
    for part in parts:
        named.append(part)
        if part.HasField("entry") and (size := part.entry.content.size_bytes):
            some = pb.ChunkRef(digest=b"d" * 32, length_bytes=size - 1)
            part.entry.content.chunks.append(some)
            rest = pb.ChunkRef(digest=b"d" * 32, length_bytes=1)
            named.append(sv.RestorePart(content=sv.ContentPart(chunks=[rest])))
    seen = events(named, view=VIEW_REFERENCES)
    assert [len(event.chunks) for event in seen if isinstance(event, ChunksEvent)] == [1, 1, 1]
    at = index(named, "content")
    refused([*named[:at], *named[at + 1 :]], "chunks of 196612 bytes", view=VIEW_REFERENCES)
    refused([*named[:at], named[at], *named[at:]], "chunks of more than its", view=VIEW_REFERENCES)
    refused(named, "not requested", view=VIEW_BASIC)


def test_the_reader_accepts_the_stream_of_a_real_server(client: Client, memory: MemoryService) -> None:
    with client.upload("www") as upload:
        upload.put("a", BIG)
        upload.put("b", b"2")
    seen = list(read_restore(client.stream("Restore", sv.RestoreRequest(dataset="www"))))
    assert seen[-1] == EndEvent(2, len(BIG) + 1, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": pb.ENTRY_TYPE_SYMLINK, "link_target": "a\0b"},
        {"type": pb.ENTRY_TYPE_SYMLINK, "raw_link_target": b"\xff\0"},
        {"xattrs": [pb.Xattr(name="user.a\0b")]},
        {"xattrs": [pb.Xattr(raw_name=b"user.\xff\0")]},
        {"xattrs": [pb.Xattr(value=b"of no name")]},
    ],
)
def test_impossible_names_are_refused(backup: StoredBackup, fields: dict) -> None:
    parts = restore_parts(backup)
    parts.insert(index(parts, "end"), sv.RestorePart(entry=pb.Entry(path="z", **fields)))
    refused(parts, "holds NUL" if "type" in fields else "extended attribute with the name")


def zeros_parts(lengths: list[int]) -> list[sv.RestorePart]:
    size = sum(lengths)
    entry = pb.Entry(path="z", type=pb.ENTRY_TYPE_FILE)
    entry.content.size_bytes = size
    return [
        HEADER,
        sv.RestorePart(entry=entry),
        sv.RestorePart(data=sv.Data(zero_bytes=size, chunk_lengths=lengths)),
    ]


def test_hashing_of_zeros_with_ever_new_chunk_lengths_is_limited() -> None:
    refused(zeros_parts([1024 * 1024 - n for n in range(65)]), "lengths")
    refused(zeros_parts([1024 * 1024] * 1025), "zeros at once")


def test_the_limit_for_zeros_counts_over_all_files_of_a_stream() -> None:
    parts = [HEADER]
    for n in range(1, 70):
        entry = pb.Entry(path=f"{n:03}", type=pb.ENTRY_TYPE_FILE)
        entry.content.size_bytes = n
        digest = blake3(bytes(n)).digest()
        parts += [
            sv.RestorePart(entry=entry),
            sv.RestorePart(data=sv.Data(zero_bytes=n, chunk_lengths=[n])),
            sv.RestorePart(entry_end=sv.EntryEnd(size_bytes=n, content_id=digest)),
        ]
    refused(parts, "lengths")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda entry: setattr(entry, "link_target", "x" * 4097), "a link target"),
        (lambda entry: setattr(entry, "link_group", b"x" * 65), "a link group"),
        (lambda entry: setattr(entry.content, "content_id", b"x" * 33), "a content id"),
        (lambda entry: entry.holes.extend([pb.Hole(length_bytes=1)] * 32_769), "holes"),
        (
            lambda entry: entry.xattrs.extend([pb.Xattr(name=f"user.{n}") for n in range(1025)]),
            "extended attributes",
        ),
        (
            lambda entry: entry.xattrs.add(name="user.a", value=bytes(1024 * 1024)),
            "bytes of extended attributes",
        ),
    ],
)
def test_the_memory_for_an_entry_is_bounded(change, match: str) -> None:
    entry = pb.Entry(path="e", type=pb.ENTRY_TYPE_DIRECTORY)
    change(entry)
    refused([HEADER, sv.RestorePart(entry=entry)], match)


def test_long_messages_about_damage_are_truncated() -> None:
    damage = sv.Damage(path="e", message="x" * 1_000_000)
    found = events(
        [
            HEADER,
            sv.RestorePart(damage=damage),
            sv.RestorePart(end=sv.End(damage_count=1)),
        ]
    )
    assert len(found[1].message) == 1024
