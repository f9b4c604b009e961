"""A tar that is sent again with the same Idempotency-Key makes one backup."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from http_door import Answer, ask, open_http
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from tars import tar_of
from thin import wait_until

BODY = tar_of({"a": b"1" * 5000, "b": b"2"})


class Sending:
    """A service, and somebody who sends tars to it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.port = open_http(running)
        self.stub = running.stub()

    def put(
        self, dataset: str, key: str, query: str = "", role: str = "writer", body: bytes = BODY
    ) -> Answer:
        headers = {"authorization": f"Bearer {self.running.token(role)}", "idempotency-key": key}
        return ask(self.port, f"/v1/datasets/{dataset}/backups{query}", body, headers, "PUT")

    def made(self, dataset: str, key: str, query: str = "") -> str:
        """The id of the backup."""
        answer = self.put(dataset, key, query)
        assert answer.status == 201, answer.said
        found: str = answer.said["backup"]["id"]
        return found

    def begin(self, dataset: str, key: str, length: int) -> socket.socket:
        """A connection that has sent the head of a request, and no body yet."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        line.sendall(
            f"PUT /v1/datasets/{dataset}/backups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            f"{self.running.token('writer')}\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        return line

    def backups(self, dataset: str) -> list[str]:
        return [each.id for each in self.stub.ListBackups(sv.ListBackupsRequest(dataset=dataset)).backups]

    def open_uploads(self, dataset: str) -> list[pb.Upload]:
        return list(self.stub.ListUploads(sv.ListUploadsRequest(dataset=dataset)).uploads)


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sending]:
    running = Running(tmp_path_factory.mktemp("retries"))
    yield Sending(running)
    running.stop()


def test_a_second_try_gets_the_backup_of_the_first_one(sending: Sending) -> None:
    first = sending.made("once", "k-1", "?tag=a")
    assert sending.made("once", '"k-1"', "?tag=a") == first
    assert sending.backups("once") == [first]
    assert sending.open_uploads("once") == []
    other = sending.made("once", "k-2", "?tag=a")
    assert sending.backups("once") == [other, first]


def test_without_a_key_every_tar_is_a_backup(sending: Sending) -> None:
    for _ in range(2):
        headers = {"authorization": f"Bearer {sending.running.token('writer')}"}
        assert ask(sending.port, "/v1/datasets/twice/backups", BODY, headers, "PUT").status == 201
    assert len(sending.backups("twice")) == 2


def test_a_try_after_one_that_failed_makes_the_backup(sending: Sending) -> None:
    for _ in range(3):
        assert sending.put("fails", "k", body=BODY[:700]).status == 400
    assert sending.backups("fails") == []
    assert sending.open_uploads("fails") == []
    made = sending.made("fails", "k")
    assert sending.made("fails", "k") == made
    assert sending.backups("fails") == [made]


def test_a_try_ends_one_that_has_lost_its_client(sending: Sending) -> None:
    with sending.begin("silent", "k", len(BODY)) as line:
        line.sendall(BODY[:700])
        wait_until(lambda: len(sending.open_uploads("silent")) == 1)
        made = sending.made("silent", "k")
        assert sending.backups("silent") == [made]
        assert line.recv(100).startswith(b"HTTP/1.1 4")
    assert sending.open_uploads("silent") == []


def test_the_same_key_is_another_one_for_another_token(sending: Sending) -> None:
    mine = sending.made("tokens", "k")
    theirs = sending.put("tokens", "k", role="admin")
    assert theirs.status == 201
    assert theirs.said["backup"]["id"] != mine


@pytest.mark.parametrize(
    "query", ["?tag=b", "?tag=a&kind=full", "?tag=a&host=h", "?tag=a&scope=changes&remove=b"]
)
def test_the_same_key_with_other_parameters_is_refused(sending: Sending, query: str) -> None:
    made = sending.made("params", "k", "?tag=a")
    refused = sending.put("params", "k", query)
    assert (refused.status, refused.info.reason) == (409, "REQUEST_ID_REUSED")
    assert refused.said["message"].startswith("Idempotency-Key 'k' was used for a request with other")
    assert sending.backups("params") == [made]
    assert sending.open_uploads("params") == []


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb", "caf\xe9"])
def test_an_invalid_key_is_refused(sending: Sending, key: str) -> None:
    refused = sending.put("invalid", key)
    assert (refused.status, refused.info.reason) == (400, "BAD_FIELD")
    assert "Idempotency-Key" in refused.said["message"]


def test_a_second_try_whose_body_breaks_off_is_no_answer(sending: Sending) -> None:
    made = sending.made("half", "k")
    with sending.begin("half", "k", len(BODY)) as line:
        line.sendall(BODY[:700])
        line.shutdown(socket.SHUT_WR)
        assert b" 201 " not in line.recv(100)
    assert sending.made("half", "k") == made
