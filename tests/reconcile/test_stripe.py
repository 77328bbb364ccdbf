"""Stripe's balance transactions against the journal: its double, with fees, payouts, disputes and refunds that fail later."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rig.processes import Server, free_address
from rig.referee import PATIENT_SECONDS
from rig.world import AUTHORIZED, CHARGED, OPERATION_EXECUTED, World, a_hold, a_request, new_key, until
from tests.reconcile.test_command import Ran, reconcile, settled

VISA = {"token": "pm_card_visa"}


class Shop:
    """A command server whose bank is Stripe's double, a process of its own."""

    def __init__(self, world: World, url: str, banks: Path) -> None:
        self.world = world
        self._url = url
        self._banks = banks

    async def double(self, name: str, **details: Any) -> None:
        async with self._client() as client:
            (await client.post(f"/double/{name}", json=details)).raise_for_status()

    async def trouble(self, on: str, fault: str, **details: Any) -> None:
        """Order a fault for all calls to come."""
        async with self._client() as client:
            order = {"on": on, "fault": fault, "times": 1000, **details}
            (await client.post("/faults", json=order)).raise_for_status()

    async def no_more_trouble(self) -> None:
        async with self._client() as client:
            (await client.delete("/faults")).raise_for_status()

    async def has_captured(self) -> bool:
        """Whether the double has moved money that was held."""
        async with self._client() as client:
            return any(each["kind"] == "capture" for each in (await client.get("/statement")).json()["movements"])

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url, timeout=PATIENT_SECONDS, trust_env=False)

    async def reconciled(self, *arguments: str) -> Ran:
        await settled()
        return await reconcile(self.world, "--bank", "stripe", *arguments, banks=self._banks)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    listen = free_address()
    ledger = {"STRIPE_BANK_LISTEN": listen, "STRIPE_BANK_LEDGER": str(tmp_path / "stripe.log")}
    server = await Server("rig.stripe_server", ledger, tmp_path / "double.log").start()
    key, banks = tmp_path / "stripe.key", tmp_path / "banks.toml"
    key.write_text("sk_test_of_the_rig")
    key.chmod(0o600)
    banks.write_text(
        f'[banks.stripe]\nkind = "stripe"\nurl = "http://{listen}"\nkey_file = "{key}"\n'
        'return_url = "https://shop.example/back"\n'
    )
    world = World(tmp_path, {"COMMAND_BANKS": str(banks)})
    try:
        await world.start()
        yield Shop(world, f"http://{listen}", banks)
    finally:
        await world.stop()
        await server.kill()


async def test_stripes_balance_is_the_journals(shop: Shop) -> None:
    """Charges of several pages, captures of a hold, refunds, in a currency that Stripe counts otherwise too."""
    world = shop.world
    for _ in range(14):
        charged = await world.charge(a_request(card=VISA))
        assert charged.status == CHARGED
    assert (await world.refund(charged.charge_id, 250)).status == OPERATION_EXECUTED
    assert (await world.refund(charged.charge_id, 50)).status == OPERATION_EXECUTED
    kronur = await world.charge(a_request(card=VISA, amount={"minor_units": 500, "currency_code": "ISK"}))
    assert kronur.status == CHARGED
    held = await world.charge(a_hold(card=VISA))
    assert held.status == AUTHORIZED
    captured = await world.capture(held.charge_id, 1000, final=True)
    assert captured.status == OPERATION_EXECUTED
    voided = await world.charge(a_hold(card=VISA))
    await world.void(voided.charge_id)
    await shop.double("book", category="payout", amount=-9_000)
    await shop.double("book", category="dispute", amount=-1_250, fee=1_500)
    found = await shop.reconciled("--json", "-")
    assert found.status == 0, found
    days = {day["currency_code"]: day for day in found.said["result"]["days"]}
    assert days["EUR"]["matched"] == "17"
    assert days["EUR"]["bank_minor_units"] == days["EUR"]["journal_minor_units"] == str(14 * 1250 + 1000 - 300)
    assert days["ISK"]["journal_minor_units"] == "500"
    assert found.kinds == {"FEE": 2, "PAYOUT": 1, "CHARGEBACK": 1}


async def test_a_capture_whose_answer_is_lost_is_no_money_that_nobody_ordered(shop: Shop) -> None:
    """The service still completes it: a refund at Stripe would give back what the customer owes."""
    world = shop.world
    held = await world.charge(a_hold(card=VISA))
    await shop.trouble("execute", "lose_answer", kind="capture")
    await shop.trouble("execute", "lose_request", kind="capture")
    key = new_key()
    capture = asyncio.create_task(world.capture(held.charge_id, 1000, key=key, final=True))
    await until(shop.has_captured)
    found = await shop.reconciled("--json", "-")
    assert found.status == 1
    (finding,) = (each for each in found.said["findings"] if not each["kind"].endswith("FEE"))
    assert finding["kind"] == "FINDING_KIND_STATUS_DIFFERS"
    assert "refund nothing" in finding["text"]
    assert finding["proposed_command"].startswith(f"chargeonce desk try {held.charge_id} ")
    await shop.no_more_trouble()
    await capture

    async def is_executed() -> bool:
        return (await world.capture(held.charge_id, 1000, key=key, final=True)).status == OPERATION_EXECUTED

    await until(is_executed)
    assert (await shop.reconciled()).status == 0


async def test_a_refund_that_failed_later_and_a_payment_that_nobody_knows_are_differences(
    shop: Shop, tmp_path: Path
) -> None:
    charged = await shop.world.charge(a_request(new_key(), card=VISA))
    refunded = await shop.world.refund(charged.charge_id, 250)
    await shop.double("book", category="refund_failure", amount=250, source=refunded.transaction_id)
    await shop.double("book", category="charge", amount=77, source="ch_of_somebody")
    found = await shop.reconciled("--json", "-")
    assert found.status == 1
    assert found.kinds == {"STATUS_DIFFERS": 1, "MISSING_HERE": 1, "FEE": 1}
    failed = next(each for each in found.said["findings"] if each["kind"].endswith("STATUS_DIFFERS"))
    assert failed["charge_id"] == charged.charge_id
    assert "was undone" in failed["text"]
