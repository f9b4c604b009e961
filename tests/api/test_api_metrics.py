"""/metrics: who may read it, what it says, and what a scrape costs."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from http_door import ask, open_http
from prometheus_client.parser import text_string_to_metric_families
from servers import Running
from sqlalchemy import event, insert
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http import metrics as page
from staddle_server.api.http.metrics import Metrics
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import schema
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.observed import ObservedBlobs
from staddle_server.store.wrapped import WrappedBlobs
from thin import Source, back_up, restore, wait_until


class Scraping:
    """A service with metrics for everyone."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.running = Running(root, observer=Metrics(), metrics="public", **options)
        self.port = open_http(self.running)

    def text(self) -> str:
        found = ask(self.port, "/metrics")
        assert found.status == 200, found.body
        return found.body.decode()

    def values(self) -> dict[tuple[str, ...], float]:
        """Each sample by its name and the values of its labels, which are sorted by their names."""
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }


@pytest.fixture
def scraping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scraping]:
    monkeypatch.setattr(page, "KEPT_S", 0.0)
    made = Scraping(tmp_path)
    yield made
    made.running.stop()


def test_only_tokens_of_the_role_monitor_read_metrics_and_these_call_nothing_else(running: Running) -> None:
    port = open_http(running)

    def status(token: str | None) -> int:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return ask(port, "/metrics", headers=headers).status

    assert status(running.token("monitor")) == 200
    assert [status(running.token(role)) for role in ("reader", "writer", "admin")] == [403] * 3
    assert (status(None), status("staddle_unknown")) == (401, 401)
    with pytest.raises(Exception, match="needs a token with the role reader"):
        running.stub("monitor").GetServerInfo(sv.GetServerInfoRequest())
    assert ask(port, "/metrics", b"", {}).status == 405


def test_a_scrape_shows_what_is_stored_and_what_was_done(scraping: Scraping) -> None:
    running = scraping.running
    stub = running.stub()
    other = running.make_tenant("acme")
    back_up(stub, "one", {"a": b"1" * 100_000})
    made = back_up(stub, "one", {"a": b"1" * 100_000, "b": b"2" * 50_000})
    back_up(running.stub(tenant=other), "two", {"a": b"3"})
    restore(stub, "one")
    with pytest.raises(Exception, match="does not exist"):
        restore(stub, "none")
    wait_until(lambda: running.service._gate.streams.idle)
    found = scraping.values()
    last = found["staddle_dataset_last_success_timestamp_seconds", "one", "default"]
    assert last == pytest.approx(made.commit_time.seconds, abs=1.0)
    assert found["staddle_datasets", "default"] == 1
    assert found["staddle_datasets", "acme"] == 1
    kinds = {
        key[1]: value for key, value in found.items() if key[0] == "staddle_backups" and key[2] == "default"
    }
    assert sum(kinds.values()) == 2
    data = sum(
        value for key, value in found.items() if key[0] == "staddle_backup_data_bytes" and key[2] == "default"
    )
    assert data == 250_000
    assert found["staddle_dedup_ratio", "default"] == pytest.approx(
        data / found["staddle_stored_bytes", "default"]
    )
    assert found["staddle_calls_total", "OK", "Backup"] == 3
    assert found["staddle_calls_total", "NOT_FOUND", "Restore"] == 1
    assert found["staddle_call_seconds_count", "Restore"] == 2
    assert found["staddle_received_bytes_total",] > 150_000
    assert found["staddle_sent_bytes_total",] > 150_000
    assert found["staddle_store_seconds_count", "commit"] >= 3
    assert found["staddle_catalog_seconds_count", "write"] >= 3
    assert found["staddle_catalog_errors_total", "write"] == 0
    assert (found["staddle_open_slots", "streams"], found["staddle_open_uploads",]) == (0, 0)
    assert found["staddle_oldest_unread_timestamp_seconds", "default"] <= last
    parts = {key[1]: value for key, value in found.items() if key[0] == "staddle_part_up"}
    assert {"writes", "room", "upkeep", "integrity", "certificate"} <= set(parts)
    assert set(parts.values()) == {1}
    assert found["staddle_servers", "live"] == 1


def test_deleting_the_newest_backup_does_not_unmake_its_success(scraping: Scraping) -> None:
    stub = scraping.running.stub()
    made = back_up(stub, "one", {"a": b"1"})
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="one", backup=made.id))
    found = scraping.values()
    assert found["staddle_dataset_last_success_timestamp_seconds", "one", "default"] > 0
    assert not [key for key in found if key[0] == "staddle_backups"]


def test_a_dataset_with_an_expectation_shows_from_when_it_is_late(scraping: Scraping) -> None:
    stub = scraping.running.stub()

    def expect(dataset: str, **mute: Any) -> None:
        times = {"every": Duration(seconds=3600), "grace": Duration(seconds=60)}
        stub.SetExpectation(sv.SetExpectationRequest(dataset=dataset, **times, **mute))

    back_up(stub, "free", {"a": b"1"})
    made = back_up(stub, "one", {"a": b"1"})
    expect("one")
    expect("never")
    now_s = scraping.running.clock.now_ns() / 1e9
    expect("muted", mute_until_time=Timestamp(seconds=int(now_s) + 10**6))
    found = scraping.values()
    late = {
        key[1]: value for key, value in found.items() if key[0] == "staddle_dataset_late_timestamp_seconds"
    }
    assert set(late) == {"one", "never", "muted"}
    assert late["one"] == pytest.approx(made.commit_time.seconds + 3660, abs=1.0)
    assert late["never"] == pytest.approx(now_s + 3660, abs=60.0)
    assert late["muted"] == int(now_s) + 10**6
    assert found["staddle_dataset_last_success_timestamp_seconds", "never", "default"] == 0


def test_runs_of_the_last_day_are_counted_by_outcome(scraping: Scraping) -> None:
    stub = scraping.running.stub()
    back_up(stub, "one", {"a": b"1"})
    Source(stub, "two")
    found = scraping.values()
    assert found["staddle_runs_last_day", "done", "default"] == 1
    assert found["staddle_runs_last_day", "running", "default"] == 1
    scraping.running.clock.ahead_s = 90_000.0
    assert not [key for key in scraping.values() if key[0] == "staddle_runs_last_day"]


def test_known_damage_of_a_tenant_is_shown(scraping: Scraping) -> None:
    running = scraping.running
    back_up(running.stub(), "one", {"a": b"1"})
    (pack,) = (each for each in (running.root / "store" / "packs").rglob("*") if each.is_file())
    running.catalog.packs.mark_lost(running.tenant, [bytes.fromhex(pack.name)])
    running.service._integrity._look_again()
    found = scraping.values()
    assert found["staddle_damaged_packs", "default"] == 1
    assert found["staddle_part_up", "integrity"] == 0


def test_upkeep_shows_when_each_task_ran_and_whether_it_failed(scraping: Scraping) -> None:
    tasks = scraping.running.catalog.tasks
    tasks.note("scrub", 10**18, 10**18 + 10**9, "failed: for a reason")
    tasks.note("gc", 10**18, 10**18 + 10**9, "3 packs removed")
    found = scraping.values()
    assert (found["staddle_task_failed", "scrub"], found["staddle_task_failed", "gc"]) == (1, 0)
    assert found["staddle_task_end_timestamp_seconds", "gc"] == pytest.approx(1e9 + 1)


def test_no_label_has_an_id_a_path_or_a_token(scraping: Scraping) -> None:
    stub = scraping.running.stub()
    made = back_up(stub, "one", {"a/path": b"1"})
    text = scraping.text()
    for secret in (
        made.id,
        "a/path",
        scraping.running.token(),
        scraping.running.tenant.hex(),
        str(scraping.running.root),
    ):
        assert secret not in text
    names = set(re.findall(r'[{,](\w+)="', text))
    assert names == {
        "method",
        "code",
        "operation",
        "le",
        "version",
        "part",
        "kind",
        "tenant",
        "dataset",
        "state",
        "outcome",
    }


def test_names_of_datasets_cannot_break_out_of_their_label(scraping: Scraping) -> None:
    name = 'a"b\\c}é'
    back_up(scraping.running.stub(), name, {"a": b"1"})
    assert ("staddle_dataset_last_success_timestamp_seconds", name, "default") in scraping.values()


@pytest.mark.parametrize(("most", "shown"), [(0, 0), (2, 2), (9, 3)])
def test_datasets_beyond_the_setting_are_counted_and_left_out(tmp_path: Path, most: int, shown: int) -> None:
    scraping = Scraping(tmp_path, metrics_datasets=most)
    try:
        for name in ("c", "a", "b"):
            back_up(scraping.running.stub(), name, {"a": b"1"})
        found = scraping.values()
    finally:
        scraping.running.stop()
    listed = [key for key in found if key[0] == "staddle_dataset_last_success_timestamp_seconds"]
    assert (len(listed), found["staddle_datasets_left_out",]) == (shown, 3 - shown)
    assert found["staddle_datasets", "default"] == 3


def statements_of(scraping: Scraping) -> list[str]:
    said: list[str] = []
    engine = scraping.running.catalog.database.engine

    def heard(*arguments: Any) -> None:
        said.append(arguments[2])

    event.listen(engine, "before_cursor_execute", heard)
    try:
        scraping.text()
    finally:
        event.remove(engine, "before_cursor_execute", heard)
    return [each for each in said if each.startswith("SELECT")]


def test_a_scrape_has_as_many_queries_for_a_thousand_datasets_as_for_one(scraping: Scraping) -> None:
    back_up(scraping.running.stub(), "one", {"a": b"1"})
    few = statements_of(scraping)
    with scraping.running.catalog.database.write() as connection:
        connection.execute(
            insert(schema.datasets),
            [
                {"tenant": 1, "name": f"d{n}", "created_ns": 1, "host": "", "root": "", "last_number": 0}
                for n in range(1000)
            ],
        )
    assert len(statements_of(scraping)) == len(few) < 20
    assert scraping.values()["staddle_datasets", "default"] == 1001


def test_an_answer_counts_for_a_few_seconds_so_scrapers_cannot_load_the_catalog(
    scraping: Scraping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "KEPT_S", 60.0)
    first = scraping.text()
    assert statements_of(scraping) == []
    assert scraping.text() == first
    packed = ask(scraping.port, "/metrics", headers={"accept-encoding": "gzip"})
    assert gzip.decompress(packed.body).decode() == first


def test_without_its_catalog_a_server_still_shows_the_rest(
    scraping: Scraping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_place: object) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "the catalog does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(type(scraping.running.catalog.database), "check_place", fails)
        found = scraping.values()
    assert found["staddle_catalog_up",] == 0
    assert found["staddle_part_up", "writes"] == 1
    assert not [key for key in found if key[0] == "staddle_datasets"]
    found = scraping.values()
    assert found["staddle_catalog_up",] == 1
    assert found["staddle_catalog_errors_total", "read"] >= 1


class Broken(WrappedBlobs):
    def read(self, name: str, offset: int, length: int) -> bytes:
        if name == "none":
            raise BlobMissing(name)
        raise Unavailable("STORE_UNAVAILABLE", "the store does not answer")


def test_errors_of_the_store_count_and_missing_objects_do_not() -> None:
    counts = Metrics()
    blobs = ObservedBlobs(Broken(MemoryBlobs()), counts)
    for name, error in (("none", BlobMissing), ("some", Unavailable)):
        with pytest.raises(error):
            blobs.read(name, 0, 1)
    read = counts.registry.get_sample_value
    assert read("staddle_store_seconds_count", {"operation": "read"}) == 2
    assert read("staddle_store_errors_total", {"operation": "read"}) == 1
    assert list(blobs.list("")) == []
    assert read("staddle_store_seconds_count", {"operation": "list"}) == 1
