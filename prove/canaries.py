"""Planted bugs: each is one that people really make.

A bug is a mix-in for a server's parts, of which it makes one wrong: mostly by standing around the right one. It is planted
into the parts of a story's servers, or of a real process (`prove.sabotaged`); the product's code stays as it is. A harness
that finds no planted bug proves nothing.
"""

import random
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from command_service.api import CommandService
from command_service.attempts import Memory
from command_service.bank import Bank
from command_service.bank.line import Line
from command_service.bank.lines import THE_ONLY_ONE, Lines
from command_service.intake import Intake
from command_service.journal import Journal
from command_service.parts import Assembled, Parts
from command_service.reception import Reception
from command_service.runner import Runner
from prove import database_bugs, desk_bugs, journal_bugs, operation_bugs, shape_bugs
from prove.bank_bugs import ARefusalIsBelievedAtOnce, ChargedOnAMismatchingAnswer
from prove.loop_bugs import (
    AnyVersion,
    BadAdvice,
    FirstBody,
    Forgetful,
    Hasty,
    Impatience,
    LostWakeUp,
    Mishearing,
    MixedUpJoins,
    ShortKeys,
    TwoDoors,
    TwoLoops,
    abandoning,
    blind_to_card_numbers,
    in_progress_is_taken_for_declined,
    new_token_after_a_timeout,
    no_answer_is_taken_for_declined,
)
from prove.view_bugs import CheckpointOutsideTheTransaction

P = TypeVar("P", bound=Parts)


# ---------------------------------------------------------------- by the parts of a server
class ExecuteBeforeTheTokenIsDurable(Parts):
    """The next step is taken before the journal holds the last one."""

    def bank(self) -> Bank:
        """Make a bank that is asked too early."""
        return Hasty(super().bank())


class NewTokenAfterATimeout(Parts):
    """A timeout counts as a no."""

    def bank(self) -> Bank:
        """Make a bank that is misheard."""
        return Mishearing(super().bank(), new_token_after_a_timeout)


class InProgressIsTakenForDeclined(Parts):
    """Not yet counts as a no."""

    def bank(self) -> Bank:
        """Make a bank that is misheard."""
        return Mishearing(super().bank(), in_progress_is_taken_for_declined)


class NoAnswerIsTakenForDeclined(Parts):
    """Silence counts as a no."""

    def bank(self) -> Bank:
        """Make a bank that is misheard."""
        return Mishearing(super().bank(), no_answer_is_taken_for_declined)


class AbandonedInTheExecuteStep(Parts):
    """A charge whose money may move is given up after some unanswered calls."""

    def bank(self) -> Bank:
        """Make a bank whose charges are given up."""
        return Mishearing(super().bank(), abandoning())


class BankCallsHaveNoLimit(Parts):
    """A burst of charges is a burst of calls."""

    def line(self, bank: Bank, *, calls_at_once: int, name: str = THE_ONLY_ONE) -> Line:
        """Make a line that is never full."""
        del calls_at_once
        return super().line(bank, calls_at_once=1_000_000, name=name)


class NoPauseAfterAVainCall(Parts):
    """A failing bank is asked again without a pause."""

    def chance(self) -> random.Random:
        """Make chance that spreads nothing."""
        return Impatience(0)


class KeyScopeIsForgotten(Parts):
    """Two keys are one charge."""

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make a door that mixes keys up."""
        return ShortKeys(super().reception(journal, runner, lines)).as_one()


class AnotherBodyIsNotNoticed(Parts):
    """A second request under a used key gets the answer to the first, whatever it asks for."""

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make a door that does not look at bodies."""
        return FirstBody(super().reception(journal, runner, lines)).as_one()


class AJoinReturnsAnothersAnswer(Parts):
    """A caller that waits for one charge is told of another."""

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make a door that mixes up its callers."""
        return MixedUpJoins(super().reception(journal, runner, lines)).as_one()


class TwoBeginOneCharge(Parts):
    """Neither the door nor the journal sees that another call begins the charge at the same time."""

    def assemble(self, journal: Journal, banks: Mapping[str, Bank]) -> Assembled:
        """Make two loops and two doors that do not know of each other."""
        careless, lines = AnyVersion(journal).as_one(), self.lines(banks)
        one, other = self.runner(careless, lines), self.runner(careless, lines)
        doors = [self.reception(careless, runner, lines) for runner in (one, other)]
        memory = Memory(one, lines, careless)
        return Assembled(lines, TwoLoops(one, other).as_one(), TwoDoors(*doors).as_one(), memory)


class WhatWasFoundIsForgotten(Parts):
    """A start goes on with none of the unfinished charges."""

    async def journal(self) -> Any:
        """Open a journal that does not know what is unfinished."""
        return Forgetful(await super().journal())


class AWakeUpOfTheFeedIsLost(Parts):
    """A reader that begins to wait at the wrong moment waits until the next record."""

    async def journal(self) -> Any:
        """Open a journal that wakes too early."""
        return LostWakeUp(await super().journal())


class CardNumbersAreLetIn(Parts):
    """A card's number is no fault of a request."""

    def intake(self) -> Intake:
        """Make an intake that does not see them."""
        return blind_to_card_numbers(super().intake())


class ANewKeyIsAdvisedWhileMoneyMayMove(Parts):
    """A caller gets advice that leads to a second charge."""

    def commands(self, reception: Reception) -> CommandService:
        """Make a service that advises badly."""
        return BadAdvice(super().commands(reception)).as_one()


_CLASSES: tuple[type[Parts], ...] = (
    ExecuteBeforeTheTokenIsDurable,
    NewTokenAfterATimeout,
    InProgressIsTakenForDeclined,
    NoAnswerIsTakenForDeclined,
    AbandonedInTheExecuteStep,
    BankCallsHaveNoLimit,
    NoPauseAfterAVainCall,
    KeyScopeIsForgotten,
    AnotherBodyIsNotNoticed,
    AJoinReturnsAnothersAnswer,
    TwoBeginOneCharge,
    WhatWasFoundIsForgotten,
    AWakeUpOfTheFeedIsLost,
    ANewKeyIsAdvisedWhileMoneyMayMove,
    CardNumbersAreLetIn,
    ChargedOnAMismatchingAnswer,
    ARefusalIsBelievedAtOnce,
    *operation_bugs.BUGS,
    *shape_bugs.BUGS,
    *desk_bugs.BUGS,
)


def _named(bug: type[Parts]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", bug.__name__).lower()


_BUGS = {_named(bug): bug for bug in _CLASSES}
OF_THE_VIEW = "checkpoint outside the transaction"
OF_A_DATABASE = frozenset(database_bugs.BUGS)
OF_THE_DESK = frozenset(map(_named, desk_bugs.BUGS))
"""Those that take operators."""
OF_OTHER_BANKS = {_named(bug): kind for bug, kind in shape_bugs.BUGS.items()}
"""Those that take other banks than the one of two plain steps, each with the trait of banks that shows it."""
NAMES = (*_BUGS, *journal_bugs.SIMULATED, OF_THE_VIEW, *database_bugs.BUGS)


def planted(name: str, parts: type[P]) -> type[P]:
    """Put a bug into a command server's parts, or into a query server's that they bring with them."""
    wrong: type
    if name in journal_bugs.NAMES:
        wrong = journal_bugs.into(parts, journal_bugs.named(name))
    elif name in OF_A_DATABASE:
        wrong = journal_bugs.into(parts, database_bugs.BUGS[name])
    elif name == OF_THE_VIEW:
        torn = type("PlantedQueries", (CheckpointOutsideTheTransaction, cast("Any", parts).query_parts), {})
        wrong = type("Planted", (parts,), {"query_parts": torn})
    else:
        wrong = type("Planted", (_BUGS[name], parts), {})
    return cast("type[P]", wrong)
