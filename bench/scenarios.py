"""The other targets, each a scenario with its figures beside what was wanted: python -m bench.run SCENARIO

many      1,000 charges in flight at a bank that takes 100 ms
latency   what the service adds to the bank's own time at half of peak load, and how far the view is behind
growth    CPU a charge with millions of records in the journal against ten thousand, and bytes on disk a record
rebuild   a view built anew over the feed
readers   one reader of the feed against a hundred
start     a start with a million records and ten thousand unfinished charges
overload  a closed loop of five times the limit of calls, clients obeying RetryInfo
burst     an open loop of five times capacity, between quiet times
"""

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench import sites
from bench.fill import bytes_beyond_event, filled, unfinished_in
from bench.load import quantile
from bench.machine import cost
from bench.run import BUILD, Measurement, Size, measure
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Money
from charging.v1.query_pb2 import GetViewStatusRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from demo.processes import Server

Found = dict[str, Any]
PEAK_IN_FLIGHT = 128
# Journals that take long to fill are kept between runs.
JOURNALS = (BUILD / "bench-journals").absolute()
WAIT_SECONDS = 600.0


def _size(quick: bool, seconds: float = 10.0) -> Size:
    return Size(1, 2.0 if quick else seconds, 0.5 if quick else 1.0)


async def _peak(size: Size) -> Measurement:
    """The product at its best: 128 in flight, no delay."""
    async with sites.open_site(sites.PRODUCT) as site:
        (peak,) = await measure(site, sites.PRODUCT, [PEAK_IN_FLIGHT], size)
        return peak


async def many(*, quick: bool) -> Found:
    """1,000 in flight at a bank of 100 ms."""
    size, count = _size(quick), 1_000
    peak = await _peak(size)
    settings = {"COMMAND_BANK_CALLS": str(count)}
    async with sites.open_site(sites.PRODUCT, delay_milliseconds=100.0, **settings) as site:
        few, held = await measure(site, sites.PRODUCT, [1, count], size)
    found = {
        "rate": held.rate,
        "rate_at_128_without_delay": peak.rate,
        "share_of_it": held.rate / peak.rate,
        "kb_a_charge_held": (held.memory_mb - few.memory_mb) * 1000 / count,
        "p50_ms": held.p50_ms,
        "p99_ms": held.p99_ms,
        "errors": held.errors,
        "cpu_ms": held.cpu_ms,
    }
    return _tell("many", found, "no errors; share_of_it >= 0.85; kb_a_charge_held <= 35")


async def latency(*, quick: bool) -> Found:
    """What the service adds to the bank's own time at half of peak load, and the view's lag meanwhile."""
    size, delay_ms = _size(quick), 20.0
    peak = await _peak(size)
    async with sites.open_site(sites.PRODUCT, delay_milliseconds=delay_ms) as site:
        probing = asyncio.create_task(_probe_lag(site))
        (half,) = await measure(site, sites.PRODUCT, [1], size, "--rate", str(peak.rate / 2))
        probing.cancel()
        lags = sorted(await probing)
    found = {
        "peak_rate": peak.rate,
        "rate": half.rate,
        "added_p50_ms": half.p50_ms - 2 * delay_ms,
        "added_p99_ms": half.p99_ms - 2 * delay_ms,
        "added_p999_ms": half.p999_ms - 2 * delay_ms,
        "view_lag_p50_ms": quantile(lags, 0.5) * 1000,
        "view_lag_p99_ms": quantile(lags, 0.99) * 1000,
        "view_lag_samples": len(lags),
        "errors": half.errors,
    }
    return _tell("latency", found, "added_p99_ms <= 10; view_lag_p99_ms < 50")


async def _probe_lag(site: sites.Site) -> list[float]:
    """Make a charge, wait until the view shows it, and again; how long each wait took. Cancel it for its result."""
    lags: list[float] = []
    prefix = f"probe:{time.time_ns():x}:"
    async with (
        grpc.aio.insecure_channel(site.listen) as commands,
        grpc.aio.insecure_channel(site.servers["query"].listen) as queries,
    ):
        charge, status = CommandServiceStub(commands).Charge, QueryServiceStub(queries).GetViewStatus
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                response = await charge(
                    ChargeRequest(
                        idempotency_key=f"{prefix}{len(lags)}",
                        user_id="probe",
                        card=Card(token="tok_visa"),  # noqa: S106  # a card's token is no password
                        amount=Money(minor_units=1, currency_code="EUR"),
                    )
                )
                begun = time.perf_counter()
                await status(GetViewStatusRequest(min_position=response.position))
                lags.append(time.perf_counter() - begun)
    return lags


async def growth(*, quick: bool) -> Found:
    """CPU a charge and bytes a record with a small and a large journal, in turns."""
    few, lots = 10_000, 300_000 if quick else 5_000_000
    size = _size(quick, 5.0)
    cpu: dict[int, list[float]] = {few: [], lots: []}
    rates: dict[int, list[float]] = {few: [], lots: []}
    beyond = {}
    for records in cpu:
        beyond[records] = bytes_beyond_event(await filled(JOURNALS / f"{records}.db", records))
    for _ in range(1 if quick else 5):
        for records, spent in cpu.items():
            async with _product_on(await filled(JOURNALS / f"{records}.db", records)) as site:
                (measured,) = await measure(site, sites.PRODUCT, [PEAK_IN_FLIGHT], size)
                spent.append(measured.cpu_ms)
                rates[records].append(measured.rate)
    found = {
        "records": [few, lots],
        "cpu_ms": [statistics.median(cpu[few]), statistics.median(cpu[lots])],
        "rate": [statistics.median(rates[few]), statistics.median(rates[lots])],
        "cpu_ratio": statistics.median(large / small for small, large in zip(cpu[few], cpu[lots], strict=True)),
        "bytes_beyond_event": beyond[lots],
    }
    return _tell("growth", found, "cpu_ratio <= 1.15; bytes_beyond_event <= 110")


async def rebuild(*, quick: bool) -> Found:
    """A view built anew over the feed."""
    records = 100_000 if quick else 1_000_000
    async with _product_on(await filled(JOURNALS / f"{records}.db", records)) as site:
        query = sites.query_server(site.folder, str(site.servers["service"].serving["feed"]))
        async with AsyncExitStack() as stack:
            command_before = cost(site.own["service"]).cpu_seconds
            await sites.start(stack, query)
            opened = await _entry(query, "the feed is open")
            caught_up = await _entry(query, "the view has caught up")
            seconds = (_at(caught_up) - _at(opened)).total_seconds()
            spent = cost(sites.pid_of(query))
            command_spent = cost(site.own["service"]).cpu_seconds - command_before
    held = int(caught_up["position"]) - int(opened["position"])
    found = {
        "records": held,
        "seconds": seconds,
        "records_a_second": held / seconds,
        "query_cpu_us_a_record": spent.cpu_seconds * 1e6 / held,
        "command_cpu_us_a_record": command_spent * 1e6 / held,
        "query_memory_mb": spent.memory_mb,
    }
    return _tell("rebuild", found, "records_a_second >= 100,000")


async def readers(*, quick: bool) -> Found:
    """The command server's CPU a charge with one more reader and with a hundred more, at the same rate, in turns."""
    size, rate, many_readers = _size(quick, 5.0), 300.0, 100
    cpu: dict[int, list[float]] = {1: [], many_readers: []}
    for _ in range(1 if quick else 5):
        for count, spent in cpu.items():
            async with sites.open_site(sites.PRODUCT) as site, _reading(site, count):
                (measured,) = await measure(site, sites.PRODUCT, [1], size, "--rate", str(rate))
                spent.append(measured.cpu_ms)
    few, lots = (statistics.median(spent) for spent in cpu.values())
    found = {
        "rate": rate,
        "cpu_ms_a_charge": {"1": few, str(many_readers): lots},
        "cpu_us_a_charge_and_further_reader": (lots - few) * 1000 / (many_readers - 1),
    }
    return _tell("readers", found, "reading and encoding paid once: what is left is a share of one send a reader")


@asynccontextmanager
async def _reading(site: sites.Site, count: int) -> AsyncIterator[None]:
    """So many readers of the feed, which have caught up."""
    feed = str(site.servers["service"].serving["feed"])
    reading = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.readers", feed, str(count), stdout=asyncio.subprocess.PIPE
    )
    assert reading.stdout is not None
    try:
        if not await asyncio.wait_for(reading.stdout.readline(), 60.0):
            raise RuntimeError("the readers have ended")
        yield
    finally:
        reading.kill()
        await reading.wait()


async def start(*, quick: bool) -> Found:
    """A start with much in the journal and much to finish."""
    records, unfinished = (100_000, 1_000) if quick else (1_000_000, 10_000)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        journal = await filled(Path(name, "journal.db"), records, unfinished)
        async with AsyncExitStack() as stack:
            bank = await sites.start_bank(stack, Path(name))
            begun = time.perf_counter()
            site = await sites.start_product(stack, Path(name), bank, {}, journal=journal, follow=False)
            serving = time.perf_counter() - begun
            while left := await asyncio.to_thread(unfinished_in, journal):
                if time.perf_counter() - begun > WAIT_SECONDS:
                    break
                await asyncio.sleep(0.1)
            finished = time.perf_counter() - begun
            spent = cost(site.own["service"])
    found = {
        "records": records,
        "unfinished": unfinished,
        "serving_after_seconds": serving,
        "finished_after_seconds": finished,
        "left": left,
        "cpu_seconds": spent.cpu_seconds,
        "memory_mb": spent.memory_mb,
    }
    return _tell("start", found, "serving_after_seconds <= 2; finished_after_seconds <= 30; left 0")


async def overload(*, quick: bool) -> Found:
    """A closed loop of five times the limit of calls, clients obeying RetryInfo; with the default limit and a small one."""
    size = Size(1, 5.0 if quick else 60.0, 2.0)
    peak = await _peak(_size(quick))
    found: Found = {"peak_rate": peak.rate}
    for limit in (200, 2_000):
        async with sites.open_site(sites.PRODUCT, COMMAND_MAX_CALLS=str(limit)) as site:
            (over,) = await measure(site, sites.PRODUCT, [5 * limit], size, "--obey-retry-info")
        found[f"limit_{limit}"] = {
            "goodput": over.rate,
            "share_of_peak": over.rate / peak.rate,
            "refusals_a_second": float(str(over.more["refusals"])) / size.seconds,
            "p99_ms_of_accepted": over.p99_ms,
            "memory_mb": over.memory_mb,
            "errors": over.errors,
        }
    return _tell("overload", found, "share_of_peak >= 0.9")


async def burst(*, quick: bool) -> Found:
    """An open loop of five times capacity, between quiet times at half of it; memory all the while."""
    burst_seconds, quiet_seconds = (5.0, 5.0) if quick else (60.0, 10.0)
    peak = await _peak(_size(quick))
    async with sites.open_site(sites.PRODUCT) as site:
        memory: list[float] = []
        watching = asyncio.create_task(_watch_memory(site.own["service"], memory))

        async def open_loop(rate: float, seconds: float) -> Measurement:
            options = ["--rate", str(rate), "--call-seconds", "10"]
            (measured,) = await measure(site, sites.PRODUCT, [1], Size(1, seconds, 0.0), *options)
            return measured

        before = await open_loop(peak.rate / 2, quiet_seconds)
        memory_before = max(memory)
        over = await open_loop(peak.rate * 5, burst_seconds)
        after = await open_loop(peak.rate / 2, quiet_seconds)
        watching.cancel()
    found = {
        "peak_rate": peak.rate,
        "memory_mb_before_and_at_most": [memory_before, max(memory)],
        "accepted_rate": over.rate,
        "accepted_p99_ms": over.p99_ms,
        "errors": over.errors,
        "unsent": over.more["unsent"],
        "quiet_p99_ms_before_and_after": [before.p99_ms, after.p99_ms],
        "worst_ms_by_second_after": after.more["worst_ms_by_second"],
        "errors_after": after.errors,
    }
    return _tell(
        "burst", found, "memory and accepted_p99_ms bounded; worst_ms_by_second_after normal from the fifth on"
    )


# ---------------------------------------------------------------- parts
@asynccontextmanager
async def _product_on(journal: Path) -> AsyncIterator[sites.Site]:
    """The product on a journal that is there, without a query server."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        bank = await sites.start_bank(stack, folder)
        yield await sites.start_product(stack, folder, bank, {}, journal=journal, follow=False)


async def _watch_memory(pid: int, memory: list[float]) -> None:
    while True:
        memory.append(cost(pid).memory_mb)
        await asyncio.sleep(0.25)


async def _entry(server: Server, event: str) -> dict[str, Any]:
    """Wait for an entry in a server's log."""
    until = time.perf_counter() + WAIT_SECONDS
    while time.perf_counter() < until:
        for entry in server.entries():
            if entry.get("event") == event:
                return dict(entry)
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{server.module} never said: {event}")


def _at(entry: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["timestamp"])


def _tell(name: str, found: Found, wanted: str) -> Found:
    print(f"\n{name}\n  wanted: {wanted}")
    for figure, value in found.items():
        print(f"  {figure}: {value:,.4g}" if isinstance(value, float) else f"  {figure}: {json.dumps(value)}")
    return found


ALL: Mapping[str, Callable[..., Coroutine[Any, Any, Found]]] = {
    scenario.__name__: scenario for scenario in (many, latency, growth, rebuild, readers, start, overload, burst)
}
