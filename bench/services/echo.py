"""The floor: a gRPC server that only reads a charge's request and answers: python -m bench.services.echo

No journal, no bank, no validation. Its cost is the cost of Python's gRPC.
"""

from bench.services import once, serve
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus

CHARGE_ID = "8f7a5e0c-0000-8000-8000-000000000000"


async def charge(_: ChargeRequest) -> ChargeResponse:
    """Answer CHARGED."""
    return ChargeResponse(
        charge_id=CHARGE_ID,
        status=ChargeStatus.CHARGE_STATUS_CHARGED,
        transaction_id="txn_000000000000",
        position=1,
    )


if __name__ == "__main__":
    serve(lambda: once(charge))
