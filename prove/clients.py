"""Clients of real servers, and what was observed of all sides: for the harnesses that kill processes.

A client asks with one key until it knows how its charge ended, or what follows in it, through every death of the server, and
remembers each call and what came of it. Once the servers stand again, `observe` gathers what the checker needs.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import ChargeStatus
from charging.v1.journal_pb2 import Event
from judge.files import read_anchor, read_journal, read_view
from judge.history import PENDING, BankCall, Call, Observed, Request
from prove.sales import wanted
from rig.asking import FOR_GOOD, send
from rig.errors import told
from rig.processes import Town
from rig.referee import Referee, bank_call

if TYPE_CHECKING:
    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub

# A client is patient with a charge, not with a call: one that was lost is asked again.
CALL_SECONDS = 5.0
PAUSE_SECONDS = 0.05
ENDS = ("charges", "charges called off", "captures", "voids", "refunds")
"""What clients are told the end of."""
# A dead server is tried again at once: grpc's own pauses, up to two minutes, would be most of a run.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(eq=False)
class Clients:
    """Clients of one command server, wherever it is and however often it dies.

    What they want is made from their prefix and a number: other clients of the same prefix want the same.
    """

    chance: random.Random
    prefix: str
    """What their keys begin with."""
    is_calm: bool = False
    """They want nothing that another try might end otherwise: see `prove.sales`."""
    calls: list[Call] = field(default_factory=list)
    begun: int = 0
    known: set[tuple[str, ...]] = field(default_factory=set)
    """What the keys name whose outcome was told, or that were refused for good."""
    ends: Counter[str] = field(default_factory=Counter)
    """How often each of `ENDS` was told."""

    @property
    def done(self) -> int:
        """How many charges and operations that follow in them are known to have ended."""
        return len(self.known)

    @property
    def unknown(self) -> list[str]:
        """The keys of those that are not known to have ended."""
        return sorted({call.key for call in self.calls if call.names not in self.known})

    async def buy(self, stub: "CommandServiceAsyncStub") -> None:
        """Ask for the next charge, and for what follows in it, under keys of their own; return when all is known."""
        self.begun += 1
        key = f"{self.prefix}-{self.begun:08}"
        for turn in wanted(random.Random(key), key, is_calm=self.is_calm):
            await asyncio.gather(*(self.until_known(stub, request) for request in turn))

    async def until_known(self, stub: "CommandServiceAsyncStub", request: Request) -> Call:
        """Ask for one thing until its outcome is told, or it is refused for good."""
        call = await self.ask(stub, request)
        while call.status in (0, PENDING) and call.reason not in FOR_GOOD:
            if call.outcome != "ok":
                await asyncio.sleep(self.chance.uniform(0, PAUSE_SECONDS))
            call = await self.ask(stub, request, is_again=True)
        self.known.add(call.names)
        if call.outcome == "ok":
            self.ends[_end(call)] += 1
        return call

    async def ask(self, stub: "CommandServiceAsyncStub", request: Request, *, is_again: bool = False) -> Call:
        """Ask once, the second time as soon as the server stands, and remember what came of it."""
        try:
            answer = await send(stub, request, timeout=CALL_SECONDS, wait_for_ready=is_again)
            call = Call.answered(request, answer)
        except grpc.aio.AioRpcError as error:
            refusal = told(error)
            call = Call.failed(request, refusal.reason, refusal.advice)
        self.calls.append(call)
        return call

    async def work(self, town: Town, at_once: int, stop: asyncio.Event) -> None:
        """Buy, so many at once, until stopped; return when everything that was begun is known."""
        async with grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel:
            stub = CommandServiceStub(channel)

            async def one() -> None:
                while not stop.is_set():
                    await self.buy(stub)

            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(one())


def _end(call: Call) -> str:
    if call.operation == "charge" and call.status == ChargeStatus.CHARGE_STATUS_VOIDED:
        return "charges called off"
    return f"{call.operation}s"


@dataclass(eq=False)
class Witness:
    """Collects the bank's log of calls, which a bank forgets when it dies, and in the end what all sides have."""

    referee: Referee
    bank_calls: list[BankCall] = field(default_factory=list)
    _seen: int = 0
    _judged: int = 0

    async def collect(self) -> list[dict[str, Any]]:
        """Collect the calls since the last time. Returns them as the bank tells them."""
        calls = await self.referee.calls(self._seen)
        for call in calls:
            self._seen = call["n"]
            self.bank_calls.append(bank_call(call))
        return calls

    async def executed_too_early(self, journal: Path) -> list[str]:
        """I3, right after a death: what the bank was asked to execute must be in the journal that the dead one left."""
        await self.collect()
        executes = [call for call in self.bank_calls[self._judged :] if call.step == "execute"]
        self._judged = len(self.bank_calls)
        stored = {Event.FromString(record.event).token_issued.token for record in read_journal(journal)}
        early = [call.token for call in executes if call.token not in stored]
        return [f"I3: token {token} was executed, and the dead server's journal does not hold it" for token in early]

    def forgotten(self) -> None:
        """The bank was started again, and its log begins anew."""
        self._seen = 0

    async def at_rest(self, clients: Clients, town: Town, *, has_view: bool = False) -> Observed:
        """What all sides have, once every client knows how everything ended."""
        await self.collect()
        return Observed(
            read_journal(town.journal),
            calls=clients.calls,
            movements=await self.referee.movements(),
            bank_calls=self.bank_calls,
            view=read_view(town.folder / "view.db") if has_view else None,
            anchor=read_anchor(town.journal),
            is_at_rest=True,
        )
