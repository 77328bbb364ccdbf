"""The bank's API: from each request to its answer.

Each call takes the same path: it is read strictly, put into the log of calls, and meets the fault that waits for it, if there
is one; only then is the work done. The work is the ledger's.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from heapq import merge
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from chassis import settings
from gateway_mock import faults, page, reading
from gateway_mock.calls import Call, now_ms, rfc3339
from gateway_mock.faults import Kind, Script, Step, answer
from gateway_mock.ids import new_token
from gateway_mock.ledger import Ledger
from gateway_mock.model import (
    ASKING_CARDS,
    CARDS,
    HOLD_MS,
    REQUIRES_ACTION,
    SLOW_CARDS,
    STATUS,
    Refusal,
    State,
    Transaction,
    told,
)
from gateway_mock.one_step import OneStep
from gateway_mock.payment_ledger import PaymentLedger, open_ledgers
from gateway_mock.payments import KEY_MS
from gateway_mock.reading import BadField
from gateway_mock.wire import (
    STOP_SECONDS,
    Answer,
    AnswerAndMore,
    Death,
    HalfAnswer,
    Reply,
    Request,
    Silence,
    SlowAnswer,
    serving,
)

TOKEN_SECONDS = 900.0  # A quarter of an hour, as real banks give.
HOLD_SECONDS = HOLD_MS / 1000
KEY_SECONDS = KEY_MS / 1000
MAX_CALLS = 100_000  # The log then takes some 30 MiB, and holds more calls than a test makes.

Find = Callable[[], Awaitable[Transaction | None]]


@asynccontextmanager
async def serve(
    listen: str,
    ledger_path: str | Path,
    *,
    token_seconds: float = TOKEN_SECONDS,
    hold_seconds: float = HOLD_SECONDS,
    key_seconds: float = KEY_SECONDS,
    stop_seconds: float = STOP_SECONDS,
    own_process: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Run the bank at "host:port", port 0 for any; yield the real address, and stop in order at the end.

    With `tls` it speaks HTTPS.

    Calls at work when it stops get `stop_seconds` to end. With `own_process` the faults that kill the process may be ordered.
    Raises `LedgerUnusable`, `sqlite3.Error`, `OSError` and, for a malformed address, `ValueError`.
    """
    times = {"hold_ms": round(hold_seconds * 1000), "key_ms": round(key_seconds * 1000)}
    async with open_ledgers(ledger_path, **times) as (ledger, payments):
        bank = Bank(ledger, payments, lifetime_ms=round(token_seconds * 1000), may_die=own_process)
        async with serving(listen, bank.respond, stop_seconds=stop_seconds, tls=tls) as address:
            bank.url = f"{'https' if tls else 'http'}://{settings.address(address).from_here}"
            yield address


class Bank:
    """Answers requests. The faults and the log of calls are in memory and end with it; the ledger stays."""

    def __init__(self, ledger: Ledger, payments: PaymentLedger, *, lifetime_ms: int, may_die: bool) -> None:
        self._ledger = ledger
        self._payments = payments
        self._lifetime_ms = lifetime_ms
        self._may_die = may_die
        self.url = ""
        """Where it serves, once it does."""
        self._script = Script()
        self._one_step = OneStep(payments, self._script)
        self._calls: deque[Call] = deque(maxlen=MAX_CALLS)

    async def respond(self, request: Request) -> Reply:
        """Make the reply to a request. Raises `sqlite3.Error` when the ledger fails."""
        try:
            match request.method, request.path.split("/")[1:]:
                case "GET", ["statement"]:
                    return await (self._part(self._ledger, request.query) if request.query else self._statement())
                case "GET", ["one-step", "statement"]:
                    return await self._part(self._payments, request.query)
                case "GET", ["calls"]:
                    return self._list_calls(request.query)
                case "POST", ["faults"]:
                    return self._order_fault(request.body)
                case "GET", ["faults"]:
                    return answer(200, self._script.listing())
                case "DELETE", ["faults"]:
                    return answer(200, {"cleared": self._script.clear()})
                case "DELETE", ["faults", number]:
                    return answer(200, {"cleared": int(self._script.forget(reading.number("id", number)))})
                case "GET", ["customer", token]:
                    return page.shown(await self._as_of_now(token))
                case "POST", ["customer", token, "confirm" | "refuse" as step]:
                    return await self._customers_step(token, step, request.body)
        except BadField as error:
            return answer(400, {"error": "bad_request", "field": str(error)})
        call = self._record(request)
        reply = await self._respond_to_call(request, call)
        call.status = _status(reply)
        return reply

    async def _respond_to_call(self, request: Request, call: Call) -> Reply:
        try:
            match request.method, request.path.split("/")[1:]:
                case "POST", ["transactions"]:
                    return await self._token_step(request.body, call)
                case "POST", ["transactions", token, "execute"]:
                    call.token = token = unquote(token)
                    return await self._execute_step(token, request.body, call)
                case "POST", ["transactions", token, "cancel"]:
                    call.token = token = unquote(token)
                    return await self._cancel(token, request.body, call)
                case "GET", ["transactions", token]:
                    call.token = token = unquote(token)
                    return await self._look_up(partial(self._ledger.find, token), Refusal.TOKEN_UNKNOWN, call)
                case "GET", ["transactions"]:
                    call.reference = reference = reading.only(request.query, "reference")
                    return await self._look_up(partial(self._ledger.newest, reference), Refusal.REFERENCE_UNKNOWN, call)
                case _, ["one-step", "payments", *rest]:
                    return await self._one_step.respond(request, rest, call)
                case _:
                    return answer(404, {"error": "not_found"})
        except BadField as error:
            return answer(400, {"error": "bad_request", "field": str(error)})

    async def _token_step(self, body: bytes, call: Call) -> Reply:
        wanted = reading.order(body)
        call.reference, call.kind = wanted.reference, wanted.kind
        if wanted.on is not None and (opening := await self._ledger.opening(wanted.on)) is not None:
            wanted.card = opening.card  # Faults are ordered by card.

        async def work() -> Answer:
            if wanted.on is None and wanted.card not in CARDS and wanted.card not in ASKING_CARDS:
                return _refused(Refusal.CARD_UNKNOWN)
            opened_at_ms = now_ms()
            wanted.token, wanted.expires_at_ms = new_token(), opened_at_ms + self._lifetime_ms
            issued = await self._ledger.issue(wanted, opened_at_ms)
            if isinstance(issued, Refusal):
                return _refused(issued)
            call.token = issued.token
            return answer(200, self._as_it_is(issued))

        return await self._meet_fault(Step.TOKEN, call, wanted, partial(self._ledger.newest, wanted.reference), work)

    async def _execute_step(self, token: str, body: bytes, call: Call) -> Reply:
        said = reading.compared(body) if body else None
        transaction = await self._find(token, call)

        async def work() -> Answer:
            if transaction is None:
                return _refused(Refusal.TOKEN_UNKNOWN)
            if said not in (None, (transaction.amount_minor, transaction.currency)):
                return _refused(Refusal.FIELDS_DIFFER)
            if transaction.state is State.CREATED and transaction.on is None:
                await asyncio.sleep(SLOW_CARDS.get(transaction.card, 0.0))
            closed, by_this_call = await self._ledger.execute(transaction, now_ms())
            status, member, word = told(closed, by_this_call=by_this_call)
            return answer(status, {member: word, **self._members(closed)})

        return await self._meet_fault(Step.EXECUTE, call, transaction, partial(self._ledger.find, token), work)

    async def _cancel(self, token: str, body: bytes, call: Call) -> Reply:
        if body:
            raise BadField("body")
        transaction = await self._find(token, call)

        async def work() -> Answer:
            if transaction is None:
                return _refused(Refusal.TOKEN_UNKNOWN)
            return answer(200, self._as_it_is(await self._ledger.cancel(transaction, now_ms())))

        return await self._meet_fault(Step.CANCEL, call, transaction, partial(self._ledger.find, token), work)

    async def _customers_step(self, token: str, step: str, body: bytes) -> Reply:
        if body:
            raise BadField("body")
        known = await self._as_of_now(token)
        if known is None:
            return page.shown(None)
        take = self._ledger.confirm if step == "confirm" else self._ledger.refuse
        return page.sent_on(await take(known, now_ms()))

    async def _as_of_now(self, token: str) -> Transaction | None:
        known = await self._ledger.find(unquote(token))
        return None if known is None else await self._ledger.close_if_late(known, now_ms())

    async def _find(self, token: str, call: Call) -> Transaction | None:
        """Find a call's transaction. Another call may close it before the work of this one is done: the ledger decides."""
        transaction = await self._ledger.find(token)
        if transaction is not None:
            call.reference, call.kind = transaction.reference, transaction.kind
        return transaction

    async def _look_up(self, find: Find, unknown: Refusal, call: Call) -> Reply:
        known = await find()
        if known is not None:
            call.token, call.reference, call.kind = known.token, known.reference, known.kind

        async def work() -> Answer:
            found = await find()  # Again: a fault may have taken its time, and have changed it.
            if found is None:
                return _refused(unknown)
            return answer(200, self._as_it_is(await self._ledger.close_if_late(found, now_ms())))

        return await self._meet_fault(Step.LOOK_UP, call, known, find, work)

    async def _meet_fault(
        self, step: Step, call: Call, about: Transaction | None, find: Find, work: Callable[[], Awaitable[Answer]]
    ) -> Reply:
        card, on = (about.card, about.on) if about is not None else (None, None)
        fault = self._script.take(step, reference=call.reference, card=card, operation=call.kind)
        if fault is None:
            return await work()
        call.fault = fault.kind
        effect = faults.effect(fault)
        if not callable(effect):
            return effect
        if fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)
        if fault.kind is Kind.EXPIRE_TOKEN and (transaction := await find()) is not None:
            await self._ledger.expire(transaction, now_ms())
        if fault.kind is Kind.EXPIRE_HOLD and on is not None:
            await self._ledger.expire_hold(on, now_ms())
        if fault.kind is Kind.ODD_TRANSACTION_ID and (transaction := await find()) is not None:
            await self._ledger.execute(transaction, now_ms(), transaction_id=fault.transaction_id)
        return effect(await work())

    def _as_it_is(self, known: Transaction) -> dict[str, object]:
        return self._members(known) | {"state": known.state, "expires_at": rfc3339(known.expires_at_ms)}

    def _members(self, known: Transaction) -> dict[str, object]:
        members, hold = known.members(), known.hold_expires_at_ms
        if hold is not None:
            members["hold_expires_at"] = rfc3339(hold)
        if known.state is REQUIRES_ACTION:
            members["action_url"] = f"{self.url}/customer/{known.token}"
            members["action_expires_at"] = rfc3339(known.expires_at_ms)
        return members

    async def _statement(self) -> Answer:
        movements = [
            _movement(executed)
            for executed in merge(
                await self._ledger.executed(), await self._payments.executed(), key=lambda one: one.closed_at_ms or 0
            )
        ]
        return answer(200, {"movements": movements})

    async def _part(self, ledger: Ledger | PaymentLedger, query: str) -> Answer:
        wanted = reading.part(query)
        found = await ledger.page(wanted.after, wanted.begin_ms, wanted.end_ms, wanted.limit + 1)
        movements = [{"n": number, **_movement(executed)} for number, executed in found[: wanted.limit]]
        return answer(200, {"movements": movements, "has_more": len(found) > wanted.limit})

    def _record(self, request: Request) -> Call:
        n = self._calls[-1].n + 1 if self._calls else 1
        call = Call(n, request.method, request.path, None, None, None, rfc3339(now_ms()))
        self._calls.append(call)
        return call

    def _list_calls(self, query: str) -> Answer:
        after = reading.number_after(query)
        first = self._calls[0].n if self._calls else 1
        later = islice(self._calls, max(0, after + 1 - first), None)
        return answer(200, [vars(call) for call in later])

    def _order_fault(self, body: bytes) -> Answer:
        fault = faults.parse(reading.json_object(body))
        if fault.kind in (Kind.STOP_BEFORE, Kind.STOP_AFTER) and not self._may_die:
            return answer(409, {"error": "runs_in_process"})
        number = self._script.add(fault)
        return answer(409, {"error": "too_many_faults"}) if number is None else answer(200, {"id": number})


def _movement(executed: Transaction) -> dict[str, object]:
    told: dict[str, object] = {
        "transaction_id": executed.transaction_id,
        "token": executed.token,
        "reference": executed.reference,
        "kind": executed.kind,
        "minor_units": executed.amount_minor,
        "currency_code": executed.currency,
        "executed_at": rfc3339(executed.closed_at_ms or 0),
    }
    return told if executed.on is None else told | {"on": executed.on}


def _refused(why: Refusal) -> Answer:
    return answer(STATUS[why], {"error": why})


def _status(reply: Reply) -> int | None:
    match reply:
        case (
            Answer(status=status)
            | HalfAnswer(Answer(status=status))
            | SlowAnswer(Answer(status=status))
            | AnswerAndMore(Answer(status=status))
        ):
            return status
        case Silence() | Death():
            return None
