"""A charge that is under way is called off: by its client, or because its time has passed.

Over a real channel, against a real bank. At the end of each test bank and journal must agree (`a_world`).
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import Card, DeclineReason
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import restore_journal
from rig.errors import refused
from rig.world import (
    AUTHORIZED,
    BRIEF_SECONDS,
    CHARGED,
    OPERATION_DECLINED,
    OPERATION_EXECUTED,
    OPERATION_PENDING,
    PENDING,
    REPLAYED,
    VOIDED,
    World,
    a_hold,
    a_request,
    a_world,
    apart_from_source,
    heard,
    id_of,
    new_key,
    story,
    until,
)
from tests.service.clock_rig import MOMENT, Clock, a_clocked_world

ALWAYS = 1_000_000
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "0", "times": ALWAYS}  # until `no_more_trouble`


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


def from_now(seconds: float) -> Timestamp:
    """A time to come, or one that has passed."""
    at = Timestamp()
    at.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return at


# ---------------------------------------------------------------- by the client
@pytest.mark.parametrize("step", ["token", "execute"])
async def test_a_charge_under_way_is_called_off_and_no_money_moves(world: World, step: str) -> None:
    """The bank closes its transaction for ever, and a late execute cannot succeed. The charge's own key is told VOIDED."""
    request = a_request()
    await world.trouble(step, **HOLD)
    assert (await world.pending(request)).status == PENDING
    key = new_key()
    voided = await world.void(id_of(request), key=key)
    assert voided.status == OPERATION_EXECUTED
    assert not voided.transaction_id
    answer = await world.charge(request)
    assert (answer.status, answer.outcome_source) == (VOIDED, REPLAYED)
    assert answer.position == voided.position
    assert world.story(request)[-1] == "charge_called_off"
    await world.referee.no_more_trouble()
    for call in await world.referee.calls():
        if call["path"].endswith("/execute"):  # it comes once more, late
            late = await world.referee.http.post(call["path"])
            assert (late.status_code, late.json()["error"]) == (410, "token_cancelled")
    assert await world.moved() == []
    assert (await world.void(id_of(request), key=key)).outcome_source == REPLAYED
    told = await refused(world.void(id_of(request)))
    assert (told.reason, told.metadata["status"]) == ("OPERATION_DOES_NOT_FIT", "VOIDED")


async def test_a_charge_whose_money_has_moved_is_not_called_off(world: World) -> None:
    """The bank executed it, and the answer was lost: the void is told so, and the charge is CHARGED."""
    request = a_request()
    await world.trouble("execute", "hang_after", kind="charge", seconds=1.0, times=ALWAYS)
    charging = asyncio.ensure_future(world.charge(request))
    await until(lambda: world.story(request)[-1:] == ["token_issued"])
    await until(lambda: _moved(world))
    voided = await world.void(id_of(request))
    assert (voided.status, voided.decline_reason) == (
        OPERATION_DECLINED,
        DeclineReason.DECLINE_REASON_ALREADY_CHARGED,
    )
    assert not voided.transaction_id
    assert (await charging).status == CHARGED
    assert (await world.refund(id_of(request))).status == OPERATION_EXECUTED
    assert await world.moved() == [("charge", 1250), ("refund", 1250)]


async def test_a_hold_that_was_made_meanwhile_is_let_go(world: World) -> None:
    """The void goes on as any other; the charge's own key is told that it was authorised."""
    request = a_hold()
    await world.trouble("execute", "hang_after", kind="authorize", seconds=1.0, times=ALWAYS)
    charging = asyncio.ensure_future(world.charge(request))
    await until(lambda: _moved(world))
    voided = await world.void(id_of(request))
    assert voided.status == OPERATION_EXECUTED
    assert voided.transaction_id
    assert (await charging).status == AUTHORIZED
    assert world.story(request)[2:] == ["void_requested", "authorized", "token_issued", "voided"]
    assert await world.moved() == [("authorize", 1250), ("void", 1250)]


async def test_a_charge_that_the_bank_declines_meanwhile_ends_its_void_as_well(world: World) -> None:
    request = a_request(card=Card(token="tok_insufficient_funds"))
    await world.trouble("execute", "hang_after", kind="charge", seconds=1.0, times=ALWAYS)
    charging = asyncio.ensure_future(world.charge(request))
    await until(lambda: world.story(request)[-1:] == ["token_issued"])
    await until(lambda: _executed(world))
    voided = await world.void(id_of(request))
    assert (voided.status, voided.decline_reason) == (
        OPERATION_DECLINED,
        DeclineReason.DECLINE_REASON_INSUFFICIENT_FUNDS,
    )
    assert (await charging).decline_reason == DeclineReason.DECLINE_REASON_INSUFFICIENT_FUNDS


async def test_void_against_execute_ends_with_one_truth(world: World) -> None:
    """Twenty charges are voided at the moment in which they are executed: each is charged or voided, as the bank says."""
    requests = [a_request() for _ in range(20)]
    await world.trouble("execute", "delay", seconds=0.05, times=10)

    async def charge_and_void(number: int) -> tuple[int, int]:
        request = requests[number]
        charging = asyncio.ensure_future(world.charge(request))
        await until(lambda: world.story(request))
        await asyncio.sleep(0.004 * number)
        try:
            void = (await world.void(id_of(request))).status
        except Exception:  # it came too late to be a calling off
            void = OPERATION_DECLINED
        return (await charging).status, void

    ends = await asyncio.gather(*map(charge_and_void, range(20)))
    assert set(ends) <= {(CHARGED, OPERATION_DECLINED), (VOIDED, OPERATION_EXECUTED)}
    assert len(await world.moved()) == sum(status == CHARGED for status, _ in ends)


async def test_a_calling_off_is_accepted_while_the_bank_is_away(world: World) -> None:
    """A shopper who left must not be charged when the bank comes back."""
    request = a_request()
    await world.trouble("execute", "error_before", times=ALWAYS)
    assert (await world.pending(request)).status == PENDING
    await world.bank_down()
    key = new_key()
    voided = await heard(lambda: world.void(id_of(request), key=key, seconds=BRIEF_SECONDS))
    assert voided.status == OPERATION_PENDING
    await world.bank_up()
    assert (await world.charge(request)).status == VOIDED
    assert await world.moved() == []


async def test_a_calling_off_goes_on_after_a_restart(world: World) -> None:
    request = a_request()
    await world.trouble("execute", **HOLD)
    await world.trouble("cancel", "error_before", times=ALWAYS)
    assert (await world.pending(request)).status == PENDING
    key = new_key()
    voided = await heard(lambda: world.void(id_of(request), key=key, seconds=BRIEF_SECONDS))
    assert voided.status == OPERATION_PENDING
    await world.stop()
    await world.referee.no_more_trouble()
    await world.start()
    assert (await world.void(id_of(request), key=key)).status == OPERATION_EXECUTED
    assert (await world.charge(request)).status == VOIDED
    assert await world.moved() == []


@pytest.mark.parametrize("fault", ["lose_request", "lose_answer", "reset", "error_after", "garbage", "half_body"])
async def test_a_fault_in_the_calling_off_is_repeated(world: World, fault: str) -> None:
    request = a_request()
    await world.trouble("execute", **HOLD)
    assert (await world.pending(request)).status == PENDING
    await world.trouble("cancel", fault)
    assert (await world.void(id_of(request))).status == OPERATION_EXECUTED
    assert await world.moved() == []


# ---------------------------------------------------------------- by its time
@pytest.mark.parametrize("step", ["token", "execute"])
async def test_a_charge_is_called_off_past_its_time_by_itself(world: World, step: str) -> None:
    """Nobody has to ask."""
    request = a_request(not_after=from_now(1.0))
    await world.trouble(step, **HOLD)
    await heard(lambda: world.charge(request, BRIEF_SECONDS))
    await until(lambda: world.story(request)[-1] == "charge_called_off")
    answer = await world.charge(request)
    assert answer.status == VOIDED
    assert answer.decided_at.ToMicroseconds() >= request.not_after.ToMicroseconds()
    assert world.story(request)[-2:] == ["not_after_passed", "charge_called_off"]
    assert await world.moved() == []


async def test_a_charge_in_time_is_charged(clocked: World, clock: Clock) -> None:
    """And its retry finds it past that time too."""
    request = a_request(not_after=clock.in_a_moment())
    first = await clocked.charge(request)
    assert first.status == CHARGED
    clock.moment += 2 * MOMENT
    assert apart_from_source(await clocked.charge(request)) == apart_from_source(first)


async def test_a_charge_whose_time_passed_while_the_server_was_down_is_not_executed(
    clocked: World, clock: Clock
) -> None:
    request = a_request(not_after=clock.in_a_moment())
    await clocked.trouble("execute", **HOLD)
    assert (await clocked.pending(request)).status == PENDING
    await clocked.stop()
    await clocked.referee.no_more_trouble()
    executes = (await clocked.asked(request)).count("execute")
    clock.moment += 2 * MOMENT
    await clocked.start()
    assert (await clocked.charge(request)).status == VOIDED
    assert (await clocked.asked(request)).count("execute") == executes
    assert await clocked.moved() == []


async def test_a_charge_that_waits_for_its_turn_at_the_bank_is_not_executed_past_its_time(
    tmp_path: Path, clock: Clock
) -> None:
    """The time is looked at when the call goes out, not when it queues up."""
    async with a_clocked_world(tmp_path, clock, COMMAND_BANK_CALLS="1") as world:
        first, late = a_request(), a_request(not_after=clock.in_a_moment())
        await world.trouble("execute", "delay", seconds=2.0, times=1)
        slow = asyncio.ensure_future(world.charge(first))
        await until(lambda: _executed(world))
        waiting = asyncio.ensure_future(world.charge(late))
        await until(lambda: world.story(late))
        await asyncio.sleep(0.1)  # it waits for the slot by now
        clock.moment += 2 * MOMENT
        assert (await waiting).status == VOIDED
        assert (await slow).status == CHARGED
        assert [call for call in await world.asked(late) if call in ("token", "execute")] == []


async def test_a_charge_that_is_called_off_while_it_waits_for_its_turn_at_the_bank_is_not_executed(
    tmp_path: Path,
) -> None:
    """What the journal says is looked at when the call goes out, not when it queues up."""
    async with a_world(tmp_path, COMMAND_BANK_CALLS="1") as world:
        left, slow = a_request(), a_request()
        await world.trouble("execute", reference=id_of(left), **HOLD)
        leaving = asyncio.ensure_future(world.charge(left))
        await until(lambda: _executed(world))
        await world.trouble("execute", "delay", seconds=4.0, reference=id_of(slow))
        slowly = asyncio.ensure_future(world.charge(slow))
        await until(lambda: _is_asked_to_execute(world, slow))
        executes = (await world.asked(left)).count("execute")
        await world.referee.no_more_trouble()
        await asyncio.sleep(0.2)  # the execute step of the first one waits for the slot by now
        assert (await world.void(id_of(left))).status == OPERATION_EXECUTED
        assert (await leaving).status == VOIDED
        assert (await slowly).status == CHARGED
        assert (await world.asked(left)).count("execute") == executes


async def test_a_void_joins_a_calling_off_by_time(world: World) -> None:
    """One end for both."""
    request = a_request(not_after=from_now(1.0))
    await world.trouble("execute", **HOLD)
    await world.trouble("cancel", "error_before", times=ALWAYS)
    await until(lambda: _passed(world, request))
    voiding = asyncio.ensure_future(world.void(id_of(request)))
    await until(lambda: world.story(request)[-1] == "void_requested")
    await world.referee.no_more_trouble()
    assert (await voiding).status == OPERATION_EXECUTED
    assert story(world.journal, id_of(request))[-3:] == ["not_after_passed", "void_requested", "charge_called_off"]


@pytest.mark.parametrize("seconds", [-1.0, -1e9])
async def test_a_charge_whose_time_has_passed_already_is_called_off_at_once(world: World, seconds: float) -> None:
    """The bank gets look-ups only."""
    request = a_request(not_after=from_now(seconds))
    assert (await world.charge(request)).status == VOIDED
    assert world.story(request) == ["charge_requested", "not_after_passed", "charge_called_off"]
    assert set(await world.asked(request)) <= {"look_up"}


async def test_a_charge_that_a_restored_journal_has_lost_is_found_at_the_bank_past_its_time(
    clocked: World, clock: Clock, tmp_path: Path
) -> None:
    """Its money moved in time, and its client hears so."""
    await clocked.charge(a_request())
    SqliteFile(clocked.journal).backup(tmp_path / "backup.db")
    request = a_request(not_after=clock.in_a_moment())
    charged = await clocked.charge(request)
    assert charged.status == CHARGED
    await clocked.stop()
    restore_journal(SqliteFile(clocked.journal), tmp_path / "backup.db")
    clock.moment += 2 * MOMENT
    await clocked.start()
    clocked.broken = {"I2", "I3"}  # the journal that held its token is gone
    again = await clocked.charge(request)
    assert (again.status, again.transaction_id) == (CHARGED, charged.transaction_id)


async def _moved(world: World) -> bool:
    return bool(await world.moved())


async def _executed(world: World) -> bool:
    return any(call["path"].endswith("/execute") for call in await world.referee.calls())


async def _is_asked_to_execute(world: World, request: ChargeRequest) -> bool:
    return "execute" in await world.asked(request)


async def _passed(world: World, request: Any) -> bool:
    if not world.story(request):
        await world.pending(request)
    return world.story(request)[-1:] == ["not_after_passed"]
