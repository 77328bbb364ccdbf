"""The book of a charge: which operation its money allows, and for how much. Pure.

Only what the bank has executed, or has let lapse, is written into it. refunded <= captured <= authorised holds at every moment.

    operation  fits if                largest amount             once executed
    ---------  ---------------------  -------------------------  --------------------------------------------------
    charge     it opens the charge    -                          the amount is authorised and captured
    authorize  it opens the charge    -                          the amount is authorised, and the hold is open
    capture    the hold is open       authorised less captured   it is captured; a final one, or the last money, closes the hold
    void       the hold is open       authorised less captured   the hold is closed
    refund     something is captured  captured less refunded     it is refunded

A hold that lapses at the bank is closed.
"""

from dataclasses import replace
from typing import assert_never

from command_service.events import (
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    OperationAbandoned,
    OperationDeclined,
    Outcome,
    Refunded,
    ReviewRequired,
    Voided,
)
from command_service.values import Kind, Operation, value


@value
class Book:
    """The money of a charge, in minor units. `is_open`: the bank holds what is not captured. `has_lapsed`: its time is over."""

    authorized: int = 0
    captured: int = 0
    refunded: int = 0
    is_open: bool = False
    has_lapsed: bool = False

    def fits(self, kind: Kind) -> bool:
        """Whether a capture, a void or a refund may follow, if its amount is right."""
        return self.captured > 0 if kind is Kind.REFUND else self.is_open

    def left(self, kind: Kind) -> int:
        """The largest amount for an operation of this kind."""
        if kind is Kind.REFUND:
            return self.captured - self.refunded
        return self.authorized - self.captured if self.is_open else 0

    def after(self, operation: Operation, outcome: Outcome) -> "Book":
        """Return the book after an operation that came to rest."""
        minor_units = operation.amount.minor_units
        match outcome:
            case Charged():
                return Book(authorized=minor_units, captured=minor_units)
            case Authorized():
                return Book(authorized=minor_units, is_open=True)
            case Captured():
                captured = self.captured + minor_units
                is_open = captured < self.authorized and not operation.is_final
                return replace(self, captured=captured, is_open=is_open)
            case Voided():
                return replace(self, is_open=False)
            case AuthorizationExpired():
                return replace(self, is_open=False, has_lapsed=True)
            case Refunded():
                return replace(self, refunded=self.refunded + minor_units)
            case ChargeDeclined() | ChargeAbandoned() | ChargeCalledOff() | OperationDeclined() | OperationAbandoned():
                return self
            case ReviewRequired():
                return self
            case _:
                assert_never(outcome)
