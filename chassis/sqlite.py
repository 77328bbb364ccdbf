"""A SQLite file and the one thread that may touch its connection.

Whatever needs a thread goes through `Database.run`, and through nothing else: on an event loop that runs executor calls
inline, the same code is deterministic.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# How long a statement waits for a lock that another program holds, in its own thread: an edit by hand or a copying tool's
# checkpoint is over by then, and a client that waits is still told before its deadline.
BUSY_SECONDS = 3.0


class PragmaNotTakenError(Exception):
    """SQLite did not take a setting that the promises rest on."""


class Database:
    """One connection in autocommit mode, used by one thread."""

    def __init__(self, connection: sqlite3.Connection, executor: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._executor = executor

    @classmethod
    async def open(cls, path: Path, *, read_only: bool = False, pragmas: Mapping[str, str | int]) -> "Database":
        """Open the file and set the pragmas, each read back. A file to be written is made if it is missing.

        Raises sqlite3.Error, or PragmaNotTakenError if a pragma reads back otherwise than it was set.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sqlite-{path.name}")
        connect = lambda: open_connection(path, read_only=read_only, pragmas=pragmas)  # noqa: E731  # a name for the next line
        try:
            connection = await asyncio.get_running_loop().run_in_executor(executor, connect)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(connection, executor)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work in the thread. If the caller is cancelled, work that has begun is still done; what waits may be dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, self._connection)

    async def close(self) -> None:
        """Close after the work that was sent before."""
        await self.run(sqlite3.Connection.close)
        self._executor.shutdown(wait=False)


def open_connection(path: Path, *, read_only: bool, pragmas: Mapping[str, str | int]) -> sqlite3.Connection:
    """Open a connection as `Database.open` does, for use by the calling thread."""
    mode = "ro" if read_only else "rwc"
    is_new = not path.exists()
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
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


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
