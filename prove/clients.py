"""Clients of real servers, and what was observed of all sides: for the harnesses that kill processes.

A client asks with one key until it knows how its charge ended, through every death of the server, and remembers each call
and what came of it. Once the servers stand again, `observe` gathers what the checker needs.
"""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.journal_pb2 import Event
from judge.files import read_anchor, read_journal, read_view
from judge.history import BankCall, Call, Observed
from rig.errors import told
from rig.processes import Town
from rig.referee import Referee, bank_call

if TYPE_CHECKING:
    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub

# A client is patient with a charge, not with a call: one that was lost is asked again.
CALL_SECONDS = 5.0
PAUSE_SECONDS = 0.05
CARDS = ("tok_visa", "tok_visa", "tok_mastercard", "tok_declined", "tok_insufficient_funds")
# A dead server is tried again at once: grpc's own pauses, up to two minutes, would be most of a run.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(eq=False)
class Clients:
    """Clients of one command server, wherever it is and however often it dies."""

    chance: random.Random
    prefix: str
    """What their keys begin with."""
    calls: list[Call] = field(default_factory=list)
    begun: int = 0
    known: set[str] = field(default_factory=set)
    """The keys whose outcome was told."""

    @property
    def done(self) -> int:
        """How many charges are known to have ended."""
        return len(self.known)

    async def charge(self, stub: "CommandServiceAsyncStub") -> None:
        """Charge a card, under a key of its own; return when the outcome is known."""
        self.begun += 1
        request = ChargeRequest(
            idempotency_key=f"{self.prefix}-{self.begun:08}",
            user_id=self.chance.choice(("alice", "bob", "carol")),
            card=Card(token=self.chance.choice(CARDS)),
            amount=Money(minor_units=self.chance.randrange(100, 100_000), currency_code="EUR"),
        )
        known = await self.ask(stub, request)
        while known.status in (0, ChargeStatus.CHARGE_STATUS_PENDING):
            if known.outcome != "ok":
                await asyncio.sleep(self.chance.uniform(0, PAUSE_SECONDS))
            known = await self.ask(stub, request, is_again=True)
        self.known.add(request.idempotency_key)

    async def ask(self, stub: "CommandServiceAsyncStub", request: ChargeRequest, *, is_again: bool = False) -> Call:
        """Ask once, the second time as soon as the server stands, and remember what came of it."""
        try:
            call = Call.answered(request, await stub.Charge(request, timeout=CALL_SECONDS, wait_for_ready=is_again))
        except grpc.aio.AioRpcError as error:
            refusal = told(error)
            call = Call.failed(request, refusal.reason, refusal.advice)
        self.calls.append(call)
        return call

    async def work(self, town: Town, at_once: int, stop: asyncio.Event) -> None:
        """Charge, so many at once, until stopped; return when every charge that was begun is known."""
        async with grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel:
            stub = CommandServiceStub(channel)

            async def one() -> None:
                while not stop.is_set():
                    await self.charge(stub)

            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(one())


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
        """What all sides have, once every client knows how its charge ended."""
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
