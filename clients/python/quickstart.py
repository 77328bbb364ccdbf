import asyncio

from chargeonce_client import ChargeStatus, connect, money


async def main() -> None:
    async with connect() as client:  # each call is repeated, with the same key, until its outcome is known
        outcome = await client.charge("quickstart-python", user_id="alice", card="tok_visa", amount=money(1250, "EUR"))
    print(ChargeStatus.Name(outcome.status), outcome.transaction_id)


asyncio.run(main())
