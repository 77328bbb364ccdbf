"""The five questions of `two_step` in Stripe's API. The package's docstring says why each is safe."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlencode

import httpx

from chassis.secret import Secret
from command_service.bank.dialect import Refusal, Reply, Stage, Transaction, heard, unexecuted
from command_service.bank.stripe import reading
from command_service.bank.stripe.api import Api, Form, Page, Unsettled, is_denied, look_up_failed, order_failed, said_in
from command_service.bank.stripe.objects import Intent, intent_in, refund_in
from command_service.bank.stripe.units import in_stripes_units
from command_service.bank.transport import Exchange, no_answer
from command_service.values import CallOff, Effect, Execute, Kind, NoAnswer, Operation, RequestToken

# A reference has as many intents as the core takes tokens, at most eight. A page of them stays below the limit of a body.
SEARCHED = 10
LISTED = 25  # A refund has about 1 KiB, and a body may have 64.
MOST_PAGES = 40

_EXPANDED = ("expand[]", "latest_charge")
_REFUSED = ((f"metadata[{reading.REFUSED}]", "true"),)
_OPEN = (Stage.CREATED, Stage.AWAITS_CUSTOMER)


class _Seen(NamedTuple):
    """An intent, and what it says of our operation."""

    intent: Intent
    reply: Reply


_Heard = _Seen | Unsettled | Reply


class Stripe:
    """Stripe's `Dialect`."""

    def __init__(
        self,
        url: str,
        transport: httpx.AsyncBaseTransport,
        *,
        key: Callable[[], Secret],
        return_url: str,
        customer_seconds: float,
        now: Callable[[], float],
    ) -> None:
        """Make it; see `stripe_bank`."""
        self._api = Api(url, transport, key)
        self._return_url = return_url
        self._customer_seconds = customer_seconds
        self._now = now

    # ------------------------------------------------------------ the five questions
    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        """Create an intent under our reference, or hear of the known one. For an operation that follows, ask nothing."""
        operation, amount = effect.operation, in_stripes_units(effect.operation.amount)
        if amount is None or _is_not_stripes(operation):
            return Refusal()
        if not operation.opens:
            return unexecuted(operation)
        order = [
            ("amount", str(amount)),
            ("currency", operation.amount.currency_code.lower()),
            ("payment_method", operation.request.card.token),
            ("payment_method_types[]", "card"),
            ("capture_method", "manual" if operation.kind is Kind.AUTHORIZE else "automatic"),
            (f"metadata[{reading.REFERENCE}]", operation.reference),
            (f"metadata[{reading.KIND}]", operation.kind.value),
            (f"metadata[{reading.CARD}]", operation.request.card.token),
        ]
        key = f"{operation.reference}:token:{effect.expired_tokens}"
        said = await self._order(effect, "/payment_intents", order, key=key, fresh=fresh)
        return await self._find_created(effect) if isinstance(said, Unsettled) and said.is_unknown else _reply(said)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Confirm the token's intent; or capture or void the hold, or refund the charge, that the operation acts on."""
        operation = effect.operation
        if operation.opens:
            return await self._confirm(effect, fresh=fresh)
        amount = in_stripes_units(operation.amount)
        if amount is None or effect.token != operation.reference or _is_not_stripes(operation):
            return Refusal()
        match operation.kind:
            case Kind.CAPTURE:
                said = await self._capture(effect, amount, fresh=fresh)
            case Kind.VOID:
                said = await self._void(effect, fresh=fresh)
            case _:
                said = await self._refund(effect, amount, fresh=fresh)
        if _is_settled(said):
            return _reply(said)
        return _if_open(await self._find_following(effect, fresh=fresh), said)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        """Cancel the token's intent, unless it is executed or closed."""
        if not effect.operation.opens:
            return Refusal()
        seen = await self._look(effect, token, fresh=fresh)
        if not isinstance(seen, _Seen) or not _is_open(seen.reply) or _differs(seen.reply, effect):
            return _reply(seen)
        return await self._close(effect, seen.intent, reading.CALLED_OFF, fresh=fresh)

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        """Look the intent up, or what became of the capture, void or refund."""
        if not effect.operation.opens:
            return await self._find_following(effect, fresh=fresh)
        return _reply(await self._look(effect, token, fresh=fresh))

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Search for the newest intent of our reference, and look it up, since what a search tells may be old."""
        reference = effect.operation.reference
        if not effect.operation.opens:
            known = await self._find_following(effect, fresh=fresh)
            # To a token step an open one is one that nobody has asked for: that step says whether it can be.
            return Refusal() if isinstance(effect, RequestToken) and _is_created(known) else known
        query = [("query", f"metadata['{reading.REFERENCE}']:'{reference}'"), ("limit", str(SEARCHED))]
        page = await self._api.page("/payment_intents/search", query)
        if not isinstance(page, Page):
            return page
        found = [
            it for it in map(intent_in, page.data) if it is not None and it.metadata.get(reading.REFERENCE) == reference
        ]
        if page.has_more or len(found) != len(page.data):
            return no_answer("a search that finds what was not searched for")
        if not found and not isinstance(effect, RequestToken) and effect.token is not None:
            return _reply(await self._look(effect, effect.token, fresh=True))  # A search lags behind.
        if not found:
            return Refusal(page.got)
        newest = max(found, key=lambda it: it.created)
        seen = await self._look(effect, newest.intent_id, fresh=fresh)
        if isinstance(seen, Refusal) or (isinstance(seen, _Seen) and seen.intent.intent_id != newest.intent_id):
            return no_answer("a look-up that does not find what the search found")
        return _reply(seen)

    def finds_at_once(self, operation: Operation) -> bool:
        """A search lags behind. What follows is read from its intent, and from the list of the intent's refunds."""
        return not operation.opens

    async def close(self) -> None:
        """Let go of connections."""
        await self._api.close()

    # ------------------------------------------------------------ charge and authorize
    async def _find_created(self, effect: RequestToken) -> Reply:
        """Look for the intent of an order that came to an error, which may be a saved one: that is replayed for a day."""
        found = await self.find_by_reference(effect, fresh=True)
        if isinstance(found, Transaction) and found.stage is not Stage.EXPIRED:
            return found
        return no_answer("an error that is not known")

    async def _confirm(self, effect: Execute, *, fresh: bool) -> Reply:
        mark: Form = ()
        seen = await self._look(effect, effect.token, fresh=fresh)
        if isinstance(seen, _Seen) and seen.intent.status == "requires_confirmation":
            if _differs(seen.reply, effect):
                return Refusal()  # The token stands for another order than ours.
            said = await self._order_confirmation(effect, fresh=fresh)
            if fresh and isinstance(said, Refusal) and is_denied(said):
                mark = _REFUSED  # Over a fresh connection: no other order's answer.
            elif _is_settled(said):
                return _reply(said)
            seen = await self._look(effect, effect.token, fresh=fresh)
            if not mark and isinstance(seen, _Seen) and seen.intent.status == "requires_confirmation":
                return _if_open(seen.reply, said)
        if not isinstance(seen, _Seen) or _differs(seen.reply, effect) or not _is_created(seen.reply):
            return _reply(seen)
        return await self._close(effect, seen.intent, reading.CLOSED, mark=mark, fresh=fresh)

    async def _order_confirmation(self, effect: Execute, *, fresh: bool) -> _Heard:
        request = effect.operation.request
        if request.is_off_session:
            order = [_EXPANDED, ("off_session", "true")]
        else:
            order = [_EXPANDED, ("return_url", request.return_url or self._return_url)]
        digest = hashlib.sha256(urlencode(order).encode()).hexdigest()[:16]
        key = f"{effect.operation.reference}:confirm:{effect.token}:{digest}"
        return await self._order(effect, f"/payment_intents/{effect.token}/confirm", order, key=key, fresh=fresh)

    async def _close(self, effect: Effect, open_one: Intent, why: str, *, mark: Form = (), fresh: bool) -> Reply:
        """Cancel an intent that was seen open. The order that leaves a mark disarms it: what bears one is never authorized.

        Without keys: an intent is cancelled once anyway, and no old error is replayed. Since a cancel lets a hold go, an intent
        that may still be authorized is disarmed before: without a payment method it never will be. Stripe takes the method from
        it only while it is open.
        """
        path = f"/payment_intents/{open_one.intent_id}"
        if (mark or effect.operation.kind is Kind.AUTHORIZE) and open_one.has_method:
            said = await self._order(effect, path, [_EXPANDED, ("payment_method", ""), *mark], fresh=fresh)
            if not isinstance(said, _Seen) or said.intent.status != "requires_payment_method":
                return await self._after(effect, open_one.intent_id, said, fresh=fresh)
        order = [_EXPANDED, ("cancellation_reason", why)]
        said = await self._order(effect, f"{path}/cancel", order, fresh=fresh)
        return await self._after(effect, open_one.intent_id, said, fresh=fresh)

    async def _after(self, effect: Effect, intent_id: str, said: _Heard, *, fresh: bool) -> Reply:
        """Say what an order came to; what is no end is looked up."""
        if _is_settled(said):
            return _reply(said)
        return _if_open(_reply(await self._look(effect, intent_id, fresh=fresh)), said)

    # ------------------------------------------------------------ capture, void and refund
    async def _capture(self, effect: Execute, amount: int, *, fresh: bool) -> _Heard:
        operation = effect.operation
        order = [
            _EXPANDED,
            ("amount_to_capture", str(amount)),
            (f"metadata[{reading.CAPTURE}]", operation.reference),
            (f"metadata[{reading.FINAL}]", "true" if operation.is_final else "false"),
        ]
        return await self._order(
            effect, f"/payment_intents/{operation.on}/capture", order, key=operation.reference, fresh=fresh
        )

    async def _void(self, effect: Execute, *, fresh: bool) -> _Heard:
        operation, path = effect.operation, f"/payment_intents/{effect.operation.on}"
        mark = [_EXPANDED, (f"metadata[{reading.VOID}]", operation.reference)]
        marked = await self._order(effect, path, mark, key=operation.reference, fresh=fresh)
        if isinstance(marked, Unsettled) and marked.is_unknown:
            marked = await self._look(effect, operation.on, fresh=fresh)
        if not isinstance(marked, _Seen) or not _is_created(marked.reply) or _differs(marked.reply, effect):
            return marked
        if marked.intent.metadata.get(reading.VOID) != operation.reference:
            return marked
        order = [_EXPANDED, ("cancellation_reason", reading.CALLED_OFF)]
        return await self._order(effect, f"{path}/cancel", order, fresh=fresh)

    async def _refund(self, effect: Execute, amount: int, *, fresh: bool) -> _Heard:
        operation = effect.operation
        order = [
            ("payment_intent", operation.on),
            ("amount", str(amount)),
            (f"metadata[{reading.REFERENCE}]", operation.reference),
        ]
        got = await self._api.post("/refunds", order, key=operation.reference, fresh=fresh)
        if isinstance(got, NoAnswer):
            return got
        refund = refund_in(said_in(got)) if got.status == 200 else None
        if refund is None:
            return _failed(got, order_failed(got), effect)
        reply = heard(got, reading.refund(got, refund, effect), effect)
        return reply if isinstance(reply, Transaction) else Unsettled(reply)

    async def _find_following(self, effect: Effect, *, fresh: bool) -> Reply:
        """Look at the intent; for a refund also at the list of its refunds, which is read after it."""
        seen = await self._look(effect, effect.operation.on, fresh=fresh)
        if effect.operation.kind is not Kind.REFUND or not isinstance(seen, _Seen) or _differs(seen.reply, effect):
            return _reply(seen)
        return await self._find_refund(effect, seen.reply)

    async def _find_refund(self, effect: Effect, unlisted: Reply) -> Reply:
        """Look for our refund in the list; `unlisted` is what it comes to if it is not there."""
        operation, after = effect.operation, ""
        for _ in range(MOST_PAGES):
            query = [("payment_intent", operation.on), ("limit", str(LISTED))]
            page = await self._api.page("/refunds", [*query, ("starting_after", after)] if after else query)
            if not isinstance(page, Page):
                return page
            refunds = [it for it in map(refund_in, page.data) if it is not None and it.intent_id == operation.on]
            if len(refunds) != len(page.data):
                return no_answer("a list of other refunds than were asked for")
            for refund in refunds:
                if refund.metadata.get(reading.REFERENCE) == operation.reference:
                    return reading.refund(page.got, refund, effect)
            if not page.has_more or not refunds:
                return unlisted
            after = refunds[-1].refund_id
        return no_answer("a list of refunds without an end")

    # ------------------------------------------------------------ intents
    async def _look(self, effect: Effect, intent_id: str, *, fresh: bool) -> _Seen | Reply:
        got = await self._api.get(f"/payment_intents/{intent_id}", [_EXPANDED], fresh=fresh)
        if isinstance(got, NoAnswer):
            return got
        intent = intent_in(said_in(got)) if got.status == 200 else None
        if intent is None:
            return heard(got, look_up_failed(got), effect)
        return _Seen(intent, heard(got, self._read(got, intent, effect), effect))

    async def _order(self, effect: Effect, path: str, order: Form, *, key: str = "", fresh: bool) -> _Heard:
        got = await self._api.post(path, order, key=key, fresh=fresh)
        if isinstance(got, NoAnswer):
            return got
        intent = intent_in(said_in(got)) if got.status == 200 else None
        if intent is None:
            return _failed(got, order_failed(got), effect)
        return _Seen(intent, heard(got, self._read(got, intent, effect), effect))

    def _read(self, got: Exchange, intent: Intent, effect: Effect) -> Reply:
        if intent.hides_charge:
            # Whether a hold was authorized, and what is left to refund, is said by the charge.
            return no_answer("a charge that was not shown")
        if effect.operation.opens:
            ends_at = int(intent.created + self._customer_seconds)
            return reading.opening(got, intent, action_ends_at=ends_at, now=self._now())
        if effect.operation.kind is Kind.REFUND:
            return reading.unlisted_refund(got, intent, effect)
        return reading.following(got, intent, effect)


def _is_not_stripes(operation: Operation) -> bool:
    """Whether an operation is none that Stripe has: it captures a hold once and lets go the rest, and voids it as a whole.

    What follows has no currency of its own there: another one than the opening's would not be seen.
    """
    opening = operation.request.amount
    if operation.opens:
        return False
    is_part = operation.amount.minor_units != opening.minor_units
    is_whole_only = operation.kind is Kind.VOID or (operation.kind is Kind.CAPTURE and not operation.is_final)
    return operation.amount.currency_code != opening.currency_code or (is_whole_only and is_part)


def _failed(got: Exchange, failed: Unsettled | Reply, effect: Effect) -> Unsettled | Reply:
    heard(got, _reply(failed), effect)
    return failed


def _reply(said: _Heard) -> Reply:
    return said.reply if isinstance(said, _Seen | Unsettled) else said


def _is_settled(said: _Heard) -> bool:
    """Whether an answer to an order needs no look-up: it shows an end, or that nothing was or will be known by looking."""
    if isinstance(said, _Seen):
        return isinstance(said.reply, Transaction) and said.reply.stage not in _OPEN
    return not isinstance(said, Unsettled)


def _is_open(reply: Reply) -> bool:
    return isinstance(reply, Transaction) and reply.stage in _OPEN


def _is_created(reply: Reply) -> bool:
    return isinstance(reply, Transaction) and reply.stage is Stage.CREATED


def _differs(reply: Reply, effect: Effect) -> bool:
    return isinstance(reply, Transaction) and bool(reply.differences(effect))


def _if_open(known: Reply, said: _Heard) -> Reply:
    """What an order comes to after a look-up: if that finds the transaction open, what the order's own answer comes to."""
    if not _is_open(known):
        return known
    if isinstance(said, Unsettled) and not said.is_unknown:
        return said.reply
    return no_answer("an error that is not known" if isinstance(said, Unsettled) else "an order that was not done")
