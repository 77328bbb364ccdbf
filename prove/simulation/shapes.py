"""The banks that a story has, of which shape each is, and what that means for those who pay there."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from judge.history import charge_id_of
from prove.simulation.bank import Lost
from prove.simulation.ops import Op

TWO_STEP, ONE_STEP, STRIPE = "two_step", "one_step", "stripe"
# Those of one story; they have the names of their places, but for a bank of two steps that is alone now and then.
SHAPES = (
    *((TWO_STEP,), (ONE_STEP,), (STRIPE,)),
    *((TWO_STEP, ONE_STEP), (ONE_STEP, STRIPE), (TWO_STEP, STRIPE)),
)
NAMES = ("acme", "bolt")
# For how long a bank knows a key. A sixth of it is the adapter's room for requests that are late, and for clocks: more than the
# lateness of anything in a story. It may be a day, in virtual time; but a breaker probes three times a minute.
KEY_SECONDS = (420.0, 420.0, 600.0)
# For how long a bank waits for a customer.
STEP_SECONDS = (3.0, 12.0, 25.0, 40.0)
# Cards that every bank approves.
GOOD_CARDS = ("tok_visa", "tok_mastercard")
# Cards whose bank wants a step of the customer, for cards without.
OF_A_CUSTOMER = {"tok_visa": "tok_3ds", "tok_mastercard": "tok_3ds", "tok_expired_card": "tok_3ds_declined"}


@dataclass(frozen=True, slots=True)
class BankPlan:
    """One of a story's banks."""

    name: str = ""
    """Empty: the bank of COMMAND_BANK_URL, which is of two steps."""
    kind: str = TWO_STEP
    key_seconds: float = math.inf
    """For how long it knows a key."""
    step_seconds: float = 900.0
    """For how long it waits for a customer, once faults have stopped."""
    away_seconds: float = 0.0
    """For how long it is away once, after an order; 0: it never is."""
    spares_openings: bool = False
    """That order is one that follows in a charge."""
    search_lag_seconds: float = 0.0
    """How late a search is."""


def banks(chance: random.Random) -> Sequence[BankPlan]:
    """Choose a story's banks."""
    kinds = chance.choice(SHAPES)
    if kinds == (TWO_STEP,) and chance.random() < 0.5:
        return (_bank("", TWO_STEP, chance),)
    return [_bank(name, kind, chance) for name, kind in zip(NAMES, kinds, strict=False)]


def _bank(name: str, kind: str, chance: random.Random) -> BankPlan:
    key_seconds = math.inf if kind == TWO_STEP else chance.choice(KEY_SECONDS)
    lag_seconds = chance.choice((0.0, 5.0, 60.0)) if kind == STRIPE else 0.0
    return BankPlan(name, kind, key_seconds, chance.choice(STEP_SECONDS), search_lag_seconds=lag_seconds)


def lost(chance: random.Random, clients: Sequence[Sequence[Op]]) -> Sequence[Lost]:
    """Choose charges that clients want, and that the bank has executed before: of keys under which they want one thing only."""
    wanted: dict[str, set[tuple[str, str, int | None, str, bool]]] = {}
    for op in (op for ops in clients for op in ops if op.method == "charge" and not op.spoiled):
        wanted.setdefault(op.key, set()).add((op.user, op.card, op.amount, op.currency, op.is_held))
    found = []
    for key, bodies in wanted.items():
        _, card, amount, currency, is_held = next(iter(bodies))
        if len(bodies) == 1 and amount and card in GOOD_CARDS and chance.random() < 0.7:
            age_seconds = chance.uniform(1.0, 1_200.0)
            found.append(Lost(charge_id_of("default", key), card, amount, currency, is_held, age_seconds))
    return found


def wish(op: Op, banks: Sequence[BankPlan]) -> Op:
    """What a client wants at these banks, where the plain story has this wish."""
    if any(bank.spares_openings for bank in banks):
        op = _of_good_card(op)
    elif any(bank.kind != ONE_STEP for bank in banks):
        op = _with_customer(op)
    return _of_whole_hold(op) if any(bank.kind == STRIPE for bank in banks) else op


def _of_whole_hold(op: Op) -> Op:
    """The same wish, at a bank that captures a hold once: by its key a capture is mostly the last one."""
    is_final = random.Random(f"the last of {op.charge_key} {op.key}").random() < 0.8
    return replace(op, is_final=True) if op.method == "capture" and is_final else op


def _of_good_card(op: Op) -> Op:
    """The same wish, where it matters what follows: no charge is declined."""
    return replace(op, card="tok_visa") if op.method == "charge" and not op.spoiled else op


def _with_customer(op: Op) -> Op:
    """The same wish, at banks that want a step of some customers: its key decides which."""
    if op.method != "charge":
        return op
    own = random.Random(f"customer of {op.key}")
    card = OF_A_CUSTOMER.get(op.card, op.card) if own.random() < 0.6 else op.card
    is_off_session, not_after_seconds = own.random() < 0.2, op.not_after_seconds
    if not_after_seconds is None and own.random() < 0.15:
        not_after_seconds = own.choice((2.0, 8.0, 20.0))
    return replace(op, card=card, is_off_session=is_off_session, not_after_seconds=not_after_seconds)
