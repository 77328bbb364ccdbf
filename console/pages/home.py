"""The first page: what needs somebody now, how the servers do, and the newest charges."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from chargeonce_client import CallFailed, ListChargesResponse
from charging.v1.query_pb2 import ChargeStage, ListChargesRequest, Situation
from console import stuck, words
from console.html import Child, tag
from console.pages import parts, reconciliation, state
from console.visit import Page, Visit

TICK_SECONDS = 5.0
_NEWEST = 10
_SHOWN = 5
_STAGES = {
    Situation.SITUATION_HELD_BACK: ChargeStage.CHARGE_STAGE_HELD_BACK,
    Situation.SITUATION_IN_REVIEW: ChargeStage.CHARGE_STAGE_IN_REVIEW,
    Situation.SITUATION_AWAITING_APPROVAL: ChargeStage.CHARGE_STAGE_IN_REVIEW,
    Situation.SITUATION_ABANDONED: ChargeStage.CHARGE_STAGE_ABANDONED,
    Situation.SITUATION_HOLD_ENDING: ChargeStage.CHARGE_STAGE_HOLDING,
}
_HEADINGS = {
    Situation.SITUATION_UNSPECIFIED: "Under way for long, not looked at",
    Situation.SITUATION_UNDER_WAY: "Under way for long",
}


async def show(visit: Visit) -> Page:
    """Show it."""
    charges = visit.asker.look(lambda stub: stub.ListCharges, ListChargesRequest(page_size=_NEWEST))
    (groups, failure), newest, views, commands, reconciled = await asyncio.gather(
        stuck.stuck(visit.asker),
        charges,
        state.views(visit),
        state.commands(visit),
        reconciliation.last(visit),
    )
    content = [
        tag.h1("Now"),
        parts.part("stuck", "What needs somebody", _stuck(groups, failure)),
        parts.part("state", "Servers", state.short(views, commands)),
        parts.part("reconciled", "Last reconciliations", reconciliation.table(reconciled)),
        parts.part("newest", "Newest charges", _newest(newest)),
    ]
    return Page("Now", content, events="/ticks")


async def ticks(visit: Visit) -> AsyncIterator[str]:
    """Tell every few seconds that what is counted may have changed."""
    while True:
        await asyncio.sleep(TICK_SECONDS)
        await visit.check()
        yield "tick"


def _stuck(groups: Sequence[stuck.Group], failure: CallFailed | None) -> Child:
    shown: list[Child] = []
    if failure is not None:
        shown.append(parts.trouble(failure))
    elif not groups:
        shown.append(tag.p("Nothing: no charge is stuck, and none waits for people.", class_="good-news"))
    for group in groups:
        count = f"{len(group.charges)}{' or more' if group.has_more else ''}"
        stage = words.word(ChargeStage, _STAGES.get(group.situation, ChargeStage.CHARGE_STAGE_UNFINISHED))
        links = [
            tag.li(
                tag.a(charge.idempotency_key, href=parts.place_of(charge)),
                f" {words.money(charge.amount)}, for {words.age(charge.stage_since)}",
            )
            for charge in sorted(group.charges, key=lambda charge: charge.stage_since.ToNanoseconds())[:_SHOWN]
        ]
        shown.append(
            tag.article(
                tag.h3(
                    parts.badge(count, "wait" if group.situation == Situation.SITUATION_UNDER_WAY else "bad"),
                    " ",
                    _HEADINGS.get(group.situation) or parts.situation(group.situation),
                ),
                tag.p(group.row.what),
                tag.p(tag.b("What is safe to do: "), group.row.advice),
                tag.ul(links),
                tag.p(tag.a(f"All of the stage “{stage}”", href=f"/charges?stage={stage.replace(' ', '+')}"))
                if len(group.charges) > _SHOWN or group.has_more
                else None,
                class_="stuck",
            )
        )
    return shown


def _newest(newest: ListChargesResponse | CallFailed) -> Child:
    if isinstance(newest, CallFailed):
        return parts.trouble(newest)
    return parts.charges(newest.charges, "Newest charges") if newest.charges else tag.p("There is no charge yet.")
