"""Planted bugs at banks of other shapes than two plain steps, and at several: mix-ins for a server's parts."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx

from command_service.bank import Bank
from command_service.bank.kinds import BankSettings
from command_service.bank.line import Line
from command_service.bank.lines import Lines
from command_service.bank.transport import target_of
from command_service.parts import Parts
from command_service.values import Answer, Declined, DeclineReason, Effect, Kind, NeedsAction
from prove.loop_bugs import Mishearing
from rig.around import Around


class Believing(Around[Bank]):
    """A bank of which one believes that it never forgets a key."""

    remembers_seconds = math.inf


class AKeyIsBelievedForEver(Parts):
    """Nobody looks up first, however old an operation is."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks that are believed."""
        return {name: Believing(bank) for name, bank in super().banks().items()}


class AnAwaitedCustomerIsTakenForDeclined(Parts):
    """A step that the bank wants of the customer counts as a no."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks that are misheard."""
        return {name: Mishearing(bank, _declined) for name, bank in super().banks().items()}


def _declined(_: Effect, answer: Answer) -> Answer:
    return Declined(DeclineReason.AUTHENTICATION_REQUIRED) if isinstance(answer, NeedsAction) else answer


class ACustomerIsSentToAnothersAddress(Parts):
    """All customers are sent to the address of the first one."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks whose addresses are mixed up."""
        mixed_up = _addresses()
        return {name: Mishearing(bank, mixed_up) for name, bank in super().banks().items()}


def _addresses() -> Callable[[Effect, Answer], Answer]:
    first: list[str] = []

    def mixed_up(_: Effect, answer: Answer) -> Answer:
        if not isinstance(answer, NeedsAction):
            return answer
        first.append(answer.url)
        return replace(answer, url=first[0])

    return mixed_up


# ---------------------------------------------------------------- Stripe
class Misread(httpx.AsyncBaseTransport):
    """The way to a bank whose good answers are read by a function first."""

    def __init__(self, inner: httpx.AsyncBaseTransport, read: Callable[[httpx.Request, Any], Any]) -> None:
        self._inner = inner
        self._read = read

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it, and read the answer wrongly."""
        response = await self._inner.handle_async_request(request)
        if response.status_code != 200:
            return response
        body = await response.aread()
        try:
            said = json.loads(body)
        except ValueError:
            return httpx.Response(200, headers=response.headers, content=body)
        return httpx.Response(200, json=self._read(request, said) if isinstance(said, dict) else said)


class ADeclinedIntentIsTakenForClosed(Parts):
    """An intent whose confirmation was declined is not cancelled, though it can be confirmed again."""

    def wire(self, bank: BankSettings) -> httpx.AsyncBaseTransport:
        """Make a way on which it looks cancelled."""
        return Misread(super().wire(bank), _closed)


def _closed(_: httpx.Request, said: Any) -> Any:
    if said.get("status") == "requires_payment_method" and said.get("last_payment_error"):
        return {**said, "status": "canceled", "cancellation_reason": "abandoned"}
    return said


class TheAnswerToAConfirmationIsBelieved(Parts):
    """An answer that Stripe has saved counts, whatever has become of the intent since."""

    def wire(self, bank: BankSettings) -> httpx.AsyncBaseTransport:
        """Make a way on which the intent stays as it was then."""
        return Misread(super().wire(bank), _saved())


def _saved() -> Callable[[httpx.Request, Any], Any]:
    saved: dict[str, Any] = {}

    def believed(request: httpx.Request, said: Any) -> Any:
        if target_of(request).endswith("/confirm"):
            saved[str(said.get("id"))] = said
        is_look_up = request.method == "GET" and said.get("object") == "payment_intent"
        return saved.get(str(said["id"]), said) if is_look_up else said

    return believed


class Blind(Around[Bank]):
    """A bank that is asked for a refund without a look, however old that is."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step."""
        is_refund = effect.operation.kind is Kind.REFUND
        return await self.inner.perform(effect, look_up_first=look_up_first and not is_refund)


class ARefundIsSentBlindlyPastTheKeysTime(Parts):
    """Nobody lists the refunds first when the bank has forgotten the key."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks that are asked blindly."""
        return {name: Blind(bank) for name, bank in super().banks().items()}


# ---------------------------------------------------------------- restored journals
class Unnoticed(Around[Bank]):
    """A bank that is never looked at first."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:  # noqa: ARG002  # the bug
        """Do a step at once."""
        return await self.inner.perform(effect, look_up_first=False)


class ARestoredJournalIsNotNoticed(Parts):
    """A charge that the journal has lost is taken for new at its bank, too."""

    def banks(self) -> Mapping[str, Bank]:
        """Make banks that are not looked at."""
        return {name: Unnoticed(bank) for name, bank in super().banks().items()}


# ---------------------------------------------------------------- several banks
class FailingOver(Around[Lines]):
    """The lines of charges whose bank changes while it is spared."""

    def at(self, bank: str) -> Line:
        """Return the line to another bank, if the charge's own is spared."""
        line = self.inner.at(bank)
        return next((other for _, other in self.inner if line.is_spared and not other.is_spared), line)

    def __iter__(self) -> Iterator[tuple[str, Line]]:
        return iter(self.inner)


class AChargeUnderWayGoesToAnotherBank(Parts):
    """A charge whose bank does not answer is taken to a bank that does."""

    def lines(self, banks: Mapping[str, Bank]) -> Lines:
        """Make lines that fail over."""
        return FailingOver(super().lines(banks)).as_one()


BUGS: Mapping[type[Parts], str] = {
    AKeyIsBelievedForEver: "one_step leaves",
    AnAwaitedCustomerIsTakenForDeclined: "two_step",
    ACustomerIsSentToAnothersAddress: "two_step",
    ADeclinedIntentIsTakenForClosed: "stripe",
    TheAnswerToAConfirmationIsBelieved: "stripe",
    ARefundIsSentBlindlyPastTheKeysTime: "stripe leaves late",
    ARestoredJournalIsNotNoticed: "restored",
    AChargeUnderWayGoesToAnotherBank: "several",
}
"""Each with the trait of stories in which it does harm, in the words of `prove.simulation.plan.traits_of`."""
