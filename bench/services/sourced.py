# mypy: disable-error-code="import-not-found,misc,untyped-decorator"
# (eventsourcing is installed in the benchmark's own environment only)
"""A charge as an aggregate of the `eventsourcing` library: python -m bench.services.sourced

An aggregate with three events, saved one by one between the bank's steps. The library is synchronous: its saves run in
threads.

Settings, and where they come from:
* PERSISTENCE_MODULE `eventsourcing.sqlite` or `eventsourcing.postgres`, with the library's own notification log, which
  followers read ("Persistence" in its documentation); it puts SQLite into WAL itself, synchronous stays SQLite's FULL
* SQLite: one thread saves, since SQLite has one writer: more threads would only wait for its lock. PostgreSQL: one thread for
  each connection of the pool, whose defaults are POSTGRES_POOL_SIZE 5 and POSTGRES_MAX_OVERFLOW 10; BENCH_POOL sets another
* no snapshots and no cache: an aggregate has three events and stays in memory between its saves
* no compression and no encryption
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError

from bench.services import Bank, Charge, Refused, once, serve, validate
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus

POOL_SIZE = 15


class CardCharge(Aggregate):
    """A charge."""

    @event("Requested")
    def __init__(self, key: str, user_id: str, card: str, amount: int, currency: str) -> None:
        self.key = key
        self.user_id = user_id
        self.card = card
        self.amount = amount
        self.currency = currency
        self.token = ""
        self.transaction_id = ""

    @staticmethod
    def create_id(key: str) -> UUID:
        """Make the aggregate's id from the key, so that a key has one aggregate."""
        return uuid5(NAMESPACE_URL, key)

    @event("TokenIssued")
    def issue_token(self, token: str) -> None:
        """The bank gave a token."""
        self.token = token

    @event("Charged")
    def end(self, transaction_id: str) -> None:
        """The money moved."""
        self.transaction_id = transaction_id


class Charges:
    """The service."""

    def __init__(self, application: Application, bank: Bank, threads: int) -> None:
        self._application = application
        self._bank = bank
        self._threads = ThreadPoolExecutor(threads)

    async def charge(self, request: ChargeRequest) -> ChargeResponse:
        """Charge a card once per key."""
        validate(request)
        amount, currency = request.amount.minor_units, request.amount.currency_code
        aggregate = CardCharge(request.idempotency_key, request.user_id, request.card.token, amount, currency)
        try:
            await self._save(aggregate)
        except IntegrityError:
            aggregate = self._application.repository.get(aggregate.id)
            if not aggregate.transaction_id:
                raise Refused("the charge is under way") from None
            return _response(aggregate, 0)
        aggregate.issue_token(await self._bank.token(str(aggregate.id), request.card.token, amount, currency))
        await self._save(aggregate)
        aggregate.end(await self._bank.execute(aggregate.token, amount, currency))
        return _response(aggregate, await self._save(aggregate))

    async def _save(self, aggregate: CardCharge) -> int:
        loop = asyncio.get_running_loop()
        recordings = await loop.run_in_executor(self._threads, self._application.save, aggregate)
        return int(recordings[-1].notification.id)


def _response(aggregate: CardCharge, position: int) -> ChargeResponse:
    return ChargeResponse(
        charge_id=str(aggregate.id),
        status=ChargeStatus.CHARGE_STATUS_CHARGED,
        transaction_id=aggregate.transaction_id,
        position=position,
    )


async def prepare() -> Charge:
    """Open the database: the library reads its settings from the environment, which the driver has set."""
    on_postgres = os.environ["PERSISTENCE_MODULE"] == "eventsourcing.postgres"
    threads = int(os.environ.get("BENCH_POOL", POOL_SIZE)) if on_postgres else 1
    return await once(Charges(Application(), Bank(os.environ["BENCH_BANK_URL"]), threads).charge)


if __name__ == "__main__":
    serve(prepare)
