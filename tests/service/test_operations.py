"""What follows a charge, as a client sees it: holds, captures, voids and refunds, each once per key.

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

from charging.v1.command_pb2 import ChargeResponse, OperationOutcome, RefundRequest, VoidRequest
from charging.v1.common_pb2 import Card, DeclineReason, Money
from command_service.charge import MOST_OPERATIONS
from command_service.codec import operation_id_of
from command_service.values import Kind
from rig.errors import Told, refused
from rig.world import (
    AUTHORIZED,
    BRIEF_SECONDS,
    CHARGED,
    DECLINED,
    FRESH,
    JOINED,
    OPERATION_ABANDONED,
    OPERATION_DECLINED,
    OPERATION_EXECUTED,
    OPERATION_IN_REVIEW,
    OPERATION_PENDING,
    REPLAYED,
    World,
    a_hold,
    a_request,
    a_world,
    apart_from_source,
    heard,
    id_of,
    money,
    new_key,
    records,
    story,
    until,
)

ALWAYS = 1_000_000
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "0", "times": ALWAYS}  # until `no_more_trouble`


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def charged(world: World, **changed: Any) -> str:
    """Charge 12.50 EUR, or what is said; return the charge's id."""
    answer = await world.charge(a_request(**changed))
    assert answer.status == CHARGED
    return answer.charge_id


async def held(world: World, **changed: Any) -> str:
    """Authorise 12.50 EUR, or what is said; return the charge's id."""
    answer = await world.charge(a_hold(**changed))
    assert answer.status == AUTHORIZED
    return answer.charge_id


async def refusal(call: Any) -> tuple[str, str, dict[str, str]]:
    """The reason, the advice, and the further metadata of a call that is refused."""
    told: Told = await refused(call)
    more = {name: value for name, value in told.metadata.items() if name != "advice"}
    return told.reason, told.advice, more


def same(outcome: OperationOutcome) -> OperationOutcome:
    """What must be the same for everybody who asks with a key."""
    apart = OperationOutcome()
    apart.CopyFrom(outcome)
    apart.ClearField("outcome_source")
    return apart


# ---------------------------------------------------------------- refunds
async def test_a_refund_gives_money_back_once(world: World) -> None:
    """The answer names the bank's transaction of the refund and the deciding record; the key is told the same for ever."""
    charge_id = await charged(world)
    key = new_key()
    first = await world.refund(charge_id, 450, key=key)
    (_, movement) = await world.referee.movements()
    assert (movement.kind, movement.minor_units, movement.currency_code) == ("refund", 450, "EUR")
    assert first == OperationOutcome(
        charge_id=charge_id,
        status=OPERATION_EXECUTED,
        amount=money(450),
        transaction_id=movement.transaction_id,
        position=records(world.journal)[-1].position,
        outcome_source=FRESH,
        requested_at=first.requested_at,
        decided_at=first.decided_at,
        journal_id=world.running.journal.journal_id,
    )
    assert first.requested_at.ToMicroseconds() <= first.decided_at.ToMicroseconds()
    assert story(world.journal, charge_id)[3:] == ["refund_requested", "token_issued", "refunded"]
    again = await world.refund(charge_id, 450, key=key)
    assert again.outcome_source == REPLAYED
    assert same(again) == same(first)
    assert await world.moved() == [("charge", 1250), ("refund", 450)]


async def test_partial_refunds_go_until_nothing_is_left_and_not_beyond(world: World) -> None:
    """The refusal says how much is left; an amount that is left out is all of it, and is told as the number that it was."""
    charge_id = await charged(world)
    assert (await world.refund(charge_id, 500)).status == OPERATION_EXECUTED
    assert await refusal(world.refund(charge_id, 751)) == ("MORE_THAN_IS_LEFT", "DO_NOT_RETRY", {"left": "750"})
    rest_key = new_key()
    rest = await world.refund(charge_id, key=rest_key)
    assert (rest.status, rest.amount) == (OPERATION_EXECUTED, money(750))
    assert await refusal(world.refund(charge_id, 1)) == ("MORE_THAN_IS_LEFT", "DO_NOT_RETRY", {"left": "0"})
    assert await refusal(world.refund(charge_id)) == ("MORE_THAN_IS_LEFT", "DO_NOT_RETRY", {"left": "0"})
    assert same(await world.refund(charge_id, key=rest_key)) == same(rest)
    assert same(await world.refund(charge_id, 750, key=rest_key)) == same(rest)
    assert await world.moved() == [("charge", 1250), ("refund", 500), ("refund", 750)]


async def test_of_two_callers_who_refund_the_same_half_one_key_moves_money_once_and_two_keys_twice(
    world: World,
) -> None:
    """A key names one intent: two clerks with one key refund once, and with a key each twice."""
    charge_id = await charged(world)
    one_key = new_key()
    first, second = await asyncio.gather(
        world.refund(charge_id, 625, key=one_key), world.refund(charge_id, 625, key=one_key)
    )
    assert same(first) == same(second)
    assert {first.outcome_source, second.outcome_source} <= {FRESH, JOINED, REPLAYED}
    await world.refund(charge_id, 625)
    assert await world.moved() == [("charge", 1250), ("refund", 625), ("refund", 625)]


async def test_a_hundred_callers_refund_no_more_than_was_charged(world: World) -> None:
    """Each under a key of its own, all at once: as many succeed as there is money, and the others are told what is left."""
    charge_id = await charged(world)

    async def clerk() -> str:
        try:
            return "refunded" if (await world.refund(charge_id, 125)).status == OPERATION_EXECUTED else "no"
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)

    ends = Counter(await asyncio.gather(*(clerk() for _ in range(100))))
    assert ends["refunded"] == 10
    assert ends["FAILED_PRECONDITION"] == 90
    assert (await world.moved()).count(("refund", 125)) == 10


async def test_a_refund_waits_for_its_turn_until_shortly_before_its_deadline(world: World) -> None:
    """While the first one is unknown the second is not stored: ABORTED, with RetryInfo. Then it gets its turn."""
    charge_id = await charged(world)
    await world.trouble("execute", kind="refund", **HOLD)
    first_key, second_key = new_key(), new_key()
    first = await heard(lambda: world.refund(charge_id, 1000, key=first_key, seconds=BRIEF_SECONDS))
    assert first.status == OPERATION_PENDING
    told = await refused(heard(lambda: world.refund(charge_id, 1000, key=second_key, seconds=BRIEF_SECONDS)))
    assert (told.code, told.reason, told.advice) == (
        grpc.StatusCode.ABORTED,
        "OPERATION_UNDER_WAY",
        "RETRY_SAME_KEY",
    )
    assert told.retry_after_seconds == 1.0
    assert story(world.journal, charge_id).count("refund_requested") == 1
    second = asyncio.ensure_future(world.refund(charge_id, 250, key=second_key))
    await asyncio.sleep(0.1)
    await world.referee.no_more_trouble()
    assert (await second).status == OPERATION_EXECUTED
    assert (await world.refund(charge_id, 1000, key=first_key)).status == OPERATION_EXECUTED
    assert await world.moved() == [("charge", 1250), ("refund", 1000), ("refund", 250)]


async def test_operations_that_wait_are_served_in_their_order_and_read_the_journal_once(world: World) -> None:
    """Each has its turn, one after the other: a dozen callers cost a dozen turns, not a dozen times a dozen."""
    charge_id = await charged(world)
    await world.trouble("execute", kind="refund", **HOLD)
    first = asyncio.ensure_future(world.refund(charge_id, 1))
    await until(lambda: story(world.journal, charge_id)[-1] == "token_issued")
    order: list[int] = []

    async def clerk(number: int) -> None:
        assert (await world.refund(charge_id, 1)).status == OPERATION_EXECUTED
        order.append(number)

    waiting = []
    for number in range(12):
        waiting.append(asyncio.ensure_future(clerk(number)))
        await asyncio.sleep(0.02)
    reads = 0
    read = world.running.journal.read

    async def counted(charge_id: str) -> Any:
        nonlocal reads
        reads += 1
        return await read(charge_id)

    world.running.journal.read = counted  # type: ignore[method-assign]
    await world.referee.no_more_trouble()
    await asyncio.gather(first, *waiting)
    assert order == list(range(12))
    assert reads <= 2 * 12


async def test_a_client_that_leaves_gives_its_turn_to_the_next(world: World) -> None:
    """By its deadline, or by a cancel."""
    charge_id = await charged(world)
    await world.trouble("execute", kind="refund", **HOLD)
    first = asyncio.ensure_future(world.refund(charge_id, 1))
    await until(lambda: story(world.journal, charge_id)[-1] == "token_issued")
    leaving = [asyncio.ensure_future(world.refund(charge_id, 2)) for _ in range(3)]
    await asyncio.sleep(0.2)
    last = asyncio.ensure_future(world.refund(charge_id, 3))
    await asyncio.sleep(0.2)
    for each in leaving:
        each.cancel()
    await asyncio.sleep(0.2)
    await world.referee.no_more_trouble()
    assert (await last).status == (await first).status == OPERATION_EXECUTED
    assert await world.moved() == [("charge", 1250), ("refund", 1), ("refund", 3)]


async def test_impatient_callers_keep_no_turn(world: World) -> None:
    """They leave while they are being accepted, behind others: the next patient caller has its turn all the same."""
    charge_id = await charged(world)
    for number in range(4):
        await world.trouble("execute", "delay", kind="refund", seconds=0.6)
        first = asyncio.ensure_future(world.refund(charge_id, 10))
        impatient = [
            asyncio.ensure_future(world.refund(charge_id, 1, seconds=0.002 + 0.003 * (each + number / 4)))
            for each in range(10)
        ]
        await asyncio.sleep(0.2)
        patient = await asyncio.gather(*(world.refund(charge_id, 2) for _ in range(2)))
        assert {outcome.status for outcome in (await first, *patient)} == {OPERATION_EXECUTED}
        await asyncio.gather(*impatient, return_exceptions=True)
        await world.referee.no_more_trouble()


async def test_two_calls_of_one_key_that_wait_for_their_turn_join_when_it_begins(world: World) -> None:
    """The one that has no turn of its own is not told that nothing was stored."""
    charge_id = await charged(world)
    first_key, key = new_key(), new_key()
    first_id, second_id = (operation_id_of(charge_id, Kind.REFUND, each) for each in (first_key, key))
    await world.trouble("execute", "delay", seconds=1.5, reference=first_id)
    await world.trouble("execute", "in_progress", retry_after="30", reference=second_id, times=ALWAYS)
    first = asyncio.ensure_future(world.refund(charge_id, 1, key=first_key))
    await until(lambda: story(world.journal, charge_id)[-1] == "token_issued")
    outcomes = await asyncio.gather(*(world.refund(charge_id, 2, key=key, seconds=4.0) for _ in range(2)))
    assert (await first).status == OPERATION_EXECUTED
    assert [outcome.status for outcome in outcomes] == [OPERATION_PENDING, OPERATION_PENDING]
    assert {outcome.outcome_source for outcome in outcomes} == {FRESH, JOINED}


async def test_a_charge_has_so_many_operations_and_no_more(world: World) -> None:
    """Each is folded for every call about the charge. A declined one counts too; what is known is answered as ever."""
    charge_id = await charged(world, card=Card(token="tok_refund_declined"))
    key = new_key()
    known = await world.refund(charge_id, 1, key=key)
    for _ in range(MOST_OPERATIONS - 1):
        await world.refund(charge_id, 1)
    assert await refusal(world.refund(charge_id, 1)) == ("TOO_MANY_OPERATIONS", "DO_NOT_RETRY", {})
    assert same(await world.refund(charge_id, 1, key=key)) == same(known)


async def test_a_declined_refund_leaves_everything_as_it_was(world: World) -> None:
    """It does not count: all of the money can still go back, once the bank agrees, under a new key."""
    charge_id = await charged(world, card=Card(token="tok_refund_declined"))
    key = new_key()
    declined = await world.refund(charge_id, key=key)
    assert (declined.status, declined.decline_reason) == (
        OPERATION_DECLINED,
        DeclineReason.DECLINE_REASON_CARD_DECLINED,
    )
    assert not declined.transaction_id
    assert await refusal(world.refund(charge_id, 1, key=key)) == (
        "IDEMPOTENCY_KEY_REUSED",
        "USE_NEW_KEY",
        {"status": "DECLINED"},
    )
    assert (await world.refund(charge_id, 1250)).amount == money(1250)
    assert await world.moved() == [("charge", 1250)]


@pytest.mark.parametrize(("currency_code", "minor_units", "part"), [("JPY", 1250, 1), ("KWD", 12_500, 10)])
async def test_a_currency_without_minor_units_and_one_with_three_are_refunded_to_the_unit(
    world: World, currency_code: str, minor_units: int, part: int
) -> None:
    charge_id = await charged(world, amount=Money(minor_units=minor_units, currency_code=currency_code))
    await world.refund(charge_id, part, currency_code=currency_code)
    rest = await world.refund(charge_id)
    assert rest.amount == money(minor_units - part, currency_code)
    assert await world.moved() == [("charge", minor_units), ("refund", part), ("refund", minor_units - part)]


# ---------------------------------------------------------------- holds and captures
async def test_a_hold_moves_no_money_until_it_is_captured(world: World) -> None:
    """The answer says when the bank lets it lapse. The charge's key is told AUTHORIZED for ever."""
    request = a_hold()
    first = await world.charge(request)
    assert first.status == AUTHORIZED
    assert first.expires_at.ToMicroseconds() > first.decided_at.ToMicroseconds()
    captured = await world.capture(first.charge_id)
    assert (captured.status, captured.amount) == (OPERATION_EXECUTED, money(1250))
    assert story(world.journal, first.charge_id) == [
        *("charge_requested", "token_issued", "authorized"),
        *("capture_requested", "token_issued", "captured"),
    ]
    assert apart_from_source(await world.charge(request)) == apart_from_source(first)
    assert await world.moved() == [("authorize", 1250), ("capture", 1250)]


async def test_a_hold_is_captured_in_parts_and_a_final_part_lets_the_rest_go(world: World) -> None:
    charge_id = await held(world)
    await world.capture(charge_id, 300)
    assert await refusal(world.capture(charge_id, 951)) == ("MORE_THAN_IS_LEFT", "DO_NOT_RETRY", {"left": "950"})
    await world.capture(charge_id, 200, final=True)
    assert await refusal(world.capture(charge_id, 1)) == (
        "OPERATION_DOES_NOT_FIT",
        "DO_NOT_RETRY",
        {"status": "CHARGED"},
    )
    assert (await world.refund(charge_id)).amount == money(500)
    assert await world.moved() == [("authorize", 1250), ("capture", 300), ("capture", 200), ("refund", 500)]


async def test_a_hold_is_voided_and_not_refunded(world: World) -> None:
    """A refund of what was only authorised is refused, and told so."""
    charge_id = await held(world)
    assert await refusal(world.refund(charge_id)) == (
        "OPERATION_DOES_NOT_FIT",
        "DO_NOT_RETRY",
        {"status": "AUTHORIZED", "instead": "VOID"},
    )
    key = new_key()
    voided = await world.void(charge_id, key=key)
    assert (voided.status, voided.amount) == (OPERATION_EXECUTED, money(1250))
    assert same(await world.void(charge_id, key=key)) == same(voided)
    assert await refusal(world.void(charge_id)) == (
        "OPERATION_DOES_NOT_FIT",
        "DO_NOT_RETRY",
        {"status": "VOIDED"},
    )
    assert await refusal(world.capture(charge_id, 1)) == (
        "OPERATION_DOES_NOT_FIT",
        "DO_NOT_RETRY",
        {"status": "VOIDED"},
    )
    assert await world.moved() == [("authorize", 1250), ("void", 1250)]


async def test_the_rest_of_a_hold_is_voided_and_what_was_captured_stays(world: World) -> None:
    charge_id = await held(world)
    await world.capture(charge_id, 300)
    assert (await world.void(charge_id)).amount == money(950)
    assert await refusal(world.void(charge_id)) == (
        "OPERATION_DOES_NOT_FIT",
        "DO_NOT_RETRY",
        {"status": "CHARGED", "instead": "REFUND"},
    )
    assert await world.moved() == [("authorize", 1250), ("capture", 300), ("void", 950)]


@pytest.mark.parametrize("kind", ["capture", "void"])
async def test_a_hold_that_lapsed_at_the_bank_is_told_and_closed(world: World, kind: str) -> None:
    """The bank says so to the operation that meets it: that is an event, and nothing more fits."""
    charge_id = await held(world)
    await world.trouble("execute", "expire_hold", kind=kind)
    outcome = await (world.capture(charge_id) if kind == "capture" else world.void(charge_id))
    assert (outcome.status, outcome.decline_reason) == (
        OPERATION_DECLINED,
        DeclineReason.DECLINE_REASON_AUTHORIZATION_EXPIRED,
    )
    assert story(world.journal, charge_id)[-1] == "authorization_expired"
    assert await refusal(world.capture(charge_id)) == (
        "OPERATION_DOES_NOT_FIT",
        "DO_NOT_RETRY",
        {"status": "AUTHORIZATION_EXPIRED"},
    )
    assert await world.moved() == [("authorize", 1250)]


# ---------------------------------------------------------------- keys
async def test_a_key_belongs_to_its_charge_and_names_one_operation(world: World) -> None:
    """Another amount or kind under it is refused; the same key in another charge is another operation."""
    one, other = await held(world), await held(world)
    key = new_key()
    await world.capture(one, 300, key=key)
    assert await refusal(world.capture(one, 301, key=key)) == (
        "IDEMPOTENCY_KEY_REUSED",
        "ASK_STATUS",
        {"status": "EXECUTED"},
    )
    assert (await refusal(world.refund(one, 300, key=key)))[0] == "IDEMPOTENCY_KEY_REUSED"
    assert (await world.capture(other, 1250, key=key)).outcome_source == FRESH
    assert await world.moved() == [("authorize", 1250)] * 2 + [("capture", 300), ("capture", 1250)]


async def test_an_unknown_charge_is_certainly_not_found(world: World) -> None:
    """Commands read the journal. A malformed id is a fault of its field."""
    never = id_of(a_request())
    for call in (world.capture(never), world.void(never), world.refund(never)):
        assert await refusal(call) == ("CHARGE_NOT_FOUND", "DO_NOT_RETRY", {})
    told = await refused(world.refund("order-1"))
    assert (told.reason, set(told.fields)) == ("INVALID_REQUEST", {"charge_id"})
    assert records(world.journal) == []


async def test_an_operation_that_breaks_todays_rules_is_refused_with_its_fields(world: World) -> None:
    charge_id = await charged(world)
    for request, fields in (
        (RefundRequest(amount=Money(minor_units=0, currency_code="EUR")), {"amount.minor_units"}),
        (RefundRequest(amount=Money(minor_units=10, currency_code="USD")), {"amount.currency_code"}),
        (RefundRequest(reason="cvv 123"), {"reason"}),
        (RefundRequest(reason="4111 1111 1111 1111"), {"reason"}),
    ):
        request.charge_id, request.idempotency_key = charge_id, new_key()
        told = await refused(world.commands.Refund(request, timeout=5))
        assert (told.reason, set(told.fields)) == ("INVALID_REQUEST", fields), request
    told = await refused(world.commands.Void(VoidRequest(charge_id=charge_id), timeout=5))
    assert (told.reason, set(told.fields)) == ("INVALID_REQUEST", {"idempotency_key"})
    assert story(world.journal, charge_id) == ["charge_requested", "token_issued", "charged"]


async def test_a_replayed_charge_is_told_what_it_was_whatever_followed(world: World) -> None:
    """Also while a refund is under way: nobody waits for that."""
    request = a_request()
    first = await world.charge(request)
    await world.trouble("token", kind="refund", **HOLD)
    key = new_key()
    pending = await heard(lambda: world.refund(first.charge_id, 100, key=key, seconds=BRIEF_SECONDS))
    assert pending.status == OPERATION_PENDING
    again = await world.charge(request, 5.0)
    assert again.outcome_source == REPLAYED
    assert apart_from_source(again) == apart_from_source(first)
    await world.referee.no_more_trouble()
    await until(lambda: story(world.journal, first.charge_id)[-1] == "refunded")
    assert apart_from_source(await world.charge(request)) == apart_from_source(first)


# ---------------------------------------------------------------- the bank in trouble
FAULTS = ["lose_request", "lose_answer", "reset", "error_after", "garbage", "half_body", "contradict", "wrong_amount"]


@pytest.mark.parametrize("kind", ["capture", "void", "refund"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_the_execute_step_of_any_kind_moves_money_once(world: World, kind: str, fault: str) -> None:
    """The answer is lost, or it lies, once: the step is repeated, or looked up."""
    charge_id = await (charged(world) if kind == "refund" else held(world))
    await world.trouble("execute", fault, kind=kind)
    call = {"capture": world.capture, "void": world.void, "refund": world.refund}[kind]
    assert (await call(charge_id)).status == OPERATION_EXECUTED
    assert await world.referee.unfired() == []
    assert [moved for moved, _ in await world.moved()][1:] == [kind]


async def test_an_operation_that_the_bank_contradicts_goes_into_review_and_nothing_follows(world: World) -> None:
    """People look into it first."""
    charge_id = await charged(world)
    await world.trouble("execute", "refuse", kind="refund", times=ALWAYS)
    await world.trouble("look_up", "wrong_amount", kind="refund", times=ALWAYS)
    assert (await world.refund(charge_id, 100)).status == OPERATION_IN_REVIEW
    assert await refusal(world.refund(charge_id, 100)) == ("CHARGE_IN_REVIEW", "ASK_STATUS", {})
    assert await world.moved() == [("charge", 1250)]


async def test_an_operation_that_the_bank_never_hears_of_is_given_up(tmp_path: Path) -> None:
    """By its own age, not the charge's. It may be tried again under a new key."""
    async with a_world(tmp_path, COMMAND_ABANDON_AFTER_SECONDS="1") as world:
        charge_id = await charged(world)
        await asyncio.sleep(1.2)
        await world.trouble("token", "error_before", kind="refund", times=ALWAYS)
        key = new_key()
        outcome = await world.refund(charge_id, 100, key=key)
        assert outcome.status == OPERATION_ABANDONED
        calls = [call for call in await world.referee.calls() if call["status"] == 503]
        assert len(calls) >= 5
        await world.referee.no_more_trouble()
        assert await refusal(world.refund(charge_id, 101, key=key)) == (
            "IDEMPOTENCY_KEY_REUSED",
            "USE_NEW_KEY",
            {"status": "ABANDONED"},
        )
        assert (await world.refund(charge_id, 100)).status == OPERATION_EXECUTED


async def test_a_refund_under_way_goes_on_after_a_restart(world: World) -> None:
    """By the same loop, with the token from the journal."""
    charge_id = await charged(world)
    await world.trouble("execute", kind="refund", **HOLD)
    key = new_key()
    pending = await heard(lambda: world.refund(charge_id, 100, key=key, seconds=BRIEF_SECONDS))
    assert pending.status == OPERATION_PENDING
    await world.stop()
    await world.referee.no_more_trouble()
    await world.start()
    assert (await world.refund(charge_id, 100, key=key)).status == OPERATION_EXECUTED
    assert await world.moved() == [("charge", 1250), ("refund", 100)]


async def test_a_declined_charge_has_nothing_to_give_back(world: World) -> None:
    answer: ChargeResponse = await world.charge(a_request(card=Card(token="tok_declined")))
    assert answer.status == DECLINED
    for call in (world.refund(answer.charge_id), world.void(answer.charge_id), world.capture(answer.charge_id)):
        assert await refusal(call) == ("OPERATION_DOES_NOT_FIT", "DO_NOT_RETRY", {"status": "DECLINED"})
