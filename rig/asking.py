"""A client's request of whatever kind: how it is sent, its name at the bank, and what an answer tells."""

from collections.abc import Awaitable
from typing import Any, TypeGuard

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OperationOutcome
from charging.v1.common_pb2 import ChargeStatus
from judge.history import PENDING, Request, Response, charge_id_of, operation_id_of

FOR_GOOD = frozenset(
    {
        *("INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED", "MORE_THAN_IS_LEFT", "OPERATION_DOES_NOT_FIT"),
        "CHARGE_IN_REVIEW",
    }
)
"""The refusals after which an honest client does not send the same request again."""


def kind_of(request: Request) -> str:
    """Return what it asks for: charge, capture, void, refund."""
    return type(request).__name__.removesuffix("Request").lower()


def send(service: Any, request: Request, *arguments: Any, **options: Any) -> Awaitable[Response]:
    """Call the request's method of a stub, or of a service."""
    sent: Awaitable[Response] = getattr(service, kind_of(request).capitalize())(request, *arguments, **options)
    return sent


def reference_of(request: Request) -> str:
    """Return the name by which the bank knows it: the charge's id, or that of the operation that follows."""
    if isinstance(request, ChargeRequest):
        return charge_id_of("default", request.idempotency_key)
    return operation_id_of(request.charge_id, kind_of(request), request.idempotency_key)


def told_by(answer: Response) -> ChargeResponse | OperationOutcome:
    """Return how the charge or the operation stands, by an answer."""
    return answer if isinstance(answer, ChargeResponse) else answer.outcome


def is_decided(answer: Response) -> bool:
    """Whether an answer states an outcome. The contract's two enumerations have one number for PENDING."""
    return told_by(answer).status != PENDING and not awaits_customer(answer)


def awaits_customer(answer: Response) -> TypeGuard[ChargeResponse]:
    """Whether an answer says where to send the customer."""
    return isinstance(answer, ChargeResponse) and answer.status == ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
