"""The adapter for the two-step gateway, whose HTTP API is told in the docstring of gateway_mock.

It turns an effect into requests, and what comes back into an answer:

    the bank says                                  the adapter answers
    ---------------------------------------------  -----------------------------------------------------------
    token step: any state, fields equal to ours    Token: the execute step will hear how the transaction ended
    token step: 400, 404, 409, 422, twice          Refused
    token step: fields that differ, twice          Contradiction
    token step: one of these and then the other    NoAnswer
    execute step: executed, fields equal to ours   Executed
    execute step: declined, or token expired       what a look-up says, else Contradiction
    execute step: fields that differ from ours     what a look-up says; if it is open, the step again, else Contradiction
    execute step: 400, 404, 409, 422               what a look-up says; if it is open, the step again, else Refused
    executed under an id that may not be stored    what two look-ups say; if the same, Contradiction
    in progress, on a look-up too                  InProgress
    401, 403, a certificate that is not trusted    NoAnswer, our_setup
    anything else, on a look-up too                NoAnswer

1. An answer is read whole and strictly, or it is none: a proxy's 404 is no refusal by the bank, though it be JSON.
2. An answer that names nobody (a refusal), or somebody else, may be one to somebody else's question: a bank or a proxy that
   once sends an answer too many gives each question on that connection the answer to the one before. So no charge ends on
   it alone. It ends its connection; the next question goes over a fresh one, and what is said there counts.
3. A look-up has a say only if it equals ours in every field, the token included. By reference another token may come up:
   then nobody may guess. One that is not plain is asked again, by our reference.
4. That a charge ended without money (declined, expired) is believed only if a look-up says it as well. So an answer that
   got mixed up on its way costs a question, not a second charge.
5. A step is told again only as it was told before: with the same reference or the same token, under which a bank does it once.
6. Nothing here takes a new token. The core does, after an `Expired`.
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
from command_service.values import (
    Answer,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Evidence,
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
    transaction_id: str  # Empty unless executed; and if the bank's is none that we may store.
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

    @property
    def has_unusable_id(self) -> bool:
        """The money moved, but by what name may not be stored."""
        return self.state is _State.EXECUTED and not self.transaction_id

    def evidence(self, *fields: str) -> Evidence:
        """What may be kept of it: of an unusable id nothing, no hash either, by which a card number could be guessed."""
        return Evidence(fields, self.exchange.status) if self.has_unusable_id else self.exchange.evidence(*fields)


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
            known = await self._find_by_reference(effect)
            if isinstance(known, _Transaction) and known.differences(effect):
                known = await self._find_by_reference(effect, fresh=True)
            match known:
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case _Transaction() if known.differences(effect):
                    return _contradiction(known, effect)
                case _Transaction(state=_State.EXPIRED) | _Refusal():
                    pass  # There is no token, or one that would only expire again: the bank is asked for one.
                case _Transaction():
                    return Token(known.token)
        said = await self._request_token(effect)
        again = await self._request_token(effect, fresh=True) if _is_doubtful(said, effect) else said
        match said, again:
            case _, InProgress() | NoAnswer() as unsettled:
                return unsettled
            case _, _Transaction() as known if not known.differences(effect):
                return Token(known.token)
            case _Refusal(), _Refusal(got):
                return Refused(got.evidence())
            case _Transaction(), _Transaction() as known:
                return _contradiction(known, effect)
        return no_answer("two answers that do not agree")

    async def _execute_step(self, effect: Execute, look_up_first: bool) -> Answer:
        if look_up_first:
            match await self._find(effect):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case _Transaction(state=_State.CREATED) as known if not known.differences(effect):
                    pass  # The bank waits for this step, as we thought.
                case _Transaction() | _Refusal() as known:
                    return _end(known, effect) or _contradiction(known, effect)
        for is_again in (False, True):
            match await self._execute(effect, fresh=is_again):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case _Transaction(state=_State.EXECUTED) as said if not _is_doubtful(said, effect):
                    return Executed(said.transaction_id)
                case _Transaction() | _Refusal() as said:
                    pass
            match await self._find(effect, fresh=True):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case _Transaction() | _Refusal() as known:
                    if (end := _end(known, effect)) is not None:
                        return end
            if _is_doubtful(known, effect) or not _is_doubtful(said, effect):
                break
            # The bank waits for this step still, and what it said may not have been about it.
        return Refused(said.exchange.evidence()) if isinstance(said, _Refusal) else _contradiction(said, effect)

    # ------------------------------------------------------------ the questions
    async def _request_token(self, effect: RequestToken, *, fresh: bool = False) -> _Reply:
        order = {
            "reference": effect.charge_id,
            "card": effect.card_token,
            "amount": effect.amount.minor_units,
            "currency": effect.amount.currency_code,
        }
        # With the count, the request after an expired token is another one than the request before.
        key = f"{effect.charge_id}:token:{effect.expired_tokens}"
        return await self._ask(_TOKEN_STEP, effect, "", order, key=key, fresh=fresh)

    async def _execute(self, effect: Execute, *, fresh: bool) -> _Reply:
        # The bank compares these with what its token stands for, before any money moves.
        order = {"amount": effect.amount.minor_units, "currency": effect.amount.currency_code}
        key = f"{effect.charge_id}:execute:{effect.token}"
        return await self._ask(_EXECUTE_STEP, effect, f"/{effect.token}/execute", order, key=key, fresh=fresh)

    async def _find(self, effect: Execute, *, fresh: bool = False) -> _Reply:
        """Look up by our token; if what comes of it is not plain, by our reference."""
        known = await self._ask(_LOOK_UP, effect, f"/{effect.token}", fresh=fresh)
        return await self._find_by_reference(effect, fresh=True) if _is_doubtful(known, effect) else known

    async def _find_by_reference(self, effect: Effect, *, fresh: bool = False) -> _Reply:
        return await self._ask(_LOOK_UP, effect, f"?{httpx.QueryParams(reference=effect.charge_id)}", fresh=fresh)

    async def _ask(
        self,
        question: _Question,
        effect: Effect,
        path: str,
        order: Mapping[str, object] | None = None,
        *,
        key: str = "",
        fresh: bool,
    ) -> _Reply:
        """One exchange. An order goes with an idempotency key of our own, for whatever stands between us and the bank.

        Only an answer that names our transaction leaves its connection to the next question.
        """
        headers = [(b"Idempotency-Key", key.encode())] if key else []
        body = json.dumps(order).encode() if order else b""
        got = await exchange(self._transport, question.method, self._url, path, headers=headers, body=body, fresh=fresh)
        if isinstance(got, NoAnswer):
            return got
        reply = _read(got, question)
        if not isinstance(reply, _Transaction) or reply.differences(effect):
            got.end_connection()
        return reply


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
            "transaction_id": transaction_id,
            "reason": str() | None as reason,
        } if (
            _is_id(token)
            and not isinstance(amount, bool)  # In Python true is an int, and equals 1.
            and (transaction_id is not None) == (state is _State.EXECUTED)
            and (reason is not None) == (state is _State.DECLINED)
        ):
            usable_id = transaction_id if isinstance(transaction_id, str) and _is_id(transaction_id) else ""
            return _Transaction(got, state, token, reference, card, amount, currency, usable_id, reason or "")
    return None


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None and not card_number_in(text)


def _is_doubtful(reply: _Reply, effect: Effect) -> bool:
    """An answer that has to be heard again before anything rests on it."""
    match reply:
        case _Transaction():
            return bool(reply.differences(effect)) or (reply.has_unusable_id and isinstance(effect, Execute))
        case _Refusal():
            return True
        case InProgress() | NoAnswer():
            return False


def _end(known: _Transaction | _Refusal, effect: Execute) -> Executed | Declined | Expired | Contradiction | None:
    """How our transaction ended. None: it has not, or this is not ours, or there is none."""
    if isinstance(known, _Refusal) or known.differences(effect):
        return None
    match known.state:
        case _State.EXECUTED if known.has_unusable_id:
            return Contradiction(known.evidence("transaction_id"), ReviewReason.TRANSACTION_ID_UNUSABLE)
        case _State.EXECUTED:
            return Executed(known.transaction_id)
        case _State.DECLINED:
            return Declined(_REASONS.get(known.reason, DeclineReason.OTHER))
        case _State.EXPIRED:
            return Expired()
        case _State.CREATED:
            return None


def _contradiction(said: _Transaction | _Refusal, effect: Effect) -> Contradiction:
    if isinstance(said, _Refusal):
        return Contradiction(said.exchange.evidence())
    names = said.differences(effect)
    return Contradiction(said.evidence(*names), ReviewReason.FIELDS_DIFFER if names else ReviewReason.CONTRADICTION)
