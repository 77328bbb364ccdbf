"""The dialect of the two-step gateway, whose HTTP API is told in the docstring of gateway_mock.

Here are its paths, members, statuses and words, and no conclusion from them: `two_step` draws those.

    the bank says                                                      the dialect replies
    -----------------------------------------------------------------  ------------------------------
    200 and how far the transaction has come, in every member          Transaction
    410 token_expired or token_cancelled to the execute step, likewise Transaction, expired or cancelled
    400, 404, 409 or 422 to an order, in one of the bank's own words   Refusal
    404 to a look-up, in one of the bank's own words                   Refusal
    202 in_progress                                                    InProgress
    202 requires_action, in every member                               Transaction that awaits the customer
    401 or 403, or a certificate that is not trusted                   NoAnswer, our_setup
    anything else                                                      NoAnswer

1. A refusal in other words is not the bank's, but that of a proxy or of a server at a wrong address.
2. An order (a step, or calling off) goes with an idempotency key of our own, for whatever stands between us and the bank.
3. An answer that says no kind is about a charge: the banks that know nothing else say none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from command_service.bank.dialect import Refusal, Reply, Stage, Transaction, heard, is_storable
from command_service.bank.times import microseconds
from command_service.bank.transport import JSON_CONTENT, Endpoint, Exchange, no_answer
from command_service.bank.two_step import TwoStepBank
from command_service.values import (
    CallOff,
    DeclineReason,
    Effect,
    Execute,
    InProgress,
    Kind,
    NoAnswer,
    Operation,
    RequestToken,
)


@dataclass(frozen=True, slots=True)
class _Question:
    """A kind of request. For each status that tells a stage: the member that tells it, and the stage of each word."""

    method: str
    tells: Mapping[int, tuple[str, Mapping[str, Stage]]]
    refusals: frozenset[int]


_OPEN = {"created": Stage.CREATED, "requires_action": Stage.AWAITS_CUSTOMER}
_ENDS = {stage.value: stage for stage in Stage if stage not in _OPEN.values()}
_STATES = _OPEN | _ENDS
_RESULTS = {"executed": Stage.EXECUTED, "already_executed": Stage.EXECUTED, "declined": Stage.DECLINED}
_ASKS = {"requires_action": Stage.AWAITS_CUSTOMER}
_CLOSED = {"token_expired": Stage.EXPIRED, "token_cancelled": Stage.CANCELLED}
_DEFINITE = frozenset({400, 404, 409, 422})
# The bank's own words for its refusals.
_WORDS = {
    "bad_request",
    "card_unknown",
    "currency_differs",
    "fields_differ",
    "reference_reused",
    "reference_unknown",
    "refused",
    "token_unknown",
    "transaction_unknown",
}

_TOKEN_STEP = _Question("POST", {200: ("state", _STATES)}, _DEFINITE)
_EXECUTE_STEP = _Question(
    "POST", {200: ("result", _RESULTS), 202: ("result", _ASKS), 410: ("error", _CLOSED)}, _DEFINITE
)
# One that is open still was not called off: this is no answer.
_CANCEL = _Question("POST", {200: ("state", _ENDS)}, _DEFINITE)
# Any other refusal of a look-up tells nothing of the transaction, and so is no answer.
_LOOK_UP = _Question("GET", {200: ("state", _STATES)}, frozenset({404}))

_KINDS = {kind.value: kind for kind in Kind}
# The bank's reasons. All others become OTHER: some words of ours are not the bank's to say.
_REASONS = {
    "card_declined": DeclineReason.CARD_DECLINED,
    "insufficient_funds": DeclineReason.INSUFFICIENT_FUNDS,
    "expired_card": DeclineReason.EXPIRED_CARD,
    "authentication_required": DeclineReason.AUTHENTICATION_REQUIRED,
    "authorization_expired": DeclineReason.AUTHORIZATION_EXPIRED,
}


class Gateway:
    """The two-step gateway's `Dialect`."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport) -> None:
        """The bank at `url`, http or https."""
        self._transactions = Endpoint(transport, url.rstrip("/") + "/transactions")

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        """Open a transaction under our reference, or hear of the known one."""
        operation, amount = effect.operation, effect.operation.amount
        order: dict[str, object] = {"reference": operation.reference}
        if operation.opens:
            order["card"] = operation.request.card.token
        else:
            order["on"] = operation.on
        order["amount"], order["currency"] = amount.minor_units, amount.currency_code
        if operation.kind is not Kind.CHARGE:
            order["kind"] = operation.kind.value
        if operation.kind is Kind.CAPTURE:
            order["final"] = operation.is_final
        # Only if they say something: a bank that knows neither gets the orders that it knows.
        if operation.opens and operation.request.is_off_session:
            order["off_session"] = True
        if operation.opens and operation.request.return_url:
            order["return_url"] = operation.request.return_url
        # With the count, the request after an expired token is another one than the request before.
        key = f"{operation.reference}:token:{effect.expired_tokens}"
        return await self._ask(_TOKEN_STEP, effect, "", order, key=key, fresh=fresh)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Execute the token's transaction."""
        amount = effect.operation.amount
        # The bank compares these with what its token stands for, before any money moves.
        order = {"amount": amount.minor_units, "currency": amount.currency_code}
        key = f"{effect.operation.reference}:execute:{effect.token}"
        return await self._ask(_EXECUTE_STEP, effect, f"/{effect.token}/execute", order, key=key, fresh=fresh)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        """Call the token's transaction off."""
        key = f"{effect.operation.reference}:cancel:{token}"
        return await self._ask(_CANCEL, effect, f"/{token}/cancel", key=key, fresh=fresh)

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        """Look the token's transaction up."""
        return await self._ask(_LOOK_UP, effect, f"/{token}", fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Look the newest transaction of our reference up."""
        query = httpx.QueryParams(reference=effect.operation.reference)
        return await self._ask(_LOOK_UP, effect, f"?{query}", fresh=fresh)

    def finds_at_once(self, operation: Operation) -> bool:
        """Every transaction, at once."""
        del operation
        return True

    async def close(self) -> None:
        """Let go of connections."""
        await self._transactions.close()

    async def _ask(
        self,
        question: _Question,
        effect: Effect,
        path: str,
        order: Mapping[str, object] | None = None,
        *,
        key: str = "",
        fresh: bool,
    ) -> Reply:
        headers = [JSON_CONTENT, (b"Idempotency-Key", key.encode())] if key else [JSON_CONTENT]
        body = json.dumps(order).encode() if order else b""
        if key and not body:
            headers.append((b"Content-Length", b"0"))  # Some servers wait for the body of a POST that names no length.
        got = await self._transactions.ask(question.method, path, headers=headers, body=body, fresh=fresh)
        return got if isinstance(got, NoAnswer) else heard(got, _read(got, question), effect)


def gateway_bank(url: str, transport: httpx.AsyncBaseTransport, call_timeout_seconds: float) -> TwoStepBank:
    """Make the `Bank` of the gateway at `url`. The timeout is for a whole `perform`, look-ups included."""
    return TwoStepBank(Gateway(url, transport), call_timeout_seconds)


# ---------------------------------------------------------------- what the bank said
def _read(got: Exchange, question: _Question) -> Reply:
    said = got.json_object() or {}
    match got.status:
        case 401 | 403:
            return no_answer(f"status {got.status}", our_setup=True)
        case 202 if said.get("result") == "in_progress":
            return InProgress(got.retry_after_seconds)
        case status if status in question.refusals and str(said.get("error")) in _WORDS:
            return Refusal(got)
        case status if status in question.tells:
            member, words = question.tells[status]
            stage = words.get(str(said.get(member)))
            if stage is not None and (transaction := _transaction(got, said, stage)) is not None:
                return transaction
    return no_answer(f"status {got.status}", retry_after_seconds=got.retry_after_seconds)


def _transaction(got: Exchange, said: Mapping[str, object], stage: Stage) -> Transaction | None:
    """None: a member is missing or malformed, or does not go with the stage."""
    match said:
        case {
            "token": str(token),
            "reference": str(reference),
            "card": str(card),
            "amount": int(amount),
            "currency": str(currency),
            "transaction_id": transaction_id,
            "reason": str() | None as word,
        } if (
            is_storable(token)
            and not isinstance(amount, bool)  # In Python true is an int, and equals 1.
            and (transaction_id is not None) == (stage is Stage.EXECUTED)
            and (word is not None) == (stage is Stage.DECLINED)
        ):
            kind = _KINDS.get(str(said.get("kind", "charge")))
            on, is_final = said.get("on", ""), said.get("final", False)
            is_hold = kind is Kind.AUTHORIZE and stage is Stage.EXECUTED
            hold_expires_at = microseconds(said.get("hold_expires_at")) if is_hold else 0
            asks = stage is Stage.AWAITS_CUSTOMER
            url, action_expires_at = (said.get("action_url"), said.get("action_expires_at")) if asks else ("", None)
            asks_until = microseconds(action_expires_at)
            if kind is None or not isinstance(on, str) or not isinstance(is_final, bool) or hold_expires_at is None:
                return None
            if not isinstance(url, str) or asks_until is None:
                return None
            usable_id = transaction_id if isinstance(transaction_id, str) and is_storable(transaction_id) else ""
            reason = None if word is None else _REASONS.get(word, DeclineReason.OTHER)
            return Transaction(
                stage,
                token,
                reference,
                card,
                amount,
                currency,
                usable_id,
                reason,
                got,
                kind,
                on,
                is_final,
                hold_expires_at,
                url,
                asks_until,
            )
    return None
