"""`python -m prove.postgres.order 1000000`: sixteen servers append so many records together, and a reader follows them.

Each record that the reader sees is verified to follow on the one before, by its position and by the chain. Exit status 1 if one
does not, or if the journal does not end where the writers have ended.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Awaitable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from typing import NoReturn

from chassis import process
from command_service.journal import START, Journal, JournalCorrupt, Place, VersionConflict
from command_service.journal.commits import GroupCommit
from command_service.journal.postgres.place import PostgresPlace
from prove.workers import be_silent, workers
from rig.fleet import migrate
from rig.postgres import Node, database

WRITERS = 16
PROCESSES = 4
# Of each writer: as many share a commit.
AT_ONCE = 128


def _end_process() -> NoReturn:
    raise SystemExit("a journal ended its process")


async def _opened(url: str, stack: AsyncExitStack) -> Journal:
    journal = await GroupCommit.open(
        await PostgresPlace.of(url).open(), now=lambda: time.time_ns() // 1_000, end_process=_end_process
    )
    stack.push_async_callback(journal.close)
    return journal


async def _append(journal: Journal, count: int) -> None:
    """Append so many records, in streams of their own."""
    stream = str(uuid.uuid4())
    for version in range(count):
        stored = await journal.append(stream, version, [b"x" * 100], finished=version == count - 1)
        assert not isinstance(stored, VersionConflict)


async def _write(url: str, count: int) -> None:
    async with AsyncExitStack() as stack:
        journals = [await _opened(url, stack) for _ in range(WRITERS // PROCESSES)]
        each = count // (len(journals) * AT_ONCE)
        await asyncio.gather(*(_append(journal, each) for journal in journals for _ in range(AT_ONCE)))


def write(url: str, count: int) -> None:
    """Append about so many records by some of the writers: the work of one process."""
    asyncio.run(_write(url, count))


async def read(url: str, writing: Awaitable[object]) -> tuple[int, str]:
    """Follow the journal until the writers have ended; return where it ends, and what was wrong with its order."""
    async with AsyncExitStack() as stack:
        journal = await _opened(url, stack)
        written = asyncio.ensure_future(writing)
        place = START
        while not (written.done() and place == journal.head):
            try:
                records = await journal.read_after(place)
            except JournalCorrupt as corrupt:
                return place.position, f"after position {place.position}: {corrupt}"
            for record in records:
                if record.position != place.position + 1:
                    return place.position, f"position {record.position} follows {place.position}"
                place = Place(record.position, record.chain)
            if not records:
                await asyncio.wait([written], timeout=0.01)
        await written
        return place.position, ""


async def _run(records: int, pool: ProcessPoolExecutor) -> int:
    async with Node() as node:
        url = await database(node)
        await migrate(url)
        began, loop = time.monotonic(), asyncio.get_running_loop()
        writing = asyncio.gather(
            *(loop.run_in_executor(pool, write, url, records // PROCESSES) for _ in range(PROCESSES))
        )
        position, wrong = await read(url, writing)
        seconds = time.monotonic() - began
    print(f"{position:,} records of {WRITERS} writers in {seconds:.0f} s; order violations: {wrong or 0}")
    return bool(wrong)


def main() -> int:
    """Run it."""
    parser = process.parser("python -m prove.postgres.order", "See that many writers' records come in order.")
    parser.add_argument("records", type=int, nargs="?", default=1_000_000)
    chosen = parser.parse_args()
    be_silent()
    with workers(PROCESSES) as pool:
        return asyncio.run(_run(chosen.records, pool))


if __name__ == "__main__":
    sys.exit(main())
