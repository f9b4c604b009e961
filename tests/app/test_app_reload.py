"""SIGHUP: the server reloads certificates and changeable settings, names the other changes, and ends no call."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import re
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import forked
import grpc
import pytest
from servers import ServerProcess
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc
from staddle_server.app import certificates
from staddle_server.app.reload import CHANGEABLE, Reloading
from staddle_server.app.settings import OPTIONS, OperatorError, Settings
from staddle_server.app.settings_reading import load
from staddle_server.app.signals import listening_for_signals
from staddle_server.base import logs
from staddle_server.store.space import MinFree, Space
from thin import begin

NOW = datetime.datetime.now(datetime.UTC)
COMMAND = str(Path(sys.executable).with_name("staddle-server"))
PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def settings_of(tmp_path: Path, **flags: str) -> Settings:
    return load({"data": str(tmp_path), **flags}, {})


def nearly_full(path: str) -> os.statvfs_result:
    """A disk of 1 GiB with 100 MiB free."""
    return os.statvfs_result((4096, 4096, 262_144, 25_600, 25_600, 0, 0, 0, 0, 255))


def test_changeable_settings_apply_immediately_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = settings_of(tmp_path)
    after = settings_of(
        tmp_path, log_level="debug", min_free="200MiB", drain_s="1m", streams_max="7", lease_s="6m"
    )
    space = Space([str(tmp_path)], before.min_free, status=nearly_full)
    reloading = Reloading(before, lambda: after, space, None)
    logger = logging.getLogger(logs.LOGGER)
    level = logger.level
    try:
        assert space.flaw() is None
        reloading.reload()
        assert logger.level == logging.DEBUG
        assert space.flaw() is not None
        assert reloading.settings.drain_s == 60
        assert (reloading.settings.streams_max, reloading.settings.lease_s) == (
            before.streams_max,
            before.lease_s,
        )
        (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert line.endswith("apply from the next start: lease, streams-max")
        reloading = Reloading(
            after, lambda: dataclasses.replace(after, min_free=MinFree(size_bytes=0)), space, None
        )
        reloading.reload()
        assert space.flaw() is None
    finally:
        logger.setLevel(level)


def test_invalid_settings_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Settings:
        raise OperatorError("s.toml: lease must be a string")

    before = settings_of(tmp_path)
    reloading = Reloading(before, broken, Space([], before.min_free), None)
    reloading.reload()
    assert reloading.settings == before
    assert "the previous ones stay: s.toml: lease must be a string" in caplog.text


def test_the_page_names_the_settings_that_a_running_server_takes_over() -> None:
    (sentence,) = re.findall(r"\*\*SIGHUP\*\* reads [^.]*\.", PAGE)
    names = {option.name for option in OPTIONS if option.field in CHANGEABLE}
    assert set(re.findall(r"`--([a-z-]+)`", sentence)) == names


def test_under_nohup_a_hangup_stays_ignored_and_otherwise_many_count_as_one() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening_for_signals(hangup=True):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with listening_for_signals(hangup=True) as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            hangups: list[str] = []

            def on_hangup() -> None:
                hangups.append("once")
                stop.ask("test")

            assert stop.wait(on_hangup) == "test"
            assert hangups == ["once"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def said(server: ServerProcess, words: str) -> str:
    """The first message of the log with these words."""
    return str(server.logged(words)[0]["message"])


def check_new_drain_time(server: ServerProcess, config_file: Path, trusted: grpc.ChannelCredentials) -> None:
    """With the original half hour, the idle stream would delay the stop."""
    config_file.write_text(config_file.read_text().replace('drain = "30m"', 'drain = "1s"'))
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    server.logged("settings were read again", changed="drain")
    token = tomllib.loads(server.config.read_text())["token"]
    end = threading.Event()

    def silent() -> Iterator[sv.BackupRequest]:
        yield sv.BackupRequest(parts=[begin("www")])
        end.wait(60)

    with grpc.secure_channel(server.address, trusted) as channel:
        metadata = [("authorization", f"Bearer {token}")]
        stub = service_pb2_grpc.StaddleServiceStub(channel)
        stream = stub.Backup.future(silent(), metadata=metadata)
        while not stub.ListUploads(sv.ListUploadsRequest(), metadata=metadata).uploads:
            assert not stream.done()
        assert server.stop() == 0
        assert stream.exception(timeout=30) is not None
        end.set()
    (drained,) = server.logged("draining")
    assert drained["drain_s"] == 1.0


def test_a_running_server_reloads_certificates_and_settings_and_keeps_serving(tmp_path: Path) -> None:
    pki, data = tmp_path / "pki", tmp_path / "data"
    certificates.make(pki, ["localhost"], [], 20, NOW)
    config_file = tmp_path / "server.toml"
    config_file.write_text(
        'drain = "30m"\nlog_level = "info"\ntls_cert = "pki/server.crt"\ntls_key = "pki/server.key"\n'
    )
    server = ServerProcess(data, flags=("--config", str(config_file)))
    server.start()
    try:
        assert "expires at" in said(server, "renew it")
        probe = [COMMAND, "health", "--data", str(data), "--config", str(config_file)]
        asked = forked.run(probe, check=False, capture_output=True, text=True, timeout=60)
        assert asked.returncode == 0, asked.stderr
        assert f"Warning: the certificate {pki}/server.crt expires at" in asked.stderr

        (pki / "server.crt").write_text("nonsense")
        config_file.write_text(config_file.read_text().replace('"info"', '"loud"'))
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        assert "server.crt is not a PEM file" in said(server, "the old ones stay")
        assert "log_level in" in said(server, "the previous ones stay")

        for path in pki.iterdir():
            path.unlink()
        certificates.make(pki, ["localhost"], [], 90, NOW)
        config_file.write_text(config_file.read_text().replace('"loud"', '"debug"\nlease = "6m"'))
        server.process.send_signal(signal.SIGHUP)
        assert "certificates were read again" in said(server, "certificates were read again")
        assert said(server, "from the next start").endswith(": lease")
        trusted = grpc.ssl_channel_credentials((pki / "ca.crt").read_bytes())
        with grpc.secure_channel(server.address, trusted) as channel:
            grpc.channel_ready_future(channel).result(30)
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:  # what health says is a second old
            asked = forked.run(probe, check=False, capture_output=True, text=True, timeout=60)
            if not asked.stderr:
                break
        assert (asked.returncode, asked.stderr) == (0, "")
        check_new_drain_time(server, config_file, trusted)
    finally:
        server.kill()
