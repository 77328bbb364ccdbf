"""A simulated two-step bank: the API of the mock bank's docstring, and its rules.

The transactions are a `gateway_mock.model.Book`.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway_mock.model import (
    ASKING_CARDS,
    AUTHORIZE,
    CREATED,
    REQUIRES_ACTION,
    STATUS,
    Book,
    Operation,
    Refusal,
    Transaction,
    is_open,
    told,
)
from judge.history import BankCall, Movement
from prove.simulation.bank import CARDS, Asked, Bank, Chaos, Lost, Reply, Said, Step, as_reply, told_time

# A token of the simulation lives through the instant in which its time is over: so it did when the corpus's seeds were found.
LAST_INSTANT_MS = 1e-6
# Answers to somebody else's question. They come over a connection that served before, and over no other.
STRAYS: tuple[tuple[int, Said], ...] = (
    (409, {"error": "refused"}),
    (404, {"error": "token_unknown"}),
    (404, {"error": "reference_unknown"}),
    (410, {"error": "token_expired"}),
    (202, {"result": "in_progress"}),
    (200, {"result": "declined", "reason": "card_declined", "transaction_id": None}),
)


@dataclass(slots=True)
class TwoStepBank(Bank):
    """A bank of two steps."""

    token_seconds: float = 900.0
    calm_token_seconds: float = 900.0
    hold_seconds: float = 604_800.0
    book: Book = field(init=False)

    def __post_init__(self) -> None:
        self.book = Book(CARDS, hold_ms=self.hold_seconds * 1_000)

    def calm(self) -> None:
        """Answer, and be patient, for the rest of the story: faults have stopped."""
        self.is_silent = False
        self.token_seconds = self.calm_token_seconds

    @property
    def cards(self) -> Collection[str]:
        """The cards that it knows."""
        return {*CARDS, *ASKING_CARDS}

    @property
    def strays(self) -> Sequence[tuple[int, Said]]:
        """Answers that nobody here has asked for."""
        return STRAYS

    def asked(self, method: str, target: str, body: bytes, key: str) -> Asked:
        """Read a request."""
        parts = _parts(target)
        step: Step = "look_up" if method == "GET" else "token"
        if method == "POST" and len(parts) > 1:
            step = "cancel" if parts[-1] == "cancel" else "execute"
        token = parts[1] if len(parts) > 1 else ""
        return Asked(step, method, target, body, key, token, target.rpartition("/transactions")[2])

    def refusal(self, asked: Asked) -> Said:  # noqa: ARG002  # its no is the same to all
        """A definite no in the bank's own words, which does not say why."""
        return {"error": "refused"}

    def oblivion(self, asked: Asked) -> Said | None:
        """What it says if it knows nothing of what is asked for; None: it knows all that this asks for."""
        return None if asked.step == "token" else {"error": "token_unknown"}

    def execute_of(self, asked: Asked) -> Asked:
        """The execute step of the token that is asked to be called off."""
        target = asked.target.removesuffix("/cancel") + "/execute"
        return self.asked("POST", target, b"", "")

    def answer(self, asked: Asked, *, token_was_durable: bool | None) -> Reply:
        """Do what is asked for, and answer honestly."""
        query, said = urlsplit(asked.target).query, json.loads(asked.body) if asked.body else {}
        match asked.method, _parts(asked.target):
            case "POST", ["transactions"]:
                return self._request_token(said)
            case "POST", ["transactions", token, "execute"]:
                terms = "", said.get("amount"), said.get("currency", "")
                self.calls.append(BankCall("execute", "", token, *terms, token_was_durable, bank=self.name))
                return self._execute(token, said)
            case "POST", ["transactions", token, "cancel"]:
                self.calls.append(BankCall("cancel", self.reference_of(asked), token, bank=self.name))
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
        self.calls.append(
            BankCall("token", reference, "", card, amount, currency, kind=kind, on=on or "", bank=self.name)
        )
        token, now_ms = f"{self.prefix}ttok_{len(self.book.by_token) + 1}", self.now_ms()
        wanted = Transaction(
            token, reference, card, amount, currency, now_ms + self.token_seconds * 1_000 + LAST_INSTANT_MS
        )
        wanted.kind, wanted.on, wanted.final = kind, on, said.get("final", False)
        return _shown(self.book.issue(wanted, now_ms))

    def _execute(self, token: str, said: dict[str, Any]) -> Reply:
        compared = (said.get("amount"), said.get("currency")) if said else None
        known = self.book.find(token, self.now_ms())
        was_open = known is not None and known.state is CREATED
        got = self.book.execute(token, self.now_ms(), self._new_id(), compared=compared)
        if isinstance(got, Refusal):
            return _shown(got)
        closed, by_this_call = got
        if was_open and closed.state is REQUIRES_ACTION:
            self.addresses[_address(token)] = closed.reference
            self.wants_customer(token)
        status, member, word = told(closed, by_this_call=by_this_call)
        return as_reply(status, {member: word, **_members(closed)})

    def _new_id(self) -> str:
        return f"{self.prefix}txn_{len(self.book.executed) + 1}"

    # ------------------------------------------------------------ whom a request is about
    def reference_of(self, asked: Asked) -> str:
        """Our name for it; empty if nobody knows."""
        if asked.token in self.book.by_token:
            return self.book.by_token[asked.token].reference
        if query := urlsplit(asked.target).query:
            return parse_qs(query)["reference"][0]
        return str(json.loads(asked.body).get("reference", "")) if asked.body else ""

    def charge_of(self, asked: Asked) -> str:
        """The charge: the reference of the transaction that opened it; empty if nobody knows."""
        on = self._acts_on(asked)
        opening = self.book.opening(on) if on else None
        return self.reference_of(asked) if opening is None else opening.reference

    def _acts_on(self, asked: Asked) -> str | None:
        """The transaction on which that acts, if it is one that follows."""
        if (known := self.book.by_reference.get(self.reference_of(asked))) is not None:
            return known.on
        return json.loads(asked.body).get("on") if asked.body else None

    # ------------------------------------------------------------ what befalls its transactions
    def has_open(self, asked: Asked) -> bool:
        """Whether whom it is about has a transaction that can still be executed."""
        known = self.book.newest(self.reference_of(asked), self.now_ms())
        return known is not None and is_open(known)

    def expire(self, asked: Asked) -> None:
        """Close that transaction as expired."""
        self.book.expire(self.book.by_reference[self.reference_of(asked)].token, self.now_ms())

    def has_hold(self, asked: Asked) -> bool:
        """Whether it is about an operation on a hold that has not lapsed."""
        on = self._acts_on(asked)
        opening = self.book.opening(on) if on else None
        ends_ms = None if opening is None else opening.hold_expires_at_ms
        return ends_ms is not None and ends_ms > self.now_ms()

    def expire_hold(self, asked: Asked) -> None:
        """Let that hold lapse."""
        self.book.expire_hold(self._acts_on(asked) or "", self.now_ms())

    def recall(self, lost: Lost) -> None:
        """Have executed it, before the story began."""
        token, began_ms = f"{self.prefix}ttok_{len(self.book.by_token) + 1}", -lost.age_seconds * 1_000
        order = Transaction(token, lost.reference, lost.card, lost.amount, lost.currency, began_ms + 1_000.0)
        order.kind = Operation(lost.kind)
        self.book.issue(order, began_ms)
        self.book.execute(token, began_ms, self._new_id())

    def take_step(self, token: str, *, confirms: bool) -> bool:
        """A customer confirms, or refuses; say whether that was in time."""
        known = self.book.find(token, self.now_ms())
        if known is None or known.state is not REQUIRES_ACTION:
            return False
        if confirms:
            self.confirmed.add(known.reference)
            self.book.confirm(token, self.now_ms(), self._new_id())
        else:
            self.book.refuse(token, self.now_ms())
        return True

    # ------------------------------------------------------------ its lies
    def can_lie(self, kind: str, asked: Asked, said: Said) -> bool:
        """Whether this answer can be bent in this way."""
        match kind:
            case "contradict":
                return asked.step in ("execute", "cancel") and bool(said.get("transaction_id"))
            case "mixed_up":
                return asked.step == "execute" and bool(self._others(said))
        return kind.removeprefix("wrong_") in said

    def lie(self, kind: str, asked: Asked, said: Said, chaos: Chaos) -> Said:
        """Bend it."""
        match kind:
            case "contradict" if asked.step == "cancel":
                return {**said, "state": "cancelled", "transaction_id": None}
            case "contradict":
                return {**said, "result": "declined", "transaction_id": None, "reason": "card_declined"}
            case "mixed_up":  # the answer to somebody else's call
                return {"result": "executed", **chaos.pick(self._others(said)).members()}
            case "wrong_amount":
                return {**said, "amount": said["amount"] + 1}
            case "wrong_currency":
                return {**said, "currency": "ZZZ"}
            case "wrong_kind":
                return {**said, "kind": "capture" if said["kind"] == "refund" else "refund"}
            case _:
                member = kind.removeprefix("wrong_")
                return {**said, member: said[member] + "-x"}

    def _others(self, said: Said) -> list[Transaction]:
        mine = said.get("reference", "")
        return [t for t in self.book.by_token.values() if t.transaction_id and t.reference != mine]

    # ------------------------------------------------------------ the statement
    @property
    def executed(self) -> int:
        """The number of transactions that were executed."""
        return len(self.book.executed)

    @property
    def movements(self) -> Sequence[Movement]:
        """The statement: one for each of them."""
        return [
            Movement(
                *(t.transaction_id or "", t.token, t.reference, t.amount_minor, t.currency),
                *(t.kind, t.card, t.on or "", self.name),
            )
            for t in self.book.executed
        ]


def _parts(target: str) -> list[str]:
    return urlsplit(target).path.strip("/").split("/")


def _shown(known: Transaction | Refusal) -> Reply:
    if isinstance(known, Refusal):
        return as_reply(STATUS[known], {"error": known})
    return as_reply(200, {"state": known.state, **_members(known)})


def _address(token: str) -> str:
    return f"https://bank.test/customer/{token}"


def _members(known: Transaction) -> dict[str, object]:
    members = known.members()
    if known.kind is AUTHORIZE and known.hold_expires_at_ms is not None:
        members["hold_expires_at"] = told_time(known.hold_expires_at_ms)
    if known.state is REQUIRES_ACTION:
        members["action_url"], members["action_expires_at"] = _address(known.token), told_time(known.expires_at_ms)
    return members
