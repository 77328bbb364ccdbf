"""The rules of a bank of one step: an order that carries a key is executed or declined at once.

Pure, as the rules of two steps in `model`, whose book of what may be captured and refunded holds here too.

* A key is bound to its first order. As long as the bank remembers the key, it gives back that order's payment.
* A bank remembers a key for a time, from its first use. After that time the same request is a new payment, and the card is
  charged again.
* A key that was called off before it was used is closed for ever: its order is then a payment that is cancelled. That key is
  never forgotten.
* It asks no customer for a step: a card of which a bank wants one is declined.
* A reference is our client's name for what it pays, and no key: the bank has as many payments under it as it was asked for.

A payment is a `Transaction` that is closed: its token is the key, and it does not expire.
"""

import math
from collections.abc import Iterable

from gateway_mock.model import (
    ASKING_CARDS,
    CANCELLED,
    CARDS,
    HOLD_MS,
    Closing,
    Refusal,
    Transaction,
    closing,
    funds_of,
    objection,
    order_of,
)

KEY_MS = 24 * 3_600_000.0
"""How long a key is remembered unless a bank is told otherwise: a day, as the documentation of real banks says."""

NEVER_MS = math.inf
"""When an order with a key expires: it waits for nothing."""


def is_remembered(payment: Transaction, now_ms: float, key_ms: float) -> bool:
    """Whether the key of a payment is still known."""
    return payment.state is CANCELLED or payment.closed_at_ms is None or now_ms < payment.closed_at_ms + key_ms


def saved(
    newest: Transaction | None, wanted: Transaction, now_ms: float, key_ms: float
) -> Transaction | Refusal | None:
    """Return what a request gets that repeats a key, given the newest payment of its key. None: the key is not known."""
    if newest is None or not is_remembered(newest, now_ms, key_ms):
        return None
    is_the_same = (newest.reference, *order_of(newest)) == (wanted.reference, *order_of(wanted))
    return newest if is_the_same else Refusal.KEY_REUSED


def carried_out(
    wanted: Transaction,
    opening: Transaction | None,
    followers: Iterable[Transaction],
    now_ms: float,
    transaction_id: str,
    hold_ms: float = HOLD_MS,
) -> Closing | Refusal:
    """Say how a new order ends. `opening` is the executed one that it follows, `followers` what was executed on that one."""
    funds, cards = None, CARDS
    if wanted.on is None:
        # It is declined, not refused: what is wrong with a customer's card is no mistake in the order.
        unknown = "authentication_required" if wanted.card in ASKING_CARDS else "card_unknown"
        cards = {wanted.card: CARDS.get(wanted.card, unknown)}
    elif opening is None:
        return Refusal.TRANSACTION_UNKNOWN
    elif (refused := objection(wanted, opening)) is not None:
        return refused
    else:
        funds = funds_of(opening, followers)
    end = closing(wanted, now_ms, transaction_id, cards, funds, hold_ms)
    if end is None:
        raise ValueError("the order is closed already")
    return end
