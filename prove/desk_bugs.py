"""Bugs of the desk: mix-ins for a server's parts, each around the right part.

As in `prove.operation_bugs` a wrong core is planted where it shows: in the charges that the desk is given to decide about, in
what it stores, and in whom it tells.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from charging.v1.common_pb2 import AnswerKind
from charging.v1.journal_pb2 import Event
from charging.v1.operator_pb2 import ApproveResolutionRequest, ApproveResolutionResponse
from chassis.refusals import Refusal
from command_service.bank import Bank
from command_service.charge import Charge, is_in_review
from command_service.desk import OperatorService
from command_service.desk_rules import Proposal
from command_service.events import ResolutionRejected
from command_service.journal import Appended, Journal, Record, VersionConflict
from command_service.parts import Assembled, Parts
from command_service.run import Run
from command_service.runner import Runner
from command_service.streams import Snapshot
from command_service.values import Answer, CalledOff, NoAnswer, Operation
from prove.loop_bugs import AnyVersion
from rig.around import Around


# ---------------------------------------------------------------- what the desk decides about
class OtherCharges(Around[Runner]):
    """A loop that shows the desk charges which are not quite so."""

    def seen(self, charge: Charge) -> Charge:
        """Return the charge as the desk is to see it."""
        return charge

    async def load(self, charge_id: str, *, for_tenant: str | None = None) -> Snapshot:
        """Return a charge, as for the desk."""
        return self._shown(await self.inner.load(charge_id, for_tenant=for_tenant))

    async def reload(self, charge_id: str) -> Snapshot:
        """Return a charge after a conflict, as for the desk."""
        return self._shown(await self.inner.reload(charge_id))

    def _shown(self, snapshot: Snapshot) -> Snapshot:
        state = snapshot.state
        return snapshot._replace(state=self.seen(state)) if isinstance(state, Charge) else snapshot


class WithoutProposers(OtherCharges):
    """Nobody knows who has proposed."""

    def seen(self, charge: Charge) -> Charge:
        """Take the name off an open proposal."""
        if (known := charge.desk.proposal) is None:
            return charge
        unnamed = known._replace(made=replace(known.made, actor="somebody"))
        return replace(charge, desk=replace(charge.desk, proposal=unnamed))


class WithRejected(OtherCharges):
    """A proposal that was rejected is open all the same."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self._open: dict[str, Proposal] = {}

    def seen(self, charge: Charge) -> Charge:
        """Open the last proposal again."""
        charge_id, known = charge.request.charge_id, charge.desk.proposal
        if known is not None:
            self._open[charge_id] = known
        elif is_in_review(charge) and isinstance(charge.desk.closed, ResolutionRejected) and charge_id in self._open:
            return replace(charge, desk=replace(charge.desk, proposal=self._open[charge_id]))
        return charge


class TheProposerMayApprove(Parts):
    """One person is enough."""

    def operators(self, journal: Journal, assembled: Assembled, *others: Any) -> OperatorService:
        """Make a desk that knows no names."""
        runner = WithoutProposers(assembled.runner).as_one()
        return super().operators(journal, replace(assembled, runner=runner), *others)


class ARejectedProposalIsApproved(Parts):
    """A rejection is stored, and changes nothing."""

    def operators(self, journal: Journal, assembled: Assembled, *others: Any) -> OperatorService:
        """Make a desk that forgets rejections."""
        return super().operators(journal, replace(assembled, runner=WithRejected(assembled.runner).as_one()), *others)


class AnOutcomeIsReplacedByAnotherPerson(Parts):
    """Two people who end a proposal at once both succeed."""

    def operators(self, journal: Journal, assembled: Assembled, *others: Any) -> OperatorService:
        """Make a desk that appends at any version."""
        return super().operators(AnyVersion(journal).as_one(), assembled, *others)


# ---------------------------------------------------------------- the bank's word
class Agreeing(Around[Bank]):
    """A bank whose silence says that it knows of nothing."""

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        """Ask for people."""
        answer = await self.inner.look_up(operation, token)
        return CalledOff() if isinstance(answer, NoAnswer) else answer


class SilenceConfirmsAResolution(Parts):
    """A bank that does not answer a look-up confirms that nothing was executed."""

    def bank(self) -> Bank:
        """Make a bank that is misheard."""
        return Agreeing(super().bank()).as_one()


class Obliging(Around[OperatorService]):
    """A desk that takes the will to overrule one answer for that to overrule any."""

    async def ApproveResolution(self, request: ApproveResolutionRequest, context: Any) -> ApproveResolutionResponse:  # noqa: N802
        """Approve, and overrule what the bank says."""
        try:
            return await self.inner.ApproveResolution(request, context)
        except Refusal as told:
            if not request.overrules or "bank_said" not in told.metadata:
                raise
            said = AnswerKind.Value(f"ANSWER_KIND_{told.metadata['bank_said']}")
        meant = ApproveResolutionRequest()
        meant.CopyFrom(request)
        meant.overrules = said
        return await self.inner.ApproveResolution(meant, context)


class AnApprovalOverrulesWhateverTheBankSays(Parts):
    """Who approves without the word of a silent bank overrules what it says by then."""

    def operators(self, journal: Journal, assembled: Assembled, *others: Any) -> OperatorService:
        """Make a desk that obliges."""
        return Obliging(super().operators(journal, assembled, *others)).as_one()


class Hushing(Around[Journal]):
    """A journal that does not store what an approval says of the bank."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        """Append; an approval says that the bank agrees."""
        first = Event.FromString(events[0])
        if first.HasField("resolution_approved"):
            first.resolution_approved.contradicts_bank = False
            events = [first.SerializeToString(), *events[1:]]
        return await self.inner.append(charge_id, version, events, finished=finished)


class AnApprovalHidesThatTheBankContradicts(Parts):
    """Nobody can see from an event that its outcome is not the bank's."""

    def operators(self, journal: Journal, assembled: Assembled, *others: Any) -> OperatorService:
        """Make a desk that hides it."""
        return super().operators(Hushing(journal).as_one(), assembled, *others)


# ---------------------------------------------------------------- held back
class ElsewhereDriven(Around[Journal]):
    """A journal that says of each charge that another server drives it."""

    def drives(self, charge_id: str) -> bool:
        """Say no."""
        del charge_id
        return False


class Unreached(Around[Runner]):
    """A loop of which nobody knows what is on its way."""

    def find(self, charge_id: str) -> Run | None:
        """Find nothing."""
        del charge_id
        return None


class AHeldBackChargeGoesOn(Parts):
    """The loop is not told of a step of the desk, and learns it by its next append."""

    def operators(self, journal: Journal, assembled: Assembled, *others: Any) -> OperatorService:
        """Make a desk that tells nobody."""
        unreached = replace(assembled, runner=Unreached(assembled.runner).as_one())
        return super().operators(ElsewhereDriven(journal).as_one(), unreached, *others)


class Unhindered(Around[Journal]):
    """A journal whose holds are read as if somebody had only looked."""

    async def read(self, charge_id: str) -> Sequence[Record]:
        """Read a stream, and find a try for each hold."""
        return [_tried(record) for record in await self.inner.read(charge_id)]


def _tried(record: Record) -> Record:
    event = Event.FromString(record.event)
    kind = event.WhichOneof("kind")
    if kind not in ("held_back", "let_go"):
        return record
    step, tried = getattr(event, kind), Event()
    tried.try_requested.actor, tried.try_requested.reason = step.actor, step.reason
    return record._replace(event=tried.SerializeToString())


class AStartForgetsWhatIsHeldBack(Parts):
    """What is held back is so for this life of the server only."""

    async def journal(self) -> Any:
        """Open a journal without holds."""
        return Unhindered(await super().journal())


class Closed(Around[Journal]):
    """A journal that takes nothing but the desk's and clients' events for a charge that is held back."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        """Append, unless it is the bank's answer for such a charge."""
        kind = Event.FromString(events[0]).WhichOneof("kind") or ""
        is_banks = not kind.endswith("_requested") and kind not in ("held_back", "let_go")
        if is_banks and "resolution" not in kind and await self._is_held_back(charge_id):
            return VersionConflict()
        return await self.inner.append(charge_id, version, events, finished=finished)

    async def _is_held_back(self, charge_id: str) -> bool:
        kinds = [Event.FromString(record.event).WhichOneof("kind") for record in await self.inner.read(charge_id)]
        return next((kind == "held_back" for kind in reversed(kinds) if kind in ("held_back", "let_go")), False)


class AnAnswerIsDroppedWhileItsChargeIsHeldBack(Parts):
    """Held back means that nothing more happens, whatever the bank has done."""

    async def journal(self) -> Any:
        """Open a journal that takes no answer then."""
        return Closed(await super().journal())


BUGS: tuple[type[Parts], ...] = (
    TheProposerMayApprove,
    ARejectedProposalIsApproved,
    AnOutcomeIsReplacedByAnotherPerson,
    SilenceConfirmsAResolution,
    AnApprovalOverrulesWhateverTheBankSays,
    AnApprovalHidesThatTheBankContradicts,
    AHeldBackChargeGoesOn,
    AStartForgetsWhatIsHeldBack,
    AnAnswerIsDroppedWhileItsChargeIsHeldBack,
)
