"""Backups and restores while the object store below them fails, and afterwards: a real S3 server behind a real proxy."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from seaweed import S3Server
from servers import Running
from staddle_server.store.backends.object_store import ObjectBlobs
from staddle_server.store.blobs import Blobs
from staddle_server.store.open import open_blobs
from tcp_proxy import Proxy, once, status
from thin import back_up, noise, reason, restore

pytestmark = pytest.mark.xdist_group("s3")

FILES = {"a": noise(700_000, seed=1), "b": noise(300_000, seed=2)}


class Clock:
    """Moves with the pauses between attempts, which take no time."""

    now_s = 0.0

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    made = Proxy(s3.port)
    yield made
    made.stop()


@pytest.fixture
def running(s3: S3Server, proxy: Proxy, tmp_path: Path) -> Iterator[Running]:
    """A service on a bucket, reached through the proxy."""
    clock = Clock()
    opened = open_blobs(s3.url(f"upload/{uuid.uuid4().hex}", proxy.endpoint), os.environ, str(tmp_path))
    assert isinstance(opened, ObjectBlobs)
    blobs = ObjectBlobs(
        opened.place, opened.endpoints, str(tmp_path), pause=clock.pause, now_s=lambda: clock.now_s
    )

    def moved(directory: Blobs) -> Blobs:
        for name, size in directory.list(""):
            blobs.put(name, directory.read(name, 0, size))
        return blobs

    made = Running(tmp_path, wrap=moved)
    try:
        yield made
    finally:
        made.stop()


def damaged(running: Running) -> int:
    return sum(known.packs for known in running.catalog.packs.known_damage().values())


def test_answers_that_fail_in_the_middle_of_a_backup_and_a_restore_are_not_noticed(
    running: Running, proxy: Proxy
) -> None:
    proxy.harm(once("PUT", lambda _answer: b"", containing="/packs/"))
    back_up(running.stub(), "set", FILES)
    proxy.harm(once("GET", lambda answer: answer[: len(answer) // 2], containing="/packs/"))
    assert restore(running.stub(), "set").files == FILES
    assert damaged(running) == 0


def test_while_the_store_does_not_answer_calls_are_unavailable_and_nothing_is_taken_for_damaged(
    running: Running, proxy: Proxy
) -> None:
    back_up(running.stub(), "set", FILES)
    proxy.instead(lambda _request: status(503, "SlowDown"))
    for call in (
        lambda: restore(running.stub(), "set"),
        lambda: back_up(running.stub(), "set", {"c": noise(100_000, seed=3)}),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert reason(caught.value) == "STORE_UNAVAILABLE"
    proxy.instead(lambda _request: None)
    assert damaged(running) == 0
    assert restore(running.stub(), "set").files == FILES
    back_up(running.stub(), "set", {"c": noise(100_000, seed=3)})
    assert restore(running.stub(), "set").files == {"c": noise(100_000, seed=3)}


def test_a_store_without_room_is_full_to_backups_and_restores_go_on(running: Running, proxy: Proxy) -> None:
    back_up(running.stub(), "set", FILES)
    proxy.instead(lambda request: status(507, "InsufficientCapacity") if request.startswith(b"PUT") else None)
    with pytest.raises(grpc.RpcError) as caught:
        back_up(running.stub(), "set", {"c": noise(100_000, seed=3)})
    assert reason(caught.value) == "STORE_FULL"
    assert restore(running.stub(), "set").files == FILES
    proxy.instead(lambda _request: None)


def test_a_pack_that_is_gone_from_the_bucket_is_named_and_healed_by_the_next_backup(
    running: Running,
) -> None:
    back_up(running.stub(), "set", FILES)
    for name, _ in list(running.blobs.list("packs")):
        running.blobs.delete(name)
    lost = restore(running.stub(), "set")
    assert lost.files == {}
    assert lost.damages
    back_up(running.stub(), "set", FILES)
    assert restore(running.stub(), "set").files == FILES
