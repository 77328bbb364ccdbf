"""The view: the rows that the projection makes, and the checkpoint up to which they hold, in one SQLite file.

* Rows and checkpoint are written in one transaction a batch, so each event counts once however often it is delivered.
* Queries have a connection of their own and run beside the writer. Each reads its rows and the checkpoint in one read
  transaction: it sees whole batches only, and the position that it tells is the one that its rows show.
* The file is disposable. One of another format, and one that is damaged, is thrown away and built again from the feed; a
  file that is no view at all is never touched.
* One server a file: a lock beside it, under its real name, keeps a second one out, and one on the file itself a second one
  that knows it by another name.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from chassis.disk import LOCAL_DISK, Disk, Held
from chassis.sqlite import Database
from query_service.lookup import ChargeId, Checkpoint, find_charge, find_checkpoint
from query_service.projection import Record, charges_needed, project

T = TypeVar("T")

log = structlog.get_logger()

# "CHGV": says that a file is a view of ours, so that no other file is thrown away by a mistyped path.
APPLICATION_ID = 0x43484756
# Counts the formats of the rows: raise it with every change of SCHEMA or of what the projection makes of an event.
FORMAT = 1
# SQLite's header begins with this, and has the application's id at these places, in the file itself from the start.
SQLITE_MAGIC = b"SQLite format 3\0"
APPLICATION_ID_BYTES = slice(68, 72)
GENESIS = bytes(32)  # the chain before position 1

# On Linux this lock and those of SQLite, which are fcntl's, do not see each other. Elsewhere they would: there it is none.
LOCKS_ITSELF = sys.platform == "linux"

WRITER_PRAGMAS: Mapping[str, str | int] = {
    "application_id": APPLICATION_ID,
    "journal_mode": "wal",  # readers see the last whole batch while the next is written
    # NORMAL: a power cut may lose the newest batches, never tear one, and the feed brings them again. FULL would pay for a
    # sync a batch, OFF could leave a damaged file that nobody notices.
    "synchronous": 1,
    # In KiB below zero. Ids and keys are spread over their whole indexes: 64 MiB keeps the leaves of some million charges.
    "cache_size": -65_536,
    # In pages: 32 MiB. While a view is rebuilt the same pages change in every batch; this copies each back less often.
    "wal_autocheckpoint": 8_192,
    "journal_size_limit": 67_108_864,  # a WAL that a slow reader let grow is cut back to 64 MiB
}
READER_PRAGMAS: Mapping[str, str | int] = {
    "query_only": 1,  # besides the file's own mode: no statement here may write
    "cache_size": -16_384,  # 16 MiB; the operating system caches the rest
}

# STRICT: a sum that no longer fits 64 bits fails loudly, where SQLite would turn it into floating point.
SCHEMA = (
    """
CREATE TABLE charge (
    -- The order of the journal: rows are added at the end, and "newest first" is a walk from there.
    requested_position INTEGER PRIMARY KEY,
    charge_id BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    user_id TEXT NOT NULL,
    card_token TEXT NOT NULL,
    card_brand TEXT NOT NULL,
    card_last4 TEXT NOT NULL,
    minor_units INTEGER NOT NULL,
    currency_code TEXT NOT NULL,
    description TEXT NOT NULL,
    metadata TEXT NOT NULL,
    requested_at INTEGER NOT NULL,
    status INTEGER NOT NULL,
    transaction_id TEXT NOT NULL,
    decline_reason INTEGER NOT NULL,
    review_reason INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    UNIQUE (tenant, idempotency_key)
) STRICT
""",
    """
-- Each index ends in requested_position, as all do in SQLite, so a walk through one value of it is newest first.
-- A user's charges, among everybody's.
CREATE INDEX charge_by_user ON charge (user_id)
""",
    """
-- The few in review, pending or declined, among all that went well.
CREATE INDEX charge_by_status ON charge (status)
""",
    """
-- Only to look up at which positions a range of times begins and ends.
CREATE INDEX charge_by_time ON charge (requested_at)
""",
    """
-- Kept in the order of its key: a charge's history is one stretch, near those of its neighbours in time.
CREATE TABLE entry (
    requested_position INTEGER NOT NULL,
    version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    event TEXT NOT NULL,
    status INTEGER NOT NULL,
    PRIMARY KEY (requested_position, version)
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE summary (
    user_id TEXT NOT NULL,
    currency_code TEXT NOT NULL,
    charged_minor_units INTEGER NOT NULL,
    charged_count INTEGER NOT NULL,
    declined_minor_units INTEGER NOT NULL,
    declined_count INTEGER NOT NULL,
    pending_minor_units INTEGER NOT NULL,
    pending_count INTEGER NOT NULL,
    in_review_minor_units INTEGER NOT NULL,
    in_review_count INTEGER NOT NULL,
    abandoned_minor_units INTEGER NOT NULL,
    abandoned_count INTEGER NOT NULL,
    PRIMARY KEY (user_id, currency_code)
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE checkpoint (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    journal_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    chain BLOB NOT NULL,
    charge_count INTEGER NOT NULL,
    latest_requested_at INTEGER NOT NULL,
    backstep INTEGER NOT NULL
) STRICT
""",
)
TABLES = ("charge", "entry", "summary", "checkpoint")

ADD_CHARGE = "INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
MOVE_CHARGE = """
UPDATE charge SET status = ?, transaction_id = ?, decline_reason = ?, review_reason = ?, updated_at = ?, version = ?,
    position = ? WHERE requested_position = ?
"""
# Many rows a statement: half the time of a statement a row, and the interpreter is free for the receiving thread meanwhile. (A
# charge's row, wide and with five indexes, gains nothing by it.)
ENTRIES_A_STATEMENT = 500
ADD_ENTRIES = f"INSERT INTO entry VALUES {', '.join(['(?, ?, ?, ?, ?, ?)'] * ENTRIES_A_STATEMENT)}"  # noqa: S608  # no value in it
ADD_ENTRY = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)"
ADD_TO_SUMMARY = """
INSERT INTO summary VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    charged_minor_units = charged_minor_units + excluded.charged_minor_units,
    charged_count = charged_count + excluded.charged_count,
    declined_minor_units = declined_minor_units + excluded.declined_minor_units,
    declined_count = declined_count + excluded.declined_count,
    pending_minor_units = pending_minor_units + excluded.pending_minor_units,
    pending_count = pending_count + excluded.pending_count,
    in_review_minor_units = in_review_minor_units + excluded.in_review_minor_units,
    in_review_count = in_review_count + excluded.in_review_count,
    abandoned_minor_units = abandoned_minor_units + excluded.abandoned_minor_units,
    abandoned_count = abandoned_count + excluded.abandoned_count
"""
BEGIN_CHECKPOINT = "INSERT INTO checkpoint VALUES (1, ?, 0, ?, 0, 0, 0)"
# The condition is the last defence against a batch that is applied twice or in the wrong order.
MOVE_CHECKPOINT = """
UPDATE checkpoint SET position = ?, chain = ?, charge_count = ?, latest_requested_at = ?, backstep = ? WHERE position = ?
"""


class ViewUnusable(Exception):
    """The file cannot be used as a view; the text says why and what to do."""


class ViewNotWritten(Exception):
    """A batch could not be written, a full disk for instance. Nothing of it shows; it may be tried again."""


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """What a query found, and the checkpoint that it shows."""

    found: T
    checkpoint: Checkpoint


class View:
    """One view file, open for one writer and for queries."""

    def __init__(self, path: Path, locks: Sequence[Held], writer: Database, reader: Database) -> None:
        self._path = path
        self._locks = locks
        self._writer = writer
        self._reader = reader
        self.damage: asyncio.Future[ViewUnusable] = asyncio.get_running_loop().create_future()
        """Done once the file was found damaged: the server is to end with what it says."""

    @classmethod
    async def open(cls, path: Path, *, disk: Disk = LOCAL_DISK) -> "View":
        """Open the view in a file of a disk; it and its folder are made if missing, for our own user.

        Raises ViewUnusable if another server has it or if it is no view, OSError and sqlite3.OperationalError if it cannot
        be had.
        """
        async with contextlib.AsyncExitStack() as stack:
            path = _real(path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = _lock(path.with_name(path.name + ".lock"), disk)
            stack.callback(beside.close)
            # Taken before SQLite opens the file, let go of after: to close any descriptor of it drops SQLite's own locks.
            itself = _lock(path, disk, is_taken=LOCKS_ITSELF)
            stack.callback(itself.close)
            if not await _is_fit(path, disk):
                _throw_away(path)
                made_anew = _lock(path, disk, is_taken=LOCKS_ITSELF)
                stack.callback(made_anew.close)
                itself.close()
                itself = made_anew
            writer = await Database.open(path, pragmas=WRITER_PRAGMAS, disk=disk)
            stack.push_async_callback(writer.close)
            await writer.run(_create_tables)
            reader = await Database.open(path, read_only=True, pragmas=READER_PRAGMAS, disk=disk)
            stack.pop_all()
            return cls(path, (beside, itself), writer, reader)

    async def close(self) -> None:
        """Close after the work that was sent before. A damaged file is thrown away: to find the damage again takes long."""
        await self._reader.close()
        await self._writer.close()
        if self.damage.done() and not _is_empty(self._path) and _is_ours(self._path):
            _throw_away(self._path)
        for lock in self._locks:
            lock.close()

    async def checkpoint(self) -> Checkpoint:
        """Tell up to where the view holds once all that was sent to be written is written. Raises ViewUnusable."""
        with self._telling_damage():
            return await self._writer.run(find_checkpoint)

    async def apply(self, records: Sequence[Record]) -> None:
        """Add the records that follow the checkpoint, all or none. Once begun it happens even if the caller is cancelled.

        Raises UnknownEvent or StreamBroken (see projection), ViewNotWritten, ViewUnusable if the file is damaged, and
        sqlite3.IntegrityError if the records do not fit the rows that are there.
        """
        await self._write(lambda connection: _apply(connection, records))

    async def reset(self, journal_id: str) -> None:
        """Empty the view; from now on it follows this journal, from its start. Raises ViewNotWritten, ViewUnusable."""
        await self._write(lambda connection: _reset(connection, journal_id))

    async def read(self, find: Callable[[sqlite3.Connection], T]) -> Shown[T]:
        """Answer a query (see lookup) from one state of the view. Raises ViewUnusable if the file is damaged."""

        def read(connection: sqlite3.Connection) -> Shown[T]:
            with _transaction(connection, "BEGIN"):
                return Shown(find(connection), find_checkpoint(connection))

        with self._telling_damage():
            return await self._reader.run(read)

    async def _write(self, change: Callable[[sqlite3.Connection], None]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            with _transaction(connection, "BEGIN IMMEDIATE"):
                change(connection)

        try:
            with self._telling_damage():
                await self._writer.run(write)
        except sqlite3.OperationalError as error:
            raise ViewNotWritten(f"the view could not be written: {error}") from error

    @contextmanager
    def _telling_damage(self) -> Iterator[None]:
        """Tell a file that SQLite cannot read any more from everything else that it may say."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            unusable = ViewUnusable(f"the view is damaged ({error}): the next start builds it again from the feed")
            if not self.damage.done():
                self.damage.set_result(unusable)
            raise unusable from error


def _apply(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    known = {
        charge_id: row
        for charge_id in charges_needed(records)
        if (row := find_charge(connection, ChargeId(charge_id))) is not None
    }
    changes = project(records, known, find_checkpoint(connection).totals)
    connection.executemany(ADD_CHARGE, [requested + standing for requested, standing in changes.added])
    connection.executemany(MOVE_CHARGE, [(*standing, requested[0]) for requested, standing in changes.moved])
    entries = iter(changes.entries)
    while len(rows := list(islice(entries, ENTRIES_A_STATEMENT))) == ENTRIES_A_STATEMENT:
        connection.execute(ADD_ENTRIES, list(chain.from_iterable(rows)))
    connection.executemany(ADD_ENTRY, rows)
    connection.executemany(ADD_TO_SUMMARY, changes.summaries)
    first, last = records[0], records[-1]
    moved = connection.execute(MOVE_CHECKPOINT, (last.position, last.chain, *changes.totals, first.position - 1))
    if moved.rowcount != 1:
        raise sqlite3.IntegrityError("the records do not follow the checkpoint")


def _reset(connection: sqlite3.Connection, journal_id: str) -> None:
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608  # the names are this module's own
    connection.execute(BEGIN_CHECKPOINT, (journal_id, GENESIS))


def _create_tables(connection: sqlite3.Connection) -> None:
    if _version(connection) == FORMAT:
        return
    with _transaction(connection, "BEGIN IMMEDIATE"):
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(BEGIN_CHECKPOINT, ("", GENESIS))
        connection.execute(f"PRAGMA user_version = {FORMAT}")


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back some failures by itself
            connection.execute("ROLLBACK")
        raise


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _lock(path: Path, disk: Disk, *, is_taken: bool = True) -> Held:
    """Keep other servers away from a file for as long as it is held, and so while this process lives.

    It is made if it is missing. Raises ViewUnusable if another server has it, or if it has a second name: SQLite keeps the rest
    of a file beside the name by which it knows it.
    """
    held = disk.hold(path, os.O_RDWR | os.O_CREAT)
    try:
        if is_taken:
            held.lock()
        if os.fstat(held.descriptor).st_nlink > 1:
            raise ViewUnusable(f"{path} has more than one name (hard links): remove the others")
    except BlockingIOError:
        held.close()
        raise ViewUnusable(
            f"another query server has the view ({path} is locked): give each server its own file"
        ) from None
    except BaseException:
        held.close()
        raise
    return held


async def _is_fit(path: Path, disk: Disk) -> bool:
    """Tell whether a view of this format can be kept in the file. Raises ViewUnusable if the file is something else."""
    if _is_empty(path):
        return True
    if not _is_ours(path):
        raise ViewUnusable(f"{path} is not a view: it is left as it is, name another file or remove it yourself")
    try:
        found = await Database.open(path, read_only=True, pragmas={}, disk=disk)
        try:
            version = await found.run(_version)
            if version == FORMAT:
                await found.run(find_checkpoint)  # a cheap look; what else is damaged is told by whoever meets it
        finally:
            await found.close()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        log.warning("the view is damaged and is built again", why=str(error))
        return False
    if version != FORMAT:
        log.warning("the view is of another format and is built again", found=version, wanted=FORMAT)
    return version == FORMAT


def _is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _is_ours(path: Path) -> bool:
    """Tell whether a file is a view. Its first bytes tell that of a damaged one too, and a foreign file stays untouched."""
    with path.open("rb") as file:
        header = file.read(APPLICATION_ID_BYTES.stop)
    return header.startswith(SQLITE_MAGIC) and header[APPLICATION_ID_BYTES] == APPLICATION_ID.to_bytes(4, "big")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _throw_away(path: Path) -> None:
    for name in (f"{path}-wal", f"{path}-shm", f"{path}"):  # the file last: while it is there, the rest belongs to it
        Path(name).unlink(missing_ok=True)
