"""The world of one story: simulated processes that run the product's own code, and the harm that is done to them.

The code under test is the product's: the commands' servicer, the runner, the journal on a real SQLite file or above a
simulated database, the gateway's adapter, the feed and its servicer, the subscriber, the projection and the view. Its
surroundings are simulated, by parts of which each is given those before it and knows no other:

    stage     chance, the clock, the loop, the notes
    banks     their transactions, and their answers with their faults
    durable   what of the journal can no longer be lost
    disk      files, commits that fail
    database  in some stories: two nodes of a PostgreSQL, and the connections to them
    outages   what befalls these nodes, and what their operators do
    servers   processes that start, die and come back, and the feeds between them
    network   between clients, operators and the command servers
    callers   clients
    people    operators at the desk, in some stories: right and wrong, alone and at once
    customers the people whose step a bank wants
    sky       the weather: harm that begins at a time and ends
    judging   the files at the end, and the invariants that broke
    world     the story, from its beginning to its end
"""

import asyncio
import hashlib
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from judge.history import Call, Violation
from prove.simulation.banks import banks_of
from prove.simulation.callers import FOR_GOOD, UNFIT, Callers, is_open
from prove.simulation.customers import Customers
from prove.simulation.database import Database
from prove.simulation.disk import Disk
from prove.simulation.guard import Guard, Reached
from prove.simulation.host import Process, ProcessEnded, silent
from prove.simulation.judging import Judging
from prove.simulation.loop import Deadlock, Runaway
from prove.simulation.network import Network
from prove.simulation.outages import Outages
from prove.simulation.overview import Overview
from prove.simulation.people import People
from prove.simulation.plan import Mask, Plan
from prove.simulation.servers import Servers, SimulatedParts
from prove.simulation.stage import Note, Stage
from prove.simulation.weather import Sky

# What comes of a late request at the bank has come by then.
AFTER_LATE_SECONDS = 1.0
# The journal looks once a second whether there is room on the disk again.
SETTLE_SECONDS = 2.5


@dataclass(slots=True)
class Told:
    """How a story ended: what broke, what fired, and what happened."""

    violations: list[Violation]
    fired: dict[str, int]
    drawn: dict[str, int]
    notes: list[Note]
    callbacks: int
    charges: int

    def digest(self) -> str:
        """A hash of every step with its time: the same in every run of a story. Only a sample's is looked at."""
        shown = repr([(f"{when:.6f}", who, what) for when, who, what in self.notes]).encode()
        return hashlib.sha256(shown + repr(self.callbacks).encode()).hexdigest()


class World:
    """One story, as it happens. The servers are made of `parts`."""

    def __init__(self, plan: Plan, mask: Mask, folder: Path, parts: type[SimulatedParts]) -> None:
        self._plan = plan
        self._guard = Guard()
        self._logs: list[dict[str, Any]] = []
        self._stage = Stage(plan, mask)
        self._banks = banks_of(plan, self._stage.loop.time)
        self._disk = Disk(self._stage, folder)
        database = Database(self._stage, self._disk.durable, self._disk.new_id()) if plan.servers else None
        overview = Overview(self._stage) if plan.operators else None
        self._servers = Servers(self._stage, self._disk, self._banks, database, parts, overview)
        network = Network(self._stage, self._disk, self._servers)
        self._callers = Callers(self._stage, network)
        self._people: People | None = None
        if overview is not None:
            self._disk.durable.hears = overview.hear
            self._people = People(self._stage, self._banks, network, overview)
        outages = Outages(self._stage, database) if database is not None else None
        self._sky = Sky(self._stage, self._banks, self._disk, self._servers, outages)
        Customers(self._stage, self._banks)
        for bank in self._banks.values():
            for lost in plan.lost:
                bank.recall(lost)
            bank.forgot_key = partial(self._stage.dice.met, "key_forgotten")
        self._judging = Judging(self._stage, self._banks, self._disk, self._servers, self._callers, self._people)

    def run(self) -> Told:
        """Run the story, and judge it."""
        stage, found = self._stage, []
        with self._logging(), self._guard.on(stage.now):
            try:
                stage.loop.run(self._story())
            except (Deadlock, Runaway, Reached, ProcessEnded) as error:
                found.append(Violation("L4" if isinstance(error, Deadlock) else "guard", "the loop", repr(error)))
        found += [Violation("guard", "the loop", f"simulated code reached {name}") for name in self._guard.reached]
        found += [Violation("loop", "a callback", text) for text in stage.loop.escaped]
        try:
            found = [*stage.found, *found, *self._judging.violations(self._logs)]
            fired, drawn = dict(stage.dice.fired), stage.dice.drawn
            return Told(found, fired, drawn, stage.notes, stage.loop.callbacks, self._judging.charges)
        finally:
            self._servers.is_ending = True
            for process in self._servers.processes.values():
                self._servers.kill(process, "")

    async def _story(self) -> None:
        """A time with faults, a time without, and then everything must be at rest."""
        stage, servers, plan, mask = self._stage, self._servers, self._plan, self._stage.mask
        for number in range(1, max(1, plan.servers) + 1):
            servers.start("command" if number == 1 else f"command{number}")
        for number in range(1, plan.views + 1):
            servers.start("query" if number == 1 else f"query{number}")
        for number, event in enumerate(plan.weather):
            if number not in mask.weather:
                stage.at(event.at, self._sky.begin, event)
        clients = [
            stage.loop.create_task(self._callers.client(number, list(enumerate(ops))), context=stage.outside)
            for number, ops in enumerate(plan.clients, 1)
            if number not in mask.clients
        ]
        operators = []
        if (people := self._people) is not None:
            operators = [
                stage.loop.create_task(people.operator(number), context=stage.outside)
                for number in range(plan.operators)
                if number not in mask.operators
            ]
        await asyncio.sleep(plan.horizon_seconds)
        self._sky.clear()
        if people is not None:
            await asyncio.gather(*operators)
            await people.let_all_go()
        if not await self._comes_to_rest(clients):
            return
        await asyncio.sleep(SETTLE_SECONDS)
        if people is not None and plan.settles:
            await people.settle()
            if not await self._comes_to_rest([]):
                return
        await self._audit()
        expects_until = max(bank.expects_until for bank in self._banks.values())
        if (late_seconds := expects_until - stage.loop.time()) > 0:
            await asyncio.sleep(late_seconds + AFTER_LATE_SECONDS)
        if not await self._comes_to_rest([]):
            return
        self._judging.read_files()
        await self._judging.count_tasks()
        servers.is_ending = True
        for process in list(servers.processes.values()):
            if stage.dice.whole(0, 1) and process.alive:
                await process.start(servers.stop(process))
            else:
                servers.kill(process, "killed in the end")

    async def _audit(self) -> None:
        """Ask again for everything that was ever asked for: by now each has an outcome, and says so."""
        loop, until = self._stage.loop, self._plan.horizon_seconds + self._plan.rest_seconds
        for op in self._callers.known_bodies:
            call = await self._callers.call("auditor", op)
            while (is_open(call) or _is_refused_for_now(call)) and loop.time() < until:
                await asyncio.sleep(
                    4.0
                )  # a bank that was spared is tried again within 20 s, and a customer takes as long
                call = await self._callers.call("auditor", op)
            if call.outcome == "unknown" or is_open(call):
                self._stage.broke("L1", f"key {op.key}", f"at rest, it is {call.outcome} {call.reason}")
            elif call.outcome == "refused" and call.reason not in (*FOR_GOOD, "CHARGE_NOT_FOUND"):
                self._stage.broke("L5", f"key {op.key}", f"at rest, it is refused: {call.reason}")
            elif call.reason == "CHARGE_NOT_FOUND" and self._callers.knows(call.charge_id):
                self._stage.broke("I15", f"key {op.key}", "its charge is not found, and another call was answered")
            elif call.reason in UNFIT and self._judging.allows(call):
                self._stage.broke("I15", f"key {op.key}", f"refused as {call.reason}, and its charge's book allows it")

    async def _comes_to_rest(self, clients: list["asyncio.Task[None]"]) -> bool:
        """Wait for all clients and servers; False if they are not at rest in time, which is told as broken."""
        loop, processes = self._stage.loop, self._servers.processes
        until = loop.time() + self._plan.rest_seconds
        while loop.time() < until:
            if all(client.done() for client in clients) and not any(map(self._unrest, processes.values())):
                for client in clients:
                    client.result()
                return True
            await asyncio.sleep(0.5)
        waiting = [f"{process.name} ({why})" for process in processes.values() if (why := self._unrest(process))]
        waiting += ["a client" for client in clients if not client.done()]
        self._stage.broke("L1", ", ".join(waiting), f"not at rest {self._plan.rest_seconds:.0f} s after faults stopped")
        return False

    def _unrest(self, process: Process) -> str:
        """What keeps a process from being at rest; "" for nothing."""
        if not process.alive or not process.is_up:
            return "it does not serve"
        durable = self._disk.durable
        if not process.serves_commands:
            is_behind = process.waiting.position != durable.position
            return f"at {process.waiting.position}, the journal ends at {durable.position}" if is_behind else ""
        if runs := process.assembled.runner.runs():
            return f"{len(runs)} charges are on their way, such as {runs[0].snapshot.charge_id}"
        if process.calls or durable.unfinished:
            return f"{len(process.calls)} calls are not answered, {len(durable.unfinished)} charges are unfinished"
        return ""

    # ------------------------------------------------------------ the servers' log
    @contextmanager
    def _logging(self) -> Iterator[None]:
        before = structlog.get_config()
        structlog.configure(processors=[self._log], wrapper_class=structlog.BoundLogger, logger_factory=silent)
        try:
            yield
        finally:
            structlog.configure(**before)

    def _log(self, _logger: Any, _level: str, entry: MutableMapping[str, Any]) -> Any:
        self._logs.append(dict(entry))
        if entry["event"] == "a charge stopped on its way":
            text = f"its loop stopped: {entry['error']} {entry['lines'][-2:]}"
            self._stage.broke("L1", f"charge {entry['charge_id']}", text)
        raise structlog.DropEvent


def _is_refused_for_now(call: Call) -> bool:
    """Whether it is worth asking again."""
    return call.outcome == "refused" and call.advice == "RETRY_SAME_KEY"


def run_story(plan: Plan, mask: Mask, folder: Path, parts: type[SimulatedParts] = SimulatedParts) -> Told:
    """Tell one story in a folder of its own, which is gone afterwards."""
    folder.mkdir(parents=True)
    try:
        return World(plan, mask, folder, parts).run()
    finally:
        shutil.rmtree(folder)
