"""Planted bugs of the bank's adapter: a dialect that hides from the arbitration what it needs to know.

Each bug is a mix-in for `Parts`: type("Planted", (Bug, SimulatedParts), {}), or (Bug, Parts) in a real process. It wraps the
dialect; the arbitration stays as it is, and is told what is not so.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from command_service.bank.dialect import Dialect, Refusal, Reply, Transaction
from command_service.parts import Parts
from command_service.values import CallOff, Effect, Execute, Operation, RequestToken

Question = Callable[..., Awaitable[Reply]]


class OverDialect:
    """A dialect around another one, whose questions all go through `put`."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    async def put(self, question: Question, effect: Any, fresh: bool) -> Reply:
        """Put a question to the bank."""
        return await question(effect, fresh=fresh)

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        """Ask for a token."""
        return await self.put(self._dialect.request_token, effect, fresh)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Execute."""
        return await self.put(self._dialect.execute, effect, fresh)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        """Call off."""
        return await self.put(partial(_of_token, self._dialect.cancel, token), effect, fresh)

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        """Look up by token."""
        return await self.put(partial(_of_token, self._dialect.find_by_token, token), effect, fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Look up by reference."""
        return await self.put(self._dialect.find_by_reference, effect, fresh)

    def finds_at_once(self, operation: Operation) -> bool:
        """As the bank does."""
        return self._dialect.finds_at_once(operation)

    async def close(self) -> None:
        """Let go of connections."""
        await self._dialect.close()


async def _of_token(question: Question, token: str, effect: Effect, *, fresh: bool) -> Reply:
    return await question(effect, token, fresh=fresh)


class Unchecked(OverDialect):
    """Every transaction equals ours, whatever the bank says of it."""

    async def put(self, question: Question, effect: Any, fresh: bool) -> Reply:
        """Take the differences out of the reply."""
        reply = await super().put(question, effect, fresh)
        if not isinstance(reply, Transaction):
            return reply
        operation, token = effect.operation, None if isinstance(effect, RequestToken) else effect.token
        return replace(
            reply,
            token=token or reply.token,
            reference=operation.reference,
            kind=operation.kind,
            on=operation.on,
            card=operation.request.card.token,
            amount_minor=operation.amount.minor_units,
            currency=operation.amount.currency_code,
            is_final=operation.is_final,
        )


class Hasty(OverDialect):
    """A refusal settles a step: the questions that are to confirm it, all of them fresh, get it again."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self._refused: dict[Effect, Refusal] = {}

    async def put(self, question: Question, effect: Any, fresh: bool) -> Reply:
        """Put it, unless it is to confirm a refusal."""
        if fresh and effect in self._refused:
            return self._refused[effect]
        reply = await super().put(question, effect, fresh)
        self._refused.pop(effect, None)
        if isinstance(reply, Refusal):
            self._refused[effect] = reply
        return reply


class ChargedOnAMismatchingAnswer(Parts):
    """Nobody compares what the bank says with what it was asked."""

    def dialect(self) -> Dialect:
        """Take away the differences."""
        return Unchecked(super().dialect())


class ARefusalIsBelievedAtOnce(Parts):
    """Nobody asks again after a refusal, though it may be the answer to another question."""

    def dialect(self) -> Dialect:
        """Take away the second question."""
        return Hasty(super().dialect())
