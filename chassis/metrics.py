"""The process's instruments and gauges over HTTP, on a port of their own, for Prometheus to read.

A few readers at once, each for a few seconds and for one request: prometheus_client's own server starts a thread for each
connection, without a limit on their number or their duration.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence

import grpc
import h11
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from chassis.exposure import is_loopback
from chassis.gate import METRICS, Door, Gate
from chassis.identity import Presented
from chassis.instruments import Figures, Gauge, Instrument, read_gauge
from chassis.refusals import Refusal
from chassis.settings import Address
from chassis.tls import HANDSHAKE_SECONDS, NOBODY, ServerTls, holder_in

# Far more than the monitoring systems that read one server.
READERS = 32
# A page of gauges is some kilobytes, made in milliseconds.
READER_SECONDS = 5.0


PREFIX = "chargeonce"
"""Of the names of all metrics."""


async def offer(
    listen: Address,
    instruments: Sequence[Instrument],
    gauges: Mapping[str, Gauge],
    take: Callable[[], Figures],
    gate: Gate,
    tls: ServerTls | None = None,
) -> asyncio.Server:
    """Offer instruments and gauges until what is returned is closed, to the readers that the gate admits.

    Each reading takes all figures of the gauges together. Raises OSError naming the address.
    """
    registry = CollectorRegistry()
    registry.register(_Collected(instruments, gauges, take))
    for of_process in (ProcessCollector, PlatformCollector, GCCollector):
        of_process(registry=registry)
    answer = _Readers(gate.door(METRICS, on_loopback=is_loopback(listen.host)), registry).answer
    try:
        return await asyncio.start_server(
            answer,
            listen.host,
            listen.port,
            backlog=1_000,  # handshakes that never end do not keep an honest reader waiting to be accepted
            ssl=tls.context if tls else None,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
            ssl_shutdown_timeout=HANDSHAKE_SECONDS if tls else None,
        )
    except OSError as error:
        # The loop's own text repeats the address, so the system's text is used; an unknown host has only the loop's text.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise OSError(f"cannot offer metrics on {listen}: {why}") from error


class _Collected(Collector):
    def __init__(
        self, instruments: Sequence[Instrument], gauges: Mapping[str, Gauge], take: Callable[[], Figures]
    ) -> None:
        self._instruments = instruments
        self._gauges = gauges
        self._take = take

    def describe(self) -> Iterable[Metric]:
        """Name what is collected without taking the figures: a server that is not up yet has none."""
        yield from (each.read(PREFIX) for each in self._instruments)
        yield from (read_gauge(PREFIX, name, gauge, 0.0) for name, gauge in self._gauges.items())

    def collect(self) -> Iterable[Metric]:
        """Take the figures once for all gauges."""
        figures = self._take()
        yield from (each.read(PREFIX) for each in self._instruments)
        yield from (read_gauge(PREFIX, name, gauge, figures[name]) for name, gauge in self._gauges.items())


class _Readers:
    def __init__(self, door: Door, registry: CollectorRegistry) -> None:
        self._door = door
        self._registry = registry
        self._writers: dict[asyncio.StreamWriter, None] = {}  # in order of arrival

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, or hang up. The oldest reader makes room: an honest one has left before others push it out."""
        if len(self._writers) >= READERS:
            oldest = next(iter(self._writers))
            del self._writers[oldest]
            oldest.transport.abort()
        self._writers[writer] = None
        try:
            async with asyncio.timeout(READER_SECONDS):
                await _answer(reader, writer, self._door, self._registry)
        except (TimeoutError, OSError, h11.ProtocolError):
            writer.transport.abort()
        finally:
            self._writers.pop(writer, None)
            writer.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, door: Door, registry: CollectorRegistry
) -> None:
    connection = h11.Connection(h11.SERVER)
    while (request := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(4096))
    if not isinstance(request, h11.Request):
        return
    try:
        door.admit(_presented(request, writer), str(writer.get_extra_info("peername")))
    except Refusal as refusal:
        is_unknown = refusal.code is grpc.StatusCode.UNAUTHENTICATED
        status, content_type, body = 401 if is_unknown else 403, "text/plain", refusal.text.encode()
    else:
        encode, content_type = choose_encoder(_joined(request, b"accept"))
        status, body = 200, encode(registry)
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    if writer.can_write_eof():  # TLS has no half-closed connections
        writer.write_eof()
    # Wait until the reader has taken everything: written bytes may still be in our own buffer.
    while await reader.read(4096):
        pass


def _joined(request: h11.Request, header: bytes) -> str:
    return b",".join(value for name, value in request.headers if name == header).decode("latin-1")


def _presented(request: h11.Request, writer: asyncio.StreamWriter) -> Presented:
    """Read what a reader presents: the names of its verified certificate, and its headers of authorization."""
    tls = writer.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    holder = holder_in(ssl.DER_cert_to_PEM_cert(certificate).encode()) if certificate else NOBODY
    host, *_ = writer.get_extra_info("peername") or ("",)  # none, if the reader has hung up already
    return Presented(
        uris=holder.uris,
        dns_names=holder.dns_names,
        certificate_ends_at=holder.ends_at,
        authorization=[value.decode("latin-1") for name, value in request.headers if name == b"authorization"],
        is_private=tls is not None or is_loopback(host),
    )
