"""From a client's message to a command: translated into the core's values, and screened."""

from collections.abc import Callable, Mapping

from charging.v1.command_pb2 import ChargeRequest
from chassis.caller import Caller
from chassis.refusals import Violation
from command_service import screening
from command_service.charge import Command
from command_service.codec import charge_id_of
from command_service.currencies import MAX_MINOR_UNITS
from command_service.values import Card, Money, Request
from contract.errors import Reason
from contract.errors import command_refusal as refusal

Intake = Callable[[ChargeRequest, Caller], Command]
"""Reads a message. Raises Refusal for faults that are refused before the key is looked up."""


def screened(max_amounts: Mapping[str, int]) -> Intake:
    """Make an intake that screens. `max_amounts` replaces the cap, in minor units, of the currencies that it names."""
    caps = {**MAX_MINOR_UNITS, **max_amounts}

    def read(wire: ChargeRequest, caller: Caller) -> Command:
        request = request_of(wire, caller)
        faults = screening.faults(request, caps)
        if refused := screening.always_refused(wire):
            # With today's other faults: otherwise a client that mends one would learn of the next only then.
            together = dict(faults) | dict(refused)
            raise refusal(Reason.INVALID_REQUEST, violations=[Violation(*fault) for fault in together.items()])
        return Command(request, faults)

    return read


def request_of(wire: ChargeRequest, caller: Caller) -> Request:
    """Read a message, unscreened."""
    return Request(
        charge_id=charge_id_of(caller.tenant, wire.idempotency_key),
        tenant=caller.tenant,
        idempotency_key=wire.idempotency_key,
        actor=caller.actor,
        user_id=wire.user_id,
        card=Card(wire.card.token, wire.card.brand, wire.card.last4),
        amount=Money(wire.amount.minor_units, wire.amount.currency_code),
        description=wire.description,
        metadata=tuple(sorted(wire.metadata.items())),
    )
