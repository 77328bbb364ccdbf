"""The servers of a story: started as their `__main__` starts them, killed, and asked to stop."""

import asyncio
import dataclasses
import random
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, cast

from chassis import settings
from chassis.disk import Disk as DiskPort
from chassis.settings import Address
from command_service.bank import Bank as AnyBank
from command_service.feed import Feed, JournalService
from command_service.journal import Journal, JournalRefused
from command_service.journal.commits import Rhythm
from command_service.journal.postgres.session import Node
from command_service.journal.postgres.store import PostgresStore
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Store
from command_service.owners import Owners
from command_service.settings import Settings
from prove.database_bugs import WithoutLeases
from prove.simulation.bank import Bank
from prove.simulation.database import Database
from prove.simulation.disk import Disk
from prove.simulation.feeds import Feeds
from prove.simulation.host import Connection, Process, ProcessEnded
from prove.simulation.loop import PROCESS
from prove.simulation.overview import Overview
from prove.simulation.stage import Stage
from prove.simulation.ways import BANK_URL, WaysToBanks
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
DEFAULTS = settings.read(Settings, {})
# What a server says that finds no database in time: its operators start it again.
NO_PRIMARY = "no primary of the database has served"
QUERY_DEFAULTS = settings.read(QuerySettings, {})


class Servers:
    """The processes that live on a disk: what starts them, and what ends them."""

    def __init__(
        self,
        stage: Stage,
        disk: Disk,
        banks: Mapping[str, Bank],
        database: Database | None,
        parts: "type[SimulatedParts]",
        overview: Overview | None,
    ) -> None:
        """With a database the command servers share the journal in it; without one there is one, with a file.

        `overview` is the operators', if there are any.
        """
        self.overview = overview
        self.stage = stage
        self.disk = disk
        self.banks = banks
        self.database = database
        self.processes: dict[str, Process] = {}
        self.feeds = Feeds(stage, disk.durable, self.a_command)
        self.is_ending = False
        """Nothing is started again: the story is over."""
        self.reads_files = stage.plan.seed % FILES_READ_EVERY == 0
        self._parts = parts
        self._dice = stage.dice
        self._starts: dict[str, int] = {}

    def a_command(self) -> Process:
        """The newest of the command servers; of several, any one."""
        commands = [process for process in self.processes.values() if process.serves_commands]
        return commands[0] if len(commands) == 1 else cast("Process", self._dice.pick(commands))

    @property
    def queries(self) -> list[Process]:
        """The newest of each query server."""
        return [process for process in self.processes.values() if not process.serves_commands]

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
            self._serve_commands(process, parts) if process.serves_commands else self._serve_queries(process, parts)
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
        for session in process.sessions:
            session.end()
        for held in process.held:
            held.close()
        process.left = files
        if not self.is_ending:
            stage.later(dice.uniform(0.01, 2.0), self.start, process.kind, files)

    def _files_left(self, process: Process) -> Path:
        if process.surviving is not None:
            return process.surviving
        name = f"{process.kind}-{process.number + 1}"
        if not process.serves_commands and not self._dice.is_over:
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
            is_away = self.database is not None and NO_PRIMARY in str(error)
            if not process.had_disk_fault and not is_away:
                stage.broke("L1", process.name, f"it would not start: {error}")
            self.kill(process, "ends: the journal cannot be opened")
            return
        if self.database is None:
            disk.note_durable(process, process.connections[-1])
        head, durable = journal.head.position, disk.durable.position
        if head > durable or (head < durable and self.database is None):  # others may have stored more meanwhile
            stage.broke("I7", process.name, f"its head is {head}, durable was {durable}")
        if self.database is None and (listed := self.unfinished()) != disk.durable.unfinished:
            text = f"{len(listed)} charges are listed as unfinished, not {len(disk.durable.unfinished)}"
            stage.broke("I16", process.name, text)
        assembled = parts.assemble(journal, parts.banks())
        commands, feed = parts.commands(assembled.reception), parts.feed(journal)
        process.journal, process.assembled, process.commands, process.feed = journal, assembled, commands, feed
        process.feed_service = JournalService(feed)
        if self.overview is not None:
            process.operators = parts.operators(journal, assembled)
            process.has_answered = partial(self.overview.note_answer, process)
        found = await assembled.runner.recover()
        await assembled.reception.recall()
        process.is_up = process.has_started = True
        stage.note(process.name, "serves", f"{found} unfinished")
        await assembled.runner.keep_up()

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

    # ------------------------------------------------------------ the journal
    def unfinished(self) -> set[bytes]:
        """The charges that the journal lists as unfinished."""
        if self.database is not None:
            return set(self.database.primary.tables.unfinished)
        return {key for (key,) in newest(self.a_command()).really("SELECT charge_id FROM unfinished")}

    async def stop(self, process: Process) -> None:
        """What the servers do when they are asked to stop."""
        loop = self.stage.loop
        process.is_up = False
        self.stage.note(process.name, "is asked to stop")
        if process.serves_commands:
            loop.call_later(0.8, process.stop_services)
            until = loop.time() + 1.0
            while process.calls and loop.time() < until:  # noqa: ASYNC110  # the world looks from outside
                await asyncio.sleep(0.05)
            process.feed.stop()
            if process.operators is not None:
                await process.operators.close()
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


class SimulatedParts(WaysToBanks):
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
            ),
            servers.stage,
            servers.banks,
            servers.disk.durable.tokens.__contains__,
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

    def banks(self) -> Mapping[str, AnyBank]:
        """Make the adapters of all banks; watched, where operators hold charges back."""
        made, overview = super().banks(), self._servers.overview
        if overview is None:
            return made
        return {name: overview.watch(bank, self._process) for name, bank in made.items()}

    def nodes(self) -> Sequence[Node]:
        """The nodes of the database that all share; none if the journal is in the process's file."""
        database = self._servers.database
        return [] if database is None else database.nodes_for(self._process)

    async def journal(self) -> Journal:
        """Open the journal; in some stories it came from a backup."""
        journal = await super().journal()
        journal.restored |= self._stage.plan.is_restored
        return journal

    async def store(self) -> Store:
        """Open the store."""
        nodes, name = self.nodes(), self._process.name
        if not nodes:
            return await super().store()
        store = await PostgresStore.open(nodes, name=name, new_id=self.new_id, chance=self.chance())
        return WithoutLeases(store, self.now).as_one() if self._stage.plan.ignores_leases else store

    def rhythm(self) -> Rhythm:
        """Wait for few turns: here turns cost no time, and commits are to fall between all that others do."""
        return Rhythm(turns_before_commit=self._stage.plan.seed % 3)

    def feed(self, journal: Journal) -> Feed:
        """Make a feed whose heartbeat the plan names."""
        return Feed(journal, Owners(journal).of, heartbeat_seconds=self._stage.plan.heartbeat_seconds)


def newest(process: Process) -> Connection:
    """The newest connection of a process to its file."""
    connection = process.connections[-1]
    assert isinstance(connection, Connection)
    return connection


async def _set_serving(_is_serving: bool) -> None:
    """Nobody asks for health here."""
