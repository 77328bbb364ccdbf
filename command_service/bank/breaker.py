"""When the bank is called: the pause after a call without an answer, and the breaker. The core says what the bank is asked.

No promise about money rests on this file. If all of it were wrong, charges would be slow and the bank annoyed, but no card
would be charged twice.
"""

import asyncio
import random
from collections.abc import Callable
from enum import Enum

from chassis.backoff import Backoff
from command_service.values import Answer, NoAnswer, Token

# The longest pause, whatever the bank wishes: a charge that waits longer looks lost to the people who wait for it.
LONGEST_PAUSE_SECONDS = 20.0
PAUSES = Backoff(first_seconds=0.1, longest_seconds=LONGEST_PAUSE_SECONDS)
"""Between attempts for one charge that changed nothing."""
# While a bank is spared, one new charge in so many seconds is sent to it instead of being refused or sent to another bank. It
# is the probe if no charge waits at the bank, or if the bank never answers those that do.
NEW_CHARGE_SECONDS = 60.0
# The breaker opens after this many charges in a row without an answer, or refused because of our set-up. The bank may have
# trouble with a few charges only: they pause by themselves, and only many would be a burden.
UNANSWERED_TO_OPEN, SETUP_REFUSED_TO_OPEN = 10, 3


class Admission(Enum):
    """How a call was admitted: as one of many, or as the one that finds out whether the bank answers again."""

    CALL = "call"
    PROBE = "probe"


def is_heard(answer: Answer) -> bool:
    """Whether the bank was called for an answer. One that was not says nothing of how the bank is."""
    return not isinstance(answer, Token) or answer.is_heard


class Breaker:
    """Spares a bank that does not answer: after enough unanswered charges in a row, it admits one probe at a time.

    The breaker counts charges, not calls: a single charge that the bank never answers has its own backoff, and must not hold
    up the others. It opens sooner if the bank does not accept our set-up, since then every charge fails until people mend it.
    """

    def __init__(self, clock: Callable[[], float], chance: random.Random) -> None:
        self._clock = clock
        self._chance = chance
        self._unanswered: set[str] = set()  # charges, since the bank last gave an answer
        self._unanswered_probes = 0
        self._newest = NoAnswer()  # of the newest unanswered call
        self._pause_seconds = 0.0  # 0: the breaker is closed
        self._probe_at = 0.0
        self._new_charge_at = 0.0
        self._probing: asyncio.Event | None = None  # set when the probe that is under way has ended

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._pause_seconds > 0

    @property
    def wants_probe(self) -> bool:
        """Whether the breaker is open, no probe is under way, and the next probe is due."""
        return self.is_open and self._probing is None and self._clock() >= self._probe_at

    @property
    def wants_new_charge(self) -> bool:
        """Whether the next new charge would be tried."""
        return self.is_open and self._probing is None and self._clock() >= self._new_charge_at

    def tries_new_charge(self) -> bool:
        """Whether a new charge is to find out if the bank answers again, whatever others there are. One in a while."""
        if not self.wants_new_charge:
            return False
        self._new_charge_at = self._clock() + NEW_CHARGE_SECONDS
        return True

    @property
    def retry_after_seconds(self) -> float:
        """The time after which a call may be admitted again."""
        return max(1.0, self._probe_at - self._clock())

    def admit(self) -> Admission | None:
        """Admit a call, or return None. The caller hands the pass back to `note`, with the answer, once the call has ended."""
        if not self.is_open:
            return Admission.CALL
        if not self.wants_probe:
            return None
        self._probing = asyncio.Event()
        return Admission.PROBE

    async def pause(self) -> NoAnswer | None:
        """Wait until `admit` may admit again. Callers come back spread over half a second.

        If a probe remains unanswered meanwhile, return its NoAnswer: it holds for every caller that waits here.
        """
        probes = self._unanswered_probes
        if self._probing is not None:
            await self._probing.wait()  # thousands of charges may wait here, and a probe may take long
        if self._unanswered_probes == probes:
            await asyncio.sleep(max(0.05, self._probe_at - self._clock()) + self._chance.uniform(0.0, 0.5))
        return None if self._unanswered_probes == probes else self._newest

    def note(self, given: Admission, charge_id: str, answer: Answer) -> None:
        """Learn from a call's answer."""
        if given is Admission.PROBE and self._probing is not None:
            self._probing.set()
            self._probing = None
        if not is_heard(answer):
            return
        if not isinstance(answer, NoAnswer):
            self._unanswered.clear()
            self._pause_seconds = 0.0
            return
        if given is Admission.CALL and self.is_open:
            return  # the call began before the breaker opened, and says nothing new
        self._newest = answer
        self._unanswered_probes += given is Admission.PROBE
        self._unanswered.add(charge_id)
        if given is Admission.PROBE or len(self._unanswered) >= (
            SETUP_REFUSED_TO_OPEN if answer.our_setup else UNANSWERED_TO_OPEN
        ):
            if not self.is_open:
                self._new_charge_at = self._clock() + NEW_CHARGE_SECONDS
            longer = LONGEST_PAUSE_SECONDS if answer.our_setup else max(1.0, self._pause_seconds * 2)
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, longer)
            self._probe_at = self._clock() + self._pause_seconds
