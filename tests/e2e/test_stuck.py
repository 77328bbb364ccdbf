"""Each situation in which a charge is stuck, brought about by a real fault, explained, and brought to its safe end.

The servers are processes, with a policy. What is done is what the situation's advice says. Then the banks' statements are read.
"""

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from charging.v1.query_pb2 import Situation
from contract.situations import SITUATIONS
from rig import stuck
from rig.stuck import StuckWorld

NEVER_STUCK = {
    Situation.SITUATION_UNSPECIFIED,
    Situation.SITUATION_DECIDED,
    Situation.SITUATION_UNDER_WAY,
}
MOVED: Mapping[Situation.ValueType, list[str]] = {
    Situation.SITUATION_ABANDONED: [],
    Situation.SITUATION_CALLING_OFF: [],
    Situation.SITUATION_HOLD_ENDING: ["authorize", "capture"],
}
"""What has moved at the bank in the end, in other situations than those in which a charge is made."""
NAMES = [Situation.Name(it).removeprefix("SITUATION_").lower() for it in stuck.ORDER]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[StuckWorld]:
    async with stuck.world() as made:
        yield made
        assert await made.violations() == []


def test_every_situation_of_the_contract_can_be_provoked() -> None:
    assert set(stuck.ORDER) == set(SITUATIONS) - NEVER_STUCK


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("situation", stuck.ORDER, ids=NAMES)
async def test_a_charge_in_it_is_explained_and_the_advised_action_brings_it_to_its_safe_end(
    world: StuckWorld, situation: Situation.ValueType
) -> None:
    """The advice is the table's. At the end its money has moved once, or not at all, and it is explained as decided."""
    key = await world.provoke(situation)
    told = await world.seen(key)
    assert told.advice == SITUATIONS[situation].advice
    assert told.what
    await world.clear(key)
    assert await world.moved(key) == MOVED.get(situation, ["charge"])
    told = await world.explained(key)
    is_given_up = situation == Situation.SITUATION_ABANDONED
    assert told.situation == (situation if is_given_up else Situation.SITUATION_DECIDED)
    assert (told.charge.status, told.charge.held_back) == (stuck.ENDS[situation], False)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_charge_that_is_provoked_leaves_the_others_where_they_are(world: StuckWorld) -> None:
    """Also when the server is started anew for it, as one that gives up soon."""
    silent, refusing = Situation.SITUATION_BANK_SILENT, Situation.SITUATION_BANK_REFUSES_US
    before = [await world.provoke(situation, f"before-{situation}") for situation in (silent, refusing)]
    abandoned = await world.provoke(Situation.SITUATION_ABANDONED, "after")
    for key in (*before, abandoned):
        await world.seen(key)
    for key in before:
        assert world.story(key) == ["charge_requested"]
        await world.clear(key)
