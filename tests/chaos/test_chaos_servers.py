"""Single faults of three servers in processes of their own, on PostgreSQL and a bucket: each at a step, or an answer, that it chooses."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from chaos_small_site import SmallSite as Site
from chaos_work import Restorer, ThinWriter, TreeWriter, read_tree
from crash_server import check_agreement
from crash_work import Attempt, LostError, the_rest
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app.bootstrap import open_rooms
from staddle_server.app.data_directory import DataDirectory
from tcp_proxy import status
from thin import Source, back_up, backups, messages, noise, reason, restore, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]

FILES = {"a": noise(300_000, seed=21), "b": b"small"}


def records_of(site: Site, backup: str) -> list[str]:
    with open_rooms(DataDirectory(site.members[1].data)) as rooms:
        return [name for name, _ in rooms.blobs.list("records") if name.endswith(backup)]


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return reason(error)
    return ""


def taken_over(source: Source, stub: object) -> Source:
    """The same upload at another server, behind its last checkpoint."""
    resumed = object.__new__(Source)
    resumed.__dict__ = {**source.__dict__, "stub": stub}
    resumed.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload  # type: ignore[attr-defined]
    durable = resumed.upload.durable
    resumed.entries, resumed.bytes = durable.entry_count, durable.data_bytes
    resumed.number = durable.put_entries_number
    return resumed


def test_a_commit_whose_answer_the_database_does_not_give_is_one_backup(site: Site) -> None:
    site.database.lose_commit(after=b"INSERT INTO backups")
    with pytest.raises(grpc.RpcError) as failed:
        back_up(site.stub(0), "unanswered", FILES, request_id="unanswered")
    assert site.database.lost.is_set()
    assert reason(failed.value) == "STORE_UNAVAILABLE"
    made = [
        back_up(site.stub(number), "unanswered", FILES, request_id="unanswered").id for number in (1, 2, 0)
    ]
    assert made == [backup.id for backup in backups(site.stub(2), "unanswered")] * 3
    assert restore(site.stub(1), "unanswered").files == FILES
    check_agreement(site.members[0].data)


def test_one_request_at_three_servers_at_once_is_one_backup(site: Site) -> None:
    def ask(number: int) -> str:
        """The backup, or why there is none yet."""
        try:
            return back_up(site.stub(number), "once", FILES, request_id="once").id
        except grpc.RpcError as error:
            return reason(error)

    with ThreadPoolExecutor(3) as threads:
        first = set(threads.map(ask, range(3)))
    upload = site.stub(0).GetUpload(sv.GetUploadRequest(request_id="once")).upload
    if upload.state == pb.UPLOAD_STATE_OPEN:  # they were in each other's way
        attempt = Attempt("once", FILES, dict(FILES), pb.UPLOAD_SCOPE_WHOLE, by_source=False)
        upload = site.stub(0).ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
        site.stub(0).Backup(messages(the_rest(attempt, upload)))
    (backup,) = backups(site.stub(0), "once")
    refused = first - {backup.id}
    assert refused <= {"WRONG_SERVER", "UPLOAD_BUSY", "RESUME_REQUIRED", "STALE_EPOCH", "UPLOAD_CLOSED"}
    assert "UPLOAD_CLOSED" not in refused or backup.id in first, "one of them has committed meanwhile"
    assert [ask(number) for number in range(3)] == [backup.id] * 3
    assert restore(site.stub(1), "once").files == FILES

    def begin(number: int) -> str:
        return Source(site.stub(number), "begun", request_id="begun").upload.id

    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(begin, range(3)))) == 1


def test_of_three_commands_that_make_one_tenant_at_once_one_does(site: Site) -> None:
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: site.run("tenant", "create", "acme"), range(3)))
    assert sorted(code for code, _ in done) == [0, 1, 1]
    assert all("exists already" in said for code, said in done if code)
    _, listed = site.run("tenant", "list", "--json")
    assert listed.count('"acme"') == 1


def test_an_upload_survives_the_kill_of_two_servers_one_after_the_other(site: Site) -> None:
    first, second, _ = site.members
    source = Source(site.stub(0), "twice")
    source.put_file("a", noise(1_500_000, 31))
    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("b", noise(100_000, 32))  # not durable: it is lost with the server
    first.kill()
    source = taken_over(source, site.stub(1))
    assert (source.entries, source.bytes) == (1, 1_500_000)
    source.put_file("b", noise(400_000, 33))
    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    second.kill()
    source = taken_over(source, site.stub(2))
    assert (source.entries, source.bytes) == (2, 1_900_000)
    source.put_file("c", noise(50_000, 34))
    source.commit()
    expected = {"a": noise(1_500_000, 31), "b": noise(400_000, 33), "c": noise(50_000, 34)}
    assert restore(site.stub(2), "twice").files == expected
    for number, member in enumerate((first, second)):
        member.start()
        assert restore(site.stub(number), "twice").files == expected


def test_a_server_that_stalls_before_a_pack_for_so_long_that_it_is_dead_publishes_nothing_afterwards(
    site: Site,
) -> None:
    source = Source(site.stub(0), "stalled")
    source.put_file("a", noise(200_000, 41))
    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("a2", noise(100_000, 42))
    asked = sv.FindMissingChunksRequest(**source.id, digests=[bytes(32)])

    def checkpoint() -> object:
        return source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))

    with site.stopped("pack.put", "before", 0, checkpoint) as outcome:
        assert refusal(lambda: site.stub(1).FindMissingChunks(asked)) == "WRONG_SERVER"
        wait_until(lambda: refusal(lambda: site.stub(1).FindMissingChunks(asked)) == "RESUME_REQUIRED")
        other = taken_over(source, site.stub(1))
        assert (other.entries, other.bytes) == (1, 200_000)
        other.put_file("b", noise(300_000, 43))
        made = other.commit()
    (error,) = outcome
    assert isinstance(error, grpc.RpcError), error
    assert "is committed" in (error.details() or "") or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [backup.id for backup in backups(site.stub(0), "stalled")] == [made.id]
    assert restore(site.stub(0), "stalled").files == {"a": noise(200_000, 41), "b": noise(300_000, 43)}
    site.collect()
    site.assert_sound()


def test_a_server_that_stalls_between_commit_and_record_brings_no_purged_backup_back(site: Site) -> None:
    def commit() -> object:
        return back_up(site.stub(0), "late", FILES, request_id="late")

    with site.stopped("record.put", "before", 0, commit):
        made = back_up(site.stub(1), "late", FILES, request_id="late")  # replayed: it writes the record
        assert records_of(site, made.id)
        back_up(site.stub(1), "late", {"later": b"1"})
        site.stub(1).DeleteBackup(sv.DeleteBackupRequest(dataset="late", backup=made.id))
        for _ in range(3):
            site.collect()
        assert not records_of(site, made.id)
    assert site.members[0].logged("written after it had been removed")
    assert not records_of(site, made.id)
    assert made.id not in [backup.id for backup in backups(site.stub(0), "late", show_deleted=True)]
    site.assert_sound()


def test_a_full_store_is_said_and_a_backup_resumes_once_there_is_room(site: Site, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a").write_bytes(noise(500_000, 51))
    assert site.staddle("backup", str(source), "--dataset", "full")[0] == 0
    (source / "b").write_bytes(noise(500_000, 52))

    def without_room(head: bytes) -> bytes | None:
        return status(507, "InsufficientCapacity") if head.startswith(b"PUT ") else None

    site.store.instead(without_room)
    try:
        code, said = site.staddle("backup", str(source), "--dataset", "full", "--retry", "20s")
        assert code != 0
        assert "no space left" in said
        assert site.staddle("restore", "full", "--target", str(target))[0] == 0
        assert read_tree(target) == {"a": noise(500_000, 51)}
    finally:
        site.store.instead(lambda _: None)
    code, said = site.staddle("backup", str(source), "--dataset", "full")
    assert code == 0, said
    assert len(backups(site.stub(0), "full")) == 2
    assert site.staddle("restore", "full", "--target", str(tmp_path / "after"))[0] == 0
    assert read_tree(tmp_path / "after") == read_tree(source)
    site.assert_sound()


def test_the_chaos_harness_detects_losses_and_errors_that_no_client_retries(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, thin = TreeWriter("judged-tree", 1, site), ThinWriter("judged-thin", 1, site)
    for writer in (tree, thin):
        writer.work(site.stub(0), 2)
        restorer = Restorer(1, site, [writer])
        restorer.step()
        writer.check(site.stub(1))
        kept = [attempt for attempt in writer.kept if not attempt.deleted]
        assert restorer.restored == bool(kept)
        for attempt in kept:
            attempt.files = {**attempt.files, "never-sent": b"x"}
        if kept:
            with pytest.raises(LostError, match="does not restore"):
                restorer.step()
    monkeypatch.setattr(site, "token", "wrong")
    with pytest.raises(LostError, match="UNAUTHENTICATED"):
        thin.step()
    with pytest.raises(LostError, match="gave up"):
        tree.step()


def test_a_rolling_restart_fails_no_command(site: Site, tmp_path: Path) -> None:
    stop, failed, done = threading.Event(), [], []
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(noise(3_000_000, 61))
    assert site.staddle("backup", str(source), "--dataset", "rolling")[0] == 0

    def work(*commands: tuple[str, ...]) -> None:
        number = 0
        while not stop.is_set():
            for words in commands:
                code, said = site.staddle(*(word.replace("NUMBER", str(number)) for word in words))
                (failed if code else done).append((words[0], code, said))
            number += 1

    def change() -> None:
        while not stop.wait(0.3):
            (source / "small").write_bytes(os.urandom(20_000))

    works = (
        (("backup", str(source), "--dataset", "rolling"),),
        (("restore", "rolling", "--target", f"{tmp_path}/out-NUMBER"), ("list",), ("ls", "rolling")),
    )
    threads = [threading.Thread(target=change), *(threading.Thread(target=work, args=each) for each in works)]
    for thread in threads:
        thread.start()
    try:
        for member in site.members:
            before = len(done)
            assert member.stop() == 0
            member.start()
            wait_until(lambda before=before: len(done) > before + 2 or failed)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[:3]
    assert {name for name, _, _ in done} == {"backup", "restore", "list", "ls"}
