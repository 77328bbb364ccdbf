"""What a pair of an entry and its lines means. Pure.

    the journal        the statement                     it is
    -----------------  --------------------------------  ------------------------------------------------------------
    moved              one line, equal                   matched
    moved              one line, another amount          AMOUNT_DIFFERS
    moved              one line, another kind or id      STATUS_DIFFERS
    moved              says that it did not move         STATUS_DIFFERS
    moved              nothing                           MISSING_AT_BANK; AT_EDGE if the line may be beyond what was read
    not moved, not     one line                          STATUS_DIFFERS
    known yet
    not moved, not     nothing, or says that it did      nothing
    known yet          not move
    no such operation  one line                          MISSING_HERE
    any                each further line that moved      TWICE

A line that says that the money did not move takes back an earlier one that says that it did, under the same id of a
transaction, and no other. A reversal takes back that one too, or else an earlier one of the same amount if one of both has no
id. On one day both then count as nothing. Else the first counts on its day, and its reversal is STATUS_DIFFERS on its own; so
is a reversal of what is not among the lines, which may have been matched long ago.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from command_service.bank.statement import WITHOUT_MONEY, Line, LineKind, Span
from command_service.reconciling.books import Pair
from command_service.reconciling.entries import Entry, State


class FindingKind(IntEnum):
    """The kind of a finding, with the numbers of the contract."""

    MISSING_AT_BANK = 1
    MISSING_HERE = 2
    AMOUNT_DIFFERS = 3
    STATUS_DIFFERS = 4
    TWICE = 5
    FEE = 6
    PAYOUT = 7
    CHARGEBACK = 8
    AT_EDGE = 9


DIFFERENCES = frozenset(
    {
        FindingKind.MISSING_AT_BANK,
        FindingKind.MISSING_HERE,
        FindingKind.AMOUNT_DIFFERS,
        FindingKind.STATUS_DIFFERS,
        FindingKind.TWICE,
    }
)
"""The findings that somebody must explain."""


class Sum(NamedTuple):
    """What a pair adds to a day's sums in a currency, in minor units."""

    day: int
    currency_code: str
    matched: int
    bank_minor: int
    journal_minor: int
    other_minor: int = 0


class Finding(NamedTuple):
    """What is not simply matched. `entry` and `line` are the two sides, as far as they are there.

    `bank_minor` and `journal_minor` are the sides' amounts: of a hold what it holds. `is_proof`: no other line is of this
    operation, and this one is equal in kind, amount and currency.
    """

    kind: FindingKind
    day: int
    currency_code: str
    bank_minor: int
    journal_minor: int
    entry: Entry | None
    line: Line | None
    is_proof: bool = False


class Judged(NamedTuple):
    """What came of a pair."""

    sums: Sequence[Sum]
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Terms:
    """What is compared: a span of time, against a statement that covers one, of these kinds of operation."""

    span: Span
    covers: Span
    kinds: Collection[LineKind]
    day_of: Callable[[int], int]
    clock_difference: int
    """The most by which the bank's clock and ours differ, in microseconds."""
    lag: int = 0
    """The most by which the bank dates a line later than it moved the money, in microseconds."""

    def may_be_beyond(self, entry: Entry) -> bool:
        """Whether the bank may have moved the money outside of what the statement covers."""
        return (
            entry.began - self.clock_difference < self.covers.begin
            or entry.at + self.clock_difference + self.lag >= self.covers.end
        )


NOTHING = Judged((), ())


def judge(pair: Pair, terms: Terms) -> Judged:
    """Say what a pair means."""
    entry, lines = pair
    if len(lines) == 1 and entry is not None and entry.state == State.MOVED and _is_equal(entry, lines[0]):
        line = lines[0]
        if not terms.span.has(line.at):
            return NOTHING
        effect = _effect(line.kind, line.minor_units)
        return Judged((Sum(terms.day_of(line.at), line.currency_code, 1, effect, effect),), ())
    has_moved, denials, reversals = _that_moved(sorted(lines), terms.day_of)  # alike, however the statement is sorted
    sums, findings = list[Sum](), list[Finding]()
    if entry is not None and entry.state == State.MOVED and not has_moved:
        # By days: a statement may tell no more of a line.
        first_day = terms.day_of(entry.began - terms.clock_difference)
        about = [it for it in (*reversals, *denials) if terms.day_of(it.at) >= first_day and _may_be_of(entry, it)]
        judged = _without_line(entry, about[0] if about else None, terms)
        sums, findings = [*judged.sums], [*judged.findings]
        reversals = [line for line in reversals if line is not (about[0] if about else None)]
    for line in reversals:
        if terms.span.has(line.at):
            day, code = terms.day_of(line.at), line.currency_code
            sums.append(Sum(day, code, 0, -_effect(line.kind, line.minor_units), 0))
            both = _whole(entry), _whole_line(line)
            findings.append(Finding(FindingKind.STATUS_DIFFERS, day, code, -line.minor_units, 0, *both))
    partner = _partner(entry, has_moved)
    for number, line in enumerate(has_moved):
        if not terms.span.has(line.at):
            continue
        day, effect = terms.day_of(line.at), _effect(line.kind, line.minor_units)
        ours = entry if entry is not None and number == partner and entry.state == State.MOVED else None
        if ours is not None and _is_equal(ours, line):
            sums.append(Sum(day, line.currency_code, 1, effect, effect))
            continue
        sums.append(Sum(day, line.currency_code, 0, effect, 0))
        journal_minor = 0
        if ours is not None:
            journal_minor = ours.minor_units
            sums.append(Sum(day, ours.currency_code, 0, 0, _effect(ours.kind, ours.minor_units)))
        kind = _kind(entry, line, is_first=number == partner)
        both = _whole(entry), _whole_line(line)
        is_proof = len(lines) == 1 and entry is not None and _is_equal(entry, line)
        findings.append(Finding(kind, day, line.currency_code, line.minor_units, journal_minor, *both, is_proof))
    return Judged(sums, findings)


def _kind(entry: Entry | None, line: Line, *, is_first: bool) -> FindingKind:
    if not is_first:
        return FindingKind.TWICE
    if entry is None:
        return FindingKind.MISSING_HERE
    if entry.state != State.MOVED:
        return FindingKind.STATUS_DIFFERS
    is_amount_equal = (entry.minor_units, entry.currency_code) == (line.minor_units, line.currency_code)
    return FindingKind.STATUS_DIFFERS if is_amount_equal else FindingKind.AMOUNT_DIFFERS


def _without_line(entry: Entry, undone: Line | None, terms: Terms) -> Judged:
    """Judge an entry that moved, of which the statement has no line, or one that takes it back."""
    if entry.kind not in terms.kinds and undone is None:
        return NOTHING
    at = entry.at if undone is None else undone.at
    if not terms.span.has(at):
        return NOTHING
    day, minor_units = terms.day_of(at), entry.minor_units
    is_sure = undone is not None and (undone.is_reversal or undone.transaction_id == entry.transaction_id)
    if not is_sure and terms.may_be_beyond(entry):
        return Judged(
            (), (Finding(FindingKind.AT_EDGE, day, entry.currency_code, 0, minor_units, _whole(entry), None),)
        )
    kind = FindingKind.MISSING_AT_BANK if undone is None else FindingKind.STATUS_DIFFERS
    return Judged(
        (Sum(day, entry.currency_code, 0, 0, _effect(entry.kind, minor_units)),),
        (Finding(kind, day, entry.currency_code, 0, minor_units, _whole(entry), _whole_line(undone)),),
    )


def _that_moved(
    lines: Sequence[Line], day_of: Callable[[int], int]
) -> tuple[Sequence[Line], Sequence[Line], Sequence[Line]]:
    """Take back each line that was undone on its day.

    Returns the lines that are left, those that say that nothing moved or took a line back, and the other reversals: of lines of
    another day, and of what is not among the lines.
    """
    has_moved, denials, reversals = [line for line in lines if line.has_moved], list[Line](), list[Line]()
    for each in (line for line in lines if not line.has_moved):
        earlier = [line for line in has_moved if line.at <= each.at]
        taken_back = _named_alike(each, earlier) or (_unnamed(each, earlier) if each.is_reversal else ())
        of_its_day = [line for line in taken_back if day_of(line.at) == day_of(each.at)]
        if of_its_day:
            has_moved.remove(of_its_day[-1])
            denials.insert(0, each)
        elif each.is_reversal or taken_back:
            reversals.append(each)
        else:
            denials.append(each)
    return has_moved, denials, reversals


def _may_be_of(entry: Entry, line: Line) -> bool:
    return not (line.transaction_id and entry.transaction_id) or line.transaction_id == entry.transaction_id


def _named_alike(undone: Line, lines: Sequence[Line]) -> Sequence[Line]:
    return [line for line in lines if line.transaction_id and line.transaction_id == undone.transaction_id]


def _unnamed(reversal: Line, lines: Sequence[Line]) -> Sequence[Line]:
    money = reversal.minor_units, reversal.currency_code
    return [
        line
        for line in lines
        if not (line.transaction_id and reversal.transaction_id) and (line.minor_units, line.currency_code) == money
    ]


def _partner(entry: Entry | None, lines: Sequence[Line]) -> int:
    """Choose the line that stands for the entry: an equal one, else one with its transaction id, else the first."""
    if entry is None or len(lines) < 2:
        return 0
    for number, line in enumerate(lines):
        if _is_equal(entry, line):
            return number
    for number, line in enumerate(lines):
        if line.transaction_id and line.transaction_id == entry.transaction_id:
            return number
    return 0


def _is_equal(entry: Entry, line: Line) -> bool:
    return (
        entry.minor_units == line.minor_units
        and entry.currency_code == line.currency_code
        and (entry.kind == line.kind or (line.kind == LineKind.PAYMENT and entry.kind in _PAYMENTS))
        and (not line.transaction_id or not entry.transaction_id or line.transaction_id == entry.transaction_id)
        and line.has_moved
    )


def _whole(entry: Entry | None) -> Entry | None:
    return entry and entry._replace(kind=LineKind(entry.kind), state=State(entry.state))


def _whole_line(line: Line | None) -> Line | None:
    return line and line._replace(
        kind=LineKind(line.kind), has_moved=bool(line.has_moved), is_reversal=bool(line.is_reversal)
    )


_PAYMENTS = (LineKind.CHARGE, LineKind.CAPTURE)


def _effect(kind: LineKind, minor_units: int) -> int:
    return 0 if kind in WITHOUT_MONEY else minor_units
