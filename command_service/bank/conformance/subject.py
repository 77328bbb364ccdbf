"""The bank that is tried: how to reach it, what it is tried with, and what can be provoked there."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import httpx

from command_service.bank import Bank
from command_service.values import DeclineReason, Kind, Money

Between = Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport]
"""Puts something between an adapter and its connections to the bank."""
Provoke = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A bank to be tried. Checks that need what is not named here are not possible to try."""

    open_bank: Callable[[Between], Bank]
    """Opens an adapter with connections of its own, like one more process of ours."""
    approved_card: str
    """For this card each kind of operation is executed."""
    other_card: str = ""
    """Another one."""
    declined_cards: Mapping[Kind, Mapping[str, DeclineReason]] = field(default_factory=lambda: MappingProxyType({}))
    """For each kind the cards for which the bank declines it, and nothing that must be executed before it."""
    customer_card: str = ""
    """For this card the bank wants a step of the customer."""
    price: Money = Money(1250, "EUR")
    """At least 4 minor units."""
    other_currency: str = "USD"
    looks_up: bool = True
    """Whether the adapter can look an operation up."""
    lag_seconds: float = 0.0
    """For how long a look-up by our reference may not find what was just opened."""
    expire: Provoke | None = None
    """Has the bank close the open transaction of a reference as expired, now."""
    lapse: Provoke | None = None
    """Has the bank let the hold lapse, now, on which the transaction of a reference acts."""
    confirm: Provoke | None = None
    """Takes the customer's step at an address."""
    fail: Provoke | None = None
    """Fails in the customer's step at an address."""
    patience_seconds: float = 60.0
    """For how long a step is repeated that the bank does not answer, or is still at work on."""
