"""A charge in words: what every explanation keeps to, and examples of its sentences."""

import shlex
from collections.abc import Mapping

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from charging.v1.common_pb2 import AnswerKind, Attempts, ChargeStatus, Money, OperationKind, OperationStatus, Resolution
from charging.v1.query_pb2 import Charge, ChargeStage, HistoryEntry, Operation, ResolutionProposal, Situation
from contract.access import ACCESS
from contract.situations import HOLD_LAPSED, SITUATIONS
from query_service.explaining import explain, money
from query_service.situations import LONG_SECONDS, NOT_ASKED, UNDER_WAY, Asked
from tests.operations import time_of

NOW = 1_790_000_100_000_000  # 14:15:00 of 21 September 2026
REQUESTED = NOW - 40_000_000


def seconds_ago(seconds: int) -> Timestamp:
    return time_of(NOW - seconds * 1_000_000)


def charge(
    stage: ChargeStage.ValueType,
    status: ChargeStatus.ValueType = ChargeStatus.CHARGE_STATUS_PENDING,
    *,
    key: str = "order-1",
    operation: OperationStatus.ValueType = OperationStatus.OPERATION_STATUS_PENDING,
    **more: object,
) -> Charge:
    amount = Money(minor_units=1250, currency_code="EUR")
    shown = Charge(
        charge_id="0d3b8fa6-112f-81e8-9516-cc27579689bd",
        idempotency_key=key,
        user_id="alice",
        amount=amount,
        status=status,
        stage=stage,
        stage_since=time_of(REQUESTED),
        operations=[
            Operation(
                kind=OperationKind.OPERATION_KIND_CHARGE,
                idempotency_key=key,
                amount=amount,
                status=operation,
                requested_at=time_of(REQUESTED),
            )
        ],
        **more,  # type: ignore[arg-type]  # of several types
    )
    shown.card.token = "tok_visa"
    return shown


def tried(in_vain: int = 7, **more: object) -> Attempts:
    fields: Mapping[str, object] = {
        "since": time_of(REQUESTED),
        "bank_calls": in_vain + 1,
        "last_answer": AnswerKind.ANSWER_KIND_NO_ANSWER,
        "last_at": seconds_ago(2),
        "next_at": seconds_ago(-12),
        "bank_is_configured": True,
        "is_driven_here": True,
        **more,
    }
    return Attempts(in_vain=in_vain, **fields)  # type: ignore[arg-type]  # of several types


TOKEN = HistoryEntry(event="TokenIssued", recorded_at=seconds_ago(37))


# ---------------------------------------------------------------- sentences
def test_an_execution_without_an_answer_is_told_with_its_amount_times_and_count() -> None:
    """For somebody who has a customer on the telephone."""
    explained = explain(charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION), [TOKEN], Asked(tried()), now=NOW)
    assert explained.what == (
        "The bank was told to execute, or may have been, and its answer is missing: money may have moved. "
        "The charge of 12.50 EUR was requested at 14:14:20 UTC. "
        "The bank gave a token at 14:14:23 UTC, and has been told to execute 12.50 EUR since: money may have moved. "
        "The bank has not answered 7 times in a row, last at 14:14:58 UTC."
    )
    assert explained.next == "It asks the bank again at 14:15:12 UTC."
    assert explained.advice == SITUATIONS[Situation.SITUATION_EXECUTION_UNKNOWN].advice


def test_a_time_of_another_day_is_told_with_its_date() -> None:
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_TOKEN)
    shown.operations[0].requested_at.CopyFrom(seconds_ago(86_400))
    assert "requested at 2026-09-20 14:15:00 UTC." in explain(shown, [], Asked(tried()), now=NOW).what


@pytest.mark.parametrize(
    ("minor_units", "currency", "written"),
    [(1250, "EUR", "12.50 EUR"), (5, "EUR", "0.05 EUR"), (1250, "JPY", "1250 JPY"), (1250, "KWD", "1.250 KWD")],
)
def test_an_amount_is_written_with_its_currencys_decimals(minor_units: int, currency: str, written: str) -> None:
    assert money(Money(minor_units=minor_units, currency_code=currency)) == written


@pytest.mark.parametrize(
    ("last_answer", "situation"),
    [
        (AnswerKind.ANSWER_KIND_NEEDS_ACTION, Situation.SITUATION_AWAITING_CUSTOMER),
        (AnswerKind.ANSWER_KIND_UNSPECIFIED, Situation.SITUATION_AWAITING_CUSTOMER),
        (AnswerKind.ANSWER_KIND_NO_ANSWER, Situation.SITUATION_EXECUTION_UNKNOWN),
        (AnswerKind.ANSWER_KIND_EXECUTED, Situation.SITUATION_EXECUTION_UNKNOWN),
        (AnswerKind.ANSWER_KIND_IN_PROGRESS, Situation.SITUATION_BANK_SLOW),
        (AnswerKind.ANSWER_KIND_NOT_ACCEPTED, Situation.SITUATION_BANK_REFUSES_US),
    ],
)
def test_a_look_for_the_customer_that_has_no_answer_may_have_moved_the_money(
    last_answer: AnswerKind.ValueType, situation: Situation.ValueType
) -> None:
    """It is an execute step."""
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER, ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION)
    assert explain(shown, [TOKEN], Asked(tried(1, last_answer=last_answer)), now=NOW).situation == situation


@pytest.mark.parametrize(
    ("kind", "noun", "may_have"),
    [
        (OperationKind.OPERATION_KIND_REFUND, "refund", "money may have gone back"),
        (OperationKind.OPERATION_KIND_CAPTURE, "capture", "money may have moved"),
        (OperationKind.OPERATION_KIND_VOID, "void", "the hold may be gone"),
    ],
)
def test_what_moved_before_an_operation_is_told_apart_from_what_the_operation_moved(
    kind: OperationKind.ValueType, noun: str, may_have: str
) -> None:
    """A refund whose bank is silent has moved nothing; its charge was paid. A restored journal may have forgotten its end."""
    shown = charge(
        ChargeStage.CHARGE_STAGE_AWAITING_TOKEN,
        ChargeStatus.CHARGE_STATUS_CHARGED,
        operation=OperationStatus.OPERATION_STATUS_EXECUTED,
        captured_minor_units=1250,
    )
    status = OperationStatus.OPERATION_STATUS_PENDING
    shown.operations.add(kind=kind, amount=Money(minor_units=300, currency_code="EUR"), status=status)
    explained = explain(shown, [], Asked(tried()), now=NOW)
    assert explained.situation == Situation.SITUATION_BANK_SILENT
    assert f"so this {noun} has moved no money." in explained.what
    assert "Before it 12.50 EUR moved." in explained.what
    assert "It gives up" in explained.next
    restored = explain(shown, [], Asked(tried(journal_is_restored=True)), now=NOW)
    assert may_have in restored.what
    assert "Before it 12.50 EUR moved." in restored.what
    assert "It never gives up" in restored.next


def test_an_answer_that_the_journal_did_not_take_is_not_called_silence() -> None:
    """As while its disk is full."""
    attempts = tried(last_answer=AnswerKind.ANSWER_KIND_EXECUTED)
    explained = explain(charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION), [TOKEN], Asked(attempts), now=NOW)
    assert "could not be stored yet" in explained.what
    assert "has not answered" not in explained.what


def test_a_bank_that_is_spared_is_called_by_probes_only() -> None:
    attempts = tried(bank_is_spared=True)
    explained = explain(charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION), [TOKEN], Asked(attempts), now=NOW)
    assert "by probes only" in explained.next


def test_who_holds_a_charge_back_and_why_is_told() -> None:
    """Of the last time, if it was held back more than once."""
    entries = [
        TOKEN,
        HistoryEntry(event="HeldBack", actor="ann", reason="a first time", recorded_at=seconds_ago(30)),
        HistoryEntry(event="LetGo", actor="ann", reason="it goes on", recorded_at=seconds_ago(20)),
        HistoryEntry(event="HeldBack", actor="bob", reason="the card was stolen", recorded_at=seconds_ago(10)),
    ]
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION, held_back=True)
    explained = explain(shown, entries, Asked(tried(0)), now=NOW)
    assert explained.situation == Situation.SITUATION_HELD_BACK
    assert "bob has held it back since 14:14:50 UTC: the card was stolen" in explained.what
    commands = [action.command for action in explained.actions]
    assert commands == ["chargeonce desk release order-1 --reason ...", "chargeonce void order-1"]


def test_a_charge_that_is_held_back_says_that_the_customers_step_moves_the_money() -> None:
    """The address goes on working at the bank, and a void would wait."""
    shown = charge(
        ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER, ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION, held_back=True
    )
    entries = [TOKEN, HistoryEntry(event="HeldBack", actor="bob", reason="a pause", recorded_at=seconds_ago(10))]
    explained = explain(shown, entries, Asked(tried(0)), now=NOW)
    assert explained.situation == Situation.SITUATION_HELD_BACK
    assert "The customer's address works all the same." in explained.what
    assert "a step of the customer still does" in explained.advice
    (void,) = [it.text for it in explained.actions if it.command == "chargeonce void order-1"]
    assert "once it is let go" in void
    shown.held_back = False
    before = explain(shown, [TOKEN], Asked(tried(last_answer=AnswerKind.ANSWER_KIND_NEEDS_ACTION)), now=NOW)
    (hold,) = [it.text for it in before.actions if it.method.endswith("/HoldBack")]
    assert "The customer's step moves the money all the same." in hold
    assert "to hold it back does not stop the customer" in before.advice


LATE_ATTEMPTS = Asked(tried(0, since=seconds_ago(5), last_at=None, last_answer=AnswerKind.ANSWER_KIND_UNSPECIFIED))
"""Of a server that has started a moment ago."""


@pytest.mark.parametrize(
    "asked",
    [NOT_ASKED, Asked(unknown_because="The command server did not tell (DEADLINE_EXCEEDED)."), LATE_ATTEMPTS],
    ids=["not asked", "not told", "forgotten"],
)
@pytest.mark.parametrize(
    ("stage", "situation"),
    [
        (ChargeStage.CHARGE_STAGE_AWAITING_TOKEN, Situation.SITUATION_UNDER_WAY),
        (ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION, Situation.SITUATION_EXECUTION_UNKNOWN),
        (ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER, Situation.SITUATION_AWAITING_CUSTOMER),
        (ChargeStage.CHARGE_STAGE_CALLING_OFF, Situation.SITUATION_CALLING_OFF),
    ],
)
def test_a_charge_that_is_long_at_its_stage_is_not_fine_because_nothing_is_known_of_attempts(
    asked: Asked, stage: ChargeStage.ValueType, situation: Situation.ValueType
) -> None:
    """Until then it is under way; and nobody is told that the bank answered in time."""
    shown = charge(stage, ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION)
    is_awaited = stage == ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER
    for seconds, expected in (
        (LONG_SECONDS, situation if is_awaited else Situation.SITUATION_UNDER_WAY),
        (LONG_SECONDS + 1, situation),
    ):
        shown.stage_since.CopyFrom(seconds_ago(seconds))
        explained = explain(shown, [TOKEN], asked, now=NOW)
        assert explained.situation == expected
        assert "in time" not in explained.what
        assert is_awaited or "not charge again before it is decided" in explained.advice


def test_a_charge_that_waits_for_its_turn_is_under_way_however_long() -> None:
    """All its attempts are known, and none was in vain."""
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION)
    shown.stage_since.CopyFrom(seconds_ago(LONG_SECONDS + 1))
    known = Asked(tried(0, since=shown.stage_since))
    assert explain(shown, [TOKEN], known, now=NOW).situation == Situation.SITUATION_UNDER_WAY


@pytest.mark.parametrize("is_held_back", [False, True])
def test_a_charge_at_which_the_server_has_stopped_may_be_taken_up_again_by_the_desk(is_held_back: bool) -> None:
    """What is held back cannot be tried: it is let go."""
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION, held_back=is_held_back)
    explained = explain(shown, [TOKEN], Asked(is_stopped=True), now=NOW)
    assert explained.situation == Situation.SITUATION_STOPPED
    assert "a call about it, or a start of its command server, takes it up again" in explained.next
    (action,) = explained.actions
    assert action.command == f"chargeonce desk {'release' if is_held_back else 'try'} order-1 --reason ..."


@pytest.mark.parametrize(
    "situation",
    [
        Situation.SITUATION_BANK_REFUSES_US,
        Situation.SITUATION_IN_REVIEW,
        Situation.SITUATION_AWAITING_APPROVAL,
        Situation.SITUATION_EXECUTION_UNKNOWN,
    ],
)
def test_where_money_may_have_moved_the_table_says_so_and_what_not_to_do(situation: Situation.ValueType) -> None:
    row = SITUATIONS[situation]
    assert "money may have moved" in row.what
    assert "Do not refund and do not charge again before it is decided." in row.advice


def test_at_a_bank_that_no_setting_names_a_try_would_do_nothing() -> None:
    """Nor has the bank said anything: nobody has called it."""
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION)
    explained = explain(shown, [TOKEN], Asked(tried(3), is_bank_configured=False), now=NOW)
    assert explained.situation == Situation.SITUATION_BANK_MISSING
    assert "in a row" not in explained.what
    commands = [action.command for action in explained.actions]
    assert commands == ["chargeonce desk hold order-1 --reason ...", "chargeonce void order-1"]


def test_a_proposal_may_be_approved_by_everybody_but_the_one_who_made_it() -> None:
    proposal = ResolutionProposal(
        proposal=41, actor="ann", resolution=Resolution.RESOLUTION_EXECUTED, proposed_at=seconds_ago(5)
    )
    shown = charge(
        ChargeStage.CHARGE_STAGE_IN_REVIEW,
        ChargeStatus.CHARGE_STATUS_IN_REVIEW,
        operation=OperationStatus.OPERATION_STATUS_IN_REVIEW,
        proposal=proposal,
    )
    explained = explain(shown, [], now=NOW)
    assert explained.situation == Situation.SITUATION_AWAITING_APPROVAL
    assert "ann proposed at 14:14:55 UTC that the bank executed it (proposal 41)." in explained.what
    assert [(action.not_by, action.command) for action in explained.actions] == [
        ("", "chargeonce desk ask-bank order-1"),
        ("ann", "chargeonce desk approve order-1 --proposal 41 --reason ..."),
        ("", "chargeonce desk reject order-1 --proposal 41 --reason ..."),
    ]


HELD = {"held_minor_units": 1250, "status": ChargeStatus.CHARGE_STATUS_AUTHORIZED}
MOVED = {"captured_minor_units": 1250, "status": ChargeStatus.CHARGE_STATUS_CHARGED}


def given_up(
    kind: OperationKind.ValueType, money_of: Mapping[str, object], *, is_final: bool = False, **more: object
) -> Charge:
    """A charge of which an operation of 1.00 EUR that follows was given up."""
    shown = charge(
        ChargeStage.CHARGE_STAGE_AT_REST,
        operation=OperationStatus.OPERATION_STATUS_EXECUTED,
        **money_of,  # type: ignore[arg-type]  # of several types
        **more,  # type: ignore[arg-type]
    )
    shown.operations.add(
        kind=kind,
        amount=Money(minor_units=100, currency_code="EUR"),
        status=OperationStatus.OPERATION_STATUS_ABANDONED,
        final=is_final,
    )
    return shown


@pytest.mark.parametrize(
    ("shown", "noun", "commands"),
    [
        (given_up(OperationKind.OPERATION_KIND_REFUND, MOVED), "refund", ["refund order-1 1.00 EUR"]),
        (
            given_up(OperationKind.OPERATION_KIND_CAPTURE, HELD),
            "capture",
            ["capture order-1 1.00 EUR", "void order-1"],
        ),
        (
            given_up(OperationKind.OPERATION_KIND_CAPTURE, HELD, is_final=True),
            "capture",
            ["capture order-1 1.00 EUR --final", "void order-1"],
        ),
        (given_up(OperationKind.OPERATION_KIND_VOID, HELD), "void", ["capture order-1", "void order-1"]),
    ],
    ids=["refund", "capture", "last capture", "void"],
)
def test_what_was_given_up_may_be_asked_for_once_more_and_no_more_than_that(
    shown: Charge, noun: str, commands: list[str]
) -> None:
    """Without an amount the command would move all that is left."""
    explained = explain(shown, [], now=NOW)
    assert explained.situation == Situation.SITUATION_ABANDONED
    assert f"The {noun} of 1.00 EUR was given up" in explained.what
    assert "In all 12.50 EUR" in explained.what
    assert [action.command for action in explained.actions] == [f"chargeonce {command}" for command in commands]
    (again,) = [action for action in explained.actions if "given up" in action.text]
    assert f"once more, under a new key, for the {noun} of 1.00 EUR" in again.text


def test_a_hold_that_ends_soon_is_more_urgent_than_a_capture_of_it_that_was_given_up() -> None:
    """Both are told."""
    shown = given_up(OperationKind.OPERATION_KIND_CAPTURE, HELD, hold_expires_at=seconds_ago(-60))
    explained = explain(shown, [], now=NOW)
    assert explained.situation == Situation.SITUATION_HOLD_ENDING
    assert "The capture of 1.00 EUR was given up" in explained.what


def test_of_a_hold_that_has_lapsed_nobody_is_told_to_capture_it() -> None:
    """Until then it can be; after that it can only be ended."""
    status = OperationStatus.OPERATION_STATUS_EXECUTED
    shown = charge(ChargeStage.CHARGE_STAGE_AT_REST, operation=status, **HELD, hold_expires_at=seconds_ago(-60))  # type: ignore[arg-type]
    before = explain(shown, [], now=NOW)
    assert before.advice == SITUATIONS[Situation.SITUATION_HOLD_ENDING].advice
    assert before.next == "Nothing: the bank lets the hold lapse at 14:16:00 UTC."
    after = explain(shown, [], now=NOW + 60_000_000)
    assert after.situation == before.situation == Situation.SITUATION_HOLD_ENDING
    assert "has lapsed" in after.what
    assert (after.advice, after.next) == (
        HOLD_LAPSED.advice,
        "Nothing: the bank has let the hold lapse at 14:16:00 UTC.",
    )
    assert [action.command for action in after.actions] == ["chargeonce void order-1"]


@pytest.mark.parametrize(
    ("bank_said", "contradicts", "told"),
    [
        (AnswerKind.ANSWER_KIND_EXECUTED, False, "that the bank executed it."),
        (AnswerKind.ANSWER_KIND_DECLINED, True, "that the bank executed it, although the bank said: declined."),
        (AnswerKind.ANSWER_KIND_NO_ANSWER, True, "that the bank executed it, although the bank did not answer."),
    ],
    ids=["confirmed", "contradicted", "not answered"],
)
def test_what_two_people_found_is_told_and_that_the_bank_did_not_say_so(
    bank_said: AnswerKind.ValueType, contradicts: bool, told: str
) -> None:
    entries = [
        HistoryEntry(
            event="ResolutionProposed",
            actor="ann",
            proposal=ResolutionProposal(resolution=Resolution.RESOLUTION_EXECUTED),
        ),
        HistoryEntry(
            event="ResolutionApproved",
            idempotency_key="order-1",
            actor="ben",
            recorded_at=seconds_ago(5),
            bank_said=bank_said,
            contradicts_bank=contradicts,
        ),
    ]
    shown = charge(
        ChargeStage.CHARGE_STAGE_AT_REST, operation=OperationStatus.OPERATION_STATUS_EXECUTED, captured_minor_units=1250
    )
    explained = explain(shown, entries, now=NOW)
    assert f"ben approved at 14:14:55 UTC what ann had proposed, {told}" in explained.what


def test_an_approval_of_an_earlier_operation_is_told_as_that_of_this_operation() -> None:
    """Not as one of the refund that was asked for later, and was declined."""
    entries = [
        HistoryEntry(
            event="ResolutionProposed",
            idempotency_key="order-1",
            actor="ann",
            proposal=ResolutionProposal(resolution=Resolution.RESOLUTION_EXECUTED),
        ),
        HistoryEntry(event="ResolutionApproved", idempotency_key="order-1", actor="ben", recorded_at=seconds_ago(30)),
    ]
    shown = charge(
        ChargeStage.CHARGE_STAGE_AT_REST,
        operation=OperationStatus.OPERATION_STATUS_EXECUTED,
        captured_minor_units=1250,
    )
    shown.operations.add(
        kind=OperationKind.OPERATION_KIND_REFUND,
        idempotency_key="refund-1",
        amount=Money(minor_units=300, currency_code="EUR"),
        status=OperationStatus.OPERATION_STATUS_DECLINED,
    )
    what = explain(shown, entries, now=NOW).what
    assert "The refund of 3.00 EUR was declined" in what
    told = "ben approved at 14:14:30 UTC what ann had proposed of the charge of 12.50 EUR, that the bank executed it."
    assert told in what


@pytest.mark.parametrize("key", ["it's", "$(reboot)", "a;b", "-rf", "order-1", '"', "`x`"])
def test_a_command_can_be_pasted_whatever_the_key_is(key: str) -> None:
    """A key is any printable ASCII without spaces, chosen by a client."""
    shown = charge(ChargeStage.CHARGE_STAGE_AWAITING_TOKEN, key=key)
    for action in explain(shown, [], Asked(tried()), now=NOW).actions:
        words = shlex.split(action.command)
        assert (key in words) != key.startswith("-")
        assert "".join(words).count(";") == key.count(";")


# ---------------------------------------------------------------- laws
ASKED = st.one_of(
    st.just(NOT_ASKED),
    st.builds(lambda why: Asked(unknown_because=why, is_away=True), st.just("away")),
    st.builds(lambda why: Asked(unknown_because=why, is_stopped=True), st.just("stopped")),
    st.builds(
        lambda in_vain, answer, configured, spared, restored: Asked(
            tried(
                in_vain,
                last_answer=answer,
                bank_is_configured=configured,
                bank_is_spared=spared,
                journal_is_restored=restored,
            ),
            is_bank_configured=configured,
        ),
        st.integers(0, 3),
        st.sampled_from(AnswerKind.values()),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
)


@given(st.sampled_from(UNDER_WAY), ASKED, st.booleans())
def test_a_charge_under_way_never_says_that_no_money_moved_where_it_may_have(
    stage: ChargeStage.ValueType, asked: Asked, is_held_back: bool
) -> None:
    """After the token, while the customer is awaited, and at each stage of a restored journal.

    Whatever is known of attempts; and what may be done is in the contract, with the role that the contract gives it."""
    explained = explain(charge(stage, held_back=is_held_back), [TOKEN], asked, now=NOW)
    is_restored = asked.attempts is not None and asked.attempts.journal_is_restored
    if is_restored or stage != ChargeStage.CHARGE_STAGE_AWAITING_TOKEN:
        assert "moved no money" not in explained.what
        assert "No money has moved." not in explained.what
        assert "money may have moved" in explained.what
    if is_restored:
        assert "It gives up" not in explained.next
    assert explained.next
    assert explained.situation != Situation.SITUATION_DECIDED
    for action in explained.actions:
        assert ACCESS[f"/{action.method}"] == action.role
    assert (not explained.actions) == asked.is_away


@given(st.sampled_from(UNDER_WAY), st.integers(0, 3), st.booleans())
def test_attempts_from_before_the_server_took_it_up_are_said_to_be_unknown(
    stage: ChargeStage.ValueType, in_vain: int, is_late: bool
) -> None:
    """And only then."""
    since = time_of(REQUESTED + 1 if is_late else REQUESTED)
    explained = explain(charge(stage), [TOKEN], Asked(tried(in_vain, since=since)), now=NOW)
    assert bool(explained.attempts_unknown_because) == is_late
    assert explained.attempts.since == since
