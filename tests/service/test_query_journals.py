"""One query server over several journals: the journal of a position, pages over all, and what adds up."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import (
    VIEW_STATE_DISCONNECTED,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
    ListChargesResponse,
    WatchChargeRequest,
)
from rig.errors import refused
from tests.sealed import (
    EPOCH_MICROSECONDS,
    SealedJournal,
    charged,
    declined,
    requested,
    token_issued,
)
from tests.service.feed_server import feeding
from tests.service.journals_rig import PATIENCE_SECONDS, Feeds, health, of, shows, status, two_feeds
from tests.service.query_rig import DEADLINE_SECONDS, Client, querying, refused_in_time
from tests.service.tenants_rig import as_tenant
from tests.service.test_query_service import keys
from tests.service.test_query_shares import Shared


@pytest.fixture
async def feeds() -> AsyncIterator[Feeds]:
    async with two_feeds() as both:
        yield both


async def pages(client: Client, request: ListChargesRequest) -> list[ListChargesResponse]:
    """Read a list to its end."""
    found = [await client.queries.ListCharges(request)]
    while found[-1].next_page_token:
        request.page_token = found[-1].next_page_token
        found.append(await client.queries.ListCharges(request))
    return found


# ---------------------------------------------------------------- positions and journals
async def test_a_query_waits_for_the_position_of_the_journal_that_it_names(feeds: Feeds, tmp_path: Path) -> None:
    """The same position of the other journal, which is shown already, does not count."""
    east, west = feeds
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        await west.hold(3)
        position = west.journal.charge("order-late", "user-1", token_issued(), charged())
        assert east.journal.charge("order-early", "user-1", token_issued(), charged()) == position
        await asyncio.gather(east.notify(), west.notify())
        early = ListChargesRequest(min_position=position, journal_id="east")
        assert keys(await client.queries.ListCharges(early))[0] == "order-early"
        late = ListChargesRequest(min_position=position, journal_id="west")
        error = await refused_in_time(lambda: client.queries.ListCharges(late, timeout=DEADLINE_SECONDS))
        assert (error.reason, error.metadata["as_of_position"]) == ("VIEW_BEHIND", "3")
        waiting = client.queries.ListCharges(late)
        await west.hold(None)
        assert "order-late" in keys(await waiting)


QUERIES = [
    lambda c, **more: c.queries.GetCharge(GetChargeRequest(idempotency_key="order-east", **more)),
    lambda c, **more: c.queries.GetChargeHistory(GetChargeHistoryRequest(idempotency_key="order-east", **more)),
    lambda c, **more: c.queries.WatchCharge(WatchChargeRequest(idempotency_key="order-east", **more)).read(),
    lambda c, **more: c.queries.ListCharges(ListChargesRequest(**more)),
    lambda c, **more: c.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1", **more)),
    lambda c, **more: c.queries.GetViewStatus(GetViewStatusRequest(**more)),
]


@pytest.mark.parametrize("query", QUERIES)
async def test_a_position_needs_a_journal_and_a_journal_must_be_followed(
    feeds: Feeds, tmp_path: Path, query: Any
) -> None:
    """Where one journal is followed a position needs none, and the wrong one is refused all the same."""
    east, west = feeds
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        error = await refused(query(client, min_position=1))
        assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, frozenset({"journal_id"}))
        error = await refused(query(client, min_position=-1, journal_id="north"))
        assert error.fields == frozenset({"min_position"})
        for position in (0, 1):
            error = await refused(query(client, min_position=position, journal_id="north"))
            assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOURNAL_NOT_FOLLOWED")
        await query(client, min_position=3, journal_id="east")
    async with querying(east.address, tmp_path / "alone.db") as (_, client):
        await shows(client, east)
        await query(client, min_position=3)
        await query(client, min_position=3, journal_id="east")
        assert (await refused(query(client, journal_id="west"))).reason == "JOURNAL_NOT_FOLLOWED"


async def test_a_charge_is_looked_for_in_the_journal_that_is_named_only(feeds: Feeds, tmp_path: Path) -> None:
    east, west = feeds
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        request = GetChargeRequest(idempotency_key="order-east")
        assert (await client.queries.GetCharge(request)).charge.journal_id == "east"
        request.journal_id = "west"
        error = await refused(client.queries.GetCharge(request))
        assert (error.reason, error.metadata["as_of_position"]) == ("CHARGE_NOT_FOUND", "3")
        error = await refused(client.queries.GetCharge(GetChargeRequest(idempotency_key="order-north")))
        assert (error.reason, error.metadata["as_of_positions"]) == ("CHARGE_NOT_FOUND", "east:3 west:3")


async def test_before_the_first_contact_a_journal_may_still_turn_out_to_be_followed(
    feeds: Feeds, tmp_path: Path
) -> None:
    """So the client is told to ask again. Nothing of that journal is shown, and the answers say so."""
    east, west = feeds
    await west.cut()
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await status(client)).journals[0].shown.position < east.journal.head:
                pass
        error = await refused(client.queries.GetViewStatus(GetViewStatusRequest(min_position=1, journal_id="west")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "VIEW_BEHIND")
        told = await status(client)
        assert [(one.shown.journal_id, one.shown.position) for one in told.journals] == [("east", 3), ("", 0)]
        assert (told.state, told.lag.silence_milliseconds) == (VIEW_STATE_DISCONNECTED, -1)
        assert await health(client) == HealthCheckResponse.NOT_SERVING
        west.mend()
        await client.becomes(HealthCheckResponse.SERVING)
        await shows(client, east, west)


# ---------------------------------------------------------------- lists and sums
async def test_pages_over_both_journals_are_complete_and_in_order_while_charges_come_in(
    feeds: Feeds, tmp_path: Path
) -> None:
    """Neither twice nor missing, also where times are equal, and in a journal of which the first page shows nothing."""
    east, west = feeds
    for number in range(30):
        at = EPOCH_MICROSECONDS + 1_000 + number // 3  # three charges at each time, of the two journals
        (east if number % 2 else west).journal.append(f"order-{number:02}", requested(f"order-{number:02}"), at=at)
    for number in range(30, 36):  # a whole page of one journal
        east.journal.append(f"order-{number}", requested(f"order-{number}"), at=EPOCH_MICROSECONDS + 2_000 + number)
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        everything = await client.queries.ListCharges(ListChargesRequest(page_size=1000))
        request, found = ListChargesRequest(page_size=4), list[str]()
        times = list[int]()
        for number in itertools.count():
            page = await client.queries.ListCharges(request)
            found += keys(page)
            times += [charge.requested_at.ToMicroseconds() for charge in page.charges]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
            for feed in feeds:
                feed.journal.charge(f"order-new-{number}", "user-1")
                await feed.notify()
            await shows(client, east, west)
    assert not everything.next_page_token
    assert found == keys(everything)
    assert len(found) == len(set(found)) == 38
    assert times == sorted(times, reverse=True)


async def test_each_list_has_its_conditions_and_range_in_both_journals(feeds: Feeds, tmp_path: Path) -> None:
    east, west = feeds
    for number, feed in enumerate((east, west, west, east)):
        at = EPOCH_MICROSECONDS + 100 + number
        feed.journal.append(f"order-{number}", requested(f"order-{number}", f"user-{number % 2}"), at=at)
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        request = ListChargesRequest(user_id="user-1", status=ChargeStatus.CHARGE_STATUS_PENDING, page_size=1)
        assert [keys(page) for page in await pages(client, request)] == [["order-3"], ["order-1"]]
        request = ListChargesRequest(page_size=1)
        request.requested_from.FromMicroseconds(EPOCH_MICROSECONDS + 101)
        request.requested_before.FromMicroseconds(EPOCH_MICROSECONDS + 103)
        assert [keys(page) for page in await pages(client, request)] == [["order-2"], ["order-1"]]


async def test_a_page_token_holds_at_a_server_with_the_same_journals_only(feeds: Feeds, tmp_path: Path) -> None:
    """In whatever order it follows them."""
    east, west = feeds
    async with (
        querying(of(east, west), tmp_path / "view.db") as (_, client),
        querying(of(west, east), tmp_path / "turned.db") as (_, turned),
        querying(of(east), tmp_path / "alone.db") as (_, alone),
    ):
        await shows(client, east, west)
        await shows(turned, west, east)
        await shows(alone, east)
        for here, there in ((turned, client), (client, turned)):
            first = await here.queries.ListCharges(ListChargesRequest(page_size=1))
            rest = ListChargesRequest(page_size=1, page_token=first.next_page_token)
            page = await there.queries.ListCharges(rest)
            assert {*keys(first), *keys(page)} == {"order-east", "order-west"}
        assert (await refused(alone.queries.ListCharges(rest))).fields == frozenset({"page_token"})
        east.journal.charge("order-last")
        await east.notify()
        await shows(alone, east)
        last = await alone.queries.ListCharges(ListChargesRequest(page_size=1))
        rest = ListChargesRequest(page_size=1, page_token=last.next_page_token)
        assert (await refused(client.queries.ListCharges(rest))).fields == frozenset({"page_token"})


async def test_sums_and_counts_add_up_over_the_journals(feeds: Feeds, tmp_path: Path) -> None:
    """Per currency, with the currencies that one journal has alone."""
    east, west = feeds
    east.journal.charge("order-1", "user-1", token_issued(), declined(), minor_units=3, currency="USD")
    west.journal.charge("order-2", "user-1", minor_units=4, currency="USD")
    west.journal.charge("order-3", "user-1", token_issued(), declined(), minor_units=5, currency="USD")
    west.journal.charge("order-4", "user-1", token_issued(), charged(), minor_units=6, currency="CHF")
    west.journal.charge("order-5", "user-2", token_issued(), charged(), minor_units=7)
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        answer = await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))
        told = await status(client)
    assert [(sums.currency_code, sums.charged_minor_units, sums.net_minor_units) for sums in answer.currencies] == [
        ("CHF", 6, 6),
        ("EUR", 120, 120),
        ("USD", 0, 0),
    ]
    dollars = answer.currencies[2]
    assert (dollars.declined_minor_units, dollars.declined_count) == (8, 2)
    assert (dollars.pending_minor_units, dollars.pending_count) == (4, 1)
    assert [(one.journal_id, one.position, one.lag.records) for one in answer.positions] == [
        ("east", east.journal.head, 0),
        ("west", west.journal.head, 0),
    ]
    assert (answer.as_of_position, answer.lag.records) == (0, 0)
    assert (told.charge_count, [one.charge_count for one in told.journals]) == (7, [2, 5])


async def test_a_sum_beyond_64_bits_is_refused(feeds: Feeds, tmp_path: Path) -> None:
    """Each journal's sum fits, and theirs together does not."""
    for feed in feeds:
        feed.journal.charge("order-large", "user-9", token_issued(), charged(), minor_units=2**62)
    async with querying(of(*feeds), tmp_path / "view.db") as (_, client):
        await shows(client, *feeds)
        assert (
            await refused(client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-9")))
        ).reason == "UNEXPECTED"
        assert (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))).currencies


async def test_a_tenant_sees_its_own_charges_of_both_journals_only(tmp_path: Path) -> None:
    """Tenants have the same keys and users here. Two tenants' charges of one key are no charge in several journals."""
    journals = [SealedJournal("east"), SealedJournal("west")]
    for units, (journal, tenant) in enumerate(((journals[0], "a"), (journals[1], "b"), (journals[1], "a")), 1):
        key = f"order-{journal.journal_id}" if tenant == "a" else "order-east"
        journal.append(f"{tenant} {key}", requested(key, "user-1", tenant=tenant, minor_units=units))
    async with (
        feeding(journals[0]) as east,
        feeding(journals[1]) as west,
        querying(of(east, west), tmp_path / "view.db", Shared) as (_, client),
    ):
        await shows(client, east, west)
        for tenant, units, journal_id in (("a", 1, "east"), ("b", 2, "west")):
            request = GetChargeRequest(idempotency_key="order-east")
            shown = await client.queries.GetCharge(request, **as_tenant(tenant))
            assert (shown.charge.amount.minor_units, shown.charge.journal_id) == (units, journal_id)
        listed = await client.queries.ListCharges(ListChargesRequest(page_size=1), **as_tenant("a"))
        rest = ListChargesRequest(page_token=listed.next_page_token)
        page = await client.queries.ListCharges(rest, **as_tenant("a"))
        assert [charge.amount.minor_units for charge in (*listed.charges, *page.charges)] == [3, 1]
        (sums,) = (
            await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"), **as_tenant("a"))
        ).currencies
        assert (sums.pending_minor_units, sums.pending_count) == (4, 2)
        stranger = await client.queries.ListCharges(ListChargesRequest(), **as_tenant("c"))
        assert not stranger.charges


async def test_a_tenants_feed_is_named_by_the_journals_own_id(tmp_path: Path) -> None:
    """As answers to commands name it; the view's own id has the tenant behind it, and is understood as well."""
    async with feeding(SealedJournal("east/shop")) as east, feeding(SealedJournal("west")) as west:
        position = east.journal.charge("order-east")
        async with querying(of(east, west), tmp_path / "view.db") as (_, client):
            await client.becomes(HealthCheckResponse.SERVING)
            for journal_id in ("east", "east/shop"):
                request = GetChargeRequest(idempotency_key="order-east", min_position=position, journal_id=journal_id)
                answer = await client.queries.GetCharge(request)
                assert (answer.charge.journal_id, answer.positions[0].journal_id) == ("east", "east")
            error = await refused(client.queries.GetViewStatus(GetViewStatusRequest(journal_id="east/another")))
            assert error.reason == "JOURNAL_NOT_FOLLOWED"
