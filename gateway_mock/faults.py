"""The faults that a test can order, and the effect of each on an answer.

Pure: no I/O and no clock. A fault is a value, `effect` says how the call that meets it ends, and a `Script` hands faults out,
first in, first out. The package's docstring describes each.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, assert_never

from gateway_mock.model import FOLLOWING, Operation
from gateway_mock.reading import BadField
from gateway_mock.wire import Answer, AnswerAndMore, Death, HalfAnswer, Reply, Silence, SlowAnswer

MAX_FAULTS = 1_000  # Each call looks through them all; a test orders a handful.
MAX_TIMES = 1_000_000  # For a test this is "always".
MAX_SECONDS = 3_600.0  # No test runs so long.

# Text that may stand in a header as it is, nonsense included: h11 refuses anything else.
_HEADER = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?)?")


class Step(StrEnum):
    """The question that a call puts to the bank."""

    TOKEN = "token"  # noqa: S105 - the name of a step, not a secret
    EXECUTE = "execute"
    LOOK_UP = "look_up"
    CANCEL = "cancel"


class Kind(StrEnum):
    """The kinds of faults."""

    # The work is not done.
    LOSE_REQUEST = "lose_request"
    HANG_BEFORE = "hang_before"
    ERROR_BEFORE = "error_before"
    THROTTLED = "throttled"
    REDIRECT = "redirect"
    REFUSE = "refuse"
    FORGET_TOKEN = "forget_token"  # noqa: S105 - the name of a fault, not a secret
    IN_PROGRESS = "in_progress"
    STOP_BEFORE = "stop_before"
    # The work is done, and the answer suffers.
    LOSE_ANSWER = "lose_answer"
    HANG_AFTER = "hang_after"
    RESET = "reset"
    ERROR_AFTER = "error_after"
    GARBAGE = "garbage"
    HALF_BODY = "half_body"
    SLOW_BODY = "slow_body"
    HUGE_BODY = "huge_body"
    WRONG_AMOUNT = "wrong_amount"
    WRONG_CURRENCY = "wrong_currency"
    WRONG_REFERENCE = "wrong_reference"
    WRONG_TOKEN = "wrong_token"  # noqa: S105 - the name of a fault, not a secret
    CONTRADICT = "contradict"
    EXTRA_ANSWER = "extra_answer"
    STOP_AFTER = "stop_after"
    # The work is done otherwise.
    DELAY = "delay"
    EXPIRE_TOKEN = "expire_token"  # noqa: S105 - the name of a fault, not a secret
    EXPIRE_HOLD = "expire_hold"
    ODD_TRANSACTION_ID = "odd_transaction_id"


# The parameters of each kind, with their defaults.
_PARAMETERS: Mapping[Kind, Mapping[str, Any]] = {
    Kind.HANG_BEFORE: {"seconds": 30.0},
    Kind.HANG_AFTER: {"seconds": 30.0},
    Kind.DELAY: {"seconds": 1.0},
    Kind.SLOW_BODY: {"seconds": 0.1},
    Kind.ERROR_BEFORE: {"status": 503},
    Kind.ERROR_AFTER: {"status": 503},
    Kind.REFUSE: {"status": 400},
    Kind.THROTTLED: {"retry_after": "1"},
    Kind.IN_PROGRESS: {"retry_after": "1"},
    Kind.REDIRECT: {"location": "/elsewhere"},
    Kind.HUGE_BODY: {"bytes": 1024 * 1024},
    Kind.EXTRA_ANSWER: {"seconds": 0.005, "status": 409, "body": {"error": "refused"}},
    Kind.ODD_TRANSACTION_ID: {"transaction_id": "4111111111111111"},
}

_REFUSALS = frozenset({400, 401, 403, 404, 409, 422})

# Some kinds make sense on some steps only.
_STEPS: Mapping[Kind, frozenset[Step]] = {
    Kind.CONTRADICT: frozenset({Step.EXECUTE}),
    Kind.ODD_TRANSACTION_ID: frozenset({Step.EXECUTE}),
    Kind.FORGET_TOKEN: frozenset(Step) - {Step.TOKEN},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as it was ordered. A parameter that is not its kind's has no meaning."""

    on: Step
    kind: Kind
    times: int = 1
    reference: str | None = None
    card: str | None = None
    operation: Operation | None = None
    """The kind of the transactions that it is for; in an order "kind"."""
    seconds: float = 0.0
    status: int = 0
    retry_after: str = ""
    location: str = ""
    bytes: int = 0
    body: Mapping[str, object] = field(default_factory=dict)
    transaction_id: str = ""

    def fields(self) -> dict[str, object]:
        """Give the fields of the order, defaults included."""
        order = {
            "on": self.on,
            "fault": self.kind,
            "times": self.times,
            "reference": self.reference,
            "card": self.card,
            "kind": self.operation,
        }
        return order | {name: getattr(self, name) for name in _PARAMETERS.get(self.kind, {})}


def parse(order: Mapping[str, object]) -> Fault:
    """Read the fault that a JSON object orders. Raises `BadField`."""
    on, name = order.get("on"), order.get("fault")
    if on not in list(Step):
        raise BadField("on")
    if name not in list(Kind):
        raise BadField("fault")
    step, kind = Step(str(on)), Kind(str(name))
    if step not in _STEPS.get(kind, Step):
        raise BadField("on")
    parameters = _PARAMETERS.get(kind, {})
    given: dict[str, Any] = {key: value for key, value in order.items() if key not in ("on", "fault")}
    for key, value in given.items():
        if key not in ("times", "reference", "card", "kind", *parameters):
            raise BadField(key if key in _FIELD_NAMES else "body")
        if not _is_allowed(kind, key, value):
            raise BadField(key)
    operation = Operation(given.pop("kind")) if "kind" in given else None
    return Fault(step, kind, operation=operation, **{**parameters, **given})


_FIELD_NAMES = frozenset(one.name for one in fields(Fault))


def _is_allowed(kind: Kind, key: str, value: Any) -> bool:
    number = type(value) in (int, float)
    match key:
        case "times":
            return type(value) is int and 1 <= value <= MAX_TIMES
        case "kind":
            return value in list(Operation)
        case "seconds":
            return number and 0 <= value <= MAX_SECONDS
        case "bytes":  # More than the longest body that a client of ours takes, and no more than fits into memory.
            return type(value) is int and 64 * 1024 < value <= 64 * 1024 * 1024
        case "status" if kind is Kind.REFUSE:
            return type(value) is int and value in _REFUSALS
        case "status" if kind is Kind.EXTRA_ANSWER:
            return type(value) is int and 200 <= value <= 599
        case "status":
            return type(value) is int and 500 <= value <= 599
        case "body":
            return isinstance(value, dict)
        case "retry_after" | "location":
            return isinstance(value, str) and _HEADER.fullmatch(value) is not None
        case _:  # These are the filters, and an id.
            return isinstance(value, str) and 1 <= len(value) <= 255


def effect(fault: Fault) -> Reply | Callable[[Answer], Reply]:
    """Say how the call ends: with a reply in place of the work, or with a changed answer once the work is done.

    `DELAY`, `EXPIRE_TOKEN`, `EXPIRE_HOLD` and `ODD_TRANSACTION_ID` change the work itself, which is the bank's; here they leave
    its answer alone.
    """
    match fault.kind:
        case Kind.LOSE_REQUEST:
            return Silence()
        case Kind.HANG_BEFORE:
            return Silence(fault.seconds)
        case Kind.ERROR_BEFORE:
            return answer(fault.status, {"error": "unavailable"})
        case Kind.THROTTLED:
            return answer(429, {"error": "throttled"}, ("retry-after", fault.retry_after))
        case Kind.REDIRECT:
            return answer(302, {"error": "moved"}, ("location", fault.location))
        case Kind.REFUSE:
            return answer(fault.status, {"error": "refused"})
        case Kind.FORGET_TOKEN:
            return answer(404, {"error": "token_unknown"})
        case Kind.IN_PROGRESS:
            return answer(202, {"result": "in_progress"}, ("retry-after", fault.retry_after))
        case Kind.STOP_BEFORE:
            return Death()
        case Kind.LOSE_ANSWER:
            return lambda _: Silence()
        case Kind.HANG_AFTER:
            return lambda _: Silence(fault.seconds)
        case Kind.RESET:
            return lambda _: Silence(reset=True)
        case Kind.ERROR_AFTER:
            return lambda _: answer(fault.status, {"error": "unavailable"})
        case Kind.GARBAGE:
            return lambda _: Answer(200, b"\x00\xff<html>not what you wanted")
        case Kind.HALF_BODY:
            return HalfAnswer
        case Kind.SLOW_BODY:
            return lambda said: SlowAnswer(said, fault.seconds)
        case Kind.HUGE_BODY:
            return lambda said: Answer(said.status, said.body.ljust(fault.bytes), said.headers)
        case Kind.WRONG_AMOUNT:
            return lambda said: _changed(said, amount=lambda amount: amount + 1)
        case Kind.WRONG_CURRENCY:
            return lambda said: _changed(said, currency=lambda currency: "USD" if currency != "USD" else "EUR")
        case Kind.WRONG_REFERENCE:
            return lambda said: _changed(said, reference=lambda reference: f"not-{reference}")
        case Kind.WRONG_TOKEN:
            return lambda said: _changed(said, token=lambda _: f"ttok_{0:032x}", key=lambda _: f"key_{0:032x}")
        case Kind.CONTRADICT:
            return lambda said: _changed(
                said,
                result=lambda _: "declined",
                state=lambda _: "declined",
                transaction_id=lambda _: None,
                reason=lambda _: "card_declined",
            )
        case Kind.STOP_AFTER:
            return lambda _: Death()
        case Kind.EXTRA_ANSWER:
            return lambda said: AnswerAndMore(said, answer(fault.status, fault.body), fault.seconds)
        case Kind.DELAY | Kind.EXPIRE_TOKEN | Kind.EXPIRE_HOLD | Kind.ODD_TRANSACTION_ID:
            return lambda said: said
        case _:
            assert_never(fault.kind)


def answer(status: int, body: object, *headers: tuple[str, str]) -> Answer:
    """Make an answer whose body is JSON."""
    return Answer(status, json.dumps(body, separators=(",", ":")).encode(), headers)


def _changed(said: Answer, **changes: Callable[[Any], object]) -> Answer:
    body = json.loads(said.body)
    return answer(said.status, body | {key: change(body[key]) for key, change in changes.items() if key in body})


class Script:
    """The faults ordered since the last `clear`, and how often each has fired."""

    def __init__(self) -> None:
        self._faults: dict[int, Fault] = {}
        self._fired: dict[int, int] = {}
        self._last = 0

    def add(self, fault: Fault) -> int | None:
        """Append it and return its number. None: there are `MAX_FAULTS` already."""
        if len(self._faults) >= MAX_FAULTS:
            return None
        self._last += 1
        self._faults[self._last] = fault
        self._fired[self._last] = 0
        return self._last

    def take(self, step: Step, *, reference: str | None, card: str | None, operation: Operation | None) -> Fault | None:
        """Give the first fault that waits for such a call, and count that it fired."""
        for number, fault in self._faults.items():
            if (
                fault.on is step
                and self._fired[number] < fault.times
                and fault.reference in (None, reference)
                and fault.card in (None, card)
                and fault.operation in (None, operation)
                and (fault.kind is not Kind.EXPIRE_HOLD or operation in FOLLOWING)
            ):
                self._fired[number] += 1
                return fault
        return None

    def listing(self) -> list[dict[str, object]]:
        """List all faults in order, with their numbers and how often each fired."""
        return [{"id": n, **fault.fields(), "fired": self._fired[n]} for n, fault in self._faults.items()]

    def forget(self, number: int) -> bool:
        """Forget one fault; return whether there was one of this number."""
        self._fired.pop(number, None)
        return self._faults.pop(number, None) is not None

    def clear(self) -> int:
        """Forget all faults, and return how many there were."""
        cleared = len(self._faults)
        self._faults.clear()
        self._fired.clear()
        return cleared
