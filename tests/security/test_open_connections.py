"""What was proven when a connection or a stream was opened does not hold longer than the proof, or than the policy says."""

import asyncio
import datetime
import time
from pathlib import Path
from typing import Any

import grpc.aio

from charging.v1.journal_pb2 import SubscribeRequest
from charging.v1.query_pb2 import GetViewStatusRequest, WatchChargeRequest
from rig.certs import TRUST
from rig.errors import Told, refused
from rig.world import CHARGED, a_request
from tests.security.guarded import in_time
from tests.security.two_tenants import FEED_TOKEN, Client, two_tenants


async def _end(stream: Any) -> Told:
    """Read a stream to its end, and return the error that it ends with."""

    async def read() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    async with asyncio.timeout(60):
        return await refused(read())


async def test_a_certificate_counts_until_its_end_on_a_connection_made_before(tmp_path: Path) -> None:
    """For a call, and for a watch that is open: gRPC itself looks at a certificate when a client connects, and never again."""
    async with two_tenants(tmp_path) as servers:

        async def opened(ends_at: int) -> tuple[Client, Any, str, int]:
            name, ends = f"until-{ends_at}", datetime.datetime.fromtimestamp(ends_at, datetime.UTC)
            servers.authority.issue(servers.clients / name, uris=[f"{TRUST}/a"], client_only=True, not_after=ends)
            brief = await servers.client(name)
            answer = await brief.commands.Charge(a_request())
            await brief.queries.GetViewStatus(GetViewStatusRequest(min_position=answer.position))
            watch = brief.queries.WatchCharge(WatchChargeRequest(charge_id=answer.charge_id))
            assert (await watch.read()).charge.charge_id == answer.charge_id
            return brief, watch, answer.charge_id, ends_at

        brief, watch, charge_id, ends_at = await in_time(opened)
        lasting = await servers.client("a")
        other = lasting.queries.WatchCharge(WatchChargeRequest(charge_id=charge_id))
        assert (await other.read()).charge.charge_id == charge_id
        assert (await _end(watch)).reason == "UNAUTHENTICATED"
        assert time.time() >= ends_at
        assert (await refused(brief.commands.Charge(a_request()))).reason == "UNAUTHENTICATED"
        assert (await refused(brief.queries.GetViewStatus(GetViewStatusRequest()))).reason == "UNAUTHENTICATED"
        assert (await lasting.commands.Charge(a_request())).status == CHARGED
        assert not other.done()


async def test_a_stream_ends_when_its_caller_becomes_one_of_another_tenant(tmp_path: Path) -> None:
    """A reader of the whole feed that now belongs to B sees nothing more of A's, until it subscribes again as B's."""
    async with two_tenants(tmp_path) as servers:
        client, a = await servers.client("nobody"), await servers.client("a")
        bearer = {"metadata": [("authorization", f"Bearer {FEED_TOKEN}")]}
        stream = client.feed.Subscribe(SubscribeRequest(), **bearer)
        assert (await stream.read()).opened.tenant == ""
        policy = servers.policy.read_text()
        servers.policy.write_text(policy.replace('roles = ["feed"]', 'tenant = "b"\nroles = ["feed"]'))
        assert (await _end(stream)).reason == "PERMISSION_DENIED"
        await a.commands.Charge(a_request())
        again = client.feed.Subscribe(SubscribeRequest(), **bearer)
        assert (await again.read()).opened.tenant == "b"
        assert not (await again.read()).batch.records
