"""The load generator: charges with keys of their own, over several connections: python -m bench.load --help

* Closed loop: a fixed number of charges in flight, the next begins when one ends. This measures capacity.
* Open loop: charges begin at a fixed rate, in steps of a rate and its seconds, whether or not the server keeps up. Latency
  counts from the moment at which a charge was due, so that a slow server cannot hide behind a generator that waits for it.
  A charge for which the generator itself is more than a second late is not sent, and counts as `unsent`.

It prints `begin` and `end` on standard output, each a JSON line, when the measured time begins and ends, so that the driver
can read clocks at those moments; `end` has the results. The generator competes with the measured service for two cores, so it
must be cheap: it writes HTTP/2 itself (bench/http2.py).

Several servers that are one service are one target: their addresses, with commas. Calls go to them in turns.

A target that is a URL is called over HTTP, for a peer whose own door is HTTP: the same messages as bodies, the key in the
header `Idempotency-Key`.
"""

import argparse
import asyncio
import json
import math
import os
import random
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import httptools
import uvloop
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from bench.http2 import CallFailed, Connection
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, ChargeStatus, Money

METHOD = "/charging.v1.CommandService/Charge"
# One connection sends its frames one after another, and more than a few connections gain nothing.
CONNECTIONS = 4
# Of a closed loop: a quarter of what the product allows, and all peers allow more. A limit of streams is no part of its load.
CALLS_A_CONNECTION = 125
# The codes of a server that does not want a call: ours, that of gRPC's core for a call beyond its queue, and UNAVAILABLE, as
# which a reset stream counts too.
UNWANTED = (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
USERS = 1_000
# The most calls of an open loop under way: a bound for the generator's own memory. Charges beyond it count as `unsent`.
MOST_UNDER_WAY = 50_000
# A generator that is later than this would measure its own lack of CPU time, not the server.
MOST_LATE_SECONDS = 1.0
# An open loop that is late gives the event loop a turn after this many sends, so that answers are read.
SENDS_A_TURN = 16
# So long that only a call without an answer meets it.
CALL_SECONDS = 60.0
# Slow services get this long after the measured time to end the calls under way, before the next measurement.
LAST_CALLS_SECONDS = 3.0
# The longest measured time, as a multiple of the ordered time: a slow service needs longer to end one charge of each client.
LONGEST_WINDOW = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """The load to make, and its duration."""

    target: str  # host:port for gRPC, or several of them; a URL for HTTP
    in_flight: int  # of a closed loop
    steps: Sequence["Step"]  # of an open loop; none is a closed one
    seconds: float
    warmup_seconds: float
    obey_retry_info: bool
    call_seconds: float
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A part of an open loop."""

    rate: float
    seconds: float


def step(text: str) -> Step:
    """RATE:SECONDS"""
    rate, _, seconds = text.partition(":")
    return Step(float(rate), float(seconds))


def schedule(steps: Sequence[Step]) -> Iterator[float]:
    """The time at which each charge of an open loop is due, in seconds from its beginning."""
    begin = 0.0
    for each in steps:
        for number in range(round(each.rate * each.seconds)):
            yield begin + number / each.rate
        begin += each.seconds


@dataclass(slots=True)
class Tally:
    """The counts of the measured time. A charge belongs to the second in which it was due."""

    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    by_second: "dict[int, array[float]]" = field(default_factory=dict)
    sent: int = 0
    refusals: int = 0
    """Calls that the server did not want."""
    advised: int = 0
    """Those of them that were told, by RetryInfo, when to come again."""
    unsent: int = 0

    def add(self, second: int, latency: float) -> None:
        """Count a charge."""
        self.latencies.append(latency)
        if (same := self.by_second.get(second)) is None:
            same = self.by_second[second] = array("d")
        same.append(latency)


class Refused(Exception):
    """A call that ended without an answer to the charge."""

    def __init__(self, reason: str, retry_seconds: float | None = None, *, is_unwanted: bool = False) -> None:
        """The reason for people, the seconds until a retry, if the server advises one, and whether it did not want the call."""
        super().__init__(reason)
        self.reason = reason
        self.retry_seconds = retry_seconds
        self.is_unwanted = is_unwanted


class Door(Protocol):
    """The way to a server: calls with serialised requests and answers."""

    async def open(self) -> None:
        """Connect."""

    async def call(self, number: int, key: str, request: bytes) -> bytes:
        """Make a call, within the door's deadline; the number spreads calls over connections. Raises Refused."""

    async def close(self) -> None:
        """Close the connections."""


class GrpcDoor:
    """Several connections to servers of charging.v1.CommandService, as many to each."""

    def __init__(self, targets: Sequence[str], in_flight: int, call_seconds: float, tls: ssl.SSLContext | None) -> None:
        self._targets = targets
        self._tls = tls
        self._call_seconds = call_seconds
        least = max(CONNECTIONS, -(-in_flight // CALLS_A_CONNECTION))
        self._count = -(-least // len(targets)) * len(targets)
        self._connections: list[Connection] = []

    async def open(self) -> None:
        """Connect."""
        for number in range(self._count):
            target = self._targets[number % len(self._targets)]
            self._connections.append(await Connection.open(target, METHOD, self._call_seconds, self._tls))

    async def call(self, number: int, key: str, request: bytes) -> bytes:  # noqa: ARG002  # it is in the request
        """Make a call."""
        try:
            return await self._connections[number % self._count].call(request)
        except CallFailed as error:
            retry_seconds, reason = advice(error)
            raise Refused(reason, retry_seconds, is_unwanted=error.code in UNWANTED) from None

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()


def advice(error: CallFailed) -> tuple[float | None, str]:
    """The server's advice: seconds until a retry, if it advises one, and its reason."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_seconds = None
    for detail in status_pb2.Status.FromString(error.details).details:
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToMilliseconds() / 1000
        else:
            detail.Unpack(info)
    code = error.code.name
    # An error without a reason comes from the transport, whose text is the only explanation.
    return retry_seconds, f"{code} {info.reason}" if info.reason else f"{code}: {error.text[:80]}"


class HttpDoor:
    """A URL that takes a request as the body of a POST, over as many connections as there are calls under way."""

    def __init__(self, url: str, call_seconds: float) -> None:
        self._call_seconds = call_seconds
        host_and_port, _, path = url.partition("://")[2].partition("/")
        self._host, _, port = host_and_port.rpartition(":")
        self._port = int(port)
        self._head = (
            f"POST /{path} HTTP/1.1\r\nHost: {host_and_port}\r\nContent-Type: application/x-protobuf\r\n"
            "Idempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
        )
        self._idle: list[_Connection] = []

    async def open(self) -> None:
        """Connections are made as calls need them."""

    async def call(self, number: int, key: str, request: bytes) -> bytes:  # noqa: ARG002  # any idle connection will do
        """Make a call."""
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._call_seconds):
                connection = self._idle.pop() if self._idle else await self._connect()
                head = self._head.format(key=key, length=len(request))
                status, body = await connection.exchange(head.encode("ascii") + request)
        except (OSError, httptools.HttpParserError) as error:  # TimeoutError is an OSError
            raise Refused(type(error).__name__) from None
        finally:
            if connection is not None and connection.is_reusable:
                self._idle.append(connection)
            elif connection is not None:
                connection.close()
        if status != 200:
            raise Refused(f"HTTP {status}: {body[:80].decode(errors='replace')}")
        return body

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, self._host, self._port))[1]

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._idle:
            connection.close()


class _Connection(asyncio.Protocol):
    """A connection that is kept open: one exchange after another."""

    is_reusable = False
    """The last exchange has ended, and both sides keep the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        self._answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; the status and the body of its answer. Raises OSError or httptools.HttpParserError."""
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self.is_reusable = False
        if self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.is_reusable = self._parser.should_keep_alive()
        if not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_reusable = False
        self._fail(exc or ConnectionResetError())

    def _fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def close(self) -> None:
        """End it."""
        self._transport.close()


class Generator:
    """Makes the load that an order describes."""

    def __init__(self, order: Order, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """A refused client waits by `sleep`."""
        self._order = order
        self._sleep = sleep
        if "://" in order.target:
            self._door: Door = HttpDoor(order.target, order.call_seconds)
        else:
            self._door = GrpcDoor(order.target.split(","), order.in_flight, order.call_seconds, order.tls)
        self._prefix = key_prefix("bench")
        self._number = 0
        self.tally = Tally()
        """What has happened since the measured time began."""
        self.begun = self.until = 0.0
        """When the measured time began, and until when charges are begun at all, by `time.perf_counter`."""

    async def run(self) -> None:
        """Warm up, measure, print the results, and let the calls under way end."""
        await self.open()
        self.until = time.perf_counter() + self._order.warmup_seconds + self._order.seconds * LONGEST_WINDOW
        if self._order.steps:
            loops = [asyncio.create_task(self.open_loop())]
        else:
            loops = [asyncio.create_task(self._closed_loop()) for _ in range(self._order.in_flight)]
        await asyncio.sleep(self._order.warmup_seconds)
        self.tally, self.begun = Tally(), time.perf_counter()
        print(json.dumps({"event": "begin"}), flush=True)
        await asyncio.sleep(self._order.seconds)
        # In a slow service all charges in flight move in step: a window in which none of them ends measures nothing.
        enough = 1 if self._order.steps else self._order.in_flight
        while len(self.tally.latencies) < enough and time.perf_counter() < self.until:  # noqa: ASYNC110  # an event costs each charge
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - self.begun
        if self._order.steps:
            # Charges due in the measured time count however late they end: leaving them out would flatter a slow server.
            self.until = 0.0
            await asyncio.wait(loops, timeout=LAST_CALLS_SECONDS)
        tally, self.tally = self.tally, Tally()
        self.until = 0.0
        print(json.dumps({"event": "end", **results(tally, seconds)}), flush=True)
        _, left = await asyncio.wait(loops, timeout=LAST_CALLS_SECONDS)
        for loop in left:
            loop.cancel()
        await self.close()

    async def open(self) -> None:
        """Connect."""
        await self._door.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._door.close()

    async def _closed_loop(self) -> None:
        while time.perf_counter() < self.until:
            await self.charge(time.perf_counter())

    async def open_loop(self) -> None:
        """Run the steps; the first begins earlier by the warm-up time."""
        first, *more = self._order.steps
        steps = [Step(first.rate, first.seconds + self._order.warmup_seconds), *more]
        begun, under_way = time.perf_counter(), set[asyncio.Task[None]]()
        for number, offset in enumerate(schedule(steps)):
            due = begun + offset
            while due > (now := time.perf_counter()) < self.until:  # noqa: ASYNC110  # time itself is waited for
                await asyncio.sleep(0.001)
            if now >= self.until:
                break
            if now - due > MOST_LATE_SECONDS or len(under_way) >= MOST_UNDER_WAY:
                self.tally.unsent += 1
                continue
            task = asyncio.create_task(self.charge(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if number % SENDS_A_TURN == 0:  # a generator that is late would otherwise let no answer in
                await asyncio.sleep(0)
        if under_way:
            await asyncio.wait(under_way)

    async def charge(self, due: float) -> None:
        """Make one charge to its end: repeat the call with the same key as often as the server gives a time for it."""
        self._number += 1
        self.tally.sent += 1
        number = self._number
        key, request = self._request(number)
        while True:
            try:
                response = ChargeResponse.FromString(await self._door.call(number, key, request))
            except Refused as refused:
                self.tally.refusals += refused.is_unwanted
                self.tally.advised += refused.is_unwanted and refused.retry_seconds is not None
                if self._order.obey_retry_info and refused.retry_seconds is not None:
                    await self._sleep(refused.retry_seconds * random.uniform(1.0, 1.5))
                    due = time.perf_counter()
                    continue
                self.tally.errors[refused.reason] += 1
                return
            break
        now = time.perf_counter()
        if self._order.steps and due < self.begun:
            return
        if response.status != ChargeStatus.CHARGE_STATUS_CHARGED:
            self.tally.errors[ChargeStatus.Name(response.status)] += 1
            return
        self.tally.add(max(0, int(due - self.begun)), now - due)

    def _request(self, number: int) -> tuple[str, bytes]:
        key = f"{self._prefix}{number}"
        return key, ChargeRequest(
            idempotency_key=key,
            user_id=f"user-{number % USERS}",
            card=Card(token="tok_visa", brand="visa", last4="4242"),  # noqa: S106  # a card's token is no password
            amount=Money(minor_units=1250, currency_code="EUR"),
            description="order of the benchmark",
        ).SerializeToString()


def key_prefix(name: str) -> str:
    """Make the beginning of a run's keys. A number follows; the letters keep a key from looking like a card number."""
    return f"{name}:p{os.getpid()}:t{time.time_ns():x}:n"


def results(tally: Tally, seconds: float) -> dict[str, object]:
    """Summarise a tally for the driver."""
    each = [sorted(tally.by_second.get(second, ())) for second in range(round(seconds))]
    latencies = sorted(tally.latencies)
    return {
        "seconds": seconds,
        "charges": len(latencies),
        "rate": len(latencies) / seconds,
        "p50_ms": quantile(latencies, 0.50) * 1000,
        "p99_ms": quantile(latencies, 0.99) * 1000,
        "p999_ms": quantile(latencies, 0.999) * 1000,
        "max_ms": (latencies[-1] if latencies else 0.0) * 1000,
        "errors": dict(tally.errors),
        "sent": tally.sent,
        "refusals": tally.refusals,
        "advised": tally.advised,
        "unsent": tally.unsent,
        "by_second": [len(second) for second in each],
        "p99_ms_by_second": [round(quantile(second, 0.99) * 1000, 1) for second in each],
    }


def quantile(ordered: list[float], share: float) -> float:
    """The quantile of ordered values, by nearest rank; 0 if there are none."""
    # Rounded first: 0.07 * 100 is a little more than 7.
    return ordered[max(0, math.ceil(round(len(ordered) * share, 6)) - 1)] if ordered else 0.0


def main() -> None:
    """Make the load that the command line orders."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Makes charges and measures them.")
    parser.add_argument(
        "target", help="host:port of a server of charging.v1.CommandService, several with commas, or a URL"
    )
    parser.add_argument("--in-flight", type=int, nargs="+", default=[16], help="charges in flight, a closed loop each")
    parser.add_argument(
        "--steps", type=step, nargs="+", default=[], metavar="RATE:SECONDS", help="an open loop's steps"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each loop")
    parser.add_argument("--warmup-seconds", type=float, default=0.5)
    parser.add_argument("--call-seconds", type=float, default=CALL_SECONDS, help="deadline of a call")
    parser.add_argument("--obey-retry-info", action="store_true", help="repeat refused calls when the server says")
    parser.add_argument("--tls", type=Path, metavar="FOLDER", help="of a client's tls.crt, tls.key and ca.crt")
    chosen = parser.parse_args()
    tls = chosen.tls and _tls(chosen.tls)

    async def make() -> None:
        for in_flight in chosen.in_flight:
            order = Order(
                chosen.target,
                in_flight,
                chosen.steps,
                chosen.seconds,
                chosen.warmup_seconds,
                chosen.obey_retry_info,
                chosen.call_seconds,
                tls,
            )
            await Generator(order).run()

    uvloop.run(make())


def _tls(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    return context


if __name__ == "__main__":
    main()
