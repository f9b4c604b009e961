"""Answers and errors of a hostile server, and the client that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fuzz_client import hostile
from fuzz_engine import Check, Target, mutate_bytes
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from staddle import Client, StaddleError
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

_BACKUP = pb.Backup(
    id="ab" * 16, dataset="d", number=3, kind=1, tags={"a": "b"}, begin_time={"seconds": 5}, host="h"
)
_ENTRY = pb.Entry(
    path="a/b", type=1, content=pb.Content(size_bytes=3, content_id=bytes(32)), mtime_ns=-1, owner="root"
)


def _read(client: Client) -> bytes:
    with client.open("d", "a/b") as file:
        file.seek(1)
        return file.read(50)


ANSWERS: list[tuple[Any, Callable[[Client], object]]] = [
    (sv.ListDatasetsResponse(datasets=[pb.Dataset(name="d", backup_count=1, newest_backup=_BACKUP)]), lambda c: list(c.datasets())),
    (sv.ListBackupsResponse(backups=[_BACKUP]), lambda c: list(c.backups("d"))),
    (sv.GetBackupResponse(backup=_BACKUP), lambda c: c.get_backup("d")),
    (sv.ListEntriesResponse(entries=[_ENTRY], backup_id="ab" * 16), lambda c: list(c.entries("d"))),
    (sv.ListChangesResponse(changes=[sv.Change(type=1, after=_ENTRY)], from_backup_id="ab" * 16, to_backup_id="cd" * 16), lambda c: list(c.changes("d"))),
    (sv.ReadRangeResponse(data=b"abc", file_size_bytes=3, content_id=bytes(32), backup_id="ab" * 16), _read),
    (sv.GetServerInfoResponse(version="1", chunker=pb.Chunker(seed=1, min_bytes=65536, avg_bytes=262144, max_bytes=2**20)), lambda c: c.info()),
]  # fmt: skip


ERROR = len(ANSWERS)
"""Of an input's first byte: the call fails, and the rest is what it says about that."""


@contextmanager
def _answers() -> Iterator[Check]:
    with hostile() as (server, client):

        def check(data: bytes) -> str:
            which = (data[:1] or b"\0")[0] % (ERROR + 1)
            server.details = data[1:] if which == ERROR else b""
            server.messages = [data[1:]]
            ask = ANSWERS[which % ERROR][1]
            try:
                return f"{type(ask(client)).__name__} {which}"
            except StaddleError as error:
                return f"{type(error).__name__} {error.message} {error.retry_after_s is None}"

        yield check


def _answer_seeds() -> list[bytes]:
    seeds = [bytes([at]) + message.SerializeToString() for at, (message, _) in enumerate(ANSWERS)]
    retry = error_details_pb2.RetryInfo(retry_delay={"seconds": 1})
    info = error_details_pb2.ErrorInfo(reason="BAD_FIELD", domain="staddle", metadata={"field": "path"})
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(info)
    details[1].Pack(retry)
    status = status_pb2.Status(code=3, message="refused", details=details)
    return [*seeds, bytes([ERROR]) + status.SerializeToString()]


TARGETS = [Target("answers", _answers, _answer_seeds, mutate_bytes, short_runs=400)]
