"""Scenarios of the feed: its readers see every record once and in order, whatever becomes of them and of their links."""

import asyncio
import contextlib
import resource
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from charging.v1 import journal_pb2_grpc
from charging.v1.journal_pb2 import SubscribeRequest
from charging.v1.query_pb2 import CurrencySummary, GetUserSummaryRequest, GetUserSummaryResponse, GetViewStatusRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from command_service.feed import ANY_READER, Feed, JournalService
from command_service.owners import Owners
from contract.errors import command_refusal as refusal
from judge.files import read_journal
from judge.history import fold
from prove.network.faultproxy import Fault, Kind, Way
from prove.network.reader import CHANNEL_OPTIONS, Reader, following
from prove.network.world import World, must, until, within
from rig.alone import start_alone
from rig.errors import told
from rig.servers import InProcess

if TYPE_CHECKING:
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub

# The names of a user's sums.
SUMS = [name.removesuffix("_count") for name in CurrencySummary.DESCRIPTOR.fields_by_name if name.endswith("_count")]
READERS = 100
STUCK = 10
# A reader that takes no more than this ahead of what it reads. Without, gRPC measures the link and may take many megabytes.
SMALL_WINDOW = [*CHANNEL_OPTIONS, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]


async def streams_are_cut(world: World) -> None:
    """Streams are cut, reset, held up and made slow amid a batch: readers and the view go on without a gap."""
    await world.settle_all(await world.wishes(60))
    for _ in range(10):
        kind = world.chance.choice((Kind.CUT, Kind.RESET, Kind.DELAY))
        world.feed_link.order(Fault(kind, Way.DOWN, after_bytes=world.chance.randrange(20_000)))
    readers = [Reader(world.feed_link.address) for _ in range(5)]
    async with following(*readers):
        for _ in range(6):
            await asyncio.gather(*(world.ask(request) for request in await world.wishes(10)))
            world.feed_link.end_all(reset=world.chance.random() < 0.5)
        await _all_reach_the_head(world, readers)
    must(min(reader.streams for reader in readers) > 1, "every reader was cut")


async def a_hundred_come_back_at_once(world: World) -> None:
    """A hundred readers lose their streams at the same moment, in the middle of the work, and all go on."""
    readers = [Reader(world.feed_link.address) for _ in range(READERS)]
    async with following(*readers):
        await until(lambda: all(reader.streams for reader in readers), 30, "a hundred readers are let in")
        for _ in range(2):
            asking = [asyncio.create_task(world.ask(request)) for request in await world.wishes(20)]
            world.feed_link.end_all(reset=True)
            await asyncio.gather(*asking)
        await world.command_again()
        world.faults["feed: a hundred come back at once"] += READERS
        await _all_reach_the_head(world, readers)


async def some_stop_reading(world: World) -> None:
    """Beside ninety-nine that read, ten stop: theirs goes on, those are cut off, and memory does not grow with them."""
    assert isinstance(world.servers, InProcess)
    assert world.servers.running is not None
    journal = world.servers.running.journal
    feed = Feed(journal, Owners(journal).of)
    # As in the product, but that a reader is given up sooner.
    service = JournalService(feed, slow_reader_seconds=3.0)
    server = await start_alone(service.register, "charging.v1.JournalService", refusal, anybody=ANY_READER)
    address = str(server.address)
    # Large ones, so that what waits for a reader outgrows what a connection takes.
    stuffing = {f"note-{n}": "x" * 490 for n in range(20)}
    try:
        async with contextlib.AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(address, options=SMALL_WINDOW))
                for _ in range(STUCK)
            ]
            readers = [Reader(address) for _ in range(READERS - 1)]
            async with following(*readers):
                await until(lambda: all(reader.streams for reader in readers), 30, "readers are let in")
                stuck = [journal_pb2_grpc.JournalServiceStub(one).Subscribe(SubscribeRequest()) for one in channels]
                for stream in stuck:
                    await anext(aiter(stream))  # it is let in, and reads no more
                before = _peak_bytes()
                for _ in range(12):
                    requests = [world.request(metadata=stuffing) for _ in range(50)]
                    await asyncio.gather(*(world.ask(request) for request in requests))
                await _all_reach_the_head(world, readers)
                grown = _peak_bytes() - before
                must(not any(reader.breaks for reader in readers), "no reader that reads is cut off")
                must(grown < 400 << 20, f"I16: memory grew by {grown >> 20} MiB for {STUCK} readers")
                for stream in stuck:
                    code, reason = await _how_it_ended(stream)
                    must(
                        code is grpc.StatusCode.DEADLINE_EXCEEDED and reason == "READER_TOO_SLOW",
                        f"a reader that does not read is told so, not {code.name} {reason}",
                    )
                    world.faults["feed: a reader stopped reading"] += 1
    finally:
        feed.stop()
        await server.drain(1.0)


async def answers_are_whole(world: World) -> None:
    """Whoever asks while the view is being written sees some position's whole truth: no batch is half applied."""
    seen: list[GetUserSummaryResponse] = []

    async def ask_on(queries: "QueryServiceAsyncStub") -> None:
        while True:
            user = f"user-{world.chance.randrange(5)}"
            seen.append(await queries.GetUserSummary(GetUserSummaryRequest(user_id=user), wait_for_ready=True))
            await asyncio.sleep(0.01)

    async with world.queries() as queries:
        asking = asyncio.create_task(ask_on(queries))
        for _ in range(6):
            await asyncio.gather(*(world.ask(request) for request in await world.wishes(20)))
            world.feed_link.end_all(reset=True)  # so that it catches up by large batches, too
        asking.cancel()
        await asyncio.wait((asking,))
        must(asking.cancelled(), "queries are answered all the while")
    records = read_journal(world.folder / "journal.db")
    at = {one.as_of_position: fold(records[: one.as_of_position]).sums for one in seen}
    must(len(at) > 3, "the view was asked while it was written")
    for one in seen:
        true = {
            (row["currency_code"], row["name"]): (row["charge_count"], row["minor_units"])
            for row in at[one.as_of_position]
            if row["user_id"] == one.user_id
        }
        said = {
            (currency.currency_code, name): (count, getattr(currency, f"{name}_minor_units"))
            for currency in one.currencies
            for name in SUMS
            if (count := getattr(currency, f"{name}_count"))
        }
        must(said == true, f"I11: {one.user_id} at position {one.as_of_position} is {true}, and was told as {said}")
    world.faults["query: asked while written"] += len(seen)


async def readers_are_lost(world: World) -> None:
    """Readers that stand where this journal never was are told so, and the view goes on from where it was."""
    await world.settle_all(world.requests(5))
    reader = Reader(world.servers.feed)
    async with within(60, "L3: a reader reaches the head"):
        async for message in reader.messages():
            if message.HasField("caught_up"):
                break
    head, journal_id = reader.position, reader.journal_id
    diverged, invalid = ("FAILED_PRECONDITION", "JOURNAL_DIVERGED"), ("INVALID_ARGUMENT", "INVALID_REQUEST")
    lost = (
        (SubscribeRequest(after_position=head + 1), diverged),
        (SubscribeRequest(after_position=2**63 - 1), diverged),
        (SubscribeRequest(after_position=1, journal_id="another"), diverged),
        (SubscribeRequest(after_position=1, journal_id=journal_id, chain=bytes(32)), diverged),
        (SubscribeRequest(after_position=-1), invalid),
        (SubscribeRequest(after_position=-(2**63)), invalid),
        (SubscribeRequest(after_position=1, chain=b"short"), invalid),
    )
    async with grpc.aio.insecure_channel(world.servers.feed, options=CHANNEL_OPTIONS) as channel:
        for request, expected in lost:
            stream = journal_pb2_grpc.JournalServiceStub(channel).Subscribe(request, timeout=20)
            code, reason = await _how_it_ended(stream)
            must((code.name, reason) == expected, f"a lost reader hears {expected}, not {code.name} {reason}")
            world.faults["feed: a reader is lost"] += 1


async def the_feed_goes_silent(world: World) -> None:
    """The link to the query server goes silent: it says how stale it is, gives the link up and catches up by another."""
    await world.settle_all(world.requests(3))
    async with grpc.aio.insecure_channel(world.servers.query, options=CHANNEL_OPTIONS) as channel:
        queries = QueryServiceStub(channel)
        await queries.GetViewStatus(GetViewStatusRequest(min_position=1), timeout=20)
        readers = [Reader(world.feed_link.address) for _ in range(5)]
        async with following(*readers):
            await until(lambda: all(reader.streams for reader in readers), 20, "readers are let in")
            dark = world.feed_link.darken_all()
            await world.settle_all(world.requests(5))
            behind = await queries.GetViewStatus(GetViewStatusRequest())
            await asyncio.sleep(1.0)
            later = await queries.GetViewStatus(GetViewStatusRequest())
            must(later.as_of_position == behind.as_of_position, "a silent link brings nothing")
            must(
                later.lag.silence_milliseconds >= behind.lag.silence_milliseconds + 900,
                "a view that hears nothing says for how long",
            )
            await _all_reach_the_head(world, readers, seconds=60)
        world.faults["link: half-open feed, found again"] += dark


async def _all_reach_the_head(world: World, readers: list[Reader], seconds: float = 90) -> None:
    async with within(60, "L3: the feed brings a new reader to the head"):
        head = Reader(world.servers.feed)
        async for message in head.messages():
            if message.HasField("caught_up"):
                break
    try:
        await asyncio.gather(*(reader.reaches(head.position, seconds) for reader in readers))
    except TimeoutError:
        positions = sorted(reader.position for reader in readers)
        must(False, f"L3: readers reach the head {head.position}, not {positions[0]}")


async def _how_it_ended(stream: object) -> tuple[grpc.StatusCode, str]:
    assert isinstance(stream, grpc.aio.Call)
    try:
        async with within(90, "a stream is ended by the server"):
            async for _ in stream:  # type: ignore[attr-defined]  # a call of a stream, says the method
                pass
    except grpc.aio.AioRpcError as error:
        return error.code(), told(error).reason
    return grpc.StatusCode.OK, ""


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
