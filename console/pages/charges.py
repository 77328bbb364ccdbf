"""The list of charges: filters, pages, and the search for one."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from chargeonce_client import CallFailed, ChargeStatus
from charging.v1.query_pb2 import ChargeStage, GetChargeRequest, ListChargesRequest
from console import words
from console.html import Child, tag
from console.pages import parts
from console.visit import Page, Visit

PAGE_SIZE = 50
_AGES = {"1m": "1 minute", "10m": "10 minutes", "1h": "1 hour", "1d": "1 day"}
_SECONDS = {"1m": 60, "10m": 600, "1h": 3_600, "1d": 86_400}
_FILTERS = ("user", "status", "stage", "age", "from", "to")


async def show(visit: Visit) -> Page:
    """Show a page of charges."""
    form = _form(visit)
    try:
        request = request_of(visit)
    except ValueError as error:
        return Page("Charges", [tag.h1("Charges"), form, tag.p(str(error), class_="error", role="alert")], status=400)
    found = await visit.asker.look(lambda stub: stub.ListCharges, request)
    shown: Child
    if isinstance(found, CallFailed):
        shown = parts.trouble(found)
    elif not found.charges:
        shown = tag.p("No charge fits.")
    else:
        shown = [parts.charges(found.charges, "Charges, newest first"), _ways(visit, found.next_page_token)]
    return Page("Charges", [tag.h1("Charges"), form, parts.part("list", "Newest first", shown)])


async def search(visit: Visit) -> Response:
    """Go to what a search names: a charge by its id or its key, else a user."""
    name = visit.asked("q")
    if not name:
        return visit.go("/charges")
    by = GetChargeRequest(charge_id=name) if words.is_id(name) else GetChargeRequest(idempotency_key=name)
    found = await visit.asker.look(lambda stub: stub.GetCharge, by)
    if not isinstance(found, CallFailed):
        return visit.go(parts.place_of(found.charge))
    if found.reason in ("CHARGE_NOT_FOUND", "INVALID_REQUEST"):
        return visit.go(parts.place_of_user(name))
    raise found


def request_of(visit: Visit) -> ListChargesRequest:
    """Return what the address asks for. Raises ValueError, whose text is for people."""
    stage = _value(ChargeStage, "CHARGE_STAGE_", visit.asked("stage"))
    age = visit.asked("age")
    if age and (age not in _SECONDS or not stage):
        raise ValueError("An age is one of those in the form, and needs a stage.")
    try:
        first, before = words.read_time(visit.asked("from")), words.read_time(visit.asked("to"))
    except ValueError:
        raise ValueError("A time is written as 2026-11-30 or 2026-11-30T12:00.") from None
    since = words.timestamp(datetime.now(UTC) - timedelta(seconds=_SECONDS[age])) if age else None
    return ListChargesRequest(
        user_id=visit.asked("user"),
        status=_value(ChargeStatus, "CHARGE_STATUS_", visit.asked("status")),
        stage=stage,
        stage_since_before=since,
        requested_from=first,
        requested_before=before,
        page_size=PAGE_SIZE,
        page_token=visit.asked("page"),
    )


def _value(kind: Any, prefix: str, name: str) -> Any:
    if not name:
        return 0
    try:
        return kind.Value(prefix + name.upper().replace(" ", "_"))
    except ValueError:
        raise ValueError("This is none of the choices of the form.") from None


def _choices(kind: words.Values) -> list[tuple[str, str]]:
    return [("", "any"), *((word, word) for _, number in kind.items() if (word := words.word(kind, number)))]


def _time(text: str) -> str:
    """Return a time in the only form that a browser's field takes; empty if it is none."""
    try:
        read = words.read_time(text)
    except ValueError:
        return ""
    return f"{read.ToDatetime():%Y-%m-%dT%H:%M}" if read else ""


def _form(visit: Visit) -> Child:
    def field(name: str, text: str, control: Child) -> Child:
        return tag.div(tag.label(text, for_=f"filter-{name}"), control)

    def select(name: str, values: list[tuple[str, str]]) -> Child:
        return tag.select(parts.options(visit.asked(name), values), id=f"filter-{name}", name=name)

    def line(name: str, kind: str, value: str) -> Child:
        return tag.input(id=f"filter-{name}", name=name, type=kind, value=value, maxlength=400)

    return tag.form(
        field("user", "User", line("user", "text", visit.asked("user"))),
        field("status", "Status", select("status", _choices(ChargeStatus))),
        field("stage", "Stage", select("stage", _choices(ChargeStage))),
        field("age", "At its stage for more than", select("age", [("", "any time"), *_AGES.items()])),
        field("from", "Requested from (UTC)", line("from", "datetime-local", _time(visit.asked("from")))),
        field("to", "Requested before (UTC)", line("to", "datetime-local", _time(visit.asked("to")))),
        tag.div(tag.button("Show", type="submit"), " ", tag.a("Clear", href="/charges")),
        method="get",
        action="/charges",
        class_="filters",
        aria_label="Filters",
    )


def _ways(visit: Visit, token: str) -> Child:
    kept = {name: visit.asked(name) for name in _FILTERS if visit.asked(name)}
    ways: list[Child] = []
    if visit.asked("page"):
        ways.append(tag.a("First page", href=f"/charges?{urlencode(kept)}"))
    if token:
        ways.append(tag.a("Next page", href=f"/charges?{urlencode({**kept, 'page': token})}", rel="next"))
    return tag.nav(ways, aria_label="Pages of the list", class_="ways") if ways else None
