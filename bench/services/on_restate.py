# mypy: disable-error-code="import-not-found,untyped-decorator"
# (restate and granian are installed in the benchmark's own environment only)
"""A charge as a handler of Restate, served to its server: python -m bench.services.on_restate

The handler validates, then makes each of the bank's steps in a durable `ctx.run`. Restate journals the request before the
handler begins, each step's result before the next step begins, and the answer before it is given: four entries where the
product has three. The caller's key is Restate's own idempotency key: a known key gets the stored answer.

Clients call Restate's own ingress over HTTP, with the message of `charging.v1` as the body. A gRPC server before it would
be no part of Restate, and would take CPU from it.

Settings of the worker, and where they come from:
* granian serves the handler over HTTP/2, so that Restate keeps one stream open for each invocation ("bidirectional"); one
  process and uvloop like the other peers. Restate's pages show hypercorn, which is slower
* no limit of the streams on a connection below Restate's own
* aiohttp as the bank's client
* `BytesSerde` for request and answer: no JSON around the messages

Settings of the server: `bench.rivals`.
"""

import json
import os
import sys
import uuid

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP2Settings
from granian.log import LogLevels
from restate import Context, RunOptions, Service, TerminalError
from restate import app as restate_app
from restate.serde import BytesSerde

from bench.services import Bank, Refused, validate
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus

MOST_STREAMS = 10_000
CONTENT = "application/x-protobuf"

charges = Service("Charges")
_bank: list[Bank] = []


def bank() -> Bank:
    """The one client of this process; made at its first use, since it needs the event loop."""
    if not _bank:
        _bank.append(Bank(os.environ["BENCH_BANK_URL"]))
    return _bank[0]


@charges.handler("charge", accept=CONTENT, content_type=CONTENT, input_serde=BytesSerde(), output_serde=BytesSerde())
async def charge(context: Context, body: bytes) -> bytes:
    """Charge a card once per key."""
    request = ChargeRequest.FromString(body)
    try:
        validate(request)
    except Refused as error:
        raise TerminalError(str(error), status_code=400) from None
    charge_id = str(uuid.uuid5(uuid.NAMESPACE_URL, request.idempotency_key))
    amount, currency = request.amount.minor_units, request.amount.currency_code
    once: RunOptions[str] = RunOptions()
    token = await context.run_typed("token", bank().token, once, charge_id, request.card.token, amount, currency)
    transaction_id = await context.run_typed("execute", bank().execute, once, token, amount, currency)
    return ChargeResponse(
        charge_id=charge_id, status=ChargeStatus.CHARGE_STATUS_CHARGED, transaction_id=transaction_id
    ).SerializeToString()


app = restate_app([charges])


def main() -> None:
    """Serve until the process is ended. It logs its address before it listens: Restate asks again until it is answered."""
    listen = os.environ["BENCH_LISTEN"]
    host, _, port = listen.rpartition(":")
    print(json.dumps({"event": "serving", "listen": listen}), file=sys.stderr, flush=True)
    Granian(
        "bench.services.on_restate:app",
        address=host,
        port=int(port),
        interface=Interfaces.ASGI,
        http=HTTPModes.http2,
        loop=Loops.uvloop,
        workers=1,
        websockets=False,
        log_level=LogLevels.warning,
        http2_settings=HTTP2Settings(max_concurrent_streams=MOST_STREAMS),
    ).serve()


if __name__ == "__main__":
    main()
