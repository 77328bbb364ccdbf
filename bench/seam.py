"""The cost of one commit through aiosqlite and through `chassis.sqlite`: python -m bench.seam

Both write the same rows to a file with WAL and synchronous=FULL, in turns, so that a noisy machine disturbs both alike.
"""

import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import aiosqlite

from chassis.sqlite import Database

ROUNDS, COMMITS = 15, 40
PRAGMAS: dict[str, str | int] = {"journal_mode": "wal", "synchronous": 2}
TABLE = "CREATE TABLE row (charge BLOB, version INTEGER, event BLOB, UNIQUE (charge, version))"
VERSION = "SELECT max(version) FROM row WHERE charge = ?"
INSERT = "INSERT INTO row VALUES (?, ?, ?)"


def _rows(number: int, size: int) -> list[tuple[bytes, int, bytes]]:
    return [((number * size + i).to_bytes(16, "big"), 1, bytes(120)) for i in range(size)]


def _commit(rows: list[tuple[bytes, int, bytes]], connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for row in rows:
        connection.execute(VERSION, row[:1]).fetchone()
        connection.execute(INSERT, row)
    connection.execute("COMMIT")


async def _through_the_seam(database: Database, begin: int, size: int) -> float:
    started = time.perf_counter()
    for number in range(begin, begin + COMMITS):
        rows = _rows(number, size)
        await database.run(lambda connection, rows=rows: _commit(rows, connection))  # type: ignore[misc]  # lambda default
    return time.perf_counter() - started


async def _through_aiosqlite(connection: aiosqlite.Connection, begin: int, size: int) -> float:
    """Write as the library's documentation does: each statement awaited, since each append must see its own conflict."""
    started = time.perf_counter()
    for number in range(begin, begin + COMMITS):
        await connection.execute("BEGIN IMMEDIATE")
        for row in _rows(number, size):
            async with connection.execute(VERSION, row[:1]) as cursor:
                await cursor.fetchone()
            await connection.execute(INSERT, row)
        await connection.execute("COMMIT")
    return time.perf_counter() - started


async def main() -> None:
    """Print the median time a row, by rows in a commit, and the ratio within each round."""
    print("rows in a commit   seam, us a row   aiosqlite, us a row   ratio (median of rounds)")
    with tempfile.TemporaryDirectory() as folder:
        database = await Database.open(Path(folder, "seam.db"), pragmas=PRAGMAS)
        await database.run(lambda connection: connection.execute(TABLE))
        async with aiosqlite.connect(Path(folder, "aiosqlite.db"), isolation_level=None) as connection:
            for pragma, value in PRAGMAS.items():
                await connection.execute(f"PRAGMA {pragma} = {value}")
            await connection.execute(TABLE)
            begin = 0
            for size in (1, 10, 100):
                seam, other = [], []
                for _ in range(ROUNDS):
                    seam.append(await _through_the_seam(database, begin, size) / COMMITS / size * 1e6)
                    other.append(await _through_aiosqlite(connection, begin, size) / COMMITS / size * 1e6)
                    begin += COMMITS * 10
                ratio = statistics.median(b / a for a, b in zip(seam, other, strict=True))
                print(
                    f"{size:>16}   {statistics.median(seam):>14.0f}   {statistics.median(other):>19.0f}   {ratio:>5.1f}"
                )
        await database.close()


if __name__ == "__main__":
    asyncio.run(main())
