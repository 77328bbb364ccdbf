"""Given only the key of a charge that is stuck, by the command line alone: what happened, and the safe action, done as printed.

The person who does it knows the key and is an operator, or the client where the action is a client's. What the bank's own people do,
the rig does (`mend`).
"""

import asyncio
import re
import shlex
import subprocess
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import pytest
import pytest_asyncio

from charging.v1.query_pb2 import Situation
from contract.situations import SITUATIONS
from rig import stuck
from rig.stuck import StuckWorld
from rig.world import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Step(NamedTuple):
    """A command as `explain` prints it to somebody, by its first words; and whether it is done before the cause has ended."""

    person: str
    command: str


class Way(NamedTuple):
    """How a charge in a situation comes to its safe end: the steps, its status in the end, and what has moved at the bank."""

    situation: Situation.ValueType
    steps: Sequence[Step]
    status: str = "CHARGED"
    moved: Sequence[str] = ("charge",)


TRY = [Step("ann", "chargeonce desk try")]
WAYS = [
    Way(Situation.SITUATION_BANK_SILENT, TRY),
    Way(Situation.SITUATION_EXECUTION_UNKNOWN, TRY),
    Way(Situation.SITUATION_BANK_REFUSES_US, TRY),
    Way(Situation.SITUATION_BANK_SLOW, TRY),
    Way(Situation.SITUATION_CALLING_OFF, TRY, "VOIDED", ()),
    Way(Situation.SITUATION_AWAITING_CUSTOMER, [Step("shop", "chargeonce void")], "VOIDED", ()),
    Way(Situation.SITUATION_HELD_BACK, [Step("ben", "chargeonce desk release")]),
    Way(
        Situation.SITUATION_IN_REVIEW,
        [Step("ann", "chargeonce desk propose"), Step("ben", "chargeonce desk approve")],
    ),
    Way(Situation.SITUATION_AWAITING_APPROVAL, [Step("ben", "chargeonce desk approve")]),
    Way(Situation.SITUATION_ABANDONED, [Step("shop", "chargeonce charge")], "ABANDONED", ()),
    Way(Situation.SITUATION_BANK_MISSING, ()),
    Way(
        Situation.SITUATION_HOLD_ENDING,
        [Step("shop", "chargeonce capture")],
        moved=("authorize", "capture"),
    ),
    Way(Situation.SITUATION_STOPPED, ()),
    Way(Situation.SITUATION_SERVER_AWAY, ()),
]
