"""A client with a certificate: it charges a card, and reads the charge back."""

from pathlib import Path

import grpc
import grpc.aio

from charging.v1.command_pb2 import ChargeResponse
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.query_pb2 import GetChargeRequest, GetChargeResponse
from charging.v1.query_pb2_grpc import QueryServiceStub
from chassis.tls import ClientTls
from rig.world import a_request

# Far more than either takes, for a machine that is busy with other things.
PATIENCE_SECONDS = 30.0


async def charge(server: str, certificate: Path, key: str) -> ChargeResponse:
    """Charge a card under a key."""
    async with grpc.aio.secure_channel(server, ClientTls(certificate).grpc_credentials()) as channel:
        asked = a_request(key)
        return await CommandServiceStub(channel).Charge(asked, timeout=PATIENCE_SECONDS, wait_for_ready=True)


async def charge_in_view(server: str, certificate: Path, charged: ChargeResponse) -> GetChargeResponse:
    """Read a charge from a view, which may have to come to it first."""
    request = GetChargeRequest(charge_id=charged.charge_id, min_position=charged.position)
    async with grpc.aio.secure_channel(server, ClientTls(certificate).grpc_credentials()) as channel:
        return await QueryServiceStub(channel).GetCharge(request, timeout=PATIENCE_SECONDS, wait_for_ready=True)
