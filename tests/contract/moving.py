"""Journals with real events in both stores, and what a test sees of them from outside. All of it blocks."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import asyncpg

from bench.fill import filled
from command_service.journal.copying import copy_journal
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Location
from rig.postgres import Node, database, wait_for

FINISHED, UNFINISHED = 90, 7
ALL = FINISHED + UNFINISHED


def full(path: Path, records: int = FINISHED) -> SqliteFile:
    """A journal of 30 charges at rest and 7 that have only begun, or of another size."""
    return SqliteFile(asyncio.run(filled(path, records, UNFINISHED)))


def fetch(url: str, statement: str, *values: object) -> list[Any]:
    """Ask the database itself."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()

    return wait_for(ask())


@dataclass(frozen=True, slots=True)
class Contents:
    """All of a journal, as a store keeps it."""

    identity: tuple[str, bool]
    records: list[tuple[int, bytes, int, int, bytes, bytes]]
    unfinished: set[bytes]


RECORDS = "SELECT position, charge_id, version, recorded_at, chain, event FROM {}record ORDER BY position"
UNFINISHED_KEYS = "SELECT charge_id FROM {}unfinished"


def contents(place: Location) -> Contents:
    """Read all of a store from outside."""
    if isinstance(place, SqliteFile):
        with contextlib.closing(sqlite3.connect(f"file:{place.path}?mode=ro", uri=True)) as connection:
            ((journal_id, restored),) = connection.execute("SELECT id, restored FROM journal").fetchall()
            records = connection.execute(RECORDS.format("")).fetchall()
            unfinished = connection.execute(UNFINISHED_KEYS.format("")).fetchall()
    else:
        assert isinstance(place, PostgresPlace)
        url = str(place)
        ((journal_id, restored),) = fetch(url, "SELECT journal_id::text, restored FROM chargeonce.head")
        records = fetch(url, RECORDS.format("chargeonce."))
        unfinished = fetch(url, UNFINISHED_KEYS.format("chargeonce."))
    return Contents((journal_id, bool(restored)), records, {key for (key,) in unfinished})


class Places:
    """New places for journals."""

    _databases: ClassVar[dict[Node, list[str]]] = {}
    """Those made so far: to empty one costs a tenth of making one."""

    def __init__(self, folder: Path, node: Node) -> None:
        self._folder = folder
        self._node = node
        self._made = 0
        self._free = list(self._databases.setdefault(node, []))

    def file(self) -> SqliteFile:
        """A file that does not exist."""
        self._made += 1
        return SqliteFile(self._folder / f"journal-{self._made}.db")

    def database(self) -> PostgresPlace:
        """A database after migrate."""
        if self._free:
            url = self._free.pop()
            for statement in ("DROP SCHEMA IF EXISTS chargeonce, public CASCADE", "CREATE SCHEMA public"):
                fetch(url, statement)
        else:
            url = wait_for(database(self._node))
            self._databases[self._node].append(url)
        place = PostgresPlace.of(url)
        place.migrate()
        return place

    def empty(self, kind: str) -> Location:
        """A place of either kind, to copy to."""
        return self.file() if kind == "sqlite" else self.database()

    def full(self, kind: str, records: int = FINISHED) -> Location:
        """A journal in a store of either kind, which is served from there."""
        made = full(self.file().path, records)
        if kind == "sqlite":
            return made
        place = self.database()
        move(made, place)
        return place


def copy(source: Location, target: Location) -> str:
    """Copy a journal; the copy is not served from."""
    return copy_journal(source, target, move=False, tell=lambda _: None)


def move(source: Location, target: Location) -> str:
    """Copy a journal, and serve from the copy from now on."""
    return copy_journal(source, target, move=True, tell=lambda _: None)


def serve(place: Location) -> tuple[str, int]:
    """Open a journal as a server does, and close it again. Returns its id and where it ends."""

    async def run() -> tuple[str, int]:
        store = await place.open()
        try:
            return store.journal_id, (await store.head()).place.position
        finally:
            await store.close()

    return wait_for(run())


@contextmanager
def served(place: Location) -> Iterator[None]:
    """Have a server at work on a journal."""
    with asyncio.Runner() as runner:
        store = runner.run(place.open())
        try:
            yield
        finally:
            runner.run(store.close())
