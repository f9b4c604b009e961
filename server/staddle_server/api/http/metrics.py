"""What Prometheus scrapes: counters of this server's work, and the state that `StateCollector` reads.

No label holds a path, an id or a token.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from staddle_server.api.call_line import CallLine
from staddle_server.api.gate import Gate
from staddle_server.api.http.connect import ended, peer_of, token_in
from staddle_server.api.http.exchange import Exchange
from staddle_server.base.errors import PermissionDenied
from staddle_server.base.observer import Observer
from staddle_server.base.types import TokenRole
from staddle_server.catalog import TRANSACTIONS
from staddle_server.store.observed import OPERATIONS

NAME: Final = "Metrics"
KEPT_S: Final = 5.0
"""How long an answer counts: a scraper cannot load the catalog."""
CALL_BUCKETS: Final = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0)
OPERATION_BUCKETS: Final = (0.0005, 0.002, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)


class Metrics(Observer):
    """Counts what this server does, from its start.

    Attributes:
        registry: Holds the counters, and further collectors.

    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third series for each counter, which nobody asks for
        self.registry = CollectorRegistry(auto_describe=True)
        self._calls = Counter(
            "staddle_calls", "Calls that have ended.", ["method", "code"], registry=self.registry
        )
        self._call_seconds = Histogram(
            "staddle_call_seconds",
            "How long calls took; streams last as long as they move.",
            ["method"],
            buckets=CALL_BUCKETS,
            registry=self.registry,
        )
        self._received = Counter(
            "staddle_received_bytes", "Bytes of the messages that arrived.", registry=self.registry
        )
        self._sent = Counter(
            "staddle_sent_bytes", "Bytes of the messages that were sent.", registry=self.registry
        )
        self._store = self._operations("store", "operations of the store")
        self._store_errors = self._errors("store", "Operations of the store", OPERATIONS)
        self._catalog = self._operations("catalog", "transactions of the catalog")
        self._catalog_errors = self._errors("catalog", "Transactions of the catalog", TRANSACTIONS)
        self._freed = Counter(
            "staddle_gc_freed_bytes", "Bytes that collections removed from the store.", registry=self.registry
        )

    def _operations(self, part: str, what: str) -> Histogram:
        return Histogram(
            f"staddle_{part}_seconds",
            f"How long {what} took.",
            ["operation"],
            buckets=OPERATION_BUCKETS,
            registry=self.registry,
        )

    def _errors(self, part: str, what: str, operations: Iterable[str]) -> Counter:
        made = Counter(
            f"staddle_{part}_errors", f"{what} that failed.", ["operation"], registry=self.registry
        )
        for operation in operations:  # an alert sees the first error only if there was a 0 before it
            made.labels(operation)
        return made

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def received(self, size_bytes: int) -> None:
        self._received.inc(size_bytes)

    def sent(self, size_bytes: int) -> None:
        self._sent.inc(size_bytes)

    def store_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        self._store.labels(operation).observe(seconds)
        if failed:
            self._store_errors.labels(operation).inc()

    def catalog_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        self._catalog.labels(operation).observe(seconds)
        if failed:
            self._catalog_errors.labels(operation).inc()

    def freed(self, size_bytes: int) -> None:
        self._freed.inc(size_bytes)


class _Scraped(NamedTuple):
    text: bytes
    packed: bytes
    until_s: float


class MetricsPage:
    """GET /metrics: for everybody, or for tokens of the role monitor alone."""

    def __init__(
        self, gate: Gate, metrics: Metrics, state: Collector, threads: Executor, *, public: bool
    ) -> None:
        metrics.registry.register(state)
        self._registry = metrics.registry
        self._gate = gate
        self._threads = threads
        self._public = public
        self._lock = threading.Lock()
        self._scraped: _Scraped | None = None

    def route(self) -> Route:
        """Return its route."""
        return Route("/metrics", self.respond, methods=["GET"])

    async def respond(self, request: Request) -> Response:
        """Answer one request."""
        loop = asyncio.get_running_loop()
        exchange = Exchange(loop, request.receive)
        try:
            return await loop.run_in_executor(self._threads, self._answer, request, exchange)
        finally:
            exchange.cancel()

    def _answer(self, request: Request, exchange: Exchange) -> Response:
        line = CallLine(NAME, lambda: peer_of(request), logging.DEBUG, self._gate.observer)

        def answer() -> Response:
            if not self._public:
                call = line.call = self._gate.admit(
                    NAME, TokenRole.MONITOR, token_in(request), exchange, stream=False
                )
                _check_role(call.principal.role)
            return self._response("gzip" in request.headers.get("accept-encoding", ""))

        return ended(answer, NAME, exchange, line)

    def _response(self, packed: bool) -> Response:
        scraped = self._scrape()
        headers = {"content-type": CONTENT_TYPE_LATEST, "vary": "accept-encoding"}
        if packed:
            headers["content-encoding"] = "gzip"
        return Response(scraped.packed if packed else scraped.text, headers=headers)

    def _scrape(self) -> _Scraped:
        """Return the answer, at most KEPT_S old. Callers that come together wait for one reading."""
        with self._lock:
            if self._scraped is None or self._scraped.until_s <= time.monotonic():
                text = generate_latest(self._registry)
                self._scraped = _Scraped(text, gzip.compress(text, 1), time.monotonic() + KEPT_S)
            return self._scraped


def _check_role(role: TokenRole) -> None:
    """Metrics are about all tenants: the roles of a tenant do not include the one for them."""
    if role is not TokenRole.MONITOR:
        raise PermissionDenied(
            "PERMISSION_DENIED",
            f"metrics are about all tenants, and need a token with the role monitor; this one has {role.name.lower()}",
            role="monitor",
        )
