"""What a client of real servers wants: a charge and what follows in it, of every kind, drawn by chance."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from charging.v1.command_pb2 import CaptureMode, CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from charging.v1.common_pb2 import Card, Money
from judge.history import Request, charge_id_of

CARDS = ("tok_visa", "tok_visa", "tok_mastercard", "tok_declined", "tok_insufficient_funds")
# In which something may follow; what follows is declined now and then.
SALE_CARDS = ("tok_visa",) * 4 + ("tok_capture_declined", "tok_void_declined", "tok_refund_declined")
# Some of the times that a charge has pass while it is under way.
LATEST_SECONDS = 0.5
Turns = tuple[tuple[Request, ...], ...]
"""The requests of each turn are sent at once, when those of the turn before are known. The first one is the charge's."""


@dataclass(frozen=True, slots=True)
class Sale:
    """A charge, and the making of requests that follow in it, each with a key of its own."""

    opening: ChargeRequest

    @property
    def amount(self) -> int:
        """The charge's, in minor units."""
        return self.opening.amount.minor_units

    def capture(self, name: str, minor_units: int | None = None, *, final: bool = False) -> CaptureRequest:
        """Capture so much, or all that is left."""
        return CaptureRequest(**self._named(name), amount=self._money(minor_units), final=final)

    def refund(self, name: str, minor_units: int | None = None) -> RefundRequest:
        """Give so much back, or all that is left."""
        return RefundRequest(**self._named(name), amount=self._money(minor_units))

    def void(self, name: str) -> VoidRequest:
        """Let go of what is held, or call the charge off."""
        return VoidRequest(**self._named(name))

    def _named(self, name: str) -> dict[str, str]:
        key = self.opening.idempotency_key
        return {"idempotency_key": f"{key}.{name}", "charge_id": charge_id_of("default", key)}

    def _money(self, minor_units: int | None) -> Money | None:
        currency = self.opening.amount.currency_code
        return None if minor_units is None else Money(minor_units=minor_units, currency_code=currency)


# ---------------------------------------------------------------- what may be wanted
def _alone(sale: Sale) -> Turns:
    return ((sale.opening,),)


def _refunded_in_parts(sale: Sale) -> Turns:
    third = sale.amount // 3
    return (sale.opening,), (sale.refund("one", third),), (sale.refund("two", third),), (sale.refund("three"),)


def _refunded_by_two(sale: Sale) -> Turns:
    """Both want more than half of it: one is refused."""
    most = sale.amount // 2 + 1
    return (sale.opening,), (sale.refund("one", most), sale.refund("two", most))


def _captured_in_parts(sale: Sale) -> Turns:
    return (sale.opening,), (sale.capture("one", sale.amount // 3),), (sale.capture("two"),), (sale.refund("three"),)


def _captured_at_last(sale: Sale) -> Turns:
    """The rest is released; what is wanted after that is refused."""
    return (
        (sale.opening,),
        (sale.capture("one", sale.amount // 2, final=True),),
        (sale.void("two"), sale.refund("three")),
    )


def _voided(sale: Sale) -> Turns:
    return (sale.opening,), (sale.void("one"),)


def _voided_in_part(sale: Sale) -> Turns:
    return (sale.opening,), (sale.capture("one", sale.amount // 3), sale.void("two"))


def _called_off(sale: Sale) -> Turns:
    return ((sale.opening, sale.void("one")),)


_OF_A_HOLD = (_captured_in_parts, _captured_at_last, _voided, _voided_in_part)
# How often each is wanted. A charge alone has declined cards too.
_WANTS: Mapping[Callable[[Sale], Turns], int] = {
    _alone: 6,
    **dict.fromkeys((_refunded_in_parts, _refunded_by_two, _captured_in_parts, _captured_at_last), 1),
    **dict.fromkeys((_voided, _voided_in_part), 1),
    _called_off: 2,
}


def wanted(chance: random.Random, key: str, *, is_calm: bool = False) -> Turns:
    """Draw what is wanted under a key.

    `is_calm`: nothing depends on which of two requests is the faster one, or on the time, so that whoever asks for the same
    again from the beginning gets the same.
    """
    want = chance.choices(list(_WANTS), list(_WANTS.values()))[0]
    opening = ChargeRequest(
        idempotency_key=key,
        user_id=chance.choice(("alice", "bob", "carol")),
        card=Card(token=chance.choice(CARDS if want is _alone else SALE_CARDS)),
        amount=Money(minor_units=chance.randrange(100, 100_000), currency_code="EUR"),
    )
    if want in _OF_A_HOLD or (want is _called_off and chance.random() < 0.5):
        opening.capture = CaptureMode.CAPTURE_MODE_MANUAL
    if want is _alone and not is_calm and chance.random() < 0.3:
        opening.not_after.FromNanoseconds(time.time_ns() + int(chance.uniform(0.0, LATEST_SECONDS) * 1e9))
    turns = want(Sale(opening))
    return tuple((request,) for turn in turns for request in turn) if is_calm else turns
