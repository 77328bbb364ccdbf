"""The same intent under two keys: refused within the operator's window, unless the client says that it means it.

Over a real channel, against a real bank. At the end of each test bank and journal must agree (`a_world`).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import Card, Money
from rig.errors import refused
from rig.world import AUTHORIZED, CHARGED, DECLINED, REPLAYED, World, a_hold, a_request, a_world, id_of, new_key
from tests.service.clock_rig import Clock, a_clocked_world

WINDOW_SECONDS = "600"
BEYOND_THE_WINDOW = 601_000_000  # in microseconds


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, COMMAND_DUPLICATE_WINDOW_SECONDS=WINDOW_SECONDS) as world:
        yield world


async def assert_refused(world: World, request: ChargeRequest, earlier: ChargeRequest) -> None:
    told = await refused(world.charge(request))
    assert (told.code, told.reason, told.advice) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "POSSIBLE_DUPLICATE",
        "ASK_STATUS",
    )
    assert told.metadata["charge_id"] == id_of(earlier)
    assert world.story(request) == []


async def test_a_second_charge_of_one_intent_is_refused_and_names_the_first(world: World) -> None:
    """Unless the client says that it means it. The first one's key is answered as ever."""
    first = a_request()
    assert (await world.charge(first)).status == CHARGED
    await assert_refused(world, a_request(), first)
    assert (await world.charge(a_request(allow_duplicate=True))).status == CHARGED
    assert (await world.charge(first)).outcome_source == REPLAYED
    assert len(await world.moved()) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": "bob"},
        {"card": Card(token="tok_mastercard")},
        {"amount": Money(minor_units=1251)},
        {"amount": Money(currency_code="USD")},
    ],
    ids=["user", "card", "amount", "currency"],
)
async def test_another_intent_is_no_duplicate(world: World, other: dict[str, Any]) -> None:
    await world.charge(a_request())
    assert (await world.charge(a_request(**other))).status == CHARGED


async def test_of_two_at_once_one_is_charged(world: World) -> None:
    """However close they come."""

    async def status() -> str:
        try:
            return str((await world.charge(a_request())).status)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)

    assert Counter(await asyncio.gather(*(status() for _ in range(20)))) == {str(CHARGED): 1, "ALREADY_EXISTS": 19}


async def test_a_charge_that_moved_no_money_does_not_count(world: World) -> None:
    """The payer may try again: after a decline, and after a hold was let go."""
    for _ in range(2):
        assert (await world.charge(a_request(card=Card(token="tok_declined")))).status == DECLINED
    for _ in range(2):
        hold = a_hold()
        assert (await world.charge(hold)).status == AUTHORIZED
        await world.void(id_of(hold))


async def test_the_window_survives_a_restart_and_ends(tmp_path: Path, clock: Clock) -> None:
    """What was requested in the last while is read from the journal."""
    async with a_clocked_world(tmp_path, clock, COMMAND_DUPLICATE_WINDOW_SECONDS=WINDOW_SECONDS) as world:
        old = a_request(user_id="carol")
        await world.charge(old)
        clock.moment += BEYOND_THE_WINDOW
        first, declined = a_request(), a_request(card=Card(token="tok_declined"))
        await world.charge(first)
        await world.charge(declined)
        await world.stop()
        await world.start()
        await assert_refused(world, a_request(), first)
        assert (await world.charge(a_request(user_id="carol"))).status == CHARGED
        assert (await world.charge(a_request(card=Card(token="tok_declined")))).status == DECLINED
        clock.moment += BEYOND_THE_WINDOW
        assert (await world.charge(a_request())).status == CHARGED


async def test_the_window_is_off_by_default(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for _ in range(2):
            assert (await world.charge(a_request())).status == CHARGED


# ---------------------------------------------------------------- fingerprints
def tried(fingerprint: str, token: str = "tok_visa", key: str | None = None) -> ChargeRequest:
    """A request whose card has a fingerprint, with a token that its vault gives once."""
    return a_request(key, card=Card(token=token, fingerprint=fingerprint))


async def test_a_fingerprint_is_compared_in_place_of_the_token(world: World) -> None:
    """Single-use tokens make each try look new: under the same key it is a retry, under another a duplicate."""
    first = tried("print-1")
    await world.charge(first)
    again = tried("print-1", "tok_mastercard", first.idempotency_key)
    assert (await world.charge(again)).outcome_source == REPLAYED
    await assert_refused(world, tried("print-1", "tok_mastercard"), first)
    assert (await world.charge(tried("print-2"))).status == CHARGED
    told = await refused(world.charge(tried("print-3", "tok_visa", first.idempotency_key)))
    assert told.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_without_a_fingerprint_on_both_sides_the_tokens_are_compared(world: World) -> None:
    first = tried("print-1")
    await world.charge(first)
    plain = a_request(first.idempotency_key, card=Card(token="tok_visa"))
    assert (await world.charge(plain)).outcome_source == REPLAYED
    await assert_refused(world, a_request(new_key()), first)
