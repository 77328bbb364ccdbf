"""The contract of every bank adapter for every kind of operation: rules 1 to 5 of command_service/bank, over real connections.

Rule 6 is in test_bank_calling_off.py, the answers in test_bank_answers.py. What needs neither faults nor the bank's statement
is in the conformance suite; see test_conformance.py.
"""

import asyncio
import uuid
from dataclasses import replace
from itertools import product
from time import time

import pytest

from command_service.values import (
    Contradiction,
    Declined,
    DeclineReason,
    Execute,
    Executed,
    Expired,
    Kind,
    Money,
    NoAnswer,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.contract.bank_rigs import ALIKE, EXPIRES, IMPATIENT_SECONDS, OPENS, Rig, SlowWay, movement
from tests.contract.operations import (
    KINDS,
    OWN_FIELDS,
    PRICE,
    an_operation,
    answer_after_looking,
    answer_of,
    at_once,
    executed,
    following,
    opened,
    requested,
    with_other,
)


# ---------------------------------------------------------------- rule 1: the token step is idempotent by reference
async def test_a_known_reference_gives_back_its_transaction(rig: Rig) -> None:
    """Concurrently, by two processes, before and after the execute step, and after the bank's restart."""
    found = []
    async with rig.adapter() as one, rig.adapter() as other:
        for kind in KINDS:
            asked = await requested(one, kind, rig.approved_card)
            (token,) = {*await at_once(one, asked), *await at_once(other, asked)}
            assert isinstance(token, Token)
            assert await answer_after_looking(one, asked) == token
            done = await answer_of(one, Execute(asked.operation, token.token))
            assert await answer_of(other, asked) == await answer_after_looking(other, asked) == token
            found.append((asked, token, done))
    rig.restart()
    async with rig.adapter() as later:
        for asked, token, done in found:
            assert await answer_of(later, asked) == await answer_after_looking(later, asked) == token
            assert await answer_of(later, Execute(asked.operation, token.token)) == done
            assert isinstance(done, Executed)
            assert rig.movements(asked.operation.reference) == [movement(asked.operation, done.transaction_id)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_token_step_moves_no_money(rig: Rig, kind: Kind) -> None:
    """Not even a repeated one."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        await at_once(bank, asked)
    assert rig.movements(asked.operation.reference) == []


@OPENS
@pytest.mark.parametrize("kind", KINDS)
async def test_looking_up_first_takes_the_token_step_only_for_a_reference_unknown_to_the_bank(
    rig: Rig, kind: Kind
) -> None:
    """A restored journal has lost steps that the bank has not."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        first = await answer_after_looking(bank, asked)
        assert isinstance(first, Token)
        assert rig.asked(asked.operation.reference) == ["look_up", "token"]
        assert await answer_after_looking(bank, asked) == first
        assert rig.asked(asked.operation.reference) == ["look_up", "token", "look_up"]


# ---------------------------------------------------------------- rule 2: the execute step is idempotent by token
@pytest.mark.parametrize("kind", KINDS)
async def test_concurrent_executes_move_money_once(rig: Rig, kind: Kind) -> None:
    """And every one of them is given the same transaction id."""
    async with rig.adapter() as one, rig.adapter() as other:
        effect = await opened(one, await requested(one, kind, rig.approved_card))
        answers = await asyncio.gather(at_once(one, effect), at_once(other, effect))
        (answer,) = set(answers[0] + answers[1])
    assert isinstance(answer, Executed)
    assert rig.movements(effect.operation.reference) == [movement(effect.operation, answer.transaction_id)]


DEATHS = [
    (kind, fault, bool((n + n // 2) % 2))
    for n, (kind, fault) in enumerate(product(KINDS, ("stop_before", "stop_after")))
]


@pytest.mark.parametrize(("kind", "fault", "look_up_first"), DEATHS)
async def test_money_moves_once_if_the_bank_dies_in_the_execute_step(
    rig: Rig, kind: Kind, fault: str, look_up_first: bool
) -> None:
    """It is killed before or after the work; the token survives its restart."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        rig.trouble("execute", fault)
        assert await answer_of(bank, effect) == NoAnswer()
        assert await answer_of(bank, effect) == NoAnswer(), "there is no bank"
    rig.restart()
    async with rig.adapter() as bank:
        answer = await bank.perform(effect, look_up_first=look_up_first)
        assert isinstance(answer, Executed)
        assert await answer_of(bank, effect) == answer
    assert rig.movements(effect.operation.reference) == [movement(effect.operation, answer.transaction_id)]


async def test_money_moves_once_if_the_bank_dies_among_executes(rig: Rig) -> None:
    """It is killed while many are under way."""
    async with rig.adapter() as bank:
        effects = [await opened(bank, await requested(bank, kind, rig.approved_card)) for kind in KINDS * 3]
        under_way = [asyncio.create_task(answer_of(bank, effect)) for effect in effects * 2]
        await under_way[0]
        rig.restart()
        first = dict(zip(effects * 2, await asyncio.gather(*under_way), strict=True))
    async with rig.adapter() as bank:
        for effect in effects:
            answer = await answer_of(bank, effect)
            assert isinstance(answer, Executed)
            assert first[effect] in (answer, NoAnswer())
            assert rig.movements(effect.operation.reference) == [movement(effect.operation, answer.transaction_id)]


@pytest.mark.parametrize("kind", KINDS)
async def test_looking_up_first_does_not_execute_an_executed_transaction(rig: Rig, kind: Kind) -> None:
    """The bank's answer is taken, and no further question is put."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        done = await answer_after_looking(bank, effect)
        assert isinstance(done, Executed)
        before = rig.asked(effect.operation.reference)
        assert before == rig.calls("token", "open", "execute")
        assert await answer_after_looking(bank, effect) == done
        assert rig.asked(effect.operation.reference) == [*before, "look_up"]


@pytest.mark.parametrize("kind", KINDS)
async def test_only_a_hold_has_a_time_at_which_it_lapses(rig: Rig, kind: Kind) -> None:
    """It lies ahead, and every later answer says the same."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        answer = await answer_of(bank, effect)
        assert isinstance(answer, Executed)
        assert (answer.expires_at > time() * 1_000_000) == (kind is Kind.AUTHORIZE)
        assert answer.expires_at == 0 or kind is Kind.AUTHORIZE
        assert await answer_of(bank, effect) == await answer_after_looking(bank, effect) == answer


# ---------------------------------------------------------------- rule 3: declined and expired are for ever
@pytest.mark.parametrize("kind", KINDS)
async def test_a_declined_token_never_executes(rig: Rig, kind: Kind) -> None:
    """On any number of calls, however late; each card has its reason."""
    async with rig.adapter() as bank:
        for card, reason in rig.declined_cards[kind].items():
            effect = await opened(bank, await requested(bank, kind, card))
            assert set(await at_once(bank, effect, 4)) == {Declined(reason)}
            assert await answer_after_looking(bank, effect) == Declined(reason)
            assert rig.movements(effect.operation.reference) == []


@ALIKE
async def test_a_token_that_breaks_a_rule_of_the_book_never_executes(rig: Rig) -> None:
    """It stays declined after the reason is gone: a refund that came before the capture stays undone."""
    async with rig.adapter() as bank:
        opening = an_operation(Kind.AUTHORIZE, rig.approved_card)
        hold = await executed(bank, opening)
        charge = an_operation(Kind.CHARGE, rig.approved_card)
        on_charge = await executed(bank, charge)
        too_much = Money(1251, "EUR")
        refused = [
            following(Kind.REFUND, opening, hold),
            following(Kind.CAPTURE, opening, hold, too_much),
            following(Kind.VOID, opening, hold, Money(1249, "EUR")),
            following(Kind.CAPTURE, charge, on_charge),
            following(Kind.VOID, charge, on_charge),
            following(Kind.REFUND, charge, on_charge, too_much),
        ]
        effects = [await opened(bank, RequestToken(operation, 0)) for operation in refused]
        for effect in effects:
            assert set(await at_once(bank, effect, 3)) == {Declined(DeclineReason.OTHER)}
        await executed(bank, following(Kind.CAPTURE, opening, hold))
        await executed(bank, following(Kind.REFUND, opening, hold))
        for effect in effects:
            assert await answer_of(bank, effect) == Declined(DeclineReason.OTHER)
            assert rig.movements(effect.operation.reference) == []


@ALIKE
@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID])
async def test_what_comes_after_the_hold_lapsed_is_declined_for_that_reason(rig: Rig, kind: Kind) -> None:
    """Looked up first or not. What was captured in time can be refunded."""
    async with rig.adapter() as bank:
        opening = an_operation(Kind.AUTHORIZE, rig.approved_card)
        hold = await executed(bank, opening)
        await executed(bank, following(Kind.CAPTURE, opening, hold, Money(500, "EUR")))
        effect = await opened(bank, RequestToken(following(kind, opening, hold, Money(750, "EUR")), 0))
        rig.expire_hold(effect.operation.reference)
        assert await answer_of(bank, effect) == Declined(DeclineReason.AUTHORIZATION_EXPIRED)
        assert await answer_after_looking(bank, effect) == Declined(DeclineReason.AUTHORIZATION_EXPIRED)
        await executed(bank, following(Kind.REFUND, opening, hold, Money(500, "EUR")))
    assert rig.movements(effect.operation.reference) == []


@EXPIRES
@pytest.mark.parametrize("kind", KINDS)
async def test_an_expired_token_never_executes(rig: Rig, kind: Kind) -> None:
    """Nor after the next token has executed."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        expired = await opened(bank, asked)
        rig.expire(asked.operation.reference)
        assert set(await at_once(bank, expired)) == {Expired()}
        assert await answer_after_looking(bank, expired) == Expired()
        done = await answer_of(bank, await opened(bank, replace(asked, expired_tokens=1)))
        assert isinstance(done, Executed)
        assert set(await at_once(bank, expired)) == {Expired()}
    assert rig.movements(asked.operation.reference) == [movement(asked.operation, done.transaction_id)]


@EXPIRES
async def test_an_expired_token_never_executes_after_a_restart(rig: Rig) -> None:
    """Of the bank."""
    async with rig.adapter() as bank:
        effects = [await opened(bank, await requested(bank, kind, rig.approved_card)) for kind in KINDS]
        for effect in effects:
            rig.expire(effect.operation.reference)
    rig.restart()
    async with rig.adapter() as bank:
        for effect in effects:
            assert await answer_of(bank, effect) == Expired()
            assert rig.movements(effect.operation.reference) == []


@EXPIRES
async def test_an_execute_that_arrives_after_expired_was_said_moves_nothing(rig: Rig) -> None:
    """It was under way when we stopped waiting, and the token expired meanwhile."""
    way = SlowWay()
    async with (
        rig.adapter() as bank,
        rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS, between=way.to) as impatient,
    ):
        asked = [await requested(bank, kind, rig.approved_card) for kind in KINDS]
        effects = [await opened(bank, step) for step in asked]
        assert set(await asyncio.gather(*[answer_of(impatient, effect) for effect in effects])) == {NoAnswer()}
        for step, effect in zip(asked, effects, strict=True):
            rig.expire(step.operation.reference)
            assert await answer_of(bank, effect) == Expired()
            again = await opened(bank, replace(step, expired_tokens=1))
            assert isinstance(await answer_of(bank, again), Executed)
        assert await way.all_arrive() == len(effects)
    for step in asked:
        assert rig.asked(step.operation.reference)[-2:] == ["execute", "execute"]
        assert len(rig.movements(step.operation.reference)) == 1


@EXPIRES
@pytest.mark.parametrize("kind", KINDS)
async def test_a_race_between_expiry_and_executes_has_one_winner(rig: Rig, kind: Kind) -> None:
    """Either every answer is executed, or every answer is expired and no money moved."""
    async with rig.adapter() as bank:
        for _ in range(4):
            effect = await opened(bank, await requested(bank, kind, rig.approved_card))
            reference = effect.operation.reference
            answers, _ = await asyncio.gather(at_once(bank, effect, 6), asyncio.to_thread(rig.expire, reference))
            (answer,) = set(answers)
            if isinstance(answer, Executed):
                assert rig.movements(reference) == [movement(effect.operation, answer.transaction_id)]
            else:
                assert (answer, rig.movements(reference)) == (Expired(), [])


@pytest.mark.parametrize("kind", KINDS)
async def test_an_untrue_decline_is_not_believed(rig: Rig, kind: Kind) -> None:
    """The bank executed and says declined: the look-up finds the execution."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        rig.trouble("execute", "contradict")
        answer = await answer_of(bank, effect)
    assert isinstance(answer, Executed)
    assert rig.movements(effect.operation.reference) == [movement(effect.operation, answer.transaction_id)]
    assert rig.unfired() == []


# ---------------------------------------------------------------- rule 4: other fields are refused
@OPENS
@pytest.mark.parametrize(("kind", "name"), OWN_FIELDS)
async def test_a_known_reference_with_another_field_gives_no_token(rig: Rig, kind: Kind, name: str) -> None:
    """Open or executed, by a step or a look-up. The first operation continues unchanged."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        other = RequestToken(with_other(asked.operation, name), 0)
        effect = await opened(bank, asked)
        for _ in range(2):
            assert isinstance(await answer_of(bank, other), Refused)
            looked_up = await answer_after_looking(bank, other)
            assert isinstance(looked_up, Contradiction)
            assert (looked_up.reason, looked_up.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (name,))
            assert isinstance(await answer_of(bank, effect), Executed)
    assert len(rig.movements(asked.operation.reference)) == 1


@OPENS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["amount", "currency"])
async def test_a_known_token_with_another_field_moves_nothing(rig: Rig, kind: Kind, name: str) -> None:
    """The bank refuses it, and so do we when we look first."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        other = replace(effect, operation=with_other(effect.operation, name))
        assert isinstance(await answer_of(bank, other), Refused)
        looked_up = await answer_after_looking(bank, other)
        assert isinstance(looked_up, Contradiction)
        assert (looked_up.reason, looked_up.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (name,))
        assert rig.movements(effect.operation.reference) == []
        assert isinstance(await answer_of(bank, effect), Executed)


@OPENS
@pytest.mark.parametrize(("kind", "name"), [*OWN_FIELDS, *[(kind, "reference") for kind in KINDS]])
async def test_an_execution_with_another_field_is_never_ours(rig: Rig, kind: Kind, name: str) -> None:
    """A token of another operation, or of this one with other fields, is a contradiction, executed or not."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        other = replace(effect, operation=with_other(effect.operation, name))
        assert isinstance(await answer_after_looking(bank, other), Contradiction)
        assert isinstance(await answer_of(bank, effect), Executed)
        assert isinstance(await answer_of(bank, other), Contradiction | Refused)
        assert isinstance(await answer_after_looking(bank, other), Contradiction)


@OPENS
@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID, Kind.REFUND])
async def test_what_follows_nothing_is_refused(rig: Rig, kind: Kind) -> None:
    """A transaction that the bank does not know, one that opened nothing, and an opening in another currency."""
    async with rig.adapter() as bank:
        opening = an_operation(Kind.CHARGE, rig.approved_card)
        on = await executed(bank, opening)
        refund = await executed(bank, following(Kind.REFUND, opening, on, Money(1, "EUR")))
        for wrong in (
            following(kind, opening, "txn_of_nobody"),
            following(kind, opening, refund),
            following(kind, opening, on, Money(PRICE.minor_units, "USD")),
        ):
            assert isinstance(await answer_of(bank, RequestToken(wrong, 0)), Refused)


# ---------------------------------------------------------------- rule 5: only a definite expiry leads to a new token
@EXPIRES
@pytest.mark.parametrize("kind", KINDS)
async def test_a_journal_that_forgot_an_expired_token_gets_a_new_one(rig: Rig, kind: Kind) -> None:
    """Looking up first never returns a token that would only expire again."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        expired = await opened(bank, asked)
        rig.expire(asked.operation.reference)
        token = await answer_after_looking(bank, asked)
    assert isinstance(token, Token)
    assert token.token != expired.token


@pytest.mark.parametrize("kind", KINDS)
async def test_a_token_the_bank_does_not_know_is_a_matter_for_people(rig: Rig, kind: Kind) -> None:
    """With nothing, an open transaction or an executed one under the reference."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        reference = asked.operation.reference
        unknown = Execute(asked.operation, f"token-of-nobody-{uuid.uuid4()}")
        for known in ("nothing", "opened", "executed"):
            if known == "opened":
                effect = await opened(bank, asked)
            elif known == "executed":
                assert isinstance(await answer_of(bank, effect), Executed)
            executes = rig.asked(reference).count("execute")
            assert isinstance(await answer_after_looking(bank, unknown), Contradiction)
            assert rig.asked(reference).count("execute") == executes
            assert isinstance(await answer_of(bank, unknown), Refused)
