"""Stripe's adapter at localstripe, which knows no idempotency keys: look-ups alone keep each operation from being done twice.

So the adapter is told that the bank has forgotten its keys, and looks up before each step, as it does for a charge that is
older than Stripe's keys. The fake's store is the books. What the fake gets wrong is in docs/banks.md.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, DeclineReason
from rig.asking import awaits_customer
from rig.world import CHARGED, DECLINED, a_request, id_of
from tests.banks.fakes import client, customers_card, localstripe
from tests.banks.stories import Done, Story, stories
from tests.banks.street import Street, Told, Trouble, a_street

pytestmark = pytest.mark.asyncio(loop_scope="module")

CARDS = ("pm_card_visa", "pm_card_chargeCustomerFail")
RETURN_URL = 'return_url = "https://shop.example/back"'
CREATE, CONFIRM, REFUND = b"POST /v1/payment_intents HTTP", b"/confirm HTTP", b"POST /v1/refunds HTTP"
CAPTURE, CANCEL, LOOK = b"/capture HTTP", b"/cancel HTTP", b"GET /v1/payment_intents/pi_"
STORIES = stories(
    {
        "charge": [CREATE, LOOK, CONFIRM],
        "capture": [LOOK, CAPTURE],
        "void": [LOOK, CANCEL],
        "refund": [LOOK, b"GET /v1/refunds", REFUND],
    }
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def street(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Street]:
    folder = tmp_path_factory.mktemp("localstripe")
    async with (
        localstripe(folder / "fake.log") as fake,
        a_street(fake, CARDS, folder, "forgetful stripe", [RETURN_URL]) as street,
    ):
        yield street


async def books(street: Street, charge: ChargeRequest) -> list[Done]:
    """All that the fake has done for a charge. An intent that was never confirmed is nothing done."""
    done = []
    async with client(street.fake) as asking:
        store = (await asking.get("/_config/books")).raise_for_status().json()
    for intent in store["payment_intent"]:
        if intent["metadata"]["reference"] != id_of(charge):
            continue
        for one in store["charge"]:
            if one["payment_intent"] != intent["id"]:
                continue
            done.append((intent["metadata"]["kind"] if one["paid"] else "declined", one["amount"]))
            if intent["capture_method"] == "manual" and one["captured"]:
                done.append(("capture", one["amount_captured"]))
            if intent["status"] == "canceled" and one["paid"]:
                done.append(("void", one["amount"]))
            of_it = [refund for refund in store["refund"] if refund["charge"] == one["id"]]
            done += [("refund" if refund["payment_intent"] else "let go", refund["amount"]) for refund in of_it]
    return sorted(done)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_it_is_done(street: Street, story: Story) -> None:
    charge = await story.tell(street)
    assert await books(street, charge) == sorted(story.done)


@pytest.mark.parametrize("trouble", Trouble, ids=lambda trouble: trouble.name.lower())
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_whatever_happens_to_a_call_it_is_done_once(street: Street, story: Story, trouble: Trouble) -> None:
    """But a refund that comes after the look-up for it, at a bank without keys, is one more: nobody can keep it from that."""
    for call in story.calls:
        if (call, trouble) != (REFUND, Trouble.LATE_REQUEST):
            charge = await story.tell(street, call, trouble)
            assert await books(street, charge) == sorted(story.done)


# ---------------------------------------------------------------- the customer's step
async def of_a_customer(street: Street, **changed: Any) -> ChargeRequest:
    """A request with a card that wants its customer."""
    return a_request(card=Card(token=await customers_card(street.fake)), **changed)


async def take_step(street: Street, told: Told, *, fails: bool = False) -> None:
    assert isinstance(told, ChargeResponse)
    assert awaits_customer(told), told
    async with client(street.fake) as asking:
        page = told.action.url + ("?fails" if fails else "")
        (await asking.get(page)).raise_for_status()


async def test_a_charge_is_done_once_the_customer_has_taken_the_step(street: Street) -> None:
    charge = await of_a_customer(street)
    told = await street.settle(charge)
    assert await books(street, charge) == []
    await take_step(street, told)
    assert (await street.settle(charge, ends=True)).status == CHARGED
    assert await books(street, charge) == [("charge", 1250)]


@pytest.mark.parametrize("trouble", Trouble, ids=lambda trouble: trouble.name.lower())
async def test_whatever_happens_around_the_customers_step_it_is_charged_once(street: Street, trouble: Trouble) -> None:
    """To the look that finds it taken, and to the calls before it."""
    found = await of_a_customer(street)
    await take_step(street, await street.settle(found))
    assert (await street.suffer(found, LOOK, trouble, ends=True)).status == CHARGED
    before = [(await of_a_customer(street), call) for call in (LOOK, CREATE, CONFIRM)]
    for charge, call in before:
        await take_step(street, await street.suffer(charge, call, trouble))
    for charge in (found, *(charge for charge, _ in before)):
        assert (await street.settle(charge, ends=True)).status == CHARGED
        assert await books(street, charge) == [("charge", 1250)]


async def test_a_step_that_fails_declines_the_charge(street: Street) -> None:
    charge = await of_a_customer(street)
    await take_step(street, await street.settle(charge), fails=True)
    told = await street.settle(charge, ends=True)
    assert isinstance(told, ChargeResponse)
    assert (told.status, told.decline_reason) == (DECLINED, DeclineReason.DECLINE_REASON_AUTHENTICATION_REQUIRED)
    assert await books(street, charge) == []


async def test_with_nobody_there_the_charge_is_called_off_and_declined(street: Street) -> None:
    charge = await of_a_customer(street, off_session=True)
    told = await street.settle(charge)
    assert isinstance(told, ChargeResponse)
    assert (told.status, told.decline_reason) == (DECLINED, DeclineReason.DECLINE_REASON_AUTHENTICATION_REQUIRED)
    assert await books(street, charge) == []


# ---------------------------------------------------------------- as it runs at Stripe, and the control
@pytest_asyncio.fixture(loop_scope="module")
async def trusting(tmp_path: Path) -> AsyncIterator[Street]:
    """The adapter as it is at Stripe: what is young is repeated under its key."""
    async with (
        localstripe(tmp_path / "fake.log") as fake,
        a_street(fake, CARDS, tmp_path, "stripe", [RETURN_URL]) as street,
    ):
        yield street


@pytest.mark.parametrize(
    "trouble", [Trouble.LOST_ANSWER, Trouble.KILLED_AFTER], ids=lambda trouble: trouble.name.lower()
)
async def test_what_acts_on_an_intent_is_done_once_without_keys_too(trusting: Street, trouble: Trouble) -> None:
    """An intent is confirmed, captured and cancelled once. Of two that are created, one is never confirmed."""
    for name in ("charge", "authorize", "declined", "capture", "void"):
        for call in set(STORIES[name].calls) - {LOOK}:
            charge = await STORIES[name].tell(trusting, call, trouble)
            assert await books(trusting, charge) == sorted(STORIES[name].done), name


async def test_without_look_ups_a_lost_answer_is_a_second_refund(trusting: Street) -> None:
    """So the books of this fake tell it, and the look-ups are what keeps it from happening."""
    charge = await STORIES["refund"].tell(trusting, REFUND, Trouble.LOST_ANSWER)
    assert await books(trusting, charge) == [("charge", 1250), ("refund", 500), ("refund", 500)]
