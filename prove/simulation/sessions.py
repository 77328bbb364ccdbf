"""A command server's connection to a node of a simulated PostgreSQL: what `command_service.journal.postgres.session` asks for.

Each statement takes its way there and back, and things go wrong on both. What the node does, it does in the world's own
context: the death of who asked stops nothing that has arrived.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from command_service.journal.postgres.schema import FORMAT
from command_service.journal.postgres.session import HeadRow, Lost, Standing, Undone
from command_service.journal.records import Row, Verifiable
from command_service.journal.store import Head
from prove.simulation.machine import Machine
from prove.simulation.stage import Stage
from prove.simulation.tables import AtWork, Claimed, Inserted, Released

# As in the real one: until a transaction is ended whose client does not go on with it, and until a network is noticed to be silent.
IDLE_SECONDS, SILENT_SECONDS = 5.0, 10.0
# One way. Of the database's machines one is as near as the other.
LATENCY_SECONDS = (0.0002, 0.002)
SLOW_SECONDS = (0.05, 1.0)


class Surroundings(Protocol):
    """What a session must know of the database that it is a session of."""

    journal_id: str

    def spoils(self, kind: str, machine: Machine) -> bool:
        """Whether a fault happens now to a session of this node."""
        ...


class Session:
    """A connection. See the seam for what each statement promises."""

    def __init__(self, stage: Stage, surroundings: Surroundings, machine: Machine) -> None:
        self._stage = stage
        self._around = surroundings
        self._machine = machine
        # The client's end.
        self._is_ended = False
        self._answer: asyncio.Future[Any] | None = None
        self._told: asyncio.Future[None] | None = None
        self._has_news = False
        # The way there.
        self._outgoing: deque[Callable[[], None]] = deque()
        # The node's end.
        self._under_way: asyncio.Task[None] | None = None
        self._is_hung_up = False
        self._listens = False
        self._is_open, self._has_failed = False, False
        self._inserted: Inserted | None = None
        self._statements = 0
        machine.sessions[self] = None

    # ------------------------------------------------------------ statements
    async def standing(self) -> Standing:
        """Ask the node what it is."""

        async def ask() -> Standing:
            is_standby = self._machine.is_standby
            return Standing(is_standby, 0 if is_standby else self._machine.timeline)

        return await self._ask("standing", ask)

    async def begin(self, keys: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        """Begin a transaction, and lock the head; return it, and the newest versions."""

        async def begin() -> tuple[HeadRow, Mapping[bytes, int]]:
            if self._is_open:
                self._stage.broke("seam", self._machine.name, "a transaction was begun within another")
            self._is_open, self._has_failed, self._inserted = True, False, None
            self._can_write()
            await self._machine.lock.take(self)
            streams = self._machine.tables.streams
            return self._head_row(), {key: max((row[2] for row in streams.get(key, ())), default=0) for key in keys}

        return await self._ask("begin", begin)

    async def insert(
        self, rows: Sequence[Row], head: Head, begun: Sequence[bytes], finished: Sequence[bytes], server: str
    ) -> Sequence[bytes]:
        """Store rows, and move the head."""

        async def insert() -> Sequence[bytes]:
            self._must_be_open()
            tables = self._machine.tables
            for position, key, version, *_ in rows:
                if position in tables.rows or version in (row[2] for row in tables.streams.get(key, ())):
                    raise Undone("there is such a record")
            self._inserted = Inserted(rows, head, begun, finished, server)
            return [key for key in begun if key not in tables.unfinished]

        return await self._ask("insert", insert)

    async def commit(self) -> bool:
        """Commit."""

        async def commit() -> bool:
            self._must_be_open()
            self._is_open, inserted = False, self._inserted
            try:
                return await self._machine.commit(inserted) if inserted is not None else True
            finally:
                self._machine.lock.give_back(self)
                self._inserted = None

        return await self._ask("commit", commit)

    async def rollback(self) -> None:
        """Undo the transaction."""

        async def roll_back() -> None:
            self._undo()
            self._is_open = False

        await self._ask("rollback", roll_back)

    async def confirm(self) -> bool:
        """Commit what changes nothing."""

        async def confirm() -> bool:
            self._can_write()
            return await self._machine.confirm()

        return await self._ask("confirm", confirm)

    async def head(self) -> HeadRow:
        """Read the head."""

        async def read() -> HeadRow:
            return self._head_row()

        return await self._ask("head", read)

    async def stream(self, key: bytes) -> Sequence[Verifiable]:
        """Read a stream."""

        async def read() -> Sequence[Verifiable]:
            tables = self._machine.tables
            return [tables.verifiable(row) for row in sorted(tables.streams.get(key, ()), key=lambda row: row[2])]

        return await self._ask("stream", read)

    async def after(self, position: int, until: int) -> Sequence[Row]:
        """Read the records after a position."""

        async def read() -> Sequence[Row]:
            return self._machine.tables.after(position, until)

        return await self._ask("after", read)

    async def at(self, position: int) -> Verifiable | None:
        """Read one record."""

        async def read() -> Verifiable | None:
            row = self._machine.tables.rows.get(position)
            return None if row is None else self._machine.tables.verifiable(row)

        return await self._ask("at", read)

    async def streams_between(self, position: int, until: int) -> Sequence[bytes]:
        """List the streams of a stretch of records."""

        async def read() -> Sequence[bytes]:
            return sorted({row[1] for row in self._machine.tables.between(position, until)})

        return await self._ask("streams between", read)

    async def unfinished(self) -> Sequence[bytes]:
        """List the streams that are not finished."""

        async def read() -> Sequence[bytes]:
            return sorted(self._machine.tables.unfinished)

        return await self._ask("unfinished", read)

    # ------------------------------------------------------------ leases: none waits for the standby
    async def register(self, server: str, name: str, seconds: float) -> HeadRow:
        """Note a server as at work."""

        async def register() -> HeadRow:
            self._can_write()
            if server in self._machine.tables.servers:
                raise Undone("there is such a server")
            self._machine.commit_here(AtWork(server, self._machine.now() + seconds))
            return self._head_row()

        return await self._ask("register", register)

    async def renew(self, server: str, seconds: float) -> bool:
        """Note that a server is still at work."""

        async def renew() -> bool:
            self._can_write()
            machine = self._machine
            is_at_work = machine.tables.is_at_work(server, machine.now())
            if is_at_work:
                machine.commit_here(AtWork(server, machine.now() + seconds))
            return is_at_work

        return await self._ask("renew", renew)

    async def claim(self, server: str, most: int) -> Sequence[bytes]:
        """Have a server drive what nobody drives."""

        async def claim() -> Sequence[bytes]:
            self._can_write()
            machine = self._machine
            locked = machine.locked()
            free = [key for key in machine.tables.driven_by_nobody(machine.now()) if key not in locked][:most]
            if free:
                machine.commit_here(Claimed(server, free))
            return free

        return await self._ask("claim", claim)

    async def release(self, server: str) -> None:
        """Note that a server is no longer at work."""

        async def release() -> None:
            self._can_write()
            self._machine.commit_here(Released(server))

        await self._ask("release", release)

    # ------------------------------------------------------------ hints
    async def listen(self) -> None:
        """Listen."""

        async def listen() -> None:
            self._listens = True

        await self._ask("listen", listen)

    async def news(self, seconds: float) -> None:
        """Return when records were stored, or after some seconds."""
        if self._is_ended:
            raise Lost("the connection has ended")
        if not self._has_news:
            self._told = self._stage.loop.create_future()
            await asyncio.wait([self._told], timeout=seconds)
        self._has_news, self._told = False, None

    def locks(self) -> Iterable[bytes]:
        """The streams whose rows its transaction has locked."""
        return self._inserted.touched if self._inserted is not None else ()

    def hint(self) -> None:
        """Records were stored at this node."""
        if self._listens and not self._around.spoils("pg_hint_lost", self._machine):
            self._stage.later(self._latency(), self._hear)

    def _hear(self) -> None:
        self._has_news = True
        if self._told is not None and not self._told.done():
            self._told.set_result(None)

    # ------------------------------------------------------------ the way there and back
    async def _ask(self, statement: str, work: Callable[[], Awaitable[Any]]) -> Any:
        if self._is_ended:
            raise Lost("the connection has ended")
        if self._answer is not None:
            self._stage.broke("seam", self._machine.name, f"{statement} was asked for during another statement")
        answer = self._answer = self._stage.loop.create_future()
        if self._spoils("pg_cut_before"):
            self._note(statement, "is not sent: the connection is cut")
            self._cut()
        else:
            self._send(lambda: self._arrive(statement, work, answer))
        try:
            outcome = await answer
        except asyncio.CancelledError:
            self.end()
            raise
        finally:
            self._answer = None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _arrive(self, statement: str, work: Callable[[], Awaitable[Any]], answer: "asyncio.Future[Any]") -> None:
        self._statements += 1
        coroutine = self._execute(statement, work, answer)
        self._under_way = self._stage.loop.create_task(coroutine, context=self._stage.outside)

    async def _execute(self, statement: str, work: Callable[[], Awaitable[Any]], answer: "asyncio.Future[Any]") -> None:
        machine = self._machine
        await machine.awake()
        if self._spoils("pg_slow"):
            await asyncio.sleep(self._stage.dice.uniform(*SLOW_SECONDS))
        if statement == "commit" and self._spoils("pg_cut_during"):
            self._note(statement, "the connection is cut meanwhile")
            self._stage.later(self._stage.dice.uniform(0.0, 0.01), self._cut)
        outcome: Any
        try:
            if statement in ("begin", "insert", "renew", "claim", "register") and self._spoils("pg_undone"):
                raise Undone("PostgreSQL had other things to do")
            outcome = await work()
        except (Undone, Lost) as error:
            outcome = error
            if self._is_open:
                self._undo()
                self._has_failed = True
        await machine.awake()
        self._under_way = None
        if self._is_hung_up:
            self._close()
            return
        if self._is_open:
            self._stage.later(IDLE_SECONDS, self._end_if_idle, self._statements)
        if self._spoils("pg_cut_after"):
            self._note(statement, "was done, and the connection is cut")
            self._cut()
        elif self._spoils("pg_answer_lost"):
            self._note(statement, "was done, and its answer is lost")
            self._stage.later(self._stage.dice.uniform(0.0, SILENT_SECONDS), self._cut)
        else:
            self._stage.later(self._latency(), _give, answer, outcome)

    def _end_if_idle(self, statements: int) -> None:
        if self._is_open and self._statements == statements and self._under_way is None:
            self._note("a transaction", "has stood still for too long")
            self._cut()

    def _cut(self) -> None:
        """The network cuts it: both ends hear of it."""
        self._stage.later(self._latency(), self._hear_end)
        self._hang_up()

    def vanish(self) -> None:
        """The node is dead: nothing that it was doing is done any further."""
        if self._under_way is not None:
            self._under_way.cancel()
        self._is_hung_up, self._inserted, self._is_open = True, None, False
        self._stage.later(self._latency(), self._hear_end)

    def end(self) -> None:
        """Cut it from the client's end: what was sent before arrives all the same."""
        if not self._is_ended:
            self._hear_end()
            self._send(self._hang_up)

    def _hear_end(self) -> None:
        self._is_ended = True
        self._listens = False
        if self._answer is not None:
            _give(self._answer, Lost("the connection is lost"))
        self._hear()

    def _hang_up(self) -> None:
        self._is_hung_up = True
        if self._under_way is None:
            self._close()

    def _close(self) -> None:
        self._undo()
        self._is_open = False
        self._machine.sessions.pop(self, None)

    def _send(self, message: Callable[[], None]) -> None:
        self._outgoing.append(message)
        self._stage.later(self._latency(), self._deliver)

    def _deliver(self) -> None:
        """The oldest message arrives: a connection keeps its order."""
        message = self._outgoing.popleft()
        if not self._is_hung_up:
            message()

    # ------------------------------------------------------------ what is common
    def _undo(self) -> None:
        self._inserted = None
        self._machine.lock.give_back(self)

    def _must_be_open(self) -> None:
        if not self._is_open or self._has_failed:
            self._stage.broke(
                "seam", self._machine.name, "a statement was sent without a transaction, or in one that has failed"
            )

    def _can_write(self) -> None:
        if self._machine.is_standby:
            raise Lost("a standby writes nothing")

    def _head_row(self) -> HeadRow:
        head, has_standby = self._machine.tables.head, self._machine.waits_for_standby
        return HeadRow(head, self._around.journal_id, False, FORMAT, "on", has_standby)

    def _spoils(self, kind: str) -> bool:
        return self._around.spoils(kind, self._machine)

    def _latency(self) -> float:
        return self._stage.dice.uniform(*LATENCY_SECONDS)

    def _note(self, *what: object) -> None:
        self._stage.note(f"node {self._machine.name}", *what)


def _give(answer: "asyncio.Future[Any]", outcome: Any) -> None:
    if not answer.done():
        answer.set_result(outcome)
