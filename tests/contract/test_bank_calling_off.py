"""The contract of every bank adapter, rule 6: what was called off is closed for ever, or the answer says how it ended."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_service.bank import Bank
from command_service.events import ChargeCalledOff, Moved, Outcome, ReviewRequired
from command_service.operation import AwaitingExecution, AwaitingToken, call_off
from command_service.values import (
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    Evidence,
    Execute,
    Executed,
    Expired,
    InProgress,
    Kind,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.contract.bank_rigs import (
    ALIKE,
    EXPIRES,
    IMPATIENT_SECONDS,
    OPENS,
    Ability,
    Rig,
    SlowWay,
    impatient_adapters,
    movement,
)
from tests.contract.operations import (
    KINDS,
    NOW,
    OWN_FIELDS,
    an_operation,
    answer_after_looking,
    answer_of,
    at_once,
    opened,
    outcome,
    requested,
    run_to_rest,
    with_other,
)
from tests.contract.test_bank_answers import HARMLESS, LIES, NO_ANSWERS, ONLY_ON, SHORT, ends_at

OPENINGS = [Kind.CHARGE, Kind.AUTHORIZE]


async def opened_one(rig: Rig, bank: Bank, kind: Kind, card: str = "") -> Execute:
    """An operation that waits for its execution."""
    return await opened(bank, await requested(bank, kind, card or rig.approved_card))


def with_token(effect: Execute) -> CallOff:
    return CallOff(effect.operation, effect.token)


def without_token(effect: Execute) -> CallOff:
    return CallOff(effect.operation, None)


BOTH_WAYS = [with_token, without_token]


# ---------------------------------------------------------------- closed for ever
@ALIKE
@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_called_off_never_executes(rig: Rig, kind: Kind) -> None:
    """Called off any number of times by two processes, with its token or without, looked up first or not."""
    async with rig.adapter() as one, rig.adapter() as other:
        for way in BOTH_WAYS:
            effect = await opened_one(rig, one, kind)
            answers = await asyncio.gather(at_once(one, way(effect)), at_once(other, way(effect)))
            assert {*answers[0], *answers[1]} == {CalledOff()}
            for again in BOTH_WAYS:
                assert await answer_of(one, again(effect)) == CalledOff()
                assert await answer_after_looking(one, again(effect)) == CalledOff()
            assert set(await at_once(other, effect)) == {CalledOff()}
            assert await answer_after_looking(one, effect) == CalledOff()
            assert rig.movements(effect.operation.reference) == []


@ALIKE
async def test_the_token_of_what_was_called_off_is_handed_on_for_ever(rig: Rig) -> None:
    """No other is opened under its reference: by a step or by a look-up, before or after the bank's restart."""
    async with rig.adapter() as bank:
        effects = [await opened_one(rig, bank, kind) for kind in KINDS]
        for effect in effects:
            assert await answer_of(bank, with_token(effect)) == CalledOff()
    rig.restart()
    async with rig.adapter() as bank:
        for effect in effects:
            asked = RequestToken(effect.operation, 0)
            assert await answer_of(bank, asked) == await answer_after_looking(bank, asked) == Token(effect.token)
            assert await answer_of(bank, effect) == await answer_of(bank, with_token(effect)) == CalledOff()
            assert rig.movements(effect.operation.reference) == []


@ALIKE
async def test_an_execute_that_arrives_after_called_off_was_said_moves_nothing(rig: Rig) -> None:
    """It was under way when we stopped waiting."""
    way = SlowWay()
    async with (
        rig.adapter() as bank,
        rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS, between=way.to) as impatient,
    ):
        effects = [await opened_one(rig, bank, kind) for kind in KINDS * 2]
        assert set(await asyncio.gather(*[answer_of(impatient, effect) for effect in effects])) == {NoAnswer()}
        for number, effect in enumerate(effects):
            assert await answer_of(bank, BOTH_WAYS[number < len(KINDS)](effect)) == CalledOff()
        assert await way.all_arrive() == len(effects)
    for effect in effects:
        assert rig.asked(effect.operation.reference)[-1] == "execute"
    assert rig.movements(*[effect.operation.reference for effect in effects]) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_race_between_calling_off_and_executes_has_one_winner(rig: Rig, kind: Kind) -> None:
    """All say the same: the money has moved once, or it was called off."""
    async with rig.adapter() as one, rig.adapter() as other:
        for number in range(6):
            effect = await opened_one(rig, one, kind)
            way = BOTH_WAYS[number % 2]
            answers = await asyncio.gather(at_once(one, effect, 2), at_once(other, way(effect), 2))
            (answer,) = {*answers[0], *answers[1]}
            moved = rig.movements(effect.operation.reference)
            if isinstance(answer, Executed):
                assert moved == [movement(effect.operation, answer.transaction_id)]
            else:
                assert (answer, moved) == (CalledOff(), [])


@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind in OPENINGS for fault in ("stop_before", "stop_after")]
)
async def test_the_bank_may_die_while_it_calls_off(rig: Rig, kind: Kind, fault: str) -> None:
    """Before or after the work."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, kind)
        rig.trouble("cancel", fault)
        assert await answer_of(bank, with_token(effect)) == NoAnswer()
        assert await answer_of(bank, without_token(effect)) == NoAnswer(), "there is no bank"
    rig.restart()
    async with rig.adapter() as bank:
        assert await answer_of(bank, with_token(effect)) == CalledOff()
        assert await answer_of(bank, effect) == CalledOff()
    assert rig.movements(effect.operation.reference) == []


# ---------------------------------------------------------------- closed before
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", BOTH_WAYS)
async def test_what_is_closed_is_told_as_it_ended(rig: Rig, kind: Kind, way: Any) -> None:
    """Executed, declined or expired; looked up first or not."""
    async with rig.adapter() as bank:
        for end in ends_at(rig):
            card = next(iter(rig.declined_cards[kind])) if end is Declined else ""
            effect = await opened_one(rig, bank, kind, card)
            if end is Expired:
                rig.expire(effect.operation.reference)
            truth = await answer_of(bank, effect)
            assert isinstance(truth, end)
            assert set(await at_once(bank, way(effect), 3)) == {truth}
            assert await answer_after_looking(bank, way(effect)) == truth
            assert await answer_of(bank, effect) == truth
            assert len(rig.movements(effect.operation.reference)) == (end is Executed)


# ---------------------------------------------------------------- without a token
@OPENS
@pytest.mark.parametrize("kind", KINDS)
async def test_where_the_bank_has_no_transaction_nothing_is_to_be_closed(rig: Rig, kind: Kind) -> None:
    """It says so twice. A late token step opens one and moves no money."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        reference = asked.operation.reference
        assert await answer_of(bank, CallOff(asked.operation, None)) == CalledOff()
        assert rig.asked(reference) == ["look_up", "look_up"]
        effect = await opened(bank, asked)
        assert rig.movements(reference) == []
        assert await answer_of(bank, CallOff(asked.operation, None)) == CalledOff()
        assert await answer_of(bank, effect) == CalledOff()


@OPENS
async def test_a_reference_that_is_unknown_once_may_be_known(rig: Rig) -> None:
    """The first reply may be the answer to another question."""
    async with rig.adapter() as bank:
        for fault in ("forget_token", "wrong_reference", "wrong_amount"):
            effect = await opened_one(rig, bank, Kind.CHARGE)
            rig.trouble("look_up", fault)
            assert await answer_of(bank, without_token(effect)) == CalledOff()
            assert await answer_of(bank, effect) == CalledOff()
    assert rig.unfired() == []


@OPENS
@pytest.mark.parametrize(("kind", "name"), OWN_FIELDS)
async def test_what_differs_from_ours_is_not_called_off(rig: Rig, kind: Kind, name: str) -> None:
    """Its token would be another operation's: it is a matter for people, and stays as it is."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, kind)
        answer = await answer_of(bank, CallOff(with_other(effect.operation, name), None))
        assert isinstance(answer, Contradiction)
        assert (answer.reason, answer.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (name,))
        assert isinstance(await answer_of(bank, effect), Executed)


@OPENS
@pytest.mark.parametrize("first", ["forget_token", "wrong_amount"])
async def test_two_look_ups_that_do_not_agree_decide_nothing(rig: Rig, first: str) -> None:
    """Nor does a second one without an answer."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, Kind.CHARGE)
        for second in ("wrong_amount" if first == "forget_token" else "forget_token", "lose_answer", "in_progress"):
            rig.trouble("look_up", first)
            rig.trouble("look_up", second)
            assert isinstance(await answer_of(bank, without_token(effect)), NoAnswer | InProgress)
        assert isinstance(await answer_of(bank, effect), Executed)
    assert rig.unfired() == []


# ---------------------------------------------------------------- a restored journal
@EXPIRES
@pytest.mark.parametrize("is_executed", [False, True])
async def test_a_token_that_the_bank_has_replaced_is_not_all_that_is_called_off(rig: Rig, is_executed: bool) -> None:
    """A restored journal may have forgotten that its token expired and that another was issued."""
    async with rig.adapter() as bank:
        forgotten = await opened_one(rig, bank, Kind.CHARGE)
        rig.expire(forgotten.operation.reference)
        newest = await opened(bank, RequestToken(forgotten.operation, 1))
        truth = await answer_of(bank, newest) if is_executed else CalledOff()
        assert await answer_after_looking(bank, with_token(forgotten)) == truth
        assert await answer_of(bank, newest) == truth


@OPENS
async def test_a_token_that_the_bank_does_not_know_is_a_matter_for_people(rig: Rig) -> None:
    """Money may have moved by it."""
    async with rig.adapter() as bank:
        unknown = CallOff(an_operation(Kind.CHARGE, rig.approved_card), "token-of-nobody")
        assert isinstance(await answer_after_looking(bank, unknown), Contradiction)
        assert isinstance(await answer_of(bank, unknown), Refused)


# ---------------------------------------------------------------- the answer table
@pytest.mark.parametrize(("fault", "details"), NO_ANSWERS)
async def test_a_reply_without_an_end_is_no_answer(rig: Rig, fault: str, details: dict[str, Any]) -> None:
    """Before the work or after it; the repeated question is answered, and nothing moves."""
    async with rig.adapter() as bank:
        for kind in OPENINGS:
            for way in BOTH_WAYS:
                effect = await opened_one(rig, bank, kind)
                rig.trouble("cancel", fault, **details)
                assert await answer_of(bank, way(effect)) == NoAnswer()
                rig.trouble("look_up", fault, **details)
                assert await answer_of(bank, way(effect)) == NoAnswer()
                assert await answer_of(bank, way(effect)) == CalledOff()
                assert await answer_of(bank, effect) == CalledOff()
                assert rig.movements(effect.operation.reference) == []
    assert rig.unfired() == []


@pytest.mark.parametrize("status", [401, 403])
async def test_a_bank_that_does_not_accept_us_calls_nothing_off(rig: Rig, status: int) -> None:
    """It is a fault of our set-up."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, Kind.CHARGE)
        rig.trouble("cancel", "refuse", status=status)
        assert await answer_of(bank, with_token(effect)) == NoAnswer(our_setup=True)
        assert isinstance(await answer_of(bank, effect), Executed)


@pytest.mark.parametrize("fault", ["hang_before", "hang_after", "slow_body"])
async def test_calling_off_ends_at_its_deadline(rig: Rig, fault: str) -> None:
    """And the next try is not harmed."""
    async with rig.adapter() as bank:
        async for impatient in impatient_adapters(rig):
            effect = await opened_one(rig, bank, Kind.CHARGE)
            rig.trouble("cancel", fault)
            assert await answer_of(impatient, with_token(effect)) == NoAnswer()
        assert await answer_of(bank, with_token(effect)) == CalledOff()


async def test_the_bank_may_take_its_time(rig: Rig) -> None:
    """The pause that it asks for is handed on."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, Kind.CHARGE)
        for fault, answer in (("in_progress", InProgress(3.0)), ("throttled", NoAnswer(3.0))):
            rig.trouble("cancel", fault, retry_after="3")
            assert await answer_of(bank, with_token(effect)) == answer


REFUSALS = [*[("refuse", {"status": status}) for status in (400, 404, 409, 422)], ("forget_token", {})]


@ALIKE
@pytest.mark.parametrize(("fault", "details"), REFUSALS)
async def test_a_refusal_to_call_off_is_settled_by_a_look_up(rig: Rig, fault: str, details: dict[str, Any]) -> None:
    """Once it is not believed. Twice it counts if the transaction is open; if it is closed, its end counts."""
    async with rig.adapter() as bank:
        for kind in OPENINGS:
            effect = await opened_one(rig, bank, kind)
            rig.trouble("cancel", fault, **details)
            assert await answer_of(bank, with_token(effect)) == CalledOff()
            made = rig.calls("cancel", "open", "cancel", "look_up")
            assert rig.asked(effect.operation.reference)[-len(made) :] == made
            for end in ends_at(rig):
                card = next(iter(rig.declined_cards[kind])) if end is Declined else ""
                effect = await opened_one(rig, bank, kind, card)
                rig.trouble("cancel", fault, times=2, **details)
                assert isinstance(await answer_of(bank, with_token(effect)), Refused), "it is open"
                if end is Expired:
                    rig.expire(effect.operation.reference)
                truth = await answer_of(bank, effect)
                rig.trouble("cancel", fault, **details)
                assert await answer_of(bank, with_token(effect)) == truth
    assert rig.unfired() == []


@OPENS
@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_refusal_to_call_off_what_the_bank_has_forgotten_counts(rig: Rig, kind: Kind) -> None:
    """Neither the token nor our reference is known."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, kind)
        await answer_of(bank, effect)
        rig.trouble("cancel", "refuse")
        rig.trouble("look_up", "forget_token", times=2)
        assert isinstance(await answer_of(bank, with_token(effect)), Refused)
    assert rig.unfired() == []


@ALIKE
@pytest.mark.parametrize("field", ["amount", "currency", "reference", "token"])
async def test_a_reply_with_other_fields_is_settled_by_a_look_up(rig: Rig, field: str) -> None:
    """If the look-ups are wrong too, it goes into review, with the names of the fields."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, Kind.CHARGE)
        rig.trouble("cancel", f"wrong_{field}")
        rig.trouble("look_up", f"wrong_{field}", times=2)
        answer = await answer_of(bank, with_token(effect))
        assert isinstance(answer, Contradiction)
        assert (answer.reason, answer.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (field,))
        rig.trouble("cancel", f"wrong_{field}")
        assert await answer_of(bank, with_token(effect)) == CalledOff()
    assert rig.unfired() == []


async def test_called_off_counts_only_if_the_look_up_confirms_it(rig: Rig) -> None:
    """For the execute step too. If the bank has forgotten the token by then, the outcome is not guessed."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, Kind.CHARGE)
        for question in (with_token(effect), effect):
            rig.trouble("look_up", "forget_token", times=2)
            assert isinstance(await answer_of(bank, question), Contradiction)
            rig.trouble("look_up", "error_before")
            assert await answer_of(bank, question) == NoAnswer()
            assert await answer_of(bank, question) == CalledOff()
    assert rig.unfired() == []


@ALIKE
@pytest.mark.parametrize("way", BOTH_WAYS)
async def test_an_execution_under_an_id_that_may_not_be_kept_is_not_called_off(rig: Rig, way: Any) -> None:
    """The money did move: people are told so."""
    async with rig.adapter() as bank:
        effect = await opened_one(rig, bank, Kind.CHARGE)
        rig.trouble("execute", "odd_transaction_id", transaction_id=f"{way.__name__} 1")
        unusable = await answer_of(bank, effect)
        assert unusable == Contradiction(Evidence(("transaction_id",), 200), ReviewReason.TRANSACTION_ID_UNUSABLE)
        assert await answer_of(bank, way(effect)) == unusable


# ---------------------------------------------------------------- whole operations
TROUBLES = [
    ("cancel", "forget_token"),
    *[(on, fault) for fault in HARMLESS + LIES for on in ONLY_ON.get(fault, ("cancel", "look_up")) if on != "execute"],
]

# Said twice of a transaction that is open, it is believed if our journal holds no token: then nobody will ever execute it.
DENIAL = ("look_up", "forget_token")


@pytest.mark.parametrize(("on", "fault"), TROUBLES)
async def test_calling_off_comes_to_rest_in_agreement_with_the_bank(rig: Rig, on: str, fault: str) -> None:
    """After three faults of any kind. If the bank does not lie, the charge is called off; no money moves ever."""
    async with rig.adapter() as bank:

        async def run(kind: Kind, has_token: bool) -> tuple[Execute, Outcome]:
            effect = await opened_one(rig, bank, kind)
            operation = effect.operation
            waiting = AwaitingExecution(operation, NOW, 0, effect.token) if has_token else AwaitingToken(operation, NOW)
            rig.trouble(on, fault, times=3, reference=operation.reference, **SHORT.get(fault, {}))
            return effect, outcome(await run_to_rest(bank, call_off(waiting)))

        ends = await asyncio.gather(*[run(kind, has_token) for kind in OPENINGS for has_token in (False, True)])
        rig.forget_trouble()
        for effect, end in ends:
            if fault in HARMLESS:
                assert end == ChargeCalledOff()
            assert isinstance(end, ChargeCalledOff | ReviewRequired)
            if end == ChargeCalledOff() and (on, fault) != DENIAL:
                # Twice: an extra answer to an earlier question may be the first that comes.
                *_, last = [await answer_of(bank, effect) for _ in range(2)]
                assert isinstance(last, CalledOff | Expired), "for ever"


# A token that expires is replaced, and only the journal keeps the one process from that once the other has called it off.
STORMS = [
    *[(on, fault) for on, fault in TROUBLES if fault != "expire_token"],
    *[("execute", "lose_answer"), ("execute", "delay"), ("token", "lose_answer")],
]
trouble = st.sampled_from(STORMS)


@given(
    kind=st.sampled_from(OPENINGS),
    troubles=st.lists(st.tuples(trouble, st.integers(1, 3)), max_size=8),
    expired_tokens=st.integers(0, 1),
    has_token=st.booleans(),
    look_up_first=st.booleans(),
)
@settings(max_examples=40)  # Real calls, by the dozen.
def test_no_storm_makes_an_executed_charge_called_off(
    shared_rig: Rig,
    kind: Kind,
    troubles: list[tuple[tuple[str, str], int]],
    expired_tokens: int,
    has_token: bool,
    look_up_first: bool,
) -> None:
    """One process executes while another calls off, among troubles in any order."""
    rig = shared_rig

    async def run() -> tuple[Operation, Outcome, Outcome]:
        async with rig.adapter() as bank:
            effect = await opened_one(rig, bank, kind)
            operation = effect.operation
            for number in range(expired_tokens if Ability.EXPIRES in rig.abilities else 0):
                rig.expire(operation.reference)
                effect = await opened(bank, RequestToken(operation, number + 1))
            for (on, fault), times in troubles:
                if (on, fault) == DENIAL and not has_token:
                    continue
                rig.trouble(on, fault, times=times, reference=operation.reference, **SHORT.get(fault, {}))
            executing = AwaitingExecution(operation, NOW, expired_tokens, effect.token)
            waiting = executing if has_token else AwaitingToken(operation, NOW, expired_tokens)
            one, other = await asyncio.gather(
                run_to_rest(bank, executing, look_up_first=look_up_first),
                run_to_rest(bank, call_off(waiting), look_up_first=look_up_first),
            )
            return operation, outcome(one), outcome(other)

    try:
        operation, *ends = asyncio.run(run())
    finally:
        rig.forget_trouble()
    moved = rig.movements(operation.reference)
    for end in ends:
        if isinstance(end, Moved):
            assert moved == [movement(operation, end.transaction_id)]
        elif not isinstance(end, ReviewRequired):
            assert moved == []
