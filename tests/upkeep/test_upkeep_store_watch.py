"""What protects the store besides itself is watched: the object lock, and the copy at a second site."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from postgres_server import only_in_a_file
from seaweed import LOCKED_BUCKET, S3Server
from second_place import replicate
from servers import Running, ServerProcess
from staddle.v1 import service_pb2 as sv
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.health_probe import LOCK, SECOND_SITE, check_on
from staddle_server.app.second_site import SecondSite
from staddle_server.base.clock import NS
from staddle_server.catalog.tasks import Period
from staddle_server.cli.run import group
from staddle_server.upkeep.integrity.lock_standing import lock_standing
from thin import back_up, noise

DAY_S = 86_400
FILES = {"a": noise(400_000, 1)}
ONCE = Period(1.0, 1.0)


def health(running: Running, name: str) -> str:
    with grpc.insecure_channel(running.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def warnings(running: Running) -> list[str]:
    with grpc.insecure_channel(running.address) as channel:
        return check_on(channel, running.address, 5.0)


def condition(running: Running) -> sv.ServerCondition:
    return running.stub("reader").GetServerInfo(sv.GetServerInfoRequest()).condition


def ended(running: Running, task: str, outcome: str, now_ns: int) -> None:
    """That task has run, with that outcome."""
    fence = running.catalog.tasks.claim(task, "a test", now_ns, 60.0, ONCE)
    assert fence is not None
    assert running.catalog.tasks.end(task, fence, now_ns, outcome)


@only_in_a_file
def test_the_standing_of_a_lock_says_until_when_it_protects_and_what_is_late(running: Running) -> None:
    catalog, now_ns, span_s = running.catalog, running.clock.now_ns(), 30.0 * DAY_S

    def warned(at_ns: int) -> tuple[str, ...]:
        return lock_standing(catalog, span_s, at_ns).warnings

    standing = lock_standing(catalog, span_s, now_ns)
    assert (standing.packs_until_ns, standing.others_until_ns, standing.warnings) == (None, None, ())
    ended(running, "lock", "", now_ns - DAY_S * NS)
    assert lock_standing(catalog, span_s, now_ns).packs_until_ns == now_ns + 44 * DAY_S * NS, (
        "of the next packs"
    )
    back_up(running.stub(), "one", FILES)
    back_up(running.stub(), "two", {"b": noise(300_000, 2)})
    first, second = catalog.packs.lock_due(2**62, (-1, 0), 10)
    catalog.packs.note_locked({first.row: now_ns + 45 * DAY_S * NS, second.row: now_ns + 36 * DAY_S * NS})
    ended(running, "lock", "2 locks were extended", now_ns)
    ended(running, "versions", "", now_ns)
    standing = lock_standing(catalog, span_s, now_ns)
    assert standing.packs_until_ns == now_ns + 36 * DAY_S * NS
    assert standing.others_until_ns == now_ns + 45 * DAY_S * NS
    assert standing.warnings == ()
    (late,) = warned(now_ns + 3 * DAY_S * NS)
    assert late == "the least protected pack is locked for another 33d, barely more than the promised 30d"
    (late, never) = warned(now_ns + 8 * DAY_S * NS)
    assert "for another 28d, less than the promised 30d" in late
    assert never.startswith("the locks of keys and records were last extended 8d ago")
    assert "the lock of a pack that backups need has ended" in warned(now_ns + 37 * DAY_S * NS)[0]
    later_ns = now_ns + DAY_S * NS
    ended(running, "lock", "failed: the bucket refuses it", later_ns)
    ended(running, "versions", "failed: no answer", later_ns)
    standing = lock_standing(catalog, span_s, later_ns)
    assert standing.warnings == (
        "the locks of packs could not be extended: the bucket refuses it",
        "the locks of keys and records could not be extended: no answer",
    )
    assert standing.others_until_ns is None


def test_a_copy_that_falls_behind_is_a_warning_until_it_is_whole_again(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "second" / "store"
    running.second = SecondSite(DataDirectory(running.root), str(place), os.environ)
    back_up(running.stub(), "www", FILES)
    running.restart()
    site = condition(running).second_site
    assert (site.HasField("lag"), site.late) == (False, False)
    assert site.bytes_behind == 0, "the place is not known yet"
    running.clock.ahead_s = 2 * 3600
    running.service.store_watch.look()
    assert condition(running).second_site.late, "two hours, and never whole"
    assert "has never been complete" in caplog.text

    replicate(running, place)
    running.service.store_watch.look()
    site = condition(running).second_site
    assert (site.HasField("lag"), site.lag.seconds, site.late) == (True, 0, False)
    assert "second site: nothing is late any more" in caplog.text

    back_up(running.stub(), "www", {"b": noise(300_000, 2)})
    running.clock.ahead_s += 1800
    running.service.store_watch.look()
    site = condition(running).second_site
    assert (site.late, site.bytes_behind > 300_000) == (False, True)
    assert 1795 <= site.lag.seconds <= 1900
    assert health(running, SECOND_SITE) == "SERVING"
    running.clock.ahead_s += 1900
    with caplog.at_level(logging.ERROR):
        caplog.clear()
        running.service.store_watch.look()
        running.service.store_watch.look()
        assert caplog.text.count(f"the copy at {place} is 1h behind") == 1, "once an hour"
        running.clock.ahead_s += 3601
        running.service.store_watch.look()
        assert caplog.text.count(f"the copy at {place} is 2h behind") == 1
    running.restart()  # health looks once a second
    assert health(running, SECOND_SITE) == "NOT_SERVING"
    assert "the copy at the second site is too far behind" in warnings(running)[0]


def test_a_copy_to_which_nothing_had_to_be_sent_for_days_is_not_late_with_the_next_backup(
    running: Running, tmp_path: Path
) -> None:
    place = tmp_path / "second" / "store"
    running.second = SecondSite(DataDirectory(running.root), str(place), os.environ)
    back_up(running.stub(), "www", FILES)
    replicate(running, place)
    for _ in range(3):
        running.clock.ahead_s += 8 * 3600 - 5  # less than a day in all: nothing there is listed
        assert replicate(running, place).idle
    back_up(running.stub(), "www", {"b": noise(300_000, 2)})
    running.restart()
    assert condition(running).second_site.late is False
    assert condition(running).second_site.lag.seconds < 60


def test_a_service_without_lock_or_second_site_says_nothing_of_them(running: Running) -> None:
    said = condition(running)
    assert (said.HasField("object_lock"), said.HasField("second_site")) == (False, False)
    assert (health(running, LOCK), health(running, SECOND_SITE)) == ("SERVING", "SERVING")
    assert warnings(running) == []


@pytest.fixture
def locked(s3: S3Server, tmp_path: Path) -> Iterator[tuple[ServerProcess, S3Server, str]]:
    prefix = f"watch/{uuid.uuid4().hex}"
    done = CliRunner().invoke(
        group, ["init", "--data", str(tmp_path / "d"), "--store", s3.locked_url(prefix, "object-lock=7d")]
    )
    assert done.exit_code == 0, done.output
    server = ServerProcess(tmp_path / "d")
    server.start()
    yield server, s3, prefix
    server.stop()


@pytest.mark.xdist_group("s3")
def test_the_command_shows_the_lock_of_a_running_server_and_makes_hidden_objects_visible(
    locked: tuple[ServerProcess, S3Server, str],
) -> None:
    server, s3, prefix = locked

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(group, [*words, "--data", str(server.data)])
        assert done.exit_code == code, done.output
        return done.output

    back_up(server.stub(), "set", FILES)
    said = server.stub().GetServerInfo(sv.GetServerInfoRequest()).condition
    assert (said.object_lock.promise.seconds, said.object_lock.late) == (7 * DAY_S, False)
    shown = run("lock")
    assert shown.startswith("What backups need is locked for at least 7d at any time.\nPacks: ")
    client = s3.client()
    listed = client.list_objects_v2(Bucket=LOCKED_BUCKET, Prefix=prefix)["Contents"]
    kinds = ("/format", "/records/")
    needed = sorted(each["Key"] for each in listed if any(kind in each["Key"] for kind in kinds))
    assert len(needed) >= 3
    for key in needed[1:]:
        s3.hide(key)
    shown = run("lock", code=4)
    assert "WARNING: " in shown
    assert "are hidden in the bucket by delete markers" in shown
    names = [key.removeprefix(f"{prefix}/") for key in needed]
    assert json.loads(run("lock", "--json", code=4))["hidden"] == names[1:]
    s3.hide(needed[0])
    assert "/format is missing" in run("lock", code=1)
    assert json.loads(run("lock", "--unhide", "--json"))["unhidden"] == names[1:]
    assert json.loads(run("lock", "--json"))["hidden"] == []
    assert json.loads(run("check", "--json").splitlines()[-1])["damage"] == 0


def test_a_store_without_object_lock_has_nothing_to_show(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "d")]
    assert CliRunner().invoke(group, ["init", *data]).exit_code == 0
    done = CliRunner().invoke(group, ["lock", *data])
    assert (done.exit_code, done.output) == (
        0,
        "The store has no object lock: whoever has its credentials can delete the backups.\n",
    )
    assert json.loads(CliRunner().invoke(group, ["lock", "--json", *data]).output) == {"promise_seconds": 0}
