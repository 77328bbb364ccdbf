"""One charge and what follows in it, life after life, each of which may die at a call of a port.

The ports are the journal, the bank and the bank's transport; under them are the product's journal on a real file and the mock
bank over a real socket. A death leaves the files as they are at that moment: the next life runs on a copy, and nothing of the
dead one happens any more.
"""

import asyncio
import json
import shutil
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

import httpx

from charging.v1.command_pb2 import CaptureMode, ChargeRequest
from charging.v1.common_pb2 import Card, Money
from charging.v1.journal_pb2 import Event
from chassis import settings
from chassis.caller import ANYBODY, GuardedCall
from chassis.refusals import Refusal
from command_service.api import CommandService
from command_service.bank import Bank
from command_service.bank.gateway import gateway_bank
from command_service.bank.transport import open_transport, target_of
from command_service.journal import Journal, JournalRefused, Record
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import verify_journal
from command_service.parts import Parts
from command_service.settings import Settings
from judge.checker import check
from judge.files import read_anchor, read_journal
from judge.history import BankCall, Call, Movement, Observed, Request, charge_id_of
from prove.deaths.scenarios import AMOUNT, Before, Scenario
from prove.deaths.writer import end_process, now
from prove.operation_bugs import Renaming, Unfinished
from rig.around import Around
from rig.asking import FOR_GOOD, awaits_customer, is_decided, reference_of, send
from rig.referee import Referee

# A life without faults takes some 20 ms. One that takes so long hangs.
LIFE_SECONDS = 20.0
# Reading the authorities' certificates takes longer than a life, and this bank speaks plain HTTP.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SETTINGS = settings.read(Settings, {})
PORTS = {
    "journal": frozenset({"append", "read", "news"}),
    "bank": frozenset({"perform"}),
    "transport": frozenset({"handle_async_request"}),
}
# Longer than a life: until a command comes, nobody asks the bank again.
ASK_AGAIN_SECONDS = 30
HOUR = 3_600_000_000


# ---------------------------------------------------------------- points
class Points:
    """The calls of the ports of one life, once they count. At one of them it dies: nothing goes on from there or later."""

    def __init__(self, dies_at: int, leave: Callable[[], None]) -> None:
        self._dies_at = dies_at
        self._leave = leave
        self.count = False
        self.passed = 0
        self.died_at = ""
        self.died = asyncio.Event()

    async def reach(self, point: str) -> None:
        """Pass a point, or die here: then this does not return."""
        if self.count and not self.died_at:
            self.passed += 1
            if self.passed == self._dies_at:
                self.died_at = point
                self._leave()
                self.died.set()
        if self.died_at:
            await asyncio.get_running_loop().create_future()


class Port:
    """A port whose calls are points, before and after."""

    def __init__(self, name: str, port: object, points: Points, sees: Callable[..., None] = lambda *_: None) -> None:
        self._name, self._port, self._points, self._sees = name, port, points, sees

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._port, name)
        if name not in PORTS[self._name]:
            return inner

        async def call(*arguments: Any, **named: Any) -> Any:
            await self._points.reach(f"before {self._name}.{name}")
            self._sees(*arguments)
            try:
                result = await inner(*arguments, **named)
            except Exception:
                await self._points.reach(f"after {self._name}.{name}")
                raise
            await self._points.reach(f"after {self._name}.{name}")
            return result

        return call


# ---------------------------------------------------------------- controls
class Hasty(Around[Journal]):
    """A journal that acknowledges an append first and stores it with the next call."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._owed: list[Any] = []

    async def append(self, charge_id: str, expected: int, events: Sequence[bytes], *, finished: bool) -> list[Record]:
        """Acknowledge."""
        while self._owed:
            owed, is_finished = self._owed.pop(0)
            await self.inner.append(*owed, finished=is_finished)
        self._owed.append(((charge_id, expected, events), finished))
        head = self.inner.head.position
        return [
            Record(head + number, charge_id, expected + number, now(), b"", event)
            for number, event in enumerate(events, 1)
        ]


class Bug(Enum):
    """What is wrong with the product of a control, and nothing."""

    NONE = ""
    HASTY = "a journal that acknowledges before it stores"
    SENT_AGAIN = "a refund that is sent again under a new reference"


class Clocked(Parts):
    """The product's parts, with a clock that may be ahead by an hour."""

    def __init__(self, is_ahead: Callable[[], bool]) -> None:
        super().__init__(SETTINGS)
        self._is_ahead = is_ahead

    def now(self) -> int:
        """Return the time of day in microseconds since 1970."""
        return now() + (HOUR if self._is_ahead() else 0)


class Unhurried:
    """The context of a call without a deadline."""

    def time_remaining(self) -> None:
        """As grpc's context tells it."""


# ---------------------------------------------------------------- the story
@dataclass(eq=False)
class Story:
    """One charge and what follows in it, life after life, along one path."""

    scenario: Scenario
    referee: Referee
    folder: Path
    key: str
    bug: Bug = Bug.NONE
    calls: list[Call] = field(default_factory=list)
    bank_calls: list[BankCall] = field(default_factory=list)
    died_at: list[str] = field(default_factory=list)
    lives: int = 0
    requests: list[Request] = field(init=False)
    """The charge's, and those of what follows."""

    def __post_init__(self) -> None:
        opening = ChargeRequest(idempotency_key=self.key, user_id="alice")
        opening.card.CopyFrom(Card(token=self.scenario.card, brand="visa", last4="4242"))
        opening.amount.CopyFrom(Money(minor_units=AMOUNT, currency_code="EUR"))
        if self.scenario.is_held:
            opening.capture = CaptureMode.CAPTURE_MODE_MANUAL
        if self.scenario.is_late:
            opening.not_after.FromMicroseconds(now() + HOUR // 2)
        opening.off_session = self.scenario.is_off_session
        self.requests = [opening]
        for number, follows in enumerate(self.scenario.follows, 1):
            request = type(follows)(idempotency_key=f"{self.key}-{number}", charge_id=self.charge_id)
            request.MergeFrom(follows)  # type: ignore[arg-type]  # it is of the same type
            self.requests.append(request)

    @property
    def charge_id(self) -> str:
        """The charge's id."""
        return charge_id_of("default", self.key)

    @property
    def journal(self) -> Path:
        """The journal's file in the newest life."""
        return self.folder / str(self.lives) / "journal.db"

    async def order_faults(self) -> None:
        """Order the scenario's faults at the bank."""
        if self.scenario.fault:
            first = self.requests[0 if self.scenario.before is Before.NOTHING else 1]
            await self.referee.trouble("execute", self.scenario.fault, reference=reference_of(first))
        if self.scenario.before in (Before.UNDER_WAY, Before.EXECUTED):
            again = {"retry_after": str(ASK_AGAIN_SECONDS), "times": 1_000}
            await self.referee.trouble("execute", "in_progress", reference=self.charge_id, **again)

    def _leave(self) -> None:
        """What a dead process leaves: its files as they are, but for what only the living share."""
        next_folder = self.folder / str(self.lives + 1)
        next_folder.mkdir()
        for suffix in ("", "-wal", ".anchor", ".anchor.new"):
            file = self.journal.with_name(self.journal.name + suffix)
            if file.exists():
                shutil.copyfile(file, next_folder / file.name)

    def _sees(self, request: httpx.Request) -> None:
        """Note what the bank is asked, and whether the journal's file already held the token."""
        parts = target_of(request).split("/")
        if request.method != "POST":
            return
        match parts[-1]:
            case "execute":
                self.bank_calls.append(
                    BankCall("execute", token=parts[-2], token_was_durable=parts[-2] in self._tokens())
                )
            case "cancel":
                self.bank_calls.append(BankCall("cancel", token=parts[-2]))
            case _:
                asked = json.loads(request.content)
                names = ("reference", "card", "amount", "currency", "kind", "on")
                self.bank_calls.append(BankCall("token", **{name: asked[name] for name in names if name in asked}))

    def _tokens(self) -> list[str]:
        return [Event.FromString(record.event).token_issued.token for record in read_journal(self.journal)]

    async def live(self, dies_at: int) -> int:
        """Live until everything is at rest and the client knows, or until death. Returns how many points were passed."""
        self.journal.parent.mkdir(exist_ok=True)
        points = Points(dies_at, self._leave)
        points.count = self.scenario.before is Before.NOTHING or self.lives > 0
        transport = open_transport(max_connections=8, verify=NO_TLS)
        journal = await GroupCommit.open(await SqliteFile(self.journal).open(), now=now, end_process=end_process)
        beneath: Journal = Hasty(journal).as_one() if self.bug is Bug.HASTY else journal
        seen = cast("httpx.AsyncBaseTransport", Port("transport", transport, points, self._sees))
        adapter: Bank = gateway_bank(str(self.referee.http.base_url), seen, 10.0)
        if self.bug is Bug.SENT_AGAIN:
            found = set[str]()
            beneath, adapter = Unfinished(journal, found).as_one(), Renaming(adapter, found).as_one()
        bank = Port("bank", adapter, points)
        parts = Clocked(lambda: self.scenario.is_late and any(call.step == "token" for call in self.bank_calls))
        assembled = parts.assemble(cast("Journal", Port("journal", beneath, points)), {"": cast("Bank", bank)})
        service = parts.commands(assembled.reception)

        async def live() -> None:
            await assembled.runner.recover()
            await self._go_on(service, points)

        living, dying = asyncio.create_task(live()), asyncio.create_task(points.died.wait())
        try:
            ended, _ = await asyncio.wait((living, dying), timeout=LIFE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert ended, f"L4: a life neither ended nor died within {LIFE_SECONDS:g} s"
        finally:
            dying.cancel()
            living.cancel()
            await asyncio.gather(living, dying, return_exceptions=True)
            await assembled.close()
            await transport.aclose()
            await journal.close()
        if points.died_at:
            self.died_at.append(points.died_at)
            self.lives += 1
        else:
            living.result()
        return points.passed

    async def _go_on(self, service: CommandService, points: Points) -> None:
        """Ask for everything. In the first life the charge is brought as far as the scenario wants it, before deaths begin."""
        opening, follows = self.requests[0], self.requests[1:]
        before, charging = self.scenario.before, None
        if before is Before.AT_REST and not self.lives:
            await self._ask(service, opening)
        if before in (Before.UNDER_WAY, Before.EXECUTED):
            charging = asyncio.ensure_future(self._ask(service, opening))
            if not self.lives:
                await self._until_under_way()
        points.count = True
        try:
            if charging is None:
                await self._ask(service, opening)
            for request in follows:
                await self._ask(service, request)
            if charging is not None:
                await charging
        finally:
            if charging is not None:
                charging.cancel()

    async def _until_under_way(self) -> None:
        """Wait until the bank was asked to execute the charge, and said that it is at it. Then perhaps it has executed it."""
        while not await self.referee.has_fired():  # noqa: ASYNC110  # it is the bank's event
            await asyncio.sleep(0.002)
        if self.scenario.before is Before.EXECUTED:
            await self.referee.no_more_trouble()
            (token,) = filter(None, self._tokens())
            (await self.referee.http.post(f"/transactions/{token}/execute")).raise_for_status()
            await self.order_faults()

    async def _ask(self, service: CommandService, request: Request) -> None:
        context = GuardedCall("", ANYBODY, Unhurried())
        try:
            answer = await send(service, request, context)
            while self.scenario.customer and awaits_customer(answer):
                self.calls.append(Call.answered(request, answer))
                step = f"{answer.action.url}/{self.scenario.customer}"
                assert (await self.referee.http.post(step)).is_redirect
                answer = await send(service, request, context)
        except Refusal as refused:
            self.calls.append(Call.failed(request, refused.reason, refused.advice))
            assert refused.reason in FOR_GOOD, f"refused for no reason: {refused.reason}"
        else:
            self.calls.append(Call.answered(request, answer))
            assert is_decided(answer), f"it stopped on its way: {answer}"

    def broken(self, movements: Sequence[Movement]) -> list[str]:
        """What does not hold, once the last life is over."""
        names = {reference_of(request) for request in self.requests}
        openings = {movement.transaction_id for movement in movements if movement.reference == self.charge_id}
        mine = [movement for movement in movements if movement.reference in names or movement.on in openings]
        records = read_journal(self.journal)
        observed = Observed(
            records,
            calls=self.calls,
            movements=mine,
            bank_calls=self.bank_calls,
            anchor=read_anchor(self.journal),
            is_at_rest=True,
        )
        found = [str(violation) for violation in check(observed)]
        moved = tuple(movement.kind for movement in mine)
        if moved != self.scenario.moves:
            found.append(f"I1: the bank executed {moved}, not {self.scenario.moves}")
        if any(Event.FromString(record.event).HasField("review_required") for record in records):
            found.append("L1: the charge is in review for no reason")
        try:
            verify_journal(SqliteFile(self.journal))
        except JournalRefused as refused:
            found.append(f"I10: {refused}")
        return found
