"""The arbitration of a step, for every dialect: each possible reply to each question, in every combination.

The bank is a dialect that replies from a script, without a wire and without waits.
"""

# ruff: noqa: ARG002 - the signatures are a dialect's

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import pytest

from command_service.bank.dialect import Dialect, Refusal, Reply, Stage, Transaction, heard, is_storable
from command_service.bank.transport import Exchange
from command_service.bank.two_step import TwoStepBank
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    Executed,
    Expired,
    InProgress,
    Kind,
    NeedsAction,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.contract.operations import KINDS, OWN_FIELDS, an_operation, with_other

CHARGE = an_operation(reference="charge-1")
ASK = RequestToken(CHARGE, expired_tokens=0)
EXECUTE = Execute(CHARGE, "ttok_1")
CALL_OFF = CallOff(CHARGE, "ttok_1")

CREATED = Transaction(Stage.CREATED, "ttok_1", "charge-1", "tok_visa", 1250, "EUR")
EXECUTED = replace(CREATED, stage=Stage.EXECUTED, transaction_id="txn_1")
STEP_URL = "https://bank.example/customer/ttok_1"
ASKS = replace(CREATED, stage=Stage.AWAITS_CUSTOMER, url=STEP_URL, action_expires_at=7)
REPLIES: Mapping[str, Reply] = {
    "created": CREATED,
    "executed": EXECUTED,
    "executed, no usable id": replace(EXECUTED, transaction_id=""),
    "awaits the customer": ASKS,
    "awaits the customer nowhere": replace(ASKS, url="bank.example/customer"),
    "declined": replace(CREATED, stage=Stage.DECLINED, reason=DeclineReason.EXPIRED_CARD),
    "expired": replace(CREATED, stage=Stage.EXPIRED),
    "cancelled": replace(CREATED, stage=Stage.CANCELLED),
    "another's execution": replace(EXECUTED, reference="charge-2", transaction_id="txn_2"),
    "another token": replace(CREATED, token="ttok_2"),
    "another amount, executed": replace(EXECUTED, amount_minor=1),
    "another kind": replace(CREATED, kind=Kind.AUTHORIZE),
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

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        return self.reply(f"calling off {token}", fresh)

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        return self.reply("by token", fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        return self.reply("by reference", fresh)

    def finds_at_once(self, operation: Operation) -> bool:
        return True

    async def close(self) -> None:
        pass


async def answer(effect: Effect, dialect: Dialect, *, look_up_first: bool = False) -> Answer:
    return await TwoStepBank(dialect, 20.0).perform(effect, look_up_first=look_up_first)


def is_ours(reply: Reply, stage: Stage) -> bool:
    return isinstance(reply, Transaction) and reply.stage is stage and not reply.differences(EXECUTE)


@pytest.mark.parametrize(("effect", "question"), [(EXECUTE, "execute step"), (CALL_OFF, "calling off ttok_1")])
async def test_a_token_is_settled_by_the_last_reply_about_it(effect: Effect, question: str) -> None:
    """For all combinations of replies to the question, its repetition and the two look-ups."""
    for first, again, by_token, by_reference in product(REPLIES.values(), repeat=4):
        script = Script(
            {
                (question, False): first,
                (question, True): again,
                ("by token", True): by_token,
                ("by reference", True): by_reference,
            }
        )
        got = await answer(effect, script)
        last = script.replies[script.asked[-1]]
        match got:
            case Executed(transaction_id):
                assert is_ours(last, Stage.EXECUTED)
                assert transaction_id == "txn_1"
            case Declined(reason):
                assert is_ours(last, Stage.DECLINED)
                assert reason is DeclineReason.EXPIRED_CARD
                assert script.asked[-1][0] != question, "an end without money is believed of a look-up only"
            case Expired():
                assert is_ours(last, Stage.EXPIRED)
                assert script.asked[-1][0] != question
            case CalledOff():
                assert is_ours(last, Stage.CANCELLED)
                assert script.asked[-1][0] != question
            case NeedsAction(url, expires_at):
                assert last == ASKS
                assert (effect, url, expires_at) == (EXECUTE, STEP_URL, 7)
            case InProgress() | NoAnswer():
                is_nowhere = effect == EXECUTE and last == REPLIES["awaits the customer nowhere"]
                assert got == (NoAnswer() if is_nowhere else last)
            case Refused():
                assert isinstance(again if script.asked.count((question, True)) else first, Refusal)
            case Contradiction(_, ReviewReason.TRANSACTION_ID_UNUSABLE):
                assert last == REPLIES["executed, no usable id"]
                assert script.asked[-1] == ("by reference", True), "two look-ups say the same"
            case Contradiction():
                assert not isinstance(last, InProgress | NoAnswer)
            case Token():
                pytest.fail("the answer to a question that was not asked")
        assert script.asked.count((question, False)) == 1
        assert len(script.asked) <= 6


@pytest.mark.parametrize(("token", "look_up_first"), [(None, False), (None, True), ("ttok_1", True), ("ttok_0", True)])
@pytest.mark.parametrize("by_token", [REPLIES["expired"], Refusal()])
async def test_calling_off_by_reference_closes_the_newest_transaction(
    token: str | None, look_up_first: bool, by_token: Reply
) -> None:
    """Whatever token our journal holds, if any, and if it has expired. That there is none is believed when it is heard twice.

    One that is closed is told as it ended, and nothing is asked of it.
    """
    ends = {
        Stage.DECLINED: Declined(DeclineReason.EXPIRED_CARD),
        Stage.EXPIRED: Expired(),
        Stage.CANCELLED: CalledOff(),
    }
    for known, again in product(REPLIES.values(), repeat=2):
        if isinstance(by_token, Transaction):
            by_token = replace(by_token, token=token or "")
        script = Script(
            {
                ("by token", False): by_token,
                ("by token", True): by_token,
                ("by reference", False): known,
                ("by reference", True): again,
                ("calling off ttok_1", True): NoAnswer(7.0),
                ("calling off ttok_2", True): NoAnswer(7.0),
                ("token step", False): NoAnswer(9.0),
            }
        )
        got = await answer(CallOff(CHARGE, token), script, look_up_first=look_up_first)
        has_asked_twice = isinstance(known, Refusal) or (
            isinstance(known, Transaction) and bool(known.differences(ASK))
        )
        looked_up = again if has_asked_twice else known
        if got == NoAnswer(7.0):
            assert isinstance(looked_up, Transaction)
            assert not looked_up.differences(ASK)
            assert looked_up.stage in (Stage.CREATED, Stage.AWAITS_CUSTOMER, Stage.EXECUTED)
            assert looked_up.stage is Stage.CREATED or not looked_up.transaction_id
            assert script.asked[-1] == (f"calling off {looked_up.token}", True)
            continue
        asked = [it for it in script.asked if it[0] not in ("by token", "token step")]
        assert asked == [("by reference", False), ("by reference", True)][: 1 + has_asked_twice]
        if isinstance(looked_up, Transaction) and not looked_up.differences(ASK):
            assert got == ends.get(looked_up.stage, Executed(looked_up.transaction_id))
            continue
        match got:
            case CalledOff() | NoAnswer(9.0):
                assert (known, again, token) == (Refusal(), Refusal(), None)
                assert (got == NoAnswer(9.0)) == look_up_first
            case Contradiction() if token is not None and known == again == Refusal():
                pass  # The bank has forgotten the token that it gave us.
            case Contradiction(_, ReviewReason.FIELDS_DIFFER):
                assert isinstance(known, Transaction)
                assert isinstance(again, Transaction)
                assert known.differences(ASK)
                assert again.differences(ASK)
            case _:
                assert looked_up in UNSETTLED or isinstance(known, Refusal) != isinstance(again, Refusal)
                assert isinstance(got, InProgress | NoAnswer)


async def test_a_look_up_that_is_late_hides_no_execution_from_a_journal_that_has_lost_its_token() -> None:
    """The token step names the transaction, which tells when it is called off."""
    for step, again, end in product(REPLIES.values(), repeat=3):
        script = Script(
            {
                ("by reference", False): Refusal(),
                ("by reference", True): Refusal(),
                ("token step", False): step,
                ("token step", True): again,
                ("calling off ttok_1", False): end,
                ("calling off ttok_1", True): end,
                ("calling off ttok_2", False): NoAnswer(),
                ("by token", True): end,
            }
        )
        got = await answer(CallOff(CHARGE, None), script, look_up_first=True)
        if isinstance(got, Executed | Declined | Expired):
            assert isinstance(end, Transaction)
            assert not end.differences(CALL_OFF)
        elif got == CalledOff():
            assert step == again == Refusal() or is_ours(end, Stage.CANCELLED)
        else:
            assert isinstance(got, Contradiction | Refused | InProgress | NoAnswer)


async def test_calling_off_a_token_that_was_not_replaced_asks_for_this_token_only() -> None:
    """A look-up by reference may be late: it would show the token before, which has expired, or none."""
    for known, again in product(REPLIES.values(), repeat=2):
        script = Script(
            {
                ("by token", False): known,
                ("by token", True): again,
                ("by reference", False): NoAnswer(8.0),
                ("calling off ttok_1", True): NoAnswer(7.0),
            }
        )
        got = await answer(CALL_OFF, script, look_up_first=True)
        looked_up = again if ("by token", True) in script.asked else known
        if got == NoAnswer(8.0):
            assert is_ours(looked_up, Stage.EXPIRED) or known == again == Refusal()
        elif got == NoAnswer(7.0):
            assert isinstance(looked_up, Transaction)
            assert looked_up.stage in (Stage.CREATED, Stage.AWAITS_CUSTOMER) or not looked_up.transaction_id
        elif isinstance(got, Executed | Declined | CalledOff):
            assert isinstance(looked_up, Transaction)
            assert not looked_up.differences(CALL_OFF)
        else:
            assert isinstance(got, Contradiction | InProgress | NoAnswer)


@pytest.mark.parametrize(("kind", "name"), OWN_FIELDS)
def test_every_field_of_every_kind_is_compared(kind: Kind, name: str) -> None:
    """An order's fields, and for an operation that follows the card that its charge began with."""
    ours = an_operation(kind, on="" if kind in (Kind.CHARGE, Kind.AUTHORIZE) else "txn_0")
    for token in ("ttok_1", None):
        effect = CallOff(ours, token)
        assert _at_stage(Stage.CREATED, effect, "ttok_1").differences(effect) == ()
        for other in (name, "card"):
            theirs = CallOff(with_other(ours, other), token)
            assert _at_stage(Stage.CREATED, theirs, "ttok_1").differences(effect) == (other,)


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
        assert isinstance(got, NeedsAction) == (known == ASKS), "asking again would do no harm, and is not needed"
        if isinstance(got, Executed | Declined | Expired | CalledOff):
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
            case Executed() | Declined() | Expired() | CalledOff() | NeedsAction():
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


NO_ADDRESSES = (
    *("", "x", "/customer/1", "//bank.example/1", "javascript:alert(1)", "data:text/html,x", "ftp://bank.example/1"),
    *(
        "https://shop.example@bank.example/",
        "https://",
        "https:///1",
        "https://bank.example/a b",
        "https://bank.example/\n",
    ),
    *("https://b\u00e4nk.example/", "https://bank.example/" + "a" * 2028, "https://bank.example/4111111111111111"),
    *(
        "https://bank.example/4111-1111-1111-1111",
        "https://bank.example/?card=4111%201111%201111%201111",
        "https://a/<b>",
    ),
)


@pytest.mark.parametrize("url", NO_ADDRESSES)
@pytest.mark.parametrize("look_up_first", [False, True])
async def test_what_is_no_address_or_shows_a_card_number_is_no_answer(url: str, look_up_first: bool) -> None:
    """Whatever a dialect lets through: nobody is sent there, and it is not stored."""
    said = replace(ASKS, url=url)
    replies: dict[tuple[str, bool], Reply] = {
        ("execute step", False): said,
        ("execute step", True): said,
        ("by token", False): said,
    }
    assert await answer(EXECUTE, Script(replies), look_up_first=look_up_first) == NoAnswer()
    replies = {("execute step", False): Refusal(), ("by token", True): said}
    assert await answer(EXECUTE, Script(replies)) == NoAnswer()


async def test_a_step_of_the_customer_that_only_a_look_up_tells_is_told() -> None:
    """The reply to the step itself belonged to another question."""
    script = Script({("execute step", False): REPLIES["another's execution"], ("by token", True): ASKS})
    assert await answer(EXECUTE, script) == NeedsAction(STEP_URL, 7)


class LateScript(Script):
    """Its look-up by reference may be late."""

    def finds_at_once(self, operation: Operation) -> bool:
        return False


async def test_an_expired_token_that_a_late_look_up_does_not_show_is_no_contradiction() -> None:
    """Neither it nor what may have replaced it is shown yet, so the look-up is put again later."""
    replies: dict[tuple[str, bool], Reply] = {
        ("by token", False): replace(CREATED, stage=Stage.EXPIRED),
        ("by reference", False): Refusal(),
        ("by reference", True): Refusal(),
    }
    assert await answer(CALL_OFF, LateScript(replies), look_up_first=True) == NoAnswer()
    assert isinstance(await answer(CALL_OFF, Script(replies), look_up_first=True), Contradiction)
    forgotten = {**replies, ("by token", False): Refusal(), ("by token", True): Refusal()}
    assert isinstance(await answer(CALL_OFF, LateScript(forgotten), look_up_first=True), Contradiction)


# ---------------------------------------------------------------- room for a bank of another shape
class OneStep:
    """A bank with idempotency keys and no tokens: the token is our own reference, without a call."""

    def __init__(self) -> None:
        self.moved: dict[str, int] = {}
        self.loses_answers = 0

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        return _at_stage(Stage.CREATED, effect, effect.operation.reference)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        self.moved.setdefault(effect.token, effect.operation.amount.minor_units)
        if self.loses_answers:
            self.loses_answers -= 1
            return NoAnswer()
        return _at_stage(Stage.EXECUTED, effect, effect.token)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        return Refusal()  # It cannot keep a late execution from being done.

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        return await self.find_by_reference(effect, fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        reference = effect.operation.reference
        return _at_stage(Stage.EXECUTED if reference in self.moved else Stage.CREATED, effect, reference)

    def finds_at_once(self, operation: Operation) -> bool:
        return True

    async def close(self) -> None:
        pass


def _at_stage(stage: Stage, effect: Effect, token: str) -> Transaction:
    ours = effect.operation
    return Transaction(
        stage,
        token,
        ours.reference,
        ours.request.card.token,
        ours.amount.minor_units,
        ours.amount.currency_code,
        "txn_1" if stage is Stage.EXECUTED else "",
        kind=ours.kind,
        on=ours.on,
        is_final=ours.is_final,
    )


async def test_a_one_step_bank_is_a_dialect_too() -> None:
    """Its token step makes no call, a lost answer moves no money twice, and what it cannot call off is told as it is."""
    for kind in KINDS:
        bank = OneStep()
        bank.loses_answers = 1
        operation = an_operation(kind)
        assert await answer(RequestToken(operation, 0), bank) == Token(operation.reference)
        assert await answer(CallOff(operation, operation.reference), bank) == Refused(Evidence())
        execute = Execute(operation, operation.reference)
        assert await answer(execute, bank) == NoAnswer()
        assert await answer(execute, bank) == Executed("txn_1")
        assert await answer(execute, bank, look_up_first=True) == Executed("txn_1")
        assert await answer(CallOff(operation, None), bank) == Executed("txn_1")
        assert bank.moved == {operation.reference: 1250}
