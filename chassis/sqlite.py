"""A SQLite file and the one thread that may touch its connection.

Work on a connection goes through `Database.run`, in a thread of the `Disk`. On an event loop that runs such work inline, the
same code is deterministic.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from chassis.disk import LOCAL_DISK, Disk, Thread

T = TypeVar("T")


class PragmaNotTakenError(Exception):
    """SQLite did not take a setting that our promises depend on."""


class Database:
    """One connection in autocommit mode, used by one thread."""

    def __init__(self, connection: sqlite3.Connection, thread: Thread) -> None:
        self._connection = connection
        self._thread = thread

    @classmethod
    async def open(
        cls, path: Path, *, read_only: bool = False, pragmas: Mapping[str, str | int], disk: Disk = LOCAL_DISK
    ) -> "Database":
        """Open the file and set the pragmas, each read back. Opened for writing, a missing file is made.

        Raises sqlite3.Error, or PragmaNotTakenError if a pragma reads back another value than was set.
        """
        thread = disk.thread(f"sqlite-{path.name}")
        try:
            connection = await thread.run(
                lambda: open_connection(path, read_only=read_only, pragmas=pragmas, disk=disk)
            )
        except BaseException:
            thread.end()
            raise
        return cls(connection, thread)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work in the thread; see `Thread.run`."""
        return await self._thread.run(work, self._connection)

    async def close(self) -> None:
        """Close after all work sent before."""
        await self.run(lambda connection: connection.close())
        self._thread.end()


def open_connection(
    path: Path, *, read_only: bool, pragmas: Mapping[str, str | int], disk: Disk = LOCAL_DISK
) -> sqlite3.Connection:
    """Open a connection like `Database.open`, for the calling thread."""
    is_new = not path.exists()
    connection = disk.connect(path, read_only=read_only)
    try:
        for pragma, value in pragmas.items():
            connection.execute(f"PRAGMA {pragma} = {value}").fetchall()  # unfetched, it can swallow an I/O error
            (taken,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            if str(taken).lower() != str(value).lower():
                raise PragmaNotTakenError(f"SQLite answers {taken!r} to PRAGMA {pragma} = {value}")
        if is_new and not read_only:
            sync_directory(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection


def sync_directory(folder: Path) -> None:
    """Make the names in a folder durable: SQLite ignores a failure of this sync, we do not. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
