"""What the tests of the client ask for, and wait for."""

import asyncio

from chargeonce_client import ChargeResponse, ChargeStatus, Client, money
from rig.referee import Referee

CHARGED, PENDING = ChargeStatus.CHARGE_STATUS_CHARGED, ChargeStatus.CHARGE_STATUS_PENDING
PRICE = money(1250, "EUR")


async def charge(
    client: Client, key: str = "order-1", card: str = "tok_visa", patience: float | None = None
) -> ChargeResponse:
    return await client.charge(key, user_id="alice", card=card, amount=PRICE, patience=patience)


async def times_at_the_bank(bank: Referee) -> int:
    """How often the bank has been asked to execute a payment."""
    return sum(call["path"].endswith("/execute") for call in await bank.calls())


async def at_the_bank(bank: Referee, times: int = 1) -> None:
    """Wait until the bank has been asked to execute a payment so many times."""
    while await times_at_the_bank(bank) < times:  # noqa: ASYNC110  # it is asked over HTTP
        await asyncio.sleep(0.01)
