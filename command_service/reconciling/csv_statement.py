"""A statement in CSV files, by their mapping. Files are read as streams, one after the other."""

import csv
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NoReturn

from command_service.bank.statement import WITHOUT_MONEY, Line, LineKind, Span, StatementUnusable
from command_service.reconciling.amounts import minor_units_in
from command_service.reconciling.days import Calendar
from command_service.reconciling.mapping import Column, MappingOfCsv
from command_service.reconciling.words import is_plain
from contract.currencies import EXPONENTS

LINES_A_BATCH = 5_000
# Different texts of times and of amounts that are remembered: many lines have the same.
REMEMBERED = 100_000
_OUTGOING = frozenset({LineKind.REFUND, LineKind.FEE, LineKind.PAYOUT, LineKind.CHARGEBACK})

Row = Sequence[str]


class _Status(Enum):
    MOVED, NOT_MOVED, WENT_BACK = range(3)


_MOVED, _NOT_MOVED, _WENT_BACK = _Status


class CsvStatement:
    """See `command_service.bank.statement.Statement`. Files cover the span that is wanted, and their days beside it."""

    def __init__(self, files: Sequence[Path], mapping: MappingOfCsv) -> None:
        self.kinds: Collection[LineKind] = mapping.kinds
        self.covers = Span(0, 0)
        self._files = files
        self._mapping = mapping
        self._calendar = Calendar(mapping.zone)

    async def batches(self, wanted: Span) -> AsyncIterator[Sequence[Line]]:
        """Read all lines of all files; see the port."""
        day_of = self._calendar.day_of
        before, after = set[int](), set[int]()
        for file in self._files:
            lines = _File(file, self._mapping).lines()
            while batch := list(islice(lines, LINES_A_BATCH)):
                before.update(day_of(line.at) for line in batch if line.at < wanted.begin)
                after.update(day_of(line.at) for line in batch if line.at >= wanted.end)
                yield batch
        self.covers = self._covered(wanted, before, after)

    def _covered(self, wanted: Span, before: Collection[int], after: Collection[int]) -> Span:
        """Return the span and the days of lines that join it without a gap."""
        begin, end, calendar = wanted.begin, wanted.end, self._calendar
        while before and (day := calendar.day_of(begin - 1)) in before:
            begin = calendar.begin_of(day)
        while after and (day := calendar.day_of(end)) in after:
            end = calendar.begin_of(day + 1)
        return Span(begin, end)

    async def close(self) -> None:
        """Nothing is open."""


class _File:
    """One file, and the place in it, for whoever is told what is wrong."""

    def __init__(self, file: Path, mapping: MappingOfCsv) -> None:
        self._file = file
        self._mapping = mapping
        self._number = 0
        self._at = lru_cache(REMEMBERED)(_times(mapping))
        self._minor = lru_cache(REMEMBERED)(_amounts(mapping))

    def lines(self) -> Iterator[Line]:
        """Yield its lines. Raises StatementUnusable, naming the line."""
        mapping = self._mapping
        try:
            with self._file.open(encoding=mapping.encoding, newline="") as text:
                for _ in range(mapping.skip_lines):
                    text.readline()
                rows = csv.reader(
                    text,
                    delimiter=mapping.delimiter,
                    quotechar=mapping.quote or None,
                    quoting=csv.QUOTE_MINIMAL if mapping.quote else csv.QUOTE_NONE,
                    strict=True,
                )
                yield from self._read(rows)
        except OSError as error:
            raise StatementUnusable(f"{self._file}: {error.strerror}") from None
        except (csv.Error, UnicodeError):
            raise StatementUnusable(
                f"{self._file}: after line {self._number} it is no CSV in {mapping.encoding} with this delimiter and quote"
            ) from None

    def _read(self, rows: Iterator[Row]) -> Iterator[Line]:
        mapping = self._mapping
        header = next(rows, None) if mapping.has_header else ()
        if header is None:
            raise StatementUnusable(f"{self._file}: it has no header")
        places = {name: self._place(column, header) for name, column in mapping.columns.items()}
        last = max(places.values())
        make = self._maker(places)
        waiting: deque[tuple[int, Row]] = deque()
        for number, row in enumerate(rows, mapping.skip_lines + mapping.has_header + 1):
            if not any(row):
                continue
            waiting.append((number, row))
            if len(waiting) <= mapping.skip_last_lines:
                continue
            self._number, it = waiting.popleft()
            if len(it) <= last:
                self._refuse("has too few columns")
            yield from make(it)

    def _place(self, column: Column, header: Row) -> int:
        if isinstance(column, int):
            return column - 1
        names = [name.strip() for name in header]
        if names.count(column) != 1:
            raise StatementUnusable(f"{self._file}: its header has no column {column!r}, or has it more than once")
        return names.index(column)

    def _maker(self, places: dict[str, int]) -> Callable[[Row], Iterator[Line]]:
        mapping, moment = self._mapping, self._at
        reference_at, transaction_at = places.get("reference"), places.get("transaction_id")
        type_at, currency_at, fee_at = places.get("type"), places.get("currency"), places.get("fee")
        time_at, clock_at, status_at = places["time"], places.get("clock"), places.get("status")
        amount_at, debit_at, credit_at = places.get("amount"), places.get("debit"), places.get("credit")

        def signed(row: Row, code: str) -> int:
            if amount_at is not None:
                return self._amount("amount", row[amount_at], code)
            debit = 0 if debit_at is None else abs(self._amount("debit", row[debit_at] or "0", code))
            credit = 0 if credit_at is None else self._amount("credit", row[credit_at] or "0", code)
            if debit and credit:
                self._refuse("has both a debit and a credit")
            return credit - debit

        def make(row: Row) -> Iterator[Line]:
            kind = None if type_at is None else self._kind(row[type_at].strip())
            if type_at is not None and kind is None:
                return
            code = mapping.currency or ("" if currency_at is None else row[currency_at].strip().upper())
            if code not in EXPONENTS:
                self._refuse("names no currency in use")
            try:
                at = moment(row[time_at], "" if clock_at is None else row[clock_at])
            except (ValueError, OverflowError):
                self._refuse("has a time that the mapping does not fit")
            amount = signed(row, code)
            fee = 0 if fee_at is None else self._amount("fee", row[fee_at] or "0", code)
            fee = -fee if mapping.is_fee_negative else fee
            if mapping.is_signed_by_type and kind in _OUTGOING:
                amount = -amount
            amount += fee if mapping.has_fee_taken else 0
            status = _MOVED if status_at is None else self._status(row[status_at].strip())
            if status is _WENT_BACK:
                amount = _of_first_movement(kind, amount)
            if mapping.is_daily and kind not in (LineKind.FEE, LineKind.PAYOUT, LineKind.CHARGEBACK):
                kind = LineKind.NET
            elif kind is None:
                kind = LineKind.PAYMENT if amount >= 0 else LineKind.REFUND
            if fee and kind is not LineKind.FEE:
                yield Line(LineKind.FEE, "", "", -fee, code, at)
            yield Line(
                kind,
                "" if reference_at is None else row[reference_at].strip(),
                "" if transaction_at is None else row[transaction_at].strip(),
                abs(amount) if kind in WITHOUT_MONEY else amount,
                code,
                at,
                status is _MOVED,
                is_reversal=status is _WENT_BACK,
            )

        return make

    def _amount(self, name: str, text: str, code: str) -> int:
        try:
            return self._minor(text, code)
        except ValueError:
            self._refuse(f"has an amount in the column {name} that the mapping does not fit")

    def _kind(self, word: str) -> LineKind | None:
        if word not in self._mapping.types:
            self._refuse(f"is of a type that [types] does not have: {word if is_plain(word) else '?'}")
        return self._mapping.types[word]

    def _status(self, word: str) -> _Status:
        mapping = self._mapping
        meanings = ((_MOVED, mapping.moved), (_NOT_MOVED, mapping.not_moved), (_WENT_BACK, mapping.went_back))
        status = next((status for status, words in meanings if word in words), None)
        if status is None:
            self._refuse("has a status that [statuses] does not have")
        return status

    def _refuse(self, why: str) -> NoReturn:
        raise StatementUnusable(f"{self._file}: line {self._number} {why}")


def _of_first_movement(kind: LineKind | None, amount: int) -> int:
    """Return the amount of a movement by the line that says that it went back: without a type its sign tells the way back."""
    if kind is None:
        return -amount
    return -abs(amount) if kind in _OUTGOING else abs(amount)


def _amounts(mapping: MappingOfCsv) -> Callable[[str, str], int]:
    decimal, thousands, is_minor = mapping.decimal, mapping.thousands, mapping.is_minor

    def read(text: str, code: str) -> int:
        return minor_units_in(text, 0 if is_minor else EXPONENTS[code], decimal=decimal, thousands=thousands)

    return read


def _times(mapping: MappingOfCsv) -> Callable[[str, str], int]:
    """Make the reader of times: microseconds since 1970. It raises ValueError."""
    form, zone = mapping.time_format, mapping.zone
    if mapping.clock_format:
        form = f"{form} {mapping.clock_format}"

    def read(text: str, clock: str) -> int:
        text = f"{text.strip()} {clock.strip()}" if clock else text.strip()
        at = datetime.fromisoformat(text) if form.startswith("iso") else datetime.strptime(text, form)  # noqa: DTZ007
        if at.tzinfo is None:
            at = at.replace(tzinfo=zone)
        if not 1970 < at.year < 9999:  # a day before and after it, in any zone, is a day
            raise ValueError("no time of a payment")
        since = at.astimezone(UTC) - _BEGIN_OF_TIME
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds

    return read


_BEGIN_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC)
