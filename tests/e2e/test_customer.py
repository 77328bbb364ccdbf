"""The customer's step with the three servers as processes: seen by those who watch, and through kill -9."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from charging.v1 import command_pb2_grpc, query_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, DeclineReason, OperationStatus
from charging.v1.query_pb2 import (
    Charge,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    ListChargesRequest,
    WatchChargeRequest,
    WatchChargeResponse,
)
from rig.processes import Town
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import CHARGED, DECLINED, PENDING, REQUIRES_ACTION, a_request, assert_books_agree, id_of, story, until

THREE_DS = Card(token="tok_3ds")


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town(tmp_path) as town:
        yield town


@pytest.fixture
async def referee(town: Town) -> AsyncIterator[Referee]:
    async with Referee(town.bank_url) as referee:
        yield referee
        await assert_books_agree(town.journal, referee)


async def charge(town: Town, request: ChargeRequest) -> ChargeResponse:
    async with grpc.aio.insecure_channel(town.command.listen) as channel:
        commands = command_pb2_grpc.CommandServiceStub(channel)
        return await commands.Charge(request, timeout=PATIENT_SECONDS, wait_for_ready=True)


async def until_charged(town: Town, request: ChargeRequest) -> ChargeResponse:
    """Ask again as a client does, until the outcome is decided."""
    while (answer := await charge(town, request)).status in (PENDING, REQUIRES_ACTION):
        pass
    return answer


async def next_of(watch: Any) -> Charge:
    """The charge as a watch sends it next."""
    sent: WatchChargeResponse = await watch.read()
    return sent.charge


@asynccontextmanager
async def queries(town: Town) -> AsyncIterator["query_pb2_grpc.QueryServiceAsyncStub"]:
    await town.start_query()
    async with grpc.aio.insecure_channel(town.query.listen) as channel:
        yield query_pb2_grpc.QueryServiceStub(channel)


async def test_whoever_watches_a_charge_sees_that_its_customer_is_awaited_and_then_how_it_ended(
    town: Town, referee: Referee
) -> None:
    """Without asking for it again. Meanwhile it is listed, and counts as pending."""
    request = a_request(card=THREE_DS)
    asked = await charge(town, request)
    async with queries(town) as query:
        wanted = WatchChargeRequest(charge_id=asked.charge_id, min_position=asked.position)
        watch = query.WatchCharge(wanted, wait_for_ready=True)
        shown = await next_of(watch)
        assert (shown.status, shown.action) == (REQUIRES_ACTION, asked.action)
        (opening,) = shown.operations
        assert opening.status == OperationStatus.OPERATION_STATUS_REQUIRES_ACTION
        listed = await query.ListCharges(ListChargesRequest(status=REQUIRES_ACTION))
        assert [each.charge_id for each in listed.charges] == [asked.charge_id]
        (euros,) = (await query.GetUserSummary(GetUserSummaryRequest(user_id="alice"))).currencies
        assert (euros.pending_minor_units, euros.pending_count) == (1250, 1)
        await referee.press(shown.action.url, "Confirm")
        while (shown := await next_of(watch)).status == REQUIRES_ACTION:
            pass
        assert (shown.status, shown.HasField("action")) == (CHARGED, False)
        history = await query.GetChargeHistory(GetChargeHistoryRequest(charge_id=asked.charge_id))
        assert [(entry.event, entry.status) for entry in history.entries[2:]] == [
            ("ActionRequired", REQUIRES_ACTION),
            ("Charged", CHARGED),
        ]
        assert not (await query.ListCharges(ListChargesRequest(status=REQUIRES_ACTION))).charges


async def test_a_charge_off_session_is_shown_as_such(town: Town, referee: Referee) -> None:
    """It is never shown as one whose customer is awaited."""
    declined = await charge(town, a_request(card=THREE_DS, off_session=True))
    assert declined.decline_reason == DeclineReason.DECLINE_REASON_AUTHENTICATION_REQUIRED
    async with queries(town) as query:
        name: dict[str, Any] = {"charge_id": declined.charge_id, "min_position": declined.position}
        shown = (await query.GetCharge(GetChargeRequest(**name), wait_for_ready=True)).charge
        assert (shown.status, shown.off_session, shown.HasField("action")) == (DECLINED, True, False)
        history = await query.GetChargeHistory(GetChargeHistoryRequest(**name))
        assert [entry.status for entry in history.entries] == [PENDING] * 3 + [DECLINED]
    assert await referee.movements() == []


@pytest.mark.parametrize("when", ["before the step", "after the step"])
async def test_a_server_killed_while_the_customer_is_awaited_goes_on(town: Town, referee: Referee, when: str) -> None:
    """Bank and command server die with kill -9; the customer acts while nobody serves charges, or later."""
    request = a_request(card=THREE_DS)
    asked = await charge(town, request)
    await town.command.kill()
    await town.bank.kill()
    await town.start_bank()
    if when == "after the step":
        await referee.press(asked.action.url, "Confirm")
    await town.start_command()
    if when == "before the step":
        again = await charge(town, request)
        assert (again.status, again.action) == (REQUIRES_ACTION, asked.action)
        await referee.press(again.action.url, "Confirm")
    assert (await until_charged(town, request)).status == CHARGED
    assert len(await referee.movements()) == 1
    assert story(town.journal, id_of(request)).count("action_required") == 1


@pytest.mark.parametrize("off_session", [False, True])
async def test_a_server_killed_between_the_banks_answer_and_its_event_goes_on(
    town: Town, referee: Referee, off_session: bool
) -> None:
    """The bank waits for the customer, and the journal does not know it yet."""
    request = a_request(card=THREE_DS, off_session=off_session)
    await referee.trouble("execute", "hang_after", seconds=60)
    async with grpc.aio.insecure_channel(town.command.listen) as channel:
        lost = command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=PATIENT_SECONDS)
        await until(lambda: _is_asked_for(referee, request))
        await town.command.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await lost
    assert story(town.journal, id_of(request)) == ["charge_requested", "token_issued"]
    await town.start_command()
    answer = await charge(town, request)
    if off_session:
        assert answer.decline_reason == DeclineReason.DECLINE_REASON_AUTHENTICATION_REQUIRED
        assert await referee.movements() == []
        return
    assert answer.status == REQUIRES_ACTION
    await referee.press(answer.action.url, "Confirm")
    assert (await until_charged(town, request)).status == CHARGED


async def test_a_server_killed_again_and_again_charges_each_confirmed_customer_once(
    town: Town, referee: Referee
) -> None:
    """Some confirm, some refuse, and every one hears the truth."""
    requests = [a_request(card=THREE_DS) for _ in range(12)]
    for number, request in enumerate(requests):
        answer = await charge(town, request)
        await referee.press(answer.action.url, "Refuse" if number % 3 == 0 else "Confirm")
        if number % 4 == 3:
            await town.command.kill()
            await town.start_command()
    ends = [(await until_charged(town, request)).status for request in requests]
    assert ends == [DECLINED if number % 3 == 0 else CHARGED for number in range(12)]
    assert len(await referee.movements()) == 8


async def _is_asked_for(referee: Referee, request: ChargeRequest) -> bool:
    found = await referee.http.get("/transactions", params={"reference": id_of(request)})
    return found.status_code == 200 and found.json()["state"] == "requires_action"
