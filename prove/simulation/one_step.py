"""A simulated bank of one step: the API of the mock bank's /one-step/payments, and the rules of `gateway_mock.payments`.

It forgets keys: after that time the same request is another payment. Each payment is kept for ever, and found by its reference.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from gateway_mock.model import CANCELLATION, CANCELLED, CARDS, EXECUTED, STATUS, Operation, Refusal, Transaction
from gateway_mock.payments import NEVER_MS, carried_out, is_remembered, saved
from judge.history import BankCall, Movement
from prove.simulation.bank import Asked, Bank, Chaos, Lost, Reply, Said, Step, as_reply, told_time

STRAYS: tuple[tuple[int, Said], ...] = (
    (422, {"error": "key_reused"}),
    (404, {"error": "reference_unknown", "reference": "another"}),
    (410, {"error": "key_cancelled"}),
    (202, {"result": "in_progress"}),
    (200, {"state": "declined", "reason": "card_declined", "transaction_id": None}),
)


@dataclass(slots=True)
class OneStepBank(Bank):
    """A bank of one step."""

    key_seconds: float = 86_400.0
    hold_seconds: float = 604_800.0
    payments: list[Transaction] = field(default_factory=list)
    """In the order in which they were made. Their tokens are their keys."""

    @property
    def cards(self) -> Collection[str]:
        """The cards that it knows."""
        return CARDS

    @property
    def strays(self) -> Sequence[tuple[int, Said]]:
        """Answers that nobody here has asked for."""
        return STRAYS

    def asked(self, method: str, target: str, body: bytes, key: str) -> Asked:
        """Read a request."""
        parts = urlsplit(target).path.strip("/").split("/")
        if method == "GET":
            return Asked("look_up", method, target, body, shown=target.rpartition("/")[2])
        step: Step = "cancel" if parts[-1] == "cancel" else "execute"
        token = unquote(parts[-2]) if step == "cancel" else key
        return Asked(step, method, target, body, key, token, f" {token}")

    def refusal(self, asked: Asked) -> Said:  # noqa: ARG002  # its no is the same to all
        """A definite no in the bank's own words, which does not say why."""
        return {"error": "refused"}

    def oblivion(self, asked: Asked) -> Said | None:  # noqa: ARG002
        """What it says if it knows nothing of what is asked for: never, since a look-up is complete."""
        return None

    def execute_of(self, asked: Asked) -> Asked:
        """The execute step of the key that is asked to be called off: both have the order in their bodies."""
        target = asked.target.removesuffix(f"/{asked.token}/cancel")
        return self.asked("POST", target, asked.body, asked.token)

    def answer(self, asked: Asked, *, token_was_durable: bool | None) -> Reply:
        """Do what is asked for, and answer honestly."""
        if asked.step == "look_up":
            reference = self.reference_of(asked)
            self.calls.append(BankCall("look_up", reference, bank=self.name))
            known = self._newest(reference)
            if known is not None and not is_remembered(known, self.now_ms(), self.key_seconds * 1_000):
                self.forgot_key()
            return self._shown(known) if known else as_reply(404, _unknown(reference))
        order = _order(asked)
        on, step = order.on or "", asked.step
        terms = order.card, order.amount_minor, order.currency
        self.calls.append(
            BankCall(step, order.reference, asked.token, *terms, token_was_durable, order.kind, on, self.name)
        )
        kept = self._keep(order, is_cancelled=step == "cancel")
        if isinstance(kept, Refusal):
            return as_reply(STATUS[kept], {"error": kept})
        if kept.state is CANCELLED and step == "execute":
            return as_reply(410, {"error": "key_cancelled", **_members(kept)})
        return self._shown(kept, **({"replayed": kept is not order} if step == "execute" else {}))

    def _keep(self, order: Transaction, *, is_cancelled: bool) -> Transaction | Refusal:
        """Carry an order out, or close its key; or give what is saved under that."""
        now_ms, key_ms = self.now_ms(), self.key_seconds * 1_000
        same = next((it for it in reversed(self.payments) if it.token == order.token), None)
        if (known := saved(same, order, now_ms, key_ms)) is not None:
            return known
        opening = self._opening(order.on)
        if opening is not None:
            order.card = opening.card
        end = CANCELLATION
        if not is_cancelled:
            followers = [it for it in self._executed() if it.on is not None and it.on == order.on]
            new_id = f"{self.prefix}pay_{len(self.payments) + 1}"
            how = carried_out(order, opening, followers, now_ms, new_id, self.hold_seconds * 1_000)
            if isinstance(how, Refusal):
                return how
            end = how
        order.state, order.closed_at_ms, order.transaction_id = end.state, now_ms, end.transaction_id
        order.reason, order.hold_expires_at_ms = end.reason, end.hold_expires_at_ms
        self.payments.append(order)
        return order

    def _newest(self, reference: str) -> Transaction | None:
        """The payment of a reference that was made last; a key that was called off if there is no other."""
        known = [payment for payment in self.payments if payment.reference == reference]
        return next((it for it in reversed(known) if it.state is not CANCELLED), known[-1] if known else None)

    def _executed(self) -> list[Transaction]:
        return [payment for payment in self.payments if payment.state is EXECUTED]

    def _opening(self, on: str | None) -> Transaction | None:
        return next(
            (it for it in self._executed() if on is not None and it.on is None and it.transaction_id == on), None
        )

    def _shown(self, payment: Transaction, **more: object) -> Reply:
        return as_reply(200, {**_members(payment), **more})

    # ------------------------------------------------------------ whom a request is about
    def reference_of(self, asked: Asked) -> str:
        """Our name for it."""
        if asked.step == "look_up":
            return parse_qs(urlsplit(asked.target).query)["reference"][0]
        return str(json.loads(asked.body)["reference"])

    def charge_of(self, asked: Asked) -> str:
        """The charge: the reference of the payment that opened it."""
        opening = self._opening(self._acts_on(asked))
        return self.reference_of(asked) if opening is None else opening.reference

    def _acts_on(self, asked: Asked) -> str | None:
        if asked.step != "look_up":
            return _order(asked).on
        known = self._newest(self.reference_of(asked))
        return None if known is None else known.on

    # ------------------------------------------------------------ what befalls its payments
    def has_open(self, asked: Asked) -> bool:  # noqa: ARG002  # none is ever open
        """Whether whom it is about has a transaction that can still be executed, and that may expire."""
        return False

    def expire(self, asked: Asked) -> None:
        """Close that transaction as expired."""
        raise NotImplementedError(asked)

    def has_hold(self, asked: Asked) -> bool:
        """Whether it is about an operation on a hold that has not lapsed."""
        opening = self._opening(self._acts_on(asked))
        ends_ms = None if opening is None else opening.hold_expires_at_ms
        return ends_ms is not None and ends_ms > self.now_ms()

    def expire_hold(self, asked: Asked) -> None:
        """Let that hold lapse."""
        if (opening := self._opening(self._acts_on(asked))) is not None:
            opening.hold_expires_at_ms = self.now_ms()

    def recall(self, lost: Lost) -> None:
        """Have executed it, before the story began."""
        terms = lost.reference, lost.reference, lost.card, lost.amount, lost.currency, NEVER_MS
        paid = self._keep(Transaction(*terms, kind=Operation(lost.kind)), is_cancelled=False)
        assert isinstance(paid, Transaction), "a lost charge is one that a bank can execute"
        paid.closed_at_ms = self.now_ms() - lost.age_seconds * 1_000

    def take_step(self, token: str, *, confirms: bool) -> bool:
        """A customer confirms, or refuses; say whether that was in time."""
        raise NotImplementedError(token, confirms)

    # ------------------------------------------------------------ its lies
    def can_lie(self, kind: str, asked: Asked, said: Said) -> bool:
        """Whether this answer can be bent in this way."""
        match kind:
            case "contradict":
                return asked.step != "look_up" and bool(said.get("transaction_id"))
            case "mixed_up":
                return asked.step == "execute" and bool(self._others(said))
            case "wrong_token":
                return "key" in said
            case _:
                return kind.removeprefix("wrong_") in said and "state" in said

    def lie(self, kind: str, asked: Asked, said: Said, chaos: Chaos) -> Said:  # noqa: ARG002
        """Bend it."""
        match kind:
            case "contradict":
                return {**said, "state": "declined", "transaction_id": None, "reason": "card_declined"}
            case "mixed_up":  # the answer to somebody else's call
                return {**_members(chaos.pick(self._others(said))), "replayed": False}
            case "wrong_token":
                return {**said, "key": said["key"] + "-x"}
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
        return [it for it in self._executed() if it.reference != said.get("reference", "")]

    # ------------------------------------------------------------ the statement
    @property
    def executed(self) -> int:
        """The number of transactions that were executed."""
        return len(self._executed())

    @property
    def movements(self) -> Sequence[Movement]:
        """The statement: one for each of them."""
        return [
            Movement(
                *(it.transaction_id or "", it.token, it.reference, it.amount_minor, it.currency),
                *(it.kind, it.card, it.on or "", self.name),
            )
            for it in self._executed()
        ]


def _order(asked: Asked) -> Transaction:
    said = json.loads(asked.body)
    return Transaction(
        asked.token,
        said["reference"],
        said.get("card", ""),
        said["amount"],
        said["currency"],
        NEVER_MS,
        kind=Operation(said.get("kind", "charge")),
        on=said.get("on"),
        final=said.get("final", False),
    )


def _members(payment: Transaction) -> Said:
    members = payment.members()
    members["key"], members["state"] = members.pop("token"), payment.state
    hold = payment.hold_expires_at_ms
    return members if hold is None else members | {"hold_expires_at": told_time(hold)}


def _unknown(reference: str) -> Said:
    return {"error": Refusal.REFERENCE_UNKNOWN, "reference": reference}
