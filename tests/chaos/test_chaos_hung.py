"""A server that hangs: what its clients do then, within the time that docs/cluster.md promises, and that nothing is done twice."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chaos_site import Member
from chaos_small_site import SmallSite
from chaos_work import read_tree
from crash_server import Plan
from staddle import Client
from staddle.v1 import service_pb2 as sv
from thin import backups, noise, restore, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]

LEFT_S = 45.0
"""A server that hangs is left after so long at the latest."""
NEW_S = 11.0
"""A server that does not answer a new connection is left after so long."""
WORK_S = 15.0
"""What the work itself takes on a busy machine, and the time until the others know that a server is dead."""
HANGS = {"stopped": signal.SIGSTOP, "hung in Python": signal.SIGUSR2}
BIG = noise(24_000_000, 71)
THIN = {"a": noise(2_000_000, 73), "b": noise(1_500_000, 74)}


@pytest.fixture(params=list(HANGS))
def how(request: pytest.FixtureRequest, site: SmallSite) -> Iterator[signal.Signals]:
    yield HANGS[request.param]
    for member in site.members:
        if member.is_alive:
            member.signal(signal.SIGCONT)
    hung = site.members[0]
    if HANGS[request.param] == signal.SIGUSR2:
        hung.kill()
        hung.start()
    wait_until(lambda: site.stub(0).GetServerInfo(sv.GetServerInfoRequest()))


def client_at(site: SmallSite, member: Member) -> Client:
    """The bundled client with all addresses, which uses this server."""
    while True:
        made = Client(",".join(site.addresses), site.token, retry_s=120.0)
        made.info()
        if made.address == member.address:
            return made
        made.close()


class SlowTarget:
    """An archive's target that takes nothing more after the first piece, until it may."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        self.begun.set()
        assert self.may_go_on.wait(60)
        return len(data)


def timed(call: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    call()
    return time.monotonic() - begun_s


def assert_made_once(site: SmallSite, contents: dict[str, dict[str, bytes]]) -> None:
    for dataset, files in contents.items():
        (made,) = backups(site.stub(1), dataset)
        assert made.number == 1
        assert restore(site.stub(2), dataset).files == files


def assert_new_clients_avoid(site: SmallSite, hung: Member) -> None:
    for _ in range(4):
        with Client(",".join(site.addresses), site.token) as client:
            assert timed(client.info) < NEW_S
            assert client.address != hung.address


def test_clients_leave_a_server_that_hangs_and_do_nothing_twice(
    site: SmallSite, how: signal.Signals, tmp_path: Path
) -> None:
    hung = site.members[0]
    name = how.name.lower()
    before = f"before-{name}"
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "big").write_bytes(BIG)
    with client_at(site, hung) as client:
        client.backup(source, dataset=before)
    (source / "more").write_bytes(noise(3_000_000, 72))
    clients = [client_at(site, hung) for _ in range(5)]
    by_source, thin, asking, reading, late = clients
    archive = SlowTarget()

    def thin_upload() -> None:
        with thin.upload(f"thin-{name}") as upload:
            upload.put("a", THIN["a"])
            put.set()
            assert hangs.wait(60)
            upload.put("b", THIN["b"])

    put, hangs = threading.Event(), threading.Event()
    with ThreadPoolExecutor(5) as threads:
        reads = threads.submit(reading.write_archive, before, archive, format="tar")
        streams = threads.submit(thin_upload)
        assert put.wait(60)
        assert archive.begun.wait(60)
        site.arm(Plan("pack.put", "before", 1, how))
        backs_up = threads.submit(by_source.backup, source, dataset=f"source-{name}")
        pid = site.wait_fired(60)
        assert pid is not None
        assert site.member_of(pid) is hung
        hangs.set()
        archive.may_go_on.set()
        begun_s = time.monotonic()
        asks = threads.submit(timed, asking.info)
        restores = threads.submit(late.restore, before, target)
        assert asks.result(LEFT_S + WORK_S) < LEFT_S
        spent_s = {}
        works = {"restore": restores, "archive": reads, "stream": streams, "backup": backs_up}
        for work, done in works.items():
            done.add_done_callback(lambda _, work=work: spent_s.update({work: time.monotonic() - begun_s}))
        for done in works.values():
            done.result(LEFT_S + WORK_S)
        assert max(spent_s.values()) < LEFT_S + WORK_S, spent_s
    assert read_tree(target) == {"big": BIG}
    assert len(b"".join(archive.pieces)) > len(BIG)
    contents = {f"source-{name}": read_tree(source), f"thin-{name}": THIN}
    assert_made_once(site, contents)
    for client in clients:
        assert client.address != hung.address
        client.close()
    assert_new_clients_avoid(site, hung)
    if how == signal.SIGSTOP:
        hung.signal(signal.SIGCONT)
        wait_until(lambda: restore(site.stub(0), f"source-{name}").files == read_tree(source))
        assert_made_once(site, contents)
    site.assert_sound()


def test_an_address_that_accepts_connections_and_says_nothing_is_left_within_seconds(
    site: SmallSite, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"content")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        addresses = f"127.0.0.1:{mute.getsockname()[1]},{site.members[1].address}"
        met = 0
        while met < 3:
            with Client(addresses, site.token) as client:
                spent_s = timed(lambda client=client: client.backup(tmp_path / "source", dataset="mute"))
                assert spent_s < NEW_S + WORK_S
                met += spent_s > 3.0
                assert client.address == site.members[1].address
    assert all(
        each.number == number for number, each in enumerate(reversed(backups(site.stub(1), "mute")), 1)
    )
