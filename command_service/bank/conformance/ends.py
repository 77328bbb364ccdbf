"""Promises 3, 5, 6 and 7: what is closed stays closed, and the customer's step moves nothing before it is taken."""

from command_service.address import is_address
from command_service.bank.conformance.checks import KINDS, OPENINGS, Check, NotPossible, told
from command_service.bank.conformance.trial import Trial, expect, named, the_only, unnamed
from command_service.values import (
    CalledOff,
    CallOff,
    Declined,
    DeclineReason,
    Execute,
    Executed,
    Expired,
    Kind,
    NeedsAction,
    Operation,
    RequestToken,
    Token,
)

_LATE = 4  # Late executes over several adapters.


async def _stays(trial: Trial, effect: Execute, end: object, *, is_called_off: bool = False) -> None:
    """See that it is told as it ended, whoever asks and however: by late executes and, of openings, by calling off."""
    answers = await trial.at_once(effect, times=_LATE)
    if trial.subject.looks_up:
        answers.append(await trial.later(effect, look_up_first=True))
    if is_called_off or effect.operation.opens:
        answers += [await trial.later(named(effect)), await trial.later(effect)]
        if trial.finds_at_once:
            answers += [await trial.later(unnamed(effect)), await trial.later(effect)]
    expect(set(answers) == {end}, "later steps gave", *answers)


# ---------------------------------------------------------------- declined
async def _declined_for_ever(trial: Trial) -> None:
    cards = trial.subject.declined_cards.get(trial.kind, {})
    if not cards:
        raise NotPossible("no card is known for which this kind is declined")
    for card, reason in cards.items():
        effect = await trial.opened(await trial.operation(card))
        end = the_only("the execute step gave", await trial.at_once(effect, times=_LATE))
        if isinstance(end, Executed):
            raise NotPossible(f"the card {card}, which is to be declined, is not")
        expect(end == Declined(reason), f"with a card that is to be declined ({reason.value}), it was", end)
        await _stays(trial, effect, end)


# ---------------------------------------------------------------- expired
async def _expired_for_ever(trial: Trial) -> None:
    _, effect = await _expired(trial)
    await _stays(trial, effect, Expired())


async def _one_more_after_expiry(trial: Trial) -> None:
    """One only; and the expired one stays closed when the new one has been executed."""
    operation, effect = await _expired(trial)
    asked = RequestToken(operation, 1)
    tokens = await trial.at_once(asked)
    if trial.subject.looks_up:
        tokens.append(await trial.later(asked, look_up_first=True))
    token = the_only("after the expiry, the token step gave", tokens)
    expect(isinstance(token, Token), "after the expiry, the token step gave no token", token)
    assert isinstance(token, Token)
    expect(token.token != effect.token, "after the expiry, the token step gave the expired token", token)
    done = await trial.answer(Execute(operation, token.token))
    expect(isinstance(done, Executed), "the new one was", done)
    late = await trial.later(effect)
    expect(late == Expired(), "when the new one was executed, the expired one was", late)


async def _expired(trial: Trial) -> tuple[Operation, Execute]:
    if trial.subject.expire is None:
        raise NotPossible("nobody but the bank can let a transaction expire")
    if not await trial.asks_in_token_step():
        raise NotPossible("what the bank knows from its execution only cannot expire before")
    operation = await trial.operation()
    effect = await trial.opened(operation)
    await trial.subject.expire(operation.reference)
    end = await trial.answer(effect)
    expect(end == Expired(), "an expired one was", end)
    return operation, effect


async def _lapsed_hold(trial: Trial) -> None:
    if trial.subject.lapse is None:
        raise NotPossible("nobody but the bank can let a hold lapse")
    effect = await trial.opened(await trial.operation())
    await trial.subject.lapse(effect.operation.reference)
    end = await trial.answer(effect)
    expect(end == Declined(DeclineReason.AUTHORIZATION_EXPIRED), "after the hold had lapsed, it was", end)
    await _stays(trial, effect, end)


# ---------------------------------------------------------------- called off
async def _called_off_for_ever(trial: Trial) -> None:
    """Any number of times at once."""
    effect = await trial.opened(await trial.operation())
    end = the_only("called off at once, it was", await trial.at_once(named(effect)))
    expect(end == CalledOff(), "called off, it was", end)
    await _stays(trial, effect, end)


async def _no_other_token(trial: Trial) -> None:
    effect = await trial.opened(await trial.operation())
    end = await trial.answer(named(effect))
    expect(end == CalledOff(), "called off, it was", end)
    first, token = Token(effect.token), await trial.later(RequestToken(effect.operation, 0))
    expect(token == first, "before and after it was called off, the token step gave", first, token)


async def _called_off_unknown(trial: Trial) -> None:
    operation = await trial.operation()
    end = await trial.answer(CallOff(operation, None))
    expect(end == CalledOff(), "called off before the bank knew it, it was", end)


async def _called_off_without_its_token(trial: Trial) -> None:
    """What the bank knows by our reference: one that is open, and one that is executed."""
    effect, executed = [await trial.opened(await trial.operation()) for _ in range(2)]
    done = await trial.answer(executed)
    expect(isinstance(done, Executed), "the execute step ended otherwise", done)
    await trial.until_it_is_found()
    if await trial.asks_in_token_step():
        end = the_only("called off at once, it was", await trial.at_once(unnamed(effect)))
        expect(end == CalledOff(), "called off, it was", end)
        await _stays(trial, effect, end)
    ends = await trial.at_once(unnamed(executed), times=_LATE)
    expect(set(ends) == {done}, "called off after it was executed, it was", done, *ends)
    await _stays(trial, executed, done)


async def _called_off_too_late(trial: Trial) -> None:
    """It is told as executed, and it is not undone: it can still be refunded, or captured."""
    operation = await trial.operation()
    effect = await trial.opened(operation)
    done = await trial.answer(effect)
    expect(isinstance(done, Executed), "the execute step ended otherwise", done)
    assert isinstance(done, Executed)
    ends = await trial.at_once(named(effect), times=_LATE)
    expect(set(ends) == {done}, "called off after it was executed, it was", done, *ends)
    await _stays(trial, effect, done)
    kind = Kind.REFUND if trial.kind is Kind.CHARGE else Kind.CAPTURE
    after = await trial.ends(trial.following(kind, operation, done.transaction_id))
    expect(isinstance(after, Executed), f"called off after it was executed, its {kind.value} was", after)


async def _race(trial: Trial) -> None:
    """Without its token nothing is closed that the bank does not find: then nobody has a token to execute."""
    ways = [named, unnamed] if trial.finds_at_once and await trial.asks_in_token_step() else [named]
    for way in ways * 2:
        effect = await trial.opened(await trial.operation())
        off = way(effect)
        end = the_only(
            "executed and called off at once, it was", await trial.at_once(effect, off, effect, off, times=8)
        )
        expect(isinstance(end, Executed | CalledOff), "executed and called off at once, it was", end)
        await _stays(trial, effect, end)


async def _called_off_though_nobody_heard(trial: Trial) -> None:
    """For each call that calling off makes."""
    effect = await trial.opened(await trial.operation())
    before = trial.wire.calls
    end = await trial.answer(named(effect), by=trial.losing)
    expect(end == CalledOff(), "called off, it was", end)
    await _stays(trial, effect, end)
    for nth in range(1, trial.wire.calls - before + 1):
        effect = await trial.opened(await trial.operation())
        trial.wire.throw(nth)
        end = await trial.answer(named(effect), by=trial.losing)
        expect(end == CalledOff(), f"called off after the answer to call {nth} was thrown away, it was", end)
        await _stays(trial, effect, end)


# ---------------------------------------------------------------- the customer's step
async def _customer_awaited(trial: Trial) -> None:
    """One address, to which people can be sent, whoever asks; called off, it is closed for ever."""
    effect, wanted = await _awaiting(trial)
    answers = await trial.at_once(effect, times=_LATE)
    if trial.subject.looks_up:
        answers.append(await trial.later(effect, look_up_first=True))
    expect(set(answers) == {wanted}, "repeated while the customer was awaited, the execute step gave", *answers)
    expect(is_address(wanted.url), "its address is not one to which people can be sent", wanted)
    end = await trial.answer(named(effect))
    expect(end == CalledOff(), "called off while the customer was awaited, it was", end)
    await _stays(trial, effect, end)


async def _customer_confirms(trial: Trial) -> None:
    if trial.subject.confirm is None:
        raise NotPossible("nobody is there to take the customer's step")
    effect, wanted = await _awaiting(trial)
    await trial.subject.confirm(wanted.url)
    done = the_only("when the customer had taken the step, it was", await trial.at_once(effect, times=_LATE))
    expect(isinstance(done, Executed), "when the customer had taken the step, it was", done)
    await _stays(trial, effect, done)


async def _customer_fails(trial: Trial) -> None:
    if trial.subject.fail is None:
        raise NotPossible("nobody is there to fail in the customer's step")
    effect, wanted = await _awaiting(trial)
    await trial.subject.fail(wanted.url)
    end = await trial.answer(effect)
    expect(isinstance(end, Declined | Expired), "when the customer had failed, it was", end)
    await _stays(trial, effect, end)


async def _nobody_is_there(trial: Trial) -> None:
    """The bank may decline it by itself, or want the step: then it is called off."""
    effect = await trial.opened(trial.opening(trial.kind, _customer_card(trial), is_off_session=True))
    end = await trial.answer(effect)
    if isinstance(end, NeedsAction):
        end = await trial.answer(named(effect))
        expect(end == CalledOff(), "called off since nobody was there, it was", end)
    else:
        expect(end == Declined(DeclineReason.AUTHENTICATION_REQUIRED), "with nobody there, it was", end)
    await _stays(trial, effect, end)


async def _awaiting(trial: Trial) -> tuple[Execute, NeedsAction]:
    effect = await trial.opened(trial.opening(trial.kind, _customer_card(trial)))
    wanted = await trial.answer(effect)
    if not isinstance(wanted, NeedsAction):
        raise NotPossible(f"with the card {_customer_card(trial)} no step of the customer was wanted: {told(wanted)}")
    return effect, wanted


def _customer_card(trial: Trial) -> str:
    if not trial.subject.customer_card:
        raise NotPossible("no card is known for which the customer's step is wanted")
    return trial.subject.customer_card


_ON_HOLD = (Kind.CAPTURE, Kind.VOID)
CHECKS = (
    Check("what was declined is never executed", 3, KINDS, _declined_for_ever),
    Check("what has expired is never executed", 3, KINDS, _expired_for_ever),
    Check("when the hold has lapsed, it is declined for that reason", 3, _ON_HOLD, _lapsed_hold),
    Check("after an expiry one more token is given", 5, KINDS, _one_more_after_expiry),
    Check("what was called off is given no other token", 1, OPENINGS, _no_other_token),
    Check("what was called off is never executed", 6, OPENINGS, _called_off_for_ever),
    Check("what the bank does not know can be called off", 6, OPENINGS, _called_off_unknown),
    Check("without its token, the bank finds what is to be called off", 6, OPENINGS, _called_off_without_its_token),
    Check("what was executed is not called off", 6, OPENINGS, _called_off_too_late),
    Check("executed and called off at once, it has one end", 6, OPENINGS, _race),
    Check("it is called off though answers were thrown away", 6, OPENINGS, _called_off_though_nobody_heard),
    Check("the customer's step is awaited, at one address", 7, OPENINGS, _customer_awaited),
    Check("when the customer has taken the step, it is executed once", 7, OPENINGS, _customer_confirms),
    Check("when the customer has failed, it is closed", 7, OPENINGS, _customer_fails),
    Check("with nobody there for the step, it is closed", 7, OPENINGS, _nobody_is_there),
)
