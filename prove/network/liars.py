"""Scenarios of feeds that are not what they say: each lie is refused whole, and another journal costs no view.

The chain of every lie is right. What finds it is what the records say, so these are the lies that a chain does not show.
"""

import asyncio
import hashlib
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from charging.v1 import journal_pb2_grpc
from charging.v1.journal_pb2 import (
    CaughtUp,
    ChargeAbandoned,
    Charged,
    ChargeRequested,
    Event,
    GetAttemptsRequest,
    GetAttemptsResponse,
    Opened,
    Record,
    RecordBatch,
    SubscribeRequest,
    SubscribeResponse,
    TokenExpired,
    TokenIssued,
)
from charging.v1.query_pb2 import GetViewStatusRequest
from chassis import settings
from chassis.settings import address
from command_service import serving
from command_service.settings import Settings as CommandSettings
from prove.network.reader import GENESIS, Reader
from prove.network.world import World, must, until, within
from query_service.feed import feed_of
from query_service.projection import FOLLOWS, Follows
from query_service.subscriber import Subscriber
from query_service.verified import BrokenFeed
from query_service.view import View
from query_service.waiting import Waiting

Lie = Callable[[list[Record]], Record]


def _after(records: Sequence[Record], event: Event, **changed: Any) -> Record:
    """One more event of the charge that the last record is of."""
    last = records[-1]
    record = Record(position=last.position + 1, charge_id=last.charge_id, version=last.version + 1)
    record.event = event.SerializeToString()
    record.recorded_at.CopyFrom(last.recorded_at)
    record.MergeFrom(Record(**changed))
    return record


def _another(records: Sequence[Record], seconds: int, nanos: int) -> Record:
    """A charge that begins at such a time."""
    event = Event(charge_requested=ChargeRequested(tenant="default", idempotency_key="another", user_id="user-1"))
    record = Record(position=records[-1].position + 1, charge_id=str(uuid.UUID(int=1)), version=1)
    record.event = event.SerializeToString()
    record.recorded_at.seconds, record.recorded_at.nanos = seconds, nanos
    return record


# Each adds a record to those of some charges, the last of which is charged.
LIES: Mapping[str, Lie] = {
    "charged again": lambda records: _after(records, Event(charged=Charged(transaction_id="txn_again"))),
    "requested again": lambda records: _after(records, Event(charge_requested=ChargeRequested(idempotency_key="k"))),
    "a token after the outcome": lambda records: _after(records, Event(token_issued=TokenIssued(token="late"))),  # noqa: S106
    "a token expires after the outcome": lambda records: _after(records, Event(token_expired=TokenExpired(token="x"))),  # noqa: S106
    "abandoned after the outcome": lambda records: _after(records, Event(charge_abandoned=ChargeAbandoned(attempts=1))),
    "a version is left out": lambda records: _after(
        records, Event(charged=Charged(transaction_id="txn_again")), version=records[-1].version + 2
    ),
    "the year 10000": lambda records: _another(records, 253_402_300_800, 0),
    "the year 0": lambda records: _another(records, -62_135_596_801, 0),
    "nanoseconds below zero": lambda records: _another(records, 1_750_000_000, -1_000),
    "more nanoseconds than a second has": lambda records: _another(records, 1_750_000_000, 1_000_000_000),
}
IN_THE_LIST = "another journal in the list"


async def feeds_lie(world: World, follows: Follows = FOLLOWS) -> None:
    """After true records comes a false one with a right chain: the feed is refused, and nothing of the batch shows."""
    await world.settle_all(world.requests(world.chance.randrange(1, 6)))
    reader = Reader(world.servers.feed, keep=True)
    async with within(60, "L3: a reader reaches the head"):
        async for message in reader.messages():
            if message.HasField("caught_up"):
                break
    true = [*reader.records]
    while Event.FromString(true[-1].event).WhichOneof("kind") != "charged":
        true.pop()
    must(await _followed_to(world, "truth", true, follows) == len(true), "what is true is taken from the same hand")
    for name, lie in LIES.items():
        false = lie(true)
        false.chain = _sealed(true[-1].chain, false)
        position = await _followed_to(world, name, [*true, false], follows)
        must(position == 0, f"I9: a feed with a lie in it, {name}, is refused whole, and not taken up to {position}")
        world.faults[f"feed: {name}"] += 1


async def a_foreign_server_is_in_the_list(world: World) -> None:
    """QUERY_FEED names a server of another journal, too: while its own is away the view stays, and then it goes on."""
    environment = {
        "COMMAND_LISTEN": "127.0.0.1:0",
        "COMMAND_FEED_LISTEN": "127.0.0.1:0",
        "COMMAND_JOURNAL": f"sqlite:///{world.folder / 'foreign.db'}",
        "COMMAND_BANK_URL": f"http://{world.bank_link.address}",
        "COMMAND_DRAIN_SECONDS": "1",
    }
    await world.settle_all(world.requests(5))
    async with serving.serve(settings.read(CommandSettings, environment)) as foreign, world.queries() as queries:
        before = await queries.GetViewStatus(GetViewStatusRequest(min_position=15), timeout=20)
        await world.servers.query_down()
        await world.servers.query_up({"QUERY_FEED": f"{world.feed_link.address},{foreign.feed_listen}"})
        for _ in range(3):
            await world.servers.command_down()
            for _ in range(20):
                shown = await queries.GetViewStatus(GetViewStatusRequest(), timeout=20, wait_for_ready=True)
                must(
                    (shown.journal_id, shown.as_of_position >= before.as_of_position) == (before.journal_id, True),
                    f"I9: the view is of journal {before.journal_id}, and not thrown away for {shown.journal_id}",
                )
                await asyncio.sleep(0.05)
            world.faults[f"feed: {IN_THE_LIST}"] += 1
            await world.command_up()
            await world.settle_all(world.requests(2))


class Anything(frozenset[Any]):
    """The control: a view with this in place of FOLLOWS takes any event after any other. The scenario must find it out."""

    def __contains__(self, _: object) -> bool:
        return True


async def _followed_to(world: World, name: str, records: Sequence[Record], follows: Follows) -> int:
    """How far a new view follows a feed of these records before it has caught up or has had enough."""
    view, waiting = await View.open(world.folder / f"{name}.db", follows=follows), Waiting()
    is_serving = asyncio.Event()

    async def set_serving(serving: bool) -> None:
        if serving:
            is_serving.set()

    try:
        async with _serving(records) as feed:
            subscriber = Subscriber(view, waiting, feed_of([address(feed)]))
            following = asyncio.create_task(subscriber.run(set_serving))
            await until(lambda: following.done() or is_serving.is_set(), 30, f"a feed is followed or refused: {name}")
            following.cancel()
            await asyncio.wait([following])
            if not following.cancelled():
                must(isinstance(following.exception(), BrokenFeed), f"a lie is a broken feed: {name}")
            return (await view.checkpoint()).position
    finally:
        await view.close()


@asynccontextmanager
async def _serving(records: Sequence[Record]) -> AsyncIterator[str]:
    """A feed of these records; gives its address."""

    class Liar(journal_pb2_grpc.JournalServiceServicer):
        async def Subscribe(self, _: SubscribeRequest, __: Any) -> AsyncIterator[SubscribeResponse]:  # noqa: N802
            """Bring them all at once."""
            yield SubscribeResponse(opened=Opened(journal_id="liar", head_position=len(records)))
            yield SubscribeResponse(batch=RecordBatch(records=records))
            yield SubscribeResponse(caught_up=CaughtUp(position=len(records)))
            await asyncio.Event().wait()

        async def GetAttempts(self, _: GetAttemptsRequest, __: Any) -> GetAttemptsResponse:  # noqa: N802
            """Know of none."""
            return GetAttemptsResponse()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    journal_pb2_grpc.add_JournalServiceServicer_to_server(Liar(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def _sealed(before: bytes, record: Record) -> bytes:
    """The chain at a record, as the contract tells it."""
    assert len(before) == len(GENESIS)
    recorded_at = record.recorded_at.seconds * 1_000_000 + record.recorded_at.nanos // 1_000
    charge_id = uuid.UUID(record.charge_id).bytes
    fixed = struct.pack(">q16sqq", record.position, charge_id, record.version, recorded_at)
    return hashlib.sha256(before + fixed + hashlib.sha256(record.event).digest()).digest()
