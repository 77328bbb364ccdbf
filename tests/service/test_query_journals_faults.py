"""One query server over several journals: restarts, losses, and what is never counted twice."""

import asyncio
import contextlib
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from charging.v1.query_pb2 import (
    VIEW_STATE_CATCHING_UP,
    VIEW_STATE_LIVE,
    VIEW_STATE_STOPPED,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
)
from query_service.verified import BrokenFeed
from query_service.view_file import ViewUnusable
from rig.errors import refused
from rig.processes import free_address
from tests.sealed import (
    UNKNOWN_EVENT,
    SealedJournal,
    charged,
    token_expired,
    token_issued,
)
from tests.service.feed_server import feeding
from tests.service.journals_rig import PATIENCE_SECONDS, Feeds, health, of, shows, stand, two_feeds
from tests.service.query_rig import SERVICE, client_of, dump, process_of, querying
from tests.service.test_query_feed import one_table


@pytest.fixture
async def feeds() -> AsyncIterator[Feeds]:
    async with two_feeds() as both:
        yield both


async def test_a_restart_goes_on_from_both_checkpoints_even_after_kill_9(feeds: Feeds, tmp_path: Path) -> None:
    """The files lie beside each other, and nothing is read twice."""
    view = tmp_path / "view.db"
    for number, feed in enumerate(feeds):
        for charge in range(20 + number):
            feed.journal.charge(f"order-{feed.journal.journal_id}-{charge}", "user-1", token_issued(), charged())
    for end in ("kill", "stop"):
        async with process_of(of(*feeds), view) as process:
            async with client_of((await process.logged("serving"))["listen"]) as client:
                await shows(client, *feeds)
            if end == "kill":
                await process.kill()
            else:
                assert await process.stop() == 0
        for feed in feeds:
            feed.journal.charge(f"order-{feed.journal.journal_id}-after-{end}", "user-1", token_issued(), charged())
    async with querying(of(*feeds), view) as (_, client):
        await shows(client, *feeds)
        (sums,) = (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))).currencies
    assert sums.charged_count == 2 + 20 + 21 + 2 * 2
    for feed, path in zip(feeds, (view, tmp_path / "view-2.db"), strict=True):
        places = [request.after_position for request in feed.requests]
        assert places == [0, feed.journal.head - 6, feed.journal.head - 3]
        assert dump(path)["checkpoint"][0]["journal_id"] == feed.journal.journal_id


async def test_in_another_order_the_views_are_built_again_and_nothing_counts_twice(
    feeds: Feeds, tmp_path: Path
) -> None:
    """Also while one of the journals cannot be reached: until its view's own feed is heard, no other view shows its journal."""
    east, west = feeds
    view = tmp_path / "view.db"
    async with querying(of(east, west), view) as (_, client):
        await shows(client, east, west)
    await east.cut()  # it is the second one now, whose file shows "west"
    async with querying(of(west, east), view) as (running, client):
        await west.asked(4)  # in vain
        for _ in range(20):
            (sums,) = (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))).currencies
            assert sums.charged_count == 1
        assert not running.following.done()
        assert await health(client) == HealthCheckResponse.NOT_SERVING
        east.mend()
        await shows(client, west, east)
        (sums,) = (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))).currencies
        assert (sums.charged_count, sums.charged_minor_units) == (2, 120)


async def test_two_feeds_of_one_journal_end_the_server_loudly_and_again_at_each_start(
    feeds: Feeds, tmp_path: Path
) -> None:
    """Whichever is heard first: its sums would count twice."""
    east, west = feeds
    view = tmp_path / "view.db"
    async with feeding(east.journal) as twin:
        for _ in range(2):
            async with process_of(of(east, west, twin), view) as process:
                assert await process.ended() == 1
                assert "two feeds in QUERY_FEED are of one journal, east" in process.text().splitlines()[-1]
        shown = [dump(path)["checkpoint"][0]["journal_id"] for path in (view, tmp_path / "view-3.db")]
        assert sorted(shown) in (["", "east"], ["", ""])
        # A comma makes them servers of one journal.
        async with querying(f"{east.address},{twin.address};{west.address}", view) as (_, client):
            await shows(client, east, west)


async def test_a_journal_that_is_restored_as_a_new_one_is_followed_and_the_former_id_refused(
    feeds: Feeds, tmp_path: Path
) -> None:
    """Its view is built again, the server is not serving meanwhile, and the other view stays. Pages of the former end."""
    east, west = feeds
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        await shows(client, east, west)
        first = await client.queries.ListCharges(ListChargesRequest(page_size=1))
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        west.journal = SealedJournal("west-restored")
        west.journal.charge("order-west", "user-1", token_issued(), charged(), minor_units=7)
        await west.cut()
        await west.hold(0)
        west.mend()
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        await west.hold(None)
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        await shows(client, east, west)
        error = await refused(client.queries.GetViewStatus(GetViewStatusRequest(min_position=3, journal_id="west")))
        assert error.reason == "JOURNAL_NOT_FOLLOWED"
        rest = client.queries.ListCharges(ListChargesRequest(page_token=first.next_page_token))
        assert (await refused(rest)).fields == frozenset({"page_token"})
        (sums,) = (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"))).currencies
        assert sums.charged_minor_units == 107
    assert len(east.requests) == 1


async def test_it_serves_once_every_view_has_caught_up(feeds: Feeds, tmp_path: Path) -> None:
    east, west = feeds
    await west.hold(1)
    async with querying(of(east, west), tmp_path / "view.db") as (_, client):
        told = await stand(client, VIEW_STATE_LIVE, VIEW_STATE_CATCHING_UP)
        assert (told.state, await health(client)) == (VIEW_STATE_CATCHING_UP, HealthCheckResponse.NOT_SERVING)
        await west.hold(None)
        await client.becomes(HealthCheckResponse.SERVING)


async def test_a_broken_feed_of_one_journal_ends_the_server(feeds: Feeds, tmp_path: Path) -> None:
    east, west = feeds
    async with querying(of(east, west), tmp_path / "view.db") as (running, client):
        await shows(client, east, west)
        west.journal.charge("order-1", "user-1", token_expired())
        await west.notify()
        with pytest.raises(BrokenFeed, match="position 5"):
            await running.following


async def test_an_unknown_event_of_one_journal_stops_its_view_only(feeds: Feeds, tmp_path: Path) -> None:
    """The server is out of service as with one journal, and the other view goes on."""
    east, west = feeds
    async with querying(of(east, west), tmp_path / "view.db") as (running, client):
        await shows(client, east, west)
        west.journal.append("order-west", UNKNOWN_EVENT)
        await west.notify()
        await client.becomes(HealthCheckResponse.NOT_SERVING)
        position = east.journal.charge("order-1")
        await east.notify()
        await client.queries.GetCharge(
            GetChargeRequest(idempotency_key="order-1", min_position=position, journal_id="east")
        )
        told = await stand(client, VIEW_STATE_LIVE, VIEW_STATE_STOPPED)
        assert told.state == VIEW_STATE_STOPPED
        assert not running.following.done()


async def test_a_copied_view_is_not_shown_beside_the_first(feeds: Feeds, tmp_path: Path) -> None:
    east, west = feeds
    view = tmp_path / "view.db"
    async with querying(of(east, west), view) as (_, client):
        await shows(client, east, west)
    shutil.copy(view, tmp_path / "view-2.db")
    with pytest.raises(ViewUnusable, match=r"view-2.db shows the same journal as .*view.db: remove it"):
        async with querying(of(east, west), view):
            pass
    (tmp_path / "view-2.db").unlink()
    async with querying(of(east, west), view) as (_, client):
        await shows(client, east, west)


async def test_damage_of_a_further_view_ends_the_server(feeds: Feeds, tmp_path: Path) -> None:
    """With exit status 1, as that of the first."""
    view, second = tmp_path / "view.db", tmp_path / "view-2.db"
    async with querying(of(*feeds), view) as (_, client):
        await shows(client, *feeds)
    with contextlib.closing(sqlite3.connect(second)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'summary'").fetchone()
    second.write_bytes(one_table(second.read_bytes(), page))
    async with process_of(of(*feeds), view) as process:
        async with client_of((await process.logged("serving"))["listen"]) as client:
            await client.becomes(HealthCheckResponse.SERVING)
            await refused(client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1")))
        assert await process.ended() == 1
    assert process.text().splitlines()[-1].startswith("error: the view is damaged")
    assert not second.exists()
    assert view.exists()


async def test_the_gauges_tell_the_worst_of_the_journals(feeds: Feeds, tmp_path: Path) -> None:
    """And what can be counted over all is counted over all."""
    east, west = feeds
    metrics = free_address()
    await west.hold(1)
    async with process_of(of(east, west), tmp_path / "view.db", QUERY_METRICS_LISTEN=metrics) as process:
        await process.logged("serving")
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as reader,
        ):
            while True:
                page = (await reader.get(f"http://{metrics}/metrics")).text
                found = dict(re.findall(r"^chargeonce_(view_position|view_lag_records) (\S+)$", page, re.MULTILINE))
                if (float(found["view_position"]), float(found["view_lag_records"])) == (4, 2):
                    break
        assert re.search(r"^chargeonce_feed_silence_seconds \d", page, re.MULTILINE)
