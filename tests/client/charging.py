"""What the tests of the client ask for, and wait for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from grpc import StatusCode

from chargeonce_client import ChargeResponse, ChargeStatus, Client, Unsettled, money
from rig.referee import Referee

CHARGED, PENDING = ChargeStatus.CHARGE_STATUS_CHARGED, ChargeStatus.CHARGE_STATUS_PENDING
PRICE = money(1250, "EUR")


async def charge(
    client: Client, key: str = "order-1", card: str = "tok_visa", patience: float | None = None
) -> ChargeResponse:
    return await client.charge(key, user_id="alice", card=card, amount=PRICE, patience=patience)


async def pending(client: Client, key: str = "order-1") -> ChargeResponse:
    """Charge with the patience of a second, and again if the machine was too slow for any answer."""
    while True:
        try:
            answer = await charge(client, key, patience=1)
        except Unsettled as error:
            if error.code is not StatusCode.DEADLINE_EXCEEDED:
                raise
        else:
            assert answer.status == PENDING
            return answer


async def unsettled(ask: Callable[[], Awaitable[object]]) -> Unsettled:
    """What is told when patience is over; asked once more if the machine was too slow for the service's own word."""
    for _ in range(10):
        with pytest.raises(Unsettled) as error:
            await ask()
        if error.value.code is not StatusCode.DEADLINE_EXCEEDED:
            break
    return error.value


async def times_at_the_bank(bank: Referee) -> int:
    """How often the bank has been asked to execute a payment."""
    return sum(call["path"].endswith("/execute") for call in await bank.calls())


async def at_the_bank(bank: Referee, times: int = 1) -> None:
    """Wait until the bank has been asked to execute a payment so many times."""
    while await times_at_the_bank(bank) < times:  # noqa: ASYNC110  # it is asked over HTTP
        await asyncio.sleep(0.01)
