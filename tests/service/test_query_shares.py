"""Two tenants at one query server: a tenant's flood of queries, of waiting queries or of watches leaves the other its share."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from charging.v1.query_pb2 import GetViewStatusRequest, WatchChargeRequest
from query_service.api import QueryService
from query_service.mirrors import Mirror
from query_service.parts import Parts
from query_service.serving import Serving
from rig.errors import Told, refused, told
from rig.world import until
from tests.sealed import SealedJournal, requested
from tests.service.feed_server import feeding
from tests.service.query_rig import DEADLINE_SECONDS, Client, querying, refused_in_time
from tests.service.tenants_rig import Believing, as_tenant

KEY = "order-0001"
# Of a limit of 4, one place is reserved for each and two are common: one tenant may have 3.
LIMITS = {"QUERY_MAX_CALLS": "4", "QUERY_MAX_WATCHERS": "4"}


class Shared(Parts):
    """The product's own parts, for two tenants with even shares."""

    _weights: Mapping[str, float] = {"a": 1.0, "b": 1.0}

    def weights(self) -> Mapping[str, float]:
        return self._weights

    def queries(self, mirrors: Sequence[Mirror]) -> QueryService:
        return Believing(super().queries(mirrors)).as_one()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[tuple[Serving, Client]]:
    """A query server that shows a charge of each tenant."""
    journal = SealedJournal()
    for tenant in ("a", "b"):
        journal.append(f"{tenant} {KEY}", requested(KEY, "user-1", tenant=tenant))
    async with (
        feeding(journal) as feed,
        querying(feed.address, tmp_path / "view.db", Shared, **LIMITS) as (running, client),
    ):
        await client.reaches(journal.head)
        yield running, client


async def outcomes(asked: list[Any]) -> tuple[int, list[Told]]:
    """How many of these calls were not refused, and how the others were."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    errors = [told(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    refusals = [error for error in errors if error.reason != "VIEW_BEHIND"]
    return len(answers) - len(refusals), refusals


def are_excess(refusals: list[Told]) -> bool:
    """Whether all tell of the tenant's limit."""
    told_all = {(each.code, each.reason, each.advice, each.retry_after_seconds) for each in refusals}
    return told_all == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_LIMIT", "ASK_STATUS", 0.5)}


async def test_queries_have_shares(town: tuple[Serving, Client]) -> None:
    """The one reading thread is kept busy here, so queries queue."""
    running, client = town
    gate = threading.Event()
    busy = asyncio.ensure_future(running.mirrors[0].view.read("default", lambda _: gate.wait(30)))
    asked = [
        asyncio.ensure_future(client.queries.GetViewStatus(GetViewStatusRequest(), **as_tenant("a"))) for _ in range(9)
    ]
    await until(lambda: sum(each.done() for each in asked) == 6)
    other = asyncio.ensure_future(client.queries.GetViewStatus(GetViewStatusRequest(), **as_tenant("b")))
    await asyncio.sleep(0.1)
    full = await refused(client.queries.GetViewStatus(GetViewStatusRequest(), **as_tenant("b")))
    assert full.reason == "TOO_MANY_CALLS"  # the whole server's limit
    gate.set()
    answered, refusals = await outcomes(asked)
    assert (answered, len(refusals)) == (3, 6)
    assert are_excess(refusals)
    assert (await other).charge_count == 1
    await busy


async def test_queries_that_wait_for_a_position_have_shares(town: tuple[Serving, Client]) -> None:
    _, client = town

    def waits(tenant: str, **more: Any) -> Any:
        return client.queries.GetViewStatus(GetViewStatusRequest(min_position=99), **as_tenant(tenant), **more)

    asked = [asyncio.ensure_future(waits("a")) for _ in range(9)]
    await until(lambda: sum(each.done() for each in asked) >= 6)
    assert (await refused_in_time(lambda: waits("b", timeout=DEADLINE_SECONDS))).reason == "VIEW_BEHIND"
    for each in asked:
        each.cancel()
    waited, refusals = await outcomes(asked)
    assert (waited, len(refusals)) == (3, 6)
    assert are_excess(refusals)


async def test_watches_have_shares(town: tuple[Serving, Client]) -> None:
    """A place is free again when a watch ends."""
    _, client = town

    def watch(tenant: str) -> Any:
        return client.queries.WatchCharge(WatchChargeRequest(idempotency_key=KEY), **as_tenant(tenant))

    watches = [watch("a") for _ in range(3)]
    assert Counter([(await each.read()).charge.version for each in watches]) == {1: 3}
    refusals = [await refused(each.read()) for each in (watch("a"), watch("a"))]
    assert are_excess(refusals)
    theirs = watch("b")
    assert (await theirs.read()).charge.version == 1
    assert (await refused(watch("b").read())).reason == "TOO_MANY_CALLS"
    watches.pop().cancel()
    while True:
        again = watch("a")
        try:
            assert (await again.read()).charge.version == 1
            break
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.01)
    for each in (*watches, again, theirs):
        each.cancel()
