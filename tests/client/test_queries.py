"""Queries and streams through the client: one's own writes are shown, and streams go on across restarts."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest
from grpc import StatusCode

from chargeonce_client import (
    Client,
    Entry,
    FeedBroken,
    Refused,
    Settings,
    ViewState,
    connect,
)
from charging.v1.journal_pb2 import Record
from rig.servers import Servers
from tests.client.charging import CHARGED, charge, unsettled
from tests.sealed import SealedJournal, charged, requested
from tests.service.feed_server import feeding


async def test_what_was_done_is_shown_by_every_query(client: Client) -> None:
    made = [await charge(client, f"order-{number}") for number in range(5)]
    last = made[-1]
    shown = await client.get(charge_id=last.charge_id, after=last)
    assert (shown.charge.status, shown.charge.transaction_id) == (CHARGED, last.transaction_id)
    pages = [page async for page in client.pages(user_id="alice", page_size=2, after=last)]
    assert [len(page.charges) for page in pages] == [2, 2, 1]
    listed = [listed.charge_id async for listed in client.list(status=CHARGED, page_size=3, after=last)]
    assert listed == [each.charge_id for each in reversed(made)]
    history = await client.history(key="order-4", after=last)
    assert [entry.event for entry in history.entries] == ["ChargeRequested", "TokenIssued", "Charged"]
    (sums,) = (await client.summary("alice", after=last)).currencies
    assert (sums.charged_minor_units, sums.charged_count) == (6250, 5)
    status = await client.view_status(after=last)
    assert (status.as_of_position, status.state) == (last.position, ViewState.VIEW_STATE_LIVE)


async def test_a_charge_that_the_view_does_not_show_is_refused_at_once(client: Client) -> None:
    """Its advice, RETRY_SAME_KEY, is on Charge: to ask the same query again and again would not help."""
    with pytest.raises(Refused) as refusal:
        await client.get(key="order-1")
    assert (refusal.value.code, refusal.value.reason) == (StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
    assert refusal.value.metadata == {"as_of_position": "0"}


async def test_a_view_that_stays_behind_is_asked_again_until_patience_is_over(servers: Servers, client: Client) -> None:
    ahead = await charge(client)
    ahead.position += 1000
    async with connect(Settings(query=servers.query, deadline=1)) as asking:
        error = await unsettled(lambda: asking.get(key="order-1", after=ahead, patience=2.5))
    assert (error.reason, error.retry_after) == ("VIEW_BEHIND", 1.0)


async def test_a_watch_of_no_charge_is_refused(client: Client) -> None:
    async with contextlib.aclosing(client.watch(key="order-1")) as changes:
        with pytest.raises(Refused) as refusal:
            await anext(changes)
    assert refusal.value.reason == "CHARGE_NOT_FOUND"


# ------------------------------------------------------------ the feed
async def test_a_reader_goes_on_from_an_entry_that_it_kept(client: Client) -> None:
    await charge(client)
    everything = [entry async for entry in client.follow(live=False)]
    first, rest = everything[0], everything[1:]

    def after_the_first(chain: bytes) -> AsyncGenerator[Entry, None]:
        position = first.record.position
        return client.follow(after_position=position, journal_id=first.journal_id, chain=chain, live=False)

    assert [entry async for entry in after_the_first(first.record.chain)] == rest
    assert [entry async for entry in client.follow(after_position=1, live=False)] == rest
    with pytest.raises(Refused) as refusal:
        await anext(after_the_first(bytes(32)))
    assert refusal.value.reason == "JOURNAL_DIVERGED"


def a_journal() -> SealedJournal:
    journal = SealedJournal()
    for key in ("one", "two"):
        journal.append(key, requested(key))
        journal.append(key, charged(key))
    return journal


def altered(records: Sequence[Record]) -> list[Record]:
    changed = Record.FromString(records[1].SerializeToString())
    changed.event = charged("another").SerializeToString()
    return [records[0], changed, *records[2:]]


FAULTS: dict[str, tuple[Callable[[Sequence[Record]], list[Record]], str]] = {
    "a gap": (lambda records: [records[0], *records[2:]], "record 3 follows record 1"),
    "a repeat": (lambda records: [records[0], *records], "record 1 follows record 1"),
    "another event": (altered, "record 2 does not fit the chain"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_feed_with_a_fault_is_broken(fault: str) -> None:
    forge, said = FAULTS[fault]
    async with feeding(a_journal()) as server, connect(Settings(feed=server.address)) as client:
        assert [entry.record.position async for entry in client.follow(live=False)] == [1, 2, 3, 4]
        server.forged = forge(server.journal.records)
        entries = client.follow(live=False)
        assert (await anext(entries)).record.position == 1
        with pytest.raises(FeedBroken, match=said):
            await anext(entries)


async def test_an_event_of_a_later_version_stops_the_reader() -> None:
    journal = a_journal()
    journal.append("three", b"\xa2\x06\x00")  # field 100
    async with feeding(journal) as server, connect(Settings(feed=server.address)) as client:
        with pytest.raises(FeedBroken, match="unknown"):
            assert [entry async for entry in client.follow(live=False)] == []
