"""Several services in this process that share one catalog and one store, as servers on several machines do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from servers import Running
from sqlalchemy import update
from staddle_server.catalog.schema import servers

DEAD_NS = 21 * 10**9
"""Longer than a server may be silent."""


@contextmanager
def sharing(root: Path, catalog_url: str, count: int) -> Iterator[list[Running]]:
    """This many services on one catalog and one store, with the same tokens."""
    with ExitStack() as stack:
        made: list[Running] = []
        for _ in range(count):
            one = Running(root, catalog_url=catalog_url)
            stack.callback(one.stop)
            one.tokens = made[0].tokens if made else one.tokens
            made.append(one)
        yield made


def fall_silent(one: Running) -> None:
    """The server's last heartbeat is now too long ago, as if it had been killed or suspended since."""
    mine = servers.c.id == one.service._id
    with one.catalog.database.write() as connection:
        connection.execute(update(servers).where(mine).values(beat_ns=servers.c.beat_ns - DEAD_NS))


def beat(one: Running) -> None:
    """The server's next heartbeat."""
    one.service._heartbeat._beat()
