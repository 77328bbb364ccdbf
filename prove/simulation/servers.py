"""The servers of a story: started as their `__main__` starts them, killed, and asked to stop."""

import asyncio
import dataclasses
import random
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from chassis import settings
from chassis.disk import Disk as DiskPort
from chassis.settings import Address
from command_service.feed import Feed, JournalService
from command_service.journal import Journal, JournalRefused
from command_service.journal.commits import Rhythm
from command_service.journal.sqlite.file import SqliteFile
from command_service.owners import Owners
from command_service.parts import Parts
from command_service.settings import Settings
from prove.simulation.bank import Bank
from prove.simulation.disk import Disk
from prove.simulation.feeds import Feeds
from prove.simulation.host import Process, ProcessEnded
from prove.simulation.loop import PROCESS
from prove.simulation.pressure import Pressure
from prove.simulation.stage import Stage
from prove.simulation.wire import Wire
from query_service.parts import Parts as QueryParts
from query_service.settings import Settings as QuerySettings
from query_service.subscriber import FeedLost, OpenFeed
from query_service.verified import BrokenFeed
from query_service.view_file import ViewUnusable

# In so many stories one is judged by the files that its servers left, all others by what these had just before the end.
FILES_READ_EVERY = 8
# Half of the command servers' lives are over within some 130 callbacks, half of the query servers' within some 60, and a
# start takes some twenty: a process that is chosen to die is mostly still there then.
STARTING_CALLBACKS, LIVING_CALLBACKS = 30, 250
BANK_URL = "http://bank.test"
DEFAULTS = settings.read(Settings, {})
QUERY_DEFAULTS = settings.read(QuerySettings, {})


class Servers:
    """The processes that live on a disk: what starts them, and what ends them."""

    def __init__(self, stage: Stage, disk: Disk, bank: Bank, parts: "type[SimulatedParts]") -> None:
        self.stage = stage
        self.disk = disk
        self.bank = bank
        self.processes: dict[str, Process] = {}
        self.feeds = Feeds(stage, disk, lambda: self.command)
        self.is_ending = False
        """Nothing is started again: the story is over."""
        self.reads_files = stage.plan.seed % FILES_READ_EVERY == 0
        self._parts = parts
        self._dice = stage.dice
        self._starts: dict[str, int] = {}

    @property
    def command(self) -> Process:
        """The newest command server."""
        return self.processes["command"]

    @property
    def queries(self) -> list[Process]:
        """The newest of each query server."""
        return [process for kind, process in self.processes.items() if kind != "command"]

    def start(self, kind: str, files: Path | None = None) -> None:
        """Start a server on the files that the last one left."""
        stage, dice = self.stage, self._dice
        number = self._starts[kind] = self._starts.get(kind, 0) + 1
        folder = files or self.disk.folder / f"{kind}-{number}"
        folder.mkdir(exist_ok=True)
        process = Process(kind, number, folder, stage.loop)
        process.kill = partial(self.kill, process)
        process.context.run(PROCESS.set, process)
        self.processes[kind] = process
        process.strike = partial(self._strike, process)
        if dice.draws("kill_in_recovery"):
            process.ticks_left = dice.whole(1, STARTING_CALLBACKS)
        elif dice.draws("kill_anywhere"):
            process.ticks_left = dice.whole(1, LIVING_CALLBACKS)
        stage.note(process.name, "starts")
        parts = self._parts(self, process)
        process.start(
            self._serve_commands(process, parts) if kind == "command" else self._serve_queries(process, parts)
        )

    def _strike(self, process: Process) -> None:
        """Kill it at the callback that was chosen for it, and count what that turned out to be."""
        self._dice.met("kill_anywhere" if process.has_started else "kill_in_recovery")
        self.kill(process, "killed" if process.has_started else "killed while starting")

    def kill(self, process: Process, why: str) -> None:
        """End a process as `kill -9` does, and have another one started on what it left."""
        if not process.alive:
            return
        stage, dice = self.stage, self._dice
        stage.note(process.name, why)
        process.alive = False
        for rpc in process.calls:
            stage.later(dice.uniform(0.001, 0.05), rpc.answer, None)
        for link in process.links:
            link.send_end(FeedLost("the server is gone"))
        files = None if self.is_ending and not self.reads_files else self._files_left(process)
        for connection in process.connections:
            connection.close()
        for held in process.held:
            held.close()
        process.left = files
        if not self.is_ending:
            stage.later(dice.uniform(0.01, 2.0), self.start, process.kind, files)

    def _files_left(self, process: Process) -> Path:
        if process.surviving is not None:
            return process.surviving
        name = f"{process.kind}-{process.number + 1}"
        if process.kind != "command" and not self._dice.is_over:
            if self._dice.fires("view_lost"):
                self.stage.note(process.name, "its view is deleted")
                return self.disk.folder / name
            before = self.disk.folder / f"{process.folder.name}-synced"
            if before.exists():
                self._dice.met("view_power_cut")
                self.stage.note(process.name, "a power cut takes the newest batches of its view")
                return before
        return self.disk.copy(process, name)

    def end_process(self, process: Process) -> NoReturn:
        """Let a process end itself, as a server does when a commit's fate is unknown."""
        if not process.had_disk_fault:
            self.stage.broke("L1", process.name, "it ended itself without a reason")
        self.kill(process, "ends itself: a commit's fate is unknown")
        raise ProcessEnded

    async def _serve_commands(self, process: Process, parts: "SimulatedParts") -> None:
        """What `python -m command_service` builds."""
        stage, disk = self.stage, self.disk
        try:
            journal = await parts.journal()
        except JournalRefused as error:
            if not process.had_disk_fault:
                stage.broke("L1", process.name, f"it would not start: {error}")
            self.kill(process, "ends: the journal cannot be opened")
            return
        disk.note_durable(process, process.connections[-1])
        if journal.head.position != disk.durable_position:
            stage.broke("I7", process.name, f"its head is {journal.head.position}, durable was {disk.durable_position}")
        if (listed := unfinished_in(process.connections[-1])) != disk.unfinished:
            text = f"{len(listed)} charges are listed as unfinished, not {len(disk.unfinished)}"
            stage.broke("I16", process.name, text)
        assembled = parts.assemble(journal, parts.bank())
        commands, feed = parts.commands(assembled.reception), parts.feed(journal)
        process.journal, process.assembled, process.commands, process.feed = journal, assembled, commands, feed
        process.feed_service = JournalService(feed)
        found = await assembled.runner.recover()
        await assembled.reception.recall()
        process.is_up = process.has_started = True
        stage.note(process.name, "serves", f"{found} unfinished")

    async def _serve_queries(self, process: Process, parts: "SimulatedParts") -> None:
        """What `python -m query_service` builds."""
        if self._dice.draws("view_power_cut"):
            self.disk.copy(process, f"{process.folder.name}-synced")
        try:
            queries = parts.query_parts(self, process)
            view = await queries.view(queries.settings.view)
            process.waiting = queries.waiting()
            (servers,) = queries.settings.feeds
            subscriber = queries.subscriber(view, process.waiting, servers)
            process.is_up = process.has_started = True
            await subscriber.run(_set_serving)
        except BrokenFeed as error:
            self.stage.broke("I9", process.name, f"it stopped: {error}")
            self.kill(process, "ends: the feed is broken")
        except (ViewUnusable, sqlite3.Error) as error:
            # A disk that is full while the view is made: its operators start it again.
            if not self._dice.fired["view_not_written"]:
                self.stage.broke("L3", process.name, f"it would not start: {error}")
            self.kill(process, "ends: the view cannot be opened")

    async def stop(self, process: Process) -> None:
        """What the servers do when they are asked to stop."""
        loop = self.stage.loop
        process.is_up = False
        self.stage.note(process.name, "is asked to stop")
        if process.kind == "command":
            loop.call_later(0.8, process.commands.stop)
            until = loop.time() + 1.0
            while process.calls and loop.time() < until:  # noqa: ASYNC110  # the world looks from outside
                await asyncio.sleep(0.05)
            process.feed.stop()
            await process.assembled.close()
            await process.journal.close()
        self.kill(process, "has stopped")


class SimulatedQueryParts(QueryParts):
    """The product's own parts of a query server, on the story's clock, disk and network."""

    def __init__(self, servers: Servers, process: Process) -> None:
        super().__init__(dataclasses.replace(QUERY_DEFAULTS, view=process.folder / "view.db"))
        self._servers = servers
        self._process = process

    def clock(self) -> float:
        """Return the story's time."""
        return self._servers.stage.loop.time()

    def chance(self) -> random.Random:
        """Make chance that the seed decides."""
        return random.Random(f"{self._process.name} {self._servers.stage.plan.seed}")

    def disk(self) -> DiskPort:
        """Return the story's disk as this process sees it."""
        return self._servers.disk.of(self._process)

    def open_feed(self, servers: Sequence[Address]) -> OpenFeed:  # noqa: ARG002  # a story has one journal
        """Follow whatever command server is up."""
        return partial(self._servers.feeds.open, self._process.name)


class SimulatedParts(Parts):
    """The product's own parts, on the story's clock, disk and bank. A planted bug overrides one of them."""

    query_parts: type[SimulatedQueryParts] = SimulatedQueryParts
    """Of the story's query servers."""

    def __init__(self, servers: Servers, process: Process) -> None:
        plan = servers.stage.plan
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
        self._stage = servers.stage
        self._process = process

    def clock(self) -> float:
        """Return the story's time."""
        return self._stage.loop.time()

    def now(self) -> int:
        """Return what the clock on the wall says."""
        return self._stage.now()

    async def wait_until(self, at: float) -> None:
        """Wait until the story's time is this: its timers are never late."""
        await asyncio.sleep(at - self._stage.loop.time())

    def chance(self) -> random.Random:
        """Make chance that the seed decides."""
        return random.Random(f"{self._process.name} {self._stage.plan.seed}")

    def end_process(self) -> NoReturn:
        """End the simulated process."""
        self._servers.end_process(self._process)

    def disk(self) -> DiskPort:
        """Return the disk as a command server sees it."""
        return self._servers.disk.of(self._process)

    def new_id(self) -> str:
        """Name a new journal as the seed decides."""
        return self._servers.disk.new_id()

    def rhythm(self) -> Rhythm:
        """Wait for few turns: here turns cost no time, and commits are to fall between all that others do."""
        return Rhythm(turns_before_commit=self._stage.plan.seed % 3)

    def wire(self) -> Wire:
        """Connect to the simulated bank."""
        stage, servers = self._stage, self._servers
        is_durable = servers.disk.durable_tokens.__contains__
        pressure = Pressure(stage.plan.bank_calls, stage.loop.time, stage.broke)
        return Wire(servers.bank, stage.dice, stage.outside, is_durable, stage.note, pressure)

    def feed(self, journal: Journal) -> Feed:
        """Make a feed whose heartbeat the plan names."""
        return Feed(journal, Owners(journal).of, heartbeat_seconds=self._stage.plan.heartbeat_seconds)


def unfinished_in(connection: Any) -> set[bytes]:
    """The charges that a journal's table of unfinished ones lists."""
    return {key for (key,) in connection.really("SELECT charge_id FROM unfinished")}


async def _set_serving(_is_serving: bool) -> None:
    """Nobody asks for health here."""
