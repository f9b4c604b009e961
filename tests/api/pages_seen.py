"""A service with pages, people who look at them, and what a test changes behind the service's back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from http_door import open_http
from pages_client import Visitor, text_of
from servers import Running
from sqlalchemy import select, update
from staddle.v1 import service_pb2 as sv
from staddle_server.base.clock import NS
from staddle_server.catalog import Alarm, AlarmKey, EventChanges, schema


class Seen:
    """A service with pages, and an administrator who looks at them."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.stub = running.stub()
        self.port = open_http(running)
        self.admin = Visitor(self.port, running.token("admin"))
        self.reader = Visitor(self.port, running.token("reader"))
        self.now_ns = running.clock.now_ns()

    def says(self, path: str = "/", visitor: Visitor | None = None) -> str:
        return text_of((visitor or self.admin).page(path))

    def expect(self, dataset: str, every_s: int = 86_400) -> None:
        period = Duration(seconds=every_s)
        self.stub.SetExpectation(sv.SetExpectationRequest(dataset=dataset, every=period))

    def fail(self, dataset: str, reason: str, host: str = "web1") -> None:
        self.stub.ReportRun(sv.ReportRunRequest(dataset=dataset, reason=reason, host=host))

    def succeeded(self, dataset: str, ago_ns: int) -> None:
        """Let its newest success be older."""
        with self.running.catalog.database.write() as connection:
            this = update(schema.datasets).where(schema.datasets.c.name == dataset)
            connection.execute(this.values(success_ns=self.now_ns - ago_ns))

    def move(self, backup: str, begin_ns: int, took_ns: int = 60 * NS, **more: int) -> None:
        """Let a backup, and its run, be of another time."""
        with self.running.catalog.database.write() as connection:
            table = schema.backups
            this = table.c.id == bytes.fromhex(backup)
            upload = connection.execute(select(table.c.upload).where(this)).scalar_one()
            times = {"begin_ns": begin_ns, "commit_ns": begin_ns + took_ns}
            connection.execute(update(table).where(this).values(**times, **more))
            run = update(schema.runs).where(schema.runs.c.id == upload)
            connection.execute(run.values(begin_ns=begin_ns, end_ns=begin_ns + took_ns))

    def alarm(
        self, text: str, severity: str = "critical", tenant: str = "default", kind: str = "lock"
    ) -> None:
        # The service's own look would find nothing of the kind, and mark the event as absent.
        self.running.service._events.stop()
        events = self.running.catalog.events
        opened = events.open(self.now_ns)
        found = Alarm(AlarmKey(kind, tenant, "", text), severity, text, "Run `staddle-server lock`.", None)
        assert events.change(opened.fence, EventChanges(begun=[found]), lambda _: [], "test", self.now_ns)
