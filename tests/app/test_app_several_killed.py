"""Three servers in processes of their own, on PostgreSQL and a bucket: started at once, the one that writes killed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import forked
import grpc
import postgres_server
import pytest
from click.testing import CliRunner
from seaweed import S3Server
from servers import NOTHING_BY_ITSELF, ServerProcess, Stub, _Bearer
from staddle.v1 import service_pb2 as sv
from staddle_server.app.data_directory import read_client_config
from staddle_server.cli.run import group
from staddle_server.store.keys import create_master_key
from thin import Source, back_up, noise, reason, restore, wait_until

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.slow]


class Site:
    """Three servers that share everything but their data directories."""

    def __init__(self, place: Path, store: str) -> None:
        create_master_key(str(place / "key"))
        self.place = place
        shared = (
            "--catalog",
            postgres_server.new_url(),
            "--store",
            store,
            "--master-key",
            str(place / "key"),
        )
        self.servers = [
            ServerProcess(place / name, flags=(*NOTHING_BY_ITSELF, *shared)) for name in ("a", "b", "c")
        ]

    @property
    def token(self) -> str:
        """The one that the first server to start was given."""
        found = [read_client_config(each.config).get("token") for each in self.servers]
        (token,) = [token for token in found if token]
        return token

    def stub(self, server: ServerProcess) -> Stub:
        channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        return Stub(grpc.intercept_channel(channel, _Bearer(self.token)))

    def listed(self) -> dict[str, str]:
        """The state of every server, by endpoint."""
        data = str(self.servers[-1].data)
        done = CliRunner().invoke(group, ["servers", "--data", data, "--json"])
        assert done.exit_code == 0, done.output
        return {each["endpoint"]: each["state"] for each in map(json.loads, done.output.splitlines())}


@pytest.fixture
def site(s3: S3Server, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, s3.url(f"several/{uuid.uuid4().hex}"))
    with ExitStack() as stack:
        for server in made.servers:
            stack.callback(server.stop)
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(ServerProcess.start, made.servers))
        yield made


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return reason(failed.value)


def test_an_upload_continues_at_another_server_after_the_kill_of_its_own_and_nothing_acknowledged_is_lost(
    site: Site,
) -> None:
    first, second, third = site.servers
    assert site.listed() == dict.fromkeys((each.address for each in site.servers), "live")
    acknowledged = {"kept": noise(400_000, 7)}
    back_up(site.stub(first), "before", acknowledged)

    source = Source(site.stub(first), "www")
    source.put_file("a", noise(3_000_000, 1))
    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("lost", noise(100_000, 2))
    elsewhere = site.stub(second)
    asked = sv.FindMissingChunksRequest(**source.id, digests=[bytes(32)])
    assert refusal(lambda: elsewhere.FindMissingChunks(asked)) == "WRONG_SERVER"
    first.kill()
    wait_until(lambda: refusal(lambda: elsewhere.FindMissingChunks(asked)) == "RESUME_REQUIRED")
    assert site.listed()[first.address] == "dead"

    resumed = object.__new__(Source)
    resumed.__dict__ = {**source.__dict__, "stub": elsewhere}
    resumed.upload = elsewhere.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    durable = resumed.upload.durable
    assert (durable.entry_count, durable.data_bytes) == (1, 3_000_000)
    resumed.entries, resumed.bytes, resumed.number = 1, 3_000_000, durable.put_entries_number
    resumed.put_file("b", noise(200_000, 3))
    made = resumed.commit()
    for server in (second, third):
        assert restore(site.stub(server), "www").files == {"a": noise(3_000_000, 1), "b": noise(200_000, 3)}
        assert restore(site.stub(server), "before").files == acknowledged

    first.start()  # the same data directory: its killed predecessor is no longer listed
    assert set(site.listed()) == {each.address for each in site.servers}
    assert restore(site.stub(first), "www").backup.id == made.id
    checked = CliRunner().invoke(group, ["check", "--read-data", "--data", str(third.data)])
    assert checked.exit_code == 0, checked.output
    assert [server.stop() for server in site.servers] == [0, 0, 0]
    assert CliRunner().invoke(group, ["servers", "--data", str(third.data)]).output == "No server.\n"


def test_the_bundled_client_backs_up_at_any_server_and_restores_at_another(
    site: Site, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number}").write_bytes(noise(50_000 + number, number))

    def staddle(server: ServerProcess, *arguments: str) -> None:
        given = {"STADDLE_SERVER": server.address, "STADDLE_TOKEN": site.token, "STADDLE_CONFIG": os.devnull}
        program = str(forked.BIN / "staddle")
        forked.run(
            [program, *arguments], capture_output=True, text=True, check=True, env={**os.environ, **given}
        )

    for number, server in enumerate(site.servers):
        (source / "changed").write_bytes(noise(10_000, 100 + number))
        staddle(server, "backup", str(source), "--dataset", "files")
    for number, server in enumerate(site.servers):
        target = tmp_path / f"restored{number}"
        staddle(server, "restore", "files", "--target", str(target))
        assert {each.name: each.read_bytes() for each in target.iterdir()} == {
            each.name: each.read_bytes() for each in source.iterdir()
        }
