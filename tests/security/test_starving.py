"""One tenant's work holds up no other tenant's: here, queries at the view, which one thread reads."""

import asyncio
import time
from pathlib import Path

from query_service.lookup import Rows
from query_service.view import View

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
