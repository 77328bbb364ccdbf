"""Given only the key of a charge that is stuck, by the command line alone: what happened, and the safe action, done as printed.

Each step is done by somebody who has the role for it, as `chargeonce explain` prints the command; what is left open there
(`...`, TRANSACTION) is filled in. What the bank's own people do, or who keeps the servers, the rig does (`mend`).
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import Situation
from contract.situations import SITUATIONS
from rig import stuck
from rig.referee import PATIENT_SECONDS
from rig.stuck import StuckWorld
from rig.world import heard, is_behind, until

FOLDER = Path(sys.executable).parent
COMMAND = re.compile(r"chargeonce (?:desk )?[a-z-]+ .*$", re.MULTILINE)


class Way(NamedTuple):
    """How a charge in a situation comes to its safe end: the commands, by their first words, each with the person who runs it.

    Then the charge's status, and what has moved for it at its bank.
    """

    situation: Situation.ValueType
    steps: Sequence[tuple[str, str]]
    status: str = "CHARGED"
    moved: Sequence[str] = ("charge",)


TRY = [("ann", "chargeonce desk try")]
WAYS = [
    Way(Situation.SITUATION_ABANDONED, [("shop", "chargeonce charge")], "ABANDONED", ()),
    Way(Situation.SITUATION_BANK_MISSING, ()),
    Way(Situation.SITUATION_BANK_SILENT, TRY),
    Way(Situation.SITUATION_EXECUTION_UNKNOWN, TRY),
    Way(Situation.SITUATION_BANK_REFUSES_US, TRY),
    Way(Situation.SITUATION_BANK_SLOW, TRY),
    Way(Situation.SITUATION_CALLING_OFF, TRY, "VOIDED", ()),
    Way(Situation.SITUATION_AWAITING_CUSTOMER, [("shop", "chargeonce void")], "VOIDED", ()),
    Way(Situation.SITUATION_HELD_BACK, [("ben", "chargeonce desk release")]),
    Way(Situation.SITUATION_IN_REVIEW, [("ann", "chargeonce desk propose"), ("ben", "chargeonce desk approve")]),
    Way(Situation.SITUATION_AWAITING_APPROVAL, [("ben", "chargeonce desk approve")]),
    Way(Situation.SITUATION_HOLD_ENDING, [("shop", "chargeonce capture")], "CHARGED", ("authorize", "capture")),
    Way(Situation.SITUATION_STOPPED, ()),
    Way(Situation.SITUATION_SERVER_AWAY, ()),
]
"""In the order of `stuck.ORDER`."""


class Said(NamedTuple):
    """What a command has printed, standard error included, and its exit status."""

    text: str
    status: int

    def field(self, name: str) -> str:
        """The value beside a name."""
        (value,) = re.findall(rf"^{name} +(.*)$", self.text, re.MULTILINE)
        return str(value)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[StuckWorld]:
    async with stuck.world() as made:
        yield made
        assert await made.violations() == []


async def run(world: StuckWorld, person: str, line: str) -> Said:
    """Run a line in a shell, as somebody."""
    environment = world.environment(person)
    environment["PATH"] = f"{FOLDER}:{environment['PATH']}"
    process = await asyncio.create_subprocess_shell(
        line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = (await process.communicate())[0].decode()
    assert process.returncode is not None
    return Said(text, process.returncode)


async def explained(world: StuckWorld, key: str) -> Said:
    """What an operator is told who has nothing but the key."""
    told = await run(world, "ann", f"chargeonce explain {key}")
    assert told.status == 0, told.text
    return told


def printed(told: Said, beginning: str) -> str:
    """The first command in what `explain` says that has this beginning."""
    commands = [it.strip() for it in COMMAND.findall(told.text) if it.startswith(f"{beginning} ")]
    assert commands, told.text
    return str(commands[0])


async def do(world: StuckWorld, person: str, told: Said, beginning: str) -> Said:
    """Run a command as `explain` has printed it, with what is left open filled in: the bank's transaction, and why."""
    command = printed(told, beginning)
    if "TRANSACTION" in command:
        asked = await run(world, person, printed(told, "chargeonce desk ask-bank"))
        assert asked.field("bank_said") == "EXECUTED"
        command = command.replace("TRANSACTION", asked.field("transaction_id"))
    command = command.replace("--evidence ...", "--evidence 'statement 7, line 1'").replace("...", "'ticket 4711'")
    return await run(world, person, command)


def test_there_is_a_way_out_of_every_situation_of_the_contract_in_which_a_charge_is_stuck() -> None:
    assert [way.situation for way in WAYS] == list(stuck.ORDER)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("way", WAYS, ids=[Situation.Name(it.situation).removeprefix("SITUATION_") for it in WAYS])
async def test_a_newcomer_finds_what_happened_and_the_safe_action_and_does_it(world: StuckWorld, way: Way) -> None:
    key = await world.provoke(way.situation)
    name = Situation.Name(way.situation).removeprefix("SITUATION_")

    await world.seen(key)
    told = await explained(world, key)
    assert told.field("situation") == name
    assert told.field("advice") == SITUATIONS[way.situation].advice
    assert told.field("what").startswith(SITUATIONS[way.situation].what)
    await world.mend(key)
    for number, (person, beginning) in enumerate(way.steps):
        if number:
            await until(lambda: has_proposal(world, key))  # the view needs a moment for the first step
            told = await explained(world, key)
        done = await do(world, person, told, beginning)
        was_faster = beginning == "chargeonce desk try" and "NOT_AT_THE_DESK" in done.text  # the service, after `mend`
        assert done.status == 0 or was_faster, done.text
    await until(lambda: has_status(world, key, way.status), 2 * PATIENT_SECONDS)
    assert (await explained(world, key)).field("status") == way.status
    assert await world.moved(key) == list(way.moved)


async def has_proposal(world: StuckWorld, key: str) -> bool:
    return (await world.charge(key)).HasField("proposal")


async def has_status(world: StuckWorld, key: str, status: str) -> bool:
    charge = await heard(lambda: world.charge(key), is_behind)
    return charge.status == ChargeStatus.Value(f"CHARGE_STATUS_{status}")


@pytest.mark.asyncio(loop_scope="module")
async def test_who_has_proposed_is_told_that_a_second_person_is_needed(world: StuckWorld) -> None:
    """And runs the command that is printed for that person in vain."""
    key = await world.provoke(Situation.SITUATION_AWAITING_APPROVAL, "by-one-person")
    await world.seen(key)
    await world.mend(key)
    told = await explained(world, key)
    assert "operate, not ann" in told.text
    refused = await do(world, "ann", told, "chargeonce desk approve")
    assert (refused.status, "SECOND_PERSON_NEEDED" in refused.text) == (3, True)
    assert (await do(world, "ben", told, "chargeonce desk approve")).status == 0
    assert await world.moved(key) == ["charge"]
