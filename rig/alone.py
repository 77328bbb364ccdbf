"""A gRPC server that offers one service on a free port and nothing else, for those who try a service by itself."""

from collections.abc import Callable

import grpc.aio

from chassis.caller import Caller
from chassis.refusals import Refusals
from chassis.server import Server
from chassis.settings import Address
from contract.access import gate_of
from contract.errors import DOMAIN, Reason


async def start_alone(
    register: Callable[[grpc.aio.Server], None], service: str, refusal: Refusals[Reason], *, anybody: Caller
) -> Server:
    """Start it with the service that `register` adds and `service` names in full; every caller is `anybody`."""
    return await Server.start(
        Address("127.0.0.1", 0),
        register,
        services=[service],
        gate=gate_of(refusal),
        domain=DOMAIN,
        unreadable=refusal(Reason.INVALID_REQUEST),
        unexpected=refusal(Reason.UNEXPECTED),
        request_bytes=16 << 10,
        reflect=False,
        anybody=anybody,
    )
