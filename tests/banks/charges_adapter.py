"""An adapter for Stripe's former Charges API, a bank of one step: the example of docs/banks.md.

    ours           theirs                                                    Idempotency-Key
    -------------  --------------------------------------------------------  ---------------------
    token step     no call: the token is our own reference
    charge         POST /v1/charges                                          the token
    authorize      POST /v1/charges, capture=false                           the token
    capture        POST /v1/charges/{on}/capture                             the token
    void           POST /v1/refunds, of a charge that was not captured       the token
    refund         POST /v1/refunds                                          the token
    calling off    POST /v1/charges, capture=false; then POST /v1/refunds    the token; then another
    look-up        GET the charge, or the list of charges or of its refunds

1. A known key brings the saved answer, and another order under it is refused. It is known for 24 hours.
2. Calling off uses the key up: for a hold, which is marked and let go at once. An execute step that arrives later is another
   order under a known key. Before that, it is looked up what the bank has done: it may have forgotten the key.
3. A charge is captured once, and the rest is let go. So a capture that is neither final nor of everything is refused. To refund
   one that is not captured is to let it go: so it is looked whether the charge is captured first.
4. A look-up that finds nothing of ours says that the bank still waits for the order. It goes over a connection of its own.
   The lists cannot be searched: they are read page by page, the newest first.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import httpx

from chassis.secret import Secret, secret_in
from chassis.watched import Watched
from command_service.bank import trusted_seconds
from command_service.bank.dialect import Refusal, Reply, Stage, Transaction, heard, is_storable, unexecuted
from command_service.bank.kinds import BankSettings, check_members
from command_service.bank.transport import Endpoint, Exchange, no_answer
from command_service.bank.two_step import TwoStepBank
from command_service.values import CallOff, DeclineReason, Effect, Execute, Kind, NoAnswer, Operation, RequestToken

_PAGE = 15  # A charge has up to 4 KiB, and a body of more than 64 KiB is no answer.
_KINDS = {kind.value: kind for kind in Kind}
_REASONS = {"card_declined": DeclineReason.CARD_DECLINED, "expired_card": DeclineReason.EXPIRED_CARD}
_Said = Mapping[str, Any] | None


class Charges:
    """The `Dialect` of the Charges API."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, key: Watched[Secret]) -> None:
        self._endpoint = Endpoint(transport, url + "/v1")
        self._key = key

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:  # noqa: ARG002
        """Make no call: our reference is the token."""
        operation, ours, whole = effect.operation, effect.operation.amount, effect.operation.request.amount
        takes_a_part = operation.kind is Kind.CAPTURE and ours != whole and not operation.is_final
        return Refusal() if takes_a_part or ours.currency_code != whole.currency_code else unexecuted(operation)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Send the order, with the token as its key."""
        operation, units = effect.operation, effect.operation.amount.minor_units
        match operation.kind:
            case Kind.CHARGE | Kind.AUTHORIZE:
                path, order = "/charges", _opening(operation, is_captured=operation.kind is Kind.CHARGE)
            case Kind.CAPTURE:
                path, order = f"/charges/{operation.on}/capture", {"amount": units}
            case _:
                got, said = await self._ask(f"/charges/{operation.on}", fresh=fresh)
                acts_on = _reply(got, said, effect)
                if not said or said.get("captured") is not (operation.kind is Kind.REFUND):
                    return Refusal() if isinstance(acts_on, Transaction) else acts_on
                path, order = "/refunds", {"charge": operation.on, "amount": units, **_marks(operation)}
        return _reply(*await self._ask(path, order, key=effect.token, fresh=fresh), effect)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        """Use the key up, unless the bank has done something for it, and let go of the hold that this makes."""
        got, said = await self._look(effect)
        if said is None:
            hold = {**_opening(effect.operation, is_captured=False), "metadata[called_off]": "yes"}
            got, said = await self._ask("/charges", hold, key=token, fresh=fresh)
        reply = _reply(got, said, effect)
        is_cancelled = isinstance(reply, Transaction) and reply.stage is Stage.CANCELLED
        if is_cancelled and said and said["status"] == "succeeded" and said.get("refunded") is not True:
            let_go, _ = await self._ask("/refunds", {"charge": said["id"]}, key=f"{token}:let-go", fresh=fresh)
            if isinstance(let_go, NoAnswer) or let_go.status != 200:
                return no_answer("what was held to use a key up is not let go yet")
        return reply

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:  # noqa: ARG002
        """Look for our reference, which is the token."""
        return await self.find_by_reference(effect, fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:  # noqa: ARG002
        """Look for our reference."""
        got, said = await self._look(effect)
        reply = _reply(got, said, effect)
        if said and isinstance(reply, Refusal) and said["error"].get("code") != "resource_missing":
            return no_answer("a look-up was refused")
        return reply

    def finds_at_once(self, operation: Operation) -> bool:  # noqa: ARG002
        """The lists are not late."""
        return True

    async def close(self) -> None:
        """Let go of connections."""
        await self._endpoint.close()

    async def _look(self, effect: Effect) -> tuple[Exchange | NoAnswer, _Said]:
        """Fetch what bears our reference; None: nothing does."""
        operation, after = effect.operation, ""
        path = "/charges?" if operation.opens else f"/refunds?charge={operation.on}&"
        if operation.kind is Kind.CAPTURE:
            got, said = await self._ask(f"/charges/{operation.on}", fresh=True)
            return got, None if said and said.get("captured") is False else said
        while True:
            got, said = await self._ask(f"{path}limit={_PAGE}{after}", fresh=True)
            if isinstance(got, Exchange):
                got.end_connection()
            match said:
                case {"object": "list", "data": list(page), "has_more": bool(has_more)}:
                    for one in page:
                        match one:
                            case {"metadata": {"reference": operation.reference}}:
                                return got, one
                    match page:
                        case [*_, {"id": str(last)}] if has_more and is_storable(last):
                            after = f"&starting_after={last}"
                        case _:
                            return got, {} if has_more else None
                case _:
                    return got, said

    async def _ask(
        self, path: str, order: Mapping[str, object] | None = None, *, key: str = "", fresh: bool
    ) -> tuple[Exchange | NoAnswer, _Said]:
        headers, body = [(b"Authorization", f"Bearer {self._key.value.reveal()}".encode())], b""
        if order is not None:
            body = urlencode(order).encode()
            headers += [(b"Idempotency-Key", key.encode()), (b"Content-Type", b"application/x-www-form-urlencoded")]
        got = await self._endpoint.ask("POST" if body else "GET", path, headers=headers, body=body, fresh=fresh)
        return got, {} if isinstance(got, NoAnswer) else got.json_object(takes_fractions=True) or {}


def charges_bank(chosen: BankSettings, transport: httpx.AsyncBaseTransport, watched: list[Watched[Any]]) -> TwoStepBank:
    """Make the `Bank`, as a maker of KINDS. Raises SettingsError."""
    check_members(chosen, has_key=True)
    assert chosen.key_file is not None, "it was checked"
    watched.append(key := secret_in(chosen.key_file))
    dialect = Charges(chosen.url, transport, key)
    return TwoStepBank(dialect, chosen.timeout_seconds, remembers_seconds=trusted_seconds(24 * 3600.0))


def _marks(operation: Operation) -> Mapping[str, object]:
    marks = {"reference": operation.reference, "kind": operation.kind.value, "card": operation.request.card.token}
    return {f"metadata[{name}]": mark for name, mark in marks.items()}


def _opening(operation: Operation, *, is_captured: bool) -> Mapping[str, object]:
    amount, card = operation.amount, operation.request.card.token
    order = {"amount": amount.minor_units, "currency": amount.currency_code.lower(), "source": card}
    return {**order, "capture": str(is_captured).lower(), **_marks(operation)}


def _reply(got: Exchange | NoAnswer, said: _Said, effect: Effect) -> Reply:
    return got if isinstance(got, NoAnswer) else heard(got, _read(got, said, effect), effect)


def _read(got: Exchange, said: _Said, effect: Effect) -> Reply:
    """Read all of an answer, or the part of a list that is ours."""
    operation = effect.operation
    if said is None:
        has_token = not isinstance(effect, RequestToken) and effect.token is not None
        return unexecuted(operation) if has_token else Refusal(got)
    match got.status, said:
        case 200, {
            "object": "charge" | "refund",
            "id": str(name),
            "amount": int(units),
            "currency": str(currency),
            "status": "succeeded" | "failed" as status,
            "metadata": {"reference": str(us), "kind": str(word), "card": str(card), **more},
        } if word in _KINDS:
            kind, on = _KINDS[word], str(said.get("charge", ""))
            end = Stage.EXECUTED if status == "succeeded" else Stage.DECLINED
            stage = Stage.CANCELLED if "called_off" in more else end
            if operation.kind is Kind.CAPTURE:  # The marks are those of the charge that was captured.
                kind = Kind.CAPTURE if kind is Kind.AUTHORIZE else kind
                us, on, units = operation.reference, name, said.get("amount_captured", -1)
                name = str(said.get("balance_transaction") or "")
            usable = name if stage is Stage.EXECUTED and is_storable(name) else ""
            reason, is_final = _REASONS.get(str(said.get("failure_code"))), operation.is_final
            return Transaction(stage, us, us, card, units, currency.upper(), usable, reason, got, kind, on, is_final)
        case 401 | 403, _:
            return no_answer(f"status {got.status}", our_setup=True)
        case 400 | 402 | 404, {"error": {"type": "invalid_request_error" | "idempotency_error" | "card_error"}}:
            return Refusal(got)
    return no_answer(f"status {got.status}", retry_after_seconds=got.retry_after_seconds)
