"""The dialect of a bank of one step, whose HTTP API is told under "One step" in the docstring of gateway_mock.

Such a bank has no tokens: an order is executed at once, and carries a key, by which the bank knows a repeated order. Here the
token is our own reference. The token step makes no call, the journal stores the token before anything is sent, and the execute
step sends the order with the token as its key. So the two steps are those of every bank, and so is their arbitration.

    the bank says                                                      the dialect replies
    -----------------------------------------------------------------  ------------------------------
    200 and how the payment ended, in every member                     Transaction
    410 key_cancelled to an order, likewise                            Transaction, cancelled
    400, 404, 409 or 422 to an order, in one of the bank's own words   Refusal
    404 to a look-up, naming our reference, heard twice                Transaction, open: nothing was executed
    202 in_progress                                                    InProgress
    401 or 403, or a certificate that is not trusted                   NoAnswer, our_setup
    anything else                                                      NoAnswer

What such a bank must promise
=============================

1. For `key_seconds` after a key's first use a repeated order gets the payment of the first one, also if they come together, and
   another order under the key is refused. A saved answer says how the payment ended, executed or declined. Both are for ever,
   so that an answer that was saved is never out of date.
2. A look-up by reference finds the newest payment. It may be late, by less than `trusted_seconds(key_seconds)`: until it finds
   a payment, the payment's key is known.
3. Calling off a key that the bank does not know closes it for ever, and of one that it knows it tells how its payment ended.
4. No request of ours reaches it later than a sixth of `key_seconds` after we sent it.

Why no card is charged twice
============================

* *The operation is young*: it was requested less than `trusted_seconds` ago. Its key was first used later than that, so the
  bank knows it. Any number of orders and callings off are one, whichever comes first.
* *It is old, or another process may have sent it*: the core wants a look-up first. If that finds a payment, nothing is sent.
  If it finds none, then by promise 2 none was made whose key is forgotten, and the order is sent once more under the same key,
  which is now known for another `key_seconds`. Until the look-up finds that payment, repeats are covered by the key.
* *A young operation's last order is still on its way* when the key is about to be forgotten. It was sent before five sixths of
  the time were over (the runner looks at the age right before it sends), so that by promise 4 it arrives while the bank still
  knows the key, if the key was used. If it was not, that order and the one after a look-up carry one key: the first to arrive
  is the payment, and by promise 4 the other one finds its key known.
* *A late order meets a calling off.* A key is called off only if it is young, or if a look-up has just found no payment. So the
  bank knows the key and tells how it ended, or it closes the key for ever, and then refuses the late order. An old one that has
  a payment is not called off, since the bank may have forgotten its key: the look-up's answer is the end (`two_step`). And
  "cancelled" is never believed without one more look-up.
* *A stray answer to a look-up.* That nothing was found leads to an order, and past the key's time there is nothing behind it.
  So it must name our reference, and is heard twice, the second time over a connection that has never been used.
* *The journal was restored* and has lost steps, or whole charges that clients then repeat. Those have the same references as
  before, so that a payment which the look-up does not show yet is one whose key is known. It looks up before every step.

Without look-ups
================

`looks_up = false` is for banks that offer none. While the key is known, the order itself is the look-up: to repeat it changes
nothing, and tells how it ended. A calling off is repeated likewise. Past that time, and with a restored journal, there is no
question whose answer is certain. So every such step is a `Contradiction`, and its charge is for people. Nor can people ask the
bank by a look-up.

Two things a bank of two steps can do and this one cannot. An order that it refuses, without a payment that is declined, leaves
the key open: that is `Refused`, and for people. And a token does not expire: a charge waits for as long as the bank is away,
and is then executed, unless `not_after` or a void has it called off.
"""

import json
from collections.abc import Mapping

import httpx

from command_service.bank import Bank, trusted_seconds
from command_service.bank.dialect import Refusal, Reply, Stage, Transaction, heard, is_storable, unexecuted
from command_service.bank.times import microseconds
from command_service.bank.transport import JSON_CONTENT, Endpoint, Exchange, no_answer
from command_service.bank.two_step import TwoStepBank
from command_service.values import (
    Answer,
    CallOff,
    Contradiction,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    InProgress,
    Kind,
    NoAnswer,
    Operation,
    RequestToken,
)

KEY_SECONDS = 24 * 3600.0
"""For how long a bank remembers a key, unless its options say otherwise."""

_STATES = {stage.value: stage for stage in (Stage.EXECUTED, Stage.DECLINED, Stage.CANCELLED)}
_DEFINITE = frozenset({400, 404, 409, 422})
# The bank's own words for its refusals of an order.
_WORDS = frozenset({"bad_request", "currency_differs", "key_reused", "refused", "transaction_unknown"})
_KINDS = {kind.value: kind for kind in Kind}
# The bank's reasons. All others become OTHER.
_REASONS = {
    "card_declined": DeclineReason.CARD_DECLINED,
    "insufficient_funds": DeclineReason.INSUFFICIENT_FUNDS,
    "expired_card": DeclineReason.EXPIRED_CARD,
    "card_unknown": DeclineReason.BANK_REFUSED,
    "authentication_required": DeclineReason.AUTHENTICATION_REQUIRED,
    "authorization_expired": DeclineReason.AUTHORIZATION_EXPIRED,
}


class OneStep:
    """The one-step bank's `Dialect`."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport) -> None:
        """The bank at `url`, http or https."""
        self._payments = Endpoint(transport, url.rstrip("/") + "/payments")

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:  # noqa: ARG002 - nothing is asked
        """Name our reference as the token."""
        return unexecuted(effect.operation)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Send the order, with the token as its key."""
        return await self._order(effect, "", effect.token, fresh=fresh)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        """Call the key off."""
        return await self._order(effect, f"/{token}/cancel", token, fresh=fresh)

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:  # noqa: ARG002
        """Look up by reference: that is all the bank can do, and every token is one."""
        return await self.find_by_reference(effect, fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Look the newest payment of our reference up. None, heard twice: it is open."""
        found = await self._look_up(effect, fresh=fresh)
        if isinstance(found, Refusal):
            found = await self._look_up(effect, fresh=True)
        return unexecuted(effect.operation, found.exchange) if isinstance(found, Refusal) else found

    def finds_at_once(self, operation: Operation) -> bool:
        """A payment may be found late. One that is not found is open, as nobody has called its key off."""
        del operation
        return False

    async def close(self) -> None:
        """Let go of connections."""
        await self._payments.close()

    async def _order(self, effect: Execute | CallOff, path: str, token: str, *, fresh: bool) -> Reply:
        operation, amount = effect.operation, effect.operation.amount
        if token != operation.reference:
            return Refusal()  # A key that we never used, from a time when another kind of bank had this name.
        order: dict[str, object] = {"reference": operation.reference, "kind": operation.kind.value}
        if operation.opens:
            order["card"] = operation.request.card.token
        else:
            order["on"] = operation.on
        order["amount"], order["currency"] = amount.minor_units, amount.currency_code
        if operation.kind is Kind.CAPTURE:
            order["final"] = operation.is_final
        headers, body = [JSON_CONTENT, (b"Idempotency-Key", token.encode())], json.dumps(order).encode()
        got = await self._payments.ask("POST", path, headers=headers, body=body, fresh=fresh)
        return got if isinstance(got, NoAnswer) else heard(got, _read_end(got), effect)

    async def _look_up(self, effect: Effect, *, fresh: bool) -> Reply:
        reference = effect.operation.reference
        got = await self._payments.ask("GET", f"?{httpx.QueryParams(reference=reference)}", fresh=fresh)
        return got if isinstance(got, NoAnswer) else heard(got, _read_found(got, reference), effect)


class OneStepWithoutLookUps(OneStep):
    """The same for a bank that offers no look-up. It is asked in this way only while it knows the key."""

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        """Repeat the order, or the calling off."""
        match effect:
            case Execute():
                return await self.execute(effect, fresh=fresh)
            case CallOff():
                return await self.cancel(effect, token, fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Repeat it likewise; what has no token was never sent, and is open."""
        if isinstance(effect, RequestToken) or effect.token is None:
            return unexecuted(effect.operation)
        return await self.find_by_token(effect, effect.token, fresh=fresh)


class _Unseen:
    """A bank without look-ups. Nothing is done there if a look-up is wanted first."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self.remembers_seconds = bank.remembers_seconds
        self.can_look_up = False

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if look_up_first and not isinstance(effect, RequestToken):
            return Contradiction(Evidence())
        return await self._bank.perform(effect, look_up_first=False)

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        del operation, token
        return no_answer("the bank offers no look-up")

    async def close(self) -> None:
        await self._bank.close()


def one_step_bank(
    url: str,
    transport: httpx.AsyncBaseTransport,
    call_timeout_seconds: float,
    *,
    key_seconds: float = KEY_SECONDS,
    looks_up: bool = True,
) -> Bank:
    """Make the `Bank` at `url`, which remembers a key for `key_seconds`. The timeout is for a whole `perform`."""
    dialect = OneStep(url, transport) if looks_up else OneStepWithoutLookUps(url, transport)
    bank = TwoStepBank(dialect, call_timeout_seconds, remembers_seconds=trusted_seconds(key_seconds))
    return bank if looks_up else _Unseen(bank)


# ---------------------------------------------------------------- what the bank said
def _read_end(got: Exchange) -> Reply:
    """Read the answer to an order, or to a calling off."""
    said = got.json_object() or {}
    match got.status, said.get("error"):
        case 202, _ if said.get("result") == "in_progress":
            return InProgress(got.retry_after_seconds)
        case (200, None) | (410, "key_cancelled"):
            return _payment(got, said)
        case status, str(word) if status in _DEFINITE and word in _WORDS:
            return Refusal(got)
    return _nothing(got)


def _read_found(got: Exchange, reference: str) -> Reply:
    """Read the answer to a look-up."""
    said = got.json_object() or {}
    match got.status, said.get("error"):
        case 202, _ if said.get("result") == "in_progress":
            return InProgress(got.retry_after_seconds)
        case 200, None:
            return _payment(got, said)
        case 404, _ if said == {"error": "reference_unknown", "reference": reference}:
            return Refusal(got)
    return _nothing(got)


def _nothing(got: Exchange) -> NoAnswer:
    if got.status in (401, 403):
        return no_answer(f"status {got.status}", our_setup=True)
    return no_answer(f"status {got.status}", retry_after_seconds=got.retry_after_seconds)


def _payment(got: Exchange, said: Mapping[str, object]) -> Transaction | NoAnswer:
    """Read every member. One that is missing or malformed, or does not go with the state, is no answer."""
    stage = _STATES.get(str(said.get("state")))
    kind = _KINDS.get(str(said.get("kind")))
    match said:
        case {
            "key": str(key),
            "reference": str(reference),
            "card": str(card),
            "amount": int(amount),
            "currency": str(currency),
            "transaction_id": transaction_id,
            "reason": str() | None as word,
        } if (
            stage is not None
            and kind is not None
            and is_storable(key)
            and not isinstance(amount, bool)  # In Python true is an int, and equals 1.
            and (transaction_id is not None) == (stage is Stage.EXECUTED)
            and (word is not None) == (stage is Stage.DECLINED)
        ):
            is_hold = kind is Kind.AUTHORIZE and stage is Stage.EXECUTED
            hold_expires_at = microseconds(said.get("hold_expires_at")) if is_hold else 0
            match said.get("on", ""), said.get("final", False):
                case str(on), bool(is_final) if hold_expires_at is not None:
                    return Transaction(
                        stage,
                        key,
                        reference,
                        card,
                        amount,
                        currency,
                        transaction_id if isinstance(transaction_id, str) and is_storable(transaction_id) else "",
                        None if word is None else _REASONS.get(word, DeclineReason.OTHER),
                        got,
                        kind,
                        on,
                        is_final,
                        hold_expires_at,
                    )
    return _nothing(got)
