"""The CPU cost of a call to a bank, by transport: python -m bench.transports

Above the line, one POST of a request that is already built, and its answer: the transport alone. Below it, a whole `perform`
of the gateway's bank: order to JSON, request, deadline, answer read strictly. CPU time of this process by the kernel, with the
bank (bench.bank, no delay) in another; medians over rounds in which all take turns, so that a noisy machine disturbs all alike.
A row for aiohttp's client is printed if aiohttp is installed; the product does not need it.
"""

import asyncio
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvloop

from bench.bank import token_of
from command_service.bank.gateway import gateway_bank
from command_service.bank.transport import IDLE_SECONDS, open_transport
from command_service.values import Card, Execute, Executed, Kind, Money, Operation, Request, RequestToken, Token

ROUNDS, CALLS = 7, 192
IN_FLIGHT = (1, 32)
CONNECTIONS = 32
ORDER = b'{"reference": "charge-1", "card": "tok_visa", "amount": 1250, "currency": "EUR"}'
PRICE = Money(1250, "EUR")
ASKED = Request("charge-1", "default", "key-1", "anonymous", "user-1", Card("tok_visa"), PRICE)
CHARGE = Operation(Kind.CHARGE, ASKED.idempotency_key, ASKED.charge_id, PRICE, ASKED)

Call = Callable[[], Awaitable[None]]


class AiohttpTransport(httpx.AsyncBaseTransport):
    """aiohttp's client under httpx's types, as thin as it can be."""

    def __init__(self) -> None:
        aiohttp: Any = importlib.import_module("aiohttp")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the whole answer."""
        async with self._session.request(
            request.method, str(request.url), headers=request.headers, data=request.content
        ) as answer:
            body = httpx.ByteStream(await answer.read())
            return httpx.Response(answer.status, headers=answer.raw_headers, stream=body)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()


def stock_transport() -> httpx.AsyncHTTPTransport:
    """httpx's own transport, with the settings of ours."""
    limits = httpx.Limits(
        max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=IDLE_SECONDS
    )
    return httpx.AsyncHTTPTransport(trust_env=False, limits=limits, retries=0)


def posting(transport: httpx.AsyncBaseTransport, url: str) -> Call:
    """A call that sends one request, built beforehand, and reads its answer."""
    headers = {"Accept": "application/json", "Content-Type": "application/json", "Idempotency-Key": "charge-1:token:0"}
    request = httpx.Request("POST", f"{url}/transactions", headers=headers, content=ORDER)

    async def call() -> None:
        response = await transport.handle_async_request(request)
        body = await response.aread()
        assert response.status_code == 200
        assert body

    return call


def performing(transport: httpx.AsyncBaseTransport, url: str, step: str) -> Call:
    """A call that does a step of a charge through the adapter. Both steps are idempotent, so all calls use one charge."""
    bank = gateway_bank(url, transport, call_timeout_seconds=20.0)
    asked = RequestToken(CHARGE, expired_tokens=0)

    async def token_step() -> None:
        assert isinstance(await bank.perform(asked, look_up_first=False), Token)

    async def execute_step() -> None:
        effect = Execute(CHARGE, token_of(0))
        assert isinstance(await bank.perform(effect, look_up_first=False), Executed)

    return token_step if step == "token" else execute_step


async def cpu_microseconds(call: Call, in_flight: int) -> float:
    """This process's mean CPU time for a call."""

    async def caller() -> None:
        for _ in range(CALLS // in_flight):
            await call()

    began = time.process_time()
    await asyncio.gather(*[caller() for _ in range(in_flight)])
    return (time.process_time() - began) / (CALLS // in_flight * in_flight) * 1e6


@contextmanager
def a_bank() -> Iterator[str]:
    """Run a bank in a process of its own; yields its address."""
    with subprocess.Popen([sys.executable, "-m", "bench.bank"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            yield f"http://{json.loads(process.stderr.readline())['listen']}"
        finally:
            process.terminate()


async def measure(url: str) -> None:
    """Print the table."""
    transports: dict[str, httpx.AsyncBaseTransport] = {"httpx.AsyncHTTPTransport": stock_transport()}
    if importlib.util.find_spec("aiohttp"):
        transports["aiohttp's client"] = AiohttpTransport()
    transports["ours"] = ours = open_transport(max_connections=CONNECTIONS)
    stock = transports["httpx.AsyncHTTPTransport"]
    calls = {name: posting(transport, url) for name, transport in transports.items()}
    alone = len(calls)
    for step in ("token", "execute"):
        calls[f"{step} step, over httpx's"] = performing(stock, url, step)
        calls[f"{step} step, over ours"] = performing(ours, url, step)
    taken: dict[tuple[str, int], list[float]] = {(name, n): [] for name in calls for n in IN_FLIGHT}
    for each in range(ROUNDS + 1):
        for (name, in_flight), times in taken.items():
            microseconds = await cpu_microseconds(calls[name], in_flight)
            if each:  # The first round opens connections.
                times.append(microseconds)
    print(f"{'us of CPU a call, in flight:':<30}" + "".join(f"{n:>7}" for n in IN_FLIGHT))
    for number, name in enumerate(calls):
        if number == alone:
            print("-" * (30 + 7 * len(IN_FLIGHT)))
        print(f"{name:<30}" + "".join(f"{statistics.median(taken[name, n]):>7.0f}" for n in IN_FLIGHT))
    for transport in transports.values():
        await transport.aclose()


if __name__ == "__main__":
    with a_bank() as url:
        uvloop.run(measure(url))
