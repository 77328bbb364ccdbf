"""The servers of a story: started as their `__main__` starts them, killed, asked to stop, and the feed between them."""

import asyncio
import dataclasses
import random
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from charging.v1.journal_pb2 import SubscribeRequest, SubscribeResponse
from chassis import settings
from chassis.refusals import Refusal
from command_service.feed import MESSAGE_EVERY_SECONDS, Feed, JournalService
from command_service.journal import Journal, JournalRefused
from command_service.journal.commits import Rhythm
from command_service.journal.sqlite.file import SqliteFile
from command_service.parts import Parts
from command_service.settings import Settings
from prove.judge.history import Session
from prove.simulation.bank import Bank, Wire
from prove.simulation.disk import Disk, DiskOf
from prove.simulation.host import Link, Process, ProcessEnded
from prove.simulation.loop import PROCESS
from prove.simulation.plan import Mask, Plan
from prove.simulation.pressure import Pressure
from query_service.subscriber import BrokenFeed, FeedLost, JournalDiverged, Subscriber
from query_service.view import View, ViewUnusable
from query_service.waiting import Waiting

# In so many stories one is judged by the files that its servers left, all others by what these had just before the end.
FILES_READ_EVERY = 8
# A waiting reader is sent a record in no time, or as late as a slow disk takes for what is queued there. Later, it was not
# woken, but found the record by chance.
WAKE_SECONDS, SLOW_WAKE_SECONDS = 0.001, 4.0
# Half of the command servers' lives are over within some 130 callbacks, half of the query servers' within some 60, and a
# start takes some twenty: a process that is chosen to die is mostly still there then.
STARTING_CALLBACKS, LIVING_CALLBACKS = 30, 250
BANK_URL = "http://bank.test"
DEFAULTS = settings.read(Settings, {})


class SimulatedParts(Parts):
    """The product's own parts, on the story's clock, disk and bank."""

    def __init__(self, servers: "Servers", process: Process) -> None:
        plan = servers.plan
        super().__init__(
            dataclasses.replace(
                DEFAULTS,
                journal=SqliteFile(process.folder / "journal.db"),
                free_bytes=1 << 20,
                bank_url=BANK_URL,
                bank_calls=plan.bank_calls,
                bank_timeout_seconds=plan.bank_timeout_seconds,
                max_unfinished=plan.max_unfinished,
                abandon_after_seconds=plan.abandon_after_seconds,
                max_calls=plan.max_calls,
            )
        )
        self._servers = servers
        self._process = process

    def clock(self) -> float:
        """Return the story's time."""
        return self._servers.loop.time()

    def now(self) -> int:
        """Return what the clock on the wall says."""
        return self._servers.now()

    def disk(self) -> DiskOf:
        """Give the story's disk, as this process sees it."""
        return self._servers.of(self._process)

    def new_id(self) -> str:
        """Name a new journal as the seed decides."""
        return self._servers.new_id()

    def rhythm(self) -> Rhythm:
        """Wait for few turns: here turns cost no time, and commits are to fall between all that others do."""
        return Rhythm(turns_before_commit=self._servers.plan.seed % 3)

    def chance(self) -> random.Random:
        """Make chance that the seed decides."""
        return random.Random(f"{self._process.name} {self._servers.plan.seed}")

    def end_process(self) -> NoReturn:
        """End the simulated process."""
        self._servers.end_process(self._process)

    def wire(self) -> Wire:
        """Connect to the simulated bank."""
        servers = self._servers
        pressure = Pressure(servers.plan.bank_calls, servers.loop.time, servers.broke)
        return Wire(
            servers.bank, servers.dice, servers.outside, servers.durable_tokens.__contains__, servers.note, pressure
        )

    def feed(self, journal: Journal) -> Feed:
        """Make a feed whose heartbeat the plan names."""
        return Feed(journal, heartbeat_seconds=self._servers.plan.heartbeat_seconds)


class Servers(Disk):
    """A disk with servers that live on it."""

    parts: type[SimulatedParts] = SimulatedParts

    def __init__(self, plan: Plan, mask: Mask, folder: Path) -> None:
        super().__init__(plan, mask, folder)
        self.bank = Bank(plan.token_seconds, self.loop.time, late_factor=plan.late_factor)
        self.processes: dict[str, Process] = {}
        self.starts: dict[str, int] = {}
        self.sessions: list[Session] = []
        self.is_ending = False
        self.reads_files = plan.seed % FILES_READ_EVERY == 0

    def start(self, kind: str, files: Path | None = None) -> None:
        """Start a server on the files that the last one left."""
        number = self.starts[kind] = self.starts.get(kind, 0) + 1
        folder = files or self.folder / f"{kind}-{number}"
        folder.mkdir(exist_ok=True)
        process = Process(kind, number, folder, self.loop)
        process.kill = partial(self.kill, process)
        process.context.run(PROCESS.set, process)
        self.processes[kind] = process
        process.strike = partial(self._strike, process)
        if self.dice.draws("kill_in_recovery"):
            process.ticks_left = self.dice.whole(1, STARTING_CALLBACKS)
        elif self.dice.draws("kill_anywhere"):
            process.ticks_left = self.dice.whole(1, LIVING_CALLBACKS)
        self.note(process.name, "starts")
        process.start(self._command(process) if kind == "command" else self._query(process))

    def _strike(self, process: Process) -> None:
        """Kill it at the callback that was chosen for it, and count what that turned out to be."""
        self.dice.met("kill_anywhere" if process.has_started else "kill_in_recovery")
        self.kill(process, "killed" if process.has_started else "killed while starting")

    def kill(self, process: Process, why: str) -> None:
        """End a process as `kill -9` does, and have another one started on what it left."""
        if not process.alive:
            return
        self.note(process.name, why)
        process.alive = False
        for rpc in process.calls:
            self.later(self.dice.uniform(0.001, 0.05), rpc.answer, None)
        for link in process.links:
            link.send_end(FeedLost("the server is gone"))
        files = None if self.is_ending and not self.reads_files else self._files_left(process)
        for connection in process.connections:
            connection.close()
        for held in process.held:
            held.close()
        process.left = files
        if not self.is_ending:
            self.later(self.dice.uniform(0.01, 2.0), self.start, process.kind, files)

    def _files_left(self, process: Process) -> Path:
        if process.surviving is not None:
            return process.surviving
        name = f"{process.kind}-{process.number + 1}"
        if process.kind != "command" and not self.dice.is_over:
            if self.dice.fires("view_lost"):
                self.note(process.name, "its view is deleted")
                return self.folder / name
            before = self.folder / f"{process.folder.name}-synced"
            if before.exists():
                self.dice.met("view_power_cut")
                self.note(process.name, "a power cut takes the newest batches of its view")
                return before
        return self.copy(process, name)

    def end_process(self, process: Process) -> NoReturn:
        """Let a process end itself, as a server does when a commit's fate is unknown."""
        if not process.had_disk_fault:
            self.broke("L1", process.name, "it ended itself without a reason")
        self.kill(process, "ends itself: a commit's fate is unknown")
        raise ProcessEnded

    async def _command(self, process: Process) -> None:
        """What `python -m command_service` builds."""
        parts = self.parts(self, process)
        try:
            journal = await parts.journal()
        except JournalRefused as error:
            if not process.had_disk_fault:
                self.broke("L1", process.name, f"it would not start: {error}")
            self.kill(process, "ends: the journal cannot be opened")
            return
        self.note_durable(process, process.connections[-1])
        if journal.head.position != self.durable_position:
            self.broke("I7", process.name, f"its head is {journal.head.position}, durable was {self.durable_position}")
        if (listed := unfinished_in(process.connections[-1])) != self.unfinished:
            self.broke(
                "I16", process.name, f"{len(listed)} charges are listed as unfinished, not {len(self.unfinished)}"
            )
        assembled = parts.assemble(journal, parts.bank())
        runner = assembled.runner
        commands, feed = parts.commands(assembled.reception), parts.feed(journal)
        process.journal, process.runner, process.commands, process.feed = journal, runner, commands, feed
        process.assembled = assembled
        process.feed_service = JournalService(feed)
        found = await runner.recover()
        process.is_up = process.has_started = True
        self.note(process.name, "serves", f"{found} unfinished")

    async def _query(self, process: Process) -> None:
        """What `python -m query_service` builds."""
        if self.dice.draws("view_power_cut"):
            self.copy(process, f"{process.folder.name}-synced")
        try:
            view = await View.open(process.folder / "view.db", disk=self.of(process))
            process.waiting = Waiting()
            chance = random.Random(f"{process.name} {self.plan.seed}")
            subscriber = Subscriber(
                view, process.waiting, partial(self._open_feed, process), clock=self.loop.time, chance=chance
            )
            process.is_up = process.has_started = True
            await subscriber.run(_set_serving)
        except BrokenFeed as error:
            self.broke("I9", process.name, f"it stopped: {error}")
            self.kill(process, "ends: the feed is broken")
        except (ViewUnusable, sqlite3.Error) as error:
            # A disk that is full while the view is made: its operators start it again.
            if not self.dice.fired["view_not_written"]:
                self.broke("L3", process.name, f"it would not start: {error}")
            self.kill(process, "ends: the view cannot be opened")

    async def stop(self, process: Process) -> None:
        """What the servers do when they are asked to stop."""
        process.is_up = False
        self.note(process.name, "is asked to stop")
        if process.kind == "command":
            self.loop.call_later(0.8, process.commands.stop)
            until = self.loop.time() + 1.0
            while process.calls and self.loop.time() < until:  # noqa: ASYNC110  # the world looks from outside
                await asyncio.sleep(0.05)
            process.feed.stop()
            await process.assembled.close()
            await process.journal.close()
        self.kill(process, "has stopped")

    # ------------------------------------------------------------ the feed's network
    async def _open_feed(
        self, reader: Process, after_position: int, journal_id: str, chain: bytes
    ) -> AsyncGenerator[SubscribeResponse, None]:
        await asyncio.sleep(self.dice.uniform(0.001, 0.01))
        server = self.processes["command"]
        if not server.is_up or not server.alive:
            raise FeedLost("nobody listens")
        self.note(reader.name, "follows", server.name, "after", after_position)
        link = Link(self, reader.name, [], sent_position=after_position)
        server.links.append(link)
        self.sessions.append(Session(after_position, link.seen))
        request = SubscribeRequest(after_position=after_position, journal_id=journal_id, chain=chain)
        link.task = server.start(self._serve_feed(server, link, request))
        try:
            while True:
                message = await link.receive()
                if isinstance(message, Exception):
                    raise message
                link.seen.extend((record.position, record.chain) for record in message.batch.records)
                yield message
        finally:
            link.is_over = True
            if not self.loop.is_closed():
                self.later(0.001, cancel, link.task)

    async def _serve_feed(self, server: Process, link: Link, request: SubscribeRequest) -> None:
        try:
            async with aclosing(server.feed_service.Subscribe(request, link)) as messages:
                waiting_since = self.loop.time()
                async for serialised in messages:
                    message = SubscribeResponse.FromString(serialised)
                    self._judge_wake(link, message, waiting_since)
                    await link.send(message)
                    if link.is_over:
                        return
                    waiting_since = self.loop.time()
        except Refusal as refused:
            is_diverged = refused.reason == "JOURNAL_DIVERGED"
            if is_diverged:
                self.broke("I10", link.reader, "it was told that the journal diverged")
            link.send_end(JournalDiverged() if is_diverged else FeedLost(refused.reason))
        finally:
            with suppress(ValueError):
                server.links.remove(link)

    def _judge_wake(self, link: Link, message: SubscribeResponse, waiting_since: float) -> None:
        """The contract, step 4: a later record comes as soon as it is durable, unless another came just before."""
        if not message.batch.records:
            return
        ready_at = max(waiting_since, self.committed_at.get(message.batch.records[0].position, 0.0))
        pause = MESSAGE_EVERY_SECONDS + self.plan.grid_seconds  # a timer fires on the grid
        allowed = pause + (SLOW_WAKE_SECONDS if self.dice.fired["slow_disk"] else WAKE_SECONDS)
        if self.loop.time() - ready_at > allowed:
            late = self.loop.time() - ready_at
            where = f"position {message.batch.records[0].position}"
            self.broke("L3", where, f"a waiting reader was sent the record {late:.1f} s late")
        link.sent_position = message.batch.records[-1].position


def unfinished_in(connection: Any) -> set[bytes]:
    """The charges that a journal's table of unfinished ones lists."""
    return {key for (key,) in connection.really("SELECT charge_id FROM unfinished")}


def cancel(task: "asyncio.Task[Any] | None") -> None:
    """Cancel a task, if there is one."""
    if task is not None:
        task.cancel()


async def _set_serving(_is_serving: bool) -> None:
    """Nobody asks for health here."""
