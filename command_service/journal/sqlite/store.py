"""The store in one SQLite file, for one server at a time.

* One writing connection, in a thread of its own, and one that reads, in another. A third thread looks after the files, so
  that no read waits for the anchor's sync.
* Other connections open the file read-only and never checkpoint: SQLite before 3.51.3 can corrupt a WAL that several
  connections reset.
* A full disk, and a write lock that another program holds, are a "no", once the transaction is rolled back and the head,
  read back, is unchanged.
* Any other commit that fails or is interrupted may be on disk or not. The next start moves the whole WAL into the database,
  synced, before anybody acts on it: after a failed sync Linux serves the lost page from its cache as if it were stored.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from chassis.disk import LOCAL_DISK, Disk, Thread
from chassis.sqlite import Database
from command_service.journal import (
    Appended,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    JournalRefused,
    NotAccepting,
    NotStored,
    Place,
    Record,
    VersionConflict,
)
from command_service.journal.records import key_of, seal
from command_service.journal.sqlite import anchor
from command_service.journal.sqlite.file_system import refuse_unknown_kind
from command_service.journal.sqlite.lock import Lock, lock
from command_service.journal.sqlite.making import bytes_in, make_if_new, refuse_absent, wal_beside
from command_service.journal.sqlite.owner import make_folder
from command_service.journal.sqlite.starting import prepare, refusing_damage
from command_service.journal.sqlite.table import (
    DELETE_UNFINISHED,
    INSERT_RECORD,
    INSERT_UNFINISHED,
    READER_PRAGMAS,
    SELECT_VERSION,
    WRITER_PRAGMAS,
    chain_at,
    read_after,
    read_head,
    read_head_time,
    read_stream,
    unfinished,
)
from command_service.journal.store import Append, Committed, Head, random_id

log = structlog.get_logger()
T = TypeVar("T")


class SqliteStore:
    """A store in a SQLite file. See `command_service.journal.store.Store` for what it promises."""

    def __init__(
        self,
        path: Path,
        held: Lock,
        databases: tuple[Database, Database],
        looking: Thread,
        identity: tuple[str, bool],
        *,
        made_anew: bool,
        free_bytes: int,
        disk: Disk,
    ) -> None:
        """Use `open`."""
        self.journal_id, self.restored = identity
        self.made_anew = made_anew
        self.not_accepting: NotAccepting = ""
        self._has_told = False
        self._path = path
        self._held = held
        self._writer, self._reader = databases
        self._looking = looking
        self._free_bytes = free_bytes
        self._disk = disk

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        new_id: Callable[[], str] = random_id,
        free_bytes: int = 0,
        must_exist: bool = False,
        any_file_system: bool = False,
        disk: Disk = LOCAL_DISK,
    ) -> "SqliteStore":
        """Open a journal's file, or make it; see `Location.open`. Raises JournalRefused with the way out."""
        if must_exist:
            refuse_absent(path)
        make_folder(path.parent)
        refuse_unknown_kind(path, disk, any_file_system=any_file_system)
        async with contextlib.AsyncExitStack() as opened:  # all of it, or nothing is left open
            held = opened.enter_context(lock(path, disk))
            opened.enter_context(refusing_damage(path))
            made_anew = make_if_new(path, new_id, disk)
            held.take_file()
            writer = await Database.open(path, pragmas=WRITER_PRAGMAS, disk=disk)
            opened.push_async_callback(writer.close)
            identity = await writer.run(partial(prepare, path, disk))
            reader = await Database.open(path, read_only=True, pragmas=READER_PRAGMAS, disk=disk)
            opened.push_async_callback(reader.close)
            held.remember()
            looking = disk.thread(f"look-{path.name}")
            opened.pop_all()
            return cls(
                path,
                held,
                (writer, reader),
                looking,
                identity,
                made_anew=made_anew,
                free_bytes=free_bytes,
                disk=disk,
            )

    @property
    def wal_bytes(self) -> int:
        """The size of the WAL. One that stays large says that somebody has been reading from the file for long."""
        return bytes_in(wal_beside(self._path))

    # ------------------------------------------------------------ writing
    async def commit(self, batch: Sequence[Append], head: Head) -> Committed:
        """Store a batch in one transaction; see the port."""
        try:
            return await self._writer.run(partial(_commit, batch, head))
        except Exception as error:
            not_stored = await self._why_not_stored(error, head.place)
            if not_stored is None:
                raise
            raise not_stored from error

    async def _why_not_stored(self, error: Exception, head: Place) -> NotStored | None:
        """Say why a commit that failed stored nothing. None: that is not certain."""
        code = getattr(error, "sqlite_errorcode", 0)
        if not _is_busy(error) and code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
            return None
        try:
            if await self._writer.run(_roll_back) != head:
                return None
            if code == sqlite3.SQLITE_IOERR_WRITE and await self._writer.run(self._can_grow):
                return None
        except (sqlite3.Error, OSError):
            return None
        return JournalBusy() if _is_busy(error) else JournalFull()

    async def probe(self) -> NotAccepting:
        """Find out whether a commit would find the lock and room; see the port."""
        try:
            return "" if await self._writer.run(self._can_grow) else "full"
        except sqlite3.Error as error:
            if _is_busy(error):
                return "busy"
            raise

    def _can_grow(self, connection: sqlite3.Connection) -> bool:
        """Tell whether a commit would find room. Raises sqlite3.OperationalError if the lock cannot be had, OSError."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            return self._disk.has_room(wal_beside(self._path))
        finally:
            connection.execute("ROLLBACK")

    # ------------------------------------------------------------ reading
    async def head(self) -> Head:
        """Return the head."""
        return await self._read(lambda connection: Head(read_head(connection), read_head_time(connection)))

    async def read_stream(self, charge_id: str) -> Sequence[Record]:
        """Read a stream; see the port."""
        return await self._read(partial(read_stream, charge_id))

    async def read_after(self, place: Place, until: int) -> Sequence[Record]:
        """Read on from a place; see the port."""
        return await self._read(partial(read_after, place, until))

    async def chain_at(self, position: int) -> bytes:
        """Return the chain up to a position; see the port."""
        return await self._read(partial(chain_at, position))

    async def unfinished(self) -> Sequence[str]:
        """List the streams that are not finished."""
        return await self._read(unfinished)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read in the reading thread. Damage that SQLite meets, in an index say, is damage of the journal."""
        try:
            return await self._reader.run(work)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise JournalCorrupt(None) from error
            raise

    # ------------------------------------------------------------ other servers: there are none
    def drives(self, _charge_id: str) -> bool:
        """Whether this server is to bring a stream to its end: any."""
        return True

    async def news(self) -> Sequence[str]:
        """Return the streams that are not finished at the start, and nothing ever after."""
        if self._has_told:
            await asyncio.Event().wait()
        self._has_told = True
        return await self.unfinished()

    async def reaches(self, _position: int) -> bool:
        """Whether the journal has a position beyond what is known: nobody else stores anything."""
        return False

    async def head_beyond(self, _position: int) -> Head:
        """Return never: nobody else moves the head."""
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")

    # ------------------------------------------------------------ the files
    async def look(self, head: Place) -> None:
        """See that the files are still ours and how much room there is, and write the anchor if the journal has moved.

        Raises JournalRefused if another file has the name of one that is open, or the anchor is another journal's; OSError.
        """
        await self._looking.run(self._look, head)

    def _look(self, head: Place) -> None:
        try:
            self._held.refuse_changes()
        except JournalRefused:
            with contextlib.suppress(OSError, JournalRefused):
                self._write_anchor(head)
            raise
        self.not_accepting = "" if self._disk.free_bytes(self._path.parent) >= self._free_bytes else "full"
        self._write_anchor(head)

    def _write_anchor(self, head: Place) -> None:
        """Write the anchor if it does not name the head. Raises JournalRefused if it is another journal's, or OSError."""
        try:
            found = anchor.read(self._path)
        except JournalRefused:
            found = None
        if found is None:
            log.warning("the anchor is gone or damaged: it is written anew")
        elif found.journal_id != self.journal_id or found.place.position > head.position:
            raise JournalRefused(
                f"{anchor.path_beside(self._path)} was written for another journal, or by another server that has a copy of "
                "this one: see which of them is to be served from"
            )
        if found is None or found.place != head:
            anchor.write(self._path, anchor.Anchor(self.journal_id, head))

    async def close(self) -> None:
        """Let go of the file, after the work that was sent before."""
        try:
            await self._looking.run(self._looking.end)
            await self._reader.close()
            await self._writer.close()
        finally:
            self._held.close()


# ---------------------------------------------------------------- in the writing thread
def _commit(batch: Sequence[Append], head: Head, connection: sqlite3.Connection) -> Committed:
    """Store a batch in one transaction: each append's records or its conflict, and the new head.

    Positions and chain are given out after an append's conflict check, so a refused one leaves no hole.
    """
    outcomes: list[Appended] = []
    place = head.place
    connection.execute("BEGIN IMMEDIATE")
    for append in batch:
        key = key_of(append.charge_id)
        (version,) = connection.execute(SELECT_VERSION, (key,)).fetchone()
        if (version or 0) != append.expected_version:
            outcomes.append(VersionConflict())
            continue
        records, place = seal(append, key, place, head.recorded_at)
        for position, _, version, recorded_at, chain, event in records:
            connection.execute(INSERT_RECORD, (position, key, version, recorded_at, chain, event))
        connection.execute(DELETE_UNFINISHED if append.finished else INSERT_UNFINISHED, (key,))
        outcomes.append(records)
    connection.execute("COMMIT")
    return Committed(outcomes, Head(place, head.recorded_at))


def _roll_back(connection: sqlite3.Connection) -> Place:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
    return read_head(connection)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
