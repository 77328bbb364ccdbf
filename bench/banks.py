"""Charges at one bank beside another that hangs, against the same charges beside one that answers, in turns on one server.

The bank beside is stopped by SIGSTOP just before a measurement begins: then the kernel takes its connections and requests, and
nobody answers. The breaker opens while it is measured. Charges come to that bank all the time, at the same slow rate.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from bench import DIRECT, sites
from bench.load import key_prefix
from bench.measure import Measurement, Size, measure
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import CHARGE_STATUS_CHARGED, Card, Money
from rig.processes import Server

IN_FLIGHT = (16, 128)
# A hundredth of the measured load: it must not be missed where it is refused.
BESIDE_SECONDS = 0.05
# The bank hangs for some seconds, so that its calls end and the breaker opens within them.
TIMEOUT_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
AT_LEAST, AT_MOST = 0.95, 1.2


class ChargesFailed(Exception):
    """Charges at the healthy bank did not succeed."""


async def banks(*, quick: bool) -> dict[str, Any]:
    """Rate and p99 of charges at a healthy bank while the other hangs, against those while it answers."""
    size = Size(1, 1.5, 0.3) if quick else Size(7, 5.0, 0.5)
    found: dict[tuple[int, bool], list[Measurement]] = {}
    beside: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    async with _site() as (site, other):
        for number, in_flight in itertools.product(range(size.rounds), IN_FLIGHT):
            for hangs in (False, True) if number % 2 else (True, False):
                measured = await _measure(site, other, in_flight, size, beside[hangs], hangs=hangs)
                found.setdefault((in_flight, hangs), []).append(measured)
    rates = {at: _ratios(found, at, lambda it: it.rate) for at in IN_FLIGHT}
    p99s = {at: _ratios(found, at, lambda it: it.p99_ms) for at in IN_FLIGHT}
    share = min(statistics.median(each) for each in rates.values())
    times = max(statistics.median(each) for each in p99s.values())
    verdict = "met" if share >= AT_LEAST and times <= AT_MOST else "missed"
    print(
        f"  beside a bank that hangs: {share:.3f} of the rate (at least {AT_LEAST}), {times:.2f} times the p99 (at most "
        f"{AT_MOST}): {verdict}{' in a small run' if quick else ''}"
    )
    return {
        "rate_share": share,
        "p99_times": times,
        "rate_share_by_round": {str(at): each for at, each in rates.items()},
        "p99_times_by_round": {str(at): each for at, each in p99s.items()},
        "rate": {str(at): statistics.median(it.rate for it in found[at, False]) for at in IN_FLIGHT},
        "p99_ms": {str(at): statistics.median(it.p99_ms for it in found[at, False]) for at in IN_FLIGHT},
        "beside_a_bank_that_answers": dict(beside[False]),
        "beside_a_bank_that_hangs": dict(beside[True]),
    }


@asynccontextmanager
async def _site() -> AsyncIterator[tuple[sites.Site, Server]]:
    """The product with two banks, and the one of them that can hang: it gets the charges in dollars."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        started = {name: await sites.start_bank(stack, folder / name) for name in ("healthy", "other")}
        tables = [
            f'[banks.{name}]\nkind = "two_step"\nurl = "http://{bank.listen}"\ntimeout_seconds = {TIMEOUT_SECONDS}\n'
            for name, bank in started.items()
        ]
        routes = '[[routes]]\ncurrencies = ["USD"]\nbanks = { other = 1 }\n[[routes]]\nbanks = { healthy = 1 }\n'
        file = folder / "banks.toml"
        file.write_text("".join(tables) + routes)
        yield await sites.start_product(stack, folder, started["healthy"], {}, banks=file), started["other"]


async def _measure(
    site: sites.Site, other: Server, in_flight: int, size: Size, beside: Counter[str], *, hangs: bool
) -> Measurement:
    async with grpc.aio.insecure_channel(site.listen, options=DIRECT) as channel:
        commands = CommandServiceStub(channel)
        await _answers_again(commands)
        charging = asyncio.create_task(_keep_charging(commands, beside))
        try:
            if hangs:
                os.kill(other.pid, signal.SIGSTOP)
            (measured,) = await measure(site, sites.PRODUCT, [in_flight], size)
        finally:
            charging.cancel()
            os.kill(other.pid, signal.SIGCONT)
            with contextlib.suppress(asyncio.CancelledError):
                await charging
    if measured.errors:
        raise ChargesFailed(dict(measured.errors))
    print(
        f"  the other bank {'hangs  ' if hangs else 'answers'}{in_flight:>5} in flight{measured.rate:>9,.0f}/s"
        f"  p99 {measured.p99_ms:.1f} ms",
        flush=True,
    )
    return measured


async def _answers_again(commands: Any) -> None:
    """Wait until charges at the other bank succeed."""
    key = key_prefix("again")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await _charge(commands, key) == "charged":
                return
            await asyncio.sleep(0.1)


async def _keep_charging(commands: Any, beside: Counter[str]) -> None:
    """Charge at the other bank at a slow rate, whatever comes back, until cancelled."""
    prefix = key_prefix("beside")
    async with asyncio.TaskGroup() as charges:
        for number in itertools.count():
            charges.create_task(_count(commands, f"{prefix}{number}", beside))
            await asyncio.sleep(BESIDE_SECONDS)


async def _count(commands: Any, key: str, beside: Counter[str]) -> None:
    beside[await _charge(commands, key)] += 1


async def _charge(commands: Any, key: str) -> str:
    request = ChargeRequest(
        idempotency_key=key,
        user_id="beside",
        card=Card(token="tok_visa", brand="visa", last4="4242"),  # noqa: S106  # a card's token is no password
        amount=Money(minor_units=1250, currency_code="USD"),
    )
    try:
        answer = await commands.Charge(request, timeout=2.0)
    except grpc.aio.AioRpcError as error:
        return error.code().name.lower()
    return "charged" if answer.status == CHARGE_STATUS_CHARGED else "pending"


def _ratios(found: Any, in_flight: int, figure: Any) -> list[float]:
    """A figure while the other bank hangs, against that while it answers, by round."""
    pairs = zip(found[in_flight, True], found[in_flight, False], strict=True)
    return [figure(hanging) / figure(answering) for hanging, answering in pairs]
