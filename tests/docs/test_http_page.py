"""docs/http.md says what the HTTP door does."""

from __future__ import annotations

import json
import os
import re
import subprocess

from doc_pages import DOCS
from http_door import call, open_http
from staddle_server.api.http.connect import STATUSES
from staddle_server.base import limits

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
        f"| JSON | {limits.HTTP_JSON_DEPTH_MAX} levels |",
    ):
        assert expected in TEXT


def test_the_example_works_when_pasted(running) -> None:
    found = re.search(r"^```sh curl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    port = open_http(running)
    done = subprocess.run(
        ["bash", "-ec", found[1].replace("127.0.0.1:7480", f"127.0.0.1:{port}")],
        env={**os.environ, "STADDLE_TOKEN": running.token("reader")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "{}"), done.stderr


def test_the_error_of_the_page_is_the_one_that_is_sent(running) -> None:
    found = re.search(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    answer = call(open_http(running), "GetBackup", running.token(), b'{"dataset":"x"}')
    assert answer.said == json.loads(found[1])
