"""`python -m rig.stripe_server`: the double of Stripe as a process, with a ledger that survives `kill -9` and faults on order.

STRIPE_BANK_LISTEN is host:port, STRIPE_BANK_LEDGER a file: all orders as they came, which a new process does again;
STRIPE_BANK_KEY is the secret key that it takes, none for any, and is kept nowhere. Beside Stripe's API it has the mock bank's
ways for tests, whose docstring defines them: POST, GET and DELETE /faults, GET /statement, GET /calls; and POST /double/NAME
with a JSON object for what customers and Stripe do (`_DOUBLE`).

A fault waits for a step. A call that the adapter makes on the way to another one (looking before it confirms, taking a payment
method away, closing what was declined) is part of the step that it is made for, and meets no fault. The adapter's questions
are told from each other by the header X-Question, if it is there.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from chassis.telemetry import configure_logging
from gateway_mock import faults
from gateway_mock.faults import Fault, Kind, Script, Step, answer
from gateway_mock.model import Operation
from gateway_mock.wire import Answer, Reply, Request, serving
from rig.stripe_bank import StripeBank

_JSON = "application/json"
# In Stripe's words: what a fault answers instead of the work.
_REFUSED = {"error": {"type": "invalid_request_error", "code": "parameter_invalid_empty", "message": "ordered"}}
_MISSING = {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "ordered"}}
_IN_USE = {"error": {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": "ordered"}}


def _expire(bank: StripeBank, reference: str) -> None:
    intent = bank.newest(reference)
    if intent is not None and intent.status != "requires_capture":
        bank.expire(intent.intent_id)


_DOUBLE: Mapping[str, Callable[..., object]] = {
    "authenticate": StripeBank.authenticate,
    "book": StripeBank.book,
    "expire": _expire,
    "lapse": StripeBank.expire,
    "settle_refunds": StripeBank.settle_refunds,
}


class _Server:
    def __init__(self, ledger: Path, key: str) -> None:
        self._key = key
        self._at = time.time()
        self._bank = StripeBank(now=lambda: self._at)
        self._script = Script()
        self._calls: list[dict[str, Any]] = []
        self._lies: dict[str, Fault | None] = {}
        if ledger.exists():
            for line in ledger.read_text().splitlines():
                self._do(**json.loads(line))
        self._ledger = ledger.open("a")

    async def respond(self, request: Request) -> Reply:
        """Make the reply to a request."""
        match request.method, request.path.split("/")[1:]:
            case "POST", ["faults"]:
                return answer(200, {"id": self._script.add(faults.parse(json.loads(request.body)))})
            case "GET", ["faults"]:
                return answer(200, self._script.listing())
            case "DELETE", ["faults"]:
                return answer(200, {"cleared": self._script.clear()})
            case "GET", ["calls"]:
                return answer(200, self._calls)
            case "GET", ["statement"]:
                return answer(200, {"movements": [asdict(movement) for movement in self._bank.movements]})
            case "POST", ["double", name]:
                return answer(200, self._keep(at=time.time(), double=name, details=json.loads(request.body)))
            case _:
                return await self._stripe(request)

    async def _stripe(self, request: Request) -> Reply:
        question, about, _ = (request.headers.get("x-question", "") + "  ").split(" ", 2)
        step, reference = self._step(request, question)
        reference = about or reference
        call: dict[str, Any] = {
            "method": request.method,
            "path": request.path,
            "reference": reference,
            "fault": None,
            "status": None,
        }
        self._calls.append(call)
        operation = _operation(request, step)
        fault = self._script.take(step, reference=reference, card=None, operation=operation) if step else None
        if step is Step.LOOK_UP and question:
            # One look-up may take several calls: what goes wrong goes wrong in all of them.
            fault = self._lies.setdefault(request.headers["x-question"], fault)
        reply = await self._meet(fault, request, reference)
        call["fault"], call["status"] = fault and fault.kind, getattr(reply, "status", 0)
        return reply

    async def _meet(self, fault: Fault | None, request: Request, reference: str) -> Reply:
        if fault is None:
            return self._work(request)
        match fault.kind:
            case Kind.REFUSE:
                return answer(fault.status, _REFUSED)
            case Kind.FORGET_TOKEN if request.path.endswith(("/search", "/refunds")) and request.method == "GET":
                return answer(200, {"object": "list", "data": [], "has_more": False, "url": request.path})
            case Kind.FORGET_TOKEN:
                return answer(404, _MISSING)
            case Kind.IN_PROGRESS:
                return answer(409, _IN_USE, ("retry-after", fault.retry_after))
            case Kind.DELAY:
                await asyncio.sleep(fault.seconds)
            case Kind.EXPIRE_TOKEN:
                self._keep(at=time.time(), double="expire", details={"reference": reference})
            case Kind.EXPIRE_HOLD:
                self._keep(at=time.time(), double="lapse", details={"intent_id": request.path.split("/")[3]})
        if fault.kind in _LIES:
            return _changed(self._work(request), _LIES[fault.kind])
        effect = faults.effect(fault)
        return effect(self._work(request)) if callable(effect) else effect

    def _work(self, request: Request) -> Answer:
        target = f"{request.path}?{request.query}" if request.query else request.path
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        is_taken = bearer and self._key in ("", bearer)
        headers = {
            "authorization": "Bearer taken" if is_taken else "",
            "idempotency-key": request.headers.get("idempotency-key", ""),
        }
        order = [request.method, target, headers, request.body.decode("ascii")]
        if request.method == "POST":
            response = self._keep(at=time.time(), order=order)
        else:
            response = self._do(at=time.time(), order=order)
        status, headers, body = response
        return Answer(status, body, tuple((name, text) for name, text in headers.items() if name != "content-type"))

    def _keep(self, **done: Any) -> Any:
        self._ledger.write(json.dumps(done) + "\n")
        self._ledger.flush()
        return self._do(**done)

    def _do(self, at: float, order: Any = None, double: str = "", details: Mapping[str, Any] | None = None) -> Any:
        self._at = at
        if order is None:
            return _DOUBLE[double](self._bank, **details or {})
        method, target, headers, body = order
        return self._bank.answer(method, target, headers, body.encode("ascii"))

    # ------------------------------------------------------------ what a request is about
    def _step(self, request: Request, question: str) -> tuple[Step | None, str]:
        """Tell which step a request is, None for a part of one, and our reference."""
        form = dict(parse_qsl(request.body.decode("ascii"), keep_blank_values=True))
        match request.method, request.path.removeprefix("/v1/").split("/"):
            case "POST", ["payment_intents"]:
                return Step.TOKEN, form.get("metadata[reference]", "")
            case "POST", ["payment_intents", intent_id, "confirm"]:
                return Step.EXECUTE, self._reference(intent_id)
            case "POST", ["payment_intents", _, "capture"]:
                return Step.EXECUTE, form.get("metadata[capture]", "")
            case "POST", ["refunds"]:
                return Step.EXECUTE, form.get("metadata[reference]", "")
            case "POST", ["payment_intents", intent_id, "cancel"]:
                if form.get("cancellation_reason") == "abandoned":
                    return None, self._reference(intent_id)
                voided = self._bank.intents[intent_id].metadata.get("void") if intent_id in self._bank.intents else None
                return (Step.EXECUTE, voided) if voided else (Step.CANCEL, self._reference(intent_id))
            case "POST", ["payment_intents", intent_id]:
                return None, form.get("metadata[void]") or self._reference(intent_id)
            case "GET", ["payment_intents", "search"]:
                return Step.LOOK_UP, request.query.partition("%27%3A%27")[2].partition("%27")[0]
            case "GET", ["payment_intents", intent_id] if question in ("execute", "cancel"):
                intent = self._bank.intents.get(intent_id)
                is_open = intent is not None and intent.status in ("requires_confirmation", "requires_action")
                return None if is_open else Step(question), self._reference(intent_id)
            case "GET", ["payment_intents", intent_id]:
                return Step.LOOK_UP, self._reference(intent_id)
            case "GET", _:
                return Step.LOOK_UP, ""
            case _:
                return None, ""

    def _reference(self, intent_id: str) -> str:
        intent = self._bank.intents.get(intent_id)
        return "" if intent is None else intent.metadata.get("reference", "")


def _operation(request: Request, step: Step | None) -> Operation | None:
    """Tell the kind of an operation that follows, if a call is its order."""
    if step is not Step.EXECUTE or request.method != "POST":
        return None
    words = {"capture": Operation.CAPTURE, "refunds": Operation.REFUND, "cancel": Operation.VOID}
    return words.get(request.path.rpartition("/")[2])


def _wrong_metadata(said: dict[str, Any]) -> None:
    said["metadata"] = {name: f"not-{text}" if name in _MARKS else text for name, text in said["metadata"].items()}


def _wrong_currency(said: dict[str, Any]) -> None:
    said["currency"] = "usd" if said["currency"] != "usd" else "eur"


def _wrong_amount(said: dict[str, Any]) -> None:
    for name in ("amount", "amount_received"):
        if name in said:
            said[name] += 1


def _wrong_token(said: dict[str, Any]) -> None:
    said["payment_intent" if said["object"] == "refund" else "id"] = f"pi_{0:024}"


def _declined(said: dict[str, Any]) -> None:
    said |= {"status": "failed"} if said["object"] == "refund" else _CLOSED


_MARKS = ("reference", "capture", "void")
_CLOSED = {"status": "canceled", "cancellation_reason": "abandoned", "latest_charge": None}
_LIES: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    Kind.WRONG_AMOUNT: _wrong_amount,
    Kind.WRONG_CURRENCY: _wrong_currency,
    Kind.WRONG_REFERENCE: _wrong_metadata,
    Kind.WRONG_TOKEN: _wrong_token,
    Kind.CONTRADICT: _declined,
}


def _changed(said: Answer, lie: Callable[[dict[str, Any]], None]) -> Answer:
    body = json.loads(said.body)
    for each in body.get("data", [] if "error" in body else [body]):
        lie(each)
    return Answer(said.status, json.dumps(body).encode(), said.headers)


async def _main() -> None:
    server = _Server(Path(os.environ["STRIPE_BANK_LEDGER"]), os.environ.get("STRIPE_BANK_KEY", ""))
    async with serving(os.environ.get("STRIPE_BANK_LISTEN", "127.0.0.1:0"), server.respond) as listen:
        print(json.dumps({"event": "serving", "listen": listen}), flush=True)  # noqa: T201 - whoever started it waits for this
        await asyncio.Event().wait()


if __name__ == "__main__":
    configure_logging("stripe_server")
    asyncio.run(_main())
