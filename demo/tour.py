"""`make run`: start the servers and the console, charge one card, show the result from every side, and stay up until Ctrl-C.

`told` tells the story of one charge; `tour` keeps the servers up after it. `demo.transcript` writes the story into the README.
"""

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import grpc
import httpx

from charging.v1 import command_pb2_grpc, query_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OutcomeSource
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.query_pb2 import GetChargeRequest
from chassis import process
from chassis.server import CHANNEL_OPTIONS
from chassis.tls import ClientTls
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import print_journal
from demo.stopping import until_asked_to_stop
from rig.certs import shop, token_file
from rig.processes import DidNotStart, Server, Town

# The documented ports, so that the printed lines can be copied from one run into the next.
LISTEN = {
    "GATEWAY_MOCK_LISTEN": "127.0.0.1:8080",
    "COMMAND_LISTEN": "127.0.0.1:50051",
    "COMMAND_FEED_LISTEN": "127.0.0.1:50053",
    "QUERY_LISTEN": "127.0.0.1:50052",
    "CONSOLE_LISTEN": "127.0.0.1:8088",
}
# Its charges outlive a `make clean`: a promise about a key holds for ever.
FOLDER = "data/run"
KEY = "order-1001"
WIDTH = 118
REQUEST = ChargeRequest(
    idempotency_key=KEY,
    user_id="alice",
    card=Card(token="tok_visa", brand="visa", last4="4242"),  # noqa: S106  # a token of the mock bank's
    amount=Money(minor_units=1250, currency_code="EUR"),
    description="one umbrella",
)


async def tour(folder: Path, listen: Mapping[str, str] = LISTEN, certificates: Path | None = None) -> None:
    """Start everything, show one charge, and stay up until a signal asks to stop; no server stays behind.

    With a folder of `make certs` all of it speaks TLS.
    """
    town = Town(folder, certificates)
    try:
        await until_asked_to_stop(_tell_and_stay(town, listen))
        print("\nStopping: calls under way may end, then each server ends ...")
        for server in (town.console, town.command, town.query, town.bank):
            if server.is_running:
                print(f"  {server.module} ended with status {await server.stop()}")
    finally:
        await town.__aexit__()


async def told(town: Town, listen: Mapping[str, str]) -> None:
    """Start the town's servers, charge one card, and print the result from every side. The caller ends the servers."""
    print(
        f"Starting the mock bank, the command server and the query server; all files are in {_short(town.folder)}/ ...",
        flush=True,
    )
    for _, start in _servers(town):
        await start(**listen)
    async with _channel(town, town.command.listen) as channel:
        response = await command_pb2_grpc.CommandServiceStub(channel).Charge(REQUEST, timeout=20)
    await _show(town, response)


async def _tell_and_stay(town: Town, listen: Mapping[str, str]) -> NoReturn:
    await told(town, listen)
    await town.start_console(**listen)
    invite(town)
    while True:  # as a supervisor would
        await asyncio.sleep(0.1)
        for server, start in [*_servers(town), (town.console, town.start_console)]:
            if not server.is_running:
                print(f"{server.module} has ended with status {await server.ended()}: it is started again", flush=True)
                await start(**listen)
                print(f"{server.module} serves again, as process {server.pid}", flush=True)


def _servers(town: Town) -> Sequence[tuple[Server, Callable[..., Awaitable[object]]]]:
    return [(town.bank, town.bank.start), (town.command, town.start_command), (town.query, town.start_query)]


async def _show(town: Town, response: ChargeResponse) -> None:
    print(f"\nThe charge, as the command server answered it\n  status          {ChargeStatus.Name(response.status)}")
    print(f"  transaction_id  {response.transaction_id}\n  charge_id       {response.charge_id}")
    print(f"  position        {response.position}")
    is_new = response.outcome_source == OutcomeSource.OUTCOME_SOURCE_FRESH
    earlier = "" if is_new else "  (this key was charged in an earlier run)"
    print(f"  outcome_source  {OutcomeSource.Name(response.outcome_source)}{earlier}")
    print("\nIts stream in the journal: position, version, event")
    for line in print_journal(SqliteFile(town.journal), response.charge_id):
        position, _, version, _, name, body = line.split(maxsplit=5)
        _print_folded(f"  {position:>4} {version} {name:<16} ", body)
    trust = True if town.certificates is None else ClientTls(shop(town.certificates)).context
    async with httpx.AsyncClient(trust_env=False, verify=trust) as client:
        statement = (await client.get(f"{town.bank_url}/statement")).json()
    print("\nThe bank's statement: every movement of money for this charge")
    for movement in statement["movements"]:
        if movement["reference"] == response.charge_id:
            _print_folded("  ", json.dumps(movement))
    async with _channel(town, town.query.listen) as channel:
        query = query_pb2_grpc.QueryServiceStub(channel)
        answer = await query.GetCharge(
            GetChargeRequest(charge_id=response.charge_id, min_position=response.position), timeout=20
        )
    print("\nThe view's answer, read at once with min_position")
    print(f"  {ChargeStatus.Name(answer.charge.status)}, as of position {answer.as_of_position}")


def _channel(town: Town, address: str) -> grpc.aio.Channel:
    if town.certificates is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = ClientTls(shop(town.certificates)).grpc_credentials()
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def _print_folded(before: str, body: str) -> None:
    """Print a long body beside the text before it, on as many lines as the width asks for."""
    indent = " " * len(before)
    lines = textwrap.wrap(
        body, WIDTH - len(before), drop_whitespace=True, break_long_words=False, break_on_hyphens=False
    )
    print(before + f"\n{indent}".join(lines))


def invite(town: Town) -> None:
    """Print how to go on with the servers that are up."""
    body = (
        '{"idempotency_key": "%s", "user_id": "alice", "card": {"token": "tok_visa"}, '
        '"amount": {"minor_units": 1250, "currency_code": "EUR"}}'
    )
    buf, grpcurl, curl = f"{_short(Path(sys.executable).with_name('buf'))} curl --protocol grpc", "grpcurl", "curl"
    http = "http"
    if town.certificates is None:
        grpcurl += " -plaintext"
    else:
        own, http = _short(shop(town.certificates)), "https"
        shown = f"--cacert {own}/ca.crt --cert {own}/tls.crt --key {own}/tls.key"
        buf, curl = f"{buf} {shown}", f"{curl} {shown}"
        grpcurl += f" {shown.replace('--', '-')}"
    charge = "charging.v1.CommandService/Charge"
    get = "charging.v1.QueryService/GetCharge"
    by_key = '{"idempotency_key": "order-1002"}'
    print(f"\nLook at it in a browser: http://{town.console.listen}/")
    if town.certificates is not None:
        tokens = [_short(token_file(town.certificates, name)) for name in ("till", "ann", "ben")]
        print(
            f"There sign in with the token in {tokens[0]}, or as an operator with that in {tokens[1]} or\n"
            f"{tokens[2]}, who first choose the tenant shop."
        )
    print(
        f"""
Go on with buf curl, which is installed already:
  {buf} -d '{body % "order-1002"}' {http}://{town.command.listen}/{charge}
  {buf} -d '{by_key}' {http}://{town.query.listen}/{get}

or with grpcurl:
  {grpcurl} -d '{body % "order-1002"}' {town.command.listen} {charge}
  {grpcurl} -d '{by_key}' {town.query.listen} {get}

Repeat the first line: the same charge, marked REPLAYED. Change the amount: ALREADY_EXISTS. Take tok_declined with a new
key: DECLINED. Kill the command server at any time; it is started again, and each charge is charged once:
  kill -9 {town.command.pid}

The query server is process {town.query.pid}, the bank {town.bank.pid}; the bank answers to {curl} {town.bank_url}/statement.

Logs, journal, view and the bank's ledger are in {_short(town.folder)}/, and stay there.

Ctrl-C stops everything.""",
        flush=True,
    )


def _short(path: Path) -> Path:
    """Return the path as seen from the folder in which the tour was started, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main(listen: Mapping[str, str] = LISTEN) -> None:
    """Run the tour."""
    parser = process.parser(
        "python -m demo.tour", __doc__ or "", epilog=f"RUN_FOLDER names the folder of all files (default: {FOLDER})."
    )
    parser.add_argument("--tls", type=Path, metavar="CERTS", help="speak TLS with the certificates of `make certs`")
    certificates = parser.parse_args().tls
    try:
        folder = Path(os.environ.get("RUN_FOLDER", FOLDER)).absolute()
        asyncio.run(tour(folder, listen, certificates and certificates.absolute()))
    except DidNotStart as error:
        sys.exit(
            f"error: {error}\nIs an earlier `make run` still running, or another program on its port? See: pgrep -af python"
        )


if __name__ == "__main__":
    main()
