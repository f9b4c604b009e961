"""Traces, with the SDK and its exporter in memory: what a call did, below the span of its caller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from http_door import call, open_http
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import Running, ServerProcess
from staddle import Client
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.metrics import Metrics
from staddle_server.app.traces import TracingObserver, traced
from staddle_server.base.observer import NOTHING
from thin import back_up, restore, wait_until

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, SPAN_ID = int(PARENT[3:35], 16), int(PARENT[36:52], 16)


class Traced:
    """A service whose spans are kept."""

    def __init__(self, root: Path) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.metrics = Metrics()
        self.running = Running(root, observer=TracingObserver(self.metrics, self.provider))

    def of(self, method: str) -> ReadableSpan:
        """The newest span of a method, once it has ended."""
        found: list[ReadableSpan] = []
        wait_until(lambda: found.extend(each for each in self.spans() if each.name == method) or found)
        return found[-1]

    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def below(self, parent: ReadableSpan) -> list[str]:
        """The names of the spans in this one, at any depth."""
        names: list[str] = []
        for each in self.spans():
            if each.parent is not None and each.parent.span_id == parent.context.span_id:
                names += [each.name, *self.below(each)]
        return names


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Traced]:
    made = Traced(tmp_path)
    yield made
    made.running.stop()


def test_a_call_is_a_span_with_what_it_did_in_store_catalog_and_stages(place: Traced) -> None:
    stub = place.running.stub()
    back_up(stub, "one", {"a": b"1" * 300_000})
    span = place.of("Backup")
    assert span.parent is None
    assert span.kind is trace.SpanKind.SERVER
    assert span.attributes["rpc.method"] == "Backup"
    assert span.attributes["rpc.response.status_code"] == "OK"
    assert {"catalog write", "catalog look_up", "store commit", "finish packs", "merge entries"} <= set(
        place.below(span)
    )
    restore(stub, "one")
    assert "store read" in place.below(place.of("Restore"))


def test_the_caller_is_the_parent_at_both_doors(place: Traced) -> None:
    place.running.stub().ListDatasets(sv.ListDatasetsRequest(), metadata=[("traceparent", PARENT)])
    call(open_http(place.running), "GetServerInfo", place.running.token(), traceparent=PARENT)
    for method in ("ListDatasets", "GetServerInfo"):
        span = place.of(method)
        assert (span.context.trace_id, span.parent.span_id) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize(
    "given", ["", "x", PARENT[:-10], PARENT.replace("0af7", "zzzz"), "00-" + "0" * 32 + PARENT[35:]]
)
def test_a_context_that_is_none_begins_a_new_trace(place: Traced, given: str) -> None:
    place.running.stub().ListDatasets(sv.ListDatasetsRequest(), metadata=[("traceparent", given)])
    assert place.of("ListDatasets").parent is None


def test_a_failed_call_says_so_and_is_counted_as_before(place: Traced) -> None:
    with pytest.raises(grpc.RpcError):
        place.running.stub().GetBackup(sv.GetBackupRequest(dataset="none"))
    span = place.of("GetBackup")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not span.events
    labels = {"method": "GetBackup", "code": "NOT_FOUND"}
    assert place.metrics.registry.get_sample_value("staddle_calls_total", labels) == 1


def test_the_library_passes_on_the_context_of_its_program(place: Traced) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with Client(place.running.address, token=place.running.token()) as client:
        with tracer.start_as_current_span("of the program") as span:
            client.info()
        theirs = span.get_span_context()
        found = place.of("GetServerInfo")
        assert (found.context.trace_id, found.parent.span_id) == (theirs.trace_id, theirs.span_id)


def test_calls_on_one_thread_are_not_below_one_another(place: Traced) -> None:
    stub = place.running.stub()
    for _ in range(3):
        stub.ListDatasets(sv.ListDatasetsRequest())
    wait_until(lambda: len([each for each in place.spans() if each.name == "ListDatasets"]) == 3)
    assert all(each.parent is None for each in place.spans() if each.name == "ListDatasets")


def test_work_for_no_call_has_no_spans(place: Traced) -> None:
    place.running.catalog.tasks.note("gc", 1, 2, "")
    list(place.running.service._kept.blobs.list(""))
    assert place.spans() == ()


def test_without_the_setting_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, staddle, staddle_server.cli.serve\n"
        "from staddle._transport.call_notes import CallNote\n"
        "assert len(CallNote('m', 'a').metadata) == 1\n"
        "print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    with traced(NOTHING, "") as observer:
        assert observer is NOTHING


def test_a_server_with_a_collector_that_does_not_answer_serves_and_stops(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "d", flags=("--traces", "http://127.0.0.1:9/v1/traces"))
    server.start()
    server.stub().ListDatasets(sv.ListDatasetsRequest())
    assert server.stop() == 0
