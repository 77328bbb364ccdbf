"""The contract of every bank adapter: the answer to every reply, and whole operations among any troubles."""

import asyncio
from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_service.events import (
    ChargeDeclined,
    Event,
    Moved,
    OperationDeclined,
    Outcome,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
)
from command_service.values import (
    Contradiction,
    Declined,
    DeclineReason,
    Evidence,
    Executed,
    Expired,
    InProgress,
    Kind,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
)
from tests.contract.bank_rigs import ALIKE, EXPIRES, OPENS, Ability, Rig, case, impatient_adapters, movement
from tests.contract.operations import (
    KINDS,
    MOVED,
    an_operation,
    answer_after_looking,
    answer_of,
    opened,
    outcome,
    requested,
    run_to_rest,
)

BOTH_STEPS = (case("token"), case("execute"))


def charge(rig: Rig, *, card: str = "") -> RequestToken:
    """The token step of a new charge."""
    return RequestToken(an_operation(Kind.CHARGE, card or rig.approved_card), 0)


def declined_card(rig: Rig, kind: Kind) -> str:
    return next(iter(rig.declined_cards[kind]))


def ends_at(rig: Rig) -> list[type[Executed] | type[Declined] | type[Expired]]:
    """How a transaction can end at the rig's bank, by itself."""
    return [Executed, Declined, *([Expired] if Ability.EXPIRES in rig.abilities else [])]


def assert_agreed(rig: Rig, ends: Iterable[tuple[Operation, Outcome]]) -> None:
    """Assert that our outcomes and the bank's statement agree."""
    known = dict(ends)
    moved = rig.movements(*[operation.reference for operation in known])
    assert len({one.reference for one in moved}) == len(moved), "moved twice"
    for operation, end in known.items():
        ours = [one for one in moved if one.reference == operation.reference]
        if isinstance(end, MOVED[operation.kind]):
            assert ours == [movement(operation, end.transaction_id)]
        elif not isinstance(end, ReviewRequired):
            assert ours == []


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
    """For every kind: the repeated step is answered, and the money has moved once."""
    async with rig.adapter() as bank:
        for kind in KINDS:
            asked = await requested(bank, kind, rig.approved_card)
            if on == "token":
                rig.trouble("token", fault, **details)
                assert await answer_of(bank, asked) == NoAnswer()
            effect = await opened(bank, asked)
            if on == "execute":
                rig.trouble("execute", fault, **details)
                assert await answer_of(bank, effect) == NoAnswer()
            done = await answer_of(bank, effect)
            assert isinstance(done, Executed)
            assert rig.movements(asked.operation.reference) == [movement(asked.operation, done.transaction_id)]
    assert rig.unfired() == []


@pytest.mark.parametrize(("fault", "details"), [*NO_ANSWERS, ("refuse", {"status": 400}), ("refuse", {"status": 409})])
async def test_a_look_up_without_an_answer_ends_the_step(rig: Rig, fault: str, details: dict[str, Any]) -> None:
    """Nothing is done on a guess, before a step or after one."""
    asked = charge(rig)
    reference = asked.operation.reference
    async with rig.adapter() as bank:
        rig.trouble("look_up", fault, **details)
        assert await answer_after_looking(bank, asked) == NoAnswer()
        assert "token" not in rig.asked(reference)
        effect = await opened(bank, asked)
        rig.trouble("look_up", fault, **details)
        assert await answer_after_looking(bank, effect) == NoAnswer()
        assert "execute" not in rig.asked(reference)
        rig.trouble("execute", "wrong_amount")
        rig.trouble("look_up", fault, **details)
        assert await answer_of(bank, effect) == NoAnswer()
    assert rig.unfired() == []


@pytest.mark.parametrize("on", [*BOTH_STEPS, "look_up"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_bank_that_does_not_accept_us_is_a_fault_of_our_set_up(rig: Rig, on: str, status: int) -> None:
    """It is never a decline."""
    asked = charge(rig)
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
    async with rig.adapter() as bank:
        async for impatient in impatient_adapters(rig):
            asked = charge(rig)
            effect = await opened(bank, asked)
            rig.trouble(on, fault)
            assert await answer_of(impatient, asked if on == "token" else effect) == NoAnswer()
        assert isinstance(await answer_of(bank, effect), Executed)
    assert len(rig.movements(asked.operation.reference)) == 1


async def test_the_deadline_is_for_step_and_look_ups_together(rig: Rig) -> None:
    """The step is answered, and the look-up after it is not."""
    async with rig.adapter() as bank:
        async for impatient in impatient_adapters(rig):
            asked = charge(rig, card=declined_card(rig, Kind.CHARGE))
            effect = await opened(bank, asked)
            rig.trouble("look_up", "hang_before")
            assert await answer_of(impatient, effect) == NoAnswer()
    assert rig.asked(asked.operation.reference) == rig.calls("token", "execute", "look_up")


async def test_cancelling_a_step_is_not_swallowed(rig: Rig) -> None:
    """The caller gets CancelledError, and connections stay usable."""
    async with rig.adapter() as bank:
        effect = await opened(bank, charge(rig))
        rig.trouble("execute", "hang_after")
        under_way = asyncio.create_task(answer_of(bank, effect))
        while "execute" not in rig.asked(effect.operation.reference):  # noqa: ASYNC110 - it happens in another process
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


@pytest.mark.parametrize("on", [*BOTH_STEPS, "look_up"])
@pytest.mark.parametrize(("said", "seconds"), PAUSES)
async def test_the_pause_that_the_bank_asks_for_is_kept_within_limits(
    rig: Rig, on: str, said: str, seconds: float | None
) -> None:
    """Throttled or in progress, on a step or on a look-up; garbage is ignored."""
    asked = charge(rig)
    async with rig.adapter() as bank:
        step = asked if on == "token" else await opened(bank, asked)
        for fault, answer in (("throttled", NoAnswer(seconds)), ("in_progress", InProgress(seconds))):
            rig.trouble(on, fault, retry_after=said)
            assert await bank.perform(step, look_up_first=on == "look_up") == answer
    assert rig.movements(asked.operation.reference) == []


@OPENS
@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_a_repeated_refusal_of_the_token_step_is_an_answer(rig: Rig, status: int) -> None:
    """It carries the status and the shape of the bank's reply, and no part of its text."""
    async with rig.adapter() as bank:
        rig.trouble("token", "refuse", status=status, times=2)
        answer = await answer_of(bank, charge(rig))
    assert isinstance(answer, Refused)
    assert answer.evidence.status == status
    assert answer.evidence.body_length > 0
    assert len(answer.evidence.body_sha256) == 32


@pytest.mark.parametrize("on", BOTH_STEPS)
@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_an_unrepeated_refusal_is_not_believed(rig: Rig, on: str, status: int) -> None:
    """It names no operation and may concern another one: the step is repeated, and the second reply counts."""
    async with rig.adapter() as bank:
        for kind in KINDS:
            asked = await requested(bank, kind, rig.approved_card)
            rig.trouble(on, "refuse", status=status)
            assert isinstance(await answer_of(bank, await opened(bank, asked)), Executed)
            steps = ("token", "token", "execute") if on == "token" else ("token", "execute", "open", "execute")
            assert rig.asked(asked.operation.reference) == rig.calls(*steps)
            assert len(rig.movements(asked.operation.reference)) == 1


@OPENS
@pytest.mark.parametrize(("fault", "details"), [*NO_ANSWERS, ("in_progress", {})])
async def test_a_second_try_of_the_token_step_without_an_outcome_decides_nothing(
    rig: Rig, fault: str, details: dict[str, Any]
) -> None:
    """Nor does a second reply that differs from the first."""
    asked = charge(rig)
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


@OPENS
async def test_a_card_the_bank_does_not_know_is_refused(rig: Rig) -> None:
    """In the token step: there is nothing to execute."""
    async with rig.adapter() as bank:
        for kind in (Kind.CHARGE, Kind.AUTHORIZE):
            assert isinstance(await answer_of(bank, RequestToken(an_operation(kind, rig.unknown_card), 0)), Refused)


EXECUTE_REFUSALS = [("refuse", {"status": status}) for status in (400, 404, 409, 422)] + [("forget_token", {})]


@ALIKE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fault", "details"), EXECUTE_REFUSALS)
async def test_a_refused_execute_is_settled_by_a_look_up(
    rig: Rig, fault: str, details: dict[str, Any], kind: Kind
) -> None:
    """If the look-up finds an ended transaction, its end counts; if it is open, the refusal counts."""
    async with rig.adapter() as bank:
        for end in ends_at(rig):
            card = declined_card(rig, kind) if end is Declined else rig.approved_card
            effect = await opened(bank, await requested(bank, kind, card))
            rig.trouble("execute", fault, times=2, **details)
            assert isinstance(await answer_of(bank, effect), Refused), "it is open"
            if end is Expired:
                rig.expire(effect.operation.reference)
            truth = await answer_of(bank, effect)
            assert isinstance(truth, end)
            rig.trouble("execute", fault, **details)
            assert await answer_of(bank, effect) == truth
            rig.trouble("execute", fault, **details)
            rig.trouble("look_up", "forget_token")
            assert await answer_of(bank, effect) == truth, "known by reference"
    assert rig.unfired() == []


@OPENS
@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_execute_of_what_the_bank_has_forgotten_is_not_repeated(rig: Rig, kind: Kind) -> None:
    """Neither the token nor our reference is known: there is nothing that waits for it."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        await answer_of(bank, effect)
        rig.trouble("execute", "refuse")
        rig.trouble("look_up", "forget_token", times=2)
        assert isinstance(await answer_of(bank, effect), Refused)
    assert rig.unfired() == []


WRONG = ["amount", "currency", "reference", "token"]


@ALIKE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", WRONG)
async def test_an_execution_with_other_fields_is_settled_by_a_look_up(rig: Rig, field: str, kind: Kind) -> None:
    """If the look-up is wrong too, it goes into review, with the names of the fields and no value."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
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
    assert rig.movements(effect.operation.reference) == [movement(effect.operation, executed.transaction_id)]
    assert rig.unfired() == []


@OPENS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", WRONG[:3])
async def test_a_token_with_other_fields_is_settled_by_asking_again(rig: Rig, field: str, kind: Kind) -> None:
    """A token that may be another operation's is not taken, and a look-up that may be about another is not believed."""
    async with rig.adapter() as bank:
        asked = await requested(bank, kind, rig.approved_card)
        truth = await answer_of(bank, asked)
        for ask, on in ((answer_of, "token"), (answer_after_looking, "look_up")):
            rig.trouble(on, f"wrong_{field}")
            assert await ask(bank, asked) == truth
            rig.trouble(on, f"wrong_{field}", times=2)
            answer = await ask(bank, asked)
            assert isinstance(answer, Contradiction)
            assert (answer.reason, answer.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (field,))


@EXPIRES
@pytest.mark.parametrize("kind", KINDS)
async def test_expired_counts_only_if_the_look_up_confirms_it(rig: Rig, kind: Kind) -> None:
    """If the bank has forgotten the token by then, the outcome is not guessed."""
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        rig.expire(effect.operation.reference)
        rig.trouble("look_up", "forget_token", times=2)
        assert isinstance(await answer_of(bank, effect), Contradiction)
        rig.trouble("look_up", "wrong_reference", times=2)
        assert isinstance(await answer_of(bank, effect), Contradiction)
        rig.trouble("look_up", "error_before")
        assert await answer_of(bank, effect) == NoAnswer()
        assert await answer_of(bank, effect) == Expired()


# An id is taken once, so that each kind has others.
UNUSABLE_IDS = list(
    zip(
        cycle(KINDS),
        [
            *["4111111111111111", "txn_4111-1111-1111-1111", "1" * 129, "txn/1", "txn 1", "..", "5555555555554444"],
            *["txn_5555-5555-5555-4444", "2" * 129, "."],
        ],
        strict=False,
    )
)


@ALIKE
@pytest.mark.parametrize(("kind", "transaction_id"), UNUSABLE_IDS)
async def test_an_execution_under_an_id_that_may_not_be_kept_is_a_matter_for_people(
    rig: Rig, kind: Kind, transaction_id: str
) -> None:
    """The money did move. No part of the id is kept, nor a hash of the reply that held it."""
    unusable = Contradiction(Evidence(("transaction_id",), 200), ReviewReason.TRANSACTION_ID_UNUSABLE)
    async with rig.adapter() as bank:
        effect = await opened(bank, await requested(bank, kind, rig.approved_card))
        reference = effect.operation.reference
        rig.trouble("execute", "odd_transaction_id", transaction_id=transaction_id)
        assert await answer_of(bank, effect) == unusable
        assert rig.asked(reference) == rig.calls("token", "execute", "look_up", "look_up")
        assert await answer_after_looking(bank, effect) == unusable
        for look_up_first in (False, True):
            end = outcome(await run_to_rest(bank, effect.operation, look_up_first=look_up_first, attempts=2))
            assert end == ReviewRequired(unusable.reason, unusable.evidence)
        rig.trouble("look_up", "lose_answer")
        assert await answer_of(bank, effect) == NoAnswer(), "said once"
    assert rig.movements(reference) == [movement(effect.operation, transaction_id)]


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
    """It comes some ms after the right answer of every third one, over kept connections: each is executed, once."""
    async with rig.adapter() as bank:
        kinds = islice(cycle(KINDS), 30)
        operations = [(await requested(bank, kind, rig.approved_card)).operation for kind in kinds]
        for number, operation in enumerate(operations[::3]):
            pause, reference = number % 5 / 1000, operation.reference
            for on in rig.calls("token", "execute"):
                rig.trouble(on, "extra_answer", reference=reference, seconds=pause, status=status, body=body)
        waiting = iter(operations)

        async def run_on() -> list[tuple[Operation, Outcome]]:
            return [(one, outcome(await run_to_rest(bank, one, look_up_first=look_up_first))) for one in waiting]

        for ends in await asyncio.gather(*[run_on() for _ in range(3)]):
            assert {type(end) for _, end in ends} <= set(MOVED.values())
            assert_agreed(rig, ends)
    assert rig.unfired() == []


# ---------------------------------------------------------------- whole operations
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


@pytest.mark.parametrize(("on", "fault"), [case(on, fault) for on, fault in TROUBLES])
async def test_an_operation_comes_to_rest_in_agreement_with_the_bank(rig: Rig, on: str, fault: str) -> None:
    """After three faults of any kind. If the bank does not lie, each kind is executed."""
    async with rig.adapter() as bank:

        async def run(kind: Kind) -> tuple[Operation, Outcome]:
            operation = (await requested(bank, kind, rig.approved_card)).operation
            rig.trouble(on, fault, times=3, reference=operation.reference, **SHORT.get(fault, {}))
            return operation, outcome(await run_to_rest(bank, operation, look_up_first=on == "look_up"))

        ends = await asyncio.gather(*map(run, KINDS))
    assert_agreed(rig, ends)
    for operation, end in ends:
        if fault in HARMLESS:
            assert isinstance(end, MOVED[operation.kind])
        if on == "token" and fault == "refuse":
            declined = ChargeDeclined if operation.opens else OperationDeclined
            assert end == declined(DeclineReason.BANK_REFUSED), "said twice"


@EXPIRES
@pytest.mark.parametrize("kind", KINDS)
async def test_an_operation_outlives_tokens_that_expire(rig: Rig, kind: Kind) -> None:
    """Each is closed for ever before the next one is requested, and the last one moves the money."""
    async with rig.adapter() as bank:
        operation = (await requested(bank, kind, rig.approved_card)).operation
        rig.trouble("execute", "expire_token", times=3)
        events = await run_to_rest(bank, operation)
    assert [type(event) for event in events] == [TokenIssued, TokenExpired] * 3 + [TokenIssued, MOVED[kind]]
    assert_agreed(rig, [(operation, outcome(events))])


trouble = st.sampled_from(TROUBLES).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, 3)))


@given(
    kind=st.sampled_from(KINDS),
    troubles=st.lists(trouble, max_size=8),
    declined=st.booleans(),
    look_up_first=st.booleans(),
    processes=st.integers(1, 3),
)
@settings(max_examples=40)  # Real calls, by the dozen.
def test_no_storm_of_troubles_moves_money_twice(
    shared_rig: Rig,
    kind: Kind,
    troubles: list[tuple[tuple[str, str], int]],
    declined: bool,
    look_up_first: bool,
    processes: int,
) -> None:
    """Troubles in any order, and the same operation run by several processes without knowledge of each other."""
    rig = shared_rig
    card = declined_card(rig, kind) if declined else rig.approved_card

    async def run() -> tuple[Operation, list[list[Event]]]:
        async with rig.adapter() as bank:
            operation = (await requested(bank, kind, card)).operation
            for (on, fault), times in troubles:
                rig.trouble(on, fault, times=times, reference=operation.reference, **SHORT.get(fault, {}))
            return operation, await asyncio.gather(
                *[run_to_rest(bank, operation, look_up_first=look_up_first) for _ in range(processes)]
            )

    try:
        operation, runs = asyncio.run(run())
    finally:
        rig.forget_trouble()
    assert len(rig.movements(operation.reference)) <= 1
    for events in runs:
        end = outcome(events)
        if processes == 1 or isinstance(end, Moved):  # One of several may be refused while another succeeds.
            assert_agreed(rig, [(operation, end)])
