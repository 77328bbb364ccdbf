"""What a harness hands back: how much it tried, how often each fault really fired, and what broke."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


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
    """How often each fault really fired, not how often it was asked for."""
    canaries_planted: int = 0
    canaries_found: int = 0
    controls: dict[str, bool] = field(default_factory=dict)
    """A run that must fail, by name: True if it failed as it must."""
    skipped: dict[str, str] = field(default_factory=dict)
    """What could not be tried on this machine, and why."""

    @property
    def is_sound(self) -> bool:
        """Nothing broke, every canary was found, every control failed as it must."""
        return not self.violations and self.canaries_found == self.canaries_planted and all(self.controls.values())

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
            "skipped": self.skipped,
        }


Say = Callable[[str], None]
"""Tells a person how far it is; called at most a few times a second, with a text of one line."""
