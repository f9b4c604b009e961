"""One id finds a call everywhere: in its log line, in other lines, in its error, and at its client."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from call_log import each_call
from http_door import call, open_http
from servers import Running
from staddle import Client
from staddle import StaddleError as ClientError
from staddle.v1 import service_pb2 as sv
from staddle_server.base.call_ids import CALL_KEY, CURRENT
from staddle_server.base.logs import JsonFormatter, TextFormatter
from thin import wait_until


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    with each_call(lambda fields: found.append(dict(fields))):
        yield found


def failed(running: Running, given: str) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        running.stub().GetBackup(sv.GetBackupRequest(dataset="none"), metadata=[(CALL_KEY, given)])
    return caught.value


def test_the_id_of_the_client_is_in_the_log_and_comes_back_with_an_error(
    running: Running, lines: list[dict[str, Any]]
) -> None:
    error = failed(running, "deadbeef-1")
    assert dict(error.trailing_metadata())[CALL_KEY] == "deadbeef-1"
    assert "grpc-status-details-bin" in dict(error.trailing_metadata())
    wait_until(lambda: lines)
    assert lines[-1]["call"] == "deadbeef-1"
    found = call(open_http(running), "GetBackup", running.token(), staddle_call="cafe-cafe-2")
    assert (found.headers[CALL_KEY], lines[-1]["call"]) == ("cafe-cafe-2", "cafe-cafe-2")


@pytest.mark.parametrize("given", ["", "short", "x" * 65, "with space", "a=b\tc-------"])
def test_an_id_that_cannot_be_logged_as_it_is_is_replaced(
    running: Running, lines: list[dict[str, Any]], given: str
) -> None:
    headers = {"staddle_call": given} if given else {}
    found = call(open_http(running), "ListDatasets", running.token(), **headers)
    assert found.headers[CALL_KEY] == lines[-1]["call"] != given
    assert len(bytes.fromhex(lines[-1]["call"])) == 8


def test_a_fault_names_its_call_and_so_do_the_lines_that_are_logged_for_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, str]] = []

    class Taking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(
                (json.loads(JsonFormatter().format(record)).get("call", ""), TextFormatter().format(record))
            )

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(running.catalog.backups, "list_page", fault)
    log, handler = logging.getLogger("staddle_server"), Taking(logging.ERROR)
    log.addHandler(handler)
    try:
        with pytest.raises(grpc.RpcError, match=r"its log has the details \(call deadbeef-3\)"):
            running.stub().ListBackups(
                sv.ListBackupsRequest(dataset="x"), metadata=[(CALL_KEY, "deadbeef-3")]
            )
        found = call(
            open_http(running), "ListBackups", running.token(), b'{"dataset":"x"}', staddle_call="deadbeef-4"
        )
    finally:
        log.removeHandler(handler)
    assert "(call deadbeef-4)" in found.said["message"]
    assert [id_ for id_, _ in logged] == ["deadbeef-3", "deadbeef-4"]
    assert all(f"call={id_}" in text for id_, text in logged)


def test_a_thread_forgets_the_call_that_it_worked_for(running: Running) -> None:
    seen: list[str] = []
    door = open_http(running)
    call(door, "ListDatasets", running.token(), staddle_call="deadbeef-5")
    threads = running.service._http._threads
    for _ in range(len(threads._threads)):
        threads.submit(lambda: seen.append(CURRENT.get())).result()
    assert set(seen) == {""}


def test_an_error_of_the_library_has_the_id_that_the_server_logged(
    running: Running, lines: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="staddle")
    with Client(running.address, token=running.token()) as client:
        client.info()
        with pytest.raises(ClientError) as caught:
            list(client.entries("none"))
    assert caught.value.call == lines[-1]["call"]
    said = [record.getMessage() for record in caplog.records if record.name == "staddle"]
    assert any(each.startswith(f"GetServerInfo at {running.address}: OK after ") for each in said)
    assert any("DATASET_NOT_FOUND after " in each and caught.value.call in each for each in said)
    assert running.token() not in "".join(said)
