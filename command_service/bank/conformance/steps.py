"""Promises 1 and 2: a step that is repeated, at once or later, is done once."""

from command_service.bank.conformance import books
from command_service.bank.conformance.checks import KINDS, Check, NotPossible
from command_service.bank.conformance.trial import Trial, expect, named, the_only, unnamed
from command_service.values import Execute, Executed, RequestToken, Token

# A step of an honest adapter takes a few calls; one that takes more is tried so far.
_CALLS = 10


async def _one_token(trial: Trial) -> None:
    """Concurrently, after the execute step, and at another adapter."""
    asked = RequestToken(await trial.operation(), 0)
    token = the_only("repeated at once, the token step gave", await trial.at_once(asked))
    expect(isinstance(token, Token), "the token step gave no token", token)
    assert isinstance(token, Token)
    done = await trial.answer(Execute(asked.operation, token.token))
    expect(isinstance(done, Executed), "the execute step ended otherwise", done)
    again = await trial.answer(asked), await trial.later(asked)
    expect(set(again) == {token}, "repeated after the execute step, the token step gave", token, *again)


async def _one_execution(trial: Trial) -> None:
    """Concurrently and later; what is left shows that it was one."""
    effect = await trial.opened(await trial.operation())
    done = the_only("repeated at once, the execute step gave", await trial.at_once(effect))
    expect(isinstance(done, Executed), "the execute step ended otherwise", done)
    assert isinstance(done, Executed)
    again = await trial.answer(effect), await trial.later(effect)
    expect(set(again) == {done}, "repeated later, the execute step gave", done, *again)
    await books.agree(trial, effect.operation, effect.operation.on or done.transaction_id)


async def _once_though_nobody_heard(trial: Trial) -> None:
    """For each call that the two steps make. What was thrown away is handed over after its repeat, and both must agree."""
    calls = await _calls(trial)
    for nth in range(1, min(calls, _CALLS) + 1):
        operation = await trial.operation()
        trial.wire.throw(nth)
        asked = RequestToken(operation, 0)
        token = await trial.answer(asked, by=trial.losing)
        expect(isinstance(token, Token), f"after the answer to call {nth} was thrown away, the token step gave", token)
        assert isinstance(token, Token)
        effect = Execute(operation, token.token)
        done = await trial.answer(effect, by=trial.losing)
        expect(isinstance(done, Executed), f"after the answer to call {nth} was thrown away, it ended", done)
        assert isinstance(done, Executed)
        trial.wire.hand_over()
        for step, answer in ((asked, token), (effect, done)):
            first = await trial.once(step, by=trial.losing)
            is_other = isinstance(first, type(answer)) and first != answer
            expect(not is_other, f"the answer to call {nth} and its repeat are not the same", first, answer)
        again = await trial.later(effect)
        expect(again == done, f"repeated after the answer to call {nth} was thrown away", done, again)
        await books.agree(trial, operation, operation.on or done.transaction_id)


async def _calls(trial: Trial) -> int:
    operation, before = await trial.operation(), trial.wire.calls
    token = await trial.answer(RequestToken(operation, 0), by=trial.losing)
    if isinstance(token, Token):
        await trial.answer(Execute(operation, token.token), by=trial.losing)
    return trial.wire.calls - before


async def _same_after_looking(trial: Trial) -> None:
    """Before anything is known, when it is open, and when it is executed."""
    if not trial.subject.looks_up:
        raise NotPossible("the adapter looks nothing up at this bank")
    operation = await trial.operation()
    asked = RequestToken(operation, 0)
    token = await trial.answer(asked, look_up_first=True)
    expect(isinstance(token, Token), "looked up first, the token step of a new reference gave", token)
    assert isinstance(token, Token)
    again = await trial.answer(asked), await trial.later(asked, look_up_first=True)
    expect(set(again) == {token}, "looked up first, the token step gave", token, *again)
    effect = Execute(operation, token.token)
    done = await trial.answer(effect, look_up_first=True)
    expect(isinstance(done, Executed), "looked up first, the execute step of an open one gave", done)
    assert isinstance(done, Executed)
    ends = [await trial.answer(effect), await trial.later(effect, look_up_first=True)]
    if operation.opens and trial.finds_at_once:
        ends += [await trial.later(way(effect), look_up_first=True) for way in (named, unnamed)]
    expect(set(ends) == {done}, "looked up first, an executed one gave", done, *ends)
    token_again = await trial.later(asked, look_up_first=True)
    expect(token_again == token, "looked up first, the token step of an executed one gave", token, token_again)
    await books.agree(trial, operation, operation.on or done.transaction_id)


CHECKS = (
    Check("a repeated token step gives the same transaction", 1, KINDS, _one_token),
    Check("a repeated execute step is done once", 2, KINDS, _one_execution),
    Check("a step is done once though its answers were thrown away", 2, KINDS, _once_though_nobody_heard),
    Check("looked up first, a step ends as it would have", 2, KINDS, _same_after_looking),
)
