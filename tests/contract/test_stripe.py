"""What Stripe does otherwise than other banks, on the double's clock.

Keys that it forgets, answers that are replayed, declines that can be tried again, cancels that let holds go, and the customer's
step. The double is `rig.stripe_bank`, on a socket.
"""

import itertools
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from command_service.address import is_address
from command_service.bank.stripe import REMEMBERS_SECONDS
from command_service.values import (
    CalledOff,
    CallOff,
    Declined,
    DeclineReason,
    Execute,
    Executed,
    Expired,
    InProgress,
    Kind,
    Money,
    NeedsAction,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    Token,
)
from rig.stripe_bank import KEY_SECONDS
from rig.stripe_objects import Movement
from tests.contract.operations import KINDS, OPENING, PRICE, an_operation, following
from tests.contract.stripe_town import HOUR, KEY, RETURN_URL, Town, stripe_town

OPENINGS = (Kind.CHARGE, Kind.AUTHORIZE)
VISA, DECLINED, DECLINED_ONCE = "pm_card_visa", "pm_card_visa_chargeDeclined", "pm_card_declinedOnce"
CUSTOMER, SINGLE_USE = "pm_card_authenticationRequired", "pm_card_singleUse"
REFUSED = Declined(DeclineReason.BANK_REFUSED)


async def an_operation_at(town: Town, kind: Kind, card: str = VISA) -> Operation:
    """An operation that can be executed: what it acts on is."""
    if kind in OPENINGS:
        return an_operation(kind, card)
    opening = an_operation(OPENING[kind], card)
    return following(kind, opening, await town.executed(opening))


async def opened(town: Town, kind: Kind, card: str = VISA) -> Execute:
    operation = await an_operation_at(town, kind, card)
    return Execute(operation, await town.token(operation))


def moved(town: Town, operation: Operation) -> list[Movement]:
    return [movement for movement in town.stripe.movements if movement.reference == operation.reference]


def status_of(town: Town, intent_id: str) -> str:
    return town.stripe.intents[intent_id].status


def post(town: Town, path: str, key: str = "another", **form: str) -> int:
    """Send an order to Stripe as a request of ours that was long on its way; return the status."""
    headers = {"authorization": f"Bearer {KEY}", "idempotency-key": key}
    return town.stripe.answer("POST", f"/v1{path}", headers, urlencode(form).encode())[0]


# ---------------------------------------------------------------- plain
@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_is_executed_once(kind: Kind) -> None:
    """By its own endpoint; a hold is told with the time at which it lapses."""
    async with stripe_town() as town:
        effect = await opened(town, kind)
        assert moved(town, effect.operation) == [], "the token step moves nothing"
        done = await town.answer(effect)
        assert isinstance(done, Executed)
        assert await town.answer(effect) == await town.answer(effect, look_up_first=True) == done
        on = "" if kind in OPENINGS else effect.operation.on
        assert moved(town, effect.operation) == [
            Movement(effect.operation.reference, kind.value, done.transaction_id, 1250, "eur", on)
        ]
        assert (done.expires_at > town.at * 1_000_000) == (kind is Kind.AUTHORIZE)


async def test_the_headers_name_our_key_and_the_pinned_version() -> None:
    async with stripe_town() as town:
        await town.executed(an_operation(Kind.CHARGE, VISA))
        for headers in town.headers:
            assert headers["authorization"] == f"Bearer {KEY}"
            assert headers["stripe-version"] == "2026-08-26.dahlia"
        forms = [headers.get("content-type") for headers in town.headers if "content-length" in headers]
        assert set(forms) == {"application/x-www-form-urlencoded"}


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("card", [VISA, DECLINED_ONCE, "pm_card_refundFail"])
@pytest.mark.parametrize("kind", KINDS)
async def test_whichever_call_is_lost_each_is_done_once(kind: Kind, card: str, lost: str) -> None:
    """For every call that the steps make, one after the other: the end is the same as if none was lost."""
    if card == DECLINED_ONCE and kind not in OPENINGS:
        card = VISA
    for nth in range(1, 12):
        async with stripe_town() as town:
            operation = await an_operation_at(town, kind, card)
            before = len(town.calls)
            town.loses = lambda number: lost if number == before + nth else ""  # noqa: B023
            done = await town.settled(Execute(operation, await town.token(operation)))
            calls = len(town.calls) - before
            if card == DECLINED_ONCE:
                assert done == Declined(DeclineReason.CARD_DECLINED)
            elif card == "pm_card_refundFail" and kind is Kind.REFUND:
                assert done == Declined(DeclineReason.OTHER)
            else:
                assert isinstance(done, Executed)
            assert len(moved(town, operation)) == isinstance(done, Executed)
        if nth > calls:
            break
    assert nth > 1, "every call was lost once"


# ---------------------------------------------------------------- declines
async def test_the_double_would_charge_a_declined_intent_that_is_confirmed_again() -> None:
    """That is the danger: here nobody cancels it."""
    async with stripe_town() as town:
        token = await town.token(an_operation(Kind.CHARGE, DECLINED_ONCE))
        assert post(town, f"/payment_intents/{token}/confirm", "one") == 402
        assert post(town, f"/payment_intents/{token}/confirm", "other") == 200
        assert len(town.stripe.movements) == 1


@pytest.mark.parametrize("kind", OPENINGS)
async def test_what_was_declined_is_cancelled_so_that_no_late_confirmation_charges_it(kind: Kind) -> None:
    async with stripe_town() as town:
        effect = await opened(town, kind, DECLINED_ONCE)
        assert await town.answer(effect) == Declined(DeclineReason.CARD_DECLINED)
        assert status_of(town, effect.token) == "canceled"
        assert post(town, f"/payment_intents/{effect.token}/confirm") == 400
        assert await town.answer(effect, look_up_first=True) == Declined(DeclineReason.CARD_DECLINED)
        assert await town.answer(CallOff(effect.operation, effect.token)) == Declined(DeclineReason.CARD_DECLINED)
        assert town.stripe.movements == []


@pytest.mark.parametrize("clears_errors", [False, True])
@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (DECLINED, DeclineReason.CARD_DECLINED),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", DeclineReason.INSUFFICIENT_FUNDS),
        ("pm_card_chargeDeclinedExpiredCard", DeclineReason.EXPIRED_CARD),
        ("pm_card_chargeDeclinedProcessingError", DeclineReason.OTHER),
    ],
)
async def test_the_reason_of_a_decline_is_told_though_stripe_clears_the_error(
    card: str, reason: DeclineReason, clears_errors: bool
) -> None:
    async with stripe_town() as town:
        town.stripe.clears_errors = clears_errors
        effect = await opened(town, Kind.CHARGE, card)
        assert await town.answer(effect) == await town.answer(effect) == Declined(reason)


async def test_a_look_up_changes_nothing() -> None:
    """An intent whose decline was not seen is open to it; the execute step that follows closes it."""
    async with stripe_town() as town:
        effect = await opened(town, Kind.CHARGE, DECLINED)
        post(town, f"/payment_intents/{effect.token}/confirm")
        town.instead = [("POST", 500, b"") for _ in range(9)]
        assert await town.answer(effect, look_up_first=True) == NoAnswer()
        assert status_of(town, effect.token) == "requires_payment_method"
        town.instead.clear()
        assert await town.answer(effect, look_up_first=True) == Declined(DeclineReason.CARD_DECLINED)


# ---------------------------------------------------------------- confirmations that are refused
async def used_up(town: Town, kind: Kind) -> Execute:
    """Open an operation whose payment method has paid once before."""
    before = await opened(town, Kind.CHARGE, SINGLE_USE)
    assert isinstance(await town.answer(before), Executed)
    return await opened(town, kind, SINGLE_USE)


def never_refused(town: Town) -> None:
    """Have the payment method attached to a customer, so that it pays again."""
    town.stripe.used.clear()


@pytest.mark.parametrize("look_up_first", [False, True])
@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_confirmation_that_is_refused_declines_and_no_late_one_charges(kind: Kind, look_up_first: bool) -> None:
    async with stripe_town() as town:
        effect = await used_up(town, kind)
        assert await town.answer(effect, look_up_first=look_up_first) == REFUSED
        assert town.made(f"{effect.token}/confirm") == 2
        assert status_of(town, effect.token) == "canceled"
        never_refused(town)
        assert post(town, f"/payment_intents/{effect.token}/confirm") == 400
        assert await town.answer(effect) == await town.answer(effect, look_up_first=True) == REFUSED
        assert await town.answer(CallOff(effect.operation, effect.token)) == REFUSED
        assert moved(town, effect.operation) == []


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("kind", OPENINGS)
async def test_whichever_call_of_a_refused_confirmation_is_lost_it_is_declined(kind: Kind, lost: str) -> None:
    """Or paid once, if the payment method pays again before it is taken from the intent: then nobody has said "declined"."""
    ends = set()
    for is_for_ever, nth in itertools.product((True, False), range(1, 14)):
        async with stripe_town() as town:
            effect = await used_up(town, kind)
            before = len(town.calls)
            town.loses = lambda number: lost if number == before + nth else ""  # noqa: B023
            said = await town.answer(effect)
            is_lost = len(town.calls) >= before + nth
            town.loses = lambda _: ""
            if not is_for_ever:
                never_refused(town)
            assert said == (NoAnswer() if is_lost else REFUSED)
            done = await town.settled(effect)
            assert done == REFUSED or (isinstance(done, Executed) and is_lost and not is_for_ever)
            assert len(moved(town, effect.operation)) == isinstance(done, Executed)
            assert (status_of(town, effect.token) == "canceled") == (done == REFUSED)
            assert await town.answer(effect) == await town.answer(effect, look_up_first=True) == done
            ends.add((type(done), is_lost, is_for_ever))
    assert ends == {(Declined, lost, for_ever) for lost in (True, False) for for_ever in (True, False)} | {
        (Executed, True, False)
    }


@pytest.mark.parametrize("late_before", ["mark", "cancel"])
@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_late_confirmation_is_told_as_what_it_came_to(kind: Kind, late_before: str) -> None:
    """Before the mark it pays, and is told as paid; after it Stripe refuses it, since there is no payment method."""
    async with stripe_town() as town:
        effect = await used_up(town, kind)
        confirmed = []

        def be_late(method: str, path: str) -> None:
            if method == "POST" and path.endswith(effect.token if late_before == "mark" else "/cancel"):
                town.before = None
                never_refused(town)
                confirmed.append(post(town, f"/payment_intents/{effect.token}/confirm"))

        town.before = be_late
        said = await town.answer(effect)
        if late_before == "mark":
            assert confirmed == [200]
            assert isinstance(said, Executed)
            assert status_of(town, effect.token) == ("succeeded" if kind is Kind.CHARGE else "requires_capture")
        else:
            assert confirmed == [400]
            assert said == REFUSED
        assert await town.answer(effect) == said
        assert len(moved(town, effect.operation)) == isinstance(said, Executed)


@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_mark_that_comes_late_harms_no_payment(kind: Kind) -> None:
    """Stripe refuses it. If it comes before the next confirmation, that one is refused, and the charge declined."""
    for is_paid in (True, False):
        async with stripe_town() as town:
            effect = await used_up(town, kind)
            mark_of = ("POST", f"/payment_intents/{effect.token}")
            town.loses = lambda _: "request" if town.calls[-1] == mark_of else ""  # noqa: B023
            assert await town.answer(effect) == NoAnswer()
            town.loses = lambda _: ""
            never_refused(town)
            mark = {"payment_method": "", "metadata[refused]": "true"}
            if is_paid:
                town.at += 25 * HOUR  # The saved refusal is forgotten.
                assert isinstance(await town.answer(effect, look_up_first=True), Executed)
            assert post(town, f"/payment_intents/{effect.token}", "late", **mark) == (400 if is_paid else 200)
            done = await town.answer(effect)
            assert isinstance(done, Executed) if is_paid else done == REFUSED
            assert len(moved(town, effect.operation)) == is_paid


async def test_one_refusal_is_not_believed() -> None:
    """It may answer another question."""
    async with stripe_town() as town:
        effect = await opened(town, Kind.CHARGE)
        refusal = {"error": {"type": "invalid_request_error", "message": "said by a test"}}
        town.instead = [(f"POST /payment_intents/{effect.token}/confirm", 400, refusal)]
        assert isinstance(await town.answer(effect), Executed)
        assert town.instead == []


async def test_what_was_refused_and_is_still_open_is_called_off() -> None:
    """Marked, and not cancelled: then nobody was told that it was declined."""
    async with stripe_town() as town:
        effect = await used_up(town, Kind.CHARGE)
        town.loses = lambda _: "request" if town.calls[-1][1].endswith("/cancel") else ""
        assert await town.answer(effect) == NoAnswer()
        assert town.stripe.intents[effect.token].metadata["refused"] == "true"
        town.loses = lambda _: ""
        assert await town.answer(CallOff(effect.operation, effect.token)) == CalledOff()
        assert await town.answer(effect) == CalledOff()


# ---------------------------------------------------------------- saved answers
async def test_a_saved_500_does_not_hide_what_was_done() -> None:
    """Stripe replays it for a day: each order is looked up instead."""
    async with stripe_town() as town:
        for kind in KINDS:
            operation = await an_operation_at(town, kind)
            town.stripe.breaks = 1
            token = await town.token(operation)
            if kind in OPENINGS:
                assert town.stripe.breaks == 0, "the token step met it"
                town.stripe.breaks = 1
            done = await town.settled(Execute(operation, token))
            assert isinstance(done, Executed)
            assert town.stripe.breaks == 0
            assert len(moved(town, operation)) == 1


async def test_a_payment_in_process_is_asked_for_until_it_has_ended() -> None:
    async with stripe_town() as town:
        effect = await opened(town, Kind.CHARGE, "pm_card_processing")
        for look_up_first in (False, True, False):
            assert await town.answer(effect, look_up_first=look_up_first) == InProgress()
        assert await town.answer(CallOff(effect.operation, effect.token)) == InProgress()
        town.at += 60
        assert isinstance(await town.answer(effect), Executed)
        assert town.made("/confirm") == 1


@pytest.mark.parametrize("succeeds", [False, True])
async def test_a_pending_refund_is_asked_for_until_it_has_ended(succeeds: bool) -> None:
    """Its order is replayed, and says for ever that it is pending."""
    async with stripe_town() as town:
        effect = await opened(town, Kind.REFUND, "pm_card_pendingRefund")
        assert await town.answer(effect) == await town.answer(effect, look_up_first=True) == InProgress()
        town.stripe.settle_refunds(succeed=succeeds)
        done = await town.answer(effect)
        assert isinstance(done, Executed) if succeeds else done == Declined(DeclineReason.OTHER)
        assert len(moved(town, effect.operation)) == succeeds


# ---------------------------------------------------------------- keys that are forgotten
def test_keys_are_trusted_for_less_than_stripe_promises() -> None:
    assert REMEMBERS_SECONDS == KEY_SECONDS - 4 * HOUR


@pytest.mark.parametrize("kind", KINDS)
async def test_when_the_key_is_forgotten_a_look_up_keeps_it_from_being_done_again(kind: Kind) -> None:
    """The answer was lost, and we came back a day later."""
    async with stripe_town() as town:
        effect = await opened(town, kind)
        orders = ("/confirm", "/capture", "/cancel", "/refunds")
        town.loses = lambda _: "answer" if town.calls[-1][1].endswith(orders) else ""
        assert await town.answer(effect) == NoAnswer()
        town.loses = lambda _: ""
        town.at += 25 * HOUR
        made = town.made(*orders)
        assert isinstance(await town.answer(effect, look_up_first=True), Executed)
        assert town.made(*orders) == made
        assert len(moved(town, effect.operation)) == 1


async def test_the_double_refunds_again_whoever_believes_in_a_key_for_ever() -> None:
    """The control: the adapter is not told to look first."""
    async with stripe_town() as town:
        opening = an_operation(Kind.CHARGE, VISA)
        refund = following(Kind.REFUND, opening, await town.executed(opening), Money(400, "EUR"))
        effect = Execute(refund, await town.token(refund))
        assert isinstance(await town.answer(effect), Executed)
        town.at += 25 * HOUR
        assert isinstance(await town.answer(effect), Executed)
        assert len(moved(town, refund)) == 2


@pytest.mark.parametrize("age_hours", [1, 23, 25])
async def test_a_journal_that_forgot_the_token_gets_the_same_intent(age_hours: float) -> None:
    """By the key while it is remembered, though the search lags an hour; then by the search."""
    async with stripe_town() as town:
        town.stripe.search_lag_seconds = HOUR
        for kind in OPENINGS:
            effect = await opened(town, kind)
            done = await town.answer(effect)
            town.at += age_hours * HOUR - 1
            assert await town.answer(RequestToken(effect.operation, 0), look_up_first=True) == Token(effect.token)
            assert await town.answer(effect, look_up_first=True) == done
        assert len(town.stripe.intents) == len(OPENINGS)


@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_search_that_lags_has_people_told_no_end_that_was_not(kind: Kind) -> None:
    """By its token an intent is found at once. Without one, nobody is told that it ended unexecuted."""
    async with stripe_town() as town:
        town.stripe.search_lag_seconds = HOUR
        never = an_operation(kind, VISA)
        assert isinstance(await town.bank.look_up(never, None), NoAnswer)
        effect = await opened(town, kind)
        assert await town.bank.look_up(effect.operation, effect.token) == Token(effect.token)
        assert isinstance(await town.bank.look_up(effect.operation, None), NoAnswer)
        done = await town.answer(effect)
        assert await town.bank.look_up(effect.operation, effect.token) == done
        assert isinstance(await town.bank.look_up(effect.operation, None), NoAnswer)
        town.at += HOUR
        assert await town.bank.look_up(effect.operation, None) == done

        effect = await opened(town, kind)
        town.at += HOUR
        town.stripe.expire(effect.token)
        assert await town.bank.look_up(effect.operation, effect.token) == Expired()
        again = await town.answer(RequestToken(effect.operation, 1), look_up_first=True)
        assert isinstance(again, Token)
        done = await town.answer(Execute(effect.operation, again.token))
        assert isinstance(done, Executed)
        assert isinstance(await town.bank.look_up(effect.operation, None), NoAnswer), (
            "the search shows the first one only"
        )
        assert await town.bank.look_up(effect.operation, again.token) == done


@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_search_that_lags_has_nothing_told_as_called_off_that_was_executed(kind: Kind) -> None:
    """A restored journal has lost the token, or the first token has expired and the search shows that one only."""
    async with stripe_town() as town:
        town.stripe.search_lag_seconds = HOUR
        effect = await opened(town, kind)
        done = await town.answer(effect)
        assert isinstance(done, Executed)
        assert await town.answer(CallOff(effect.operation, None), look_up_first=True) == done

        effect = await opened(town, kind)
        town.at += HOUR
        town.stripe.expire(effect.token)
        again = await town.answer(RequestToken(effect.operation, 1), look_up_first=True)
        assert isinstance(again, Token)
        done = await town.answer(Execute(effect.operation, again.token))
        assert isinstance(done, Executed)
        assert await town.answer(CallOff(effect.operation, again.token), look_up_first=True) == done

        effect = await opened(town, kind)
        assert await town.answer(CallOff(effect.operation, effect.token), look_up_first=True) == CalledOff()
        assert moved(town, effect.operation) == []


async def test_a_refund_is_found_among_many() -> None:
    """Page by page; and one that is not there is sent."""
    async with stripe_town() as town:
        opening = an_operation(Kind.CHARGE, VISA)
        on = await town.executed(opening)
        refunds = [following(Kind.REFUND, opening, on, Money(n + 1, "EUR")) for n in range(30)]
        ends = [await town.answer(Execute(refund, refund.reference)) for refund in refunds]
        made = town.made("/refunds")
        for refund, end in zip(refunds, ends, strict=True):
            assert isinstance(end, Executed)
            assert await town.answer(Execute(refund, refund.reference), look_up_first=True) == end
        assert town.made("/refunds") == made
        more = following(Kind.REFUND, opening, on, Money(1, "EUR"))
        assert isinstance(await town.answer(Execute(more, more.reference), look_up_first=True), Executed)


async def test_an_empty_list_that_answers_another_question_is_not_believed() -> None:
    """The refund was done a day ago: a stray answer would have it done again."""
    async with stripe_town() as town:
        effect = await opened(town, Kind.REFUND)
        done = await town.answer(effect)
        town.at += 25 * HOUR
        town.stray = {"object": "list", "url": "/v1/refunds", "data": [], "has_more": False}
        for _ in range(5):
            assert await town.answer(effect, look_up_first=True) in (done, NoAnswer())
        assert len(moved(town, effect.operation)) == 1


async def test_a_search_that_answers_another_question_is_not_believed() -> None:
    """The charge was made a day ago: after a stray answer another intent would be created, and confirmed."""
    async with stripe_town() as town:
        effect = await opened(town, Kind.CHARGE)
        await town.answer(effect)
        town.at += 25 * HOUR
        town.stray = {"object": "search_result", "url": "/v1/payment_intents/search", "data": [], "has_more": False}
        for _ in range(5):
            await town.answer(effect, look_up_first=True)
            asked = await town.answer(RequestToken(effect.operation, 0), look_up_first=True)
            assert asked in (Token(effect.token), NoAnswer())
        assert len(town.stripe.intents) == 1


# ---------------------------------------------------------------- refunds and holds
async def test_more_than_is_left_is_not_refunded() -> None:
    """Neither looked up first nor not; what is left still is."""
    async with stripe_town() as town:
        opening = an_operation(Kind.CHARGE, VISA)
        on = await town.executed(opening)
        part, rest = (following(Kind.REFUND, opening, on, Money(amount, "EUR")) for amount in (1000, 250))
        await town.executed(part)
        for look_up_first in (False, True):
            more = following(Kind.REFUND, opening, on, Money(251, "EUR"))
            said = await town.answer(Execute(more, more.reference), look_up_first=look_up_first)
            assert said == Declined(DeclineReason.OTHER)
        await town.executed(rest)
        one = following(Kind.REFUND, opening, on, Money(1, "EUR"))
        assert await town.answer(Execute(one, one.reference)) == Declined(DeclineReason.OTHER)


async def test_a_hold_is_captured_once_and_let_go_whole() -> None:
    """A part is captured if it is the last one; else nothing is sent."""
    async with stripe_town() as town:
        opening = an_operation(Kind.AUTHORIZE, VISA)
        hold = await town.executed(opening)
        calls = len(town.calls)
        part = following(Kind.CAPTURE, opening, hold, Money(500, "EUR"))
        rest = following(Kind.VOID, opening, hold, Money(750, "EUR"))
        foreign = following(Kind.CAPTURE, opening, hold, Money(PRICE.minor_units, "USD"))
        for wrong in (part, rest, foreign):
            assert isinstance(await town.answer(RequestToken(wrong, 0)), Refused)
            assert isinstance(await town.answer(Execute(wrong, wrong.reference)), Refused)
        assert town.made("/capture", "/cancel") == 0
        assert len(town.calls) > calls, "a refused execute step is looked up"
        last = replace(part, is_final=True)
        assert isinstance(await town.answer(Execute(last, last.reference)), Executed)
        assert [(it.kind, it.amount) for it in town.stripe.movements] == [("authorize", 1250), ("capture", 500)]


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID])
async def test_a_hold_that_has_lapsed_is_told_as_lapsed(kind: Kind) -> None:
    """When Stripe has cancelled its intent; before that, a capture waits for it."""
    async with stripe_town() as town:
        effect = await opened(town, kind)
        intent = town.stripe.intents[effect.operation.on]
        if kind is Kind.CAPTURE:
            intent.has_lapsed = True
            assert await town.answer(effect) == await town.answer(effect) == InProgress()
        town.at += 8 * 24 * HOUR
        for look_up_first in (False, True):
            said = await town.answer(effect, look_up_first=look_up_first)
            assert said == Declined(DeclineReason.AUTHORIZATION_EXPIRED)
        assert moved(town, effect.operation) == []


@pytest.mark.parametrize("reason", ["requested_by_customer", "duplicate", "fraudulent"])
async def test_a_hold_that_people_let_go_is_no_lapsed_one(reason: str) -> None:
    """The authorize was executed all the same."""
    async with stripe_town() as town:
        opening = await opened(town, Kind.AUTHORIZE)
        done = await town.answer(opening)
        post(town, f"/payment_intents/{opening.token}/cancel", cancellation_reason=reason)
        for kind in (Kind.CAPTURE, Kind.VOID):
            late = following(kind, opening.operation, opening.token)
            said = await town.answer(Execute(late, late.reference))
            if kind is Kind.VOID and reason == "requested_by_customer":  # It is as a void would have left it.
                assert isinstance(said, Executed)
            else:
                assert said == Declined(DeclineReason.OTHER)
        assert await town.answer(opening) == await town.answer(opening, look_up_first=True) == done


# ---------------------------------------------------------------- calling off
@pytest.mark.parametrize("names_token", [False, True])
async def test_calling_off_lets_no_hold_go(names_token: bool) -> None:
    """Not when it comes too late, and not when the authorization wins between look and cancel."""
    async with stripe_town() as town:
        effect = await opened(town, Kind.AUTHORIZE)
        done = await town.answer(effect)
        off = CallOff(effect.operation, effect.token if names_token else None)
        assert await town.answer(off) == done
        for step in ("payment_method", "cancel"):
            effect = await opened(town, Kind.AUTHORIZE)
            confirm = f"/payment_intents/{effect.token}/confirm"

            def win(
                method: str, path: str, step: str = step, token: str = effect.token, confirm: str = confirm
            ) -> None:
                is_step = path.endswith("/cancel") if step == "cancel" else path.endswith(token)
                if method == "POST" and is_step:
                    town.before = None
                    post(town, confirm)

            town.before = win
            said = await town.answer(CallOff(effect.operation, effect.token if names_token else None))
            if step == "payment_method":
                assert isinstance(said, Executed)
                assert status_of(town, effect.token) == "requires_capture"
            else:
                assert said == CalledOff()
            assert len(moved(town, effect.operation)) == isinstance(said, Executed)


async def test_what_was_called_off_is_never_confirmed() -> None:
    async with stripe_town() as town:
        for kind in OPENINGS:
            effect = await opened(town, kind)
            assert await town.answer(CallOff(effect.operation, effect.token)) == CalledOff()
            assert post(town, f"/payment_intents/{effect.token}/confirm") == 400
            assert await town.answer(effect) == CalledOff()
        assert town.stripe.movements == []


# ---------------------------------------------------------------- the customer's step
@pytest.mark.parametrize("kind", OPENINGS)
async def test_the_customers_step_is_awaited_and_begun_once(kind: Kind) -> None:
    """However often the execute step is repeated; when it was taken, the money moves once."""
    async with stripe_town(customer_seconds=600.0) as town:
        effect = await opened(town, kind, CUSTOMER)
        wanted = await town.answer(effect)
        assert isinstance(wanted, NeedsAction)
        assert is_address(wanted.url)
        assert wanted.expires_at == (int(town.at) + 600) * 1_000_000
        for look_up_first in (False, True):
            assert await town.answer(effect, look_up_first=look_up_first) == wanted
        assert town.made("/confirm") == 1
        town.stripe.authenticate(effect.token, succeeds=True)
        done = await town.answer(effect)
        assert isinstance(done, Executed)
        assert len(moved(town, effect.operation)) == 1


@pytest.mark.parametrize("way", ["fails", "too late", "off session", "no address"])
@pytest.mark.parametrize("look_up_first", [False, True])
@pytest.mark.parametrize("kind", OPENINGS)
async def test_a_step_that_is_not_taken_declines_the_charge(kind: Kind, look_up_first: bool, way: str) -> None:
    """And closes it: nobody can take the step any more."""
    async with stripe_town(customer_seconds=600.0) as town:
        operation = an_operation(kind, CUSTOMER)
        request = replace(operation.request, is_off_session=way == "off session")
        operation = replace(operation, request=request)
        effect = Execute(operation, await town.token(operation))
        if way != "off session":
            assert isinstance(await town.answer(effect), NeedsAction)
        match way:
            case "fails":
                town.stripe.authenticate(effect.token, succeeds=False)
            case "too late":
                town.at += 601
            case "no address":
                town.stripe.intents[effect.token].action_url = "app://not-for-people"
        said = await town.answer(effect, look_up_first=look_up_first)
        assert said == Declined(DeclineReason.AUTHENTICATION_REQUIRED)
        assert town.made("/confirm") == 1
        town.stripe.authenticate(effect.token, succeeds=True)
        assert post(town, f"/payment_intents/{effect.token}/confirm") == 400
        assert town.stripe.movements == []


async def test_a_customer_is_sent_back_to_the_charges_address_or_to_the_banks() -> None:
    async with stripe_town() as town:
        for theirs in ("", "https://other.example/done"):
            operation = an_operation(Kind.CHARGE, VISA)
            operation = replace(operation, request=replace(operation.request, return_url=theirs))
            await town.answer(Execute(operation, await town.token(operation)))
            assert urlencode({"return_url": theirs or RETURN_URL}) in town.bodies[-1]
