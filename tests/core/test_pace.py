"""The times at which the bank is called again and refused callers come back."""

import asyncio
import itertools
from random import Random

import pytest

from command_service.appointments import CALLS_A_RETURN, LATEST_RETURN_SECONDS, SOONEST_RETURN_SECONDS, Appointments
from command_service.bank.breaker import (
    LONGEST_PAUSE_SECONDS,
    SETUP_REFUSED_TO_OPEN,
    UNANSWERED_TO_OPEN,
    Admission,
    Breaker,
)
from command_service.values import InProgress, NoAnswer, Token

VAIN = NoAnswer()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- the breaker
def opened() -> tuple[Breaker, Clock]:
    """A breaker that has just opened after enough charges in a row without an answer."""
    clock = Clock()
    breaker = Breaker(clock, Random(1))
    for number in range(UNANSWERED_TO_OPEN):
        assert breaker.admit() is Admission.CALL
        breaker.note(Admission.CALL, f"charge {number}", VAIN)
    assert breaker.is_open
    return breaker, clock


def test_calls_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() -> None:
    """A hundred of them fail after the breaker has opened: the probe still comes after a second."""
    breaker, clock = opened()
    for _ in range(100):
        assert breaker.admit() is None
        clock.now += 0.009
        breaker.note(Admission.CALL, "another", VAIN)
    clock.now += 0.2
    assert breaker.admit() is Admission.PROBE


def test_one_probe_at_a_time_finds_out_whether_the_bank_is_back() -> None:
    """A late answer allows no second probe, and each vain probe doubles the pause up to a bound."""
    breaker, clock = opened()
    pauses = []
    for _ in range(8):
        began = clock.now
        while breaker.admit() is not Admission.PROBE:
            clock.now += 0.5
        pauses.append(clock.now - began)
        breaker.note(Admission.CALL, "another", VAIN)
        clock.now += 30.0
        assert breaker.admit() is None
        breaker.note(Admission.PROBE, "one", VAIN)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, LONGEST_PAUSE_SECONDS]
    clock.now += LONGEST_PAUSE_SECONDS
    assert breaker.admit() is Admission.PROBE
    breaker.note(Admission.PROBE, "one", InProgress(None))
    assert breaker.admit() is Admission.CALL


OURS = Token("ours", is_heard=False)


def test_an_answer_for_which_the_bank_was_not_called_does_not_close_the_breaker() -> None:
    """A token may be a name of ours. The next probe is due at once."""
    breaker, clock = opened()
    clock.now += 60.0
    probe = breaker.admit()
    assert probe is Admission.PROBE
    breaker.note(probe, "another", OURS)
    assert breaker.is_open
    probe = breaker.admit()
    assert probe is Admission.PROBE
    breaker.note(probe, "another", Token("the bank's"))
    assert not breaker.is_open


def test_an_answer_for_which_the_bank_was_not_called_does_not_keep_the_breaker_closed() -> None:
    """At a bank of one step such answers are between any two that it did not give."""
    breaker = Breaker(Clock(), Random(1))
    for number in range(UNANSWERED_TO_OPEN):
        breaker.note(Admission.CALL, f"charge {number}", OURS)
        breaker.note(Admission.CALL, f"charge {number}", VAIN)
    assert breaker.is_open


async def test_waiters_for_the_breaker_sleep_until_the_probe_under_way_ends() -> None:
    """Thousands may wait, and a probe may take long: they do not poll."""
    breaker, clock = opened()
    clock.now += 1.0
    assert breaker.admit() is Admission.PROBE
    clock.now += 100.0
    waiting = asyncio.create_task(breaker.pause())
    await asyncio.sleep(0.8)  # longer than the pause after a probe that is over
    assert not waiting.done()
    breaker.note(Admission.PROBE, "one", InProgress(None))
    await asyncio.wait_for(waiting, 30)


async def test_the_result_of_a_vain_probe_is_the_answer_for_all_waiters() -> None:
    """It says whether our set-up was refused, above all."""
    breaker, clock = opened()
    clock.now += 1.0
    assert breaker.admit() is Admission.PROBE
    waiting = [asyncio.create_task(breaker.pause()) for _ in range(3)]
    await asyncio.sleep(0)
    refused = NoAnswer(our_setup=True)
    breaker.note(Admission.PROBE, "one", refused)
    assert await asyncio.gather(*waiting) == [refused] * 3


@pytest.mark.parametrize("answer", [VAIN, NoAnswer(our_setup=True)])
def test_one_charge_alone_never_opens_the_breaker(answer: NoAnswer) -> None:
    """Any number of vain calls for one charge; the charge has a backoff of its own."""
    breaker = Breaker(Clock(), Random(1))
    for _ in range(1_000):
        breaker.note(Admission.CALL, "the one", answer)
        assert not breaker.is_open


@pytest.mark.parametrize(
    ("answer", "charges"), [(VAIN, UNANSWERED_TO_OPEN), (NoAnswer(our_setup=True), SETUP_REFUSED_TO_OPEN)]
)
def test_the_breaker_opens_after_enough_charges_in_a_row_without_an_answer(answer: NoAnswer, charges: int) -> None:
    """Any other answer between them restarts the count."""
    breaker = Breaker(Clock(), Random(1))
    for answered in (True, False):
        for number in range(charges):
            assert not breaker.is_open
            if answered and number == charges - 1:
                breaker.note(Admission.CALL, "another", InProgress(None))
            else:
                breaker.note(Admission.CALL, f"charge {number}", answer)
    assert breaker.is_open


# ---------------------------------------------------------------- appointments
def busy(call_seconds: float, places: int = 100) -> tuple[Appointments, Clock]:
    """Appointments of a server whose calls have taken `call_seconds` for a while."""
    clock = Clock()
    appointments = Appointments(clock, places)
    for _ in range(1_000):
        appointments.note_end(call_seconds)
    return appointments, clock


def test_a_caller_that_is_refused_alone_may_come_back_soon() -> None:
    """Also the next one after that time, and the first one after there was room."""
    appointments, clock = busy(1.0)
    assert appointments.give_seconds() == SOONEST_RETURN_SECONDS
    clock.now += 10.0
    waits = [appointments.give_seconds() for _ in range(100)]
    assert waits[0] == SOONEST_RETURN_SECONDS < waits[-1]
    appointments.clear()
    assert appointments.give_seconds() == SOONEST_RETURN_SECONDS


def test_refused_callers_come_back_one_after_another_more_slowly_than_calls_end() -> None:
    """Refused all at once or one by one."""
    appointments, clock = busy(0.2)
    returns = []
    for number in range(500):
        clock.now += 0.001 * (number % 2)
        returns.append(clock.now + appointments.give_seconds())
    gaps = [later - sooner for sooner, later in itertools.pairwise(returns)]
    assert min(gaps) >= 0.99 * CALLS_A_RETURN * 0.2 / 100


def test_a_tenants_refused_callers_keep_nobody_elses_away() -> None:
    """Each tenant beyond its share has a queue of its own, apart from that of the whole server."""
    appointments, _ = busy(1.0)
    waits = [appointments.give_seconds("a") for _ in range(100)]
    assert waits[-1] > 2 * SOONEST_RETURN_SECONDS
    assert appointments.give_seconds("b") == appointments.give_seconds() == SOONEST_RETURN_SECONDS


def test_no_caller_is_asked_to_stay_away_for_longer_than_a_minute() -> None:
    """For any number of callers; those at the limit are spread, so that they do not return all at once."""
    appointments, _ = busy(10.0)
    waits = [appointments.give_seconds() for _ in range(1_000)]
    assert max(waits) <= LATEST_RETURN_SECONDS
    assert max(waits.count(wait) for wait in set(waits)) < 20
