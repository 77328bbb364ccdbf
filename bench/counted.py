"""The causes of the product's speed, counted instead of timed: commits, tasks, timers, thread hops, system calls a charge.

The whole product runs in this process, from the settings to its real ports, with a real journal and the bank of this package.
It is observed from outside: SQLite reports the statements of each connection that writes, counters wrap the journal's
`read_after` and the disk's threads, and the event loop and httpx report what is made. Only system calls are counted in a
process of its own, by the kernel.
"""

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import httpx
import structlog.testing

from bench import DIRECT, sites
from bench.bank import Connection, Ledger
from bench.load import key_prefix
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.journal_pb2 import SubscribeRequest
from charging.v1.journal_pb2_grpc import JournalServiceStub
from chassis import settings
from chassis.disk import LOCAL_DISK, Disk, Thread
from command_service.journal import Journal, Place, Record
from command_service.parts import Parts
from command_service.serving import Serving, serve
from command_service.settings import Settings
from rig.around import Around

RECORDS_A_CHARGE = 3
CALL_SECONDS = 30.0
OURS = ("chassis", "command_service")
T = TypeVar("T")
READERS_A_CHANNEL = 25


class _CountedThread(Around[Thread]):
    """A thread that counts what it is asked to do."""

    def __init__(self, thread: Thread, hops: Counter[str], name: str) -> None:
        super().__init__(thread)
        self._hops = hops
        self._name = name

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        self._hops[self._name] += 1
        return await self.inner.run(work, *arguments)


class _TracedDisk(Around[Disk]):
    """This machine, whose SQLite tells the statements of each connection that writes, and whose threads are counted."""

    def __init__(self, statements: list[str], hops: Counter[str]) -> None:
        super().__init__(LOCAL_DISK)
        self._statements = statements
        self._hops = hops
        self._opened = 0

    def thread(self, name: str) -> Thread:
        self._opened += 1
        return _CountedThread(LOCAL_DISK.thread(name), self._hops, f"{name} {self._opened}").as_one()

    def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = LOCAL_DISK.connect(path, read_only=read_only)
        if not read_only:
            connection.set_trace_callback(self._statements.append)
        return connection


class _CountedJournal(Around[Journal]):
    """A journal that counts the records it hands out for the feed."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.handed_out = 0

    async def read_after(self, place: Place) -> Sequence[Record]:
        records = await self.inner.read_after(place)
        self.handed_out += len(records)
        return records


class _Counted(Parts):
    """The product's parts, the disk and the journal under a counter."""

    statements: list[str]
    hops: Counter[str]
    """The number of pieces of work by thread, of which the first one opened writes."""
    counted: _CountedJournal

    def disk(self) -> Disk:
        self.statements, self.hops = [], Counter()
        return _TracedDisk(self.statements, self.hops).as_one()

    async def journal(self) -> Journal:
        self.counted = _CountedJournal(await super().journal())
        return self.counted.as_one()


@asynccontextmanager
async def _product(folder: Path) -> AsyncIterator[tuple[Serving, _Counted]]:
    """The product and its bank, in this process."""
    loop = asyncio.get_running_loop()
    bank = await loop.create_server(partial(Connection, Ledger(), 0.0), "127.0.0.1", 0)
    environment = {
        "COMMAND_LISTEN": "127.0.0.1:0",
        "COMMAND_FEED_LISTEN": "127.0.0.1:0",
        "COMMAND_JOURNAL": f"sqlite:///{folder / 'journal.db'}",
        "COMMAND_BANK_URL": f"http://127.0.0.1:{bank.sockets[0].getsockname()[1]}",
        "COMMAND_DRAIN_SECONDS": "1",
    }
    try:
        with structlog.testing.capture_logs():  # nobody reads a log line for each charge here
            parts = _Counted(settings.read(Settings, environment))
            async with serve(parts.settings, lambda _: parts) as running:
                yield running, parts
    finally:
        bank.close()
        await bank.wait_closed()


async def _charge_all(listen: str, *, charges: int, in_flight: int) -> None:
    """Make `charges` charges, `in_flight` at once. All must be charged."""
    numbers, prefix = iter(range(charges)), key_prefix("counted")
    async with grpc.aio.insecure_channel(listen, options=DIRECT) as channel:
        charge = CommandServiceStub(channel).Charge

        async def client() -> None:
            for number in numbers:
                request = ChargeRequest(
                    idempotency_key=f"{prefix}{number}",
                    user_id="alice",
                    card=Card(token="tok_visa"),  # noqa: S106  # a card's token is no password
                    amount=Money(minor_units=1250, currency_code="EUR"),
                )
                answer = await charge(request, timeout=CALL_SECONDS)
                assert answer.status == ChargeStatus.CHARGE_STATUS_CHARGED

        await asyncio.gather(*[client() for _ in range(in_flight)])


async def commits_a_charge(folder: Path, *, charges: int, in_flight: int) -> float:
    """Count the journal's commits for each charge."""
    async with _product(folder) as (running, parts):
        parts.statements.clear()  # of the start
        await _charge_all(str(running.listen), charges=charges, in_flight=in_flight)
        assert running.journal.head.position == charges * RECORDS_A_CHARGE
    return sum(statement == "COMMIT" for statement in parts.statements) / charges


async def made_a_charge(folder: Path, *, charges: int, in_flight: int) -> dict[str, float]:
    """Count the tasks and timers that the product makes for each charge, its hops to the writing thread, and httpx's objects.

    Tasks and timers of gRPC, of the bank and of the client are left out. The key of a task is its coroutine.
    """
    async with _product(folder) as (running, parts):
        parts.hops.clear()  # of the start
        with _observed() as made:
            await _charge_all(str(running.listen), charges=charges, in_flight=in_flight)
    writing = sum(count for name, count in parts.hops.items() if name.endswith(" 1"))
    return {name: count / charges for name, count in {**made, "hops to the writer": writing}.items()}


@contextlib.contextmanager
def _observed() -> Iterator[Counter[str]]:
    """Count what the running event loop, which is asyncio's own, and httpx are asked to make."""
    loop, made = asyncio.get_running_loop(), Counter[str]()
    factory, call_at = loop.get_task_factory(), loop.call_at
    request, response = httpx.Request.__init__, httpx.Response.__init__

    def make_task(of: asyncio.AbstractEventLoop, work: Any, **more: Any) -> "asyncio.Task[Any]":
        frame = getattr(work, "cr_frame", None)
        if frame is not None and frame.f_globals.get("__name__", "").startswith(OURS):
            made[f"task {work.__qualname__}"] += 1
        return asyncio.Task(work, loop=of, **more)

    def make_timer(when: float, callback: Callable[..., object], *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        module = getattr(callback, "__module__", None) or ""
        if module.startswith(OURS) or module == "asyncio.timeouts":
            made["timers"] += 1
        return call_at(when, callback, *arguments, **more)

    def make_object(original: Callable[..., None], *arguments: Any, **more: Any) -> None:
        made["objects of httpx"] += 1
        original(*arguments, **more)

    loop.set_task_factory(make_task)
    loop.call_at = make_timer  # type: ignore[assignment, method-assign]  # typeshed has its arguments' types in one
    httpx.Request.__init__ = lambda *of, **more: make_object(request, *of, **more)  # type: ignore[method-assign]
    httpx.Response.__init__ = lambda *of, **more: make_object(response, *of, **more)  # type: ignore[method-assign]
    try:
        yield made
    finally:
        loop.set_task_factory(factory)
        loop.call_at = call_at  # type: ignore[method-assign]
        httpx.Request.__init__, httpx.Response.__init__ = request, response  # type: ignore[method-assign]


async def system_calls_a_charge(*, charges: int) -> float:
    """Count the calls of the kernel by which the command server reads and writes, for each charge that is alone.

    They are `syscr` and `syscw` of proc(5): files, sockets and wake-ups. Sent and received messages are not among them.
    """
    async with sites.open_site(sites.PRODUCT) as site:
        await _charge_all(site.listen, charges=10, in_flight=1)  # opens connections and fills caches
        before = _reads_and_writes(site.own["service"])
        await _charge_all(site.listen, charges=charges, in_flight=1)
        return (_reads_and_writes(site.own["service"]) - before) / charges


def _reads_and_writes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return sum(int(count) for name, count in (line.split(": ") for line in lines) if name in ("syscr", "syscw"))


async def reads_a_record(folder: Path, *, readers: int, charges: int) -> float:
    """Count how many times a record is read and encoded for several live readers, each of which gets every record."""
    async with _product(folder) as (running, parts):
        channels = [
            grpc.aio.insecure_channel(
                str(running.feed_listen), options=[*DIRECT, ("grpc.use_local_subchannel_pool", 1)]
            )
            for _ in range(-(-readers // READERS_A_CHANNEL))
        ]
        records = charges * RECORDS_A_CHARGE
        live = [asyncio.Event() for _ in range(readers)]

        async def read(number: int) -> None:
            stub = JournalServiceStub(channels[number % len(channels)])
            async for message in stub.Subscribe(SubscribeRequest()):
                if message.HasField("caught_up"):
                    live[number].set()
                elif message.batch.records and message.batch.records[-1].position == records:
                    return

        reading = [asyncio.create_task(read(number)) for number in range(readers)]
        await asyncio.gather(*[event.wait() for event in live])
        await _charge_all(str(running.listen), charges=charges, in_flight=16)
        await asyncio.gather(*reading)
        for channel in channels:
            await channel.close()
    return parts.counted.handed_out / records
