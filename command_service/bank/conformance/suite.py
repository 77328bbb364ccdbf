"""All checks at a subject, one after another, kind by kind."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import httpx

from command_service.bank.conformance import books, ends, fields, looks, steps
from command_service.bank.conformance.checks import (
    Broken,
    CannotBeTried,
    Check,
    Finding,
    Kept,
    NotPossible,
    NotTried,
    RuleBroken,
    Unanswered,
)
from command_service.bank.conformance.subject import Subject
from command_service.bank.conformance.throwing import Throwing
from command_service.bank.conformance.trial import Trial
from command_service.values import Kind

CHECKS: tuple[Check, ...] = tuple(
    sorted(steps.CHECKS + fields.CHECKS + ends.CHECKS + books.CHECKS + looks.CHECKS, key=lambda check: check.promise)
)
# A bank that cannot be reached at all is soon told from one that is slow.
_FIRST_PATIENCE_SECONDS = 5.0


async def findings(subject: Subject, checks: Sequence[Check] = CHECKS) -> AsyncIterator[Finding]:
    """Try each check for each of its kinds, and yield how it ended.

    Raises CannotBeTried if the bank cannot be reached, does not accept us, or does not execute a charge of the approved card.
    """
    wires: list[Throwing] = []

    def throwing(inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        wires.append(Throwing(inner))
        return wires[0]

    async with contextlib.AsyncExitStack() as stack:
        *banks, losing = (subject.open_bank(between) for between in (_nothing, _nothing, throwing))
        for bank in (*banks, losing):
            stack.push_async_callback(bank.close)
        (wire,) = wires
        patience_seconds = min(_FIRST_PATIENCE_SECONDS, subject.patience_seconds)
        first = Trial(replace(subject, patience_seconds=patience_seconds), Kind.CHARGE, banks, losing, wire)
        await _see_that_it_works(first)
        for check in checks:
            for kind in check.kinds:
                end = await _end(check, Trial(subject, kind, banks, losing, wire))
                if isinstance(end, NotTried) and end.is_silence:
                    await _see_that_it_works(first)  # or each of the others would be waited for as well
                yield Finding(check, kind, end)


async def _see_that_it_works(first: Trial) -> None:
    try:
        await first.executed(first.opening(Kind.CHARGE))
    except Unanswered as reason:
        raise CannotBeTried(f"{reason}: see that it runs, and that this is its address, with its path") from None
    except (NotPossible, RuleBroken) as reason:
        raise CannotBeTried(f"{reason}: see that it approves this card, currency and amount") from None


def _nothing(inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    return inner


async def _end(check: Check, trial: Trial) -> Kept | Broken | NotTried:
    try:
        await check.run(trial)
    except RuleBroken as seen:
        return Broken(str(seen))
    except Unanswered as reason:
        return NotTried(str(reason), is_silence=True)
    except NotPossible as reason:
        return NotTried(str(reason))
    return Kept()
