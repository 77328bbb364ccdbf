"""`make demo`: the command server is killed after the bank executed a charge and before the journal recorded it."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import httpx

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OutcomeSource
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from chassis import process
from chassis.server import CHANNEL_OPTIONS
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import print_journal, verify_journal
from demo.stopping import until_asked_to_stop
from rig.processes import Town

REQUEST = ChargeRequest(
    idempotency_key="order-1007",
    user_id="alice",
    card=Card(token="tok_visa"),  # noqa: S106  # a token of the mock bank's
    amount=Money(minor_units=4200, currency_code="EUR"),
)


async def story(folder: Path) -> bool:
    """Tell the story with real processes; True if the card was charged exactly once."""
    async with Town(folder) as town, httpx.AsyncClient(base_url=town.bank_url, trust_env=False) as bank:
        print("1. A bank and a command server are up. The bank gets an order: execute the next payment, and withhold")
        print("   the answer.")
        script = {"on": "execute", "fault": "hang_after", "seconds": 30}
        (await bank.post("/faults", json=script)).raise_for_status()

        print("2. Alice is charged 42.00 EUR, under the key order-1007.")
        async with grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel:
            waiting = asyncio.ensure_future(command_pb2_grpc.CommandServiceStub(channel).Charge(REQUEST, timeout=20))
            movements = await _until_money_moved(bank, waiting)
            print("3. The money has moved: the bank's statement has")
            print(f"   {movements[0]['transaction_id']}  {movements[0]['minor_units']} {movements[0]['currency_code']}")
            await town.command.kill()
            print("4. The command server is killed before the answer comes: kill -9. The journal holds:")
            _print_journal(town.journal)
            try:
                await waiting
            except grpc.aio.AioRpcError as error:
                print(f"   The client gets {error.code().name}. Its rule: send the same request with the same key.")

        await town.start_command()
        print("5. The command server is back. It runs the execute step again, with the token from the journal.")
        async with grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel:
            answer = await command_pb2_grpc.CommandServiceStub(channel).Charge(REQUEST, timeout=20)
        calls = (await bank.get("/calls")).json()
        executes = sum(call["path"].endswith("/execute") for call in calls)
        print(
            f"6. The bank was asked to execute {executes} times; the last time it said: already executed. The client gets"
        )
        print(
            f"   {ChargeStatus.Name(answer.status)}, {answer.transaction_id}, {OutcomeSource.Name(answer.outcome_source)}."
        )
        _print_journal(town.journal)
        movements = (await bank.get("/statement")).json()["movements"]
        print(
            f"7. The bank's statement has {len(movements)} movement. {verify_journal(SqliteFile(town.journal)).split(',')[0]}."
        )
        return len(movements) == 1 and answer.transaction_id == movements[0]["transaction_id"]


async def _until_money_moved(bank: httpx.AsyncClient, charge: "asyncio.Future[ChargeResponse]") -> list[dict[str, Any]]:
    while not charge.done():
        movements: list[dict[str, Any]] = (await bank.get("/statement")).json()["movements"]
        if movements:
            return movements
    raise AssertionError(f"the charge ended before the bank executed it: {charge.result()}")


def _print_journal(journal: Path) -> None:
    for line in print_journal(SqliteFile(journal), None):
        position, _, _, _, name, _ = line.split(maxsplit=5)
        print(f"      {position} {name}")


def main() -> None:
    """Tell the story, and exit with status 1 if it ends badly."""
    process.parser("python -m demo.crash", __doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        charged_once = asyncio.run(until_asked_to_stop(story(Path(folder))))
    if charged_once is None:
        sys.exit("\nStopped before the end of the story.")
    print("\nCharged exactly once." if charged_once else "\nNOT charged exactly once: this is a defect.")
    sys.exit(not charged_once)


if __name__ == "__main__":
    main()
