"""A journal's file as the source and as the target of a copy: a journal is served from one place only."""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from chassis.disk import LOCAL_DISK
from chassis.sqlite import open_connection
from command_service.journal import JournalRefused, Place, Record
from command_service.journal.sqlite import anchor, owner
from command_service.journal.sqlite.file_system import refuse_unknown_kind
from command_service.journal.sqlite.lock import Lock, lock
from command_service.journal.sqlite.making import Identity, make_if_new
from command_service.journal.sqlite.starting import (
    check_anchor,
    checkpoint,
    identify,
    must_be_there,
    refusing_damage,
    store_wal_again,
)
from command_service.journal.sqlite.table import (
    BULK_PRAGMAS,
    home_of,
    insert,
    note_unfinished,
    read_head,
    set_home,
)
from command_service.journal.store import no_copy, served_elsewhere

# A commit writes nearly every page of the index, whose keys come in random order.
RECORDS_A_COMMIT = 200_000


class SqliteCopy:
    """A journal's file that is being written from another place. See `command_service.journal.store.Copy`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, journal_id: str) -> None:
        """Use `receive`."""
        self.head = read_head(connection)
        self._path = path
        self._connection = connection
        self._journal_id = journal_id
        self._committed = self.head.position

    def store(self, records: Sequence[Record]) -> None:
        """Store records that follow the head, as they are. Some of the last ones may have to be stored again after a crash."""
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        insert(self._connection, records)
        self.head = Place(records[-1].position, records[-1].chain)
        if self.head.position >= self._committed + RECORDS_A_COMMIT:
            self.commit()

    def commit(self) -> None:
        """Make durable what was stored. After an error of SQLite that may be less than was asked for."""
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        reached = read_head(self._connection)
        self._committed = reached.position
        anchor.write(self._path, anchor.Anchor(self._journal_id, reached))

    def note_unfinished(self, charge_ids: Collection[str]) -> None:
        """Note which streams are unfinished up to the head, and no others."""
        self.commit()
        with _transaction(self._connection):
            note_unfinished(self._connection, charge_ids)

    def serve_here(self) -> None:
        """Note that the journal is served from here from now on; see the port."""
        with _transaction(self._connection):
            set_home(self._connection, "")
        checkpoint(self._connection)


@contextlib.contextmanager
def receive(path: Path, identity: Identity) -> Iterator[SqliteCopy]:
    """Take a file that does not exist, or a copy of the same journal, to copy a journal into it. Raises JournalRefused."""
    owner.make_folder(path.parent)
    refuse_unknown_kind(path, LOCAL_DISK, any_file_system=False)
    with lock(path, LOCAL_DISK) as held, refusing_damage(path):
        make_if_new(path, lambda: identity.journal_id, LOCAL_DISK, restored=identity.restored, home=identity.home)
        with _taken(path, held) as connection:
            journal_id, restored = identify(path, connection)
            home = home_of(connection)
            if (journal_id, restored, home) != identity:
                raise JournalRefused(no_copy(str(path), journal_id, home, identity.home))
            copy = SqliteCopy(path, connection, journal_id)
            try:
                yield copy
            finally:
                copy.commit()


def leave(path: Path, home: str, head: Place) -> None:
    """Note that the journal is served from another place; see `Location.leave`. Raises JournalRefused."""
    must_be_there(path)
    with lock(path, LOCAL_DISK) as held, refusing_damage(path), _taken(path, held) as connection:
        identify(path, connection)
        if (other := home_of(connection)) not in ("", home):
            raise JournalRefused(served_elsewhere(str(path), other))
        if (found := read_head(connection)) != head:
            raise JournalRefused(
                f"the journal {path} has reached position {found.position}, and the copy {head.position}: run it again"
            )
        with _transaction(connection):
            set_home(connection, home)
        checkpoint(connection)


@contextlib.contextmanager
def _taken(path: Path, held: Lock) -> Iterator[sqlite3.Connection]:
    """Open a locked file to write to it, whole and durable as it is. Raises JournalRefused."""
    held.take_file()
    with contextlib.closing(open_connection(path, read_only=False, pragmas=BULK_PRAGMAS)) as connection:
        store_wal_again(path, LOCAL_DISK)
        checkpoint(connection)
        journal_id, _ = identify(path, connection)
        check_anchor(path, anchor.read(path), journal_id, read_head(connection), connection)
        yield connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
