"""`Charge` as a client sees it: once per key, for every behaviour of client, bank and server.

Over a real channel, against a real bank. At the end of each test bank and journal must agree (`a_world`).
"""

import asyncio
import gc
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeResponse
from charging.v1.common_pb2 import Card, DeclineReason, Money, ReviewReason
from chassis import settings
from chassis.caller import ANYBODY, GuardedCall
from chassis.refusals import Refusal
from chassis.shares import Rates, Shares
from command_service.api import CommandService
from command_service.bank.breaker import SETUP_REFUSED_TO_OPEN, UNANSWERED_TO_OPEN
from command_service.bank.gateway import gateway_bank
from command_service.bank.transport import open_transport
from command_service.charge import Command
from command_service.codec import decode
from command_service.events import ChargeRequested
from command_service.failures import ImpossibleEvent
from command_service.intake import screened
from command_service.journal import Record
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import restore_journal
from command_service.parts import Parts
from command_service.serving import CALLS_A_CONNECTION
from command_service.settings import Settings
from rig.errors import Told, refused, told
from rig.processes import Town
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import (
    ABANDONED,
    BRIEF_SECONDS,
    CHARGED,
    DECLINED,
    FRESH,
    IN_REVIEW,
    JOINED,
    PENDING,
    RECOVERED,
    REPLAYED,
    World,
    a_request,
    a_world,
    apart_from_source,
    assert_books_agree,
    head,
    heard,
    id_of,
    new_key,
    records,
    story,
    until,
)

STRAIGHT = ["charge_requested", "token_issued", "charged"]
OTHER_BODIES: dict[str, dict[str, Any]] = {
    "user": {"user_id": "mallory"},
    "card": {"card": Card(token="tok_mastercard")},
    "amount": {"amount": Money(minor_units=1251)},
    "currency": {"amount": Money(currency_code="USD")},
}
ALWAYS = 1_000_000
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "0", "times": ALWAYS}  # until `no_more_trouble`


def said(code: grpc.StatusCode, reason: str, advice: str, *fields: str, retry: float | None = None) -> Told:
    return Told(code, reason, advice, frozenset(fields), retry, "", frozenset(), {}, b"")


KEY_REUSED = said(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", "ASK_STATUS")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def begun(world: World, on: str) -> None:
    """Wait until the bank has been asked for a step and has not answered yet."""

    async def asked() -> bool:
        path = "/execute" if on == "execute" else "/transactions"
        return any(call["path"].endswith(path) and call["status"] is None for call in await world.referee.calls())

    await until(asked)


# ---------------------------------------------------------------- once per key
async def test_a_new_key_charges_the_card_once(world: World) -> None:
    """The answer names the charge, the bank's transaction and the deciding record."""
    request = a_request()
    answer = await world.charge(request)
    (movement,) = await world.movements(request)
    assert (movement.reference, movement.transaction_id) == (id_of(request), answer.transaction_id)
    assert (movement.minor_units, movement.currency_code) == (1250, "EUR")
    assert answer == ChargeResponse(
        charge_id=id_of(request),
        status=CHARGED,
        transaction_id=movement.transaction_id,
        position=records(world.journal)[-1].position,
        outcome_source=FRESH,
        requested_at=answer.requested_at,
        decided_at=answer.decided_at,
        journal_id=world.running.journal.journal_id,
    )
    assert world.story(request) == STRAIGHT


async def test_a_known_key_gets_the_same_answer_without_asking_the_bank_again(world: World) -> None:
    """Later charges do not move its position."""
    request = a_request()
    first = await world.charge(request)
    await world.charge(a_request())
    asked = await world.asked(request)
    again = await world.charge(request)
    assert again.outcome_source == REPLAYED
    assert apart_from_source(again) == apart_from_source(first)
    assert await world.asked(request) == asked == ["token", "execute"]


async def test_a_call_joins_a_charge_that_is_running(world: World) -> None:
    """The bank is slow; both calls get its one outcome."""
    await world.trouble("execute", "delay", seconds=3)
    request = a_request()
    first = asyncio.ensure_future(world.charge(request))
    await begun(world, "execute")
    second = await world.charge(request)
    assert ((await first).outcome_source, second.outcome_source) == (FRESH, JOINED)
    assert apart_from_source(second) == apart_from_source(await first)
    assert await world.asked(request) == ["token", "execute"]


async def test_a_charge_found_after_a_kill_is_charged_once_and_answered_as_recovered(tmp_path: Path) -> None:
    """kill -9 after the bank executed and before its answer came: the same token is executed again."""
    async with Town(tmp_path) as town, Referee(town.bank_url) as referee:
        request = a_request()
        await referee.trouble("execute", "hang_after", seconds=60)
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            lost = asyncio.ensure_future(command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=20))
            await until(referee.movements)
            await town.command.kill()
            assert (await refused(lost)).code is grpc.StatusCode.UNAVAILABLE
        assert story(town.journal, id_of(request)) == ["charge_requested", "token_issued"]

        await referee.trouble("execute", **HOLD)
        await town.start_command()
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            commands = command_pb2_grpc.CommandServiceStub(channel)
            waiting = asyncio.ensure_future(commands.Charge(request, timeout=PATIENT_SECONDS))
            # Its answer shows that the first call is waiting.
            impatient = await heard(lambda: commands.Charge(request, timeout=BRIEF_SECONDS))
            assert (impatient.status, impatient.outcome_source) == (PENDING, RECOVERED)
            await referee.no_more_trouble()
            answer = await waiting
        assert (answer.status, answer.outcome_source) == (CHARGED, RECOVERED)
        assert story(town.journal, id_of(request)) == STRAIGHT
        await assert_books_agree(town.journal, referee)


async def test_a_hundred_calls_with_one_key_are_one_charge(world: World) -> None:
    """One of them began it, and all get the same answer."""
    request = a_request()
    answers = await asyncio.gather(*[world.charge(request) for _ in range(100)])
    assert {answer.status for answer in answers} == {CHARGED}
    assert len({apart_from_source(answer).SerializeToString(deterministic=True) for answer in answers}) == 1
    sources = [answer.outcome_source for answer in answers]
    assert sources.count(FRESH) == 1
    assert set(sources) <= {FRESH, JOINED, REPLAYED}
    assert world.story(request) == STRAIGHT
    assert len(await world.movements(request)) == 1


# ---------------------------------------------------------------- a key reused for another request
@pytest.mark.parametrize("what", OTHER_BODIES)
async def test_a_key_reused_for_another_request_is_refused_and_reveals_nothing_of_the_first(
    world: World, what: str
) -> None:
    """With the first charge running, and at rest."""
    first = a_request()
    other = a_request(first.idempotency_key, **OTHER_BODIES[what])
    await world.trouble("execute", **HOLD)
    waiting = asyncio.ensure_future(world.charge(first))
    await until(lambda: len(world.story(first)) == 2)
    while_running = await refused(world.charge(other))
    await world.referee.no_more_trouble()
    answer = await waiting
    at_rest = await refused(world.charge(other))
    assert while_running == at_rest == KEY_REUSED
    assert (
        while_running.text
        == at_rest.text
        == "the idempotency key belongs to another request, whose status the metadata name: do as the advice says"
    )
    for secret in (answer.charge_id, answer.transaction_id, first.user_id, "1250", "EUR", "tok_"):
        assert secret.encode() not in while_running.everything + at_rest.everything
    assert world.story(first) == STRAIGHT


async def test_the_first_request_decides_every_field_that_is_not_compared(world: World) -> None:
    """A retry with other values, even invalid ones, is the same charge."""
    first = a_request()
    answer = await world.charge(first)
    again = a_request(
        first.idempotency_key,
        card=Card(brand="b" * 100, last4="12"),
        description="x" * 1000,
        metadata={"shop": "south", "no key of ours": "\n"},
    )
    replayed = await world.charge(again)
    assert replayed.outcome_source == REPLAYED
    assert apart_from_source(replayed) == apart_from_source(answer)
    stored = world.events(first)[0].charge_requested
    assert (stored.card, stored.description, dict(stored.metadata)) == (
        first.card,
        first.description,
        dict(first.metadata),
    )


async def test_exactly_one_of_the_bodies_that_race_for_a_key_wins(world: World) -> None:
    """No call gets the outcome of another request."""
    for _ in range(8):
        key = new_key()
        bodies = [a_request(key, amount=Money(minor_units=amount)) for amount in (100, 200, 300)] * 4
        answers = await asyncio.gather(*[world.charge(body) for body in bodies], return_exceptions=True)
        won = {
            body.amount.minor_units for body, a in zip(bodies, answers, strict=True) if isinstance(a, ChargeResponse)
        }
        lost = {
            body.amount.minor_units
            for body, answer in zip(bodies, answers, strict=True)
            if isinstance(answer, grpc.aio.AioRpcError) and told(answer) == KEY_REUSED
        }
        assert len(won) == 1
        assert lost == {100, 200, 300} - won
        good = [answer for answer in answers if isinstance(answer, ChargeResponse)]
        assert len({apart_from_source(answer).SerializeToString(deterministic=True) for answer in good}) == 1
        (movement,) = await world.movements(bodies[0])
        assert (movement.transaction_id, {movement.minor_units}) == (good[0].transaction_id, won)


async def test_an_invalid_request_that_races_with_a_valid_one_never_harms_it(world: World) -> None:
    """It is refused as invalid or for its key, or it joins if only an uncompared field is wrong."""
    for _ in range(8):
        valid = a_request()
        wordy = a_request(valid.idempotency_key, description="x" * 1000)
        negative = a_request(valid.idempotency_key, amount=Money(minor_units=-1))
        bodies = [wordy, negative, valid, negative, wordy]
        answers = await asyncio.gather(*[world.charge(body) for body in bodies], return_exceptions=True)
        assert isinstance(answers[2], ChargeResponse)
        assert answers[2].status == CHARGED
        for answer in (answers[1], answers[3]):
            assert isinstance(answer, grpc.aio.AioRpcError)
            assert told(answer).reason in ("INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED")
        for answer in (answers[0], answers[4]):
            if isinstance(answer, ChargeResponse):
                assert apart_from_source(answer) == apart_from_source(answers[2])
            else:
                assert isinstance(answer, grpc.aio.AioRpcError)
                assert told(answer).fields == {"description"}
        assert world.events(valid)[0].charge_requested.amount.minor_units == 1250
        assert len(await world.movements(valid)) == 1


# ---------------------------------------------------------------- the bank's answers, as a client sees them
@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("tok_declined", DeclineReason.DECLINE_REASON_CARD_DECLINED),
        ("tok_insufficient_funds", DeclineReason.DECLINE_REASON_INSUFFICIENT_FUNDS),
        ("tok_expired_card", DeclineReason.DECLINE_REASON_EXPIRED_CARD),
        ("tok_of_somebody_else", DeclineReason.DECLINE_REASON_BANK_REFUSED),
    ],
)
async def test_a_decline_is_a_result_and_stays_the_result(
    world: World, card: str, reason: DeclineReason.ValueType
) -> None:
    """Status OK with the reason, for ever; no money moves."""
    request = a_request(card=Card(token=card))
    answer = await world.charge(request)
    assert answer == ChargeResponse(
        charge_id=id_of(request),
        status=DECLINED,
        decline_reason=reason,
        position=head(world.journal).position,
        outcome_source=FRESH,
        requested_at=answer.requested_at,
        decided_at=answer.decided_at,
        journal_id=world.running.journal.journal_id,
    )
    assert apart_from_source(await world.charge(request)) == apart_from_source(answer)
    assert await world.movements(request) == []


# Faults after which the bank may or may not have done the step, and faults that a look-up settles.
HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("lose_request", {}),
    ("lose_answer", {}),
    ("hang_before", {"seconds": 60}),
    ("hang_after", {"seconds": 60}),
    ("slow_body", {"seconds": 1}),
    ("error_before", {"status": 500}),
    ("error_after", {"status": 504}),
    ("throttled", {"retry_after": "0"}),
    ("throttled", {"retry_after": "soon"}),
    ("garbage", {}),
    ("half_body", {}),
    ("huge_body", {}),
    ("reset", {}),
    ("redirect", {}),
    ("in_progress", {"retry_after": "0"}),
    ("wrong_amount", {}),
    ("wrong_currency", {}),
    ("wrong_reference", {}),
]
TROUBLE = {"token": HARMLESS, "execute": [*HARMLESS, ("wrong_token", {}), ("contradict", {})]}


@pytest.mark.parametrize("on", TROUBLE)
async def test_trouble_at_the_bank_delays_a_charge_and_does_no_harm(tmp_path: Path, on: str) -> None:
    """Each kind of fault hits a charge of its own: one token, one movement, and the client waits for CHARGED."""
    async with a_world(tmp_path, COMMAND_BANK_TIMEOUT_SECONDS="0.5") as world:
        requests = [a_request() for _ in TROUBLE[on]]
        for request, (fault, details) in zip(requests, TROUBLE[on], strict=True):
            await world.trouble(on, fault, reference=id_of(request), **details)
        answers = await asyncio.gather(*[world.charge(request) for request in requests])
        assert await world.referee.unfired() == []
        for (fault, _), request, answer in zip(TROUBLE[on], requests, answers, strict=True):
            assert (fault, answer.status, answer.outcome_source) == (fault, CHARGED, FRESH)
            assert (fault, world.story(request)) == (fault, STRAIGHT)
            moved = [movement.transaction_id for movement in await world.movements(request)]
            assert (fault, moved) == (fault, [answer.transaction_id])


async def test_a_bank_that_dies_and_comes_back_charges_once(tmp_path: Path) -> None:
    """It dies after a step and before its answer: the step is repeated, with the token that the journal holds."""
    async with (
        Town(tmp_path) as town,
        Referee(town.bank_url) as referee,
        grpc.aio.insecure_channel(town.command.listen) as channel,
    ):
        commands = command_pb2_grpc.CommandServiceStub(channel)
        for on in ("token", "execute"):
            await referee.trouble(on, "stop_after")
            request = a_request()
            charging = asyncio.ensure_future(commands.Charge(request, timeout=PATIENT_SECONDS))
            await town.bank.ended()
            await town.start_bank()
            answer = await charging
            assert (answer.status, answer.outcome_source) == (CHARGED, FRESH)
            assert story(town.journal, id_of(request)) == STRAIGHT
        await assert_books_agree(town.journal, referee)
        assert len(await referee.movements()) == 2


async def test_a_token_that_expired_unexecuted_is_followed_by_another(world: World) -> None:
    """Both are in the journal, and money moves once."""
    await world.trouble("execute", "expire_token")
    request = a_request()
    assert (await world.charge(request)).status == CHARGED
    assert world.story(request) == ["charge_requested", "token_issued", "token_expired", "token_issued", "charged"]
    _, first, closed, second, _ = world.events(request)
    assert closed.token_expired.token == first.token_issued.token != second.token_issued.token
    assert len(await world.movements(request)) == 1


async def test_an_executed_transaction_that_the_bank_then_denies_is_found_by_a_look_up(world: World) -> None:
    """The answer is lost, and at the retry the bank denies the token. The look-up shows that it was executed."""
    await world.trouble("execute", "lose_answer")
    await world.trouble("execute", "forget_token")
    request = a_request()
    assert (await world.charge(request)).status == CHARGED
    assert await world.asked(request) == ["token", "execute", "execute", "look_up"]
    assert world.story(request) == STRAIGHT


CONFUSION: list[tuple[list[tuple[str, str, dict[str, Any]]], str, list[str], bool]] = [
    ([("execute", "forget_token", {"times": 2})], "EXECUTE_REFUSED", [], False),
    *[([("execute", "refuse", {"status": n, "times": 2})], "EXECUTE_REFUSED", [], False) for n in (400, 404, 409, 422)],
    ([("token", "wrong_token", {})], "EXECUTE_REFUSED", [], False),
    ([("token", "wrong_amount", {"times": 2})], "FIELDS_DIFFER", ["amount"], False),
    ([("token", "wrong_reference", {}), ("token", "wrong_currency", {})], "FIELDS_DIFFER", ["currency"], False),
    ([("execute", "wrong_amount", {}), ("look_up", "wrong_amount", {"times": 2})], "FIELDS_DIFFER", ["amount"], True),
    (
        [("execute", "wrong_currency", {}), ("look_up", "forget_token", {"times": 2})],
        "FIELDS_DIFFER",
        ["currency"],
        True,
    ),
    ([("execute", "contradict", {}), ("look_up", "wrong_token", {"times": 2})], "CONTRADICTION", [], True),
    ([("execute", "odd_transaction_id", {})], "TRANSACTION_ID_UNUSABLE", ["transaction_id"], True),
]


@pytest.mark.parametrize(
    ("troubles", "reason", "fields", "moved"),
    CONFUSION,
    ids=["-".join(f"{on}_{fault}" for on, fault, _ in troubles) for troubles, *_ in CONFUSION],
)
async def test_a_contradictory_charge_goes_into_review_and_takes_no_new_token(
    world: World, troubles: list[tuple[str, str, dict[str, Any]]], reason: str, fields: list[str], moved: bool
) -> None:
    """The answer is IN_REVIEW for ever, never CHARGED on a mismatch. Only a digest of the bank's body is kept."""
    for on, fault, details in troubles:
        await world.trouble(on, fault, **details)
    request = a_request()
    answer = await world.charge(request)
    assert (answer.status, answer.transaction_id, answer.decline_reason) == (IN_REVIEW, "", 0)
    assert await world.referee.unfired() == []
    review = world.events(request)[-1].review_required
    assert review.reason == ReviewReason.Value(f"REVIEW_REASON_{reason}")
    assert list(review.evidence.fields) == fields
    # If the rest of the body is known, a digest of a body with a card number is as good as the number.
    has_digest = reason != "TRANSACTION_ID_UNUSABLE"
    assert (len(review.evidence.body_sha256), review.evidence.body_length > 0) == (32 * has_digest, has_digest)
    assert apart_from_source(await world.charge(request)) == apart_from_source(answer)
    assert world.story(request).count("token_issued") <= 1
    assert len(await world.movements(request)) == moved


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_definite_refusal_of_the_token_step_is_a_decline(world: World, status: int) -> None:
    """No token exists, so nothing can be executed. A refusal names no charge, so the step is repeated once before it counts."""
    await world.trouble("token", "refuse", status=status, times=2)
    request = a_request()
    answer = await world.charge(request)
    assert (answer.status, answer.decline_reason) == (DECLINED, DeclineReason.DECLINE_REASON_BANK_REFUSED)
    assert await world.asked(request) == ["token", "token"]


async def test_a_surplus_answer_declines_no_charge_and_charges_none_twice(world: World) -> None:
    """A refusal some ms after every seventh right answer, over reused connections: hundreds are charged, each once."""
    requests = [a_request() for _ in range(400)]
    for number, request in enumerate(requests[::7]):
        on, seconds = ("token", "execute")[number % 2], number % 6 / 1000
        await world.trouble(on, "extra_answer", reference=id_of(request), seconds=seconds)
    waiting = iter(requests)

    async def charge_on() -> list[tuple[str, ChargeResponse]]:
        return [(id_of(request), await world.charge(request)) for request in waiting]

    answers = [told for some in await asyncio.gather(*[charge_on() for _ in range(8)]) for told in some]
    assert Counter(answer.status for _, answer in answers) == {CHARGED: 400}
    assert await world.referee.unfired() == []
    moved = [(movement.reference, movement.transaction_id) for movement in await world.referee.movements()]
    assert sorted(moved) == sorted((name, answer.transaction_id) for name, answer in answers)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_bank_that_refuses_our_setup_declines_no_charge(world: World, status: int) -> None:
    """The charge stays pending, new ones are refused, and after our set-up is mended it is charged."""
    await world.trouble("token", "refuse", status=status, times=ALWAYS)
    request = a_request()
    known, *_ = await asyncio.gather(*[world.pending(a_request()) for _ in range(SETUP_REFUSED_TO_OPEN)])
    told = await refused(world.charge(request))
    assert (told.code, told.reason, told.advice) == (grpc.StatusCode.UNAVAILABLE, "BANK_UNREACHABLE", "RETRY_SAME_KEY")
    assert world.story(request) == []
    await world.stop()
    await world.referee.no_more_trouble()
    await world.start()
    await until(lambda: world.running.vitals().unfinished_charges == 0)
    assert story(world.journal, known.charge_id) == STRAIGHT
    assert (await world.charge(request)).status == CHARGED


# ---------------------------------------------------------------- a bank that is away
async def test_while_the_bank_is_away_known_keys_are_answered_and_new_ones_are_refused(world: World) -> None:
    """Charges begun before the breaker opened answer PENDING. When the bank is back all come to rest, charged once."""
    rested = a_request()
    before = await world.charge(rested)
    await world.bank_down()
    begun_before = [a_request() for _ in range(UNANSWERED_TO_OPEN)]
    await asyncio.gather(*[world.pending(request) for request in begun_before])
    await until(lambda: world.running.vitals().bank_breaker_open[""])

    stored = head(world.journal)
    new = a_request()
    told = await refused(world.charge(new))
    assert (told.code, told.reason, told.advice) == (grpc.StatusCode.UNAVAILABLE, "BANK_UNREACHABLE", "RETRY_SAME_KEY")
    assert told.retry_after_seconds is not None
    assert told.retry_after_seconds >= 1
    assert head(world.journal) == stored
    assert (await world.pending(begun_before[0])).outcome_source == JOINED
    again = await world.charge(rested)
    assert (again.outcome_source, apart_from_source(again)) == (REPLAYED, apart_from_source(before))

    await world.bank_up()
    answers = await asyncio.gather(*[world.charge(request) for request in begun_before])
    assert {answer.status for answer in answers} == {CHARGED}
    assert (await world.charge(new)).outcome_source == FRESH
    assert len(await world.referee.movements()) == UNANSWERED_TO_OPEN + 2


@pytest.mark.parametrize("trouble", [{"fault": "refuse", "status": 403}, {"fault": "error_before"}])
@pytest.mark.parametrize("on", ["token", "execute"])
async def test_a_charge_that_the_bank_never_answers_delays_no_other(
    world: World, on: str, trouble: dict[str, Any]
) -> None:
    """A bank may fail for one card only."""
    request = a_request()
    request.card.token = "tok_mastercard"
    await world.trouble(on, card="tok_mastercard", times=ALWAYS, **trouble)
    stuck = asyncio.create_task(world.pending(request))
    await until(lambda: world.running.vitals().unfinished_charges)
    for _ in range(20):
        assert (await world.charge(a_request())).status == CHARGED
        assert not world.running.vitals().bank_breaker_open[""]
    assert (await stuck).status == PENDING


async def test_a_new_charge_may_be_the_probe_that_finds_the_bank_back(world: World) -> None:
    """The bank may never answer the charges under way. Until a probe succeeds, new keys are refused and nothing is stored."""
    await world.trouble("token", "error_before", card="tok_mastercard", times=ALWAYS)
    stuck = [a_request() for _ in range(UNANSWERED_TO_OPEN)]
    for request in stuck:
        request.card.token = "tok_mastercard"
    await asyncio.gather(*[world.pending(request) for request in stuck])
    await until(lambda: world.running.vitals().bank_breaker_open[""])
    request = a_request()
    refusals = set()

    async def is_taken() -> bool:
        try:
            return (await world.charge(request)).status == CHARGED
        except grpc.aio.AioRpcError as error:
            refusals.add(told(error).reason)
            return False

    await until(is_taken)
    assert refusals <= {"BANK_UNREACHABLE"}
    assert not world.running.vitals().bank_breaker_open[""]
    assert (await world.charge(a_request())).status == CHARGED
    assert world.running.vitals().unfinished_charges == UNANSWERED_TO_OPEN


async def ask_in_vain(world: World, on: str) -> None:
    """Order five vain attempts, a pause in which the charge becomes a second old, and more vain attempts."""
    await world.trouble(on, "throttled", retry_after="0", times=5)
    await world.trouble(on, "in_progress", retry_after="1")
    await world.trouble(on, "throttled", retry_after="0", times=3)
    await world.trouble(on, **HOLD)


async def test_a_charge_whose_token_step_is_never_answered_is_abandoned(tmp_path: Path) -> None:
    """After the configured age and five attempts, and for ever: after the bank's return only a new key is charged."""
    async with a_world(tmp_path, COMMAND_ABANDON_AFTER_SECONDS="1") as world:
        await ask_in_vain(world, "token")
        request = a_request()
        answer = await world.charge(request)
        assert (answer.status, answer.outcome_source) == (ABANDONED, FRESH)
        assert world.story(request) == ["charge_requested", "charge_abandoned"]
        assert world.events(request)[-1].charge_abandoned.attempts == 6
        first, last = (record.recorded_at for record in records(world.journal))
        assert last - first >= 1_000_000
        await world.referee.no_more_trouble()
        again = await world.charge(request)
        assert (again.outcome_source, apart_from_source(again)) == (REPLAYED, apart_from_source(answer))
        assert (await world.charge(a_request())).status == CHARGED


async def test_a_charge_of_any_age_is_not_abandoned_before_five_attempts(tmp_path: Path) -> None:
    """Our own outage abandons no charge: attempts of an earlier process do not count."""
    async with a_world(tmp_path, COMMAND_ABANDON_AFTER_SECONDS="1") as world:
        await world.trouble("token", "throttled", retry_after="0", times=4)
        await world.trouble("token", **HOLD)
        request = a_request()
        waiting = asyncio.ensure_future(world.charge(request))
        await until(lambda: world.running.vitals().oldest_unfinished_seconds > 1)
        waiting.cancel()
        await world.stop()
        await world.referee.no_more_trouble()
        await world.trouble("token", "throttled", retry_after="0", times=4)
        await world.start()
        assert (await world.charge(request)).status == CHARGED


async def test_the_execute_step_is_never_given_up(tmp_path: Path) -> None:
    """For any age of the charge and any number of vain attempts: the money may have moved, and here it has."""
    async with a_world(tmp_path, COMMAND_ABANDON_AFTER_SECONDS="1") as world:
        await world.trouble("execute", "lose_answer")
        await ask_in_vain(world, "execute")
        request = a_request()
        charging = asyncio.ensure_future(world.charge(request))

        async def asked_in_vain() -> bool:
            return (await world.asked(request)).count("execute") > 10

        await until(asked_in_vain)
        assert world.running.vitals().oldest_unfinished_seconds > 1
        assert world.story(request) == ["charge_requested", "token_issued"]
        await world.referee.no_more_trouble()
        assert (await charging).status == CHARGED
        assert world.story(request) == STRAIGHT


async def test_in_a_restored_journal_nothing_is_abandoned_and_each_step_begins_with_a_look_up(tmp_path: Path) -> None:
    """A charge of sufficient age and attempts stays pending, and ends charged."""
    async with a_world(tmp_path, COMMAND_ABANDON_AFTER_SECONDS="1") as world:
        await world.trouble("token", **HOLD)
        request = a_request()
        await world.pending(request)
        await world.stop()
        restore_journal(SqliteFile(world.journal), None)
        await world.referee.no_more_trouble()
        await ask_in_vain(world, "token")
        before = len(await world.asked(request))
        await world.start()
        assert world.running.journal.restored

        async def asked_in_vain() -> bool:
            return (await world.asked(request))[before:].count("token") > 10

        await until(asked_in_vain)
        assert world.running.vitals().oldest_unfinished_seconds > 1
        assert world.story(request) == ["charge_requested"]
        await world.referee.no_more_trouble()
        assert (await world.charge(request)).status == CHARGED
        asked = (await world.asked(request))[before:]
        assert set(asked[::2]) == {"look_up"}
        assert "look_up" not in asked[1::2]


@pytest.mark.parametrize("on", ["token", "execute"])
async def test_a_restored_journal_learns_of_lost_steps_by_look_ups(world: World, tmp_path: Path, on: str) -> None:
    """A backup is taken before a step and restored after the bank did it: the bank gets look-ups only."""
    await world.trouble(on, **HOLD)
    request = a_request()
    answer = await world.pending(request)
    SqliteFile(world.journal).backup(tmp_path / "backup.db")
    await world.referee.no_more_trouble()
    charged = await world.charge(request)
    assert charged.status == CHARGED
    await world.stop()
    restore_journal(SqliteFile(world.journal), tmp_path / "backup.db")
    assert len(story(world.journal, answer.charge_id)) == (1 if on == "token" else 2)
    before = len(await world.asked(request))
    await world.start()
    again = await world.charge(request)
    charged.decided_at.CopyFrom(again.decided_at)  # the event that the copy lacks is recorded again, later
    assert apart_from_source(again) == apart_from_source(charged)
    assert set((await world.asked(request))[before:]) == {"look_up"}
    assert world.story(request) == STRAIGHT


# ---------------------------------------------------------------- a client that does not wait
async def test_pending_comes_before_the_deadline_and_the_outcome_later_with_the_same_key(world: World) -> None:
    """The charge goes on without a waiting call."""
    await world.trouble("execute", **HOLD)
    request = a_request()
    while (answer := await world.pending(request)).position < 2:
        pass
    assert (answer.charge_id, answer.position) == (id_of(request), 2)
    await world.referee.no_more_trouble()
    await until(lambda: world.story(request) == STRAIGHT)
    later = await world.charge(request)
    assert (later.status, later.outcome_source, later.position) == (CHARGED, REPLAYED, 3)


async def test_a_call_after_its_deadline_begins_no_charge(world: World) -> None:
    """Nothing is stored, and the bank is not called."""
    request = a_request()
    assert (await refused(world.charge(request, -1.0))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await world.charge(a_request())  # its answer shows that the server is done with the first
    assert world.story(request) == []
    assert await world.asked(request) == []


async def test_a_deadline_of_less_than_200_ms_can_succeed(world: World) -> None:
    """The time reserved for the answer's way is a share of the remaining time: one of many such calls gets the outcome."""
    request = a_request()
    charged = await world.charge(request)
    assert apart_from_source(await heard(lambda: world.charge(request, 0.15))) == apart_from_source(charged)


async def test_a_call_that_is_read_after_its_deadline_is_told_that_nothing_was_stored(world: World) -> None:
    """The charge is not begun. A client whose clock is behind may still read the reason."""
    service = CommandService(screened({}), world.running.reception, Shares(1), Rates(lambda _: None, time.monotonic))

    class Late:
        def time_remaining(self) -> float:
            return -0.001

    request = a_request()
    with pytest.raises(Refusal) as refusal:
        await service.Charge(request, GuardedCall("/charging.v1.CommandService/Charge", ANYBODY, Late()))
    assert (refusal.value.reason, refusal.value.advice) == ("DEADLINE_PASSED", "RETRY_SAME_KEY")
    assert world.story(request) == []


async def test_an_answer_has_the_time_of_the_first_request(world: World) -> None:
    """It reveals a key that was used long ago. The time is the first record's, also in a replay."""
    request = a_request()
    first, again = await world.charge(request), await world.charge(request)
    (requested,) = [r for r in records(world.journal) if r.charge_id == id_of(request) and r.version == 1]
    assert first.requested_at.ToMicroseconds() == again.requested_at.ToMicroseconds() == requested.recorded_at


@pytest.mark.parametrize(
    ("card", "status", "advice"),
    [
        ("tok_visa", "CHARGED", "ASK_STATUS"),
        ("tok_declined", "DECLINED", "USE_NEW_KEY"),
        ("in review", "IN_REVIEW", "ASK_STATUS"),
        ("pending", "PENDING", "ASK_STATUS"),
    ],
)
async def test_a_new_key_is_advised_only_if_the_first_charge_moves_no_money(
    world: World, card: str, status: str, advice: str
) -> None:
    """A client that reuses a key and obeys the advice never pays twice for one order."""
    first = a_request(card=Card(token=card if card.startswith("tok_") else "tok_visa"))
    if card == "in review":
        await world.trouble("execute", "wrong_amount")
        await world.trouble("look_up", "wrong_amount", times=ALWAYS)
    if card == "pending":
        await world.trouble("execute", **HOLD)
        await world.pending(first)
    else:
        await world.charge(first)
    answer = await refused(world.charge(a_request(first.idempotency_key, card=Card(token="tok_mastercard"))))
    said = (answer.reason, answer.metadata["status"], answer.advice)
    assert said == ("IDEMPOTENCY_KEY_REUSED", status, advice)


@pytest.mark.parametrize("seconds", [None, 10 * 365 * 86_400.0])
async def test_no_deadline_and_one_in_ten_years_are_answered_like_any_other(
    world: World, seconds: float | None
) -> None:
    """The server has its own limit of a call's time."""
    answer = await world.commands.Charge(a_request(), timeout=seconds)
    assert answer.status == CHARGED


@pytest.mark.parametrize("moment", ["at once", "stored", "token", "execute"])
async def test_a_client_that_cancels_stops_no_charge(world: World, moment: str) -> None:
    """The charge comes to rest by itself, once. A charge that was not stored yet begins with the next call."""
    for seconds in (0.5, 2.0, 8.0):  # that its client has to cancel it in
        request = a_request()
        if moment != "at once":
            await world.trouble("execute" if moment == "execute" else "token", "delay", seconds=seconds)
        call = world.commands.Charge(request, timeout=PATIENT_SECONDS)
        match moment:
            case "at once":
                await asyncio.sleep(0)
            case "stored":
                await until(partial(world.story, request))
            case "token" | "execute":
                await begun(world, moment)
        if call.cancel():
            break
    with pytest.raises(asyncio.CancelledError):
        await call
    if moment != "at once":
        await until(lambda: world.story(request) == STRAIGHT)
    assert (await world.charge(request)).status == CHARGED
    assert world.story(request) == STRAIGHT
    assert len(await world.movements(request)) == 1


async def test_requests_that_are_no_messages_leave_no_memory_behind(world: World) -> None:
    """Each is refused by a new error: an error object that is raised repeatedly would keep every call's frames alive."""
    calls = 20
    charge_by_bytes: Any = world.channel.unary_unary("/charging.v1.CommandService/Charge")
    for _ in range(calls):
        with pytest.raises(grpc.aio.AioRpcError) as told_so:
            await charge_by_bytes(b"\xff\xff\xff", timeout=PATIENT_SECONDS)
        assert told_so.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    refusals = [thing for thing in gc.get_objects() if isinstance(thing, Refusal)]
    assert refusals
    # Each raise adds a line or more. Other tests' refusals may be among these, and have passed a few lines.
    assert max(len(traceback.extract_tb(refusal.__traceback__)) for refusal in refusals) < calls


# ---------------------------------------------------------------- too much at once
async def test_beyond_the_limit_of_unfinished_charges_new_ones_are_refused(tmp_path: Path) -> None:
    """Known keys are answered, and the limit holds for simultaneous calls."""
    async with a_world(tmp_path, COMMAND_MAX_UNFINISHED="3") as world:
        await world.trouble("token", **HOLD)
        requests = [a_request() for _ in range(20)]
        answers = await asyncio.gather(*[world.pending(request) for request in requests], return_exceptions=True)
        taken = [request for request, a in zip(requests, answers, strict=True) if isinstance(a, ChargeResponse)]
        told_others = {told(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)}
        assert told_others == {said(grpc.StatusCode.UNAVAILABLE, "TOO_MANY_UNFINISHED", "RETRY_SAME_KEY", retry=1.0)}
        assert len(taken) == head(world.journal).position == 3
        assert (await world.pending(taken[0])).outcome_source == JOINED
        await world.referee.no_more_trouble()
        assert {(await world.charge(request)).status for request in taken} == {CHARGED}
        assert {(await world.charge(request)).status for request in requests} == {CHARGED}


async def test_beyond_the_limit_of_calls_even_known_keys_wait_their_turn(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED, before anything is stored."""
    async with a_world(tmp_path, COMMAND_MAX_CALLS="2") as world:
        await world.trouble("token", **HOLD)
        waiting = [asyncio.ensure_future(world.charge(a_request())) for _ in range(2)]
        await until(lambda: head(world.journal).position == 2)
        assert await refused(world.charge(a_request())) == said(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", "RETRY_SAME_KEY", retry=0.5
        )
        assert head(world.journal).position == 2
        await world.referee.no_more_trouble()
        await asyncio.gather(*waiting)
        assert (await world.charge(a_request())).status == CHARGED


async def test_one_connection_cannot_take_every_slot_of_the_limit_of_calls(tmp_path: Path) -> None:
    """Its further calls wait in the client, other connections are served at once, and in the end all are.

    For a moment grpc's core still counts a stream that has ended for the client, and may refuse the next one.
    """
    async with a_world(tmp_path) as world:

        async def charge(commands: "command_pb2_grpc.CommandServiceAsyncStub") -> int:
            request = a_request()
            while True:
                try:
                    if (answer := await commands.Charge(request, timeout=PATIENT_SECONDS)).status != PENDING:
                        return answer.status
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        assert (error.code(), told(error).reason) == (grpc.StatusCode.UNAVAILABLE, "")

        await world.trouble("token", **HOLD | {"retry_after": "2"})  # five hundred that ask on and on would be a load
        charges = [asyncio.ensure_future(charge(world.commands)) for _ in range(CALLS_A_CONNECTION + 10)]
        await until(lambda: world.running.vitals().unfinished_charges == CALLS_A_CONNECTION)
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(world.running.listen), options=own_connection) as channel:
            other = asyncio.ensure_future(charge(command_pb2_grpc.CommandServiceStub(channel)))
            await until(lambda: world.running.vitals().unfinished_charges == CALLS_A_CONNECTION + 1)
            await world.referee.no_more_trouble()
            assert set(await asyncio.gather(other, *charges)) == {CHARGED}


async def test_without_room_on_the_disk_new_charges_are_refused_and_begun_ones_finish(tmp_path: Path) -> None:
    """Known keys are still answered."""
    async with a_world(tmp_path) as world:
        rested, running = a_request(), a_request()
        await world.charge(rested)
        await world.trouble("execute", **HOLD)
        await world.pending(running)
        await world.stop()
        await world.start(COMMAND_FREE_BYTES=str(1 << 50))
        await until(lambda: not world.running.journal.accepting)
        stored = head(world.journal)
        assert await refused(world.charge(a_request())) == said(
            grpc.StatusCode.UNAVAILABLE, "JOURNAL_FULL", "RETRY_SAME_KEY", retry=5.0
        )
        assert head(world.journal) == stored
        assert (await world.charge(rested)).outcome_source == REPLAYED
        await world.referee.no_more_trouble()
        assert (await world.charge(running)).status == CHARGED


# ---------------------------------------------------------------- while the server starts
class Held(GroupCommit):
    """A journal whose reads of streams wait for the test's permission."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.may_read = asyncio.Event()
        self.reading = 0

    async def read(self, charge_id: str) -> Sequence[Record]:
        found = await super().read(charge_id)
        self.reading += 1
        await self.may_read.wait()
        return found


async def test_a_call_during_recovery_joins_the_recovered_charge(world: World) -> None:
    """Calls are accepted before all unfinished charges are read: there must be one loop for the charge, not two."""
    await world.trouble("execute", **HOLD)
    request = a_request()
    await world.pending(request)
    await world.stop()
    async with AsyncExitStack() as stack:
        journal = await Held.open(
            await SqliteFile(world.journal).open(), now=now, end_process=lambda: sys.exit("unknown")
        )
        assert isinstance(journal, Held)
        stack.push_async_callback(journal.close)
        bank = gateway_bank(world.bank_url, open_transport(max_connections=8), PATIENT_SECONDS)
        stack.push_async_callback(bank.close)
        assembled = Parts(settings.read(Settings, {})).assemble(journal, {"": bank})
        stack.push_async_callback(assembled.close)
        runner, reception = assembled.runner, assembled.reception
        requested = decode(records(world.journal)[0].event)
        assert isinstance(requested, ChargeRequested)
        command = Command(requested.request)

        finding, accepting = asyncio.ensure_future(runner.recover()), reception.accept(command)
        await until(lambda: journal.reading == 2)
        journal.may_read.set()
        assert await finding == 1
        accepted, joined = await accepting, await reception.accept(command)
        assert accepted.run is not None
        assert accepted.run is joined.run
        await world.referee.no_more_trouble()
        await accepted.run.ended
        assert runner.unfinished == 0
    await world.start()
    assert (await world.charge(request)).outcome_source == REPLAYED


async def test_an_unfinished_charge_without_events_ends_the_start(tmp_path: Path) -> None:
    """One transaction stores its row and its events: a row without events is a damaged one, whose charge would be lost."""
    async with AsyncExitStack() as stack:
        journal = await GroupCommit.open(
            await SqliteFile(tmp_path / "journal.db").open(), now=now, end_process=lambda: sys.exit("unknown")
        )
        stack.push_async_callback(journal.close)
        with closing(sqlite3.connect(tmp_path / "journal.db")) as vandal:
            vandal.execute("INSERT INTO unfinished VALUES (randomblob(16))")
            vandal.commit()
        bank = gateway_bank("http://127.0.0.1:1", open_transport(max_connections=1), PATIENT_SECONDS)
        assembled = Parts(settings.read(Settings, {})).assemble(journal, {"": bank})
        stack.push_async_callback(assembled.close)
        runner = assembled.runner
        with pytest.raises(ImpossibleEvent):
            await runner.recover()
        assert runner.unfinished == 0


def now() -> int:
    return time.time_ns() // 1_000
