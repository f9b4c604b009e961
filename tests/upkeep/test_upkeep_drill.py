"""Drills restore the newest backup of each dataset to nowhere, and say what cannot be restored."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harm import flip, pack_file
from second_place import kept_of
from servers import Running
from sql import sql
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.base.types import Root
from staddle_server.catalog import Backup
from staddle_server.catalog.overview import DatasetState
from staddle_server.restore.proof import prove
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.integrity.drill import AGAIN_S, Drilling, FailedDrills
from staddle_server.upkeep.schedule import StoppedError
from thin import back_up, noise

DAY_S = 24 * 3600.0
PERIOD_S = 7 * DAY_S
FILES = {"a": noise(3_000_000, 1), "d/small": b"small", "d/empty": b"", "zeros": bytes(9_000_000)}


def drills_of(running: Running, **settings: float) -> Drilling:
    return Drilling(kept_of(running), running.service._openers, period_s=PERIOD_S, **settings)


def dataset(running: Running, name: str = "d"):
    (found,) = [
        each for each in running.stub().ListDatasets(sv.ListDatasetsRequest()).datasets if each.name == name
    ]
    return found


def never() -> bool:
    return False


def harm(running: Running) -> None:
    for pack in running.catalog.verification.live_packs(running.tenant):
        flip(pack_file(running, pack.id), 100)


def test_a_drill_reads_everything_and_says_which_backup_is_proven(running: Running) -> None:
    stub = running.stub()
    back_up(stub, "d", FILES)
    assert not dataset(running).HasField("drill")
    back_up(stub, "d", FILES | {"e": b"e"})
    summary = drills_of(running).run(never)
    assert summary == f"1 dataset drilled, {sum(map(len, FILES.values())) + 1:,} bytes"
    drill = dataset(running).drill
    assert (drill.fault, drill.proven_number) == ("", 2)
    assert abs(drill.proven_time.ToNanoseconds() - running.clock.now_ns()) < 60 * 10**9
    assert drill.end_time == drill.proven_time


def test_each_dataset_is_due_once_in_a_period_and_a_new_one_at_once(running: Running) -> None:
    stub, drills = running.stub(), drills_of(running)
    for name in ("a", "b"):
        back_up(stub, name, {"f": b"f"})
    assert drills.run(never).startswith("2 datasets drilled")
    assert drills.run(never) == ""
    back_up(stub, "c", {"f": b"f"})
    assert drills.run(never).startswith("1 dataset drilled")
    running.clock.ahead_s += PERIOD_S + 60
    assert drills.run(never).startswith("3 datasets drilled")


def test_a_time_from_a_clock_that_was_ahead_does_not_put_a_drill_off(running: Running) -> None:
    back_up(running.stub(), "d", {"f": b"f"})
    drills = drills_of(running)
    running.clock.ahead_s += 365 * DAY_S
    drills.run(never)
    running.clock.ahead_s -= 365 * DAY_S
    assert drills.run(never).startswith("1 dataset drilled")


def test_damage_is_an_alarm_until_the_next_backup_has_healed_it(running: Running) -> None:
    stub = running.stub()
    back_up(stub, "d", FILES)
    drills, alarms = drills_of(running), FailedDrills(running.catalog)
    drills.run(never)
    harm(running)
    running.clock.ahead_s += PERIOD_S + 60
    assert drills.run(never).endswith("; 1 dataset cannot be restored whole")
    drill = dataset(running).drill
    assert "damaged" in drill.fault
    assert drill.proven_number == 1
    assert drill.proven_time.seconds < drill.end_time.seconds
    (alarm,) = alarms.alarms("", running.clock.now_ns())
    assert alarm.key == (kinds.DRILL.name, "default", "", "d")
    assert "cannot be restored whole" in alarm.text
    assert drills.run(never) == "", "nothing has changed since"
    back_up(stub, "d", FILES, kind=pb.BACKUP_KIND_FULL)
    assert drills.run(never).startswith("1 dataset drilled")
    assert (dataset(running).drill.fault, dataset(running).drill.proven_number) == ("", 2)
    assert list(alarms.alarms("", running.clock.now_ns())) == []


def test_a_fault_is_looked_at_again_a_day_later(running: Running) -> None:
    back_up(running.stub(), "d", FILES)
    harm(running)
    drills = drills_of(running)
    drills.run(never)
    running.clock.ahead_s += AGAIN_S + 60
    assert drills.run(never).startswith("1 dataset drilled")


def test_a_dataset_without_a_backup_is_neither_due_nor_an_alarm(running: Running) -> None:
    stub = running.stub()
    backup = back_up(stub, "d", FILES)
    harm(running)
    drills = drills_of(running)
    drills.run(never)
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="d", backup=backup.id))
    running.clock.ahead_s += PERIOD_S + 60
    assert drills.run(never) == ""
    assert list(FailedDrills(running.catalog).alarms("", running.clock.now_ns())) == []


@pytest.mark.parametrize("gone", [True, False], ids=["deleted", "followed by another"])
def test_what_a_backup_lacks_that_is_no_longer_the_newest_is_no_alarm(running: Running, gone: bool) -> None:
    """It may have been purged while its drill ran."""
    stub = running.stub()
    back_up(stub, "d", FILES)
    backup = newest(running)
    harm(running)
    if gone:
        stub.DeleteBackup(sv.DeleteBackupRequest(dataset="d", backup=backup.id.hex()))
    else:
        back_up(stub, "d", {"other": noise(1000, 9)}, kind=pb.BACKUP_KIND_FULL)
    assert drills_of(running).drill(backup).fault == ""
    assert list(FailedDrills(running.catalog).alarms("", running.clock.now_ns())) == []
    if not gone:
        assert not dataset(running).HasField("drill")
        assert drills_of(running).run(never).startswith("1 dataset drilled")
        assert dataset(running).drill.proven_number == 2


def test_a_fault_ends_with_the_backup_that_has_it(running: Running) -> None:
    stub = running.stub()
    back_up(stub, "d", {"whole": b"whole"})
    drills = drills_of(running)
    drills.run(never)
    bad = back_up(stub, "d", FILES)
    for pack in running.catalog.verification.live_packs(running.tenant):
        if pack.size_bytes > 1_000_000:
            flip(pack_file(running, pack.id), 100)
    running.clock.ahead_s += PERIOD_S + 60
    drills.run(never)
    (figures,) = running.catalog.figures.datasets(10)
    assert figures.drill_failed
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="d", backup=bad.id))
    (figures,) = running.catalog.figures.datasets(10)
    assert not figures.drill_failed
    assert list(FailedDrills(running.catalog).alarms("", running.clock.now_ns())) == []
    assert dataset(running).drill.fault == ""
    (line,) = running.catalog.overview.datasets(
        running.tenant,
        named="",
        state=DatasetState.ALL,
        names=None,
        after_name="",
        limit=10,
        now_ns=running.clock.now_ns(),
    )
    assert line.drill == running.catalog.datasets.get(running.tenant, "d").drill
    assert drills.run(never).startswith("1 dataset drilled"), "the newest one is another"
    assert dataset(running).drill.proven_number == 1


def test_a_run_tries_each_dataset_once_whatever_the_clocks_say(running: Running) -> None:
    back_up(running.stub(), "d", FILES)
    harm(running)
    drills = drills_of(running)
    drills.run(never)
    with running.catalog.database.write() as connection:
        sql(connection, "UPDATE datasets SET success_ns = success_ns + 10800000000000, drill_number = 7")
    assert drills.run(never).startswith("1 dataset drilled, ")


def test_a_drill_that_did_not_end_lets_the_others_come_first(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        back_up(running.stub(), name, {"f": b"f"})
    drills = drills_of(running)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    def stopped(*_: object, **__: object) -> None:
        raise StoppedError

    proved = "staddle_server.upkeep.integrity.drill.prove"
    with monkeypatch.context() as patched:
        patched.setattr(proved, broken)
        assert drills.run(never) == "0 datasets drilled, 0 bytes; 2 drills ended by a fault of the server"
        patched.setattr(proved, stopped)
        with pytest.raises(StoppedError):
            drills.run(never)
    found: list[str] = []
    real = drills.drill

    def noted(backup: Backup, stopping: Callable[[], bool]) -> object:
        found.append(backup.dataset)
        return real(backup, stopping)

    monkeypatch.setattr(drills, "drill", noted)
    assert drills.run(never).startswith("2 datasets drilled")
    assert found == ["b", "a"]


def test_a_store_that_does_not_answer_says_nothing_about_a_backup(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(running.stub(), "d", FILES)

    def silent(*_: object) -> bytes:
        raise Unavailable("STORE_UNAVAILABLE", "no answer")

    monkeypatch.setattr(running.blobs, "read", silent)
    with pytest.raises(Unavailable):
        drills_of(running).run(never)
    assert not dataset(running).HasField("drill")


def test_a_drill_that_is_stopped_does_not_count(running: Running) -> None:
    back_up(running.stub(), "d", FILES)
    asked: list[bool] = []

    def stopping() -> bool:
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(StoppedError):
        drills_of(running).run(stopping)
    assert not dataset(running).HasField("drill")


def newest(running: Running) -> Backup:
    return running.catalog.drills.newest(running.tenant, "d")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: replace_root(root, entries=root.entries + 1), "instead of"),
        (lambda root: replace_root(root, digest=bytes(32)), "missing|damaged|not"),
    ],
    ids=["fewer entries", "no first page"],
)
def test_a_manifest_that_is_not_whole_is_no_proof(
    change: Callable[[Root], Root], says: str, running: Running
) -> None:
    back_up(running.stub(), "d", FILES)
    backup = newest(running)
    tenant = kept_of(running).tenants.get(running.tenant)
    proof = prove(tenant, running.catalog, change(backup.root), running.service._openers)
    assert proof.faults
    assert proof.first


def replace_root(root: Root, **fields: object) -> Root:
    values = {name: getattr(root, name) for name in root.__struct_fields__}
    return Root(**(values | fields))


def test_content_that_is_not_what_the_entry_says_is_a_fault(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chunk is sound, and they are not those of the file: as after a fault of the program."""
    back_up(running.stub(), "d", FILES)
    monkeypatch.setattr("staddle_server.restore.proof.ContentHasher.add", lambda *_: None)
    drilled = drills_of(running).drill(newest(running))
    assert "'a': its content is not what was backed up" in drilled.fault
    assert drilled.proof.faults == 3


def test_the_rate_is_kept(running: Running) -> None:
    back_up(running.stub(), "d", {"f": noise(300_000, 1)})
    begun_s = time.monotonic()
    drills_of(running, bytes_per_s=300_000).run(never)
    assert time.monotonic() - begun_s > 0.5


def test_what_is_read_of_the_store_is_paced_and_not_every_file_that_refers_to_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(900_000, 1)
    back_up(running.stub(), "d", {f"f{number}": data for number in range(30)})
    paced: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "staddle_server.upkeep.integrity.drill.Rate",
        lambda *_, **__: lambda size, chunks: paced.append((size, chunks)),
    )
    drilled = drills_of(running, bytes_per_s=1).drill(newest(running))
    assert drilled.proof.data_bytes == 30 * len(data)
    stored = sum(size for size, _ in paced)
    assert len(data) <= stored < 3 * len(data)
    assert sum(chunks for _, chunks in paced) >= 30
