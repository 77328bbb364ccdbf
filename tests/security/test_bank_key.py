"""The key that a bank is shown: it moves money, and stands in its file and in the calls to the bank, and nowhere else."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc.aio
import httpx
import pytest

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from charging.v1.common_pb2 import Card
from rig.errors import refused
from rig.processes import Server, Town
from rig.world import (
    AUTHORIZED,
    CHARGED,
    DECLINED,
    OPERATION_EXECUTED,
    PENDING,
    REQUIRES_ACTION,
    a_hold,
    a_request,
    heard,
    id_of,
    until,
)
from tests.security.test_secrets import Search

KEY = "sk_test_51Nq8wZ-of-this-test-and-no-other"
FORMER_KEY = "rk_test_90Xy7vB-that-was-taken-last-year"


@dataclass
class Shop:
    """The command server, Stripe's double, and what must not be found."""

    town: Town
    stripe: Server
    key_file: Path
    search: Search
    stub: Any

    async def charge(self, card: str, **more: Any) -> Any:
        request = a_request(card=Card(token=card, brand="visa", last4="4242"), **more)
        return request, await self.stub.Charge(request, timeout=30)

    async def pending(self, request: ChargeRequest) -> None:
        """Charge, and do not wait for the outcome that does not come."""
        answer = await heard(lambda: self.stub.Charge(request, timeout=3))
        assert answer.status == PENDING


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    town, search = Town(tmp_path), Search()
    ledger = {"STRIPE_BANK_LEDGER": str(tmp_path / "stripe.orders"), "STRIPE_BANK_KEY": KEY}
    stripe = Server("rig.stripe_server", ledger, tmp_path / "stripe.log")
    key_file, banks = tmp_path / "stripe.key", tmp_path / "banks.toml"
    key_file.write_text(f"{KEY}\n")
    for key in (KEY, FORMER_KEY):
        search.token(key)
    search.owners.add(key_file)
    try:
        await stripe.start()
        banks.write_text(
            f'[banks.stripe]\nkind = "stripe"\nurl = "http://{stripe.listen}"\nkey_file = "stripe.key"\n'
            'return_url = "https://shop.example/back"\n'
        )
        await town.start_command(COMMAND_BANKS=str(banks))
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            yield Shop(town, stripe, key_file, search, command_pb2_grpc.CommandServiceStub(channel))
    finally:
        for server in (town.command, stripe):
            if server.is_running:
                await server.kill()


async def _movements(shop: Shop) -> list[str]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        said = (await http.get(f"http://{shop.stripe.listen}/statement")).json()
    return [movement["kind"] for movement in said["movements"]]


async def test_the_key_is_in_its_file_and_nowhere_else(shop: Shop) -> None:
    """After operations of every kind, a key that is not taken, a file that holds none, and a server that is killed.

    It is in no other file, error, printed journal, nor in what /proc tells of the process; and no crash dumps its memory.
    """
    request, told = await shop.charge("pm_card_visa")
    assert told.status == CHARGED
    refund = RefundRequest(idempotency_key="r", charge_id=id_of(request))
    assert (await shop.stub.Refund(refund, timeout=30)).outcome.status == OPERATION_EXECUTED
    assert (await shop.charge("pm_card_visa_chargeDeclined"))[1].status == DECLINED
    for follow in (CaptureRequest, VoidRequest):
        hold = a_hold(card=Card(token="pm_card_visa"))
        assert (await shop.stub.Charge(hold, timeout=30)).status == AUTHORIZED
        wish = follow(idempotency_key="f", charge_id=id_of(hold))
        assert (await getattr(shop.stub, follow.__name__.removesuffix("Request"))(wish, timeout=30)).outcome.status == (
            OPERATION_EXECUTED
        )
    customer, told = await shop.charge("pm_card_authenticationRequired")
    assert told.status == REQUIRES_ACTION
    intent_id = urlsplit(told.action.url).path.split("/")[2]
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        step = {"intent_id": intent_id, "succeeds": True}
        await http.post(f"http://{shop.stripe.listen}/double/authenticate", json=step)

    await shop.town.command.kill()
    shop.key_file.write_text(FORMER_KEY)
    await shop.town.start_command(COMMAND_BANKS=str(shop.town.folder / "banks.toml"))
    error = await refused(shop.stub.Charge(a_request(user_id="no name"), timeout=30))
    late = a_request(card=Card(token="pm_card_visa"))
    await shop.pending(late)
    shop.key_file.write_text(f"{KEY} {FORMER_KEY}")
    refusal = "files cannot be used: the former ones stay in use"
    await until(lambda: refusal in [entry["event"] for entry in shop.town.command.entries()])
    shop.key_file.write_text(KEY)

    async def has_healed() -> bool:
        answers = [await shop.stub.Charge(request, timeout=30) for request in (late, customer)]
        return {answer.status for answer in answers} == {CHARGED}

    await until(has_healed)
    assert sorted(await _movements(shop)) == sorted(
        ["charge", "refund", "authorize", "capture", "authorize", "void", "charge", "charge"]
    )
    assert await shop.town.operate("print-journal") == 0
    assert shop.search.found_in(shop.town.folder) == {}
    assert shop.search.found([error.everything]) == []
    process = Path(f"/proc/{shop.town.command.pid}")
    assert shop.search.found((process / name).read_bytes() for name in ("cmdline", "environ")) == []
    assert re.search(r"Max core file size +0 +0 ", (process / "limits").read_text())


async def test_the_search_finds_a_key_that_is_told(shop: Shop) -> None:
    """By a program that hands its key on in an address, where the other end keeps it."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        await http.post(
            f"http://{shop.stripe.listen}/v1/customers", params={"key": KEY}, headers={"Authorization": KEY}
        )
    assert set(shop.search.found_in(shop.town.folder)) == {shop.town.folder / "stripe.orders"}
