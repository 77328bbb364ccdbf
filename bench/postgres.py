"""PostgreSQL for what is measured on it: the rig's servers with PostgreSQL's own defaults, and a database for each measurement.

`fsync`, `full_page_writes` and `synchronous_commit` are on, as PostgreSQL has them. Everybody connects over TCP.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg

from command_service.journal.location import location
from rig.postgres import Node, database
from rig.postgres_pair import Pair

# Waits until a standby shows all that was committed before.
APPLY = "SELECT set_config('synchronous_commit', 'remote_apply', false), pg_logical_emit_message(true, '', '')"
# The rig's servers do with less than PostgreSQL's default.
SETTINGS = {"shared_buffers": "128MB"}


@dataclass(frozen=True, slots=True)
class Database:
    """A database of its own on a server that runs."""

    url: str
    servers: Mapping[str, int]
    """The process ids of PostgreSQL's servers, by their names in the results."""


class Postgres:
    """A server, or a primary with a synchronous standby."""

    def __init__(self, nodes: Node | Pair) -> None:
        """It runs."""
        self._nodes = nodes
        match nodes:
            case Node():
                self._pids = {"postgres": nodes.pid}
            case Pair():
                self._pids = {"postgres": nodes.primary.pid, "standby": nodes.standby.pid}

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Make an empty database, and drop it in the end: so the server looks after nothing but the one that is measured."""
        url = await database(self._nodes)
        await self._nodes.execute("CHECKPOINT")
        await self._nodes.execute(APPLY)
        try:
            yield Database(url, self._pids)
        finally:
            await self._nodes.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


async def start_postgres(stack: AsyncExitStack, *, with_standby: bool = False) -> Postgres:
    """Start PostgreSQL; the stack ends it."""
    nodes = Pair(settings=SETTINGS) if with_standby else Node(settings=SETTINGS)
    return Postgres(await stack.enter_async_context(nodes))


async def batches(url: str, position: int) -> tuple[int, int]:
    """Return the position of a journal's newest record, and the number of commits that stored those after a position.

    Each row says which transaction made it (xmin).
    """
    connection = await asyncpg.connect(url)
    (row,) = await connection.fetch(
        "SELECT max(position), count(DISTINCT xmin::text) FROM chargeonce.record WHERE position > $1", position
    )
    await connection.close()
    return int(row[0]), int(row[1])


async def make_journal(url: str) -> None:
    """Make an empty journal in a database."""
    await asyncio.to_thread(location(url).migrate)
