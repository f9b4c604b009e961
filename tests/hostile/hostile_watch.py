"""Watches a real server under abuse: its memory, and whether it serves others."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import grpc
import psutil
from servers import ServerProcess
from thin import back_up, noise, restore

MIB = 1 << 20
RSS_MAX = 250 * MIB
"""What docs/operations.md promises for 8 streams."""
UNHARMED_S = 40.0
"""A small backup and its restore take so long at the most on a busy machine; ten times as long as before if it is busier."""
SERVICE = "/staddle.v1.StaddleService/"


def bearer(server: ServerProcess) -> list[tuple[str, str]]:
    """The metadata of a caller that the server knows."""
    return [("authorization", f"Bearer {tomllib.loads(server.config.read_text())['token']}")]


@contextmanager
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """A separate connection."""
    made = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
    try:
        yield made
    finally:
        made.close()


class Watch:
    """Samples a server's memory; and backs up and restores during the abuse."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process is not None
        self._server = server
        self._process = psutil.Process(server.process.pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.peak = 0
        self._undisturbed_s = 0.0
        self.newest = ""
        """The dataset that was backed up last."""
        self._count = 0

    def __enter__(self) -> Self:
        self.others_are_served()
        self.before = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)

    @property
    def threads(self) -> int:
        return self._process.num_threads()

    @property
    def files(self) -> int:
        return self._process.num_fds()

    def others_are_served(self) -> None:
        """Raises AssertionError if a small backup and its restore fail or take long."""
        begun_s = time.monotonic()
        self._count += 1
        name, files = f"other-{self._count}", {"a": noise(200_000, self._count), "b": b"2"}
        self.newest = name
        stub = self._server.stub()
        back_up(stub, name, files)
        assert restore(stub, name).files == files
        took_s = time.monotonic() - begun_s
        self._undisturbed_s = self._undisturbed_s or took_s
        assert took_s < max(UNHARMED_S, 10 * self._undisturbed_s), "others had to wait"

    def memory_is_bounded(self) -> None:
        assert self.peak < RSS_MAX, f"{self.peak // MIB} MiB"
