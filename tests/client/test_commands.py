"""Commands through the client: the outcome comes, whatever happens meanwhile, and the money moves once."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from grpc import StatusCode

from chargeonce_client import (
    ChargeStatus,
    Client,
    OperationStatus,
    Refused,
    Settings,
    connect,
    money,
)
from rig.referee import Referee
from rig.servers import Servers
from tests.client.charging import CHARGED, PRICE, at_the_bank, charge, pending, unsettled

EXECUTED = OperationStatus.OPERATION_STATUS_EXECUTED


async def test_when_patience_is_over_a_charge_under_way_is_pending(client: Client, bank: Referee) -> None:
    await bank.trouble("execute", "in_progress", times=1000)
    began = await pending(client)
    await bank.no_more_trouble()
    outcome = await charge(client)
    assert (outcome.status, outcome.charge_id) == (CHARGED, began.charge_id)
    assert len(await bank.movements()) == 1


async def test_a_pending_answer_is_no_outcome_and_is_asked_for_again(servers: Servers, bank: Referee) -> None:
    async with connect(Settings(servers.command, deadline=0.5)) as client:
        outcome = await charge(client, card="tok_slow")
        assert outcome.status == CHARGED
        await bank.trouble("execute", "delay", seconds=1)
        refund = await client.refund("return-1", outcome.charge_id)
    assert refund.status == EXECUTED


async def test_a_service_that_takes_no_new_charge_is_asked_again_until_patience_is_over(
    servers: Servers, client: Client, bank: Referee
) -> None:
    """The last reason is told. Known keys are answered all the while."""
    known = await charge(client)
    await servers.command_down()
    await servers.command_up({"COMMAND_MAX_UNFINISHED": "1", "COMMAND_BANK_URL": f"http://{servers.bank}"})
    await bank.trouble("execute", "in_progress", times=1000)
    await pending(client, "order-2")
    error = await unsettled(lambda: charge(client, "order-3", patience=2))
    assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "TOO_MANY_UNFINISHED")
    assert error.advice == "RETRY_SAME_KEY"
    assert (await charge(client)).transaction_id == known.transaction_id
    await bank.no_more_trouble()
    assert (await charge(client, "order-3")).status == CHARGED


async def test_a_cancelled_call_leaves_the_charge_to_go_on(client: Client, bank: Referee) -> None:
    awaited = asyncio.create_task(charge(client, card="tok_slow"))
    await at_the_bank(bank)
    awaited.cancel()
    with pytest.raises(asyncio.CancelledError):
        await awaited
    assert (await charge(client, card="tok_slow")).status == CHARGED
    assert len(await bank.movements()) == 1


async def test_a_refusal_tells_everything(client: Client) -> None:
    with pytest.raises(Refused) as invalid:
        await client.charge("a b", user_id="", card="tok_visa", amount=money(0, "EUR"))
    assert invalid.value.code is StatusCode.INVALID_ARGUMENT
    assert (invalid.value.reason, invalid.value.advice) == ("INVALID_REQUEST", "DO_NOT_RETRY")
    assert invalid.value.violations == {
        "idempotency_key": "must be 1 to 255 printable ASCII characters without spaces",
        "user_id": "is required",
        "amount.minor_units": "must be more than zero",
    }
    assert "user_id: is required" in str(invalid.value)

    await charge(client)
    with pytest.raises(Refused) as reused:
        await client.charge("order-1", user_id="alice", card="tok_visa", amount=money(1300, "EUR"))
    assert reused.value.code is StatusCode.ALREADY_EXISTS
    assert (reused.value.reason, reused.value.advice) == ("IDEMPOTENCY_KEY_REUSED", "ASK_STATUS")
    assert (reused.value.metadata, reused.value.violations) == ({"status": "CHARGED"}, {})

    with pytest.raises(Refused) as unknown:
        await client.refund("return-1", "00000000-0000-0000-0000-000000000000")
    assert (unknown.value.code, unknown.value.reason) == (StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")


async def test_a_hold_is_captured_in_part_and_the_rest_let_go(client: Client) -> None:
    hold = await client.charge("order-1", user_id="alice", card="tok_visa", amount=money(5000, "EUR"), manual=True)
    assert hold.status == ChargeStatus.CHARGE_STATUS_AUTHORIZED
    capture = await client.capture("parcel-1", hold.charge_id, amount=money(3000, "EUR"))
    assert (capture.status, capture.amount) == (EXECUTED, money(3000, "EUR"))
    void = await client.void("rest-1", hold.charge_id, reason="sold out")
    assert (void.status, void.amount) == (EXECUTED, money(2000, "EUR"))


async def test_a_customers_step_is_an_answer_at_once_and_can_be_called_off(client: Client, bank: Referee) -> None:
    waiting = await charge(client, card="tok_3ds")
    assert waiting.status == ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
    assert (await client.void("left-1", waiting.charge_id)).status == EXECUTED
    assert (await charge(client, card="tok_3ds")).status == ChargeStatus.CHARGE_STATUS_VOIDED
    assert await bank.movements() == []


async def test_every_field_of_a_request_arrives(client: Client) -> None:
    until = datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    charged = await client.charge(
        "order-1",
        user_id="alice",
        card="tok_visa",
        amount=PRICE,
        description="one umbrella",
        metadata={"order": "1001"},
        not_after=until,
        allow_duplicate=True,
        off_session=True,
        return_url="https://shop.example/back",
    )
    shown = (await client.get(key="order-1", after=charged)).charge
    assert (shown.description, dict(shown.metadata), shown.off_session) == ("one umbrella", {"order": "1001"}, True)
    assert shown.not_after.ToDatetime(UTC) == until
    called_off = await client.charge(
        "order-2", user_id="alice", card="tok_visa", amount=PRICE, not_after=datetime.now(UTC) - timedelta(days=1)
    )
    assert called_off.status == ChargeStatus.CHARGE_STATUS_VOIDED


async def test_what_cannot_be_part_of_a_request_is_said_before_it_is_sent(client: Client) -> None:
    with pytest.raises(TypeError):
        money(12.5, "EUR")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time zone"):
        await client.charge(
            "order-1",
            user_id="alice",
            card="tok_visa",
            amount=PRICE,
            not_after=datetime(2030, 1, 1),  # noqa: DTZ001  # that is what is tried
        )
    with pytest.raises(ValueError, match="by its id or by its key"):
        await client.get()
    with pytest.raises(ValueError, match="by its id or by its key"):
        await client.get(charge_id="1", key="1")
