"""One world: a bank, a command server, a query server, a fault proxy on each of their links, and what clients saw.

A scenario does harm in it. Then `rest` ends all harm, asks again for what is not known, as clients should, and everything
must come to rest and agree.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from charging.v1.command_pb2 import CaptureMode, ChargeRequest, ChargeResponse, OperationOutcome
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Money
from charging.v1.journal_pb2 import Event
from charging.v1.query_pb2_grpc import QueryServiceStub
from judge.files import read_journal
from judge.history import Record, Request, Response
from judge.streams import Stream
from prove.network.faultproxy import Proxy
from prove.network.reader import CHANNEL_OPTIONS
from prove.sales import Sale
from rig.asking import FOR_GOOD, is_decided, reference_of, send, told_by
from rig.errors import told
from rig.referee import PATIENT_SECONDS, Referee
from rig.servers import Servers
from rig.world import (
    AUTHORIZED,
    CHARGED,
    DECLINED,
    IN_REVIEW,
    OPERATION_DECLINED,
    OPERATION_EXECUTED,
    OPERATION_IN_REVIEW,
)

if TYPE_CHECKING:
    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub

# From the end of all harm on; on an idle machine it takes as long as the longest pause of the runner, some 25 s.
REST_SECONDS = 60.0
OF_A_HOLD = ("authorize", "capture", "void")
MANUAL = CaptureMode.CAPTURE_MODE_MANUAL
# What a client may want: the two that open a charge, and what follows in one.
WISHES = ("charge", "authorize", "capture", "void", "refund")
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

    request: Request
    answer: Response | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    advice: str = ""
    text: str = ""

    @property
    def outcome(self) -> ChargeResponse | OperationOutcome | None:
        """What the answer tells if it says how the charge or the operation ended."""
        return None if self.answer is None or not is_decided(self.answer) else told_by(self.answer)

    @property
    def is_done(self) -> bool:
        """Whether the bank executed it, by the answer."""
        return self._ended_as((CHARGED, AUTHORIZED), OPERATION_EXECUTED)

    @property
    def is_declined(self) -> bool:
        """Whether it was declined, by the answer."""
        return self._ended_as((DECLINED,), OPERATION_DECLINED)

    @property
    def is_in_review(self) -> bool:
        """Whether it is for people to look at, by the answer."""
        return self._ended_as((IN_REVIEW,), OPERATION_IN_REVIEW)

    def _ended_as(self, statuses: tuple[int, ...], operation_status: int) -> bool:
        outcome = self.outcome
        if isinstance(outcome, ChargeResponse):
            return outcome.status in statuses
        return outcome is not None and outcome.status == operation_status


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

    async def trouble(self, on: str, fault: str, *, request: Request | None = None, **details: Any) -> None:
        """The bank's next calls of a step go wrong; see gateway_mock."""
        aimed = {"reference": reference_of(request)} if request is not None else {}
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

    async def wishes(self, count: int, kinds: Sequence[str] = WISHES, **changed: Any) -> list[Request]:
        """So many requests of these kinds in turn, that the bank approves of; charges in which they follow are made first."""
        begin = self.chance.randrange(len(kinds))
        wanted = [kinds[(begin + number) % len(kinds)] for number in range(count)]
        openings = [self.request(capture=MANUAL if kind in OF_A_HOLD else None, **changed) for kind in wanted]
        following = [kind not in ("charge", "authorize") for kind in wanted]
        made = await self.settle_all([one for one, follows in zip(openings, following, strict=True) if follows])
        must(all(asked.is_done for asked in made), "a charge in which something follows is made")
        return [self._wish(kind, opening) for kind, opening in zip(wanted, openings, strict=True)]

    def _wish(self, kind: str, opening: ChargeRequest) -> Request:
        sale, name = Sale(opening), self.new_key("")
        part = self.chance.choice((None, sale.amount, self.chance.randrange(1, sale.amount)))
        match kind:
            case "capture":
                return sale.capture(name, part, final=self.chance.random() < 0.5)
            case "void":
                return sale.void(name)
            case "refund":
                return sale.refund(name, part)
            case _:
                return opening

    async def ask(
        self, request: Request, seconds: float | None = PATIENT_SECONDS, *, stub: Any = None, **options: Any
    ) -> Asked:
        """Ask once, as this client unless another's stub is given, and note what came of it."""
        options = {"timeout": seconds, "wait_for_ready": True, **options}
        return await self.note(request, send(stub or self.commands, request, **options))

    async def note(self, request: Request, asking: Awaitable[Response]) -> Asked:
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

    async def settle(self, request: Request, seconds: float = REST_SECONDS) -> Asked:
        """Ask again with the same key until there is an outcome or a definite no, as a good client does."""
        last = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    last = await self.ask(request, 5.0)
                    if last.outcome is not None or last.reason in FOR_GOOD:
                        return last
                    await asyncio.sleep(self.chance.uniform(0.05, 0.3))
        except TimeoutError:
            raise Broken(
                f"L1: {reference_of(request)} is not at rest after {seconds:g} s; last heard: {last}"
            ) from None

    async def settle_all(self, requests: Sequence[Request]) -> list[Asked]:
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
        open_requests: dict[tuple[type, bytes], Request] = {}
        for asked in self.history:
            name = type(asked.request), asked.request.SerializeToString(deterministic=True)
            if asked.outcome is None and asked.reason not in FOR_GOOD:
                open_requests[name] = asked.request
        limit = asyncio.Semaphore(64)

        async def settle(request: Request) -> None:
            async with limit:
                await self.settle(request)

        await asyncio.gather(*(settle(request) for request in open_requests.values()))

    async def _rests_by_itself(self) -> None:
        """What was accepted ends whether or not anybody asks again."""
        pause_seconds, unfinished = 0.05, set[str]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS):
                while True:
                    if not (unfinished := _unfinished(read_journal(self.folder / "journal.db"))):
                        return
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(1.0, pause_seconds * 1.5)
        raise Broken(f"L1: after {REST_SECONDS:g} s {len(unfinished)} charges are unfinished: {sorted(unfinished)[:3]}")


def _unfinished(records: Sequence[Record]) -> set[str]:
    """The charges of a journal in which something is under way."""
    streams: dict[str, Stream] = {}
    for record in records:
        event = Event.FromString(record.event)
        stream = streams.setdefault(record.charge_id, Stream(record.charge_id))
        for _ in stream.take(record, event.WhichOneof("kind") or "", event):
            pass  # what it breaks is for the check
    return {name for name, stream in streams.items() if stream.newest is None or stream.newest.ending is None}


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
