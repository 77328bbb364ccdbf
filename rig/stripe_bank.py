"""A double of the part of Stripe's API that the adapter uses: stateful, pure, and with the ways of Stripe that cost money.

Sources: https://docs.stripe.com/api/payment_intents, /api/refunds, /api/idempotent_requests, /api/errors, /error-low-level,
/payments/paymentintents/lifecycle, /search#data-freshness and /testing, read in November 2026.

- A saved answer is replayed under its Idempotency-Key, whatever it was, a 402 and a 500 included, and whatever has happened
  since. Other parameters or another path under a known key are an `idempotency_error`. After `key_seconds` a key is forgotten:
  the same request is a new one. Nothing is saved of a request whose parameters are not valid.
- A declined intent goes back to `requires_payment_method` and can be confirmed again, until it is cancelled. Stripe's pages do
  not say whether it still has its payment method then; here it has, which is the harder case.
- A payment method that belongs to no customer is used up once it has paid: another intent's confirmation with it is a 400
  `invalid_request_error` without a code, "It may not be used again". Stripe's pages do not say so; its users do (stripe-node
  issue 884, liberapay issue 2686, and thebiggive/matchbot, Confirm.php, at the confirmation). Whether the creation is refused
  too is not known: here it is not, which is the harder case. (Stripe's own test cards are new methods at each use.)
- A cancel lets a hold go. A hold is captured once; what is not captured is let go. After `hold_seconds` it is cancelled.
- A search finds an intent as it was when it was created, and only `search_lag_seconds` later.
- The states of an intent, what it may be asked in each, and the codes of errors are Stripe's. Unknown parameters are refused.

`answer` takes a request and gives a response. All else is for whoever runs the double: the customer, the clock, the books.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rig.stripe_objects import (
    CARDS,
    EXPAND,
    Charge,
    Form,
    Intent,
    Movement,
    Refund,
    StripeError,
    check,
    declined,
    invalid,
    told_charge,
    told_intent,
    told_refund,
)

HOLD_SECONDS = 7 * 86_400.0
KEY_SECONDS = 86_400.0
PAGES = "https://hooks.stripe.example/3ds/"

Response = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True, slots=True)
class _Saved:
    request: tuple[str, bytes]
    status: int
    body: bytes
    at: float


_OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")
_REASONS = ("abandoned", "duplicate", "fraudulent", "requested_by_customer")
_METADATA = re.compile(r"metadata\[([^\]]{1,40})\]")
_QUERY = re.compile(r"metadata\['(?P<name>[^']+)'\]:'(?P<content>[^']*)'")


@dataclass(slots=True)
class StripeBank:
    """One account at Stripe."""

    now: Callable[[], float]
    """Seconds since 1970."""
    keys: set[str] = field(default_factory=set)
    """The secret keys that are accepted; with none in it every key is."""
    key_seconds: float = KEY_SECONDS
    hold_seconds: float = HOLD_SECONDS
    search_lag_seconds: float = 0.0
    clears_errors: bool = False
    """Whether a cancel clears `last_payment_error`, as Stripe says any update may."""
    intents: dict[str, Intent] = field(default_factory=dict)
    movements: list[Movement] = field(default_factory=list)
    balance: list[dict[str, Any]] = field(default_factory=list)
    """The balance transactions, oldest first, as Stripe tells them; `source` is an id."""
    used: dict[str, str] = field(default_factory=dict)
    """The payment methods that are used up, with the intents that they paid."""
    breaks: int = 0
    """So many of the next orders with a key are done and answered with a 500, which is saved."""
    _refunds: list[Refund] = field(default_factory=list)
    _saved: dict[str, _Saved] = field(default_factory=dict)
    _indexed: dict[str, bytes] = field(default_factory=dict)
    _ids: int = 0

    # ------------------------------------------------------------ the API
    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer a request. `headers` has its names in lower case."""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if not bearer or (self.keys and bearer not in self.keys):
            return _response(401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key provided"}})
        self._let_time_pass()
        path, key = urlsplit(target).path.removeprefix("/v1"), headers.get("idempotency-key", "")
        request = (path, body)
        saved = self._saved.get(key)
        if method == "POST" and saved is not None and self.now() < saved.at + self.key_seconds:
            if saved.request != request:
                return _response(400, {"error": {"type": "idempotency_error", "message": "Keys can only be used once"}})
            return saved.status, {**_JSON, "idempotent-replayed": "true"}, saved.body
        is_saved = True
        try:
            said = (
                self._get(path, dict(parse_qsl(urlsplit(target).query))) if method == "GET" else self._post(path, body)
            )
            status = 200
            if method == "POST" and key and self.breaks:
                self.breaks -= 1
                raise StripeError(500, "api_error")
        except StripeError as error:
            status, said, is_saved = error.status, {"error": error.said}, error.saved
        response = _response(status, said)
        if method == "POST" and key and is_saved:
            self._saved[key] = _Saved(request, status, response[2], self.now())
        return response

    def _get(self, path: str, query: Form) -> Any:
        match path.split("/"):
            case ["", "payment_intents", "search"]:
                return _page("search_result", path, list(self._search(query["query"])), False)
            case ["", "payment_intents", intent_id]:
                return told_intent(self._intent(intent_id), is_expanded=EXPAND in query)
            case ["", "refunds"]:
                return self._list_refunds(query)
            case ["", "balance_transactions"]:
                return self._list_balance(query)
            case _:
                raise invalid(None, status=404, saved=False)

    def _post(self, path: str, body: bytes) -> Any:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True)
        metadata = {found[1]: text for name, text in pairs if (found := _METADATA.fullmatch(name))}
        form = {name: text for name, text in pairs if not _METADATA.fullmatch(name)}
        match path.split("/"):
            case ["", "payment_intents"]:
                check("create", form)
                intent = self._create(form, metadata)
            case ["", "payment_intents", intent_id]:
                check("update", form)
                intent = self._update(self._intent(intent_id), form, metadata)
            case ["", "payment_intents", intent_id, "confirm" | "capture" | "cancel" as order]:
                check(order, form)
                intent = self._intent(intent_id)
                {"confirm": self._confirm, "capture": self._capture, "cancel": self._cancel}[order](
                    intent, form, metadata
                )
            case ["", "refunds"]:
                check("refund", form)
                return told_refund(self._refund(form, metadata))
            case _:
                raise invalid(None, status=404, saved=False)
        return told_intent(intent, is_expanded=EXPAND in form)

    # ------------------------------------------------------------ orders
    def _create(self, form: Form, metadata: dict[str, str]) -> Intent:
        card, method = form.get("payment_method"), form.get("capture_method", "automatic_async")
        if not form["amount"].isdecimal() or int(form["amount"]) < 1:
            raise invalid("parameter_invalid_integer", saved=False, param="amount")
        if not re.fullmatch("[a-z]{3}", form["currency"]):
            raise invalid(None, saved=False, param="currency")
        if card is not None and card not in CARDS:
            raise invalid("resource_missing", saved=False, param="payment_method")
        intent = Intent(
            self._id("pi"), int(form["amount"]), form["currency"], self.now(), method, card, metadata
        )  # fmt: skip
        if card is None:
            intent.status = "requires_payment_method"
        self.intents[intent.intent_id] = intent
        self._indexed[intent.intent_id] = json.dumps(told_intent(intent, is_expanded=False)).encode()
        return intent

    def _update(self, intent: Intent, form: Form, metadata: dict[str, str]) -> Intent:
        if "payment_method" in form:
            if intent.status not in _OPEN:
                raise self._unexpected(intent)
            intent.payment_method = form["payment_method"] or None
            intent.status = "requires_confirmation" if intent.payment_method else "requires_payment_method"
            intent.action_url, intent.last_error = "", None
        intent.metadata |= metadata
        return intent

    def _confirm(self, intent: Intent, form: Form, _: Mapping[str, str]) -> None:
        if intent.status not in _OPEN or intent.payment_method is None:
            raise self._unexpected(intent)
        if self.used.get(intent.payment_method, intent.intent_id) != intent.intent_id:
            raise invalid(None, param="payment_method")
        if CARDS[intent.payment_method].wants_customer:
            if form.get("off_session") == "true":
                self._decline(intent, "authentication_required")
                raise StripeError(402, "card_error", **intent.last_error or {}, payment_intent=told_intent(intent))
            intent.attempts += 1
            intent.status, intent.action_url = "requires_action", f"{PAGES}{intent.intent_id}/{intent.attempts}"
            return
        self._attempt(intent)
        if intent.status == "requires_payment_method":
            raise StripeError(402, "card_error", **intent.last_error or {}, payment_intent=told_intent(intent))

    def _attempt(self, intent: Intent) -> None:
        """Ask the card's bank."""
        card = CARDS[intent.payment_method or ""]
        word = card.attempts[min(intent.attempts, len(card.attempts) - 1)]
        intent.attempts += 1
        intent.action_url = ""
        if word:
            self._decline(intent, word)
        elif card.processing_seconds:
            intent.status, intent.done_at = "processing", self.now() + card.processing_seconds
        else:
            self._approve(intent)

    def _decline(self, intent: Intent, word: str) -> None:
        intent.status, intent.last_error = "requires_payment_method", declined(word)
        intent.charge = Charge(self._id("ch"), "failed", failure_code=intent.last_error["code"], decline_code=word)

    def _approve(self, intent: Intent) -> None:
        if intent.payment_method is not None and CARDS[intent.payment_method].is_single_use:
            self.used[intent.payment_method] = intent.intent_id
        intent.charge, intent.last_error = Charge(self._id("ch"), "succeeded"), None
        if intent.capture_method == "manual":
            intent.status, intent.done_at = "requires_capture", self.now() + self.hold_seconds
            intent.charge.capture_before = int(intent.done_at)
            if CARDS[intent.payment_method or ""].lapses_at_once:
                intent.done_at = self.now()
            self._move(intent, "authorize", intent.intent_id)
        else:
            intent.status, intent.charge.captured = "succeeded", intent.amount
            self._move(intent, "charge", intent.intent_id)

    def _capture(self, intent: Intent, form: Form, metadata: Mapping[str, str]) -> None:
        if intent.status != "requires_capture" or intent.charge is None:
            raise self._unexpected(intent)
        if intent.has_lapsed:
            raise invalid("charge_expired_for_capture")
        amount = int(form.get("amount_to_capture", intent.amount))
        if not 0 < amount <= intent.amount:
            raise invalid("amount_too_large", saved=False, param="amount_to_capture")
        intent.metadata |= metadata
        intent.status, intent.charge.captured, intent.done_at = "succeeded", amount, 0.0
        self._move(intent, "capture", intent.charge.charge_id, amount, intent.metadata.get("capture", ""))

    def _cancel(self, intent: Intent, form: Form, _: Mapping[str, str]) -> None:
        reason = form.get("cancellation_reason")
        if reason is not None and reason not in _REASONS:
            raise invalid(None, saved=False, param="cancellation_reason")
        if intent.status not in (*_OPEN, "requires_capture"):
            raise self._unexpected(intent)
        is_hold = intent.status == "requires_capture"
        self._end(intent, reason)
        if is_hold:
            self._move(intent, "void", intent.intent_id, reference=intent.metadata.get("void", ""))

    def _end(self, intent: Intent, reason: str | None) -> None:
        intent.status, intent.cancellation_reason, intent.action_url, intent.done_at = "canceled", reason, "", 0.0
        if self.clears_errors:
            intent.last_error = None

    def _refund(self, form: Form, metadata: dict[str, str]) -> Refund:
        intent = self._intent(form["payment_intent"])
        charge = intent.charge
        if intent.status != "succeeded" or charge is None:
            raise invalid(None)
        left = charge.captured - charge.refunded
        amount = int(form.get("amount", left))
        if left == 0:
            raise invalid("charge_already_refunded")
        if amount > left:
            raise invalid(None, param="amount")
        status = CARDS[intent.payment_method or ""].refund
        refund = Refund(self._id("re"), intent.intent_id, amount, intent.currency, status, metadata)
        self._refunds.insert(0, refund)
        if status != "failed":
            charge.refunded += amount
        if status == "succeeded":
            self._pay_back(refund)
        return refund

    def _pay_back(self, refund: Refund) -> None:
        reference = refund.metadata.get("reference", "")
        self._move(self.intents[refund.intent_id], "refund", refund.refund_id, refund.amount, reference)

    # ------------------------------------------------------------ look-ups
    def _intent(self, intent_id: str) -> Intent:
        if intent_id not in self.intents:
            raise invalid("resource_missing", status=404, saved=False, param="intent")
        return self.intents[intent_id]

    def _search(self, query: str) -> Iterator[Any]:
        found = _QUERY.fullmatch(query)
        if found is None:
            raise invalid(None, saved=False, param="query")
        for intent in self.intents.values():
            is_indexed = intent.created + self.search_lag_seconds <= self.now()
            if is_indexed and intent.metadata.get(found["name"]) == found["content"]:
                yield json.loads(self._indexed[intent.intent_id])

    def _list_refunds(self, query: Form) -> Any:
        found = [it for it in self._refunds if it.intent_id == query["payment_intent"]]
        if after := query.get("starting_after"):
            found = found[[it.refund_id for it in found].index(after) + 1 :]
        limit = int(query.get("limit", "10"))
        return _page("list", "/refunds", [told_refund(it) for it in found[:limit]], len(found) > limit)

    def _list_balance(self, query: Form) -> Any:
        """The newest first; each with its charge or refund if that is asked for."""
        since, until = float(query.get("created[gte]", 0)), float(query.get("created[lt]", "inf"))
        found = [it for it in reversed(self.balance) if since <= it["created"] < until]
        if after := query.get("starting_after"):
            found = found[[it["id"] for it in found].index(after) + 1 :]
        limit = int(query.get("limit", "10"))
        is_expanded = query.get("expand[]") == "data.source"
        data = [{**it, "source": self._source(it["source"]) if is_expanded else it["source"]} for it in found[:limit]]
        return _page("list", "/balance_transactions", data, len(found) > limit)

    def _source(self, source_id: str) -> Any:
        for intent in self.intents.values():
            if intent.charge is not None and intent.charge.charge_id == source_id:
                return told_charge(intent)
        for refund in self._refunds:
            if refund.refund_id == source_id:
                return told_refund(refund)
        return {"id": source_id, "object": "payout" if source_id.startswith("po") else "dispute"}

    def book(self, category: str, amount: int, *, source: str = "", currency: str = "eur", fee: int = 0) -> None:
        """Book what no order of ours brings about, such as a payout or a dispute."""
        self.balance.append(
            {
                "id": self._id("txn"),
                "object": "balance_transaction",
                "amount": amount,
                "created": int(self.now()),
                "currency": currency,
                "fee": fee,
                "net": amount - fee,
                "reporting_category": category,
                "source": source or self._id({"payout": "po", "dispute": "du"}.get(category, "src")),
                "status": "available",
            }
        )

    def _unexpected(self, intent: Intent) -> StripeError:
        return invalid("payment_intent_unexpected_state", payment_intent=told_intent(intent))

    # ------------------------------------------------------------ for whoever runs it
    def authenticate(self, intent_id: str, *, succeeds: bool) -> None:
        """Take the customer's step, or fail in it; nothing if none is wanted any more."""
        intent = self.intents[intent_id]
        if intent.status != "requires_action":
            return
        if succeeds:
            intent.attempts -= 1
            self._attempt(intent)
        else:
            intent.status, intent.action_url = "requires_payment_method", ""
            intent.last_error = {"code": "payment_intent_authentication_failure"}

    def newest(self, reference: str) -> Intent | None:
        """Return the newest intent of a reference of ours."""
        of_ours = [it for it in self.intents.values() if it.metadata.get("reference") == reference]
        return of_ours[-1] if of_ours else None

    def expire(self, intent_id: str) -> None:
        """Cancel an intent that is open, or whose hold has lapsed, as Stripe does by itself."""
        if self.intents[intent_id].status in (*_OPEN, "requires_capture"):
            self._end(self.intents[intent_id], "automatic")

    def settle_refunds(self, *, succeed: bool) -> None:
        """End all pending refunds."""
        for refund in self._refunds:
            if refund.status == "pending":
                refund.status = "succeeded" if succeed else "failed"
                if succeed:
                    self._pay_back(refund)
                elif (charge := self.intents[refund.intent_id].charge) is not None:
                    charge.refunded -= refund.amount

    def _let_time_pass(self) -> None:
        for intent in self.intents.values():
            if intent.done_at and intent.done_at <= self.now():
                if intent.status == "processing":
                    intent.done_at = 0.0
                    self._approve(intent)
                else:
                    self._end(intent, "automatic")

    def _move(
        self, intent: Intent, kind: str, transaction_id: str, amount: int = 0, reference: str | None = None
    ) -> None:
        reference = intent.metadata.get("reference", "") if reference is None else reference
        on = "" if kind in ("charge", "authorize") else intent.intent_id
        if kind in ("charge", "capture") and intent.charge is not None:
            moved = amount or intent.amount
            self.book("charge", moved, source=intent.charge.charge_id, currency=intent.currency, fee=25 + moved // 100)
        elif kind == "refund":
            self.book("refund", -amount, source=transaction_id, currency=intent.currency)
        self.movements.append(Movement(reference, kind, transaction_id, amount or intent.amount, intent.currency, on))

    def _id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}_{self._ids:08}"


_JSON = {"content-type": "application/json"}


def _response(status: int, said: Any) -> Response:
    return status, _JSON, json.dumps(said).encode()


def _page(kind: str, path: str, data: list[Any], has_more: bool) -> Any:
    return {"object": kind, "url": f"/v1{path}", "data": data, "has_more": has_more}
