"""A command server's connection to a node of a simulated PostgreSQL: the way of each statement there and back.

Things go wrong on both. What the node does, it does in the world's own context: the death of who asked stops nothing that has
arrived.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from command_service.journal.postgres.session import Lost, Undone
from prove.simulation.machine import Machine
from prove.simulation.stage import Stage
from prove.simulation.tables import Inserted

T = TypeVar("T")

# As in the real one: until a transaction is ended that nobody goes on with, and until a network is noticed to be silent.
IDLE_SECONDS, SILENT_SECONDS = 5.0, 10.0
# One way. Of the database's machines one is as near as the other.
LATENCY_SECONDS = (0.0002, 0.002)
SLOW_SECONDS = (0.05, 1.0)
# These wait for a lock, or for the standby.
WAITING = frozenset({"begin", "commit", "confirm"})
UNDOABLE = frozenset({"begin", "insert", "renew", "claim", "register"})


class Surroundings(Protocol):
    """What a connection must know of the database that it is to."""

    journal_id: str

    def spoils(self, kind: str, machine: Machine) -> bool:
        """Whether a fault happens now to a connection to this node."""
        ...


class Line:
    """A connection, and the transaction that is open over it."""

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
    async def _ask(self, statement: str, work: Callable[[], T]) -> T:
        """Have the node do some work; return what comes of it."""
        outcome: T = await self._answer_to(statement, work)
        return outcome

    async def _await(self, statement: str, work: Callable[[], Awaitable[T]]) -> T:
        """Have the node do some work for which it waits; return what comes of it."""
        outcome: T = await self._answer_to(statement, work)
        return outcome

    async def _answer_to(self, statement: str, work: Callable[[], Any]) -> Any:
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

    def _arrive(self, statement: str, work: Callable[[], Any], answer: "asyncio.Future[Any]") -> None:
        self._statements += 1
        is_slow = self._spoils("pg_slow")
        if statement in WAITING or is_slow or self._machine.is_paused:
            execution = self._execute(statement, work, answer, is_slow=is_slow)
            self._under_way = self._stage.loop.create_task(execution, context=self._stage.outside)
        else:
            self._reply(statement, answer, self._outcome(statement, work))

    async def _execute(
        self, statement: str, work: Callable[[], Any], answer: "asyncio.Future[Any]", *, is_slow: bool
    ) -> None:
        """Execute a statement that may take a while."""
        await self._machine.awake()
        if is_slow:
            await asyncio.sleep(self._stage.dice.uniform(*SLOW_SECONDS))
        if statement == "commit" and self._spoils("pg_cut_during"):
            self._note(statement, "the connection is cut meanwhile")
            self._stage.later(self._stage.dice.uniform(0.0, 0.01), self._cut)
        outcome = self._outcome(statement, work)
        if inspect.isawaitable(outcome):
            try:
                outcome = await outcome
            except (Undone, Lost) as error:
                outcome = self._failed(error)
        await self._machine.awake()
        self._under_way = None
        self._reply(statement, answer, outcome)

    def _outcome(self, statement: str, work: Callable[[], Any]) -> Any:
        try:
            if statement in UNDOABLE and self._spoils("pg_undone"):
                raise Undone("PostgreSQL had other things to do")
            return work()
        except (Undone, Lost) as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> Exception:
        if self._is_open:
            self._undo()
            self._has_failed = True
        return error

    def _reply(self, statement: str, answer: "asyncio.Future[Any]", outcome: Any) -> None:
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

    def _spoils(self, kind: str) -> bool:
        return self._around.spoils(kind, self._machine)

    def _latency(self) -> float:
        return self._stage.dice.uniform(*LATENCY_SECONDS)

    def _note(self, *what: object) -> None:
        self._stage.note(f"node {self._machine.name}", *what)

    # ------------------------------------------------------------ hints
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


def _give(answer: "asyncio.Future[Any]", outcome: Any) -> None:
    if not answer.done():
        answer.set_result(outcome)
