"""The tour of clients/TOUR.md in Python: what each step saw, one line of JSON a step."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable
from typing import Any

from grpc.aio import AioRpcError

from chargeonce_client import (
    Card,
    ChargeonceError,
    ChargeRequest,
    ChargeResponse,
    ChargeStatus,
    Client,
    DeclineReason,
    OperationOutcome,
    OperationStatus,
    OutcomeSource,
    Refused,
    Unsettled,
    connect,
    money,
)

CARD = Card(token="tok_visa", brand="visa", last4="4242")
PRICE = money(1250, "EUR")


def tell(step: str, **seen: Any) -> None:
    """Print what a step saw."""
    print(json.dumps({"step": step, **seen}), flush=True)


async def refused(call: Awaitable[object]) -> Refused:
    """Return the error that a call is refused with."""
    try:
        answer = await call
    except Refused as refusal:
        return refusal
    raise RuntimeError(f"not refused: {answer}")


def told(refusal: Refused, *metadata: str) -> dict[str, Any]:
    """Return what every refusal tells, and some of its metadata."""
    code: int = refusal.code.value[0]
    named = {name: refusal.metadata.get(name) for name in metadata}
    return {"code": code, "reason": refusal.reason, "advice": refusal.advice, **named}


def status_of(answer: ChargeResponse) -> str:
    """Return the name of a charge's status."""
    return ChargeStatus.Name(answer.status)


async def once_within(client: Client, seconds: float, request: ChargeRequest) -> bool:
    """Send a request once, by the generated stub and with a deadline, and return whether an outcome came."""
    try:
        answer = await client.commands.Charge(request, timeout=seconds)
    except AioRpcError:
        return False
    return answer.status != ChargeStatus.CHARGE_STATUS_PENDING


async def charges(client: Client) -> ChargeResponse:
    """Charge, and meet each way in which a charge is answered. Returns the answer to the first one."""
    umbrella: dict[str, Any] = {
        "user_id": "tour",
        "card": CARD,
        "description": "one umbrella",
        "metadata": {"order": "1001"},
    }
    first = await client.charge("tour-1", amount=PRICE, **umbrella)
    source = OutcomeSource.Name(first.outcome_source)
    tell("charge", charge_id=first.charge_id, status=status_of(first), outcome_source=source)

    again = await client.charge("tour-1", amount=PRICE, **umbrella)
    tell(
        "same key",
        charge_id=again.charge_id,
        status=status_of(again),
        outcome_source=OutcomeSource.Name(again.outcome_source),
        same_transaction=again.transaction_id == first.transaction_id,
    )

    other = await refused(client.charge("tour-1", amount=money(1300, "EUR"), **umbrella))
    tell("another amount", **told(other, "status"))

    invalid = await refused(client.charge("tour-invalid", user_id="", card=CARD, amount=money(0, "EUR")))
    tell("invalid", **told(invalid), violations=sorted(invalid.violations))

    declined = await client.charge("tour-2", user_id="tour", card="tok_declined", amount=PRICE)
    tell("decline", status=status_of(declined), decline_reason=DeclineReason.Name(declined.decline_reason))

    reused = await refused(client.charge("tour-2", user_id="tour", card=CARD, amount=PRICE))
    tell("new key", **told(reused))

    slow = ChargeRequest(idempotency_key="tour-3", user_id="tour", card=Card(token="tok_slow"), amount=PRICE)
    tell("deadline", decided=await once_within(client, 0.3, slow))
    late = await client.charge("tour-3", user_id="tour", card="tok_slow", amount=PRICE)
    tell("after the deadline", charge_id=late.charge_id, status=status_of(late))
    return first


async def values(client: Client, first: ChargeResponse) -> None:
    """Read what was written, a number that no float can hold, and a status that is not known here."""
    own = await client.get(key="tour-1", after=first)
    amount = own.charge.amount
    tell(
        "own write",
        status=ChargeStatus.Name(own.charge.status),
        amount={"minor_units": str(amount.minor_units), "currency_code": amount.currency_code},
        description=own.charge.description,
        metadata=dict(own.charge.metadata),
        is_shown=own.as_of_position >= first.position,
    )

    large = await client.charge("tour-4", user_id="tour", card=CARD, amount=money(999_999_999_999, "IDR"))
    shown = await client.get(key="tour-4", after=large)
    tell("large amount", minor_units=str(shown.charge.amount.minor_units))

    unknown = ChargeResponse.FromString(bytes.fromhex("1063288180808080808010c23e0178"))
    tell("unknown values", status=int(unknown.status), position=str(unknown.position))


async def operations(client: Client) -> OperationOutcome:
    """Hold money, capture a part, let the rest go, and give some back. Returns the outcome of the refund."""
    hold = await client.charge("tour-5", user_id="tour", card=CARD, amount=money(5000, "EUR"), manual=True)
    tell("hold", status=status_of(hold))
    capture = await client.capture("tour-capture", hold.charge_id, amount=money(3000, "EUR"))
    tell_operation("capture", capture)
    tell_operation("void", await client.void("tour-void", hold.charge_id))
    refund = await client.refund("tour-refund", hold.charge_id, amount=money(1000, "EUR"), reason="one of three")
    tell_operation("refund", refund)
    too_much = await refused(client.refund("tour-too-much", hold.charge_id, amount=money(2001, "EUR")))
    tell("too much", **told(too_much, "left"))

    waiting = await client.charge("tour-6", user_id="tour", card="tok_3ds", amount=PRICE)
    tell("customer", status=status_of(waiting), has_url=bool(waiting.action.url))
    left = await client.void("tour-left", waiting.charge_id)
    tell("call off", status=OperationStatus.Name(left.status))
    return refund


def tell_operation(step: str, outcome: OperationOutcome) -> None:
    """Print how an operation ended."""
    tell(step, status=OperationStatus.Name(outcome.status), minor_units=str(outcome.amount.minor_units))


async def begun(client: Client, key: str) -> ChargeResponse:
    """Begin a slow charge and return the first answer, without waiting for the outcome."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Unsettled):
                return await client.charge(key, user_id="tour", card="tok_slow", amount=PRICE, patience=0.3)
            await asyncio.sleep(0.5)


async def queries(client: Client, refund: OperationOutcome) -> None:
    """Watch a charge until it is decided, turn pages, and read a history and a summary."""
    pending = await begun(client, "tour-7")
    statuses = []
    async with contextlib.aclosing(client.watch(charge_id=pending.charge_id, after=pending)) as changes:
        async for change in changes:
            statuses.append(change.charge.status)
            if change.charge.status != ChargeStatus.CHARGE_STATUS_PENDING:
                break
    tell("watch", first=ChargeStatus.Name(statuses[0]), last=ChargeStatus.Name(statuses[-1]))

    for number in range(1, 6):
        last = await client.charge(f"tour-page-{number}", user_id="tour-pages", card=CARD, amount=PRICE)
    pages = client.pages(user_id="tour-pages", page_size=2, after=last)
    tell("pages", pages=[[charge.idempotency_key for charge in page.charges] async for page in pages])

    history = await client.history(key="tour-1")
    tell("history", events=[entry.event for entry in history.entries])

    summary = await client.summary("tour", after=refund)
    tell(
        "summary",
        currencies={
            sums.currency_code: {
                name: str(getattr(sums, f"{name}_minor_units"))
                for name in ("charged", "refunded", "net", "held", "declined")
            }
            for sums in summary.currencies
        },
    )


async def main() -> int:
    """Take the tour and return the exit status."""
    try:
        async with connect() as client:
            await values(client, await charges(client))
            await queries(client, await operations(client))
    except (ChargeonceError, OSError) as error:
        print(f"the tour ended early: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
