"""The rig of Stripe: its adapter, and the double of Stripe as a process."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Set
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from chassis.secret import Secret
from command_service.bank import Bank
from command_service.bank.conformance.checks import FOLLOWING
from command_service.bank.conformance.subject import Between, Subject
from command_service.bank.dialect import Reply
from command_service.bank.stripe import CUSTOMER_SECONDS, REMEMBERS_SECONDS, stripe_bank
from command_service.bank.stripe.dialect import Stripe
from command_service.bank.transport import open_transport
from command_service.bank.two_step import TwoStepBank
from command_service.values import CallOff, DeclineReason, Effect, Execute, Kind, Operation, RequestToken
from tests.contract.bank_rigs import NO_TLS, PATIENT_SECONDS, Ability, GatewayRig, Movement, Rig, directly, provoked

RETURN_URL = "https://shop.example/back"
KEY = Secret("sk_test_of_the_rig")

_question: ContextVar[str] = ContextVar("question", default="")
_numbers = itertools.count()


class _Asking:
    """A dialect that notes its questions, and by whose header each request tells for which one it is (`_Telling`)."""

    def __init__(self, dialect: Stripe, asked: list[tuple[str, str]]) -> None:
        self._dialect = dialect
        self._asked = asked

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        self._note("token", effect)
        return await self._dialect.request_token(effect, fresh=fresh)

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        self._note("execute", effect)
        return await self._dialect.execute(effect, fresh=fresh)

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        self._note("cancel", effect)
        return await self._dialect.cancel(effect, token, fresh=fresh)

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        self._note("look_up", effect)
        return await self._dialect.find_by_token(effect, token, fresh=fresh)

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        self._note("look_up", effect)
        return await self._dialect.find_by_reference(effect, fresh=fresh)

    def finds_at_once(self, operation: Operation) -> bool:
        return self._dialect.finds_at_once(operation)

    async def close(self) -> None:
        await self._dialect.close()

    def _note(self, question: str, effect: Effect) -> None:
        reference = effect.operation.reference
        self._asked.append((reference, question))
        _question.set(f"{question} {reference} {next(_numbers)}")


class _Telling(httpx.AsyncBaseTransport):
    """Says in a header for which question a request is."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["X-Question"] = _question.get()
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class StripeRig(GatewayRig):
    """Stripe, and its double in `rig`."""

    abilities: Set[Ability] = frozenset()
    approved_card = "pm_card_visa"
    unknown_card = "pm_card_nobody"
    _declined_openings: Mapping[str, DeclineReason] = {
        "pm_card_visa_chargeDeclined": DeclineReason.CARD_DECLINED,
        "pm_card_visa_chargeDeclinedInsufficientFunds": DeclineReason.INSUFFICIENT_FUNDS,
        "pm_card_chargeDeclinedExpiredCard": DeclineReason.EXPIRED_CARD,
        "pm_card_chargeDeclinedProcessingError": DeclineReason.OTHER,
        "pm_card_declinedOnce": DeclineReason.CARD_DECLINED,
    }
    declined_cards: Mapping[Kind, Mapping[str, DeclineReason]] = {
        Kind.CHARGE: _declined_openings,
        Kind.AUTHORIZE: _declined_openings,
        Kind.CAPTURE: {"pm_card_lapsesAtOnce": DeclineReason.AUTHORIZATION_EXPIRED},
        Kind.VOID: {"pm_card_lapsesAtOnce": DeclineReason.AUTHORIZATION_EXPIRED},
        Kind.REFUND: {"pm_card_refundFail": DeclineReason.OTHER},
    }
    not_tried: Mapping[str, Collection[Kind]] = {
        "what has expired is never executed": FOLLOWING,
        "after an expiry one more token is given": FOLLOWING,
        "another amount or currency under a known token moves nothing": FOLLOWING,
        "captures of parts stay within what is held": (Kind.CAPTURE,),
    }

    def __init__(self, ledger: Path) -> None:
        self._asked: list[tuple[str, str]] = []
        super().__init__(ledger)

    @asynccontextmanager
    async def adapter(
        self, *, call_timeout_seconds: float = PATIENT_SECONDS, between: Between = directly
    ) -> AsyncIterator[Bank]:
        transport = _Telling(between(open_transport(max_connections=32, verify=NO_TLS)))
        dialect = Stripe(
            self._url,
            transport,
            key=lambda: KEY,
            return_url=RETURN_URL,
            customer_seconds=CUSTOMER_SECONDS,
            now=lambda: 0.0,
        )
        bank = TwoStepBank(_Asking(dialect, self._asked), call_timeout_seconds, remembers_seconds=REMEMBERS_SECONDS)
        try:
            yield bank
        finally:
            await bank.close()

    def subject(self) -> Subject:
        return Subject(
            open_bank=self._open,
            approved_card=self.approved_card,
            other_card="pm_card_mastercard",
            declined_cards=self.declined_cards,
            customer_card="pm_card_authenticationRequired",
            expire=provoked(self.expire),
            lapse=provoked(self.expire_hold),
            confirm=provoked(lambda url: self._authenticate(url, succeeds=True)),
            fail=provoked(lambda url: self._authenticate(url, succeeds=False)),
        )

    def _open(self, between: Between, call_timeout_seconds: float = PATIENT_SECONDS) -> Bank:
        wire = between(open_transport(max_connections=32, verify=NO_TLS))
        return stripe_bank(self._url, wire, call_timeout_seconds, key=lambda: KEY, return_url=RETURN_URL)

    def expire(self, reference: str) -> None:
        self._ask("POST", "/double/expire", json={"reference": reference})

    def expire_hold(self, reference: str) -> None:
        # Before its order comes, Stripe does not know what acts on the hold.
        self.trouble("execute", "expire_hold", reference=reference)

    def movements(self, *references: str) -> list[Movement]:
        return [
            Movement(
                movement["reference"],
                Kind(movement["kind"]),
                movement["transaction_id"],
                movement["amount"],
                movement["currency"].upper(),
                movement["on"],
            )
            for movement in self._ask("GET", "/statement")["movements"]
            if movement["reference"] in references
        ]

    def unfired(self) -> list[str]:
        orders = {call["reference"] for call in self._ask("GET", "/calls") if call["path"] == "/v1/payment_intents"}
        return [
            fault["fault"]
            for fault in self._ask("GET", "/faults")
            # The token step of what follows makes no call.
            if fault["fired"] < fault["times"] and not (fault["on"] == "token" and fault["reference"] not in orders)
        ]

    def asked(self, reference: str) -> list[str]:
        """The adapter's questions, each of which takes some calls, or none."""
        return [question for known, question in self._asked if known == reference]

    def _authenticate(self, url: str, *, succeeds: bool) -> None:
        intent_id = urlsplit(url).path.split("/")[2]
        self._ask("POST", "/double/authenticate", json={"intent_id": intent_id, "succeeds": succeeds})

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rig.stripe_server"],
            env={**os.environ, "STRIPE_BANK_LISTEN": "127.0.0.1:0", "STRIPE_BANK_LEDGER": str(self._ledger)},
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._url = f"http://{json.loads(self._process.stdout.readline())['listen']}"


@contextmanager
def stripe_rig(folder: Path) -> Iterator[Rig]:
    rig = StripeRig(folder / "stripe.log")
    try:
        yield rig
    finally:
        rig.stop()
