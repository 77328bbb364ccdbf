"""A simulated two-step bank: the API of the mock bank's docstring, and its rules.

The transactions are a `gateway_mock.model.Book`, which is never wrong. What goes wrong goes wrong around it, on the way and in
the answers (`prove.simulation.wire`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway_mock import model
from gateway_mock.model import AUTHORIZE, STATUS, Book, Operation, Refusal, State, Transaction, told
from judge.history import BankCall, Movement

CARDS = {**model.CARDS, "tok_odd": "a reason of the bank's own"}
APPROVED = tuple(card for card, reason in CARDS.items() if reason is None)
DECLINES = {card: reason for card, reason in CARDS.items() if reason is not None}
# A token of the simulation lives through the instant in which its time is over: so it did when the corpus's seeds were found.
LAST_INSTANT_MS = 1e-6
BEGAN = datetime(2026, 9, 21, tzinfo=UTC)
"""When the bank's clock began, for the times that it tells."""
Reply = tuple[int, dict[str, str], bytes]


@dataclass(slots=True)
class Bank:
    """The bank: its transactions, and how it is doing."""

    token_seconds: float
    hold_seconds: float
    clock: Callable[[], float]
    book: Book = field(init=False)
    calls: list[BankCall] = field(default_factory=list)
    lied_about: set[str] = field(default_factory=set)
    """The charges about which an answer lied: only these may end in review."""
    is_down: bool = False
    is_unauthorized: bool = False
    lives: int = 0
    late_factor: float = 1.0
    expects_until: float = 0.0
    """When the last of the requests comes that are late, or copies."""

    def __post_init__(self) -> None:
        self.book = Book(CARDS, hold_ms=self.hold_seconds * 1_000)

    def answer(self, method: str, target: str, body: bytes, *, token_was_durable: bool | None) -> Reply:
        """Do what a request asks for, and answer honestly."""
        path, query = urlsplit(target).path, urlsplit(target).query
        parts = path.strip("/").split("/")
        said = json.loads(body) if body else {}
        match method, parts:
            case "POST", ["transactions"]:
                return self._request_token(said)
            case "POST", ["transactions", token, "execute"]:
                self.calls.append(
                    BankCall("execute", "", token, "", said.get("amount"), said.get("currency", ""), token_was_durable)
                )
                return self._execute(token, said)
            case "POST", ["transactions", token, "cancel"]:
                self.calls.append(BankCall("cancel", self.reference_of(target, body), token))
                return _shown(self.book.cancel(token, self.now_ms()))
            case "GET", ["transactions"]:
                reference = parse_qs(query)["reference"][0]
                return _shown(self.book.newest(reference, self.now_ms()) or Refusal.REFERENCE_UNKNOWN)
            case "GET", ["transactions", token]:
                return _shown(self.book.find(token, self.now_ms()) or Refusal.TOKEN_UNKNOWN)
        return as_reply(404, {"error": "not_found"})

    def _request_token(self, said: dict[str, Any]) -> Reply:
        reference, amount, currency = (said[name] for name in ("reference", "amount", "currency"))
        card, kind, on = said.get("card", ""), Operation(said.get("kind", "charge")), said.get("on")
        self.calls.append(BankCall("token", reference, "", card, amount, currency, kind=kind, on=on or ""))
        token, now_ms = f"ttok_{len(self.book.by_token) + 1}", self.now_ms()
        wanted = Transaction(
            token, reference, card, amount, currency, now_ms + self.token_seconds * 1_000 + LAST_INSTANT_MS
        )
        wanted.kind, wanted.on, wanted.final = kind, on, said.get("final", False)
        return _shown(self.book.issue(wanted, now_ms))

    def _execute(self, token: str, said: dict[str, Any]) -> Reply:
        compared = (said.get("amount"), said.get("currency")) if said else None
        transaction_id = f"txn_{len(self.book.executed) + 1}"
        got = self.book.execute(token, self.now_ms(), transaction_id, compared=compared)
        if isinstance(got, Refusal):
            return _shown(got)
        closed, by_this_call = got
        status, member, word = told(closed, by_this_call=by_this_call)
        return as_reply(status, {member: word, **_members(closed)})

    def now_ms(self) -> float:
        """Tell the time that the rules count in."""
        return self.clock() * 1_000

    @property
    def movements(self) -> list[Movement]:
        """The statement."""
        return [
            Movement(
                t.transaction_id or "", t.token, t.reference, t.amount_minor, t.currency, t.kind, t.card, t.on or ""
            )
            for t in self.book.executed
        ]

    def reference_of(self, target: str, body: bytes) -> str:
        """Whom a request is about; empty if nobody knows."""
        split = urlsplit(target)
        parts = split.path.strip("/").split("/")
        if len(parts) > 1 and parts[1] in self.book.by_token:
            return self.book.by_token[parts[1]].reference
        if split.query:
            return parse_qs(split.query)["reference"][0]
        return str(json.loads(body).get("reference", "")) if body else ""

    def charge_of(self, target: str, body: bytes) -> str:
        """The charge that a request is about: the reference of the transaction that opened it; empty if nobody knows."""
        reference, on = self.reference_of(target, body), self._acts_on(target, body)
        opening = self.book.opening(on) if on else None
        return reference if opening is None else opening.reference

    def _acts_on(self, target: str, body: bytes) -> str | None:
        """The transaction on which that acts, if it is one that follows."""
        if (known := self.book.by_reference.get(self.reference_of(target, body))) is not None:
            return known.on
        return json.loads(body).get("on") if body else None

    def has_hold(self, target: str, body: bytes) -> bool:
        """Whether a request is about an operation on a hold that has not lapsed."""
        on = self._acts_on(target, body)
        opening = self.book.opening(on) if on else None
        ends_ms = None if opening is None else opening.hold_expires_at_ms
        return ends_ms is not None and ends_ms > self.now_ms()

    def expire_hold(self, target: str, body: bytes) -> None:
        """Let that hold lapse."""
        self.book.expire_hold(self._acts_on(target, body) or "", self.now_ms())

    def has_open(self, target: str, body: bytes) -> bool:
        """Whether whom a request is about has a transaction that can still be executed."""
        known = self.book.newest(self.reference_of(target, body), self.now_ms())
        return known is not None and known.state is State.CREATED

    def expire(self, target: str, body: bytes) -> None:
        """Close that transaction as expired."""
        self.book.expire(self.book.by_reference[self.reference_of(target, body)].token, self.now_ms())


def _shown(known: Transaction | Refusal) -> Reply:
    if isinstance(known, Refusal):
        return as_reply(STATUS[known], {"error": known})
    return as_reply(200, {"state": known.state, **_members(known)})


def _members(known: Transaction) -> dict[str, object]:
    members = known.members()
    if known.kind is AUTHORIZE and known.hold_expires_at_ms is not None:
        ends = BEGAN + timedelta(milliseconds=known.hold_expires_at_ms)
        members["hold_expires_at"] = ends.isoformat().replace("+00:00", "Z")
    return members


def as_reply(status: int, said: dict[str, object]) -> Reply:
    """Make a reply of a status and its members."""
    return status, {"content-type": "application/json"}, json.dumps(said).encode()
