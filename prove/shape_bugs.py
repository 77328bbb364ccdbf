"""Planted bugs at banks of other shapes than two plain steps, and at several: mix-ins for a server's parts."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from command_service.bank import Bank
from command_service.bank.line import Line
from command_service.bank.lines import Lines
from command_service.parts import Parts
from command_service.values import Answer, Declined, DeclineReason, Effect, NeedsAction
from prove.loop_bugs import Mishearing
from rig.around import Around


class Believing(Around[Bank]):
    """A bank of which one believes that it never forgets a key."""

    remembers_seconds = math.inf


class AKeyIsBelievedForEver(Parts):
    """Nobody looks up first, however old an operation is."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks that are believed."""
        return {name: Believing(bank) for name, bank in super().banks().items()}


class AnAwaitedCustomerIsTakenForDeclined(Parts):
    """A step that the bank wants of the customer counts as a no."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks that are misheard."""
        return {name: Mishearing(bank, _declined) for name, bank in super().banks().items()}


def _declined(_: Effect, answer: Answer) -> Answer:
    return Declined(DeclineReason.AUTHENTICATION_REQUIRED) if isinstance(answer, NeedsAction) else answer


class ACustomerIsSentToAnothersAddress(Parts):
    """All customers are sent to the address of the first one."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks whose addresses are mixed up."""
        mixed_up = _addresses()
        return {name: Mishearing(bank, mixed_up) for name, bank in super().banks().items()}


def _addresses() -> Callable[[Effect, Answer], Answer]:
    first: list[str] = []

    def mixed_up(_: Effect, answer: Answer) -> Answer:
        if not isinstance(answer, NeedsAction):
            return answer
        first.append(answer.url)
        return replace(answer, url=first[0])

    return mixed_up


class FailingOver(Around[Lines]):
    """The lines of charges whose bank changes while it is spared."""

    def at(self, bank: str) -> Line:
        """Return the line to another bank, if the charge's own is spared."""
        line = self.inner.at(bank)
        return next((other for _, other in self.inner if line.is_spared and not other.is_spared), line)

    def __iter__(self) -> Iterator[tuple[str, Line]]:
        return iter(self.inner)


class AChargeUnderWayGoesToAnotherBank(Parts):
    """A charge whose bank does not answer is taken to a bank that does."""

    def lines(self, banks: Mapping[str, Bank]) -> Lines:
        """Make lines that fail over."""
        return FailingOver(super().lines(banks)).as_one()


BUGS: tuple[type[Parts], ...] = (
    AKeyIsBelievedForEver,
    AnAwaitedCustomerIsTakenForDeclined,
    ACustomerIsSentToAnothersAddress,
    AChargeUnderWayGoesToAnotherBank,
)
