"""Reads both sides, merges them, and sums up what came of it."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from command_service.bank.statement import OTHERS, WITHOUT_MONEY, Line, LineKind, Span, Statement
from command_service.journal.store import Location
from command_service.reconciling.books import Books, Pair
from command_service.reconciling.days import Calendar
from command_service.reconciling.entries import Entries, Entry
from command_service.reconciling.matching import DIFFERENCES, Finding, FindingKind, Terms, judge
from command_service.reconciling.nets import Day, Midnight, deal
from command_service.reconciling.spilling import Spilling

HOUR = 3_600_000_000
DAY = 24 * HOUR
# A bank that is asked itself is asked for more at both ends: movements about the ends then have their lines. A file is not
# said to have more than the span.
MARGIN = HOUR
# The journal is read from this long before: an operation may have come to rest then, and be dated later.
BACK = DAY

_OTHERS: Mapping[LineKind, FindingKind] = {
    LineKind.PAYOUT: FindingKind.PAYOUT,
    LineKind.CHARGEBACK: FindingKind.CHARGEBACK,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be compared. Times are in microseconds since 1970."""

    bank: str
    span: Span
    zone: tzinfo
    unnamed: str = ""
    """The bank of charges that name none."""
    clock_difference: int = 60_000_000
    lag: int = 0
    margin: int = 0
    """What the statement is asked for at both ends of the span, beyond it."""
    is_daily: bool = False
    """The statement has a line a day. The span then is of whole days."""


@dataclass(slots=True)
class Progress:
    """How far it is."""

    statement_lines: int = 0
    journal_records: int = 0
    journal_head: int = 0


@dataclass(slots=True)
class Totals:
    """The sums of one day and currency, in minor units."""

    matched: int = 0
    bank_minor: int = 0
    journal_minor: int = 0
    other_minor: int = 0

    @property
    def difference_minor(self) -> int:
        """The bank's less the journal's."""
        return self.bank_minor - self.journal_minor


class Comparison:
    """One reconciliation, its files in a folder: go through `findings` once."""

    def __init__(self, asked: Asked, folder: Path, tell: Callable[[Progress], None]) -> None:
        self.asked = asked
        self.days: dict[tuple[int, str], Totals] = {}
        """By day and currency."""
        self.counts: dict[FindingKind, int] = {}
        self._folder = folder
        self._books = Books(folder / "lines.db")
        self._calendar = Calendar(asked.zone)
        self._progress = Progress()
        self._tell = tell
        self._kinds: Collection[LineKind] = ()
        self._covers = asked.span
        self._fees: dict[tuple[int, str], int] = {}
        """By day and currency: nearly every line may have one."""

    def findings(self, statement: Statement, journal: Location) -> Iterator[Finding]:
        """Read the statement and the journal; yield what is not simply matched, differences first.

        When it ends, the sums are complete. Raises StatementUnusable, JournalRefused, JournalCorrupt, OSError.
        """
        asked = self.asked
        since = asked.span.begin - BACK - asked.lag
        spilling = Spilling(journal, self._is_wanted, since, self._folder / "entries.db")
        try:
            with journal.read() as reading:
                self._progress.journal_head = reading.head.position
            asyncio.run(self._read_statement(statement, spilling))
            self._books.sort()
            spilling.wait(lambda: self._told(spilling))
            self._told(spilling)
        finally:
            spilling.stop()
        self._books.take(self._folder / "entries.db")
        self._books.name_lines()
        with journal.read() as reading:
            entries = Entries(reading, self._is_wanted)
            for finding in self._sums_of_days() if asked.is_daily else self._pairs(entries):
                self._count(finding.kind)
                yield finding
        yield from self._others()

    def _told(self, spilling: Spilling) -> None:
        self._progress.journal_records = spilling.position
        self._tell(self._progress)

    def _is_wanted(self, named: str) -> bool:
        return (named or self.asked.unnamed) == self.asked.bank

    def _count(self, kind: FindingKind) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    async def _read_statement(self, statement: Statement, spilling: Spilling) -> None:
        span, margin, self._kinds = self.asked.span, self.asked.margin, statement.kinds
        try:
            async for batch in statement.batches(Span(span.begin - margin, span.end + margin)):
                self._books.add_lines([line for line in batch if line.kind is not LineKind.FEE])
                for line in batch:
                    if line.kind is LineKind.FEE and span.has(line.at):
                        key = self._calendar.day_of(line.at), line.currency_code
                        self._fees[key] = self._fees.get(key, 0) + line.minor_units
                self._progress.statement_lines += len(batch)
                self._told(spilling)
        finally:
            await statement.close()
        self._covers = statement.covers

    @property
    def _terms(self) -> Terms:
        asked = self.asked
        return Terms(asked.span, self._covers, self._kinds, self._calendar.day_of, asked.clock_difference, asked.lag)

    def _others(self) -> Iterator[Finding]:
        asked = self.asked
        for line in self._books.others():
            if line.kind in OTHERS and asked.span.has(line.at):
                day = self._calendar.day_of(line.at)
                yield self._listed(_OTHERS[line.kind], day, line.currency_code, line.minor_units, line)
        for (day, code), minor_units in sorted(self._fees.items()):
            yield self._listed(FindingKind.FEE, day, code, minor_units, None)

    def _listed(self, kind: FindingKind, day: int, code: str, minor_units: int, line: Line | None) -> Finding:
        self._totals(day, code).other_minor += minor_units
        self._count(kind)
        return Finding(kind, day, code, minor_units, 0, None, line)

    @property
    def differences(self) -> int:
        """The number of findings that somebody must explain."""
        return sum(number for kind, number in self.counts.items() if kind in DIFFERENCES)

    @property
    def undecided(self) -> int:
        """The number of movements at the edge of the statement, which may or may not be missing."""
        return self.counts.get(FindingKind.AT_EDGE, 0)

    @property
    def is_balanced(self) -> bool:
        """Whether the sums are equal and there is no difference."""
        return not self.differences and not any(totals.difference_minor for totals in self.days.values())

    def close(self) -> None:
        """Let go of the files."""
        self._books.close()

    def _totals(self, day: int, code: str) -> Totals:
        totals = self.days.get((day, code))
        if totals is None:
            totals = self.days[day, code] = Totals()
        return totals

    def _pairs(self, entries: Entries) -> Iterator[Finding]:
        terms = self._terms
        for pair in self._books.pairs():
            if pair.entry is None and pair.lines[0].reference:
                # It may have come to rest long before: a charge is found by its reference, however old.
                pair = Pair(entries.find(pair.lines[0].reference), pair.lines)  # noqa: PLW2901  # the same pair
            sums, findings = judge(pair, terms)
            for each in sums:
                totals = self._totals(each.day, each.currency_code)
                totals.matched += each.matched
                totals.bank_minor += each.bank_minor
                totals.journal_minor += each.journal_minor
            yield from findings

    # ------------------------------------------------------------ one line a day
    def _sums_of_days(self) -> Iterator[Finding]:
        terms = self._terms
        nets = self._nets(terms)
        days = range(terms.day_of(terms.span.begin), terms.day_of(terms.span.end - 1) + 1)
        for code in sorted({code for _, code in nets} | set(self._currencies(terms))):
            yield from self._dealt(code, days, nets)

    def _nets(self, terms: Terms) -> Mapping[tuple[int, str], int]:
        nets: dict[tuple[int, str], int] = {}
        for line in self._books.others():
            if line.kind == LineKind.NET and terms.span.has(line.at):
                key = terms.day_of(line.at), line.currency_code
                nets[key] = nets.get(key, 0) + line.minor_units
        return nets

    def _currencies(self, terms: Terms) -> Collection[str]:
        return {entry.currency_code for entry in self._moved(terms)}

    def _moved(self, terms: Terms) -> Iterator[Entry]:
        span, slack = terms.span, terms.clock_difference
        for entry in self._books.moved():
            is_near = entry.began - slack < span.end and entry.at + slack >= span.begin
            if is_near and entry.kind not in WITHOUT_MONEY:
                yield entry

    def _dealt(self, code: str, days: range, nets: Mapping[tuple[int, str], int]) -> Iterator[Finding]:
        begins = [self._calendar.begin_of(day) for day in range(days.start, days.stop + 1)]
        certain, counts = [0] * len(days), [0] * len(days)
        about: list[list[int]] = [[] for _ in begins]
        before = [0] * len(begins)
        slack = self.asked.clock_difference
        for entry in self._books.moved():
            if entry.kind in WITHOUT_MONEY or entry.currency_code != code:
                continue
            earliest, latest = entry.began - slack, entry.at + slack
            if latest < begins[0] or earliest >= begins[-1]:
                continue
            day = self._calendar.day_of(entry.at) - days.start
            midnight = bisect_right(begins, earliest)
            if midnight == bisect_right(begins, latest):
                certain[day] += entry.minor_units
            else:
                about[midnight].append(entry.minor_units)
                before[midnight] += entry.minor_units if entry.at < begins[midnight] else 0
            if 0 <= day < len(days):
                counts[day] += 1
        sums = [Day(nets.get((days[n], code), 0), certain[n]) for n in range(len(days))]
        dealt = deal(sums, [Midnight(each, before[n]) for n, each in enumerate(about)])
        for n, (net, sure) in enumerate(sums):
            ours = sure + sum(about[n]) - dealt[n] + dealt[n + 1]
            totals = self._totals(days[n], code)
            totals.bank_minor, totals.journal_minor = net, ours
            if net != ours:
                yield Finding(FindingKind.AMOUNT_DIFFERS, days[n], code, net, ours, None, None)
            else:
                totals.matched = counts[n]
        for n, day_at in ((0, days[0]), (len(sums), days[-1])):
            if beyond := dealt[n] - before[n]:
                yield Finding(FindingKind.AT_EDGE, day_at, code, 0, beyond, None, None)
