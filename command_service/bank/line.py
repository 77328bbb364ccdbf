"""A line to a bank: the bank, the number of calls that it is given at once, and the breaker that spares it."""

from collections.abc import Callable
from typing import NamedTuple

import structlog

from chassis.slots import Slots
from command_service.bank import Bank
from command_service.bank.breaker import Breaker, is_heard
from command_service.observed import UNOBSERVED, Observed
from command_service.values import Answer, CallOff, Effect, Execute, NoAnswer, Operation, RequestToken, kind_of

STEPS = {RequestToken: "token", Execute: "execute", CallOff: "call_off"}


class Performed(NamedTuple):
    """What came of a step. `calls` is 0 if the bank was not called.

    A probe for another charge has come to no answer, or the adapter knew the answer.
    """

    answer: Answer
    calls: int


class Line:
    """The way to one bank, which all charges at this bank share."""

    def __init__(
        self, bank: Bank, breaker: Breaker, *, calls_at_once: int, name: str = "", observed: Observed = UNOBSERVED
    ) -> None:
        """`name` is the bank's, for the log and the metrics."""
        self._name = name
        self._observed = observed
        self._bank = bank
        self._breaker = breaker
        self._slots = Slots(calls_at_once)

    @property
    def remembers_seconds(self) -> float:
        """For how long the bank knows a repeated request for what it is (`Bank.remembers_seconds`)."""
        return self._bank.remembers_seconds

    @property
    def can_look_up(self) -> bool:
        """Whether the bank can be asked what it knows (`Bank.can_look_up`)."""
        return self._bank.can_look_up

    @property
    def calls_under_way(self) -> int:
        """The number of calls to the bank under way."""
        return self._slots.used

    @property
    def calls_at_once(self) -> int:
        """The largest number of calls at once."""
        return self._slots.limit

    @property
    def is_spared(self) -> bool:
        """Whether the bank is called by probes only, because it does not answer or does not accept us."""
        return self._breaker.is_open

    @property
    def may_probe(self) -> bool:
        """Whether a call now would be let through to find out if the bank answers again."""
        return self._breaker.wants_probe and not self._slots.are_taken

    def tries_new_charge(self) -> bool:
        """Whether a new charge is to find out if the spared bank answers again, whatever others there are. One in a while."""
        return self._breaker.tries_new_charge()

    @property
    def wants_new_charge(self) -> bool:
        """Whether the next new charge would be tried."""
        return self._breaker.wants_new_charge

    @property
    def retry_after_seconds(self) -> float:
        """When it may be worth coming back while the bank is spared."""
        return self._breaker.retry_after_seconds

    async def perform(
        self, effect: Effect, *, look_up_first: bool, is_wanted: Callable[[], bool] | None = None
    ) -> Performed | None:
        """Have the bank do a step as soon as there is a slot and the breaker admits the call. Never raises.

        `is_wanted` is asked right before the call, after all waiting: if it says no, nothing is sent, and the result is None.
        While the breaker is open, an unanswered probe is the answer to every waiting step.
        """
        tenant = effect.operation.request.tenant
        if self._name:  # the caller is the charge's own task: all that it logs from now on says it
            structlog.contextvars.bind_contextvars(bank=self._name)
        while True:
            await self._slots.take(tenant)  # held during the call only, never through a pause
            try:
                if is_wanted is not None and not is_wanted():
                    return None
                if (admitted := self._breaker.admit()) is not None:
                    answer: Answer = NoAnswer()
                    try:
                        with self._observed.bank_calls.piece() as piece:
                            answer = await self._bank.perform(effect, look_up_first=look_up_first)
                            piece.result = self._told(STEPS[type(effect)], effect.operation, answer)
                    finally:  # a bank must not raise; if it does, a probe without an end would admit no call ever again
                        self._breaker.note(admitted, effect.operation.request.charge_id, answer)
                    return Performed(answer, int(is_heard(answer)))
            finally:
                self._slots.give_back(tenant)
            if (unanswered := await self._breaker.pause()) is not None:
                return Performed(unanswered, 0)

    def _told(self, step: str, operation: Operation, answer: Answer) -> tuple[str, ...]:
        return self._name, step, operation.kind.value, kind_of(answer).value

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        """Ask the bank what it knows of an operation, for people. Never raises.

        A spared bank is asked only if a probe is due, and else this is NoAnswer at once: people come back by themselves.
        """
        if not self._bank.can_look_up:
            return await self._bank.look_up(operation, token)  # nobody is called, and the breaker learns nothing
        tenant = operation.request.tenant
        await self._slots.take(tenant)
        try:
            if (admitted := self._breaker.admit()) is None:
                return NoAnswer(self._breaker.retry_after_seconds)
            answer: Answer = NoAnswer()
            try:
                with self._observed.bank_calls.piece() as piece:
                    answer = await self._bank.look_up(operation, token)
                    piece.result = self._told("look_up", operation, answer)
            finally:
                self._breaker.note(admitted, operation.request.charge_id, answer)
            return answer
        finally:
            self._slots.give_back(tenant)
