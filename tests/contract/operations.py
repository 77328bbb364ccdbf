"""Operations of every kind as the tests of the bank's adapters ask for them, and the way of one to rest."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from command_service.bank import Bank
from command_service.events import (
    Authorized,
    Captured,
    Charged,
    Event,
    Moved,
    Outcome,
    Recorded,
    Refunded,
    Voided,
)
from command_service.operation import Answered, AtRest, Attempts, AwaitingToken, Progress, decide, evolve, next_step
from command_service.values import (
    Answer,
    Card,
    Effect,
    Execute,
    Executed,
    Kind,
    Money,
    Operation,
    Request,
    RequestToken,
    Token,
)

PRICE = Money(1250, "EUR")
KINDS = list(Kind)
MOVED: Mapping[Kind, type[Moved]] = {
    Kind.CHARGE: Charged,
    Kind.AUTHORIZE: Authorized,
    Kind.CAPTURE: Captured,
    Kind.VOID: Voided,
    Kind.REFUND: Refunded,
}


def an_operation(
    kind: Kind = Kind.CHARGE, card: str = "tok_visa", amount: Money = PRICE, *, reference: str = "", on: str = ""
) -> Operation:
    """An operation of a charge that nobody has seen before, under a new reference unless one is given."""
    reference = reference or str(uuid.uuid4())
    request = Request(reference, "default", "key", "us", "user", Card(card), amount, is_held=kind is Kind.AUTHORIZE)
    return Operation(kind, "key", reference, amount, request, on)


# ---------------------------------------------------------------- steps at a bank
OPENING = {Kind.CAPTURE: Kind.AUTHORIZE, Kind.VOID: Kind.AUTHORIZE, Kind.REFUND: Kind.CHARGE}
"""For each kind that follows the kind of opening that it follows at once."""


def following(kind: Kind, opening: Operation, on: str, amount: Money = PRICE) -> Operation:
    """An operation that acts on an opening, which the bank has executed under the id `on`."""
    return replace(an_operation(kind, amount=amount, on=on), request=opening.request)


async def answer_of(bank: Bank, effect: Effect) -> Answer:
    return await bank.perform(effect, look_up_first=False)


async def answer_after_looking(bank: Bank, effect: Effect) -> Answer:
    return await bank.perform(effect, look_up_first=True)


async def at_once(bank: Bank, effect: Effect, times: int = 12) -> list[Answer]:
    return await asyncio.gather(*[answer_of(bank, effect) for _ in range(times)])


async def opened(bank: Bank, asked: RequestToken) -> Execute:
    """The execute step that follows a token step."""
    answer = await answer_of(bank, asked)
    assert isinstance(answer, Token)
    return Execute(asked.operation, answer.token)


async def executed(bank: Bank, operation: Operation) -> str:
    """Do both steps; return the bank's id of the transaction."""
    answer = await answer_of(bank, await opened(bank, RequestToken(operation, 0)))
    assert isinstance(answer, Executed)
    return answer.transaction_id


async def requested(bank: Bank, kind: Kind, card: str, amount: Money = PRICE) -> RequestToken:
    """The token step of a new operation. The opening of one that follows is executed before."""
    if kind not in OPENING:
        return RequestToken(an_operation(kind, card, amount), 0)
    opening = an_operation(OPENING[kind], card, amount)
    return RequestToken(following(kind, opening, await executed(bank, opening), amount), 0)


# ---------------------------------------------------------------- the same with another field
def _with_card(operation: Operation, card: str) -> Operation:
    return replace(operation, request=replace(operation.request, card=Card(card)))


_OTHER_KIND = {
    Kind.CHARGE: Kind.AUTHORIZE,
    Kind.AUTHORIZE: Kind.CHARGE,
    Kind.CAPTURE: Kind.REFUND,
    Kind.VOID: Kind.REFUND,
    Kind.REFUND: Kind.VOID,
}
_OTHER: Mapping[str, Callable[[Operation], Operation]] = {
    "amount": lambda one: replace(one, amount=Money(one.amount.minor_units - 1, one.amount.currency_code)),
    "currency": lambda one: replace(one, amount=Money(one.amount.minor_units, "USD")),
    "card": lambda one: _with_card(one, "tok_mastercard"),
    "kind": lambda one: replace(one, kind=_OTHER_KIND[one.kind]),
    "on": lambda one: replace(one, on="txn_of_another"),
    "final": lambda one: replace(one, is_final=not one.is_final),
    "reference": lambda one: replace(one, reference=str(uuid.uuid4())),
}
OWN_FIELDS = [
    (kind, name)
    for kind in KINDS
    for name in ("amount", "currency", "kind", "card", "on", "final")
    if name != ("card" if kind in (Kind.CAPTURE, Kind.VOID, Kind.REFUND) else "on")
    if name != "final" or kind is Kind.CAPTURE
]
"""The fields of each kind that its order names, and that bind its reference."""


def with_other(operation: Operation, name: str) -> Operation:
    """The same operation, but for this field."""
    return _OTHER[name](operation)


# ---------------------------------------------------------------- to rest
NOW = 1_700_000_000_000_000
FIRST_TRY = Attempts(unanswered=1, now=NOW, abandon_after_seconds=86_400.0, is_restored=False)


async def run_to_rest(
    bank: Bank, beginning: Operation | Progress, *, look_up_first: bool = False, attempts: int = 60
) -> list[Event]:
    """The events of an operation, decided by the core, without pauses. It must come to rest after so many attempts."""
    progress = AwaitingToken(beginning, NOW) if isinstance(beginning, Operation) else beginning
    events: list[Event] = []
    for _ in range(attempts):
        if (effect := next_step(progress)) is None:
            break
        answer = await bank.perform(effect, look_up_first=look_up_first)
        for event in decide(progress, Answered(effect, answer, FIRST_TRY)):
            events.append(event)
            progress = evolve(progress, Recorded(event, len(events), NOW))
    assert isinstance(progress, AtRest), "the operation did not come to rest"
    return events


def outcome(events: list[Event]) -> Outcome:
    """The last event."""
    (*_, last) = events
    assert isinstance(last, Outcome)
    return last
