"""The journal in one SQLite file, for one server at a time.

* One writing connection, in a thread of its own. Appends that queue up while a commit is under way go into the next one
  together, which is what pays for `synchronous=FULL`.
* Other connections open the file read-only and never checkpoint: SQLite before 3.51.3 can corrupt a WAL that several
  connections reset.
* A full disk, and a write lock that another program holds, are a "no": nothing was stored, no new streams are begun, and the
  process looks each second whether it goes again.
* Any other commit that fails or is interrupted may be on disk or not. The process then ends, and the next start moves the
  whole WAL into the database, synced, before anybody acts on it: after a failed sync Linux serves the lost page from its
  cache as if it were stored.
"""

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import structlog

from chassis.disk import LOCAL_DISK, Disk
from chassis.sqlite import Database
from command_service.journal import (
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    JournalRefused,
    NotStored,
    Place,
    Record,
    VersionConflict,
    anchor,
    chain_after,
)
from command_service.journal.file_system import refuse_unknown_kind
from command_service.journal.lock import Lock, lock
from command_service.journal.making import bytes_in, make_if_new, refuse_absent, wal_beside
from command_service.journal.owner import make_folder
from command_service.journal.room import has_room
from command_service.journal.table import (
    DELETE_UNFINISHED,
    INSERT_RECORD,
    INSERT_UNFINISHED,
    READER_PRAGMAS,
    SELECT_VERSION,
    WRITER_PRAGMAS,
    chain_at,
    key_of,
    read_after,
    read_head,
    read_head_time,
    read_stream,
    unfinished,
)
from command_service.journal.upkeep import prepare, refusing_damage

log = structlog.get_logger()
T = TypeVar("T")

# A commit of this many appends takes tens of milliseconds; larger ones gain nothing more (measured) and delay replies.
APPENDS_A_COMMIT = 512
# Turns of the event loop that bring no further append before what is queued is committed. A busy loop has charges ready that
# are about to append, and they join: a quarter more charges a second (measured). An idle one turns so often in 0.02 ms.
TURNS_BEFORE_COMMIT = 20
ANCHOR_EVERY_SECONDS = 1.0
PROBE_EVERY_SECONDS = 1.0
# A clock that is corrected in small steps is no news; one that is further behind than this is somebody's to mend.
CLOCK_BEHIND_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Append:
    charge_id: str
    expected_version: int
    events: Sequence[bytes]
    finished: bool
    stored: "asyncio.Future[Sequence[Record]]"


class SqliteJournal:
    """A journal in a SQLite file. See `command_service.journal.Journal` for what it promises."""

    def __init__(
        self,
        path: Path,
        lock: Lock,
        writer: Database,
        reader: Database,
        prepared: tuple[str, bool, Place],
        *,
        made_anew: bool,
        now: Callable[[], int],
        end_process: Callable[[], NoReturn],
        free_bytes: int,
        disk: Disk,
        turns_before_commit: int,
    ) -> None:
        self._path = path
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self.journal_id, self.restored, self._head = prepared
        self.made_anew = made_anew
        self._now = now
        self._end_process = end_process
        self._free_bytes = free_bytes
        self._disk = disk
        self._turns_before_commit = turns_before_commit
        self._queue: list[_Append] = []
        self._writing: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._has_room = True
        self._refused: Literal["", "full", "busy"] = ""
        self._probing: asyncio.Task[None] | None = None
        self._recorded_at = 0
        self._is_clock_behind = False
        self._anchoring = asyncio.create_task(self._keep_anchor())

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        now: Callable[[], int],
        end_process: Callable[[], NoReturn],
        free_bytes: int = 0,
        must_exist: bool = False,
        any_file_system: bool = False,
        disk: Disk = LOCAL_DISK,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        turns_before_commit: int = TURNS_BEFORE_COMMIT,
    ) -> "SqliteJournal":
        """Open a journal for appending, or make a new one unless it must exist.

        `now` gives microseconds since 1970; `end_process` is called when a commit's fate is unknown or the files are not
        those that were opened, and must not return; with fewer than `free_bytes` free on the disk no new streams are
        accepted. `disk` is the machine, `new_id` names a new journal; for `turns_before_commit` see the constant.

        Raises JournalRefused, with the way out, when the file must not be served from.
        """
        if must_exist:
            refuse_absent(path)
        make_folder(path.parent)
        refuse_unknown_kind(path, any_file_system=any_file_system)
        async with contextlib.AsyncExitStack() as opened:  # all of it, or nothing is left open
            held = opened.enter_context(lock(path, disk))
            opened.enter_context(refusing_damage(path))
            made_anew = make_if_new(path, new_id, disk)
            held.take_file()
            writer = await Database.open(path, pragmas=WRITER_PRAGMAS, disk=disk)
            opened.push_async_callback(writer.close)
            prepared = await writer.run(partial(prepare, path))
            reader = await Database.open(path, read_only=True, pragmas=READER_PRAGMAS, disk=disk)
            opened.push_async_callback(reader.close)
            held.remember()
            journal = cls(
                path,
                held,
                writer,
                reader,
                prepared,
                made_anew=made_anew,
                now=now,
                end_process=end_process,
                free_bytes=free_bytes,
                disk=disk,
                turns_before_commit=turns_before_commit,
            )
            opened.callback(journal._anchoring.cancel)
            await reader.run(partial(journal._look_after_files, journal.head))
            await reader.run(journal._look_at_clock)
            opened.pop_all()
            return journal

    @property
    def head(self) -> Place:
        """The newest acknowledged record."""
        return self._head

    @property
    def not_accepting(self) -> Literal["", "full", "busy"]:
        """Why no new streams should be begun, as of the last second: what the last commit met, or a disk that is filling up."""
        return self._refused or ("" if self._has_room else "full")

    @property
    def accepting(self) -> bool:
        """Whether new streams may be begun."""
        return not self.not_accepting

    @property
    def wal_bytes(self) -> int:
        """The size of the WAL. One that stays large says that somebody has been reading from the file for long."""
        return bytes_in(self._wal)

    @property
    def _wal(self) -> Path:
        return wal_beside(self._path)

    async def append(
        self, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
    ) -> Sequence[Record]:
        """Append to a stream; see the port."""
        stored: asyncio.Future[Sequence[Record]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Append(charge_id, expected_version, events, finished, stored))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await stored

    async def _write(self) -> None:
        """Commit what is queued, until nothing is. Only one of these runs at a time."""
        while self._queue:
            await self._let_others_join()
            batch, self._queue = self._queue[:APPENDS_A_COMMIT], self._queue[APPENDS_A_COMMIT:]
            recorded_at = self._time()
            try:
                outcomes, head = await self._writer.run(partial(_commit, batch, self._head, recorded_at))
            except Exception as error:  # whatever it is, a commit may have been under way
                not_stored = await self._why_not_stored(error)
                if not_stored is None:
                    # It may be on disk or not. Nobody is told anything, and nothing is tried again in this process.
                    try:
                        log.critical("a commit's fate is unknown: the process ends, the next start finds out")
                    finally:
                        self._end_process()
                self._refuse("busy" if isinstance(not_stored, JournalBusy) else "full", len(batch))
                outcomes, head = [not_stored] * len(batch), self._head
            if head != self._head:
                self._head, self._recorded_at, self._refused = head, recorded_at, ""
            for append, outcome in zip(batch, outcomes, strict=True):
                if append.stored.cancelled():
                    continue
                if isinstance(outcome, Exception):
                    append.stored.set_exception(outcome)
                else:
                    append.stored.set_result(outcome)
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()
        self._writing = None

    async def _let_others_join(self) -> None:
        turns = 0
        while turns < self._turns_before_commit and len(self._queue) < APPENDS_A_COMMIT:
            queued = len(self._queue)
            await asyncio.sleep(0)
            turns = turns + 1 if len(self._queue) == queued else 0

    async def _why_not_stored(self, error: Exception) -> NotStored | None:
        """Say why a commit that failed stored nothing. None: that is not certain."""
        code = getattr(error, "sqlite_errorcode", 0)
        if not _is_busy(error) and code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
            return None
        try:
            if await self._writer.run(_roll_back) != self._head:
                return None
            if code == sqlite3.SQLITE_IOERR_WRITE and await self._writer.run(partial(_has_room, self._wal)):
                return None
        except (sqlite3.Error, OSError):
            return None
        return JournalBusy() if _is_busy(error) else JournalFull()

    def _refuse(self, why: Literal["full", "busy"], appends: int) -> None:
        """Begin no new streams until a commit, or a look each second, says that it goes again."""
        log.error("nothing was stored", why=why, appends=appends)
        self._refused = why
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        while self._refused:
            await asyncio.sleep(PROBE_EVERY_SECONDS)
            try:
                self._refused = "" if await self._writer.run(partial(_has_room, self._wal)) else "full"
            except (sqlite3.Error, OSError) as error:
                if _is_busy(error):
                    self._refused = "busy"
                else:  # nothing is lost by it: whoever appends finds out what it means
                    log.warning("it could not be found out whether the journal can be written again", error=str(error))

    def _look_at_clock(self, connection: sqlite3.Connection) -> None:
        self._recorded_at = read_head_time(connection)
        self._time()

    def _time(self) -> int:
        """Now, or when the newest record was made if the clock has gone back since: recorded times never run backwards."""
        now = self._now()
        behind_seconds = (self._recorded_at - now) / 1_000_000
        was_behind, self._is_clock_behind = self._is_clock_behind, behind_seconds > CLOCK_BEHIND_SECONDS
        if self._is_clock_behind and not was_behind:
            log.warning(
                "the machine's clock is behind the journal's newest record, or before 1970: records get that time until it "
                "has caught up, set the clock",
                behind_seconds=round(behind_seconds),
            )
        return max(now, self._recorded_at)

    async def read(self, charge_id: str) -> Sequence[Record]:
        """Read a stream; see the port."""
        return await self._read(partial(read_stream, charge_id))

    async def read_after(self, place: Place) -> Sequence[Record]:
        """Read on from a place; see the port."""
        return await self._read(partial(read_after, place, self._head.position))

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

    async def beyond(self, position: int) -> None:
        """Return as soon as the head is beyond a position."""
        while self._head.position <= position:
            await self._moved.wait()

    async def _keep_anchor(self) -> None:
        while True:
            await asyncio.sleep(ANCHOR_EVERY_SECONDS)
            await self._look_after_files_or_end()

    async def _look_after_files_or_end(self) -> None:
        """Look after the files; if they are no longer ours, end the process: what it acknowledged now would be lost.

        What it has acknowledged since they were taken away may be lost. The anchor tells the next start, unless there is
        another journal's by now; and nothing is acknowledged after it.
        """
        try:
            await self._reader.run(partial(self._look_after_files, self._head))
        except JournalRefused as refused:
            try:
                with contextlib.suppress(OSError, JournalRefused):
                    self._write_anchor(self._head)
                log.critical("the journal's files were taken away or replaced: the process ends", reason=str(refused))
            finally:
                self._end_process()

    def _look_after_files(self, head: Place, _connection: sqlite3.Connection) -> None:
        """See that the files are still ours and how much room there is, and write the anchor if the journal has moved.

        Raises JournalRefused if another file has the name of one that is open, or the anchor is somebody else's.
        """
        try:
            self._lock.refuse_changes()
            self._has_room = self._disk.free_bytes(self._path.parent) >= self._free_bytes
            self._write_anchor(head)
        except OSError as error:
            # The journal is as safe as before, but a lost tail would be noticed later: say so and try again.
            log.warning("the anchor could not be written", errno=error.errno)

    def _write_anchor(self, head: Place) -> None:
        """Write the anchor if it does not name the head. Raises JournalRefused if it is somebody else's, or OSError."""
        try:
            found = anchor.read(self._path)
        except JournalRefused:
            found = None
        if found is None:
            log.warning("the anchor is gone or damaged: it is written anew")
        elif found.journal_id != self.journal_id or found.place.position > self._head.position:
            raise JournalRefused(
                f"{anchor.path_beside(self._path)} was written for another journal, or by another server that has a copy of "
                "this one: see which of them is to be served from"
            )
        if found is None or found.place != head:
            anchor.write(self._path, anchor.Anchor(self.journal_id, head))

    async def close(self) -> None:
        """Finish what was asked for, write the anchor, and let go of the file."""
        if self._writing is not None:
            await self._writing
        if self._probing is not None:
            self._probing.cancel()
        self._anchoring.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._anchoring
            await self._look_after_files_or_end()
        finally:
            await self._reader.close()
            await self._writer.close()
            self._lock.close()


# ---------------------------------------------------------------- in the writing thread
def _commit(
    batch: Sequence[_Append], head: Place, recorded_at: int, connection: sqlite3.Connection
) -> tuple[list[Sequence[Record] | Exception], Place]:
    """Store a batch in one transaction: each append's records or its conflict, and the new head.

    Positions and chain are given out after an append's conflict check, so a refused one leaves no hole.
    """
    outcomes: list[Sequence[Record] | Exception] = []
    connection.execute("BEGIN IMMEDIATE")
    for append in batch:
        key = key_of(append.charge_id)
        (version,) = connection.execute(SELECT_VERSION, (key,)).fetchone()
        if (version or 0) != append.expected_version:
            outcomes.append(VersionConflict())
            continue
        records = []
        for version, event in enumerate(append.events, append.expected_version + 1):
            position = head.position + 1
            chain = chain_after(head.chain, position, key, version, recorded_at, event)
            connection.execute(INSERT_RECORD, (position, key, version, recorded_at, chain, event))
            records.append(Record(position, append.charge_id, version, recorded_at, chain, event))
            head = Place(position, chain)
        connection.execute(DELETE_UNFINISHED if append.finished else INSERT_UNFINISHED, (key,))
        outcomes.append(records)
    connection.execute("COMMIT")
    return outcomes, head


def _roll_back(connection: sqlite3.Connection) -> Place:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
    return read_head(connection)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _has_room(wal: Path, connection: sqlite3.Connection) -> bool:
    """Tell whether a commit would find room. Raises sqlite3.OperationalError if the write lock cannot be had, OSError."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        return has_room(wal)
    finally:
        connection.execute("ROLLBACK")
