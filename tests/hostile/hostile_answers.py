"""A server that answers one call of the service as none may, and all others as it should; and the client that meets it.

Run as a program it tries every row in a process of its own, and prints what came of each: `hostile_answers.py PLACE`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import zstandard
from column_entries import BAD_COLUMNS, listed_columns
from extent import extent
from google.protobuf.message import Message
from hostile_acts import ACTS, Place, put, put_much, restore, source, thin, verify
from hostile_runs import BAD_EVENTS, BAD_RUNS, event
from hostile_server import (
    FAILS,
    ID,
    MESSAGE_BYTES,
    MIB,
    OTHER,
    Answer,
    HostileServer,
    backup,
    end,
    entry,
    file,
    header,
    parts,
    run,
    upload,
)
from staddle import Client, StaddleError
from staddle._protocol.encoding import tag, varint
from staddle._transport import pages as _pages
from staddle._transport import retry, silence
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

# --- hostile answers


def dense(type_: type[Message], name: str, item: bytes = b"\0") -> bytes:
    """A message full of one field: `item` is its length and value."""
    piece = tag(type_, name) + item
    return piece * (MESSAGE_BYTES // len(piece))


def within(type_: type[Message], name: str, data: bytes) -> bytes:
    """A message whose one field holds `data`."""
    return tag(type_, name) + varint(len(data)) + data


def pages(make: Callable[[int], Message], token: Callable[[int], str] = str) -> Answer:
    """Pages without end; `make` makes each by its number."""
    numbers = count(1)

    def answer(_: Any) -> Message:
        number = next(numbers)
        made = make(number)
        made.next_page_token = token(number)  # type: ignore[attr-defined]
        return made

    return answer


def paged(type_: Any, field: str, item: Callable[[int], Message]) -> dict[str, Answer]:
    """Faults of any list; `item` makes its items by their number, in order."""
    one = {field: [item(1)]}
    return {
        "a page of two-byte items": lambda _: dense(type_, field),
        "items that begin in a longer way": lambda _: (
            bytes([tag(type_, field)[0] | 0x80, 0, 0]) * (MESSAGE_BYTES // 3)
        ),
        "a page token of megabytes": lambda _: type_(**one, next_page_token="x" * 3 * MIB),
        "pages without end": pages(lambda number: type_(**{field: [item(number)]})),
        "empty pages without end": pages(lambda _: type_()),
        "pages that alternate": pages(lambda _: type_(**one), lambda number: str(number % 2)),
        "a page that repeats": pages(lambda _: type_(**one), lambda _: "same"),
    }


BAD_UPLOADS: dict[str, pb.Upload] = {
    "none": pb.Upload(),
    "another one": upload(id=OTHER),
    "an id of another length": upload(id="ab"),
    "an id that is a path": upload(id="../" * 10 + "ab"),
    "an unknown state": upload(state=99),
    "no epoch": upload(epoch=0),
    "an epoch at its limit": upload(epoch=2**64 - 1),
    "counts at their limit": upload(durable=pb.DurablePoint(position=2**64 - 1, entry_count=2**64 - 1)),
    "a number at its limit": upload(durable=pb.DurablePoint(put_entries_number=2**64 - 1)),
    "a durable path that leads out": upload(durable=pb.DurablePoint(last_entry=pb.Entry(path="../x"))),
    "an open path with NUL": upload(durable=pb.DurablePoint(open_entry=pb.Entry(path="a\0b"))),
}
BAD_BACKUPS: dict[str, pb.Backup] = {
    "none": pb.Backup(),
    "another dataset's": backup(dataset="other"),
    "an id of another length": backup(id="abc"),
    "an id that is a path": backup(id="/etc/passwd"),
    "counts at their limit": backup(entry_count=2**64 - 1),
    "a time beyond all": backup(begin_time={"seconds": 2**62}),
    "a negative time beyond all": backup(commit_time={"seconds": -(2**62)}),
}


def of_upload(type_: Any, **fields: Any) -> dict[str, Answer]:
    return {name: lambda _, found=found: type_(upload=found, **fields) for name, found in BAD_UPLOADS.items()}


def of_backup(type_: Any, **fields: Any) -> dict[str, Answer]:
    return {name: lambda _, found=found: type_(backup=found, **fields) for name, found in BAD_BACKUPS.items()}


def another(type_: Any, **fields: Any) -> dict[str, Answer]:
    return {"another backup": lambda _: type_(backup=backup(id=OTHER), **fields)}


def stream(*messages: Any) -> Answer:
    return lambda _: iter(messages)


def without_end(message: Any) -> Answer:
    return lambda _: iter([parts(header(entry_count=100)), *repeat(message, 3_000)])


def bad_segment(**fields: Any) -> Answer:
    piece = sv.RestorePart(pieces=sv.Pieces(pieces=[sv.Piece(length_bytes=10)]))
    opened = entry("f", type=1, content=pb.Content(size_bytes=10, content_id=bytes(32)))
    return stream(parts(header(), opened, sv.RestorePart(segment=sv.Segment(**fields)), piece))


def bombed(asked: sv.RestoreRequest) -> Any:
    """Made on request, once for each."""
    return bad_segment(data=zstandard.ZstdCompressor().compress(bytes(64 * MIB)), raw_bytes=10)(asked)


def chunked(*lengths: int, digest: bytes = bytes(32), size: int = 3) -> Answer:
    """A file whose chunks are named; the views without chunks have what is there."""
    chunks = [pb.ChunkRef(digest=digest, length_bytes=length) for length in lengths]
    content = pb.Content(size_bytes=size, content_id=bytes(32), chunks=chunks)
    return stream(parts(header(), entry("f", type=1, content=content), end(1, size)))


def directories() -> Iterator[sv.RestoreResponse]:
    """One in the other, each with as many bytes of attributes as it may have."""
    yield parts(header(entry_count=5_000))
    attribute = pb.Xattr(name="user.a", value=bytes(MIB - 100))
    for depth in range(1, 400):
        yield parts(entry("/".join(["d"] * depth), type=2, xattrs=[attribute]))


def directories_in_a_row() -> Iterator[sv.RestoreResponse]:
    """Beside each other, each with as many bytes of attributes as it may have, and with a file that is to be fetched."""
    yield parts(header(entry_count=5_000))
    attribute = pb.Xattr(name="user.a", value=bytes(MIB - 100))
    for number in range(200):
        path = f"{number:04}"
        yield parts(entry(path, type=2, xattrs=[attribute]), file(f"{path}/f", b""))


def files_without_end() -> Iterator[sv.RestoreResponse]:
    yield parts(header(entry_count=20))
    for number in range(2**31):
        yield parts(file(f"{number:09}", b""))


def damage_without_end() -> Iterator[sv.RestoreResponse]:
    yield parts(header(entry_count=20))
    for number in range(2**31):
        yield parts(sv.RestorePart(damage=sv.Damage(path=f"{number:09}", message="x" * 10_000)))


BAD_PATHS = ("../x", "/etc/x", "a\0b", "a/../../x", ".", "a//b", "x" * 1025)
BAD_STREAMS: dict[str, Answer] = {
    "no message": stream(),
    "no header": stream(parts(file("f", b"1"), end(1, 1))),
    "a message of two-byte parts": stream(dense(sv.RestoreResponse, "parts")),
    "parts of empty entries": stream(parts(header()), dense(sv.RestoreResponse, "parts", b"\2" + tag(sv.RestorePart, "entry") + b"\0")),
    "an entry full of attributes": stream(parts(header()), within(sv.RestoreResponse, "parts", within(sv.RestorePart, "entry", dense(pb.Entry, "xattrs")[:-99]))),
    "an entry full of holes": stream(parts(header()), within(sv.RestoreResponse, "parts", within(sv.RestorePart, "entry", dense(pb.Entry, "holes")[: -MESSAGE_BYTES % 3 - 99]))),
    "messages that bring nothing": without_end(parts()),
    "segments that nobody refers to": without_end(parts(sv.RestorePart(segment=sv.Segment(data=b"x", raw=True, raw_bytes=1)))),
    "pieces without pieces": without_end(parts(sv.RestorePart(pieces=sv.Pieces()))),
    "chunks of nothing": without_end(parts(sv.RestorePart(content=sv.ContentPart()))),
    "more entries than the backup has": lambda _: files_without_end(),
    "more damages than the backup has entries": lambda _: damage_without_end(),
    "directories that fill the memory": lambda _: directories(),
    "many directories with files": lambda _: directories_in_a_row(),
    "a stop in the middle": stream(parts(header(), file("f", b"1"))),
    "the same again": stream(*repeat(parts(header(), file("f", b"1"), end(1, 1)), 2)),
    "a file twice": stream(parts(header(), file("f", b"1"), file("f", b"1"), end(2, 2))),
    "another order": stream(parts(header(), file("g", b"1"), file("f", b"1"), end(2, 2))),
    "another content": stream(parts(header(), entry("f", type=1, data=b"2", content=file("", b"1").entry.content), end(1, 1))),
    "a size that is not the bytes'": chunked(1, 1),
    "chunks of more than its size": chunked(2, 2),
    "a chunk of nothing": chunked(0, 3),
    "a chunk without a digest": chunked(3, digest=b"12"),
    "another dataset's": stream(parts(header(dataset="other"), end(0))),
    "an id that is none": stream(parts(header(id="ab"), end(0))),
    "a size at its limit": stream(parts(header(), entry("f", type=1, content=pb.Content(size_bytes=2**64 - 1)))),
    "a segment that inflates to more": bombed,
    "a segment that says too much": bad_segment(data=b"x", raw_bytes=2**32 - 1),
    "a piece of a segment that has not come": stream(parts(header(), sv.RestorePart(entry=pb.Entry(path="f", type=1, content=pb.Content(size_bytes=1)), piece=sv.Piece(segment=2**32 - 1, length_bytes=1)))),
    **{f"the path {path[:20]!r}": stream(parts(header(), file(path, b"1"), end(1, 1))) for path in BAD_PATHS},
}  # fmt: skip


def hostile_entry(path: str) -> pb.Entry:
    return pb.Entry(path=path, type=1)


BAD_ENTRIES: dict[str, pb.Entry] = {
    **{f"the path {path[:20]!r}": hostile_entry(path) for path in BAD_PATHS},
    "an unknown type": pb.Entry(path="f", type=99),  # type: ignore[arg-type]
    "a link target with NUL": pb.Entry(path="f", type=3, link_target="a\0b"),
    "too many holes": pb.Entry(path="f", type=1, holes=[pb.Hole()] * 40_000),
}


def put_encoded(found: Message) -> dict[str, Answer]:
    return {"more than was sent": lambda _: found}


HOSTILE: dict[str, dict[str, Answer]] = {
    "Backup": of_upload(sv.BackupResponse, backup=backup()) | of_backup(sv.BackupResponse, upload=upload()) | {"no backup": lambda _: sv.BackupResponse(upload=upload())},
    "BeginUpload": {
        **{name: row for name, row in of_upload(sv.BeginUploadResponse).items() if name != "another one"},
        "another dataset's": lambda asked: sv.BeginUploadResponse(upload=upload(dataset="other", scope=asked.scope)),
        "changes in place of the whole": lambda _: sv.BeginUploadResponse(upload=upload(scope=2, base_backup_id=OTHER)),
        "two-byte entries": lambda _: dense(sv.BeginUploadResponse, "damaged_base_entries"),
        "a damaged path that leads out": lambda asked: sv.BeginUploadResponse(upload=upload(scope=asked.scope), damaged_base_entries=[hostile_entry("../x")]),
    },
    "GetUpload": of_upload(sv.GetUploadResponse) | {
        "two-byte entries": lambda _: dense(sv.GetUploadResponse, "damaged_base_entries"),
        "two-byte digests": lambda _: dense(sv.GetUploadResponse, "missing_digests"),
    },
    "ResumeUpload": of_upload(sv.ResumeUploadResponse),
    "CheckpointUpload": {
        "more than was sent": lambda _: sv.CheckpointUploadResponse(durable=pb.DurablePoint(position=99)),
        "counts at their limit": lambda _: sv.CheckpointUploadResponse(durable=pb.DurablePoint(position=2**64 - 1)),
    },
    "RenewUpload": {"a time beyond all": lambda _: sv.RenewUploadResponse(expire_time={"seconds": 2**62})},
    "CommitUpload": of_backup(sv.CommitUploadResponse),
    "AbortUpload": of_upload(sv.AbortUploadResponse),
    "ListUploads": paged(sv.ListUploadsResponse, "uploads", lambda number: upload(id=f"{number:032x}")) | {
        f"an upload: {name}": lambda _, found=found: sv.ListUploadsResponse(uploads=[found])
        for name, found in BAD_UPLOADS.items() if name != "another one"
    },
    "FindMissingChunks": {
        "chunks never asked for": lambda asked: sv.FindMissingChunksResponse(missing=[len(asked.digests)]),
        "a chunk twice": lambda _: sv.FindMissingChunksResponse(missing=[0, 0]),
        "another order": lambda _: sv.FindMissingChunksResponse(missing=[1, 0]),
        "a million": lambda _: sv.FindMissingChunksResponse(missing=range(10**6)),
    },
    "PutChunks": put_encoded(sv.PutChunksResponse(stored=2**32 - 1)),
    "PutEntries": put_encoded(sv.PutEntriesResponse(incomplete=[5_000])),
    "Restore": BAD_STREAMS,
    "ReadRange": {
        "more bytes than were asked for": lambda _: sv.ReadRangeResponse(data=bytes(3 * MIB), file_size_bytes=3 * MIB, backup_id=ID),
        "fewer bytes": lambda _: sv.ReadRangeResponse(data=b"1", file_size_bytes=3 * MIB, backup_id=ID),
        "a size at its limit": lambda _: sv.ReadRangeResponse(data=bytes(65_536), file_size_bytes=2**64 - 1, backup_id=ID),
        "no backup": lambda _: sv.ReadRangeResponse(data=b"1", file_size_bytes=1),
        "an id that is a path": lambda _: sv.ReadRangeResponse(data=b"1", file_size_bytes=1, backup_id="../" * 11),
    },
    "ListDatasets": paged(sv.ListDatasetsResponse, "datasets", lambda number: pb.Dataset(name=f"{number:06}")) | {
        f"a backup: {name}": lambda _, found=found: sv.ListDatasetsResponse(datasets=[pb.Dataset(name="d", newest_backup=found)])
        for name, found in BAD_BACKUPS.items()
    },
    "ListBackups": paged(sv.ListBackupsResponse, "backups", lambda number: backup(number=10**9 - number)) | {
        f"a backup: {name}": lambda _, found=found: sv.ListBackupsResponse(backups=[found]) for name, found in BAD_BACKUPS.items()
    },
    "GetBackup": of_backup(sv.GetBackupResponse) | another(sv.GetBackupResponse),
    "ListEntries": paged(sv.ListEntriesResponse, "columns", lambda number: listed_columns(paths=b"%09d\0%09d-" % (number, number))) | {
        "entries in place of columns": lambda _: sv.ListEntriesResponse(entries=[pb.Entry(path="f")]),
        "more columns than were asked for": lambda _: sv.ListEntriesResponse(columns=[
            pb.EntryColumns(types=b"\2" * 20_000, paths=b"\0".join(b"%09d" % number for number in range(20_000)))
        ]),
        "the same columns twice": lambda _: sv.ListEntriesResponse(columns=[listed_columns()] * 2),
        **{name: lambda _, found=found: sv.ListEntriesResponse(columns=[found]) for name, found in BAD_COLUMNS.items()},
    },
    "ListChanges": paged(sv.ListChangesResponse, "changes", lambda number: sv.Change(type=1, after=pb.Entry(path=f"{number:09}"))) | {
        "an unknown type": lambda _: sv.ListChangesResponse(changes=[sv.Change(type=99, after=pb.Entry(path="f"))]),  # type: ignore[arg-type]
        "a change of nothing": lambda _: sv.ListChangesResponse(changes=[sv.Change(type=1)]),
        **{name: lambda _, found=found: sv.ListChangesResponse(changes=[sv.Change(type=1, after=found)]) for name, found in BAD_ENTRIES.items()},
    },
    "DeleteBackup": of_backup(sv.DeleteBackupResponse) | another(sv.DeleteBackupResponse),
    "UndeleteBackup": of_backup(sv.UndeleteBackupResponse) | another(sv.UndeleteBackupResponse),
    "SetHold": of_backup(sv.SetHoldResponse, hold=pb.Hold(reason="why")) | {
        "another reason": lambda _: sv.SetHoldResponse(hold=pb.Hold(reason="other"), backup=backup()),
        "a time beyond all": lambda _: sv.SetHoldResponse(hold=pb.Hold(reason="why", time={"seconds": 2**62}), backup=backup()),
    },
    "ReleaseHold": of_backup(sv.ReleaseHoldResponse),
    "RetainBackup": of_backup(sv.RetainBackupResponse) | another(sv.RetainBackupResponse),
    "GetRetention": {"a duration beyond all": lambda _: sv.GetRetentionResponse(retention=pb.Retention(minimum={"seconds": 2**62}))},
    "SetRetention": {"a duration beyond all": lambda _: sv.SetRetentionResponse(retention=pb.Retention(policy=pb.RetentionPolicy(keep_within={"seconds": -(2**62)})))},
    "PlanRetention": paged(sv.PlanRetentionResponse, "backups", lambda number: sv.PlannedBackup(backup=backup(number=10**9 - number))) | {
        "more than the plan says": lambda _: sv.PlanRetentionResponse(backups=[sv.PlannedBackup(backup=backup())]),
    },
    "ApplyRetention": {
        "ids that are none": lambda _: sv.ApplyRetentionResponse(deleted_backup_ids=["x"]),
        "two-byte ids": lambda _: dense(sv.ApplyRetentionResponse, "deleted_backup_ids"),
        "a time beyond all": lambda _: sv.ApplyRetentionResponse(purge_time={"seconds": 2**62}),
    },
    "ListRuns": paged(sv.ListRunsResponse, "runs", lambda number: run(begin_time={"seconds": 10**9 - number})) | {
        f"a run: {name}": lambda _, found=found: sv.ListRunsResponse(runs=[found]) for name, found in BAD_RUNS.items()
    },
    "ReportRun": {f"a run: {name}": lambda _, found=found: sv.ReportRunResponse(run=found) for name, found in BAD_RUNS.items()},
    "SetExpectation": {
        "another dataset's": lambda _: sv.SetExpectationResponse(expectation=pb.Expectation(dataset="other")),
        "a duration beyond all": lambda _: sv.SetExpectationResponse(expectation=pb.Expectation(dataset="d", every={"seconds": 2**62})),
    },
    "DeleteExpectation": {"a field without its bytes": lambda _: b"\x0a\xff"},
    "ListExpectations": paged(sv.ListExpectationsResponse, "expectations", lambda number: pb.Expectation(dataset=f"{number:06}")) | {
        "a time beyond all": lambda _: sv.ListExpectationsResponse(expectations=[pb.Expectation(dataset="d", late_time={"seconds": 2**62})]),
    },
    "GetStatus": paged(sv.GetStatusResponse, "troubles", lambda number: pb.Trouble(dataset=f"{number:06}", late_since_time={"seconds": number})) | {
        f"a run: {name}": lambda _, found=found: sv.GetStatusResponse(troubles=[pb.Trouble(dataset="d", run=found)]) for name, found in BAD_RUNS.items()
    } | {
        "no reason": lambda _: sv.GetStatusResponse(troubles=[pb.Trouble(dataset="d")]),
        "a time beyond all": lambda _: sv.GetStatusResponse(oldest_success_time={"seconds": 2**62}),
        "counts at their limit": lambda _: sv.GetStatusResponse(dataset_count=2**64 - 1),
    },
    "ListEvents": paged(sv.ListEventsResponse, "events", lambda number: event(text=f"{number}")) | {
        f"an event: {name}": lambda _, found=found: sv.ListEventsResponse(events=[found]) for name, found in BAD_EVENTS.items()
    },
    "GetServerInfo": {
        "a time beyond all": lambda _: sv.GetServerInfoResponse(server_time={"seconds": 2**62}),
        "a duration beyond all": lambda _: sv.GetServerInfoResponse(condition=sv.ServerCondition(clock_jump={"seconds": 2**62})),
        "a lock beyond all": lambda _: sv.GetServerInfoResponse(condition=sv.ServerCondition(object_lock={"packs_until": {"seconds": 2**62}})),
        "a promise beyond all": lambda _: sv.GetServerInfoResponse(condition=sv.ServerCondition(object_lock={"promise": {"seconds": 2**62}})),
        "a lag beyond all": lambda _: sv.GetServerInfoResponse(condition=sv.ServerCondition(second_site={"lag": {"seconds": -(2**62)}})),
        "a start beyond all": lambda _: sv.GetServerInfoResponse(servers=[{"start_time": {"seconds": 2**62}}]),
        "too many warnings": lambda _: sv.GetServerInfoResponse(condition={"warnings": ["a"] * 1_001}),
        "too many servers": lambda _: sv.GetServerInfoResponse(servers=[{"endpoint": "a:1"}] * 1_001),
    },
}  # fmt: skip
"""By method what may come instead of its answer. What is no message at all comes from each."""
CHUNKERS = {
    "no seed": pb.Chunker(),
    "chunks of some bytes": pb.Chunker(seed=7, min_bytes=1, avg_bytes=2, max_bytes=3, fixed_bytes=1),
    "chunks of a gigabyte": pb.Chunker(seed=7, min_bytes=1, avg_bytes=2, max_bytes=2**30, fixed_bytes=2**30),
    "an unknown normalisation": pb.Chunker(seed=7, min_bytes=65_536, avg_bytes=262_144, max_bytes=MIB, normalization=99, fixed_bytes=MIB),
}  # fmt: skip
"""Only the client that cuts looks at them."""


class Row(NamedTuple):
    """One hostile answer, and what a client does to get it."""

    method: str
    what: str
    answers: dict[str, Answer]
    act: Callable[[Place], object]


EVERY = extent(3, 1)
"""Of the answers to a method, so many-th ones are tried, from the first, the second or the third on: all kinds, but not with all methods."""


def rows() -> Iterator[Row]:
    first = cycle(range(EVERY))
    for method, answers in HOSTILE.items():
        garbage: Answer = stream(b"\xff" * 100) if method == "Restore" else lambda _: b"\xff" * 100
        some = islice(answers.items(), next(first), None, EVERY)
        for what, answer in (dict(some) | {"no message of the protocol": garbage}).items():
            for act in ACTS[method]:
                if not (is_of_lists(what) and act is source) and not is_unseen(what, act):
                    yield Row(method, what, {method: answer}, act)
    for what, chunker in CHUNKERS.items():
        begun: Answer = lambda asked, found=chunker: sv.BeginUploadResponse(  # noqa: E731
            upload=upload(scope=asked.scope, chunker=found)
        )
        yield Row("BeginUpload", what, {"BeginUpload": begun}, source)
    made_up = count(1)
    progress: Answer = lambda _: sv.ResumeUploadResponse(  # noqa: E731
        upload=upload(epoch=next(made_up) + 1, durable=pb.DurablePoint(position=10 * next(made_up)))
    )
    for method, act in (("PutEntries", source), ("Backup", thin), ("Backup", put)):
        fails: Answer = lambda _: FAILS  # noqa: E731
        yield Row(
            "ResumeUpload",
            f"progress that nobody made, {act.__name__}",
            {method: fails, "ResumeUpload": progress},
            patient(act),
        )


def patient(act: Callable[[Place], object]) -> Callable[[Place], object]:
    """The same with time for other tries."""
    if act is put:
        return put
    return lambda place: place.client.backup(
        place.source, dataset="d", thin=act is thin, cache=False, retry_s=0.5
    )


def is_of_lists(what: str) -> bool:
    """A backup takes one page of one item from the list of backups."""
    return what.startswith(("pages", "empty pages", "a page that"))


def is_unseen(what: str, act: Callable[[Place], object]) -> bool:
    """What only one way of reading a stream gets to see: chunks only come where contents are compared, and bytes elsewhere."""
    named = what in {
        "a size that is not the bytes'",
        "chunks of more than its size",
        "a chunk of nothing",
        "a chunk without a digest",
    }
    if named:
        return act is not verify
    if what == "many directories with files":
        return act is not verify  # which keeps them; and it is the longest of all
    if what == "directories that fill the memory":
        return act is not restore  # the check is the same for all, and takes long
    return act is verify and what in {"another content", "chunks of nothing"}


def tried(server: HostileServer, row: Row, place: Place) -> dict[str, Any]:
    """What came of a row: the error, and the most memory that it took."""
    server.hostile = row.answers
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    try:
        error = f"NO ERROR: {row.act(place)!r}"
    except StaddleError as raised:
        error = f"{type(raised).__name__}: {raised.message}"
    except BaseException as raised:
        error = f"FAULT {type(raised).__name__}: {raised}"
    return {"method": row.method, "what": row.what, "act": getattr(row.act, "__name__", ""), "error": error, "bytes": peak_bytes() - before}  # fmt: skip


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main(place: Path) -> None:
    _pages.PAGES_MAX, _pages.EMPTY_PAGES_MAX = 40, 30  # type: ignore[misc]
    retry.PROGRESS_MAX = 3  # type: ignore[misc]
    tree, target = place / "source", place / "target"
    tree.mkdir()
    target.mkdir()
    for name, data in (("f", b"one"), ("g", b"two")):
        (tree / name).write_bytes(data)
    (target / "f").write_bytes(b"one")
    server_side = HostileServer()
    server = grpc.server(ThreadPoolExecutor(12), handlers=[server_side])  # type: ignore[list-item]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    address = f"127.0.0.1:{port}"
    with Client(address, "token", retry_s=0) as client:
        at = Place(client, tree, target)
        honest = [
            tried(server_side, Row(method, "honest", {}, act), at)
            for method, acts in ACTS.items()
            for act in acts
            if act is not put_much  # which does not end on its own
        ]
        found = [tried(server_side, row, at) for row in rows()]
        silence.SILENCE_S = silence.ANSWER_S = 0.2  # type: ignore[misc]
        silent = dict.fromkeys(("Restore", "Backup"), lambda _: _quiet(server_side.over))
        for method, acts in (("Restore", ACTS["Restore"]), ("Backup", ACTS["Backup"])):
            found += [tried(server_side, Row(method, "silence", silent, act), at) for act in acts]
        server_side.over.set()
    server.stop(None).wait()
    left = sorted(os.listdir(place))
    print(json.dumps({"address": address, "honest": honest, "rows": found, "left": left}))


def _quiet(over: threading.Event) -> Iterator[bytes]:
    """Answers nothing."""
    over.wait(60)
    return iter([])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
