"""A collector of traces, for tests: it takes spans by OTLP over HTTP, and keeps them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import h11
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from rig.proxy import listening


class Seen(NamedTuple):
    """A span. Ids are in hex; `parent` and `links` are empty if it has none."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    links: list[tuple[str, str]]
    """The traces and spans that it links to."""
    attributes: dict[str, str]
    has_failed: bool


@dataclass
class Collector:
    """What has arrived."""

    url: str
    spans: list[Seen] = field(default_factory=list)
    status: int = 200
    """The answer to the next requests."""

    def named(self, name: str, trace: str = "") -> list[Seen]:
        """The spans of a name, of all traces or of one."""
        return [span for span in self.spans if span.name == name and trace in ("", span.trace)]

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Seen(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        {attribute.key: attribute.value.string_value for attribute in span.attributes},
                        has_failed=span.status.code == 2,
                    )
                )


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Listen on a free port of this machine."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, body, status = h11.Connection(h11.SERVER), b"", 0
        while not isinstance(event := connection.next_event(), h11.ConnectionClosed):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Request):
                status = collector.status if event.target == b"/v1/traces" else 404
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                if status == 200:
                    collector.take(body)
                response = h11.Response(status_code=status, headers=[("Content-Length", "0")])
                for out in (response, h11.EndOfMessage()):
                    writer.write(connection.send(out) or b"")
                body = b""
                connection.start_next_cycle()

    async with listening(serve) as port:
        collector = Collector(f"http://127.0.0.1:{port}")
        yield collector
