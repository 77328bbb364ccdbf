"""The history checker, where operators take steps: what may follow what, and the one way in which an outcome changes."""

from dataclasses import replace
from typing import Any

import pytest

from charging.v1.common_pb2 import AnswerKind, ChargeStatus, DeclineReason, Resolution
from charging.v1.journal_pb2 import (
    ChargeDeclined,
    Event,
    HeldBack,
    LetGo,
    OperationDeclined,
    ResolutionApproved,
    ResolutionProposed,
    ResolutionRejected,
    TryRequested,
)
from judge.checker import check
from judge.history import Call, Movement, Observed, charge_id_of, operation_id_of
from tests.simulation.histories import (
    CALLED_OFF,
    CHARGED,
    DECLINE,
    ID,
    KEY,
    REVIEW,
    TOO_LATE,
    authorized,
    bare,
    call,
    capture,
    captured,
    charged,
    issued,
    refund,
    refunded,
    requested,
    void,
    voided,
)

IN_REVIEW = ChargeStatus.CHARGE_STATUS_IN_REVIEW
FOUND_NOT_EXECUTED = DeclineReason.DECLINE_REASON_FOUND_NOT_EXECUTED
TRIED = Event(try_requested=TryRequested(actor="ann", reason="now"))
HELD_BACK = Event(held_back=HeldBack(actor="ann", reason="wait"))
LET_GO = Event(let_go=LetGo(actor="ben", reason="go"))
NOT_CHARGED = Event(charge_declined=ChargeDeclined(reason=FOUND_NOT_EXECUTED))
NOT_CAPTURED = Event(operation_declined=OperationDeclined(reason=FOUND_NOT_EXECUTED))


def proposed(resolution: str = "EXECUTED", **changed: Any) -> Event:
    ids = {"EXECUTED": {"transaction_id": "txn-1"}, "REFUNDED": {"transaction_id": "txn-1"}}.get(resolution, {})
    refund_id = {"refund_transaction_id": "txn-9"} if resolution == "REFUNDED" else {}
    said = {"actor": "ann", "reason": "seen", "evidence": "a letter", **ids, **refund_id, **changed}
    return Event(
        resolution_proposed=ResolutionProposed(resolution=Resolution.Value(f"RESOLUTION_{resolution}"), **said)
    )


def approved(proposal: int, actor: str = "ben", *, contradicts_bank: bool = False) -> Event:
    return Event(
        resolution_approved=ResolutionApproved(
            actor=actor,
            reason="seen too",
            proposal=proposal,
            bank_said=AnswerKind.ANSWER_KIND_EXECUTED,
            contradicts_bank=contradicts_bank,
        )
    )


def rejected(proposal: int) -> Event:
    return Event(resolution_rejected=ResolutionRejected(actor="ben", reason="no", proposal=proposal))


def one(*events: Event, is_held: bool = False, **rest: object) -> Observed:
    """One charge whose bank gave a token, and what followed: from position 3 on."""
    first = (requested(KEY, is_held=is_held), issued("t-1"))
    return bare(*((KEY, event) for event in (*first, *events)), **rest)


def found(observed: Observed) -> set[str]:
    return {violation.invariant for violation in check(observed)}


MOVED = Movement("txn-1", "t-1", ID, 1250, "EUR")


# ---------------------------------------------------------------- what may follow
@pytest.mark.parametrize(
    "events",
    [
        (TRIED, TRIED, charged()),
        (HELD_BACK, charged()),
        (HELD_BACK, LET_GO, HELD_BACK, LET_GO, TRIED, DECLINE),
        (HELD_BACK, void("void-1", 1250), LET_GO, CALLED_OFF),
        (HELD_BACK, charged(), refund("refund-1", 1), TRIED),
        (REVIEW, proposed(), approved(4), charged()),
        (REVIEW, proposed("NOT_EXECUTED"), rejected(4), proposed("NOT_EXECUTED"), approved(6), NOT_CHARGED),
        (REVIEW, proposed(), approved(4), charged(), refund("refund-1", 1250), issued("t-2"), refunded(1250, "txn-2")),
        (
            *(REVIEW, proposed("REFUNDED"), approved(4), charged()),
            *(refund("desk-4", 1250, actor="ben"), issued("txn-9"), refunded(1250, "txn-9")),
        ),
        (void("void-1", 1250), REVIEW, proposed("NOT_EXECUTED"), approved(5), NOT_CHARGED),
        (
            *(void("void-1", 1250), REVIEW, proposed("REFUNDED"), approved(5), charged()),
            *(refund("desk-5", 1250, actor="ben"), issued("txn-9"), refunded(1250, "txn-9")),
        ),
    ],
)
def test_the_ways_of_the_desk_pass(events: tuple[Event, ...]) -> None:
    assert check(one(*events)) == []


@pytest.mark.parametrize(
    "events",
    [
        (
            capture("c-1", 500),
            issued("t-2"),
            REVIEW,
            proposed(transaction_id="txn-2"),
            approved(7),
            captured(500, "txn-2"),
        ),
        (capture("c-1", 500), issued("t-2"), REVIEW, proposed("NOT_EXECUTED"), approved(7), NOT_CAPTURED),
    ],
    ids=["captured", "not captured"],
)
def test_the_ways_of_a_hold_at_the_desk_pass(events: tuple[Event, ...]) -> None:
    assert check(one(authorized(), *events, is_held=True)) == []


def test_a_void_goes_on_when_the_hold_that_it_called_off_was_made_after_all() -> None:
    """And a charge that is held back stays so: it is not at rest."""
    events = (void("void-1", 1250), REVIEW, proposed(), approved(5), authorized(), issued("t-2"))
    assert check(one(*events, voided(1250, "txn-2"), is_held=True)) == []
    held_back = (HELD_BACK, void("void-1", 1250), authorized())
    assert found(one(*held_back, HELD_BACK, is_held=True)) == {"I19"}
    assert found(one(*held_back, LET_GO, is_held=True)) == set()


@pytest.mark.parametrize(
    "events",
    [
        (LET_GO,),
        (HELD_BACK, HELD_BACK),
        (HELD_BACK, TRIED),
        (charged(), TRIED),
        (charged(), HELD_BACK),
        (HELD_BACK, charged(), LET_GO),
        (proposed(),),
        (charged(), proposed()),
        (REVIEW, proposed(), proposed()),
        (REVIEW, rejected(4)),
        (REVIEW, proposed(), rejected(3)),
        (REVIEW, proposed(), rejected(4), rejected(4)),
        (REVIEW, proposed(), approved(4, "ann"), charged()),
        (REVIEW, proposed(), approved(4), charged("txn-2")),
        (REVIEW, proposed("NOT_EXECUTED"), approved(4), DECLINE),
        (REVIEW, proposed("NOT_EXECUTED"), approved(4), charged()),
        (REVIEW, proposed(), approved(4), NOT_CHARGED),
        (NOT_CHARGED,),
        (
            *(REVIEW, proposed("REFUNDED"), approved(4), charged()),
            *(refund("desk-4", 1249, actor="ben"), issued("txn-9"), refunded(1249, "txn-9")),
        ),
        (
            *(REVIEW, proposed("REFUNDED"), approved(4), charged()),
            *(refund("desk-5", 1250, actor="ben"), issued("txn-9"), refunded(1250, "txn-9")),
        ),
    ],
)
def test_a_step_of_the_desk_that_may_not_be_taken_is_found(events: tuple[Event, ...]) -> None:
    assert "I19" in found(one(*events))


@pytest.mark.parametrize(
    "events",
    [
        (REVIEW, charged()),
        (REVIEW, proposed(), charged()),
        (REVIEW, proposed(), rejected(4), charged()),
        (charged(), approved(3), DECLINE),
        (REVIEW, approved(3), charged()),
    ],
)
def test_an_outcome_that_changes_without_an_approval_is_found(events: tuple[Event, ...]) -> None:
    assert {"I8", "I19"} & found(one(*events))


def test_a_step_without_an_actor_is_found() -> None:
    assert found(one(Event(try_requested=TryRequested(reason="now")))) == {"I14"}


# ---------------------------------------------------------------- what keys are told
RESOLVED = (REVIEW, proposed(), approved(4), charged())


def told(status: int, position: int, transaction_id: str = "") -> Call:
    return call(status=status, position=position, transaction_id=transaction_id, durable_position=6)


def test_a_key_is_told_the_review_and_then_the_outcome_for_ever() -> None:
    calls = [told(IN_REVIEW, 3), told(IN_REVIEW, 3), told(CHARGED, 6, "txn-1"), told(CHARGED, 6, "txn-1")]
    assert check(one(*RESOLVED, calls=calls)) == []


@pytest.mark.parametrize(
    "answer",
    [told(IN_REVIEW, 4), told(CHARGED, 3, "txn-1"), told(IN_REVIEW, 6), told(1, 3), told(CHARGED, 5, "txn-1")],
    ids=["another place", "too early", "too late", "as pending", "at the approval"],
)
def test_an_untrue_answer_about_a_review_is_found(answer: Call) -> None:
    assert found(one(*RESOLVED, calls=[answer])) == {"I15"}


def test_two_outcomes_are_found_though_there_was_a_review() -> None:
    calls = [told(CHARGED, 6, "txn-1"), told(CHARGED, 6, "txn-2")]
    assert "I6" in found(one(*RESOLVED, calls=calls))


# ---------------------------------------------------------------- the bank
@pytest.mark.parametrize("is_at_rest", [False, True])
def test_a_resolution_that_the_bank_confirmed_must_be_true(is_at_rest: bool) -> None:
    """As any other outcome must."""
    assert check(one(*RESOLVED, movements=[MOVED], is_at_rest=is_at_rest)) == []
    assert "I2" in found(one(*RESOLVED, movements=[], is_at_rest=is_at_rest))
    not_moved = (REVIEW, proposed("NOT_EXECUTED"), approved(4), NOT_CHARGED)
    assert check(one(*not_moved, movements=[], is_at_rest=is_at_rest)) == []
    assert "I12" in found(one(*not_moved, movements=[MOVED], is_at_rest=is_at_rest))


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_one_that_the_bank_contradicts_breaks_only_what_its_event_names(is_at_rest: bool) -> None:
    """The charge's money is not compared any more. That it moved once still is."""
    believed = (REVIEW, proposed(), approved(4, contradicts_bank=True), charged())
    denied = (REVIEW, proposed("NOT_EXECUTED"), approved(4, contradicts_bank=True), NOT_CHARGED)
    assert check(one(*believed, movements=[], is_at_rest=is_at_rest)) == []
    assert check(one(*denied, movements=[MOVED], is_at_rest=is_at_rest)) == []
    twice = [MOVED, replace(MOVED, transaction_id="txn-2")]
    assert "I1" in found(one(*denied, movements=twice, is_at_rest=is_at_rest))


OTHER = "order-2"
OTHERS_ID = charge_id_of("default", OTHER)


def given_away(*, contradicts_bank: bool) -> Observed:
    """A charge gets another one's transaction by its resolution, and a refund in it is taken from that one's money."""
    of_one = [
        *(requested(KEY), issued("t-1"), REVIEW, proposed(transaction_id="txn-2")),
        *(approved(7, contradicts_bank=contradicts_bank), charged("txn-2")),
        *(refund("refund-1", 500), issued("t-3"), refunded(500, "txn-3")),
    ]
    events = [(OTHER, requested(OTHER)), (OTHER, issued("t-2")), (OTHER, charged("txn-2"))]
    movements = [
        Movement("txn-2", "t-2", OTHERS_ID, 1250, "EUR"),
        Movement("txn-3", "t-3", operation_id_of(ID, "refund", "refund-1"), 500, "EUR", "refund", on="txn-2"),
    ]
    return bare(*events, *((KEY, event) for event in of_one), movements=movements, is_at_rest=True)


def test_a_transaction_that_people_gave_to_another_charge_breaks_the_book_of_neither() -> None:
    """The event names it: at the bank the money is one charge's, and two of ours take from it."""
    assert check(given_away(contradicts_bank=True)) == []
    assert {"I2", "I17"} <= found(given_away(contradicts_bank=False))


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_a_refund_that_people_found_needs_no_movement_and_the_charge_does(is_at_rest: bool) -> None:
    """It was made by hand, under no reference of ours."""
    by_hand = (
        *(REVIEW, proposed("REFUNDED"), approved(4), charged()),
        *(refund("desk-4", 1250, actor="ben"), issued("txn-9"), refunded(1250, "txn-9")),
    )
    assert check(one(*by_hand, movements=[MOVED], is_at_rest=is_at_rest)) == []
    assert "I2" in found(one(*by_hand, movements=[], is_at_rest=is_at_rest))
    called_off = (
        *(void("void-1", 1250), REVIEW, proposed("REFUNDED"), approved(5), charged()),
        *(refund("desk-5", 1250, actor="ben"), issued("txn-9"), refunded(1250, "txn-9")),
    )
    assert check(one(*called_off, movements=[MOVED], is_at_rest=is_at_rest)) == []


def test_a_charge_that_is_being_resolved_is_not_at_rest() -> None:
    """Its outcome must follow at once."""
    assert "L1" in found(one(REVIEW, proposed(), approved(4), is_at_rest=True))
    assert "L1" in found(one(HELD_BACK, TOO_LATE, is_at_rest=True))
    assert charge_id_of("default", KEY) == ID
