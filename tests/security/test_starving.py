"""What one client does takes neither time nor memory from the others: long lists, and lists that nobody reads."""

import asyncio
import struct
import time
from pathlib import Path

from charging.v1.query_pb2 import GetViewStatusRequest, ListChargesRequest
from query_service.api import LONG_ANSWER_BYTES, MAX_UNREAD
from query_service.lookup import Rows
from query_service.view import View
from rig.errors import refused
from rig.world import until
from tests.sealed import SealedJournal, requested
from tests.service.feed_server import feeding
from tests.service.query_rig import Client, querying
from tests.service.test_edge import DATA, HEADERS, INITIAL_WINDOW_SIZE, PREFACE, SETTINGS, frame, headers

LISTS = 200


async def test_a_flood_of_long_lists_holds_up_no_other_tenants_query(tmp_path: Path) -> None:
    """B's query that comes after two hundred of A's is answered after the few that are in the thread already."""
    view, ended = await View.open(tmp_path / "view.db"), list[str]()

    async def ask(tenant: str, seconds: float) -> None:
        def find(_: Rows) -> None:
            time.sleep(seconds)

        await view.read(tenant, find)
        ended.append(tenant)

    async with asyncio.TaskGroup() as calls:
        for _ in range(LISTS):
            calls.create_task(ask("a", 0.005))
        await asyncio.sleep(0.02)
        came = len(ended)
        await ask("b", 0.0)
        before = len(ended) - came
    assert before <= 6
    assert len(ended) == LISTS + 1
    await view.close()


WHOLE = ListChargesRequest(page_size=1000)


async def test_no_more_long_answers_wait_for_their_readers_than_there_are_places(tmp_path: Path) -> None:
    """They lie in memory. A client with a window of 0, who never reads one, can have so many; when he has left, others can."""
    journal = SealedJournal()
    for n in range(60):
        journal.append(f"charge {n}", requested(f"order-{n}", description="x" * 1_400))
    async with feeding(journal) as feed, querying(feed.address, tmp_path / "view.db") as (running, client):
        await client.queries.GetViewStatus(GetViewStatusRequest(min_position=journal.head))
        page = await client.queries.ListCharges(WHOLE)
        assert page.ByteSize() > LONG_ANSWER_BYTES
        for _ in range(MAX_UNREAD + 2):  # one after the other, and each is read: none takes a place for good
            await client.queries.ListCharges(WHOLE)
        _, writer = await asyncio.open_connection(running.listen.host, running.listen.port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)))
        body = WHOLE.SerializeToString()
        for stream in range(1, 2 * MAX_UNREAD, 2):
            writer.write(frame(HEADERS, 4, stream, headers(b"/charging.v1.QueryService/ListCharges")))
            writer.write(frame(DATA, 1, stream, b"\0" + struct.pack(">I", len(body)) + body))
        await until(lambda: _is_refused(client))
        assert len((await client.queries.ListCharges(ListChargesRequest(page_size=1))).charges) == 1
        writer.transport.abort()
        await until(lambda: _is_answered(client))


async def _is_answered(client: Client) -> bool:
    return not await _is_refused(client)


async def _is_refused(client: Client) -> bool:
    try:
        error = await refused(client.queries.ListCharges(WHOLE))
    except AssertionError:
        return False
    assert error.reason == "TOO_MANY_CALLS"
    return True
