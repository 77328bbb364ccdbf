"""Each request that Stripe's adapter can make is one that Stripe's own OpenAPI allows: stripe-mock refuses all others.

It keeps nothing and answers from examples. So it is the double of `rig` that answers the adapter and leads it through all that
it can do, while stripe-mock is sent a copy of each request.
"""

import re
import time
from collections.abc import AsyncIterator, Set
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from chassis.secret import Secret
from command_service.bank import Bank
from command_service.bank.conformance.checks import Broken
from command_service.bank.conformance.subject import Subject
from command_service.bank.conformance.suite import findings
from command_service.bank.stripe import stripe_bank
from command_service.bank.stripe.dialect import LISTED
from command_service.bank.transport import target_of
from command_service.values import (
    Declined,
    DeclineReason,
    Execute,
    Executed,
    Kind,
    Money,
    Operation,
    RequestToken,
    Token,
)
from rig.stripe_bank import StripeBank
from tests.banks.fakes import KEY, client, stripe_mock
from tests.contract.operations import an_operation, following

Shape = tuple[str, str, tuple[str, ...]]
"""A request's method, its path with {id} for each id, and the names of its parameters in order; those of metadata are one."""

SEEN, INTENT = "expand[]", "/v1/payment_intents/{id}"
OPENING = ("amount", "capture_method", "currency", "metadata", "payment_method", "payment_method_types[]")
REQUESTS: Set[Shape] = {
    ("POST", "/v1/payment_intents", OPENING),
    ("GET", "/v1/payment_intents/search", ("limit", "query")),
    ("GET", INTENT, (SEEN,)),
    ("POST", INTENT, (SEEN, "metadata")),
    ("POST", INTENT, (SEEN, "payment_method")),
    ("POST", INTENT, (SEEN, "metadata", "payment_method")),
    ("POST", f"{INTENT}/confirm", (SEEN, "return_url")),
    ("POST", f"{INTENT}/confirm", (SEEN, "off_session")),
    ("POST", f"{INTENT}/cancel", ("cancellation_reason", SEEN)),
    ("POST", f"{INTENT}/capture", ("amount_to_capture", SEEN, "metadata")),
    ("POST", "/v1/refunds", ("amount", "metadata", "payment_intent")),
    ("GET", "/v1/refunds", ("limit", "payment_intent")),
    ("GET", "/v1/refunds", ("limit", "payment_intent", "starting_after")),
}
"""All that the adapter asks of Stripe."""


class Copying(httpx.AsyncBaseTransport):
    """Answers from the double, and sends each request to stripe-mock as well."""

    def __init__(self, double: StripeBank, mock: httpx.AsyncClient) -> None:
        self._double = double
        self._mock = mock
        self.allowed: set[Shape] = set()
        self.refused: dict[Shape, str] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target, headers = target_of(request), {name.lower(): text for name, text in request.headers.items()}
        of_adapter = {name: headers[name] for name in headers if name not in ("host", "content-length")}
        judged = await self._mock.request(request.method, target, headers=of_adapter, content=request.content)
        shape = _shape(request.method, target, request.content)
        if judged.status_code == 200:
            self.allowed.add(shape)
        else:
            self.refused[shape] = judged.text
        status, of_double, body = self._double.answer(request.method, target, headers, request.content)
        return httpx.Response(status, headers=dict(of_double), stream=httpx.ByteStream(body))


def _shape(method: str, target: str, body: bytes) -> Shape:
    path = re.sub(r"/(pi|re|ch)_\w+", "/{id}", urlsplit(target).path)
    pairs = parse_qsl(body.decode() if method == "POST" else urlsplit(target).query, keep_blank_values=True)
    return method, path, tuple(sorted({re.sub(r"^metadata\[.*", "metadata", name) for name, _ in pairs}))


@pytest.fixture
async def copying(tmp_path: Path) -> AsyncIterator[Copying]:
    async with stripe_mock(tmp_path / "fake.log") as fake, client(fake) as mock:
        yield Copying(StripeBank(time.time), mock)


def of_stripe(transport: httpx.AsyncBaseTransport) -> Bank:
    return stripe_bank(
        "http://stripe.example", transport, 20.0, key=lambda: Secret(KEY), return_url="https://shop.example/"
    )


async def test_each_request_is_allowed(copying: Copying) -> None:
    """Those of the conformance suite, the second page of a charge's refunds, and a payment method that is used up."""
    subject = Subject(
        open_bank=lambda between: of_stripe(between(copying)),
        approved_card="pm_card_visa",
        other_card="pm_card_mastercard",
        declined_cards={Kind.CHARGE: {"pm_card_visa_chargeDeclined": DeclineReason.CARD_DECLINED}},
        customer_card="pm_card_authenticationRequired",
    )
    assert [finding async for finding in findings(subject) if isinstance(finding.end, Broken)] == []
    await refund_often(of_stripe(copying), times=LISTED + 1)
    await use_up(of_stripe(copying), "pm_card_singleUse")
    assert copying.refused == {}
    assert copying.allowed == REQUESTS


async def refund_often(bank: Bank, *, times: int) -> None:
    """Refund a charge in as many parts, then look the first refund up."""
    charge = an_operation(Kind.CHARGE, "pm_card_visa", Money(5 * times, "EUR"))
    on = await done(bank, charge)
    parts = [following(Kind.REFUND, charge, on, Money(5, "EUR")) for _ in range(times)]
    ids = [await done(bank, part) for part in parts]
    known = await bank.perform(Execute(parts[0], parts[0].reference), look_up_first=True)
    assert known == Executed(ids[0])


async def use_up(bank: Bank, card: str) -> None:
    """Charge a payment method that pays once, and once more."""
    await done(bank, an_operation(Kind.CHARGE, card))
    again = an_operation(Kind.CHARGE, card)
    token = await bank.perform(RequestToken(again, 0), look_up_first=False)
    assert isinstance(token, Token)
    refused = await bank.perform(Execute(again, token.token), look_up_first=False)
    assert refused == Declined(DeclineReason.BANK_REFUSED)


async def done(bank: Bank, operation: Operation) -> str:
    token = await bank.perform(RequestToken(operation, 0), look_up_first=False)
    assert isinstance(token, Token)
    executed = await bank.perform(Execute(operation, token.token), look_up_first=False)
    assert isinstance(executed, Executed)
    return executed.transaction_id


@pytest.mark.parametrize(
    ("method", "path", "form"),
    [
        ("POST", "/v1/payment_intents", {"amount": "1250", "currency": "eur", "reference": "ours"}),
        ("POST", "/v1/payment_intents", {"amount": "much", "currency": "eur"}),
        ("POST", "/v1/payment_intents", {"currency": "eur"}),
        ("POST", "/v1/payment_intents/pi_1/confirm", {"return_to": "https://shop.example/"}),
        ("POST", "/v1/payment_intents/pi_1/cancel", {"cancellation_reason": "whim"}),
        ("GET", "/v1/refunds?intent=pi_1", {}),
        ("POST", "/v1/payment_intents/pi_1/void", {}),
    ],
)
async def test_what_stripe_does_not_allow_is_refused(
    copying: Copying, method: str, path: str, form: dict[str, str]
) -> None:
    """The control: an unknown parameter, a wrong type, a missing one, a word that is none of the list, an unknown path."""
    async with httpx.AsyncClient(transport=copying, base_url="http://stripe.example") as asking:
        await asking.request(method, path, data=form, headers={"Authorization": f"Bearer {KEY}"})
    assert len(copying.refused) == 1
    assert copying.allowed == set()
