"""A rolling upgrade by one version: the newer server has added to the tables, and the older one works on beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from garbage_left import Garbage
from postgres_server import on_both_databases
from second_place import kept_of, replicate
from servers import Running
from sqlalchemy import inspect
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.base.types import TokenRole
from staddle_server.catalog import open_catalog
from staddle_server.upkeep.integrity.check import Check, CheckPlan
from staddle_server.upkeep.integrity.findings import DAMAGE, Finding
from staddle_server.upkeep.lifecycle.policies import Policies
from thin import Source, back_up, backups, noise, restore

ONE, TWO = {"a": noise(300_000, 1), "b": b"small"}, {"a": noise(200_000, 2), "c": b"new"}


def add_to_all_tables(running: Running) -> None:
    """What a migration may do: a column that may be empty, one with a default, an index, a table; and the revision."""
    with running.catalog.database.write() as connection:
        names = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
        assert len(names) > 15
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN added_later TEXT")
            connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN added_too BIGINT NOT NULL DEFAULT 7")
            connection.exec_driver_sql(f"CREATE INDEX later_{name} ON {name} (added_too)")
        connection.exec_driver_sql("CREATE TABLE later_table (row BIGINT PRIMARY KEY)")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")


def work(garbage: Garbage, dataset: str, place: Path) -> None:
    """Backs up in both ways, decides, restores, collects, checks and copies."""
    running = garbage.running
    stub = running.stub()
    first = back_up(stub, dataset, ONE)
    by_source = Source(stub, dataset)
    for path, data in TWO.items():
        by_source.put_file(path, data)
    by_source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**by_source.id))
    by_source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=by_source.upload.id)).upload
    second = by_source.commit()
    assert restore(stub, dataset).files == TWO
    selector = pb.BackupSelector(backup=first.id)
    assert restore(stub, dataset, backup=selector).files == ONE
    stub.SetHold(sv.SetHoldRequest(dataset=dataset, backup=first.id, reason="audit"))
    stub.ReleaseHold(sv.ReleaseHoldRequest(dataset=dataset, backup=first.id))
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset=dataset, backup=first.id))
    opened = stub.BeginUpload(sv.BeginUploadRequest(dataset=dataset)).upload
    stub.AbortUpload(sv.AbortUploadRequest(upload_id=opened.id, epoch=opened.epoch))
    secret = running.catalog.tokens.create(running.tenant, f"{dataset}-token", TokenRole.READER, 1)
    assert secret
    replicate(running, place)
    garbage.later(8)
    for _ in range(3):
        garbage.later(2)
        garbage.collect()
    Policies(running.catalog, kept_of(running).tenants, running.clock, 3600.0).run(lambda: False)
    assert [each.id for each in backups(running.stub(), dataset)] == [second.id]
    replicate(running, place)
    found: list[Finding] = []
    Check(kept_of(running), CheckPlan(read=True), found.append).run(
        running.catalog.tenants.list_all(), all_tenants=True
    )
    assert [each for each in found if each.severity == DAMAGE] == []
    assert restore(running.stub(), dataset).files == TWO


@on_both_databases
def test_a_server_of_the_version_before_works_on_after_the_tables_were_added_to(
    running: Running, tmp_path: Path
) -> None:
    garbage = Garbage(running)  # which starts the service again
    back_up(running.stub(), "early", ONE)
    open_upload = Source(running.stub(), "across")
    open_upload.put_file("a", ONE["a"])
    add_to_all_tables(running)
    open_upload.put_file("b", ONE["b"])
    open_upload.commit()
    assert restore(running.stub(), "across").files == ONE
    work(garbage, "www", tmp_path / "second" / "store")
    assert running.service._integrity.is_whole
    running.service._schedule.look()


@on_both_databases
def test_a_server_of_the_version_before_that_starts_afterwards_is_refused_by_name(running: Running) -> None:
    add_to_all_tables(running)
    with pytest.raises(
        Unavailable, match=r"was written by a newer version of Staddle .*r9999.*: run that version"
    ):
        open_catalog(running.catalog_place)
    back_up(running.stub(), "www", ONE)
    assert restore(running.stub(), "www").files == ONE
