"""What several pages show: tables, statuses, charges."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote, urlencode

from grpc import StatusCode

from chargeonce_client import CallFailed, Charge, ChargeStatus
from charging.v1.query_pb2 import ChargeStage, Situation
from console import words
from console.html import Child, Html, tag

_TONES = {
    ChargeStatus.CHARGE_STATUS_CHARGED: "good",
    ChargeStatus.CHARGE_STATUS_AUTHORIZED: "good",
    ChargeStatus.CHARGE_STATUS_PENDING: "wait",
    ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION: "wait",
    ChargeStatus.CHARGE_STATUS_IN_REVIEW: "bad",
    ChargeStatus.CHARGE_STATUS_ABANDONED: "bad",
}
WAITS_FOR = {
    ChargeStage.CHARGE_STAGE_AWAITING_TOKEN: "waits for the bank's token",
    ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION: "waits for the bank's execution",
    ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER: "waits for the customer",
    ChargeStage.CHARGE_STAGE_CALLING_OFF: "waits for the bank to close it",
    ChargeStage.CHARGE_STAGE_IN_REVIEW: "waits for people",
}
"""The stages in which a charge waits, and for what."""
OF_ALL = "Reconciliation and the servers' figures need an operator of no tenant, with none chosen."
"""What is said to others, in place of what is of all tenants."""


def status(value: ChargeStatus.ValueType) -> Html:
    """Show a status. Its colour says no more than its word."""
    return badge(words.word(ChargeStatus, value), _TONES.get(value, "calm"))


def badge(text: str, tone: str = "calm") -> Html:
    """Show a word in a tone: good, wait, bad or calm."""
    return tag.span(text, class_=f"badge {tone}")


def stage(charge: Charge) -> Child:
    """Show what a charge waits for, and for how long; nothing if it is at rest."""
    waits = WAITS_FOR.get(charge.stage)
    if waits is None:
        return None
    held = " (held back)" if charge.held_back else ""
    since = words.age(charge.stage_since)
    return f"{waits}{held}{f', {since}' if since else ''}"


def situation(value: Situation.ValueType) -> str:
    """Write a situation's name."""
    return words.word(Situation, value).capitalize()


def place_of(charge: Charge) -> str:
    """Return the place of a charge's page."""
    return place(charge.charge_id, charge.journal_id)


def place(charge_id: str, journal_id: str = "", step: str = "") -> str:
    """Return the place of the page of a charge, or of one of its steps."""
    found = f"/charges/{quote(charge_id, safe='')}{f'/{step}' if step else ''}"
    return f"{found}?{urlencode({'journal': journal_id})}" if journal_id else found


def place_of_user(user_id: str) -> str:
    """Return the place of a user's page."""
    return f"/user?{urlencode({'id': user_id})}"


def charges(found: Sequence[Charge], caption: str) -> Html:
    """Show charges as a table."""
    rows = [
        [
            words.moment(charge.requested_at),
            tag.a(charge.idempotency_key, href=place_of(charge)),
            tag.a(charge.user_id, href=place_of_user(charge.user_id)),
            tag.span(words.money(charge.amount), class_="amount"),
            [status(charge.status), " ", tag.span(stage(charge), class_="aside")],
        ]
        for charge in found
    ]
    return table(caption, ["Requested", "Key", "User", "Amount", "Status"], rows)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Child]], *, is_caption_shown: bool = False
) -> Html:
    """Show a table. On a narrow screen each row is a card, so the parts say by their roles what they are."""
    head = tag.tr([tag.th(column, scope="col", role="columnheader") for column in columns], role="row")
    body = [
        tag.tr(
            [tag.td(tag.span(cell), data_label=column, role="cell") for column, cell in zip(columns, row, strict=True)],
            role="row",
        )
        for row in rows
    ]
    return tag.table(
        tag.caption(caption, class_=None if is_caption_shown else "unseen"),
        tag.thead(head, role="rowgroup"),
        tag.tbody(body, role="rowgroup"),
        role="table",
    )


def part(name: str, heading: str, *children: Child, note: Child = None) -> Html:
    """Show a part of a page with its heading, which is made fresh by itself."""
    return tag.section(
        tag.h2(heading, id=f"{name}-heading"),
        tag.p(note, class_="aside") if note else None,
        children,
        id=name,
        aria_labelledby=f"{name}-heading",
        data_part=True,
    )


def trouble(failure: CallFailed) -> Html:
    """Show why a part of a page is not there."""
    hint = None
    if failure.reason == "PERMISSION_DENIED":
        hint = [" An operator without a tenant first ", tag.a("chooses one", href="/tenant"), " to see its charges."]
    return tag.p(words.trouble(failure), hint, class_="error")


def is_denied(failure: CallFailed) -> bool:
    """Whether a call failed since the caller may not make it."""
    return failure.code is StatusCode.PERMISSION_DENIED


def trouble_of_all(failure: CallFailed) -> Html:
    """Show why what is of all tenants is not there. That somebody may not see it is no trouble."""
    return tag.p(OF_ALL, class_="aside") if is_denied(failure) else trouble(failure)


def options(chosen: str, values: Iterable[tuple[str, str]]) -> list[Html]:
    """Return the options of a choice, with one chosen."""
    return [tag.option(text, value=value, selected=value == chosen) for value, text in values]
