"""`chargeonce health ADDRESS`: asks a running server for its health, for supervisors that know no gRPC with certificates.

It prints one line, and its exit status is 0 or 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from chassis import process
from chassis.server import CHANNEL_OPTIONS
from chassis.settings import Address, address
from chassis.tls import ClientTls
from chassis.watched import Unusable

# A server that is not overloaded answers within milliseconds. Supervisors wait longer than this.
ANSWER_SECONDS = 3.0


def main(arguments: Sequence[str] | None = None, *, program: str = "chargeonce health") -> int:
    """Ask once. Returns the exit status: 0 for a server that serves, 1 for any other, and for no answer."""
    parser = process.parser(
        program,
        f"Asks a running server for its health, and waits {ANSWER_SECONDS:g} seconds at most. "
        "The exit status is 0 if it serves, else 1.",
    )
    parser.add_argument("address", type=address, metavar="ADDRESS", help="the host:port where it takes calls")
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="FOLDER",
        help="a folder with ca.crt, the authorities that are trusted, and, if the server asks for a certificate, "
        "tls.crt and tls.key; the server's own folder serves, if its certificate is one for clients too",
    )
    parser.add_argument(
        "--name", help="the name that the server's certificate is for, if it is not the address's host", metavar="NAME"
    )
    parser.add_argument(
        "--alive",
        action="store_true",
        help="take NOT_SERVING for health too: whether to start the server again, not whether to send calls to it",
    )
    chosen = parser.parse_args(arguments)
    try:
        status, said = _ask(chosen.address, chosen.tls, chosen.name)
    except Unusable as error:
        status, said = HealthCheckResponse.UNKNOWN, f"error: {error}"
    healthy = {HealthCheckResponse.SERVING, *([HealthCheckResponse.NOT_SERVING] if chosen.alive else [])}
    print(said)  # noqa: T201  # for the supervisor's log
    return 0 if status in healthy else 1


def _ask(server: Address, tls: Path | None, name: str | None) -> tuple[int, str]:
    """Return the server's status and a line on it; UNKNOWN if it did not answer. Raises Unusable."""
    options = [*CHANNEL_OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
    if tls is None:
        channel = grpc.insecure_channel(str(server), options)
    else:
        channel = grpc.secure_channel(str(server), ClientTls(tls).grpc_credentials(), options)
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(HealthCheckRequest(), timeout=ANSWER_SECONDS).status
        except grpc.RpcError as error:
            refused: Any = error
            why = " ".join(str(refused.details()).split())
            return HealthCheckResponse.UNKNOWN, f"{server} does not answer: {refused.code().name}, {why}"
    return status, f"{server} says {HealthCheckResponse.ServingStatus.Name(status)}"
