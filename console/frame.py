"""The frame of every page: its head, the way to the other pages, and what a reader has to know before he believes a page."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from chargeonce_client import CallFailed, GetViewStatusResponse, Lag, ViewState
from console import words
from console.html import Child, Html, tag
from console.html import document as html_document

PLACES = {
    "/": "Now",
    "/charges": "Charges",
    "/live": "Live",
    "/servers": "Servers",
    "/reconciliation": "Reconciliation",
}
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# A live view is some milliseconds behind, and hears a heartbeat every few seconds.
_SILENT_MILLISECONDS, _MANY_RECORDS = 15_000, 1_000


def _files() -> Mapping[str, tuple[bytes, str]]:
    """Return the files of the pages and their types by their paths, which change with their content."""
    found = {}
    for file in resources.files("console").joinpath("static").iterdir():
        content = file.read_bytes()
        path = f"/static/{hashlib.sha256(content).hexdigest()[:16]}/{file.name}"
        found[path] = content, _TYPES[file.name.rpartition(".")[2]]
    return found


FILES = _files()
_PATHS = {path.rpartition("/")[2]: path for path in FILES}


def path_of(name: str) -> str:
    """Return the path of a file of the pages."""
    return _PATHS[name]


def document(
    *,
    title: str,
    content: Child,
    place: str,
    events: str,
    banners: Sequence[str],
    notices: Sequence[str],
    account: Child,
) -> str:
    """Return a whole page."""
    head = [
        tag.meta(charset="utf-8"),
        tag.title(f"{title} - Chargeonce"),
        tag.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tag.meta(name="color-scheme", content="light dark"),
        tag.link(rel="stylesheet", href=path_of("console.css")),
        tag.link(rel="icon", href=path_of("icon.svg"), type="image/svg+xml"),
        tag.script(src=path_of("console.js"), type="module"),
    ]
    ways = [tag.a(name, href=path, aria_current="page" if path == place else None) for path, name in PLACES.items()]
    search = tag.form(
        tag.label("Find a charge or a user", for_="search", class_="aside"),
        tag.input(id="search", name="q", type="search", placeholder="Key, charge id or user  ( / )", maxlength=400),
        tag.button("Find", type="submit"),
        role="search",
        action="/search",
        method="get",
    )
    body = tag.body(
        tag.a("To the content", href="#content", class_="skip"),
        tag.header(
            tag.div(
                tag.a("Chargeonce", href="/", class_="brand"),
                tag.nav(ways, aria_label="Pages"),
                search,
                account,
                class_="bar",
            )
        ),
        tag.div(
            [tag.p(text, class_="banner") for text in banners],
            tag.p(
                "This page is not fresh: the console does not answer. It is tried again.",
                class_="banner",
                id="lost",
                hidden=True,
            ),
            id="banners",
            role="status",
            data_part=True,
        ),
        tag.main(
            [tag.p(text, class_="notice", role="status") for text in notices],
            content,
            id="content",
            tabindex=-1,
        ),
        tag.footer(tag.p("All times are UTC. ", tag.span("", id="fresh"))),
        data_events=events or None,
    )
    return html_document(language="en", head=head, body=body)


def account(post: Callable[..., Child], tenant: str) -> Html:
    """Return what a person who is signed in can do about it: choose a tenant, and leave."""
    return tag.div(
        tag.a(f"Tenant: {tenant or 'my own'}", href="/tenant"),
        post("/sign-out", tag.button("Sign out", type="submit", class_="quiet")),
        class_="account",
    )


def banners(view: GetViewStatusResponse | CallFailed | None, away: Sequence[str]) -> list[str]:
    """Say what makes a page stale, and which servers are away."""
    found = [*away]
    match view:
        case CallFailed():
            if not any("query server" in text for text in away) and view.reason != "PERMISSION_DENIED":
                found.append(f"The state of the view is not known: {words.trouble(view)}")
        case GetViewStatusResponse():
            for journal in view.journals:
                stale = staleness(journal.state, journal.shown.lag)
                if stale:
                    named = f" of the journal {journal.shown.journal_id}" if len(view.journals) > 1 else ""
                    found.append(f"The view{named} {stale}")
    return found


def staleness(state: ViewState.ValueType, lag: Lag) -> str:
    """Say in how far a view is stale; empty if it is fresh."""
    silence = (
        f" It has heard nothing for {lag.silence_milliseconds // 1_000} s." if lag.silence_milliseconds > 0 else ""
    )
    match state:
        case ViewState.VIEW_STATE_DISCONNECTED:
            return f"reaches no command server, so that these pages may be stale.{silence}"
        case ViewState.VIEW_STATE_STOPPED:
            return "has met an event that it does not know, and is stale from there on. Update the query server."
        case ViewState.VIEW_STATE_CATCHING_UP:
            return f"is {lag.records:,} records behind, so that these pages are stale. It catches up."
    if lag.records > _MANY_RECORDS:
        return f"is {lag.records:,} records behind, so that these pages are stale."
    if lag.silence_milliseconds > _SILENT_MILLISECONDS:
        return f"may be stale.{silence}"
    return ""
