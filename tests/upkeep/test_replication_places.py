"""What may be a second place, damage on either side, removal after a grace period, and serving what was copied."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from rebuilt import delete, rebuilt
from second_place import Files, collect, contents_at, objects, problems_at, replicate
from servers import Running
from sqlalchemy import update
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.second_site import SecondSite
from staddle_server.app.settings import parse_site
from staddle_server.catalog.schema import replica_gone
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.marks import Began, GenerationMark, put_mark
from staddle_server.upkeep.replication.site import SiteRefused
from thin import back_up, backups, noise, restore

DAY_S = 86_400


def two_backups(running: Running) -> dict[str, Files]:
    stub = running.stub()
    made = {}
    for number in (1, 2):
        files = {"a": noise(200_000, number)}
        made[back_up(stub, "www", files).id] = files
    return made


def packs(place: Path) -> list[Path]:
    return sorted(path for path in (place / "packs").rglob("*") if path.is_file())


# ------------------------------------------------------------------ which place


def test_a_place_of_another_installation_is_refused_by_name(
    running: Running, tmp_path: Path, place: Path
) -> None:
    two_backups(running)
    other = Running(tmp_path / "other")
    try:
        other.make_tenant("theirs")
        replicate(other, place)
        before = objects(place)
    finally:
        other.stop()
    with pytest.raises(
        SiteRefused, match=f"{place} belongs to another installation: .* of tenant [0-9a-f]{{32}}"
    ):
        replicate(running, place)
    assert objects(place) == before


def test_a_place_on_which_a_server_has_started_is_refused(running: Running, place: Path) -> None:
    two_backups(running)
    replicate(running, place)
    put_mark(DirectoryBlobs(str(place)), GenerationMark.after(0), Began("host-b", "2026-01-01T00:00:00Z"))
    with pytest.raises(SiteRefused, match=r"is served, or was: .*\(on host-b, at 2026-01-01T00:00:00Z\)"):
        replicate(running, place, compare=True)


def test_a_place_that_another_process_holds_the_store_itself_and_foreign_files_are_refused(
    running: Running, place: Path
) -> None:
    two_backups(running)
    replicate(running, place)
    held = SecondSite(DataDirectory(running.root), str(place), os.environ)
    with held.opened(known=True), pytest.raises(SiteRefused, match="one store has one server"):
        replicate(running, place, compare=True)
    with pytest.raises(SiteRefused, match="is the store itself"):
        replicate(running, running.root / "store")
    (place.parent / "link").symlink_to(running.root / "store")
    for inside in (running.root / "store" / "second", place.parent / "link" / "packs" / "second"):
        with pytest.raises(SiteRefused, match="lies in the store"):
            replicate(running, inside)
        assert not inside.exists()
    with pytest.raises(SiteRefused, match="is the store itself"):
        replicate(running, place.parent / "link")
    (place.parent / "foreign").mkdir()
    (place.parent / "foreign" / "letter").write_text("dear")
    with pytest.raises(SiteRefused, match="is not a Staddle store"):
        replicate(running, place.parent / "foreign")
    assert [path.name for path in (place.parent / "foreign").iterdir()] == ["letter"]


def test_a_file_is_no_place_and_a_path_that_is_not_utf_8_is_one(running: Running, place: Path) -> None:
    two_backups(running)
    place.parent.mkdir(exist_ok=True)
    (place.parent / "file").write_text("dear")
    for file in (place.parent / "file", Path(os.devnull)):
        with pytest.raises(SiteRefused, match="is a file, not a directory"):
            replicate(running, file)
    odd = Path(os.fsdecode(os.fsencode(place) + b"\xff"))
    assert replicate(running, odd).packs
    assert not replicate(running, odd).packs
    assert (odd / "format").exists()


def test_a_place_with_copies_that_is_missing_or_empty_is_refused_and_gets_no_new_store(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    replicate(running, place)
    away = place.with_name("away")
    place.rename(away)
    for make in (lambda: None, place.mkdir):
        make()
        for new in range(2):  # with something to copy, and when a run looks at it
            with pytest.raises(SiteRefused, match="is missing or empty, and has copies of this store"):
                replicate(running, place, look=not new)
            made[back_up(running.stub(), "www", {"a": noise(9, new)}).id] = {"a": noise(9, new)}
        assert not place.exists() or list(place.iterdir()) == []
    assert running.catalog.replicas.get(str(place)).outcome.startswith("failed: ")
    place.rmdir()
    away.rename(place)
    assert replicate(running, place).records == 4
    assert contents_at(place, scratch()) == made
    place.rename(away)
    running.catalog.replicas.forget(str(place))
    assert replicate(running, place).keys == 1
    assert contents_at(place, scratch()) == made


def test_a_place_that_was_put_back_from_an_older_state_gets_what_it_lacks(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    replicate(running, place)
    older = place.with_name("older")
    shutil.copytree(place, older)
    made[back_up(running.stub(), "www", {"a": noise(100_000, 7)}).id] = {"a": noise(100_000, 7)}
    replicate(running, place)
    shutil.rmtree(place)
    older.rename(place)
    report = replicate(running, place, look=True)
    assert report.missing == 1
    assert report.notes == [f"{place} was put back from an older state, and was compared"]
    assert contents_at(place, scratch()) == made


def test_a_comparison_finds_missing_keys(running: Running, place: Path, scratch: Any) -> None:
    made = two_backups(running)
    replicate(running, place)
    shutil.rmtree(place / "keys")
    assert replicate(running, place, compare=True).keys == 1
    assert contents_at(place, scratch()) == made


def test_without_anything_new_a_place_is_looked_at_every_few_minutes(running: Running, place: Path) -> None:
    two_backups(running)
    whole_ns = replicate(running, place).whole_ns
    running.clock.ahead_s += 299
    report = replicate(running, place)
    assert (report.idle, report.whole_ns) == (True, whole_ns)
    running.clock.ahead_s += 2
    report = replicate(running, place)
    assert report.idle
    assert report.whole_ns > whole_ns
    running.clock.ahead_s += 301
    place.rename(place.with_name("away"))
    with pytest.raises(SiteRefused):
        replicate(running, place)


def test_a_place_with_decisions_that_this_catalog_never_made_gets_no_record(
    running: Running, place: Path, scratch: Any, tmp_path: Path
) -> None:
    shutil.copytree(running.root, tmp_path / "older")
    made = two_backups(running)
    replicate(running, place)
    before = objects(place)
    older = Running(tmp_path / "older")
    try:
        back_up(older.stub(), "www", {"other": b"history"})
        report = replicate(older, place)
    finally:
        older.stop()
    assert "a record that this store never had" in report.problems[0].message
    assert {name for name in objects(place) if name.startswith("records/")} == {
        name for name in before if name.startswith("records/")
    }
    assert contents_at(place, scratch()) == made


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/srv/b/../second", "/srv/second"),
        ("file:///srv/second", "/srv/second"),
        ("s3://bucket/prefix?region=eu-1", "s3://bucket/prefix?region=eu-1"),
    ],
)
def test_a_place_is_a_path_or_the_url_of_an_object_store(text: str, meant: str) -> None:
    assert parse_site(text) == meant


@pytest.mark.parametrize("text", ["second", "http://host/x", "s3://user:secret@bucket/x", "file://host/x"])
def test_another_text_is_no_place_and_no_secret_of_it_is_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|credentials") as refused:
        parse_site(text)
    assert "secret" not in str(refused.value)


# ------------------------------------------------------------------ damage


def test_a_damaged_pack_here_is_named_and_everything_else_is_copied(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    flipped = packs(running.root / "store")[0]
    whole = flipped.read_bytes()
    flipped.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    report = replicate(running, place)
    (problem,) = report.problems
    assert flipped.name in problem.message
    assert "run `staddle-server repair`" in problem.message
    assert not report.whole_ns
    assert [path.name for path in packs(place)] == [packs(running.root / "store")[1].name]
    flipped.write_bytes(whole)
    assert replicate(running, place).problems == []
    assert contents_at(place, scratch()) == made


def test_a_good_copy_stays_when_the_original_is_damaged_later(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    replicate(running, place)
    for pack in packs(running.root / "store"):
        pack.write_bytes(b"\0" * pack.stat().st_size)
    replicate(running, place, verify=True)
    assert contents_at(place, scratch()) == made


def test_another_object_under_a_packs_name_is_an_error_by_name_and_verify_replaces_it(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    name = str(packs(running.root / "store")[0].relative_to(running.root / "store"))
    (place / name).parent.mkdir(parents=True)
    (place / "format").write_bytes(b"staddle store 1\n")
    (place / name).write_bytes(b"something else")
    report = replicate(running, place)
    assert name in report.problems[0].what
    assert "`replicate --verify` puts an intact copy in its place" in report.problems[0].message
    assert (place / name).read_bytes() == b"something else"
    assert contents_at(place, scratch()) == {}, "a record would promise what is not there"
    assert replicate(running, place, verify=True).problems == []
    assert contents_at(place, scratch()) == made


def test_verify_reads_every_byte_there_and_replaces_what_is_damaged(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    replicate(running, place)
    flipped = packs(place)[0]
    whole = flipped.read_bytes()
    flipped.write_bytes(whole[:90_000] + bytes([whole[90_000] ^ 1]) + whole[90_001:])
    assert replicate(running, place, compare=True).packs == 0, "sizes and footers show nothing"
    report = replicate(running, place, verify=True)
    assert (report.verified, report.packs, report.problems) == (1, 1, [])
    assert flipped.read_bytes() == whole
    assert contents_at(place, scratch()) == made


def test_an_object_that_is_missing_there_is_copied_again_after_the_next_comparison(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    replicate(running, place)
    packs(place)[0].unlink()
    record = max((place / "records").rglob("*-*"))
    record.unlink()
    assert replicate(running, place).idle
    running.clock.ahead_s += DAY_S + 1
    report = replicate(running, place)
    assert (report.missing, report.packs, report.records) == (1, 1, 1)
    assert contents_at(place, scratch()) == made


def test_a_record_that_is_lost_here_is_copied_from_its_second_copy_or_reported(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    record = max((running.root / "store" / "records").rglob("*-*"))
    copy = running.root / "store" / "copies" / record.relative_to(running.root / "store")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(record, copy)
    record.write_bytes(b"damaged")
    assert replicate(running, place).problems == []
    assert contents_at(place, scratch()) == made
    record.unlink()
    copy.unlink()
    report = replicate(running, place, compare=True)
    assert "is missing here, and is intact at" in report.problems[0].message
    assert contents_at(place, scratch()) == made


def test_parity_is_copied_to_a_directory(running: Running, place: Path) -> None:
    pytest.importorskip("pyeclib", reason="parity is made with it")
    two_backups(running)
    replicate(running, place)
    from staddle_server.tenancy.tenant import Tenants
    from staddle_server.upkeep.integrity.parity import make_all

    make_all(Tenants(running.blobs, running.catalog, running.keys), running.catalog, 10)
    assert replicate(running, place).parities == 2
    here, there = objects(running.root / "store"), objects(place)
    parities = {name for name in here if name.startswith("parity/")}
    assert len(parities) == 2
    assert {name: there[name] for name in parities} == {name: here[name] for name in parities}
    assert replicate(running, place).idle


# ------------------------------------------------------------------ removal


def test_what_is_gone_here_stays_there_for_the_grace_period_and_then_goes(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    gone, kept = made
    replicate(running, place)
    delete(running.stub(), "www", gone)
    collect(running)
    assert len(packs(running.root / "store")) == 1
    report = replicate(running, place, compare=True)
    assert (report.removed, len(packs(place))) == (0, 2)
    assert report.waiting
    running.clock.ahead_s += 13 * DAY_S
    assert replicate(running, place).removed == 0
    running.clock.ahead_s += 2 * DAY_S
    report = replicate(running, place)
    assert report.removed
    assert report.waiting == 0
    assert [path.name for path in packs(place)] == [packs(running.root / "store")[0].name]
    assert contents_at(place, scratch()).keys() == {kept}
    assert problems_at(place, scratch()) == []


def test_no_pack_goes_while_a_record_there_still_needs_it(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    gone, kept = made
    replicate(running, place)
    delete(running.stub(), "www", gone)
    collect(running)  # its records are removed, too: that it was purged never arrives there
    replicate(running, place, compare=True)
    with running.catalog.database.write() as connection:
        packs_gone = replica_gone.c.name.startswith("packs/")
        connection.execute(update(replica_gone).where(packs_gone).values(seen_ns=0))
    replicate(running, place, compare=True)
    assert contents_at(place, scratch()) == made
    replicate(running, place, compare=True, grace_s=0)
    assert contents_at(place, scratch()).keys() == {kept}
    assert len(packs(place)) == 1


def test_a_store_that_has_lost_its_objects_removes_nothing_there(
    running: Running, place: Path, scratch: Any
) -> None:
    made = two_backups(running)
    replicate(running, place)
    before = objects(place)
    for part in ("packs", "records", "heads"):
        shutil.rmtree(running.root / "store" / part)
    replicate(running, place, compare=True, grace_s=0)
    assert objects(place).keys() == before.keys()
    assert contents_at(place, scratch()) == made


def test_a_tenant_without_any_pack_loses_none_there(running: Running, place: Path) -> None:
    made = two_backups(running)
    replicate(running, place)
    for backup in made:
        delete(running.stub(), "www", backup)
    collect(running)
    report = replicate(running, place, compare=True, grace_s=0)
    assert "has no pack here, so all its packs stay" in report.notes[0]
    assert len(packs(place)) == 2


# ------------------------------------------------------------------ promotion


def test_a_copy_is_served_after_a_rebuild_with_the_same_master_key(
    running: Running, place: Path, tmp_path: Path
) -> None:
    stub = running.stub()
    made = two_backups(running)
    held, retained = made
    stub.SetHold(sv.SetHoldRequest(dataset="www", backup=held, reason="audit"))
    until = time.time_ns() + 40 * DAY_S * 10**9
    request = sv.RetainBackupRequest(dataset="www", backup=retained)
    request.until_time.FromNanoseconds(until)
    stub.RetainBackup(request)
    replicate(running, place)
    shutil.rmtree(running.root / "store")  # the first place burns

    with rebuilt(place, place.parent / "catalog.db", time.time_ns()) as (_, report):
        assert report.problems == []
    promoted = Running(place.parent)
    try:
        stub = promoted.stub()
        for backup, files in made.items():
            assert restore(stub, "www", backup=pb.BackupSelector(backup=backup)).files == files
        states = {backup.id: backup for backup in backups(stub, "www")}
        assert states[held].hold.reason == "audit"
        assert states[retained].retain_until_time.ToNanoseconds() == until
        new = back_up(stub, "www", {"after": noise(50_000, 7)})
        assert restore(stub, "www", backup=pb.BackupSelector(backup=new.id)).files == {
            "after": noise(50_000, 7)
        }
    finally:
        promoted.stop()
