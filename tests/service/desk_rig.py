"""Operators at a real command server: a client of these tests names its identity and tenant in the call's metadata.

The real gate with a policy, and its identities, is in tests/security/test_desk.py.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from charging.v1 import operator_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import AnswerKind, Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    ApproveResolutionResponse,
    AskBankRequest,
    AskBankResponse,
    DeskOutcome,
    HoldBackRequest,
    LetGoRequest,
    ProposeResolutionRequest,
    RejectResolutionRequest,
    TryNowRequest,
)
from chassis.caller import Caller, GuardedCall
from command_service.desk import OperatorService
from command_service.parts import Parts
from command_service.settings import Settings
from rig.around import Around
from rig.referee import PATIENT_SECONDS
from rig.world import World, a_world, id_of

EXECUTED = Resolution.RESOLUTION_EXECUTED
NOT_EXECUTED = Resolution.RESOLUTION_NOT_EXECUTED
REFUNDED = Resolution.RESOLUTION_REFUNDED


class Believing(Around[OperatorService]):
    """A desk that believes its caller's metadata."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return (lambda request, context: method(request, _named(context))) if name[0].isupper() else method


def _named(context: GuardedCall) -> GuardedCall:
    said = dict(context.invocation_metadata())
    return GuardedCall(context.method, Caller(str(said.get("tenant", "")), str(said.get("actor", "ann"))), context)


class DeskParts(Parts):
    """The product's own parts, whose desk believes."""

    def operators(self, *given: Any, **more: Any) -> OperatorService:
        return Believing(super().operators(*given, **more)).as_one()


class Operator:
    """An operator of a tenant, or of all, and the steps that this one takes. Each has a reason."""

    def __init__(
        self, channel: grpc.aio.Channel, actor: str, tenant: str = "", seconds: float = PATIENT_SECONDS
    ) -> None:
        self._desk = operator_pb2_grpc.OperatorServiceStub(channel)
        self._options: dict[str, Any] = {"metadata": (("actor", actor), ("tenant", tenant)), "timeout": seconds}
        self.reason = f"{actor} saw ticket 77"

    async def try_now(self, charge_id: str) -> DeskOutcome:
        request = TryNowRequest(charge_id=charge_id, reason=self.reason)
        return (await self._desk.TryNow(request, **self._options)).outcome

    async def hold_back(self, charge_id: str) -> DeskOutcome:
        request = HoldBackRequest(charge_id=charge_id, reason=self.reason)
        return (await self._desk.HoldBack(request, **self._options)).outcome

    async def let_go(self, charge_id: str) -> DeskOutcome:
        request = LetGoRequest(charge_id=charge_id, reason=self.reason)
        return (await self._desk.LetGo(request, **self._options)).outcome

    async def ask_bank(self, charge_id: str) -> AskBankResponse:
        return await self._desk.AskBank(AskBankRequest(charge_id=charge_id), **self._options)

    async def propose(
        self,
        charge_id: str,
        resolution: Resolution.ValueType,
        transaction_id: str = "",
        refund_transaction_id: str = "",
        evidence: str = "line 12 of the bank's statement",
    ) -> int:
        request = ProposeResolutionRequest(
            charge_id=charge_id,
            reason=self.reason,
            resolution=resolution,
            transaction_id=transaction_id,
            refund_transaction_id=refund_transaction_id,
            evidence=evidence,
        )
        return (await self._desk.ProposeResolution(request, **self._options)).proposal

    async def reject(self, charge_id: str, proposal: int) -> DeskOutcome:
        request = RejectResolutionRequest(charge_id=charge_id, reason=self.reason, proposal=proposal)
        return (await self._desk.RejectResolution(request, **self._options)).outcome

    async def approve(
        self, charge_id: str, proposal: int, *, overrules: AnswerKind.ValueType = AnswerKind.ANSWER_KIND_UNSPECIFIED
    ) -> ApproveResolutionResponse:
        request = ApproveResolutionRequest(
            charge_id=charge_id, reason=self.reason, proposal=proposal, overrules=overrules
        )
        return await self._desk.ApproveResolution(request, **self._options)


class DeskWorld:
    """A world with operators of all tenants: ann and ben."""

    def __init__(self, world: World) -> None:
        self.world = world

    def operator(self, actor: str, tenant: str = "", seconds: float = PATIENT_SECONDS) -> Operator:
        """An operator at the server as it runs now."""
        return Operator(self.world.channel, actor, tenant, seconds)

    @property
    def ann(self) -> Operator:
        return self.operator("ann")

    @property
    def ben(self) -> Operator:
        return self.operator("ben")

    async def in_review(self, request: ChargeRequest, *, is_executed: bool) -> str:
        """Charge, so that it goes into review: by wrong answers to an execution, or by refusals of it. Returns its id."""
        if is_executed:
            await self.world.trouble("execute", "wrong_amount")
            await self.world.trouble("look_up", "wrong_amount", times=2)
        else:
            await self.world.trouble("execute", "forget_token", times=2)
        await self.world.charge(request)
        assert self.world.story(request)[-1] == "review_required"
        assert len(await self.world.movements(request)) == is_executed
        return id_of(request)

    async def close_at_the_bank(self, request: ChargeRequest) -> None:
        """Close the charge's transaction unexecuted, behind the server's back: nobody has called it off."""
        self.world.broken = ("I5",)
        (token,) = [event.token_issued.token for event in self.world.events(request) if event.HasField("token_issued")]
        (await self.world.referee.http.post(f"/transactions/{token}/cancel")).raise_for_status()


@asynccontextmanager
async def a_desk(
    folder: Path, make_parts: Callable[[Settings], Parts] = DeskParts, **settings: str
) -> AsyncIterator[DeskWorld]:
    """A world whose desk believes its callers. At its end bank and journal must agree."""
    async with a_world(folder, make_parts, **settings) as world:
        yield DeskWorld(world)
