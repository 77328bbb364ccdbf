"""The three servers as processes, used as a client uses them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from charging.v1 import command_pb2_grpc, query_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OutcomeSource
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.query_pb2 import (
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
)
from rig.processes import Town
from rig.referee import PATIENT_SECONDS
from rig.world import heard, is_behind

Shown = TypeVar("Shown")

CHARGED = ChargeStatus.CHARGE_STATUS_CHARGED


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town(tmp_path) as town:
        await town.start_query()
        yield town


def request(key: str, minor_units: int = 1250, card: str = "tok_visa") -> ChargeRequest:
    return ChargeRequest(
        idempotency_key=key,
        user_id="alice",
        card=Card(token=card),
        amount=Money(minor_units=minor_units, currency_code="EUR"),
    )


async def charge(town: Town, asked: ChargeRequest) -> ChargeResponse:
    async with grpc.aio.insecure_channel(town.command.listen) as channel:
        return await command_pb2_grpc.CommandServiceStub(channel).Charge(asked, timeout=20, wait_for_ready=True)


async def shown(ask: Callable[..., Awaitable[Shown]], request: Message) -> Shown:
    """Ask the query server, and again while its view is behind: it has to find the feed again after a command server's end."""
    return await heard(lambda: ask(request, timeout=PATIENT_SECONDS, wait_for_ready=True), is_behind)


async def statement(town: Town) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=30) as client:
        movements: list[dict[str, Any]] = (await client.get(f"{town.bank_url}/statement")).json()["movements"]
        return movements


async def test_a_charge_is_read_back_at_once_with_min_position(town: Town) -> None:
    charged = await charge(town, request("order-0001"))
    declined = await charge(town, request("order-0002", card="tok_insufficient_funds"))
    async with grpc.aio.insecure_channel(town.query.listen) as channel:
        query = query_pb2_grpc.QueryServiceStub(channel)
        first = await query.GetCharge(
            GetChargeRequest(idempotency_key="order-0001", min_position=charged.position), timeout=20
        )
        history = await query.GetChargeHistory(
            GetChargeHistoryRequest(charge_id=declined.charge_id, min_position=declined.position), timeout=20
        )
        summary = await query.GetUserSummary(
            GetUserSummaryRequest(user_id="alice", min_position=declined.position), timeout=20
        )
    assert first.as_of_position >= charged.position
    assert (first.charge.charge_id, first.charge.status) == (charged.charge_id, CHARGED)
    assert first.charge.transaction_id == charged.transaction_id
    assert [entry.event for entry in history.entries] == ["ChargeRequested", "TokenIssued", "ChargeDeclined"]
    (euros,) = summary.currencies
    assert (euros.charged_minor_units, euros.charged_count) == (1250, 1)
    assert (euros.declined_minor_units, euros.declined_count, euros.pending_count) == (1250, 1, 0)


async def test_a_command_server_killed_in_the_middle_of_charges_charges_each_exactly_once(town: Town) -> None:
    """The clients follow the contract: the same request with the same key, until it has an outcome."""

    async def insist(key: str) -> ChargeResponse:
        while True:
            try:
                answer = await charge(town, request(key))
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            else:
                if answer.status == CHARGED:
                    return answer

    clients = [asyncio.create_task(insist(f"order-{number:04}")) for number in range(40)]
    for _ in range(3):
        known = len(await statement(town))
        while len(await statement(town)) < min(known + 5, 40):
            pass  # the server dies with charges under way
        await town.command.kill()
        await town.start_command()
    answers = await asyncio.gather(*clients)
    movements = await statement(town)
    assert sorted(movement["reference"] for movement in movements) == sorted(answer.charge_id for answer in answers)
    assert {movement["transaction_id"] for movement in movements} == {answer.transaction_id for answer in answers}
    async with grpc.aio.insecure_channel(town.query.listen) as channel:
        status = await shown(
            query_pb2_grpc.QueryServiceStub(channel).GetViewStatus,
            GetViewStatusRequest(min_position=max(answer.position for answer in answers)),
        )
    assert status.charge_count == 40


async def test_a_view_that_is_deleted_comes_back_from_the_feed(town: Town) -> None:
    charged = await charge(town, request("order-0001"))
    await town.query.kill()
    for file in town.folder.glob("view.db*"):
        file.unlink()
    await town.start_query()
    async with grpc.aio.insecure_channel(town.query.listen) as channel:
        found = await shown(
            query_pb2_grpc.QueryServiceStub(channel).GetCharge,
            GetChargeRequest(charge_id=charged.charge_id, min_position=charged.position),
        )
    assert found.charge.status == CHARGED


async def test_a_charge_that_a_restored_journal_lacks_is_not_charged_again(town: Town) -> None:
    """The client retries a charge that the restored journal lacks: the bank still has it."""
    await charge(town, request("order-0001"))
    assert await town.operate("backup", str(town.folder / "backup.db")) == 0
    forgotten = await charge(town, request("order-0002"))
    await town.command.stop()
    assert await town.operate("restore", str(town.folder / "backup.db")) == 0
    await town.start_command()
    again = await charge(town, request("order-0002"))
    assert again.transaction_id == forgotten.transaction_id
    assert again.outcome_source == OutcomeSource.OUTCOME_SOURCE_FRESH
    assert len(await statement(town)) == 2
    async with grpc.aio.insecure_channel(town.query.listen) as channel:
        found = await shown(
            query_pb2_grpc.QueryServiceStub(channel).GetCharge,
            GetChargeRequest(idempotency_key="order-0002", min_position=again.position),
        )
    assert found.charge.transaction_id == forgotten.transaction_id


@pytest.mark.parametrize(
    ("key", "user"), [("1001", "auth0|x"), ("jane+x@y", "jane+x@y"), ("k" * 255, "u" * 255), ("%20/?#", '"<&>')]
)
async def test_both_servers_accept_every_printable_key_and_user(town: Town, key: str, user: str) -> None:
    """In every query that takes one, over the pages of a list too."""
    asked = [request(name) for name in (key, key[:-1] + "2")]
    for each in asked:
        each.user_id = user
    position = [await charge(town, each) for each in asked][-1].position
    async with grpc.aio.insecure_channel(town.query.listen) as channel:
        query = query_pb2_grpc.QueryServiceStub(channel)
        found = await query.GetCharge(GetChargeRequest(idempotency_key=key, min_position=position), timeout=20)
        assert (found.charge.idempotency_key, found.charge.user_id) == (key, user)
        history = await query.GetChargeHistory(GetChargeHistoryRequest(idempotency_key=key), timeout=20)
        assert history.charge_id == found.charge.charge_id
        summary = await query.GetUserSummary(GetUserSummaryRequest(user_id=user), timeout=20)
        assert [each.charged_count for each in summary.currencies] == [2]
        first = await query.ListCharges(ListChargesRequest(user_id=user, page_size=1), timeout=20)
        second = await query.ListCharges(
            ListChargesRequest(user_id=user, page_size=1, page_token=first.next_page_token), timeout=20
        )
    listed = [each.idempotency_key for page in (first, second) for each in page.charges]
    assert listed == [each.idempotency_key for each in reversed(asked)]
