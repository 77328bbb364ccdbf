"""Bugs of what follows in a charge, and of calling off: mix-ins for a server's parts, each around the right part.

The core is pure and has no place for a bug. So the effect of a wrong core is planted where it leaves the core: in what is
stored, in what the bank is asked, and in what a client is told.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from charging.v1.common_pb2 import DeclineReason
from charging.v1.journal_pb2 import Event
from command_service.bank import Bank
from command_service.bank.lines import Lines
from command_service.charge import Charge, Command, Follow
from command_service.codec import encode, operation_id_of
from command_service.events import OperationDeclined, OperationRequested
from command_service.failures import MoreThanIsLeft
from command_service.journal import Appended, Journal, Record
from command_service.operation import AtRest
from command_service.parts import Parts
from command_service.reception import Accepted, Entry, Reception
from command_service.runner import Runner
from command_service.streams import Streams
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Effect,
    Execute,
    Executed,
    Expired,
    Kind,
    Money,
    NoAnswer,
    RequestToken,
    Token,
    Wish,
)
from prove.loop_bugs import Mishearing
from rig.around import Around


# ---------------------------------------------------------------- the bank
class Renaming(Around[Bank]):
    """A bank that is asked for a refund under a new name, if the life before had begun it."""

    def __init__(self, bank: Bank, found: set[str]) -> None:
        super().__init__(bank)
        self._found = found

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step, under another reference if it is one of those."""
        operation = effect.operation
        charge_id = operation.request.charge_id
        if operation.kind is not Kind.REFUND or charge_id not in self._found:
            return await self.inner.perform(effect, look_up_first=look_up_first)
        again = replace(
            operation, reference=operation_id_of(charge_id, Kind.REFUND, f"{operation.idempotency_key} again")
        )
        answer = await self.inner.perform(RequestToken(again, 0), look_up_first=look_up_first)
        if isinstance(effect, Execute) and isinstance(answer, Token):
            return await self.inner.perform(Execute(again, answer.token), look_up_first=False)
        return answer


class Unfinished(Around[Journal]):
    """A journal that remembers which charges it found unfinished."""

    def __init__(self, journal: Journal, found: set[str]) -> None:
        super().__init__(journal)
        self._found = found

    async def news(self) -> Sequence[str]:
        """Tell them, and remember."""
        told = await self.inner.news()
        self._found.update(told)
        return told


class ARefundIsSentAgainUnderANewReferenceAfterACrash(Parts):
    """The reference of a refund is made anew by each life of the server."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._found: set[str] = set()

    async def journal(self) -> Any:
        """Open a journal that remembers what was unfinished."""
        return Unfinished(await super().journal(), self._found)

    def bank(self) -> Bank:
        """Make a bank that is asked under new names."""
        return Renaming(super().bank(), self._found)


def _second_token(effect: Effect, answer: Answer) -> Answer:
    is_refund = isinstance(effect, Execute) and effect.operation.kind is Kind.REFUND
    return Expired() if is_refund and isinstance(answer, NoAnswer) else answer


class ASecondTokenForARefund(Parts):
    """A refund without an answer is taken for one that was not done."""

    def bank(self) -> Bank:
        """Make a bank that is misheard."""
        return Mishearing(super().bank(), _second_token)


def _executed_is_called_off(effect: Effect, answer: Answer) -> Answer:
    return CalledOff() if isinstance(effect, CallOff) and isinstance(answer, Executed) else answer


class AnExecutedChargeIsToldAsCalledOff(Parts):
    """Whatever the bank answers, a charge that was called off is called off."""

    def bank(self) -> Bank:
        """Make a bank that is misheard."""
        return Mishearing(super().bank(), _executed_is_called_off)


class Silencing(Around[Bank]):
    """A bank that is never asked to call anything off."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step; to call off is no step."""
        if isinstance(effect, CallOff):
            return CalledOff()
        return await self.inner.perform(effect, look_up_first=look_up_first)


class CalledOffWithoutTheBank(Parts):
    """What is not executed any more counts as called off, though the bank's token stays open."""

    def bank(self) -> Bank:
        """Make a bank that does not hear of it."""
        return Silencing(super().bank())


# ---------------------------------------------------------------- the journal
class ForgetsCaptures(Around[Journal]):
    """A journal that is told: all that is left to capture is all that was authorised."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        """Append; a further capture of all that is left is one of all that was ever held."""
        event = Event.FromString(events[0])
        if event.HasField("capture_requested"):
            before = [Event.FromString(record.event) for record in await self.inner.read(charge_id)]
            captured = sum(event.captured.amount.minor_units for event in before)
            amount, held = event.capture_requested.amount, before[0].charge_requested.amount.minor_units
            if captured and amount.minor_units == held - captured:
                amount.minor_units = held
                events = [event.SerializeToString(), *events[1:]]
        return await self.inner.append(charge_id, version, events, finished=finished)


class ACaptureForgetsWhatWasCaptured(Parts):
    """The book of a charge has no line for what was captured."""

    async def journal(self) -> Any:
        """Open a journal that is told wrong amounts."""
        return ForgetsCaptures(await super().journal())


class Misread(Around[Journal]):
    """A journal whose oldest kind of no is read by another numbering of its reasons."""

    async def read(self, charge_id: str) -> list[Record]:
        """Read a stream, and get the reasons of its charge's decline wrong."""
        return [_misread(record) for record in await self.inner.read(charge_id)]


def _misread(record: Record) -> Record:
    event = Event.FromString(record.event)
    if not event.HasField("charge_declined"):
        return record
    event.charge_declined.reason = DeclineReason.DECLINE_REASON_OTHER
    return record._replace(event=event.SerializeToString())


class AnOldEventIsReadWrongly(Parts):
    """An event of the first version is read as if this version had written it."""

    async def journal(self) -> Any:
        """Open a journal that is misread."""
        return Misread(await super().journal())


# ---------------------------------------------------------------- the door
class AnyCharge(Around[Reception]):
    """A door that looks an operation up by its key, in whatever charge."""

    def __init__(self, reception: Reception) -> None:
        super().__init__(reception)
        self._first: dict[str, Wish] = {}

    def accept(self, command: Command | Follow) -> Entry:
        """Take the command for one about the charge in which its key came first."""
        if isinstance(command, Follow):
            first = self._first.setdefault(command.wish.idempotency_key, command.wish)
            operation_id = operation_id_of(first.charge_id, command.wish.kind, first.idempotency_key)
            command = replace(command, wish=replace(command.wish, charge_id=first.charge_id, operation_id=operation_id))
        return self.inner.accept(command)


class AKeyOfOneChargeIsFoundInAnother(Parts):
    """The key of an operation is not scoped to its charge."""

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make a door that mixes charges up."""
        return AnyCharge(super().reception(journal, runner, lines)).as_one()


class Deciding(Around[Reception]):
    """A door that first does something about what a client wants to follow, and may refuse it."""

    def __init__(self, reception: Reception, journal: Journal, runner: Runner) -> None:
        super().__init__(reception)
        self.journal = journal
        self.runner = runner

    def accept(self, command: Command | Follow) -> Entry:
        """Take the command."""
        if isinstance(command, Command):
            return self.inner.accept(command)
        accepting = asyncio.ensure_future(self._accept(command))
        accepting.add_done_callback(_seen)
        return Entry(command, accepting)

    async def _accept(self, command: Follow) -> Accepted:
        await self.before(command.wish)
        return await self.inner.accept(command)

    async def before(self, wish: Wish) -> None:
        """Do it."""


class VoidsBeside(Deciding):
    """A door at which a void need not wait for the capture that is under way."""

    async def before(self, wish: Wish) -> None:
        """Store the void at once."""
        run = self.runner.find(wish.charge_id)
        state = run.snapshot.state if run is not None else None
        if run is None or not isinstance(state, Charge) or wish.kind is not Kind.VOID:
            return
        if not isinstance(state.newest, AtRest) and state.newest.operation.kind is Kind.CAPTURE:
            held = Money(state.book.left(Kind.VOID), state.request.amount.currency_code)
            event = OperationRequested(Kind.VOID, wish.operation_id, wish.idempotency_key, wish.actor, held)
            await self.journal.append(wish.charge_id, run.snapshot.version, [encode(event)], finished=False)


class CountsDeclined(Deciding):
    """A door with a book in which a declined refund stands as well."""

    async def before(self, wish: Wish) -> None:
        """Refuse a refund of more than that book leaves."""
        state = (await Streams(self.journal).load(wish.charge_id)).state
        if wish.kind is not Kind.REFUND or not isinstance(state, Charge):
            return
        known = [done for done in (*state.done, state.newest) if isinstance(done, AtRest)]
        if any(done.operation.idempotency_key == wish.idempotency_key for done in known):
            return
        declined = sum(
            done.operation.amount.minor_units
            for done in known
            if done.operation.kind is Kind.REFUND and isinstance(done.outcome, OperationDeclined)
        )
        left = max(0, state.book.left(Kind.REFUND) - declined)
        if declined and (left == 0 if wish.amount is None else wish.amount.minor_units > left):
            raise MoreThanIsLeft(left)


class AVoidIsAcceptedBesideACapture(Parts):
    """Nobody looks whether another operation is under way."""

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make a door that accepts both."""
        return VoidsBeside(super().reception(journal, runner, lines), journal, runner).as_one()


class ABookCountsADeclinedRefund(Parts):
    """A refund is written into the book when it is asked for."""

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make a door with a wrong book."""
        return CountsDeclined(super().reception(journal, runner, lines), journal, runner).as_one()


def _seen(task: "asyncio.Task[Any]") -> None:
    """Count an error as seen: the caller that waits is told of it."""
    if not task.cancelled():
        task.exception()


BUGS: tuple[type[Parts], ...] = (
    ARefundIsSentAgainUnderANewReferenceAfterACrash,
    ACaptureForgetsWhatWasCaptured,
    AKeyOfOneChargeIsFoundInAnother,
    AVoidIsAcceptedBesideACapture,
    ASecondTokenForARefund,
    ABookCountsADeclinedRefund,
    AnExecutedChargeIsToldAsCalledOff,
    CalledOffWithoutTheBank,
    AnOldEventIsReadWrongly,
)
