"""One operation of each kind: its two steps at the bank, the meaning of each answer, late answers, giving up, calling off."""

from dataclasses import dataclass, replace

import pytest

from command_service.events import (
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    Event,
    OperationAbandoned,
    OperationDeclined,
    Refunded,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
    Voided,
)
from command_service.failures import ImpossibleEvent
from command_service.operation import ATTEMPTS_BEFORE_GIVING_UP, TOKEN_LIMIT
from command_service.values import DeclineReason, Kind, Operation, ReviewReason
from tests.core.stories import (
    AUTHORIZED,
    CHARGED,
    DAY_SECONDS,
    EVIDENCE,
    HELD,
    LAPSES_AT,
    REQUEST,
    Arrival,
    Story,
    call_off,
    called_off,
    called_off_,
    capture_requested,
    charged,
    contradicted,
    declined,
    eur,
    execute,
    executed,
    expired,
    following,
    given,
    hold_requested,
    in_progress,
    not_after_passed,
    not_answered,
    opening,
    refund_requested,
    refused,
    request_token,
    requested,
    token,
    token_expired,
    token_issued,
    void_requested,
)


@dataclass(frozen=True)
class Case:
    """An operation of a kind in the charge in which it is told, and the events by which it comes to rest."""

    operation: Operation
    request: tuple[Event, ...]
    moved: Event
    undone: type[ChargeDeclined | OperationDeclined]
    abandoned: type[ChargeAbandoned | OperationAbandoned]
    is_old: float = DAY_SECONDS
    """The age of its charge, in seconds, at which the operation itself is old enough to be given up."""

    def declined(self, reason: DeclineReason) -> Event:
        if reason is DeclineReason.AUTHORIZATION_EXPIRED and self.operation.kind in (Kind.CAPTURE, Kind.VOID):
            return AuthorizationExpired()
        return self.undone(reason)

    @property
    def awaits_token(self) -> Story:
        return given(*self.request)

    @property
    def awaits_execution(self) -> Story:
        return given(*self.request, token_issued)

    def at_rest(self, outcome: Event) -> Story:
        return given(*self.request, token_issued, outcome)


LATER = DAY_SECONDS + len(CHARGED)  # each event of a story is a second later than the one before
CASES = [
    Case(
        opening(),
        (requested,),
        Charged(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx9"),
        ChargeDeclined,
        ChargeAbandoned,
    ),
    Case(
        opening(HELD),
        (hold_requested,),
        Authorized(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx9", LAPSES_AT),
        ChargeDeclined,
        ChargeAbandoned,
    ),
    Case(
        following(Kind.CAPTURE, "capture-1", 500, is_final=True),
        (*AUTHORIZED, capture_requested(500, is_final=True)),
        Captured(eur(500), "tx9"),
        OperationDeclined,
        OperationAbandoned,
        LATER,
    ),
    Case(
        following(Kind.VOID, "void-1", 1250, takes_all=True),
        (*AUTHORIZED, void_requested(1250)),
        Voided(eur(1250), "tx9"),
        OperationDeclined,
        OperationAbandoned,
        LATER,
    ),
    Case(
        following(Kind.REFUND, "refund-1", 500, request=REQUEST),
        (*CHARGED, refund_requested(500)),
        Refunded(eur(500), "tx9"),
        OperationDeclined,
        OperationAbandoned,
        LATER,
    ),
]
of_every_kind = pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation.kind.value)
that_opens = pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.operation.kind.value)
that_follows = pytest.mark.parametrize("case", CASES[2:], ids=lambda case: case.operation.kind.value)
for_every_decline_reason = pytest.mark.parametrize("reason", DeclineReason)
for_every_review_reason = pytest.mark.parametrize("reason", ReviewReason)


def test_every_kind_has_its_case() -> None:
    """The tests below leave none out."""
    assert [case.operation.kind for case in CASES] == list(Kind)


# ================================================================ the next step
@of_every_kind
def test_the_token_step_follows_a_request(case: Case) -> None:
    """With every field that the bank is told: kind, reference, amount, the transaction that it is on, whether it is final."""
    case.awaits_token.next_step_is(request_token(0, case.operation))


@of_every_kind
def test_the_execute_step_follows_a_token(case: Case) -> None:
    """With the token that the journal holds."""
    case.awaits_execution.next_step_is(execute("t1", case.operation))


@of_every_kind
def test_the_token_step_follows_an_expired_token_and_counts_it(case: Case) -> None:
    """By the count a late answer is recognised."""
    again = given(*case.request, token_issued, token_expired)
    again.next_step_is(request_token(1, case.operation))
    given(*case.request, token_issued, token_expired, TokenIssued("t2")).next_step_is(execute("t2", case.operation))


@of_every_kind
def test_nothing_follows_an_outcome(case: Case) -> None:
    """The operation is at rest, whatever the outcome."""
    for outcome in (case.moved, case.undone(DeclineReason.OTHER), ReviewRequired(ReviewReason.CONTRADICTION)):
        case.at_rest(outcome).next_step_is(None)
    given(*case.request, case.abandoned(5)).next_step_is(None)


# ================================================================ the bank answers the token step
@of_every_kind
def test_a_token_is_stored_before_it_is_used(case: Case) -> None:
    """The execute step is next only once the journal holds it."""
    case.awaits_token.when(token("t1")).then(TokenIssued("t1")).next_step_is(execute("t1", case.operation))


@of_every_kind
@for_every_decline_reason
def test_a_decline_is_an_outcome_in_either_step(case: Case, reason: DeclineReason) -> None:
    """The reason is kept. That the hold lapsed is more than the reason of a decline: it closes the hold."""
    for story in (case.awaits_token, case.awaits_execution):
        story.when(declined(reason)).then(case.declined(reason)).next_step_is(None)


@of_every_kind
def test_a_definite_refusal_of_the_token_step_is_a_decline(case: Case) -> None:
    """No token was given, so nothing can be executed."""
    case.awaits_token.when(refused()).then(case.undone(DeclineReason.BANK_REFUSED)).next_step_is(None)


@of_every_kind
@for_every_review_reason
def test_a_contradiction_goes_into_review_with_its_evidence_in_either_step(case: Case, reason: ReviewReason) -> None:
    """The outcome is not guessed, and no new token is requested."""
    for story in (case.awaits_token, case.awaits_execution):
        story.when(contradicted(reason)).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


@of_every_kind
@pytest.mark.parametrize("arrival", [executed(), expired(), called_off()], ids=["executed", "expired", "called off"])
def test_an_answer_of_the_execute_step_to_the_token_step_goes_into_review(case: Case, arrival: Arrival) -> None:
    """The bank's meaning is not guessed."""
    case.awaits_token.when(arrival).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


# ================================================================ the bank answers the execute step
@of_every_kind
def test_an_executed_transaction_has_everything_that_its_readers_need(case: Case) -> None:
    """User, card and amount come from the request, the transaction from the bank, and for a hold the end of its time."""
    case.awaits_execution.when(executed("tx9", expires_at=LAPSES_AT)).then(case.moved).next_step_is(None)


def test_a_bank_need_not_tell_when_a_hold_lapses() -> None:
    given(hold_requested, token_issued).when(executed("tx9")).then(
        Authorized(REQUEST.user_id, REQUEST.card, REQUEST.amount, "tx9", expires_at=0)
    )


@of_every_kind
def test_an_expired_token_is_followed_by_another_token_step(case: Case) -> None:
    """Only a definite 'expired, not executed' leads to a new token."""
    case.awaits_execution.when(expired()).then(TokenExpired("t1")).next_step_is(request_token(1, case.operation))


@of_every_kind
def test_tokens_that_keep_expiring_end_in_review(case: Case) -> None:
    """The last token is recorded as expired too."""
    history = list(case.request)
    for number in range(1, TOKEN_LIMIT):
        issued = TokenIssued(f"t{number}")
        given(*history, issued).when(expired()).then(TokenExpired(f"t{number}"))
        history += [issued, TokenExpired(f"t{number}")]
    given(*history, TokenIssued("last")).when(expired()).then(
        TokenExpired("last"), ReviewRequired(ReviewReason.TOKENS_KEEP_EXPIRING)
    ).next_step_is(None)


@of_every_kind
def test_a_definite_refusal_of_the_execute_step_goes_into_review_and_never_to_a_new_token(case: Case) -> None:
    """Money may have moved, and the bank does not say."""
    case.awaits_execution.when(refused()).then(ReviewRequired(ReviewReason.EXECUTE_REFUSED, EVIDENCE)).next_step_is(
        None
    )


@of_every_kind
def test_a_token_in_answer_to_the_execute_step_goes_into_review(case: Case) -> None:
    """It answers a question that was not asked."""
    case.awaits_execution.when(token("t2")).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


@that_opens
def test_a_charge_that_somebody_else_called_off_at_the_bank_is_called_off(case: Case) -> None:
    """By hand, or by a step that a restored journal has lost: the token is closed for ever all the same."""
    case.awaits_execution.when(called_off()).then(called_off_).next_step_is(None)


@that_follows
def test_an_operation_that_somebody_else_called_off_at_the_bank_is_declined(case: Case) -> None:
    """It was not done, and never will be."""
    case.awaits_execution.when(called_off()).then(OperationDeclined(DeclineReason.OTHER)).next_step_is(None)


# ================================================================ no answer, late answers, giving up
@of_every_kind
@pytest.mark.parametrize(
    "arrival",
    [in_progress(), not_answered(), not_answered(our_setup=True)],
    ids=["in progress", "no answer", "our set-up"],
)
def test_without_an_answer_the_same_step_is_next_again(case: Case, arrival: Arrival) -> None:
    """The operation does not move, in either step."""
    case.awaits_token.when(arrival).then_nothing().next_step_is(request_token(0, case.operation))
    case.awaits_execution.when(arrival).then_nothing().next_step_is(execute("t1", case.operation))


@of_every_kind
def test_a_late_token_changes_nothing(case: Case) -> None:
    """The bank repeats its answer, or two loops asked concurrently: the first stored token stays."""
    late = token("t2", to=request_token(0, case.operation))
    case.awaits_execution.when(late).then_nothing().next_step_is(execute("t1", case.operation))


@of_every_kind
def test_a_late_answer_about_an_expired_token_changes_nothing(case: Case) -> None:
    """It neither ends the operation nor expires the next token."""
    again = given(*case.request, token_issued, token_expired)
    again.when(executed(to=execute("t1", case.operation))).then_nothing()
    again.when(token("t1", to=request_token(0, case.operation))).then_nothing()
    second = given(*case.request, token_issued, token_expired, TokenIssued("t2"))
    second.when(expired(to=execute("t1", case.operation))).then_nothing().next_step_is(execute("t2", case.operation))


@of_every_kind
def test_a_late_answer_never_changes_an_outcome(case: Case) -> None:
    """Not even when it contradicts the outcome."""
    late = declined(DeclineReason.OTHER, to=execute("t1", case.operation))
    case.at_rest(case.moved).when(late).then_nothing().next_step_is(None)
    late = token(to=request_token(0, case.operation))
    given(*case.request, case.abandoned(5)).when(late).then_nothing().next_step_is(None)


def test_an_answer_to_an_operation_is_no_answer_to_another_of_the_same_kind_and_amount() -> None:
    """The reference tells them apart."""
    first = following(Kind.REFUND, "refund-1", 500, request=REQUEST)
    second = given(*CHARGED, refund_requested(500, "refund-2"), token_issued)
    second.when(executed("tx9", to=execute("t1", first))).then_nothing()


def test_an_answer_about_a_charge_that_was_never_requested_changes_nothing() -> None:
    """It does not begin one."""
    given().when(token(to=request_token())).then_nothing()


@of_every_kind
def test_the_token_step_is_given_up_after_enough_time_and_attempts(case: Case) -> None:
    """Nothing can have been done. The age is that of the operation, not of its charge."""
    attempts = ATTEMPTS_BEFORE_GIVING_UP
    case.awaits_token.when(not_answered(attempts, age_seconds=case.is_old)).then(case.abandoned(attempts)).next_step_is(
        None
    )
    case.awaits_token.when(not_answered(1_000_000, age_seconds=case.is_old - 0.5)).then_nothing()


@of_every_kind
def test_the_token_step_is_not_given_up_before_enough_attempts_of_one_run(case: Case) -> None:
    """A server that returns after a day must not abandon an operation that it never tried."""
    few = ATTEMPTS_BEFORE_GIVING_UP - 1
    case.awaits_token.when(not_answered(few, age_seconds=2 * DAY_SECONDS)).then_nothing()


@of_every_kind
@pytest.mark.parametrize("age_seconds", [DAY_SECONDS - 1, 0.0, -DAY_SECONDS])
def test_the_token_step_of_a_young_operation_is_not_given_up(case: Case, age_seconds: float) -> None:
    """After any number of unanswered calls. A clock that went back makes no operation old."""
    case.awaits_token.when(not_answered(1_000_000, age_seconds=age_seconds)).then_nothing()


@of_every_kind
def test_nothing_is_given_up_in_a_restored_journal(case: Case) -> None:
    """The bank may know of steps that the journal has lost."""
    case.awaits_token.when(not_answered(9, age_seconds=2 * DAY_SECONDS, is_restored=True)).then_nothing()


@of_every_kind
def test_nothing_is_given_up_because_of_our_own_set_up(case: Case) -> None:
    """The bank would serve us as soon as people mend the credentials."""
    case.awaits_token.when(not_answered(9, age_seconds=2 * DAY_SECONDS, our_setup=True)).then_nothing()


@of_every_kind
def test_the_token_step_may_be_given_up_after_a_token_has_expired(case: Case) -> None:
    """The bank has closed that token, unexecuted."""
    again = given(*case.request, token_issued, token_expired)
    again.when(not_answered(9, age_seconds=2 * DAY_SECONDS)).then(case.abandoned(9))


@of_every_kind
def test_the_execute_step_is_never_given_up(case: Case) -> None:
    """Money may have moved, after any number of unanswered calls."""
    case.awaits_execution.when(not_answered(1_000_000, age_seconds=9 * DAY_SECONDS)).then_nothing().next_step_is(
        execute("t1", case.operation)
    )


@of_every_kind
def test_giving_up_a_step_that_is_behind_changes_nothing(case: Case) -> None:
    """An answer came first."""
    late = not_answered(9, age_seconds=2 * DAY_SECONDS, to=request_token(0, case.operation))
    case.awaits_execution.when(late).then_nothing()
    late = not_answered(9, age_seconds=2 * DAY_SECONDS, to=execute("t1", case.operation))
    case.at_rest(case.moved).when(late).then_nothing()


# ================================================================ calling off
def _called_off_with_token(case: Case) -> Story:
    return given(*case.request, token_issued, not_after_passed)


def _called_off_without_token(case: Case) -> Story:
    return given(*case.request, not_after_passed)


@that_opens
def test_a_charge_that_is_called_off_is_not_executed_any_more(case: Case) -> None:
    """The bank is asked to close the token that the journal holds, or whatever it has under our reference."""
    held = case.operation.request
    _called_off_with_token(case).next_step_is(call_off("t1", held))
    _called_off_without_token(case).next_step_is(call_off(None, held))
    given(*case.request, token_issued, token_expired, not_after_passed).next_step_is(call_off(None, held))


@that_opens
@pytest.mark.parametrize("arrival", [called_off(), expired()], ids=["called off", "expired"])
def test_a_token_that_is_closed_unexecuted_ends_the_calling_off(case: Case, arrival: Arrival) -> None:
    """Either way the bank has closed it for ever."""
    _called_off_with_token(case).when(arrival).then(called_off_).next_step_is(None)
    _called_off_without_token(case).when(arrival).then(called_off_).next_step_is(None)


@that_opens
def test_a_charge_that_was_executed_first_is_executed_and_never_told_as_called_off(case: Case) -> None:
    """The calling off came too late. Without a token too: the journal may have come from a backup."""
    arrival = executed("tx9", expires_at=LAPSES_AT)
    _called_off_with_token(case).when(arrival).then(case.moved).next_step_is(None)
    _called_off_without_token(case).when(arrival).then(case.moved).next_step_is(None)


@that_opens
@for_every_decline_reason
def test_a_charge_that_was_declined_first_is_declined(case: Case, reason: DeclineReason) -> None:
    """No money moved, and none will."""
    _called_off_with_token(case).when(declined(reason)).then(ChargeDeclined(reason)).next_step_is(None)


@that_opens
def test_a_calling_off_that_the_bank_refuses_goes_into_review(case: Case) -> None:
    """A look-up has not settled the outcome, and nobody may guess it."""
    _called_off_with_token(case).when(refused()).then(
        ReviewRequired(ReviewReason.CALL_OFF_REFUSED, EVIDENCE)
    ).next_step_is(None)


@that_opens
@for_every_review_reason
def test_a_contradiction_in_the_calling_off_goes_into_review(case: Case, reason: ReviewReason) -> None:
    """With its evidence."""
    _called_off_with_token(case).when(contradicted(reason)).then(ReviewRequired(reason, EVIDENCE)).next_step_is(None)


@that_opens
def test_a_token_in_answer_to_the_calling_off_goes_into_review(case: Case) -> None:
    """It answers a question that was not asked."""
    _called_off_with_token(case).when(token("t2")).then(ReviewRequired(ReviewReason.CONTRADICTION)).next_step_is(None)


@that_opens
@pytest.mark.parametrize("arrival", [in_progress(), not_answered()], ids=["in progress", "no answer"])
def test_without_an_answer_the_calling_off_is_next_again(case: Case, arrival: Arrival) -> None:
    """It does not go back to executing."""
    _called_off_with_token(case).when(arrival).then_nothing().next_step_is(call_off("t1", case.operation.request))
    _called_off_without_token(case).when(arrival).then_nothing().next_step_is(call_off(None, case.operation.request))


@that_opens
def test_a_calling_off_is_given_up_only_without_a_token(case: Case) -> None:
    """With one, money may have moved."""
    arrival = not_answered(9, age_seconds=9 * DAY_SECONDS)
    _called_off_with_token(case).when(arrival).then_nothing()
    _called_off_without_token(case).when(arrival).then(ChargeAbandoned(9)).next_step_is(None)


@that_opens
def test_late_answers_to_the_steps_before_the_calling_off_change_nothing(case: Case) -> None:
    """A token is not executed any more. That the money has moved already, the bank says again when it is asked to call off."""
    late = token("t1", to=request_token(0, case.operation))
    _called_off_without_token(case).when(late).then_nothing().next_step_is(call_off(None, case.operation.request))
    for late in (executed(to=execute("t1", case.operation)), expired(to=execute("t1", case.operation))):
        _called_off_with_token(case).when(late).then_nothing().next_step_is(call_off("t1", case.operation.request))


@that_opens
def test_a_late_answer_to_the_calling_off_never_changes_an_outcome(case: Case) -> None:
    """In either direction."""
    late = executed("tx9", to=call_off("t1", case.operation.request))
    given(*case.request, token_issued, not_after_passed, called_off_).when(late).then_nothing()
    late = called_off(to=call_off("t1", case.operation.request))
    given(*case.request, token_issued, not_after_passed, case.moved).when(late).then_nothing()


# ================================================================ events that cannot follow
@that_follows
@pytest.mark.parametrize("has_token", [False, True])
def test_an_operation_that_follows_cannot_be_called_off(case: Case, has_token: bool) -> None:
    """Only the operation that opens a charge can."""
    for event in (not_after_passed, called_off_):
        with pytest.raises(ImpossibleEvent):
            given(*case.request, *([token_issued] if has_token else []), event)


@of_every_kind
def test_an_operation_ends_with_an_event_of_its_own_kind(case: Case) -> None:
    """An old journal that says otherwise is not read any further."""
    own = {type(case.moved)}
    for event in (other.moved for other in CASES if type(other.moved) not in own):
        with pytest.raises(ImpossibleEvent):
            given(*case.request, token_issued, event)
    opens = case.operation.opens
    for event in (
        OperationDeclined(DeclineReason.OTHER) if opens else ChargeDeclined(DeclineReason.OTHER),
        AuthorizationExpired() if case.operation.kind not in (Kind.CAPTURE, Kind.VOID) else ChargeCalledOff(),
    ):
        with pytest.raises(ImpossibleEvent):
            given(*case.request, token_issued, event)
    with pytest.raises(ImpossibleEvent):
        given(*case.request, OperationAbandoned(5) if opens else ChargeAbandoned(5))


@of_every_kind
def test_nothing_is_executed_or_called_off_before_its_step(case: Case) -> None:
    """Money moves by a token of the journal only."""
    for event in (case.moved, ChargeCalledOff(), token_expired):
        with pytest.raises(ImpossibleEvent):
            given(*case.request, event)


@of_every_kind
def test_nothing_is_abandoned_while_a_token_is_open(case: Case) -> None:
    with pytest.raises(ImpossibleEvent):
        given(*case.request, token_issued, case.abandoned(5))


@of_every_kind
def test_only_the_token_of_the_journal_expires(case: Case) -> None:
    with pytest.raises(ImpossibleEvent):
        given(*case.request, token_issued, TokenExpired("t2"))


def test_a_calling_off_with_a_token_is_not_abandoned() -> None:
    with pytest.raises(ImpossibleEvent):
        given(requested, token_issued, not_after_passed, ChargeAbandoned(5))


def test_a_charge_is_called_off_once() -> None:
    for events in ((not_after_passed,), (token_issued, not_after_passed), (token_issued, charged)):
        with pytest.raises(ImpossibleEvent):
            given(requested, *events, not_after_passed)


def test_the_answer_to_a_request_with_other_fields_is_late() -> None:
    """An effect is compared with every field, so that nothing is decided by the answer to another question."""
    other = replace(opening(), amount=eur(1251))
    given(requested).when(token("t1", to=request_token(0, other))).then_nothing()
