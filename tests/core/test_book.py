"""The book of a charge: what its money allows, and what the bank's answers write into it."""

import pytest

from command_service.book import Book
from command_service.events import (
    AuthorizationExpired,
    ChargeAbandoned,
    ChargeCalledOff,
    ChargeDeclined,
    Event,
    OperationAbandoned,
    OperationDeclined,
    ReviewRequired,
)
from command_service.failures import DoesNotFit, ImpossibleEvent, MoreThanIsLeft
from command_service.values import DeclineReason, Kind, ReviewReason
from tests.core.stories import (
    AUTHORIZED,
    CHARGED,
    authorized,
    capture,
    capture_requested,
    given,
    hold_requested,
    refund,
    refund_requested,
    requested,
    to_capture,
    to_refund,
    to_void,
    token_issued,
    void,
    void_requested,
)

HOLD = Book(authorized=1250, is_open=True)
LAPSED = (capture_requested(400, "capture-9"), token_issued, AuthorizationExpired())


def book(*events: Event) -> Book:
    return given(*events).charge.book


# ================================================================ what is written
def test_an_executed_charge_is_captured_at_once() -> None:
    assert book(*CHARGED) == Book(authorized=1250, captured=1250)


def test_an_authorisation_holds_the_money() -> None:
    assert book(*AUTHORIZED) == HOLD


def test_captures_add_up_until_the_last_money_closes_the_hold() -> None:
    assert book(*AUTHORIZED, *capture(400)) == Book(authorized=1250, captured=400, is_open=True)
    assert book(*AUTHORIZED, *capture(400), *capture(850, "capture-2")) == Book(authorized=1250, captured=1250)


def test_a_final_capture_closes_the_hold_and_releases_the_rest() -> None:
    assert book(*AUTHORIZED, *capture(400, is_final=True)) == Book(authorized=1250, captured=400)


def test_a_void_closes_the_hold_and_keeps_what_was_captured() -> None:
    assert book(*AUTHORIZED, *void()) == Book(authorized=1250)
    assert book(*AUTHORIZED, *capture(400), *void(850)) == Book(authorized=1250, captured=400)


def test_a_hold_that_lapsed_is_closed() -> None:
    assert book(*AUTHORIZED, *LAPSED) == Book(authorized=1250, has_lapsed=True)
    assert book(*AUTHORIZED, void_requested(), token_issued, AuthorizationExpired()) == Book(1250, has_lapsed=True)


def test_refunds_add_up() -> None:
    assert book(*CHARGED, *refund(500), *refund(250, "refund-2")) == Book(1250, 1250, 750)
    assert book(*AUTHORIZED, *capture(400), *refund(300)) == Book(1250, 400, 300, is_open=True)


@pytest.mark.parametrize(
    "end",
    [
        (),
        (token_issued,),
        (token_issued, OperationDeclined(DeclineReason.OTHER)),
        (token_issued, ReviewRequired(ReviewReason.CONTRADICTION)),
        (OperationAbandoned(5),),
    ],
    ids=["requested", "under way", "declined", "in review", "abandoned"],
)
def test_only_what_the_bank_has_executed_is_written(end: tuple[Event, ...]) -> None:
    """A refund that was declined has not gone back; of one in review nobody knows."""
    assert book(*CHARGED, refund_requested(500), *end) == book(*CHARGED)
    assert book(*AUTHORIZED, capture_requested(500, is_final=True), *end) == HOLD
    assert book(*AUTHORIZED, void_requested(), *end) == HOLD


@pytest.mark.parametrize(
    "end",
    [ChargeDeclined(DeclineReason.OTHER), ChargeAbandoned(5), ReviewRequired(ReviewReason.CONTRADICTION)],
    ids=["declined", "abandoned", "in review"],
)
def test_a_charge_that_was_not_executed_has_an_empty_book(end: Event) -> None:
    assert book(requested, end) == book(hold_requested, end) == Book()
    assert book(requested, token_issued, void_requested(), ChargeCalledOff()) == Book()


# ================================================================ what it allows
@pytest.mark.parametrize(
    ("history", "left"),
    [
        ((hold_requested,), {}),
        (AUTHORIZED, {Kind.CAPTURE: 1250, Kind.VOID: 1250}),
        ((*AUTHORIZED, *capture(400)), {Kind.CAPTURE: 850, Kind.VOID: 850, Kind.REFUND: 400}),
        ((*AUTHORIZED, *capture(400), *refund(300)), {Kind.CAPTURE: 850, Kind.VOID: 850, Kind.REFUND: 100}),
        ((*AUTHORIZED, *capture(400), *refund(400)), {Kind.CAPTURE: 850, Kind.VOID: 850, Kind.REFUND: 0}),
        ((*AUTHORIZED, *capture(400, is_final=True)), {Kind.REFUND: 400}),
        ((*AUTHORIZED, *capture(400), *void(850)), {Kind.REFUND: 400}),
        ((*AUTHORIZED, *capture(1250)), {Kind.REFUND: 1250}),
        ((*AUTHORIZED, *void()), {}),
        ((*AUTHORIZED, *LAPSED), {}),
        ((*AUTHORIZED, *capture(400), *LAPSED), {Kind.REFUND: 400}),
        (CHARGED, {Kind.REFUND: 1250}),
        ((*CHARGED, *refund(500)), {Kind.REFUND: 750}),
        ((*CHARGED, *refund(500), *refund(750, "refund-2")), {Kind.REFUND: 0}),
    ],
)
def test_the_book_says_which_operation_may_follow_and_for_how_much(
    history: tuple[Event, ...], left: dict[Kind, int]
) -> None:
    """An operation that is not named here does not fit."""
    kept = book(*history)
    following = (Kind.CAPTURE, Kind.VOID, Kind.REFUND)
    assert {kind: kept.left(kind) for kind in following if kept.fits(kind)} == left
    assert all(kept.left(kind) == 0 for kind in following if not kept.fits(kind))


def test_partial_refunds_go_on_until_nothing_is_left() -> None:
    """And one beyond is refused."""
    story = given(*CHARGED)
    for number in range(5):
        story.when(to_refund(250, f"refund-{number}")).then(refund_requested(250, f"refund-{number}"))
        story = given(*CHARGED, *(event for done in range(number + 1) for event in refund(250, f"refund-{done}")))
    story.when(to_refund(1, "refund-9")).then_refused(MoreThanIsLeft, 0)
    story.when(to_refund(None, "refund-9")).then_refused(MoreThanIsLeft, 0)


def test_a_refund_of_more_than_is_left_is_refused_with_what_is_left() -> None:
    given(*CHARGED).when(to_refund(1251)).then_refused(MoreThanIsLeft, 1250)
    given(*CHARGED, *refund(500)).when(to_refund(751, "refund-2")).then_refused(MoreThanIsLeft, 750)
    given(*CHARGED, *refund(500)).when(to_refund(750, "refund-2")).then(refund_requested(750, "refund-2"))


def test_of_an_authorisation_as_much_is_refunded_as_was_captured() -> None:
    given(*AUTHORIZED, *capture(400)).when(to_refund(401)).then_refused(MoreThanIsLeft, 400)
    given(*AUTHORIZED, *capture(400)).when(to_refund(400)).then(refund_requested(400))


def test_captures_go_on_until_nothing_is_left() -> None:
    """And one beyond does not fit: the hold is closed."""
    one = given(*AUTHORIZED, *capture(400))
    one.when(to_capture(851, "capture-2")).then_refused(MoreThanIsLeft, 850)
    one.when(to_capture(850, "capture-2")).then(capture_requested(850, "capture-2"))
    two = given(*AUTHORIZED, *capture(400), *capture(850, "capture-2"))
    two.when(to_capture(1, "capture-3")).then_refused(DoesNotFit, two.state, Kind.CAPTURE)


def test_after_a_final_capture_nothing_is_captured_or_voided() -> None:
    """The rest was released."""
    final = given(*AUTHORIZED, *capture(400, is_final=True))
    final.when(to_capture(1, "capture-2")).then_refused(DoesNotFit, final.state, Kind.CAPTURE)
    final.when(to_void()).then_refused(DoesNotFit, final.state, Kind.VOID)


def test_a_hold_that_lapsed_is_neither_captured_nor_voided() -> None:
    """But what was captured before can be refunded."""
    lapsed = given(*AUTHORIZED, *capture(400), *LAPSED)
    lapsed.when(to_capture(1, "capture-2")).then_refused(DoesNotFit, lapsed.state, Kind.CAPTURE)
    lapsed.when(to_void()).then_refused(DoesNotFit, lapsed.state, Kind.VOID)
    lapsed.when(to_refund()).then(refund_requested(400))


def test_a_void_is_for_all_that_is_still_held() -> None:
    given(*AUTHORIZED).when(to_void()).then(void_requested(1250))
    given(*AUTHORIZED, *capture(400)).when(to_void()).then(void_requested(850))


def test_what_was_only_authorised_is_not_refunded() -> None:
    """It is voided instead."""
    held = given(*AUTHORIZED)
    held.when(to_refund(1)).then_refused(DoesNotFit, held.state, Kind.REFUND)


def test_what_was_captured_is_not_voided() -> None:
    """It is refunded instead."""
    for history in (CHARGED, (*AUTHORIZED, *capture(1250)), (*CHARGED, *refund(1250))):
        story = given(*history)
        story.when(to_void()).then_refused(DoesNotFit, story.state, Kind.VOID)


@pytest.mark.parametrize(
    "outcome",
    [ChargeDeclined(DeclineReason.OTHER), ChargeAbandoned(5)],
    ids=["declined", "abandoned"],
)
def test_nothing_follows_a_charge_without_money(outcome: Event) -> None:
    for arrival, kind in ((to_capture(1), Kind.CAPTURE), (to_void(), Kind.VOID), (to_refund(1), Kind.REFUND)):
        for first in (requested, hold_requested):
            over = given(first, outcome)
            over.when(arrival).then_refused(DoesNotFit, over.state, kind)


def test_a_declined_operation_leaves_as_much_as_before() -> None:
    """It may be tried again, under another key."""
    declined = OperationDeclined(DeclineReason.OTHER)
    given(*CHARGED, refund_requested(1250), declined).when(to_refund(1250, "refund-2")).then(
        refund_requested(1250, "refund-2")
    )
    given(*AUTHORIZED, capture_requested(1250), declined).when(to_void()).then(void_requested(1250))


@pytest.mark.parametrize(
    ("history", "event"),
    [
        (CHARGED, refund_requested(1251)),
        (CHARGED, refund_requested(0)),
        (CHARGED, refund_requested(-1)),
        (CHARGED, capture_requested(1)),
        (CHARGED, void_requested()),
        ((*CHARGED, *refund(1250)), refund_requested(1, "refund-2")),
        (AUTHORIZED, capture_requested(1251)),
        (AUTHORIZED, capture_requested(0)),
        (AUTHORIZED, refund_requested(1)),
        ((*AUTHORIZED, *void()), capture_requested(1)),
        ((*AUTHORIZED, *capture(1, is_final=True)), void_requested(1249)),
        ((hold_requested, ChargeAbandoned(5)), capture_requested(1)),
    ],
)
def test_a_stored_operation_that_the_book_does_not_allow_is_impossible(
    history: tuple[Event, ...], event: Event
) -> None:
    """A journal that says so is not read any further."""
    given(*history)
    with pytest.raises(ImpossibleEvent):
        given(*history, event)


def test_a_hold_is_for_all_of_its_charge() -> None:
    """The amount comes from the request, whatever the journal's events repeat."""
    assert book(hold_requested, token_issued, authorized).authorized == 1250
