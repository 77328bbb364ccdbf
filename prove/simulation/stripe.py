"""A simulated account at Stripe: the double of `rig.stripe_bank`, with the story's cards, and what befalls its intents.

A declined intent can be confirmed again until it is cancelled, and keys are forgotten. Both are tried: a confirmation that was
declined comes once more, so late that nobody knows its key.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from charging.v1.common_pb2 import DeclineReason
from judge.history import BankCall, Movement
from prove.simulation.bank import EPOCH_SECONDS, Asked, Bank, Chaos, Lost, Reply, Said
from rig.stripe_bank import StripeBank
from rig.stripe_objects import Intent

CARDS = {
    "tok_visa": "pm_card_visa",
    "tok_mastercard": "pm_card_mastercard",
    "tok_declined": "pm_card_declinedOnce",  # by the next one who confirms it it is approved
    "tok_insufficient_funds": "pm_card_declinedOnce",
    "tok_expired_card": "pm_card_chargeDeclinedExpiredCard",
    "tok_odd": "pm_card_declinedOnce",
    "tok_capture_declined": "pm_card_visa",
    "tok_void_declined": "pm_card_processing",
    "tok_refund_declined": "pm_card_refundFail",
    "tok_3ds": "pm_card_authenticationRequired",
    "tok_3ds_declined": "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds",
}
HEADERS = {"authorization": "Bearer sk_of_a_story"}
# How long a lapsed hold is left to people before Stripe cancels its intent.
LAPSING_SECONDS = 8.0
STRAYS: tuple[tuple[int, Said], ...] = (
    (404, {"error": {"type": "invalid_request_error", "code": "resource_missing"}}),
    (400, {"error": {"type": "invalid_request_error", "code": "payment_intent_unexpected_state"}}),
    (402, {"error": {"type": "card_error", "code": "card_declined", "decline_code": "generic_decline"}}),
    (409, {"error": {"type": "idempotency_error", "code": "idempotency_key_in_use"}}),
    (200, {"object": "list", "url": "/v1/refunds", "data": [], "has_more": False}),
    (200, {"object": "search_result", "url": "/v1/payment_intents/search", "data": [], "has_more": False}),
)


@dataclass(slots=True)
class StripeAccount(Bank):
    """An account at Stripe."""

    key_seconds: float = 86_400.0
    hold_seconds: float = 604_800.0
    search_lag_seconds: float = 0.0
    stripe: StripeBank = field(init=False)

    def __post_init__(self) -> None:
        self.stripe = StripeBank(
            lambda: EPOCH_SECONDS + self.clock(),
            key_seconds=self.key_seconds,
            hold_seconds=self.hold_seconds,
            search_lag_seconds=self.search_lag_seconds,
        )

    @property
    def cards(self) -> Collection[str]:
        """The cards that it knows."""
        return CARDS

    @property
    def strays(self) -> Sequence[tuple[int, Said]]:
        """Answers that nobody here has asked for."""
        return STRAYS

    # ------------------------------------------------------------ the API
    def asked(self, method: str, target: str, body: bytes, key: str) -> Asked:
        """Read a request. An intent is cancelled to call a charge off, to void a hold, or to end what was declined."""
        path = urlsplit(target).path.removeprefix("/v1")
        shown = path.removeprefix("/payment_intents")
        if method == "GET":
            return Asked("look_up", method, target, body, shown=shown)
        form = _form(body)
        match path.strip("/").split("/"):
            case ["refunds"]:
                token = form.get("metadata[reference]", "")
                return Asked("execute", method, target, body, key, token, shown)
            case [_, intent_id, "confirm"]:
                return Asked("execute", method, target, body, key, intent_id, shown)
            case [_, _, "capture"]:
                return Asked("execute", method, target, body, key, form.get("metadata[capture]", ""), shown)
            case [_, intent_id, "cancel"]:
                intent = self.stripe.intents.get(intent_id)
                if intent is not None and "void" in intent.metadata:
                    return Asked("execute", method, target, body, key, intent.metadata["void"], shown)
                return Asked("cancel", method, target, body, key, intent_id, shown)
            case [_, intent_id]:
                return Asked("look_up", method, target, body, key, intent_id, f"{shown} is changed")
            case _:
                return Asked("token", method, target, body, key, "", shown)

    def answer(self, asked: Asked, *, token_was_durable: bool | None) -> Reply:
        """Do what is asked for, and answer honestly."""
        self._note(asked, token_was_durable)
        body = asked.body
        if asked.step == "token" and body:
            form = dict(parse_qsl(body.decode()))
            form["payment_method"] = CARDS.get(form["payment_method"], form["payment_method"])
            body = urlencode(form).encode()
        headers = {**HEADERS, **({"idempotency-key": asked.key} if asked.key else {})}
        intent = self._intent(asked)
        before = "" if intent is None else intent.status
        if asked.method == "GET" and intent is not None and intent.created + self.key_seconds <= self.stripe.now():
            self.forgot_key()
        status, told, said = self.stripe.answer(asked.method, asked.target, headers, body)
        if intent is not None and intent.status == "requires_action" != before:
            self.addresses[intent.action_url] = intent.metadata["reference"]
            self.wants_customer(intent.intent_id)
        return status, dict(told), said

    def _note(self, asked: Asked, token_was_durable: bool | None) -> None:
        """Note a call, if it asks for something: a cancel that ends what was declined does not."""
        form, intent = _form(asked.body), self._intent(asked)
        reference = self.reference_of(asked)
        match asked.step, asked.target.rpartition("/")[2]:
            case "token", _:
                card, kind = form["metadata[card]"], form["metadata[kind]"]
                amount, currency = int(form["amount"]), form["currency"].upper()
                self.calls.append(BankCall("token", reference, "", card, amount, currency, None, kind, "", self.name))
            case "execute", "confirm":
                call = BankCall("execute", reference, asked.token, token_was_durable=token_was_durable, bank=self.name)
                self.calls.append(call)
            case "execute", order:
                kind = {"refunds": "refund", "capture": "capture"}.get(order, "void")
                amount_of = form.get("amount") or form.get("amount_to_capture")
                self.calls.append(
                    BankCall(
                        *("execute", asked.token, asked.token, ""),
                        amount=int(amount_of) if amount_of else None,
                        token_was_durable=token_was_durable,
                        kind=kind,
                        on=form.get("payment_intent") or (intent.intent_id if intent else ""),
                        bank=self.name,
                    )
                )
            case "cancel", _ if form.get("cancellation_reason") == "requested_by_customer":
                self.calls.append(BankCall("cancel", reference, asked.token, bank=self.name))

    def refusal(self, asked: Asked) -> Said:
        """A definite no in the bank's own words, which does not say why."""
        code = "resource_missing" if asked.step == "look_up" else "parameter_unknown"
        return {"error": {"type": "invalid_request_error", "code": code}}

    def oblivion(self, asked: Asked) -> Said | None:
        """What it says if it knows nothing of what is asked for; None: it knows all that this asks for."""
        if self._intent(asked) is None or asked.target.startswith("/v1/refunds"):
            return None
        return {"error": {"type": "invalid_request_error", "code": "resource_missing"}}

    @property
    def at_it(self) -> tuple[int, Said]:
        """What it says while it is at another request under the same key."""
        return 409, {"error": {"type": "idempotency_error", "code": "idempotency_key_in_use"}}

    def execute_of(self, asked: Asked) -> Asked:
        """The confirmation of an intent that is to be cancelled, so late that its key is forgotten."""
        target = asked.target.removesuffix("/cancel") + "/confirm"
        return self.asked("POST", target, b"", "")

    # ------------------------------------------------------------ whom a request is about
    def _intent(self, asked: Asked) -> Intent | None:
        parts = urlsplit(asked.target).path.strip("/").split("/")
        named = parts[2] if len(parts) > 2 else ""
        if parts[-1] == "refunds":
            query = dict(parse_qsl(urlsplit(asked.target).query))
            named = (query or _form(asked.body)).get("payment_intent", "")
        return self.stripe.intents.get(named)

    def reference_of(self, asked: Asked) -> str:
        """Our name for it; empty if nobody knows."""
        if asked.step == "execute" and not asked.target.endswith("/confirm"):
            return asked.token
        return self.charge_of(asked)

    def charge_of(self, asked: Asked) -> str:
        """The charge: the reference of the intent; empty if nobody knows."""
        if (intent := self._intent(asked)) is not None:
            return intent.metadata.get("reference", "")
        query = dict(parse_qsl(urlsplit(asked.target).query)).get("query", "")
        return query.rpartition(":'")[2].rstrip("'") if query else _form(asked.body).get("metadata[reference]", "")

    # ------------------------------------------------------------ what befalls its intents
    def has_open(self, asked: Asked) -> bool:
        """Whether it is about an intent that can still be executed: Stripe cancels some by itself."""
        intent = self._intent(asked)
        return intent is not None and intent.status.startswith("requires_") and intent.status != "requires_capture"

    def expire(self, asked: Asked) -> None:
        """Have Stripe cancel it."""
        if (intent := self._intent(asked)) is not None:
            self.stripe.expire(intent.intent_id)

    def has_hold(self, asked: Asked) -> bool:
        """Whether it is about an operation on a hold that has not lapsed."""
        intent = self._intent(asked)
        is_held = intent is not None and intent.status == "requires_capture" and not intent.has_lapsed
        return is_held and asked.step == "execute"

    def expire_hold(self, asked: Asked) -> None:
        """Let that hold lapse: Stripe hears of it, and cancels the intent a while later."""
        if (intent := self._intent(asked)) is not None:
            intent.has_lapsed, intent.done_at = True, self.stripe.now() + LAPSING_SECONDS

    def recall(self, lost: Lost) -> None:
        """Have executed it, before the story began: so long ago that no key is known, and a search finds it."""
        order = {
            "amount": str(lost.amount),
            "currency": lost.currency.lower(),
            "payment_method": CARDS[lost.card],
            "capture_method": "manual" if lost.is_held else "automatic",
            "metadata[reference]": lost.reference,
            "metadata[kind]": lost.kind,
            "metadata[card]": lost.card,
        }
        _, _, body = self.stripe.answer("POST", "/v1/payment_intents", HEADERS, urlencode(order).encode())
        intent = self.stripe.intents[json.loads(body)["id"]]
        self.stripe.answer("POST", f"/v1/payment_intents/{intent.intent_id}/confirm", HEADERS, b"")
        intent.created -= lost.age_seconds + self.key_seconds

    def take_step(self, token: str, *, confirms: bool) -> bool:
        """A customer confirms, or refuses; say whether that was in time."""
        intent = self.stripe.intents[token]
        if intent.status != "requires_action":
            return False
        if confirms:
            self.confirmed.add(intent.metadata["reference"])
        self.stripe.authenticate(token, succeeds=confirms)
        return True

    def breaks_down(self) -> None:
        """Do the next order, and answer it with an error that is saved under its key."""
        self.stripe.breaks = 1

    def again(self, asked: Asked, reply: Reply) -> Asked | None:
        """The same confirmation, without its key, if this one was declined."""
        is_declined = reply[0] == 402 and asked.target.endswith("/confirm") and bool(asked.key)
        return self.asked("POST", asked.target, asked.body, "") if is_declined else None

    # ------------------------------------------------------------ its lies
    def can_lie(self, kind: str, asked: Asked, said: Said) -> bool:
        """Whether this answer can be bent in this way."""
        if said.get("object") not in ("payment_intent", "refund"):
            return False
        match kind:
            case "contradict":
                return asked.target.endswith("/confirm") and said["status"] in ("succeeded", "requires_capture")
            case "mixed_up":
                return asked.step == "execute" and bool(self._others(said))
            case "wrong_reference" | "wrong_card" | "wrong_kind":
                return kind.removeprefix("wrong_") in said["metadata"]
            case "wrong_on":
                return "payment_intent" in said
            case "wrong_token":  # a refund's id is nobody's but Stripe's to know
                return bool(said["object"] == "payment_intent")
        return kind in ("wrong_amount", "wrong_currency")

    def lie(self, kind: str, asked: Asked, said: Said, chaos: Chaos) -> Said:  # noqa: ARG002
        """Bend it."""
        match kind:
            case "contradict":
                return {**said, "status": "canceled", "cancellation_reason": "abandoned", "latest_charge": None}
            case "mixed_up":  # the answer to somebody else's call
                return dict(chaos.pick(self._others(said)))
            case "wrong_amount":
                return {**said, "amount": said["amount"] + 1}
            case "wrong_currency":
                return {**said, "currency": "gbp" if said["currency"] != "gbp" else "eur"}
            case "wrong_token":
                return {**said, "id": said["id"] + "-x"}
            case "wrong_on":
                return {**said, "payment_intent": said["payment_intent"] + "-x"}
            case _:
                member = kind.removeprefix("wrong_")
                metadata = {**said["metadata"], member: said["metadata"][member] + "-x"}
                return {**said, "metadata": metadata}

    def _others(self, said: Said) -> list[Any]:
        mine = said.get("metadata", {}).get("reference", "")
        others = [it for it in self.stripe.intents.values() if it.metadata["reference"] != mine]
        answers = [self.stripe.answer("GET", f"/v1/payment_intents/{it.intent_id}", HEADERS, b"") for it in others]
        return [json.loads(body) for _, _, body in answers]

    # ------------------------------------------------------------ the statement
    @property
    def executed(self) -> int:
        """The number of transactions that were executed."""
        return len(self.stripe.movements)

    @property
    def movements(self) -> Sequence[Movement]:
        """The statement: one for each of them."""
        return [
            Movement(
                *(it.transaction_id, it.reference if it.on else it.transaction_id, it.reference, it.amount),
                *(it.currency.upper(), it.kind, "", it.on, self.name),
            )
            for it in self.stripe.movements
        ]

    def takes(self, kind: str, *, is_whole: bool, is_final: bool) -> bool:
        """Whether it takes an order of this kind: it captures a hold once, and lets it go as a whole."""
        return kind == "refund_requested" or is_whole or (kind == "capture_requested" and is_final)

    @property
    def declines(self) -> Collection[int]:
        """Why it declines what follows in a charge, if it is asked for nothing that its own book forbids."""
        return (DeclineReason.DECLINE_REASON_OTHER,)  # a refund that failed


def _form(body: bytes) -> Mapping[str, str]:
    return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True))
