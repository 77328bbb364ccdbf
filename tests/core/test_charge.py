"""A charge as a whole: requests and their retries, what may follow what, calling off, and the outcome that a key is told."""

from dataclasses import replace

import pytest

from command_service.charge import Command, is_at_rest, is_over_without_money, is_overdue, outcome_of
from command_service.events import (
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeDeclined,
    ChargeRequested,
    Event,
    OperationDeclined,
    OperationRequested,
    Refunded,
    ReviewRequired,
    TokenIssued,
    Voided,
)
from command_service.failures import (
    ChargeInReview,
    ChargeUnknown,
    DoesNotFit,
    ImpossibleEvent,
    InvalidRequest,
    KeyReused,
    MoreThanIsLeft,
    OperationUnderWay,
)
from command_service.operation import AtRest
from command_service.values import Card, DeclineReason, Kind, Money, Request, ReviewReason
from tests.core.stories import (
    AUTHORIZED,
    CHARGED,
    DAY_SECONDS,
    EVIDENCE,
    HELD,
    LAPSES_AT,
    REQUEST,
    REQUESTED_AT,
    Arrival,
    Asking,
    asked,
    authorized,
    call_off,
    called_off,
    called_off_,
    capture,
    capture_requested,
    charged,
    clock_shows,
    contradicted,
    declined,
    eur,
    execute,
    executed,
    following,
    given,
    hold_requested,
    not_after_passed,
    not_answered,
    of_tenant,
    opening,
    refund,
    refund_requested,
    refused,
    request_token,
    requested,
    to_capture,
    to_refund,
    to_void,
    token,
    token_expired,
    token_issued,
    void,
    void_requested,
)

FAULT = ("amount", "must be at least 1")
IN_REVIEW = ReviewRequired(ReviewReason.CONTRADICTION)
LAPSED = AuthorizationExpired()
# Where a charge may stand when a client's message comes.
EVERYWHERE = {
    "awaiting token": (requested,),
    "awaiting execution": (requested, token_issued),
    "calling off": (requested, token_issued, not_after_passed),
    "a void waits": (requested, token_issued, void_requested()),
    "charged": CHARGED,
    "declined": (requested, ChargeDeclined(DeclineReason.OTHER)),
    "in review": (requested, token_issued, IN_REVIEW),
    "refund under way": (*CHARGED, refund_requested(500), token_issued),
    "refunded": (*CHARGED, *refund(500), *refund(750, "refund-2")),
}
everywhere = pytest.mark.parametrize("history", EVERYWHERE.values(), ids=EVERYWHERE)


# ================================================================ a client asks for a charge
def test_a_first_request_is_accepted() -> None:
    """The key is new."""
    given().when(asked()).then(requested).next_step_is(request_token())
    given().when(asked(HELD)).then(hold_requested).next_step_is(request_token(0, opening(HELD)))


def test_a_first_request_that_breaks_todays_rules_is_refused_with_its_faults() -> None:
    """Every fault is reported, not only the first."""
    given().when(asked(REQUEST, FAULT, ("user_id", "is missing"))).then_refused(
        InvalidRequest, (FAULT, ("user_id", "is missing"))
    )


def test_there_is_no_next_step_without_a_request() -> None:
    """No events, no effect."""
    given().next_step_is(None)


class TestTheRetryOfAnAcceptedRequest:
    """At any state that the charge has reached meanwhile."""

    @everywhere
    def test_finds_its_charge(self, history: tuple[Event, ...]) -> None:
        """Nothing is appended: the caller joins it, or is given its outcome."""
        given(*history).when(asked()).then_nothing()

    @everywhere
    def test_finds_its_charge_though_the_rules_have_become_stricter(self, history: tuple[Event, ...]) -> None:
        """Faults count for a new charge only."""
        given(*history).when(asked(REQUEST, FAULT)).then_nothing()

    @everywhere
    @pytest.mark.parametrize(
        "other",
        [
            replace(REQUEST, user_id="user-8"),
            replace(REQUEST, card=replace(REQUEST.card, token="tok_mastercard")),
            replace(REQUEST, amount=Money(1251, "EUR")),
            replace(REQUEST, amount=Money(1250, "USD")),
            HELD,
        ],
        ids=["user", "card token", "amount", "currency", "capture"],
    )
    def test_is_refused_if_it_asks_for_another(self, history: tuple[Event, ...], other: Request) -> None:
        """User, card, amount, currency and capture make it another request; no part of the first one is revealed."""
        given(*history).when(asked(other)).then_refused(KeyReused, given(*history).state, None)
        given(*history).when(asked(other, FAULT)).then_refused(KeyReused, given(*history).state, None)

    @everywhere
    @pytest.mark.parametrize(
        "other",
        [
            replace(REQUEST, card=Card(REQUEST.card.token, "VISA", "0000")),
            replace(REQUEST, description="another book"),
            replace(REQUEST, metadata=()),
            replace(REQUEST, actor="another shop"),
            replace(REQUEST, not_after=REQUESTED_AT),
        ],
        ids=["brand and last four", "description", "metadata", "actor", "not after"],
    )
    def test_may_differ_in_every_other_field_and_the_first_wins(
        self, history: tuple[Event, ...], other: Request
    ) -> None:
        """They are not compared, and the stored request stays as it is."""
        assert given(*history).when(asked(other)).then_nothing() == given(*history)

    @everywhere
    def test_may_say_that_duplicates_are_allowed_or_not(self, history: tuple[Event, ...]) -> None:
        """It finds its own charge, which is no duplicate of itself."""
        given(*history).when(lambda _: Command(REQUEST, allow_duplicate=True)).then_nothing()


@pytest.mark.parametrize(
    ("first", "retried", "is_same"),
    [
        (Card("t1", fingerprint="f1"), Card("t2", fingerprint="f1"), True),
        (Card("t1", fingerprint="f1"), Card("t1", fingerprint="f2"), False),
        (Card("t1", fingerprint="f1"), Card("t1"), True),
        (Card("t1"), Card("t1", fingerprint="f1"), True),
        (Card("t1", fingerprint="f1"), Card("t2"), False),
        (Card("t1"), Card("t2", fingerprint="f1"), False),
        (Card("t1"), Card("t2"), False),
    ],
    ids=[
        *("both have the same one", "both have others", "the retry has none", "the first had none"),
        *("the retry has none, and another token", "the first had none, and another token", "neither has one"),
    ],
)
def test_cards_are_compared_by_fingerprint_where_both_requests_have_one(
    first: Card, retried: Card, is_same: bool
) -> None:
    """A vault's tokens may serve once, so that each try has a new one."""
    known = given(ChargeRequested(replace(REQUEST, card=first)))
    retry = known.when(asked(replace(REQUEST, card=retried)))
    if is_same:
        retry.then_nothing()
    else:
        retry.then_refused(KeyReused, known.state, None)


def test_no_client_is_told_to_take_a_new_key_while_money_may_move() -> None:
    """Only what is over without money may be tried under a new key."""
    over = {
        "declined": (requested, token_issued, ChargeDeclined(DeclineReason.OTHER)),
        "abandoned": (requested, ChargeAbandoned(5)),
        "called off": (requested, token_issued, not_after_passed, called_off_),
        "called off by a void": (requested, token_issued, void_requested(), called_off_),
        "voided": (*AUTHORIZED, *void()),
        "lapsed": (*AUTHORIZED, capture_requested(1), token_issued, LAPSED),
    }
    other = {
        "absent": (),
        "asked": (requested,),
        "token": (requested, token_issued),
        "charged": CHARGED,
        "authorised": AUTHORIZED,
        "in review": (requested, token_issued, IN_REVIEW),
        "calling off": (requested, token_issued, not_after_passed),
        "refunded": (*CHARGED, *refund(1250)),
        "void under way": (*AUTHORIZED, void_requested()),
        "void in review": (*AUTHORIZED, void_requested(), token_issued, IN_REVIEW),
        "void declined": (*AUTHORIZED, void_requested(), OperationDeclined(DeclineReason.OTHER)),
        "captured, then lapsed": (*AUTHORIZED, *capture(1), void_requested(1249), LAPSED),
        "a void that came too late": (requested, token_issued, void_requested(), charged),
    }
    assert {name for name, events in (over | other).items() if is_over_without_money(given(*events).state)} == set(over)


# ================================================================ an operation follows
def test_a_client_captures_voids_and_refunds() -> None:
    """Each operation is known by its own key and has its own steps. The bank is told the transaction that it is on."""
    given(*AUTHORIZED).when(to_capture(500, is_final=True)).then(capture_requested(500, is_final=True)).next_step_is(
        request_token(0, following(Kind.CAPTURE, "capture-1", 500, is_final=True))
    )
    given(*AUTHORIZED).when(to_void()).then(void_requested(1250)).next_step_is(
        request_token(0, following(Kind.VOID, "void-1", 1250, takes_all=True))
    )
    given(*CHARGED).when(to_refund(500)).then(refund_requested(500)).next_step_is(
        request_token(0, following(Kind.REFUND, "refund-1", 500, request=REQUEST))
    )


def test_an_amount_left_out_is_all_that_is_left_and_stored_as_the_number_it_was() -> None:
    given(*CHARGED, *refund(500)).when(to_refund(None, "refund-2")).then(refund_requested(750, "refund-2"))
    given(*AUTHORIZED, *capture(400)).when(to_capture(None, "capture-2")).then(capture_requested(850, "capture-2"))


def test_an_operation_stores_its_key_its_actor_and_its_reason() -> None:
    """The reference at the bank comes with the wish."""
    arrival = to_refund(500)(given(*CHARGED).state)
    told = replace(arrival, wish=replace(arrival.wish, reason="broken", actor="desk"))
    given(*CHARGED).when(lambda _: told).then(
        OperationRequested(Kind.REFUND, "refund:refund-1", "refund-1", "desk", eur(500), reason="broken")
    )


@pytest.mark.parametrize("arrival", [to_capture(1), to_void(), to_refund(1)], ids=["capture", "void", "refund"])
class TestAnOperationThatCannotFollow:
    """It is refused with its reason, and nothing is stored."""

    def test_there_is_no_such_charge(self, arrival: Asking) -> None:
        """Commands read the journal: it is certain."""
        given().when(arrival).then_refused(ChargeUnknown)

    def test_the_charge_is_another_tenants(self, arrival: Asking) -> None:
        """Nothing is revealed of it, nor of an operation under the same key."""
        other = of_tenant("another", arrival)
        for history in (
            *(AUTHORIZED, CHARGED, (requested,), (*AUTHORIZED, *capture(1), void_requested(1249))),
            (*CHARGED, *refund(1)),
        ):
            given(*history).when(other).then_refused(ChargeUnknown)

    def test_the_charge_is_in_review(self, arrival: Asking) -> None:
        """People look into it first."""
        for history in (
            (requested, token_issued, IN_REVIEW),
            (*AUTHORIZED, capture_requested(1, "capture-9"), token_issued, IN_REVIEW),
            (*CHARGED, refund_requested(1, "refund-9"), IN_REVIEW),
            (requested, token_issued, void_requested(1250, "void-9"), IN_REVIEW),
        ):
            given(*history).when(arrival).then_refused(ChargeInReview)

    def test_another_operation_is_under_way(self, arrival: Asking) -> None:
        """In either step. It may be tried again when that one is at rest."""
        for history in (
            (*AUTHORIZED, capture_requested(1, "capture-9")),
            (*AUTHORIZED, void_requested(1250, "void-9"), token_issued),
            (*CHARGED, refund_requested(1, "refund-9"), token_issued, token_expired),
            (requested, token_issued, void_requested(1250, "void-9")),
            (hold_requested, void_requested(1250, "void-9"), authorized),
        ):
            given(*history).when(arrival).then_refused(OperationUnderWay)

    def test_it_breaks_todays_rules(self, arrival: Asking) -> None:
        """All faults are told."""
        faults = (FAULT, ("reason", "is too long"))
        follow = replace(arrival(given().state), faults=faults)
        for history in EVERYWHERE.values():
            given(*history[:1]).when(lambda _: follow).then_refused(InvalidRequest, faults)

    def test_the_charge_is_over_without_money(self, arrival: Asking) -> None:
        """Nothing was moved that could be moved on."""
        over = given(requested, ChargeDeclined(DeclineReason.OTHER))
        kind = arrival(over.state).wish.kind
        over.when(arrival).then_refused(DoesNotFit, over.state, kind)


def test_a_refund_or_capture_of_a_charge_under_way_waits_for_its_end() -> None:
    for history in ((requested,), (requested, token_issued), (requested, not_after_passed)):
        given(*history).when(to_refund(1)).then_refused(OperationUnderWay)
        given(*history).when(to_capture(1)).then_refused(OperationUnderWay)


def test_an_amount_in_another_currency_is_a_fault() -> None:
    """It is told together with the other faults, and its field once."""
    text = ("amount.currency_code", "must be the currency of the charge")
    given(*CHARGED).when(to_refund(500, currency_code="USD")).then_refused(InvalidRequest, (text,))
    given(*CHARGED).when(to_refund(500, "refund-1", FAULT, currency_code="USD")).then_refused(
        InvalidRequest, (text, FAULT)
    )
    unknown = ("amount.currency_code", "must be in use")
    given(*CHARGED).when(to_refund(500, "refund-1", unknown, currency_code="XXX")).then_refused(
        InvalidRequest, (unknown,)
    )


def test_the_next_operation_follows_when_the_last_is_at_rest_however_it_ended() -> None:
    """Unless that was in review."""
    for end in (
        (token_issued, Captured(eur(1), "tx2")),
        (OperationDeclined(DeclineReason.OTHER),),
        (token_issued, OperationDeclined(DeclineReason.INSUFFICIENT_FUNDS)),
    ):
        given(*AUTHORIZED, capture_requested(1), *end).when(to_capture(2, "capture-2")).then(
            capture_requested(2, "capture-2")
        )


def test_a_hold_that_lapsed_meets_the_capture() -> None:
    """The bank says so when it is asked: that is an event, it closes the hold, and the client hears it."""
    for history in ((), (token_issued,)):
        lapsed = given(*AUTHORIZED, capture_requested(500), *history).when(
            declined(DeclineReason.AUTHORIZATION_EXPIRED)
        )
        over = lapsed.then(LAPSED).next_step_is(None)
        assert over.charge.book.has_lapsed
        over.when(to_capture(500, "capture-2")).then_refused(DoesNotFit, over.state, Kind.CAPTURE)
        over.when(to_capture(500)).then_nothing()  # the retry is told that it lapsed


# ================================================================ the retry of an operation
DONE = {
    "requested": (*CHARGED, refund_requested(500)),
    "under way": (*CHARGED, refund_requested(500), token_issued),
    "executed": (*CHARGED, *refund(500)),
    "declined": (*CHARGED, refund_requested(500), OperationDeclined(DeclineReason.OTHER)),
    "in review": (*CHARGED, refund_requested(500), token_issued, IN_REVIEW),
    "another since": (*CHARGED, *refund(500), *refund(750, "refund-2")),
    "another under way": (*CHARGED, *refund(500), refund_requested(750, "refund-2")),
}


@pytest.mark.parametrize("history", DONE.values(), ids=DONE)
class TestTheRetryOfAnOperation:
    """Its key belongs to it within its charge, for ever."""

    def test_finds_its_operation(self, history: tuple[Event, ...]) -> None:
        """Though nothing may be left by now, another may be under way, or the rules may have become stricter."""
        given(*history).when(to_refund(500)).then_nothing()
        given(*history).when(to_refund(500, "refund-1", FAULT)).then_nothing()

    @pytest.mark.parametrize(
        "arrival",
        [
            *(to_refund(499), to_refund(501), to_refund(500, currency_code="USD"), to_refund()),
            *(to_capture(500, "refund-1"), to_void("refund-1")),
        ],
        ids=["less", "more", "currency", "all that was left", "capture", "void"],
    )
    def test_is_refused_if_it_asks_for_another(self, history: tuple[Event, ...], arrival: Arrival) -> None:
        """Another amount or kind. The refusal has the operation, so that the client can be told how it stands."""
        story = given(*history)
        known = next(
            progress
            for progress in (*story.charge.done, story.charge.newest)
            if progress.operation.idempotency_key == "refund-1"
        )
        story.when(arrival).then_refused(KeyReused, story.state, known)


def test_to_leave_the_amount_out_is_the_same_request_as_all_that_was_left() -> None:
    """In either order, and whatever is left by now."""
    for history in ((*CHARGED, *refund(1250)), (*CHARGED, refund_requested(1250), token_issued)):
        given(*history).when(to_refund()).then_nothing()
        given(*history).when(to_refund(1250)).then_nothing()
    rest = (*CHARGED, *refund(500), *refund(750, "refund-2"))
    given(*rest).when(to_refund(None, "refund-2")).then_nothing()
    given(*rest).when(to_refund(750, "refund-2")).then_nothing()
    captured = (*AUTHORIZED, *capture(400), *capture(850, "capture-2"))
    given(*captured).when(to_capture(None, "capture-2")).then_nothing()
    given(*captured).when(to_capture(None)).then_refused(
        KeyReused, given(*captured).state, given(*captured).charge.done[1]
    )


def test_a_final_capture_is_another_request() -> None:
    story = given(*AUTHORIZED, *capture(400))
    story.when(to_capture(400, is_final=True)).then_refused(KeyReused, story.state, story.charge.newest)
    story = given(*AUTHORIZED, *capture(400, is_final=True))
    story.when(to_capture(400)).then_refused(KeyReused, story.state, story.charge.newest)
    story.when(to_capture(400, is_final=True)).then_nothing()


def test_a_void_twice_under_one_key_is_one_void_and_under_another_key_does_not_fit() -> None:
    story = given(*AUTHORIZED, *void())
    story.when(to_void()).then_nothing()
    story.when(to_void("void-2")).then_refused(DoesNotFit, story.state, Kind.VOID)


def test_the_key_of_the_charge_names_no_operation_that_follows() -> None:
    """A key of an operation is scoped to its charge, and there the charge's own key is free."""
    key = REQUEST.idempotency_key
    given(*CHARGED).when(to_refund(500, key)).then(refund_requested(500, key))
    given(*CHARGED, *refund(500, key)).when(to_refund(500, key)).then_nothing()


def test_a_key_of_another_charge_is_a_new_key_here() -> None:
    """The other charge's operations are not in this one's state."""
    given(*CHARGED, *refund(500, "a-key")).when(to_refund(500, "a-key")).then_nothing()
    given(*CHARGED).when(to_refund(500, "a-key")).then(refund_requested(500, "a-key"))


def test_two_callers_refund_the_same_half() -> None:
    """Under one key it goes back once; under two keys twice, and never more than was charged."""
    half = given(*CHARGED, *refund(625))
    half.when(to_refund(625)).then_nothing()
    half.when(to_refund(625, "refund-2")).then(refund_requested(625, "refund-2"))
    both = given(*CHARGED, *refund(625), *refund(625, "refund-2"))
    both.when(to_refund(625, "refund-3")).then_refused(MoreThanIsLeft, 0)


# ================================================================ calling off by a void
of_both_openings = pytest.mark.parametrize("first", [requested, hold_requested], ids=["charge", "authorize"])
UNDER_WAY = {
    "before the token": (),
    "with a token": (token_issued,),
    "after an expired token": (token_issued, token_expired),
}
while_under_way = pytest.mark.parametrize("before", UNDER_WAY.values(), ids=UNDER_WAY)


@of_both_openings
@while_under_way
class TestAVoidOfAChargeUnderWay:
    """It calls the charge off."""

    def test_asks_the_bank_to_close_the_token(self, first: ChargeRequested, before: tuple[Event, ...]) -> None:
        """Instead of the next step of the charge. It is for the whole amount."""
        open_token = "t1" if before == (token_issued,) else None
        given(first, *before).when(to_void()).then(void_requested(1250)).next_step_is(
            call_off(open_token, first.request)
        )

    def test_is_done_once_the_charge_is_called_off(self, first: ChargeRequested, before: tuple[Event, ...]) -> None:
        """Both keys are told so, of one event. Nothing more can follow."""
        story = given(first, *before, void_requested()).when(called_off()).then(called_off_).next_step_is(None)
        opened, voided = outcome_of(story.state), outcome_of(story.state, "void-1")
        assert opened is not None
        assert voided is not None
        assert opened.outcome == voided.outcome == called_off_
        assert opened.position == voided.position == story.charge.position
        assert story.charge.book.authorized == 0
        story.when(to_refund(1)).then_refused(DoesNotFit, story.state, Kind.REFUND)
        story.when(to_void("void-2")).then_refused(DoesNotFit, story.state, Kind.VOID)
        story.when(to_void()).then_nothing()

    @pytest.mark.parametrize(
        ("arrival", "outcome"),
        [
            (declined(DeclineReason.CARD_DECLINED), ChargeDeclined(DeclineReason.CARD_DECLINED)),
            (contradicted(), ReviewRequired(ReviewReason.CONTRADICTION, EVIDENCE)),
            (refused(), ReviewRequired(ReviewReason.CALL_OFF_REFUSED, EVIDENCE)),
        ],
        ids=["declined", "contradicted", "refused"],
    )
    def test_shares_every_other_end_of_the_charge_without_money(
        self, first: ChargeRequested, before: tuple[Event, ...], arrival: Arrival, outcome: Event
    ) -> None:
        """Declined, in review: the void's key is told the same event."""
        story = given(first, *before, void_requested()).when(arrival).then(outcome).next_step_is(None)
        for told in (outcome_of(story.state), outcome_of(story.state, "void-1")):
            assert told is not None
            assert told.outcome == outcome

    def test_is_given_up_with_the_charge_unless_a_token_is_open(
        self, first: ChargeRequested, before: tuple[Event, ...]
    ) -> None:
        arrival = not_answered(9, age_seconds=DAY_SECONDS)
        story = given(first, *before, void_requested())
        if before == (token_issued,):
            story.when(arrival).then_nothing()
        else:
            over = story.when(arrival).then(ChargeAbandoned(9)).next_step_is(None)
            assert outcome_of(over.state, "void-1") is not None

    def test_is_the_only_one(self, first: ChargeRequested, before: tuple[Event, ...]) -> None:
        """Its retry joins it; under another key, or another operation, somebody waits for its end."""
        story = given(first, *before, void_requested())
        story.when(to_void()).then_nothing()
        story.when(to_void("void-2")).then_refused(OperationUnderWay)
        story.when(to_refund(1)).then_refused(OperationUnderWay)
        story.when(to_refund(1250, "void-1")).then_refused(KeyReused, story.state, story.charge.void)
        with pytest.raises(ImpossibleEvent):
            given(first, *before, void_requested(), void_requested(1250, "void-2"))

    def test_does_not_change_what_the_charge_is(self, first: ChargeRequested, before: tuple[Event, ...]) -> None:
        """No outcome is told before the bank has answered."""
        story = given(first, *before, void_requested())
        assert outcome_of(story.state) is None
        assert outcome_of(story.state, "void-1") is None
        assert not is_at_rest(story.state)
        assert not is_over_without_money(story.state)

    def test_survives_every_event_of_the_calling_off(self, first: ChargeRequested, before: tuple[Event, ...]) -> None:
        """It may come after `not_after` has called the charge off already, and then joins that."""
        story = given(first, *before, not_after_passed).when(to_void()).then(void_requested(1250))
        story.when(called_off()).then(called_off_).next_step_is(None)
        story.when(clock_shows(2**62)).then_nothing()


def test_a_void_that_came_too_late_for_a_charge_is_told_so() -> None:
    """The money has moved: the charge is charged, the void ends with that event, and a refund may follow."""
    story = given(requested, token_issued, void_requested()).when(executed()).then(charged).next_step_is(None)
    opened, voided = outcome_of(story.state), outcome_of(story.state, "void-1")
    assert opened is not None
    assert voided is not None
    assert opened.outcome == voided.outcome == charged
    assert (opened.operation.kind, voided.operation.kind) == (Kind.CHARGE, Kind.VOID)
    assert story.charge.book.captured == 1250
    story.when(to_void()).then_nothing()
    story.when(to_refund()).then(refund_requested(1250))


def test_a_void_that_came_too_late_for_an_authorisation_goes_on() -> None:
    """The hold is let go by the void's own steps, on the transaction that holds."""
    story = given(hold_requested, token_issued, void_requested())
    story = story.when(executed(expires_at=LAPSES_AT)).then(authorized)
    opened = outcome_of(story.state)
    assert opened is not None
    assert isinstance(opened.outcome, Authorized)
    assert outcome_of(story.state, "void-1") is None
    going_on = following(Kind.VOID, "void-1", 1250, takes_all=True)
    story.next_step_is(request_token(0, going_on))
    story = story.when(token("t2")).then(TokenIssued("t2")).next_step_is(execute("t2", going_on))
    story.when(to_capture(1)).then_refused(OperationUnderWay)
    story.when(to_void()).then_nothing()
    assert story.charge.book.is_open
    story = story.when(executed("tx2")).then(Voided(eur(1250), "tx2")).next_step_is(None)
    assert not story.charge.book.is_open
    assert outcome_of(story.state) == opened


def test_a_void_that_waited_is_as_old_as_its_own_request() -> None:
    """Its age counts from there when it is given up."""
    story = given(hold_requested, token_issued, void_requested(), authorized)
    assert story.charge.newest.requested_at == REQUESTED_AT + 2_000_000


# ================================================================ not_after
NOT_AFTER = REQUESTED_AT + 60_000_000
LIMITED = ChargeRequested(replace(REQUEST, not_after=NOT_AFTER))
LIMITED_HOLD = ChargeRequested(replace(HELD, not_after=NOT_AFTER))


@pytest.mark.parametrize("first", [LIMITED, LIMITED_HOLD], ids=["charge", "authorize"])
@pytest.mark.parametrize("before", UNDER_WAY.values(), ids=UNDER_WAY)
def test_past_its_time_a_charge_is_called_off(first: ChargeRequested, before: tuple[Event, ...]) -> None:
    """Before it and at it the charge goes on."""
    story = given(first, *before)
    for now in (0, NOT_AFTER - 1, NOT_AFTER):
        story.when(clock_shows(now)).then_nothing()
        assert not is_overdue(story.state, now)
    open_token = "t1" if before == (token_issued,) else None
    assert is_overdue(story.state, NOT_AFTER + 1)
    story.when(clock_shows(NOT_AFTER + 1)).then(not_after_passed).next_step_is(call_off(open_token, first.request))


def test_a_charge_without_such_a_time_goes_on_for_ever() -> None:
    for history in ((), (requested,), (requested, token_issued)):
        given(*history).when(clock_shows(2**62)).then_nothing()


@pytest.mark.parametrize(
    "history",
    [
        (not_after_passed,),
        (void_requested(),),
        (token_issued, not_after_passed),
        (token_issued, charged),
        (token_issued, IN_REVIEW),
        (token_issued, not_after_passed, called_off_),
        (token_issued, not_after_passed, charged),
        (token_issued, charged, refund_requested(500)),
        (token_issued, charged, refund_requested(500), token_issued),
    ],
)
def test_its_time_does_not_matter_once_it_is_called_off_or_at_rest(history: tuple[Event, ...]) -> None:
    """An operation that follows has no such time."""
    given(LIMITED, *history).when(clock_shows(2**62)).then_nothing()


def test_a_charge_whose_time_is_over_may_have_been_executed() -> None:
    """Then it is charged."""
    given(LIMITED, token_issued, not_after_passed).when(executed()).then(charged).next_step_is(None)


def test_a_charge_that_ended_in_time_is_charged_whatever_the_clock_shows_later() -> None:
    given(LIMITED, token_issued).when(executed()).then(charged).when(clock_shows(2**62)).then_nothing()


# ================================================================ the outcome of a key
def test_a_key_is_given_its_outcome_with_position_and_time() -> None:
    """The position and time of the deciding event, and the time of the request."""
    assert outcome_of(given(*CHARGED).state) == AtRest(
        opening(), REQUESTED_AT, charged, position=3, decided_at=REQUESTED_AT + 2_000_000, token=token_issued.token
    )
    assert outcome_of(given(*CHARGED, *refund(500)).state, "refund-1") == AtRest(
        following(Kind.REFUND, "refund-1", 500, request=REQUEST),
        REQUESTED_AT + 3_000_000,
        Refunded(eur(500), "refund-1"),
        position=6,
        decided_at=REQUESTED_AT + 5_000_000,
        token="token of refund-1",
    )


@pytest.mark.parametrize("history", [(), (requested,), (requested, token_issued)], ids=["absent", "asked", "token"])
def test_a_key_has_no_outcome_before_it_is_decided(history: tuple[Event, ...]) -> None:
    """The outcome is not guessed."""
    assert outcome_of(given(*history).state) is None


def test_another_key_is_not_given_the_outcome() -> None:
    """Each key has its own outcome, and the charge's own is not that of an operation that follows."""
    for key in ("another-key", REQUEST.idempotency_key):
        assert outcome_of(given(*CHARGED).state, key) is None
        assert outcome_of(given(*CHARGED, *refund(500)).state, key) is None


@pytest.mark.parametrize(
    "later",
    [
        (refund_requested(500),),
        (refund_requested(500), token_issued),
        refund(500),
        (*refund(500), *refund(750, "refund-2")),
        (refund_requested(500), token_issued, IN_REVIEW),
    ],
)
def test_a_replayed_charge_is_told_its_outcome_and_position_whatever_follows(later: tuple[Event, ...]) -> None:
    """Not PENDING while a refund is under way, and not the position of the refund."""
    before, after = given(*CHARGED), given(*CHARGED, *later)
    after.when(asked()).then_nothing()
    assert outcome_of(after.state) == outcome_of(before.state)
    assert after.charge.opening == before.charge.opening
    assert after.charge.transaction_id == before.charge.transaction_id == "tx1"


def test_only_an_executed_charge_has_a_transaction() -> None:
    for history in ((requested,), (requested, token_issued), (requested, ChargeAbandoned(5))):
        assert given(*history).charge.transaction_id == ""
    assert given(*AUTHORIZED, *void()).charge.transaction_id == "tx1"


# ================================================================ events that cannot follow
@pytest.mark.parametrize(
    "history",
    [
        (token_issued,),
        (refund_requested(1),),
        (requested, requested),
        (requested, hold_requested),
        (requested, refund_requested(1)),
        (*CHARGED, refund_requested(1), refund_requested(1, "refund-2")),
        (*CHARGED, token_issued),
        (*CHARGED, not_after_passed),
        (*CHARGED, requested),
        (requested, token_issued, IN_REVIEW, refund_requested(1)),
        (*AUTHORIZED, capture_requested(1), IN_REVIEW, void_requested(1249)),
        (requested, void_requested(), charged, charged),
        (requested, void_requested(), not_after_passed),
    ],
)
def test_an_event_that_cannot_follow_stops_the_reader(history: tuple[Event, ...]) -> None:
    """Loudly: an impossible journal is not read any further."""
    given(*history[:-1])
    with pytest.raises(ImpossibleEvent):
        given(*history)
