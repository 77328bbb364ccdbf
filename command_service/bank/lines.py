"""The lines to all banks, by the banks' names, and the choice of the bank for a new charge."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from command_service.bank.line import Line
from command_service.values import Request

Rule = Callable[[Request], Sequence[str]]
"""Names the banks that may take a new charge, the preferred one first; at least one."""

THE_ONLY_ONE = ""
"""The name of the bank that COMMAND_BANK_URL names, and of the bank of charges that were accepted before banks had names."""


class Lines:
    """The way to every bank."""

    def __init__(self, lines: Mapping[str, Line], rule: Rule) -> None:
        """The rule names banks of `lines` only."""
        self._lines = lines
        self._rule = rule

    def at(self, bank: str) -> Line:
        """Return the line to the bank of a charge, by the name that its request bears."""
        return self._lines[bank]

    def choose(self, request: Request) -> str:
        """Choose the bank for a charge, if it turns out to be new: the first one of the rule's that is not spared."""
        names = self._rule(request)
        return next((name for name in names if not self._lines[name].is_spared), names[0])

    def __iter__(self) -> Iterator[tuple[str, Line]]:
        return iter(self._lines.items())
