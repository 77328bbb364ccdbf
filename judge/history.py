"""A history: the observations of a journal and its surroundings, and the meaning of the journal's records by the contract.

Clients' calls, the journal's records, the bank's movements and calls, the records that readers of the feed received and the
view's rows are values here, independent of their observer. The meaning of the records - the ids, the chain, the view, and in
`judge.streams` the operations and the money of a charge - is worked out a second time: nothing is shared with the product but
the contract in protos/, so that the product and its judge cannot share a mistake. The invariants of a history stand in
`judge.checker`.
"""

import hashlib
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from charging.v1.command_pb2 import (
    CaptureMode,
    CaptureRequest,
    CaptureResponse,
    ChargeRequest,
    ChargeResponse,
    RefundRequest,
    RefundResponse,
    VoidRequest,
    VoidResponse,
)
from charging.v1.common_pb2 import ChargeStatus
from charging.v1.journal_pb2 import Event
from judge.charges import Charge

# The contract's statuses of a charge: before an event that ends it, and after each such event.
PENDING = ChargeStatus.CHARGE_STATUS_PENDING
STATUS_AT_REST = {
    "charged": ChargeStatus.CHARGE_STATUS_CHARGED,
    "charge_declined": ChargeStatus.CHARGE_STATUS_DECLINED,
    "review_required": ChargeStatus.CHARGE_STATUS_IN_REVIEW,
    "charge_abandoned": ChargeStatus.CHARGE_STATUS_ABANDONED,
}
# The sums of the contract's CurrencySummary: of money that moved or is held, and of the amounts of charges in a status.
_SUMS_OF_MONEY = {"charged": "captured", "refunded": "refunded", "held": "held"}
_SUMS_OF_STATUS = {
    **{name: name for name in ("pending", "declined", "in_review", "abandoned", "voided", "authorization_expired")},
    "requires_action": "pending",
}
# The reasons for which, by the contract, nothing was stored.
NOTHING_STORED = frozenset(
    {
        *("INVALID_REQUEST", "BANK_UNREACHABLE", "TOO_MANY_UNFINISHED", "TOO_MANY_CALLS", "TENANT_LIMIT"),
        *(
            "DEADLINE_PASSED",
            "JOURNAL_FULL",
            "JOURNAL_BUSY",
            "JOURNAL_AWAY",
            "POSSIBLE_DUPLICATE",
            "CHARGE_NOT_FOUND",
            "MORE_THAN_IS_LEFT",
        ),
        *("OPERATION_DOES_NOT_FIT", "CHARGE_IN_REVIEW", "TOO_MANY_OPERATIONS", "OPERATION_UNDER_WAY"),
    }
)
# The reasons that leave no doubt about the operation that was asked for.
DEFINITE = NOTHING_STORED | {"IDEMPOTENCY_KEY_REUSED", "JOURNAL_CORRUPT"}
_CHAINED = struct.Struct(">32sQ16sQQ32s")

Row = Mapping[str, Any]
Request = ChargeRequest | CaptureRequest | VoidRequest | RefundRequest
Response = ChargeResponse | CaptureResponse | VoidResponse | RefundResponse


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: its name, the place (a key, a charge, a position), and the observation."""

    invariant: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.where}: {self.text}"


# ---------------------------------------------------------------- observations
@dataclass(frozen=True, slots=True)
class Call:
    """A client's call of Charge, Capture, Void or Refund, and how it ended for the client.

    ok: an answer, its fields as in ChargeResponse or OperationOutcome. refused: a definite error, with its reason and advice.
    unknown: no answer, or an error that leaves the outcome open (OUTCOME_UNKNOWN, SERVER_STOPPING, UNEXPECTED, a lost
    connection).
    """

    key: str
    user: str
    card: str
    amount: int | None
    """None: all that is left."""
    currency: str
    outcome: Literal["ok", "refused", "unknown"]
    charge_id: str = ""
    """By the answer; of an operation that follows in a charge and was not answered, by the request."""
    status: int = 0
    """A ChargeStatus, or an OperationStatus for an operation that follows."""
    transaction_id: str = ""
    decline_reason: int = 0
    position: int = 0
    outcome_source: int = 0
    reason: str = ""
    advice: str = ""
    durable_position: int | None = None
    """The journal's durable head when the answer was given; None if it was not observed."""
    tenant: str = "default"
    operation: Literal["charge", "capture", "void", "refund"] = "charge"
    """The method that was called."""
    is_final: bool = False
    """Of a capture: whether the rest was to be let go."""
    is_held: bool = False
    """Of a charge: whether it is to be captured later."""
    fingerprint: str = ""
    told_amount: int | None = None
    """The operation's amount by an answer; None in the answers of Charge, which name none."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the call's key names: a tenant's charge, or an operation that follows in a charge."""
        return (self.tenant, self.key) if self.operation == "charge" else (self.tenant, self.key, self.charge_id)

    @classmethod
    def answered(cls, request: Request, answer: Response, durable_position: int | None = None) -> "Call":
        """Make a call that was answered."""
        told = answer if isinstance(answer, ChargeResponse) else answer.outcome
        return cls(
            outcome="ok",
            status=told.status,
            transaction_id=told.transaction_id,
            decline_reason=told.decline_reason,
            position=told.position,
            outcome_source=told.outcome_source,
            durable_position=durable_position,
            told_amount=None if isinstance(told, ChargeResponse) else told.amount.minor_units,
            **{**_asked(request), "charge_id": told.charge_id},
        )

    @classmethod
    def failed(cls, request: Request, reason: str = "", advice: str = "") -> "Call":
        """Make a call that ended in an error, with the error's reason and advice if it had any."""
        outcome: Literal["refused", "unknown"] = "refused" if reason in DEFINITE else "unknown"
        return cls(outcome=outcome, reason=reason, advice=advice, **_asked(request))


@dataclass(frozen=True, slots=True)
class Record:
    """A record in the journal: `charge_id` as text, `recorded_at` in microseconds since 1970."""

    position: int
    charge_id: str
    version: int
    recorded_at: int
    chain: bytes
    event: bytes


@dataclass(frozen=True, slots=True)
class Movement:
    """A transaction that was executed, by the bank's statement. `card` is empty if the statement does not name it.

    An authorize takes a hold, which captures use up and a void lets go. `on` is the transaction that opened the charge, for a
    capture, a void and a refund.
    """

    transaction_id: str
    token: str
    reference: str
    minor_units: int
    currency_code: str
    kind: str = "charge"
    card: str = ""
    on: str = ""
    bank: str | None = None
    """The name of the bank whose statement it is; None if there is one bank only."""


@dataclass(frozen=True, slots=True)
class BankCall:
    """A call that reached the bank, in the order of arrival. A field that was not sent or not observed is empty or None."""

    step: Literal["token", "execute", "cancel", "look_up"]
    reference: str = ""
    token: str = ""
    card: str = ""
    amount: int | None = None
    currency: str = ""
    token_was_durable: bool | None = None
    """For an execute: whether the journal's synced image held the token when the call was made."""
    kind: str = ""
    on: str = ""
    bank: str | None = None
    """The name of the bank that was called; None if there is one bank only."""


@dataclass(frozen=True, slots=True)
class Session:
    """One subscription of the feed: (position, chain) of each record, as received."""

    after_position: int
    seen: Sequence[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class View:
    """The view's rows, by column name."""

    tenants: Sequence[Row]
    charges: Sequence[Row]
    operations: Sequence[Row]
    entries: Sequence[Row]
    steps: Sequence[Row]
    sums: Sequence[Row]
    totals: Sequence[Row]
    checkpoint: Row


@dataclass(frozen=True, slots=True)
class Observed:
    """All observations. Only `records` is always needed."""

    records: Sequence[Record]
    calls: Sequence[Call] = ()
    movements: Sequence[Movement] | None = None
    bank_calls: Sequence[BankCall] = ()
    view: View | None = None
    sessions: Sequence[Session] = ()
    anchor: tuple[int, bytes] | None = None
    """(position, chain) that the journal is known to have reached."""
    planted: Sequence[str] = ()
    """Card numbers that a client tried to bring in."""
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    """Files, logs, replies: no planted number may be found in them."""
    is_at_rest: bool = False
    """The faults have ended and enough time has passed: the liveness invariants must hold."""


def _asked(request: Request) -> dict[str, Any]:
    """The fields of a call that are its request's."""
    asked: dict[str, Any] = {"key": request.idempotency_key, "user": "", "card": "", "amount": None, "currency": ""}
    if not isinstance(request, VoidRequest) and request.HasField("amount"):
        asked |= {"amount": request.amount.minor_units, "currency": request.amount.currency_code}
    match request:
        case ChargeRequest():
            is_held = request.capture == CaptureMode.CAPTURE_MODE_MANUAL
            card = {"card": request.card.token, "fingerprint": request.card.fingerprint}
            return asked | card | {"user": request.user_id, "is_held": is_held}
        case CaptureRequest():
            return asked | {"operation": "capture", "charge_id": request.charge_id, "is_final": request.final}
        case VoidRequest():
            return asked | {"operation": "void", "charge_id": request.charge_id}
        case RefundRequest():
            return asked | {"operation": "refund", "charge_id": request.charge_id}
        case _:
            assert_never(request)


# ---------------------------------------------------------------- the meaning of the records
def charge_id_of(tenant: str, key: str) -> str:
    """The id that a tenant's key must have: UUIDv8 of SHA-256 over both, each after its length in 8 bytes."""
    return _id_of(tenant, key)


def operation_id_of(charge_id: str, kind: str, key: str) -> str:
    """The id that an operation that follows in a charge must have: made of its charge, kind and key by the same rule."""
    return _id_of(charge_id, kind, key)


def _id_of(*texts: str) -> str:
    parts = b"".join(len(part).to_bytes(8, "big") + part for part in (text.encode() for text in texts))
    raw = bytearray(hashlib.sha256(parts).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(raw)))


def chain_after(chain: bytes, record: Record) -> bytes:
    """The chain that a record must have after a record with this chain."""
    event_digest = hashlib.sha256(record.event).digest()
    key = uuid.UUID(record.charge_id).bytes
    packed = _CHAINED.pack(chain, record.position, key, record.version, record.recorded_at, event_digest)
    return hashlib.sha256(packed).digest()


def fold(records: Iterable[Record]) -> View:
    """Build the view that these records, the journal's first, must give."""
    tenants: dict[str, int] = {}
    charges: dict[str, Charge] = {}
    entries: list[dict[str, Any]] = []
    totals: dict[int, dict[str, Any]] = {}
    position, chain = 0, bytes(32)
    for record in records:
        event = Event.FromString(record.event)
        kind = event.WhichOneof("kind") or "unknown"
        position, chain = record.position, record.chain
        number = 0
        if kind == "charge_requested":
            tenant = tenants.setdefault(event.charge_requested.tenant, len(tenants) + 1)
            charges[record.charge_id] = Charge.requested(record, event.charge_requested, tenant)
            _count_in(totals, tenant, record.recorded_at)
        elif record.charge_id in charges and kind != "unknown":
            number = charges[record.charge_id].read(kind, event, record)
        else:
            continue  # no stream begins like that: I8 reports it
        charge = charges[record.charge_id]
        charge.settle()
        charge.row |= {"updated_at": record.recorded_at, "version": record.version, "position": position}
        entries.append(
            {
                "tenant": charge.row["tenant"],
                "charge_position": charge.row["requested_position"],
                "version": record.version,
                "position": record.position,
                "recorded_at": record.recorded_at,
                "event": Event.DESCRIPTOR.fields_by_name[kind].number,
                "status": charge.row["status"],
                "operation_number": number,
            }
        )
    rows = [charge.row for charge in charges.values()]
    return View(
        [{"name": name, "tenant": number} for name, number in tenants.items()],
        rows,
        [operation for charge in charges.values() for operation in charge.operations],
        entries,
        [step for charge in charges.values() for step in charge.steps],
        _sums(rows),
        list(totals.values()),
        {"position": position, "chain": chain},
    )


def _count_in(totals: dict[int, dict[str, Any]], tenant: int, requested_at: int) -> None:
    """Count one more charge of a tenant, requested at this time."""
    new = {"tenant": tenant, "charge_count": 0, "backstep": 0}
    row = totals.setdefault(tenant, new | {"earliest_requested_at": requested_at, "latest_requested_at": requested_at})
    row["charge_count"] += 1
    row["backstep"] = max(row["backstep"], row["latest_requested_at"] - requested_at)
    row["earliest_requested_at"] = min(row["earliest_requested_at"], requested_at)
    row["latest_requested_at"] = max(row["latest_requested_at"], requested_at)


def _sums(charges: Iterable[Row]) -> list[Row]:
    """Sum up charges, a row a tenant, user, currency and sum of the contract's CurrencySummary."""
    names = ("tenant", "user_id", "currency_code", "name")
    sums: dict[tuple[object, ...], dict[str, Any]] = {}
    for charge in charges:
        moved = {name: charge[f"{column}_minor_units"] for name, column in _SUMS_OF_MONEY.items()}
        amounts = {name: minor_units for name, minor_units in moved.items() if minor_units}
        status = ChargeStatus.Name(charge["status"]).removeprefix("CHARGE_STATUS_").lower()
        if status in _SUMS_OF_STATUS:
            amounts[_SUMS_OF_STATUS[status]] = charge["minor_units"]
        for name, minor_units in amounts.items():
            key = charge["tenant"], charge["user_id"], charge["currency_code"], name
            row = sums.setdefault(key, dict(zip(names, key, strict=True)) | {"charge_count": 0, "minor_units": 0})
            row["charge_count"] += 1
            row["minor_units"] += minor_units
    return list(sums.values())
