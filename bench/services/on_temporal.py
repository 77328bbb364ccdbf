# mypy: disable-error-code="import-not-found,untyped-decorator,misc"
# (temporalio is installed in the benchmark's own environment only)
"""A charge as a workflow of Temporal: python -m bench.services.on_temporal

One process takes the calls, starts a workflow for each, and runs workflows and activities, as small deployments do. The id
of the workflow is made of the idempotency key: a known key gets the stored result.

BENCH_ACTIVITIES is `regular` or `local`. A local activity is run by the worker within the workflow's own task, without the
server's task queue: Temporal advises it for short steps ("Local Activities" in docs.temporal.io), and it is the faster. The
results of two local activities in a row may reach the server in one write at the end of the task: fewer durable moments than
the product has, since after a crash between the steps both are called again.

Settings, and where they come from:
* eager start ("Eager Workflow Start" in docs.temporal.io): the first task comes with the answer to the start
* no sandbox around workflows: it checks that they are deterministic, and costs CPU
* room for more workflows and activities at a time than are in flight
* aiohttp as the bank's client

Settings of the server: `bench.rivals`.
"""

import asyncio
import os
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from bench.rivals import NAMESPACE
from bench.services import Bank, Charge, serve, validate
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus

QUEUE = "charges"
# More than are in flight.
AT_ONCE = 500
STEP_SECONDS = timedelta(seconds=10)
IS_LOCAL = os.environ.get("BENCH_ACTIVITIES") == "local"
_running: list[asyncio.Task[None]] = []


@workflow.defn(name="charge")
class CardCharge:
    """A charge."""

    @workflow.run
    async def run(self, charge_id: str, card: str, amount: int, currency: str) -> str:
        """Take the two steps; the bank's id of the transaction."""
        step = workflow.execute_local_activity if IS_LOCAL else workflow.execute_activity
        token = await step("token", args=[charge_id, card, amount, currency], start_to_close_timeout=STEP_SECONDS)
        return str(await step("execute", args=[token, amount, currency], start_to_close_timeout=STEP_SECONDS))


async def prepare() -> Charge:
    """Connect to the server and run a worker."""
    client = await Client.connect(os.environ["BENCH_TEMPORAL"], namespace=NAMESPACE)
    bank = Bank(os.environ["BENCH_BANK_URL"])

    @activity.defn
    async def token(charge_id: str, card: str, amount: int, currency: str) -> str:
        return await bank.token(charge_id, card, amount, currency)

    @activity.defn
    async def execute(token: str, amount: int, currency: str) -> str:
        return await bank.execute(token, amount, currency)

    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[CardCharge],
        activities=[token, execute],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=2 * AT_ONCE,
        max_concurrent_workflow_tasks=AT_ONCE,
        max_concurrent_activities=AT_ONCE,
        max_concurrent_local_activities=AT_ONCE,
    )
    _running.append(asyncio.create_task(worker.run()))

    async def charge(request: ChargeRequest) -> ChargeResponse:
        validate(request)
        charge_id = str(uuid.uuid5(uuid.NAMESPACE_URL, request.idempotency_key))
        try:
            handle = await client.start_workflow(
                "charge",
                args=[charge_id, request.card.token, request.amount.minor_units, request.amount.currency_code],
                id=charge_id,
                task_queue=QUEUE,
                result_type=str,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                request_eager_start=True,
            )
        except WorkflowAlreadyStartedError:
            handle = client.get_workflow_handle(charge_id, result_type=str)
        return ChargeResponse(
            charge_id=charge_id,
            status=ChargeStatus.CHARGE_STATUS_CHARGED,
            transaction_id=await handle.result(),
        )

    return charge


if __name__ == "__main__":
    serve(prepare)
