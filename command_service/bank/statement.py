"""A bank's statement: what the bank says has moved, line by line, whatever form its bank gives it.

A source reads one statement and yields its lines in batches, so that a million of them need no memory. It promises that every
movement of the bank's, of the kinds in `kinds`, from `covers_from` up to `covers_to` is in it. Who compares it with the journal
rests on that: a movement of ours that is not there is missing only if it must be there.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol


class LineKind(IntEnum):
    """The kind of a line. The first five are those of operations."""

    CHARGE = 1
    AUTHORIZE = 2
    CAPTURE = 3
    VOID = 4
    REFUND = 5
    PAYMENT = 6  # A charge or a capture: the statement does not tell which.
    FEE = 7
    PAYOUT = 8
    CHARGEBACK = 9
    NET = 10  # The sum of a day's movements, in one line.


OTHERS = frozenset({LineKind.FEE, LineKind.PAYOUT, LineKind.CHARGEBACK})
"""Lines that no operation of ours stands behind: they are listed, and are no differences."""
WITHOUT_MONEY = frozenset({LineKind.AUTHORIZE, LineKind.VOID})
"""Operations that hold money or let it go: nothing moves."""


class Line(NamedTuple):
    """A line of a statement.

    `reference` is our name of the operation and `transaction_id` the bank's; each is empty if the line does not tell it.
    `minor_units` is what the merchant gets by it, negative for what the merchant gives; of a hold, what is held or let go.
    `at` is in microseconds since 1970. `has_moved`: false for a line that says that nothing moved, or that it was undone.
    `hold` is our reference of the hold, of a line of a capture that tells only this one. `is_reversal`: it says that money that
    had moved went back the way it came; the amount is that of the first movement, and `has_moved` is false.
    """

    kind: LineKind
    reference: str
    transaction_id: str
    minor_units: int
    currency_code: str
    at: int
    has_moved: bool = True
    hold: str = ""
    is_reversal: bool = False


class StatementUnusable(Exception):
    """The statement cannot be had or read; the text says why, and quotes nothing of it but words for kinds."""


class StatementAway(StatementUnusable):
    """The bank does not give its statement."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time: from a moment on, up to another, in microseconds since 1970."""

    begin: int
    end: int

    def has(self, at: int) -> bool:
        """Whether a moment is in it."""
        return self.begin <= at < self.end


class Statement(Protocol):
    """A source of a bank's statement."""

    @property
    def kinds(self) -> Collection[LineKind]:
        """The kinds of operation that the statement has. Statements of what was settled have no holds and no voids."""
        ...

    def batches(self, wanted: Span) -> AsyncIterator[Sequence[Line]]:
        """Read the lines of a span of time, and perhaps some of before and after it. Raises StatementUnusable."""
        ...

    @property
    def covers(self) -> Span:
        """The span in which no line is missing, once all batches were read."""
        ...

    async def close(self) -> None:
        """Let go of connections and files."""
        ...
