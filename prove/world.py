"""The world of one story: simulated processes that run the product's own code, and all that may happen to them.

The code under test is the product's: the commands' servicer, the runner, the journal on a real SQLite file, the gateway's
adapter, the feed and its servicer, the subscriber, the projection and the view. Simulated is what surrounds it: the
clients, the network, the bank, the disk's moods, the clock, and the processes that die and come back.

A killed process stops between two callbacks; whatever its files hold then is copied, WAL and all, and the next one starts
on the copy. So there is no clean-up that a real kill would not do either.
"""

import asyncio
import contextvars
import hashlib
import os
import random
import shutil
import sqlite3
import types
import uuid
from collections.abc import AsyncGenerator, Callable, MutableMapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog

import command_service.journal.sqlite
import command_service.journal.upkeep
import prove.checker
import query_service.view
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus
from charging.v1.journal_pb2 import Event, SubscribeRequest, SubscribeResponse
from chassis.server import Refusal
from command_service.api import CommandService
from command_service.bank.gateway import GatewayBank
from command_service.feed import Feed, JournalService
from command_service.journal import JournalRefused
from command_service.journal.sqlite import SqliteJournal
from command_service.runner import Limits, Runner
from prove.bank import Bank, Wire
from prove.check import read_anchor, read_journal, read_view, records_in, view_in
from prove.checker import Call, Observed, Session, Violation, check
from prove.host import Connection, Link, Process, ProcessEnded, Rpc, System, silent
from prove.loop import PROCESS, Deadlock, Guard, Reached, Runaway, VirtualLoop, patched
from prove.plan import Dice, Mask, Op, Plan, Weather
from query_service.subscriber import BrokenFeed, FeedLost, JournalDiverged, Subscriber
from query_service.view import View, ViewUnusable
from query_service.waiting import Waiting

# What the product promises once faults have stopped.
REST_SECONDS = 60.0
# What comes of a late request at the bank has come by then.
AFTER_LATE_SECONDS = 1.0
# In so many stories one is judged by the files that its servers left, all others by what these had just before the end.
FILES_READ_EVERY = 8
# The journal looks once a second whether there is room on the disk again.
SETTLE_SECONDS = 2.5
# A waiting reader is sent a record in no time, or as late as a slow disk takes for what is queued there. Later, it was not
# woken, but found the record by chance.
WAKE_SECONDS, SLOW_WAKE_SECONDS = 0.001, 4.0
EPOCH = 1_790_000_000_000_000
BANK_URL = "http://bank.test"
AT_REST = frozenset({"charged", "charge_declined", "review_required", "charge_abandoned"})
UNKNOWN_REASONS = frozenset({"OUTCOME_UNKNOWN", "SERVER_STOPPING", "UNEXPECTED"})
SELECT_NEW = "SELECT position, charge_id, chain, event FROM record WHERE position > ? ORDER BY position"

_connect = sqlite3.connect
Note = tuple[float, str, tuple[object, ...]]


@dataclass(slots=True)
class Told:
    """How a story ended: what broke, what fired, and what happened."""

    violations: list[Violation]
    fired: dict[str, int]
    notes: list[Note]
    callbacks: int
    charges: int

    def digest(self) -> str:
        """A hash of every step with its time: the same in every run of a story. Only a sample's is looked at."""
        shown = repr([(f"{when:.6f}", who, what) for when, who, what in self.notes]).encode()
        return hashlib.sha256(shown + repr(self.callbacks).encode()).hexdigest()


class World:
    """One story, as it happens."""

    def __init__(self, plan: Plan, mask: Mask, folder: Path) -> None:
        self.plan = plan
        self.mask = mask
        self.folder = folder
        self.dice = Dice(plan, mask)
        order = random.Random(f"order {plan.seed}") if plan.shuffles else None
        self.loop = VirtualLoop(order, self._disk_delay, plan.grid_seconds)
        self.outside = contextvars.Context()
        self.notes: list[Note] = []
        self.logs: list[dict[str, Any]] = []
        self.found: list[Violation] = []
        self.history: list[Call] = []
        self.sessions: list[Session] = []
        self.durable: list[tuple[int, bytes]] = []
        self.durable_tokens: set[str] = set()
        self.unfinished: set[bytes] = set()
        self.committed_at: dict[int, float] = {}
        self.clock_offset = 0
        self.disk_is_full = False
        self.processes: dict[str, Process] = {}
        self.starts: dict[str, int] = {}
        self.is_ending = False
        self.reads_files = plan.seed % FILES_READ_EVERY == 0
        self.records: list[prove.checker.Record] = []
        self.views: list[prove.checker.View] = []
        self.bank = Bank(plan.token_seconds, self.loop.time)
        self.guard = Guard()
        self.system = System()
        self.known_bodies: dict[tuple[object, ...], Op] = {}

    # ------------------------------------------------------------ telling
    def note(self, who: str, *what: object) -> None:
        """Tell the story."""
        self.notes.append((self.loop.time(), who, what))

    def broke(self, invariant: str, where: str, text: str) -> None:
        """Something that cannot be seen from the outside afterwards."""
        self.found.append(Violation(invariant, where, text))
        self.note("judge", invariant, where, text)

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Let the world do something at a time."""
        self.loop.call_at(when, what, *args, context=self.outside)

    def later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        """Let the world do something later."""
        self.loop.call_later(seconds, what, *args, context=self.outside)

    def now(self) -> int:
        """What the clock on the wall says: microseconds since 1970, and it may jump."""
        return EPOCH + int(self.loop.time() * 1_000_000) + self.clock_offset

    # ------------------------------------------------------------ the disk
    def _disk_delay(self) -> float:
        return self.dice.uniform(0.01, 1.0) if self.dice.fires("slow_disk") else 0.0

    def connect(self, database: str, **options: Any) -> sqlite3.Connection:
        """Open a connection for the process that asks."""
        process = PROCESS.get()
        # With this way to the files SQLite keeps its locks and the WAL's index in memory: all who open them are in here.
        connection = _connect(f"{database}&vfs=unix-excl", factory=Connection, cached_statements=64, **options)
        assert isinstance(process, Process)
        assert isinstance(connection, Connection)
        process.connections.append(connection)
        if "mode=rwc" in database:
            connection.process = process
        return connection

    def commit(self, process: Process, connection: Connection) -> sqlite3.Cursor:
        """Commit, unless the disk has other plans."""
        dice = self.dice
        if dice.fires("kill_before_commit"):
            self.kill(process, "killed right before a commit")
            raise ProcessEnded
        if process.kind != "command":
            if dice.fires("view_not_written"):
                connection.really("ROLLBACK")
                raise _error("database or disk is full", sqlite3.SQLITE_FULL)
            return self._committed(process, connection)
        if dice.fires("eio_lost"):
            # The sync fails: what was written reads back from the cache, and is gone after a power cut.
            process.had_disk_fault = True
            process.surviving = process.surviving or self._copy(process, f"{process.folder.name}-synced")
            connection.really("COMMIT")
            self.note(process.name, "a commit's sync fails: it reads back, but is not on disk")
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))
        if dice.fires("eio_kept"):
            process.had_disk_fault = True
            connection.really("COMMIT")
            self._note_durable(process, connection)
            self.note(process.name, "a commit fails, and is on disk all the same")
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR | (4 << 8))
        if self.disk_is_full or dice.fires("disk_full_once"):
            process.had_disk_fault = True
            connection.really("ROLLBACK")
            self.note(process.name, "a commit finds the disk full")
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        return self._committed(process, connection)

    def _committed(self, process: Process, connection: Connection) -> sqlite3.Cursor:
        cursor = connection.really("COMMIT")
        if process.kind == "command":
            self._note_durable(process, connection)
        if self.dice.fires("kill_after_commit"):
            self.kill(process, "killed right after a commit")
            raise ProcessEnded
        return cursor

    def _note_durable(self, process: Process, connection: Connection) -> None:
        """Remember what a power cut could no longer take away."""
        if process.surviving is not None:
            return
        last = self.durable[-1][0] if self.durable else 0
        for position, key, chain, stored in connection.really(SELECT_NEW, (last,)):
            self.durable.append((position, chain))
            self.committed_at[position] = self.loop.time()
            event = Event.FromString(stored)
            kind = event.WhichOneof("kind")
            if kind == "token_issued":
                self.durable_tokens.add(event.token_issued.token)
            if kind in AT_REST:
                self.unfinished.discard(key)
            else:
                self.unfinished.add(key)
            self.note("journal", position, uuid.UUID(bytes=key), kind)

    @property
    def durable_position(self) -> int:
        """The newest position that no power cut can take away."""
        return self.durable[-1][0] if self.durable else 0

    def _copy(self, process: Process, name: str) -> Path:
        target = self.folder / name
        target.mkdir()
        with os.scandir(process.folder) as files:
            for file in files:
                if not file.name.endswith(".lock"):
                    shutil.copyfile(file.path, f"{target}/{file.name}")
        return target

    # ------------------------------------------------------------ processes
    def start(self, kind: str, files: Path | None = None) -> None:
        """Start a server on the files that the last one left."""
        number = self.starts[kind] = self.starts.get(kind, 0) + 1
        folder = files or self.folder / f"{kind}-{number}"
        folder.mkdir(exist_ok=True)
        process = Process(self, kind, number, folder)
        process.context.run(PROCESS.set, process)
        self.processes[kind] = process
        if self.dice.fires("kill_in_recovery"):
            process.ticks_left, process.why = self.dice.whole(1, 60), "killed while starting"
        elif self.dice.fires("kill_anywhere"):
            process.ticks_left, process.why = self.dice.whole(30, 1_500), "killed"
        self.note(process.name, "starts")
        process.start(self._command(process) if kind == "command" else self._query(process))

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
        for lock in process.locks:
            self.system.close(lock) if isinstance(lock, int) else lock.close()
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
                self.note(process.name, "a power cut takes the newest batches of its view")
                return before
        return self._copy(process, name)

    def _end_process(self, process: Process) -> NoReturn:
        if not process.had_disk_fault:
            self.broke("L1", process.name, "it ended itself without a reason")
        self.kill(process, "ends itself: a commit's fate is unknown")
        raise ProcessEnded

    async def _command(self, process: Process) -> None:
        """What `python -m command_service` builds."""
        plan = self.plan
        try:
            journal = await SqliteJournal.open(
                process.folder / "journal.db",
                now=self.now,
                end_process=partial(self._end_process, process),
                free_bytes=1 << 20,
            )
        except JournalRefused as error:
            if not process.had_disk_fault:
                self.broke("L1", process.name, f"it would not start: {error}")
            self.kill(process, "ends: the journal cannot be opened")
            return
        self._note_durable(process, process.connections[0])
        if journal.head.position != self.durable_position:
            self.broke("I7", process.name, f"its head is {journal.head.position}, durable was {self.durable_position}")
        wire = Wire(self.bank, self.dice, self.outside, self.durable_tokens.__contains__, self.note)
        bank = GatewayBank(BANK_URL, wire, call_timeout_seconds=plan.bank_timeout_seconds)
        limits = Limits(plan.bank_calls, plan.max_unfinished, plan.abandon_after_seconds, 600.0)
        chance = random.Random(f"{process.name} {plan.seed}")
        runner = Runner(journal, bank, limits, clock=self.loop.time, now=self.now, chance=chance)
        commands = CommandService(runner, max_calls=plan.max_calls)
        feed = Feed(journal, heartbeat_seconds=plan.heartbeat_seconds)
        process.journal, process.runner, process.commands, process.feed = journal, runner, commands, feed
        process.feed_service = JournalService(feed)
        found = await runner.recover()
        process.is_up = True
        self.note(process.name, "serves", f"{found} unfinished")

    async def _query(self, process: Process) -> None:
        """What `python -m query_service` builds."""
        if self.dice.fires("view_power_cut"):
            self._copy(process, f"{process.folder.name}-synced")
        try:
            view = await View.open(process.folder / "view.db")
            process.waiting = Waiting()
            chance = random.Random(f"{process.name} {self.plan.seed}")
            subscriber = Subscriber(
                view, process.waiting, partial(self._open_feed, process), clock=self.loop.time, chance=chance
            )
            process.is_up = True
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
            await process.runner.close()
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
        link = Link(self, reader, [], sent_position=after_position)
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
                self.later(0.001, _cancel, link.task)

    async def _serve_feed(self, server: Process, link: Link, request: SubscribeRequest) -> None:
        try:
            async with aclosing(server.feed_service.Subscribe(request, link)) as messages:
                waiting_since = self.loop.time()
                async for message in messages:
                    self._judge_wake(link, message, waiting_since)
                    await link.send(message)
                    if link.is_over:
                        return
                    waiting_since = self.loop.time()
        except Refusal as refused:
            is_diverged = refused.reason == "JOURNAL_DIVERGED"
            if is_diverged:
                self.broke("I10", link.reader.name, "it was told that the journal diverged")
            link.send_end(JournalDiverged() if is_diverged else FeedLost(refused.reason))
        finally:
            with suppress(ValueError):
                server.links.remove(link)

    def _judge_wake(self, link: Link, message: SubscribeResponse, waiting_since: float) -> None:
        """The contract, step 4: every later record comes as soon as it is durable."""
        if not message.batch.records:
            return
        ready_at = max(waiting_since, self.committed_at.get(message.batch.records[0].position, 0.0))
        if self.loop.time() - ready_at > (SLOW_WAKE_SECONDS if self.dice.fired["slow_disk"] else WAKE_SECONDS):
            late = self.loop.time() - ready_at
            where = f"position {message.batch.records[0].position}"
            self.broke("L3", where, f"a waiting reader was sent the record {late:.1f} s late")
        link.sent_position = message.batch.records[-1].position

    # ------------------------------------------------------------ clients and their network
    async def call(self, who: str, op: Op) -> Call:
        """Call Charge once, and note what the client came to know."""
        dice, loop = self.dice, self.loop
        request = _request(op)
        deadline = None if op.timeout_seconds is None else loop.time() + op.timeout_seconds
        rpc = Rpc(request, deadline, loop.create_future(), loop)
        self.note(who, "asks", op.key, f"{op.amount} {op.currency}", op.card, op.spoiled)
        delay = dice.uniform(0.1, 3.0) if dice.fires("rpc_delay") else dice.uniform(0.0005, 0.005)
        if dice.fires("rpc_lose_request"):
            self.later(delay, rpc.answer, None)
        else:
            self.later(delay, self._arrive, rpc)
        patience = min(
            op.timeout_seconds if op.timeout_seconds is not None else 1e9,
            1e9 if op.cancel_after_seconds is None or dice.is_over else op.cancel_after_seconds,
        )
        told: Any = None
        try:
            async with asyncio.timeout(patience):
                told = await rpc.reply
        except TimeoutError:
            dice.fired["client_cancel" if patience == op.cancel_after_seconds else "client_deadline"] += 1
            rpc.is_over = True
            self.later(dice.uniform(0.0, 0.005), _cancel, rpc.task)
        call = self._called(op, request, told)
        self.history.append(call)
        self.note(
            who, "hears", op.key, call.outcome, _status(call.status) if call.status else call.reason, call.position
        )
        return call

    def _arrive(self, rpc: Rpc) -> None:
        server = self.processes["command"]
        if rpc.is_over:
            return
        if not server.is_up or not server.alive:
            self.later(0.001, rpc.answer, None)
            return
        server.calls[rpc] = None
        rpc.task = server.start(self._serve(server, rpc))

    async def _serve(self, server: Process, rpc: Rpc) -> None:
        """What grpc and the guard around it do with a call."""
        outcome: Any
        try:
            response = await server.commands.Charge(rpc.request, rpc)
            outcome = (response, self.durable_position)
        except Refusal as refused:
            outcome = refused
        except asyncio.CancelledError:
            return
        except Exception as error:
            self.broke("I15", server.name, f"an unexpected error escaped a call: {error!r}")
            outcome = None
        finally:
            server.calls.pop(rpc, None)
        if self.dice.fires("rpc_lose_answer"):
            outcome = None
        self.later(self.dice.uniform(0.0005, 0.005), rpc.answer, outcome)

    def _called(self, op: Op, request: ChargeRequest, told: Any) -> Call:
        asked = (op.key, request.user_id, request.card.token, request.amount.minor_units, request.amount.currency_code)
        match told:
            case (ChargeResponse() as said, int() as durable_position):
                return Call(
                    request.idempotency_key,
                    *asked[1:],
                    "ok",
                    said.charge_id,
                    said.status,
                    said.transaction_id,
                    said.decline_reason,
                    said.position,
                    said.outcome_source,
                    durable_position=durable_position,
                )
            case Refusal():
                kind: Any = "unknown" if told.reason in UNKNOWN_REASONS else "refused"
                return Call(request.idempotency_key, *asked[1:], kind, reason=told.reason, advice=told.advice)
        return Call(request.idempotency_key, *asked[1:], "unknown")

    async def _client(self, number: int, ops: list[tuple[int, Op]]) -> None:
        who = f"client {number}"
        for index, op in ops:
            if (number, index) in self.mask.ops:
                continue
            await asyncio.sleep(op.pause_seconds if not self.dice.is_over else 0.0)
            if op.planted:
                self.dice.fired["card_number"] += 1
            elif op.spoiled:
                self.dice.fired["invalid_request"] += 1
            else:
                self.known_bodies[op.key, op.user, op.card, op.amount, op.currency] = op
            for _ in range(op.tries):
                call = await self.call(who, op)
                if call.reason == "IDEMPOTENCY_KEY_REUSED":
                    self.dice.fired["other_body"] += 1
                is_settled = call.status not in (0, ChargeStatus.CHARGE_STATUS_PENDING)
                if is_settled or call.reason in ("INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED") or self.dice.is_over:
                    break
                await asyncio.sleep(self.dice.uniform(0.0, 2.0))

    # ------------------------------------------------------------ weather
    def _begin_weather(self, event: Weather) -> None:
        if self.dice.is_over or event.kind in self.mask.kinds:
            return
        command = self.processes["command"]
        views = [process for kind, process in self.processes.items() if kind != "command"]
        match event.kind:
            case "kill_command" if command.alive:
                self.kill(command, "killed")
            case "stop_command" if command.is_up:
                command.start(self.stop(command))
            case "kill_query":
                self.kill(self.dice.pick(views), "killed")
            case "stop_query":
                view = self.dice.pick(views)
                if not view.is_up:
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
            case "disk_full":
                self.disk_is_full = True
                self.later(event.seconds, self._end_weather, "disk_full")
            case _:
                return
        self.dice.fired[event.kind] += 1
        self.note("weather", event.kind, f"{event.seconds:.1f} s")

    def _end_weather(self, kind: str) -> None:
        match kind:
            case "bank_down":
                self.bank.is_down = False
            case "unauthorized":
                self.bank.is_unauthorized = False
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
            loop.create_task(self._client(number, list(enumerate(ops))), context=self.outside)
            for number, ops in enumerate(plan.clients, 1)
            if number not in self.mask.clients
        ]
        await asyncio.sleep(plan.horizon_seconds)
        self.dice.is_over = True
        self.note("weather", "faults stop")
        for kind in ("bank_down", "unauthorized", "disk_full"):
            self._end_weather(kind)
        self.bank.token_seconds = 900.0
        for process in self.processes.values():
            process.ticks_left = 0
        if not await self._come_to_rest(clients):
            return
        await asyncio.sleep(SETTLE_SECONDS)
        until = plan.horizon_seconds + REST_SECONDS
        for op in self.known_bodies.values():
            call = await self.call("auditor", _patient(op))
            while call.outcome == "refused" and call.advice == "RETRY_SAME_KEY" and loop.time() < until:
                await asyncio.sleep(4.0)  # a bank that was spared is tried again within 20 s
                call = await self.call("auditor", _patient(op))
            if call.outcome == "unknown" or call.status == ChargeStatus.CHARGE_STATUS_PENDING:
                self.broke("L1", f"key {op.key}", f"at rest, its charge is {call.outcome} {call.reason}")
            elif call.outcome == "refused" and call.reason != "IDEMPOTENCY_KEY_REUSED":
                self.broke("L5", f"key {op.key}", f"at rest, its charge is refused: {call.reason}")
        if (late_seconds := self.bank.expects_until - loop.time()) > 0:
            await asyncio.sleep(late_seconds + AFTER_LATE_SECONDS)
        if not await self._come_to_rest([]):
            return
        self._read_files()
        self.is_ending = True
        for process in list(self.processes.values()):
            if self.dice.whole(0, 1) and process.alive:
                await process.start(self.stop(process))
            else:
                self.kill(process, "killed in the end")

    def _read_files(self) -> None:
        """What the files hold in the end, seen through the servers' own connections: that spares half of the judging."""
        for kind, process in self.processes.items():
            connection = process.connections[-1]
            assert isinstance(connection, Connection)
            if kind == "command":
                self.records = records_in(connection)
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
        ids = random.Random(f"ids {self.plan.seed}")
        space = types.SimpleNamespace(
            disk_usage=lambda _: types.SimpleNamespace(free=0 if self.disk_is_full else 1 << 40)
        )
        names = types.SimpleNamespace(uuid4=lambda: uuid.UUID(int=ids.getrandbits(128), version=4))
        journal_lock, view_lock = command_service.journal.upkeep.lock, query_service.view._lock
        before = structlog.get_config()
        structlog.configure(processors=[self._log], wrapper_class=structlog.BoundLogger, logger_factory=silent)
        with patched(
            [
                (sqlite3, "connect", self.connect),
                (command_service.journal.sqlite, "shutil", space),
                (command_service.journal.upkeep, "uuid", names),
                (command_service.journal.sqlite, "lock", _kept(journal_lock)),
                (query_service.view, "_lock", _kept(view_lock)),
                (query_service.view, "os", self.system),
            ]
        ):
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
        charges = sum(record.version == 1 for record in records)
        return Told(found, dict(self.dice.fired), self.notes, self.loop.callbacks, charges)

    def _reviews(self, records: Any) -> list[Violation]:
        """A charge goes into review only if the bank lied about it, or its tokens kept expiring."""
        found = []
        for record in records:
            event = Event.FromString(record.event)
            if event.WhichOneof("kind") != "review_required" or record.charge_id in self.bank.lied_about:
                continue
            if event.review_required.reason != 4:
                where = f"charge {record.charge_id}, position {record.position}"
                found.append(Violation("L1", where, "in review, though the bank never lied about it"))
        return found


def _kept(lock: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Remember a lock with the process that takes it, so that its death lets go of it."""

    def take(path: Path) -> Any:
        taken = lock(path)
        process = PROCESS.get()
        assert isinstance(process, Process)
        process.locks.append(taken)
        if isinstance(taken, int):
            process.world.system.descriptors.add(taken)
        return taken

    return take


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = {sqlite3.SQLITE_FULL: "SQLITE_FULL"}.get(code, "SQLITE_IOERR_FSYNC")
    return error


def _cancel(task: "asyncio.Task[Any] | None") -> None:
    if task is not None:
        task.cancel()


async def _set_serving(_is_serving: bool) -> None:
    """Nobody asks for health here."""


def _status(status: int) -> str:
    return ChargeStatus.Name(status).removeprefix("CHARGE_STATUS_")  # type: ignore[arg-type]  # an enum's number


def _patient(op: Op) -> Op:
    return Op(0.0, op.key, op.user, op.card, op.amount, op.currency, 31.0, None, 1)


def _request(op: Op) -> ChargeRequest:
    request = ChargeRequest(idempotency_key=op.key, user_id=op.user)
    request.card.token, request.amount.minor_units, request.amount.currency_code = op.card, op.amount, op.currency
    match op.spoiled:
        case "amount":
            request.amount.minor_units = -1
        case "currency":
            request.amount.currency_code = "usd"
        case "key":
            request.idempotency_key = op.planted or "a b"
        case "user":
            request.user_id = op.planted or "x" * 200
        case "card":
            request.card.token = op.planted
        case "description":
            request.description = f"card {op.planted}"
        case "unknown_field":
            request.MergeFromString(b"\xfa\x01\x01x")
    return request


def run_story(plan: Plan, mask: Mask, folder: Path) -> Told:
    """Tell one story in a folder of its own, which is gone afterwards."""
    folder.mkdir(parents=True)
    try:
        return World(plan, mask, folder).run()
    finally:
        shutil.rmtree(folder)
