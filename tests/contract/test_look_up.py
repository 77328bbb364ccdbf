"""Rule 9 of command_service/bank: a look-up for people is a question only, at every adapter and over real connections.

That it changes nothing and tells how an operation stands is in the conformance suite; here are faults.
"""

import pytest

from command_service.values import (
    CalledOff,
    CallOff,
    Contradiction,
    InProgress,
    Kind,
    NoAnswer,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.contract.bank_rigs import IMPATIENT_SECONDS, Rig
from tests.contract.operations import KINDS, an_operation, answer_of, opened, requested


@pytest.mark.parametrize("kind", KINDS)
async def test_only_look_ups_reach_the_bank(rig: Rig, kind: Kind) -> None:
    """Whatever has been asked before, and however often it is put."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        before = rig.asked(asked.operation.reference)
        assert before in ([], ["look_up"])
        for _ in range(3):
            assert isinstance(await bank.look_up(asked.operation, None), CalledOff | Token | NoAnswer)
        assert set(rig.asked(asked.operation.reference)) <= {"look_up"}
        assert rig.movements(asked.operation.reference) == []
        effect = await opened(bank, asked)
        done = await answer_of(bank, effect)
        steps = [call for call in rig.asked(asked.operation.reference) if call != "look_up"]
        assert await bank.look_up(asked.operation, effect.token) == done
        assert [call for call in rig.asked(asked.operation.reference) if call != "look_up"] == steps


@pytest.mark.parametrize("kind", [Kind.CHARGE, Kind.AUTHORIZE])
async def test_what_was_called_off_is_told(rig: Rig, kind: Kind) -> None:
    async with rig.adapter() as bank:
        effect = await opened(bank, RequestToken(an_operation(kind, rig.approved_card), 0))
        assert await answer_of(bank, CallOff(effect.operation, effect.token)) == CalledOff()
        assert await bank.look_up(effect.operation, effect.token) == CalledOff()


async def test_what_was_declined_is_told_with_its_reason(rig: Rig) -> None:
    (card, reason), *_ = rig.declined_cards[Kind.CHARGE].items()
    async with rig.adapter() as bank:
        effect = await opened(bank, RequestToken(an_operation(card=card), 0))
        end = await answer_of(bank, effect)
        assert await bank.look_up(effect.operation, effect.token) == end
    assert getattr(end, "reason", None) is reason


async def test_other_fields_than_ours_are_a_contradiction_once_they_are_heard_twice(rig: Rig) -> None:
    """Once may have been another question's answer."""
    async with rig.adapter() as bank:
        effect = await opened(bank, RequestToken(an_operation(card=rig.approved_card), 0))
        done = await answer_of(bank, effect)
        rig.trouble("look_up", "wrong_amount", times=1)
        assert await bank.look_up(effect.operation, effect.token) == done
        rig.trouble("look_up", "wrong_amount", times=4)
        said = await bank.look_up(effect.operation, effect.token)
    assert isinstance(said, Contradiction)
    assert said.reason is ReviewReason.FIELDS_DIFFER


async def test_a_bank_that_does_not_answer_says_nothing(rig: Rig) -> None:
    """And the adapter raises nothing, whatever comes."""
    async with rig.adapter() as patient, rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS) as bank:
        effect = await opened(patient, RequestToken(an_operation(card=rig.approved_card), 0))
        done = await answer_of(patient, effect)
        for fault in ("hang_before", "error_before", "garbage", "half_body", "reset"):
            rig.trouble("look_up", fault, times=4)
            assert isinstance(await bank.look_up(effect.operation, effect.token), NoAnswer | InProgress)
            rig.forget_trouble()
        assert await patient.look_up(effect.operation, effect.token) == done
