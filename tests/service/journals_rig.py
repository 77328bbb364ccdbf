"""The feeds of two journals, and what a client of a query server over both asks."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from grpc_health.v1 import health_pb2

from charging.v1.query_pb2 import VIEW_STATE_LIVE, GetViewStatusRequest, GetViewStatusResponse, JournalStatus
from tests.sealed import SealedJournal, charged, token_issued
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import SERVICE, Client

Feeds = tuple[FeedServer, FeedServer]
# For loops that poll: far more than they need on a busy machine.
PATIENCE_SECONDS = 30


@asynccontextmanager
async def two_feeds() -> AsyncIterator[tuple[FeedServer, FeedServer]]:
    """The feeds of two journals, "east" and "west", with a charge in each."""
    async with feeding(SealedJournal("east")) as east, feeding(SealedJournal("west")) as west:
        east.journal.charge("order-east", "user-1", token_issued(), charged(), minor_units=100)
        west.journal.charge("order-west", "user-1", token_issued(), charged(), minor_units=20)
        yield east, west


def of(*feeds: FeedServer) -> str:
    return ";".join(feed.address for feed in feeds)


async def status(client: Client) -> GetViewStatusResponse:
    return await client.queries.GetViewStatus(GetViewStatusRequest())


async def shows(client: Client, *feeds: FeedServer) -> Sequence[JournalStatus]:
    """Wait until each journal is shown whole, and live."""
    wanted = [(feed.journal.journal_id, feed.journal.head, VIEW_STATE_LIVE) for feed in feeds]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            journals = (await status(client)).journals
            if [(one.shown.journal_id, one.shown.position, one.state) for one in journals] == wanted:
                return journals


async def stand(client: Client, *states: int) -> GetViewStatusResponse:
    """Wait until the views are in these states."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            told = await status(client)
            if tuple(one.state for one in told.journals) == states:
                return told


async def health(client: Client) -> int:
    answer = await client.health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    return int(answer.status)
