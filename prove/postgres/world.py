"""Two command servers on a pair of PostgreSQL nodes, their clients, and the reckoning at the end."""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import Card, Money
from judge.checker import check
from judge.files import read_view
from judge.history import Call, Observed, Request
from prove.clients import Clients
from prove.report import Harness
from prove.sabotaged import sabotage
from rig.fleet import Fleet, read_records
from rig.postgres import database
from rig.postgres_pair import Pair

if TYPE_CHECKING:
    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub

AT_ONCE = 12
# At the end of a world: far more than every charge needs to come to rest, and the view to catch up.
REST_SECONDS = 90.0
# Of what the harness waits for amid a world, such as the next acknowledged charge.
PATIENT_SECONDS = 60.0
# Servers with a bug need not get there, and have done their harm by then.
BUG_SECONDS = 8.0
# A bank's call that died with its server is asked again soon.
SETTINGS = {"COMMAND_BANK_TIMEOUT_SECONDS": "2"}
IS_WAITING = "application_name = 'chargeonce' AND datname = $1 AND wait_event = 'SyncRep'"


class Roaming(Clients):
    """Clients that ask any of several servers, and another one perhaps when they ask again."""

    def __init__(self, chance: random.Random, prefix: str, stubs: "list[CommandServiceAsyncStub]") -> None:
        super().__init__(chance, prefix)
        self._stubs = stubs

    async def ask(self, _: Any, request: Request, *, is_again: bool = False) -> Call:  # noqa: ARG002  # it never waits for one
        """Ask one of them once."""
        return await super().ask(self.chance.choice(self._stubs), request)

    async def buy_until(self, stop: asyncio.Event) -> None:
        """Buy, so many at once, until stopped; return when everything that was begun is known."""

        async def one() -> None:
            while not stop.is_set():
                await self.buy(self._stubs[0])

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one())

    async def buy_alone(self, key: str) -> None:
        """Charge once, and return when it is known how that ended."""
        request = ChargeRequest(
            idempotency_key=f"{self.prefix}-{key}",
            user_id="alice",
            card=Card(token="tok_visa"),  # noqa: S106  # a card's
            amount=Money(minor_units=100, currency_code="EUR"),
        )
        await self.until_known(self._stubs[0], request)


@dataclass
class Times:
    """What was measured, in seconds."""

    gaps: list[float] = field(default_factory=list)
    """From the loss of a primary to the end of a charge that was asked for right after it."""
    claims: list[float] = field(default_factory=list)
    """From the kill of a command server until the other one drives its charges."""
    takeovers: list[float] = field(default_factory=list)
    """From the kill of a command server until all charges that it drove are at rest."""


@dataclass
class World:
    """All of it, at work."""

    pair: Pair
    fleet: Fleet
    clients: Roaming
    chance: random.Random
    harness: Harness
    times: Times
    where: str
    patient_seconds: float

    @property
    def database(self) -> str:
        """Its name at both nodes."""
        return self.fleet.url.rpartition("/")[2]

    async def more(self, count: int) -> None:
        """Wait until clients have learnt of so many more ends."""
        enough = self.clients.done + count
        await self.within(lambda: self.clients.done >= enough)

    async def within(self, is_so: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait for a state of others. Raises TimeoutError."""
        async with asyncio.timeout(self.patient_seconds):
            while True:
                found = is_so()
                if found if isinstance(found, bool) else await found:
                    return
                await asyncio.sleep(0.01)

    async def end_waiting(self, function: str) -> int:
        """Call a function of PostgreSQL on those of our connections that wait for the standby; return how many."""
        rows = await self.pair.fetch(
            f"SELECT {function}(pid) FROM pg_stat_activity WHERE {IS_WAITING}",  # noqa: S608  # fixed names
            self.database,
        )
        return len(rows)

    async def end_connections(self) -> None:
        """End all of the command servers' connections to the primary."""
        await self.pair.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chargeonce' AND datname = $1",
            self.database,
        )

    async def see_servers_run(self) -> None:
        """Note which command server has ended by itself, and start it again."""
        for number, command in enumerate(self.fleet.commands):
            if not command.is_running:
                last = command.text().rstrip().rsplit("\n", 1)[-1]
                self.harness.violations.append(f"L1: command server {number} ended by itself: {last} {self.where}")
                await command.start()


@asynccontextmanager
async def a_world(
    pair: Pair, folder: Path, seed: int, harness: Harness, times: Times, *, bug: str = ""
) -> AsyncIterator[World]:
    """Set up servers on a new database, have clients at work while the caller does harm, and judge all in the end."""
    chance = random.Random(f"postgres {seed}")
    where = f"(python -m prove.postgres --seed {seed})"
    fleet = Fleet(folder, await database(pair))
    for command in fleet.commands:
        command.environment = {**command.environment, **SETTINGS}
        if bug:
            sabotage(command, bug)
    async with fleet:
        await fleet.query.start()
        clients = Roaming(chance, f"pg-{seed}", list(fleet.stubs))
        world = World(pair, fleet, clients, chance, harness, times, where, BUG_SECONDS if bug else PATIENT_SECONDS)
        stop = asyncio.Event()
        working = asyncio.create_task(clients.buy_until(stop))
        try:
            yield world
            stop.set()
            async with asyncio.timeout(BUG_SECONDS if bug else REST_SECONDS):
                await working
        except TimeoutError:
            unknown = clients.unknown
            harness.violations.append(f"L1: {len(unknown)} keys have no outcome, {unknown[:3]} {where}")
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        await (_judge_what_is_safe(world) if bug else _judge(world))
    await pair.execute(f"DROP DATABASE {world.database} WITH (FORCE)")


async def _judge_what_is_safe(world: World) -> None:
    """Judge servers with a bug, which may have ended, or never come to rest."""
    for server in (world.fleet.query, *world.fleet.commands):
        await server.kill()
    observed = Observed(
        await read_records(world.fleet.url),
        calls=world.clients.calls,
        movements=await world.fleet.referee.movements(),
        bank_calls=await world.fleet.referee.bank_calls(),
    )
    world.harness.violations += map(str, check(observed))


async def _judge(world: World) -> None:
    fleet, harness = world.fleet, world.harness
    records = await read_records(fleet.url)
    if not await _shows(fleet, len(records)):
        harness.violations.append(f"L3: the view did not reach position {len(records)} {world.where}")
    for server in (fleet.query, *fleet.commands):
        if (status := await server.stop()) != 0:
            harness.violations.append(f"L1: {server.module} ended with {status}: {server.text()[-300:]} {world.where}")
    observed = Observed(
        await read_records(fleet.url),
        calls=world.clients.calls,
        movements=await fleet.referee.movements(),
        bank_calls=await fleet.referee.bank_calls(),
        view=read_view(fleet.view),
        is_at_rest=True,
    )
    harness.violations += [f"{violation} {world.where}" for violation in check(observed)]
    harness.faults.update(world.clients.ends)


async def _shows(fleet: Fleet, head: int) -> bool:
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        try:
            if int(str(read_view(fleet.view).checkpoint["position"])) >= head:
                return True
        except (sqlite3.Error, FileNotFoundError):
            pass  # it is being made
        await asyncio.sleep(0.05)
    return False


async def charges_driven_by(world: World, pid: int) -> list[bytes]:
    """List the charges that a command server drives, by the journal's own notes."""
    rows = await world.pair.fetch(
        "SELECT charge_id FROM chargeonce.unfinished JOIN chargeonce.server USING (server) WHERE name LIKE $1",
        f"%:{pid}",
        database=world.database,
    )
    return [row[0] for row in rows]


async def are_at_rest(world: World, charges: list[bytes]) -> bool:
    """Whether none of these charges is unfinished."""
    rows = await world.pair.fetch(
        "SELECT FROM chargeonce.unfinished WHERE charge_id = ANY($1) LIMIT 1", charges, database=world.database
    )
    return not rows
