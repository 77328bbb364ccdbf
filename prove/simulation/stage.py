"""What everything in a story shares: its chance, its virtual loop, its clock, and the notes that tell it."""

import contextvars
import random
from collections.abc import Callable
from typing import Any

from judge.history import Violation
from prove.simulation.bank import EPOCH_SECONDS
from prove.simulation.dice import Dice
from prove.simulation.loop import VirtualLoop
from prove.simulation.plan import Mask, Plan

EPOCH = EPOCH_SECONDS * 1_000_000
Note = tuple[float, str, tuple[object, ...]]


class Stage:
    """Where a story is played, and what was noted of it."""

    def __init__(self, plan: Plan, mask: Mask) -> None:
        self.plan = plan
        self.mask = mask
        self.dice = Dice(plan, mask)
        order = random.Random(f"order {plan.seed}") if plan.shuffles else None
        self.loop = VirtualLoop(order, self._disk_delay, plan.grid_seconds)
        self.outside = contextvars.Context()
        """Of the world around the simulated processes."""
        self.clock_offset = 0
        self.is_clock_unset = False
        """As on a machine that has just started, and has no clock of its own."""
        self.tried_at: dict[str, float] = {}
        """When operators last had a charge tried: then its pauses begin anew."""
        self.notes: list[Note] = []
        self.found: list[Violation] = []

    def _disk_delay(self) -> float:
        return self.dice.uniform(0.01, 1.0) if self.dice.fires("slow_disk") else 0.0

    def note(self, who: str, *what: object) -> None:
        """Tell the story."""
        self.notes.append((self.loop.time(), who, what))

    def broke(self, invariant: str, where: str, text: str) -> None:
        """Something that cannot be seen from the outside afterwards."""
        self.found.append(Violation(invariant, where, text))
        self.note("judge", invariant, where, text)

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Let the world do something at a time."""
        self.loop.call_at(when, what, *args, context=self.outside)

    def later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        """Let the world do something later."""
        self.loop.call_later(seconds, what, *args, context=self.outside)

    def now(self) -> int:
        """What the clock on the wall says: microseconds since 1970, and it may jump."""
        begin = -3_600_000_000 if self.is_clock_unset else EPOCH + self.clock_offset
        return begin + int(self.loop.time() * 1_000_000)
