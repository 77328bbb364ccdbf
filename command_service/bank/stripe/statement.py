"""Stripe's statement: the balance transactions of the account. https://docs.stripe.com/api/balance_transactions/list

Each is told with the object that it comes from (`expand[]=data.source`), which names our reference and the amount in the
currency of the charge; a balance transaction is in that of the account. The fee of each is a line of its own.

    reporting_category                                            the line
    ------------------------------------------------------------  ------------------------------------------------------------
    charge, of an intent that captured by itself                  CHARGE, our reference from the metadata of the intent
    charge, of a hold that was captured                           CAPTURE, by the id of Stripe's charge, which the journal has
                                                                  once it knows the answer; until then by the hold's reference
    refund                                                        REFUND, our reference from its metadata
    refund_failure                                                the refund's reversal: the money came back
    partial_capture_reversal                                      the refund's again, as one that did not move
    dispute, dispute_reversal                                     CHARGEBACK
    fee, tax, network_cost, platform_earning...                   FEE
    payout, payout_reversal, transfer, topup, reserves...         PAYOUT
    anything else                                                 PAYMENT or REFUND without a reference: nobody here knows it

Lists go from the newest to the oldest. What is added while they are read is newer than all that is compared.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

import httpx

from chassis.secret import Secret
from command_service.bank.statement import Line, LineKind, Span, StatementAway, StatementUnusable
from command_service.bank.stripe import reading
from command_service.bank.stripe.api import Api, Page
from command_service.bank.stripe.units import in_minor_units
from command_service.bank.times import is_time

# One with a charge in it has some 4 KiB, and an answer may have 64.
LISTED = 12
ATTEMPTS = 5
SECOND = 1_000_000

_FEES = frozenset({"fee", "tax", "network_cost", "platform_earning", "platform_earning_refund", "contribution"})
_PAYOUTS = frozenset(
    {
        *("payout", "payout_reversal", "transfer", "transfer_reversal", "topup", "topup_reversal", "advance"),
        *(
            "advance_funding",
            "risk_reserved_funds",
            "connect_reserved_funds",
            "issuing_transaction",
            "other_adjustment",
        ),
    }
)
_DISPUTES = frozenset({"dispute", "dispute_reversal"})
_FAILED = "refund_failure"
_NOT_MOVED = frozenset({_FAILED, "partial_capture_reversal"})


class StripeStatement:
    """See `command_service.bank.statement.Statement`."""

    kinds: Collection[LineKind] = frozenset({LineKind.CHARGE, LineKind.CAPTURE, LineKind.REFUND})

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, *, key: Callable[[], Secret]) -> None:
        """The account of a secret key, at Stripe's `url`."""
        self._api = Api(url, transport, key)
        self.covers = Span(0, 0)

    async def batches(self, wanted: Span) -> AsyncIterator[Sequence[Line]]:
        """Read it page by page; see the port. Stripe's times are whole seconds."""
        begin, end = wanted.begin // SECOND, -(-wanted.end // SECOND)
        query = [("limit", str(LISTED)), ("expand[]", "data.source"), ("created[gte]", str(begin))]
        query.append(("created[lt]", str(end)))
        after = ""
        while True:
            page = await self._page([*query, ("starting_after", after)] if after else query)
            if page.data:
                yield [line for said in page.data for line in _lines(said)]
                after = str(page.data[-1].get("id"))
            if not page.has_more or not page.data:
                break
        self.covers = Span(begin * SECOND, end * SECOND)

    async def _page(self, query: Sequence[tuple[str, str]]) -> Page:
        page: object = None
        for _ in range(ATTEMPTS):
            page = await self._api.page("/balance_transactions", query)
            if isinstance(page, Page):
                return page
        raise StatementAway(f"Stripe does not give its balance transactions: {type(page).__name__}")

    async def close(self) -> None:
        """Let go of connections."""
        await self._api.close()


def _lines(said: Mapping[str, object]) -> Sequence[Line]:
    match said:
        case {
            "object": "balance_transaction",
            "id": str(),
            "amount": int(amount),
            "fee": int(fee),
            "currency": str(currency),
            "created": created,
            "reporting_category": str(category),
        } if is_time(created):
            code, at = currency.upper(), created * SECOND
            source = said.get("source")
            line = _line(category, _minor(amount, code), code, at, source if isinstance(source, Mapping) else {})
            if not fee:
                return (line,)
            return line, Line(LineKind.FEE, "", "", -_fee(fee, code), code, at)
    raise StatementUnusable("Stripe's balance transactions cannot be read: one of them is malformed")


def _line(category: str, minor_units: int, code: str, at: int, source: Mapping[str, object]) -> Line:
    """Tell what a balance transaction is, by what it comes from."""
    if category in _FEES:
        return Line(LineKind.FEE, "", "", minor_units, code, at)
    if category in _PAYOUTS:
        return Line(LineKind.PAYOUT, "", "", minor_units, code, at)
    if category in _DISPUTES:
        return Line(LineKind.CHARGEBACK, "", "", minor_units, code, at)
    said = source.get("metadata")
    marks: Mapping[str, object] = said if isinstance(said, Mapping) else {}
    reference = str(marks.get(reading.REFERENCE, ""))
    match source:
        case {"object": "charge", "id": str(charge_id), "currency": str(currency), "amount_captured": int(captured)}:
            own = currency.upper()
            amount = minor_units if own == code else _minor(captured, own)
            if marks.get(reading.KIND) == "authorize":
                return Line(LineKind.CAPTURE, "", charge_id, amount, own, at, hold=reference)
            intent_id = source.get("payment_intent")
            return Line(
                LineKind.CHARGE, reference, intent_id if isinstance(intent_id, str) else charge_id, amount, own, at
            )
        case {"object": "refund", "id": str(refund_id), "currency": str(currency), "amount": int(refunded)}:
            own = currency.upper()
            has_moved, is_reversal = category not in _NOT_MOVED, category == _FAILED
            amount = -abs(minor_units) if own == code else -_minor(refunded, own)
            return Line(LineKind.REFUND, reference, refund_id, amount, own, at, has_moved, is_reversal=is_reversal)
    return Line(LineKind.PAYMENT if minor_units >= 0 else LineKind.REFUND, "", "", minor_units, code, at)


def _fee(amount: int, code: str) -> int:
    """Convert a fee, which may be a part of a minor unit where Stripe counts in hundredths: it is only listed."""
    whole = in_minor_units(amount, code)
    return _minor(amount // 100 * 100, code) if whole is None else whole


def _minor(amount: int, code: str) -> int:
    minor_units = in_minor_units(amount, code)
    if minor_units is None:
        raise StatementUnusable(f"Stripe's balance transactions cannot be read: a part of a minor unit of {code}")
    return minor_units
