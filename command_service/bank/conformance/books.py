"""Promise 8: the bank keeps the books of a charge, whatever the core thinks is left."""

from dataclasses import replace
from typing import assert_never

from command_service.bank.conformance.checks import Check, NotPossible
from command_service.bank.conformance.trial import Trial, expect
from command_service.values import Answer, Declined, Executed, Kind, Operation, Refused


async def agree(trial: Trial, operation: Operation, on: str) -> None:
    """See by what is left that an operation was executed once; `on` is the opening's id. Raises RuleBroken, NotPossible.

    A bank that moves more than there is after a plain execution too does not count, and so its count shows nothing.
    """
    too_much = await _more_than_is_left(trial, operation, on)
    if isinstance(too_much, Executed):
        plain = await trial.operation()
        done = await trial.executed(plain)
        control = await _more_than_is_left(trial, plain, plain.on or done)
        expect(isinstance(control, Executed), "more was left to move than after one execution", too_much)


async def _more_than_is_left(trial: Trial, operation: Operation, on: str) -> Answer:
    """Move all that is left after one execution, and then one minor unit more; return the answer to that."""
    opening = operation if operation.opens else replace(operation, kind=Kind.CHARGE, reference="", on="")
    match operation.kind:
        case Kind.CHARGE | Kind.CAPTURE:
            kind, left = Kind.REFUND, trial.whole
        case Kind.AUTHORIZE:
            kind, left = Kind.CAPTURE, trial.whole
        case Kind.VOID:
            kind, left = Kind.CAPTURE, 0
        case Kind.REFUND:
            kind, left = Kind.REFUND, trial.whole - operation.amount.minor_units
        case _:
            assert_never(operation.kind)
    if left:
        await _moves(
            trial, trial.following(kind, opening, on, left), f"a {kind.value} of what is left after one execution"
        )
    return await trial.ends(trial.following(kind, opening, on, 1))


async def _refund_stays_within(trial: Trial) -> None:
    """Whole and one more; half, and more than the other half."""
    opening, on = await _executed(trial, Kind.CHARGE)
    await _never(
        trial, trial.following(Kind.REFUND, opening, on, trial.whole + 1), "a refund of more than was captured"
    )
    await _moves(trial, trial.following(Kind.REFUND, opening, on, trial.whole // 2), "a refund of a half")
    rest = trial.whole - trial.whole // 2
    await _never(trial, trial.following(Kind.REFUND, opening, on, rest + 1), "a refund of more than is left")
    await _moves(trial, trial.following(Kind.REFUND, opening, on, rest), "a refund of the rest")


async def _refunds_at_once_stay_within(trial: Trial) -> None:
    opening, on = await _executed(trial, Kind.CHARGE)
    half = trial.whole // 2 + 1
    effects = [await trial.opened(trial.following(Kind.REFUND, opening, on, half)) for _ in range(4)]
    answers = await trial.at_once(*effects, times=len(effects))
    executed = [answer for answer in answers if isinstance(answer, Executed)]
    expect(len(executed) == 1, f"{len(executed)} of {len(effects)} refunds of more than half were executed", *answers)


async def _nothing_to_refund(trial: Trial) -> None:
    opening, hold = await _executed(trial, Kind.AUTHORIZE)
    await _never(trial, trial.following(Kind.REFUND, opening, hold, 1), "a refund before the capture")
    await _moves(trial, trial.following(Kind.VOID, opening, hold), "a void")
    await _never(trial, trial.following(Kind.REFUND, opening, hold, 1), "a refund after the void")


async def _capture_stays_within(trial: Trial) -> None:
    opening, hold = await _executed(trial, Kind.AUTHORIZE)
    await _never(trial, trial.following(Kind.CAPTURE, opening, hold, trial.whole + 1), "a capture of more than is held")
    await _moves(trial, trial.following(Kind.CAPTURE, opening, hold), "a capture of what is held")
    await _never(trial, trial.following(Kind.CAPTURE, opening, hold, 1), "a capture when nothing is held any more")


async def _final_capture_releases(trial: Trial) -> None:
    opening, hold = await _executed(trial, Kind.AUTHORIZE)
    part = trial.following(Kind.CAPTURE, opening, hold, trial.whole // 2)
    await _moves(trial, replace(part, is_final=True), "a final capture of a half")
    await _never(trial, trial.following(Kind.CAPTURE, opening, hold, 1), "a capture after the final one")
    await _never(trial, trial.following(Kind.REFUND, opening, hold, trial.whole), "a refund of more than was captured")
    await _moves(trial, trial.following(Kind.REFUND, opening, hold, part.amount.minor_units), "a refund of the half")


async def _captures_of_parts(trial: Trial) -> None:
    opening, hold = await _executed(trial, Kind.AUTHORIZE)
    half = trial.whole // 2
    if not isinstance(said := await trial.ends(trial.following(Kind.CAPTURE, opening, hold, half)), Executed):
        expect(isinstance(said, Refused | Declined), "a capture of a half that is not final", said)
        raise NotPossible("it captures a part only if that is final")
    await _never(trial, trial.following(Kind.CAPTURE, opening, hold, trial.whole), "a capture of more than is left")
    await _moves(trial, trial.following(Kind.CAPTURE, opening, hold, trial.whole - half), "a capture of the rest")
    await _moves(trial, trial.following(Kind.REFUND, opening, hold), "a refund of both captures")
    await _never(trial, trial.following(Kind.REFUND, opening, hold, 1), "a refund of more than both captures")


async def _nothing_after_a_void(trial: Trial) -> None:
    opening, hold = await _executed(trial, Kind.AUTHORIZE)
    await _moves(trial, trial.following(Kind.VOID, opening, hold), "a void")
    await _never(trial, trial.following(Kind.CAPTURE, opening, hold), "a capture after the void")


async def _no_void_of_what_is_captured(trial: Trial) -> None:
    opening, hold = await _executed(trial, Kind.AUTHORIZE)
    await _moves(trial, trial.following(Kind.CAPTURE, opening, hold), "a capture of what is held")
    await _never(trial, trial.following(Kind.VOID, opening, hold), "a void when nothing is held any more")
    await _moves(trial, trial.following(Kind.REFUND, opening, hold), "a refund of what was captured")


async def _nothing_held(trial: Trial) -> None:
    opening, on = await _executed(trial, Kind.CHARGE)
    await _never(trial, trial.following(trial.kind, opening, on), "of a charge that holds nothing")
    await _moves(trial, trial.following(Kind.REFUND, opening, on), "a refund of what was charged")


async def _executed(trial: Trial, kind: Kind) -> tuple[Operation, str]:
    opening = trial.opening(kind)
    return opening, await trial.executed(opening)


async def _moves(trial: Trial, operation: Operation, what: str) -> None:
    said = await trial.ends(operation)
    expect(isinstance(said, Executed), f"{what} was not executed", said)


async def _never(trial: Trial, operation: Operation, what: str) -> None:
    said: Answer = await trial.ends(operation)
    expect(isinstance(said, Declined | Refused), what, said)


_CAPTURE, _VOID, _REFUND = (Kind.CAPTURE,), (Kind.VOID,), (Kind.REFUND,)
CHECKS = (
    Check("a refund stays within what was captured and not refunded", 8, _REFUND, _refund_stays_within),
    Check("of refunds at once no more are executed than there is money", 8, _REFUND, _refunds_at_once_stay_within),
    Check("what was not captured is not refunded", 8, _REFUND, _nothing_to_refund),
    Check("a capture stays within what is held", 8, _CAPTURE, _capture_stays_within),
    Check("a final capture lets the rest go", 8, _CAPTURE, _final_capture_releases),
    Check("captures of parts stay within what is held", 8, _CAPTURE, _captures_of_parts),
    Check("after a void nothing is captured", 8, _CAPTURE, _nothing_after_a_void),
    Check("what is captured is not voided", 8, _VOID, _no_void_of_what_is_captured),
    Check("of a charge nothing is captured or voided", 8, _CAPTURE + _VOID, _nothing_held),
)
