"""The contract's words for charges and their operations, each looked up once: its enums look a name up in Python.

The names are short where the contract's are long; an operation that is NOT_DONE, for one, is DECLINED there.
"""

from typing import Final, Literal, get_args

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import ChargeStatus, DeclineReason, OperationKind, OperationStatus, ReviewReason

# The status of a charge.
PENDING: Final = ChargeStatus.CHARGE_STATUS_PENDING
REQUIRES_ACTION: Final = ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
CHARGED: Final = ChargeStatus.CHARGE_STATUS_CHARGED
DECLINED: Final = ChargeStatus.CHARGE_STATUS_DECLINED
IN_REVIEW: Final = ChargeStatus.CHARGE_STATUS_IN_REVIEW
PARTIALLY_REFUNDED: Final = ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED
REFUNDED: Final = ChargeStatus.CHARGE_STATUS_REFUNDED
ABANDONED: Final = ChargeStatus.CHARGE_STATUS_ABANDONED
AUTHORIZED: Final = ChargeStatus.CHARGE_STATUS_AUTHORIZED
VOIDED: Final = ChargeStatus.CHARGE_STATUS_VOIDED
AUTHORIZATION_EXPIRED: Final = ChargeStatus.CHARGE_STATUS_AUTHORIZATION_EXPIRED

# Whether a charge opens with a hold.
MANUAL: Final = CaptureMode.CAPTURE_MODE_MANUAL
AUTOMATIC: Final = CaptureMode.CAPTURE_MODE_AUTOMATIC

# The kind of an operation.
CHARGE: Final = OperationKind.OPERATION_KIND_CHARGE
AUTHORIZE: Final = OperationKind.OPERATION_KIND_AUTHORIZE
CAPTURE: Final = OperationKind.OPERATION_KIND_CAPTURE
VOID: Final = OperationKind.OPERATION_KIND_VOID
REFUND: Final = OperationKind.OPERATION_KIND_REFUND

# The status of an operation, and no reasons.
UNDER_WAY: Final = OperationStatus.OPERATION_STATUS_PENDING
ASKS_CUSTOMER: Final = OperationStatus.OPERATION_STATUS_REQUIRES_ACTION
EXECUTED: Final = OperationStatus.OPERATION_STATUS_EXECUTED
NOT_DONE: Final = OperationStatus.OPERATION_STATUS_DECLINED
UNKNOWN: Final = OperationStatus.OPERATION_STATUS_IN_REVIEW
GIVEN_UP: Final = OperationStatus.OPERATION_STATUS_ABANDONED
CALLED_OFF: Final = OperationStatus.OPERATION_STATUS_CALLED_OFF
NOT_DECLINED: Final = DeclineReason.DECLINE_REASON_UNSPECIFIED
NOT_IN_REVIEW: Final = ReviewReason.REVIEW_REASON_UNSPECIFIED

# The names of events in the contract: of those that end an operation executed, or otherwise, of an operator's, and of all.
Moved = Literal["charged", "authorized", "captured", "voided", "refunded"]
Undone = Literal[
    "charge_declined",
    "review_required",
    "charge_abandoned",
    "charge_called_off",
    "authorization_expired",
    "operation_declined",
    "operation_abandoned",
]
# Of an operator's steps, each with the operator and the reason.
DeskStepName = Literal[
    "try_requested",
    "held_back",
    "let_go",
    "resolution_proposed",
    "resolution_rejected",
    "resolution_approved",
]
EventName = (
    Literal[
        "charge_requested",
        "capture_requested",
        "void_requested",
        "refund_requested",
        "not_after_passed",
        "token_issued",
        "token_expired",
        "action_required",
    ]
    | Moved
    | Undone
    | DeskStepName
)
DESK_STEPS: Final[frozenset[str]] = frozenset(get_args(DeskStepName))
