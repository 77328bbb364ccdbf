"""The service that a careful developer writes from tutorials: python -m bench.services.tutorial

grpc.aio, aiosqlite with one connection, WAL and synchronous=FULL, one commit an event, a stock `httpx.AsyncClient`. A unique
constraint guards the key's first event, so a key is charged once, and a known key gets its stored answer. The service
recovers nothing after a crash, publishes nothing and keeps no chain.

Settings, and where they come from:
* one aiosqlite connection for the process, shared by all calls, statements awaited: the library's own README
* PRAGMA journal_mode=WAL, the advice of sqlite.org/wal.html; synchronous=FULL, so that a commit is as durable as the product's
* one `AsyncClient` for the process: "Clients", "Async Support" in httpx's documentation
* a lock around each transaction: on one connection, statements of two calls would end up in one transaction
"""

import asyncio
import json
import os
import sqlite3
import uuid

import aiosqlite

from bench.services import Bank, Charge, Refused, serve, validate
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    charge_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    recorded_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (charge_id, version)
)
"""
INSERT = "INSERT INTO events (charge_id, version, kind, body) VALUES (?, ?, ?, ?)"
SELECT = "SELECT body FROM events WHERE charge_id = ? AND kind = 'charged'"


class Charges:
    """The service."""

    def __init__(self, connection: aiosqlite.Connection, bank: Bank) -> None:
        self._connection = connection
        self._bank = bank
        self._lock = asyncio.Lock()

    async def charge(self, request: ChargeRequest) -> ChargeResponse:
        """Charge a card once per key."""
        validate(request)
        charge_id = str(uuid.uuid5(uuid.NAMESPACE_URL, request.idempotency_key))
        amount, currency = request.amount.minor_units, request.amount.currency_code
        body = {"key": request.idempotency_key, "user": request.user_id, "card": request.card.token}
        try:
            await self._append(charge_id, 1, "requested", {**body, "amount": amount, "currency": currency})
        except sqlite3.IntegrityError:
            return await self._known(charge_id)
        token = await self._bank.token(charge_id, request.card.token, amount, currency)
        await self._append(charge_id, 2, "token_issued", {"token": token})
        transaction_id = await self._bank.execute(token, amount, currency)
        position = await self._append(charge_id, 3, "charged", {"transaction_id": transaction_id})
        return ChargeResponse(
            charge_id=charge_id,
            status=ChargeStatus.CHARGE_STATUS_CHARGED,
            transaction_id=transaction_id,
            position=position,
        )

    async def _append(self, charge_id: str, version: int, kind: str, body: dict[str, object]) -> int:
        async with self._lock:
            try:
                cursor = await self._connection.execute(INSERT, (charge_id, version, kind, json.dumps(body)))
                await self._connection.commit()
            except BaseException:
                await self._connection.rollback()
                raise
            return cursor.lastrowid or 0

    async def _known(self, charge_id: str) -> ChargeResponse:
        async with self._lock, self._connection.execute(SELECT, (charge_id,)) as cursor:
            row = await cursor.fetchone()
        if row is None:
            raise Refused("the charge is under way")
        return ChargeResponse(
            charge_id=charge_id,
            status=ChargeStatus.CHARGE_STATUS_CHARGED,
            transaction_id=json.loads(row[0])["transaction_id"],
        )


async def prepare() -> Charge:
    """Open the database and the client."""
    connection = await aiosqlite.connect(os.environ["BENCH_DATABASE"])
    await connection.execute("PRAGMA journal_mode = WAL")
    await connection.execute("PRAGMA synchronous = FULL")
    await connection.execute(SCHEMA)
    await connection.commit()
    return Charges(connection, Bank(os.environ["BENCH_BANK_URL"])).charge


if __name__ == "__main__":
    serve(prepare)
