"""The API of the one-step bank: an order that carries a key, calling a key off, and looking.

A call takes the path of every other call: it is read strictly, it is in the log, it meets the fault that waits for it, and
then the work is done, which is the payment ledger's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import unquote

from gateway_mock import faults, reading
from gateway_mock.calls import Call, now_ms, rfc3339
from gateway_mock.faults import Kind, Script, Step, answer
from gateway_mock.model import CANCELLED, STATUS, Refusal, Transaction
from gateway_mock.payment_ledger import PaymentLedger
from gateway_mock.wire import Answer, Reply, Request

Work = Callable[[str | None], Awaitable[Answer]]
"""Takes the id under which a payment is to be executed; None: a new one."""


class OneStep:
    """Answers the calls under /one-step/payments."""

    def __init__(self, payments: PaymentLedger, script: Script) -> None:
        self._payments = payments
        self._script = script

    async def respond(self, request: Request, path: Sequence[str], call: Call) -> Reply:
        """Make the reply to a request for the rest of a path. Raises `BadField`, and `sqlite3.Error` if the ledger fails."""
        match request.method, path:
            case "POST", []:
                return await self._pay(reading.key(request.headers.get("idempotency-key")), request.body, call)
            case "POST", [key, "cancel"]:
                return await self._cancel(reading.key(unquote(key)), request.body, call)
            case "GET", []:
                return await self._look_up(reading.only(request.query, "reference"), call)
            case _:
                return answer(404, {"error": "not_found"})

    async def _pay(self, key: str, body: bytes, call: Call) -> Reply:
        wanted = await self._order(key, body, call)

        async def work(transaction_id: str | None) -> Answer:
            paid = await self._payments.pay(wanted, now_ms(), transaction_id=transaction_id)
            if isinstance(paid, Refusal):
                return answer(STATUS[paid], {"error": paid})
            payment, was_saved = paid
            if payment.state is CANCELLED:
                return answer(410, {"error": "key_cancelled"} | _members(payment))
            return answer(200, _members(payment) | {"replayed": was_saved})

        return await self._meet_fault(Step.EXECUTE, call, wanted, work)

    async def _cancel(self, key: str, body: bytes, call: Call) -> Reply:
        wanted = await self._order(key, body, call)

        async def work(_: str | None) -> Answer:
            closed = await self._payments.cancel(wanted, now_ms())
            if isinstance(closed, Refusal):
                return answer(STATUS[closed], {"error": closed})
            return answer(200, _members(closed))

        return await self._meet_fault(Step.CANCEL, call, wanted, work)

    async def _look_up(self, reference: str, call: Call) -> Reply:
        call.reference = reference
        known = await self._payments.newest(reference)
        if known is not None:
            call.token, call.kind = known.token, known.kind

        async def work(_: str | None) -> Answer:
            found = await self._payments.newest(reference)  # Again: a fault may have taken its time.
            if found is None:
                return answer(404, {"error": Refusal.REFERENCE_UNKNOWN, "reference": reference})
            return answer(200, _members(found))

        return await self._meet_fault(Step.LOOK_UP, call, known, work)

    async def _order(self, key: str, body: bytes, call: Call) -> Transaction:
        wanted = reading.order(body)
        wanted.token = call.token = key
        call.reference, call.kind = wanted.reference, wanted.kind
        if wanted.on is not None and (opening := await self._payments.opening(wanted.on)) is not None:
            wanted.card = opening.card  # Faults are ordered by card.
        return wanted

    async def _meet_fault(self, step: Step, call: Call, about: Transaction | None, work: Work) -> Reply:
        card, on = (about.card, about.on) if about is not None else (None, None)
        fault = self._script.take(step, reference=call.reference, card=card, operation=call.kind)
        if fault is None:
            return await work(None)
        call.fault = fault.kind
        if fault.kind is Kind.FORGET_TOKEN:  # This bank's own words for not knowing.
            unknown = {"error": Refusal.REFERENCE_UNKNOWN, "reference": call.reference}
            return answer(404, unknown if step is Step.LOOK_UP else {"error": "refused"})
        effect = faults.effect(fault)
        if not callable(effect):
            return effect
        if fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)
        if fault.kind is Kind.EXPIRE_HOLD and on is not None:
            await self._payments.expire_hold(on, now_ms())
        return effect(await work(fault.transaction_id or None))


def _members(payment: Transaction) -> dict[str, object]:
    members = payment.members()
    members["key"], members["state"] = members.pop("token"), payment.state
    hold = payment.hold_expires_at_ms
    return members if hold is None else members | {"hold_expires_at": rfc3339(hold)}
