# mypy: disable-error-code="import-not-found,untyped-decorator"
# (dbos is installed in the benchmark's own environment only)
"""A charge as a durable workflow of DBOS Transact: python -m bench.services.durable

A workflow of two steps under a workflow id made of the idempotency key. DBOS journals the workflow's input before it begins,
each step's result after it, and the workflow's result at its end: four commits where the product has three.

Settings, and where they come from:
* `system_database_url`: SQLite or PostgreSQL (docs.dbos.dev, "DBOS Database Connections"); they advise PostgreSQL for
  production, SQLite is their default
* the SQLite file is put into WAL mode before DBOS opens it: their own default is a rollback journal, which is slower;
  synchronous is SQLite's default, FULL. On PostgreSQL synchronous_commit is on, the server's default
* `sys_db_pool_size` 20, their default; BENCH_POOL sets another
* async workflow and steps, called directly under `SetWorkflowID` ("Workflow IDs and Idempotency"): it returns the
  result, or the stored one for a known id, without a queue and without polling
* logs at WARNING, no tracing, no conductor
"""

import os
import sqlite3
import uuid

from dbos import DBOS, DBOSConfig, SetWorkflowID

from bench.services import Bank, Charge, serve, validate
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus

POOL_SIZE = 20
SQLITE = "sqlite:///"


def define(bank: Bank) -> Charge:
    """Define the workflow and its steps; DBOS requires them before it is launched."""

    @DBOS.step()
    async def take_token(charge_id: str, card: str, amount: int, currency: str) -> str:
        return await bank.token(charge_id, card, amount, currency)

    @DBOS.step()
    async def execute(token: str, amount: int, currency: str) -> str:
        return await bank.execute(token, amount, currency)

    @DBOS.workflow()
    async def charge_card(charge_id: str, _user_id: str, card: str, amount: int, currency: str) -> str:
        token = await take_token(charge_id, card, amount, currency)
        return str(await execute(token, amount, currency))

    async def charge(request: ChargeRequest) -> ChargeResponse:
        validate(request)
        charge_id = str(uuid.uuid5(uuid.NAMESPACE_URL, request.idempotency_key))
        with SetWorkflowID(charge_id):
            transaction_id = await charge_card(
                charge_id,
                request.user_id,
                request.card.token,
                request.amount.minor_units,
                request.amount.currency_code,
            )
        return ChargeResponse(
            charge_id=charge_id, status=ChargeStatus.CHARGE_STATUS_CHARGED, transaction_id=transaction_id
        )

    return charge


async def prepare() -> Charge:
    """Open the database and launch DBOS."""
    url = os.environ["BENCH_DATABASE"]
    if url.startswith(SQLITE):
        connection = sqlite3.connect(url.removeprefix(SQLITE))
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.close()
    config: DBOSConfig = {
        "name": "charges",
        "system_database_url": url,
        "sys_db_pool_size": int(os.environ.get("BENCH_POOL", POOL_SIZE)),
        "log_level": "WARNING",
    }
    DBOS(config=config)
    charge = define(Bank(os.environ["BENCH_BANK_URL"]))
    DBOS.launch()
    return charge


if __name__ == "__main__":
    serve(prepare)
