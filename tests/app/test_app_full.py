"""A full or nearly full disk: the server starts, restores, deletes and collects, and refuses backups early enough."""

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
from staddle_server.app.disk_reserve import Keeper, Reserve, Reserves
from staddle_server.app.inode_reserve import InodeReserve
from staddle_server.base.errors import Exhausted
from staddle_server.base.limits import KIB, MIB, RESERVE_BYTES_MIN
from staddle_server.store.space import LOOK_S, MinFree, Space
from test_app_serve import Server

WAIT_S = 60
STADDLE = Path(sys.executable).parent / "staddle"


@pytest.fixture
def disk(only_root: None, tmp_path: Path) -> Iterator[Path]:
    """A small separate file system."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,nr_inodes=20000", "none", path],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path, *, leave: int = 0) -> Path:
    """A foreign file that takes all the room except the given bytes."""
    filler = path / "filler"
    with filler.open("ab", buffering=0) as file:
        free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        if free > leave:
            os.posix_fallocate(file.fileno(), filler.stat().st_size, free - leave)
    return filler


def fill_inodes(path: Path) -> Path:
    """Another program's files, which take all inodes and hardly any bytes."""
    filler = path / "filler.d"
    filler.mkdir(exist_ok=True)
    try:
        for number in itertools.count():
            (filler / f"{time.monotonic_ns()}-{number}").touch(exist_ok=False)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    return filler


def staddle(server: Server, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = forked.run(
        [STADDLE, *map(str, words)],
        env={**os.environ, "STADDLE_CONFIG": str(server.data / "client.toml")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def until(holds: Callable[[], bool], server: Server) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def stop(server: Server) -> None:
    if server.process.poll() is None:
        server.process.terminate()
    assert server.wait() == 0, server.log.read_text()


def source_of(tmp_path: Path, name: str, size_bytes: int) -> Path:
    path = tmp_path / name
    path.mkdir()
    (path / "file").write_bytes(os.urandom(size_bytes))
    return path


def digits(server: Server, dataset: str) -> str:
    """The id of the only backup of a dataset."""
    lines = map(json.loads, staddle(server, "list", dataset, "--json").stdout.splitlines())
    (backup,) = [str(line["id"]) for line in lines if "id" in line]
    return backup


def end(server: Server, *, killed: bool) -> None:
    if killed:
        server.process.kill()
        server.wait()
    else:
        stop(server)


def gives_back(server: Server, source: Path, target: Path) -> None:
    """Asserts that a server on a full disk says so, and restores the dataset `d` as it is in `source`."""
    probe = server.command("health")
    assert probe.returncode == 3, probe.stderr
    assert "refuses backups, because its disk is nearly full" in probe.stderr
    assert re.search(r"disk: [0-9.]+ .?i?B and [0-9,]+ inodes free; backups need", probe.stdout), probe.stdout
    staddle(server, "restore", "d", "--target", target)
    assert (target / "file").read_bytes() == (source / "file").read_bytes()


def deletes_and_collects(server: Server, disk: Path, backup: str) -> None:
    """Assert that a server deletes the only backup, of the dataset `d`, completely."""
    staddle(server, "delete", "d", backup, "--yes")
    done = server.command("gc", "--grace", "0", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "freed now" in done.stdout
    assert [path for path in (disk / "store" / "packs").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_on_a_full_disk_restores_deletes_and_collects_and_then_accepts_backups(
    tmp_path: Path, disk: Path, killed: bool
) -> None:
    first = source_of(tmp_path, "first", 4 * MIB)
    server = Server(disk)
    staddle(server, "backup", first, "--dataset", "d")
    backup = digits(server, "d")
    reserve = disk / "reserve"
    until(lambda: reserve.exists() and reserve.stat().st_size > 0, server)
    end(server, killed=killed)
    filler = fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    server = Server(disk)
    try:
        gives_back(server, first, tmp_path / "target")
        assert server.logged("the disk is nearly full")
        second = source_of(tmp_path, "second", MIB)
        refused = staddle(server, "backup", second, "--dataset", "e", code=None)
        assert refused.returncode not in {0, 3}
        assert "nearly full" in refused.stderr
        deletes_and_collects(server, disk, backup)
        filler.unlink()
        until(lambda: server.command("health").returncode == 0, server)
        staddle(server, "backup", second, "--dataset", "e")
        until(lambda: Reserve(reserve, disk / "catalog.db").missing_bytes == 0, server)
        assert server.logged("the disk has space again")
    finally:
        stop(server)


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_on_a_disk_without_inodes_restores_deletes_and_collects_and_then_accepts_backups(
    tmp_path: Path, disk: Path, killed: bool
) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=4000", disk], check=True)
    first = source_of(tmp_path, "first", MIB)
    server = Server(disk)
    staddle(server, "backup", first, "--dataset", "d")
    backup = digits(server, "d")
    reserve = InodeReserve(disk / "reserve.inodes")
    until(lambda: reserve.held == reserve.full() > 0, server)
    end(server, killed=killed)
    filler = fill_inodes(disk)
    assert os.statvfs(disk).f_favail == 0
    server = Server(disk)
    try:
        gives_back(server, first, tmp_path / "target")
        (warning,) = server.logged("the disk is nearly full")
        assert "inodes free" in str(warning["message"])
        assert all(isinstance(number, int) for number in [*warning["free_bytes"], *warning["free_inodes"]])
        refused = staddle(server, "backup", first, "--dataset", "e", code=None)
        assert refused.returncode not in {0, 3}
        assert "inodes free" in refused.stderr
        staddle(server, "hold", "d", backup, "--reason", "asked for")
        staddle(server, "release", "d", backup)
        deletes_and_collects(server, disk, backup)
        shutil.rmtree(filler)
        until(lambda: server.command("health").returncode == 0, server)
        staddle(server, "backup", first, "--dataset", "e")
        until(lambda: reserve.held == reserve.full(), server)
    finally:
        stop(server)


def test_no_backup_takes_the_last_inodes(tmp_path: Path, disk: Path) -> None:
    """Of 4,000 inodes a hundredth is kept besides the reserve."""
    subprocess.run(["mount", "-o", "remount,nr_inodes=4000", disk], check=True)
    server = Server(disk)
    try:
        reserve = InodeReserve(disk / "reserve.inodes")
        until(lambda: reserve.held == reserve.full() > 0, server)
        for path in itertools.islice(sorted(fill_inodes(disk).iterdir()), 30):
            path.unlink()
        until(lambda: server.command("health").returncode == 3, server)
        refused = staddle(server, "backup", source_of(tmp_path, "source", KIB), "--dataset", "d", code=None)
        assert refused.returncode not in {0, 3}
        assert "inodes free" in refused.stderr
        assert os.statvfs(disk).f_favail > 0
    finally:
        stop(server)


def test_collecting_needs_no_server_and_no_room(tmp_path: Path, disk: Path) -> None:
    server = Server(disk)
    staddle(server, "backup", source_of(tmp_path, "first", 4 * MIB), "--dataset", "d")
    staddle(server, "delete", "d", digits(server, "d"), "--yes")
    until((disk / "reserve").exists, server)
    stop(server)
    fill(disk)
    done = server.command("gc", "--grace", "0", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in (disk / "store" / "packs").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_pack_of_many_small_chunks_is_collected_on_a_full_disk(tmp_path: Path, disk: Path) -> None:
    """Each of its rows in the index lies in another page, so that one transaction writes nearly all of the catalog to its log."""
    server = Server(disk)

    def packs() -> set[Path]:
        return {path for path in (disk / "store" / "packs").rglob("*") if path.is_file()}

    try:
        for name in ("d", "e", "f"):
            source = tmp_path / name
            source.mkdir()
            for number in range(4000):
                (source / str(number)).write_bytes(os.urandom(16))
            staddle(server, "backup", source, "--dataset", name, "--thin")
            if name == "d":
                deleted = packs()
        staddle(server, "delete", "d", digits(server, "d"), "--yes")
        # The catalog has grown, and with it the reserve.
        reserve = Reserve(disk / "reserve", disk / "catalog.db")
        stop(server)
        server = Server(disk)
        until(lambda: reserve.missing_bytes == 0, server)
        assert reserve.size_bytes > 2 * (disk / "catalog.db").stat().st_size
    finally:
        stop(server)
    fill(disk)
    done = server.command("gc", "--grace", "0", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert deleted
    assert not packs() & deleted
    assert len(packs()) >= 2


def test_a_server_keeps_starting_on_a_full_disk_although_others_take_the_freed_room(
    tmp_path: Path, disk: Path
) -> None:
    first = source_of(tmp_path, "first", MIB)
    server = Server(disk)
    staddle(server, "backup", first, "--dataset", "d")
    until((disk / "reserve").exists, server)
    stop(server)
    for number in range(3):
        fill(disk)
        server = Server(disk)
        fill(disk)
        try:
            staddle(server, "restore", "d", "--target", tmp_path / f"target{number}")
        finally:
            stop(server)


def test_backups_are_refused_below_the_configured_limit_and_accepted_again_with_room(
    tmp_path: Path, disk: Path
) -> None:
    server = Server(disk, "--min-free", "16MiB")
    try:
        large = source_of(tmp_path, "large", 40 * MIB)
        fill(disk, leave=10 * MIB)
        until(lambda: server.command("health").returncode == 3, server)
        refused = staddle(server, "backup", large, "--dataset", "d", code=None)
        assert refused.returncode not in {0, 3}
        assert "nearly full" in refused.stderr
        status = os.statvfs(disk)
        assert 0 < status.f_bavail * status.f_frsize < 16 * MIB
        (disk / "filler").unlink()
        until(lambda: server.command("health").returncode == 0, server)
        # There is more room than is kept, and too little for all of it: however fast it comes, the limit holds.
        staddle(server, "backup", large, "--dataset", "d", code=1)
        status = os.statvfs(disk)
        assert status.f_bavail * status.f_frsize >= 15 * MIB
        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
        until(lambda: server.command("health").returncode == 0, server)
        staddle(server, "backup", large, "--dataset", "d")
        staddle(server, "restore", "d", "--target", tmp_path / "target")
        assert (tmp_path / "target" / "file").read_bytes() == (large / "file").read_bytes()
    finally:
        stop(server)


# --- the limit


class Disk:
    """The figures of a file system, set by the test, and a clock that advances at each reading."""

    def __init__(self, *, free: int, inodes: int = 10**6, total: int = 1000 * MIB) -> None:
        self.free, self.inodes, self.total, self.now_s = free, inodes, total, 0.0

    def status(self, _path: str) -> os.statvfs_result:
        block = 4 * KIB
        free = self.free // block
        return os.statvfs_result(
            (block, block, self.total // block, free, free, 10**6, self.inodes, self.inodes, 0, 255)
        )

    def now(self) -> float:
        self.now_s += 2 * LOOK_S
        return self.now_s

    def space(self, min_free: MinFree) -> Space:
        return Space(["/data"], min_free, status=self.status, now_s=self.now)


def test_after_a_shortage_a_quarter_more_room_is_needed() -> None:
    disk = Disk(free=101 * MIB)
    space = disk.space(MinFree(size_bytes=100 * MIB))
    space.check()
    disk.free = 99 * MIB
    with pytest.raises(Exhausted, match=r"/data has 99\.0 MiB free, but 100\.0 MiB reserved"):
        space.check()
    disk.free = 124 * MIB
    with pytest.raises(Exhausted):
        space.check()
    disk.free = 126 * MIB
    space.check()
    disk.free = 101 * MIB
    space.check()


def test_data_that_is_accepted_but_not_yet_written_counts_as_written() -> None:
    disk = Disk(free=110 * MIB)
    disk.now_s = 0.0
    space = Space(["/data"], MinFree(size_bytes=100 * MIB), status=disk.status, now_s=lambda: 0.0)
    in_memory = 0
    space.count_unwritten(lambda: in_memory)
    with space.taking(4 * MIB), space.taking(4 * MIB), pytest.raises(Exhausted), space.taking(4 * MIB):
        raise AssertionError("8 MiB were coming, of 10")
    disk.free = 130 * MIB  # there was too little, so a quarter more is needed
    with space.taking(4 * MIB):
        in_memory = 4 * MIB
    space.check()
    in_memory = 6 * MIB
    disk.free = 105 * MIB
    space.check(1 * MIB)  # without another look: the last figures are enough
    with pytest.raises(Exhausted):
        space.check(4 * MIB)


def test_a_reading_allows_no_more_data_than_was_free() -> None:
    """A fast disk receives 40 MiB between two looks."""
    disk = Disk(free=140 * MIB)
    space = Space(["/data"], MinFree(size_bytes=100 * MIB), status=disk.status, now_s=lambda: 0.0)
    for _ in range(40):
        with space.taking(MIB):
            disk.free -= MIB
    with pytest.raises(Exhausted):
        space.check(MIB)


def test_a_disk_without_free_inodes_is_full_unless_it_does_not_count_inodes() -> None:
    disk = Disk(free=500 * MIB, inodes=9_999)
    with pytest.raises(Exhausted, match="9,999 inodes free, but 10,000 reserved"):
        disk.space(MinFree()).check()
    disk = Disk(free=500 * MIB, inodes=0)
    uncounted = lambda path: os.statvfs_result((*disk.status(path)[:5], 0, 0, 0, 0, 255))  # noqa: E731
    Space(["/data"], MinFree(), status=uncounted).check()


def test_inodes_released_by_the_reserve_are_not_used_for_backups() -> None:
    disk = Disk(free=500 * MIB, inodes=10_500)
    released = 0
    space = Space(["/data"], MinFree(), missing_inodes=lambda: released, status=disk.status, now_s=disk.now)
    space.check()
    released = 1_000
    with pytest.raises(Exhausted, match="10,500 inodes free, but 11,000 reserved"):
        space.check()


def test_a_reserve_of_inodes_leaves_other_files_alone_and_follows_no_link(tmp_path: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0000").touch()
    (disk / "link").symlink_to(elsewhere)
    reserve, linked = InodeReserve(disk / "reserve.inodes"), InodeReserve(disk / "link")
    assert reserve.make([]) == reserve.full() == reserve.held
    (disk / "reserve.inodes" / "notes").touch()
    fill_inodes(disk)
    assert linked.held == 0
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        linked.give_up(at_start=True)
    while reserve.give_up(at_start=True):
        fill_inodes(disk)
    assert os.listdir(disk / "reserve.inodes") == ["notes"]
    assert os.listdir(elsewhere) == ["0000"]


def test_a_limit_of_zero_accepts_backups_to_the_last_byte() -> None:
    Disk(free=0, inodes=0).space(MinFree(size_bytes=0)).check()


def test_a_disk_whose_figures_cannot_be_read_does_not_count_as_full(tmp_path: Path) -> None:
    Space([str(tmp_path / "absent")], MinFree(size_bytes=10**15)).check()


def test_a_reserve_is_not_made_where_it_would_take_the_last_room(disk: Path) -> None:
    reserve = Reserve(disk / "reserve")
    filler = fill(disk, leave=2 * MIB)
    Keeper(Space([str(disk)], MinFree(size_bytes=2 * MIB)), Reserves([reserve])).look()
    assert reserve.size_bytes == 0
    filler.unlink()
    Keeper(Space([str(disk)], MinFree(size_bytes=2 * MIB)), Reserves([reserve])).look()
    assert reserve.size_bytes == reserve.full_bytes() == RESERVE_BYTES_MIN
    assert (disk / "reserve").stat().st_blocks * 512 >= reserve.size_bytes, (
        "it occupies the room that it reserves"
    )
