"""Charges that are stuck, each by a real fault: one world of server processes for tests, screenshots and people.

    async with stuck.world() as world:
        key = await world.provoke(Situation.SITUATION_IN_REVIEW)
        ...                      # look at it: world.environment("ann") has what `chargeonce` needs, world.addresses the rest
        await world.mend(key)    # ends the cause, as the bank's own people would
        ...                      # do what is advised; or let the rig do it:
        await world.clear(key)   # mends, does what the situation's `advice` says, and returns when the charge is at its end

`provoke` returns when bank and journal show that the charge is in the situation; the view and the gauges learn of it a moment
later: `seen` waits until ExplainCharge says so too, and `ended` until the view shows the safe end, whose status `ENDS` has.
`moved` and `violations` judge by the banks' statements. Any number of charges can be in any situations at once, but for this:

* What starts the command server anew (ABANDONED, BANK_MISSING, SERVER_AWAY) makes it forget its attempts, of all charges.
* STOPPED and SERVER_AWAY come last, as they do in `ORDER`. After them charges can only be mended or cleared: nobody is there
  to charge, or the server would not start with the damaged record: STOPPED is mended before what starts the server anew.

The identities of `rig.staffed.PEOPLE` are known by tokens: `shop` is a client; `ann` and `ben` are operators of its tenant;
`night` is an operator of all tenants. There are three banks, so that trouble with one does not spare another.
"""

import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from charging.v1.command_pb2 import CaptureMode, CaptureRequest, ChargeRequest, VoidRequest
from charging.v1.common_pb2 import Card, ChargeStatus, Money, Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    HoldBackRequest,
    LetGoRequest,
    ProposeResolutionRequest,
    TryNowRequest,
)
from charging.v1.query_pb2 import Charge, ExplainChargeRequest, ExplainChargeResponse, GetChargeRequest, Situation
from judge.history import charge_id_of
from rig.ports import kept
from rig.referee import PATIENT_SECONDS, Referee
from rig.staffed import BANKS, PORTS, TENANT, Staffed
from rig.world import BRIEF_SECONDS, heard, is_behind, story, until

__all__ = ["ENDS", "ORDER", "TENANT", "Stuck", "StuckWorld", "world"]

CHARGED, ABANDONED, VOIDED = (
    ChargeStatus.CHARGE_STATUS_CHARGED,
    ChargeStatus.CHARGE_STATUS_ABANDONED,
    ChargeStatus.CHARGE_STATUS_VOIDED,
)
ENDS: Mapping[Situation.ValueType, ChargeStatus.ValueType] = {
    Situation.SITUATION_ABANDONED: ABANDONED,
    Situation.SITUATION_BANK_MISSING: CHARGED,
    Situation.SITUATION_BANK_SILENT: CHARGED,
    Situation.SITUATION_EXECUTION_UNKNOWN: CHARGED,
    Situation.SITUATION_BANK_REFUSES_US: CHARGED,
    Situation.SITUATION_BANK_SLOW: CHARGED,
    Situation.SITUATION_CALLING_OFF: VOIDED,
    Situation.SITUATION_AWAITING_CUSTOMER: CHARGED,
    Situation.SITUATION_HELD_BACK: CHARGED,
    Situation.SITUATION_IN_REVIEW: CHARGED,
    Situation.SITUATION_AWAITING_APPROVAL: CHARGED,
    Situation.SITUATION_HOLD_ENDING: CHARGED,
    Situation.SITUATION_STOPPED: CHARGED,
    Situation.SITUATION_SERVER_AWAY: CHARGED,
}
"""Each situation of a charge that is stuck, and the status of the charge once it is cleared."""
ORDER = tuple(ENDS)
"""An order in which all can be provoked: those first that start the server anew, and those last that stop it."""

ALWAYS = {"times": 1_000_000}
_AT: Mapping[Situation.ValueType, str] = {
    Situation.SITUATION_BANK_MISSING: "south",
    Situation.SITUATION_BANK_REFUSES_US: "west",
}
ABANDONING = {"COMMAND_ABANDON_AFTER_SECONDS": "1"}
REASON = "as the runbook says"
_BITS = 64
"""The damage of a record: one bit of its version, in the journal's file."""


@dataclass
class Stuck:
    """A charge that was provoked, its bank, and the faults that keep it where it is."""

    key: str
    situation: Situation.ValueType
    bank: Referee
    brand: str
    faults: list[int] = field(default_factory=list)
    """Their numbers at the bank."""
    is_mended: bool = False

    @property
    def charge_id(self) -> str:
        """Its id, by which the bank knows it too."""
        return charge_id_of(TENANT, self.key)


class StuckWorld(Staffed):
    """The banks and the servers, and the charges that are stuck there. See `world`."""

    def __init__(self, folder: Path, addresses: Mapping[str, str], banks: Mapping[str, Referee]) -> None:
        super().__init__(folder, addresses, banks)
        self.stuck: dict[str, Stuck] = {}
        """The charges by their keys, in the order in which they were provoked."""

    # ------------------------------------------------------------ what shows of a charge
    async def charge(self, key: str) -> Charge:
        """The charge as the view has it."""
        return (await self.queries().GetCharge(GetChargeRequest(idempotency_key=key), timeout=PATIENT_SECONDS)).charge

    async def explained(self, key: str, person: str = "ann") -> ExplainChargeResponse:
        """The charge, explained to somebody."""
        request = ExplainChargeRequest(idempotency_key=key)
        return await self.queries(person).ExplainCharge(request, timeout=PATIENT_SECONDS)

    async def seen(self, key: str) -> ExplainChargeResponse:
        """Wait until the charge is explained as one in its situation; return that."""
        told = ExplainChargeResponse()

        async def is_seen() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):  # the view does not show it yet
                told.CopyFrom(await self.explained(key))
            return told.situation == self.stuck[key].situation

        await until(is_seen, 2 * PATIENT_SECONDS)
        return told

    def story(self, key: str) -> list[str]:
        """A charge's events by name."""
        return story(self.town.journal, charge_id_of(TENANT, key))

    async def moved(self, key: str) -> list[str]:
        """The kinds of all movements of one charge, in their order at its bank."""
        movements = await self.stuck[key].bank.movements()
        ours = {it.transaction_id for it in movements if it.reference == self.stuck[key].charge_id}
        return [it.kind for it in movements if it.transaction_id in ours or it.on in ours]

    # ------------------------------------------------------------ into a situation
    async def provoke(self, situation: Situation.ValueType, key: str = "") -> str:
        """Bring a new charge into a situation; return its key, which is made from the situation unless it is given."""
        word = Situation.Name(situation).removeprefix("SITUATION_").lower().replace("_", "-")
        number = 1 + sum(it.situation == situation for it in self.stuck.values())
        last = Situation.SITUATION_STOPPED, Situation.SITUATION_SERVER_AWAY
        is_late = any(it.situation in last and not it.is_mended for it in self.stuck.values())
        assert situation in last or not is_late, "STOPPED and SERVER_AWAY come last"
        bank = _AT.get(situation, "north")
        stuck = Stuck(key or f"{word}-{number}", situation, self.banks[bank], BANKS[bank])
        self.stuck[stuck.key] = stuck
        await self._provoking[situation](self, stuck)
        return stuck.key

    async def _bank_silent(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "token", "lose_request")

    async def _execution_unknown(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "execute", "lose_answer")

    async def _bank_refuses_us(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "token", "refuse", status=401)

    async def _bank_slow(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "execute", "in_progress", retry_after="1")

    async def _calling_off(self, stuck: Stuck) -> None:
        await self._trouble(stuck, "cancel", "lose_request")
        await self._troubled(stuck, "execute", "lose_request")
        void = VoidRequest(idempotency_key=f"void-{stuck.key}", charge_id=stuck.charge_id)
        await _brief(self.commands().Void, void)
        await until(lambda: self._has_fired(stuck, "cancel", 2))

    async def _awaiting_customer(self, stuck: Stuck) -> None:
        await self._charge(stuck, card=Card(token="tok_3ds"))
        await self._stored(stuck, "action_required")

    async def _held_back(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "token", "lose_request")
        await self.desk().HoldBack(
            HoldBackRequest(charge_id=stuck.charge_id, reason="the bank asks for a pause"), timeout=PATIENT_SECONDS
        )
        await self._stored(stuck, "held_back")
        await self._end_trouble(stuck)

    async def _in_review(self, stuck: Stuck) -> None:
        """The bank executes it, and names another amount whenever it is asked."""
        await self._trouble(stuck, "look_up", "wrong_amount")
        await self._trouble(stuck, "execute", "wrong_amount")
        await self._charge(stuck)
        await self._stored(stuck, "review_required")

    async def _awaiting_approval(self, stuck: Stuck) -> None:
        await self._in_review(stuck)
        await self._propose(stuck)

    async def _abandoned(self, stuck: Stuck) -> None:
        """A server that gives up soon tries it. To other charges without a token the bank says meanwhile that it is at work."""
        silent = [it for it in self.stuck.values() if it.situation == Situation.SITUATION_BANK_SILENT and it.faults]
        for other in silent:
            former = list(other.faults)
            await self._trouble(other, "token", "in_progress", retry_after="1")
            await self._end_trouble(other, former)
        await self._trouble(stuck, "token", "lose_request")
        await self.restart_command(**ABANDONING)
        await self._charge(stuck)
        await self._stored(stuck, "charge_abandoned")
        await self.restart_command()
        await self._end_trouble(stuck)
        for other in silent:
            former = list(other.faults)
            await self._trouble(other, "token", "lose_request")
            await self._end_trouble(other, former)
            await until(partial(self._has_fired, other, "token", 2))

    async def _bank_missing(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "token", "lose_request")
        await self._end_trouble(stuck)
        self.write_banks([name for name in BANKS if name != "south"])
        await self.restart_command()

    async def _hold_ending(self, stuck: Stuck) -> None:
        await self._charge(stuck, capture=CaptureMode.CAPTURE_MODE_MANUAL)
        await self._stored(stuck, "authorized")

    async def _server_away(self, stuck: Stuck) -> None:
        await self._troubled(stuck, "execute", "lose_answer")
        await self.town.command.kill()
        await self._end_trouble(stuck)

    async def _stopped(self, stuck: Stuck) -> None:
        """A bit of its record flips in the journal's file. The server finds that out at the next append to the charge."""
        await self._troubled(stuck, "token", "in_progress", retry_after="1")
        self._flip_bit(stuck)
        await self._end_trouble(stuck)
        await until(
            lambda: any(
                entry.get("event") == "a charge stopped on its way" and entry.get("charge_id") == stuck.charge_id
                for entry in self.town.command.entries(self.town.command.began_at)
            )
        )

    _provoking: Mapping[Situation.ValueType, Callable[["StuckWorld", Stuck], Awaitable[None]]] = {
        Situation.SITUATION_BANK_SILENT: _bank_silent,
        Situation.SITUATION_EXECUTION_UNKNOWN: _execution_unknown,
        Situation.SITUATION_BANK_REFUSES_US: _bank_refuses_us,
        Situation.SITUATION_BANK_SLOW: _bank_slow,
        Situation.SITUATION_CALLING_OFF: _calling_off,
        Situation.SITUATION_AWAITING_CUSTOMER: _awaiting_customer,
        Situation.SITUATION_HELD_BACK: _held_back,
        Situation.SITUATION_IN_REVIEW: _in_review,
        Situation.SITUATION_AWAITING_APPROVAL: _awaiting_approval,
        Situation.SITUATION_ABANDONED: _abandoned,
        Situation.SITUATION_BANK_MISSING: _bank_missing,
        Situation.SITUATION_HOLD_ENDING: _hold_ending,
        Situation.SITUATION_SERVER_AWAY: _server_away,
        Situation.SITUATION_STOPPED: _stopped,
    }

    # ------------------------------------------------------------ out of it
    async def mend(self, key: str) -> None:
        """End the cause, if it is outside of the service. The charge goes on at its next attempt, or by the advised action."""
        stuck = self.stuck[key]
        if stuck.is_mended:
            return
        stuck.is_mended = True
        await self._end_trouble(stuck)
        match stuck.situation:
            case Situation.SITUATION_BANK_MISSING:
                self.write_banks(tuple(BANKS))
                await self.restart_command()
            case Situation.SITUATION_SERVER_AWAY if not self.town.command.is_running:
                await self.start_command()
            case Situation.SITUATION_STOPPED:
                self._flip_bit(stuck)
                await self.restart_command()

    async def clear(self, key: str) -> None:
        """Bring the charge to its safe end, as the situation's advice says, and return when the view shows that."""
        stuck = self.stuck[key]
        await self.mend(key)
        match stuck.situation:
            case Situation.SITUATION_AWAITING_CUSTOMER:
                await self.press(key, "Confirm")
            case Situation.SITUATION_HELD_BACK:
                await self.desk().LetGo(LetGoRequest(charge_id=stuck.charge_id, reason=REASON), timeout=PATIENT_SECONDS)
            case Situation.SITUATION_IN_REVIEW | Situation.SITUATION_AWAITING_APPROVAL:
                proposal = (await self.charge(key)).proposal.proposal or await self._propose(stuck)
                await self.desk("ben").ApproveResolution(
                    ApproveResolutionRequest(charge_id=stuck.charge_id, reason=REASON, proposal=proposal),
                    timeout=PATIENT_SECONDS,
                )
            case Situation.SITUATION_HOLD_ENDING:
                capture = CaptureRequest(idempotency_key=f"capture-{key}", charge_id=stuck.charge_id, final=True)
                await self.commands().Capture(capture, timeout=PATIENT_SECONDS)
            case Situation.SITUATION_ABANDONED:
                pass
            case _:
                with contextlib.suppress(grpc.aio.AioRpcError):  # it may have come to rest meanwhile
                    await self.desk().TryNow(
                        TryNowRequest(charge_id=stuck.charge_id, reason=REASON), timeout=PATIENT_SECONDS
                    )
        await self.ended(key)

    async def ended(self, key: str) -> None:
        """Wait until the view shows the charge at its safe end."""

        async def is_over() -> bool:
            return (await heard(lambda: self.charge(key), is_behind)).status == ENDS[self.stuck[key].situation]

        await until(is_over, 2 * PATIENT_SECONDS)

    async def press(self, key: str, button: str) -> None:
        """Take the customer's step in place of the customer."""
        await self.stuck[key].bank.press((await self.charge(key)).action.url, button)

    async def transaction_id(self, key: str) -> str:
        """The id under which the bank has executed a charge, by its statement. Raises ValueError if it has not, or twice."""
        (moved,) = [it for it in await self.movements() if it.reference == self.stuck[key].charge_id]
        return moved.transaction_id

    async def _propose(self, stuck: Stuck) -> int:
        request = ProposeResolutionRequest(
            charge_id=stuck.charge_id,
            reason=REASON,
            resolution=Resolution.RESOLUTION_EXECUTED,
            transaction_id=await self.transaction_id(stuck.key),
            evidence="the bank's statement of today, line 1",
        )
        return (await self.desk("ann").ProposeResolution(request, timeout=PATIENT_SECONDS)).proposal

    # ------------------------------------------------------------ means
    async def _charge(self, stuck: Stuck, **changed: Any) -> None:
        request = ChargeRequest(
            idempotency_key=stuck.key,
            user_id="alice",
            card=Card(token="tok_visa", brand=stuck.brand, last4="4242"),
            amount=Money(minor_units=1250, currency_code="EUR"),
            description=f"an umbrella: {stuck.key}",
        )
        request.MergeFrom(ChargeRequest(**changed))
        await _brief(self.commands().Charge, request)

    async def _troubled(self, stuck: Stuck, on: str, fault: str, **details: Any) -> None:
        """Charge, with a fault that stays, and wait until the charge has met it twice."""
        await self._trouble(stuck, on, fault, **details)
        await self._charge(stuck)
        await until(lambda: self._has_fired(stuck, on, 2))

    async def _trouble(self, stuck: Stuck, on: str, fault: str, **details: Any) -> None:
        stuck.faults.append(await stuck.bank.trouble(on, fault, reference=stuck.charge_id, **ALWAYS, **details))

    async def _end_trouble(self, stuck: Stuck, faults: Sequence[int] = ()) -> None:
        """End some of the faults, or all."""
        for number in list(faults or stuck.faults):
            await stuck.bank.no_more_of(number)
            stuck.faults.remove(number)

    async def _has_fired(self, stuck: Stuck, on: str, times: int) -> bool:
        return any(
            fault["id"] in stuck.faults and fault["on"] == on and fault["fired"] >= times
            for fault in await stuck.bank.faults()
        )

    async def _stored(self, stuck: Stuck, event: str) -> None:
        await until(lambda: event in self.story(stuck.key))

    def _flip_bit(self, stuck: Stuck) -> None:
        key = bytes.fromhex(stuck.charge_id.replace("-", ""))
        with contextlib.closing(sqlite3.connect(self.town.journal, timeout=PATIENT_SECONDS)) as file, file:
            file.execute(
                "UPDATE record SET version = (version | ?) - (version & ?) WHERE charge_id = ?", (_BITS, _BITS, key)
            )


async def _brief(ask: Callable[..., Awaitable[Any]], request: Any) -> None:
    """Send a request until it is accepted, and do not wait for its outcome."""
    await heard(lambda: ask(request, timeout=BRIEF_SECONDS))


@contextlib.asynccontextmanager
async def world(folder: Path | None = None) -> AsyncIterator[StuckWorld]:
    """Start a world with its files in an empty folder, by default a temporary one; end it all at the end."""
    async with contextlib.AsyncExitStack() as stack:
        at = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chargeonce-stuck-")))
        addresses = dict(zip(PORTS, stack.enter_context(kept(len(PORTS))), strict=True))
        banks = {it: await stack.enter_async_context(Referee(f"http://{addresses[it]}")) for it in BANKS}
        made = StuckWorld(at, addresses, banks)
        try:
            await made.up()
            yield made
        finally:
            await made.down()
