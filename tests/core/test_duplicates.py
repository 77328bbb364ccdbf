"""Charges that look like the second one of a single intent: found within the window, by the card itself, whatever the clock."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from command_service.charge import State
from command_service.codec import encode
from command_service.duplicates import Recent, recall
from command_service.events import ChargeDeclined, ChargeRequested, Event, ReviewRequired, TokenIssued
from command_service.failures import UnknownEvent
from command_service.values import Card, DeclineReason, Money, Request, ReviewReason
from tests.contract.journal_rigs import SqliteRig, add, stream
from tests.core.stories import (
    AUTHORIZED,
    CHARGED,
    REQUEST,
    REQUESTED_AT,
    given,
    refund,
    requested,
    token_issued,
    void,
)

WINDOW_SECONDS = 60.0
SECOND = 1_000_000
_numbers: Iterator[int] = count(1)


class Clock:
    """A clock that a test sets, in microseconds since 1970."""

    def __init__(self) -> None:
        self.now = REQUESTED_AT

    def __call__(self) -> int:
        return self.now

    def goes(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> Recent:
    return Recent(WINDOW_SECONDS, clock)


def another(**changed: object) -> Request:
    """The same intent under a new key, or with one thing changed."""
    number = next(_numbers)
    return replace(REQUEST, charge_id=f"charge-{number}", idempotency_key=f"try-{number}", **changed)  # type: ignore[arg-type]


def test_a_second_charge_of_the_same_kind_is_found_and_names_the_first(recent: Recent) -> None:
    assert recent.earlier(REQUEST) is None
    assert recent.note(REQUEST)
    assert recent.earlier(another()) == REQUEST.charge_id


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant": "another"},
        {"user_id": "user-8"},
        {"amount": Money(1251, "EUR")},
        {"amount": Money(1250, "USD")},
        {"card": Card("tok_mastercard", "visa", "4242")},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_charge_that_differs_is_none(recent: Recent, changed: dict[str, object]) -> None:
    """In tenant, user, amount, currency or card."""
    recent.note(REQUEST)
    assert recent.earlier(another(**changed)) is None


@pytest.mark.parametrize(
    "changed",
    [{"description": "another"}, {"metadata": ()}, {"actor": "desk"}, {"is_held": True}, {"card": Card("tok_visa")}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_charge_that_differs_in_nothing_that_matters_is_one(recent: Recent, changed: dict[str, object]) -> None:
    recent.note(REQUEST)
    assert recent.earlier(another(**changed)) == REQUEST.charge_id


def test_a_card_is_known_by_its_fingerprint(recent: Recent) -> None:
    """Tokens that serve once make each try look new. Without a fingerprint on both sides the token counts."""
    first = another(card=Card("once-1", fingerprint="f1"))
    recent.note(first)
    assert recent.earlier(another(card=Card("once-2", fingerprint="f1"))) == first.charge_id
    assert recent.earlier(another(card=Card("once-1", fingerprint="f2"))) is None
    assert recent.earlier(another(card=Card("once-1"))) == first.charge_id
    assert recent.earlier(another(card=Card("once-2"))) is None


def test_a_retry_is_no_duplicate_of_itself(recent: Recent) -> None:
    recent.note(REQUEST)
    assert recent.earlier(REQUEST) is None
    assert not recent.note(REQUEST)


def test_of_two_at_once_the_one_that_came_second_is_the_duplicate(recent: Recent) -> None:
    """Each is kept before it looks: the first saw nothing."""
    first, second = another(), another()
    recent.note(first)
    assert recent.earlier(first) is None
    recent.note(second)
    assert recent.earlier(second) == first.charge_id


def test_a_charge_is_found_until_the_window_is_over(recent: Recent, clock: Clock) -> None:
    recent.note(REQUEST)
    clock.goes(WINDOW_SECONDS)
    assert recent.earlier(another()) == REQUEST.charge_id
    clock.goes(1e-6)
    assert recent.earlier(another()) is None
    assert recent.note(REQUEST)


def test_each_charge_has_its_own_window(recent: Recent, clock: Clock) -> None:
    first, second = another(), another()
    recent.note(first)
    clock.goes(WINDOW_SECONDS / 2)
    recent.note(second)
    assert recent.earlier(another()) == first.charge_id
    clock.goes(WINDOW_SECONDS * 0.75)
    assert recent.earlier(another()) == second.charge_id


def test_a_charge_from_the_journal_is_as_old_as_its_record(recent: Recent, clock: Clock) -> None:
    recent.note(REQUEST, clock.now - 50 * SECOND)
    clock.goes(10)
    assert recent.earlier(another()) == REQUEST.charge_id
    clock.goes(1)
    assert recent.earlier(another()) is None


def test_what_is_recalled_after_a_newer_charge_is_not_kept_longer_for_it(recent: Recent, clock: Clock) -> None:
    """A call may come while the journal is still being read."""
    newer, older = another(), another()
    recent.note(newer)
    recent.note(older, clock.now - 50 * SECOND)
    recent.forget(newer)
    clock.goes(11)
    assert recent.earlier(another()) is None


def test_a_forgotten_charge_is_not_found(recent: Recent) -> None:
    """It was refused, or is over without money. Others that are alike are still found."""
    second = another()
    recent.note(REQUEST)
    recent.note(second)
    recent.forget(REQUEST)
    assert recent.earlier(another()) == second.charge_id
    recent.forget(second)
    recent.forget(second)
    assert recent.earlier(another()) is None


def test_a_charge_that_was_forgotten_and_comes_again_has_a_new_window(recent: Recent, clock: Clock) -> None:
    """Refused while the bank was away, for example, and accepted later under its key."""
    recent.note(REQUEST)
    recent.forget(REQUEST)
    clock.goes(50)
    recent.note(replace(REQUEST))
    clock.goes(50)
    recent.note(another(user_id="user-8"))
    assert recent.earlier(another()) == REQUEST.charge_id


@pytest.mark.parametrize("seconds", [-1.0, -WINDOW_SECONDS])
def test_a_clock_that_steps_back_a_little_loses_no_charge(recent: Recent, clock: Clock, seconds: float) -> None:
    recent.note(REQUEST)
    clock.goes(seconds)
    assert recent.earlier(another()) == REQUEST.charge_id


def test_a_clock_that_steps_back_far_keeps_no_charge_for_ever(recent: Recent, clock: Clock) -> None:
    """A clock that was years ahead and is set right: nobody is refused for years. New charges are kept as ever."""
    recent.note(REQUEST)
    clock.goes(-10 * WINDOW_SECONDS)
    assert recent.earlier(another()) is None
    second = another()
    recent.note(second)
    assert recent.earlier(another()) == second.charge_id
    clock.goes(WINDOW_SECONDS + 1)
    assert recent.earlier(another()) is None


def test_a_clock_that_steps_ahead_ends_the_windows(recent: Recent, clock: Clock) -> None:
    recent.note(REQUEST)
    clock.goes(10 * WINDOW_SECONDS)
    assert recent.earlier(another()) is None


def test_nothing_is_kept_beyond_the_window(recent: Recent, clock: Clock) -> None:
    """Memory is bounded also where no client ever looks for a duplicate."""
    for number in range(100):
        recent.note(another(user_id=f"fleeting-{number}"))
        clock.goes(WINDOW_SECONDS / 10)
    kept = [each for each in gc.get_objects() if isinstance(each, Request) and each.user_id.startswith("fleeting-")]
    assert len(kept) <= 11


def test_without_a_window_nothing_is_kept_and_nothing_found(clock: Clock) -> None:
    """The default."""
    off = Recent(0, clock)
    assert not off.note(REQUEST)
    assert off.earlier(another()) is None
    assert off.begins is None


def test_the_window_begins_as_long_ago_as_it_is(recent: Recent, clock: Clock) -> None:
    """The journal is read from there after a start."""
    assert recent.begins == clock.now - 60 * SECOND


OVER: dict[str, tuple[Event, ...]] = {
    "declined": (requested, ChargeDeclined(DeclineReason.OTHER)),
    "voided": (*AUTHORIZED, *void()),
}
NOT_OVER: dict[str, tuple[Event, ...]] = {
    "under way": (requested, token_issued),
    "charged": CHARGED,
    "refunded": (*CHARGED, *refund(1250)),
    "authorised": AUTHORIZED,
    "in review": (requested, token_issued, ReviewRequired(ReviewReason.CONTRADICTION)),
}


@pytest.mark.parametrize(
    ("state", "is_kept"),
    [
        *(pytest.param(given(*events).state, False, id=name) for name, events in OVER.items()),
        *(pytest.param(given(*events).state, True, id=name) for name, events in NOT_OVER.items()),
        pytest.param(given().state, True, id="absent"),
    ],
)
def test_a_charge_that_is_over_without_money_is_forgotten(recent: Recent, state: State, is_kept: bool) -> None:
    """Its payer may try again, under a new key. Of all others money may have moved, and a refund undoes no intent to pay."""
    recent.note(REQUEST)
    recent.note_rest(state)
    assert (recent.earlier(another()) == REQUEST.charge_id) == is_kept


# ================================================================ after a start
async def test_the_journal_tells_the_charges_of_the_last_while(tmp_path: Path) -> None:
    """Wherever the window begins: those requested in it, but those that are over without money."""
    async with SqliteRig(tmp_path).open() as journal:
        await recall(Recent(WINDOW_SECONDS, Clock()), journal)  # an empty one
        at: list[int] = []
        for number in range(5):
            request = replace(REQUEST, charge_id=stream(number), user_id=f"user-{number}")
            events: list[Event] = [ChargeRequested(request), TokenIssued("t1")]
            if number == 3:
                events.append(ChargeDeclined(DeclineReason.OTHER))
            first, *_ = await add(journal, stream(number), 0, list(map(encode, events)), finished=False)
            at.append(first.recorded_at)
        for begins in sorted({time + step for time in at for step in (-1, 0, 1)}):
            clock = Clock()
            clock.now = begins + 60 * SECOND
            recent = Recent(WINDOW_SECONDS, clock)
            await recall(recent, journal)
            found = [number for number in range(5) if recent.earlier(another(user_id=f"user-{number}")) is not None]
            assert found == [number for number in (0, 1, 2, 4) if at[number] >= begins]
            clock.goes(1)  # Their window is as old as their records.
            assert not any(recent.earlier(another(user_id=f"user-{number}")) for number in range(5))


async def test_without_a_window_the_journal_is_not_read(tmp_path: Path) -> None:
    """Not even one with an event of a newer program."""
    async with SqliteRig(tmp_path).open() as journal:
        await add(journal, stream(1), 0, [b"\xa2\x06\x00"], finished=False)
        await recall(Recent(0, Clock()), journal)
        with pytest.raises(UnknownEvent):
            await recall(Recent(10 * 365 * 86_400, Clock()), journal)
