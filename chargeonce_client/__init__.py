"""The client of Chargeonce, typed, for asyncio.

    async with chargeonce_client.connect() as client:
        outcome = await client.charge("order-1", user_id="alice", card="tok_visa", amount=money(1250, "EUR"))

A call repeats its request, with the same key, until there is an answer. So `charge` returns an outcome, such as CHARGED or
DECLINED, or REQUIRES_ACTION with a step for the customer, or PENDING if patience was over before. A bank's decline is no error.
What a call may raise:

    ChargeonceError
    +-- CallFailed      with code, reason, advice, metadata, violations, retry_after
    |   +-- Refused     the service refuses this request as it is, and a repeat is useless: do as the advice says
    |   +-- Unsettled   no answer came: it is not known; the same call with the same key is safe, now or tomorrow
    +-- FeedBroken      the feed is not what it should be

A task may be cancelled during a call: the charge goes on. `client.desk` has the steps of operators. The messages of the
contract, `charging.v1`, are here too.
"""

from chargeonce_client.client import Client, Conditions, Positioned, connect, money
from chargeonce_client.desk import Desk
from chargeonce_client.errors import CallFailed, ChargeonceError, FeedBroken, Refused, Unsettled
from chargeonce_client.feed import Entry
from chargeonce_client.settings import Settings
from charging.v1.command_pb2 import (
    CaptureMode,
    CaptureRequest,
    CaptureResponse,
    ChargeRequest,
    ChargeResponse,
    OperationOutcome,
    OutcomeSource,
    RefundRequest,
    RefundResponse,
    VoidRequest,
    VoidResponse,
)
from charging.v1.common_pb2 import (
    Advice,
    AnswerKind,
    Attempts,
    Card,
    ChargeStatus,
    CustomerAction,
    DeclineReason,
    Lag,
    Money,
    OperationKind,
    OperationStatus,
    Resolution,
    ReviewReason,
)
from charging.v1.journal_pb2 import Event, Record
from charging.v1.operator_pb2 import (
    ApproveResolutionResponse,
    AskBankResponse,
    BankStatus,
    DeskOutcome,
    FindingKind,
    GetServerStatusResponse,
    LimitStatus,
    ListReconciliationsResponse,
    ProposeResolutionResponse,
    ReconcileFinding,
    ReconcileProgress,
    ReconcileResponse,
    Reconciliation,
)
from charging.v1.query_pb2 import (
    Charge,
    ChargeStage,
    CurrencySummary,
    ExplainChargeResponse,
    GetChargeHistoryResponse,
    GetChargeResponse,
    GetUserSummaryResponse,
    GetViewStatusResponse,
    HistoryEntry,
    JournalPosition,
    JournalStatus,
    ListChargesResponse,
    Operation,
    PossibleAction,
    ResolutionProposal,
    Situation,
    ViewState,
    WatchChargeResponse,
)

__all__ = [
    "Advice",
    "AnswerKind",
    "ApproveResolutionResponse",
    "AskBankResponse",
    "Attempts",
    "BankStatus",
    "CallFailed",
    "CaptureMode",
    "CaptureRequest",
    "CaptureResponse",
    "Card",
    "Charge",
    "ChargeRequest",
    "ChargeResponse",
    "ChargeStage",
    "ChargeStatus",
    "ChargeonceError",
    "Client",
    "Conditions",
    "CurrencySummary",
    "CustomerAction",
    "DeclineReason",
    "Desk",
    "DeskOutcome",
    "Entry",
    "Event",
    "ExplainChargeResponse",
    "FeedBroken",
    "FindingKind",
    "GetChargeHistoryResponse",
    "GetChargeResponse",
    "GetServerStatusResponse",
    "GetUserSummaryResponse",
    "GetViewStatusResponse",
    "HistoryEntry",
    "JournalPosition",
    "JournalStatus",
    "Lag",
    "LimitStatus",
    "ListChargesResponse",
    "ListReconciliationsResponse",
    "Money",
    "Operation",
    "OperationKind",
    "OperationOutcome",
    "OperationStatus",
    "OutcomeSource",
    "Positioned",
    "PossibleAction",
    "ProposeResolutionResponse",
    "ReconcileFinding",
    "ReconcileProgress",
    "ReconcileResponse",
    "Reconciliation",
    "Record",
    "RefundRequest",
    "RefundResponse",
    "Refused",
    "Resolution",
    "ResolutionProposal",
    "ReviewReason",
    "Settings",
    "Situation",
    "Unsettled",
    "ViewState",
    "VoidRequest",
    "VoidResponse",
    "WatchChargeResponse",
    "connect",
    "money",
]
