"""The newest charges, live."""

import asyncio
from collections.abc import AsyncIterator

from chargeonce_client import CallFailed
from charging.v1.query_pb2 import ListChargesRequest
from console.html import Child, tag
from console.pages import parts
from console.visit import Page, Visit

LOOK_SECONDS = 1.0
_NEWEST = ListChargesRequest(page_size=40)


async def show(visit: Visit) -> Page:
    """Show them."""
    found = await visit.asker.look(lambda stub: stub.ListCharges, _NEWEST)
    shown: Child
    if isinstance(found, CallFailed):
        shown = parts.trouble(found)
    else:
        shown = (
            parts.charges(found.charges, "Newest charges, live") if found.charges else tag.p("There is no charge yet.")
        )
    return Page("Live", [tag.h1("Live"), parts.part("live", "Newest first", shown)], events="/live/events")


async def changes(visit: Visit) -> AsyncIterator[str]:
    """Tell each change among them. A query server that is away is asked again."""
    before: list[tuple[str, int]] | str | None = None
    while True:
        found = await visit.asker.look(lambda stub: stub.ListCharges, _NEWEST)
        now = (
            found.code.name
            if isinstance(found, CallFailed)
            else [(charge.charge_id, charge.version) for charge in found.charges]
        )
        if now != before:
            before = now
            yield "changed"
        await asyncio.sleep(LOOK_SECONDS)
