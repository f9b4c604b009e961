"""Each start leaves a mark: copies and older states of data directory, catalog or store are detected, and never served."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from servers import ServerProcess
from staddle_server.app import bootstrap, generation, store_place
from staddle_server.app.data_directory import DataDirectory, DataDirectoryError
from staddle_server.base.errors import Exhausted, Unavailable
from staddle_server.base.types import TokenRole
from staddle_server.catalog import TenantRow
from staddle_server.cli.run import group
from staddle_server.store.birth import birth_ns
from staddle_server.store.blobs import Blobs
from staddle_server.store.open import open_blobs
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.records import finish_all

NOW_NS = 1_790_000_000_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    """A data directory that a server has used once."""
    made = DataDirectory(tmp_path / "d")
    bootstrap.initialise(made, NOW_NS)
    begin(made)
    return made


@pytest.fixture
def with_births(tmp_path: Path) -> None:
    if birth_ns(str(tmp_path)) is None:
        pytest.skip("this file system does not tell when a file was made")


def begin(directory: DataDirectory) -> None:
    """Start a server, and stop it immediately."""
    with bootstrap.open_rooms(directory, only_look=True) as opened:
        generation.leave_mark(directory, opened.blobs, opened.catalog, NOW_NS)


def command(name: str, directory: DataDirectory, *arguments: str, code: int = 0) -> Result:
    settings = {name: None for name in os.environ if name.startswith("STADDLED_")}
    words = [*name.split(), "--data", str(directory.path), *arguments]
    done = CliRunner().invoke(group, words, env=settings)
    assert done.exit_code == code, done.output
    return done


def copied(directory: DataDirectory, name: str) -> DataDirectory:
    return DataDirectory(Path(shutil.copytree(directory.path, directory.path.parent / name, symlinks=True)))


class Listed(WrappedBlobs):
    """A store that remembers what was listed."""

    def __init__(self, root: str) -> None:
        super().__init__(open_blobs(root))
        self.listed: list[str] = []

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.listed.append(prefix)
        return super().list(prefix)


def test_a_start_lists_the_marks_once(directory: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_place, "open_blobs", Listed)
    before = marks(directory)
    with bootstrap.open_rooms(directory) as opened:
        generation.leave_mark(directory, opened.blobs, opened.catalog, NOW_NS, opened.looked)
        assert isinstance(opened.blobs, Listed)
        assert opened.blobs.listed.count("marks") == 1
    assert marks(directory) != before


def marks(directory: DataDirectory) -> list[str]:
    return sorted(os.listdir(directory.store / "marks"))


def test_each_start_leaves_one_numbered_mark_with_host_and_time(
    directory: DataDirectory,
) -> None:
    for number in (1, 2, 3):
        (mark,) = marks(directory)
        assert mark.startswith(f"{number:012}-")
        first, said = (directory.store / "marks" / mark).read_text().splitlines()
        assert first == "staddle mark 1"
        assert json.loads(said) == {"host": os.uname().nodename[:64], "began": "2026-09-21T14:13:20Z"}
        begin(directory)


@pytest.mark.usefixtures("with_births")
def test_a_copy_is_served_only_once_adopted_and_the_original_always(directory: DataDirectory) -> None:
    copy = copied(directory, "copy")
    with pytest.raises(DataDirectoryError, match=r"is a copy.*staddle-server adopt --data"):
        begin(copy)
    begin(directory)
    said = command("adopt", copy).output
    assert "is valid from now on" in said
    begin(copy)
    begin(copy)
    assert "nothing was changed" in command("adopt", copy).output
    begin(directory)


@pytest.mark.usefixtures("with_births")
def test_a_directory_overwritten_by_an_older_copy_is_not_served(directory: DataDirectory) -> None:
    older = copied(directory, "older")
    begin(directory)
    shutil.rmtree(directory.path)
    older.path.rename(directory.path)
    with pytest.raises(DataDirectoryError, match="was restored from one"):
        begin(directory)


@pytest.mark.usefixtures("with_births")
def test_a_copy_can_be_inspected_and_collected_without_being_adopted(directory: DataDirectory) -> None:
    copy = copied(directory, "copy")
    command("check", copy)
    command("gc", copy, "--dry-run") if "--dry-run" in command("gc", copy, "--help").output else command(
        "gc", copy
    )
    command("tenant", copy, code=2)


def test_a_catalog_from_before_the_last_start_is_refused_for_every_decision(directory: DataDirectory) -> None:
    older = directory.catalog.read_bytes()
    begin(directory)
    directory.catalog.write_bytes(older)
    with pytest.raises(DataDirectoryError, match=r"is older than its store.*rebuild --replace"):
        begin(directory)
    for name in ("gc", "repair", "adopt"):
        assert "older than its store" in command(name, directory, code=1).output
    command("check", directory)
    command("rebuild", directory, "--replace")
    begin(directory)
    begin(directory)


def test_a_store_from_before_the_last_start_is_refused_until_it_is_adopted(directory: DataDirectory) -> None:
    older = Path(shutil.copytree(directory.store, directory.path.parent / "older"))
    begin(directory)
    shutil.rmtree(directory.store)
    older.rename(directory.store)
    with pytest.raises(DataDirectoryError, match=r"is older than \S*catalog\.db, or is not its store.*adopt"):
        begin(directory)
    assert "catalog.db, or is not its store" in command("gc", directory, code=1).output
    assert "staddle-server check" in command("adopt", directory).output
    begin(directory)
    begin(directory)


@pytest.mark.usefixtures("with_births")
def test_the_catalog_of_a_served_copy_does_not_match_the_store_of_the_original(
    directory: DataDirectory,
) -> None:
    copy = copied(directory, "copy")
    command("adopt", copy)
    for each in (copy, directory):
        begin(each)
    shutil.copyfile(copy.catalog, directory.catalog)
    with pytest.raises(DataDirectoryError, match=r"is older than its store.*rebuild --replace"):
        begin(directory)
    assert "rebuild --replace" in command("adopt", directory, code=1).output


def test_removed_marks_are_detected(directory: DataDirectory) -> None:
    shutil.rmtree(directory.store / "marks")
    with pytest.raises(DataDirectoryError, match="is missing in it"):
        begin(directory)


def test_foreign_files_among_the_marks_are_ignored(directory: DataDirectory) -> None:
    for name in ("x", "999999999999-zz", "9-0123456789abcdef", "999999999999-0123456789abcdef.old"):
        (directory.store / "marks" / name).write_bytes(b"\xff")
    begin(directory)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 5000, b"[" * 5000, b"staddle mark 1\n[]", b'staddle mark 1\n{"host": "\\u001b[31m"}'],
)
@pytest.mark.usefixtures("with_births")
def test_an_unreadable_mark_still_counts(directory: DataDirectory, content: bytes) -> None:
    (mark,) = marks(directory)
    with (directory.store / "marks" / mark).open("r+b") as file:
        file.truncate(0)
        file.write(content)
    with pytest.raises(DataDirectoryError, match="the last server ran on other files"):
        begin(copied(directory, "copy"))
    begin(directory)


class CutOffError(Exception):
    """The process ends here."""


def steps(directory: DataDirectory, stop_at: int, failure: Callable[[], BaseException]) -> int:
    """Start, failing at the changing step `stop_at` of store or catalog; return the number of steps."""
    taken = 0
    with bootstrap.open_rooms(directory, only_look=True) as opened, pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (opened.blobs, ("put", "delete")),
            (opened.catalog.generation, ("intend", "confirm")),
        ):
            for name in names:
                real = getattr(owner, name)

                def step(*arguments: object, real: Callable[..., object] = real) -> object:
                    nonlocal taken
                    taken += 1
                    if taken == stop_at:
                        raise failure()
                    return real(*arguments)

                patch.setattr(owner, name, step)
        generation.leave_mark(directory, opened.blobs, opened.catalog, NOW_NS)
    return taken


def test_after_starts_interrupted_at_any_step_the_next_one_works(
    directory: DataDirectory,
) -> None:
    whole = steps(directory, 0, CutOffError)
    assert whole == 4
    for first in range(1, whole + 1):
        for second in range(1, whole + 2):
            for stop_at in (first, second):
                try:
                    steps(directory, stop_at, CutOffError)
                except CutOffError:
                    continue
            begin(directory)
            assert len(marks(directory)) == 1


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_server_starts_on_a_full_or_read_only_disk(
    directory: DataDirectory, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    for failure in (Exhausted("STORE_FULL", "no room"), Unavailable("STORE_UNAVAILABLE", "read-only")):
        caplog.clear()
        steps(directory, step, lambda failure=failure: failure)  # type: ignore[misc]
        assert "no mark is left" in caplog.text
        begin(directory)


def test_a_command_during_the_start_of_a_server_is_not_refused(directory: DataDirectory) -> None:
    with bootstrap.open_rooms(directory) as opened:
        listed = opened.blobs.list

        def as_another_server_starts(prefix: str) -> object:
            if len(started) < 3:
                started.append(1)
                begin(directory)
            return listed(prefix)

        started: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opened.blobs, "list", as_another_server_starts)
            blobs: Blobs = opened.blobs
            generation.refuse_older(directory, blobs, opened.catalog)
        assert len(started) == 3


@pytest.mark.usefixtures("with_births")
def test_a_real_server_refuses_a_copy_and_the_store_of_a_server_that_runs(server: ServerProcess) -> None:
    beside = server.data.parent / "beside"
    shutil.copytree(server.data, beside, ignore=shutil.ignore_patterns("store"), symlinks=True)
    (beside / "store").symlink_to(server.data / "store")
    other = ServerProcess(beside)
    with pytest.raises(AssertionError, match="one store has one server"):
        other.start()
    other.kill()
    copy = ServerProcess(Path(shutil.copytree(server.data, server.data.parent / "copy")))
    with pytest.raises(AssertionError, match="is a copy, or was restored from one"):
        copy.start()
    copy.kill()
    command("adopt", DataDirectory(copy.data))
    copy.start()
    copy.stop()
    server.stop()
    server.start()


Decision = Callable[[bootstrap.Rooms], object]


def make_a_token(opened: bootstrap.Rooms) -> object:
    return bootstrap.create_token(opened, tenant_of(opened), "ci", TokenRole.WRITER, NOW_NS)


def revoke_the_token(opened: bootstrap.Rooms) -> object:
    return bootstrap.revoke_token(opened, tenant_of(opened), bootstrap.LOCAL_TOKEN, NOW_NS)


def tenant_of(opened: bootstrap.Rooms) -> TenantRow:
    return bootstrap.tenant_named(opened, bootstrap.DEFAULT_TENANT)


DECISIONS = {
    "a token is made": make_a_token,
    "a token is revoked": revoke_the_token,
    "the local token is replaced": lambda opened: bootstrap.local_token(opened, NOW_NS, shared=False),
    "the clock is confirmed": bootstrap.confirm_clock,
    "the grace is set": lambda opened: bootstrap.set_grace(opened, tenant_of(opened), 60, NOW_NS),
    "a tenant is made": lambda opened: bootstrap.create_tenant(opened, "acme", NOW_NS),
}


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_a_catalog_from_before_a_decision_is_refused_without_a_restart(
    directory: DataDirectory, decide: Decision
) -> None:
    older = directory.catalog.read_bytes()
    with bootstrap.open_rooms(directory) as opened:
        decide(opened)
    newest = directory.catalog.read_bytes()
    directory.catalog.write_bytes(older)
    with pytest.raises(DataDirectoryError, match=r"is older than its store.*rebuild --replace"):
        bootstrap.open_rooms(directory).__enter__()
    directory.catalog.write_bytes(newest)
    with bootstrap.open_rooms(directory) as opened:
        assert opened.catalog.backups.pending_records() == []


def test_a_server_starts_with_a_tenant_that_no_rebuild_can_restore(
    directory: DataDirectory,
) -> None:
    """Its keys do not open, or its records are gone: no better catalog than this one exists."""
    older = directory.catalog.read_bytes()
    with bootstrap.open_rooms(directory) as opened:
        made = bootstrap.create_tenant(opened, "acme", NOW_NS)
    directory.catalog.write_bytes(older)
    (key,) = (directory.store / "keys" / made.id.hex()).iterdir()
    records = directory.store / "records" / made.id.hex()
    whole = key.read_bytes()
    key.write_bytes(b"damaged")
    begin(directory)
    with bootstrap.open_rooms(directory):
        key.write_bytes(whole)
    with pytest.raises(
        DataDirectoryError, match=rf"it does not know 1 tenant, such as {made.id.hex()}\. .*rebuild"
    ):
        bootstrap.open_rooms(directory).__enter__()
    shutil.rmtree(records)
    with bootstrap.open_rooms(directory):
        pass


@pytest.mark.parametrize("decide", [make_a_token, revoke_the_token, bootstrap.confirm_clock])
def test_a_decision_that_is_killed_at_any_step_leaves_a_catalog_that_opens(
    directory: DataDirectory, decide: Decision
) -> None:
    older, store = directory.catalog.read_bytes(), directory.path.parent / "before"
    shutil.copytree(directory.store, store)
    whole = decided(directory, decide, 0)
    assert whole >= 4, "the catalog, the record, the head of the records, the catalog"
    said = []
    for stop_at in range(1, whole + 1):
        directory.catalog.write_bytes(older)
        shutil.rmtree(directory.store)
        shutil.copytree(store, directory.store)
        with pytest.raises(CutOffError):
            decided(directory, decide, stop_at)
        with bootstrap.open_rooms(directory) as opened:
            finish_all(opened.tenants(), opened.catalog)
            assert opened.catalog.backups.pending_records() == []
        newer, known = directory.catalog.read_bytes(), list((directory.store / "records").rglob("*-*"))
        directory.catalog.write_bytes(older)
        said.append(len(known) > len(list((store / "records").rglob("*-*"))))
        if said[-1]:
            with pytest.raises(DataDirectoryError, match="is older than its store"):
                bootstrap.open_rooms(directory).__enter__()
        directory.catalog.write_bytes(newer)
    assert said == sorted(said)
    assert all(said[-3:]), "the store records each decision, now or at the next start"


def decided(directory: DataDirectory, decide: Decision, stop_at: int) -> int:
    """Make a decision, killed before the changing step `stop_at` of store or catalog; return the number of steps."""
    taken = 0
    with bootstrap.open_rooms(directory) as opened, pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (opened.blobs, ("put", "create")),
            (opened.catalog.tokens, ("create", "revoke")),
            (opened.catalog.clock, ("put",)),
            (opened.catalog.backups, ("mark_records_written",)),
        ):
            for name in names:
                real = getattr(owner, name)

                def step(*arguments: Any, real: Callable[..., object] = real, **more: Any) -> object:
                    nonlocal taken
                    taken += 1
                    if taken == stop_at:
                        raise CutOffError
                    return real(*arguments, **more)

                patch.setattr(owner, name, step)
        decide(opened)
    return taken


def test_a_token_is_revoked_on_a_disk_without_room_and_its_record_follows(
    directory: DataDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with bootstrap.open_rooms(directory) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened.blobs, "put", full)
        revoke_the_token(opened)
        assert "could not be written, and the next start retries: no room" in caplog.text
        patch.undo()
        (token,) = opened.catalog.tokens.list_all(tenant_of(opened).id)
        assert token.revoked_ns == NOW_NS
        assert finish_all(opened.tenants(), opened.catalog) == 1


def full(*_: object) -> None:
    raise Exhausted("STORE_FULL", "no room")


def test_a_copy_of_the_catalog_made_under_a_running_server_is_refused(server: ServerProcess) -> None:
    """Later decisions, such as a revoked token, would be undone; after a stop, and after a kill."""
    older = server.data.parent / "older.db"
    command("token create", DataDirectory(server.data), "--role=reader", "--name=ci")
    for ends in (server.stop, server.kill):
        with closing(sqlite3.connect(server.data / "catalog.db")) as catalog:
            catalog.execute("VACUUM INTO ?", [str(older)])
        if ends == server.kill:
            command("token revoke", DataDirectory(server.data), "ci")
        ends()
        newest = server.data.parent / "newest"
        newest.mkdir()
        for name in server.data.glob("catalog.db*"):
            name.rename(newest / name.name)
        older.rename(server.data / "catalog.db")
        with pytest.raises(AssertionError, match=r"is older than its store"):
            server.start()
        server.kill()
        for name in server.data.glob("catalog.db*"):
            name.unlink()
        for name in newest.iterdir():
            name.rename(server.data / name.name)
        newest.rmdir()
        server.start()
