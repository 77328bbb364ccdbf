"""The bank wants a step of the customer, such as 3-D Secure, before it moves money.

Over a real channel, against a real bank, whose page is opened and whose buttons are pressed by plain HTTP, as a browser would.
At the end of each test bank and journal must agree (`a_world`).
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, DeclineReason
from charging.v1.journal_pb2 import ActionRequired
from rig.errors import refused
from rig.world import (
    AUTHORIZED,
    CHARGED,
    DECLINED,
    FRESH,
    JOINED,
    OPERATION_EXECUTED,
    RECOVERED,
    REPLAYED,
    REQUIRES_ACTION,
    VOIDED,
    World,
    a_hold,
    a_request,
    a_world,
    apart_from_source,
    id_of,
    until,
)
from tests.service.clock_rig import MOMENT, Clock

THREE_DS = Card(token="tok_3ds")
AUTHENTICATION_REQUIRED = DeclineReason.DECLINE_REASON_AUTHENTICATION_REQUIRED


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def awaited(world: World, request: ChargeRequest) -> ChargeResponse:
    """Charge, and hear that the customer is to take a step."""
    answer = await world.charge(request)
    assert answer.status == REQUIRES_ACTION
    return answer


def make_late(world: World) -> None:
    """Let the time of all tokens be over, in the ledger of a bank that is down."""
    with closing(sqlite3.connect(world.journal.with_name("bank.db"))) as ledger, ledger:
        ledger.execute("UPDATE transactions SET expires_at = 1")


# ---------------------------------------------------------------- the step is taken
async def test_a_charge_that_wants_the_customer_says_so_at_once_and_is_charged_after_the_step(world: World) -> None:
    """With the address, which the journal holds. Nothing moves before, and once afterwards."""
    request = a_request(card=THREE_DS)
    answer = await awaited(world, request)
    assert answer.outcome_source == FRESH
    assert answer.action.url.startswith(f"{world.bank_url}/customer/ttok_")
    assert (answer.transaction_id, answer.decline_reason) == ("", 0)
    assert not answer.HasField("decided_at")
    assert world.story(request) == ["charge_requested", "token_issued", "action_required"]
    assert world.events(request)[-1].action_required == ActionRequired(action=answer.action)
    assert await world.moved() == []
    await world.referee.press(answer.action.url, "Confirm")
    charged = await world.charge(request)
    assert (charged.status, charged.HasField("action")) == (CHARGED, False)
    assert world.story(request)[3:] == ["charged"]
    assert await world.moved() == [("charge", 1250)]
    assert apart_from_source(await world.charge(request)) == apart_from_source(charged)


async def test_nobody_has_to_ask_again(world: World) -> None:
    """The loop looks by itself."""
    request = a_request(card=THREE_DS)
    answer = await awaited(world, request)
    await world.referee.press(answer.action.url, "Confirm")
    await until(lambda: world.story(request)[-1] == "charged")


async def test_a_charge_that_waits_for_its_customer_is_counted_apart(world: World) -> None:
    """It is unfinished, and no charge that operators should look at, however old it gets."""
    request = a_request(card=THREE_DS)
    answer = await awaited(world, request)
    vitals = world.running.vitals()
    assert (vitals.unfinished_charges, vitals.charges_awaiting_customer, vitals.oldest_unfinished_seconds) == (
        1,
        1,
        0.0,
    )
    await world.referee.press(answer.action.url, "Confirm")
    assert (await world.charge(request)).status == CHARGED
    await until(lambda: world.running.vitals().unfinished_charges == 0)
    assert world.running.vitals().charges_awaiting_customer == 0


async def test_a_hold_may_want_the_step_too_and_what_follows_wants_none(world: World) -> None:
    request = a_hold(card=THREE_DS)
    answer = await awaited(world, request)
    await world.referee.press(answer.action.url, "Confirm")
    held = await world.charge(request)
    assert held.status == AUTHORIZED
    assert held.HasField("expires_at")
    assert (await world.capture(id_of(request), 1000)).status == OPERATION_EXECUTED
    assert (await world.refund(id_of(request), 250)).status == OPERATION_EXECUTED
    assert await world.moved() == [("authorize", 1250), ("capture", 1000), ("refund", 250)]


async def test_the_customer_is_sent_back_to_the_address_of_the_request(world: World) -> None:
    request = a_request(card=THREE_DS, return_url="https://shop.example/back?order=1001")
    answer = await awaited(world, request)
    sent = await world.referee.press(answer.action.url, "Confirm")
    assert (sent.status_code, sent.headers["location"]) == (303, request.return_url)
    assert (await world.charge(request)).status == CHARGED


async def test_a_customer_who_refuses_ends_it(world: World) -> None:
    request = a_request(card=THREE_DS)
    await world.referee.press((await awaited(world, request)).action.url, "Refuse")
    answer = await world.charge(request)
    assert (answer.status, answer.decline_reason) == (DECLINED, AUTHENTICATION_REQUIRED)
    assert await world.moved() == []


async def test_a_card_that_is_declined_after_the_step_keeps_its_reason(world: World) -> None:
    request = a_request(card=Card(token="tok_3ds_declined"))
    await world.referee.press((await awaited(world, request)).action.url, "Confirm")
    answer = await world.charge(request)
    assert (answer.status, answer.decline_reason) == (DECLINED, DeclineReason.DECLINE_REASON_CARD_DECLINED)


# ---------------------------------------------------------------- whoever asks meanwhile
async def test_each_call_meanwhile_has_the_bank_asked_at_once_and_hears_the_same(world: World) -> None:
    """One after the other, one look each. The stream does not grow."""
    request = a_request(card=THREE_DS)
    first = await awaited(world, request)
    for looks in range(2, 6):
        again = await awaited(world, request)
        assert again.outcome_source == JOINED
        assert apart_from_source(again) == apart_from_source(first)
        assert (await world.asked(request)).count("execute") == looks
    assert len(world.story(request)) == 3


async def test_calls_that_come_together_share_a_look(world: World) -> None:
    """However fast they come, the bank gets one call at a time for a charge."""
    request = a_request(card=THREE_DS)
    await awaited(world, request)
    await world.trouble("execute", "delay", seconds=2.0)
    first = asyncio.ensure_future(awaited(world, request))
    await until(world.referee.has_fired)
    looks = (await world.asked(request)).count("execute")
    answers = await asyncio.gather(first, *(awaited(world, request) for _ in range(20)))
    assert {answer.action.url for answer in answers} == {answers[0].action.url}
    assert (await world.asked(request)).count("execute") == looks + 1


async def test_a_call_that_comes_during_a_look_hears_of_what_was_done_before_it(world: World) -> None:
    """A shop asks when its customer has come back: an older look may have missed the step."""
    request = a_request(card=THREE_DS)
    url = (await awaited(world, request)).action.url
    await world.trouble("execute", "slow_body", seconds=0.002)
    before = asyncio.ensure_future(world.charge(request))
    await until(lambda: _is_answering_slowly(world))
    await world.referee.press(url, "Confirm")
    assert (await world.charge(request)).status == CHARGED
    assert (await before).status == REQUIRES_ACTION


async def test_a_look_without_an_answer_is_answered_as_well(world: World) -> None:
    """With what is known: the customer is awaited."""
    request = a_request(card=THREE_DS)
    await awaited(world, request)
    await world.trouble("execute", "error_before", times=2)
    await awaited(world, request)
    await world.bank_down()
    await awaited(world, request)
    await world.bank_up()
    assert await world.moved() == []


async def test_the_key_is_refused_for_another_request_meanwhile(world: World) -> None:
    """And no new key is advised: the customer may confirm the first one. What is not compared may differ."""
    request = a_request(card=THREE_DS)
    await awaited(world, request)
    told = await refused(world.charge(a_request(request.idempotency_key, card=THREE_DS, user_id="bob")))
    assert (told.reason, told.metadata["status"]) == ("IDEMPOTENCY_KEY_REUSED", "REQUIRES_ACTION")
    assert told.metadata["advice"] == "ASK_STATUS"
    elsewhere = a_request(
        request.idempotency_key, card=THREE_DS, return_url="https://shop.example/elsewhere", off_session=True
    )
    await awaited(world, elsewhere)


# ---------------------------------------------------------------- nobody takes it
async def test_off_session_it_is_called_off_at_the_bank_and_declined(world: World) -> None:
    """By one call, which waits for that end."""
    request = a_request(card=THREE_DS, off_session=True)
    answer = await world.charge(request)
    assert (answer.status, answer.decline_reason) == (DECLINED, AUTHENTICATION_REQUIRED)
    assert not answer.HasField("action")
    assert world.story(request)[2:] == ["action_required", "charge_declined"]
    assert (await world.asked(request))[:3] == ["token", "execute", "cancel"]
    url = world.events(request)[2].action_required.action.url
    assert (await world.referee.http.get(f"/transactions/{url.rpartition('/')[2]}")).json()["state"] == "cancelled"
    assert (await world.referee.http.post(f"{url}/confirm")).status_code == 303
    assert await world.moved() == []


async def test_off_session_a_card_that_wants_no_step_is_charged(world: World) -> None:
    assert (await world.charge(a_request(off_session=True))).status == CHARGED


@pytest.mark.parametrize("fault", ["lose_request", "lose_answer", "error_after", "garbage"])
async def test_a_fault_in_the_calling_off_of_a_charge_off_session_is_repeated(world: World, fault: str) -> None:
    await world.trouble("cancel", fault)
    answer = await world.charge(a_request(card=THREE_DS, off_session=True))
    assert (answer.status, answer.decline_reason) == (DECLINED, AUTHENTICATION_REQUIRED)
    assert await world.moved() == []


@pytest.mark.parametrize("is_down", [False, True], ids=["at work", "stopped meanwhile"])
async def test_the_banks_own_end_of_waiting_is_a_decline(world: World, is_down: bool) -> None:
    """And no other token is requested: the customer has left."""
    request = a_request(card=THREE_DS)
    await awaited(world, request)
    if is_down:
        await world.stop()
    await world.bank_down()
    make_late(world)
    await world.bank_up()
    if is_down:
        await world.start()
    await until(lambda: world.story(request)[-1] == "charge_declined")
    answer = await world.charge(request)
    assert (answer.status, answer.decline_reason) == (DECLINED, AUTHENTICATION_REQUIRED)
    assert world.story(request)[3:] == ["charge_declined"]
    assert "token" not in await world.asked(request), "since the bank is up again"
    assert await world.moved() == []


async def test_its_own_time_ends_it(clocked: World, clock: Clock) -> None:
    """By itself; and a customer who confirms after that confirms nothing."""
    request = a_request(card=THREE_DS, not_after=clock.in_a_moment())
    url = (await awaited(clocked, request)).action.url
    clock.moment += 2 * MOMENT
    await until(lambda: clocked.story(request)[-1] == "charge_called_off")
    assert (await clocked.charge(request)).status == VOIDED
    assert clocked.story(request)[3:] == ["not_after_passed", "charge_called_off"]
    await clocked.referee.http.post(f"{url}/confirm")
    assert await clocked.moved() == []


async def test_a_void_calls_it_off(world: World) -> None:
    request = a_request(card=THREE_DS)
    url = (await awaited(world, request)).action.url
    assert (await world.void(id_of(request))).status == OPERATION_EXECUTED
    answer = await world.charge(request)
    assert (answer.status, answer.outcome_source) == (VOIDED, REPLAYED)
    assert "called off" in (await world.referee.http.get(url)).text
    assert await world.moved() == []


async def test_a_customer_who_was_faster_than_the_void_is_charged(world: World) -> None:
    """The void is told so, and the money can go back."""
    request = a_request(card=THREE_DS)
    await world.referee.press((await awaited(world, request)).action.url, "Confirm")
    voided = await world.void(id_of(request))
    assert voided.decline_reason == DeclineReason.DECLINE_REASON_ALREADY_CHARGED
    assert (await world.charge(request)).status == CHARGED
    assert (await world.refund(id_of(request))).status == OPERATION_EXECUTED


async def test_while_it_is_called_off_its_key_is_told_pending(clocked: World, clock: Clock) -> None:
    """The customer is not to be sent anywhere any more."""
    request = a_request(card=THREE_DS, not_after=clock.in_a_moment())
    await awaited(clocked, request)
    await clocked.trouble("cancel", "in_progress", retry_after="0", times=1_000_000)
    clock.moment += 2 * MOMENT
    await until(lambda: clocked.story(request)[-1] == "not_after_passed")
    assert not (await clocked.pending(request)).HasField("action")
    await clocked.referee.no_more_trouble()
    assert (await clocked.charge(request)).status == VOIDED


async def test_confirming_against_a_void_ends_with_one_truth(world: World) -> None:
    """Twenty customers confirm at the moment in which their charges are called off."""
    requests = [a_request(card=THREE_DS) for _ in range(20)]

    async def end(number: int) -> int:
        request = requests[number]
        url = (await awaited(world, request)).action.url

        async def press() -> None:
            await asyncio.sleep(0.003 * (number % 10))
            await world.referee.http.post(f"{url}/confirm")

        await asyncio.gather(press(), world.void(id_of(request)))
        return (await world.charge(request)).status

    ends = await asyncio.gather(*map(end, range(20)))
    assert set(ends) <= {CHARGED, VOIDED}
    assert len(await world.moved()) == ends.count(CHARGED)


# ---------------------------------------------------------------- faults and restarts
FAULTS: list[tuple[str, dict[str, Any]]] = [
    *((fault, {}) for fault in ("lose_answer", "reset", "error_after", "garbage", "half_body", "wrong_amount")),
    *((fault, {}) for fault in ("wrong_token", "contradict", "refuse", "in_progress", "throttled")),
]


@pytest.mark.parametrize(("fault", "details"), FAULTS, ids=[fault for fault, _ in FAULTS])
async def test_a_fault_of_the_answer_costs_a_question(world: World, fault: str, details: dict[str, Any]) -> None:
    """To the first execute step, and to the one that would tell that the step is taken."""
    request = a_request(card=THREE_DS)
    await world.trouble("execute", fault, **details)
    url = (await awaited(world, request)).action.url
    await world.referee.press(url, "Confirm")
    await world.trouble("execute", fault, **details)
    while (await world.charge(request)).status != CHARGED:
        pass
    assert await world.moved() == [("charge", 1250)]


async def test_a_server_that_starts_again_goes_on_waiting(world: World) -> None:
    request = a_request(card=THREE_DS)
    first = await awaited(world, request)
    await world.stop()
    await world.start()
    again = await awaited(world, request)
    assert again.outcome_source == RECOVERED
    assert again.action == first.action
    await world.stop()
    await world.referee.press(first.action.url, "Confirm")
    await world.start()
    await until(lambda: world.story(request)[-1] == "charged")
    assert (await world.charge(request)).status == CHARGED
    assert await world.moved() == [("charge", 1250)]


async def test_a_stopping_server_says_that_the_customer_is_awaited(tmp_path: Path) -> None:
    """A call that waits for a look is answered with what is known, when four fifths of the drain's time have passed."""
    async with a_world(tmp_path, COMMAND_DRAIN_SECONDS="4") as world:
        request = a_request(card=THREE_DS)
        await awaited(world, request)
        await world.trouble("execute", "hang_before", seconds=60.0)
        waiting = asyncio.ensure_future(world.charge(request))
        await until(world.referee.has_fired)
        await world.drain()
        assert (await waiting).status == REQUIRES_ACTION


async def _is_answering_slowly(world: World) -> bool:
    """Whether the bank has made up its mind about an answer, and is sending it."""
    return any(call["fault"] == "slow_body" and call["status"] for call in await world.referee.calls())
