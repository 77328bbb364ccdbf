"""The arbitration of a step, for every dialect: each possible reply to each question, in every combination.

The bank is a dialect that replies from a script, without a wire and without waits.
"""

# ruff: noqa: ARG002 - the signatures are a dialect's

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import pytest

from command_service.bank.transport import Exchange
from command_service.bank.two_step import Dialect, Refusal, Reply, Stage, Transaction, TwoStepBank, heard, is_storable
from command_service.values import (
    Answer,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Executed,
    Expired,
    InProgress,
    Money,
    NoAnswer,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)

ASK = RequestToken("charge-1", "tok_visa", Money(1250, "EUR"), expired_tokens=0)
EXECUTE = Execute("charge-1", "tok_visa", Money(1250, "EUR"), "ttok_1")

CREATED = Transaction(Stage.CREATED, "ttok_1", "charge-1", "tok_visa", 1250, "EUR")
EXECUTED = replace(CREATED, stage=Stage.EXECUTED, transaction_id="txn_1")
REPLIES: Mapping[str, Reply] = {
    "created": CREATED,
    "executed": EXECUTED,
    "executed, no usable id": replace(EXECUTED, transaction_id=""),
    "declined": replace(CREATED, stage=Stage.DECLINED, reason=DeclineReason.EXPIRED_CARD),
    "expired": replace(CREATED, stage=Stage.EXPIRED),
    "another's execution": replace(EXECUTED, reference="charge-2", transaction_id="txn_2"),
    "another token": replace(CREATED, token="ttok_2"),
    "another amount, executed": replace(EXECUTED, amount_minor=1),
    "another currency": replace(CREATED, currency="USD"),
    "another card, declined": replace(CREATED, stage=Stage.DECLINED, card="tok_x", reason=DeclineReason.OTHER),
    "refusal": Refusal(),
    "in progress": InProgress(1.0),
    "no answer": NoAnswer(),
}
UNSETTLED = (InProgress(1.0), NoAnswer())


@dataclass
class Script:
    """A dialect that replies to a question by its script, which may have another reply for a fresh question."""

    replies: Mapping[tuple[str, bool], Reply]
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def reply(self, question: str, fresh: bool) -> Reply:
        self.asked.append((question, fresh))
        return self.replies[question, fresh]

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        return self.reply("token step", fresh)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        return self.reply("execute step", fresh)

    async def find_by_token(self, effect: Execute, *, fresh: bool) -> Reply:
        return self.reply("by token", fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        return self.reply("by reference", fresh)

    async def close(self) -> None:
        pass


async def answer(effect: Effect, dialect: Dialect, *, look_up_first: bool = False) -> Answer:
    return await TwoStepBank(dialect, 20.0).perform(effect, look_up_first=look_up_first)


def is_ours(reply: Reply, stage: Stage) -> bool:
    return isinstance(reply, Transaction) and reply.stage is stage and not reply.differences(EXECUTE)


async def test_an_execute_step_ends_by_the_last_reply_about_it() -> None:
    """For all combinations of replies to the step, its repetition and the two look-ups."""
    for step, again, by_token, by_reference in product(REPLIES.values(), repeat=4):
        script = Script(
            {
                ("execute step", False): step,
                ("execute step", True): again,
                ("by token", True): by_token,
                ("by reference", True): by_reference,
            }
        )
        got = await answer(EXECUTE, script)
        last = script.replies[script.asked[-1]]
        match got:
            case Executed(transaction_id):
                assert is_ours(last, Stage.EXECUTED)
                assert transaction_id == "txn_1"
            case Declined(reason):
                assert is_ours(last, Stage.DECLINED)
                assert reason is DeclineReason.EXPIRED_CARD
                assert script.asked[-1][0] != "execute step", "an end without money is believed of a look-up only"
            case Expired():
                assert is_ours(last, Stage.EXPIRED)
                assert script.asked[-1][0] != "execute step"
            case InProgress() | NoAnswer():
                assert got == last
            case Refused():
                assert isinstance(again if script.asked.count(("execute step", True)) else step, Refusal)
            case Contradiction(_, ReviewReason.TRANSACTION_ID_UNUSABLE):
                assert last == REPLIES["executed, no usable id"]
                assert script.asked[-1] == ("by reference", True), "two look-ups say the same"
            case Contradiction():
                assert not isinstance(last, InProgress | NoAnswer)
            case Token():
                pytest.fail("the answer to a question that was not asked")
        assert script.asked.count(("execute step", False)) == 1
        assert len(script.asked) <= 6


async def test_a_look_up_first_keeps_a_step_from_being_taken_twice() -> None:
    """The step is taken only if the bank waits for it; every other case is settled by the look-ups, or not at all."""
    for by_token, by_reference in product(REPLIES.values(), repeat=2):
        script = Script(
            {
                ("by token", False): by_token,
                ("by reference", True): by_reference,
                ("execute step", False): NoAnswer(),
            }
        )
        got = await answer(EXECUTE, script, look_up_first=True)
        known = by_reference if ("by reference", True) in script.asked else by_token
        assert (script.asked[-1] == ("execute step", False)) == is_ours(known, Stage.CREATED)
        if isinstance(got, Executed | Declined | Expired):
            assert isinstance(known, Transaction)
            assert not known.differences(EXECUTE)


async def test_a_token_step_ends_on_a_token_of_ours_or_on_two_replies_that_agree() -> None:
    """For all combinations of replies to the step and its repetition."""
    for step, again in product(REPLIES.values(), repeat=2):
        script = Script({("token step", False): step, ("token step", True): again})
        got = await answer(ASK, script)
        last = script.replies[script.asked[-1]]
        match got:
            case Token(token):
                assert isinstance(last, Transaction)
                assert not last.differences(ASK)
                assert token == last.token
            case Refused():
                assert (step, again) == (Refusal(), Refusal())
            case Contradiction():
                assert isinstance(step, Transaction)
                assert isinstance(again, Transaction)
                assert step.differences(ASK)
                assert again.differences(ASK)
            case InProgress() | NoAnswer():
                assert last in UNSETTLED or isinstance(step, Refusal) != isinstance(again, Refusal)
            case Executed() | Declined() | Expired():
                pytest.fail("the answer to a question that was not asked")


async def test_a_token_step_that_looks_up_first_takes_the_token_that_the_bank_has() -> None:
    """Another one is requested only if the bank has no live one."""
    for known, again in product(REPLIES.values(), repeat=2):
        script = Script(
            {
                ("by reference", False): known,
                ("by reference", True): again,
                ("token step", False): replace(CREATED, token="ttok_3"),
            }
        )
        got = await answer(ASK, script, look_up_first=True)
        settled = script.replies[script.asked[-2 if ("token step", False) in script.asked else -1]]
        if got == Token("ttok_3"):
            assert isinstance(settled, Refusal) or is_ours(settled, Stage.EXPIRED)
        else:
            assert ("token step", False) not in script.asked


def test_only_a_reply_about_our_transaction_leaves_its_connection_in_use() -> None:
    """Any other reply may have been the answer to another question."""
    for reply in REPLIES.values():
        ended: list[bool] = []
        exchange = Exchange(200, "", None, b"", partial(ended.append, True))
        assert heard(exchange, reply, EXECUTE) is reply
        assert (not ended) == (isinstance(reply, Transaction) and not reply.differences(EXECUTE))


@pytest.mark.parametrize("bank_id", ["", ".", "..", "a/b", "a b", "a\n", "1" * 129, "4111-1111-1111-1111"])
def test_an_id_that_would_change_a_path_or_reveal_a_card_number_is_not_stored(bank_id: str) -> None:
    """An id of the bank's own form is stored."""
    assert not is_storable(bank_id)
    assert is_storable("ttok_5b1f.A:9-z")


# ---------------------------------------------------------------- room for a bank of another shape
class OneStep:
    """A bank with idempotency keys and no tokens: the token is our own reference, without a call."""

    def __init__(self) -> None:
        self.moved: dict[str, int] = {}
        self.loses_answers = 0

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        return _at_stage(Stage.CREATED, effect, effect.charge_id)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        self.moved.setdefault(effect.token, effect.amount.minor_units)
        if self.loses_answers:
            self.loses_answers -= 1
            return NoAnswer()
        return _at_stage(Stage.EXECUTED, effect, effect.token)

    async def find_by_token(self, effect: Execute, *, fresh: bool) -> Reply:
        return await self.find_by_reference(effect, fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        stage = Stage.EXECUTED if effect.charge_id in self.moved else Stage.CREATED
        return _at_stage(stage, effect, effect.charge_id)

    async def close(self) -> None:
        pass


def _at_stage(stage: Stage, effect: Effect, token: str) -> Transaction:
    price = effect.amount
    reply = Transaction(stage, token, effect.charge_id, effect.card_token, price.minor_units, price.currency_code)
    return replace(reply, transaction_id="txn_1") if stage is Stage.EXECUTED else reply


async def test_a_one_step_bank_is_a_dialect_too() -> None:
    """Its token step makes no call, and a lost answer moves no money twice."""
    bank = OneStep()
    bank.loses_answers = 1
    assert await answer(ASK, bank) == Token("charge-1")
    execute = replace(EXECUTE, token="charge-1")
    assert await answer(execute, bank) == NoAnswer()
    assert await answer(execute, bank) == Executed("txn_1")
    assert await answer(execute, bank, look_up_first=True) == Executed("txn_1")
    assert bank.moved == {"charge-1": 1250}
