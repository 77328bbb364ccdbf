"""The load generator: charges with keys of their own, over several connections: python -m bench.load --help

* Closed loop: so many charges in flight, the next begins when one ends. This tells capacity.
* Open loop: so many charges begin each second, whether or not the server keeps up. Latency counts from the moment at which a
  charge was due, so that a slow server cannot hide behind a generator that waits for it.

It says `begin` and `end` on standard output, each a JSON line, when the measured time begins and ends, so that the driver can
read clocks at those moments; `end` brings the results. Requests are made of bytes beforehand and answers are looked at only
for their status: it competes with what it measures, so it must be cheap.
"""

import argparse
import asyncio
import json
import os
import random
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

import grpc
import grpc.aio
import uvloop
from google.rpc import error_details_pb2, status_pb2

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, ChargeStatus, Money

METHOD = "/charging.v1.CommandService/Charge"
# One connection serialises its frames; more than a few gain nothing.
CHANNELS = 4
# A server allows 1,000 calls on one connection.
CALLS_A_CHANNEL = 500
USERS = 1_000
# What an open loop may have under way: a bound for the generator's own memory. What is over it counts as `unsent`.
MOST_UNDER_WAY = 50_000
CALL_SECONDS = 60.0
# After the measured time: slow services get this long to end what is under way, before the next measurement.
LAST_CALLS_SECONDS = 3.0
# Times the ordered time.
LONGEST_WINDOW = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What load to make, and for how long."""

    target: str
    in_flight: int  # of a closed loop
    rate: float  # of an open loop; 0 is a closed one
    seconds: float
    warmup_seconds: float
    obey_retry_info: bool
    call_seconds: float


@dataclass(slots=True)
class Tally:
    """What happened in the measured time."""

    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    sources: Counter[int] = field(default_factory=Counter)
    by_second: Counter[int] = field(default_factory=Counter)
    worst_by_second: dict[int, float] = field(default_factory=dict)
    refusals: int = 0
    unsent: int = 0


class Generator:
    """Makes the load that an order describes."""

    def __init__(self, order: Order) -> None:
        self._order = order
        count = max(CHANNELS, -(-order.in_flight // CALLS_A_CHANNEL))
        # Without a pool of its own each, channels to one address share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(order.target, options=options) for _ in range(count)]
        self._calls = [channel.unary_unary(METHOD, _unchanged, _unchanged) for channel in self._channels]
        self._prefix = f"bench:{os.getpid()}:{time.time_ns():x}:"
        self._number = 0
        self._tally = Tally()
        self._begun = self._until = 0.0

    async def run(self) -> None:
        """Warm up, measure, tell the results, and let what is under way end."""
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        self._until = time.perf_counter() + self._order.warmup_seconds + self._order.seconds * LONGEST_WINDOW
        if self._order.rate:
            loops = [asyncio.create_task(self._open_loop())]
        else:
            loops = [asyncio.create_task(self._closed_loop()) for _ in range(self._order.in_flight)]
        await asyncio.sleep(self._order.warmup_seconds)
        self._tally, self._begun = Tally(), time.perf_counter()
        print(json.dumps({"event": "begin"}), flush=True)
        await asyncio.sleep(self._order.seconds)
        # In a slow service all charges in flight move in step: a window that saw none of them end tells nothing.
        enough = 1 if self._order.rate else self._order.in_flight
        while len(self._tally.latencies) < enough and time.perf_counter() < self._until:  # noqa: ASYNC110  # an event costs each charge
            await asyncio.sleep(0.05)
        seconds, tally, self._tally = time.perf_counter() - self._begun, self._tally, Tally()
        self._until = 0.0
        print(json.dumps({"event": "end", **_results(tally, seconds)}), flush=True)
        _, left = await asyncio.wait(loops, timeout=LAST_CALLS_SECONDS)
        for loop in left:
            loop.cancel()
        for channel in self._channels:
            await channel.close()

    async def _closed_loop(self) -> None:
        while time.perf_counter() < self._until:
            await self._charge(time.perf_counter())

    async def _open_loop(self) -> None:
        pause, due, under_way = 1 / self._order.rate, time.perf_counter(), set[asyncio.Task[None]]()
        while time.perf_counter() < self._until:
            while due <= time.perf_counter():
                if len(under_way) < MOST_UNDER_WAY:
                    task = asyncio.create_task(self._charge(due))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                else:
                    self._tally.unsent += 1
                due += pause
            await asyncio.sleep(0.001)
        if under_way:
            await asyncio.wait(under_way)

    async def _charge(self, due: float) -> None:
        """One charge, to its end: asked again with the same key as often as the server says when."""
        self._number += 1
        number = self._number
        request, call = self._request(number), self._calls[number % len(self._calls)]
        while True:
            try:
                response = ChargeResponse.FromString(await call(request, timeout=self._order.call_seconds))
            except grpc.aio.AioRpcError as error:
                retry_seconds, reason = _retry(error)
                if self._order.obey_retry_info and retry_seconds is not None:
                    self._tally.refusals += 1
                    await asyncio.sleep(retry_seconds * random.uniform(1.0, 1.5))
                    due = time.perf_counter()
                    continue
                self._tally.errors[reason] += 1
                return
            break
        now = time.perf_counter()
        if response.status != ChargeStatus.CHARGE_STATUS_CHARGED:
            self._tally.errors[ChargeStatus.Name(response.status)] += 1
            return
        second = int(now - self._begun)
        self._tally.latencies.append(now - due)
        self._tally.by_second[second] += 1
        self._tally.worst_by_second[second] = max(self._tally.worst_by_second.get(second, 0.0), now - due)
        self._tally.sources[response.outcome_source] += 1

    def _request(self, number: int) -> bytes:
        return ChargeRequest(
            idempotency_key=f"{self._prefix}{number}",
            user_id=f"user-{number % USERS}",
            card=Card(token="tok_visa", brand="visa", last4="4242"),  # noqa: S106  # a card's token is no password
            amount=Money(minor_units=1250, currency_code="EUR"),
            description="order of the benchmark",
        ).SerializeToString()


def _unchanged(serialised: bytes) -> bytes:
    return serialised


def _retry(error: grpc.aio.AioRpcError) -> tuple[float | None, str]:
    """When the server says that a retry helps, and the reason that it gives."""
    reason, retry_seconds = error.code().name, None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in status_pb2.Status.FromString(value).details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if packed.Unpack(info):
                    reason += f" {info.reason}"
                elif packed.Unpack(retry):
                    retry_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return retry_seconds, reason


def _results(tally: Tally, seconds: float) -> dict[str, object]:
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
        "refusals": tally.refusals,
        "unsent": tally.unsent,
        "by_second": [tally.by_second[second] for second in range(round(seconds))],
        "worst_ms_by_second": [
            round(tally.worst_by_second.get(second, 0.0) * 1000, 1) for second in range(round(seconds))
        ],
    }


def quantile(ordered: list[float], share: float) -> float:
    """The value that a share of the ordered values do not exceed; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """Make the load that the command line orders."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Makes charges and measures them.")
    parser.add_argument("target", help="host:port of a server of charging.v1.CommandService")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[16], help="closed loops: charges at once, in turn")
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: charges a second; 0 is a closed loop")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time, of each loop")
    parser.add_argument("--warmup-seconds", type=float, default=0.5)
    parser.add_argument("--call-seconds", type=float, default=CALL_SECONDS, help="deadline of a call")
    parser.add_argument("--obey-retry-info", action="store_true", help="ask again when the server says to")
    chosen = parser.parse_args()

    async def make() -> None:
        for in_flight in chosen.in_flight:
            order = Order(
                chosen.target,
                in_flight,
                chosen.rate,
                chosen.seconds,
                chosen.warmup_seconds,
                chosen.obey_retry_info,
                chosen.call_seconds,
            )
            await Generator(order).run()

    uvloop.run(make())


if __name__ == "__main__":
    main()
