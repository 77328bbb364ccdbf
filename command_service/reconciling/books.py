"""Both sides on disk: lines and entries in a temporary SQLite file, merged in the order of references."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from command_service.bank.statement import Line
from command_service.reconciling.entries import Entry

# Some MB at once.
ROWS_A_WRITE = 20_000
CACHE_KILOBYTES = 25_000

_PRAGMAS = f"""
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA temp_store = FILE;
PRAGMA cache_size = -{CACHE_KILOBYTES}; PRAGMA page_size = 16384;
"""
_LINE = """
CREATE TABLE line (
    kind INT, reference TEXT, transaction_id TEXT, minor_units INT, currency_code TEXT, at INT, has_moved INT, hold TEXT,
    is_reversal INT
)
"""
_ENTRY = """
CREATE TABLE entry (
    reference TEXT, charge_id TEXT, kind INT, state INT, minor_units INT, currency_code TEXT, transaction_id TEXT, began INT,
    at INT
)
"""
# A line without a reference of ours, or with one that no entry has, gets that of the entry with its transaction id. If there is
# none, a capture that tells its hold gets that of the newest capture of this hold, whose answer may have been lost.
_INDEX = """
CREATE INDEX theirs.by_reference ON entry (reference);
CREATE INDEX theirs.by_transaction ON entry (transaction_id) WHERE transaction_id <> '';
CREATE INDEX theirs.captures ON entry (charge_id) WHERE kind = 3;
"""
_NAME = """
UPDATE line SET reference = coalesce(
    (SELECT reference FROM entry WHERE entry.transaction_id = line.transaction_id AND entry.transaction_id <> ''
        AND entry.kind = line.kind),
    (SELECT reference FROM entry WHERE entry.transaction_id = line.transaction_id AND entry.transaction_id <> ''),
    (SELECT reference FROM entry WHERE entry.charge_id = line.hold AND entry.kind = 3 AND line.kind = 3
        ORDER BY entry.began DESC, entry.rowid DESC LIMIT 1),
    reference)
WHERE transaction_id <> '' AND kind < 7 AND reference NOT IN (SELECT reference FROM entry)
"""
# Sorted rows are read from disk: an index in the order of references would take longer to make.
_ENTRIES = "SELECT * FROM entry ORDER BY reference"
_LINES = "SELECT * FROM line WHERE kind < 7 ORDER BY reference, at"
_SORT = f"CREATE TABLE sorted AS {_LINES}"
_SORTED = "SELECT * FROM sorted ORDER BY rowid"
_COUNT_ANONYMOUS = "SELECT count(*) FROM line WHERE reference = '' AND kind < 7"
_OTHERS = "SELECT * FROM line WHERE kind >= 7 ORDER BY at"
_MOVED = "SELECT * FROM entry WHERE state = 1 ORDER BY at"


class Pair(NamedTuple):
    """An entry and the lines of its reference. One of them may be missing.

    Kinds and states are their numbers here, which are equal to them: to make each what it is would take a quarter of the time.
    """

    entry: Entry | None
    lines: Sequence[Line]


class EntriesFile:
    """Entries, in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._connection = _opened(path)
        self._connection.execute(_ENTRY)

    def add(self, entries: Iterator[Entry], note: Callable[[], None]) -> None:
        """Store entries; `note` is called now and then."""
        while chunk := list(islice(entries, ROWS_A_WRITE)):
            _write(self._connection, "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", chunk)
            note()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


class Books:
    """Lines, in a file of their own, and beside them a file of entries once there is one."""

    def __init__(self, path: Path) -> None:
        self._connection = _opened(path)
        self._connection.execute(_LINE)
        self._in_order = _LINES

    def add_lines(self, lines: Sequence[Line]) -> None:
        """Store lines."""
        _write(self._connection, "INSERT INTO line VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", lines)

    def sort(self) -> None:
        """Sort the lines, now that all are there: while the journal is still being read this costs no time."""
        if not self._anonymous():
            self._connection.execute(_SORT)
            self._in_order = _SORTED

    def take(self, entries: Path) -> None:
        """Take the file of the entries, which is complete."""
        self._connection.execute("ATTACH ? AS theirs", (str(entries),))

    def name_lines(self) -> None:
        """Give lines whose reference no entry has that of the entry which has their transaction id."""
        self._connection.executescript(_INDEX)
        if self._connection.execute(_NAME).rowcount:
            self._in_order = _LINES

    def pairs(self) -> Iterator[Pair]:
        """Yield all pairs, by reference. A line without a partner and without a reference is a pair of its own."""
        entries = map(_entry, self._connection.execute(_ENTRIES))
        lines = map(_line, self._connection.execute(self._in_order))
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

    def _anonymous(self) -> int:
        (number,) = self._connection.execute(_COUNT_ANONYMOUS).fetchone()
        return int(number)


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(_PRAGMAS)
    return connection


def _write(connection: sqlite3.Connection, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.executemany(statement, rows)
        cursor.execute("COMMIT")


def _line(row: tuple[object, ...]) -> Line:
    return Line._make(row)


def _entry(row: tuple[object, ...]) -> Entry:
    return Entry._make(row)
