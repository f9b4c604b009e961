"""The data directory: how it is created, what is refused, and who may read it."""

import errno
import fcntl
import os
import socket
import stat
import tomllib
from pathlib import Path

import pytest
from staddle_server.app import bootstrap, run
from staddle_server.app import settings_reading as config
from staddle_server.app.data_directory import (
    ClientConfig,
    DataDirectory,
    DataDirectoryError,
    write_client_config,
)
from staddle_server.app.settings import Settings
from staddle_server.base.errors import BadRequest, Damaged, Unauthenticated
from staddle_server.base.types import TokenRole
from staddle_server.store.keys import WrongMasterKey
from staddle_server.store.open import open_blobs
from staddle_server.store.records import Records, TenantRecord, encode_record
from staddle_server.tenancy.records import finish_all
from staddle_server.upkeep.integrity.check import Check, CheckPlan
from staddle_server.upkeep.integrity.findings import Finding

NOW_NS = 1_700_000_000_000_000_000


def settings(path: Path) -> Settings:
    return config.load({"data": str(path)}, {})


def initialise(path: Path) -> DataDirectory:
    directory = DataDirectory(path)
    with directory.claimed():
        run.initialise(directory, settings(path))
    return directory


@pytest.mark.parametrize("exists", [False, True])
def test_an_absent_or_empty_directory_becomes_a_data_directory(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "a" / "b"
    if exists:
        path.mkdir(parents=True)
    directory = initialise(path)
    assert directory.is_complete()
    assert {each.name for each in path.iterdir()} == {
        "client.toml",
        "master.key",
        "catalog.db",
        "store",
        "server.lock",
    } | {each.name for each in path.glob("catalog.db-*")}
    for private in (directory.client_toml, directory.master_key, directory.catalog):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600, private


def test_lost_and_found_and_files_of_the_operator_do_not_prevent_creation(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "server.toml").write_text("streams_max = 9\n")
    (tmp_path / "tls").mkdir()
    assert initialise(tmp_path).is_complete()


def test_a_directory_with_foreign_files_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(
        DataDirectoryError, match=r"is not empty and is not a Staddle data directory.*photo\.jpg"
    ):
        initialise(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_lost_master_key_or_catalog_is_never_replaced_by_a_new_one(tmp_path: Path) -> None:
    directory = initialise(tmp_path)
    key = directory.master_key.rename(tmp_path.parent / "key")
    with pytest.raises(DataDirectoryError, match=r"master\.key is missing.*restore the key"):
        initialise(tmp_path)
    key.rename(directory.master_key)
    directory.catalog.unlink()
    with pytest.raises(
        DataDirectoryError,
        match=r"catalog\.db is missing.*restore the newest copy.*staddle-server rebuild --data",
    ):
        initialise(tmp_path)


@pytest.mark.parametrize(
    "reached", ["nothing", "store", "format", "key", "empty catalog", "catalog", "tenant keys"]
)
def test_creating_a_directory_resumes_after_any_interruption(tmp_path: Path, reached: str) -> None:
    steps = ["nothing", "store", "format", "key", "empty catalog", "catalog", "tenant keys"]
    directory = DataDirectory(tmp_path)
    done = steps.index(reached)
    if done >= 1:
        directory.store.mkdir()
        blobs = open_blobs(str(directory.store))
    if done >= 2:
        bootstrap.create_format(blobs)
    if done >= 3:
        master = bootstrap.create_master_key(str(directory.master_key))
    if done >= 4:
        directory.catalog.touch()
    if done >= 5:
        bootstrap.open_catalog(str(directory.catalog)).close()
    if done >= 6:
        bootstrap.KeyStore(blobs, master).create("default", NOW_NS)
    initialise(tmp_path)
    with bootstrap.open_rooms(directory) as opened:
        (tenant,) = opened.catalog.tenants.list_all()
        assert tenant.name == "default"
        opened.keys.load(tenant.id)


@pytest.mark.parametrize("left", [["master.key.new"], ["master.key", "master.key.new"], ["client.toml.new"]])
def test_leftovers_of_an_interrupted_creation_are_removed(tmp_path: Path, left: list[str]) -> None:
    if "master.key" in left:
        (tmp_path / "store").mkdir()
        bootstrap.create_format(open_blobs(str(tmp_path / "store")))
        bootstrap.create_master_key(str(tmp_path / "master.key"))
    for name in set(left) - {"master.key"}:
        (tmp_path / name).write_text("half a line")
    assert initialise(tmp_path).is_complete()
    assert not list(tmp_path.glob("*.new"))


def test_a_directory_whose_first_start_broke_off_before_its_tenant_serves_at_the_next_one(
    tmp_path: Path,
) -> None:
    directory = initialise(tmp_path / "model")
    half = DataDirectory(tmp_path / "half")
    half.store.mkdir(parents=True)
    half.master_key.write_bytes(directory.master_key.read_bytes())
    bootstrap.create_format(open_blobs(str(half.store)))
    bootstrap.open_catalog(str(half.catalog)).close()
    assert half.is_complete(), "so serving does not create it again"
    with bootstrap.open_rooms(half) as opened:
        token = run.local_token(opened, half)
        assert opened.catalog.tokens.authenticate(token, NOW_NS).name == "local"


def test_an_empty_catalog_beside_a_store_in_use_is_refused_and_not_filled(tmp_path: Path) -> None:
    directory = initialise(tmp_path)
    for part in tmp_path.glob("catalog.db*"):
        part.unlink()
    bootstrap.open_catalog(str(directory.catalog)).close()
    directory.client_toml.unlink()
    with (
        pytest.raises(DataDirectoryError, match=r"is empty, but .* is filled: restore the newest copy"),
        bootstrap.open_rooms(directory),
    ):
        pass
    catalog = bootstrap.open_catalog(str(directory.catalog))
    assert catalog.tenants.list_all() == []
    catalog.close()


def test_the_client_file_has_an_admin_token_of_the_default_tenant(tmp_path: Path) -> None:
    directory = initialise(tmp_path)
    table = tomllib.loads(directory.client_toml.read_text())
    assert table["server"] == "127.0.0.1:7443"
    with bootstrap.open_rooms(directory) as opened:
        principal = opened.catalog.tokens.authenticate(table["token"], NOW_NS)
        assert (principal.name, principal.role) == ("local", TokenRole.ADMIN)
        assert principal.tenant == bootstrap.tenant_named(opened, "default").id


def test_a_removed_client_file_is_replaced_with_a_new_token_and_revokes_the_old_one(
    tmp_path: Path,
) -> None:
    directory = initialise(tmp_path)
    old = tomllib.loads(directory.client_toml.read_text())["token"]
    directory.client_toml.unlink()
    with bootstrap.open_rooms(directory) as opened:
        new = run.local_token(opened, directory)
        opened.catalog.tokens.authenticate(new, NOW_NS)
        with pytest.raises(Unauthenticated):
            opened.catalog.tokens.authenticate(old, NOW_NS)


def test_a_revoked_local_token_stays_revoked_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = initialise(tmp_path)
    with bootstrap.open_rooms(directory) as opened:
        tenant = bootstrap.tenant_named(opened, "default")
        opened.catalog.tokens.revoke(tenant.id, "local", NOW_NS)
        token = run.local_token(opened, directory)
        with pytest.raises(Unauthenticated):
            opened.catalog.tokens.authenticate(token, NOW_NS)
    assert "is unknown" in caplog.text
    assert token not in caplog.text


def test_a_second_server_on_a_directory_is_refused_with_the_first_one_named(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    with (
        directory.claimed(),
        pytest.raises(DataDirectoryError, match=rf"already runs on .* \(process {os.getpid()}\)"),
        DataDirectory(tmp_path).claimed(),
    ):
        pass
    with DataDirectory(tmp_path).claimed():
        pass


def test_a_new_tenant_has_keys_and_a_record_in_the_store(tmp_path: Path) -> None:
    directory = initialise(tmp_path)
    with bootstrap.open_rooms(directory) as opened:
        made = bootstrap.create_tenant(opened, "acme", NOW_NS)
        found = opened.catalog.tenants.get_by_name("acme")
        assert found is not None
        assert opened.catalog.backups.pending_records(made.id) == []
        assert found.wrapped_keys == (directory.store / "keys" / made.id.hex() / "00000001").read_bytes()
        records = Records(opened.blobs, opened.keys.load(made.id))
        assert [records.read(name) for name in records.list()] == [
            TenantRecord(name="acme", created_ns=NOW_NS)
        ]
        assert sorted(each.name for each in opened.keys.tenants()) == ["acme", "default"]


@pytest.mark.parametrize("name", ["default", "UPPER", "", "a b", "x" * 65])
def test_a_refused_tenant_leaves_no_keys_behind(tmp_path: Path, name: str) -> None:
    directory = initialise(tmp_path)
    with bootstrap.open_rooms(directory) as opened:
        with pytest.raises(BadRequest):
            bootstrap.create_tenant(opened, name, NOW_NS)
        assert len(opened.keys.tenant_ids()) == 1


def test_a_tenant_whose_name_another_process_takes_meanwhile_leaves_no_keys_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = initialise(tmp_path)
    with bootstrap.open_rooms(directory) as opened:
        monkeypatch.setattr(opened.catalog.tenants, "get_by_name", lambda _name: None)
        with pytest.raises(BadRequest, match="exists already"):
            bootstrap.create_tenant(opened, "default", NOW_NS)
        assert len(opened.keys.tenant_ids()) == 1


def test_a_missing_record_of_a_tenant_is_written_at_the_next_start(tmp_path: Path) -> None:
    directory = initialise(tmp_path)
    with bootstrap.open_rooms(directory) as opened:
        keys = opened.keys.create("half", NOW_NS)
        opened.catalog.tenants.create(
            keys.tenant, "half", NOW_NS, record=encode_record(TenantRecord("half", NOW_NS))
        )
        assert finish_all(opened.tenants(), opened.catalog) == 1
        assert opened.catalog.backups.pending_records() == []
        assert [
            Records(opened.blobs, keys).read(name).name for name in Records(opened.blobs, keys).list()
        ] == ["half"]


def test_the_master_key_of_another_directory_opens_nothing(tmp_path: Path) -> None:
    one, other = initialise(tmp_path / "one"), initialise(tmp_path / "other")
    one.master_key.write_bytes(other.master_key.read_bytes())
    with (
        pytest.raises(
            DataDirectoryError, match=r"(?s)master\.key is not the master key of .*Restore the right key"
        ),
        bootstrap.open_rooms(one),
    ):
        pass
    with bootstrap.open_rooms(one, only_look=True) as opened:
        with pytest.raises(WrongMasterKey):
            opened.keys.load(bootstrap.tenant_named(opened, "default").id)
        found: list[Finding] = []
        Check(opened.kept(), CheckPlan(), found.append).run(
            opened.catalog.tenants.list_all(), all_tenants=True
        )
    (finding,) = found
    assert "restore the master.key that belongs to this directory" in finding.message
    assert "repair" not in finding.message


def test_a_server_starts_with_damaged_keys_of_its_only_tenant(tmp_path: Path) -> None:
    """The catalog's copy of them opens, so the master key is the right one."""
    directory = initialise(tmp_path)
    (keys,) = (path for path in (directory.store / "keys").rglob("*") if path.is_file())
    data = keys.read_bytes()
    keys.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with bootstrap.open_rooms(directory) as opened, pytest.raises(Damaged):
        opened.keys.load(bootstrap.tenant_named(opened, "default").id)


def test_the_client_file_is_replaced_atomically_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / "client.toml.new").write_text("left over by a crash")
    write_client_config(path, ClientConfig("127.0.0.1:1", "t", ca='/with "quotes"\\and\nlines'))
    assert tomllib.loads(path.read_text()) == {
        "server": "127.0.0.1:1",
        "token": "t",
        "ca": '/with "quotes"\\and\nlines',
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["client.toml"]


def test_printing_a_token_object_does_not_reveal_it() -> None:
    assert "staddle_secret" not in repr(ClientConfig("127.0.0.1:1", "staddle_secret"))


def test_a_secret_that_every_user_can_read_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modes = {"open": 0o644, "of the group": 0o640, "closed": 0o600}
    for name, mode in modes.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    run.warn_of_readable([*(tmp_path / name for name in modes), tmp_path / "missing", None])
    assert [record.getMessage() for record in caplog.records] == [
        f"every user of this machine can read {tmp_path}/open: chmod 600 it"
    ]


# --- the lock


def claim(path: Path) -> None:
    with DataDirectory(path).claimed():
        pass


def test_a_lock_file_left_by_a_crash_is_taken_over_whatever_its_content(tmp_path: Path) -> None:
    lock = tmp_path / "server.lock"
    for left in (b"4242 elsewhere\n", b"\xff\xfe\x00garbage" * 100, b""):
        lock.write_bytes(left)
        with DataDirectory(tmp_path).claimed():
            assert lock.read_text().split() == [str(os.getpid()), socket.gethostname()]


def test_a_lock_held_by_another_host_or_an_unknown_process_is_reported(tmp_path: Path) -> None:
    lock = tmp_path / "server.lock"
    for written, words in (
        (b"4242 elsewhere\n", r"\(process 4242 on elsewhere\)"),
        (b"\xff\xfe\x00\n", r"\(process unknown\)"),
    ):
        lock.write_bytes(written)
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(DataDirectoryError, match=words):
                claim(tmp_path)


def test_a_foreign_object_in_place_of_the_lock_is_named_and_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "server.lock"
    lock.mkdir()
    with pytest.raises(DataDirectoryError, match=r"server\.lock is a directory instead of a file"):
        claim(tmp_path)
    lock.rmdir()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirectoryError, match=r"server\.lock is a link: remove it"):
        claim(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(DataDirectoryError, match=r"server\.lock is not a regular file"):
        claim(tmp_path)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "is on a read-only file system, but a server must write there"),
        (errno.EACCES, "Permission denied; it belongs to .*: run this as root or as that user"),
        (errno.ENOSPC, "cannot write in .*: No space left on device"),
    ],
)
def test_a_lock_that_cannot_be_opened_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    opened = os.open

    def refusing(path: str | Path, *rest: int) -> int:
        if Path(path).name == "server.lock":
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(DataDirectoryError, match=words):
        claim(tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(_file: object, _flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none_here)
    with pytest.raises(DataDirectoryError, match=r"cannot lock .*server\.lock: No locks available"):
        claim(tmp_path)
