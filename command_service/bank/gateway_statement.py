"""The statement of the two-step gateway, page by page; that of the one-step bank has the same form.

    GET /statement?from=2026-11-30T00:00:00.000Z&to=...&after=0&limit=200

Every execution is in it, holds and voids too, from the moment in which it was executed. See the docstring of gateway_mock.
"""

import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

import httpx

from command_service.bank.statement import Line, LineKind, Span, StatementAway, StatementUnusable
from command_service.bank.times import microseconds
from command_service.bank.transport import Endpoint
from command_service.values import NoAnswer
from contract.currencies import EXPONENTS

# A line has some 290 bytes, and an answer may have 64 KiB.
LINES_A_PAGE = 200
# A page that does not come is asked for again: asking changes nothing.
ATTEMPTS = 5

_KINDS = {
    "charge": LineKind.CHARGE,
    "authorize": LineKind.AUTHORIZE,
    "capture": LineKind.CAPTURE,
    "void": LineKind.VOID,
    "refund": LineKind.REFUND,
}


class GatewayStatement:
    """See `command_service.bank.statement.Statement`."""

    kinds: Collection[LineKind] = frozenset(_KINDS.values())

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport) -> None:
        """The statement of the bank at `url`."""
        self._endpoint = Endpoint(transport, url.rstrip("/") + "/statement")
        self.covers = Span(0, 0)

    async def batches(self, wanted: Span) -> AsyncIterator[Sequence[Line]]:
        """Read it page by page; see the port."""
        after = 0
        while True:
            query = {"from": _written(wanted.begin), "to": _written(wanted.end)}
            said = await self._page(urlencode({**query, "after": after, "limit": LINES_A_PAGE}, safe=":"))
            movements, has_more = said.get("movements"), said.get("has_more")
            if not isinstance(movements, list) or not isinstance(has_more, bool):
                raise StatementUnusable("the bank's statement cannot be read: it has no movements")
            if movements:
                yield [_line(movement) for movement in movements]
                before, after = after, _number(movements[-1].get("n"))
                if after <= before:
                    raise StatementUnusable("the bank's statement cannot be read: its pages do not get on")
            if not has_more:
                break
            if not movements:
                raise StatementUnusable(
                    "the bank's statement cannot be read: a page is empty, and more are said to follow"
                )
        self.covers = wanted

    async def _page(self, query: str) -> Mapping[str, object]:
        why = ""
        for _ in range(ATTEMPTS):
            got = await self._endpoint.ask("GET", f"?{query}", fresh=bool(why))
            if isinstance(got, NoAnswer):
                why = "it does not answer"
            elif got.status != 200 or (said := got.json_object()) is None:
                why = f"status {got.status}"
            else:
                return said
        raise StatementAway(f"the bank does not give its statement: {why}")

    async def close(self) -> None:
        """Let go of connections."""
        await self._endpoint.close()


def _line(movement: Mapping[str, object]) -> Line:
    match movement:
        case {
            "kind": str(kind),
            "reference": str(reference),
            "transaction_id": str(transaction_id),
            "minor_units": int(minor_units),
            "currency_code": str(currency_code),
            "executed_at": str(executed_at),
        } if kind in _KINDS and currency_code in EXPONENTS and (at := microseconds(executed_at)):
            known = _KINDS[kind]
            signed = -minor_units if known is LineKind.REFUND else minor_units
            return Line(known, reference, transaction_id, signed, currency_code, at)
    raise StatementUnusable("the bank's statement cannot be read: a movement of it is malformed")


def _number(said: object) -> int:
    if not isinstance(said, int) or said < 1:
        raise StatementUnusable("the bank's statement cannot be read: a movement has no number")
    return said


def _written(at: int) -> str:
    """Write a time to the millisecond, of which the bank has no parts."""
    moment = datetime.fromtimestamp(-(-at // 1_000) / 1_000, UTC)
    return re.sub(r"\+00:00$", "Z", moment.isoformat(timespec="milliseconds"))
