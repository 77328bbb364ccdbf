"""Promise 4: another operation under a known reference or token is refused."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from command_service.bank.conformance.checks import FOLLOWING, KINDS, OPENINGS, Check, NotPossible
from command_service.bank.conformance.trial import Trial, expect, named
from command_service.values import (
    CalledOff,
    Card,
    Contradiction,
    Declined,
    Execute,
    Executed,
    Kind,
    Money,
    Operation,
    Refused,
    RequestToken,
    Token,
)

Other = Callable[[Trial, Operation], Awaitable[Operation]]

_OTHER_KIND = {
    Kind.CHARGE: Kind.AUTHORIZE,
    Kind.AUTHORIZE: Kind.CHARGE,
    Kind.CAPTURE: Kind.REFUND,
    Kind.VOID: Kind.CAPTURE,
    Kind.REFUND: Kind.VOID,
}


async def _amount(_: Trial, one: Operation) -> Operation:
    return replace(one, amount=Money(one.amount.minor_units - 1, one.amount.currency_code))


async def _currency(trial: Trial, one: Operation) -> Operation:
    return replace(one, amount=Money(one.amount.minor_units, trial.subject.other_currency))


async def _card(trial: Trial, one: Operation) -> Operation:
    if not trial.subject.other_card:
        raise NotPossible("no other card is known")
    return replace(one, request=replace(one.request, card=Card(trial.subject.other_card)))


async def _kind(_: Trial, one: Operation) -> Operation:
    return replace(one, kind=_OTHER_KIND[one.kind])


async def _on(trial: Trial, one: Operation) -> Operation:
    return replace(one, on=(await trial.operation()).on)


async def _final(_: Trial, one: Operation) -> Operation:
    return replace(one, is_final=not one.is_final)


def _under_a_known_reference(other_of: Other) -> Callable[[Trial], Awaitable[None]]:
    async def run(trial: Trial) -> None:
        """While it is open, if its token step has made it known to the bank, and when it is executed."""
        asks_in_token_step = await trial.asks_in_token_step()
        effect = await trial.opened(await trial.operation())
        other = await other_of(trial, effect.operation)
        if asks_in_token_step:
            await _is_refused(trial, other, "while the first was open")
        done = await trial.answer(effect)
        expect(isinstance(done, Executed), "the first one ended otherwise", done)
        await _is_refused(trial, other, "after the first was executed")
        again = await trial.later(effect)
        expect(again == done, "the first one, asked for again", done, again)

    return run


async def _is_refused(trial: Trial, other: Operation, when: str) -> None:
    said = await trial.answer(RequestToken(other, 0))
    if isinstance(said, Token):
        said = await trial.answer(Execute(other, said.token))
    expect(isinstance(said, Refused | Contradiction | Declined), f"{when}, the other one was", said)


async def _under_a_known_token(trial: Trial) -> None:
    """Another amount and another currency; then what is open can be called off, unexecuted, or executed as it was."""
    if not await trial.asks_in_token_step():
        raise NotPossible("the bank knows the token from its execution only")
    for other_of in (_amount, _currency):
        effect = await trial.opened(await trial.operation())
        other = Execute(await other_of(trial, effect.operation), effect.token)
        said = await trial.answer(other)
        expect(isinstance(said, Refused | Contradiction), "the other one was", said)
        if effect.operation.opens:
            end = await trial.later(named(effect))
            expect(end == CalledOff(), "refused, and then called off, it was", end)
        else:
            end = await trial.later(effect)
            expect(isinstance(end, Executed), "refused, and then put as it was, it was", end)


async def _follows_nothing(trial: Trial) -> None:
    """What the bank does not know, and an opening in another currency."""
    opening = trial.opening(Kind.CHARGE)
    on = await trial.executed(opening)
    unknown = trial.following(trial.kind, opening, on[:-6] + "000000")
    price = Money(trial.whole, trial.subject.other_currency)
    for wrong, what in (
        (unknown, "on a transaction that the bank does not know, it was"),
        (
            replace(trial.following(trial.kind, opening, on), amount=price),
            "in another currency than its opening, it was",
        ),
    ):
        said = await trial.ends(wrong)
        expect(isinstance(said, Refused), what, said)


CHECKS = (
    Check("another amount under a known reference is refused", 4, KINDS, _under_a_known_reference(_amount)),
    Check("another currency under a known reference is refused", 4, KINDS, _under_a_known_reference(_currency)),
    Check("another card under a known reference is refused", 4, OPENINGS, _under_a_known_reference(_card)),
    Check("another kind under a known reference is refused", 4, KINDS, _under_a_known_reference(_kind)),
    Check(
        "another transaction to act on under a known reference is refused", 4, FOLLOWING, _under_a_known_reference(_on)
    ),
    Check("another word on whether it is final is refused", 4, (Kind.CAPTURE,), _under_a_known_reference(_final)),
    Check("another amount or currency under a known token moves nothing", 4, KINDS, _under_a_known_token),
    Check("what acts on nothing is refused", 4, FOLLOWING, _follows_nothing),
)
