"""A real journal that two tenants' charges are in, and its feed over real ports: the whole one, and one for each tenant."""

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import grpc
import grpc.aio

from charging.v1 import journal_pb2_grpc
from charging.v1.journal_pb2 import Event, Passed, Record, SubscribeRequest, SubscribeResponse
from chassis.caller import Caller
from chassis.shares import Shares
from command_service.feed import Feed, JournalService
from command_service.journal import START, Place
from command_service.journal import Record as Stored
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from command_service.owners import OWNERS_REMEMBERED, Owners
from contract.errors import command_refusal as refusal
from rig.alone import start_alone
from rig.errors import Told, told
from tests.sealed import EPOCH_MICROSECONDS, charge_id_of, charged, requested, token_issued
from tests.service.test_feed import chained

WHOLE, SHOP, CAFE, NOBODY, DEFAULT = "", "shop", "café", "nobody", "default"
HEARTBEAT_SECONDS = 0.1
PATIENCE_SECONDS = 60.0


class Counted(GroupCommit):
    """A journal that notes its reads for the feed, and the streams that are read."""

    reads: list[int]
    streams: list[str]

    async def read_after(self, place: Place) -> Sequence[Stored]:
        self.reads.append(place.position)
        return await super().read_after(place)

    async def read(self, charge_id: str) -> Sequence[Stored]:
        self.streams.append(charge_id)
        return await super().read(charge_id)


class Street:
    """The journal of a street, where tenants have charges. A charge is named by its tenant and key."""

    def __init__(self, path: Path, journal: Counted, feed: Feed, addresses: Mapping[str, str]) -> None:
        self.path = path
        self.journal = journal
        self.feed = feed
        self.addresses = addresses
        self.versions: defaultdict[str, int] = defaultdict(int)

    async def append(self, tenant: str, key: str, *events: Event | bytes) -> Place:
        """Append events to a charge."""
        name = f"{tenant} {key}"
        stored = [event if isinstance(event, bytes) else event.SerializeToString() for event in events]
        await self.journal.append(charge_id_of(name), self.versions[name], stored, finished=True)
        self.versions[name] += len(stored)
        return self.journal.head

    async def begin(self, tenant: str, key: str) -> Place:
        """Append a request."""
        return await self.append(tenant, key, requested(key, f"a user of {tenant}", tenant=tenant))

    async def charge(self, tenant: str, key: str) -> Place:
        """Append a whole charge."""
        await self.begin(tenant, key)
        return await self.append(tenant, key, token_issued(f"token {tenant} {key}"), charged(f"transaction {tenant}"))

    async def stored(self, tenant: str = WHOLE) -> list[Stored]:
        """Read the records of a tenant, or all. Whose they are is told by the ids, which the street has given."""
        place, found = START, list[Stored]()
        while records := await GroupCommit.read_after(self.journal, place) if place != self.journal.head else ():
            found += records
            place = Place(records[-1].position, records[-1].chain)
        theirs = {charge_id_of(name) for name in self.versions if name.split(" ", 1)[0] == tenant}
        return [record for record in found if not tenant or record.charge_id in theirs]

    async def place(self, position: int) -> Place:
        return Place(position, await self.journal.chain_at(position))


class Follower:
    """Reads a tenant's feed, and verifies it by the contract's text. It shares no code with the servers."""

    def __init__(self, address: str, after: Place = START, journal_id: str = "") -> None:
        self._channel = grpc.aio.insecure_channel(address)
        chain = after.chain if after.position else b""
        request = SubscribeRequest(after_position=after.position, journal_id=journal_id, chain=chain)
        self._call = journal_pb2_grpc.JournalServiceStub(self._channel).Subscribe(request)
        self.place = after
        self.records: list[Record] = []
        self.passed: list[Place] = []
        self.bytes = b""

    async def next(self) -> SubscribeResponse:
        message = await self._call.read()
        if not isinstance(message, SubscribeResponse):
            await self._call  # type: ignore[misc]  # raises the error that the stream has ended with
        assert isinstance(message, SubscribeResponse)
        self.bytes += message.SerializeToString()
        for record in message.batch.records:
            if record.chain_before:
                assert record.position > self.place.position + 1
                self.place = Place(record.position - 1, record.chain_before)
            assert record.position == self.place.position + 1
            assert record.chain == chained(self.place.chain, record)
            self.place = Place(record.position, record.chain)
            self.records.append(record)
        if message.batch.HasField("passed"):
            self._pass(message.batch.passed)
        return message

    def _pass(self, passed: Passed) -> None:
        assert passed.to_position > self.place.position
        self.place = Place(passed.to_position, passed.chain)
        self.passed.append(self.place)

    async def reach(self, position: int) -> None:
        """Read until the place is at a position or beyond."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.place.position < position:
                await self.next()

    async def until(self, kind: str) -> SubscribeResponse:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (message := await self.next()).WhichOneof("item") != kind:
                pass
        return message

    async def end(self) -> Told:
        """Read on to the error that ends the stream."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    await self.next()
        except grpc.aio.AioRpcError as error:
            return told(error)

    async def leave(self) -> None:
        self._call.cancel()
        await self._channel.close()


@asynccontextmanager
async def following(address: str, after: Place = START, journal_id: str = "") -> AsyncIterator[Follower]:
    follower = Follower(address, after, journal_id)
    try:
        yield follower
    finally:
        await follower.leave()


@asynccontextmanager
async def a_street(
    folder: Path, *, remembered: int = OWNERS_REMEMBERED, readers: Shares | None = None
) -> AsyncIterator[Street]:
    """Open the journal in a folder, and serve its feed."""
    path, times = folder / "journal.db", iter(range(EPOCH_MICROSECONDS, EPOCH_MICROSECONDS + 10**9))
    journal = await Counted.open(await SqliteFile(path).open(), now=lambda: next(times), end_process=_never)
    assert isinstance(journal, Counted)
    journal.reads, journal.streams = [], []
    feed = Feed(journal, Owners(journal, remembered=remembered).of, heartbeat_seconds=HEARTBEAT_SECONDS)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(journal.close)
        addresses, service = {}, JournalService(feed, readers)
        for tenant in (WHOLE, SHOP, CAFE, NOBODY, DEFAULT):
            server = await start_alone(
                service.register, "charging.v1.JournalService", refusal, anybody=Caller(tenant, "a reader")
            )
            stack.push_async_callback(server.drain, 1.0)
            addresses[tenant] = str(server.address)
        stack.callback(feed.stop)
        yield Street(path, journal, feed, addresses)


def facts_of(records: Sequence[Record]) -> list[Stored]:
    """The facts of a feed's records, as the journal stores them."""
    return [
        Stored(r.position, r.charge_id, r.version, r.recorded_at.ToMicroseconds(), r.chain, r.event) for r in records
    ]


def id_bytes(tenant: str, key: str) -> list[bytes]:
    """What would tell of a charge, in bytes: its id in both forms."""
    charge_id = charge_id_of(f"{tenant} {key}")
    return [charge_id.encode(), uuid.UUID(charge_id).bytes]


def _never() -> NoReturn:
    raise AssertionError("a commit's fate is unknown")
