"""A check: one rule, the promise behind it, the kinds of operation it is about, and how it ends."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from command_service.values import (
    Answer,
    CalledOff,
    Contradiction,
    Declined,
    Executed,
    Expired,
    InProgress,
    Kind,
    NeedsAction,
    NoAnswer,
    Refused,
    Token,
)

if TYPE_CHECKING:
    from command_service.bank.conformance.trial import Trial

KINDS = tuple(Kind)
OPENINGS = (Kind.CHARGE, Kind.AUTHORIZE)
FOLLOWING = (Kind.CAPTURE, Kind.VOID, Kind.REFUND)


class RuleBroken(Exception):
    """The bank broke the rule; the text says what was seen."""


class NotPossible(Exception):
    """The rule cannot be tried at this bank; the text says why."""


class Unanswered(NotPossible):
    """The bank came to no answer."""


class CannotBeTried(Exception):
    """Nothing can be tried at this bank; the text says why, and the way out."""


@dataclass(frozen=True, slots=True)
class Check:
    """One rule. `run` returns if the bank has kept it; it raises RuleBroken or NotPossible."""

    name: str
    promise: int
    kinds: tuple[Kind, ...]
    run: "Callable[[Trial], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class Kept:
    """The bank kept the rule."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The bank broke the rule."""

    seen: str


@dataclass(frozen=True, slots=True)
class NotTried:
    """The rule was not possible to try."""

    reason: str
    is_silence: bool = False
    """The bank came to no answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How a check ended for a kind of operation."""

    check: Check
    kind: Kind
    end: Kept | Broken | NotTried


# More answers than these are counted.
_TOLD = 3


def told(*answers: Answer) -> str:
    """Name answers for people, each once. No token and no address is told, since either lets others act."""
    tokens = list(dict.fromkeys(answer.token for answer in answers if isinstance(answer, Token)))
    names = list(
        dict.fromkeys(
            f"token {tokens.index(answer.token) + 1}" if isinstance(answer, Token) else _name(answer)
            for answer in answers
        )
    )
    more = [f"and {len(names) - _TOLD} more"] if len(names) > _TOLD else []
    return ", ".join([*names[:_TOLD], *more])


def _name(answer: Answer) -> str:
    match answer:
        case Executed(transaction_id):
            return f"executed as {transaction_id}"
        case Declined(reason):
            return f"declined ({reason.value})"
        case Refused(evidence):
            return f"refused (status {evidence.status})" if evidence.status else "refused"
        case Contradiction(evidence, reason):
            return f"a contradiction ({', '.join(evidence.fields) or reason.value})"
        case NoAnswer(our_setup=our_setup):
            return "no answer, since it does not accept us" if our_setup else "no answer"
        case Token():
            return "a token"
        case Expired():
            return "expired"
        case CalledOff():
            return "called off"
        case InProgress():
            return "in progress"
        case NeedsAction():
            return "the customer's step is wanted"
        case _:
            assert_never(answer)
