"""The bank wants a step of the customer before money moves: it is awaited, told, and ended by the bank, the clock or a void."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from charging.v1.common_pb2 import ChargeStatus, OperationStatus
from command_service.charge import following, is_over_without_money
from command_service.events import ActionRequired, ChargeDeclined, ChargeRequested, Event, ReviewRequired, TokenExpired
from command_service.failures import ImpossibleEvent
from command_service.operation import ADDRESS_LIMIT, AwaitingCustomer
from command_service.statuses import operation_status_told, status_of, status_told
from command_service.values import DeclineReason, Kind, Request, ReviewReason
from tests.core.stories import (
    AUTHORIZED,
    CHARGED,
    DAY_SECONDS,
    EVIDENCE,
    HELD,
    LAPSES_AT,
    OFF_SESSION,
    REQUEST,
    REQUESTED_AT,
    STEP_ENDS_AT,
    STEP_URL,
    Arrival,
    Story,
    action_required,
    asked,
    authorized,
    call_off,
    called_off,
    called_off_,
    capture_requested,
    charged,
    clock_shows,
    contradicted,
    declined,
    execute,
    executed,
    expired,
    given,
    in_progress,
    needs_action,
    not_after_passed,
    not_answered,
    opening,
    refund_requested,
    refused,
    request_token,
    to_void,
    token,
    token_issued,
    void_requested,
)

NOT_AUTHENTICATED = ChargeDeclined(DeclineReason.AUTHENTICATION_REQUIRED)
of_either_kind = pytest.mark.parametrize("request_", [REQUEST, HELD], ids=["charge", "authorize"])
in_either_session = pytest.mark.parametrize("request_", [REQUEST, OFF_SESSION], ids=["on session", "off session"])


def awaited(request: Request = REQUEST, *events: Event) -> Story:
    """A charge whose bank waits for the customer, after more events."""
    return given(ChargeRequested(request), token_issued, action_required, *events)


# ---------------------------------------------------------------- it is awaited
@of_either_kind
def test_the_address_is_stored_and_the_execute_step_repeated(request_: Request) -> None:
    """By the same token: it asks how things stand."""
    story = given(ChargeRequested(request_), token_issued).when(needs_action()).then(action_required)
    story.next_step_is(execute("t1", opening(request_)))
    assert isinstance(story.charge.newest, AwaitingCustomer)


def test_the_customer_is_awaited_as_long_as_the_bank_says_so() -> None:
    """However often, and while it gives no answer: money may move at any time."""
    for arrival in (needs_action(), in_progress(), not_answered(1_000_000, age_seconds=9 * DAY_SECONDS)):
        awaited().when(arrival).then_nothing().next_step_is(execute())


def test_another_address_is_stored_in_its_turn_but_not_for_ever() -> None:
    """A bank that names another one each time would fill the stream."""
    story = awaited()
    for number in range(2, ADDRESS_LIMIT + 1):
        url = f"{STEP_URL}/{number}"
        story = story.when(needs_action(url)).then(ActionRequired(url, STEP_ENDS_AT))
    story.when(needs_action(f"{STEP_URL}/another")).then_nothing().next_step_is(execute())
    awaited().when(needs_action(expires_at=STEP_ENDS_AT + 1)).then(ActionRequired(STEP_URL, STEP_ENDS_AT + 1))


@of_either_kind
def test_the_money_moves_after_the_step(request_: Request) -> None:
    outcome = authorized if request_.is_held else charged
    awaited(request_).when(executed(expires_at=LAPSES_AT)).then(outcome).next_step_is(None)


@pytest.mark.parametrize("reason", DeclineReason)
def test_a_decline_after_the_step_keeps_its_reason(reason: DeclineReason) -> None:
    awaited().when(declined(reason)).then(ChargeDeclined(reason)).next_step_is(None)


@of_either_kind
def test_a_bank_that_waits_no_longer_ends_the_charge_and_no_other_token_is_requested(request_: Request) -> None:
    """A second token would ask a customer who has left once more."""
    story = awaited(request_).when(expired()).then(NOT_AUTHENTICATED).next_step_is(None)
    assert is_over_without_money(story.state)


def test_a_step_that_the_bank_called_off_ends_the_charge() -> None:
    """By hand at the bank: nobody declined it."""
    awaited().when(called_off()).then(called_off_).next_step_is(None)


@pytest.mark.parametrize(
    ("arrival", "reason"),
    [
        (refused(), ReviewReason.EXECUTE_REFUSED),
        (contradicted(ReviewReason.FIELDS_DIFFER), ReviewReason.FIELDS_DIFFER),
    ],
)
def test_what_nobody_may_guess_goes_into_review(arrival: Arrival, reason: ReviewReason) -> None:
    awaited().when(arrival).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


def test_a_token_in_answer_to_the_repeated_step_goes_into_review() -> None:
    awaited().when(token("t2")).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


# ---------------------------------------------------------------- nobody is there
def test_a_charge_off_session_is_called_off_at_the_bank() -> None:
    """The address is stored all the same: the journal says why it ended."""
    story = given(ChargeRequested(OFF_SESSION), token_issued).when(needs_action()).then(action_required)
    story.next_step_is(call_off("t1", OFF_SESSION))


@pytest.mark.parametrize("arrival", [called_off(), expired()], ids=["called off", "expired"])
def test_a_charge_off_session_is_declined_once_the_bank_has_closed_it(arrival: Arrival) -> None:
    awaited(OFF_SESSION).when(arrival).then(NOT_AUTHENTICATED).next_step_is(None)


def test_money_that_has_moved_off_session_is_told() -> None:
    """Somebody took the step before the bank was asked to close it."""
    awaited(OFF_SESSION).when(executed()).then(charged).next_step_is(None)


def test_a_decline_off_session_keeps_its_reason() -> None:
    reason = DeclineReason.INSUFFICIENT_FUNDS
    awaited(OFF_SESSION).when(declined(reason)).then(ChargeDeclined(reason)).next_step_is(None)


@pytest.mark.parametrize("arrival", [in_progress(), not_answered(9, age_seconds=9 * DAY_SECONDS)])
def test_without_an_answer_off_session_the_calling_off_is_repeated(arrival: Arrival) -> None:
    """It is never given up: the bank has a token that can be executed."""
    awaited(OFF_SESSION).when(arrival).then_nothing().next_step_is(call_off("t1", OFF_SESSION))


@pytest.mark.parametrize(
    ("arrival", "event"),
    [
        (refused(), ReviewRequired(ReviewReason.CALL_OFF_REFUSED, EVIDENCE)),
        (contradicted(), ReviewRequired(ReviewReason.CONTRADICTION, EVIDENCE)),
        (needs_action(), ReviewRequired(ReviewReason.CONTRADICTION)),
        (token("t2"), ReviewRequired(ReviewReason.CONTRADICTION)),
    ],
    ids=["refused", "contradicted", "the customer again", "a token"],
)
def test_what_nobody_may_guess_off_session_goes_into_review(arrival: Arrival, event: Event) -> None:
    awaited(OFF_SESSION).when(arrival).then(event).next_step_is(None)


# ---------------------------------------------------------------- others end it
@in_either_session
def test_a_void_calls_it_off_and_ends_with_it(request_: Request) -> None:
    """Then its client wanted that end, so it is no decline."""
    story = awaited(request_).when(to_void()).then(void_requested()).next_step_is(call_off("t1", request_))
    story = story.when(called_off()).then(called_off_).next_step_is(None)
    void = following(story.charge, "void-1")
    assert void is not None
    assert operation_status_told(void) == OperationStatus.OPERATION_STATUS_EXECUTED
    assert status_of(story.charge) == ChargeStatus.CHARGE_STATUS_VOIDED


@pytest.mark.parametrize("how", [not_after_passed, void_requested()], ids=["by time", "by a void"])
def test_a_customer_who_was_faster_than_the_calling_off_is_charged(how: Event) -> None:
    awaited(REQUEST, how).when(executed()).then(charged).next_step_is(None)


def test_its_time_ends_it() -> None:
    late = replace(REQUEST, not_after=STEP_ENDS_AT)
    awaited(late).when(clock_shows(STEP_ENDS_AT)).then_nothing()
    story = awaited(late).when(clock_shows(STEP_ENDS_AT + 1)).then(not_after_passed)
    story.next_step_is(call_off("t1", late)).when(called_off()).then(called_off_).next_step_is(None)


# ---------------------------------------------------------------- answers that come late
@pytest.mark.parametrize(
    ("events", "arrival"),
    [
        ((), token("t2", to=request_token())),
        ((not_after_passed,), needs_action(f"{STEP_URL}/2", to=execute())),
        ((not_after_passed,), executed(to=execute())),
        ((void_requested(),), expired(to=execute())),
        ((charged,), needs_action(to=execute())),
        ((charged,), expired(to=execute())),
        ((NOT_AUTHENTICATED,), executed(to=execute())),
    ],
)
def test_a_late_answer_changes_nothing(events: Sequence[Event], arrival: Arrival) -> None:
    awaited(REQUEST, *events).when(arrival).then_nothing()


def test_an_answer_to_the_execute_step_off_session_is_late() -> None:
    """Two servers asked at the same time; the bank says it again when it is asked to call off."""
    awaited(OFF_SESSION).when(executed(to=execute("t1", opening(OFF_SESSION)))).then_nothing()


def test_the_token_that_follows_an_expired_one_may_want_the_customer_too() -> None:
    story = (
        given(ChargeRequested(REQUEST), token_issued, TokenExpired("t1"))
        .when(token("t2"))
        .then(replace(token_issued, token="t2"))
    )
    story.when(needs_action()).then(action_required).next_step_is(execute("t2"))


# ---------------------------------------------------------------- of the opening operation only
@pytest.mark.parametrize(
    "events",
    [
        (*CHARGED, refund_requested(1), token_issued),
        (*AUTHORIZED, capture_requested(1), token_issued),
        (*AUTHORIZED, void_requested(), token_issued),
    ],
    ids=["refund", "capture", "void"],
)
def test_no_operation_that_follows_waits_for_the_customer(events: Sequence[Event]) -> None:
    """A bank that says so is not understood, and such a journal is not read further."""
    given(*events).when(needs_action()).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)
    with pytest.raises(ImpossibleEvent):
        given(*events, action_required)


def test_the_token_step_does_not_wait_for_the_customer() -> None:
    """Without a token nothing could be repeated."""
    given(ChargeRequested(REQUEST)).when(needs_action()).then(ReviewRequired(ReviewReason.CONTRADICTION))
    with pytest.raises(ImpossibleEvent):
        given(ChargeRequested(REQUEST), action_required)


def test_no_calling_off_waits_for_the_customer() -> None:
    awaited(REQUEST, not_after_passed).when(needs_action()).then(ReviewRequired(ReviewReason.CONTRADICTION))
    with pytest.raises(ImpossibleEvent):
        awaited(REQUEST, not_after_passed, action_required)


# ---------------------------------------------------------------- what is told
def test_its_key_is_told_that_the_customer_is_awaited() -> None:
    """As long as that is so; it is no outcome, and the first request stays."""
    told = [status_told(awaited().charge.opening), status_of(awaited().charge)]
    assert told == [ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION] * 2
    for request_ in (REQUEST, replace(REQUEST, return_url="https://shop.example/elsewhere", is_off_session=True)):
        awaited().when(asked(request_)).then_nothing()
    for over in (not_after_passed, void_requested()):
        assert status_of(awaited(REQUEST, over).charge) == ChargeStatus.CHARGE_STATUS_PENDING


def test_a_charge_off_session_is_pending_until_it_is_declined() -> None:
    """Nobody is to be sent anywhere."""
    assert status_of(awaited(OFF_SESSION).charge) == ChargeStatus.CHARGE_STATUS_PENDING
    ended = awaited(OFF_SESSION, NOT_AUTHENTICATED)
    assert status_of(ended.charge) == ChargeStatus.CHARGE_STATUS_DECLINED
    assert is_over_without_money(ended.state)


def test_a_charge_whose_customer_is_awaited_is_as_old_as_its_request() -> None:
    """However often the bank names another address."""
    story = awaited(REQUEST, ActionRequired(f"{STEP_URL}/2"))
    assert story.charge.newest.requested_at == REQUESTED_AT
    assert story.charge.newest.operation.kind is Kind.CHARGE
