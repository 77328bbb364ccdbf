"""A charge as its events make it, by the contract: the rows that a view must show of it.

Like `judge.history` it shares nothing with the product: the money, the stage and the status are worked out anew from the
charge's operations after each event.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import ChargeStatus, DeclineReason, OperationKind, OperationStatus, ReviewReason
from charging.v1.journal_pb2 import Event, ResolutionProposed
from judge.desk import STEPS

# The contract's words for operations: by the event that begins one, and by the event that ends it.
_KIND, _STATUS = OperationKind, OperationStatus
_REQUESTS = {
    "capture_requested": _KIND.OPERATION_KIND_CAPTURE,
    "void_requested": _KIND.OPERATION_KIND_VOID,
    "refund_requested": _KIND.OPERATION_KIND_REFUND,
}
_OPERATION_AT_REST = {
    **dict.fromkeys(("charged", "authorized", "captured", "voided", "refunded"), _STATUS.OPERATION_STATUS_EXECUTED),
    **dict.fromkeys(
        ("charge_declined", "operation_declined", "authorization_expired"), _STATUS.OPERATION_STATUS_DECLINED
    ),
    **dict.fromkeys(("charge_abandoned", "operation_abandoned"), _STATUS.OPERATION_STATUS_ABANDONED),
    "review_required": _STATUS.OPERATION_STATUS_IN_REVIEW,
    "charge_called_off": _STATUS.OPERATION_STATUS_CALLED_OFF,
}
_PROPOSAL = ("resolution", "transaction_id", "refund_transaction_id", "evidence")
_UNDER_WAY = (_STATUS.OPERATION_STATUS_PENDING, _STATUS.OPERATION_STATUS_REQUIRES_ACTION)
# The status of a charge whose opening operation was not executed.
_NEVER_OPENED = {
    _STATUS.OPERATION_STATUS_PENDING: ChargeStatus.CHARGE_STATUS_PENDING,
    _STATUS.OPERATION_STATUS_REQUIRES_ACTION: ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION,
    _STATUS.OPERATION_STATUS_DECLINED: ChargeStatus.CHARGE_STATUS_DECLINED,
    _STATUS.OPERATION_STATUS_ABANDONED: ChargeStatus.CHARGE_STATUS_ABANDONED,
    _STATUS.OPERATION_STATUS_CALLED_OFF: ChargeStatus.CHARGE_STATUS_VOIDED,
    _STATUS.OPERATION_STATUS_IN_REVIEW: ChargeStatus.CHARGE_STATUS_IN_REVIEW,
}


@dataclass(slots=True)
class Charge:
    """A charge as far as its events are read: its row, the rows of its operations, and what no row says of its hold."""

    row: dict[str, Any]
    operations: list[dict[str, Any]]
    expires_at: int = 0
    has_lapsed: bool = False
    is_called_off: bool = False
    has_token: bool = False
    action: Any = None
    """The step that the bank wants of the customer."""
    is_resolving: bool = False
    """Two people have found the outcome of a review, and its event comes next."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """The rows of what operators did."""

    @classmethod
    def requested(cls, record: Any, asked: Any, tenant: int) -> "Charge":
        """Make the charge that a record with this ChargeRequested begins."""
        is_manual = asked.capture == CaptureMode.CAPTURE_MODE_MANUAL
        row = {
            "tenant": tenant,
            "requested_position": record.position,
            "charge_id": uuid.UUID(record.charge_id).bytes,
            "idempotency_key": asked.idempotency_key,
            "user_id": asked.user_id,
            "card_token": asked.card.token,
            "card_brand": asked.card.brand,
            "card_last4": asked.card.last4,
            "card_fingerprint": asked.card.fingerprint,
            "minor_units": asked.amount.minor_units,
            "currency_code": asked.amount.currency_code,
            "capture": CaptureMode.CAPTURE_MODE_MANUAL if is_manual else CaptureMode.CAPTURE_MODE_AUTOMATIC,
            "not_after": asked.not_after.ToMicroseconds() if asked.HasField("not_after") else 0,
            "description": asked.description,
            "metadata": json.dumps(dict(asked.metadata), sort_keys=True, ensure_ascii=False),
            "requested_at": record.recorded_at,
            "bank": asked.bank,
            "off_session": int(asked.off_session),
            "stage_since": record.recorded_at,
            "held_back": 0,
            "proposal": 0,
            "proposed_by": "",
        }
        kind = _KIND.OPERATION_KIND_AUTHORIZE if is_manual else _KIND.OPERATION_KIND_CHARGE
        return cls(row, [_operation(row, 0, kind, asked, record.recorded_at)])

    def read(self, kind: str, event: Event, record: Any) -> int:
        """Take in an event other than the first. Returns the number of the operation that it belongs to."""
        content, at = getattr(event, kind), record.recorded_at
        number = self._read_step(kind, content, record) if kind in STEPS else self._read(kind, content, at)
        unfinished = [operation for operation in self.operations if operation["status"] in _UNDER_WAY]
        since = at
        if unfinished:
            since = unfinished[0]["requested_at"]
        else:
            self.row["held_back"] = 0
        if kind not in STEPS:
            self.row["stage_since"] = max(since, self.row["requested_at"])
        return number

    def _read_step(self, kind: str, content: Any, record: Any) -> int:
        """Take in what an operator did about the operation under way, or the first one in review."""
        in_review = [one for one in self.operations if one["status"] == _STATUS.OPERATION_STATUS_IN_REVIEW]
        under_way = [one for one in self.operations if one["status"] in _UNDER_WAY]
        operation = (in_review or under_way)[0]
        operation["updated_at"] = record.recorded_at
        said = content if kind == "resolution_proposed" else ResolutionProposed()
        self.steps.append(
            {
                "tenant": self.row["tenant"],
                "charge_position": self.row["requested_position"],
                **{name: getattr(record, name) for name in ("version", "position", "recorded_at")},
                **{name: getattr(content, name) for name in ("actor", "reason")},
                **{name: getattr(said, name) for name in _PROPOSAL},
                "bank_said": getattr(content, "bank_said", 0),  # of an approval
                "contradicts_bank": int(getattr(content, "contradicts_bank", False)),
            }
        )
        if kind in ("held_back", "let_go"):
            self.row["held_back"] = int(kind == "held_back")
        if kind.startswith("resolution_"):
            is_open = kind == "resolution_proposed"
            self.row |= {"proposal": record.position * is_open, "proposed_by": said.actor}
        if kind == "resolution_approved":
            self.is_resolving = True
            for one in in_review:
                one |= {"status": _STATUS.OPERATION_STATUS_PENDING, "review_reason": 0}
        return int(operation["number"])

    def _read(self, kind: str, content: Any, at: int) -> int:
        unfinished = [operation for operation in self.operations if operation["status"] in _UNDER_WAY]
        if kind != "action_required" and self.action is not None:
            self.action, self.operations[0]["status"] = None, _STATUS.OPERATION_STATUS_PENDING
        if kind in _REQUESTS:
            self.is_called_off = bool(unfinished)
            self.operations.append(_operation(self.row, len(self.operations), _REQUESTS[kind], content, at))
            return len(self.operations) - 1
        operation = unfinished[0] if unfinished else self.operations[-1]
        operation["updated_at"] = at
        if kind in ("token_issued", "token_expired"):
            self.has_token = kind == "token_issued"
        elif kind == "not_after_passed":
            self.is_called_off = True
        elif kind == "action_required":
            self.action = content.action
            if not self.row["off_session"]:  # else nobody is to be sent there
                operation["status"] = _STATUS.OPERATION_STATUS_REQUIRES_ACTION
        else:
            self.has_token = self.is_called_off = self.is_resolving = False
            operation["status"] = _OPERATION_AT_REST[kind]
            operation["transaction_id"] = getattr(content, "transaction_id", "")
            if kind == "review_required":
                operation["review_reason"] = content.reason
            elif kind in ("charge_declined", "operation_declined"):
                operation["decline_reason"] = content.reason
            elif kind == "authorization_expired":
                operation["decline_reason"] = DeclineReason.DECLINE_REASON_AUTHORIZATION_EXPIRED
                self.has_lapsed = True
            elif kind == "authorized" and content.HasField("expires_at"):
                self.expires_at = content.expires_at.ToMicroseconds()
            for void in unfinished[1:]:
                self._end_with(void, operation, kind, at)
        return int(operation["number"])

    def _end_with(self, void: dict[str, Any], opening: Mapping[str, Any], kind: str, at: int) -> None:
        """The end of the opening operation, for a void that called it off: only an authorisation lets the void go on."""
        if kind == "authorized":
            return
        void["updated_at"] = at
        if kind == "charge_called_off":
            void["status"] = _STATUS.OPERATION_STATUS_EXECUTED
        elif kind == "charged":
            void["status"] = _STATUS.OPERATION_STATUS_DECLINED
            void["decline_reason"] = DeclineReason.DECLINE_REASON_ALREADY_CHARGED
        else:
            void |= {name: opening[name] for name in ("status", "decline_reason", "review_reason")}

    def settle(self) -> None:
        """Work out the charge's money, stage and status from its operations, anew after each event."""
        done = [one for one in self.operations if one["status"] == _STATUS.OPERATION_STATUS_EXECUTED]
        moved = {
            kind: sum(one["minor_units"] for one in done if one["kind"] == kind) for kind in OperationKind.values()
        }
        charged, authorized = moved[_KIND.OPERATION_KIND_CHARGE], moved[_KIND.OPERATION_KIND_AUTHORIZE]
        captured = charged + moved[_KIND.OPERATION_KIND_CAPTURE]
        refunded = moved[_KIND.OPERATION_KIND_REFUND]
        action = None if self.row["off_session"] else self.action
        is_closed = self.has_lapsed or any(one["final"] or one["kind"] == _KIND.OPERATION_KIND_VOID for one in done)
        held = 0 if is_closed else authorized + charged - captured
        self.row |= {
            "stage": self._stage(),
            "authorized_minor_units": authorized + charged,
            "captured_minor_units": captured,
            "refunded_minor_units": refunded,
            "held_minor_units": held,
            "hold_expires_at": self.expires_at if held else 0,
            "status": self._status(captured, refunded, held),
            "action_url": "" if action is None else action.url,
            "action_expires_at": 0 if action is None else action.expires_at.ToMicroseconds(),
            "given_up": int(self.operations[-1]["status"] == _STATUS.OPERATION_STATUS_ABANDONED),
        }

    def _stage(self) -> int:
        """0: at rest; 1 and 2: the token step, the execute step; 3 and 4: it is called off, without and with an open token.

        5: a step of the customer is awaited. 6: a review is resolved, and its outcome comes next.
        """
        if all(one["status"] not in _UNDER_WAY for one in self.operations):
            return 0
        if self.is_resolving:
            return 6
        if self.action is not None:
            return 5
        return 1 + self.has_token + 2 * self.is_called_off

    def _status(self, captured: int, refunded: int, held: int) -> int:
        opening, newest = self.operations[0], self.operations[-1]
        if newest["status"] == _STATUS.OPERATION_STATUS_IN_REVIEW:
            return ChargeStatus.CHARGE_STATUS_IN_REVIEW
        if opening["status"] != _STATUS.OPERATION_STATUS_EXECUTED:
            return _NEVER_OPENED[opening["status"]]
        if refunded:
            is_all = refunded == captured
            return ChargeStatus.CHARGE_STATUS_REFUNDED if is_all else ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED
        if captured:
            return ChargeStatus.CHARGE_STATUS_CHARGED
        if held:
            return ChargeStatus.CHARGE_STATUS_AUTHORIZED
        has_lapsed = self.has_lapsed
        return ChargeStatus.CHARGE_STATUS_AUTHORIZATION_EXPIRED if has_lapsed else ChargeStatus.CHARGE_STATUS_VOIDED


def _operation(charge: Mapping[str, Any], number: int, kind: int, asked: Any, at: int) -> dict[str, Any]:
    """Make the row of an operation that has only begun."""
    return {
        "tenant": charge["tenant"],
        "charge_position": charge["requested_position"],
        "number": number,
        "kind": kind,
        "idempotency_key": asked.idempotency_key,
        "minor_units": asked.amount.minor_units,
        "actor": asked.actor,
        "reason": getattr(asked, "reason", ""),
        "final": int(getattr(asked, "final", False)),
        "requested_at": at,
        "status": _STATUS.OPERATION_STATUS_PENDING,
        "transaction_id": "",
        "decline_reason": DeclineReason.DECLINE_REASON_UNSPECIFIED,
        "review_reason": ReviewReason.REVIEW_REASON_UNSPECIFIED,
        "updated_at": at,
    }
