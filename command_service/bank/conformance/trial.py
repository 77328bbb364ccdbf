"""One kind of operation at the subject: its operations, and its steps, put patiently, by several adapters."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from command_service.bank import Bank
from command_service.bank.conformance.checks import CannotBeTried, NotPossible, RuleBroken, Unanswered, told
from command_service.bank.conformance.subject import Subject
from command_service.bank.conformance.throwing import Throwing
from command_service.values import (
    Answer,
    CallOff,
    Card,
    Effect,
    Execute,
    Executed,
    InProgress,
    Kind,
    Money,
    NoAnswer,
    Operation,
    Request,
    RequestToken,
    Token,
)

AT_ONCE = 12
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 4.0
_FOLLOWS = {Kind.CAPTURE: Kind.AUTHORIZE, Kind.VOID: Kind.AUTHORIZE, Kind.REFUND: Kind.CHARGE}


class Trial:
    """One kind of operation, tried by adapters as by several processes of ours."""

    def __init__(self, subject: Subject, kind: Kind, banks: Sequence[Bank], losing: Bank, wire: Throwing) -> None:
        """`losing` is one more adapter, whose calls pass through `wire`."""
        self.subject = subject
        self.kind = kind
        self.losing = losing
        self.wire = wire
        self._banks = banks

    # ------------------------------------------------------------ operations
    def opening(self, kind: Kind, card: str = "", *, is_off_session: bool = False) -> Operation:
        """Make one that opens a charge, of which nobody has heard before."""
        reference = str(uuid.uuid4())
        card = card or self.subject.approved_card
        request = Request(
            reference,
            tenant="conformance",
            idempotency_key=reference,
            actor="conformance",
            user_id="conformance",
            card=Card(card),
            amount=self.subject.price,
            is_held=kind is Kind.AUTHORIZE,
            is_off_session=is_off_session,
        )
        return Operation(kind, reference, reference, request.amount, request)

    def following(self, kind: Kind, opening: Operation, on: str, minor_units: int | None = None) -> Operation:
        """Make one that acts on an opening, executed under the id `on`; for all of its amount unless one is given."""
        reference = str(uuid.uuid4())
        amount = opening.amount if minor_units is None else self.money(minor_units)
        return Operation(kind, reference, reference, amount, opening.request, on)

    def money(self, minor_units: int) -> Money:
        """Give an amount in the currency of the trial."""
        return Money(minor_units, self.subject.price.currency_code)

    @property
    def whole(self) -> int:
        """The amount of each opening, in minor units."""
        return self.subject.price.minor_units

    async def operation(self, card: str = "") -> Operation:
        """Make one of the kind that is tried. What must be executed before it is executed; a refund is of a half."""
        if self.kind not in _FOLLOWS:
            return self.opening(self.kind, card)
        opening = self.opening(_FOLLOWS[self.kind], card)
        on = await self.executed(opening)
        return self.following(self.kind, opening, on, self.whole // 2 if self.kind is Kind.REFUND else None)

    # ------------------------------------------------------------ steps
    async def answer(self, effect: Effect, *, by: Bank | None = None, look_up_first: bool = False) -> Answer:
        """Do a step, again and again while the bank gives no answer or is at work on it.

        Raises Unanswered if that does not end, CannotBeTried if the bank does not accept us.
        """
        return await self._patiently(lambda: self.once(effect, by=by or self._banks[0], look_up_first=look_up_first))

    async def looks(self, operation: Operation, token: str | None, times: int = 4) -> list[Answer]:
        """Look an operation up this often, over several adapters. Raises like `answer`, and RuleBroken if one raises."""
        return [
            await self._patiently(partial(self.look, operation, token, by=self._banks[n % len(self._banks)]))
            for n in range(times)
        ]

    async def look(self, operation: Operation, token: str | None, *, by: Bank | None = None) -> Answer:
        """Look an operation up once. Raises RuleBroken if the adapter raises anything."""
        try:
            return await (by or self._banks[0]).look_up(operation, token)
        except Exception as error:
            raise RuleBroken(f"the adapter raised {type(error).__name__} instead of an answer") from error

    async def _patiently(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        loop = asyncio.get_running_loop()
        until, pause_seconds = loop.time() + self.subject.patience_seconds, _FIRST_PAUSE_SECONDS
        while True:
            match said := await ask():
                case NoAnswer(our_setup=True):
                    raise CannotBeTried(
                        "it does not accept us: see that its key and its certificates are those meant for it"
                    )
                case NoAnswer(retry_after_seconds=wished) | InProgress(retry_after_seconds=wished):
                    pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
                    if loop.time() > until:
                        raise Unanswered(
                            f"the bank did not come to an answer within {self.subject.patience_seconds:g} s"
                        )
                    await asyncio.sleep(max(pause_seconds, wished or 0.0))
                case _:
                    return said

    async def once(self, effect: Effect, *, by: Bank, look_up_first: bool = False) -> Answer:
        """Do a step once. Raises RuleBroken if the adapter raises anything."""
        try:
            return await by.perform(effect, look_up_first=look_up_first)
        except Exception as error:
            raise RuleBroken(f"the adapter raised {type(error).__name__} instead of an answer") from error

    async def later(self, effect: Effect, *, look_up_first: bool = False) -> Answer:
        """Do a step as another process of ours would."""
        return await self.answer(effect, by=self._banks[-1], look_up_first=look_up_first)

    async def at_once(self, *effects: Effect, times: int = AT_ONCE) -> list[Answer]:
        """Do steps this often, all at once, over several adapters."""
        put = [(effects[n % len(effects)], self._banks[n // len(effects) % len(self._banks)]) for n in range(times)]
        ends = await asyncio.gather(*[self.answer(effect, by=bank) for effect, bank in put], return_exceptions=True)
        answers = []
        for end in ends:  # All have ended, so that none is under way in the next check.
            if isinstance(end, BaseException):
                raise end
            answers.append(end)
        return answers

    @property
    def finds_at_once(self) -> bool:
        """Whether a look-up by our reference finds what was just opened."""
        return self.subject.lag_seconds == 0.0

    async def until_it_is_found(self) -> None:
        """Wait until a look-up by our reference finds what has been opened by now."""
        await asyncio.sleep(self.subject.lag_seconds)

    async def opened(self, operation: Operation) -> Execute:
        """Do the token step, and make the execute step that follows. Raises NotPossible."""
        match said := await self.answer(RequestToken(operation, 0)):
            case Token(token):
                return Execute(operation, token)
            case _:
                raise NotPossible(f"{_named(operation)} came to no token: {told(said)}")

    async def executed(self, operation: Operation) -> str:
        """Do both steps of what is prepared; return the bank's id. Raises NotPossible."""
        match said := await self.answer(await self.opened(operation)):
            case Executed(transaction_id):
                return transaction_id
            case _:
                raise NotPossible(f"{_named(operation)} was not executed: {told(said)}")

    async def ends(self, operation: Operation) -> Answer:
        """Do both steps, and say how it ended: in the token step if that gives no token."""
        said = await self.answer(RequestToken(operation, 0))
        return await self.answer(Execute(operation, said.token)) if isinstance(said, Token) else said

    async def asks_in_token_step(self) -> bool:
        """Whether the token step of this kind asks the bank, so that the bank knows the reference after it."""
        operation = await self.operation()
        before = self.wire.calls
        await self.answer(RequestToken(operation, 0), by=self.losing)
        return self.wire.calls > before


def _named(operation: Operation) -> str:
    return f"a plain {operation.kind.value} with the card {operation.request.card.token}"


def named(effect: Execute) -> CallOff:
    """Call off what is about to be executed."""
    return CallOff(effect.operation, effect.token)


def unnamed(effect: Execute) -> CallOff:
    """Call it off as if its token had been forgotten."""
    return CallOff(effect.operation, None)


def expect(holds: bool, what: str, *seen: Answer) -> None:
    """Raise RuleBroken unless it holds."""
    if not holds:
        raise RuleBroken(f"{what}: {told(*seen)}")


def the_only(what: str, answers: Sequence[Answer]) -> Answer:
    """Return the answer that all are. Raises RuleBroken if they differ."""
    expect(len(set(answers)) == 1, what, *answers)
    return answers[0]
