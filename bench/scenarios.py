"""The other targets, each a scenario that gives its figures: python -m bench --only SCENARIO

many      1,000 charges in flight at a bank that takes 100 ms
latency   the time that the service adds to the bank's own at half of peak load, and the lag of the view
growth    CPU a charge with millions of records in the journal against ten thousand, and bytes on disk a record
rebuild   a view rebuilt over the feed
readers   one reader of the feed against a hundred
start     a start with a million records and ten thousand unfinished charges
secured   CPU a charge over mutual TLS with a policy against plaintext without
"""

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench import DIRECT, counted, sites
from bench.fill import bytes_beyond_event, filled, unfinished_in
from bench.load import key_prefix, quantile
from bench.machine import cost
from bench.measure import PEAK_IN_FLIGHT, Size, measure, peak
from bench.results import BUILD
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Money
from charging.v1.query_pb2 import GetViewStatusRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from rig import certs
from rig.processes import Server

Found = dict[str, Any]
# Large journals take long to fill, so they are kept between runs.
JOURNALS = (BUILD / "bench-journals").absolute()
# A server that needs longer has hung.
WAIT_SECONDS = 120.0
# Forty probes a second: enough for a p99, and a small part of the load.
PROBE_SECONDS = 0.025


def _size(quick: bool, seconds: float = 10.0) -> Size:
    return Size(1, 1.0 if quick else seconds, 0.5 if quick else 1.0)


async def many(*, quick: bool) -> Found:
    """1,000 in flight at a bank of 100 ms, and 128 without delay, in turns."""
    size, count = _size(quick, 5.0), 1_000
    settings = {"COMMAND_BANK_CALLS": str(count)}
    shares, held_kb, p50_ms, p99_ms, errors = [], [], [], [], Counter[str]()
    for _ in range(1 if quick else 3):
        best = await peak(size)
        async with sites.open_site(sites.PRODUCT, delay_milliseconds=100.0, settings=settings) as site:
            few, held = await measure(site, sites.PRODUCT, [1, count], size)
        shares.append((held.rate / best.rate, held.rate, best.rate))
        held_kb.append((held.memory_mb - few.memory_mb) * 1000 / count)
        p50_ms.append(held.p50_ms)
        p99_ms.append(held.p99_ms)
        errors.update(held.errors)
    share, rate, best_rate = sorted(shares)[len(shares) // 2]
    return {
        "share_of_rate": share,
        "rate": rate,
        "rate_at_128_without_delay": best_rate,
        "kb_a_charge_held": statistics.median(held_kb),
        "p50_ms": statistics.median(p50_ms),
        "p99_ms": statistics.median(p99_ms),
        "errors": errors.total(),
        "errors_by_reason": dict(errors),
    }


async def latency(*, quick: bool) -> Found:
    """The time that the service adds to the bank's own at half of peak load, and the view's lag meanwhile."""
    size, delay_ms = _size(quick), 20.0
    best = await peak(size)
    async with sites.open_site(sites.PRODUCT, delay_milliseconds=delay_ms) as site:
        probing = asyncio.create_task(_probe_lag(site))
        (half,) = await measure(site, sites.PRODUCT, [1], size, "--steps", f"{best.rate / 2:.1f}:{size.seconds}")
        probing.cancel()
        lags = sorted(await probing)
    return {
        "peak_rate": best.rate,
        "rate": half.rate,
        "added_p50_ms": half.p50_ms - 2 * delay_ms,
        "added_p99_ms": half.p99_ms - 2 * delay_ms,
        "added_p999_ms": half.p999_ms - 2 * delay_ms,
        "view_lag_p50_ms": quantile(lags, 0.5) * 1000,
        "view_lag_p99_ms": quantile(lags, 0.99) * 1000,
        "view_lag_samples": len(lags),
        "lost": sum(half.errors.values()) + int(str(half.more["unsent"])),
        "errors_by_reason": half.errors,
    }


async def _probe_lag(site: sites.Site) -> list[float]:
    """Make a charge every PROBE_SECONDS; return, when cancelled, the seconds until the view had each."""
    lags: list[float] = []
    prefix = key_prefix("probe")
    async with (
        grpc.aio.insecure_channel(site.listen, options=DIRECT) as commands,
        grpc.aio.insecure_channel(site.servers["query"].listen, options=DIRECT) as queries,
    ):
        charge, status = CommandServiceStub(commands).Charge, QueryServiceStub(queries).GetViewStatus

        async def probe(number: int) -> None:
            response = await charge(
                ChargeRequest(
                    idempotency_key=f"{prefix}{number}",
                    user_id="probe",
                    card=Card(token="tok_visa"),  # noqa: S106  # a card's token is no password
                    amount=Money(minor_units=1, currency_code="EUR"),
                )
            )
            begun = time.perf_counter()
            await status(GetViewStatusRequest(min_position=response.position))
            lags.append(time.perf_counter() - begun)

        probes: list[asyncio.Task[None]] = []
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                probes.append(asyncio.create_task(probe(len(probes))))
                await asyncio.sleep(PROBE_SECONDS)
        await asyncio.gather(*probes)  # a view that lags by more than five seconds fails the measurement
    return lags


async def growth(*, quick: bool) -> Found:
    """CPU a charge and bytes a record with journals of several sizes, in turns."""
    counts = (10_000, 60_000) if quick else (10_000, 300_000, 5_000_000)
    size = _size(quick, 4.0)
    cpu: dict[int, list[float]] = {records: [] for records in counts}
    rates: dict[int, list[float]] = {records: [] for records in counts}
    for _ in range(1 if quick else 5):
        for records in counts:
            async with _product_on(await filled(JOURNALS / f"{records}.db", records)) as site:
                (measured,) = await measure(site, sites.PRODUCT, [PEAK_IN_FLIGHT], size)
            cpu[records].append(measured.cpu_ms)
            rates[records].append(measured.rate)
    few, lots = counts[0], counts[-1]
    return {
        "records": list(counts),
        "cpu_ms": [statistics.median(cpu[records]) for records in counts],
        "rate": [statistics.median(rates[records]) for records in counts],
        "cpu_ratio": statistics.median(large / small for small, large in zip(cpu[few], cpu[lots], strict=True)),
        "bytes_beyond_event": bytes_beyond_event(JOURNALS / f"{lots}.db"),
    }


async def rebuild(*, quick: bool) -> Found:
    """A view rebuilt over the feed."""
    records = 50_000 if quick else 1_000_000
    async with _product_on(await filled(JOURNALS / f"{records}.db", records)) as site:
        query = sites.query_server(site.folder, str(site.servers["service"].serving["feed"]))
        async with AsyncExitStack() as stack:
            command_before = cost(site.own["service"]).cpu_seconds
            await sites.start(stack, query)
            opened = await _entry(query, "the feed is open")
            caught_up = await _entry(query, "the view has caught up")
            seconds = (_at(caught_up) - _at(opened)).total_seconds()
            spent = cost(query.pid)
            command_spent = cost(site.own["service"]).cpu_seconds - command_before
    held = int(caught_up["position"]) - int(opened["position"])
    return {
        "records": held,
        "seconds": seconds,
        "records_a_second": held / seconds,
        "query_cpu_us_a_record": spent.cpu_seconds * 1e6 / held,
        "command_cpu_us_a_record": command_spent * 1e6 / held,
        "query_memory_mb": spent.memory_mb,
    }


async def readers(*, quick: bool) -> Found:
    """Reads of a record for a hundred readers, counted; and the command server's CPU with 0, 1 and 100 readers, in turns."""
    size, rate, counts = _size(quick, 4.0), 300.0, (0, 1, 100)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        reads = await counted.reads_a_record(Path(name), readers=counts[-1], charges=100 if quick else 500)
    cpu: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(1 if quick else 3):
        for count, spent in cpu.items():
            async with sites.open_site(sites.PRODUCT) as site, _reading(site, count):
                steps = f"{rate}:{size.seconds}"
                (measured,) = await measure(site, sites.PRODUCT, [1], size, "--steps", steps)
                spent.append(measured.cpu_ms)
    none, few, lots = (statistics.median(spent) for spent in cpu.values())
    return {
        "readers": counts[-1],
        "reads_a_record": reads,
        "rate": rate,
        "cpu_ms_a_charge_by_readers": {str(count): statistics.median(spent) for count, spent in cpu.items()},
        "cpu_us_a_charge_and_first_reader": (few - none) * 1000,
        "cpu_us_a_charge_and_further_reader": (lots - few) * 1000 / (counts[-1] - 1),
    }


@asynccontextmanager
async def _reading(site: sites.Site, count: int) -> AsyncIterator[None]:
    """Run `count` readers of the feed, beside the query server; they have caught up."""
    if not count:
        yield
        return
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
    """A start with many records in the journal and many unfinished charges."""
    records, unfinished = (30_000, 500) if quick else (1_000_000, 10_000)
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
    return {
        "records": records,
        "unfinished": unfinished,
        "serving_after_seconds": serving,
        # None if some stayed unfinished, and then the target counts as not measured: see `left`.
        "finished_after_seconds": None if left else finished,
        "left": left,
        "cpu_seconds": spent.cpu_seconds,
        "memory_mb": spent.memory_mb,
    }


# ---------------------------------------------------------------- parts
@asynccontextmanager
async def _product_on(journal: Path) -> AsyncIterator[sites.Site]:
    """The product on an existing journal, without a query server."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        bank = await sites.start_bank(stack, folder)
        yield await sites.start_product(stack, folder, bank, {}, journal=journal, follow=False)


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


async def secured(*, quick: bool) -> Found:
    """CPU a charge over mutual TLS with a policy, on all ports of the product, against plaintext without.

    Both are measured at one time and at one rate: what else the machine does meets both, and batches are alike. The control is
    a second one in plaintext, in turns with the secured one: how far its ratio is from 1 is the error of the method.
    """
    turns, rates, seconds = (2 if quick else 9), (150, 400), 1.0 if quick else 4.0
    ratios: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-certs-")))
        certs.make_all(folder)
        settings = {
            name: value
            for name, value in certs.environment(folder).items()
            if name
            not in ("GATEWAY_MOCK_TLS", "COMMAND_BANK_TLS")  # the bank of the benchmark is plain, as for the peers
        }
        plain = await stack.enter_async_context(sites.open_site(sites.PRODUCT))
        control = await stack.enter_async_context(sites.open_site(sites.PRODUCT))
        safe = await stack.enter_async_context(sites.open_site(sites.PRODUCT, settings=settings))
        with_certificate = ("--tls", str(certs.shop(folder)))
        for _ in range(turns):
            for rate in rates:
                steps = ("--steps", f"{rate}:{seconds}")
                for name, site, more in (("cpu", safe, with_certificate), ("control", control, ())):
                    measured = await asyncio.gather(
                        measure(site, name, [1], Size(1, seconds, 0.5), *steps, *more),
                        measure(plain, "plain", [1], Size(1, seconds, 0.5), *steps),
                    )
                    (other,), (usual,) = measured
                    assert not (other.errors or usual.errors)
                    ratios.setdefault(f"{name}_ratio_{rate}_a_second", []).append(other.cpu_ms / usual.cpu_ms)
    found: Found = {"at_most": 1.08}
    for name, seen in ratios.items():
        found[name] = statistics.median(seen)
        found[f"{name}_each"] = sorted(seen)
    return found
