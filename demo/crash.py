"""`make demo`: the command server is killed after the bank moved money and before the journal recorded it, twice.

First a charge is interrupted so, and then the refund of a part of it.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OutcomeSource, RefundRequest, RefundResponse
from charging.v1.common_pb2 import Card, ChargeStatus, Money, OperationStatus
from chassis import process
from chassis.server import CHANNEL_OPTIONS
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import print_journal, verify_journal
from demo.stopping import until_asked_to_stop
from rig.processes import Town

CHARGE = ChargeRequest(
    idempotency_key="order-1007",
    user_id="alice",
    card=Card(token="tok_visa"),  # noqa: S106  # a token of the mock bank's
    amount=Money(minor_units=4200, currency_code="EUR"),
)
Call = Callable[["command_pb2_grpc.CommandServiceAsyncStub"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A command whose execute step is interrupted: its kind in the bank's statement, and the words for it."""

    kind: str
    wish: str
    call: Call
    told: Callable[[Any], tuple[str, str, str]]
    """Status, transaction id and source of the outcome, of an answer."""


async def story(folder: Path) -> bool:
    """Tell both stories with real processes; True if each time the money moved exactly once."""
    async with Town(folder) as town, httpx.AsyncClient(base_url=town.bank_url, trust_env=False) as bank:
        print("A bank and a command server are up.\n\nThe first story: a charge through a crash")
        charging = Interrupted(
            "charge",
            "Alice is charged 42.00 EUR, under the key order-1007.",
            lambda stub: stub.Charge(CHARGE, timeout=20),
            _charge_told,
        )
        answer, is_once = await _interrupted(town, bank, charging)
        print("\nThe second story: a refund through a crash")
        refund = RefundRequest(
            idempotency_key="return-1",
            charge_id=answer.charge_id,
            amount=Money(minor_units=1200, currency_code="EUR"),
            reason="one of three",
        )
        refunding = Interrupted(
            "refund",
            "12.00 EUR of these go back to Alice, under a key of the refund's own, return-1.",
            lambda stub: stub.Refund(refund, timeout=20),
            _refund_told,
        )
        _, is_once_again = await _interrupted(town, bank, refunding)
        print(f"\n{verify_journal(SqliteFile(town.journal)).split(',')[0]}.")
        return is_once and is_once_again


async def _interrupted(town: Town, bank: httpx.AsyncClient, command: Interrupted) -> tuple[Any, bool]:
    """Tell one story; return the last answer, and whether the money moved exactly once."""
    print(f"1. The bank gets an order: execute the next {command.kind}, and withhold the answer.")
    script = {"on": "execute", "fault": "hang_after", "seconds": 30, "kind": command.kind}
    (await bank.post("/faults", json=script)).raise_for_status()
    before = len((await bank.get("/calls")).json())

    print(f"2. {command.wish}")
    async with grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel:
        waiting = asyncio.ensure_future(command.call(command_pb2_grpc.CommandServiceStub(channel)))
        movements = await _until_money_moved(bank, command.kind, waiting)
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
        answer = await command.call(command_pb2_grpc.CommandServiceStub(channel))
    calls = (await bank.get(f"/calls?after={before}")).json()
    executes = sum(call["path"].endswith("/execute") for call in calls)
    status, transaction_id, source = command.told(answer)
    print(
        f"6. The bank was asked to execute {executes} times; the last time it said: already executed. The client gets"
    )
    print(f"   {status}, {transaction_id}, {source}.")
    _print_journal(town.journal)
    movements = await _movements(bank, command.kind)
    print(f"7. The bank's statement has {len(movements)} {command.kind}.")
    return answer, [movement["transaction_id"] for movement in movements] == [transaction_id]


def _charge_told(answer: ChargeResponse) -> tuple[str, str, str]:
    return ChargeStatus.Name(answer.status), answer.transaction_id, OutcomeSource.Name(answer.outcome_source)


def _refund_told(answer: RefundResponse) -> tuple[str, str, str]:
    outcome = answer.outcome
    return (
        OperationStatus.Name(outcome.status),
        outcome.transaction_id,
        OutcomeSource.Name(outcome.outcome_source),
    )


async def _until_money_moved(
    bank: httpx.AsyncClient, kind: str, command: "asyncio.Future[Any]"
) -> list[dict[str, Any]]:
    while not command.done():
        if movements := await _movements(bank, kind):
            return movements
    raise AssertionError(f"the {kind} ended before the bank executed it: {command.result()}")


async def _movements(bank: httpx.AsyncClient, kind: str) -> list[dict[str, Any]]:
    movements: list[dict[str, Any]] = (await bank.get("/statement")).json()["movements"]
    return [movement for movement in movements if movement["kind"] == kind]


def _print_journal(journal: Path) -> None:
    for line in print_journal(SqliteFile(journal), None):
        position, _, _, _, name, _ = line.split(maxsplit=5)
        print(f"      {position} {name}")


def main() -> None:
    """Tell the stories, and exit with status 1 if one ends badly."""
    process.parser("python -m demo.crash", __doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        moved_once = asyncio.run(until_asked_to_stop(story(Path(folder))))
    if moved_once is None:
        sys.exit("\nStopped before the end of the story.")
    print("\nCharged exactly once, refunded exactly once." if moved_once else "\nNOT exactly once: this is a defect.")
    sys.exit(not moved_once)


if __name__ == "__main__":
    main()
