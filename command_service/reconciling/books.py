"""Both sides on disk: lines and entries in a temporary SQLite file, merged in the order of references."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from command_service.bank.statement import Line, LineKind
from command_service.reconciling.entries import Entry, State

# Some MB at once.
ROWS_A_WRITE = 20_000
CACHE_KILOBYTES = 100_000

_PRAGMAS = f"""
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA temp_store = FILE;
PRAGMA cache_size = -{CACHE_KILOBYTES}; PRAGMA page_size = 16384;
"""
_TABLES = """
CREATE TABLE line (kind INT, reference TEXT, transaction_id TEXT, minor_units INT, currency_code TEXT, at INT, has_moved INT);
CREATE TABLE entry (
    reference TEXT, charge_id TEXT, kind INT, state INT, minor_units INT, currency_code TEXT, transaction_id TEXT, began INT,
    at INT
);
"""
# A line without a reference of ours gets that of the entry with its transaction id.
_NAME = """
CREATE INDEX by_transaction ON entry (transaction_id) WHERE transaction_id <> '';
UPDATE line SET reference = coalesce(
    (SELECT reference FROM entry WHERE entry.transaction_id = line.transaction_id AND entry.transaction_id <> ''), '')
WHERE reference = '' AND transaction_id <> '' AND kind < 7;
"""
# Sorted rows are read from disk: an index in the order of references would take longer to make.
_ENTRIES = "SELECT * FROM entry ORDER BY reference"
_LINES = "SELECT * FROM line WHERE kind < 7 ORDER BY reference, at"
_OTHERS = "SELECT * FROM line WHERE kind >= 7 ORDER BY at"
_MOVED = "SELECT * FROM entry WHERE state = 1 ORDER BY at"


class Pair(NamedTuple):
    """An entry and the lines of its reference. One of them may be missing."""

    entry: Entry | None
    lines: Sequence[Line]


class Books:
    """Lines and entries, in a file of their own in a folder."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "books.db", isolation_level=None)
        self._connection.executescript(_PRAGMAS + _TABLES)
        self.lines = self.entries = 0
        """Their numbers so far."""

    def add_lines(self, lines: Sequence[Line]) -> None:
        """Store lines."""
        self._write("INSERT INTO line VALUES (?, ?, ?, ?, ?, ?, ?)", lines)
        self.lines += len(lines)

    def add_entries(self, entries: Iterator[Entry], tell: Callable[[], None]) -> None:
        """Store entries; `tell` is called now and then."""
        while chunk := list(islice(entries, ROWS_A_WRITE)):
            self._write("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", chunk)
            self.entries += len(chunk)
            tell()

    def name_lines(self) -> None:
        """Give lines without a reference that of the entry which has their transaction id."""
        (anonymous,) = self._connection.execute(
            "SELECT count(*) FROM line WHERE reference = '' AND kind < 7"
        ).fetchone()
        if anonymous:
            self._connection.executescript(_NAME)

    def pairs(self) -> Iterator[Pair]:
        """Yield all pairs, by reference. A line without a partner and without a reference is a pair of its own."""
        entries = map(_entry, self._connection.execute(_ENTRIES))
        lines = map(_line, self._connection.execute(_LINES))
        entry, line = next(entries, None), next(lines, None)
        while line is not None and not line.reference:
            yield Pair(None, (line,))
            line = next(lines, None)
        while entry is not None or line is not None:
            if entry is None or (line is not None and line.reference < entry.reference):
                assert line is not None
                found, reference = None, line.reference
            else:
                found, reference = entry, entry.reference
                while entry is not None and entry.reference == reference:
                    entry = next(entries, None)
            of_it: list[Line] = []
            while line is not None and line.reference == reference:
                of_it.append(line)
                line = next(lines, None)
            yield Pair(found, of_it)

    def others(self) -> Iterator[Line]:
        """Yield the lines that no operation stands behind, and the sums of days."""
        return map(_line, self._connection.execute(_OTHERS))

    def moved(self) -> Iterator[Entry]:
        """Yield the entries that moved, in the order of time."""
        return map(_entry, self._connection.execute(_MOVED))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.executemany(statement, rows)
            cursor.execute("COMMIT")


_KINDS = {int(kind): kind for kind in LineKind}
_STATES = {int(state): state for state in State}


def _line(row: tuple[int, str, str, int, str, int, int]) -> Line:
    kind, reference, transaction_id, minor_units, currency_code, at, has_moved = row
    return Line(_KINDS[kind], reference, transaction_id, minor_units, currency_code, at, has_moved == 1)


def _entry(row: tuple[str, str, int, int, int, str, str, int, int]) -> Entry:
    reference, charge_id, kind, state, minor_units, code, transaction_id, began, at = row
    return Entry(reference, charge_id, _KINDS[kind], _STATES[state], minor_units, code, transaction_id, began, at)
