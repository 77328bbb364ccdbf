"""The services that the product is compared with, and their common server: the same Charge API, the same flow.

Each validates and journals the request, does the token step, journals the token, does the execute step and journals the
outcome; every journal entry is durable before the next step begins. They differ in the library underneath.

All get the same fast parts where the choice is a deployer's and not the library's: grpc.aio, uvloop, one process. Each runs
with two clients for the bank, the stock httpx and the faster aiohttp: see `Bank`.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import httpx
import uvloop

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse

Charge = Callable[[ChargeRequest], Awaitable[ChargeResponse]]


class Refused(Exception):
    """A request that the service refuses."""


def serve(prepare: Callable[[], Awaitable[Charge]]) -> None:
    """Serve the charge that `prepare` makes, on a free port, until the process is ended; log the address like the product."""

    async def main() -> None:
        charge = await prepare()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 1_000)])
        command_pb2_grpc.add_CommandServiceServicer_to_server(_Service(charge), server)  # type: ignore[abstract]  # it only charges
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(json.dumps({"event": "serving", "listen": f"127.0.0.1:{port}"}), file=sys.stderr, flush=True)
        await server.wait_for_termination()

    uvloop.run(main())


class _Service(command_pb2_grpc.CommandServiceServicer):
    def __init__(self, charge: Charge) -> None:
        self._charge = charge

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: N802  # the contract's name
        try:
            return await self._charge(request)
        except Refused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort always raises") from None


def validate(request: ChargeRequest) -> None:
    """Make the checks that any service would make. Raises Refused."""
    if not 8 <= len(request.idempotency_key) <= 128:
        raise Refused("idempotency_key")
    if not request.user_id:
        raise Refused("user_id")
    if not request.card.token:
        raise Refused("card.token")
    if request.amount.minor_units <= 0 or len(request.amount.currency_code) != 3:
        raise Refused("amount")


class Bank:
    """The two steps over an HTTP client that is kept open and pools its connections. BENCH_BANK_CLIENT names the client."""

    def __init__(self, url: str) -> None:
        """Open the client; within the event loop that will use it."""
        self._post = CLIENTS[os.environ.get("BENCH_BANK_CLIENT", "httpx")](url)

    async def token(self, reference: str, card: str, amount: int, currency: str) -> str:
        """The token step."""
        order = {"reference": reference, "card": card, "amount": amount, "currency": currency}
        return str((await self._post("/transactions", order))["token"])

    async def execute(self, token: str, amount: int, currency: str) -> str:
        """The execute step; the bank's id of the transaction."""
        order = {"amount": amount, "currency": currency}
        return str((await self._post(f"/transactions/{token}/execute", order))["transaction_id"])


# Sends a JSON body to a path; the JSON of the answer. Raises the client's error for every status but a success.
Post = Callable[[str, object], Awaitable[Any]]


def _over_httpx(url: str) -> Post:
    """A stock `httpx.AsyncClient`, as its documentation shows.

    `sniffio` is installed beside it: without it httpx's own transport is a third slower.
    """
    client = httpx.AsyncClient(base_url=url, timeout=10.0, trust_env=False)

    async def post(path: str, order: object) -> Any:
        response = await client.post(path, json=order)
        response.raise_for_status()
        return response.json()

    return post


def _over_aiohttp(url: str) -> Post:
    """An `aiohttp.ClientSession` with its C parser, at its best.

    No limit of connections: its default of 100 is below 128 in flight. No cookie jar, which would look at every answer.
    """
    # Not at the top: it is installed in the benchmark's own environment only.
    import aiohttp  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    session = aiohttp.ClientSession(
        base_url=url,
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=10.0),
        raise_for_status=True,
    )

    async def post(path: str, order: object) -> Any:
        async with session.post(path, json=order) as response:
            return await response.json()

    return post


CLIENTS: Mapping[str, Callable[[str], Post]] = {"httpx": _over_httpx, "aiohttp": _over_aiohttp}


async def once(charge: Charge) -> Charge:
    """Return a charge that needs no preparation, for `serve`."""
    await asyncio.sleep(0)
    return charge
