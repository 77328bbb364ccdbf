"""A tenant's feed over a real port: its own records, verified, and of others' only where they are."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from charging.v1.journal_pb2 import Event
from chassis.shares import Shares
from command_service.feed import BATCHES_SHARED
from command_service.journal import START, Place
from command_service.journal.sqlite import anchor
from rig.errors import refused
from tests.sealed import charged, declined, requested, token_issued
from tests.service.street import (
    CAFE,
    DEFAULT,
    NOBODY,
    SHOP,
    WHOLE,
    Follower,
    Street,
    a_street,
    facts_of,
    following,
    id_bytes,
)

FIXTURES = Path(__file__).parent.parent / "core" / "fixtures"


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with a_street(tmp_path) as street:
        yield street


async def interleaved(street: Street) -> None:
    """Charges of both tenants, event by event in turns, with runs of each, and the café's at the end."""
    for n in range(4):
        for tenant in (SHOP, CAFE):
            await street.begin(tenant, f"order-{n}")
        for tenant in (CAFE, SHOP):
            await street.append(tenant, f"order-{n}", token_issued(f"token-{tenant}-{n}"))
        await street.append(SHOP, f"order-{n}", charged())
    for n in range(4, 8):
        await street.charge(CAFE, f"order-{n}")
    for n in range(4):
        await street.append(CAFE, f"order-{n}", declined())


# ---------------------------------------------------------------- whose records
async def test_a_tenants_feed_brings_its_own_records_unchanged_and_nothing_of_others(street: Street) -> None:
    """Neither their ids nor their content, in any message; the chain holds, and the place ends at the journal's head."""
    await interleaved(street)
    for tenant, other in ((SHOP, CAFE), (CAFE, SHOP)):
        async with following(street.addresses[tenant]) as reader:
            opened = (await reader.next()).opened
            journal_id = f"{street.journal.journal_id}/{tenant}"
            assert (opened.journal_id, opened.tenant) == (journal_id, tenant)
            assert opened.head_position == street.journal.head.position
            caught_up = (await reader.until("caught_up")).caught_up
            assert caught_up.position == street.journal.head.position
            assert reader.place == street.journal.head
            assert facts_of(reader.records) == await street.stored(tenant)
            assert all(mark in reader.bytes for mark in (tenant.encode(), id_bytes(tenant, "order-0")[0]))
            theirs = [mark for n in range(8) for mark in id_bytes(other, f"order-{n}")]
            assert not any(mark in reader.bytes for mark in (other.encode(), *theirs))


async def test_a_reader_without_a_tenant_gets_the_whole_feed_and_no_sign_of_tenants(street: Street) -> None:
    """Every field that is for tenants' feeds stays unset: the bytes are those of the time before tenants."""
    await interleaved(street)
    async with following(street.addresses[WHOLE]) as reader:
        opened = (await reader.next()).opened
        assert (opened.journal_id, opened.tenant) == (street.journal.journal_id, "")
        await reader.until("caught_up")
        assert facts_of(reader.records) == await street.stored()
        assert not reader.passed
        assert not any(record.chain_before for record in reader.records)


async def test_only_a_record_behind_others_states_the_chain_before_it(street: Street) -> None:
    """Consecutive records of one tenant are chained to each other."""
    await street.begin(SHOP, "a")
    await street.append(SHOP, "a", token_issued())
    before = await street.begin(CAFE, "b")
    await street.append(SHOP, "a", charged())
    async with following(street.addresses[SHOP]) as reader:
        await reader.until("caught_up")
        assert [record.chain_before for record in reader.records] == [b"", b"", before.chain]
        assert not reader.passed


async def test_a_tenant_without_records_is_led_over_others_to_the_head_and_stays_there_live(street: Street) -> None:
    """Old ones and new ones, then heartbeats. Its first own record comes as soon as it is there."""
    await asyncio.gather(*[street.charge(CAFE, f"order-{n}") for n in range(200)])
    async with following(street.addresses[SHOP]) as reader:
        await reader.until("caught_up")
        assert [place.position for place in reader.passed] == [500, 600]
        assert reader.place == street.journal.head
        assert (await reader.until("heartbeat")).heartbeat.head_position == 600
        await reader.reach((await street.begin(CAFE, "later")).position)
        assert reader.passed[-1] == street.journal.head
        await reader.reach((await street.begin(SHOP, "first")).position)
        assert facts_of(reader.records) == await street.stored(SHOP)
        assert reader.records[0].chain_before == b""  # it follows the place that was passed
    async with following(street.addresses[NOBODY]) as reader:
        await reader.until("caught_up")
        assert (reader.place, reader.records) == (street.journal.head, [])


async def test_two_tenants_charge_at_once_and_two_readers_each_follow_their_own(street: Street) -> None:
    """Live, while both write: no record too many, none too few, all chained."""
    readers = {tenant: Follower(street.addresses[tenant]) for tenant in (SHOP, CAFE, WHOLE)}

    async def work(tenant: str, worker: int) -> None:
        for n in range(25):
            await street.charge(tenant, f"order-{worker}-{n}")

    following_all = [asyncio.create_task(reader.reach(1_200)) for reader in readers.values()]
    await asyncio.gather(*[work(tenant, worker) for tenant in (SHOP, CAFE) for worker in range(8)])
    assert street.journal.head.position == 1_200
    await asyncio.gather(*following_all)
    for tenant, reader in readers.items():
        assert facts_of(reader.records) == await street.stored(tenant)
        assert reader.place == street.journal.head
        await reader.leave()


# ---------------------------------------------------------------- resuming
async def test_a_reader_resumes_at_any_place_also_in_the_midst_of_others(street: Street) -> None:
    """With the chain there, which need not be that of a record of its own."""
    await interleaved(street)
    own, journal_id = await street.stored(SHOP), f"{street.journal.journal_id}/{SHOP}"
    for position in range(street.journal.head.position + 1):
        async with following(street.addresses[SHOP], await street.place(position), journal_id) as reader:
            await reader.until("caught_up")
            assert facts_of(reader.records) == [record for record in own if record.position > position]
            assert reader.place == street.journal.head


@pytest.mark.parametrize("journal_id", ["{}", "{}/café", "{}/", "{}/shop/", "/shop"])
async def test_a_reader_of_another_feed_of_this_journal_is_told_to_begin_anew(street: Street, journal_id: str) -> None:
    """Of the whole one, or of another tenant's: JOURNAL_DIVERGED."""
    await interleaved(street)
    other = journal_id.format(street.journal.journal_id)
    async with following(street.addresses[SHOP], await street.place(5), other) as reader:
        assert (await refused(reader.next())).reason == "JOURNAL_DIVERGED"
    async with following(
        street.addresses[WHOLE], await street.place(5), f"{street.journal.journal_id}/{SHOP}"
    ) as reader:
        assert (await refused(reader.next())).reason == "JOURNAL_DIVERGED"


async def test_a_reader_whose_stated_chain_is_not_the_journals_is_told_so_when_it_resumes(street: Street) -> None:
    """What it could not verify while it read: the chain behind others' records."""
    await interleaved(street)
    head = street.journal.head
    journal_id = f"{street.journal.journal_id}/{SHOP}"
    async with following(street.addresses[SHOP], Place(head.position, bytes(31) + b"!"), journal_id) as reader:
        assert (await refused(reader.next())).reason == "JOURNAL_DIVERGED"


# ---------------------------------------------------------------- owners
async def test_the_owner_of_a_charge_that_began_long_ago_is_looked_up_in_the_journal(tmp_path: Path) -> None:
    """Memory is bounded: of a thousand charges ten are remembered, and no record goes astray."""
    async with a_street(tmp_path, remembered=10) as street:
        charges = [(CAFE if n % 3 else SHOP, f"order-{n}") for n in range(300)]
        await asyncio.gather(*[street.begin(tenant, key) for tenant, key in charges])
        await asyncio.gather(*[street.append(tenant, key, token_issued()) for tenant, key in charges])
        async with following(street.addresses[SHOP]) as reader:
            await reader.until("caught_up")
            assert facts_of(reader.records) == await street.stored(SHOP)
        assert len(street.journal.streams) == 300
        street.journal.streams.clear()
        async with following(street.addresses[CAFE], await street.place(590)) as reader:
            await reader.until("caught_up")
        assert street.journal.streams == []  # these ten are remembered


@pytest.mark.parametrize(
    "first",
    [b"\xff\xff\xff", b"", token_issued(), requested("odd", tenant="")],
    ids=["noise", "empty", "other", "none"],
)
async def test_a_record_whose_owner_cannot_be_read_ends_tenants_feeds_there(
    street: Street, first: Event | bytes
) -> None:
    """DATA_LOSS JOURNAL_CORRUPT, each time: no owner is guessed. The records before it come, and the whole feed goes on."""
    await street.charge(SHOP, "a")
    await street.begin(CAFE, "b")
    before = street.journal.head
    await street.append("odd", "odd", first)
    await street.charge(SHOP, "c")
    for tenant in (SHOP, CAFE, NOBODY):
        for _ in range(2):
            async with following(street.addresses[tenant]) as reader:
                answer = await reader.end()
            assert (answer.code, answer.reason) == (grpc.StatusCode.DATA_LOSS, "JOURNAL_CORRUPT")
            assert reader.place == before
    async with following(street.addresses[WHOLE]) as whole:
        await whole.until("caught_up")
        assert whole.place == street.journal.head


@pytest.mark.parametrize("tenant", [SHOP, CAFE])
async def test_a_damaged_record_ends_every_tenants_feed_there_whosever_it_is(street: Street, tenant: str) -> None:
    """The server verifies others' records too, before it passes over them."""
    await interleaved(street)
    damaged = (await street.stored(tenant))[3].position
    with closing(sqlite3.connect(street.path)) as connection, connection:
        connection.execute("UPDATE record SET recorded_at = recorded_at + 1 WHERE position = ?", (damaged,))
    for reading in (SHOP, CAFE):
        async with following(street.addresses[reading]) as reader:
            answer = await reader.end()
        assert (answer.code, answer.reason) == (grpc.StatusCode.DATA_LOSS, "JOURNAL_CORRUPT")
        assert reader.place.position == damaged - 1


async def test_a_journal_of_the_time_before_tenants_is_the_default_tenants(tmp_path: Path) -> None:
    """Every record, chained as in the whole feed; for another tenant it holds nothing."""
    shutil.copyfile(FIXTURES / "journal_1.db", tmp_path / "journal.db")
    anchor.write(tmp_path / "journal.db", anchor.Anchor("59a298e9-e51b-4a92-9555-baa38dbfe61d", START))
    async with a_street(tmp_path) as street:
        async with following(street.addresses[DEFAULT]) as reader:
            await reader.until("caught_up")
            assert facts_of(reader.records) == await street.stored()
            assert len(reader.records) == 22
            assert not any(record.chain_before for record in reader.records)
        async with following(street.addresses[SHOP]) as reader:
            await reader.until("caught_up")
            assert (reader.records, reader.place) == ([], street.journal.head)


# ---------------------------------------------------------------- many readers
async def test_readers_of_one_tenant_at_one_place_share_the_reads_of_the_journal(street: Street) -> None:
    """Twenty cost as many as one. Another tenant, and the whole feed, read for themselves: they get other bytes."""
    await asyncio.gather(*[street.charge(SHOP if n % 2 else CAFE, f"order-{n}") for n in range(400)])
    for tenants, times in (((SHOP,), 1), ((SHOP, CAFE, WHOLE), 3)):
        street.journal.reads.clear()
        readers = [Follower(street.addresses[tenant]) for tenant in tenants for _ in range(20)]
        await asyncio.gather(*[reader.until("caught_up") for reader in readers])
        # The first of a tenant may find what an earlier reader has left.
        assert set(street.journal.reads) <= {0, 500, 1_000}
        assert len(street.journal.reads) <= 3 * times
        for reader in readers:
            await reader.leave()


async def test_readers_with_a_tenant_do_not_displace_what_readers_of_the_whole_feed_share(street: Street) -> None:
    """Tenants at many places read much: the batches of the whole feed are still there."""
    await interleaved(street)
    async with following(street.addresses[WHOLE]) as first:
        await first.until("caught_up")
    for position in range(3 * BATCHES_SHARED):
        async with following(street.addresses[SHOP], await street.place(position)) as reader:
            await reader.until("caught_up")
    street.journal.reads.clear()
    async with following(street.addresses[WHOLE]) as second:
        await second.until("caught_up")
    assert street.journal.reads == []
    assert second.records == first.records


async def test_a_tenants_readers_leave_the_others_room_for_theirs(tmp_path: Path) -> None:
    """A place that is given back may be taken again."""
    weights = {SHOP: 1.0, CAFE: 1.0}
    async with a_street(tmp_path, readers=Shares(4, lambda: weights)) as street:
        await street.charge(SHOP, "order-1")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                reader = await stack.enter_async_context(following(street.addresses[SHOP]))
                await reader.until("caught_up")
            fourth = await stack.enter_async_context(following(street.addresses[SHOP]))
            assert (await fourth.end()).reason == "TENANT_LIMIT"
            theirs = await stack.enter_async_context(following(street.addresses[CAFE]))
            await theirs.until("caught_up")
            one_more = await stack.enter_async_context(following(street.addresses[CAFE]))
            assert (await one_more.end()).reason == "TOO_MANY_CALLS"
        async with following(street.addresses[SHOP]) as again:
            await again.until("caught_up")
