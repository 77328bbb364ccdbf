"""Traces through OpenTelemetry, to a collector that speaks OTLP over HTTP. This needs the extra `otel`.

Whether a call is traced is decided here, and not by the SDK at ten times the cost: by the client if it sends a trace context,
else by chance. The SDK sees only spans that are recorded. They wait in a bounded queue, and a thread of the SDK's sends them
each second. While the collector is away spans are lost, and nothing is held up.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import requests
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from chassis.tracing import Span, is_context, is_sampled

log = structlog.get_logger()

# A crash loses the spans of this time.
SEND_EVERY_MILLISECONDS = 1_000.0
# A collector on the same network answers in milliseconds; the server's end waits for it no longer than this.
SEND_SECONDS = 3.0
PATH = "/v1/traces"
"""The collector's path, unless its URL has one."""


class OpenTelemetry:
    """Records traces; see `chassis.tracing.Tracer`."""

    def __init__(self, service: str, collector: str, *, sampled: float, chance: random.Random) -> None:
        """`service` is the name under which the spans are shown. `sampled`: the share of the calls without a context."""
        # It logs each failure anew, with texts of its own.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        session = requests.Session()
        session.trust_env = False  # a proxy of the environment, which nobody sees
        url = collector if urlsplit(collector).path.strip("/") else collector.rstrip("/") + PATH
        self._exporter = _Telling(OTLPSpanExporter(endpoint=url, timeout=SEND_SECONDS, session=session))
        processor = BatchSpanProcessor(self._exporter, schedule_delay_millis=SEND_EVERY_MILLISECONDS)
        resource = Resource.create({"service.name": service, "service.version": version("chargeonce")})
        self._provider = provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("chargeonce")
        self._sampled = sampled
        self._chance = chance

    def of_call(self, name: str, sent: str) -> Span | None:
        """Begin the span of a call, below the client's if that one is recorded; see the port."""
        if sent and is_context(sent):
            if not is_sampled(sent):
                return None
            return _Recorded(self._tracer.start_span(name, _context(sent), trace.SpanKind.SERVER))
        if self._chance.random() >= self._sampled:
            return None
        return _Recorded(self._tracer.start_span(name, _NOWHERE, trace.SpanKind.SERVER))

    def within(self, name: str, context: str) -> Span:
        """Begin the span of a part; see the port."""
        return _Recorded(self._tracer.start_span(name, _context(context)))

    def after(self, name: str, context: str) -> Span:
        """Begin a trace that links to another one; see the port."""
        return _Recorded(self._tracer.start_span(name, _NOWHERE, links=[trace.Link(_span_context(context))]))

    def close(self) -> None:
        """Send what is recorded, if the collector takes it, and end."""
        self._exporter.is_ending = True
        self._provider.shutdown()


_NOWHERE = trace.set_span_in_context(trace.INVALID_SPAN)


def _span_context(context: str) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(int(context[3:35], 16), int(context[36:52], 16), is_remote=True, trace_flags=flags)


def _context(context: str) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(context)))


class _Recorded:
    """A span that is recorded; see `chassis.tracing.Span`."""

    __slots__ = ("_span", "context")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        made = span.get_span_context()
        self.context = f"00-{made.trace_id:032x}-{made.span_id:016x}-01"

    def end(self, attributes: Mapping[str, str], *, has_failed: bool) -> None:
        """Note its end."""
        self._span.set_attributes(attributes)
        if has_failed:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class _Telling(SpanExporter):
    """Sends spans, and logs when they begin to be lost and when they no longer are."""

    def __init__(self, to: SpanExporter) -> None:
        self._to = to
        self._is_losing = False
        self.is_ending = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send some spans."""
        if self._is_losing and self.is_ending:
            return SpanExportResult.FAILURE  # else the server's end would wait for each batch that is left
        result = self._to.export(spans)
        was_losing, self._is_losing = self._is_losing, result is not SpanExportResult.SUCCESS
        if self._is_losing and not was_losing:
            log.warning("the collector of traces does not take them: they are lost until it does")
        elif was_losing and not self._is_losing:
            log.info("the collector of traces takes them again")
        return result

    def shutdown(self) -> None:
        """End."""
        self._to.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits: nothing does here."""
        return self._to.force_flush(timeout_millis)
