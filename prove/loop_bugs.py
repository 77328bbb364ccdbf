"""Bugs of the core, the loop and the door, as parts that do wrong what the right part beneath them does right.

A wrong decision about an answer is played by a bank that gives another answer; a wrong look-up of a charge by a reception
that is asked for another one. So no bug knows how the loop is made inside.
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
from command_service.charge import Command
from command_service.codec import charge_id_of
from command_service.intake import Intake, request_of
from command_service.journal import Journal, Outcome, VersionConflict
from command_service.reception import Accepted, Reception
from command_service.runner import Runner
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


# ---------------------------------------------------------------- what an answer is taken for
class Mishearing(Around[Bank]):
    """A bank whose answers are taken for others."""

    def __init__(self, bank: Bank, taken_for: Callable[[Effect, Answer], Answer]) -> None:
        super().__init__(bank)
        self._taken_for = taken_for

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step, and mishear what came of it."""
        return self._taken_for(effect, await self.inner.perform(effect, look_up_first=look_up_first))


def new_token_after_a_timeout(effect: Effect, answer: Answer) -> Answer:
    """Take it that what was not answered has not happened."""
    return Expired() if isinstance(effect, Execute) and isinstance(answer, NoAnswer) else answer


def no_answer_is_taken_for_declined(effect: Effect, answer: Answer) -> Answer:
    """Take it that what was not answered will never happen."""
    return DECLINED if isinstance(effect, Execute) and isinstance(answer, NoAnswer) else answer


def in_progress_is_taken_for_declined(effect: Effect, answer: Answer) -> Answer:
    """Take it that what is not done is not going to be."""
    return DECLINED if isinstance(effect, Execute) and isinstance(answer, InProgress) else answer


def abandoning() -> Callable[[Effect, Answer], Answer]:
    """Make what gives the execute step up, as only the token step may be."""
    vain: Counter[str] = Counter()

    def abandoned_in_the_execute_step(effect: Effect, answer: Answer) -> Answer:
        if not (isinstance(effect, Execute) and isinstance(answer, NoAnswer)):
            return answer
        vain[effect.charge_id] += 1
        return DECLINED if vain[effect.charge_id] >= VAIN_CALLS else answer

    return abandoned_in_the_execute_step


class Hasty(Around[Bank]):
    """A bank that is told to execute a token as soon as it has given it: the journal does not hold it yet."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step, and the next one too."""
        answer = await self.inner.perform(effect, look_up_first=look_up_first)
        match effect, answer:
            case RequestToken(charge_id, card, amount), Token(token):
                await self.inner.perform(Execute(charge_id, card, amount, token), look_up_first=False)
        return answer


class Looking(Around[Bank]):
    """A bank that looks at something that no story may look at, such as a real clock."""

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


# ---------------------------------------------------------------- which charge a call is about
class ShortKeys(Around[Reception]):
    """A door that looks a charge up by a part of its key."""

    def accept(self, command: Command) -> "asyncio.Task[Accepted]":
        """Take the command for one with a shorter key."""
        request = command.request
        charge_id = charge_id_of(request.tenant, request.idempotency_key[:-1])
        return self.inner.accept(
            dataclasses.replace(command, request=dataclasses.replace(request, charge_id=charge_id))
        )


class FirstBody(Around[Reception]):
    """A door that sees the key of a request and not its body: a second body counts as the first."""

    def __init__(self, reception: Reception) -> None:
        super().__init__(reception)
        self._first: dict[str, Request] = {}

    def accept(self, command: Command) -> "asyncio.Task[Accepted]":
        """Take the command for the one that came first with its key, if it is one that may come at all."""
        if command.faults:
            return self.inner.accept(command)
        first = self._first.setdefault(command.request.charge_id, command.request)
        asked = dataclasses.replace(command.request, user_id=first.user_id, card=first.card, amount=first.amount)
        return self.inner.accept(dataclasses.replace(command, request=asked))


class MixedUpJoins(Around[Reception]):
    """A door at which who joins a charge is told of another one that is under way."""

    def __init__(self, reception: Reception) -> None:
        super().__init__(reception)
        self._under_way: dict[str, Accepted] = {}

    def accept(self, command: Command) -> "asyncio.Task[Accepted]":
        """Take the command, and wait for the oldest charge."""
        accepting = asyncio.ensure_future(self._accept(command))
        accepting.add_done_callback(_seen)
        return accepting

    async def _accept(self, command: Command) -> Accepted:
        accepted = await self.inner.accept(command)
        if accepted.run is None:
            return accepted
        self._under_way[command.request.charge_id] = accepted
        self._under_way = {
            charge_id: one
            for charge_id, one in self._under_way.items()
            if one.run is not None and not one.run.ended.done()
        }
        oldest = next(iter(self._under_way.values()), accepted)
        return dataclasses.replace(oldest, source=accepted.source)


class TwoDoors(Around[Reception]):
    """Two doors, used in turn."""

    def __init__(self, one: Reception, other: Reception) -> None:
        super().__init__(one)
        self._other = other
        self._turn = 0

    def accept(self, command: Command) -> "asyncio.Task[Accepted]":
        """Have the one take the command, or the other."""
        self._turn += 1
        return (self.inner if self._turn % 2 else self._other).accept(command)

    async def close(self) -> None:
        """Close both."""
        await self._other.close()
        await self.inner.close()


class TwoLoops(Around[Runner]):
    """Two loops: neither knows what the other has under way. The first goes on with what was found."""

    def __init__(self, one: Runner, other: Runner) -> None:
        super().__init__(one)
        self._other = other

    @property
    def unfinished(self) -> int:
        """How many charges both have under way."""
        return self.inner.unfinished + self._other.unfinished

    async def close(self) -> None:
        """Stop both."""
        await self._other.close()
        await self.inner.close()


# ---------------------------------------------------------------- what is let in
def blind_to_card_numbers(intake: Intake) -> Intake:
    """Make an intake that keeps to all rules but one: it takes a card's number for a word."""

    def read(wire: ChargeRequest, caller: Caller) -> Command:
        in_words = re.sub(rb"\d{13,19}", lambda digits: b"x" * len(digits[0]), wire.SerializeToString())
        return dataclasses.replace(intake(ChargeRequest.FromString(in_words), caller), request=request_of(wire, caller))

    return read


# ---------------------------------------------------------------- what the journal is taken to hold
class AnyVersion(Around[Journal]):
    """A journal that appends at whatever version a stream is: two that begin it are not told apart."""

    async def append(self, charge_id: str, version: int, events: Sequence[bytes], *, finished: bool) -> Outcome:
        """Append to a stream as it is."""
        while (outcome := await self.inner.append(charge_id, version, events, finished=finished)) == VersionConflict():
            version = len(await self.inner.read(charge_id))
        return outcome


class Forgetful(Around[Journal]):
    """A journal that does not know at the start what is unfinished."""

    async def unfinished(self) -> Sequence[str]:
        """Find nothing."""
        return ()


class LostWakeUp(Around[Journal]):
    """A journal whose readers look at the head, and wait a moment later: what moves it in between wakes nobody."""

    async def beyond(self, position: int) -> None:
        """Wait until the head is beyond a position, unless it gets there in a bad moment."""
        while self.inner.head.position <= position:
            await asyncio.sleep(0.001)
            await self.inner.beyond(self.inner.head.position)


# ---------------------------------------------------------------- what a caller is told
class BadAdvice(Around[CommandService]):
    """A service that advises a new key to whoever uses one again, even while the first one's money may move."""

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: N802  # the contract's name
        """Charge, and advise badly."""
        try:
            return await self.inner.Charge(request, context)
        except Refusal as refusal:
            if refusal.reason == "IDEMPOTENCY_KEY_REUSED":
                raise dataclasses.replace(refusal, advice="USE_NEW_KEY") from None
            raise


def _seen(task: "asyncio.Task[Any]") -> None:
    """Whoever waits is told of the error; here it only counts as seen."""
    if not task.cancelled():
        task.exception()
