"""Given only the key of a charge that is stuck, by the console alone: what happened, and the safe action, done there.

What the bank's own people do, or who keeps the servers, the rig does (`mend`). What only a client may do, such as to capture,
the console names with its command, and the rig does it (`clear`).
"""

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from playwright.async_api import TimeoutError as PlaywrightTimeout

from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import Situation
from chassis import settings
from console.serving import serve
from console.settings import Settings
from contract.situations import SITUATIONS
from rig import stuck
from rig.stuck import StuckWorld
from tests.console.site import PATIENT_MILLISECONDS, Person, a_browser, a_person, needs_chromium


class Way(NamedTuple):
    """How a charge in a situation comes to its safe end: what the page says beyond the table's sentences, and the steps there.

    Each step is a person's, by its button.
    """

    situation: Situation.ValueType
    steps: tuple[tuple[str, str], ...] = ()
    says: str = ""
    is_listed: bool = False
    """Whether the first page tells of it at once; a charge under way only after a minute."""


TRY = (("ann", "Try now"),)
WAYS = [
    Way(Situation.SITUATION_ABANDONED, is_listed=True),
    Way(Situation.SITUATION_BANK_MISSING),
    Way(Situation.SITUATION_BANK_SILENT, TRY),
    Way(Situation.SITUATION_EXECUTION_UNKNOWN, TRY),
    Way(Situation.SITUATION_BANK_REFUSES_US, TRY),
    Way(Situation.SITUATION_BANK_SLOW, TRY),
    Way(Situation.SITUATION_CALLING_OFF, TRY),
    Way(Situation.SITUATION_AWAITING_CUSTOMER, says="chargeonce void"),
    Way(Situation.SITUATION_HELD_BACK, (("ben", "Let go"),), is_listed=True),
    Way(Situation.SITUATION_IN_REVIEW, (("ann", "Propose"), ("ben", "Approve")), is_listed=True),
    Way(Situation.SITUATION_AWAITING_APPROVAL, (("ben", "Approve"),), is_listed=True),
    Way(Situation.SITUATION_HOLD_ENDING, says="chargeonce capture", is_listed=True),
    Way(Situation.SITUATION_STOPPED),
    Way(Situation.SITUATION_SERVER_AWAY, says="cannot be reached"),
]
"""In the order of `stuck.ORDER`."""

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]


class House(NamedTuple):
    """The world, a console in front of it, and a browser."""

    world: StuckWorld
    url: str
    chromium: Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    async with stuck.world() as world, a_browser() as chromium:
        environment = {
            "CONSOLE_LISTEN": "127.0.0.1:0",
            "CONSOLE_COMMAND": world.addresses["command"],
            "CONSOLE_QUERY": world.addresses["query"],
        }
        async with serve(settings.read(Settings, environment)) as console:
            yield House(world, f"http://{console.listen}", chromium)
        assert await world.violations() == []


async def signed_in(person: Person, world: StuckWorld, name: str) -> None:
    await person.goes("/sign-in")
    await person.page.get_by_label("Bearer token").fill(world.token_file(name).read_text())
    await person.page.get_by_role("button", name="Sign in").click()


async def test_there_is_a_way_out_of_every_situation_in_which_a_charge_is_stuck() -> None:
    assert [way.situation for way in WAYS] == list(stuck.ORDER)


@pytest.mark.parametrize("way", WAYS, ids=[Situation.Name(it.situation).removeprefix("SITUATION_") for it in WAYS])
async def test_a_newcomer_finds_what_happened_and_the_safe_action_and_does_it(house: House, way: Way) -> None:
    world, row = house.world, SITUATIONS[way.situation]
    key = await world.provoke(way.situation)
    await world.seen(key)
    async with (
        a_person(house.url, house.chromium, may_fail=True) as ann,
        a_person(house.url, house.chromium, may_fail=True) as ben,
    ):
        people = {"ann": ann, "ben": ben}
        for name, person in people.items():
            await signed_in(person, world, name)
        if way.is_listed:
            await expect(ann.page.locator("#stuck").get_by_role("link", name=key)).to_be_visible()
        await ann.finds(key)
        for sentence in (row.what, row.advice):
            await expect(ann.page.locator("#explanation")).to_contain_text(sentence)
        await ann.sees(way.says)
        assert await ann.barriers() == []
        await world.mend(key)
        for name, step in way.steps:
            person = people[name]
            await person.finds(key)
            await do(person, step, world, key)
        if not way.steps:
            await world.clear(key)
        await ann.finds(key)
        status = ChargeStatus.Name(stuck.ENDS[way.situation]).removeprefix("CHARGE_STATUS_").lower()
        await expect(ann.page.locator("#summary")).to_contain_text(status, timeout=2 * PATIENT_MILLISECONDS)
    await world.ended(key)


async def do(person: Person, step: str, world: StuckWorld, key: str) -> None:
    """Take a step, with the transaction as the bank tells it. A charge that came to rest meanwhile needs no try."""
    if step == "Propose":
        await person.does("Ask the bank")
        await person.sees(f" {key}: executed, transaction ")
        transaction = await world.transaction_id(key)
        await person.sees(transaction)
        await person.does(
            step,
            resolution="RESOLUTION_EXECUTED",
            transaction=transaction,
            evidence="statement 7, line 1",
            reason="ticket 4711",
        )
        await person.sees("is proposed")
    elif step == "Try now":
        button = person.page.get_by_role("button", name=step)
        decided = person.page.locator("#explanation").get_by_text("Nothing has to be done.")
        await expect(button.or_(decided).first).to_be_visible()
        if await button.is_visible():
            try:
                await person.does(step, reason="ticket 4711")
            except (AssertionError, PlaywrightTimeout):  # the page went on by itself, or the server refused
                await person.finds(key)
                await expect(decided).to_be_visible()
    else:
        await person.does(step, reason="ticket 4711")
