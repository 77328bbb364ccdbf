"""The adapter for the two-step gateway, whose HTTP API is told in the docstring of gateway_mock.

It turns an effect into requests, and what comes back into an answer:

    the bank says                                  the adapter answers
    ---------------------------------------------  -----------------------------------------------------------
    token step: any state, fields equal to ours    Token: the execute step will hear how the transaction ended
    execute step: executed, fields equal to ours   Executed
    execute step: declined, or token expired       what a look-up says, else Contradiction
    fields that differ from ours                   what a look-up says, else Contradiction
    token step: 400, 404, 409, 422                 Refused
    execute step: 400, 404, 409, 422               what a look-up says, else Refused
    in progress, on a look-up too                  InProgress
    401, 403, a certificate that is not trusted    NoAnswer, our_setup
    anything else, on a look-up too                NoAnswer

1. An answer is read whole and strictly, or it is none: a proxy's 404 is no refusal by the bank, though it be JSON.
2. A look-up has a say only if it equals ours in every field, the token included. By reference another token may come up:
   then nobody may guess.
3. That a charge ended without money (declined, expired) is believed only if a look-up says it as well. So an answer that
   got mixed up on its way costs a question, not a second charge.
4. Nothing here takes a new token. The core does, after an `Expired`.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import httpx

from command_service.bank.transport import Exchange, exchange, no_answer
from command_service.card_numbers import card_number_in
from command_service.charge import (
    Answer,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Executed,
    Expired,
    InProgress,
    NoAnswer,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)


class _State(Enum):
    """How far a transaction has come, says the bank."""

    CREATED = "created"
    EXECUTED = "executed"
    DECLINED = "declined"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class _Question:
    """A kind of request. Each status that tells a state: the member it is in, and the words for it."""

    method: str
    tells: Mapping[int, tuple[str, Mapping[str, _State]]]
    refusals: frozenset[int]


_STATES = {state.value: state for state in _State}
_RESULTS = {"executed": _State.EXECUTED, "already_executed": _State.EXECUTED, "declined": _State.DECLINED}
_DEFINITE = frozenset({400, 404, 409, 422})
# What the bank calls its refusals. In other words it is not the bank that speaks, but a proxy, or a server at a wrong address.
_WORDS = {
    "bad_request",
    "card_unknown",
    "fields_differ",
    "reference_reused",
    "reference_unknown",
    "refused",
    "token_unknown",
}

_TOKEN_STEP = _Question("POST", {200: ("state", _STATES)}, _DEFINITE)
_EXECUTE_STEP = _Question(
    "POST", {200: ("result", _RESULTS), 410: ("error", {"token_expired": _State.EXPIRED})}, _DEFINITE
)
# Any other refusal of a look-up tells nothing of the transaction, and so is no answer.
_LOOK_UP = _Question("GET", {200: ("state", _STATES)}, frozenset({404}))

# The bank's reasons. All others become OTHER: some words of ours are not the bank's to say.
_REASONS = {
    "card_declined": DeclineReason.CARD_DECLINED,
    "insufficient_funds": DeclineReason.INSUFFICIENT_FUNDS,
    "expired_card": DeclineReason.EXPIRED_CARD,
}

# What we store of the bank's. "." and ".." would turn into another path.
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class _Transaction:
    """What the bank says of a transaction: well formed, and not believed before it is compared with ours."""

    exchange: Exchange
    state: _State
    token: str
    reference: str
    card: str
    amount: int
    currency: str
    transaction_id: str  # Empty unless executed.
    reason: str  # Empty unless declined.

    def differences(self, effect: Effect) -> tuple[str, ...]:
        """The names of the fields that are not ours. The token step has no token yet to compare."""
        pairs = {
            "token": (self.token, effect.token if isinstance(effect, Execute) else self.token),
            "reference": (self.reference, effect.charge_id),
            "card": (self.card, effect.card_token),
            "amount": (self.amount, effect.amount.minor_units),
            "currency": (self.currency, effect.amount.currency_code),
        }
        return tuple(name for name, (theirs, ours) in pairs.items() if theirs != ours)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A definite no, in the bank's own words; to a look-up, that there is no such transaction."""

    exchange: Exchange


_Reply = _Transaction | _Refusal | InProgress | NoAnswer


class GatewayBank:
    """The two-step gateway as a `Bank`."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, call_timeout_seconds: float) -> None:
        """The bank at `url`, http or https. The timeout is for a whole `perform`, look-ups included."""
        self._url = httpx.URL(url.rstrip("/") + "/transactions")
        self._transport = transport
        self._call_timeout_seconds = call_timeout_seconds

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do one step at the bank and say what came back. Never raises; see the port."""
        try:
            async with asyncio.timeout(self._call_timeout_seconds):
                match effect:
                    case RequestToken():
                        return await self._token_step(effect, look_up_first)
                    case Execute():
                        return await self._execute_step(effect, look_up_first)
                    case _:
                        assert_never(effect)
        except TimeoutError:
            return no_answer("deadline")

    async def close(self) -> None:
        """Let go of connections."""
        await self._transport.aclose()

    # ------------------------------------------------------------ the two steps
    async def _token_step(self, effect: RequestToken, look_up_first: bool) -> Answer:
        if look_up_first:
            match await self._find_by_reference(effect.charge_id):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case _Transaction() as known if known.differences(effect):
                    return _contradiction(known, effect)
                case _Transaction(state=_State.EXPIRED) | _Refusal():
                    pass  # There is no token, or one that would only expire again: the bank is asked for one.
                case _Transaction() as known:
                    return Token(known.token)
        match await self._request_token(effect):
            case InProgress() | NoAnswer() as unsettled:
                return unsettled
            case _Refusal(got):
                return Refused(got.evidence())
            case _Transaction() as said if not said.differences(effect):
                return Token(said.token)
            case _Transaction() as said:
                otherwise = _contradiction(said, effect)
        match await self._find_by_reference(effect.charge_id):
            case InProgress() | NoAnswer() as unsettled:
                return unsettled
            case _Transaction() as known if not known.differences(effect):
                return Token(known.token)
            case _Transaction() | _Refusal():
                return otherwise

    async def _execute_step(self, effect: Execute, look_up_first: bool) -> Answer:
        if look_up_first:
            match await self._find(effect):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case _Transaction(state=_State.CREATED) as known if not known.differences(effect):
                    pass  # The bank waits for this step, as we thought.
                case _Transaction() | _Refusal() as known:
                    return _end(known, effect) or _contradiction(known, effect)
        otherwise: Refused | Contradiction
        match await self._execute(effect):
            case InProgress() | NoAnswer() as unsettled:
                return unsettled
            case _Transaction(state=_State.EXECUTED) as said if not said.differences(effect):
                return Executed(said.transaction_id)
            case _Transaction() as said:
                otherwise = _contradiction(said, effect)
            case _Refusal(got):
                otherwise = Refused(got.evidence())
        match await self._find(effect):
            case InProgress() | NoAnswer() as unsettled:
                return unsettled
            case _Transaction() | _Refusal() as known:
                return _end(known, effect) or otherwise

    # ------------------------------------------------------------ the questions
    async def _request_token(self, effect: RequestToken) -> _Reply:
        order = {
            "reference": effect.charge_id,
            "card": effect.card_token,
            "amount": effect.amount.minor_units,
            "currency": effect.amount.currency_code,
        }
        # With the count, the request after an expired token is another one than the request before.
        return await self._ask(_TOKEN_STEP, "", order, key=f"{effect.charge_id}:token:{effect.expired_tokens}")

    async def _execute(self, effect: Execute) -> _Reply:
        # The bank compares these with what its token stands for, before any money moves.
        order = {"amount": effect.amount.minor_units, "currency": effect.amount.currency_code}
        key = f"{effect.charge_id}:execute:{effect.token}"
        return await self._ask(_EXECUTE_STEP, f"/{effect.token}/execute", order, key=key)

    async def _find(self, effect: Execute) -> _Reply:
        """Look up by our token; if the bank does not know it, by our reference."""
        known = await self._ask(_LOOK_UP, f"/{effect.token}")
        return await self._find_by_reference(effect.charge_id) if isinstance(known, _Refusal) else known

    async def _find_by_reference(self, reference: str) -> _Reply:
        return await self._ask(_LOOK_UP, f"?{httpx.QueryParams(reference=reference)}")

    async def _ask(
        self, question: _Question, path: str, order: Mapping[str, object] | None = None, *, key: str = ""
    ) -> _Reply:
        """One exchange. An order goes with an idempotency key of our own, for whatever stands between us and the bank."""
        headers = [(b"Idempotency-Key", key.encode())] if key else []
        body = json.dumps(order).encode() if order else b""
        got = await exchange(self._transport, question.method, self._url, path, headers=headers, body=body)
        return got if isinstance(got, NoAnswer) else _read(got, question)


# ---------------------------------------------------------------- what the bank said
def _read(got: Exchange, question: _Question) -> _Reply:
    said = got.json_object() or {}
    match got.status:
        case 401 | 403:
            return no_answer(f"status {got.status}", our_setup=True)
        case 202 if said.get("result") == "in_progress":
            return InProgress(got.retry_after_seconds)
        case status if status in question.refusals and str(said.get("error")) in _WORDS:
            return _Refusal(got)
        case status if status in question.tells:
            member, words = question.tells[status]
            state = words.get(str(said.get(member)))
            if state is not None and (transaction := _transaction(got, said, state)) is not None:
                return transaction
    return no_answer(f"status {got.status}", retry_after_seconds=got.retry_after_seconds)


def _transaction(got: Exchange, said: Mapping[str, object], state: _State) -> _Transaction | None:
    """None: a member is missing or malformed, or does not go with the state."""
    match said:
        case {
            "token": str(token),
            "reference": str(reference),
            "card": str(card),
            "amount": int(amount),
            "currency": str(currency),
            "transaction_id": str() | None as transaction_id,
            "reason": str() | None as reason,
        } if (
            _is_id(token)
            and not isinstance(amount, bool)  # In Python true is an int, and equals 1.
            and (transaction_id is not None) == (state is _State.EXECUTED)
            and (transaction_id is None or _is_id(transaction_id))
            and (reason is not None) == (state is _State.DECLINED)
        ):
            return _Transaction(
                got, state, token, reference, card, amount, currency, transaction_id or "", reason or ""
            )
    return None


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None and not card_number_in(text)


def _end(known: _Transaction | _Refusal, effect: Execute) -> Executed | Declined | Expired | None:
    """How our transaction ended. None: it has not, or this is not ours, or there is none."""
    if isinstance(known, _Refusal) or known.differences(effect):
        return None
    match known.state:
        case _State.EXECUTED:
            return Executed(known.transaction_id)
        case _State.DECLINED:
            return Declined(_REASONS.get(known.reason, DeclineReason.OTHER))
        case _State.EXPIRED:
            return Expired()
        case _State.CREATED:
            return None


def _contradiction(said: _Transaction | _Refusal, effect: Effect) -> Contradiction:
    names = said.differences(effect) if isinstance(said, _Transaction) else ()
    reason = ReviewReason.FIELDS_DIFFER if names else ReviewReason.CONTRADICTION
    return Contradiction(said.exchange.evidence(*names), reason)
