"""Crash points: the process dies before and after every call of a port, of every life that a charge may need.

The ports are the journal, the bank and the bank's transport; under them are the product's journal on a real file and the mock
bank over a real socket. The first life begins a charge; every later one recovers while the client asks again. A death
leaves the files as they are at that moment: the next life runs on a copy, and nothing of the dead one happens any more.

A path says at which point each life dies; the last one lives. Paths are enumerated, life by life, until a life passes its
last point. After each, the card must have been charged exactly once and the journal must say so.
"""

import asyncio
import contextlib
import itertools
import random
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx

import gateway_mock
from charging.v1.common_pb2 import ChargeStatus, DeclineReason
from charging.v1.journal_pb2 import Event
from chassis import settings
from command_service.bank import Bank
from command_service.bank.gateway import gateway_bank
from command_service.bank.transport import open_transport, target_of
from command_service.charge import Command, outcome_of
from command_service.events import Charged, ChargeDeclined
from command_service.journal import Journal, JournalRefused, Record
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import verify_journal
from command_service.parts import Assembled, Parts
from command_service.settings import Settings
from command_service.values import Card, Money, Request
from judge.checker import check
from judge.files import movements_of, read_anchor, read_journal
from judge.history import BankCall, Call, Movement, Observed, charge_id_of
from prove.deaths.writer import end_process, folder_in_memory, now
from prove.report import Harness, Say
from prove.workers import AT_ONCE, workers

# The bank's statement tells all that it ever did: a bank of its own for so many paths keeps the reading of it quick.
PATHS_A_BANK = 100
# A life without faults takes some 20 ms. One that takes so long hangs.
LIFE_SECONDS = 20.0
# Reading the authorities' certificates takes longer than a life, and this bank speaks plain HTTP.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SETTINGS = settings.read(Settings, {})
PORTS = {
    "journal": frozenset({"append", "read", "unfinished"}),
    "bank": frozenset({"perform"}),
    "transport": frozenset({"handle_async_request"}),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A card, how often its money moves, and a fault of the bank's execute step on the way, if any."""

    name: str
    card: str
    moves: int
    fault: str = ""


SCENARIOS = (
    Scenario("approved", "tok_visa", 1),
    Scenario("declined", "tok_declined", 0),
    Scenario("token expired", "tok_visa", 1, "expire_token"),
    Scenario("answer lost", "tok_visa", 1, "lose_answer"),
)


class Points:
    """The calls of the ports of one life. At one of them it dies: nothing goes on from there, or from any later one."""

    def __init__(self, dies_at: int, leave: Callable[[], None]) -> None:
        self._dies_at = dies_at
        self._leave = leave
        self.passed = 0
        self.died_at = ""
        self.died = asyncio.Event()

    async def reach(self, point: str) -> None:
        """Pass a point, or die here: then this does not return."""
        if not self.died_at:
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


class Hasty:
    """A control: a journal that acknowledges an append first and stores it with the next call."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._owed: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def append(self, charge_id: str, expected: int, events: Sequence[bytes], *, finished: bool) -> list[Record]:
        """Acknowledge."""
        while self._owed:
            owed, is_finished = self._owed.pop(0)
            await self._journal.append(*owed, finished=is_finished)
        self._owed.append(((charge_id, expected, events), finished))
        head = self._journal.head.position
        return [
            Record(head + number, charge_id, expected + number, now(), b"", event)
            for number, event in enumerate(events, 1)
        ]


@dataclass(eq=False)
class Story:
    """One charge, life after life, along one path."""

    scenario: Scenario
    bank_url: str
    folder: Path
    key: str
    hasty: bool = False
    calls: list[Call] = field(default_factory=list)
    bank_calls: list[BankCall] = field(default_factory=list)
    died_at: list[str] = field(default_factory=list)
    lives: int = 0

    @property
    def _request(self) -> Request:
        return Request(
            charge_id=charge_id_of("default", self.key),
            tenant="default",
            idempotency_key=self.key,
            actor="client",
            user_id="alice",
            card=Card(self.scenario.card, "visa", "4242"),
            amount=Money(1250, "EUR"),
        )

    @property
    def journal(self) -> Path:
        """The journal's file in the newest life."""
        return self.folder / str(self.lives) / "journal.db"

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
        if request.method == "POST" and parts[-1] == "execute":
            stored = [Event.FromString(record.event).token_issued.token for record in read_journal(self.journal)]
            self.bank_calls.append(BankCall("execute", token=parts[-2], token_was_durable=parts[-2] in stored))
        elif request.method == "POST":
            self.bank_calls.append(BankCall("token", self._request.charge_id))

    async def live(self, dies_at: int) -> int:
        """Live until the charge is at rest and the client knows, or until death. Returns how many points were passed."""
        self.journal.parent.mkdir(exist_ok=True)
        points = Points(dies_at, self._leave)
        transport = open_transport(max_connections=8, verify=NO_TLS)
        journal = await GroupCommit.open(await SqliteFile(self.journal).open(), now=now, end_process=end_process)
        beneath = cast("Journal", Hasty(journal)) if self.hasty else journal
        seen = cast("httpx.AsyncBaseTransport", Port("transport", transport, points, self._sees))
        bank = Port("bank", gateway_bank(self.bank_url, seen, 10.0), points)
        seamed = cast("Journal", Port("journal", beneath, points))
        assembled = Parts(SETTINGS).assemble(seamed, cast("Bank", bank))
        living = asyncio.create_task(self._until_known(assembled))
        dying = asyncio.create_task(points.died.wait())
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

    async def _until_known(self, assembled: Assembled) -> None:
        await assembled.runner.recover()
        accepted = await assembled.reception.accept(Command(self._request))
        if accepted.run is not None:
            await accepted.run.ended
        rest = outcome_of(accepted.state, self.key)
        assert rest is not None, f"the charge stopped on its way: {accepted.state}"
        outcome = rest.outcome
        status, transaction, reason = ChargeStatus.CHARGE_STATUS_IN_REVIEW, "", 0
        if isinstance(outcome, Charged):
            status, transaction = ChargeStatus.CHARGE_STATUS_CHARGED, outcome.transaction_id
        elif isinstance(outcome, ChargeDeclined):
            status, reason = ChargeStatus.CHARGE_STATUS_DECLINED, DeclineReason.DECLINE_REASON_CARD_DECLINED
        answer: dict[str, Any] = {
            "charge_id": self._request.charge_id,
            "status": status,
            "transaction_id": transaction,
            "decline_reason": reason,
            "position": rest.position,
        }
        self.calls.append(Call(self.key, "alice", self.scenario.card, 1250, "EUR", "ok", **answer))

    def broken(self, movements: Sequence[Movement]) -> list[str]:
        """What does not hold, once the last life is over."""
        mine = [movement for movement in movements if movement.reference == self._request.charge_id]
        observed = Observed(
            read_journal(self.journal),
            calls=self.calls,
            movements=mine,
            bank_calls=self.bank_calls,
            anchor=read_anchor(self.journal),
            is_at_rest=True,
        )
        found = [str(violation) for violation in check(observed)]
        if len(mine) != self.scenario.moves:
            found.append(f"I1: the money moved {len(mine)} times")
        if self.calls and self.calls[-1].status == ChargeStatus.CHARGE_STATUS_IN_REVIEW:
            found.append("L1: the charge is in review for no reason")
        try:
            verify_journal(SqliteFile(self.journal))
        except JournalRefused as refused:
            found.append(f"I10: {refused}")
        return found


class Walk:
    """Walks paths, and hands what came of them to a harness."""

    def __init__(self, harness: Harness, folder: Path, *, hasty: bool = False) -> None:
        self._harness = harness
        self._folder = folder
        self._hasty = hasty
        self._numbers = itertools.count(1)
        self._bank = contextlib.AsyncExitStack()
        self._address = ""

    async def __aenter__(self) -> "Walk":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bank.aclose()

    async def walk(self, scenario: Scenario, deaths: Sequence[int]) -> bool:
        """Walk one path. False if its last life, meant to die, passed its last point instead."""
        number = next(self._numbers)
        if number % PATHS_A_BANK == 1:
            await self._bank.aclose()
            self._address = await self._bank.enter_async_context(
                gateway_mock.serve("127.0.0.1:0", self._folder / f"bank-{number}.db")
            )
        folder = self._folder / str(number)
        folder.mkdir()
        path = Story(scenario, f"http://{self._address}", folder, f"path-{number:08}", self._hasty)
        where = f"{scenario.name}, deaths at {list(deaths)}"
        try:
            async with httpx.AsyncClient(base_url=path.bank_url, trust_env=False, verify=NO_TLS) as referee:
                if scenario.fault:
                    order = {"on": "execute", "fault": scenario.fault, "reference": charge_id_of("default", path.key)}
                    (await referee.post("/faults", json=order)).raise_for_status()
                for dies_at in deaths:
                    await path.live(dies_at)
                if len(path.died_at) == len(deaths):
                    await path.live(0)
                movements = movements_of((await referee.get("/statement")).json())
                await referee.delete("/faults")
            self._harness.violations += [f"{text} ({where}: {path.died_at})" for text in path.broken(movements)]
        except Exception as error:  # whatever it is, the promise was not kept on this path
            self._harness.violations.append(f"{type(error).__name__}: {error} ({where}: {path.died_at})")
        shutil.rmtree(folder)
        self._harness.tried += 1
        self._harness.faults.update(f"died {point}" for point in path.died_at)
        return len(path.died_at) == len(deaths)

    async def paths(self, scenario: Scenario, depth: int, begin: Sequence[int] = ()) -> AsyncIterator[Sequence[int]]:
        """Walk all paths with so many deaths, yielding each that was walked."""
        for dies_at in itertools.count(1):
            deaths = (*begin, dies_at)
            is_there = await self.walk(scenario, deaths)
            yield deaths
            if not is_there:
                return
            if len(deaths) < depth:
                async for deeper in self.paths(scenario, depth, deaths):
                    yield deeper


@dataclass(frozen=True, slots=True)
class Grown:
    """The paths that are longer than one by a death, as walked by one process, and those of them that can grow on."""

    walked: Harness
    longer: list[tuple[int, ...]]


def grow(folder: Path, scenario: Scenario, begin: tuple[int, ...], *, hasty: bool = False) -> Grown:
    """Walk a path on to a death at each point of its next life, until that life passes its last point."""

    async def walk_all() -> Grown:
        grown = Grown(Harness("part", "paths"), [])
        async with Walk(grown.walked, Path(tempfile.mkdtemp(dir=folder)), hasty=hasty) as walk:
            async for deaths in walk.paths(scenario, len(begin) + 1, begin):
                grown.longer.append(tuple(deaths))
        # In the last of them nobody died, so nothing comes after it.
        return Grown(grown.walked, grown.longer[:-1])

    return asyncio.run(walk_all())


def run(seconds: float, say: Say, *, deepest: int = 3, seed: int = 0) -> Harness:
    """Walk all paths with one death, then with two, then with three, until all are walked or the time is up.

    Those with one death are walked however little time there is; of a depth that is not walked in full, what is walked is a
    sample: its paths are begun in no order.
    """
    harness = Harness("crash points", "paths")
    harness.knows(
        f"died {when} {name}.{call}" for name in PORTS for call in PORTS[name] for when in ("before", "after")
    )
    until, chance = time.monotonic() + seconds, random.Random(seed)
    with folder_in_memory() as folder, workers() as pool:
        control = pool.submit(grow, folder, SCENARIOS[0], (), hasty=True)
        begins: list[tuple[Scenario, tuple[int, ...]]] = [(scenario, ()) for scenario in SCENARIOS]
        for depth in range(1, deepest + 1):
            chance.shuffle(begins)
            growing: dict[Future[Grown], Scenario] = {}
            waiting, longer, before = list(begins), list[tuple[Scenario, tuple[int, ...]]](), harness.tried
            while waiting or growing:
                # No more than are at work and next, so that it can stop.
                while waiting and len(growing) < AT_ONCE and (depth == 1 or time.monotonic() < until):
                    scenario, begin = waiting.pop()
                    growing[pool.submit(grow, folder, scenario, begin)] = scenario
                if not growing:
                    break
                for done in wait(growing, return_when=FIRST_COMPLETED).done:
                    scenario, grown = growing.pop(done), done.result()
                    harness.add(grown.walked)
                    longer += [(scenario, path) for path in grown.longer]
                say(f"crash points: {harness.tried} paths, {len(harness.violations)} violations")
            if waiting:
                tried = f"{len(begins) - len(waiting)} of {len(begins)}"
                walked = f"{harness.tried - before} paths were walked, on from {tried} chosen at random"
                harness.skipped[f"all paths of {depth} deaths"] = f"the time was up: {walked}"
                break
            harness.enumerated[f"paths of {depth} deaths"] = harness.tried - before
            begins = longer
        harness.controls["a journal that acknowledges before it stores"] = control.result().walked.found("I3")
    return harness


if __name__ == "__main__":
    print(run(float(sys.argv[1]), lambda _: None).as_json())
