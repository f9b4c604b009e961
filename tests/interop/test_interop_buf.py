"""buf curl, a generic client: it uses reflection, or the protos."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode
from http_door import open_http
from interop_build import PROTOS
from interop_clients import Ran

SERVICE = "staddle.v1.StaddleService"
PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
# It comes with the development dependencies, beside the interpreter.
BUF = Path(sys.executable).with_name("buf")
LINES = (
    {"parts": [{"begin": {"dataset": "notes", "kind": "BACKUP_KIND_FULL"}}]},
    {"parts": [{"entry": {"path": "naïve ☂.txt", "data": base64.b64encode(b"rain").decode()}}]},
    {"parts": [{"finish": {"entry_count": 1, "data_bytes": 4}}]},
)


class Said(Ran):
    """The result of buf curl."""

    @property
    def failure(self) -> tuple[StatusCode, str]:
        """The code and the reason of a call that failed."""
        said = json.loads(self.errors)
        (detail,) = said["details"]
        assert detail["type"] == "google.rpc.ErrorInfo"
        # Base64 without its padding.
        info = ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
        assert info.domain == "staddle"
        code = StatusCode[said["code"].upper()]
        assert self.exit_status == code.value[0] << 3
        return code, info.reason


def call(
    running,
    method: str,
    *lines: dict,
    token: str | None,
    reflect: bool = True,
    protocol: str = "grpc",
    address: str = "",
) -> Said:
    """One call with these messages, as JSON lines on standard input."""
    header = [] if token is None else ["-H", f"authorization: Bearer {token}"]
    schema = ["--reflect-header", "*"] if reflect else ["--schema", str(PROTOS)]
    url = f"http://{address or running.address}/{SERVICE}/{method}"
    done = subprocess.run(
        [str(BUF), "curl", "--protocol", protocol, *schema, *header, "-d", "@-", url],
        input="".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines or ({},)),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def test_buf_curl_backs_up_lists_and_restores_with_reflection_or_with_the_protos(running) -> None:
    token = running.token("admin")
    for reflect in (True, False):
        made = call(running, "Backup", *LINES, token=token, reflect=reflect).answer
        assert made["upload"]["state"] == "UPLOAD_STATE_COMMITTED"
        listed = call(running, "ListBackups", {"dataset": "notes"}, token=token, reflect=reflect).answer
        assert listed["backups"][0] == made["backup"]
        restored = call(running, "Restore", {"dataset": "notes"}, token=token, reflect=reflect).answer
        header, entry, end = restored["parts"]
        assert header["header"]["backup"] == made["backup"]
        assert entry["entry"]["path"] == "naïve ☂.txt"
        assert base64.b64decode(entry["entry"]["data"]) == b"rain"
        assert end == {"end": {"entryCount": "1", "dataBytes": "4"}}


def test_buf_curl_shows_the_code_and_the_reason_of_an_error(running) -> None:
    token = running.token("reader")
    unknown = call(running, "Restore", {"dataset": "none"}, token=token)
    assert unknown.failure == (StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    refused = call(running, "Backup", *LINES, token=token)
    assert refused.failure == (StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    nobody = call(running, "ListDatasets", token=None, reflect=False)
    assert nobody.failure == (StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def test_buf_curl_speaks_connect_to_the_http_door(running) -> None:
    address = f"127.0.0.1:{open_http(running)}"

    def connect(method: str, line: dict, token: str | None) -> Said:
        return call(running, method, line, token=token, reflect=False, protocol="connect", address=address)

    token = running.token("reader")
    assert connect("GetServerInfo", {}, token).answer["role"] == "reader"
    unknown = connect("GetBackup", {"dataset": "none"}, token)
    assert unknown.failure == (StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    refused = connect("BeginUpload", {"dataset": "notes"}, token)
    assert refused.failure == (StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    streams = connect("Restore", {"dataset": "none"}, token)
    assert json.loads(streams.errors)["code"] == "unimplemented"


def test_the_example_of_the_page_works_when_pasted(running) -> None:
    found = re.search(r"^```sh buf\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    done = subprocess.run(
        ["bash", "-ec", found[1].replace("127.0.0.1:7443", running.address)],
        env={
            **os.environ,
            "PATH": f"{BUF.parent}{os.pathsep}{os.environ['PATH']}",
            "STADDLE_TOKEN": running.token("reader"),
        },
        cwd=PAGE.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["limits"]
