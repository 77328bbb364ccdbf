"""The situation of a charge, by the view and by what the command servers said of its attempts.

What is not known of attempts is never taken for good news: after the token, money may have moved.
"""

from collections.abc import Sequence
from typing import NamedTuple

from charging.v1.common_pb2 import Attempts, OperationStatus
from charging.v1.query_pb2 import Charge, ChargeStage, Situation
from contract.situations import situation_under_way
from query_service.schema import DAY_MICROSECONDS

UNDER_WAY: Sequence[ChargeStage.ValueType] = (
    ChargeStage.CHARGE_STAGE_AWAITING_TOKEN,
    ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION,
    ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER,
    ChargeStage.CHARGE_STAGE_CALLING_OFF,
)
"""The stages at which the bank is to be asked, so that there are attempts."""
LONG_SECONDS = 60
"""A bank that works answers a step within seconds."""


class Asked(NamedTuple):
    """What the command servers said of the attempts at the step of a charge under way; by default nobody was asked."""

    attempts: Attempts | None = None
    unknown_because: str = ""
    """A sentence, if they are not known."""
    is_away: bool = False
    """No command server can be asked."""
    is_stopped: bool = False
    """The charge is unfinished, and its server has no attempts under way. A call about it or a start takes it up again."""
    is_bank_configured: bool = True
    version: int = 0
    """The number of the charge's events then; 0 if it was not told."""


NOT_ASKED = Asked()


def situation_of(charge: Charge, asked: Asked, *, now: int) -> Situation.ValueType:
    """Find the situation of a charge. `now` is in microseconds since 1970."""
    if charge.stage == ChargeStage.CHARGE_STAGE_IN_REVIEW:
        has_proposal = charge.HasField("proposal")
        return Situation.SITUATION_AWAITING_APPROVAL if has_proposal else Situation.SITUATION_IN_REVIEW
    if charge.stage not in UNDER_WAY:
        lapses_at = charge.hold_expires_at.ToMicroseconds()
        if 0 < lapses_at < now + DAY_MICROSECONDS:  # it is urgent, whatever was given up besides
            return Situation.SITUATION_HOLD_ENDING
        is_given_up = charge.operations[-1].status == OperationStatus.OPERATION_STATUS_ABANDONED
        return Situation.SITUATION_ABANDONED if is_given_up else Situation.SITUATION_DECIDED
    if asked.is_away:
        return Situation.SITUATION_SERVER_AWAY
    if asked.is_stopped:
        return Situation.SITUATION_STOPPED
    tried = asked.attempts or Attempts()
    is_stuck = (
        charge.held_back or not asked.is_bank_configured or tried.in_vain > 0 or _may_be_stuck(charge, tried, now)
    )
    if not is_stuck and charge.stage != ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER:
        return Situation.SITUATION_UNDER_WAY
    return situation_under_way(
        charge.stage,
        tried.last_answer,
        is_held_back=charge.held_back,
        is_bank_configured=asked.is_bank_configured,
    )


def _may_be_stuck(charge: Charge, tried: Attempts, now: int) -> bool:
    """Whether a charge is long at a stage that follows its token, and attempts since then are not known."""
    since = charge.stage_since.ToMicroseconds()
    are_known = tried.HasField("since") and tried.since.ToMicroseconds() <= since
    is_long = now - since > LONG_SECONDS * 1_000_000
    return charge.stage != ChargeStage.CHARGE_STAGE_AWAITING_TOKEN and is_long and not are_known
