"""What the clients of a story want: charges, and what follows in them, each under a key that other wishes may have too."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prove.simulation.bank import DECLINES

Method = Literal["charge", "capture", "void", "refund"]

# Visa's, Mastercard's and American Express's well-known test numbers.
CARD_NUMBERS = ("4111111111111111", "5555555555554444", "378282246310005")
SALE_CARDS = (
    *("tok_visa", "tok_visa", "tok_mastercard", "tok_declined"),
    *("tok_capture_declined", "tok_void_declined", "tok_refund_declined"),
)
# What a key mostly means, so that the operations of a story fit together more often than not.
METHODS: Sequence[Method] = ("capture", "refund", "void")
OF_A_HOLD: Mapping[str, Sequence[Method]] = {
    "one": ("capture",),
    "two": ("capture",),
    "three": ("refund",),
    "four": ("void", "void", "refund"),
}
OF_A_CHARGE: Mapping[str, Sequence[Method]] = {
    "one": ("refund",),
    "two": ("refund",),
    "three": ("refund", "void", "capture"),
    "four": ("refund",),
}
TIMEOUTS_SECONDS = (None, 0.1, 0.25, 1.0, 5.0, 30.0, 1e9)


@dataclass(frozen=True, slots=True)
class Op:
    """One thing that a client wants, with retries: which key, what body, how patiently."""

    pause_seconds: float
    key: str
    user: str
    card: str
    amount: int | None
    """None: all that is left."""
    currency: str
    timeout_seconds: float | None
    cancel_after_seconds: float | None
    tries: int
    spoiled: str = ""
    """What is wrong with the request: the field; "" for nothing."""
    planted: str = ""
    """A card number that is put into the spoiled field."""
    method: Method = "charge"
    charge_key: str = ""
    """The key of the charge in which it follows."""
    is_final: bool = False
    is_held: bool = False
    not_after_seconds: float | None = None
    """How long after the first try the charge may still be executed."""
    is_off_session: bool = False
    """Nobody is there to take a step that the bank may want."""


def charge(chance: random.Random, keys: Sequence[str], horizon: float) -> Op:
    """Want a charge under one of these keys."""
    key = chance.choice(keys)
    body = random.Random(key)  # a key has its own body, so that retries are retries
    user, card = (
        body.choice(("ada", "bob")),
        body.choice(("tok_visa", "tok_visa", "tok_mastercard", *DECLINES, "tok_unknown")),
    )
    amount, currency = body.randint(1, 99_999), body.choice(("EUR", "EUR", "USD", "JPY"))
    spoiled = planted = ""
    roll = chance.random()
    if roll < 0.12:  # another body under the same key
        match chance.randrange(4):
            case 0:
                user = "eve"
            case 1:
                card = "tok_mastercard" if card == "tok_visa" else "tok_visa"
            case 2:
                amount += 1
            case _:
                currency = "GBP"
    elif roll < 0.2:
        spoiled = chance.choice(("amount", "currency", "key", "user", "unknown_field"))
    elif roll < 0.26:
        spoiled, planted = chance.choice(("description", "user", "card", "key")), chance.choice(CARD_NUMBERS)
    return Op(
        pause_seconds=chance.expovariate(1.0) * chance.choice((0.0, 0.0, 0.2, horizon / 6)),
        key=key,
        user=user,
        card=card,
        amount=amount,
        currency=currency,
        timeout_seconds=chance.choice(TIMEOUTS_SECONDS),
        cancel_after_seconds=chance.uniform(0.0, 0.3) if chance.random() < 0.15 else None,
        tries=chance.choice((1, 2, 4)),
        spoiled=spoiled,
        planted=planted,
    )


def sales(chance: random.Random, seed: int, horizon: float) -> list[list[Op]]:
    """Clients that charge or authorise, and want more in these charges, their own and each other's; some call theirs off."""
    keys = [f"sale-{seed}-{number}" for number in range(chance.choice((1, 2, 2)))]
    clients = [_sale(chance, keys, horizon) for _ in range(chance.choice((1, 2, 3)))]
    for key in keys:
        if chance.random() < 0.25:
            left = replace(_opening(key), key="left", method="void", charge_key=key, amount=None, user="", card="")
            clients.append([replace(left, pause_seconds=chance.expovariate(4.0), timeout_seconds=5.0, tries=4)])
    return clients


def _sale(chance: random.Random, keys: Sequence[str], horizon: float) -> list[Op]:
    own = chance.choice(keys)
    late = chance.choice((0.05, 0.3, 2.0, 10.0)) if chance.random() < 0.15 else None
    wanted = [
        _following(chance, own if chance.random() < 0.8 else chance.choice(keys)) for _ in range(chance.randint(2, 6))
    ]
    if chance.random() < 0.8:
        wanted.sort(key=lambda op: op.key != "one")
    return [
        replace(
            op,
            pause_seconds=chance.expovariate(1.0) * chance.choice((0.0, 0.05, 0.3, horizon / 8)),
            timeout_seconds=chance.choice(TIMEOUTS_SECONDS),
            cancel_after_seconds=chance.uniform(0.0, 0.3) if chance.random() < 0.1 else None,
            tries=chance.choice((2, 4, 8)) if op.method == "charge" else chance.choice((1, 2, 4)),
        )
        for op in (replace(_opening(own), not_after_seconds=late), *wanted)
    ]


def _opening(key: str) -> Op:
    """The charge of a key: a sale that is held more often than not."""
    body = random.Random(key)
    card, amount = body.choice(SALE_CARDS), body.randint(4, 99_999)
    currency, is_held = body.choice(("EUR", "JPY")), body.random() < 0.6
    return Op(0.0, key, "ada", card, amount, currency, None, None, 1, is_held=is_held)


def _following(chance: random.Random, charge_key: str) -> Op:
    """What follows in a charge. Its key has a body of its own in each charge, and sometimes another one."""
    opening = _opening(charge_key)
    assert opening.amount is not None
    key = chance.choice(("one", "one", "two", "two", "three", "four", charge_key))
    body = chance if chance.random() < 0.15 else random.Random(f"{charge_key} {key}")
    method = body.choice((OF_A_HOLD if opening.is_held else OF_A_CHARGE).get(key, METHODS))
    whole, part = opening.amount, body.choice((2, 2, 3))
    amount: int | None = whole // part
    if key != "one":
        amount = body.choice((None, None, whole, whole // part, whole // part, whole + 1, body.randint(1, whole)))
    return replace(
        opening,
        key=key,
        user="",
        card="",
        amount=None if method == "void" else amount,
        method=method,
        charge_key=charge_key,
        is_final=method == "capture" and body.random() < 0.15,
        is_held=False,
    )
