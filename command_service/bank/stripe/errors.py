"""Stripe's errors by type and code, and the words for a decline: the one table of each.

Sources: https://docs.stripe.com/api/errors, https://docs.stripe.com/error-codes, https://docs.stripe.com/declines/codes and
https://docs.stripe.com/error-low-level, read in November 2026.
"""

from collections.abc import Mapping
from enum import Enum

from command_service.bank.stripe.objects import Failure
from command_service.values import DeclineReason


class Verdict(Enum):
    """What an error says of the request that it answers."""

    REFUSED = "refused"  # Stripe has not done it, and the error is about the request.
    CLASHES = "clashes"  # Not done either: its key is known with other parameters. So the error is about the key.
    BUSY = "busy"  # Stripe is at it, or at another request of the same key or object.
    ENDED = "ended"  # The transaction has moved on: a look-up tells where to. If that finds it open, this is a refusal.
    LAPSING = "lapsing"  # The hold has lapsed, and Stripe will cancel its intent soon.
    UNKNOWN = (
        "unknown"  # It may have been done: a look-up tells. If that finds the transaction open, this is no answer.
    )


_CODES: Mapping[Verdict, str] = {
    Verdict.BUSY: "idempotency_key_in_use",
    Verdict.ENDED: """
        charge_already_captured charge_already_refunded payment_intent_authentication_failure
        payment_intent_payment_attempt_expired payment_intent_payment_attempt_failed payment_intent_unexpected_state
    """,
    Verdict.LAPSING: "capture_charge_authorization_expired charge_expired_for_capture",
    Verdict.REFUSED: """
        amount_too_large amount_too_small charge_disputed charge_exceeds_source_limit charge_exceeds_transaction_limit
        charge_not_refundable country_unsupported email_invalid invalid_charge_amount invalid_characters livemode_mismatch
        parameter_invalid_empty parameter_invalid_integer parameter_invalid_string_blank parameter_invalid_string_empty
        parameter_missing parameter_unknown parameters_exclusive payment_intent_incompatible_payment_method
        payment_intent_invalid_parameter payment_method_invalid_parameter payment_method_invalid_parameter_testmode
        payment_method_unactivated payment_method_unexpected_state payment_method_unsupported_type refund_disputed_payment
        resource_missing testmode_charges_only url_invalid
    """,
}
_VERDICTS = {
    ("invalid_request_error", code): verdict for verdict, codes in _CODES.items() for code in codes.split()
} | {
    ("idempotency_error", "idempotency_key_in_use"): Verdict.BUSY,
    # The same key with other parameters: a reference of ours is known with other fields.
    ("idempotency_error", ""): Verdict.CLASHES,
    # Many requests are refused with a text and no code.
    ("invalid_request_error", ""): Verdict.REFUSED,
}


def verdict_of(said: Mapping[str, object]) -> Verdict | None:
    """Judge the body of an answer that is no success. None: it is no error of Stripe's, but of a proxy or of another server."""
    error = said.get("error")
    if not isinstance(error, Mapping):
        return None
    kind, code = error.get("type"), error.get("code")
    if kind == "card_error":  # Its codes are the issuer's words, and new ones come.
        return Verdict.ENDED
    return _VERDICTS.get((str(kind), code if isinstance(code, str) else ""), Verdict.UNKNOWN)


# The codes of errors, and the issuer's codes for `card_declined`, that we have a word for. All others are CARD_DECLINED.
_REASONS = {
    "authentication_not_handled": DeclineReason.AUTHENTICATION_REQUIRED,
    "authentication_required": DeclineReason.AUTHENTICATION_REQUIRED,
    "payment_intent_authentication_failure": DeclineReason.AUTHENTICATION_REQUIRED,
    "payment_intent_payment_attempt_expired": DeclineReason.AUTHENTICATION_REQUIRED,
    "insufficient_funds": DeclineReason.INSUFFICIENT_FUNDS,
    "withdrawal_count_limit_exceeded": DeclineReason.INSUFFICIENT_FUNDS,
    "expired_card": DeclineReason.EXPIRED_CARD,
    "processing_error": DeclineReason.OTHER,
}


def reason_of(failure: Failure) -> DeclineReason:
    """Say in a word of ours why an attempt to pay failed."""
    for word in (failure.decline_code, failure.code):
        if word in _REASONS:
            return _REASONS[word]
    return DeclineReason.CARD_DECLINED if failure.code or failure.decline_code else DeclineReason.OTHER
