"""A view that follows a tenant's feed: the rows of its tenant, as a view of the whole journal has them, and nothing else."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from charging.v1.journal_pb2 import CaughtUp, Opened, Passed, Record, RecordBatch, SubscribeResponse
from charging.v1.query_pb2 import VIEW_STATE_LIVE, GetViewStatusResponse
from contract.chain import START, Place
from query_service.subscriber import Subscriber
from query_service.verified import BrokenFeed, stretch_of
from query_service.view import View
from query_service.waiting import Waiting
from tests.sealed import UNKNOWN_EVENT, SealedJournal, charged, declined, requested, token_issued
from tests.service.query_rig import Client, dump, process_of, querying
from tests.service.street import CAFE, NOBODY, SHOP, WHOLE, Street, a_street

PATIENCE_SECONDS = 30.0


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with a_street(tmp_path) as street:
        yield street


async def busy(street: Street, first: int, last: int) -> None:
    """Charges of two tenants, which use the same keys; the café's run on for a while at the end."""
    for n in range(first, last):
        for tenant in (SHOP, CAFE):
            await street.begin(tenant, f"order-{n}")
        await street.append(CAFE, f"order-{n}", token_issued(), declined())
        await street.append(SHOP, f"order-{n}", token_issued())
        if n % 2:
            await street.append(SHOP, f"order-{n}", charged())
        await street.charge(CAFE, f"more-{n}")


async def live(client: Client, position: int) -> GetViewStatusResponse:
    """Wait until the view is live at a position."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await client.reaches(position)
            if answer.state == VIEW_STATE_LIVE:
                return answer


def rows_of(view: Path, tenant: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a tenant, apart from its number: every view counts its tenants for itself."""
    tables = dump(view)
    del tables["checkpoint"]
    (number,) = [row["tenant"] for row in tables.pop("tenant") if row["name"] == tenant]
    of_tenant = {name: [row for row in rows if row["tenant"] == number] for name, rows in tables.items()}
    return {
        name: [{column: row[column] for column in row if column != "tenant"} for row in rows]
        for name, rows in of_tenant.items()
    }


# ---------------------------------------------------------------- the same rows
async def test_a_tenants_view_has_the_rows_that_the_whole_view_has_of_this_tenant(
    street: Street, tmp_path: Path
) -> None:
    """Every table, after catching up and after going on live; of others nothing, not even a tenant's name."""
    await busy(street, 0, 20)
    async with (
        querying(street.addresses[WHOLE], tmp_path / "whole.db") as (_, whole),
        querying(street.addresses[SHOP], tmp_path / "shop.db") as (_, shop),
        querying(street.addresses[CAFE], tmp_path / "cafe.db") as (_, cafe),
    ):
        for client in (whole, shop, cafe):
            await live(client, street.journal.head.position)
        await busy(street, 20, 40)
        for client in (whole, shop, cafe):
            await live(client, street.journal.head.position)
    for tenant, view in ((SHOP, "shop.db"), (CAFE, "cafe.db")):
        assert rows_of(tmp_path / view, tenant) == rows_of(tmp_path / "whole.db", tenant)
        found = dump(tmp_path / view)
        assert [row["name"] for row in found["tenant"]] == [tenant]
        assert {row["tenant"] for table in ("charge", "operation", "entry") for row in found[table]} == {1}
        (checkpoint,) = found["checkpoint"]
        assert (checkpoint["position"], checkpoint["chain"]) == (
            street.journal.head.position,
            street.journal.head.chain,
        )


async def test_a_tenants_view_keeps_up_while_only_others_work(street: Street, tmp_path: Path) -> None:
    """Its positions are the journal's: it is live, has no lag, and answers calls that wait for another's position."""
    await street.charge(SHOP, "order-1")
    async with querying(street.addresses[SHOP], tmp_path / "view.db") as (_, client):
        for n in range(5):
            head = (await street.charge(CAFE, f"order-{n}")).position
            answer = await live(client, head)
            assert (answer.as_of_position, answer.head_position, answer.lag.records) == (head, head, 0)
        assert answer.journal_id == f"{street.journal.journal_id}/{SHOP}"
    async with querying(street.addresses[NOBODY], tmp_path / "nobody.db") as (_, client):
        assert (await live(client, head)).as_of_position == head


# ---------------------------------------------------------------- going on
async def test_a_tenants_view_goes_on_after_a_kill_from_a_place_in_others_records(
    street: Street, tmp_path: Path
) -> None:
    """The checkpoint had moved over them: they are not read again, and the rows are those of an undisturbed view."""
    await busy(street, 0, 10)
    view, head = tmp_path / "view.db", street.journal.head.position
    async with process_of(street.addresses[SHOP], view) as process:
        line = await process.logged("the view has caught up")
        assert line["position"] == head
        await process.kill()
    assert head not in [record.position for record in await street.stored(SHOP)]
    street.journal.reads.clear()
    await busy(street, 10, 20)
    async with querying(street.addresses[SHOP], view) as (_, client):
        await live(client, street.journal.head.position)
    assert min(street.journal.reads) == head
    async with querying(street.addresses[WHOLE], tmp_path / "whole.db") as (_, client):
        await live(client, street.journal.head.position)
    assert rows_of(view, SHOP) == rows_of(tmp_path / "whole.db", SHOP)


async def test_a_view_is_rebuilt_by_itself_when_its_feed_becomes_a_tenants_or_anothers_or_the_whole(
    street: Street, tmp_path: Path
) -> None:
    """No row of the former feed is left, and none is missing."""
    await busy(street, 0, 10)
    view, head, journal_id = tmp_path / "view.db", street.journal.head.position, street.journal.journal_id
    for tenant, whose in ((WHOLE, {SHOP, CAFE}), (SHOP, {SHOP}), (CAFE, {CAFE}), (WHOLE, {SHOP, CAFE})):
        expected = f"{journal_id}/{tenant}" if tenant else journal_id
        async with querying(street.addresses[tenant], view) as (_, client):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (answer := await live(client, 0)).journal_id != expected or answer.as_of_position < head:
                    pass
        assert {row["name"] for row in dump(view)["tenant"]} == whose
        for one in whose:
            fresh = tmp_path / f"fresh-{tenant}.db"
            async with querying(street.addresses[tenant], fresh) as (_, client):
                await live(client, head)
            assert rows_of(view, one) == rows_of(fresh, one)


async def test_records_before_an_unknown_event_are_shown_and_the_checkpoint_is_at_the_last_of_them(
    street: Street, tmp_path: Path
) -> None:
    """Not at the place of others' records behind it: what was passed in the same batch is passed again after the update."""
    await street.charge(CAFE, "order-1")
    last = await street.charge(SHOP, "order-1")
    await street.charge(CAFE, "order-2")
    await street.append(SHOP, "order-1", UNKNOWN_EVENT)
    await street.charge(CAFE, "order-3")
    view = tmp_path / "view.db"
    async with process_of(street.addresses[SHOP], view) as process:
        await process.logged("the projection is stopped: the view grows stale")
    (checkpoint,) = dump(view)["checkpoint"]
    assert (checkpoint["position"], checkpoint["chain"]) == (last.position, last.chain)
    assert len(dump(view)["entry"]) == 3


# ---------------------------------------------------------------- a feed that lies
def tenants_feed(journal: SealedJournal, own: str) -> tuple[list[Record], Passed]:
    """The records of one charge, and the end of the others, as a true server sends them."""
    records, before = list[Record](), START
    place = before
    for record in journal.records:
        if record.event.find(own.encode()) >= 0 or record.charge_id in {sent.charge_id for sent in records}:
            sent = Record.FromString(record.SerializeToString())
            if before != place:
                sent.chain_before = before.chain
            records.append(sent)
            place = Place(record.position, record.chain)
        before = Place(record.position, record.chain)
    return records, Passed(to_position=before.position, chain=before.chain)


def mixed() -> SealedJournal:
    """Two charges, event by event in turns; the first has more."""
    journal = SealedJournal()
    for key in ("theirs", "own"):
        journal.append(key, requested(key, tenant=key))
    for key in ("own", "theirs"):
        journal.append(key, token_issued())
    for key in ("theirs", "own", "theirs"):
        journal.append(key, charged() if journal.head < 6 else declined())
    return journal


# Each with what the reader says of it.
LIES = {
    "another event": "the record at position 3 does not fit the chain",
    "another time": "the record at position 3 does not fit the chain",
    "another version": "the record at position 6 does not fit the chain",
    "a moved record": "the record at position 5 does not fit the chain",
    "another chain before": "the record at position 6 does not fit the chain",
    "a short chain before": "after position 3 the feed brought position 6",
    "no chain before": "after position 3 the feed brought position 6",
    "a record twice": "after position 2 the feed brought position 2",
    "records in another order": "after position 6 the feed brought position 2",
    "a place that goes back": "after position 6 the feed passes over records to position 5",
    "a place that stays": "after position 6 the feed passes over records to position 6",
    "a place with a short chain": "after position 6 the feed passes over records to position 7",
}


def told(lie: str) -> RecordBatch:
    records, passed = tenants_feed(mixed(), "own")
    assert [record.position for record in records] == [2, 3, 6]
    match lie:
        case "another event":
            records[1].event = token_issued("another").SerializeToString()
        case "another time":
            records[1].recorded_at.nanos += 1_000
        case "another version":
            records[2].version += 1
        case "a moved record":
            records[2].position = 5
        case "another chain before":
            records[2].chain_before = bytes(32)
        case "a short chain before":
            records[2].chain_before = records[2].chain_before[:31]
        case "no chain before":
            records[2].ClearField("chain_before")
        case "a record twice":
            records.insert(1, records[0])
        case "records in another order":
            records = [records[2], *records[:2]]
        case "a place that goes back":
            passed.to_position = 5
        case "a place that stays":
            passed.to_position = 6
        case "a place with a short chain":
            passed.chain = passed.chain[:31]
    return RecordBatch(records=records, passed=passed)


async def followed(view: Path, opened: Opened, batches: Sequence[RecordBatch]) -> None:
    """Follow a feed of these messages until it is at its end. Raises BrokenFeed."""
    at = batches[-1].passed.to_position or batches[-1].records[-1].position
    caught_up = asyncio.Event()

    async def feed(*_: object) -> AsyncGenerator[SubscribeResponse, None]:
        yield SubscribeResponse(opened=opened)
        for batch in batches:
            yield SubscribeResponse(batch=batch)
        yield SubscribeResponse(caught_up=CaughtUp(position=at))
        await asyncio.Event().wait()

    async def set_serving(_: bool) -> None:
        caught_up.set()

    made = await View.open(view)
    running = asyncio.create_task(Subscriber(made, Waiting(), feed).run(set_serving))
    ended = asyncio.create_task(caught_up.wait())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            await running
    finally:
        for task in (running, ended):
            task.cancel()
        await asyncio.wait([running, ended])
        await made.close()


OF_TENANT = Opened(journal_id="journal-one/own", tenant="own", head_position=7)


async def test_a_true_tenants_feed_is_taken(tmp_path: Path) -> None:
    """The measure for the lies below."""
    records, passed = tenants_feed(mixed(), "own")
    await followed(tmp_path / "view.db", OF_TENANT, [RecordBatch(records=records, passed=passed)])
    (checkpoint,) = dump(tmp_path / "view.db")["checkpoint"]
    assert (checkpoint["position"], checkpoint["chain"]) == (7, passed.chain)
    stretch = stretch_of(RecordBatch(passed=passed), START, of_tenant=True)
    assert (stretch.after, list(stretch.records), stretch.to) == (0, [], Place(7, passed.chain))


@pytest.mark.parametrize("lie", LIES)
async def test_a_record_of_its_own_that_does_not_fit_is_found(tmp_path: Path, lie: str) -> None:
    """The view is not written, and the process ends."""
    with pytest.raises(BrokenFeed, match=LIES[lie]):
        await followed(tmp_path / "view.db", OF_TENANT, [told(lie)])
    (checkpoint,) = dump(tmp_path / "view.db")["checkpoint"]
    assert checkpoint["position"] == 0


async def test_a_withheld_event_of_a_charge_is_found_by_the_next_one(tmp_path: Path) -> None:
    """It passes for another tenant's record, but the charge's versions have a gap."""
    records, passed = tenants_feed(mixed(), "own")
    records[2].chain_before = mixed().chain_at(5)
    del records[1]
    with pytest.raises(BrokenFeed, match="does not follow its charge's stream"):
        await followed(tmp_path / "view.db", OF_TENANT, [RecordBatch(records=records, passed=passed)])


async def test_a_reader_of_the_whole_feed_accepts_no_gap_whatever_is_said_of_it(tmp_path: Path) -> None:
    """Neither a record behind a gap nor a place behind one."""
    records, passed = tenants_feed(mixed(), "own")
    opened = Opened(journal_id="journal-one", head_position=7)
    with pytest.raises(BrokenFeed, match="after position 0 the feed brought position 2"):
        await followed(tmp_path / "view.db", opened, [RecordBatch(records=records, passed=passed)])
    with pytest.raises(BrokenFeed, match="after position 3 the feed passes over records to position 7"):
        await followed(
            tmp_path / "view.db", opened, [RecordBatch(records=mixed().records[:3]), RecordBatch(passed=passed)]
        )


async def test_a_feed_that_says_it_is_a_tenants_under_the_journals_own_id_is_broken(tmp_path: Path) -> None:
    """A view of the whole journal would believe it."""
    records, passed = tenants_feed(mixed(), "own")
    for journal_id in ("journal-one", "journal-one/owner", "own"):
        opened = Opened(journal_id=journal_id, tenant="own", head_position=7)
        with pytest.raises(BrokenFeed, match="the feed says that it is a tenant's, and its id does not"):
            await followed(tmp_path / "view.db", opened, [RecordBatch(records=records, passed=passed)])
