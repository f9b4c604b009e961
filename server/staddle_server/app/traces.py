"""OpenTelemetry traces: a span for each call, and in it for what the call does in stages, store and catalog."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from staddle_server import __version__
from staddle_server.app.settings import OperatorError
from staddle_server.base.observer import Observer

EXPORT_S: Final = 2
"""How long the end of a server waits for the last spans."""


class TracingObserver(Observer):
    """Traces, and lets another observer count."""

    def __init__(self, counts: Observer, provider: Any) -> None:
        """`provider` is a TracerProvider of the SDK."""
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation import tracecontext

        self._counts = counts
        self._provider = provider
        self._tracer = provider.get_tracer("staddle", __version__)
        self._trace = trace
        self._no_context = context.Context()
        self._extract = tracecontext.TraceContextTextMapPropagator().extract

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._counts.call_ended(method, code, seconds)
        span = self._trace.get_current_span()
        span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            span.set_status(self._trace.StatusCode.ERROR, code)

    def received(self, size_bytes: int) -> None:
        self._counts.received(size_bytes)

    def sent(self, size_bytes: int) -> None:
        self._counts.sent(size_bytes)

    def store_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        self._counts.store_used(operation, seconds, failed=failed)

    def catalog_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        self._counts.catalog_used(operation, seconds, failed=failed)

    def freed(self, size_bytes: int) -> None:
        self._counts.freed(size_bytes)

    def call_span(self, method: str, call: str, carrier: Mapping[str, str]) -> AbstractContextManager[Any]:
        """Return a span below the caller's, or a new trace: whatever this thread worked for before is over."""
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(
            method,
            self._extract(carrier, self._no_context),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method, "staddle.call": call},
            record_exception=False,
            set_status_on_exception=False,
        )
        return span

    def span(self, name: str) -> AbstractContextManager[Any]:
        if not self._trace.get_current_span().is_recording():
            return nullcontext()
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(name, record_exception=False)
        return span

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()


@contextmanager
def traced(counts: Observer, collector: str) -> Iterator[Observer]:
    """Return an observer that also sends traces to a collector, by its URL for OTLP over HTTP; "": `counts`.

    The variables of OpenTelemetry, such as OTEL_TRACES_SAMPLER, apply. Raises OperatorError without the extra
    `otel`.
    """
    if not collector:
        yield counts
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OperatorError(
            f"--traces needs the extra `otel` ({error}): pip install 'staddle[server,otel]'"
        ) from error
    resource = Resource.create({"service.name": "staddle-server", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(collector, timeout=EXPORT_S)))
    observer = TracingObserver(counts, provider)
    try:
        yield observer
    finally:
        observer.close()
