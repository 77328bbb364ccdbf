"""Promise 9: a look-up for people says how an operation stands, and changes nothing."""

from command_service.bank.conformance import books
from command_service.bank.conformance.checks import KINDS, OPENINGS, Check, NotPossible
from command_service.bank.conformance.trial import Trial, expect, named
from command_service.values import CalledOff, Execute, Executed, InProgress, NoAnswer, Token

_NO_END = Token | NoAnswer | InProgress


async def _changes_nothing(trial: Trial) -> None:
    """Before anything is known, when it is open, and when it is executed: then both steps are done as if nobody had looked."""
    _see_that_it_looks(trial)
    operation = await trial.operation()
    said = await trial.look(operation, None)
    expect(isinstance(said, CalledOff | _NO_END), "before the bank knew it, a look-up said", said)
    effect = await trial.opened(operation)
    ends = await trial.looks(operation, effect.token)
    expect(set(ends) == {Token(effect.token)}, "of an open one, look-ups said", *ends)
    done = await _executed(trial, effect)
    await trial.until_it_is_found()
    ends = await trial.looks(operation, effect.token) + await trial.looks(operation, None)
    expect(set(ends) == {done}, "of an executed one, look-ups said", done, *ends)
    await books.agree(trial, operation, operation.on or done.transaction_id)


async def _tells_no_end_too_early(trial: Trial) -> None:
    """Not of one that is open, nor of one that was executed just now: a look-up by reference may be late for both."""
    _see_that_it_looks(trial)
    is_known = await trial.asks_in_token_step()
    effect = await trial.opened(await trial.operation())
    said = await trial.look(effect.operation, None)
    is_true = isinstance(said, _NO_END) or (said == CalledOff() and not is_known)
    expect(is_true, "of an open one, a look-up without its token said", said)
    done = await _executed(trial, effect)
    for token in (effect.token, None):
        said = await trial.look(effect.operation, token)
        expect(said == done or isinstance(said, _NO_END), "of one executed just now, a look-up said", done, said)


async def _tells_what_was_called_off(trial: Trial) -> None:
    _see_that_it_looks(trial)
    effect = await trial.opened(await trial.operation())
    end = await trial.answer(named(effect))
    expect(end == CalledOff(), "called off, it was", end)
    await trial.until_it_is_found()
    ends = await trial.looks(effect.operation, effect.token)
    expect(set(ends) == {end}, "called off, a look-up said", *ends)


async def _executed(trial: Trial, effect: Execute) -> Executed:
    done = await trial.answer(effect)
    expect(isinstance(done, Executed), "after look-ups, the execute step ended otherwise", done)
    assert isinstance(done, Executed)
    return done


def _see_that_it_looks(trial: Trial) -> None:
    if not trial.subject.looks_up:
        raise NotPossible("the adapter looks nothing up at this bank")


CHECKS = (
    Check("a look-up tells how it stands, and changes nothing", 9, KINDS, _changes_nothing),
    Check("a look-up tells no end of what is open or executed", 9, KINDS, _tells_no_end_too_early),
    Check("a look-up tells what was called off", 9, OPENINGS, _tells_what_was_called_off),
)
