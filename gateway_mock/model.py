"""The bank's rules: the effects of a token step, an execute step, calling off, time and a look-up on a transaction.

Pure: no I/O and no clock. Times come in, in milliseconds from any start, and so do new tokens and ids.

* A transaction is opened once and closed once: executed, declined, expired or cancelled. Closed is for ever.
* A reference has at most one open transaction, and at most one that is ever executed: another is opened only after all
  before it have expired. The order of the first binds the reference.
* A late token is closed as expired before any answer says so.
* Of some cards a bank wants a step of the customer. An execute step of an opening then moves nothing: the transaction stays
  open, and *requires action*. The customer's confirming executes it, or declines it if the card is such a one; refusing
  declines it. Its time goes on, and whatever comes after that finds it expired.
* An *opening* (charge, authorize) names a card. A *following* one (capture, void, refund) acts on an executed opening. It is
  executed if the opening's funds allow it at that moment, and declined if they do not.

Three banks keep these rules: the mock bank's ledger in SQLite asks the functions, the simulation's bank and the benchmark's
hold a `Book`. What goes wrong on the way to a bank, or in its answers, is each one's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never


class Operation(StrEnum):
    """The kinds of transactions."""

    CHARGE = "charge"
    AUTHORIZE = "authorize"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


CHARGE, AUTHORIZE, CAPTURE, VOID, REFUND = Operation

FOLLOWING = frozenset({CAPTURE, VOID, REFUND})
"""The kinds that act on an executed opening. The others name a card."""

CARDS: Mapping[str, str | None] = {
    "tok_visa": None,
    "tok_mastercard": None,
    "tok_declined": "card_declined",
    "tok_insufficient_funds": "insufficient_funds",
    "tok_expired_card": "expired_card",
    "tok_slow": None,
    "tok_capture_declined": None,
    "tok_void_declined": None,
    "tok_refund_declined": None,
}
"""The cards that a bank knows, and why it declines to execute an opening of each; None: it approves."""

ASKING_CARDS: Mapping[str, str | None] = {"tok_3ds": None, "tok_3ds_declined": "card_declined"}
"""The cards of which a bank wants a step of the customer first, and why it declines what was confirmed; None: it approves."""

SLOW_CARDS: Mapping[str, float] = {"tok_slow": 2.0}
"""The cards of which the bank takes this many seconds to execute an opening."""

DECLINED_KINDS: Mapping[str, Operation] = {
    "tok_capture_declined": CAPTURE,
    "tok_void_declined": VOID,
    "tok_refund_declined": REFUND,
}
"""The cards for which one kind of following is declined, as card_declined."""

HOLD_MS = 7 * 24 * 3_600_000.0
"""How long a hold lasts unless a bank is told otherwise: a week, as many banks give."""


class State(StrEnum):
    """How far a transaction has come. All but the first two are for ever."""

    CREATED = "created"
    REQUIRES_ACTION = "requires_action"
    EXECUTED = "executed"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


# As names of the module: Python 3.11 takes 0.2 us to find one in its class (measured), and the benchmark's bank has no time.
CREATED, REQUIRES_ACTION, EXECUTED, DECLINED, EXPIRED, CANCELLED = State


class Refusal(StrEnum):
    """Why a bank refuses a request, in its own word."""

    CARD_UNKNOWN = "card_unknown"
    REFERENCE_REUSED = "reference_reused"
    REFERENCE_UNKNOWN = "reference_unknown"
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105 - a word, not a secret
    FIELDS_DIFFER = "fields_differ"
    TRANSACTION_UNKNOWN = "transaction_unknown"
    CURRENCY_DIFFERS = "currency_differs"
    KEY_REUSED = "key_reused"


STATUS: Mapping[Refusal, int] = {
    Refusal.CARD_UNKNOWN: 422,
    Refusal.REFERENCE_REUSED: 409,
    Refusal.REFERENCE_UNKNOWN: 404,
    Refusal.TOKEN_UNKNOWN: 404,
    Refusal.FIELDS_DIFFER: 409,
    Refusal.TRANSACTION_UNKNOWN: 422,
    Refusal.CURRENCY_DIFFERS: 422,
    Refusal.KEY_REUSED: 422,
}
"""The HTTP status of each refusal."""


@dataclass(slots=True)
class Transaction:
    """A transaction. Only the `Book` that holds one changes it; one that SQLite gave may have been closed since."""

    token: str
    reference: str
    card: str
    """A following one's is its opening's."""
    amount_minor: int
    currency: str
    expires_at_ms: float
    state: State = CREATED
    closed_at_ms: float | None = None
    transaction_id: str | None = None
    """None unless executed."""
    reason: str | None = None
    """None unless declined."""
    kind: Operation = CHARGE
    on: str | None = None
    """The transaction_id of the opening that it follows; None for an opening."""
    final: bool = False
    """Of a capture: whether it releases the rest of the hold."""
    hold_expires_at_ms: float | None = None
    """None unless it is an executed authorize."""
    return_url: str = ""
    """Of an opening: where the customer is sent back to after the step; empty if its order names none."""

    def members(self) -> dict[str, object]:
        """The members that each answer about it has. Times are not among them: each bank writes those in its own way."""
        members: dict[str, object] = {
            "token": self.token,
            "reference": self.reference,
            "kind": self.kind,
            "card": self.card,
            "amount": self.amount_minor,
            "currency": self.currency,
            "transaction_id": self.transaction_id,
            "reason": self.reason,
        }
        if self.on is not None:
            members["on"] = self.on
        if self.kind is CAPTURE:
            members["final"] = self.final
        return members


class Closing(NamedTuple):
    """How a transaction is closed; or `ASKING`: it stays open, and a step of the customer is wanted."""

    state: State
    transaction_id: str | None = None
    reason: str | None = None
    hold_expires_at_ms: float | None = None


EXPIRY = Closing(EXPIRED)
CANCELLATION = Closing(CANCELLED)
ASKING = Closing(REQUIRES_ACTION)
REFUSAL = Closing(DECLINED, reason="authentication_required")
"""The customer did not confirm."""


class Funds(NamedTuple):
    """The money of an executed opening: still held, captured, and refunded of that, in minor units."""

    held: int
    captured: int
    refunded: int
    hold_expires_at_ms: float | None
    """None: it is a charge, which never held anything."""


# ---------------------------------------------------------------- the rules
def is_open(seen: Transaction) -> bool:
    """Whether it can still be executed."""
    return seen.state is CREATED or seen.state is REQUIRES_ACTION


def lapses(seen: Transaction, now_ms: float) -> bool:
    """Whether its time is over and it is to be closed as expired."""
    return is_open(seen) and seen.expires_at_ms <= now_ms


def order_of(seen: Transaction) -> tuple[object, ...]:
    """Return the fields that bind a reference."""
    return seen.kind, seen.on or seen.card, seen.amount_minor, seen.currency, seen.final


def objection(wanted: Transaction, opening: Transaction | None) -> Refusal | None:
    """Why a following one cannot be opened, given the executed opening that it names, if there is one."""
    if opening is None:
        return Refusal.TRANSACTION_UNKNOWN
    return Refusal.CURRENCY_DIFFERS if opening.currency != wanted.currency else None


def issued(
    newest: Transaction | None, wanted: Transaction, opening: Transaction | None = None
) -> Transaction | Refusal:
    """Return the result of a token step: the reference's newest transaction, or the wanted one, which is then to be opened.

    A newest one that lapses is to be closed before. `opening` is the executed opening that a following one names.
    """
    if newest is not None:
        if order_of(newest) != order_of(wanted):
            return Refusal.REFERENCE_REUSED
        if newest.state is not EXPIRED:
            return newest
    return wanted if wanted.on is None else objection(wanted, opening) or wanted


def funds_of(opening: Transaction, followers: Iterable[Transaction]) -> Funds:
    """Sum up an executed opening and the executed ones that follow it, in their order."""
    held, captured, refunded = (0, opening.amount_minor, 0) if opening.kind is CHARGE else (opening.amount_minor, 0, 0)
    for follower in followers:
        match follower.kind:
            case Operation.CAPTURE:
                captured += follower.amount_minor
                held = 0 if follower.final else held - follower.amount_minor
            case Operation.VOID:
                held = 0
            case Operation.REFUND:
                refunded += follower.amount_minor
            case Operation.CHARGE | Operation.AUTHORIZE:
                raise ValueError("an opening follows nothing")
            case _:
                assert_never(follower.kind)
    return Funds(held, captured, refunded, opening.hold_expires_at_ms)


def broken_rule(following: Transaction, funds: Funds, now_ms: float) -> str | None:
    """The first rule that executing it now would break, as the reason of its decline."""
    if following.kind is REFUND:
        if funds.captured == 0:
            return "not_captured"
        return "more_than_captured" if following.amount_minor > funds.captured - funds.refunded else None
    if funds.hold_expires_at_ms is None:
        return "nothing_held"
    if funds.held == 0:
        return "released"
    if funds.hold_expires_at_ms <= now_ms:
        return "authorization_expired"
    if following.kind is CAPTURE:
        return "more_than_authorized" if following.amount_minor > funds.held else None
    return "amount_differs" if following.amount_minor != funds.held else None


def closing(
    seen: Transaction,
    now_ms: float,
    transaction_id: str,
    cards: Mapping[str, str | None] = CARDS,
    funds: Funds | None = None,
    hold_ms: float = HOLD_MS,
) -> Closing | None:
    """How an execute step closes it, under this id if it is executed. None: nothing changes, it is closed or asked for already.

    A following one needs the `funds` of its opening; an opening has none. An authorize takes a hold that lasts `hold_ms`.
    """
    if lapses(seen, now_ms):
        return EXPIRY
    if seen.state is not CREATED:
        return None
    if funds is None:
        if seen.card in ASKING_CARDS and seen.card not in cards:
            return ASKING
        reason = cards[seen.card]
    else:
        no = "card_declined" if DECLINED_KINDS.get(seen.card) is seen.kind else None
        reason = broken_rule(seen, funds, now_ms) or no
    return _done(seen, reason, transaction_id, now_ms + hold_ms)


def confirmation(seen: Transaction, now_ms: float, transaction_id: str, hold_ms: float = HOLD_MS) -> Closing | None:
    """How the customer's confirming closes it, under this id if it is executed. None: nothing is asked for."""
    if lapses(seen, now_ms):
        return EXPIRY
    if seen.state is not REQUIRES_ACTION:
        return None
    return _done(seen, ASKING_CARDS[seen.card], transaction_id, now_ms + hold_ms)


def refusal(seen: Transaction, now_ms: float) -> Closing | None:
    """How the customer's refusing closes it. None: nothing is asked for."""
    if lapses(seen, now_ms):
        return EXPIRY
    return REFUSAL if seen.state is REQUIRES_ACTION else None


def _done(seen: Transaction, reason: str | None, transaction_id: str, hold_expires_at_ms: float) -> Closing:
    if reason is not None:
        return Closing(DECLINED, reason=reason)
    if seen.kind is AUTHORIZE:
        return Closing(EXECUTED, transaction_id, hold_expires_at_ms=hold_expires_at_ms)
    return Closing(EXECUTED, transaction_id)


def told(closed: Transaction, *, by_this_call: bool) -> tuple[int, str, str]:
    """What an execute step says of a transaction after it: the status, and beside the `members` one more, with its word."""
    if closed.state is REQUIRES_ACTION:
        return 202, "result", "requires_action"
    if closed.state is EXPIRED:
        return 410, "error", "token_expired"
    if closed.state is CANCELLED:
        return 410, "error", "token_cancelled"
    if closed.state is DECLINED:
        return 200, "result", "declined"
    return 200, "result", "executed" if by_this_call else "already_executed"


# ---------------------------------------------------------------- all transactions, in memory
class Book:
    """The transactions of a bank, in memory."""

    def __init__(self, cards: Mapping[str, str | None] = CARDS, *, hold_ms: float = HOLD_MS) -> None:
        self.by_token: dict[str, Transaction] = {}
        self.by_reference: dict[str, Transaction] = {}
        """The newest of each reference."""
        self.executed: list[Transaction] = []
        """The statement: each transaction that was executed, in that order."""
        self._cards = cards
        self._hold_ms = hold_ms
        self._openings: dict[str, Transaction] = {}
        self._followers: dict[str, list[Transaction]] = {}

    def issue(self, wanted: Transaction, now_ms: float) -> Transaction | Refusal:
        """Do the token step: give the reference's transaction, which is the wanted one if it is opened now.

        A wanted one that follows another is given that one's card.
        """
        opening = None
        if wanted.on is None:
            if wanted.card not in self._cards and wanted.card not in ASKING_CARDS:
                return Refusal.CARD_UNKNOWN
        elif (opening := self.opening(wanted.on)) is not None:
            wanted.card = opening.card
        got = issued(self.newest(wanted.reference, now_ms), wanted, opening)
        if got is wanted:
            self.by_token[wanted.token] = self.by_reference[wanted.reference] = wanted
        return got

    def execute(
        self, token: str, now_ms: float, transaction_id: str, *, compared: tuple[object, object] | None = None
    ) -> tuple[Transaction, bool] | Refusal:
        """Do the execute step: give the transaction after it, and whether this call has executed it.

        If the order named an amount and a currency, they are `compared` with the transaction's.
        """
        known = self.find(token, now_ms)
        if known is None:
            return Refusal.TOKEN_UNKNOWN
        if compared is not None and compared != (known.amount_minor, known.currency):
            return Refusal.FIELDS_DIFFER
        funds = None if known.on is None else self.funds(known.on)
        how = closing(known, now_ms, transaction_id, self._cards, funds, self._hold_ms)
        if how is not None:
            self._close(known, how, now_ms)
        return known, how is not None and how.state is EXECUTED

    def cancel(self, token: str, now_ms: float) -> Transaction | Refusal:
        """Call it off: close an open one for ever. Give the transaction as it is then."""
        known = self.find(token, now_ms)
        if known is None:
            return Refusal.TOKEN_UNKNOWN
        if is_open(known):
            self._close(known, CANCELLATION, now_ms)
        return known

    def confirm(self, token: str, now_ms: float, transaction_id: str) -> Transaction | Refusal:
        """Take the customer's step for one that asks for it. Give the transaction as it is then."""
        known = self.find(token, now_ms)
        if known is None:
            return Refusal.TOKEN_UNKNOWN
        if (how := confirmation(known, now_ms, transaction_id, self._hold_ms)) is not None:
            self._close(known, how, now_ms)
        return known

    def refuse(self, token: str, now_ms: float) -> Transaction | Refusal:
        """Have the customer refuse the step, if it is asked for. Give the transaction as it is then."""
        known = self.find(token, now_ms)
        if known is None:
            return Refusal.TOKEN_UNKNOWN
        if (how := refusal(known, now_ms)) is not None:
            self._close(known, how, now_ms)
        return known

    def find(self, token: str, now_ms: float) -> Transaction | None:
        """Look up by token."""
        return self._as_of(self.by_token.get(token), now_ms)

    def newest(self, reference: str, now_ms: float) -> Transaction | None:
        """Look up by reference."""
        return self._as_of(self.by_reference.get(reference), now_ms)

    def opening(self, transaction_id: str) -> Transaction | None:
        """Look up an executed opening by its transaction_id."""
        return self._openings.get(transaction_id)

    def followers(self, transaction_id: str) -> Sequence[Transaction]:
        """List the executed transactions that follow an opening, in the order of execution."""
        return self._followers.get(transaction_id, ())

    def funds(self, transaction_id: str) -> Funds:
        """Sum up an executed opening. Raises `KeyError` if there is none of this id."""
        return funds_of(self._openings[transaction_id], self.followers(transaction_id))

    def expire_hold(self, transaction_id: str, now_ms: float) -> None:
        """Let the hold of an executed authorize lapse before its time. A charge has none."""
        opening = self._openings[transaction_id]
        if opening.hold_expires_at_ms is not None:
            opening.hold_expires_at_ms = min(opening.hold_expires_at_ms, now_ms)

    def expire(self, token: str, now_ms: float) -> None:
        """Close the token's transaction as expired, before its time, unless it is closed."""
        if is_open(known := self.by_token[token]):
            self._close(known, EXPIRY, now_ms)

    def _as_of(self, known: Transaction | None, now_ms: float) -> Transaction | None:
        if known is not None and lapses(known, now_ms):
            self._close(known, EXPIRY, now_ms)
        return known

    def _close(self, known: Transaction, how: Closing, now_ms: float) -> None:
        known.state, known.closed_at_ms = how.state, None if how is ASKING else now_ms
        known.transaction_id, known.reason = how.transaction_id, how.reason
        if how.transaction_id is not None:
            known.hold_expires_at_ms = how.hold_expires_at_ms
            self.executed.append(known)
            if known.on is None:
                self._openings[how.transaction_id] = known
            else:
                self._followers.setdefault(known.on, []).append(known)
