"""docs/http.md says what the HTTP door does."""

from __future__ import annotations

import json
import os
import re
import subprocess

from doc_pages import DOCS
from http_door import call, open_http
from rest_door import TABLE
from staddle_server.api.http.connect import STATUSES
from staddle_server.api.http.rest.addresses import QUERY_FIELDS_MAX, Addresses
from staddle_server.base import limits
from thin import back_up

TEXT = (DOCS / "http.md").read_text()


def test_the_table_of_codes_is_the_one_that_is_served() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (\d{3})\b", TEXT, re.MULTILINE)
    assert {code: int(status) for codes, status in rows for code in re.findall(r"[a-z_]+", codes)} == STATUSES


def test_the_numbers_of_the_page_are_the_limits() -> None:
    for expected in (
        f"| connections | {limits.HTTP_CONNECTIONS_MAX}, of these {limits.HTTP_CONNECTIONS_ADDRESS_MAX} ",
        f"| TLS handshake | {limits.HTTP_HANDSHAKE_S:.0f} s |",
        f"| {limits.HTTP_HEAD_BYTES_MAX // limits.KIB} KiB, within {limits.HTTP_HEAD_S:.0f} s",
        f"| body | {limits.MESSAGE_BYTES_MAX // limits.MIB} MiB",
        f"pause for more than {limits.HTTP_SILENCE_S:.0f} s",
        f"| query | {QUERY_FIELDS_MAX} parameters |",
        f"| JSON | {limits.HTTP_JSON_DEPTH_MAX} levels |",
    ):
        assert expected in TEXT


def test_the_examples_work_when_pasted(running, tmp_path) -> None:
    stub = running.stub()
    backups = [back_up(stub, "www", {"etc/hosts": b"localhost", "a": b"%d" % number}) for number in range(2)]
    blocks = re.findall(r"^```sh curl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-exc", "".join(blocks).replace("127.0.0.1:7480", f"127.0.0.1:{open_http(running)}")],
        env={**os.environ, "STADDLE_TOKEN": running.token("admin"), "ID": backups[0].id},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    assert (tmp_path / "hosts").read_bytes() == b"localhost"
    assert "localhost" in done.stdout


def test_the_page_has_a_command_for_every_address() -> None:
    blocks = "".join(re.findall(r"^```sh curl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    lines = [line for line in blocks.splitlines() if "$url/" in line]
    found = set()
    for line in lines:
        verb = re.search(r"(?:-X|put) ([A-Z]+)", line)
        path = "/v1/" + re.search(r"\$url/([^?\s\")]*)", line)[1]
        at = Addresses(TABLE).find(path.encode())
        assert at is not None, line
        row = at.operations[verb[1] if verb else "PUT" if " -T " in line else "GET"]
        found.add((row.verb, row.path))
    assert [each.path for each in TABLE if (each.verb, each.path) not in found] == []


def test_the_error_of_the_page_is_the_one_that_is_sent(running) -> None:
    found = re.search(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    answer = call(open_http(running), "GetBackup", running.token(), b'{"dataset":"x"}')
    assert answer.said == json.loads(found[1])
