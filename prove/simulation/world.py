"""The world of one story: simulated processes that run the product's own code, and all that may happen to them.

The code under test is the product's: the commands' servicer, the runner, the journal on a real SQLite file, the gateway's
adapter, the feed and its servicer, the subscriber, the projection and the view. Simulated is what surrounds it, in layers
of which each knows only those before it:

    stage     chance, the clock, the loop, the notes
    disk      files, what is durable, commits that fail
    servers   processes that start, die and come back, and the feed between them
    callers   clients and their network
    world     the weather, the story from its beginning to its end, and the judging
"""

import asyncio
import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from charging.v1.common_pb2 import ChargeStatus, DeclineReason
from charging.v1.journal_pb2 import Event
from prove.judge.check import read_anchor, read_journal, read_view, records_in, view_in
from prove.judge.checker import Violation, check
from prove.judge.history import Observed, Record, Session, View
from prove.simulation.bank import APPROVED, DECLINES
from prove.simulation.callers import Callers, patient
from prove.simulation.guard import Guard, Reached
from prove.simulation.host import Connection, Process, ProcessEnded, silent
from prove.simulation.loop import Deadlock, Runaway
from prove.simulation.plan import MET, Mask, Plan, Weather
from prove.simulation.servers import unfinished_in
from prove.simulation.stage import Note

# What the product promises once faults have stopped.
REST_SECONDS = 60.0
# What comes of a late request at the bank has come by then.
AFTER_LATE_SECONDS = 1.0
# The journal looks once a second whether there is room on the disk again.
SETTLE_SECONDS = 2.5
# What a server has under way as long as it lives; beside these, the command server serves each reader of the feed.
STANDING = Counter({"GroupCommit._keep_looking": 1, "Servers._query": 1, "Subscriber._receive": 1})


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


class World(Callers):
    """One story, as it happens."""

    def __init__(self, plan: Plan, mask: Mask, folder: Path) -> None:
        super().__init__(plan, mask, folder)
        self.guard = Guard()
        self.logs: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.views: list[View] = []

    # ------------------------------------------------------------ weather
    def _begin_weather(self, event: Weather) -> None:
        if self.dice.is_over or event.kind in self.mask.kinds:
            return
        command = self.processes["command"]
        views = [process for kind, process in self.processes.items() if kind != "command"]
        match event.kind:
            case "kill_command" if command.alive:
                self.kill(command, "killed")
            case "stop_command" if command.alive and command.is_up:
                command.start(self.stop(command))
            case "kill_query":
                view = self.dice.pick(views)
                if not view.alive:
                    return
                self.kill(view, "killed")
            case "stop_query":
                view = self.dice.pick(views)
                if not view.alive or not view.is_up:
                    return
                view.start(self.stop(view))
            case "bank_down":
                self.bank.is_down = True
                self.later(event.seconds, self._end_weather, "bank_down")
            case "bank_restart":
                self.bank.lives += 1
            case "unauthorized":
                self.bank.is_unauthorized = True
                self.later(event.seconds, self._end_weather, "unauthorized")
            case "clock_jump":
                self.clock_offset += int(self.dice.uniform(-3_600e6, 3_600e6))
            case "clock_before_1970":
                self.is_clock_unset = True
                self.later(event.seconds, self._end_weather, "clock_before_1970")
            case "disk_full":
                self.disk_is_full = True
                self.later(event.seconds, self._end_weather, "disk_full")
            case _:
                return
        if event.kind not in MET:
            self.dice.fired[event.kind] += 1
        self.note("weather", event.kind, f"{event.seconds:.1f} s")

    def _end_weather(self, kind: str) -> None:
        match kind:
            case "bank_down":
                self.bank.is_down = False
            case "unauthorized":
                self.bank.is_unauthorized = False
            case "clock_before_1970":
                self.is_clock_unset = False
            case "disk_full":
                self.disk_is_full = False
        self.note("weather", kind, "ends")

    # ------------------------------------------------------------ the story
    async def story(self) -> None:
        """A time with faults, a time without, and then everything must be at rest."""
        loop, plan = self.loop, self.plan
        self.start("command")
        for number in range(1, plan.views + 1):
            self.start("query" if number == 1 else f"query{number}")
        for number, event in enumerate(plan.weather):
            if number not in self.mask.weather:
                self.at(event.at, self._begin_weather, event)
        clients = [
            loop.create_task(self.client(number, list(enumerate(ops))), context=self.outside)
            for number, ops in enumerate(plan.clients, 1)
            if number not in self.mask.clients
        ]
        await asyncio.sleep(plan.horizon_seconds)
        self.dice.is_over = True
        self.note("weather", "faults stop")
        for kind in ("bank_down", "unauthorized", "disk_full", "clock_before_1970"):
            self._end_weather(kind)
        self.bank.token_seconds = 900.0
        for process in self.processes.values():
            process.ticks_left = 0
        if not await self._come_to_rest(clients):
            return
        await asyncio.sleep(SETTLE_SECONDS)
        until = plan.horizon_seconds + REST_SECONDS
        for op in self.known_bodies.values():
            call = await self.call("auditor", patient(op))
            while call.outcome == "refused" and call.advice == "RETRY_SAME_KEY" and loop.time() < until:
                await asyncio.sleep(4.0)  # a bank that was spared is tried again within 20 s
                call = await self.call("auditor", patient(op))
            if call.outcome == "unknown" or call.status == ChargeStatus.CHARGE_STATUS_PENDING:
                self.broke("L1", f"key {op.key}", f"at rest, its charge is {call.outcome} {call.reason}")
            elif call.outcome == "refused" and call.reason != "IDEMPOTENCY_KEY_REUSED":
                self.broke("L5", f"key {op.key}", f"at rest, its charge is refused: {call.reason}")
        if (late_seconds := self.bank.expects_until - loop.time()) > 0:
            await asyncio.sleep(late_seconds + AFTER_LATE_SECONDS)
        if not await self._come_to_rest([]):
            return
        self._read_files()
        await self._count_tasks()
        self.is_ending = True
        for process in list(self.processes.values()):
            if self.dice.whole(0, 1) and process.alive:
                await process.start(self.stop(process))
            else:
                self.kill(process, "killed in the end")

    async def _count_tasks(self) -> None:
        """I16: at rest, nothing is left of what was under way but what stands for as long as a server does."""
        if any(self._left(process) for process in self.processes.values()):
            await asyncio.sleep(1.0)  # what happens in this very moment, a slow reader's end perhaps, is over then
        for process in self.processes.values():
            if left := self._left(process):
                self.broke("I16", process.name, f"at rest, these are still under way: {dict(left)}")

    def _left(self, process: Process) -> Counter[str]:
        under_way = Counter(name for life, name in self.loop.unfinished_tasks() if life is process)
        return under_way - (STANDING | Counter({"Servers._serve_feed": len(process.links)}))

    def _read_files(self) -> None:
        """What the files hold in the end, seen through the servers' own connections: that spares half of the judging."""
        for kind, process in self.processes.items():
            connection = process.connections[-1]
            assert isinstance(connection, Connection)
            if kind == "command":
                self.records = records_in(connection)
                if unfinished_in(connection):
                    self.broke("I16", process.name, "at rest, its journal lists charges as unfinished")
            else:
                self.views.append(view_in(connection))

    async def _come_to_rest(self, clients: list["asyncio.Task[None]"]) -> bool:
        until = self.loop.time() + REST_SECONDS
        while self.loop.time() < until:
            if all(client.done() for client in clients) and all(map(self._is_at_rest, self.processes.values())):
                for client in clients:
                    client.result()
                return True
            await asyncio.sleep(0.5)
        waiting = [p.name for p in self.processes.values() if not self._is_at_rest(p)]
        waiting += ["a client" for client in clients if not client.done()]
        self.broke("L1", ", ".join(waiting), f"not at rest {REST_SECONDS:.0f} s after faults stopped")
        return False

    def _is_at_rest(self, process: Process) -> bool:
        if not process.alive or not process.is_up:
            return False
        if process.kind == "command":
            return not process.runner.unfinished and not process.calls and not self.unfinished
        return bool(process.waiting.position == self.durable_position)

    def run(self) -> Told:
        """Run the story, and judge it."""
        error: BaseException | None = None
        with self._simulated(), self.guard.on(self.now):
            try:
                self.loop.run(self.story())
            except (Deadlock, Runaway, Reached, ProcessEnded) as raised:
                error = raised
        try:
            return self._judged(error)
        finally:
            self.is_ending = True
            for process in self.processes.values():
                self.kill(process, "")

    @contextmanager
    def _simulated(self) -> Any:
        before = structlog.get_config()
        structlog.configure(processors=[self._log], wrapper_class=structlog.BoundLogger, logger_factory=silent)
        try:
            yield
        finally:
            structlog.configure(**before)

    def _log(self, _logger: Any, _level: str, entry: MutableMapping[str, Any]) -> Any:
        self.logs.append(dict(entry))
        if entry["event"] == "a charge stopped on its way":
            self.broke(
                "L1", f"charge {entry['charge_id']}", f"its loop stopped: {entry['error']} {entry['lines'][-2:]}"
            )
        raise structlog.DropEvent

    # ------------------------------------------------------------ judging
    def _judged(self, error: BaseException | None) -> Told:
        found = list(self.found)
        if error is not None:
            found.append(Violation("L4" if isinstance(error, Deadlock) else "guard", "the loop", repr(error)))
        found += [Violation("guard", "the loop", f"simulated code reached {name}") for name in self.guard.reached]
        found += [Violation("loop", "a callback", text) for text in self.loop.escaped]
        command = self.processes["command"]
        journal = (command.left or command.surviving or command.folder) / "journal.db"
        records, views = self.records, self.views
        if not self.is_ending or self.reads_files:
            records = read_journal(journal) if command.journal is not None else []
            folders = [p.left or p.folder for kind, p in self.processes.items() if kind != "command" and p.waiting]
            views = [read_view(folder / "view.db") for folder in folders if self.is_ending]
        planted = [op.planted for ops in self.plan.clients for op in ops if op.planted]
        blobs = {}
        if planted:
            blobs = {"the log": repr(self.logs).encode(), "the journal's file": journal.read_bytes()}
        observed = Observed(
            records,
            calls=self.history,
            movements=self.bank.movements,
            bank_calls=self.bank.calls,
            view=views[0] if views else None,
            sessions=[*self.sessions, Session(0, self.durable)],
            anchor=read_anchor(journal),
            planted=planted,
            blobs=blobs,
            is_at_rest=self.is_ending,
        )
        found += check(observed)
        for view in views[1:]:
            found += check(Observed(records, view=view, is_at_rest=self.is_ending))
        found += self._reviews(records)
        found += [
            Violation("I9", f"position {later.position}", "recorded before the record before it")
            for earlier, later in itertools.pairwise(records)
            if later.recorded_at < earlier.recorded_at
        ]
        charges = sum(record.version == 1 for record in records)
        return Told(found, dict(self.dice.fired), self.dice.drawn, self.notes, self.loop.callbacks, charges)

    def _reviews(self, records: Any) -> list[Violation]:
        """A charge goes into review only if the bank lied about it, or its tokens kept expiring.

        Nor is it refused for good unless the bank lied about it, or knows no such card.
        """
        found, cards = [], {}
        for record in records:
            event = Event.FromString(record.event)
            if event.HasField("charge_requested"):
                cards[record.charge_id] = event.charge_requested.card.token
            if (
                event.charge_declined.reason == DeclineReason.DECLINE_REASON_BANK_REFUSED
                and record.charge_id not in self.bank.lied_about
                and cards[record.charge_id] in (*APPROVED, *DECLINES)
            ):
                where = f"charge {record.charge_id}, position {record.position}"
                found.append(Violation("L1", where, "refused for good, though the bank never refused it"))
            if event.WhichOneof("kind") != "review_required" or record.charge_id in self.bank.lied_about:
                continue
            if event.review_required.reason != 4:
                where = f"charge {record.charge_id}, position {record.position}"
                found.append(Violation("L1", where, "in review, though the bank never lied about it"))
        return found


def run_story(plan: Plan, mask: Mask, folder: Path) -> Told:
    """Tell one story in a folder of its own, which is gone afterwards."""
    folder.mkdir(parents=True)
    try:
        return World(plan, mask, folder).run()
    finally:
        shutil.rmtree(folder)
