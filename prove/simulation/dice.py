"""The chance that a story rolls while it runs.

Each kind of fault has a stream of chance of its own, so that leaving one out leaves the others nearly as they were. That is
what lets a failing story be shrunk.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prove.simulation.plan import Mask, Plan


class Dice:
    """The chance that a story rolls while it runs."""

    def __init__(self, plan: Plan, mask: Mask) -> None:
        self._plan = plan
        self._mask = mask
        self._streams: dict[str, random.Random] = {}
        self._firings: Counter[str] = Counter()
        self._world = random.Random(f"world {plan.seed}")
        self.is_over = False
        """Faults have stopped."""
        self.fired: Counter[str] = Counter()

    @property
    def drawn(self) -> dict[str, int]:
        """How often each kind was drawn, whether or not it came to happen: what a mask's firings are numbered by."""
        return dict(self._firings)

    def fires(self, kind: str) -> bool:
        """Whether a fault happens now; it counts as fired then."""
        if not self.draws(kind):
            return False
        self.fired[kind] += 1
        return True

    def draws(self, kind: str) -> bool:
        """Whether a fault is to happen later. Who makes it happen counts it then: until then it may find nothing to harm."""
        weight = self._plan.weights.get(kind)
        if weight is None or self.is_over or kind in self._mask.kinds:
            return False
        stream = self._streams.get(kind)
        if stream is None:
            stream = self._streams[kind] = random.Random(f"{kind} {self._plan.seed}")
        if stream.random() >= weight:
            return False
        self._firings[kind] += 1
        return (kind, self._firings[kind]) not in self._mask.firings

    def met(self, kind: str) -> None:
        """A call or a commit meets what was there before it, such as a bank that is down: that counts as fired."""
        self.fired[kind] += 1

    def uniform(self, low: float, high: float) -> float:
        """A number between two."""
        return low + (high - low) * self._world.random()

    def pick(self, things: Sequence[Any]) -> Any:
        """One of several."""
        return things[int(self._world.random() * len(things))]

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return low + int(self._world.random() * (high - low + 1))
