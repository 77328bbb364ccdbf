"""The contract of every bank adapter: the five rules of command_service/bank, and the answer table, over real connections."""

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_service.bank import Bank
from command_service.charge import Absent, Command, State, decide, is_at_rest, next_step
from command_service.operation import Answered
from command_service.events import ChargeDeclined, Charged, Event, Outcome, ReviewRequired, TokenExpired, TokenIssued
from command_service.values import Answer, Card, Contradiction, Declined, DeclineReason, Effect, Evidence, Execute, Executed, Expired, InProgress, Money, NoAnswer, Refused, Request, RequestToken, ReviewReason, Token
from tests.contract.bank_rigs import IMPATIENT_SECONDS, RIGS, Movement, Rig
from tests.core.stories import FIRST_TRY, stored

PRICE = Money(1250, "EUR")
BOTH_STEPS = ("token", "execute")


@pytest.fixture(scope="module", params=RIGS)
def shared_rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with RIGS[request.param](folder) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    yield shared_rig
    shared_rig.forget_trouble()


# ---------------------------------------------------------------- builders
def a_charge(card: str, price: Money = PRICE) -> RequestToken:
    return RequestToken(str(uuid.uuid4()), card, price, expired_tokens=0)


def execution(asked: RequestToken, token: str) -> Execute:
    return Execute(asked.charge_id, asked.card_token, asked.amount, token)


async def opened(bank: Bank, asked: RequestToken) -> Execute:
    answer = await bank.perform(asked, look_up_first=False)
    assert isinstance(answer, Token)
    return execution(asked, answer.token)


async def answer_of(bank: Bank, effect: Effect) -> Answer:
    return await bank.perform(effect, look_up_first=False)


async def answer_after_looking(bank: Bank, effect: Effect) -> Answer:
    return await bank.perform(effect, look_up_first=True)


async def at_once(bank: Bank, effect: Effect, times: int = 12) -> list[Answer]:
    return await asyncio.gather(*[answer_of(bank, effect) for _ in range(times)])


async def run_to_rest(bank: Bank, asked: RequestToken, *, look_up_first: bool, attempts: int = 60) -> list[Event]:
    """The charge's events, decided by the core, without pauses. After `attempts` it may be unfinished."""
    request = Request(asked.charge_id, "default", "key", "us", "user", Card(asked.card_token), asked.amount)
    state: State = Absent()
    events = decide(state, Command(request))
    state = stored(state, *events)
    for _ in range(attempts):
        if (effect := next_step(state)) is None:
            break
        answer = await bank.perform(effect, look_up_first=look_up_first)
        decided = decide(state, Answered(effect, answer, FIRST_TRY))
        state = stored(state, *decided)
        events += decided
    assert is_at_rest(state), "the charge did not come to rest"
    return events


def outcome(events: list[Event]) -> Outcome:
    (*_, last) = events
    assert isinstance(last, Outcome)
    return last


def assert_agreed(rig: Rig, asked: RequestToken, end: Outcome) -> None:
    """Assert that our outcome and the bank's statement agree."""
    moved = rig.movements(asked.charge_id)
    assert len(moved) <= 1, "charged twice"
    if isinstance(end, Charged):
        assert moved == [Movement(end.transaction_id, asked.amount.minor_units, asked.amount.currency_code)]
    elif not isinstance(end, ReviewRequired):
        assert moved == []


# ---------------------------------------------------------------- rule 1: the token step is idempotent by reference
async def test_a_known_reference_gives_back_its_transaction(rig: Rig) -> None:
    """Concurrently, by two processes, before and after the execute step, and after the bank's restart."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as one, rig.adapter() as other:
        tokens = set(await at_once(one, asked) + await at_once(other, asked))
        (token,) = tokens
        assert isinstance(token, Token)
        assert await answer_after_looking(one, asked) == token
        executed = await answer_of(one, execution(asked, token.token))
        assert await answer_of(other, asked) == await answer_after_looking(other, asked) == token
    rig.restart()
    async with rig.adapter() as later:
        assert await answer_of(later, asked) == await answer_after_looking(later, asked) == token
        assert await answer_of(later, execution(asked, token.token)) == executed
    assert len(rig.movements(asked.charge_id)) == 1


async def test_a_token_step_moves_no_money(rig: Rig) -> None:
    """Not even a repeated one."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        await at_once(bank, asked)
    assert rig.movements(asked.charge_id) == []


async def test_looking_up_first_takes_the_token_step_only_for_a_reference_unknown_to_the_bank(rig: Rig) -> None:
    """A restored journal has lost steps that the bank has not."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        first = await answer_after_looking(bank, asked)
        assert isinstance(first, Token)
        assert rig.asked(asked.charge_id) == ["look_up", "token"]
        assert await answer_after_looking(bank, asked) == first
        assert rig.asked(asked.charge_id) == ["look_up", "token", "look_up"]


# ---------------------------------------------------------------- rule 2: the execute step is idempotent by token
async def test_concurrent_executes_move_money_once(rig: Rig) -> None:
    """And every one of them is given the same transaction id."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as one, rig.adapter() as other:
        effect = await opened(one, asked)
        answers = await asyncio.gather(at_once(one, effect), at_once(other, effect))
        (answer,) = set(answers[0] + answers[1])
    assert isinstance(answer, Executed)
    assert rig.movements(asked.charge_id) == [Movement(answer.transaction_id, 1250, "EUR")]


@pytest.mark.parametrize("fault", ["stop_before", "stop_after"])
@pytest.mark.parametrize("look_up_first", [False, True])
async def test_money_moves_once_if_the_bank_dies_in_the_execute_step(rig: Rig, fault: str, look_up_first: bool) -> None:
    """It is killed before or after the work; the token survives its restart."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.trouble("execute", fault)
        assert await answer_of(bank, effect) == NoAnswer()
        assert await answer_of(bank, effect) == NoAnswer(), "there is no bank"
    rig.restart()
    async with rig.adapter() as bank:
        answer = await bank.perform(effect, look_up_first=look_up_first)
        assert isinstance(answer, Executed)
        assert await answer_of(bank, effect) == answer
    assert rig.movements(asked.charge_id) == [Movement(answer.transaction_id, 1250, "EUR")]


async def test_money_moves_once_if_the_bank_dies_among_executes(rig: Rig) -> None:
    """It is killed while many are under way."""
    charges = [a_charge(rig.approved_card) for _ in range(12)]
    async with rig.adapter() as bank:
        effects = [await opened(bank, asked) for asked in charges]
        under_way = [asyncio.create_task(answer_of(bank, effect)) for effect in effects * 2]
        await under_way[0]
        rig.restart()
        first = dict(zip(effects * 2, await asyncio.gather(*under_way), strict=True))
    async with rig.adapter() as bank:
        for asked, effect in zip(charges, effects, strict=True):
            answer = await answer_of(bank, effect)
            assert isinstance(answer, Executed)
            assert first[effect] in (answer, NoAnswer())
            assert rig.movements(asked.charge_id) == [Movement(answer.transaction_id, 1250, "EUR")]


async def test_looking_up_first_does_not_execute_an_executed_transaction(rig: Rig) -> None:
    """The bank's answer is taken, and no further question is put."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        assert isinstance(executed := await answer_after_looking(bank, effect), Executed)
        before = rig.asked(asked.charge_id)
        assert before == ["token", "look_up", "execute"]
        assert await answer_after_looking(bank, effect) == executed
        assert rig.asked(asked.charge_id) == [*before, "look_up"]


# ---------------------------------------------------------------- rule 3: declined and expired are for ever
async def test_a_declined_token_never_executes(rig: Rig) -> None:
    """On any number of calls, however late; each card has its reason."""
    async with rig.adapter() as bank:
        for card, reason in rig.declined_cards.items():
            asked = a_charge(card)
            effect = await opened(bank, asked)
            assert set(await at_once(bank, effect, 4)) == {Declined(reason)}
            assert await answer_after_looking(bank, effect) == Declined(reason)
            assert rig.movements(asked.charge_id) == []


async def test_an_expired_token_never_executes(rig: Rig) -> None:
    """Nor after the next token has executed, nor after the bank's restart."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        expired = await opened(bank, asked)
        rig.expire(asked.charge_id)
        assert set(await at_once(bank, expired)) == {Expired()}
        assert await answer_after_looking(bank, expired) == Expired()
        executed = await answer_of(bank, await opened(bank, replace(asked, expired_tokens=1)))
        assert isinstance(executed, Executed)
    rig.restart()
    async with rig.adapter() as bank:
        assert set(await at_once(bank, expired)) == {Expired()}
    assert rig.movements(asked.charge_id) == [Movement(executed.transaction_id, 1250, "EUR")]


async def test_an_execute_that_arrives_after_expired_was_said_moves_nothing(rig: Rig) -> None:
    """It was under way when we stopped waiting, and the token expired meanwhile."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank, rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS) as impatient:
        effect = await opened(bank, asked)
        rig.trouble("execute", "delay", seconds=1)
        assert await answer_of(impatient, effect) == NoAnswer()
        rig.expire(asked.charge_id)
        assert await answer_of(bank, effect) == Expired()
        assert isinstance(await answer_of(bank, await opened(bank, replace(asked, expired_tokens=1))), Executed)
        rig.quiet()
    assert len(rig.movements(asked.charge_id)) == 1


async def test_a_race_between_expiry_and_executes_has_one_winner(rig: Rig) -> None:
    """Either every answer is executed, or every answer is expired and no money moved."""
    async with rig.adapter() as bank:
        for _ in range(8):
            asked = a_charge(rig.approved_card)
            effect = await opened(bank, asked)
            answers, _ = await asyncio.gather(at_once(bank, effect, 6), asyncio.to_thread(rig.expire, asked.charge_id))
            (answer,) = set(answers)
            moved = [Movement(answer.transaction_id, 1250, "EUR")] if isinstance(answer, Executed) else []
            assert rig.movements(asked.charge_id) == moved
            assert moved or answer == Expired()


async def test_an_untrue_decline_is_not_believed(rig: Rig) -> None:
    """The bank executed and says declined: the look-up finds the execution."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.trouble("execute", "contradict")
        answer = await answer_of(bank, effect)
    assert isinstance(answer, Executed)
    assert rig.movements(asked.charge_id) == [Movement(answer.transaction_id, 1250, "EUR")]


# ---------------------------------------------------------------- rule 4: other fields are refused
OTHER_FIELDS: dict[str, dict[str, Any]] = {
    "amount": {"amount": Money(1251, "EUR")},
    "currency": {"amount": Money(1250, "USD")},
    "card": {"card_token": "tok_mastercard"},
}


@pytest.mark.parametrize("field", OTHER_FIELDS)
async def test_a_known_reference_with_other_fields_gives_no_token(rig: Rig, field: str) -> None:
    """Open or executed, by a step or a look-up. The first charge continues unchanged."""
    asked = a_charge(rig.approved_card)
    other = replace(asked, **OTHER_FIELDS[field])
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        for _ in range(2):
            assert isinstance(await answer_of(bank, other), Refused)
            looked_up = await answer_after_looking(bank, other)
            assert isinstance(looked_up, Contradiction)
            assert (looked_up.reason, looked_up.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (field,))
            assert isinstance(await answer_of(bank, effect), Executed)
    assert len(rig.movements(asked.charge_id)) == 1


@pytest.mark.parametrize("field", ["amount", "currency"])
async def test_a_known_token_with_other_fields_moves_nothing(rig: Rig, field: str) -> None:
    """The bank refuses it, and so do we when we look first."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        other = replace(effect, **OTHER_FIELDS[field])
        assert isinstance(await answer_of(bank, other), Refused)
        looked_up = await answer_after_looking(bank, other)
        assert isinstance(looked_up, Contradiction)
        assert (looked_up.reason, looked_up.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (field,))
        assert rig.movements(asked.charge_id) == []
        assert isinstance(await answer_of(bank, effect), Executed)


@pytest.mark.parametrize("field", [*OTHER_FIELDS, "reference"])
async def test_an_execution_with_other_fields_is_never_ours(rig: Rig, field: str) -> None:
    """A token of another charge, or of this one with other fields, is a contradiction, executed or not."""
    asked = a_charge(rig.approved_card)
    change: dict[str, Any] = {**OTHER_FIELDS, "reference": {"charge_id": str(uuid.uuid4())}}[field]
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        other = replace(effect, **change)
        assert isinstance(await answer_after_looking(bank, other), Contradiction)
        assert isinstance(await answer_of(bank, effect), Executed)
        assert isinstance(await answer_of(bank, other), Contradiction | Refused)
        assert isinstance(await answer_after_looking(bank, other), Contradiction)


# ---------------------------------------------------------------- rule 5: only a definite expiry leads to a new token
async def test_after_expired_the_token_step_opens_one_more_transaction(rig: Rig) -> None:
    """One only, for any number of calls; looked up first or not."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        expired = await opened(bank, asked)
        rig.expire(asked.charge_id)
        again = replace(asked, expired_tokens=1)
        (token,) = {*await at_once(bank, again), await answer_after_looking(bank, again)}
        assert isinstance(token, Token)
        assert token.token != expired.token


async def test_a_journal_that_forgot_an_expired_token_gets_a_new_one(rig: Rig) -> None:
    """Looking up first never returns a token that would only expire again."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        expired = await opened(bank, asked)
        rig.expire(asked.charge_id)
        token = await answer_after_looking(bank, asked)
    assert isinstance(token, Token)
    assert token.token != expired.token


async def test_a_token_the_bank_does_not_know_is_a_matter_for_people(rig: Rig) -> None:
    """With nothing, an open transaction or an executed one under the reference."""
    asked = a_charge(rig.approved_card)
    unknown = execution(asked, "token-of-nobody")
    async with rig.adapter() as bank:
        for known in ("nothing", "opened", "executed"):
            if known == "opened":
                effect = await opened(bank, asked)
            elif known == "executed":
                assert isinstance(await answer_of(bank, effect), Executed)
            executes = rig.asked(asked.charge_id).count("execute")
            assert isinstance(await answer_after_looking(bank, unknown), Contradiction)
            assert rig.asked(asked.charge_id).count("execute") == executes
            assert isinstance(await answer_of(bank, unknown), Refused)


# ---------------------------------------------------------------- the answer table
NO_ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("lose_request", {}),
    ("lose_answer", {}),
    ("reset", {}),
    *[(fault, {"status": status}) for fault in ("error_before", "error_after") for status in (500, 502, 503, 504)],
    ("garbage", {}),
    ("half_body", {}),
    ("huge_body", {}),
    ("huge_body", {"bytes": 65_537}),
    ("redirect", {}),
    ("redirect", {"location": "/statement"}),
]


@pytest.mark.parametrize("on", BOTH_STEPS)
@pytest.mark.parametrize(("fault", "details"), NO_ANSWERS)
async def test_a_reply_without_an_outcome_is_no_answer(rig: Rig, on: str, fault: str, details: dict[str, Any]) -> None:
    """The repeated step is answered, and the money has moved once."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        if on == "token":
            rig.trouble("token", fault, **details)
            assert await answer_of(bank, asked) == NoAnswer()
        effect = await opened(bank, asked)
        if on == "execute":
            rig.trouble("execute", fault, **details)
            assert await answer_of(bank, effect) == NoAnswer()
        assert isinstance(await answer_of(bank, effect), Executed)
    assert len(rig.movements(asked.charge_id)) == 1
    assert rig.unfired() == []


@pytest.mark.parametrize(("fault", "details"), [*NO_ANSWERS, ("refuse", {"status": 400}), ("refuse", {"status": 409})])
async def test_a_look_up_without_an_answer_ends_the_step(rig: Rig, fault: str, details: dict[str, Any]) -> None:
    """Nothing is done on a guess, before a step or after one."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        rig.trouble("look_up", fault, **details)
        assert await answer_after_looking(bank, asked) == NoAnswer()
        assert "token" not in rig.asked(asked.charge_id)
        effect = await opened(bank, asked)
        rig.trouble("look_up", fault, **details)
        assert await answer_after_looking(bank, effect) == NoAnswer()
        assert "execute" not in rig.asked(asked.charge_id)
        rig.trouble("execute", "wrong_amount")
        rig.trouble("look_up", fault, **details)
        assert await answer_of(bank, effect) == NoAnswer()
    assert rig.unfired() == []


@pytest.mark.parametrize("on", [*BOTH_STEPS, "look_up"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_bank_that_does_not_accept_us_is_a_fault_of_our_set_up(rig: Rig, on: str, status: int) -> None:
    """It is never a decline."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.trouble(on, "refuse", status=status)
        step = asked if on == "token" else effect
        assert await bank.perform(step, look_up_first=on == "look_up") == NoAnswer(our_setup=True)
        assert isinstance(await answer_of(bank, effect), Executed)


@pytest.mark.parametrize("on", BOTH_STEPS)
@pytest.mark.parametrize("fault", ["hang_before", "hang_after", "slow_body"])
async def test_a_call_ends_at_its_deadline(rig: Rig, on: str, fault: str) -> None:
    """Whether the bank is silent or sends a byte at a time; and the next call is not harmed."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank, rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS) as impatient:
        effect = await opened(bank, asked)
        rig.trouble(on, fault)
        assert await answer_of(impatient, asked if on == "token" else effect) == NoAnswer()
        assert isinstance(await answer_of(bank, effect), Executed)
    assert len(rig.movements(asked.charge_id)) == 1


async def test_the_deadline_is_for_step_and_look_ups_together(rig: Rig) -> None:
    """The step is answered, and the look-up after it is not."""
    asked = a_charge(next(iter(rig.declined_cards)))
    async with rig.adapter() as bank, rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS) as impatient:
        effect = await opened(bank, asked)
        rig.trouble("look_up", "hang_before")
        assert await answer_of(impatient, effect) == NoAnswer()
    assert rig.asked(asked.charge_id) == ["token", "execute", "look_up"]


async def test_cancelling_a_step_is_not_swallowed(rig: Rig) -> None:
    """The caller gets CancelledError, and connections stay usable."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.trouble("execute", "hang_after")
        under_way = asyncio.create_task(answer_of(bank, effect))
        while "execute" not in rig.asked(asked.charge_id):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.01)
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        assert isinstance(await answer_of(bank, effect), Executed)


PAUSES = [
    ("1", 1.0),
    ("0", 0.0),
    ("7200", 20.0),
    ("9" * 1000, 20.0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ("Fri, 31 Dec 9999 23:59:59 GMT", 20.0),
    ("-1", None),
    ("1e9", None),
    ("nan", None),
    ("soon", None),
    ("Fri, 32 Dec 9999 23:59:59 GMT", None),
]


@pytest.mark.parametrize(("said", "seconds"), PAUSES)
async def test_the_pause_that_the_bank_asks_for_is_kept_within_limits(
    rig: Rig, said: str, seconds: float | None
) -> None:
    """Throttled or in progress, on a step or on a look-up; garbage is ignored."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        for fault, answer in (("throttled", NoAnswer(seconds)), ("in_progress", InProgress(seconds))):
            for on, step in (("token", asked), ("execute", effect), ("look_up", effect)):
                rig.trouble(on, fault, retry_after=said)
                assert await bank.perform(step, look_up_first=on == "look_up") == answer
    assert rig.movements(asked.charge_id) == []


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_repeated_refusal_of_the_token_step_is_an_answer(rig: Rig, status: int) -> None:
    """It carries the status and the shape of the bank's reply, and no part of its text."""
    async with rig.adapter() as bank:
        rig.trouble("token", "refuse", status=status, times=2)
        answer = await answer_of(bank, a_charge(rig.approved_card))
    assert isinstance(answer, Refused)
    assert answer.evidence.status == status
    assert answer.evidence.body_length > 0
    assert len(answer.evidence.body_sha256) == 32


@pytest.mark.parametrize("on", BOTH_STEPS)
@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_an_unrepeated_refusal_is_not_believed(rig: Rig, on: str, status: int) -> None:
    """It names no charge and may concern another one: the step is repeated, and the second reply counts."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        rig.trouble(on, "refuse", status=status)
        assert isinstance(await answer_of(bank, await opened(bank, asked)), Executed)
        assert rig.asked(asked.charge_id) == (
            ["token", "token", "execute"] if on == "token" else ["token", "execute", "look_up", "execute"]
        )
    assert len(rig.movements(asked.charge_id)) == 1


@pytest.mark.parametrize(("fault", "details"), [*NO_ANSWERS, ("in_progress", {})])
async def test_a_second_try_of_the_token_step_without_an_outcome_decides_nothing(
    rig: Rig, fault: str, details: dict[str, Any]
) -> None:
    """Nor does a second reply that differs from the first."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        for first in ("refuse", "wrong_amount"):
            rig.trouble("token", first)
            rig.trouble("token", fault, **details)
            assert isinstance(await answer_of(bank, asked), NoAnswer | InProgress)
        for first, second in (("refuse", "wrong_amount"), ("wrong_amount", "refuse")):
            rig.trouble("token", first)
            rig.trouble("token", second)
            assert await answer_of(bank, asked) == NoAnswer()
    assert rig.unfired() == []


async def test_a_card_the_bank_does_not_know_is_refused(rig: Rig) -> None:
    """In the token step: there is nothing to execute."""
    async with rig.adapter() as bank:
        assert isinstance(await answer_of(bank, a_charge(rig.unknown_card)), Refused)


EXECUTE_REFUSALS = [("refuse", {"status": status}) for status in (400, 404, 409, 422)] + [("forget_token", {})]


@pytest.mark.parametrize(("fault", "details"), EXECUTE_REFUSALS)
async def test_a_refused_execute_is_settled_by_a_look_up(rig: Rig, fault: str, details: dict[str, Any]) -> None:
    """If the look-up finds an ended transaction, its end counts; if it is open or unknown, the refusal counts."""
    declined_card = next(iter(rig.declined_cards))
    async with rig.adapter() as bank:
        for card, end in ((rig.approved_card, Executed), (declined_card, Declined), (rig.approved_card, Expired)):
            asked = a_charge(card)
            effect = await opened(bank, asked)
            rig.trouble("execute", fault, times=2, **details)
            assert isinstance(await answer_of(bank, effect), Refused), "it is open"
            if end is Expired:
                rig.expire(asked.charge_id)
            truth = await answer_of(bank, effect)
            assert isinstance(truth, end)
            rig.trouble("execute", fault, **details)
            assert await answer_of(bank, effect) == truth
            rig.trouble("execute", fault, **details)
            rig.trouble("look_up", "forget_token")
            assert await answer_of(bank, effect) == truth, "known by reference"
            rig.trouble("execute", fault, **details)
            rig.trouble("look_up", "forget_token", times=2)
            assert isinstance(await answer_of(bank, effect), Refused), "forgotten altogether"
    assert rig.unfired() == []


WRONG = ["amount", "currency", "reference", "token"]


@pytest.mark.parametrize("field", WRONG)
async def test_an_execution_with_other_fields_is_settled_by_a_look_up(rig: Rig, field: str) -> None:
    """If the look-up is wrong too, it goes into review, with the names of the fields and no value."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.trouble("execute", f"wrong_{field}", times=2)
        executed = await answer_of(bank, effect)
        assert isinstance(executed, Executed)
        rig.trouble("look_up", f"wrong_{field}", times=4)
        answer = await answer_of(bank, effect)
        assert isinstance(answer, Contradiction)
        assert (answer.reason, answer.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (field,))
        looked_up = await answer_after_looking(bank, effect)
        assert isinstance(looked_up, Contradiction)
        assert looked_up.evidence.fields == (field,)
    assert rig.movements(asked.charge_id) == [Movement(executed.transaction_id, 1250, "EUR")]
    assert rig.unfired() == []


@pytest.mark.parametrize("field", WRONG[:3])
async def test_a_token_with_other_fields_is_settled_by_asking_again(rig: Rig, field: str) -> None:
    """A token that may be another charge's is not taken, and a look-up that may be about another is not believed."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        truth = await answer_of(bank, asked)
        for ask, on in ((answer_of, "token"), (answer_after_looking, "look_up")):
            rig.trouble(on, f"wrong_{field}")
            assert await ask(bank, asked) == truth
            rig.trouble(on, f"wrong_{field}", times=2)
            answer = await ask(bank, asked)
            assert isinstance(answer, Contradiction)
            assert (answer.reason, answer.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (field,))


async def test_expired_counts_only_if_the_look_up_confirms_it(rig: Rig) -> None:
    """If the bank has forgotten the token by then, the outcome is not guessed."""
    asked = a_charge(rig.approved_card)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.expire(asked.charge_id)
        rig.trouble("look_up", "forget_token", times=2)
        assert isinstance(await answer_of(bank, effect), Contradiction)
        rig.trouble("look_up", "wrong_reference", times=2)
        assert isinstance(await answer_of(bank, effect), Contradiction)
        rig.trouble("look_up", "error_before")
        assert await answer_of(bank, effect) == NoAnswer()
        assert await answer_of(bank, effect) == Expired()


UNUSABLE_IDS = ["4111111111111111", "txn_4111-1111-1111-1111", "1" * 129, "txn/1", "txn 1", ".."]


@pytest.mark.parametrize("transaction_id", UNUSABLE_IDS)
async def test_an_execution_under_an_id_that_may_not_be_kept_is_a_matter_for_people(
    rig: Rig, transaction_id: str
) -> None:
    """The money did move. No part of the id is kept, nor a hash of the reply that held it."""
    asked = a_charge(rig.approved_card)
    unusable = Contradiction(Evidence(("transaction_id",), 200), ReviewReason.TRANSACTION_ID_UNUSABLE)
    async with rig.adapter() as bank:
        effect = await opened(bank, asked)
        rig.trouble("execute", "odd_transaction_id", transaction_id=transaction_id)
        assert await answer_of(bank, effect) == unusable
        assert rig.asked(asked.charge_id) == ["token", "execute", "look_up", "look_up"]
        assert await answer_after_looking(bank, effect) == unusable
        for look_up_first in (False, True):
            end = outcome(await run_to_rest(bank, asked, look_up_first=look_up_first, attempts=2))
            assert end == ReviewRequired(unusable.reason, unusable.evidence)
        rig.trouble("look_up", "lose_answer")
        assert await answer_of(bank, effect) == NoAnswer(), "said once"
    assert rig.movements(asked.charge_id) == [Movement(transaction_id, 1250, "EUR")]


# ---------------------------------------------------------------- an extra answer
NAMES_NOBODY: list[tuple[int, dict[str, Any]]] = [
    *[(status, {"error": "refused"}) for status in (400, 404, 409, 422)],
    (404, {"error": "token_unknown"}),
    (404, {"error": "reference_unknown"}),
    (422, {"error": "card_unknown"}),
    (410, {"error": "token_expired"}),
    (401, {}),
    (202, {"result": "in_progress"}),
    (200, {"result": "declined", "reason": "card_declined", "transaction_id": None}),
    (503, {}),
]


@pytest.mark.parametrize(("status", "body"), NAMES_NOBODY)
@pytest.mark.parametrize("look_up_first", [False, True])
async def test_an_extra_answer_changes_no_outcome(
    rig: Rig, status: int, body: dict[str, Any], look_up_first: bool
) -> None:
    """It comes some ms after the right answer of every third charge, over kept connections: all are charged, once each."""
    charges = [a_charge(rig.approved_card) for _ in range(30)]
    for number, asked in enumerate(charges[::3]):
        for on in ("token", "execute"):
            rig.trouble(
                on, "extra_answer", reference=asked.charge_id, seconds=number % 5 / 1000, status=status, body=body
            )
    async with rig.adapter() as bank:
        waiting = iter(charges)

        async def run_on() -> dict[str, Outcome]:
            return {a.charge_id: outcome(await run_to_rest(bank, a, look_up_first=look_up_first)) for a in waiting}

        for ends in await asyncio.gather(*[run_on() for _ in range(3)]):
            for asked in charges:
                if asked.charge_id in ends:
                    assert isinstance(ends[asked.charge_id], Charged), ends[asked.charge_id]
                    assert_agreed(rig, asked, ends[asked.charge_id])
    assert rig.unfired() == []


# ---------------------------------------------------------------- whole charges
SHORT: dict[str, dict[str, Any]] = {
    "hang_before": {"seconds": 0.05},
    "hang_after": {"seconds": 0.05},
    "delay": {"seconds": 0.05},
    "slow_body": {"seconds": 0.0001},
    "huge_body": {"bytes": 65_537},
}
HARMLESS = [
    *["lose_request", "hang_before", "error_before", "throttled", "redirect", "in_progress"],
    *["lose_answer", "hang_after", "reset", "error_after", "garbage", "half_body", "slow_body", "huge_body"],
    *["delay", "expire_token", "extra_answer"],
]
LIES = ["refuse", "forget_token", "wrong_amount", "wrong_currency", "wrong_reference", "wrong_token", "contradict"]
ONLY_ON = {"contradict": ("execute",), "forget_token": ("execute", "look_up")}
TROUBLES = [(on, fault) for fault in HARMLESS + LIES for on in ONLY_ON.get(fault, ("token", "execute", "look_up"))]


@pytest.mark.parametrize(("on", "fault"), TROUBLES)
async def test_a_charge_comes_to_rest_in_agreement_with_the_bank(rig: Rig, on: str, fault: str) -> None:
    """After three faults of any kind. If the bank does not lie the card is charged."""
    asked = a_charge(rig.approved_card)
    rig.trouble(on, fault, times=3, reference=asked.charge_id, **SHORT.get(fault, {}))
    async with rig.adapter() as bank:
        end = outcome(await run_to_rest(bank, asked, look_up_first=on == "look_up"))
        assert_agreed(rig, asked, end)
        if fault in HARMLESS:
            assert isinstance(end, Charged)
        if on == "token" and fault == "refuse":
            assert end == ChargeDeclined(DeclineReason.BANK_REFUSED), "said twice"


async def test_a_charge_outlives_tokens_that_expire(rig: Rig) -> None:
    """Each is closed for ever before the next one is requested, and the last one moves the money."""
    asked = a_charge(rig.approved_card)
    rig.trouble("execute", "expire_token", times=3)
    async with rig.adapter() as bank:
        events = await run_to_rest(bank, asked, look_up_first=False)
    assert [type(event) for event in events[1:]] == [TokenIssued, TokenExpired] * 3 + [TokenIssued, Charged]
    assert_agreed(rig, asked, outcome(events))


trouble = st.sampled_from(TROUBLES).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, 3)))


@given(
    troubles=st.lists(trouble, max_size=8),
    declined=st.booleans(),
    look_up_first=st.booleans(),
    processes=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # Real calls, by the dozen.
def test_no_storm_of_troubles_charges_twice(
    shared_rig: Rig,
    troubles: list[tuple[tuple[str, str], int]],
    declined: bool,
    look_up_first: bool,
    processes: int,
) -> None:
    """Troubles in any order, and the same charge run by several processes without knowledge of each other."""
    rig = shared_rig
    asked = a_charge(next(iter(rig.declined_cards)) if declined else rig.approved_card)
    for (on, fault), times in troubles:
        rig.trouble(on, fault, times=times, reference=asked.charge_id, **SHORT.get(fault, {}))

    async def run() -> list[list[Event]]:
        async with rig.adapter() as bank:
            return await asyncio.gather(
                *[run_to_rest(bank, asked, look_up_first=look_up_first) for _ in range(processes)]
            )

    try:
        ends = [outcome(events) for events in asyncio.run(run())]
    finally:
        rig.forget_trouble()
    assert len(rig.movements(asked.charge_id)) <= 1
    for end in ends:
        if processes == 1 or isinstance(end, Charged):  # One of several may be refused while another succeeds.
            assert_agreed(rig, asked, end)
