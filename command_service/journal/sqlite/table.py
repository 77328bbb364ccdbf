"""The journal's tables in SQLite, its settings, and its statements, those that read with the verification of each record."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from command_service.journal import GENESIS, START, JournalCorrupt, Place, Record
from command_service.journal.records import RECORDS_A_READ, following, id_of, key_of, verified

# All formats have the same tables. A later one may hold events that a program of an earlier one would take for others: it would
# overlook that a charge is only to be held (since 2), or at which bank it is (since 3). A server that opens a journal of an
# earlier format marks it as of its own; its records stay.
FORMAT = 3
FORMATS = (1, 2, FORMAT)
# Of a journal that is served from another place, which the table `home` names: no server, of any version, serves from it.
MARKED_FORMATS = tuple(-known for known in FORMATS)

WRITER_PRAGMAS: Mapping[str, str | int] = {
    "journal_mode": "wal",  # readers read beside the writer
    "synchronous": 2,  # FULL: a commit is on disk when it returns; NORMAL lost acknowledged rows in three of four cuts
    "wal_autocheckpoint": 1_000,  # in pages: the WAL begins anew at some 4 MB; beside a reader that stays it grows on
    "journal_size_limit": 67_108_864,  # when that has gone, it is cut back to 64 MiB: SQLite by itself keeps its size
    "foreign_keys": 0,
}
# To write a whole journal: the index's pages are touched in random order. In KiB, with the minus sign that says so.
BULK_PRAGMAS: Mapping[str, str | int] = {**WRITER_PRAGMAS, "cache_size": -(256 << 10)}
# A file that is thrown away if it is not finished, and synced when it is.
DRAFT_PRAGMAS: Mapping[str, str | int] = {"journal_mode": "off", "synchronous": 0, "cache_size": -(256 << 10)}
READER_PRAGMAS = {"query_only": 1}

SCHEMA = """
CREATE TABLE journal (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    id TEXT NOT NULL,
    format INTEGER NOT NULL,
    restored INTEGER NOT NULL
) STRICT;
CREATE TABLE record (
    position INTEGER PRIMARY KEY,
    charge_id BLOB NOT NULL,
    version INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    chain BLOB NOT NULL,
    event BLOB NOT NULL,
    UNIQUE (charge_id, version) -- the idempotency check itself, and the way to read a stream
) STRICT;
CREATE TABLE unfinished (charge_id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
INSERT_JOURNAL = "INSERT INTO journal (only, id, format, restored) VALUES (1, ?, ?, ?)"
SELECT_JOURNAL = "SELECT id, format, restored FROM journal"
UPGRADE = f"UPDATE journal SET format = {FORMAT} WHERE format <> {FORMAT}"  # noqa: S608  # a number of this module
PROBE = "PRAGMA user_version = 0"  # writes its page though it is 0; an UPDATE to the same value would write nothing
RENEW_JOURNAL = f"UPDATE journal SET id = ?, restored = 1, format = {FORMAT}"  # noqa: S608  # as above
SELECT_HOME = "SELECT place FROM home"
LEAVE_HOME = f"""
CREATE TABLE IF NOT EXISTS home (only INTEGER PRIMARY KEY CHECK (only = 1), place TEXT NOT NULL) STRICT;
UPDATE journal SET format = -{FORMAT};
"""  # noqa: S608  # a number of this module
COME_HOME = f"DROP TABLE IF EXISTS home; UPDATE journal SET format = {FORMAT};"  # noqa: S608  # as above
SET_HOME = "INSERT OR REPLACE INTO home (only, place) VALUES (1, ?)"
SELECT_HEAD = "SELECT position, chain FROM record ORDER BY position DESC LIMIT 1"
SELECT_HEAD_TIME = "SELECT recorded_at FROM record ORDER BY position DESC LIMIT 1"
SELECT_VERSION = "SELECT max(version) FROM record WHERE charge_id = ?"
INSERT_RECORD = "INSERT INTO record (position, charge_id, version, recorded_at, chain, event) VALUES (?, ?, ?, ?, ?, ?)"
INSERT_UNFINISHED = "INSERT OR IGNORE INTO unfinished (charge_id) VALUES (?)"
DELETE_UNFINISHED = "DELETE FROM unfinished WHERE charge_id = ?"
CLEAR_UNFINISHED = "DELETE FROM unfinished"
SELECT_UNFINISHED = "SELECT charge_id FROM unfinished"
SELECT_AFTER = """
SELECT position, charge_id, version, recorded_at, chain, event FROM record
WHERE position > ? AND position <= ? ORDER BY position LIMIT ?
"""
# With each record, the chain of the record before it in the journal: what its own is verified against.
_SELECT_VERIFIABLE = """
SELECT r.position, r.charge_id, r.version, r.recorded_at, r.chain, r.event, before.chain
FROM record r LEFT JOIN record before ON before.position = r.position - 1
"""
SELECT_STREAM = f"{_SELECT_VERIFIABLE} WHERE r.charge_id = ? ORDER BY r.version"
SELECT_RECORD = f"{_SELECT_VERIFIABLE} WHERE r.position = ?"


def read_stream(charge_id: str, connection: sqlite3.Connection) -> list[Record]:
    """Read a stream, oldest first. Raises JournalCorrupt."""
    rows = connection.execute(SELECT_STREAM, (key_of(charge_id),)).fetchall()
    return [verified(row) for row in rows]


def read_after(place: Place, until: int, connection: sqlite3.Connection) -> list[Record]:
    """Read on from a place, at most to a position, which must be there.

    Raises JournalCorrupt if the very next record does not fit; one further on ends the read before it.
    """
    rows = connection.execute(SELECT_AFTER, (place.position, until, RECORDS_A_READ)).fetchall()
    return following(rows, place, until)


def chain_at(position: int, connection: sqlite3.Connection) -> bytes:
    """Return the chain up to a position. Raises JournalCorrupt if there is no such record, or it does not fit."""
    if position == 0:
        return GENESIS
    row = connection.execute(SELECT_RECORD, (position,)).fetchone()
    if row is None:
        raise JournalCorrupt(position)
    return verified(row).chain


def unfinished(connection: sqlite3.Connection) -> list[str]:
    """List the streams that are not finished."""
    return [id_of(key) for (key,) in connection.execute(SELECT_UNFINISHED).fetchall()]


def home_of(connection: sqlite3.Connection) -> str:
    """Return the place that a journal is served from if it is not this one; else "". Its format is known."""
    ((written,),) = connection.execute("SELECT format FROM journal").fetchall()
    return str(connection.execute(SELECT_HOME).fetchone()[0]) if written < 0 else ""


def set_home(connection: sqlite3.Connection, home: str) -> None:
    """Note in the present transaction from which place a journal is served; "": from this one."""
    for statement in (LEAVE_HOME if home else COME_HOME).split(";"):
        connection.execute(statement)
    if home:
        connection.execute(SET_HOME, (home,))


def read_head(connection: sqlite3.Connection) -> Place:
    """Return the place of the newest record."""
    row = connection.execute(SELECT_HEAD).fetchone()
    return Place(*row) if row else START


def read_head_time(connection: sqlite3.Connection) -> int:
    """Return when the newest record was made, in microseconds since 1970; 0 if there is none."""
    row = connection.execute(SELECT_HEAD_TIME).fetchone()
    return row[0] if row else 0


def insert(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Store records as they are, in the present transaction."""
    connection.executemany(
        INSERT_RECORD,
        ((it.position, key_of(it.charge_id), it.version, it.recorded_at, it.chain, it.event) for it in records),
    )


def note_unfinished(connection: sqlite3.Connection, charge_ids: Iterable[str]) -> None:
    """Note in the present transaction which streams are unfinished, and no others."""
    connection.execute(CLEAR_UNFINISHED)
    connection.executemany(INSERT_UNFINISHED, [(key_of(charge_id),) for charge_id in charge_ids])


def read_all(connection: sqlite3.Connection, place: Place, until: int) -> Iterator[Record]:
    """Read on from a place to a position, which must be there. Raises JournalCorrupt at the first that does not fit."""
    while records := read_after(place, until, connection):
        yield from records
        place = Place(records[-1].position, records[-1].chain)


def verify(connection: sqlite3.Connection, place: Place, until: int) -> None:
    """Verify the chain from a place to a position. Raises JournalCorrupt."""
    while records := read_after(place, until, connection):
        place = Place(records[-1].position, records[-1].chain)
