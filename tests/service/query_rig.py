"""A real query server, in this process or in one of its own, and a client of it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from charging.v1.query_pb2 import GetViewStatusRequest, GetViewStatusResponse
from charging.v1.query_pb2_grpc import QueryServiceStub
from chassis import settings
from chassis.disk import LOCAL_DISK, Disk, Thread
from query_service.parts import Parts
from query_service.schema import TABLES
from query_service.serving import Serving, serve
from query_service.settings import Settings
from rig.around import Around
from rig.errors import Told, refused
from rig.processes import Server
from rig.world import heard, is_behind

if TYPE_CHECKING:
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub  # of the typed stubs only

T = TypeVar("T")

SERVICE = "charging.v1.QueryService"
DEADLINE_SECONDS = 0.5


@dataclass(frozen=True)
class Client:
    """A client of a query server."""

    queries: "QueryServiceAsyncStub"
    health: Any

    async def becomes(self, status: int) -> None:
        """Wait until the server's health is this."""
        async for response in self.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
            if response.status == status:
                return

    async def reaches(self, position: int) -> GetViewStatusResponse:
        """Wait until the view shows a position, longer than the server lets one query wait."""
        return await heard(lambda: self.queries.GetViewStatus(GetViewStatusRequest(min_position=position)), is_behind)


async def refused_in_time(ask: Callable[[], Awaitable[object]]) -> Told:
    """Return the server's refusal of a call with DEADLINE_SECONDS, which comes clearly before these are over.

    If the machine stands still just then it comes later, or not at all: so it is asked for up to ten times.
    """
    loop = asyncio.get_running_loop()
    for _ in range(10):
        began = loop.time()
        error = await refused(ask())
        if loop.time() - began < 0.95 * DEADLINE_SECONDS:
            return error
    raise AssertionError(f"it came at the deadline: {error}")


def environment(feed: str, view: Path, **more: str) -> dict[str, str]:
    return {
        "QUERY_LISTEN": "127.0.0.1:0",
        "QUERY_FEED": feed,
        "QUERY_VIEW": str(view),
        "QUERY_DRAIN_SECONDS": "5",
        **more,
    }


@asynccontextmanager
async def querying(
    feed: str, view: Path, parts: Callable[[Settings], Parts] = Parts, **more: str
) -> AsyncIterator[tuple[Serving, Client]]:
    """Run a query server in this process."""
    chosen = settings.read(Settings, environment(feed, view, **more))
    async with serve(chosen, parts) as running, client_of(str(running.listen)) as client:
        yield running, client


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Client(QueryServiceStub(channel), health_pb2_grpc.HealthStub(channel))


class KeptDisk(Around[Disk]):
    """This machine's disk, which keeps the connections that it opened and their threads."""

    def __init__(self) -> None:
        super().__init__(LOCAL_DISK)
        self._threads: list[Thread] = []
        self._writers: list[tuple[Thread, sqlite3.Connection]] = []
        self._readers: list[tuple[Thread, sqlite3.Connection]] = []

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = LOCAL_DISK.connect(path, read_only=read_only)
        (self._readers if read_only else self._writers).append((self._threads[-1], connection))
        return connection

    def thread(self, name: str) -> Thread:
        self._threads.append(LOCAL_DISK.thread(name))
        return self._threads[-1]

    async def by_the_writer(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work on the newest connection that writes, in its thread."""
        return await self._writers[-1][0].run(work, self._writers[-1][1])

    async def by_the_reader(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work on the newest connection that reads, in its thread."""
        return await self._readers[-1][0].run(work, self._readers[-1][1])


@asynccontextmanager
async def process_of(feed: str, view: Path, **more: str) -> AsyncIterator[Server]:
    """Run a query server in a process of its own, which ends with the context."""
    view.parent.mkdir(parents=True, exist_ok=True)
    server = Server("query_service", environment(feed, view, **more), view.with_suffix(".log"))
    with server.log.open("ab") as log:
        await server.begin(log.fileno())
    try:
        yield server
    finally:
        await server.kill()


def dump(view: Path) -> dict[str, list[dict[str, Any]]]:
    """Read every row of a view, by column name."""
    with contextlib.closing(sqlite3.connect(view)) as connection:
        connection.row_factory = sqlite3.Row
        return {table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in TABLES}
