"""A user: the sums, and the newest charges."""

import asyncio

from chargeonce_client import CallFailed, CurrencySummary
from charging.v1.query_pb2 import GetUserSummaryRequest, ListChargesRequest
from console import words
from console.html import Child, tag
from console.pages import parts
from console.visit import Page, Refuse, Visit

_KINDS = {
    "Charged": "charged",
    "Refunded": "refunded",
    "Held now": "held",
    "Under way": "pending",
    "In review": "in_review",
    "Declined": "declined",
    "Abandoned": "abandoned",
    "Voided": "voided",
    "Hold lapsed": "authorization_expired",
}


async def show(visit: Visit) -> Page:
    """Show a user."""
    user_id = visit.asked("id")
    if not user_id:
        raise Refuse(404, "There is no such page.")
    summary = visit.asker.look(lambda stub: stub.GetUserSummary, GetUserSummaryRequest(user_id=user_id))
    listed = visit.asker.look(lambda stub: stub.ListCharges, ListChargesRequest(user_id=user_id, page_size=20))
    sums, newest = await asyncio.gather(summary, listed)
    shown: Child
    if isinstance(sums, CallFailed):
        shown = parts.trouble(sums)
    elif not sums.currencies:
        shown = tag.p(
            "The view shows no charge of this user, and no charge with this key or id. The view may be behind."
        )
    else:
        shown = [_sums(currency) for currency in sums.currencies]
    charges: Child = None
    if isinstance(newest, CallFailed):
        charges = parts.part("charges", "Newest charges", parts.trouble(newest))
    elif newest.charges:
        charges = parts.part("charges", "Newest charges", parts.charges(newest.charges, "The user's newest charges"))
    return Page(f"User {user_id}", [tag.h1("User ", tag.code(user_id)), parts.part("sums", "Sums", shown), charges])


def _sums(found: CurrencySummary) -> Child:
    rows = [
        [name, tag.span(words.amount(minor_units, found.currency_code), class_="amount"), f"{count:,}"]
        for name, kind in _KINDS.items()
        if (count := getattr(found, f"{kind}_count")) | (minor_units := getattr(found, f"{kind}_minor_units"))
    ]
    return [
        tag.h3(found.currency_code),
        tag.p("Charged less refunded: ", tag.b(words.amount(found.net_minor_units, found.currency_code))),
        parts.table(f"Sums in {found.currency_code}", ["What", "Amount", "Charges"], rows),
    ]
