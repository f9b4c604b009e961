"""The dashboard of two servers, in processes of their own, on one PostgreSQL and one bucket."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import postgres_server
import pytest
from pages_client import Visitor, field_of, text_of
from ports import free_ports
from seaweed import S3Server
from servers import NOTHING_BY_ITSELF, ServerProcess, Stub, _Bearer
from staddle.v1 import service_pb2 as sv
from staddle_server.app.data_directory import read_client_config
from staddle_server.store.keys import create_master_key
from thin import Source, back_up, noise

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.slow]


class Door(NamedTuple):
    """A server, and the port of its pages."""

    server: ServerProcess
    port: int

    def stub(self, token: str) -> Stub:
        channel = grpc.insecure_channel(self.server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        return Stub(grpc.intercept_channel(channel, _Bearer(token)))


@pytest.fixture
def doors(s3: S3Server, tmp_path: Path) -> Iterator[list[Door]]:
    create_master_key(str(tmp_path / "key"))
    shared = (
        *("--catalog", postgres_server.new_url()),
        *("--store", s3.url(f"pages/{uuid.uuid4().hex}")),
        *("--master-key", str(tmp_path / "key")),
    )
    made = []
    with ExitStack() as stack:
        for name, port in zip("ab", free_ports(2), strict=True):
            flags = (*NOTHING_BY_ITSELF, *shared, "--http", f"127.0.0.1:{port}")
            server = ServerProcess(tmp_path / name, flags=flags)
            server.start()
            stack.callback(server.stop)
            made.append(Door(server, port))
        yield made


def at(visitor: Visitor, door: Door) -> Visitor:
    """The same browser, sent to another server by a balancer."""
    visitor.port = door.port
    return visitor


def test_a_login_at_one_server_works_at_the_other_and_each_shows_what_both_do(doors: list[Door]) -> None:
    first, second = doors
    token = read_client_config(first.server.config)["token"]
    visitor = Visitor(first.port, token)
    endpoints = [each.server.address for each in doors]

    # The login and its form key hold at both; each page says who made it, and each lists both.
    for door in doors:
        page = at(visitor, door).page("/")
        assert f"UTC</time> by {door.server.address}" in page
        assert "2 servers: 2 live" in text_of(page)
        store = at(visitor, door).page("/store")
        assert all(endpoint in store for endpoint in endpoints)
        assert store.count("this one") == 1

    # What runs is seen from both, with the server that receives it.
    source = Source(first.stub(token), "www")
    source.put_file("a", noise(300_000, 1))
    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    for door in doors:
        said = text_of(at(visitor, door).page("/"))
        assert f"received by {first.server.address}" in said
        assert "293.0 KiB durable" in said
    source.commit()
    for door in doors:
        assert "No backup is running." in text_of(at(visitor, door).page("/"))
        assert "<bdi>a</bdi></a>" in at(visitor, door).page("/browse?dataset=www")

    # A form of a page of one server is taken by the other, once for both.
    made = back_up(second.stub(token), "etc", {"b": b"2"})
    key = field_of(at(visitor, first).page("/dataset?name=etc"), "key")
    form = {"key": key, "action": "hold", "dataset": "etc", "backup": made.id, "reason": "case 17"}
    assert at(visitor, second).post("/do", form).status == 303
    assert "case 17" in at(visitor, first).page("/dataset?name=etc")

    # One that has stopped is no longer listed, and the session lives on at the other.
    assert first.server.stop() == 0
    said = text_of(at(visitor, second).page("/"))
    assert "1 server: 1 live" in said
    assert first.server.address not in text_of(visitor.page("/store"))
    assert "<bdi>a</bdi></a>" in visitor.page("/browse?dataset=www")
