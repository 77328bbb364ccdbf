"""The streams of a journal by the contract: the operations of a charge, one after the other, and its money.

The order of events in an operation is that of `judge.grammar`, a file that is made from the core's own tables. The order of
operations, and the amounts that a charge's money allows, are worked out here a second time; `judge.desk` has operators' steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import ChargeStatus, DeclineReason, OperationStatus
from charging.v1.journal_pb2 import ChargeRequested, Event
from judge.desk import STEPS, Desk, Verdict
from judge.grammar import MOVED, NEXT, TOKEN_LIMIT
from judge.history import Record, Violation, charge_id_of, operation_id_of

OPENING = frozenset({"charge", "authorize"})
"""The kinds of operation with which a charge opens. The others follow."""
REVIEW = "review_required"
AT_REST = "AtRest"
AWAITS_CUSTOMER = "AwaitingCustomer"
REQUIRES_ACTION = ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
RESOLVING = "Resolving"
Entry = tuple[Record, str, Event]

_FOLLOWING = {"capture_requested": "capture", "void_requested": "void", "refund_requested": "refund"}
_STATUS_OF_A_CHARGE = {
    "": ChargeStatus.CHARGE_STATUS_PENDING,
    "charged": ChargeStatus.CHARGE_STATUS_CHARGED,
    "authorized": ChargeStatus.CHARGE_STATUS_AUTHORIZED,
    "charge_declined": ChargeStatus.CHARGE_STATUS_DECLINED,
    "charge_abandoned": ChargeStatus.CHARGE_STATUS_ABANDONED,
    "charge_called_off": ChargeStatus.CHARGE_STATUS_VOIDED,
    REVIEW: ChargeStatus.CHARGE_STATUS_IN_REVIEW,
}
# A void that calls a charge off has the charge's end, unless that is a hold.
_STATUS_OF_A_FOLLOWING_ONE = {
    "": OperationStatus.OPERATION_STATUS_PENDING,
    "captured": OperationStatus.OPERATION_STATUS_EXECUTED,
    "voided": OperationStatus.OPERATION_STATUS_EXECUTED,
    "refunded": OperationStatus.OPERATION_STATUS_EXECUTED,
    "charge_called_off": OperationStatus.OPERATION_STATUS_EXECUTED,
    "operation_declined": OperationStatus.OPERATION_STATUS_DECLINED,
    "authorization_expired": OperationStatus.OPERATION_STATUS_DECLINED,
    "charge_declined": OperationStatus.OPERATION_STATUS_DECLINED,
    "charged": OperationStatus.OPERATION_STATUS_DECLINED,
    "operation_abandoned": OperationStatus.OPERATION_STATUS_ABANDONED,
    "charge_abandoned": OperationStatus.OPERATION_STATUS_ABANDONED,
    REVIEW: OperationStatus.OPERATION_STATUS_IN_REVIEW,
}


@dataclass(slots=True)
class Book:
    """The money of a charge, in minor units. Only executed operations are written into it."""

    authorized: int = 0
    captured: int = 0
    refunded: int = 0
    voided: int = 0
    is_open: bool = False
    """A hold can still be captured or let go."""

    def left(self, kind: str) -> int:
        """The largest amount for an operation that follows; 0 if none of this kind may follow."""
        if kind == "refund":
            return self.captured - self.refunded
        return self.authorized - self.captured if self.is_open else 0

    def forbids(self, kind: str, amount: int) -> str:
        """Why an operation of this kind and amount may not follow; empty if it may."""
        left = self.left(kind)
        if not 0 < amount <= left:
            return f"a {kind} of {amount}, where {left} is left"
        return f"a void of {amount}, where {left} is held" if kind == "void" and amount != left else ""

    def write(self, kind: str, amount: int, *, is_final: bool) -> None:
        """Write an executed operation into it."""
        match kind:
            case "charge":
                self.authorized = self.captured = amount
            case "authorize":
                self.authorized, self.is_open = amount, True
            case "capture":
                self.captured += amount
                self.is_open = self.is_open and not is_final and self.captured < self.authorized
            case "void":
                self.voided += amount
                self.is_open = False
            case "refund":
                self.refunded += amount

    def amounts(self) -> tuple[int, int, int, int]:
        """Authorised, captured, refunded and let go by a void."""
        return self.authorized, self.captured, self.refunded, self.voided


@dataclass(slots=True)
class Operation:
    """An operation of a charge, as far as its stream tells."""

    kind: str
    key: str
    reference: str
    amount: int
    currency: str
    requested: Record
    is_final: bool = False
    takes_all: bool = False
    """It is for all that was left when it was requested."""
    state: str = "AwaitingToken"
    is_called_off: bool = False
    """The bank may be asked to call it off."""
    asks_customer: list[int] = field(default_factory=list)
    """The positions from which, in turn, its key was told that the customer is awaited, and that it is not so any more."""
    issued: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    ending: Entry | None = None
    """The entry with which it came to rest; None if it is under way."""
    review: Entry | None = None
    """The entry of its review, if it has been resolved since."""
    verdict: Verdict | None = None
    """What it was resolved by, if it was; also of the refund that was found with it."""

    @property
    def end(self) -> str:
        """The kind of event with which it came to rest; empty if it is under way."""
        return self.ending[1] if self.ending is not None else ""

    @property
    def is_executed(self) -> bool:
        """Whether the bank did it."""
        return self.end == MOVED[self.kind]

    @property
    def is_undone(self) -> bool:
        """Whether it is certain that the bank did not do it and will not."""
        return self.end not in ("", REVIEW) and not self.is_executed

    @property
    def transaction_id(self) -> str:
        """The bank's id of it; empty unless it is executed."""
        return str(self.body.transaction_id) if self.is_executed else ""

    @property
    def body(self) -> Any:
        """The message of the event with which it came to rest."""
        assert self.ending is not None
        return getattr(self.ending[2], self.ending[1])

    @property
    def status(self) -> int:
        """What its key is told: a ChargeStatus if it opens its charge, else an OperationStatus."""
        return (_STATUS_OF_A_CHARGE if self.kind in OPENING else _STATUS_OF_A_FOLLOWING_ONE)[self.end]

    def is_told_in_review(self, position: int) -> bool:
        """Whether its key was told at this position, before its end, that it is in review."""
        return self.review is not None and position >= self.review[0].position

    def status_at(self, position: int) -> int:
        """What its key was told at a position before its end."""
        if self.is_told_in_review(position):
            return (_STATUS_OF_A_CHARGE if self.kind in OPENING else _STATUS_OF_A_FOLLOWING_ONE)[REVIEW]
        times = sum(begun <= position for begun in self.asks_customer)
        return REQUIRES_ACTION if times % 2 else _STATUS_OF_A_CHARGE[""]

    @property
    def decline_reason(self) -> int:
        """What its key is told as the reason of a decline; 0 if it was not declined."""
        match self.end:
            case "charge_declined" | "operation_declined":
                return int(self.body.reason)
            case "authorization_expired":
                return DeclineReason.DECLINE_REASON_AUTHORIZATION_EXPIRED
            case "charged" if self.kind == "void":
                return DeclineReason.DECLINE_REASON_ALREADY_CHARGED
            case _:
                return 0


@dataclass(slots=True)
class Stream:
    """A charge's stream, as far as it can be read: `take` its entries in their order."""

    charge_id: str
    entries: list[Entry] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    """In the order of their requests. The first opens the charge."""
    book: Book = field(default_factory=Book)
    newest: Operation | None = None
    """The one whose events come now."""
    waiting: Operation | None = None
    """A void that waits for the end of the calling off."""
    desk: Desk = field(default_factory=Desk)
    resolved: Operation | None = None
    """The one whose outcome people have found last."""

    @property
    def requested(self) -> ChargeRequested:
        """The ChargeRequested, or an empty one."""
        return self.entries[0][2].charge_requested

    @property
    def opening(self) -> Operation | None:
        """The operation that opens the charge."""
        return self.operations[0] if self.operations else None

    @property
    def is_in_review(self) -> bool:
        """Whether the charge waits for a person."""
        return self.newest is not None and self.newest.end == REVIEW

    @property
    def in_review(self) -> Operation | None:
        """The operation that people must resolve: the opening one, if the void that called it off shares its review."""
        found = [one for one in (self.opening, self.newest) if one is not None and one.end == REVIEW]
        return found[0] if found else None

    @property
    def is_left_out(self) -> bool:
        """Whether its money is not compared with the bank's: people found its end, and the bank confirmed not all of it."""
        verdicts = [operation.verdict for operation in self.operations if operation.verdict is not None]
        return any(verdict.is_refunded or verdict.may_be_untrue for verdict in verdicts)

    @property
    def is_over_without_money(self) -> bool:
        """Whether no money has moved, and none will."""
        is_at_rest = self.newest is not None and self.newest.state == AT_REST and not self.is_in_review
        return is_at_rest and not self.book.captured and not self.book.is_open

    def following(self, key: str) -> Operation | None:
        """Find the operation of a key among those that follow."""
        return next((operation for operation in self.operations[1:] if operation.key == key), None)

    def take(self, record: Record, kind: str, event: Event) -> Iterator[Violation]:
        """Take the next entry. Yields what of I5, I6, I8, I14, I17 and I19 it breaks."""
        where = f"charge {self.charge_id}, position {record.position}"
        before = self.entries[-1][1] if self.entries else "nothing"
        self.entries.append((record, kind, event))
        if record.version != len(self.entries):
            yield Violation("I8", where, f"version {record.version} stands where {len(self.entries)} belongs")
        newest = self.newest
        if newest is None:
            if kind == "charge_requested":
                yield from self._open(record, event.charge_requested)
            else:
                yield Violation("I8", where, f"{kind} follows {before}")
            return
        if kind in STEPS:
            yield from self._at_the_desk(record, kind, getattr(event, kind), where)
            return
        if why := self.desk.found(kind, getattr(event, kind, None)):
            yield Violation("I19", where, why)
        state = NEXT.get((newest.kind, newest.state, kind))
        if kind in _FOLLOWING:
            may_follow = newest.state == AT_REST and newest.end != REVIEW
            if not may_follow and (state is None or self.waiting is not None):
                yield Violation("I8", where, f"{kind} follows {before} in a {newest.kind} that is {newest.state}")
                return
            yield from self._follow(record, _FOLLOWING[kind], getattr(event, kind), where, calls_off=not may_follow)
        elif state is None:
            yield Violation("I8", where, f"{kind} follows {before} in a {newest.kind}")
            return
        else:
            yield from _told(newest, kind, getattr(event, kind), self.requested, where)
        if state is not None:
            is_off_session = self.requested.off_session
            if not is_off_session and (newest.state == AWAITS_CUSTOMER) != (state == AWAITS_CUSTOMER):
                newest.asks_customer.append(record.position)
            newest.state = state
            newest.is_called_off |= state == "CallingOff" or (state == AWAITS_CUSTOMER and is_off_session)
        if state == AT_REST:
            self._end(newest, (record, kind, event))

    def _at_the_desk(self, record: Record, kind: str, step: Any, where: str) -> Iterator[Violation]:
        """I14, I19: an operator's step. Only an approval touches an operation: it opens the one in review again."""
        assert self.newest is not None
        if not step.actor or not step.reason:
            yield Violation("I14", where, f"{kind} names no actor or no reason")
        is_under_way = self.newest.state not in (AT_REST, RESOLVING)
        reviewed, proposed = self.in_review, self.desk.proposal
        if why := self.desk.take(
            record.position, kind, step, is_under_way=is_under_way, is_in_review=reviewed is not None
        ):
            yield Violation("I19", where, why)
        if kind == "resolution_approved" and reviewed is not None and proposed is not None:
            self._resolve(reviewed, Verdict(proposed[1], step))

    def _resolve(self, reviewed: Operation, verdict: Verdict) -> None:
        """Open the operation in review again, for the outcome that two people found; with it a void that shares its review."""
        newest = self.newest
        assert newest is not None
        for operation in (reviewed,) if newest is reviewed else (reviewed, newest):
            operation.review, operation.ending, operation.state = operation.ending, None, "AwaitingToken"
        if newest is not reviewed:
            self.waiting = newest
        self.newest = self.resolved = reviewed
        reviewed.state, reviewed.verdict = RESOLVING, verdict
        self.desk.expect(verdict, MOVED[reviewed.kind], opens=reviewed.kind in OPENING)

    def _open(self, record: Record, asked: ChargeRequested) -> Iterator[Violation]:
        """I6, I14: a key names one charge, and the request its tenant and actor."""
        kind = "authorize" if asked.capture == CaptureMode.CAPTURE_MODE_MANUAL else "charge"
        amount = asked.amount
        self.newest = Operation(
            kind, asked.idempotency_key, self.charge_id, amount.minor_units, amount.currency_code, record
        )
        self.operations.append(self.newest)
        if not asked.tenant or not asked.actor:
            yield Violation("I14", f"charge {self.charge_id}", "no tenant or no actor is named")
        expected = charge_id_of(asked.tenant, asked.idempotency_key)
        if asked.charge_id != self.charge_id or self.charge_id != expected:
            yield Violation("I6", f"key {asked.idempotency_key}", f"its charge must have the id {expected}")

    def _follow(self, record: Record, kind: str, asked: Any, where: str, *, calls_off: bool) -> Iterator[Violation]:
        """I5, I6, I14, I17: an operation follows, which has a key of its own in this charge, and for which money is left."""
        opening = self.operations[0]
        key, amount, left = asked.idempotency_key, asked.amount.minor_units, self.book.left(kind)
        if self.following(key) is not None:
            yield Violation("I6", f"key {key}", f"two operations of charge {self.charge_id} were requested under it")
        if asked.operation_id != (expected := operation_id_of(self.charge_id, kind, key)):
            yield Violation("I6", f"key {key}", f"its {kind} must have the id {expected}")
        if not asked.actor:
            yield Violation("I14", where, "no actor is named")
        if asked.amount.currency_code != opening.currency:
            yield Violation("I5", where, f"a {kind} in another currency than the charge's, {opening.currency}")
        if calls_off and amount != opening.amount:
            yield Violation("I17", where, f"a void of {amount} calls off a charge of {opening.amount}")
        if not calls_off and (why := self.book.forbids(kind, amount)):
            yield Violation("I17", where, f"requested was {why}")
        operation = Operation(
            kind,
            key,
            asked.operation_id,
            amount,
            asked.amount.currency_code,
            record,
            is_final=kind == "capture" and asked.final,
            takes_all=calls_off or amount == left,
        )
        self.operations.append(operation)
        if calls_off:
            self.waiting = operation
        else:
            if self.desk.expected and self.resolved is not None:  # people have found it with what it refunds
                operation.verdict = self.resolved.verdict
                if amount != self.resolved.amount:
                    yield Violation("I19", where, f"{amount} was found refunded, of {self.resolved.amount}")
            self.newest = operation

    def _end(self, operation: Operation, ending: Entry) -> None:
        operation.ending = ending
        if operation.is_executed:
            self.book.write(operation.kind, operation.amount, is_final=operation.is_final)
        if operation.end == "authorization_expired":
            self.book.is_open = False
        if (void := self.waiting) is not None:
            self.newest, self.waiting = void, None
            if operation.end != "authorized":
                void.state, void.ending = AT_REST, ending
        if self.newest is not None and self.newest.state == AT_REST:
            self.desk.is_held_back = False


def _told(operation: Operation, kind: str, body: Any, asked: ChargeRequested, where: str) -> Iterator[Violation]:
    """I5, I8: what an event that is no request says of its operation."""
    match kind:
        case "token_issued":
            operation.issued.append(body.token)
        case "token_expired":
            if body.token != operation.issued[-1]:
                yield Violation("I8", where, "another token expired than the one that was issued last")
            operation.expired.append(body.token)
            if len(operation.expired) == TOKEN_LIMIT + 1:
                yield Violation("I8", where, f"more than {TOKEN_LIMIT} tokens expired")
        case "charge_abandoned" | "operation_abandoned":
            if len(operation.issued) > len(operation.expired):
                yield Violation("I8", where, f"{kind} follows, and a token is open")
    if kind == MOVED[operation.kind]:
        told: tuple[object, ...] = body.amount.minor_units, body.amount.currency_code
        wanted: tuple[object, ...] = operation.amount, operation.currency
        if operation.kind in OPENING:
            told += body.user_id, body.card.token
            wanted += asked.user_id, asked.card.token
        if told != wanted:
            yield Violation("I5", where, f"{kind} says {told}, requested was {wanted}")
