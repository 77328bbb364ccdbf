"""What the tests of the journal on PostgreSQL share: ways to it that go wrong, and looks at it from outside."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from command_service.journal import Journal
from prove.network.faultproxy import Proxy
from rig.postgres import database
from rig.postgres_pair import Pair
from tests.contract.journal_rigs import PostgresRig, stream

# What asyncpg sends to commit, and what PostgreSQL answers: that it is done, and that it is ready.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I"
END_OURS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chargeonce' AND datname = $1"
)
STILL_SECONDS = 0.4
"""What has not happened by then is taken not to happen."""


@asynccontextmanager
async def proxied(rig: PostgresRig) -> AsyncIterator[tuple[Journal, Proxy]]:
    """The journal of a database on one node, open through a proxy."""
    (node,) = rig.place.url.nodes
    host, _, port = str(node).rpartition(":")
    async with Proxy(lambda: (host, int(port))) as proxy:
        far = PostgresRig(rig.url.replace(str(node), proxy.address), is_made=True)
        async with far.open() as journal:
            yield journal, proxy


@asynccontextmanager
async def made_on(pair: Pair) -> AsyncIterator[PostgresRig]:
    """A journal in a database of its own, which the standby has too."""
    dsn = await database(pair)
    name = dsn.rpartition("/")[2]

    async def is_there() -> bool:
        """The standby has on its disk what was committed, and shows it later."""
        return bool(await pair.standby.fetch("SELECT FROM pg_database WHERE datname = $1", name))

    await until(is_there)
    yield PostgresRig(f"{dsn}?target_session_attrs=primary")
    await pair.execute(f"DROP DATABASE {name} WITH (FORCE)")


def gapless(rig: PostgresRig, versions: list[int]) -> None:
    """The store holds these versions of stream 1, and nothing else, at positions without a gap."""
    assert rig.moment().records == [(number, stream(1), version) for number, version in enumerate(versions, 1)]


async def waits(*tasks: "asyncio.Task[object]") -> None:
    """Fail unless all of these still wait after a while."""
    done, _ = await asyncio.wait(tasks, timeout=STILL_SECONDS)
    assert not done


async def until(is_so: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for a state of which nobody tells."""
    while not (await found if inspect.isawaitable(found := is_so()) else found):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
