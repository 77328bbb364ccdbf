"""How far an operation of ours has come, by the intent or refund that Stripe shows: the meaning of each status, for each kind.

    the intent is             charge, authorize                    capture                      void
    ------------------------  -----------------------------------  ---------------------------  ---------------------------
    requires_confirmation     created                              declined, OTHER              declined, OTHER
    requires_payment_method   created: the execute step closes it  declined, OTHER              declined, OTHER
    requires_action           awaits the customer; without an      declined, OTHER              declined, OTHER
                              address or too late: created
    processing                in progress                          in progress                  in progress
    requires_capture          executed                             created                      created
    succeeded                 executed                             executed, if our reference   declined, OTHER
                                                                   captured it, else declined,
                                                                   OTHER
    canceled                  by the reason, see below             declined, by the reason      executed, if our reference
                                                                                                voided it, else declined,
                                                                                                by the reason

An intent that is canceled before its card was authorized: "abandoned" is our word for a decline, "automatic" and "expired" are
Stripe's for one that has expired, and by any other it was called off. One whose hold was authorized has executed its
authorize, however the hold was let go. A void lets it go as "requested_by_customer", and has left its reference before. To a
capture, and to another void, the hold has lapsed, unless people let it go, by that reason or "duplicate" or "fraudulent". (Of
a hold that people let go by that reason our void can only say that it is done.)

    an intent that is "abandoned" was declined by this reason, the first that is there
    ----------------------------------------------------------------------------------
    our mark `refused`                      BANK_REFUSED: Stripe refused its confirmation
    the last error, or the failed charge    the card's bank's (`errors`)
    none of them                            AUTHENTICATION_REQUIRED: the customer's step was not taken

A refund is executed if it succeeded, in progress while pending, and declined if it failed or was cancelled. One that Stripe
does not list is open, unless less than its amount is left to refund: then it is declined.
"""

from command_service.bank.dialect import Reply, Stage, Transaction
from command_service.bank.stripe.errors import reason_of
from command_service.bank.stripe.objects import Failure, Intent, Refund
from command_service.bank.transport import Exchange, no_answer
from command_service.values import DeclineReason, Effect, InProgress, Kind

_OF_STRIPE = frozenset({"automatic", "expired"})
CALLED_OFF = "requested_by_customer"
"""The reason that calling off and a void give to Stripe."""
CLOSED = "abandoned"
"""The reason that the execute step gives when it closes a declined intent, or one that waits in vain for the customer."""
_BY_PEOPLE = frozenset({CALLED_OFF, "duplicate", "fraudulent"})
_MICROSECONDS = 1_000_000

# Our fields in the metadata of Stripe's objects.
REFERENCE, KIND, CARD = "reference", "kind", "card"
CAPTURE, FINAL, VOID, REFUSED = "capture", "final", "void", "refused"

_KINDS = {Kind.CHARGE.value: Kind.CHARGE, Kind.AUTHORIZE.value: Kind.AUTHORIZE}


def opening(got: Exchange, intent: Intent, *, action_ends_at: int, now: float) -> Reply:
    """Read a charge or an authorize; `action_ends_at` and `now` are in seconds since 1970.

    An intent that bears no mark of ours cannot be read: it is no answer.
    """
    kind = _KINDS.get(intent.metadata.get(KIND, ""))
    if kind is None or intent.is_manual is not (kind is Kind.AUTHORIZE):
        return no_answer("an intent that is not ours")
    if intent.status == "processing":
        return InProgress(got.retry_after_seconds)
    awaits_customer = intent.status == "requires_action" and intent.url != "" and now < action_ends_at
    stage = Stage.AWAITS_CUSTOMER if awaits_customer else _stage(intent, kind)
    is_executed = stage is Stage.EXECUTED
    before = intent.charge.capture_before if intent.charge is not None and kind is Kind.AUTHORIZE else 0
    return Transaction(
        stage,
        intent.intent_id,
        intent.metadata.get(REFERENCE, ""),
        intent.metadata.get(CARD, ""),
        intent.amount_minor,
        intent.currency,
        intent.intent_id if is_executed else "",
        _why_declined(intent) if stage is Stage.DECLINED else None,
        got,
        kind,
        hold_expires_at=before * _MICROSECONDS if is_executed else 0,
        url=intent.url if awaits_customer else "",
        action_expires_at=action_ends_at * _MICROSECONDS if awaits_customer else 0,
    )


def _stage(intent: Intent, kind: Kind) -> Stage:
    match intent.status, intent.cancellation_reason:
        case ("succeeded", _):
            return Stage.EXECUTED
        case ("requires_capture", _) if kind is Kind.AUTHORIZE:
            return Stage.EXECUTED
        case ("canceled", _) if intent.was_authorized:
            return Stage.EXECUTED
        case ("canceled", reason) if reason == CLOSED:
            return Stage.DECLINED
        case ("canceled", reason) if reason in _OF_STRIPE:
            return Stage.EXPIRED
        case ("canceled", _):
            return Stage.CANCELLED
        case _:
            return Stage.CREATED


def _why_declined(intent: Intent) -> DeclineReason:
    """Say why an intent was closed: by our mark, else by its last error; if Stripe has cleared it, by the attempt that failed.

    Without any of them the card was never asked, since the customer's step was not taken.
    """
    if REFUSED in intent.metadata:
        return DeclineReason.BANK_REFUSED
    failed = intent.charge is not None and intent.charge.status == "failed"
    failure = intent.failure or (intent.charge.failure if failed and intent.charge else Failure())
    return DeclineReason.AUTHENTICATION_REQUIRED if failure == Failure() else reason_of(failure)


def following(got: Exchange, intent: Intent, effect: Effect) -> Reply:
    """Read a capture or a void from the intent that it acts on."""
    if intent.status == "processing":
        return InProgress(got.retry_after_seconds)
    operation, is_capture = effect.operation, effect.operation.kind is Kind.CAPTURE
    done, mark = ("succeeded", CAPTURE) if is_capture else ("canceled", VOID)
    is_ours = intent.status == done and intent.metadata.get(mark) == operation.reference
    if is_ours and (is_capture or intent.cancellation_reason == CALLED_OFF):
        stage, reason = Stage.EXECUTED, None
    elif intent.status == "requires_capture":
        stage, reason = Stage.CREATED, None
    elif intent.status == "canceled" and intent.cancellation_reason not in _BY_PEOPLE:
        stage, reason = Stage.DECLINED, DeclineReason.AUTHORIZATION_EXPIRED
    else:
        stage, reason = Stage.DECLINED, DeclineReason.OTHER
    is_executed = stage is Stage.EXECUTED
    charge_id = intent.charge.charge_id if intent.charge is not None else ""
    amount_minor = intent.received_minor if is_capture else intent.amount_minor
    is_final = intent.metadata.get(FINAL) == "true" if is_executed else operation.is_final
    return Transaction(
        stage,
        operation.reference,
        operation.reference,
        intent.metadata.get(CARD, ""),
        amount_minor if is_executed else operation.amount.minor_units,
        intent.currency,
        (charge_id if is_capture else intent.intent_id) if is_executed else "",
        reason,
        got,
        operation.kind,
        intent.intent_id,
        is_capture and is_final,
    )


def refund(got: Exchange, found: Refund, effect: Effect) -> Reply:
    """Read a refund of ours."""
    operation = effect.operation
    match found.status:
        case "succeeded":
            stage = Stage.EXECUTED
        case "failed" | "canceled":
            stage = Stage.DECLINED
        case _:
            return InProgress(got.retry_after_seconds)
    return Transaction(
        stage,
        operation.reference,
        found.metadata.get(REFERENCE, ""),
        operation.request.card.token,
        found.amount_minor,
        found.currency,
        found.refund_id if stage is Stage.EXECUTED else "",
        DeclineReason.OTHER if stage is Stage.DECLINED else None,
        got,
        Kind.REFUND,
        found.intent_id,
    )


def unlisted_refund(got: Exchange, intent: Intent, effect: Effect) -> Reply:
    """Read a refund that Stripe does not list from the intent that it acts on, as it was before the list was read.

    If its reference captured or voided the intent, it is that capture or void.
    """
    operation = effect.operation
    charge = intent.charge
    left_minor = charge.captured_minor - charge.refunded_minor if charge is not None else 0
    is_open = operation.amount.minor_units <= left_minor
    known_as = {intent.metadata.get(CAPTURE): Kind.CAPTURE, intent.metadata.get(VOID): Kind.VOID}
    return Transaction(
        Stage.CREATED if is_open else Stage.DECLINED,
        operation.reference,
        operation.reference,
        intent.metadata.get(CARD, ""),
        operation.amount.minor_units,
        intent.currency,
        "",
        None if is_open else DeclineReason.OTHER,
        got,
        known_as.get(operation.reference, Kind.REFUND),
        intent.intent_id,
    )
