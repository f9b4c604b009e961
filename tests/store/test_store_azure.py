"""The contract of Blobs over Azurite, an emulator of Azure's blobs, if it is installed (`npm install -g azurite`).

Not part of the dev group: its 370 packages of npm take longer to install than all tests of the store to run.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from ports import free_port
from staddle_server.store.blobs import Blobs
from staddle_server.store.open import check_engine, open_blobs
from staddle_server.store.testing import BlobsContract

PROGRAM = shutil.which("azurite-blob")
ACCOUNT = "devstoreaccount1"
# The emulator's own, which is public.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"
READY_S = 30.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("azure"),
    pytest.mark.skipif(PROGRAM is None, reason="no Azurite: `npm install -g azurite` brings azurite-blob"),
]


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An emulator with one container, and the variables that lead to it."""
    port = free_port()
    assert PROGRAM is not None
    command = [PROGRAM, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    rest = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with subprocess.Popen([*command, *rest], cwd=tmp_path_factory.mktemp("azure")) as process:
        try:
            _make_container(port)
            url = f"http://127.0.0.1:{port}"
            yield {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}
        finally:
            process.terminate()


def _make_container(port: int) -> None:
    date = formatdate(usegmt=True)
    text = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{VERSION}\n/{ACCOUNT}/{ACCOUNT}/backups\nrestype:container"
    signed = base64.b64encode(
        hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    ).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": VERSION,
        "Authorization": f"SharedKey {ACCOUNT}:{signed}",
        "Content-Length": "0",
    }
    ends_s = time.monotonic() + READY_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with closing(connection), suppress(OSError):
            connection.request("PUT", f"/{ACCOUNT}/backups?restype=container", headers=headers)
            assert connection.getresponse().status == 201
            return
        assert time.monotonic() < ends_s
        time.sleep(0.1)


@pytest.fixture
def url(azure: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in azure.items():
        monkeypatch.setenv(name, value)
    return f"az://backups/{uuid.uuid4().hex}"


class TestAzureBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, url: str, tmp_path: Path) -> Blobs:
        return open_blobs(url, os.environ, str(tmp_path))


def test_the_emulator_passes_the_test_of_the_start(url: str, tmp_path: Path) -> None:
    check_engine(url, os.environ, str(tmp_path))
