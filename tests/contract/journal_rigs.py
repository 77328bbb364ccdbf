"""A rig: one store with one journal in it. Each store in STORES runs tests/contract/test_journal.py.

A rig opens the journal as a server does, and can also look at the store from outside: so a test sees facts that the journal
itself would not show.
"""

import asyncio
import contextlib
import itertools
import random
import sqlite3
import struct
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import asyncpg
import pytest

from chassis.disk import LOCAL_DISK, Disk
from command_service.journal import GENESIS, Journal, Record, VersionConflict
from command_service.journal.commits import RHYTHM, GroupCommit
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.schema import FORMAT, SCHEMA
from command_service.journal.postgres.store import PostgresStore
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Store, random_id
from rig.postgres import wait_for


def stream(number: int) -> str:
    """The id of a stream."""
    return str(uuid.UUID(int=number))


async def add(
    journal: Journal, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
) -> Sequence[Record]:
    """Append to a stream. A conflict fails the test."""
    outcome = await journal.append(charge_id, expected_version, events, finished=finished)
    assert not isinstance(outcome, VersionConflict)
    return outcome


@dataclass(frozen=True, slots=True)
class Moment:
    """The contents of a store at one moment: (position, stream, version) of each record, and the unfinished streams."""

    records: list[tuple[int, str, int]]
    unfinished: set[str]


class Rig(Protocol):
    """A store, for the contract's tests."""

    def open(self) -> AbstractAsyncContextManager[Journal]:
        """Open the journal, and close it in the end. Opened again, it is the same journal."""
        ...

    def moment(self) -> Moment:
        """Read the store from outside in one transaction, beside the server."""
        ...

    def commits(self) -> int:
        """Count the store's commits from outside."""
        ...


class _Grouping:
    """What a rig has whatever its store: a journal over it, whose clock ticks and whose process does not really end."""

    def __init__(self) -> None:
        self.rhythm = RHYTHM
        self.has_ended = asyncio.Event()
        """The journal has ended its process."""
        self._ticks = itertools.count(1_790_000_000_000_000)

    @asynccontextmanager
    async def _over(self, store: Store) -> AsyncIterator[Journal]:
        journal = await GroupCommit.open(
            store, now=lambda: next(self._ticks), end_process=self._end_process, rhythm=self.rhythm
        )
        try:
            yield journal
        finally:
            await journal.close()

    def _end_process(self) -> NoReturn:
        self.has_ended.set()
        raise AssertionError("the journal ended the process")


class SqliteRig(_Grouping):
    """A journal in a real file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "journal.db"
        self.disk: Disk = LOCAL_DISK

    @asynccontextmanager
    async def open(self, *, free_bytes: int = 0) -> AsyncIterator[Journal]:
        async with self._over(await SqliteFile(self.path).open(free_bytes=free_bytes, disk=self.disk)) as journal:
            yield journal

    def moment(self) -> Moment:
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            connection.execute("BEGIN")
            records = connection.execute("SELECT position, charge_id, version FROM record ORDER BY position").fetchall()
            unfinished = connection.execute("SELECT charge_id FROM unfinished").fetchall()
        return Moment(
            [(position, str(uuid.UUID(bytes=key)), version) for position, key, version in records],
            {str(uuid.UUID(bytes=key)) for (key,) in unfinished},
        )

    def commits(self) -> int:
        """Count the commit frames in the WAL: those that name the database's size (sqlite.org/fileformat2.html, 4.1)."""
        wal = self.path.with_name(self.path.name + "-wal").read_bytes()
        if not wal:
            return 0
        page_bytes, salt = struct.unpack(">8xI4x8s", wal[:24])
        frames = (wal[start : start + 24] for start in range(32, len(wal), 24 + page_bytes))
        return sum(frame[4:8] != bytes(4) and frame[8:16] == salt for frame in frames)


class PostgresRig(_Grouping):
    """A journal in a database of a real server. It may be open several times at once."""

    def __init__(self, url: str, *, is_made: bool = False) -> None:
        """`is_made`: another rig has made the journal, which this one reaches by another way."""
        super().__init__()
        self.url = url
        self.place = PostgresPlace.of(url)
        if not is_made:
            wait_for(self._make())

    async def _make(self) -> None:
        connection = await asyncpg.connect(self.url)
        for statement in SCHEMA:
            await connection.execute(statement)
        await connection.execute(
            "INSERT INTO chargeonce.head (format, journal_id, restored, position, chain, recorded_at) "
            "VALUES ($1, $2, false, 0, $3, 0)",
            FORMAT,
            uuid.uuid4(),
            GENESIS,
        )
        await connection.close()

    @asynccontextmanager
    async def open(self, name: str = "rig") -> AsyncIterator[Journal]:
        store = await PostgresStore.open(self.place.nodes(), name=name, new_id=random_id, chance=random.Random())
        async with self._over(store) as journal:
            yield journal

    def moment(self) -> Moment:
        return wait_for(self._moment())

    async def _moment(self) -> Moment:
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                records = await connection.fetch(
                    "SELECT position, charge_id, version FROM chargeonce.record ORDER BY position"
                )
                unfinished = await connection.fetch("SELECT charge_id FROM chargeonce.unfinished")
        finally:
            await connection.close()
        return Moment(
            [(position, str(uuid.UUID(bytes=key)), version) for position, key, version in records],
            {str(uuid.UUID(bytes=key)) for (key,) in unfinished},
        )

    def commits(self) -> int:
        """Count the transactions that stored records: each row says which one made it (xmin)."""
        return wait_for(self._commits())

    async def _commits(self) -> int:
        connection = await asyncpg.connect(self.url)
        try:
            return int(await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM chargeonce.record"))
        finally:
            await connection.close()


STORES = ("sqlite", "postgres")


def rig_of(request: pytest.FixtureRequest, folder: Path) -> Rig:
    """Make the rig of the store that a test is to run on: a fixture of STORES calls it."""
    return SqliteRig(folder) if request.param == "sqlite" else PostgresRig(request.getfixturevalue("postgres_url"))
