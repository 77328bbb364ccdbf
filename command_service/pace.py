"""When the bank is called, and refused callers come back: backoff, breaker, appointments. What is asked is the core's to say.

Nothing here is a promise. Were all of it wrong, charges would be slow, and the bank annoyed; no card would be charged twice.
"""

import asyncio
import random
from collections.abc import Callable

from command_service.charge import Answer, NoAnswer

# No pause is longer, whatever the bank wishes: a charge that waits longer looks lost to the people who wait for it.
LONGEST_PAUSE_SECONDS = 20.0
# The first pause is up to this, and each further one up to twice the one before.
FIRST_PAUSE_SECONDS = 0.1
# A refused caller is asked to come back in this time, if not more come than can be served; and never later than that.
SOONEST_RETURN_SECONDS, LATEST_RETURN_SECONDS = 0.5, 60.0
# Refusing costs about a fifth of a charge, so that one to four charges costs 5 % of what is done (measured: bench overload).
CALLS_A_RETURN = 4


def backoff_seconds(attempts: int, wished_seconds: float | None, chance: random.Random) -> float:
    """Say how long to pause after so many vain attempts in a row.

    Full jitter: anything from nothing to the bound, so that charges that failed together do not come back together. The
    bank's own wish is honoured, and spread a little for the same reason.
    """
    if wished_seconds is not None:
        return min(LONGEST_PAUSE_SECONDS, max(0.0, wished_seconds) * chance.uniform(1.0, 1.25))
    bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 16))
    return chance.uniform(0.0, bound)


class Breaker:
    """Spares a bank that does not answer: after enough vain calls in a row only one probe at a time goes through.

    It opens at once when the bank does not accept our set-up, since every call would fail alike until people mend it.
    """

    def __init__(self, clock: Callable[[], float], chance: random.Random, calls_to_open: int = 20) -> None:
        self._clock = clock
        self._chance = chance
        self._calls_to_open = calls_to_open
        self._vain_calls = 0
        self._pause_seconds = 0.0
        self._probe_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._pause_seconds > 0

    @property
    def wants_probe(self) -> bool:
        """Whether it is open, and it is time that somebody found out whether the bank answers again."""
        return self.is_open and not self._probing and self._clock() >= self._probe_at

    @property
    def retry_after_seconds(self) -> float:
        """When it may be worth asking again."""
        return max(1.0, self._probe_at - self._clock())

    def admits(self) -> bool:
        """Whether a call may be made now; whoever is let through says what came of it by `note`."""
        if not self.is_open:
            return True
        if self._probing or self._clock() < self._probe_at:
            return False
        self._probing = True
        return True

    async def pause(self) -> None:
        """Wait until it is worth asking `admits` again: not all at once."""
        await asyncio.sleep(max(0.05, self._probe_at - self._clock()) + self._chance.uniform(0.0, 0.5))

    def note(self, answer: Answer) -> None:
        """Learn from a call's answer."""
        self._probing = False
        if not isinstance(answer, NoAnswer):
            self._vain_calls, self._pause_seconds = 0, 0.0
            return
        self._vain_calls += 1
        if answer.our_setup:
            self._pause_seconds = LONGEST_PAUSE_SECONDS
        elif self.is_open:
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 2)
        elif self._vain_calls >= self._calls_to_open:
            self._pause_seconds = 1.0
        self._probe_at = self._clock() + self._pause_seconds


class Appointments:
    """Says to refused callers when to come back: one after another, as fast as the calls inside end, and no faster.

    Were all told the same, refusing those who come in vain would cost more than the work that there is room for.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._newest = 0.0
        self._ended_at = clock()
        self._seconds_a_call = 0.0

    def note_end(self) -> None:
        """Learn how often a call ends, by a moving mean over some sixty."""
        now = self._clock()
        self._seconds_a_call += (min(now - self._ended_at, 1.0) - self._seconds_a_call) / 64
        self._ended_at = now

    def give_seconds(self) -> float:
        """Give the next one: so many seconds from now."""
        now = self._clock()
        wished = max(now + SOONEST_RETURN_SECONDS, self._newest + CALLS_A_RETURN * self._seconds_a_call)
        self._newest = min(wished, now + LATEST_RETURN_SECONDS)
        return self._newest - now
