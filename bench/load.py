"""The load generator: charges with keys of their own, over several connections: python -m bench.load --help

* Closed loop: a fixed number of charges in flight, the next begins when one ends. This measures capacity.
* Open loop: charges begin at a fixed rate, in steps of a rate and its seconds, whether or not the server keeps up. Latency
  counts from the moment at which a charge was due, so that a slow server cannot hide behind a generator that waits for it.
  A charge for which the generator itself is more than a second late is not sent, and counts as `unsent`.

It prints `begin` and `end` on standard output, each a JSON line, when the measured time begins and ends, so that the driver
can read clocks at those moments; `end` has the results. Requests are serialised beforehand and of an answer only the status is
read: the generator competes with the measured service, so it must be cheap.
"""

import argparse
import asyncio
import json
import math
import os
import random
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
import uvloop

from bench import DIRECT
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from rig.errors import told

METHOD = "/charging.v1.CommandService/Charge"
# One connection sends its frames one after another, and more than a few connections gain nothing.
CHANNELS = 4
# A server allows 1,000 calls on one connection.
CALLS_A_CHANNEL = 500
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

    target: str
    in_flight: int  # of a closed loop
    steps: Sequence["Step"]  # of an open loop; none is a closed one
    seconds: float
    warmup_seconds: float
    obey_retry_info: bool
    call_seconds: float


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
    unsent: int = 0

    def add(self, second: int, latency: float) -> None:
        """Count a charge."""
        self.latencies.append(latency)
        if (same := self.by_second.get(second)) is None:
            same = self.by_second[second] = array("d")
        same.append(latency)


class Generator:
    """Makes the load that an order describes."""

    def __init__(self, order: Order, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """A refused client waits by `sleep`."""
        self._order = order
        self._sleep = sleep
        count = max(CHANNELS, -(-order.in_flight // CALLS_A_CHANNEL))
        # Without this, channels to one address share one connection.
        options = [*DIRECT, ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(order.target, options=options) for _ in range(count)]
        self._calls = [channel.unary_unary(METHOD, _unchanged, _unchanged) for channel in self._channels]
        self._prefix = key_prefix("bench")
        self._number = 0
        self.tally = Tally()
        """What has happened since the measured time began."""
        self.begun = self.until = 0.0
        """When the measured time began, and until when charges are begun at all, by `time.perf_counter`."""

    async def run(self) -> None:
        """Warm up, measure, print the results, and let the calls under way end."""
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
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

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

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
        request, call = self._request(number), self._calls[number % len(self._calls)]
        while True:
            try:
                response = ChargeResponse.FromString(await call(request, timeout=self._order.call_seconds))
            except grpc.aio.AioRpcError as error:
                retry_seconds, reason = advice(error)
                if self._order.obey_retry_info and retry_seconds is not None:
                    self.tally.refusals += 1
                    await self._sleep(retry_seconds * random.uniform(1.0, 1.5))
                    due = time.perf_counter()
                    continue
                self.tally.errors[reason] += 1
                return
            break
        now = time.perf_counter()
        if self._order.steps and due < self.begun:
            return
        if response.status != ChargeStatus.CHARGE_STATUS_CHARGED:
            self.tally.errors[ChargeStatus.Name(response.status)] += 1
            return
        self.tally.add(max(0, int(due - self.begun)), now - due)

    def _request(self, number: int) -> bytes:
        return ChargeRequest(
            idempotency_key=f"{self._prefix}{number}",
            user_id=f"user-{number % USERS}",
            card=Card(token="tok_visa", brand="visa", last4="4242"),  # noqa: S106  # a card's token is no password
            amount=Money(minor_units=1250, currency_code="EUR"),
            description="order of the benchmark",
        ).SerializeToString()


def key_prefix(name: str) -> str:
    """Make the beginning of a run's keys. A number follows; the letters keep a key from looking like a card number."""
    return f"{name}:p{os.getpid()}:t{time.time_ns():x}:n"


def _unchanged(serialised: bytes) -> bytes:
    return serialised


def advice(error: grpc.aio.AioRpcError) -> tuple[float | None, str]:
    """The server's advice: seconds until a retry, if it advises one, and its reason."""
    refusal, code = told(error), error.code().name
    # An error without a reason comes from the transport, whose text is the only explanation.
    return refusal.retry_after_seconds, f"{code} {refusal.reason}" if refusal.reason else f"{code}: {refusal.text[:80]}"


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
    parser.add_argument("target", help="host:port of a server of charging.v1.CommandService")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[16], help="charges in flight, a closed loop each")
    parser.add_argument(
        "--steps", type=step, nargs="+", default=[], metavar="RATE:SECONDS", help="an open loop's steps"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each loop")
    parser.add_argument("--warmup-seconds", type=float, default=0.5)
    parser.add_argument("--call-seconds", type=float, default=CALL_SECONDS, help="deadline of a call")
    parser.add_argument("--obey-retry-info", action="store_true", help="repeat refused calls when the server says")
    chosen = parser.parse_args()

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
            )
            await Generator(order).run()

    uvloop.run(make())


if __name__ == "__main__":
    main()
