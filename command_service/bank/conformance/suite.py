"""All checks at a subject, one after another, kind by kind."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import httpx

from command_service.bank.conformance import books, ends, fields, steps
from command_service.bank.conformance.checks import (
    Broken,
    CannotBeTried,
    Check,
    Finding,
    Kept,
    NotPossible,
    NotTried,
    RuleBroken,
)
from command_service.bank.conformance.subject import Subject
from command_service.bank.conformance.throwing import Throwing
from command_service.bank.conformance.trial import Trial
from command_service.values import Kind

CHECKS: tuple[Check, ...] = tuple(
    sorted(steps.CHECKS + fields.CHECKS + ends.CHECKS + books.CHECKS, key=lambda check: check.promise)
)
# A bank that cannot be reached at all is soon told from one that is slow.
_FIRST_PATIENCE_SECONDS = 10.0


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
        first = Trial(replace(subject, patience_seconds=_FIRST_PATIENCE_SECONDS), Kind.CHARGE, banks, losing, wire)
        try:
            await first.executed(first.opening(Kind.CHARGE))
        except NotPossible as reason:
            raise CannotBeTried(f"a charge of the card {subject.approved_card} was not executed: {reason}") from None
        for check in checks:
            for kind in check.kinds:
                yield await _finding(check, Trial(subject, kind, banks, losing, wire))


def _nothing(inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    return inner


async def _finding(check: Check, trial: Trial) -> Finding:
    try:
        await check.run(trial)
    except RuleBroken as seen:
        return Finding(check, trial.kind, Broken(str(seen)))
    except NotPossible as reason:
        return Finding(check, trial.kind, NotTried(str(reason)))
    return Finding(check, trial.kind, Kept())
