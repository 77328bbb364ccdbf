"""Two causes of the product's speed, counted instead of timed: commits a charge, and reads of the journal a record.

The whole product runs in this process, from the settings to its real ports, with a real journal and the bank of this package.
Two calls are observed: SQLite reports the statements of each connection that writes, and a counter wraps the journal's
`read_after`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import structlog.testing

from bench import DIRECT
from bench.bank import Connection, Ledger
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.journal_pb2 import SubscribeRequest
from charging.v1.journal_pb2_grpc import JournalServiceStub
from chassis import settings
from chassis.disk import LOCAL_DISK, Disk
from command_service.journal import Journal, Place, Record
from command_service.parts import Parts
from command_service.serving import Serving, serve
from command_service.settings import Settings
from rig.around import Around

RECORDS_A_CHARGE = 3
CALL_SECONDS = 30.0
READERS_A_CHANNEL = 25


class _TracedDisk(Around[Disk]):
    """This machine, whose SQLite tells the statements of each connection that writes."""

    def __init__(self, statements: list[str]) -> None:
        super().__init__(LOCAL_DISK)
        self._statements = statements

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
    counted: _CountedJournal

    def disk(self) -> Disk:
        self.statements = []
        return _TracedDisk(self.statements).as_one()

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


async def _charge_all(running: Serving, *, charges: int, in_flight: int) -> None:
    """Make `charges` charges, `in_flight` at once. All must be charged."""
    numbers = iter(range(charges))
    async with grpc.aio.insecure_channel(str(running.listen), options=DIRECT) as channel:
        charge = CommandServiceStub(channel).Charge

        async def client() -> None:
            for number in numbers:
                request = ChargeRequest(
                    idempotency_key=f"counted:{number}",
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
        await _charge_all(running, charges=charges, in_flight=in_flight)
        assert running.journal.head.position == charges * RECORDS_A_CHARGE
    return sum(statement == "COMMIT" for statement in parts.statements) / charges


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
        await _charge_all(running, charges=charges, in_flight=16)
        await asyncio.gather(*reading)
        for channel in channels:
            await channel.close()
    return parts.counted.handed_out / records
