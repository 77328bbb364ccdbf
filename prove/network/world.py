"""One world: a bank, a command server, a query server, a fault proxy on each of their links, and what clients saw.

A scenario does harm in it. Then `rest` ends all harm, asks again for what is not known, as clients should, and everything
must come to rest and agree.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Money
from charging.v1.journal_pb2 import Event
from charging.v1.query_pb2_grpc import QueryServiceStub
from judge.files import read_journal
from prove.network.faultproxy import Proxy
from prove.network.reader import CHANNEL_OPTIONS
from rig.errors import told
from rig.referee import PATIENT_SECONDS, Referee
from rig.servers import Servers
from rig.world import PENDING, id_of

if TYPE_CHECKING:
    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub

# From the end of all harm on; on an idle machine it takes as long as the longest pause of the runner, some 25 s.
REST_SECONDS = 60.0
# After these an honest client does not ask again with the same request and key.
SAME_KEY_IS_NO_USE = frozenset({"INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED"})
# A network may do these to a client. Any other error must come from the server, with a reason.
NETWORK_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,  # a stream that the peer reset, in grpc's own words
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # too large, in grpc's own words
    }
)
# With it a call is slow only if a fault makes it so, and a client reads its answer while it still matters.
SETTINGS: Mapping[str, str] = {"COMMAND_BANK_TIMEOUT_SECONDS": "0.7"}


class Broken(Exception):
    """A promise did not hold; the text says which and where."""


def must(holds: object, promise: str) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(promise)


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a client and what came of it: an answer, or a code and perhaps a reason."""

    request: ChargeRequest
    answer: ChargeResponse | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    advice: str = ""
    text: str = ""

    @property
    def outcome(self) -> ChargeResponse | None:
        """The answer if it says how the charge ended."""
        return None if self.answer is None or self.answer.status == PENDING else self.answer


@dataclass(eq=False)
class World:
    """See the module. Made by `a_world`."""

    servers: Servers
    folder: Path
    has_view: bool
    chance: random.Random
    bank_link: Proxy
    client_link: Proxy
    feed_link: Proxy
    referee: Referee
    commands: "CommandServiceAsyncStub"
    faults: Counter[str] = field(default_factory=Counter)
    history: list[Asked] = field(default_factory=list)
    is_bank_true_in_the_end: bool = True
    """Then a charge in review is a violation. Not so where a scenario has the bank contradict itself for good."""

    # ------------------------------------------------------------ the servers
    async def command_up(self, **more: str) -> None:
        """Start the command server, over its journal if there is one."""
        url = f"http://{self.bank_link.address}"
        await self.servers.command_up({"COMMAND_BANK_URL": url, **SETTINGS, **more})

    async def command_again(self, *, kill: bool = False, **more: str) -> None:
        """Start the command server anew."""
        await self.servers.command_down(kill=kill)
        await self.command_up(**more)

    async def query_up(self) -> None:
        """Start the query server, over its view if there is one."""
        await self.servers.query_up({"QUERY_FEED": self.feed_link.address})

    async def trouble(self, on: str, fault: str, *, request: ChargeRequest | None = None, **details: Any) -> None:
        """The bank's next calls of a step go wrong; see gateway_mock."""
        aimed = {"reference": id_of(request)} if request is not None else {}
        await self.referee.trouble(on, fault, **aimed, **details)

    async def no_more_trouble(self) -> None:
        """End the bank's faults, and count those that fired."""
        for fault in await self.referee.faults():
            self.faults[f"bank: {fault['fault']}"] += fault["fired"]
        await self.referee.no_more_trouble()

    # ------------------------------------------------------------ clients
    def request(self, key: str | None = None, **changed: Any) -> ChargeRequest:
        """A request that the bank approves of, under a key of its own unless one is given."""
        request = ChargeRequest(
            idempotency_key=key or self.new_key("key"),
            user_id=f"user-{self.chance.randrange(5)}",
            card=Card(token=self.chance.choice(("tok_visa", "tok_mastercard"))),
            amount=Money(
                minor_units=self.chance.randrange(100, 100_000), currency_code=self.chance.choice(("EUR", "USD"))
            ),
        )
        request.MergeFrom(ChargeRequest(**changed))
        return request

    def new_key(self, prefix: str) -> str:
        """A key that nobody has had. In letters: one key in some thousands has digits that make a card number (seen)."""
        return f"{prefix}-{''.join(self.chance.choices('abcdefghijklmnopqrstuvwxyz', k=20))}"

    def requests(self, count: int) -> list[ChargeRequest]:
        """So many different ones."""
        return [self.request() for _ in range(count)]

    async def ask(
        self, request: ChargeRequest, seconds: float | None = PATIENT_SECONDS, *, call: Any = None, **options: Any
    ) -> Asked:
        """Charge once, through the client's link unless another stub's method is given, and note what came of it."""
        asking = (call or self.commands.Charge)(request, timeout=seconds, **{"wait_for_ready": True, **options})
        return await self.note(request, asking)

    async def note(self, request: ChargeRequest, asking: Awaitable[ChargeResponse]) -> Asked:
        """Wait for a call and note what came of it."""
        try:
            asked = Asked(request, await asking)
        except grpc.aio.AioRpcError as error:
            refusal = told(error)
            asked = Asked(request, None, refusal.code, refusal.reason, refusal.advice, refusal.text)
            must(asked.reason != "UNEXPECTED", "no call ends in a fault that the server did not foresee")
            must(
                asked.reason or asked.code in NETWORK_CODES, f"errors are the server's own words, not {asked.code.name}"
            )
        except asyncio.CancelledError:
            self.history.append(Asked(request, None, grpc.StatusCode.CANCELLED))
            raise
        self.history.append(asked)
        return asked

    async def settle(self, request: ChargeRequest, seconds: float = REST_SECONDS) -> Asked:
        """Ask again with the same key until there is an outcome or a definite no, as a good client does."""
        last = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    last = await self.ask(request, 5.0)
                    if last.outcome is not None or last.reason in SAME_KEY_IS_NO_USE:
                        return last
                    await asyncio.sleep(self.chance.uniform(0.05, 0.3))
        except TimeoutError:
            raise Broken(f"L1: {id_of(request)} is not at rest after {seconds:g} s; last heard: {last}") from None

    async def settle_all(self, requests: list[ChargeRequest]) -> list[Asked]:
        """Settle many at once."""
        return list(await asyncio.gather(*(self.settle(request) for request in requests)))

    @asynccontextmanager
    async def another_client(self, *options: tuple[str, Any]) -> "AsyncIterator[CommandServiceAsyncStub]":
        """A client with a connection of its own."""
        async with grpc.aio.insecure_channel(self.client_link.address, options=[*CHANNEL_OPTIONS, *options]) as channel:
            yield CommandServiceStub(channel)

    @asynccontextmanager
    async def queries(self) -> "AsyncIterator[QueryServiceAsyncStub]":
        """A client of the query server."""
        async with grpc.aio.insecure_channel(self.servers.query, options=CHANNEL_OPTIONS) as channel:
            yield QueryServiceStub(channel)

    # ------------------------------------------------------------ the end
    async def rest(self) -> None:
        """End all harm, let everything come to rest, and count what fired."""
        await self.no_more_trouble()
        for link in (self.bank_link, self.client_link, self.feed_link):
            link.forget()
            for kind, times in link.fired.items():
                self.faults[f"link: {kind}"] += times
            link.fired.clear()
        await self._rests_by_itself()
        open_requests: dict[bytes, ChargeRequest] = {}
        for asked in self.history:
            name = asked.request.SerializeToString(deterministic=True)
            if asked.outcome is None and asked.reason not in SAME_KEY_IS_NO_USE:
                open_requests[name] = asked.request
        limit = asyncio.Semaphore(64)

        async def settle(request: ChargeRequest) -> None:
            async with limit:
                await self.settle(request)

        await asyncio.gather(*(settle(request) for request in open_requests.values()))

    async def _rests_by_itself(self) -> None:
        """What was accepted ends whether or not anybody asks again."""
        pause_seconds, unfinished = 0.05, set[str]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS):
                while True:
                    newest = {record.charge_id: record.event for record in read_journal(self.folder / "journal.db")}
                    unfinished = {name for name, event in newest.items() if not _ends(event)}
                    if not unfinished:
                        return
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(1.0, pause_seconds * 1.5)
        raise Broken(f"L1: after {REST_SECONDS:g} s {len(unfinished)} charges are unfinished: {sorted(unfinished)[:3]}")


def _ends(event: bytes) -> bool:
    return Event.FromString(event).WhichOneof("kind") in (
        "charged",
        "charge_declined",
        "review_required",
        "charge_abandoned",
    )


@asynccontextmanager
async def within(seconds: float, promise: str) -> AsyncIterator[None]:
    """Raises Broken with the promise if what is done in it takes longer. What times out by itself goes by."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise Broken(f"not within {seconds:g} s: {promise}") from None


async def until(seen: Callable[[], object], seconds: float, promise: str) -> None:
    """Wait until something is seen. Raises Broken with the promise if it is not within the time."""
    async with within(seconds, promise):
        while not seen():  # noqa: ASYNC110  # what is waited for is anybody's, and has no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def a_world(servers: Servers, folder: Path, chance: random.Random, *, has_view: bool) -> AsyncIterator[World]:
    """Start everything, with the servers' files in the folder; at the end, stop it. `has_view`: with a query server."""

    def place(address: str) -> tuple[str, int]:
        host, _, port = address.rpartition(":")
        return host, int(port)

    async with contextlib.AsyncExitStack() as stack:
        bank_link = await stack.enter_async_context(Proxy(lambda: place(servers.bank)))
        client_link = await stack.enter_async_context(Proxy(lambda: place(servers.command)))
        feed_link = await stack.enter_async_context(Proxy(lambda: place(servers.feed)))
        stack.push_async_callback(servers.bank_down)
        await servers.bank_up()
        referee = await stack.enter_async_context(Referee(f"http://{servers.bank}"))
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(client_link.address, options=CHANNEL_OPTIONS)
        )
        world = World(
            servers, folder, has_view, chance, bank_link, client_link, feed_link, referee, CommandServiceStub(channel)
        )
        stack.push_async_callback(servers.command_down)
        await world.command_up()
        if has_view:
            stack.push_async_callback(servers.query_down)
            await world.query_up()
        yield world
