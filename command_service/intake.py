"""From a client's message to a command: translated into the core's values, and screened."""

from collections.abc import Callable, Mapping
from typing import assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1.command_pb2 import CaptureMode, CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from chassis import tracing
from chassis.caller import Caller
from chassis.refusals import Violation
from command_service import screening
from command_service.charge import Command, Follow
from command_service.codec import charge_id_of, operation_id_of
from command_service.currencies import MAX_MINOR_UNITS
from command_service.screening import AnyRequest, Faults
from command_service.values import Card, Kind, Money, Request, Wish
from contract.errors import Reason
from contract.errors import command_refusal as refusal

Intake = Callable[[AnyRequest, Caller], Command | Follow]
"""Reads a message. Raises Refusal for faults that are refused before the key is looked up."""

_MODES = frozenset(CaptureMode.values())

LATEST = 253_402_300_799_999_999
"""The last microsecond that a Timestamp may name, that of the year 9999."""


def screened(max_amounts: Mapping[str, int]) -> Intake:
    """Make an intake that screens. `max_amounts` replaces the cap, in minor units, of the currencies that it names."""
    caps = {**MAX_MINOR_UNITS, **max_amounts}

    def read(wire: AnyRequest, caller: Caller) -> Command | Follow:
        command: Command | Follow
        if isinstance(wire, ChargeRequest):
            request = request_of(wire, caller)
            faults = (*screening.faults(request, caps), *_faults_beside(wire, request))
            command = Command(request, faults, allow_duplicate=wire.allow_duplicate)
        else:
            wish = wish_of(wire, caller)
            command = Follow(wish, screening.faults_to_follow(wish))
        if refused := screening.always_refused(wire):
            # With today's other faults: otherwise a client that mends one would learn of the next only then.
            together = dict(command.faults) | dict(refused)
            raise refusal(Reason.INVALID_REQUEST, violations=[Violation(*fault) for fault in together.items()])
        return command

    return read


def request_of(wire: ChargeRequest, caller: Caller) -> Request:
    """Read a request for a charge, unscreened."""
    card = wire.card
    return Request(
        charge_id=charge_id_of(caller.tenant, wire.idempotency_key),
        tenant=caller.tenant,
        idempotency_key=wire.idempotency_key,
        actor=caller.actor,
        user_id=wire.user_id,
        card=Card(card.token, card.brand, card.last4, card.fingerprint),
        amount=Money(wire.amount.minor_units, wire.amount.currency_code),
        description=wire.description,
        metadata=tuple(sorted(wire.metadata.items())),
        is_held=wire.capture == CaptureMode.CAPTURE_MODE_MANUAL,
        not_after=_microseconds(wire.not_after) if wire.HasField("not_after") else 0,
        is_off_session=wire.off_session,
        return_url=wire.return_url,
        traceparent=tracing.current(),
    )


def wish_of(wire: CaptureRequest | VoidRequest | RefundRequest, caller: Caller) -> Wish:
    """Read a request for an operation that follows, unscreened."""
    amount, is_final, reason = None, False, ""
    match wire:
        case CaptureRequest():
            kind, is_final = Kind.CAPTURE, wire.final
        case VoidRequest():
            kind, reason = Kind.VOID, wire.reason
        case RefundRequest():
            kind, reason = Kind.REFUND, wire.reason
        case _:
            assert_never(wire)
    if not isinstance(wire, VoidRequest) and wire.HasField("amount"):
        amount = Money(wire.amount.minor_units, wire.amount.currency_code)
    operation_id = operation_id_of(wire.charge_id, kind, wire.idempotency_key)
    return Wish(
        kind,
        wire.charge_id,
        caller.tenant,
        wire.idempotency_key,
        operation_id,
        caller.actor,
        amount,
        is_final,
        reason,
        tracing.current(),
    )


def _faults_beside(wire: ChargeRequest, request: Request) -> Faults:
    """Find the faults of the fields that a plain charge leaves out."""
    faults: Faults = ()
    if wire.capture not in _MODES:
        faults = (*faults, ("capture", "must be automatic or manual"))
    # A time that has passed is none: a restored journal may have lost the charge, and the bank may have executed it in time.
    is_time = 0 < request.not_after <= LATEST and 0 <= wire.not_after.nanos < 1_000_000_000
    if wire.HasField("not_after") and not is_time:
        faults = (*faults, ("not_after", screening.NOT_AFTER_MALFORMED))
    return faults


def _microseconds(time: Timestamp) -> int:
    """Return a time in microseconds since 1970, whatever numbers a client put into it."""
    return time.seconds * 1_000_000 + time.nanos // 1_000
