"""What a client does, so that it makes each call of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from hostile_server import ID, METHODS, MIB
from staddle import Client, RetentionPolicy
from staddle.v1 import service_pb2 as sv


class Place(NamedTuple):
    """Where a row is tried."""

    client: Client
    source: Path
    target: Path


def source(place: Place) -> object:
    return place.client.backup(place.source, dataset="d", cache=False, retry_s=0)


def thin(place: Place) -> object:
    return place.client.backup(place.source, dataset="d", thin=True, cache=False, retry_s=0)


def put(place: Place) -> object:
    with place.client.upload("d", retry_s=0.5) as made:
        made.put("f", b"one")
    return made.report


def put_much(place: Place) -> object:
    return place.client.backup_stream("d", name="f", source=repeat(bytes(MIB)), retry_s=0)


def restore(place: Place) -> object:
    return place.client.restore("d", place.target / "new", retry_s=0)


def verify(place: Place) -> object:
    return place.client.restore("d", place.target, verify=True, retry_s=0)


def archive(place: Place) -> object:
    with open(place.target / "archive", "wb") as output:
        return place.client.write_archive("d", output, retry_s=0)


def call(name: str, **fields: Any) -> Callable[[Place], object]:
    request = getattr(sv, METHODS[name].input_type.name)(**fields)
    return lambda place: place.client.call(name, request)


ACTS: dict[str, tuple[Callable[[Place], object], ...]] = {
    "Backup": (thin, put),
    "BeginUpload": (source, thin, put),
    "GetUpload": (call("GetUpload", upload_id=ID),),
    "ResumeUpload": (call("ResumeUpload", upload_id=ID),),
    "CheckpointUpload": (put_much,),
    "RenewUpload": (call("RenewUpload", upload_id=ID),),
    "CommitUpload": (source,),
    "AbortUpload": (call("AbortUpload", upload_id=ID),),
    "ListUploads": (lambda place: sum(1 for _ in place.client.uploads()),),
    "FindMissingChunks": (source,),
    "PutChunks": (source,),
    "PutEntries": (source,),
    "Restore": (restore, verify, archive),
    "ReadRange": (lambda place: place.client.open("d", "f").seek(0, 2),),
    "ListDatasets": (lambda place: sum(1 for _ in place.client.datasets()),),
    "ListBackups": (lambda place: sum(1 for _ in place.client.backups("d")), source),
    "GetBackup": (lambda place: place.client.get_backup("d", ID),),
    "ListEntries": (lambda place: sum(1 for _ in place.client.entries("d")),),
    "ListChanges": (lambda place: sum(1 for _ in place.client.changes("d", ID)),),
    "DeleteBackup": (lambda place: place.client.delete_backup("d", ID),),
    "UndeleteBackup": (lambda place: place.client.undelete_backup("d", ID),),
    "SetHold": (lambda place: place.client.set_hold("d", ID, reason="why"),),
    "ReleaseHold": (lambda place: place.client.release_hold("d", ID),),
    "RetainBackup": (call("RetainBackup", dataset="d", backup=ID),),
    "GetRetention": (lambda place: place.client.get_retention("d"),),
    "SetRetention": (lambda place: place.client.set_retention("d", RetentionPolicy()),),
    "PlanRetention": (lambda place: place.client.plan_retention("d"),),
    "ApplyRetention": (lambda place: place.client.apply_retention("d", "token"),),
    "ListRuns": (lambda place: sum(1 for _ in place.client.runs("d")),),
    "ReportRun": (lambda place: place.client.report_run("d", "why"),),
    "SetExpectation": (lambda place: place.client.set_expectation("d", timedelta(hours=1)),),
    "DeleteExpectation": (lambda place: place.client.delete_expectation("d"),),
    "ListExpectations": (lambda place: sum(1 for _ in place.client.expectations()),),
    "GetStatus": (lambda place: place.client.status(),),
    "ListEvents": (lambda place: sum(1 for _ in place.client.events("d", open_only=True)),),
    "GetServerInfo": (lambda place: place.client.info(),),
}
