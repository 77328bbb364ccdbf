"""When the bank is called, and refused callers come back: backoff, breaker, appointments. What is asked is the core's to say.

Nothing here is a promise. Were all of it wrong, charges would be slow, and the bank annoyed; no card would be charged twice.
"""

import asyncio
import random
from collections.abc import Callable
from enum import Enum

from command_service.charge import Answer, NoAnswer

# No pause is longer, whatever the bank wishes: a charge that waits longer looks lost to the people who wait for it.
LONGEST_PAUSE_SECONDS = 20.0
# The first pause is up to this, and each further one up to twice the one before.
FIRST_PAUSE_SECONDS = 0.1
# Charges in a row without an answer, or refused for what our set-up is, that open the breaker. A few may be the bank's trouble
# with those charges: they pause by themselves, and only many would be a burden.
UNANSWERED_TO_OPEN, REFUSED_TO_OPEN = 10, 3
# A refused caller is asked to come back in this time, if not more come than can be served; and never later than that.
SOONEST_RETURN_SECONDS, LATEST_RETURN_SECONDS = 0.5, 60.0
# Refusing costs some fifth of a charge, so that one for four charges takes 5 % of the time.
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


class Pass(Enum):
    """What a call is let through as: one of many, or the one that finds out whether the bank is back."""

    CALL = "call"
    PROBE = "probe"


class Breaker:
    """Spares a bank that does not answer: after enough charges in a row without an answer, one probe at a time goes through.

    Charges are counted and not calls: one that the bank never answers keeps to its own backoff, and must not hold up the
    others. It opens sooner where the bank does not accept our set-up, since all would fail alike until people mend it.
    """

    def __init__(self, clock: Callable[[], float], chance: random.Random) -> None:
        self._clock = clock
        self._chance = chance
        self._vain: set[str] = set()  # charges, since the bank last gave an answer
        self._vain_probes = 0
        self._heard = NoAnswer()  # what the newest vain call came to
        self._pause_seconds = 0.0  # none: it is closed
        self._probe_at = 0.0
        self._probing: asyncio.Event | None = None  # set when the probe that is under way has ended

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._pause_seconds > 0

    @property
    def wants_probe(self) -> bool:
        """Whether it is open, and it is time that somebody found out whether the bank answers again."""
        return self.is_open and self._probing is None and self._clock() >= self._probe_at

    @property
    def retry_after_seconds(self) -> float:
        """When it may be worth asking again."""
        return max(1.0, self._probe_at - self._clock())

    def admit(self) -> Pass | None:
        """Let a call through, or not now; whoever is let through hands the pass back with what came of it, by `note`."""
        if not self.is_open:
            return Pass.CALL
        if not self.wants_probe:
            return None
        self._probing = asyncio.Event()
        return Pass.PROBE

    async def pause(self) -> NoAnswer | None:
        """Wait until it is worth asking `admit` again: not all at once.

        If a probe ends in vain meanwhile, return what came of it: it has asked for all who wait.
        """
        vain_probes = self._vain_probes
        if self._probing is not None:
            await self._probing.wait()  # thousands may wait here, and a probe may take long
        if self._vain_probes == vain_probes:
            await asyncio.sleep(max(0.05, self._probe_at - self._clock()) + self._chance.uniform(0.0, 0.5))
        return None if self._vain_probes == vain_probes else self._heard

    def note(self, given: Pass, charge_id: str, answer: Answer) -> None:
        """Learn from a call's answer."""
        if given is Pass.PROBE and self._probing is not None:
            self._probing.set()
            self._probing = None
        if not isinstance(answer, NoAnswer):
            self._vain.clear()
            self._pause_seconds = 0.0
            return
        if given is Pass.CALL and self.is_open:
            return  # it was under way when it opened, and says nothing new
        self._heard = answer
        self._vain_probes += given is Pass.PROBE
        self._vain.add(charge_id)
        if given is Pass.PROBE or len(self._vain) >= (REFUSED_TO_OPEN if answer.our_setup else UNANSWERED_TO_OPEN):
            longer = LONGEST_PAUSE_SECONDS if answer.our_setup else max(1.0, self._pause_seconds * 2)
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, longer)
            self._probe_at = self._clock() + self._pause_seconds


class Appointments:
    """Says to refused callers when to come back: one after another, as slowly as refusing them in vain must cost little.

    Were all told the same, refusing those who come in vain would cost more than the work that there is room for.
    """

    def __init__(self, clock: Callable[[], float], places: int) -> None:
        """`places`: how many calls there may be at once."""
        self._clock = clock
        self._places = places
        self._newest = 0.0
        self._call_seconds = 0.0

    def note_end(self, call_seconds: float) -> None:
        """Learn how long a call takes, by a moving mean over some sixty: the places taken, one ends so many times as often."""
        self._call_seconds += (call_seconds - self._call_seconds) / 64

    def clear(self) -> None:
        """There is room again, and so whoever is refused next is the first."""
        self._newest = 0.0

    def give_seconds(self) -> float:
        """Give the next one: so many seconds from now."""
        now = self._clock()
        wished = max(now + SOONEST_RETURN_SECONDS, self._newest + CALLS_A_RETURN * self._call_seconds / self._places)
        if wished > now + LATEST_RETURN_SECONDS:
            wished = now + LATEST_RETURN_SECONDS / 2  # between those who were there before, not all at once at the end
        self._newest = wished
        return wished - now
