"""How an operator reads a journal's file: printing, verifying, also beside the server that has it open."""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from chassis.sqlite import open_connection
from command_service.journal import START, JournalRefused, Place, Record
from command_service.journal.sqlite import anchor
from command_service.journal.sqlite.starting import check_anchor, identify, must_be_there, refusing_damage
from command_service.journal.sqlite.table import (
    READER_PRAGMAS,
    chain_at,
    home_of,
    read_all,
    read_head,
    read_stream,
    unfinished,
)


class SqliteReading:
    """A journal's file as an operator reads it. See `command_service.journal.store.Reading`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, anchored: anchor.Anchor | None) -> None:
        """Use `reading`."""
        self._path = path
        self._connection = connection
        self._anchored = anchored
        self.is_anchored = anchored is not None
        self.journal_id, self.restored = identify(path, connection)
        self.home = home_of(connection)
        self.head = read_head(connection)

    def records(self, after: Place = START) -> Iterator[Record]:
        """Read all records after a place, up to the head, each verified. Raises JournalCorrupt."""
        return read_all(self._connection, after, self.head.position)

    def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position; see the port."""
        return chain_at(position, self._connection)

    def stream(self, charge_id: str) -> Sequence[Record]:
        """Read one stream, verified; see the port."""
        return read_stream(charge_id, self._connection)

    def unfinished(self) -> Collection[str]:
        """List the streams that the file notes as unfinished."""
        return unfinished(self._connection)

    def check_tail(self) -> None:
        """See that the file has not lost what its anchor says it had, if there is one. Raises JournalRefused."""
        if self._anchored is not None:
            check_anchor(self._path, self._anchored, self.journal_id, self.head, self._connection)

    def check_indexes(self) -> None:
        """Have SQLite check the index by which a key finds its charge. Raises JournalRefused."""
        (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise JournalRefused(f"the journal {self._path} is damaged: {found}. Restore a backup.")


@contextlib.contextmanager
def reading(path: Path, *, at_one_moment: bool = False) -> Iterator[SqliteReading]:
    """Open a journal's file to be read; see `Location.read`. Raises JournalRefused."""
    try:
        anchored = anchor.read(path)  # before the journal, which may grow beyond it meanwhile
    except JournalRefused:
        anchored = None
    must_be_there(path)
    with (
        refusing_damage(path),
        contextlib.closing(open_connection(path, read_only=True, pragmas=READER_PRAGMAS)) as connection,
    ):
        if at_one_moment:
            connection.execute("BEGIN")
        yield SqliteReading(path, connection, anchored)
