"""A client of the mock bank, and the bank to call: in the test, or as a process."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from gateway_mock import serve

ORDER = {"reference": "charge-1", "card": "tok_visa", "amount": 1250, "currency": "EUR"}

NO_ANSWER_SECONDS = 0.2
"""What is not answered by then is taken not to be answered."""
OVERTAKING_SECONDS = 3.0
"""Of a delay in which another call is answered, on any machine."""


class Client:
    """A client like a person with curl."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self._orders = 1

    async def order(self, **changed: object) -> httpx.Response:
        return await self.http.post("/transactions", content=json.dumps(ORDER | changed))

    async def token(self, **changed: object) -> str:
        return str((await self.order(**changed)).raise_for_status().json()["token"])

    async def execute(self, token: str, **said: object) -> httpx.Response:
        return await self.http.post(f"/transactions/{token}/execute", content=json.dumps(said) if said else b"")

    async def follow(self, kind: str, on: object, **changed: object) -> httpx.Response:
        """Take the token step of a capture, void or refund of all that was ordered."""
        order = {"reference": f"{kind}-1", "kind": kind, "on": on, "amount": ORDER["amount"], "currency": "EUR"}
        return await self.http.post("/transactions", content=json.dumps(order | changed))

    async def open(self, kind: str = "authorize", **changed: object) -> dict[str, Any]:
        """Execute a new opening, and give the answer."""
        self._orders += 1
        token = await self.token(**({"reference": f"{kind}-{self._orders}", "kind": kind} | changed))
        return dict((await self.execute(token)).raise_for_status().json())

    async def do(self, kind: str, on: object, amount: int, **changed: object) -> dict[str, Any]:
        """Execute a new one that follows, and give the answer."""
        self._orders += 1
        order = {"reference": f"{kind}-{self._orders}", "amount": amount} | changed
        opened = (await self.follow(kind, on, **order)).raise_for_status().json()
        return dict((await self.execute(opened["token"])).json())

    async def cancel(self, token: str) -> httpx.Response:
        return await self.http.post(f"/transactions/{token}/cancel")

    async def transaction(self, token: str) -> dict[str, Any]:
        return dict((await self.http.get(f"/transactions/{token}")).raise_for_status().json())

    async def movements(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/statement")).raise_for_status().json()["movements"])

    async def calls(self, after: int = 0) -> list[dict[str, Any]]:
        return list((await self.http.get(f"/calls?after={after}")).raise_for_status().json())

    async def fault(self, on: str, fault: str, /, **more: object) -> int:
        response = await self.http.post("/faults", json={"on": on, "fault": fault, **more})
        return int(response.raise_for_status().json()["id"])

    async def faults(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/faults")).raise_for_status().json())


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(base_url=f"http://{address}", verify=False, trust_env=False, timeout=20) as http:
        yield Client(http)


@asynccontextmanager
async def running(path: Path, **settings: Any) -> AsyncIterator[Client]:
    async with serve("127.0.0.1:0", path, **settings) as address, client_of(address) as client:
        yield client


@asynccontextmanager
async def process(path: Path, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run the bank as a process; give it and its address. Afterwards it is dead."""
    settings = {"GATEWAY_MOCK_LISTEN": "127.0.0.1:0", "GATEWAY_MOCK_LEDGER": str(path), **environment}
    bank = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway_mock", env=os.environ | settings, stderr=asyncio.subprocess.PIPE
    )
    assert bank.stderr is not None
    try:
        line = json.loads(await bank.stderr.readline())
        yield bank, str(line.get("listen", line))
    finally:
        if bank.returncode is None:
            bank.kill()
        await bank.communicate()


async def until(look: Callable[[], Awaitable[Any]], seen: Callable[[Any], bool]) -> None:
    """Look until it is seen; pytest's timeout ends an endless wait."""
    while not seen(await look()):  # noqa: ASYNC110 - the awaited state is in a server, behind HTTP
        await asyncio.sleep(0.01)


async def raw(bank: Client, sent: bytes, *, leave: bool = False) -> bytes:
    """Every byte until the bank closes the connection. `leave`: the client closes its half first."""
    url = bank.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(sent)
        if leave:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
