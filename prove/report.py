"""What a harness hands back: how much it tried, how often each fault really fired, and what broke."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# A fault that fired more seldom than this in a long run was hardly tried.
RARE = 50


@dataclass
class Harness:
    """One harness's figures. `unit` says what `tried` counts, such as "seeds" or "power cuts"."""

    name: str
    unit: str
    tried: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    """One text each: the invariant, where, and how to see it again."""
    faults: Counter[str] = field(default_factory=Counter)
    """How often each fault really fired, not how often it was asked for. What is known and never fired is here with 0."""
    canaries_planted: int = 0
    canaries_found: int = 0
    controls: dict[str, bool] = field(default_factory=dict)
    """A run that must fail, by name: True if it failed as it must."""
    complete: dict[str, str] = field(default_factory=dict)
    """Kinds that need not fire RARE times: the few times are all there are, or it is an outcome. By kind, the reason."""
    enumerated: dict[str, int] = field(default_factory=dict)
    """What was tried in full, and of how many cases it consists."""
    skipped: dict[str, str] = field(default_factory=dict)
    """What could not be tried on this machine, and why."""
    figures: dict[str, str] = field(default_factory=dict)
    """What was measured besides."""

    @property
    def is_sound(self) -> bool:
        """Something was tried and nothing broke, every canary was found, every control failed as it must."""
        is_every_plant_found = self.canaries_found == self.canaries_planted and all(self.controls.values())
        return self.tried > 0 and not self.violations and is_every_plant_found

    @property
    def rare(self) -> list[str]:
        """The kinds that fired too seldom to have shown much."""
        return sorted(kind for kind, times in self.faults.items() if times < RARE and kind not in self.complete)

    def found(self, invariant: str) -> bool:
        """Whether an invariant is among what broke, by its name: what a control expects, and not just anything."""
        return any(re.search(rf"\b{invariant}\b", text) for text in self.violations)

    def knows(self, kinds: Iterable[str]) -> None:
        """Name kinds that are to fire, so that one that never does is told."""
        self.faults.update(dict.fromkeys(kinds, 0))

    def add(self, part: "Harness") -> None:
        """Add what a part of it tried, in another process perhaps."""
        self.tried += part.tried
        self.violations += part.violations
        self.faults.update(part.faults)

    def as_json(self) -> dict[str, Any]:
        """The harness's entry in build/prove.json."""
        return {
            "name": self.name,
            "tried": self.tried,
            "unit": self.unit,
            "seconds": round(self.seconds, 1),
            "violations": self.violations,
            "faults": dict(sorted(self.faults.items())),
            "canaries": {"planted": self.canaries_planted, "found": self.canaries_found},
            "controls": self.controls,
            "complete": self.complete,
            "enumerated": self.enumerated,
            "skipped": self.skipped,
            "figures": self.figures,
        }


Say = Callable[[str], None]
"""Tells a person how far it is; called at most a few times a second, with a text of one line."""
