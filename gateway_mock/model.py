"""The bank's rules: the effects of a token step, an execute step, time and a look-up on a transaction.

Pure: no I/O and no clock. Times come in, in milliseconds from any start, and so do new tokens and ids.

* A transaction is opened once and closed once: executed, declined or expired. Closed is for ever.
* A reference has at most one open transaction, and at most one that ever moves money: another is opened only after all
  before it have expired. Card, amount and currency of the first bind the reference.
* A late token is closed as expired before any answer says so.

Three banks keep these rules: the mock bank's ledger in SQLite asks the functions, the simulation's bank and the benchmark's
hold a `Book`. What goes wrong on the way to a bank, or in its answers, is each one's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

CARDS: Mapping[str, str | None] = {
    "tok_visa": None,
    "tok_mastercard": None,
    "tok_declined": "card_declined",
    "tok_insufficient_funds": "insufficient_funds",
    "tok_expired_card": "expired_card",
}
"""The cards that a bank knows, and why it declines each when it executes; None: it approves."""


class State(StrEnum):
    """How far a transaction has come. All but `CREATED` are for ever."""

    CREATED = "created"
    EXECUTED = "executed"
    DECLINED = "declined"
    EXPIRED = "expired"


# As names of the module: Python 3.11 takes 0.2 us to find one in its class (measured), and the benchmark's bank has no time.
CREATED, EXECUTED, DECLINED, EXPIRED = State


class Refusal(StrEnum):
    """Why a bank refuses a request, in its own word."""

    CARD_UNKNOWN = "card_unknown"
    REFERENCE_REUSED = "reference_reused"
    REFERENCE_UNKNOWN = "reference_unknown"
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105 - a word, not a secret
    FIELDS_DIFFER = "fields_differ"


STATUS: Mapping[Refusal, int] = {
    Refusal.CARD_UNKNOWN: 422,
    Refusal.REFERENCE_REUSED: 409,
    Refusal.REFERENCE_UNKNOWN: 404,
    Refusal.TOKEN_UNKNOWN: 404,
    Refusal.FIELDS_DIFFER: 409,
}
"""The HTTP status of each refusal."""


@dataclass(slots=True)
class Transaction:
    """A transaction. Only the `Book` that holds one changes it; one that SQLite gave may have been closed since."""

    token: str
    reference: str
    card: str
    amount_minor: int
    currency: str
    expires_at_ms: float
    state: State = CREATED
    closed_at_ms: float | None = None
    transaction_id: str | None = None
    """None unless executed."""
    reason: str | None = None
    """None unless declined."""

    def members(self) -> dict[str, object]:
        """The members that each answer about it has."""
        return {
            "token": self.token,
            "reference": self.reference,
            "card": self.card,
            "amount": self.amount_minor,
            "currency": self.currency,
            "transaction_id": self.transaction_id,
            "reason": self.reason,
        }


class Closing(NamedTuple):
    """How a transaction is closed."""

    state: State
    transaction_id: str | None = None
    reason: str | None = None


EXPIRY = Closing(EXPIRED)


# ---------------------------------------------------------------- the rules
def lapses(seen: Transaction, now_ms: float) -> bool:
    """Whether its time is over and it is to be closed as expired."""
    return seen.state is CREATED and seen.expires_at_ms <= now_ms


def issued(newest: Transaction | None, wanted: Transaction) -> Transaction | Refusal:
    """Return the result of a token step: the reference's newest transaction, or the wanted one, which is then to be opened.

    A newest one that lapses is to be closed before.
    """
    if newest is None:
        return wanted
    if (newest.card, newest.amount_minor, newest.currency) != (wanted.card, wanted.amount_minor, wanted.currency):
        return Refusal.REFERENCE_REUSED
    return wanted if newest.state is EXPIRED else newest


def closing(
    seen: Transaction, now_ms: float, transaction_id: str, cards: Mapping[str, str | None] = CARDS
) -> Closing | None:
    """How an execute step closes it, under this id if money moves. None: it is closed already."""
    if seen.state is not CREATED:
        return None
    if seen.expires_at_ms <= now_ms:
        return EXPIRY
    reason = cards[seen.card]
    return Closing(EXECUTED, transaction_id) if reason is None else Closing(DECLINED, reason=reason)


def told(closed: Transaction, *, by_this_call: bool) -> tuple[int, str, str]:
    """What an execute step says of a closed transaction: the status, and beside the `members` one more, with its word."""
    if closed.state is EXPIRED:
        return 410, "error", "token_expired"
    if closed.state is DECLINED:
        return 200, "result", "declined"
    return 200, "result", "executed" if by_this_call else "already_executed"


# ---------------------------------------------------------------- all transactions, in memory
class Book:
    """The transactions of a bank, in memory."""

    def __init__(self, cards: Mapping[str, str | None] = CARDS) -> None:
        self.by_token: dict[str, Transaction] = {}
        self.by_reference: dict[str, Transaction] = {}
        """The newest of each reference."""
        self.executed: list[Transaction] = []
        """The statement: each movement of money, in the order of execution."""
        self._cards = cards

    def issue(self, wanted: Transaction, now_ms: float) -> Transaction | Refusal:
        """Do the token step: give the reference's transaction, which is the wanted one if it is opened now."""
        if wanted.card not in self._cards:
            return Refusal.CARD_UNKNOWN
        got = issued(self.newest(wanted.reference, now_ms), wanted)
        if got is wanted:
            self.by_token[wanted.token] = self.by_reference[wanted.reference] = wanted
        return got

    def execute(
        self, token: str, now_ms: float, transaction_id: str, *, compared: tuple[object, object] | None = None
    ) -> tuple[Transaction, bool] | Refusal:
        """Do the execute step: give the transaction, closed, and whether this call has executed it.

        If the order named an amount and a currency, they are `compared` with the transaction's.
        """
        known = self.find(token, now_ms)
        if known is None:
            return Refusal.TOKEN_UNKNOWN
        if compared is not None and compared != (known.amount_minor, known.currency):
            return Refusal.FIELDS_DIFFER
        how = closing(known, now_ms, transaction_id, self._cards)
        if how is not None:
            self._close(known, how, now_ms)
        return known, how is not None and how.state is EXECUTED

    def find(self, token: str, now_ms: float) -> Transaction | None:
        """Look up by token."""
        return self._as_of(self.by_token.get(token), now_ms)

    def newest(self, reference: str, now_ms: float) -> Transaction | None:
        """Look up by reference."""
        return self._as_of(self.by_reference.get(reference), now_ms)

    def expire(self, token: str, now_ms: float) -> None:
        """Close the token's transaction as expired, before its time, unless it is closed."""
        if (known := self.by_token[token]).state is CREATED:
            self._close(known, EXPIRY, now_ms)

    def _as_of(self, known: Transaction | None, now_ms: float) -> Transaction | None:
        if known is not None and lapses(known, now_ms):
            self._close(known, EXPIRY, now_ms)
        return known

    def _close(self, known: Transaction, how: Closing, now_ms: float) -> None:
        known.state, known.closed_at_ms = how.state, now_ms
        known.transaction_id, known.reason = how.transaction_id, how.reason
        if how.state is EXECUTED:
            self.executed.append(known)
