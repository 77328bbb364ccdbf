"""The fakes as processes of this machine, on loopback, each on a free port of its own."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from rig.processes import START_SECONDS, STOP_SECONDS, DidNotStart, free_address
from tests.banks.programs import LOCALSTRIPE_PYTHON, STATEFUL_MOCK, STRIPE_MOCK

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
"""All three take any key that begins like one for tests; this one is from Stripe's documentation."""


@asynccontextmanager
async def stripe_mock(log: Path) -> AsyncIterator[str]:
    """Run stripe-mock; its address. Without a port for TLS it would listen on every interface."""
    address, another = free_address(), free_address()
    command = [str(STRIPE_MOCK.program), "-http-addr", address, "-https-addr", another]
    async with _running(command, address, log):
        yield address


@asynccontextmanager
async def localstripe(log: Path) -> AsyncIterator[str]:
    """Run localstripe, with what it lacks; its address."""
    address = free_address()
    command = [str(LOCALSTRIPE_PYTHON), str(Path(__file__).parent / "localstripe_server.py"), _port(address)]
    async with _running(command, address, log):
        yield address


@asynccontextmanager
async def stateful_mock(log: Path) -> AsyncIterator[str]:
    """Run stripe-stateful-mock; its address."""
    address = free_address()
    assert STATEFUL_MOCK.program.exists()
    async with _running(["node", str(STATEFUL_MOCK.folder / "serve.js"), _port(address)], address, log):
        yield address


def client(address: str) -> httpx.AsyncClient:
    """A client of a fake, for calls behind the server's back."""
    return httpx.AsyncClient(
        base_url=f"http://{address}",
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=STOP_SECONDS,
        trust_env=False,
        verify=False,  # It speaks plain HTTP only, and loading certificates takes long.
    )


async def customers_card(fake: str) -> str:
    """Make a card at localstripe that wants its customer each time; return its name there."""
    card = {"number": "4000002760003184", "exp_month": "12", "exp_year": "2030", "cvc": "123"}
    order = {"type": "card", **{f"card[{name}]": content for name, content in card.items()}}
    async with client(fake) as asking:
        return str((await asking.post("/v1/payment_methods", data=order)).raise_for_status().json()["id"])


def _port(address: str) -> str:
    return address.rpartition(":")[2]


@asynccontextmanager
async def _running(command: Sequence[str], address: str, log: Path) -> AsyncIterator[None]:
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=written, stderr=written
        )
    try:
        await _answers(process, address, log)
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await asyncio.wait_for(process.wait(), STOP_SECONDS)


async def _answers(process: asyncio.subprocess.Process, address: str, log: Path) -> None:
    async with client(address) as asking:
        for _ in range(int(START_SECONDS / 0.05)):
            try:
                await asking.get("/")
                return
            except httpx.TransportError:
                if process.returncode is not None:
                    break
                await asyncio.sleep(0.05)
    raise DidNotStart(f"{address} does not answer:\n{log.read_text(errors='replace')[-4000:]}")
