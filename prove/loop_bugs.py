"""Bugs of the core, the loop and the door: parts that stand around the right ones.

A bank that gives another answer plays a wrong decision about an answer; a reception that is asked for another charge plays a
wrong look-up. So no bug depends on the inside of the loop.
"""

import asyncio
import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from chassis.caller import Caller
from chassis.refusals import Refusal
from command_service.api import CommandService
from command_service.bank import Bank
from command_service.charge import Command, Follow
from command_service.codec import charge_id_of
from command_service.intake import Intake, request_of
from command_service.journal import Appended, Journal, VersionConflict
from command_service.reception import Accepted, Entry, Reception, charge_of
from command_service.runner import Runner
from command_service.screening import AnyRequest
from command_service.values import (
    Answer,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Expired,
    InProgress,
    NoAnswer,
    Request,
    RequestToken,
    Token,
)
from rig.around import Around

# Vain calls of one charge's execute step, after which a bug gives it up.
VAIN_CALLS = 5
DECLINED = Declined(DeclineReason.OTHER)


# ---------------------------------------------------------------- wrong readings of an answer
class Mishearing(Around[Bank]):
    """A bank whose answers are taken for others."""

    def __init__(self, bank: Bank, taken_for: Callable[[Effect, Answer], Answer]) -> None:
        super().__init__(bank)
        self._taken_for = taken_for

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step, and read its answer wrongly."""
        return self._taken_for(effect, await self.inner.perform(effect, look_up_first=look_up_first))


def new_token_after_a_timeout(effect: Effect, answer: Answer) -> Answer:
    """Assume that a step without an answer was not done."""
    return Expired() if isinstance(effect, Execute) and isinstance(answer, NoAnswer) else answer


def no_answer_is_taken_for_declined(effect: Effect, answer: Answer) -> Answer:
    """Assume that a step without an answer will never be done."""
    return DECLINED if isinstance(effect, Execute) and isinstance(answer, NoAnswer) else answer


def in_progress_is_taken_for_declined(effect: Effect, answer: Answer) -> Answer:
    """Assume that a step in progress will never be done."""
    return DECLINED if isinstance(effect, Execute) and isinstance(answer, InProgress) else answer


def abandoning() -> Callable[[Effect, Answer], Answer]:
    """Make a reading that gives up the execute step, as is allowed for the token step only."""
    vain: Counter[str] = Counter()

    def abandoned_in_the_execute_step(effect: Effect, answer: Answer) -> Answer:
        if not (isinstance(effect, Execute) and isinstance(answer, NoAnswer)):
            return answer
        reference = effect.operation.reference
        vain[reference] += 1
        return DECLINED if vain[reference] >= VAIN_CALLS else answer

    return abandoned_in_the_execute_step


class Hasty(Around[Bank]):
    """A bank that executes a token as soon as it has issued it: the journal does not hold the token yet."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step, and the next one too."""
        answer = await self.inner.perform(effect, look_up_first=look_up_first)
        match effect, answer:
            case RequestToken(operation), Token(token):
                await self.inner.perform(Execute(operation, token), look_up_first=False)
        return answer


class Looking(Around[Bank]):
    """A bank that reads something forbidden in a story, such as a real clock."""

    def __init__(self, bank: Bank, look: Callable[[], object]) -> None:
        super().__init__(bank)
        self._look = look

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Look, and do a step."""
        self._look()
        return await self.inner.perform(effect, look_up_first=look_up_first)


class Impatience(random.Random):
    """Chance that always gives the shortest pause."""

    def uniform(self, a: float, _b: float) -> float:
        """Give the lowest."""
        return a


# ---------------------------------------------------------------- the wrong charge
class ShortKeys(Around[Reception]):
    """A door that looks a charge up by a part of its key."""

    def accept(self, command: Command | Follow) -> Entry:
        """Take the command for one with a shorter key."""
        if isinstance(command, Follow):
            return self.inner.accept(command)
        request = command.request
        charge_id = charge_id_of(request.tenant, request.idempotency_key[:-1])
        return self.inner.accept(
            dataclasses.replace(command, request=dataclasses.replace(request, charge_id=charge_id))
        )


class FirstBody(Around[Reception]):
    """A door that reads the key of a request and not its body."""

    def __init__(self, reception: Reception) -> None:
        super().__init__(reception)
        self._first: dict[str, Request] = {}

    def accept(self, command: Command | Follow) -> Entry:
        """Take the first command under this key instead; an invalid one goes through as it is."""
        if isinstance(command, Follow) or command.faults:
            return self.inner.accept(command)
        first = self._first.setdefault(command.request.charge_id, command.request)
        asked = dataclasses.replace(command.request, user_id=first.user_id, card=first.card, amount=first.amount)
        return self.inner.accept(dataclasses.replace(command, request=asked))


class MixedUpJoins(Around[Reception]):
    """A door that tells a caller who joins a charge of another charge under way."""

    def __init__(self, reception: Reception) -> None:
        super().__init__(reception)
        self._under_way: dict[str, Accepted] = {}

    def accept(self, command: Command | Follow) -> Entry:
        """Take the command, and hand out the oldest charge under way."""
        accepting = asyncio.ensure_future(self._accept(command))
        accepting.add_done_callback(_seen)
        return Entry(command, accepting)

    async def _accept(self, command: Command | Follow) -> Accepted:
        accepted = await self.inner.accept(command)
        if accepted.run is None:
            return accepted
        self._under_way[charge_of(command)] = accepted
        self._under_way = {
            charge_id: one
            for charge_id, one in self._under_way.items()
            if one.run is not None and not one.run.ended.done()
        }
        oldest = next(iter(self._under_way.values()), accepted)
        return oldest._replace(source=accepted.source)


class TwoDoors(Around[Reception]):
    """Two doors, used in turn."""

    def __init__(self, one: Reception, other: Reception) -> None:
        super().__init__(one)
        self._other = other
        self._turn = 0

    def accept(self, command: Command | Follow) -> Entry:
        """Have one of the two take the command."""
        self._turn += 1
        return (self.inner if self._turn % 2 else self._other).accept(command)

    async def close(self) -> None:
        """Close both."""
        await self._other.close()
        await self.inner.close()


class TwoLoops(Around[Runner]):
    """Two loops, each without knowledge of the other's charges. The first goes on with the charges found at the start."""

    def __init__(self, one: Runner, other: Runner) -> None:
        super().__init__(one)
        self._other = other

    @property
    def unfinished(self) -> int:
        """The number of charges that both have under way."""
        return self.inner.unfinished + self._other.unfinished

    async def close(self) -> None:
        """Stop both."""
        await self._other.close()
        await self.inner.close()


# ---------------------------------------------------------------- wrong intake
def blind_to_card_numbers(intake: Intake) -> Intake:
    """Make an intake that keeps all rules but one: it takes a card number for a word."""

    def read(wire: AnyRequest, caller: Caller) -> Command | Follow:
        in_words = re.sub(rb"\d{13,19}", lambda digits: b"x" * len(digits[0]), wire.SerializeToString())
        screened = intake(type(wire).FromString(in_words), caller)
        if isinstance(screened, Command) and isinstance(wire, ChargeRequest):
            return dataclasses.replace(screened, request=request_of(wire, caller))
        return screened

    return read


# ---------------------------------------------------------------- wrong journals
class AnyVersion(Around[Journal]):
    """A journal that appends at any version: two calls that begin one stream both succeed."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Appended:
        """Append to a stream as it is."""
        while (outcome := await self.inner.append(charge_id, version, events, finished=finished)) == VersionConflict():
            version = len(await self.inner.read(charge_id))
        return outcome


class Forgetful(Around[Journal]):
    """A journal that does not know at the start what is unfinished."""

    has_begun = False

    async def news(self) -> Sequence[str]:
        """Keep back what the first call tells."""
        news = await self.inner.news()
        is_first, self.has_begun = not self.has_begun, True
        return () if is_first else news


class LostWakeUp(Around[Journal]):
    """A journal whose readers look at the head and begin to wait a moment later: a move in between wakes none."""

    async def beyond(self, position: int) -> None:
        """Wait until the head is beyond a position; miss a move at the wrong moment."""
        while self.inner.head.position <= position:
            await asyncio.sleep(0.001)
            await self.inner.beyond(self.inner.head.position)


# ---------------------------------------------------------------- wrong advice
class BadAdvice(Around[CommandService]):
    """A service that advises a new key to a caller that reuses one, even while the first charge's money may move."""

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: N802  # the contract's name
        """Charge, and advise badly."""
        try:
            return await self.inner.Charge(request, context)
        except Refusal as refusal:
            if refusal.reason == "IDEMPOTENCY_KEY_REUSED":
                raise dataclasses.replace(refusal, advice="USE_NEW_KEY") from None
            raise


def _seen(task: "asyncio.Task[Any]") -> None:
    """Count an error as seen: the caller that waits is told of it."""
    if not task.cancelled():
        task.exception()
