"""The first page's list of what is stuck, where charges are under way for long and their situation is not known."""

from pathlib import Path
from typing import Any

import grpc.aio
import httpx

from charging.v1.common_pb2 import OperationStatus
from charging.v1.query_pb2 import Charge, ChargeStage, ListChargesRequest, ListChargesResponse, Operation, Situation
from charging.v1.query_pb2_grpc import QueryServiceServicer, add_QueryServiceServicer_to_server
from chassis import settings
from console.serving import serve
from console.settings import Settings
from console.stuck import MOST_EXPLAINED, NOT_LOOKED_AT
from contract.situations import SITUATIONS
from rig.processes import free_address
from tests.sealed import SealedJournal, charge_id_of, token_issued
from tests.service.feed_server import feeding
from tests.service.query_rig import querying


async def first_page(query: str) -> str:
    """The first page of a console in front of a query server, while no command server is there."""
    environment = {"CONSOLE_LISTEN": "127.0.0.1:0", "CONSOLE_COMMAND": free_address(), "CONSOLE_QUERY": query}
    async with (
        serve(settings.read(Settings, environment)) as console,
        httpx.AsyncClient(base_url=f"http://{console.listen}", timeout=60, trust_env=False) as http,
    ):
        return (await http.get("/")).text


async def test_of_charges_that_were_not_looked_at_nobody_is_told_that_they_go_well(tmp_path: Path) -> None:
    """They await their execution for months. Of the oldest the view says so; the others have words of their own."""
    journal, more = SealedJournal(), 3
    for number in range(MOST_EXPLAINED + more):
        journal.charge(f"order-{number}", "user-1", token_issued())
    async with feeding(journal) as feed, querying(feed.address, tmp_path / "view.db") as (query, client):
        await client.reaches(journal.head)
        page = await first_page(str(query.listen))
    unknown = SITUATIONS[Situation.SITUATION_EXECUTION_UNKNOWN]
    assert SITUATIONS[Situation.SITUATION_UNDER_WAY].what not in page
    known, others = page.split("Under way for long, not looked at")
    assert f">{MOST_EXPLAINED}</" in known
    assert unknown.what in known
    assert unknown.advice in known
    assert f">{more}</" in known[-60:]
    assert NOT_LOOKED_AT.what in others
    assert NOT_LOOKED_AT.advice in others


class Earlier(QueryServiceServicer):
    """A query server of a version that lists charges and does not explain them."""

    async def ListCharges(self, _: ListChargesRequest, __: Any) -> ListChargesResponse:  # noqa: N802  # the contract's
        charge = Charge(charge_id=charge_id_of("order-1"), idempotency_key="order-1")
        charge.operations.append(Operation(status=OperationStatus.OPERATION_STATUS_PENDING))
        charge.stage = ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION
        return ListChargesResponse(charges=[charge])


async def test_a_charge_whose_explanation_fails_is_not_said_to_go_well() -> None:
    server = grpc.aio.server()
    add_QueryServiceServicer_to_server(Earlier(), server)  # type: ignore[abstract]  # an earlier version has less
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        page = await first_page(f"127.0.0.1:{port}")
    finally:
        await server.stop(None)
    assert SITUATIONS[Situation.SITUATION_UNDER_WAY].what not in page
    assert NOT_LOOKED_AT.what in page
    assert NOT_LOOKED_AT.advice in page
