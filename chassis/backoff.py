"""The pause after attempts that failed, with full jitter.

A pause is a random time between zero and a bound, which doubles with each further attempt. So clients that failed together
do not come back together.
"""

import random
from dataclasses import dataclass

# The bound doubles no more after this many attempts, so that the numbers stay small.
_MOST_DOUBLINGS = 16
# A wished pause is lengthened by up to this share of it.
_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses whose bound is `first_seconds` after the first failed attempt, and never more than `longest_seconds`."""

    first_seconds: float
    longest_seconds: float

    def seconds(self, attempts: int, chance: random.Random, wished_seconds: float | None = None) -> float:
        """Return the pause after a number of failed attempts in a row, at least one.

        A pause that the other side asks for is honoured up to the longest one, and spread a little.
        """
        if wished_seconds is not None:
            return min(self.longest_seconds, max(0.0, wished_seconds) * chance.uniform(1.0, 1.0 + _SPREAD))
        bound = min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS))
        return chance.uniform(0.0, bound)
