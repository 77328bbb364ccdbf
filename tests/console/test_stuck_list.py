"""The first page's list of what is stuck, where more charges are under way than are looked at one by one."""

from pathlib import Path

import httpx

from charging.v1.query_pb2 import Situation
from chassis import settings
from console.serving import serve
from console.settings import Settings
from console.stuck import MOST_EXPLAINED, NOT_LOOKED_AT
from contract.situations import SITUATIONS
from rig.processes import free_address
from tests.sealed import SealedJournal, token_issued
from tests.service.feed_server import feeding
from tests.service.query_rig import querying


async def test_of_charges_that_were_not_looked_at_nobody_is_told_that_they_go_well(tmp_path: Path) -> None:
    """They await their execution for months. Of the oldest the view says so; the others have words of their own."""
    journal, more = SealedJournal(), 3
    for number in range(MOST_EXPLAINED + more):
        journal.charge(f"order-{number}", "user-1", token_issued())
    async with feeding(journal) as feed, querying(feed.address, tmp_path / "view.db") as (query, client):
        await client.reaches(journal.head)
        environment = {
            "CONSOLE_LISTEN": "127.0.0.1:0",
            "CONSOLE_COMMAND": free_address(),  # nobody is there
            "CONSOLE_QUERY": str(query.listen),
        }
        async with (
            serve(settings.read(Settings, environment)) as console,
            httpx.AsyncClient(base_url=f"http://{console.listen}", timeout=60, trust_env=False) as http,
        ):
            page = (await http.get("/")).text
    unknown = SITUATIONS[Situation.SITUATION_EXECUTION_UNKNOWN]
    assert SITUATIONS[Situation.SITUATION_UNDER_WAY].what not in page
    known, others = page.split("Under way for long, not looked at")
    assert f">{MOST_EXPLAINED}</" in known
    assert unknown.what in known
    assert unknown.advice in known
    assert f">{more}</" in known[-60:]
    assert NOT_LOOKED_AT.what in others
    assert NOT_LOOKED_AT.advice in others
