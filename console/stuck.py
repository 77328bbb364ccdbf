"""What needs somebody now: the charges that are stuck, by their situation.

The lists of the view tell the stages; `ExplainCharge` tells the situation of a charge that has been under way for long. Of
those that are not explained nothing better is known than their age.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from chargeonce_client import CallFailed, Charge, ListChargesResponse, OperationStatus
from charging.v1.query_pb2 import ChargeStage, ExplainChargeRequest, ListChargesRequest, Situation
from console import words
from console.servers import Asker
from contract.situations import SITUATIONS, Row

# A bank that works answers within seconds.
LONG_SECONDS = 60.0
ENDING, RECENT = timedelta(days=1), timedelta(days=1)
# Of each stage: the newest, and how many of them are explained one by one.
MOST_OF_A_STAGE, MOST_EXPLAINED = 100, 25
_AT_ONCE = 8
UNDER_WAY = frozenset(
    {
        ChargeStage.CHARGE_STAGE_AWAITING_TOKEN,
        ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION,
        ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER,
        ChargeStage.CHARGE_STAGE_CALLING_OFF,
    }
)

NOT_LOOKED_AT = Row(
    "They are under way for longer than a minute, and were not looked at one by one: money may have moved.",
    "Open each one: its page tells how it stands. Do not refund and do not charge again before it is decided.",
)
"""What is said of charges whose situation is not known here."""


@dataclass(slots=True)
class Group:
    """The charges in one situation; unspecified if they were not looked at. There are more if `has_more`."""

    situation: Situation.ValueType
    charges: list[Charge] = field(default_factory=list)
    has_more: bool = False

    @property
    def row(self) -> Row:
        """What is said of them in general."""
        return SITUATIONS.get(self.situation, NOT_LOOKED_AT)

    @property
    def oldest(self) -> Charge:
        """The one that is in it for longest."""
        return min(self.charges, key=lambda charge: charge.stage_since.ToNanoseconds())


async def stuck(asker: Asker) -> tuple[Sequence[Group], CallFailed | None]:
    """Return the groups that are not empty, in the order of the table of situations; and why some may be missing, if so."""
    now = datetime.now(UTC)
    lists = {
        ChargeStage.CHARGE_STAGE_UNFINISHED: ListChargesRequest(
            stage_since_before=words.timestamp(now - timedelta(seconds=LONG_SECONDS))
        ),
        ChargeStage.CHARGE_STAGE_HELD_BACK: ListChargesRequest(),
        ChargeStage.CHARGE_STAGE_IN_REVIEW: ListChargesRequest(),
        ChargeStage.CHARGE_STAGE_ABANDONED: ListChargesRequest(),
        ChargeStage.CHARGE_STAGE_HOLDING: ListChargesRequest(hold_expires_before=words.timestamp(now + ENDING)),
    }
    for stage, request in lists.items():
        request.stage, request.page_size = stage, MOST_OF_A_STAGE
    answers = await asyncio.gather(*(_listed(asker, request) for request in lists.values()))
    groups: dict[Situation.ValueType, Group] = {}
    failure: CallFailed | None = None
    for stage, answer in zip(lists, answers, strict=True):
        if isinstance(answer, CallFailed):
            failure = answer
            continue
        charges = [charge for charge in answer.charges if _counts(stage, charge, now)]
        by_situation: dict[Situation.ValueType, list[Charge]] = defaultdict(list)
        for charge, situation in zip(charges, await _situations(asker, stage, charges), strict=True):
            by_situation[situation].append(charge)
        for situation, found in by_situation.items():
            group = groups.setdefault(situation, Group(situation))
            group.charges += found
            group.has_more |= bool(answer.next_page_token)
    order = [*SITUATIONS, Situation.SITUATION_UNSPECIFIED]
    return sorted(groups.values(), key=lambda group: order.index(group.situation)), failure


async def _listed(asker: Asker, request: ListChargesRequest) -> ListChargesResponse | CallFailed:
    found = await asker.look(lambda stub: stub.ListCharges, request)
    return found  # noqa: RET504  # the type checker wants it in two lines


def _counts(stage: ChargeStage.ValueType, charge: Charge, now: datetime) -> bool:
    """Whether a charge of a list is stuck so. A query server of an earlier version does not know stages, and lists all."""
    match stage:
        case ChargeStage.CHARGE_STAGE_UNFINISHED:
            return charge.stage in UNDER_WAY and not charge.held_back  # what is held back has a list of its own
        case ChargeStage.CHARGE_STAGE_HELD_BACK:
            return charge.held_back
        case ChargeStage.CHARGE_STAGE_ABANDONED:
            return (
                charge.operations[-1].status == OperationStatus.OPERATION_STATUS_ABANDONED
                and now - charge.stage_since.ToDatetime(UTC) < RECENT
            )
        case ChargeStage.CHARGE_STAGE_HOLDING:
            return charge.held_minor_units > 0
    return charge.stage == stage


async def _situations(
    asker: Asker, stage: ChargeStage.ValueType, charges: Sequence[Charge]
) -> Sequence[Situation.ValueType]:
    match stage:
        case ChargeStage.CHARGE_STAGE_UNFINISHED:
            explained = list(charges[-MOST_EXPLAINED:])  # the oldest
            slots = asyncio.Semaphore(_AT_ONCE)
            known = await asyncio.gather(*(_explained(asker, charge, slots) for charge in explained))
            return [*[Situation.SITUATION_UNSPECIFIED] * (len(charges) - len(explained)), *known]
        case ChargeStage.CHARGE_STAGE_HELD_BACK:
            return [Situation.SITUATION_HELD_BACK] * len(charges)
        case ChargeStage.CHARGE_STAGE_IN_REVIEW:
            return [
                Situation.SITUATION_AWAITING_APPROVAL if charge.HasField("proposal") else Situation.SITUATION_IN_REVIEW
                for charge in charges
            ]
        case ChargeStage.CHARGE_STAGE_ABANDONED:
            return [Situation.SITUATION_ABANDONED] * len(charges)
    return [Situation.SITUATION_HOLD_ENDING] * len(charges)


async def _explained(asker: Asker, charge: Charge, slots: asyncio.Semaphore) -> Situation.ValueType:
    request = ExplainChargeRequest(charge_id=charge.charge_id, journal_id=charge.journal_id)
    async with slots:
        answer = await asker.look(lambda stub: stub.ExplainCharge, request)
    if isinstance(answer, CallFailed) or answer.situation not in SITUATIONS:
        return Situation.SITUATION_UNSPECIFIED
    return answer.situation
