"""The example adapter at stripe-stateful-mock, which keeps idempotency keys: each operation is done exactly once.

The fake's own lists are the books. What it gets wrong is in docs/banks.md.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from charging.v1.command_pb2 import ChargeRequest, VoidRequest
from prove.network.faultproxy import Fault, Kind
from rig.world import OPERATION_EXECUTED, VOIDED, a_hold, id_of, new_key, until
from tests.banks.fakes import client, stateful_mock
from tests.banks.stories import Done, Story, stories
from tests.banks.street import BANK_SECONDS, Street, Trouble, a_street

pytestmark = pytest.mark.asyncio(loop_scope="module")

CARDS = ("tok_visa", "tok_chargeDeclined")
CHARGE, CAPTURE, REFUND = b"POST /v1/charges HTTP", b"/capture HTTP", b"POST /v1/refunds HTTP"
STORIES = stories({"charge": [CHARGE], "capture": [CAPTURE], "void": [REFUND], "refund": [REFUND]})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def street(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Street]:
    folder = tmp_path_factory.mktemp("stateful-mock")
    async with stateful_mock(folder / "fake.log") as fake, a_street(fake, CARDS, folder, "charges") as street:
        yield street


async def books(street: Street, charge: ChargeRequest) -> list[Done]:
    """All that the fake has done for a charge."""
    done = []
    async with client(street.fake) as asking:
        refunds = await _listed(asking, "refunds")
        for one in await _listed(asking, "charges"):
            marks = one["metadata"]
            if marks["reference"] != id_of(charge):
                continue
            done.append((marks["kind"] if one["paid"] else "declined", one["amount"]))
            if marks["kind"] == "authorize" and one["captured"]:
                done.append(("capture", one["amount_captured"]))
            of_it = [refund for refund in refunds if refund["charge"] == one["id"]]
            done += [(refund["metadata"].get("kind", "let go"), refund["amount"]) for refund in of_it]
    return sorted(done)


async def _listed(asking: Any, what: str) -> list[dict[str, Any]]:
    return list((await asking.get(f"/v1/{what}")).raise_for_status().json()["data"])


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_it_is_done(street: Street, story: Story) -> None:
    charge = await story.tell(street)
    assert await books(street, charge) == sorted(story.done)


@pytest.mark.parametrize("trouble", Trouble, ids=lambda trouble: trouble.name.lower())
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_whatever_happens_to_a_call_it_is_done_once(street: Street, story: Story, trouble: Trouble) -> None:
    for call in story.calls:
        charge = await story.tell(street, call, trouble)
        assert await books(street, charge) == sorted(story.done)


# ---------------------------------------------------------------- calling off
async def test_what_was_called_off_is_not_done_by_a_request_that_comes_late(street: Street) -> None:
    """Its key is used up by then: for a hold that is let go."""
    hold, before = a_hold(), street.proxy.fired[Kind.DELAY]
    street.proxy.order(Fault(Kind.DELAY, when=CHARGE, seconds=2 * BANK_SECONDS))
    holding = asyncio.create_task(street.settle(hold))
    await until(lambda: street.proxy.fired[Kind.DELAY] > before)
    told = await street.settle(VoidRequest(idempotency_key=new_key(), charge_id=id_of(hold)))
    assert told.status == OPERATION_EXECUTED
    assert (await holding).status == VOIDED
    await until(lambda: "does not match stored body" in street.log_of_fake())
    assert await books(street, hold) == [("authorize", 1250), ("let go", 1250)]


# ---------------------------------------------------------------- the control
async def test_without_keys_a_lost_answer_is_a_second_charge(tmp_path: Path) -> None:
    """So the books of this fake tell it, and the keys are what keeps it from happening."""
    async with (
        stateful_mock(tmp_path / "fake.log") as fake,
        a_street(fake, CARDS, tmp_path, "keyless charges") as street,
    ):
        charge = await STORIES["charge"].tell(street, CHARGE, Trouble.LOST_ANSWER)
        assert await books(street, charge) == [("charge", 1250), ("charge", 1250)]
