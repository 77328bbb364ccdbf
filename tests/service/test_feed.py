"""The feed over a real channel, by the numbered steps of protos/charging/v1/journal.proto.

The journal is real and filled with bytes that are no events: the feed decodes nothing.
"""

import asyncio
import contextlib
import hashlib
import sqlite3
import struct
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
import pytest
import structlog.testing

from charging.v1 import journal_pb2_grpc
from charging.v1.journal_pb2 import Record, SubscribeRequest, SubscribeResponse
from chassis.server import Server
from command_service.feed import ANY_READER, Feed, JournalService
from command_service.journal import Place
from command_service.journal import Record as Stored
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from command_service.owners import Owners
from contract.errors import command_refusal as refusal
from rig.alone import start_alone
from rig.errors import Told, refused, told
from rig.world import a_request, a_world, head, until

NEVER_SECONDS = 3_600.0


class Counted(GroupCommit):
    """A journal that counts its reads for the feed, and delays them while `may_read` is not set."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.read_at: list[int] = []
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def read_after(self, place: Place) -> Sequence[Stored]:
        self.read_at.append(place.position)
        await self.may_read.wait()
        return await super().read_after(place)


class Source:
    """A journal and the server of its feed."""

    def __init__(self, path: Path, journal: Counted, feed: Feed, server: Server, channel: grpc.aio.Channel) -> None:
        self.path = path
        self.journal = journal
        self.feed = feed
        self.server = server
        self.stub = journal_pb2_grpc.JournalServiceStub(channel)
        self.subscribe: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/charging.v1.JournalService/Subscribe", request_serializer=bytes, response_deserializer=bytes
        )

    async def filled(self, count: int, size: int = 100) -> None:
        """Append records of `size` bytes, ten to a stream."""
        streams = [range(first, min(first + 10, count)) for first in range(0, count, 10)]
        await asyncio.gather(
            *[
                self.journal.append(str(uuid.uuid4()), 0, [bytes([n % 251]) * size for n in stream], finished=True)
                for stream in streams
            ]
        )

    def reader(self, after: Place | None = None, journal_id: str = "") -> "Reader":
        """A reader from the beginning or from a place; it sends the place's chain, if known."""
        place = after or Place(0, b"")
        return Reader(
            self, SubscribeRequest(after_position=place.position, journal_id=journal_id, chain=place.chain), place
        )

    def damage(self, position: int) -> None:
        """Flip a bit of a record in the file, as a bad disk would."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            (event,) = connection.execute("SELECT event FROM record WHERE position = ?", (position,)).fetchone()
            flipped = bytes([event[0] ^ 1]) + event[1:]
            connection.execute("UPDATE record SET event = ? WHERE position = ?", (flipped, position))


class Reader:
    """Follows a feed, and verifies it by the contract's rules for readers."""

    def __init__(self, source: Source, request: SubscribeRequest, place: Place) -> None:
        self.call = source.stub.Subscribe(request)
        self.place = Place(place.position, place.chain or (bytes(32) if not place.position else b""))
        self.records: list[Record] = []

    async def next(self) -> SubscribeResponse:
        message = await self.call.read()
        if not isinstance(message, SubscribeResponse):
            await self.call  # type: ignore[misc]  # raises the error that the stream has ended with
        assert isinstance(message, SubscribeResponse)
        for record in message.batch.records:
            assert record.position == self.place.position + 1
            if self.place.chain:
                assert record.chain == chained(self.place.chain, record)
            self.place = Place(record.position, record.chain)
            self.records.append(record)
        return message

    async def until(self, kind: str) -> list[str]:
        """Read to the next message of a kind; return the kinds of all messages read."""
        kinds: list[str] = []
        while kinds[-1:] != [kind]:
            kinds.append(str((await self.next()).WhichOneof("item")))
        return kinds

    async def end(self) -> Told:
        """Read on to the error that ends the stream."""
        try:
            while True:
                await self.next()
        except grpc.aio.AioRpcError as error:
            return told(error)

    def leave(self) -> None:
        self.call.cancel()


def chained(before: bytes, record: Record) -> bytes:
    """A record's chain, computed by the contract's text."""
    recorded_at = record.recorded_at.seconds * 1_000_000 + record.recorded_at.nanos // 1_000
    return hashlib.sha256(
        before
        + struct.pack(">Q", record.position)
        + uuid.UUID(record.charge_id).bytes
        + struct.pack(">QQ", record.version, recorded_at)
        + hashlib.sha256(record.event).digest()
    ).digest()


def _never() -> NoReturn:
    raise AssertionError("a commit's fate is unknown")


@asynccontextmanager
async def a_source(
    folder: Path, *, heartbeat_seconds: float = NEVER_SECONDS, slow_reader_seconds: float = NEVER_SECONDS
) -> AsyncIterator[Source]:
    path = folder / "journal.db"
    journal = await Counted.open(await SqliteFile(path).open(), now=lambda: time.time_ns() // 1_000, end_process=_never)
    assert isinstance(journal, Counted)
    feed = Feed(journal, Owners(journal).of, heartbeat_seconds=heartbeat_seconds)
    service = JournalService(feed, slow_reader_seconds=slow_reader_seconds)
    server = await start_alone(service.register, "charging.v1.JournalService", refusal, anybody=ANY_READER)
    try:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            yield Source(path, journal, feed, server, channel)
    finally:
        feed.stop()
        await server.drain(2)
        await journal.close()


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    async with a_source(tmp_path) as source:
        yield source


# ---------------------------------------------------------------- steps 2 to 4
async def test_a_stream_opens_sends_every_record_and_then_caught_up(source: Source) -> None:
    """Without gaps, chained, and with the stored bytes unchanged."""
    await source.filled(1_234)
    reader = source.reader()
    opened = await reader.next()
    assert (opened.opened.journal_id, opened.opened.head_position) == (source.journal.journal_id, 1_234)
    kinds = await reader.until("caught_up")
    assert kinds == ["batch", "batch", "batch", "caught_up"]
    assert reader.place == source.journal.head
    stored = [record async for record in all_stored(source.journal)]
    assert [
        (r.position, r.charge_id, r.version, r.recorded_at.ToMicroseconds(), r.chain, r.event) for r in reader.records
    ] == [(r.position, r.charge_id, r.version, r.recorded_at, r.chain, r.event) for r in stored]


async def all_stored(journal: GroupCommit) -> AsyncIterator[Stored]:
    place = Place(0, bytes(32))
    while place.position < journal.head.position:
        for record in await GroupCommit.read_after(journal, place):
            place = Place(record.position, record.chain)
            yield record


async def test_a_reader_of_an_empty_journal_has_caught_up_at_once(source: Source) -> None:
    """At position 0."""
    reader = source.reader()
    opened, caught_up = await reader.next(), await reader.next()
    assert opened.HasField("opened")
    assert opened.opened.head_position == 0
    assert caught_up.HasField("caught_up")
    assert caught_up.caught_up.position == 0


async def test_a_batch_is_at_most_500_records_and_about_a_mebibyte(source: Source) -> None:
    """A larger record comes alone."""
    await source.filled(600)
    await source.filled(40, size=100_000)
    await source.filled(1, size=1_500_000)
    await source.filled(3)
    reader, sizes = source.reader(), []
    while not (message := await reader.next()).HasField("caught_up"):
        sizes.append((len(message.batch.records), message.ByteSize()))
    sizes = sizes[1:]
    assert max(count for count, _ in sizes) == 500
    assert [(count, size > 1_500_000) for count, size in sizes if size > (1 << 20) + 1_000] == [(1, True)]
    assert len(reader.records) == 644


async def test_later_records_come_live_without_polling_or_heartbeat(source: Source) -> None:
    """Appended while the stream opens, while it catches up, and long after."""
    await source.filled(700)
    reader = source.reader()
    await reader.next()
    await source.filled(10)
    await reader.until("caught_up")
    for count in (1, 1, 30):
        await source.filled(count)
        while reader.place != source.journal.head:
            assert (await reader.next()).HasField("batch")


async def test_a_reader_misses_nothing_while_the_journal_is_written(source: Source) -> None:
    """Old and live records are one sequence."""
    reader = source.reader()

    async def write() -> None:
        for _ in range(40):
            await source.filled(25)

    writing = asyncio.ensure_future(write())
    while reader.place.position < 1_000:
        await reader.next()
    await writing
    assert reader.place == source.journal.head


# ---------------------------------------------------------------- steps 1 and 2
async def test_a_reader_resumes_from_its_checkpoint(source: Source) -> None:
    """With or without the journal's id and chain; at the head, too."""
    await source.filled(50)
    first = source.reader()
    await first.until("caught_up")
    first.leave()
    await source.filled(20)
    again = source.reader(first.place, source.journal.journal_id)
    assert await again.until("caught_up") == ["opened", "batch", "caught_up"]
    assert [record.position for record in again.records] == list(range(51, 71))
    forgetful = source.reader(Place(first.place.position, b""))
    await forgetful.until("caught_up")
    assert forgetful.records == again.records
    at_head = source.reader(again.place, source.journal.journal_id)
    assert await at_head.until("caught_up") == ["opened", "caught_up"]


@pytest.mark.parametrize(
    "what", ["ahead", "far ahead", "other id", "other chain", "chain of another place", "chain at 0"]
)
async def test_a_reader_that_followed_another_journal_gets_the_error_that_makes_it_rebuild(
    source: Source, what: str
) -> None:
    """FAILED_PRECONDITION JOURNAL_DIVERGED, before any message."""
    await source.filled(20)
    known, own = source.journal.head, source.journal.journal_id
    reader = {
        "ahead": lambda: source.reader(Place(21, b""), own),
        "far ahead": lambda: source.reader(Place(2**63 - 1, known.chain), own),
        "other id": lambda: source.reader(known, str(uuid.uuid4())),
        "other chain": lambda: source.reader(Place(20, bytes(32)), own),
        "chain of another place": lambda: source.reader(Place(19, known.chain), own),
        "chain at 0": lambda: source.reader(Place(0, known.chain), own),
    }[what]()
    answer = await refused(reader.next())
    assert (answer.code, answer.reason, answer.advice, answer.retry_after_seconds) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "JOURNAL_DIVERGED",
        "DO_NOT_RETRY",
        None,
    )


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (SubscribeRequest(after_position=-1), {"after_position"}),
        (SubscribeRequest(after_position=-(2**63)), {"after_position"}),
        (SubscribeRequest(chain=b"c" * 31), {"chain"}),
        (SubscribeRequest(chain=b"c" * 33), {"chain"}),
        (b"\xff\xff\xff", set()),
        (b"\x12\x02\xc3\x28", set()),
    ],
)
async def test_a_bad_subscription_is_refused_by_its_fields_name(
    source: Source, request_: SubscribeRequest | bytes, fields: set[str]
) -> None:
    """INVALID_ARGUMENT INVALID_REQUEST."""
    body = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    answer = await refused(source.subscribe(body).__aiter__().__anext__())
    assert (answer.code, answer.reason, answer.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        frozenset(fields),
    )


# ---------------------------------------------------------------- steps 5 to 7
async def test_while_nothing_is_appended_heartbeats_carry_the_head(tmp_path: Path) -> None:
    """They come after CaughtUp, repeatedly, and records come between them."""
    async with a_source(tmp_path, heartbeat_seconds=0.02) as source:
        await source.filled(3)
        reader = source.reader()
        assert await reader.until("heartbeat") == ["opened", "batch", "caught_up", "heartbeat"]
        assert (await reader.next()).heartbeat.head_position == 3
        await source.filled(2)
        await reader.until("batch")
        while not (message := await reader.next()).HasField("heartbeat"):
            pass
        assert message.heartbeat.head_position == reader.place.position == 5


async def test_a_reader_that_does_not_read_is_cut_off_while_others_go_on_and_resumes(tmp_path: Path) -> None:
    """It finds READER_TOO_SLOW after the sent messages, and can read every missing record again."""
    async with a_source(tmp_path, slow_reader_seconds=5) as source:
        await source.filled(1_000, size=16_000)  # three times the capacity of a connection whose reader does not read
        stuck, lively = source.reader(), source.reader()
        await stuck.next()
        with structlog.testing.capture_logs() as entries:
            await lively.until("caught_up")
            await until(lambda: any("cut off" in entry["event"] for entry in entries))
        await source.filled(1)
        await lively.until("batch")
        assert lively.place == source.journal.head

        answer = await stuck.end()
        assert (answer.code, answer.reason, answer.advice) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "READER_TOO_SLOW",
            "RETRY_SAME_KEY",
        )
        assert 0 < stuck.place.position < 1_000
        again = source.reader(stuck.place, source.journal.journal_id)
        await again.until("caught_up")
        assert stuck.records + again.records == lively.records


async def test_a_server_that_stops_sends_the_last_outcomes_and_ends_its_streams(tmp_path: Path) -> None:
    """UNAVAILABLE SERVER_STOPPING: the reader connects again and resumes."""
    async with a_world(tmp_path, COMMAND_DRAIN_SECONDS="20") as world:
        call = world.journals.Subscribe(SubscribeRequest())
        await world.trouble("execute", "delay", seconds=0.3)
        waiting = asyncio.ensure_future(world.charge(a_request()))
        await until(lambda: head(world.journal).position == 2)
        draining = asyncio.ensure_future(world.drain())
        got: list[Record] = []
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for message in call:
                got += message.batch.records
        answer = told(ended.value)
        assert (answer.code, answer.reason, answer.advice) == (
            grpc.StatusCode.UNAVAILABLE,
            "SERVER_STOPPING",
            "RETRY_SAME_KEY",
        )
        assert [record.position for record in got] == [1, 2, (await waiting).position]
        await draining


# ---------------------------------------------------------------- many readers
async def test_readers_at_one_place_share_the_reads_of_the_journal(source: Source) -> None:
    """Thirty of them cost as many reads as one, catching up and live."""
    await source.filled(1_200)
    readers = [source.reader() for _ in range(30)]
    await asyncio.gather(*[reader.until("caught_up") for reader in readers])
    assert source.journal.read_at == [0, 500, 1_000]
    await source.filled(1)
    await asyncio.gather(*[reader.until("batch") for reader in readers])
    assert source.journal.read_at == [0, 500, 1_000, 1_200]
    assert {reader.place for reader in readers} == {source.journal.head}


async def test_a_batch_is_encoded_once_for_all_readers_at_one_place(source: Source) -> None:
    """All get the same bytes object, and gRPC sends it unchanged."""
    await source.filled(10)
    batches = []
    for _ in range(3):
        async with contextlib.aclosing(source.feed.follow(SubscribeRequest())) as messages:
            await anext(messages)
            batches.append(await anext(messages))
    assert len(SubscribeResponse.FromString(batches[0]).batch.records) == 10
    assert all(batch is batches[0] for batch in batches)
    call = source.subscribe(SubscribeRequest().SerializeToString())
    assert [await call.read(), await call.read()][1] == batches[0]


async def test_a_feed_that_stops_ends_the_streams_that_wait(source: Source) -> None:
    """Any number of them, at once and without another heartbeat."""
    readers = [source.reader() for _ in range(20)]
    await asyncio.gather(*[reader.until("caught_up") for reader in readers])
    source.feed.stop()
    ends = await asyncio.gather(*[reader.end() for reader in readers])
    assert {answer.reason for answer in ends} == {"SERVER_STOPPING"}


async def test_a_feed_that_stops_has_sent_every_record_to_readers_that_caught_up(source: Source) -> None:
    """Also records that were appended during the pause before a reader's next message."""
    reader = source.reader()
    await reader.until("caught_up")
    await source.filled(1)
    await reader.until("batch")
    await source.filled(1)
    source.feed.stop()
    assert (await reader.end()).reason == "SERVER_STOPPING"
    assert reader.place == source.journal.head


async def test_a_reader_that_leaves_does_not_end_the_shared_read(source: Source) -> None:
    """Not even the reader that began it."""
    await source.filled(10)
    source.journal.may_read.clear()
    first = source.reader()
    await first.next()
    await until(lambda: source.journal.read_at)
    second = source.reader()
    await second.next()
    waiting = asyncio.ensure_future(second.next())
    first.leave()
    with pytest.raises(asyncio.CancelledError):
        await first.next()
    source.journal.may_read.set()
    assert len((await waiting).batch.records) == 10
    assert source.journal.read_at == [0]


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize("position", [1, 15, 501, 550])
async def test_a_damaged_record_is_never_served_and_the_records_before_it_are(source: Source, position: int) -> None:
    """DATA_LOSS JOURNAL_CORRUPT in its place, each time."""
    await source.filled(600)
    source.damage(position)
    for _ in range(2):
        reader = source.reader()
        answer = await reader.end()
        assert (answer.code, answer.reason, answer.advice) == (
            grpc.StatusCode.DATA_LOSS,
            "JOURNAL_CORRUPT",
            "ASK_STATUS",
        )
        assert reader.place.position == position - 1


async def test_a_record_that_is_damaged_while_a_stream_is_open_is_not_served(source: Source) -> None:
    """Neither it nor any record after it is sent."""
    await source.filled(10)
    reader = source.reader()
    await reader.until("caught_up")
    source.journal.may_read.clear()
    await source.filled(5)
    await until(lambda: source.journal.read_at[-1] == 10)
    source.damage(11)
    source.journal.may_read.set()
    assert (await reader.end()).reason == "JOURNAL_CORRUPT"
    assert reader.place.position == 10
