"""Journals into and out of PostgreSQL: copies that go on under the same id, and backups, which come back under a new one."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from uuid import UUID

from command_service.journal import START, JournalCorrupt, JournalRefused, Place, Record
from command_service.journal.postgres.primary import Found, Primary, primary
from command_service.journal.postgres.reading import PostgresReading, reading
from command_service.journal.postgres.schema import FORMAT
from command_service.journal.postgres.url import Url
from command_service.journal.records import key_of
from command_service.journal.sqlite import backup as backups
from command_service.journal.sqlite.making import Identity
from command_service.journal.sqlite.reading import reading as reading_file
from command_service.journal.store import Fold, in_chunks, no_copy, random_id, served_elsewhere

COLUMNS = ("position", "charge_id", "version", "recorded_at", "chain", "event")
MOVE_HEAD = "UPDATE chargeonce.head SET position = $1, chain = $2, recorded_at = $3"
SET_IDENTITY = "UPDATE chargeonce.head SET journal_id = $1, restored = $2, home = $3, format = $4"
SET_HOME = "UPDATE chargeonce.head SET home = $1, format = $2"
# A record without a head that covers it counts as well.
HAS_RECORDS = "SELECT EXISTS (SELECT FROM chargeonce.record)"
# The transaction that has written the head last: another one's if another program has done anything to the journal.
WRITTEN_BY = "SELECT xmin::text FROM chargeonce.head"
CLEAR_UNFINISHED = "DELETE FROM chargeonce.unfinished"
CLEAR_SERVERS = "DELETE FROM chargeonce.server"


class PostgresCopy:
    """A journal in PostgreSQL that is being written from another place. See `command_service.journal.store.Copy`."""

    def __init__(self, url: Url, connection: Primary, head: Place) -> None:
        """Use `receive`, in its transaction."""
        self.head = head
        self._url = url
        self._connection = connection
        self._written_by = _written_by(connection)

    def store(self, records: Sequence[Record]) -> None:
        """Store records that follow the head, as they are."""
        with self._alone():
            _store(self._connection, records)
        self.head = Place(records[-1].position, records[-1].chain)

    def note_unfinished(self, charge_ids: Collection[str]) -> None:
        """Note which streams are unfinished up to the head, and no others. No server drives them."""
        with self._alone():
            _note_unfinished(self._connection, charge_ids)

    def serve_here(self) -> None:
        """Note that the journal is served from here from now on; see the port."""
        with self._alone():
            self._connection.fetch(SET_HOME, "", FORMAT)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Begin a transaction in the journal as we have left it. Raises JournalRefused if anybody else has written to it.

        Between our transactions nothing is locked. Another copy might have been moved on from here meanwhile, or back.
        """
        with self._connection.transaction():
            self._connection.head(lock=True)
            if _written_by(self._connection) != self._written_by:
                raise JournalRefused(
                    f"another program has copied to {self._url} meanwhile, or moved the journal: see verify-journal there, and "
                    "run it again"
                )
            yield
            written_by = _written_by(self._connection)
        self._written_by = written_by


@contextlib.contextmanager
def receive(url: Url, journal_id: str, *, restored: bool, home: str) -> Iterator[PostgresCopy]:
    """Take a database without records, or with a copy of the same journal; see `Location.receive`. Raises JournalRefused."""
    with primary(url) as connection:
        with connection.transaction():
            found = connection.head(lock=True)
            connection.refuse_servers()
            if (found.journal_id, found.restored, found.home) != (journal_id, restored, home):
                if found.journal_id == journal_id or _has_records(connection, found):
                    raise JournalRefused(no_copy(str(url), found.journal_id, found.home, home))
                connection.fetch(SET_IDENTITY, UUID(journal_id), restored, home, -FORMAT)
            copy = PostgresCopy(url, connection, found.place)
        yield copy


def leave(url: Url, home: str, head: Place) -> None:
    """Note that the journal is served from another place; see `Location.leave`. Raises JournalRefused."""
    with primary(url) as connection, connection.transaction():
        found = connection.head(lock=True)
        connection.refuse_servers()
        if found.home not in ("", home):
            raise JournalRefused(served_elsewhere(str(url), found.home))
        if found.place != head:
            raise JournalRefused(
                f"the journal {url} has reached position {found.place.position}, and the copy {head.position}: run it again"
            )
        connection.fetch(SET_HOME, home, -FORMAT)


def backup(url: Url, to: Path) -> Place:
    """Write the journal to a new SQLite file: an exact prefix, verified whole; see `Location.backup`."""
    backups.refuse_existing(to)
    with reading(url, at_one_moment=True) as journal:
        identity = Identity(journal.journal_id, journal.restored, journal.home)
        return backups.write(to, identity, _undamaged(url, journal.records()), journal.unfinished())


def _undamaged(url: Url, records: Iterator[Record]) -> Iterator[Record]:
    """Say of damage whose it is: who writes the records elsewhere would take it for its own."""
    try:
        yield from records
    except JournalCorrupt as error:
        raise JournalRefused(f"the journal {url} is damaged: {error}. Restore a backup.") from error


def restore(url: Url, source: Path | None, unfinished_in: Fold) -> tuple[str, Place]:
    """Put a backup into an empty database, or accept what it holds, under a new id; see `Location.restore`.

    All of it is one transaction, and no server begins to serve before its end.
    """
    journal_id = random_id()
    with primary(url) as connection, connection.transaction():
        found = connection.head(lock=True)
        connection.refuse_servers()
        if source is None:
            journal = PostgresReading(url, connection)
            journal.check_tail()
            place, unfinished = journal.head, unfinished_in(journal.records())
        else:
            if _has_records(connection, found):
                raise JournalRefused(
                    f"{url} holds the journal {found.journal_id}, with {found.place.position} records: name an empty database, "
                    "after migrate"
                )
            with reading_file(source, at_one_moment=True) as copied:
                place, unfinished = copied.head, unfinished_in(_storing(connection, copied.records()))
        _note_unfinished(connection, unfinished)
        connection.fetch(CLEAR_SERVERS)
        connection.fetch(SET_IDENTITY, UUID(journal_id), True, "", FORMAT)
    return journal_id, place


def _storing(connection: Primary, records: Iterator[Record]) -> Iterator[Record]:
    for chunk in in_chunks(records):
        _store(connection, chunk)
        yield from chunk


def _store(connection: Primary, records: Sequence[Record]) -> None:
    connection.copy(
        "record",
        COLUMNS,
        [(it.position, key_of(it.charge_id), it.version, it.recorded_at, it.chain, it.event) for it in records],
    )
    newest = records[-1]
    connection.fetch(MOVE_HEAD, newest.position, newest.chain, newest.recorded_at)


def _note_unfinished(connection: Primary, charge_ids: Collection[str]) -> None:
    connection.fetch(CLEAR_UNFINISHED)
    connection.copy("unfinished", ("charge_id",), [(key_of(charge_id),) for charge_id in charge_ids])


def _written_by(connection: Primary) -> str:
    ((written_by,),) = connection.fetch(WRITTEN_BY)
    return str(written_by)


def _has_records(connection: Primary, found: Found) -> bool:
    ((has_records,),) = connection.fetch(HAS_RECORDS)
    return has_records or found.place != START
