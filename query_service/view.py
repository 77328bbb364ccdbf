"""The view: the projection's rows, and the checkpoint up to which they hold, in one SQLite file.

* Rows and checkpoint are written in one transaction a batch, so each event counts once however often it is delivered.
* Queries have a connection of their own and run beside the writer. Each reads its tenant's rows and the checkpoint in one
  read transaction: it sees whole batches only, and the position in its answer is the one that its rows show.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from charging.v1.query_pb2 import Situation
from chassis.disk import LOCAL_DISK, Disk
from chassis.slots import Slots
from chassis.sqlite import Database
from query_service import schema
from query_service.lookup import Rows, TenantNumbers, count_holds_ending, count_stuck, find_checkpoint, find_standing
from query_service.observed import UNOBSERVED, Observed
from query_service.projection import FOLLOWS, Follows, charges_needed, project
from query_service.schema import Checkpoint, Insert, Update
from query_service.verified import Stretch
from query_service.view_file import APPLICATION_ID, ViewFile, ViewUnusable, format_of, is_damage

T = TypeVar("T")

WRITER_PRAGMAS: Mapping[str, str | int] = {
    "application_id": APPLICATION_ID,
    "journal_mode": "wal",  # readers see the last whole batch while the next is written
    # NORMAL: a power cut may lose the newest batches, which the feed brings again, but never tears one. FULL would cost a sync
    # a batch, OFF could leave a damaged file unnoticed.
    "synchronous": 1,
    # Negative: in KiB. Ids and keys are spread over their whole indexes: 64 MiB holds the leaves of some million charges.
    "cache_size": -65_536,
    # In pages: 32 MiB. During a rebuild the same pages change in every batch; a higher limit copies each back less often.
    "wal_autocheckpoint": 8_192,
    "journal_size_limit": 67_108_864,  # a WAL that a slow reader let grow is cut back to 64 MiB
}
READER_PRAGMAS: Mapping[str, str | int] = {
    "query_only": 1,  # beside the file's own mode: no statement here may write
    "cache_size": -16_384,  # 16 MiB; the operating system caches the rest
}
# One thread reads: the second query is there when it is through with the first.
READS_AT_ONCE = 2


class ViewNotWritten(Exception):
    """A batch could not be written, for instance to a full disk. The view shows nothing of it; it may be tried again."""


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """The result of a query, and the checkpoint that it shows."""

    found: T
    checkpoint: Checkpoint


class View:
    """One view file, open for one writer and for queries."""

    def __init__(
        self,
        file: ViewFile,
        writer: Database,
        reader: Database,
        follows: Follows,
        *,
        journal_id: str,
        observed: Observed,
    ) -> None:
        self.path = file.path
        self.journal_id = journal_id
        """The journal that the view shows; empty if it shows none yet."""
        self._file = file
        self._writer = writer
        self._reader = reader
        self._follows = follows
        self._observed = observed
        self.turns = Slots(READS_AT_ONCE)
        """Those of queries at the thread that reads."""
        self.damage: asyncio.Future[ViewUnusable] = asyncio.get_running_loop().create_future()
        """Done once the file is found damaged: the server is to end with this error."""

    @classmethod
    async def open(
        cls, path: Path, *, disk: Disk = LOCAL_DISK, follows: Follows = FOLLOWS, observed: Observed = UNOBSERVED
    ) -> "View":
        """Open the view in a file of a disk. A missing file or folder is made, for our own user only.

        `follows` holds the events that a charge may have next: see `project`. Raises ViewUnusable if another server has the
        file or if it is no view, OSError and sqlite3.OperationalError if it cannot be opened.
        """
        async with contextlib.AsyncExitStack() as stack:
            file = await ViewFile.claim(path, disk)
            stack.callback(file.release)
            writer = await Database.open(file.path, pragmas=WRITER_PRAGMAS, disk=disk)
            stack.push_async_callback(writer.close)
            journal_id = await writer.run(_create_tables)
            reader = await Database.open(file.path, read_only=True, pragmas=READER_PRAGMAS, disk=disk)
            stack.pop_all()
            return cls(file, writer, reader, follows, journal_id=journal_id, observed=observed)

    async def close(self) -> None:
        """Close after all work sent before. A damaged file is removed: to find the damage again would take long."""
        await self._reader.close()
        await self._writer.close()
        if self.damage.done():
            self._file.throw_away()
        self._file.release()

    async def checkpoint(self) -> Checkpoint:
        """Return the checkpoint after all work sent before. Raises ViewUnusable."""
        with self._telling_damage():
            return await self._writer.run(find_checkpoint)

    async def apply(self, stretch: Stretch) -> None:
        """Add the records of the stretch that follows the checkpoint, all or none. Once begun it is done even if the caller is
        cancelled.

        Raises UnknownEvent or StreamBroken (see projection), ViewNotWritten, ViewUnusable if the file is damaged, and
        sqlite3.IntegrityError if the records do not fit the rows in the view.
        """
        with self._observed.batches.piece() as batch:
            await self._write(lambda connection: _apply(connection, stretch, self._follows))
            batch.result = ()
        self._observed.batch_records.note(len(stretch.records))

    async def reset(self, journal_id: str) -> None:
        """Empty the view, which then follows this journal from its start. Raises ViewNotWritten, ViewUnusable."""
        await self._write(lambda connection: _reset(connection, journal_id))
        self.journal_id = journal_id

    async def read(self, tenant: str, find: Callable[[Rows], T], query: str = "") -> Shown[T]:
        """Answer a tenant's query from one state of the view. `query` is its name in the metrics.

        Raises ViewUnusable if the file is damaged.
        """

        def read(connection: sqlite3.Connection) -> Shown[T]:
            with _transaction(connection, "BEGIN"):
                return Shown(find(Rows(connection, tenant)), find_checkpoint(connection))

        # The thread itself takes them as they come, and one tenant's thousand long lists first.
        with self._observed.reads.piece() as piece:
            await self.turns.take(tenant)
            try:
                with self._telling_damage():
                    shown = await self._reader.run(read)
            finally:
                self.turns.give_back(tenant)
            piece.result = (query,)
        return shown

    async def stuck_counts(self, now: int) -> Mapping[Situation.ValueType, int]:
        """Count the charges of all tenants that are at rest and stuck, by their situation (`count_stuck`).

        `now` is in microseconds since 1970. Raises ViewUnusable.
        """
        with self._telling_damage():
            return await self._reader.run(lambda connection: count_stuck(connection, now))

    async def holds_ending(self, before: int) -> int:
        """Count the open holds that end before a time, in microseconds since 1970. Raises ViewUnusable."""
        with self._telling_damage():
            return await self._reader.run(lambda connection: count_holds_ending(connection, before))

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
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            unusable = ViewUnusable(f"the view is damaged ({error}): the next start builds it again from the feed")
            if not self.damage.done():
                self.damage.set_result(unusable)
            raise unusable from error


def _apply(connection: sqlite3.Connection, stretch: Stretch, follows: Follows) -> None:
    known = find_standing(connection, charges_needed(stretch.records))
    changes = project(stretch.records, known, TenantNumbers(connection), follows)
    connection.executemany(schema.ADD_CHARGE, changes.charges)
    _add(connection, schema.ADD_OPERATIONS, changes.operations)
    _overwrite(connection, schema.MOVE_CHARGE, changes.moved_charges)
    _overwrite(connection, schema.MOVE_OPERATION, changes.moved_operations)
    _add(connection, schema.ADD_ENTRIES, changes.entries)
    connection.executemany(schema.ADD_STEP, changes.steps)
    connection.executemany(schema.ADD_TO_SUM, changes.sums)
    connection.executemany(schema.DROP_EMPTY_SUM, [sum_._asdict() for sum_ in changes.sums if sum_.charge_count < 0])
    connection.executemany(schema.ADD_TO_TOTALS, changes.totals)
    place = {"position": stretch.to.position, "chain": stretch.to.chain, "follows": stretch.after}
    if connection.execute(schema.MOVE_CHECKPOINT, place).rowcount != 1:
        raise sqlite3.IntegrityError("the records do not follow the checkpoint")


def _add(connection: sqlite3.Connection, insert: Insert, rows: Iterable[tuple[Any, ...]]) -> None:
    left = iter(rows)
    while len(batch := list(islice(left, schema.ROWS_A_STATEMENT))) == schema.ROWS_A_STATEMENT:
        connection.execute(insert.many, list(chain.from_iterable(batch)))
    connection.executemany(insert.one, batch)


def _overwrite(connection: sqlite3.Connection, update: Update, rows: Iterable[tuple[Any, ...]]) -> None:
    connection.executemany(update.statement, map(update.parameters, rows))


def _reset(connection: sqlite3.Connection, journal_id: str) -> None:
    for statement in schema.EMPTY:
        connection.execute(statement)
    connection.execute(schema.BEGIN_CHECKPOINT, Checkpoint(journal_id, 0, schema.GENESIS))


def _create_tables(connection: sqlite3.Connection) -> str:
    """Make the tables if there are none. Returns the id of the journal that the view shows."""
    if format_of(connection) == schema.FORMAT:
        return find_checkpoint(connection).journal_id
    with _transaction(connection, "BEGIN IMMEDIATE"):
        for statement in schema.SCHEMA:
            connection.execute(statement)
        connection.execute(schema.BEGIN_CHECKPOINT, Checkpoint("", 0, schema.GENESIS))
        connection.execute(f"PRAGMA user_version = {schema.FORMAT}")
    return ""


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
