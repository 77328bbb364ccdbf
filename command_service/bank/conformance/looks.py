"""Promise 9: a look-up for people says how an operation stands, and changes nothing."""

from command_service.bank.conformance import books
from command_service.bank.conformance.checks import KINDS, OPENINGS, Check, NotPossible
from command_service.bank.conformance.trial import Trial, expect, named, the_only
from command_service.values import CalledOff, Executed, Token


async def _changes_nothing(trial: Trial) -> None:
    """Before anything is known, when it is open, and when it is executed: then both steps are done as if nobody had looked."""
    _see_that_it_looks(trial)
    operation = await trial.operation()
    said = the_only("before the bank knew it, look-ups said", await trial.looks(operation))
    expect(isinstance(said, CalledOff | Token), "before the bank knew it, a look-up said", said)
    effect = await trial.opened(operation)
    said = the_only("of an open one, look-ups said", await trial.looks(operation))
    is_known = trial.finds_at_once and await trial.asks_in_token_step()
    expect(
        said == Token(effect.token) or (not is_known and said == CalledOff()), "of an open one, a look-up said", said
    )
    done = await trial.answer(effect)
    expect(isinstance(done, Executed), "after look-ups, the execute step ended otherwise", done)
    assert isinstance(done, Executed)
    await trial.until_it_is_found()
    ends = await trial.looks(operation)
    expect(set(ends) == {done}, "of an executed one, look-ups said", done, *ends)
    await books.agree(trial, operation, operation.on or done.transaction_id)


async def _tells_what_was_called_off(trial: Trial) -> None:
    _see_that_it_looks(trial)
    effect = await trial.opened(await trial.operation())
    end = await trial.answer(named(effect))
    expect(end == CalledOff(), "called off, it was", end)
    await trial.until_it_is_found()
    ends = await trial.looks(effect.operation)
    expect(set(ends) == {end}, "called off, a look-up said", *ends)


def _see_that_it_looks(trial: Trial) -> None:
    if not trial.subject.looks_up:
        raise NotPossible("the adapter looks nothing up at this bank")


CHECKS = (
    Check("a look-up tells how it stands, and changes nothing", 9, KINDS, _changes_nothing),
    Check("a look-up tells what was called off", 9, OPENINGS, _tells_what_was_called_off),
)
