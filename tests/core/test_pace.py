"""When refused callers are asked to come back."""

import itertools

from command_service.pace import (
    CALLS_A_RETURN,
    LATEST_RETURN_SECONDS,
    SOONEST_RETURN_SECONDS,
    Appointments,
)


class Clock:
    """A clock that stands where it was set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def busy(seconds_a_call: float) -> tuple[Appointments, Clock]:
    """Appointments of a server in which a call has ended that often for a while."""
    clock = Clock()
    appointments = Appointments(clock)
    for _ in range(1_000):
        clock.now += seconds_a_call
        appointments.note_end()
    return appointments, clock


def test_a_caller_who_is_refused_alone_may_come_back_soon() -> None:
    """And so may the next one, once that is over."""
    appointments, clock = busy(0.01)
    assert appointments.give_seconds() == SOONEST_RETURN_SECONDS
    clock.now += 10.0
    assert appointments.give_seconds() == SOONEST_RETURN_SECONDS


def test_refused_callers_come_back_one_after_another_no_faster_than_calls_end() -> None:
    """Whether they were refused at once or one by one."""
    appointments, clock = busy(0.002)
    returns = []
    for number in range(500):
        clock.now += 0.001 * (number % 2)
        returns.append(clock.now + appointments.give_seconds())
    gaps = [later - sooner for sooner, later in itertools.pairwise(returns)]
    assert min(gaps) >= 0.99 * CALLS_A_RETURN * 0.002


def test_nobody_is_asked_to_stay_away_for_longer_than_a_minute() -> None:
    """However many there are, and however slow it goes; and it is forgotten when the crowd is."""
    appointments, clock = busy(0.5)
    waits = [appointments.give_seconds() for _ in range(1_000)]
    assert max(waits) == LATEST_RETURN_SECONDS
    clock.now += LATEST_RETURN_SECONDS
    assert appointments.give_seconds() <= SOONEST_RETURN_SECONDS + CALLS_A_RETURN * 0.5
