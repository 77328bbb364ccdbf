"""Who and what lives in a simulated world: processes with their files, connections, calls and links.

Each is only the shape of something real, as the product's code sees it from inside; what befalls them is the world's to say.
"""

import asyncio
import contextvars
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from charging.v1.journal_pb2 import SubscribeResponse
from chassis.caller import Caller, GuardedCall
from chassis.disk import Held
from prove.simulation.loop import VirtualLoop
from prove.simulation.stage import Stage
from query_service.subscriber import FeedLost

T = TypeVar("T")

OPERATORS = "charging.v1.OperatorService"
# Messages that may be on their way to a reader before it must read.
MESSAGES_UNREAD = 4


class ProcessEnded(BaseException):
    """A process ended itself."""


class Ending(Protocol):
    """What ends with the process that holds it."""

    def end(self) -> None:
        """End it."""
        ...


@dataclass(eq=False)
class Process:
    """One life of a server, on files of its own."""

    kind: str
    number: int
    folder: Path
    loop: VirtualLoop
    context: contextvars.Context = field(default_factory=contextvars.Context)
    kill: Callable[[str], None] = field(init=False)
    """End it as `kill -9` does; the word is why."""
    alive: bool = True
    is_up: bool = False
    has_started: bool = False
    """It was up once: what kills it now does not kill it while it starts."""
    resumes_at: float = 0.0
    """It stands still until then."""
    ticks_left: int = 0
    """Callbacks until `strike`; 0: it is not chosen."""
    strike: Callable[[], None] = field(init=False)
    """The chosen callback has come: the process is killed."""
    connections: list["Connection"] = field(default_factory=list)
    sessions: list[Ending] = field(default_factory=list)
    """Its connections to a database."""
    held: list[Held] = field(default_factory=list)
    """The files that it holds open; its death closes them."""
    calls: dict["Rpc", None] = field(default_factory=dict)
    """Those under way, in their order: a set would have another one in each run."""
    links: list["Link"] = field(default_factory=list)
    surviving: Path | None = None
    """After a lost sync: the files as a power cut would leave them."""
    left: Path | None = None
    """What it left behind, once it is dead."""
    had_disk_fault: bool = False
    commands: Any = None
    operators: Any = None
    """The desk; None if nobody uses it in this story."""
    has_answered: Callable[[Any], None] = lambda _: None
    """Told of each answer that leaves it."""
    assembled: Any = None
    journal: Any = None
    feed: Any = None
    feed_service: Any = None
    waiting: Any = None

    def tick(self) -> bool:
        """One more callback. At the chosen one the process is killed. Says whether it lives."""
        if self.ticks_left:
            self.ticks_left -= 1
            if not self.ticks_left:
                self.strike()
        return self.alive

    def stop_services(self) -> None:
        """End every waiting call."""
        self.commands.stop()
        if self.operators is not None:
            self.operators.stop()

    def handler(self, method: str) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
        """What serves a method, by its full name."""
        _, service, name = method.rsplit("/", 2)
        serving = self.operators if service == OPERATORS else self.commands
        return cast("Callable[[Any, Any], Coroutine[Any, Any, Any]]", getattr(serving, name))

    @property
    def serves_commands(self) -> bool:
        """Whether it is a command server: there may be several, each of a kind of its own."""
        return self.kind.startswith("command")

    @property
    def name(self) -> str:
        """For the story."""
        return f"{self.kind} server {self.number}"

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task that belongs to this process."""
        return self.loop.create_task(work, context=self.context.copy())


class Connection(sqlite3.Connection):
    """A connection whose commits the world may spoil."""

    commits: Callable[[], sqlite3.Cursor] | None = None
    begins: Callable[[], None] | None = None
    """What happens before a transaction that writes."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute; a commit goes through the world."""
        if sql == "COMMIT" and self.commits is not None:
            return self.commits()
        if sql == "BEGIN IMMEDIATE" and self.begins is not None:
            self.begins()
        return super().execute(sql, *parameters)

    def really(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute without the world."""
        return super().execute(sql, *parameters)


@dataclass(eq=False)
class Rpc:
    """A client's call on its way: also the context that the servicer sees."""

    method: str
    """Its full name, as in `/charging.v1.CommandService/Charge`."""
    request: Any
    caller: Caller
    deadline: float | None
    reply: "asyncio.Future[Any]"
    loop: VirtualLoop
    task: "asyncio.Task[Any] | None" = None
    is_over: bool = False
    has_begun: bool = False
    calls: "dict[Rpc, None]" = field(default_factory=dict)
    """The server's, once it has arrived there."""

    def guarded(self) -> GuardedCall:
        """The call as the guard around the service hands it on."""
        return GuardedCall(self.method, self.caller, self)

    def leave(self) -> None:
        """The client has left: its call is cancelled. One of which a server that stands still knows nothing has never been."""
        if self.task is not None:
            self.task.cancel()
            if not self.has_begun:
                self.calls.pop(self, None)

    def time_remaining(self) -> float | None:
        """As grpc's context tells it."""
        return None if self.deadline is None else max(0.0, self.deadline - self.loop.time())

    def answer(self, outcome: Any) -> None:
        """What the client sees, once."""
        if not self.reply.done():
            self.reply.set_result(outcome)


@dataclass(eq=False)
class Link:
    """One subscription's way from the feed to a reader."""

    stage: Stage
    reader: str
    seen: list[tuple[int, bytes]]
    inbox: deque[SubscribeResponse | Exception] = field(default_factory=deque)
    news: "asyncio.Future[None] | None" = None
    room: "asyncio.Future[None] | None" = None
    last_arrival: float = 0.0
    under_way: deque[SubscribeResponse | Exception] = field(default_factory=deque)
    task: "asyncio.Task[Any] | None" = None
    is_over: bool = False
    sent_position: int = 0
    idle_since: float | None = None

    async def abort_with_status(self, _status: Any) -> None:
        """As grpc's context does: the reader hears of it."""
        self.send_end(FeedLost("cut off"))

    async def send(self, message: SubscribeResponse) -> None:
        """Send a message; waits while the reader has too much unread."""
        dice = self.stage.dice
        if dice.fires("feed_cut"):
            self.stage.note("feed", f"the link to {self.reader} is cut")
            self.send_end(FeedLost("cut"))
            return
        delay = 0.002
        if dice.fires("feed_delay"):
            delay = dice.uniform(0.01, 2.0)
        if dice.fires("feed_stall"):
            self.stage.note("feed", f"the link to {self.reader} stalls")
            delay = dice.uniform(21.0, 40.0)
        self._put(message, delay)
        while len(self.under_way) + len(self.inbox) >= MESSAGES_UNREAD and not self.is_over:
            self.room = self.stage.loop.create_future()
            await self.room

    def send_end(self, error: Exception) -> None:
        """The stream ends, with an error."""
        if not self.is_over:
            self.is_over = True
            self._put(error, 0.002)

    def _put(self, message: SubscribeResponse | Exception, delay: float) -> None:
        self.under_way.append(message)
        self.last_arrival = max(self.last_arrival, self.stage.loop.time() + delay)
        self.stage.at(self.last_arrival, self._arrive)

    def _arrive(self) -> None:
        """The oldest arrives: a stream keeps its order."""
        self.inbox.append(self.under_way.popleft())
        if self.news is not None and not self.news.done():
            self.news.set_result(None)

    async def receive(self) -> SubscribeResponse | Exception:
        """Take the next message."""
        while not self.inbox:
            self.news = self.stage.loop.create_future()
            await self.news
        message = self.inbox.popleft()
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
        return message


class Thread:
    """Stands for a thread of the product's: the loop does its work."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Have the loop do it, in this thread's order."""
        return await asyncio.get_running_loop().run_in_executor(cast("Executor", self), work, *arguments)

    def end(self) -> None:
        """There is nothing to end."""


def silent(*_: Any) -> "Silent":
    """Make what structlog writes to: entries are kept by the world instead."""
    return Silent()


class Silent:
    """Where structlog would write."""
