"""Stripe's objects as far as they are read: strictly, and without a conclusion. https://docs.stripe.com/api/payment_intents/object

A member that is there and malformed makes the whole object unreadable; Stripe adds members at any time, which are ignored.
"""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from command_service.address import is_address
from command_service.bank.dialect import is_storable
from command_service.bank.stripe.units import in_minor_units
from command_service.bank.times import is_time
from command_service.values import value

STATUSES = frozenset(
    {
        "requires_payment_method",
        "requires_confirmation",
        "requires_action",
        "processing",
        "requires_capture",
        "canceled",
        "succeeded",
    }
)


@value
class Failure:
    """Why an attempt to pay failed, in two words of Stripe's: the error's code, and the issuer's reason."""

    code: str = ""
    decline_code: str = ""


@value
class Charge:
    """An attempt to pay of an intent. The amounts are in minor units, the time in seconds since 1970, 0 if none is told."""

    charge_id: str
    status: str
    captured_minor: int
    refunded_minor: int
    capture_before: int
    failure: Failure


@value
class Intent:
    """A PaymentIntent: Stripe's transaction, whatever becomes of it. The amounts are in minor units, `created` in seconds."""

    intent_id: str
    status: str
    amount_minor: int
    received_minor: int
    currency: str
    is_manual: bool
    created: int
    metadata: Mapping[str, str]
    cancellation_reason: str
    failure: Failure | None
    """Of the last attempt; None too if Stripe has cleared it, as it may whenever an intent is updated."""
    url: str
    """Where the customer takes the step that is wanted; empty if none is wanted, or it is not taken at an address."""
    charge: Charge | None
    """The newest attempt that reached the card; None if there is none."""
    has_method: bool
    """Whether a payment method is attached, so that it may be confirmed; a decline does not certainly take it away."""
    hides_charge: bool
    """The answer names the id of its charge only, so that `charge` is None though there is one."""

    @property
    def was_authorized(self) -> bool:
        """Whether the card's bank has said yes to it, whatever has become of the hold."""
        return self.status in ("requires_capture", "succeeded") or (
            self.charge is not None and self.charge.status == "succeeded"
        )


@value
class Refund:
    """A refund of an intent. The amount is in minor units."""

    refund_id: str
    intent_id: str
    status: str
    amount_minor: int
    currency: str
    metadata: Mapping[str, str]


def intent_in(said: Mapping[str, object]) -> Intent | None:
    """Read an intent. None: it is none, or malformed."""
    match said:
        case {
            "object": "payment_intent",
            "id": str(intent_id),
            "status": str(status),
            "amount": int(amount),
            "currency": str(currency),
            "capture_method": str(capture_method),
            "created": created,
            "metadata": metadata,
        } if is_storable(intent_id) and status in STATUSES and is_time(created):
            code, attempt = currency.upper(), said.get("latest_charge")
            amount_minor, received_minor = _minor(amount, code), _minor(said.get("amount_received", 0), code)
            charge = charge_in(attempt, code) if isinstance(attempt, Mapping) else None
            if amount_minor is None or received_minor is None or not _is_metadata(metadata):
                return None
            if charge is None and isinstance(attempt, Mapping):
                return None
            return Intent(
                intent_id,
                status,
                amount_minor,
                received_minor,
                code,
                capture_method == "manual",
                created,
                metadata,
                _text(said.get("cancellation_reason")),
                _failure(said.get("last_payment_error")),
                _url(said.get("next_action")),
                charge,
                said.get("payment_method", "") is not None,
                isinstance(attempt, str),
            )
    return None


def charge_in(said: Mapping[str, object], currency_code: str) -> Charge | None:
    """Read a charge of an intent in this currency. None: it is none, or malformed."""
    match said:
        case {
            "object": "charge",
            "id": str(charge_id),
            "status": str(status),
            "amount_captured": int(captured),
            "amount_refunded": int(refunded),
        } if is_storable(charge_id):
            captured_minor, refunded_minor = _minor(captured, currency_code), _minor(refunded, currency_code)
            if captured_minor is None or refunded_minor is None:
                return None
            outcome = said.get("outcome")
            reason = outcome.get("reason") if isinstance(outcome, Mapping) else None
            failure = Failure(_text(said.get("failure_code")), _text(reason))
            return Charge(charge_id, status, captured_minor, refunded_minor, _capture_before(said), failure)
    return None


def refund_in(said: Mapping[str, object]) -> Refund | None:
    """Read a refund. None: it is none, or malformed."""
    match said:
        case {
            "object": "refund",
            "id": str(refund_id),
            "payment_intent": str(intent_id),
            "status": str(status),
            "amount": int(amount),
            "currency": str(currency),
            "metadata": metadata,
        } if is_storable(refund_id):
            amount_minor = _minor(amount, currency.upper())
            if amount_minor is None or not _is_metadata(metadata):
                return None
            return Refund(refund_id, intent_id, status, amount_minor, currency.upper(), metadata)
    return None


def page_in(said: Mapping[str, object]) -> tuple[Sequence[Mapping[str, object]], bool] | None:
    """Read a page of a list or of a search: its objects, and whether there are more. None: it is none."""
    match said:
        case {"object": "list" | "search_result", "data": list(data), "has_more": bool(has_more)}:
            if all(isinstance(each, Mapping) for each in data):
                return data, has_more
    return None


def _minor(amount: object, currency_code: str) -> int | None:
    # In Python true is an int, and equals 1.
    return in_minor_units(amount, currency_code) if isinstance(amount, int) and not isinstance(amount, bool) else None


def _is_metadata(said: object) -> TypeGuard[Mapping[str, str]]:
    return isinstance(said, Mapping) and all(isinstance(content, str) for content in said.values())


def _failure(said: object) -> Failure | None:
    return Failure(_text(said.get("code")), _text(said.get("decline_code"))) if isinstance(said, Mapping) else None


def _url(next_action: object) -> str:
    match next_action:
        case {"redirect_to_url": {"url": str(url)}} if is_address(url):
            return url
    return ""


def _capture_before(charge: Mapping[str, object]) -> int:
    match charge:
        case {"payment_method_details": {"card": {"capture_before": seconds}}} if is_time(seconds):
            return seconds
    return 0


def _text(said: object) -> str:
    return said if isinstance(said, str) else ""
