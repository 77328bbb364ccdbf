"""Planted bugs of the bank's adapter: a dialect that hides from the arbitration what it needs to know.

Each bug is a mix-in for `Parts`: type("Planted", (Bug, SimulatedParts), {}), or (Bug, Parts) in a real process. It wraps the
dialect; the arbitration stays as it is, and is told what is not so.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from command_service.bank.two_step import Dialect, Refusal, Reply, Transaction
from command_service.parts import Parts
from command_service.values import Effect, Execute, RequestToken

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

    async def find_by_token(self, effect: Execute, *, fresh: bool) -> Reply:
        """Look up by token."""
        return await self.put(self._dialect.find_by_token, effect, fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Look up by reference."""
        return await self.put(self._dialect.find_by_reference, effect, fresh)

    async def close(self) -> None:
        """Let go of connections."""
        await self._dialect.close()


class Unchecked(OverDialect):
    """Every transaction equals ours, whatever the bank says of it."""

    async def put(self, question: Question, effect: Any, fresh: bool) -> Reply:
        """Take the differences out of the reply."""
        reply = await super().put(question, effect, fresh)
        if not isinstance(reply, Transaction):
            return reply
        return replace(
            reply,
            token=effect.token if isinstance(effect, Execute) else reply.token,
            reference=effect.charge_id,
            card=effect.card_token,
            amount_minor=effect.amount.minor_units,
            currency=effect.amount.currency_code,
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
