"""What a shop relies on, tried against a sandbox."""

import asyncio
import contextlib
import uuid

import pytest
from conftest import Sandbox
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, insecure_channel

from chargeonce_client import (
    Card,
    ChargeResponse,
    ChargeStatus,
    Client,
    DeclineReason,
    OperationStatus,
    Refused,
    money,
)
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub


@pytest.fixture
def key() -> str:
    """A key that no other test has."""
    return f"order-{uuid.uuid4()}"


async def test_however_often_a_charge_is_asked_for_it_is_made_once(sandbox: Sandbox, client: Client, key: str) -> None:
    answers = await asyncio.gather(
        *(client.charge(key, user_id="alice", card="tok_visa", amount=money(1250, "EUR")) for _ in range(5))
    )
    assert {ChargeStatus.Name(answer.status) for answer in answers} == {"CHARGE_STATUS_CHARGED"}
    (movement,) = sandbox.movements(answers[0].charge_id)
    assert movement["transaction_id"] == answers[0].transaction_id
    assert (movement["minor_units"], movement["currency_code"]) == (1250, "EUR")


async def test_a_deadline_that_passes_leaves_one_charge(sandbox: Sandbox, client: Client, key: str) -> None:
    slow = ChargeRequest(idempotency_key=key, user_id="alice", card=Card(token="tok_slow"), amount=money(1250, "EUR"))
    with contextlib.suppress(AioRpcError):  # no answer at all is as good as PENDING: the same request follows
        assert (await client.commands.Charge(slow, timeout=0.3)).status == ChargeStatus.CHARGE_STATUS_PENDING
    outcome = await client.charge(key, user_id="alice", card="tok_slow", amount=money(1250, "EUR"))
    assert outcome.status == ChargeStatus.CHARGE_STATUS_CHARGED
    assert len(sandbox.movements(outcome.charge_id)) == 1


async def test_a_decline_is_an_answer(client: Client, key: str) -> None:
    outcome = await client.charge(key, user_id="alice", card="tok_declined", amount=money(1250, "EUR"))
    assert outcome.status == ChargeStatus.CHARGE_STATUS_DECLINED
    assert outcome.decline_reason == DeclineReason.DECLINE_REASON_CARD_DECLINED


async def test_another_amount_under_the_key_is_refused(client: Client, key: str) -> None:
    await client.charge(key, user_id="alice", card="tok_visa", amount=money(1250, "EUR"))
    with pytest.raises(Refused) as refusal:
        await client.charge(key, user_id="alice", card="tok_visa", amount=money(1300, "EUR"))
    assert (refusal.value.reason, refusal.value.advice) == ("IDEMPOTENCY_KEY_REUSED", "ASK_STATUS")
    assert refusal.value.metadata == {"status": "CHARGED"}


async def test_money_goes_back_in_parts_and_never_more_than_is_left(client: Client, key: str) -> None:
    charge = await client.charge(key, user_id="alice", card="tok_visa", amount=money(1250, "EUR"))
    part = await client.refund("return-1", charge.charge_id, amount=money(1000, "EUR"))
    assert part.status == OperationStatus.OPERATION_STATUS_EXECUTED
    with pytest.raises(Refused) as refusal:
        await client.refund("return-2", charge.charge_id, amount=money(251, "EUR"))
    assert (refusal.value.reason, refusal.value.metadata) == ("MORE_THAN_IS_LEFT", {"left": "250"})
    shown = await client.get(charge_id=charge.charge_id, after=part)
    assert shown.charge.status == ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED
    assert shown.charge.refunded_minor_units == 1000


async def test_large_amounts_are_whole_numbers_all_the_way(client: Client, key: str) -> None:
    charge = await client.charge(key, user_id="alice", card="tok_visa", amount=money(999_999_999_999, "IDR"))
    shown = await client.get(key=key, after=charge)
    assert shown.charge.amount == money(999_999_999_999, "IDR")
    with pytest.raises(TypeError):
        money(12.5, "EUR")  # type: ignore[arg-type]


def test_a_status_of_a_later_version_is_a_number_and_no_error() -> None:
    later = ChargeResponse.FromString(bytes.fromhex("1063288180808080808010c23e0178"))
    assert later.status == 99
    assert later.position == 9_007_199_254_740_993


async def test_the_generated_stubs_alone_tell_the_same(sandbox: Sandbox) -> None:
    """As in README.md, for programs that are without chargeonce_client."""
    async with insecure_channel(sandbox.settings.command) as channel:
        with pytest.raises(AioRpcError) as refusal:
            await CommandServiceStub(channel).Charge(ChargeRequest(idempotency_key="a b"), timeout=15)
    packed = dict(refusal.value.trailing_metadata() or ())["grpc-status-details-bin"]
    reasons = []
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(info := error_details_pb2.ErrorInfo()):
            reasons.append((info.reason, info.metadata["advice"]))
    assert reasons == [("INVALID_REQUEST", "DO_NOT_RETRY")]
