"""The operators of a story: they try, hold back, let go and resolve, rightly and wrongly, alone and at once, and forget things.

They know what is durable in the journal, and what the bank's ledger says. None of their mistakes may break an invariant, except
those that an approval names by its `overrules`.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from charging.v1.common_pb2 import AnswerKind, Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    AskBankRequest,
    HoldBackRequest,
    LetGoRequest,
    ProposeResolutionRequest,
    RejectResolutionRequest,
    TryNowRequest,
)
from chassis.caller import Caller
from chassis.refusals import Refusal
from judge.history import Record, Violation
from judge.settlement import given_away, operations_of
from judge.streams import OPENING, Stream
from prove.simulation.bank import Bank
from prove.simulation.host import OPERATORS
from prove.simulation.network import Network, Told
from prove.simulation.overview import Overview
from prove.simulation.stage import Stage
from prove.simulation.stripe import StripeAccount

OPERATORS_OF_A_STORY = (Caller("", "ann"), Caller("", "ben"), Caller("default", "cal"))
# More steps than this would only make a story longer.
MOST_STEPS = 25
PATIENCE_SECONDS = 8.0
# Of the charges and captures that they take for executed, they take so many for refunded too.
SHARE_OF_REFUNDED = 0.4
NOT_EXECUTED, EXECUTED, REFUNDED = (
    Resolution.RESOLUTION_NOT_EXECUTED,
    Resolution.RESOLUTION_EXECUTED,
    Resolution.RESOLUTION_REFUNDED,
)
# What the bank may say to a careful approval: it has the transaction open, or denies a token that it once gave by mistake.
OPEN_AT_THE_BANK = frozenset({"TOKEN", "NEEDS_ACTION", "IN_PROGRESS", "CONTRADICTION"})


class Taken(NamedTuple):
    """A step that was answered."""

    who: str
    request: Any
    told: Told


class People:
    """The operators of a story."""

    def __init__(self, stage: Stage, banks: Mapping[str, Bank], network: Network, overview: Overview) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._banks = banks
        self._network = network
        self._overview = overview
        self._taken: list[Taken] = []
        self._approvals: set[tuple[str, str, int, int]] = (
            set()
        )  # who, charge, proposal, and the answer that it overrules
        self._by_hand = 0

    # ------------------------------------------------------------ while there are faults
    async def operator(self, number: int) -> None:
        """Do what comes to an operator's mind, until faults stop."""
        caller, plan = OPERATORS_OF_A_STORY[number], self._stage.plan
        mind = random.Random(f"{caller.actor} {plan.seed}")
        for _ in range(MOST_STEPS):
            await asyncio.sleep(mind.expovariate(1.0 / plan.operators_pause_seconds))
            if self._dice.is_over:
                break
            await self._do_something(caller, mind)

    async def _do_something(self, caller: Caller, mind: random.Random) -> None:
        reviews, under_way = self._overview.in_review, self._overview.under_way
        if reviews and (not under_way or mind.random() < 0.7):
            await self._see_to(caller, mind.choice(reviews), mind)
        elif under_way:
            await self._interfere(caller, mind.choice(under_way), mind)
        elif self._overview.charges and mind.random() < 0.2:  # it is at rest: there is nothing to do, and they try
            await self._interfere(caller, mind.choice([*self._overview.charges.values()]), mind)

    async def _interfere(self, caller: Caller, charge: Stream, mind: random.Random) -> None:
        """Take a step about a charge under way."""
        roll, its = mind.random(), {"charge_id": charge.charge_id}
        if charge.desk.is_held_back and roll < 0.6:
            if not self._dice.fires("people_forget_hold"):
                await self._take(caller, LetGoRequest(**its, reason="it may go on"))
        elif roll < 0.4:
            await self._take(caller, TryNowRequest(**its, reason=mind.choice(("the bank is back", "please"))))
        elif roll < 0.85:
            await self._take(caller, HoldBackRequest(**its, reason="let me look first"))
        else:
            await self._take(caller, AskBankRequest(**its))

    async def _see_to(self, caller: Caller, charge: Stream, mind: random.Random) -> None:
        """Take a step about a charge in review."""
        its: dict[str, Any] = {"charge_id": charge.charge_id}
        closed = self._overview.closed.get(charge.charge_id)
        if closed and self._dice.fires("people_old_proposal"):
            await self._approve(caller, charge, mind.choice(closed))
            return
        if charge.desk.proposal is None:
            said = self._believed(charge, mind)
            await self._take(caller, ProposeResolutionRequest(**its, **said, reason="I looked", evidence="the ledger"))
            return
        proposal, made = charge.desk.proposal
        if made.actor == caller.actor:
            if self._dice.fires("people_own_approval"):
                await self._approve(caller, charge, proposal)
            elif mind.random() < 0.2:
                await self._take(caller, RejectResolutionRequest(**its, proposal=proposal, reason="I was wrong"))
            return
        is_right = self._is_right(charge, made)
        is_approved = mind.random() < (0.85 if is_right else 0.5)
        if self._dice.fires("people_at_once"):
            other = mind.choice([it for it in self._callers if it is not caller])
            await asyncio.gather(
                self._approve(caller, charge, proposal),
                self._approve(other, charge, proposal)
                if mind.random() < 0.6
                else self._take(other, RejectResolutionRequest(**its, proposal=proposal, reason="surely not")),
            )
        elif is_approved:
            await self._approve(caller, charge, proposal)
        else:
            await self._take(caller, RejectResolutionRequest(**its, proposal=proposal, reason="it is not so"))

    async def _approve(self, caller: Caller, charge: Stream, proposal: int) -> Told | Refusal | None:
        """Approve, and insist on it perhaps if the bank does not confirm it."""
        request = ApproveResolutionRequest(charge_id=charge.charge_id, proposal=proposal, reason="I looked too")
        told = await self._take(caller, request)
        if isinstance(told, Refusal) and self._insists(charge, told.reason):
            request.overrules = AnswerKind.Value(f"ANSWER_KIND_{told.metadata['bank_said']}")
            told = await self._take(caller, request)
        return told

    def _insists(self, charge: Stream, why: str) -> bool:
        """Whether somebody approves all the same. A bank whose search may be late never says that an unnamed one has ended."""
        if why == "BANK_UNREACHABLE" and self._dice.is_over and self._is_found_late(charge):
            return True
        return why in ("BANK_CONTRADICTS", "BANK_UNREACHABLE") and self._dice.fires("people_insist")

    def _is_found_late(self, charge: Stream) -> bool:
        """Whether its bank has to search for what is in review: it opens the charge, and its token is not known or trusted."""
        operation = charge.in_review
        if operation is None or operation.kind not in OPENING:
            return False
        has_token = len(operation.issued) > len(operation.expired) and not self._stage.plan.is_restored
        return not has_token and isinstance(self._banks[charge.requested.bank], StripeAccount)

    @property
    def _callers(self) -> Sequence[Caller]:
        return OPERATORS_OF_A_STORY[: self._stage.plan.operators]

    # ------------------------------------------------------------ what they believe
    def _truth(self, charge: Stream) -> dict[str, Any]:
        """What the bank's ledger says of the operation in review: a proposal's fields."""
        operation = charge.in_review
        assert operation is not None
        for movement in self._banks[charge.requested.bank].movements:
            if movement.reference == operation.reference:
                return {"resolution": EXECUTED, "transaction_id": movement.transaction_id}
        return {"resolution": NOT_EXECUTED}

    def _is_right(self, charge: Stream, made: Any) -> bool:
        if charge.in_review is None:
            return False
        truth = self._truth(charge)
        is_executed = made.resolution in (EXECUTED, REFUNDED)
        said = {"resolution": EXECUTED, "transaction_id": made.transaction_id} if is_executed else None
        return truth == (said or {"resolution": made.resolution})

    def _believed(self, charge: Stream, mind: random.Random) -> dict[str, Any]:
        """What somebody believes who may be wrong."""
        truth, dice, operation = self._truth(charge), self._dice, charge.in_review
        assert operation is not None
        is_executed = truth["resolution"] == EXECUTED
        others = [
            movement.transaction_id
            for bank in self._banks.values()
            for movement in bank.movements
            if movement.reference != operation.reference
        ]
        if dice.fires("people_wrong_verdict"):
            said = {"resolution": NOT_EXECUTED} if is_executed else _executed(f"txn_none_{mind.randint(1, 9)}")
        elif is_executed and others and dice.fires("people_other_transaction"):
            said = _executed(mind.choice(others))
        elif is_executed and dice.fires("people_wrong_transaction"):
            said = _executed(truth["transaction_id"] + "-x")
        else:
            said = truth
        may_be_refunded = said["resolution"] == EXECUTED and operation.kind in ("charge", "capture")
        if may_be_refunded and mind.random() < SHARE_OF_REFUNDED:
            self._by_hand += 1
            return {**said, "resolution": REFUNDED, "refund_transaction_id": f"by-hand-{self._by_hand}"}
        return said

    # ------------------------------------------------------------ once faults have stopped
    async def let_all_go(self) -> None:
        """Let go all that is held back: somebody remembers in the end."""
        loop, plan = self._stage.loop, self._stage.plan
        until = loop.time() + plan.rest_seconds
        while (held := [*self._overview.holds]) and loop.time() < until:
            for charge_id in held:
                await self._take(self._callers[0], LetGoRequest(charge_id=charge_id, reason="it is over"))
            await asyncio.sleep(0.5)

    async def settle(self) -> None:
        """Resolve what is in review as the ledger says: it needs no insisting, unless the bank can only search for it."""
        first, second, *_ = self._callers
        for charge in self._overview.in_review:
            its: dict[str, Any] = {"charge_id": charge.charge_id}
            if (known := charge.desk.proposal) is not None:
                await self._take(first, RejectResolutionRequest(**its, proposal=known[0], reason="we begin anew"))
            said = self._truth(charge)
            await self._take(first, ProposeResolutionRequest(**its, **said, reason="we looked", evidence="the ledger"))
            if charge.desk.proposal is None:
                self._stage.broke("L1", f"charge {charge.charge_id}", "at rest, its review cannot be resolved")
                continue
            told = await self._approve(second, charge, charge.desk.proposal[0])
            if charge.in_review is None:
                self._dice.met("settled_in_the_end")
            elif not (isinstance(told, Refusal) and told.metadata.get("bank_said") in OPEN_AT_THE_BANK):
                why = told.reason + str(dict(told.metadata)) if isinstance(told, Refusal) else "no answer"
                text = f"at rest, what the ledger says is not approved: {why}"
                self._stage.broke("L1", f"charge {charge.charge_id}", text)

    # ------------------------------------------------------------ a step
    async def _take(self, caller: Caller, request: Any) -> Told | Refusal | None:
        """Take a step, and again while nobody knows what came of it."""
        method = type(request).__name__.removesuffix("Request")
        told: Told | Refusal | None = None
        if isinstance(request, ApproveResolutionRequest):
            self._approvals.add((caller.actor, request.charge_id, request.proposal, request.overrules))
        for _ in range(3):
            self._stage.note(caller.actor, method, request.charge_id, getattr(request, "proposal", ""))
            told = await self._network.call(f"/{OPERATORS}/{method}", request, caller, timeout_seconds=PATIENCE_SECONDS)
            match told:
                case Told():
                    self._stage.note(caller.actor, "hears", method, "ok")
                    self._taken.append(Taken(caller.actor, request, told))
                    break
                case Refusal():
                    self._stage.note(caller.actor, "hears", method, told.reason)
                    if told.advice != "RETRY_SAME_KEY" or told.reason == "BANK_UNREACHABLE":
                        break
                    await asyncio.sleep(told.retry_after_seconds or 0.5)
                case None:
                    await asyncio.sleep(0.5)
        return told

    # ------------------------------------------------------------ in the end
    @property
    def misjudged(self) -> set[str]:
        """The charges that people resolved against the bank's word, and those whose transactions they gave to these."""
        charges = self._overview.charges
        given = given_away(operations_of(charges))
        judged = {
            key for key, it in charges.items() if any(o.verdict and o.verdict.may_be_untrue for o in it.operations)
        }
        return judged | {
            key
            for key, it in charges.items()
            if it.opening is not None and it.opening.ending and it.opening.transaction_id in given
        }

    def violations(self, records: Sequence[Record]) -> Iterator[Violation]:
        """I7, I15: what operators were told is durable, and is so. I19: what they overruled is what they named.

        `records` is the journal in the end.
        """
        for charge_id, stream in self._overview.charges.items():
            for record, kind, event in stream.entries:
                approved = event.resolution_approved
                named = (approved.actor, charge_id, approved.proposal, approved.bank_said)
                if kind == "resolution_approved" and approved.contradicts_bank and named not in self._approvals:
                    where = f"position {record.position} of charge {charge_id}"
                    said = AnswerKind.Name(approved.bank_said)
                    yield Violation("I19", where, f"{approved.actor} has overruled {said}, and had not named that")
        for who, request, told in self._taken:
            if isinstance(request, AskBankRequest):
                continue
            outcome, where = told.answer.outcome, f"{type(request).__name__} of {who}"
            if outcome.position > told.durable_position:
                yield Violation("I7", where, f"position {outcome.position} was told before it was durable")
            if not 1 <= outcome.position <= len(records):
                yield Violation("I7", where, f"position {outcome.position} was told, and the journal lacks it")
                continue
            if {records[outcome.position - 1].charge_id, outcome.charge_id} != {request.charge_id}:
                yield Violation("I15", where, f"position {outcome.position} holds no event of its charge")
            if why := _untrue(who, request, told.answer, self._overview.charges[request.charge_id]):
                yield Violation("I15", where, why)


def _untrue(who: str, request: Any, answer: Any, stream: Stream) -> str:
    """Why the journal does not say what an operator was told; empty if it does."""
    position = answer.outcome.position
    steps = [
        (record.position, kind, getattr(event, kind)) for record, kind, event in stream.entries if kind != "unknown"
    ]
    match request:
        case HoldBackRequest() if not answer.outcome.held_back:
            return "it was to be held back, and is not"
        case LetGoRequest() if answer.outcome.held_back:
            return "it was let go, and is held back"
        case ProposeResolutionRequest():
            is_there = any(at == answer.proposal and it.actor == who for at, kind, it in steps if "proposed" in kind)
            return "" if is_there else f"its proposal {answer.proposal} is not in the journal"
        case RejectResolutionRequest() | ApproveResolutionRequest():
            wanted = "resolution_rejected" if isinstance(request, RejectResolutionRequest) else "resolution_approved"
            is_there = any(
                (kind, it.proposal, it.actor) == (wanted, request.proposal, who) and at <= position
                for at, kind, it in steps
                if kind == wanted
            )
            return "" if is_there else f"the journal has no {wanted} of proposal {request.proposal}"
    return ""


def _executed(transaction_id: str) -> dict[str, Any]:
    return {"resolution": EXECUTED, "transaction_id": transaction_id}
