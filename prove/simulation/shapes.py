"""The banks that a story has: of which shape each is, and how it keeps its promises."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BankPlan:
    """One of a story's banks."""

    name: str = ""
    """Empty: the bank of COMMAND_BANK_URL, which is of two steps."""
    kind: str = "two_step"
