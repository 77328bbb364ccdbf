"""The journal alone, on SQLite and on PostgreSQL: python -m bench.journal

Appends go through the journal's group commit, as charges append: so many at a time, each again when its last one is stored.
The stores are measured in turns, so that a noisy machine disturbs them alike. PostgreSQL's is measured with a standby too.

For PostgreSQL it also says for how long a commit holds the head's lock, from outside: from the answer to the statement that
locks it to the answer to COMMIT. There is one such time at a time in all servers, so one PostgreSQL carries no more than
appends in a commit / that time.
"""

import asyncio
import logging
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import structlog
import uvloop

from bench.postgres import Postgres, make_journal, start_postgres
from command_service.journal.commits import GroupCommit
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.session import HeadRow, Node, Session
from command_service.journal.postgres.store import PostgresStore
from command_service.journal.sqlite.file import SqliteFile
from command_service.journal.store import Store, random_id
from rig.around import Around

AT_ONCE = (1, 16, 128, 512)
ROUNDS, SECONDS = 7, 1.0
EVENT = bytes(120)


@dataclass(slots=True)
class _Held:
    """The times for which the head's lock was held, in seconds."""

    times: list[float] = field(default_factory=list)


class _TimedSession(Around[Session]):
    def __init__(self, session: Session, held: _Held) -> None:
        super().__init__(session)
        self._held = held
        self._begun = 0.0

    async def begin(self, keys: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        found = await self.inner.begin(keys)
        self._begun = time.perf_counter()
        return found

    async def commit(self) -> bool:
        is_durable = await self.inner.commit()
        self._held.times.append(time.perf_counter() - self._begun)
        return is_durable


class _TimedNode(Around[Node]):
    def __init__(self, node: Node, held: _Held) -> None:
        super().__init__(node)
        self._held = held

    async def connect(self) -> Session:
        return _TimedSession(await self.inner.connect(), self._held).as_one()


async def _appends_a_second(journal: GroupCommit, at_once: int) -> float:
    """Append for SECONDS, so many at once."""
    until, stored = time.perf_counter() + SECONDS, 0

    async def client() -> None:
        nonlocal stored
        while time.perf_counter() < until:
            await journal.append(str(uuid.uuid4()), 0, [EVENT], finished=True)
            stored += 1

    begun = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(at_once)])
    return stored / (time.perf_counter() - begun)


@asynccontextmanager
async def _journal(store: Store) -> AsyncIterator[GroupCommit]:
    journal = await GroupCommit.open(store, now=lambda: time.time_ns() // 1_000, end_process=_end)
    try:
        yield journal
    finally:
        await journal.close()


def _end() -> NoReturn:
    sys.exit("the journal ended the process")


async def _on_sqlite(folder: Path, at_once: int) -> float:
    async with _journal(await SqliteFile(folder / f"{time.time_ns()}.db").open()) as journal:
        return await _appends_a_second(journal, at_once)


async def _on_postgres(postgres: Postgres, at_once: int) -> tuple[float, float, float]:
    """Return appends a second, the appends in a commit, and the median time of the head's lock in seconds."""
    held = _Held()
    async with postgres.database() as database:
        await make_journal(database.url)
        nodes = [_TimedNode(node, held).as_one() for node in PostgresPlace.of(database.url).nodes()]
        store = await PostgresStore.open(nodes, name="bench", new_id=random_id, chance=random.Random())
        async with _journal(store) as journal:
            rate = await _appends_a_second(journal, at_once)
            appends = journal.head.position
    return rate, appends / len(held.times), statistics.median(held.times)


async def main() -> None:
    """Print medians, by the number of appends at once."""
    print(
        "at once   SQLite, appends/s   PostgreSQL   of SQLite's   in a commit   lock held, ms   at most, appends/s"
        "   with standby   lock held, ms"
    )
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        alone, followed = await start_postgres(stack), await start_postgres(stack, with_standby=True)
        for at_once in AT_ONCE:
            sqlite, postgres, standby = [], [], []
            for _ in range(ROUNDS):
                sqlite.append(await _on_sqlite(folder, at_once))
                postgres.append(await _on_postgres(alone, at_once))
                standby.append(await _on_postgres(followed, at_once))
            rate, batch, held = _medians(postgres)
            rate_followed, _, held_followed = _medians(standby)
            ratio = statistics.median(ours[0] / theirs for ours, theirs in zip(postgres, sqlite, strict=True))
            print(
                f"{at_once:>7}   {statistics.median(sqlite):>17,.0f}   {rate:>10,.0f}   {ratio:>11.2f}   {batch:>11.1f}"
                f"   {held * 1000:>13.2f}   {batch / held:>18,.0f}   {rate_followed:>12,.0f}   {held_followed * 1000:>13.2f}",
                flush=True,
            )


def _medians(found: Sequence[tuple[float, ...]]) -> list[float]:
    return [statistics.median(column) for column in zip(*found, strict=True)]


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    uvloop.run(main())
