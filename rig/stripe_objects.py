"""Stripe's objects as its double keeps and tells them, its test cards, and its errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Form = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What becomes of a card: of each attempt "" for approved, or a decline code; the last word is for all later ones too."""

    attempts: tuple[str, ...] = ("",)
    wants_customer: bool = False
    processing_seconds: float = 0.0
    refund: str = "succeeded"
    lapses_at_once: bool = False
    is_single_use: bool = False


CARDS: dict[str, Behaviour] = {
    # Stripe's own, https://docs.stripe.com/testing
    "pm_card_visa": Behaviour(),
    "pm_card_mastercard": Behaviour(),
    "pm_card_visa_chargeDeclined": Behaviour(("generic_decline",)),
    "pm_card_visa_chargeDeclinedInsufficientFunds": Behaviour(("insufficient_funds",)),
    "pm_card_chargeDeclinedExpiredCard": Behaviour(("expired_card",)),
    "pm_card_chargeDeclinedProcessingError": Behaviour(("processing_error",)),
    "pm_card_authenticationRequired": Behaviour(wants_customer=True),
    "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds": Behaviour(("insufficient_funds",), True),
    "pm_card_pendingRefund": Behaviour(refund="pending"),
    "pm_card_refundFail": Behaviour(refund="failed"),
    # The double's
    "pm_card_declinedOnce": Behaviour(("generic_decline", "")),
    "pm_card_processing": Behaviour(processing_seconds=30.0),
    "pm_card_lapsesAtOnce": Behaviour(lapses_at_once=True),
    "pm_card_singleUse": Behaviour(is_single_use=True),
}
# A card's error has a code of its own for these; for all others it is card_declined.
_OWN_CODES = ("expired_card", "processing_error", "authentication_required")


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved, or was held or let go. The amount is in Stripe's units, the currency in small letters."""

    reference: str
    """Ours; empty for a hold that was let go by nobody's void."""
    kind: str
    """charge, authorize, capture, void or refund."""
    transaction_id: str
    amount: int
    currency: str
    on: str = ""


@dataclass(slots=True)
class Charge:
    """An attempt to pay of an intent that reached the card's bank."""

    charge_id: str
    status: str
    captured: int = 0
    refunded: int = 0
    failure_code: str | None = None
    decline_code: str | None = None
    capture_before: int = 0


@dataclass(slots=True)
class Intent:
    """A PaymentIntent."""

    intent_id: str
    amount: int
    currency: str
    created: float
    capture_method: str
    payment_method: str | None
    metadata: dict[str, str]
    status: str = "requires_confirmation"
    cancellation_reason: str | None = None
    last_error: dict[str, Any] | None = None
    charge: Charge | None = None
    action_url: str = ""
    attempts: int = 0
    done_at: float = 0.0
    """When processing ends, or the hold; 0 for neither."""
    has_lapsed: bool = False
    """The card's bank has let the hold lapse, and Stripe has not cancelled it yet."""


@dataclass(slots=True)
class Refund:
    """A refund of an intent."""

    refund_id: str
    intent_id: str
    amount: int
    currency: str
    status: str
    metadata: dict[str, str]


class StripeError(Exception):
    """What Stripe answers instead of an object; `saved` under the request's key, unless its parameters were not valid."""

    def __init__(self, status: int, kind: str, code: str | None = None, *, saved: bool = True, **more: Any) -> None:
        super().__init__(code)
        self.status = status
        self.saved = saved
        self.said = {"type": kind, "message": f"said by the double: {code}", **({"code": code} if code else {}), **more}


def invalid(code: str | None, *, status: int = 400, saved: bool = True, **more: Any) -> StripeError:
    """Make the error of a request that Stripe refuses."""
    return StripeError(status, "invalid_request_error", code, saved=saved, **more)


def declined(word: str) -> dict[str, Any]:
    """Make the error of an attempt that the card's bank declined by this code."""
    return {"code": word if word in _OWN_CODES else "card_declined", "decline_code": word}


EXPAND = "expand[]"
# The parameters of each order; those in the first text are required.
_PARAMETERS: Mapping[str, tuple[str, str]] = {
    "create": ("amount currency", "payment_method payment_method_types[] capture_method"),
    "update": ("", "payment_method"),
    "confirm": ("", "off_session return_url"),
    "capture": ("", "amount_to_capture"),
    "cancel": ("", "cancellation_reason"),
    "refund": ("payment_intent", "amount"),
}


def check(order: str, form: Form) -> None:
    """Refuse an order with a parameter that Stripe does not know, or without one that it needs. Raises StripeError."""
    required, allowed = (names.split() for names in _PARAMETERS[order])
    for name in form:
        if name not in (*required, *allowed, EXPAND):
            raise invalid("parameter_unknown", saved=False, param=name)
    for name in required:
        if not form.get(name):
            raise invalid("parameter_missing", saved=False, param=name)


def told_intent(intent: Intent, *, is_expanded: bool = False) -> Any:
    """Tell an intent, with its latest charge in full or by its id."""
    charge, action = intent.charge, {"type": "redirect_to_url", "redirect_to_url": {"url": intent.action_url}}
    return {
        "id": intent.intent_id,
        "object": "payment_intent",
        "amount": intent.amount,
        "amount_received": charge.captured if charge else 0,
        "cancellation_reason": intent.cancellation_reason,
        "capture_method": intent.capture_method,
        "created": int(intent.created),
        "currency": intent.currency,
        "last_payment_error": intent.last_error,
        "latest_charge": told_charge(intent) if charge and is_expanded else charge and charge.charge_id,
        "livemode": False,
        "metadata": intent.metadata,
        "next_action": action if intent.action_url else None,
        "payment_method": intent.payment_method,
        "status": intent.status,
    }


def told_charge(intent: Intent) -> Any:
    """Tell an intent's newest charge. It has the metadata that the intent had when it was confirmed."""
    charge = intent.charge
    assert charge is not None
    card = {"brand": "visa", **({"capture_before": charge.capture_before} if charge.capture_before else {})}
    return {
        "id": charge.charge_id,
        "object": "charge",
        "amount": intent.amount,
        "amount_captured": charge.captured,
        "amount_refunded": charge.refunded,
        "currency": intent.currency,
        "failure_code": charge.failure_code,
        "outcome": {"reason": charge.decline_code},
        "metadata": {name: text for name, text in intent.metadata.items() if name in ("reference", "kind", "card")},
        "payment_intent": intent.intent_id,
        "payment_method_details": {"type": "card", "card": card},
        "status": charge.status,
    }


def told_refund(refund: Refund) -> Any:
    """Tell a refund."""
    return {
        "id": refund.refund_id,
        "object": "refund",
        "amount": refund.amount,
        "currency": refund.currency,
        "metadata": refund.metadata,
        "payment_intent": refund.intent_id,
        "status": refund.status,
    }
