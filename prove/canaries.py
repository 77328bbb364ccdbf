"""Planted bugs: each is one that people really make, put into the product for as long as a context lasts.

A harness that finds no planted bug proves nothing. `seeds_that_find` says for each by which seed it was found.
"""

import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import query_service.view
from command_service.api import CommandService
from command_service.bank import Bank
from command_service.bank.breaker import Breaker
from command_service.bank.line import Line
from command_service.intake import Intake
from command_service.journal import Journal
from command_service.parts import Assembled, Parts
from command_service.reception import Reception
from command_service.runner import Runner
from prove import journal_bugs
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
from prove.simulation.loop import patched
from query_service.lookup import find_checkpoint

P = TypeVar("P", bound=Parts)
_apply = query_service.view._apply
_Planted = list[tuple[Any, str, Any]]


def _checkpoint_outside_the_transaction() -> _Planted:
    def apply(connection: sqlite3.Connection, records: Any) -> None:
        move = query_service.view.MOVE_CHECKPOINT
        with patched(
            [
                (
                    query_service.view,
                    "MOVE_CHECKPOINT",
                    "UPDATE checkpoint SET one = 1 WHERE ? + ? + ? + ? + ? + ? NOT NULL",
                )
            ]
        ):
            totals = find_checkpoint(connection).totals
            _apply(connection, records)
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute("SELECT count(*), max(requested_at) FROM charge").fetchone()
        last, first = records[-1], records[0]
        sums = (rows[0], max(totals.latest_requested_at, rows[1]), totals.backstep)
        connection.execute(move, (last.position, last.chain, *sums, first.position - 1))

    return [(query_service.view, "_apply", apply)]


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
    """After some vain calls a charge is given up whose money may move."""

    def bank(self) -> Bank:
        """Make a bank that is given up."""
        return Mishearing(super().bank(), abandoning())


class BankCallsHaveNoLimit(Parts):
    """A burst of charges is a burst of calls."""

    def line(self, bank: Bank) -> Line:
        """Make a line that is never full."""
        return Line(bank, Breaker(self.clock, self.chance()), calls_at_once=1_000_000)


class NoPauseAfterAVainCall(Parts):
    """A bank in trouble is asked as fast as it fails."""

    def chance(self) -> random.Random:
        """Make chance that spreads nothing."""
        return Impatience(0)


class KeyScopeIsForgotten(Parts):
    """Two keys are one charge."""

    def reception(self, journal: Journal, runner: Runner, line: Line) -> Reception:
        """Make a door that mixes keys up."""
        return ShortKeys(super().reception(journal, runner, line)).as_one()


class AnotherBodyIsNotNoticed(Parts):
    """A key that is used again for something else is answered for what it was."""

    def reception(self, journal: Journal, runner: Runner, line: Line) -> Reception:
        """Make a door that does not look at bodies."""
        return FirstBody(super().reception(journal, runner, line)).as_one()


class AJoinReturnsAnothersAnswer(Parts):
    """Who waits is told of another charge."""

    def reception(self, journal: Journal, runner: Runner, line: Line) -> Reception:
        """Make a door that mixes up who waits."""
        return MixedUpJoins(super().reception(journal, runner, line)).as_one()


class TwoBeginOneCharge(Parts):
    """Nobody looks whether another call begins the charge just now, nor does the journal."""

    def assemble(self, journal: Journal, bank: Bank) -> Assembled:
        """Make two loops and two doors that do not know of each other."""
        careless, line = AnyVersion(journal).as_one(), self.line(bank)
        one, other = self.runner(careless, line), self.runner(careless, line)
        doors = [self.reception(careless, runner, line) for runner in (one, other)]
        return Assembled(line, TwoLoops(one, other).as_one(), TwoDoors(*doors).as_one())


class WhatWasFoundIsForgotten(Parts):
    """A start goes on with nothing."""

    async def journal(self) -> Any:
        """Open a journal that does not know what is unfinished."""
        return Forgetful(await super().journal())


class AWakeUpOfTheFeedIsLost(Parts):
    """A reader that begins to wait in a bad moment waits until the next record."""

    async def journal(self) -> Any:
        """Open a journal that wakes too early."""
        return LostWakeUp(await super().journal())


class CardNumbersAreLetIn(Parts):
    """A card's number is no fault of a request."""

    def intake(self) -> Intake:
        """Make an intake that does not see them."""
        return blind_to_card_numbers(super().intake())


class ANewKeyIsAdvisedWhileMoneyMayMove(Parts):
    """A caller is sent away with advice that charges twice."""

    def commands(self, reception: Reception) -> CommandService:
        """Make a service that advises badly."""
        return BadAdvice(super().commands(reception)).as_one()


_BUGS: dict[str, type[Parts]] = {
    re.sub(r"(?<!^)(?=[A-Z])", " ", bug.__name__).lower(): bug
    for bug in (
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
    )
}
_PATCHED: dict[str, Callable[[], _Planted]] = {
    plant.__name__.strip("_").replace("_", " "): plant for plant in (_checkpoint_outside_the_transaction,)
}
NAMES = (*_BUGS, *journal_bugs.SIMULATED, *_PATCHED)


@contextmanager
def planted(name: str, parts: type[P]) -> Iterator[type[P]]:
    """Put a bug into a server's parts; it is there for as long as the context lasts."""
    if name in journal_bugs.NAMES:
        yield cast("type[P]", journal_bugs.into(parts, journal_bugs.named(name)))
    elif name in _BUGS:
        yield cast("type[P]", type("Planted", (_BUGS[name], parts), {}))
    else:
        with patched(_PATCHED[name]()):
            yield parts
