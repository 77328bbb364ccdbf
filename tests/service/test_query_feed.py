"""The query server and its feed: losses, kills, restored journals, and feeds that break their promises."""

import asyncio
import random
import re
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from charging.v1.journal_pb2 import CaughtUp, Event, Opened, Record, RecordBatch, SubscribeResponse
from charging.v1.query_pb2 import (
    VIEW_STATE_CATCHING_UP,
    VIEW_STATE_DISCONNECTED,
    VIEW_STATE_LIVE,
    VIEW_STATE_STOPPED,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    GetViewStatusResponse,
    ListChargesRequest,
    WatchChargeRequest,
)
from chassis.disk import Disk, LocalDisk
from chassis.settings import Address
from query_service.lookup import END, Conditions, Rows
from query_service.parts import Parts
from query_service.schema import FORMAT
from query_service.settings import Settings
from query_service.subscriber import FeedLost, JournalDiverged, State, Subscriber
from query_service.verified import BrokenFeed, verify
from query_service.view import View
from query_service.view_file import ViewUnusable
from query_service.waiting import Waiting
from rig.errors import told as read_error
from tests.operations import (
    authorized,
    called_off,
    capture,
    captured,
    held,
    lapsed,
    refund,
    refunded,
    void,
    voided,
)
from tests.sealed import (
    EPOCH_MICROSECONDS,
    UNKNOWN_EVENT,
    SealedJournal,
    abandoned,
    charge_id_of,
    charged,
    declined,
    requested,
    sealed,
    token_issued,
    whole_stretch,
)
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import SERVICE, Client, KeptDisk, client_of, dump, process_of, querying

PAGE_BYTES = 4096
FIXTURES = Path(__file__).parent / "fixtures"
# For loops that poll: far more than they need on a busy machine.
PATIENCE_SECONDS = 30


HOLD = (token_issued(), authorized())
# Of charges of 1000 that open with a hold.
HELD_LIVES = (
    HOLD,
    (
        *HOLD,
        capture(400),
        token_issued(),
        captured(),
        refund(300),
        token_issued(),
        refunded(),
        void(600),
        token_issued(),
    ),
    (token_issued(), void(1000), called_off()),
    (token_issued(), void(1000), authorized(), token_issued(), voided()),
    (*HOLD, capture(1000), token_issued(), lapsed()),
)


def filled(charges: int, journal_id: str = "journal-one") -> SealedJournal:
    """Make a journal with some charges of every kind."""
    journal = SealedJournal(journal_id)
    for number in range(charges):
        ends = ((token_issued(), charged(f"transaction-{number}")), (declined(),), (token_issued(),))
        key, user = f"order-{number:05}", f"user-{number % 7}"
        if number % 4 == 3:
            journal.append(key, held(key, user))
            for event in HELD_LIVES[number % len(HELD_LIVES)]:
                journal.append(key, event)
        else:
            journal.charge(key, user, *ends[number % 3], minor_units=number + 1)
    return journal


@pytest.fixture
async def feed() -> AsyncIterator[FeedServer]:
    async with feeding(filled(40)) as server:
        yield server


async def status(client: Client, at_least: int = 0) -> GetViewStatusResponse:
    return await client.reaches(at_least)


async def state_of(client: Client, state: int) -> GetViewStatusResponse:
    """Ask until the view is in this state."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (answer := await status(client)).state != state:
            pass
    return answer


def remove(view: Path) -> None:
    for end in ("", "-wal", "-shm"):
        Path(f"{view}{end}").unlink(missing_ok=True)


# ---------------------------------------------------------------- rebuilding and resuming
async def test_a_rebuilt_view_equals_the_deleted_one_row_for_row(feed: FeedServer, tmp_path: Path) -> None:
    """A view that was updated live, in small batches and over a restart, against one that read the journal at once."""
    view = tmp_path / "view.db"
    head, feed.batch_records = feed.journal.head, 3
    await feed.hold(head // 2)
    async with querying(feed.address, view) as (_, client):
        await status(client, head // 2)
    await feed.hold(None)
    async with querying(feed.address, view) as (_, client):
        await status(client, head)
    followed = dump(view)
    remove(view)
    feed.batch_records = 500
    async with querying(feed.address, view) as (_, client):
        await status(client, head)
    assert dump(view) == followed
    assert len(followed["charge"]) == 40


async def test_it_continues_from_its_checkpoint(feed: FeedServer, tmp_path: Path) -> None:
    """It sends the journal's id, the position and the chain of its view; a new view sends none."""
    head = feed.journal.head
    for number in (1, 2):
        async with querying(feed.address, tmp_path / "view.db") as (_, client):
            await status(client, head)
            while len(feed.requests) < number:  # noqa: ASYNC110  # the view answers before the feed is open
                await asyncio.sleep(0.01)
    first, second = feed.requests
    assert (first.after_position, first.journal_id, first.chain) == (0, "", b"")
    assert (second.after_position, second.journal_id, second.chain) == (
        head,
        "journal-one",
        feed.journal.chain_at(head),
    )


async def test_a_call_before_the_first_read_of_the_view_does_not_wait_for_the_next_record() -> None:
    """The server listens before it knows its view's position."""
    waiting = Waiting()
    early = asyncio.create_task(waiting.reach(7, 60))
    late = asyncio.create_task(waiting.reach(8, 0.01))
    await asyncio.sleep(0)
    waiting.begun_at(7)
    assert await early
    assert not await late


async def test_a_server_killed_while_it_catches_up_ends_with_an_equal_view(feed: FeedServer, tmp_path: Path) -> None:
    """kill -9, at several points. The file is whole then: it holds the rows up to its checkpoint and no others."""
    view, other = tmp_path / "view.db", tmp_path / "other.db"
    head, feed.batch_records = feed.journal.head, 1
    for held_at in (head // 4, head // 2):
        await feed.hold(held_at)
        async with process_of(feed.address, view) as process:
            serving = await process.logged("serving")
            async with client_of(serving["listen"]) as client:
                await status(client, held_at)
            await feed.hold(None)  # the kill comes in the middle of the next records
            process.send(signal.SIGKILL)
            assert await process.ended() == -signal.SIGKILL
        found = dump(view)
        (checkpoint,), (totals,) = found["checkpoint"], found["totals"]
        position = checkpoint["position"]
        assert position >= held_at
        assert checkpoint["chain"] == feed.journal.chain_at(position)
        assert sorted(entry["position"] for entry in found["entry"]) == list(range(1, position + 1))
        assert len(found["charge"]) == totals["charge_count"]
    async with querying(feed.address, view) as (_, client):
        await status(client, head)
    async with querying(feed.address, other) as (_, client):
        await status(client, head)
    assert dump(view) == dump(other)


async def test_readers_see_whole_batches_only(tmp_path: Path) -> None:
    """Rows and checkpoint agree in every answer, while the view is written."""
    journal = SealedJournal()
    for number in range(1500):  # each record a charge: as many charges as positions, in every state of the view
        journal.charge(f"order-{number:05}", f"user-{number}")
    async with feeding(journal) as feed:
        feed.batch_records = 20
        async with querying(feed.address, tmp_path / "view.db") as (_, client):
            position = 0
            async with asyncio.timeout(PATIENCE_SECONDS):
                while position < journal.head:
                    answer = await status(client)
                    page = await client.queries.ListCharges(ListChargesRequest(page_size=1))
                    position = page.as_of_position
                    assert answer.charge_count == answer.as_of_position
                    assert sum(charge.position for charge in page.charges) == position


async def test_a_query_reads_rows_and_checkpoint_from_one_state_of_the_view(tmp_path: Path) -> None:
    """Even if the view is written between its statements."""
    journal = filled(2)
    records = verify(journal.records, 0, bytes(32))
    begun, written = threading.Event(), threading.Event()

    def find(rows: Rows) -> list[int]:
        counts = [len(rows.charges(Conditions(), END, 9))]
        begun.set()
        assert written.wait(30)
        return [*counts, len(rows.charges(Conditions(), END, 9))]

    view = await View.open(tmp_path / "view.db")
    await view.apply(whole_stretch(records[:3]))
    reading = asyncio.create_task(view.read("default", find))
    assert await asyncio.to_thread(begun.wait, 30)
    await view.apply(whole_stretch(records[3:]))
    written.set()
    shown = await reading
    after = await view.read("default", find)
    await view.close()
    assert (shown.found, shown.checkpoint.position) == ([1, 1], 3)
    assert (after.found, after.checkpoint.position) == ([2, 2], journal.head)


async def test_to_go_on_with_a_charge_takes_one_statement_to_read_it_and_one_for_each_row_that_changes(
    tmp_path: Path,
) -> None:
    """Most of the work of a live view, whose batches are small: a charge is in up to three of them."""
    statements: list[str] = []

    class Watched(LocalDisk):
        def connect(self, path: Path, *, read_only: bool) -> sqlite3.Connection:
            connection = super().connect(path, read_only=read_only)
            connection.set_trace_callback(statements.append)
            return connection

    journal = SealedJournal()
    keys = [f"order-{number:05}" for number in range(7)]
    for key in keys:
        journal.append(key, requested(key))
    for key in keys:
        journal.append(key, token_issued())
    records = verify(journal.records, 0, bytes(32))
    view = await View.open(tmp_path / "view.db", disk=Watched())
    await view.apply(whole_stretch(records[:7]))
    statements.clear()
    await view.apply(whole_stretch(records[7:]))
    about_charges = Counter(text.split()[0] for text in statements if re.search(r"\b(charge|operation)\b", text))
    await view.close()
    assert about_charges == {"SELECT": 7, "UPDATE": 2 * 7}


async def test_records_that_do_not_follow_the_checkpoint_are_refused_whole(tmp_path: Path) -> None:
    """This is the view's last defence, behind the checks of the feed."""
    journal = SealedJournal()
    for number in range(3):
        journal.charge(f"order-{number:05}")
    records = verify(journal.records, 0, bytes(32))
    view = await View.open(tmp_path / "view.db")
    await view.apply(whole_stretch(records[:1]))
    with pytest.raises(sqlite3.IntegrityError):
        await view.apply(whole_stretch(records[2:]))
    with pytest.raises(sqlite3.IntegrityError):
        await view.apply(whole_stretch(records[:1]))
    await view.apply(whole_stretch(records[1:]))
    await view.close()
    assert len(dump(tmp_path / "view.db")["charge"]) == 3


# ---------------------------------------------------------------- feeds that break their promises
def with_gap(records: Sequence[Record]) -> Sequence[Record]:
    return [*records[:9], *records[10:]]


def with_repeat(records: Sequence[Record]) -> Sequence[Record]:
    return [*records[:10], records[9], *records[10:]]


def with_broken_chain(records: Sequence[Record]) -> Sequence[Record]:
    altered = Record()
    altered.CopyFrom(records[9])
    altered.chain = bytes(32)
    return [*records[:9], altered, *records[10:]]


def with_altered_event(records: Sequence[Record]) -> Sequence[Record]:
    altered = Record()
    altered.CopyFrom(records[9])
    altered.event = charged("forged").SerializeToString()
    return [*records[:9], altered, *records[10:]]


def with_altered_time(records: Sequence[Record]) -> Sequence[Record]:
    altered = Record()
    altered.CopyFrom(records[9])
    altered.recorded_at.seconds += 1
    return [*records[:9], altered, *records[10:]]


def with_unreadable_id(records: Sequence[Record]) -> Sequence[Record]:
    altered = Record()
    altered.CopyFrom(records[9])
    altered.charge_id = "no id"
    return [*records[:9], altered, *records[10:]]


def with_a_charge_requested_twice(records: Sequence[Record]) -> Sequence[Record]:
    """A right chain over an impossible journal: the same charge begins again at version 1."""
    twice = sealed(
        records[-1].chain,
        position=len(records) + 1,
        charge_id=records[0].charge_id,
        version=1,
        recorded_at=records[-1].recorded_at.ToMicroseconds() + 1,
        event=requested("order-00000").SerializeToString(),
    )
    return [*records, twice]


def sealed_after(records: Sequence[Record], event: Event, recorded_at: int, number: int = 0) -> Sequence[Record]:
    """A right chain, with one more event of the charge `order-0000n` at its end."""
    versions = [record.version for record in records if record.charge_id == charge_id_of(f"order-{number:05}")]
    added = sealed(
        records[-1].chain,
        position=len(records) + 1,
        charge_id=charge_id_of(f"order-{number:05}"),
        version=max(versions, default=0) + 1,
        recorded_at=recorded_at,
        event=event.SerializeToString(),
    )
    return [*records, added]


def with_charged_after_charged(records: Sequence[Record]) -> Sequence[Record]:
    return sealed_after(records, charged("again"), EPOCH_MICROSECONDS)


def with_a_token_after_an_outcome(records: Sequence[Record]) -> Sequence[Record]:
    return sealed_after(records, token_issued(), EPOCH_MICROSECONDS, number=1)


def with_a_token_after_a_token(records: Sequence[Record]) -> Sequence[Record]:
    return sealed_after(records, token_issued("another"), EPOCH_MICROSECONDS, number=2)


def with_abandoned_after_a_token(records: Sequence[Record]) -> Sequence[Record]:
    return sealed_after(records, abandoned(), EPOCH_MICROSECONDS, number=2)


def with_the_year_10000(records: Sequence[Record]) -> Sequence[Record]:
    return sealed_after(records, requested("order-00999"), 253_402_300_800_000_000, number=999)


def with_the_year_0(records: Sequence[Record]) -> Sequence[Record]:
    return sealed_after(records, requested("order-00999"), -62_135_596_800_000_001, number=999)


def with_a_time_beyond_all_numbers(records: Sequence[Record]) -> Sequence[Record]:
    *before, last = sealed_after(records, requested("order-00999"), EPOCH_MICROSECONDS, number=999)
    last.recorded_at.seconds = 2**63 - 1
    return [*before, last]


def with_nanos_below_zero(records: Sequence[Record]) -> Sequence[Record]:
    """The same microsecond as the true time, and so the same chain."""
    *before, last = sealed_after(records, requested("order-00999"), EPOCH_MICROSECONDS, number=999)
    last.recorded_at.seconds, last.recorded_at.nanos = last.recorded_at.seconds + 1, -1_000_000_000
    return [*before, last]


def with_nanos_of_more_than_a_second(records: Sequence[Record]) -> Sequence[Record]:
    *before, last = sealed_after(records, requested("order-00999"), EPOCH_MICROSECONDS, number=999)
    last.recorded_at.seconds, last.recorded_at.nanos = last.recorded_at.seconds - 1, 1_000_000_000
    return [*before, last]


def with_a_sum_beyond_all_numbers(records: Sequence[Record]) -> Sequence[Record]:
    for number in (998, 999):
        event = requested(f"order-{number:05}", minor_units=2**63 - 1)
        records = sealed_after(records, event, EPOCH_MICROSECONDS, number=number)
    return records


LIES_AT_THE_END = [
    with_charged_after_charged,
    with_a_token_after_an_outcome,
    with_a_token_after_a_token,
    with_abandoned_after_a_token,
    with_the_year_10000,
    with_the_year_0,
    with_a_time_beyond_all_numbers,
    with_nanos_below_zero,
    with_nanos_of_more_than_a_second,
    with_a_sum_beyond_all_numbers,
]
FORGERIES = [
    *LIES_AT_THE_END,
    with_gap,
    with_repeat,
    with_broken_chain,
    with_altered_event,
    with_altered_time,
    with_unreadable_id,
    with_a_charge_requested_twice,
]


@pytest.mark.parametrize("forge", FORGERIES)
async def test_an_untrustworthy_feed_ends_the_subscription_and_leaves_the_view_unchanged(
    feed: FeedServer, tmp_path: Path, forge: Callable[[Sequence[Record]], Sequence[Record]]
) -> None:
    """No record is applied from the first bad one on."""
    view = tmp_path / "view.db"
    feed.batch_records = 1
    feed.forged = forge(feed.journal.records)
    async with querying(feed.address, view) as (running, _):
        with pytest.raises(BrokenFeed):
            await running.following
    (checkpoint,) = dump(view)["checkpoint"]
    assert checkpoint["position"] < len(feed.forged)
    assert checkpoint["chain"] == feed.journal.chain_at(checkpoint["position"])


@pytest.mark.parametrize("forge", LIES_AT_THE_END)
async def test_a_batch_with_a_false_record_is_refused_whole(
    feed: FeedServer, tmp_path: Path, forge: Callable[[Sequence[Record]], Sequence[Record]]
) -> None:
    """The records before the false one came from the same source."""
    view = tmp_path / "view.db"
    feed.forged = forge(feed.journal.records)
    async with querying(feed.address, view) as (running, _):
        with pytest.raises(BrokenFeed):
            await running.following
    held = dump(view)
    (checkpoint,) = held.pop("checkpoint")
    assert checkpoint["position"] == 0
    assert not any(held.values())


@pytest.mark.parametrize("missing", [-1, 1])
async def test_a_feed_with_fewer_records_than_it_names_or_than_the_view_is_broken(tmp_path: Path, missing: int) -> None:
    """Opened names the journal's end: a CaughtUp before it is false, and so is an end before the view's position."""
    journal = filled(3)

    async def short(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        yield SubscribeResponse(opened=Opened(journal_id=journal.journal_id, head_position=journal.head + missing))
        yield SubscribeResponse(batch=RecordBatch(records=journal.records[after_position:]))
        yield SubscribeResponse(caught_up=CaughtUp(position=journal.head))
        await asyncio.Event().wait()

    view = await View.open(tmp_path / "view.db")
    await view.reset(journal.journal_id)
    await view.apply(whole_stretch(verify(journal.records, 0, bytes(32))))
    with pytest.raises(BrokenFeed):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await Subscriber(view, Waiting(), short).run(ignored)
    await view.close()


async def test_rows_read_before_the_view_had_caught_up_are_not_called_live(tmp_path: Path) -> None:
    """Rows are read a moment before the state, and the view may catch up in between."""
    journal = filled(5)

    async def whole(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        yield SubscribeResponse(opened=Opened(journal_id=journal.journal_id, head_position=journal.head))
        yield SubscribeResponse(batch=RecordBatch(records=journal.records))
        yield SubscribeResponse(caught_up=CaughtUp(position=journal.head))
        await asyncio.Event().wait()

    view = await View.open(tmp_path / "view.db")
    following, caught_up = Subscriber(view, Waiting(), whole), asyncio.Event()

    async def set_serving(_: bool) -> None:
        caught_up.set()

    running = asyncio.create_task(following.run(set_serving))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await caught_up.wait()
    assert following.state_of(journal.head) is State.LIVE
    assert following.state_of(journal.head - 1) is following.state_of(0) is State.CATCHING_UP
    running.cancel()
    await asyncio.wait([running])
    await view.close()


async def test_a_lost_last_record_is_noticed_at_caught_up(feed: FeedServer, tmp_path: Path) -> None:
    """CaughtUp names the position up to which every record was sent."""
    feed.forged = feed.journal.records[:-1]
    feed.caught_up_at = feed.journal.head
    async with querying(feed.address, tmp_path / "view.db") as (running, _):
        with pytest.raises(BrokenFeed):
            await running.following


async def test_a_broken_feed_ends_the_process_loudly(feed: FeedServer, tmp_path: Path) -> None:
    """With exit status 1 and a line in the log that says why."""
    feed.forged = with_gap(feed.journal.records)
    async with process_of(feed.address, tmp_path / "view.db") as process:
        line = await process.logged("the feed is broken: the server ends")
        assert line["level"] == "critical"
        assert line["why"] == "after position 9 the feed brought position 11"
        assert await process.ended() == 1


# ---------------------------------------------------------------- another journal
async def test_the_view_is_rebuilt_after_the_journal_has_diverged(feed: FeedServer, tmp_path: Path) -> None:
    """After a restore the journal has a new id and, here, fewer records: no row of the old one is left."""
    view, other = tmp_path / "view.db", tmp_path / "other.db"
    async with querying(feed.address, view) as (_, client):
        await status(client, feed.journal.head)
        await feed.cut()
        feed.journal = filled(5, "journal-two")
        feed.mend()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (answer := await status(client)).journal_id != "journal-two" or answer.state != VIEW_STATE_LIVE:
                pass
        assert (answer.as_of_position, answer.head_position) == (feed.journal.head, feed.journal.head)
        await client.becomes(HealthCheckResponse.SERVING)
    async with querying(feed.address, other) as (_, client):
        await status(client, feed.journal.head)
    assert dump(view) == dump(other)


async def test_a_journal_of_the_same_id_with_another_past_has_diverged_too(feed: FeedServer, tmp_path: Path) -> None:
    """The chain shows it."""
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        await status(client, feed.journal.head)
    journal = SealedJournal()
    for number in range(200):
        journal.charge(f"another-{number}")
    feed.journal = journal
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        answer = await status(client, journal.head)
    assert (answer.charge_count, answer.as_of_position) == (200, 200)


async def test_a_rebuild_of_the_view_ends_a_watch(feed: FeedServer, tmp_path: Path) -> None:
    """The charge may be gone, or may begin again: the watcher has to ask again."""
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        await status(client, feed.journal.head)
        watch = client.queries.WatchCharge(WatchChargeRequest(idempotency_key="order-00000"))
        await watch.read()
        await feed.cut()
        feed.journal = filled(5, "journal-two")
        feed.mend()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.read()
    assert (ended.value.code(), read_error(ended.value).reason) == (grpc.StatusCode.UNAVAILABLE, "VIEW_BEHIND")


async def test_one_server_of_another_journal_in_the_list_costs_no_view(feed: FeedServer, tmp_path: Path) -> None:
    """It is logged once an outage, with its address and a remedy; the view continues when its own journal is back."""
    head = feed.journal.head
    async with feeding(filled(3, "journal-two")) as foreign:
        with structlog.testing.capture_logs() as logs:
            async with querying(f"{feed.address},{foreign.address}", tmp_path / "view.db") as (_, client):
                await state_of(client, VIEW_STATE_LIVE)
                await feed.cut()
                await foreign.asked(3)
                answer = await state_of(client, VIEW_STATE_DISCONNECTED)
                assert (answer.journal_id, answer.as_of_position) == ("journal-one", head)
                health = await client.health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
                assert health.status == HealthCheckResponse.SERVING
                feed.journal.charge("order-99999")
                feed.mend()
                assert (await status(client, head + 1)).journal_id == "journal-one"
                await state_of(client, VIEW_STATE_LIVE)
    refusals = [entry for entry in logs if "another journal" in entry["event"]]
    assert [(entry["log_level"], entry["why"]) for entry in refusals] == [
        (
            "error",
            f"{foreign.address} has another journal than the view: remove it from QUERY_FEED, or the view to follow it",
        )
    ]
    assert len([entry for entry in logs if entry["event"] == "the feed is lost and will be tried again"]) == 2


async def test_the_view_is_rebuilt_if_every_server_in_the_list_has_another_journal(
    feed: FeedServer, tmp_path: Path
) -> None:
    """The journal was restored, and all of them serve the restored one."""
    restored = filled(5, "journal-two")
    async with (
        feeding(feed.journal) as other,
        querying(f"{feed.address},{other.address}", tmp_path / "view.db") as (_, client),
    ):
        await status(client, feed.journal.head)
        await asyncio.gather(feed.cut(), other.cut())
        feed.journal = other.journal = restored
        feed.mend()
        await feed.asked(len(feed.requests) + 2)  # it says so repeatedly, and the other server is away
        assert (await status(client)).journal_id == "journal-one"
        other.mend()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (answer := await status(client)).journal_id != "journal-two" or answer.state != VIEW_STATE_LIVE:
                pass
        assert (answer.charge_count, answer.as_of_position) == (5, restored.head)


# ---------------------------------------------------------------- an event of a later version
async def test_at_an_unknown_event_the_view_grows_stale_and_health_is_not_serving(
    feed: FeedServer, tmp_path: Path
) -> None:
    """The view shows every record before the event, even of the same batch, and none after it."""
    known = feed.journal.head
    feed.journal.append("order-00000", UNKNOWN_EVENT)
    feed.journal.charge("order-99999")
    async with querying(feed.address, tmp_path / "view.db") as (running, client):
        await running.following
        answer = await status(client)
        assert (answer.state, answer.as_of_position, answer.lag.records) == (VIEW_STATE_STOPPED, known, 2)
        health = await client.health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert health.status == HealthCheckResponse.NOT_SERVING
        shown = await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-00000"))
        assert (shown.charge.version, shown.lag.records) == (3, 2)


async def test_a_later_unknown_event_takes_the_server_out_of_service(feed: FeedServer, tmp_path: Path) -> None:
    """Its health changes to not serving; the process stays up and stops in order."""
    async with process_of(feed.address, tmp_path / "view.db") as process:
        serving = await process.logged("serving")
        async with client_of(serving["listen"]) as client:
            await client.becomes(HealthCheckResponse.SERVING)
            feed.journal.append("order-00000", UNKNOWN_EVENT)
            await feed.notify()
            await client.becomes(HealthCheckResponse.NOT_SERVING)
            assert (await status(client)).state == VIEW_STATE_STOPPED
        process.send(signal.SIGTERM)
        assert await process.ended() == 0


# ---------------------------------------------------------------- losses
async def test_it_is_not_serving_until_it_has_caught_up_with_the_first_head(feed: FeedServer, tmp_path: Path) -> None:
    """So no client is sent to an empty view."""
    head = feed.journal.head
    await feed.hold(head - 1)
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        await status(client, head - 1)
        health = await client.health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert health.status == HealthCheckResponse.NOT_SERVING
        await feed.hold(None)
        await client.becomes(HealthCheckResponse.SERVING)
        assert (await status(client)).as_of_position == head


async def test_a_disconnected_server_still_serves_and_reconnects_by_itself(feed: FeedServer, tmp_path: Path) -> None:
    """Answers name the feed's silence; no call is refused because of it."""
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        await client.becomes(HealthCheckResponse.SERVING)
        await feed.cut()
        await state_of(client, VIEW_STATE_DISCONNECTED)
        health = await client.health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert health.status == HealthCheckResponse.SERVING
        shown = await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-00000"))
        assert shown.lag.silence_milliseconds >= 0
        position = feed.journal.charge("order-99999")
        feed.mend()
        assert (await status(client, position)).as_of_position == position


async def test_a_server_that_never_had_a_feed_reports_it(tmp_path: Path) -> None:
    """Silence is -1, and the view is empty and disconnected."""
    async with querying("127.0.0.1:1", tmp_path / "view.db") as (_, client):
        answer = await status(client)
    assert (answer.state, answer.lag.silence_milliseconds) == (VIEW_STATE_DISCONNECTED, -1)
    assert (answer.journal_id, answer.as_of_position, answer.charge_count) == ("", 0, 0)


async def test_when_one_command_server_is_lost_the_next_is_followed(feed: FeedServer, tmp_path: Path) -> None:
    """The command servers of one journal are followed in turn."""
    async with (
        feeding(feed.journal) as second,
        querying(f"{feed.address}, {second.address}", tmp_path / "view.db") as (_, client),
    ):
        await status(client, feed.journal.head)
        await feed.stop()
        position = feed.journal.charge("order-99999")
        assert (await status(client, position)).as_of_position == position
        assert second.requests[0].after_position == position - 1


class Impatient(Parts):
    """Parts of a server for which a silent feed is lost after a moment."""

    def subscriber(self, view: View, waiting: Waiting, servers: Sequence[Address]) -> Subscriber:
        return Subscriber(view, waiting, self.open_feed(servers), clock=self.clock, silence_seconds=0.05)


async def test_a_silent_feed_counts_as_lost(feed: FeedServer, tmp_path: Path) -> None:
    """A dead link may look alive for hours. The limit is 20 s without a message, and shorter here."""
    async with querying(feed.address, tmp_path / "view.db", Impatient):
        await feed.asked(3)
    assert feed.requests[-1].after_position == feed.journal.head


async def test_with_a_full_disk_the_old_view_is_served_and_then_continues(feed: FeedServer, tmp_path: Path) -> None:
    """An unwritten batch does not show, and is not skipped."""
    head, feed.batch_records = feed.journal.head, 5
    await feed.hold(10)
    disk = KeptDisk()
    async with querying(feed.address, tmp_path / "view.db", on(disk.as_one())) as (_, client):
        await status(client, 10)
        (pages,) = await disk.by_the_writer(lambda writer: writer.execute("PRAGMA page_count").fetchone())
        await limit(disk, pages)
        for number in range(300):
            head = feed.journal.charge(f"more-{number}")
        with structlog.testing.capture_logs() as logs:
            await feed.hold(None)
            await feed.asked(4)  # it has failed and tried again more than once
        told = [entry["event"] for entry in logs if entry["log_level"] != "info"]
        assert told == ["the view cannot be written, its disk may be full, and it will be tried again"]
        full = await status(client)
        assert full.state == VIEW_STATE_CATCHING_UP  # the command server can be reached
        assert 10 <= full.as_of_position < head
        assert (await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-00000"))).charge.version == 3
        await limit(disk, 1 << 20)
        assert (await status(client, head)).charge_count == 340


async def limit(disk: KeptDisk, pages: int) -> None:
    """Limit the pages of the view's file: at the limit SQLite reports a full disk."""
    await disk.by_the_writer(lambda writer: writer.execute(f"PRAGMA max_page_count = {pages}").fetchone())


def on(disk: Disk) -> Callable[[Settings], Parts]:
    """Make parts of a server whose view is on this disk."""

    class OnDisk(Parts):
        def disk(self) -> Disk:
            return disk

    return OnDisk


async def test_pauses_grow_to_five_seconds_and_have_full_jitter(tmp_path: Path) -> None:
    """The first one is short. Feed, clock and chance are passed in: the test needs no grpc."""

    class Chance(random.Random):
        longest: list[float]

        def uniform(self, a: float, b: float) -> float:
            assert a == 0.0
            self.longest.append(b)
            return 0.0

    async def lost(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        if len(chance.longest) < 8:
            raise FeedLost("no route")
        enough.set()
        await asyncio.Event().wait()
        yield SubscribeResponse()

    chance, enough = Chance(), asyncio.Event()
    chance.longest = []
    view = await View.open(tmp_path / "view.db")
    following = asyncio.create_task(Subscriber(view, Waiting(), lost, clock=lambda: 0.0, chance=chance).run(ignored))
    await enough.wait()
    following.cancel()
    await asyncio.wait([following])
    await view.close()
    assert chance.longest == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_a_view_under_rebuild_is_out_of_service_until_it_has_caught_up(tmp_path: Path) -> None:
    """No client is sent to a view that has just been emptied."""
    journals = {"journal-one": filled(3), "journal-two": filled(2, "journal-two")}
    healths: list[bool] = []
    is_complete = asyncio.Event()

    async def set_serving(is_serving: bool) -> None:
        healths.append(is_serving)
        if len(healths) == 3:
            is_complete.set()

    async def feed(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        if after_position:
            raise JournalDiverged
        journal = journals.pop(next(iter(journals)))
        yield SubscribeResponse(opened=Opened(journal_id=journal.journal_id, head_position=journal.head))
        yield SubscribeResponse(batch=RecordBatch(records=journal.records))
        yield SubscribeResponse(caught_up=CaughtUp(position=journal.head))
        if not journals:
            await asyncio.Event().wait()

    view = await View.open(tmp_path / "view.db")
    following = asyncio.create_task(Subscriber(view, Waiting(), feed).run(set_serving))
    await is_complete.wait()
    following.cancel()
    await asyncio.wait([following])
    await view.close()
    assert healths == [True, False, True]


async def test_an_emptied_view_is_not_called_live(tmp_path: Path) -> None:
    """It is catching up from its start, even before a feed opens again."""
    journals = [filled(3)]
    asked_again = asyncio.Event()

    async def feed(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        if not journals:
            asked_again.set()
            await asyncio.Event().wait()
        journal = journals.pop()
        yield SubscribeResponse(opened=Opened(journal_id=journal.journal_id, head_position=journal.head))
        yield SubscribeResponse(batch=RecordBatch(records=journal.records))
        yield SubscribeResponse(caught_up=CaughtUp(position=journal.head))
        while follower.state is not State.LIVE:  # noqa: ASYNC110  # the feed waits for its own effect
            await asyncio.sleep(0)
        raise JournalDiverged

    view, waiting = await View.open(tmp_path / "view.db"), Waiting()
    await view.reset("journal-one")  # so that it has a journal to diverge from
    follower = Subscriber(view, waiting, feed)
    following = asyncio.create_task(follower.run(ignored))
    await asked_again.wait()
    assert (follower.state, waiting.position) == (State.CATCHING_UP, 0)
    following.cancel()
    await asyncio.wait([following])
    await view.close()


async def ignored(is_serving: bool) -> None:
    """Ignore health."""


# ---------------------------------------------------------------- the file and the process
async def test_a_second_server_on_the_same_view_ends_with_a_clear_message(feed: FeedServer, tmp_path: Path) -> None:
    """With exit status 1 and a remedy."""
    view = tmp_path / "view.db"
    async with querying(feed.address, view), process_of(feed.address, view) as process:
        assert await process.ended() == 1
    assert process.text().splitlines()[-1].startswith("error: another query server has the view")


async def test_a_view_of_another_format_is_removed_and_rebuilt(feed: FeedServer, tmp_path: Path) -> None:
    """Its rows may have another meaning."""
    view = tmp_path / "view.db"
    async with querying(feed.address, view) as (_, client):
        await status(client, feed.journal.head)
    expected = dump(view)
    connection = sqlite3.connect(view)
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.execute("DROP TABLE summary")
    connection.close()
    async with querying(feed.address, view) as (_, client):
        await status(client, feed.journal.head)
    assert dump(view) == expected
    assert feed.requests[-1].after_position == 0


@pytest.mark.parametrize("former", [1, 2])
async def test_a_view_of_a_former_format_is_rebuilt_by_itself(tmp_path: Path, former: int) -> None:
    """The file is a former version's: its journal is followed again from the start, into rows of today's shape."""
    journal = SealedJournal()
    journal.charge("order-0001", "user-1", token_issued(), charged())
    journal.charge("order-0002", "user-2", declined())
    journal.charge("order-0003", "user-1", token_issued())
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript((FIXTURES / f"view_{former}.sql").read_text())
        assert connection.execute("SELECT journal_id, position FROM checkpoint").fetchone() == (
            "journal-one",
            journal.head,
        )
    async with feeding(journal) as feed:
        for view in (old, new):
            with structlog.testing.capture_logs() as logs:
                async with querying(feed.address, view) as (_, client):
                    await status(client, journal.head)
            told = [entry for entry in logs if "another format" in entry["event"]]
            assert [(entry["found"], entry["wanted"]) for entry in told] == ([(former, FORMAT)] if view == old else [])
        assert [request.after_position for request in feed.requests] == [0, 0]
    assert dump(old) == dump(new)


@pytest.mark.parametrize("content", ["sqlite", "text"])
async def test_a_file_that_is_no_view_is_never_touched(feed: FeedServer, tmp_path: Path, content: str) -> None:
    """A mistyped path must not cost a journal."""
    path = tmp_path / "journal.db"
    if content == "sqlite":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE record (position INTEGER PRIMARY KEY)")
        connection.close()
    else:
        path.write_text("not a database at all, but long enough to be one's header" * 10)
    before = path.read_bytes()
    with pytest.raises(ViewUnusable):
        await View.open(path)
    assert path.read_bytes() == before


def all_but_the_first_page(content: bytes, _: int) -> bytes:
    return content[:PAGE_BYTES] + b"\xff" * (len(content) - PAGE_BYTES)


def cut_short(content: bytes, _: int) -> bytes:
    return content[:PAGE_BYTES]


def one_table(content: bytes, page: int) -> bytes:
    return content[: (page - 1) * PAGE_BYTES] + b"\xff" * PAGE_BYTES + content[page * PAGE_BYTES :]


async def damaged(feed: FeedServer, view: Path, damage: Callable[[bytes, int], bytes]) -> dict[str, list[Any]]:
    """Make a view, return its rows, and damage the file, or the table of sums in it."""
    async with querying(feed.address, view) as (_, client):
        await status(client, feed.journal.head)
    held = dump(view)
    with closing(sqlite3.connect(view)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'summary'").fetchone()
    view.write_bytes(damage(view.read_bytes(), page))
    return held


@pytest.mark.parametrize("damage", [all_but_the_first_page, cut_short])
async def test_a_view_found_damaged_at_the_start_is_removed_and_rebuilt(
    feed: FeedServer, tmp_path: Path, damage: Callable[[bytes, int], bytes]
) -> None:
    """Without an operator's help."""
    held = await damaged(feed, tmp_path / "view.db", damage)
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        await status(client, feed.journal.head)
    assert dump(tmp_path / "view.db") == held


@pytest.mark.parametrize("met_by", ["a query", "the writer"])
async def test_damage_found_at_run_time_ends_the_server_and_the_next_start_rebuilds_the_view(
    feed: FeedServer, tmp_path: Path, met_by: str
) -> None:
    """With exit status 1 and a line in the log, for its supervisor: a running server would refuse that query for ever."""
    view = tmp_path / "view.db"
    held = await damaged(feed, view, one_table)
    async with process_of(feed.address, view) as process:
        serving = await process.logged("serving")
        async with client_of(serving["listen"]) as client:
            await client.becomes(HealthCheckResponse.SERVING)
            if met_by == "a query":
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))
            else:
                feed.journal.charge("order-99999")
                await feed.notify()
            assert await process.ended() == 1
    assert process.text().splitlines()[-1].startswith("error: the view is damaged")
    async with querying(feed.address, view) as (_, client):
        await status(client, feed.journal.head)
    assert len(dump(view)["summary"]) == len(held["summary"])


async def test_a_file_that_replaced_a_damaged_view_is_not_removed(feed: FeedServer, tmp_path: Path) -> None:
    """Only a view is disposable."""
    view = tmp_path / "view.db"
    await damaged(feed, view, one_table)
    with pytest.raises(ViewUnusable, match="damaged"):
        async with querying(feed.address, view) as (running, _):
            view.rename(tmp_path / "moved.db")
            view.write_text("somebody's")
            feed.journal.charge("order-99999")
            await feed.notify()
            await running.following
    assert view.read_text() == "somebody's"


async def test_a_server_that_is_asked_to_stop_drains_and_exits_with_zero(feed: FeedServer, tmp_path: Path) -> None:
    """A call that waits for a position still gets it: the view advances during the drain."""
    async with process_of(feed.address, tmp_path / "view.db") as process:
        serving = await process.logged("serving")
        assert serving["service"] == "query"
        async with client_of(serving["listen"]) as client:
            await client.becomes(HealthCheckResponse.SERVING)
            position = feed.journal.head + 1
            waits = asyncio.ensure_future(client.queries.GetViewStatus(GetViewStatusRequest(min_position=position)))
            for _ in range(3):  # later calls on the same connection: once they are answered, it has arrived
                await asyncio.sleep(0)
                await status(client)
            process.send(signal.SIGTERM)
            await process.logged("draining")
            feed.journal.charge("order-99999")
            await feed.notify()
            assert (await waits).as_of_position == position
        assert await process.ended() == 0


async def test_all_faults_of_the_settings_are_reported_together(tmp_path: Path) -> None:
    """Each with the variable's name and its purpose."""
    async with process_of("nowhere", tmp_path / "view.db", QUERY_MAX_CALLS="many", QUERY_REFLECTION="maybe") as process:
        assert await process.ended() == 1
    text = process.text()
    for variable in ("QUERY_FEED", "QUERY_MAX_CALLS", "QUERY_REFLECTION"):
        assert variable in text
