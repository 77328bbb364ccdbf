"""The lines to all banks, by the banks' names, and the choice of the bank for a new charge."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from command_service.bank.line import Line
from command_service.values import CalledOff, CallOff, Expired, InProgress, NoAnswer, Operation, Request

Rule = Callable[[Request], Sequence[str]]
"""Names the banks that may take a new charge, the preferred one first; at least one."""

THE_ONLY_ONE = ""
"""The name of the bank that COMMAND_BANK_URL names, and of the bank of charges that were accepted before banks had names."""


class Choice(NamedTuple):
    """The bank for a charge, if it turns out to be new. `may_begin`: this bank takes a new charge now."""

    bank: str
    may_begin: bool


class Lines:
    """The way to every bank."""

    def __init__(
        self, lines: Mapping[str, Line], rule: Rule, to_missing: Callable[[str], Line], *, unnamed: str = THE_ONLY_ONE
    ) -> None:
        """The rule names banks of `lines` only. `unnamed` is the bank of charges that name none, if it is one of `lines`.

        `to_missing` makes the line of charges at a bank that is none of `lines`.
        """
        self._lines = lines
        self._rule = rule
        self._to_missing = to_missing
        self._missing: dict[str, Line] = {}
        self._unnamed = unnamed

    def lead_to(self, bank: str) -> bool:
        """Whether the bank of a charge is one of those that settings name."""
        return (bank or self._unnamed) in self._lines

    def at(self, bank: str) -> Line:
        """Return the line to the bank of a charge, by the name that its request bears."""
        if self.lead_to(bank):
            return self._lines[bank or self._unnamed]
        if bank not in self._missing:
            self._missing[bank] = self._to_missing(bank)
        return self._missing[bank]

    def want_new_charge(self, request: Request) -> bool:
        """Whether the choice for a charge depends on its being new for certain."""
        return any(self._lines[name].wants_new_charge for name in self._rule(request))

    def choose(self, request: Request, *, is_new: bool = False) -> Choice:
        """Choose the bank for a charge, if it turns out to be new: the first one of the rule's that is not spared.

        One that is spared is tried now and then all the same with a charge that is new for certain (`is_new`): else nobody
        might find it again. A known key that comes again and again would take that turn each time.
        """
        names = self._rule(request)
        for name in names:
            line = self._lines[name]
            if not line.is_spared or (is_new and line.tries_new_charge()):
                return Choice(name, may_begin=True)
        return Choice(next((name for name in names if self._lines[name].may_probe), names[0]), may_begin=False)

    def others(self, request: Request, chosen: str) -> Sequence[str]:
        """Name the banks that might have been chosen for a charge instead."""
        return [name for name in self._rule(request) if name != chosen]

    async def find(self, opening: Operation, chosen: str, others: Sequence[str]) -> Choice:
        """Find the bank of a charge that a restored journal may have forgotten: the chosen one, unless another has ended it.

        The choice depends on which banks were spared, and so may have been another one. The others are made to call the charge
        off, which tells whether one has executed or declined it. It may not begin if one does not tell.
        """
        for name in others:
            line = self._lines[name]
            if line.is_spared:
                return Choice(name, may_begin=False)
            performed = await line.perform(CallOff(opening, None), look_up_first=True)
            match performed and performed.answer:
                case CalledOff() | Expired():
                    pass
                case None | NoAnswer() | InProgress():
                    return Choice(name, may_begin=False)
                case _:
                    return Choice(name, may_begin=True)
        return Choice(chosen, may_begin=True)

    def __iter__(self) -> Iterator[tuple[str, Line]]:
        return iter(self._lines.items())
