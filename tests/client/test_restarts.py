"""Servers that are killed under a client, and started again: it gets its outcome, and its streams go on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from chargeonce_client import Client, Entry, OperationStatus, Unsettled, connect, money
from rig.processes import Town
from rig.referee import Referee
from tests.client.charging import CHARGED, PENDING, at_the_bank, charge, pending, times_at_the_bank
from tests.client.conftest import settings_of


@pytest.fixture
async def client(town: Town) -> AsyncIterator[Client]:
    async with connect(settings_of(town)) as client:
        yield client


@pytest.fixture
async def bank(town: Town) -> AsyncIterator[Referee]:
    async with Referee(town.bank_url) as referee:
        yield referee


async def test_a_kill_amid_a_charge_and_a_refund_costs_nothing_but_time(
    town: Town, client: Client, bank: Referee
) -> None:
    charging = asyncio.create_task(charge(client, card="tok_slow"))
    await at_the_bank(bank)
    await town.command.kill()
    assert not charging.done()
    await town.start_command()
    charged = await charging
    assert charged.status == CHARGED

    asked = await times_at_the_bank(bank)
    await bank.trouble("execute", "delay", seconds=1)
    refunding = asyncio.create_task(client.refund("return-1", charged.charge_id, amount=money(1000, "EUR")))
    await at_the_bank(bank, asked + 1)
    await town.command.kill()
    await town.start_command()
    refunded = await refunding
    assert (refunded.status, refunded.amount) == (OperationStatus.OPERATION_STATUS_EXECUTED, money(1000, "EUR"))
    assert [movement.kind for movement in await bank.movements()] == ["charge", "refund"]


async def test_without_any_answer_it_is_not_settled_until_the_server_is_back(town: Town, client: Client) -> None:
    await town.command.stop()
    with pytest.raises(Unsettled, match="onnect") as error:
        await charge(client, patience=1)
    assert (error.value.reason, error.value.advice, error.value.metadata) == ("", "", {})
    awaited = asyncio.create_task(charge(client))
    await asyncio.sleep(0.5)
    assert not awaited.done()
    await town.start_command()
    assert (await awaited).status == CHARGED


async def test_a_watch_goes_on_and_repeats_nothing(town: Town, client: Client, bank: Referee) -> None:
    await bank.trouble("execute", "in_progress", times=1000)
    await pending(client)
    await at_the_bank(bank)
    began = await pending(client)
    changes = client.watch(key="order-1", after=began)
    async with contextlib.aclosing(changes):
        first = await anext(changes)
        assert first.charge.status == PENDING
        following = asyncio.ensure_future(anext(changes))
        await town.query.kill()
        await town.start_query()
        await asyncio.sleep(2)  # the same charge comes again, as it was: that is no change
        assert not following.done()
        await bank.no_more_trouble()
        change = await following
    assert change.charge.status == CHARGED
    assert change.charge.version > first.charge.version


async def test_a_watch_without_a_server_ends_when_patience_is_over(town: Town, client: Client) -> None:
    await charge(client)
    async with contextlib.aclosing(client.watch(key="order-1", patience=1)) as changes:
        await anext(changes)
        await town.query.kill()
        with pytest.raises(Unsettled):
            await anext(changes)


async def test_the_feed_is_followed_without_gap_or_repeat(town: Town, client: Client) -> None:
    entries: asyncio.Queue[Entry] = asyncio.Queue()

    async def follow() -> None:
        async for entry in client.follow():
            entries.put_nowait(entry)

    following = asyncio.create_task(follow())
    seen: list[Entry] = []
    for number in range(4):
        made = await charge(client, f"order-{number}")
        while len(seen) < made.position:
            seen.append(await entries.get())
        if number < 3:
            await (town.command.stop() if number == 1 else town.command.kill())
            await town.start_command()
    following.cancel()
    await asyncio.wait([following])
    assert entries.empty()
    assert [entry.record.position for entry in seen] == list(range(1, made.position + 1))
    assert [entry.name for entry in seen] == ["ChargeRequested", "TokenIssued", "Charged"] * 4
    assert seen[-1].event.charged.transaction_id == made.transaction_id
    assert {entry.journal_id for entry in seen} == {made.journal_id}
