"""Stripe's double on a socket in the test's own process: the test sets the clock, and what happens between two calls."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from chassis.secret import Secret
from command_service.bank import Bank
from command_service.bank.stripe import stripe_bank
from command_service.bank.transport import open_transport
from command_service.values import Answer, Effect, InProgress, NoAnswer, Operation, RequestToken, Token
from gateway_mock.wire import Answer as Wired
from gateway_mock.wire import AnswerAndMore, Reply, Request, Silence, serving
from rig.stripe_bank import StripeBank
from tests.contract.bank_rigs import NO_TLS, PATIENT_SECONDS
from tests.contract.operations import executed

BEGIN = 1_800_000_000.0
HOUR = 3600.0
RETURN_URL = "https://shop.example/back"
KEY = "sk_test_of_the_town"


@dataclass
class Town:
    """The double, its clock, and an adapter."""

    at: float = BEGIN
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request, without /v1."""
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    loses: Callable[[int], str] = lambda _: ""
    """For the number of a call, from 1: lose the "request", the "answer", or nothing."""
    before: Callable[[str, str], None] | None = None
    """Called with method and path before each request is answered."""
    instead: list[tuple[str, int, Any]] = field(default_factory=list)
    """Answers (status, body) to the next requests whose method and path begin with a text, in place of Stripe's."""

    extra: tuple[tuple[str, str], ...] = ()
    """Headers of those."""

    stray: Any = None
    """One more answer to each look-up, some ms after the right one: the next question over its connection may hear it."""

    def __post_init__(self) -> None:
        self.stripe = StripeBank(now=lambda: self.at, keys={KEY})
        self.key = Secret(KEY)
        self.bank: Bank

    async def respond(self, request: Request) -> Reply:
        path = request.path.removeprefix("/v1")
        if self.stray is not None and path.endswith(("/refunds", "/search")):
            await asyncio.sleep(0.05)  # The stray answer comes first.
        self.calls.append((request.method, path))
        self.headers.append(dict(request.headers))
        self.bodies.append(request.body.decode())
        if self.before is not None:
            self.before(request.method, path)
        lost = self.loses(len(self.calls))
        if lost == "request":
            return Silence()
        for number, (text, status, body) in enumerate(self.instead):
            if f"{request.method} {path}".startswith(text):
                del self.instead[number]
                return Wired(status, body if isinstance(body, bytes) else json.dumps(body).encode(), self.extra)
        target = f"{request.path}?{request.query}" if request.query else request.path
        status, headers, body = self.stripe.answer(request.method, target, request.headers, request.body)
        others = tuple((name, text) for name, text in headers.items() if name != "content-type")
        said = Wired(status, body, others)
        if self.stray is not None and request.method == "GET":
            return AnswerAndMore(said, Wired(200, json.dumps(self.stray).encode()), 0.01)
        return Silence() if lost == "answer" else said

    def made(self, *endings: str) -> int:
        """Count the orders whose path ends so."""
        return sum(method == "POST" and path.endswith(endings) for method, path in self.calls)

    async def answer(self, effect: Effect, *, look_up_first: bool = False) -> Answer:
        return await self.bank.perform(effect, look_up_first=look_up_first)

    async def token(self, operation: Operation, *, look_up_first: bool = False) -> str:
        said = await self.settled(RequestToken(operation, 0), look_up_first=look_up_first)
        assert isinstance(said, Token)
        return said.token

    async def settled(self, effect: Effect, *, look_up_first: bool = False) -> Answer:
        """Do a step until it is answered."""
        for _ in range(12):
            said = await self.answer(effect, look_up_first=look_up_first)
            if not isinstance(said, NoAnswer | InProgress):
                return said
        raise AssertionError(f"no answer: {said}")

    async def executed(self, operation: Operation) -> str:
        return await executed(self.bank, operation)


@asynccontextmanager
async def stripe_town(**options: Any) -> AsyncIterator[Town]:
    town = Town()
    async with serving("127.0.0.1:0", town.respond) as listen:
        town.bank = stripe_bank(
            f"http://{listen}",
            open_transport(max_connections=8, verify=NO_TLS),
            PATIENT_SECONDS,
            key=lambda: town.key,
            return_url=RETURN_URL,
            now=lambda: town.at,
            **options,
        )
        try:
            yield town
        finally:
            await town.bank.close()
            await asyncio.sleep(0)
