"""Signing in and out, and the choice of a tenant."""

import re
from urllib.parse import urlsplit

from starlette.responses import Response

from chargeonce_client import CallFailed
from charging.v1.query_pb2 import GetViewStatusRequest
from console import words
from console.html import Child, tag
from console.servers import SignInNeeded, is_guarded
from console.sessions import Session
from console.visit import Page, Visit

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_LONGEST_TOKEN, _LONGEST_TENANT = 8_192, 128
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*")


async def sign_in(visit: Visit) -> Page | Response:
    """Show the form, or take what it brings: a token that the servers know."""
    if visit.request.method == "GET":
        return _form(visit)
    token = visit.given("token").removeprefix("Bearer ").strip()
    if not _TOKEN.fullmatch(token) or len(token) > _LONGEST_TOKEN:
        return _form(visit, "This is no bearer token.", 400)
    chosen = visit.shared.settings
    if not (chosen.is_here_only or chosen.is_open or await is_guarded(visit.shared.servers)):
        return _form(visit, "A server behind this console has no policy, so that it would let everybody in.", 403)
    session = Session(token=token)
    try:
        await visit.shared.asker(session).query(lambda stub: stub.GetViewStatus, GetViewStatusRequest())
    except SignInNeeded:
        return _form(visit, "The servers do not know this token.", 403)
    except CallFailed as failure:
        # An operator without a tenant may have to choose one first: the servers know the token all the same.
        if failure.reason != "PERMISSION_DENIED":
            return _form(visit, f"{words.trouble(failure)} Try again.", 502)
    # The rights are of a new session: one that somebody else has slipped in gets none. The one before the sign-in stays,
    # without rights, so that what another tab asks for in it just now puts no cookie over the new one.
    if visit.session.token:
        visit.shared.sessions.end(visit.session)
    visit.session = visit.shared.sessions.begin(session)
    return visit.go(_place(visit.given("to")))


async def sign_out(visit: Visit) -> Response:
    """End the session."""
    visit.shared.sessions.end(visit.session)
    visit.session = visit.shared.sessions.begin(Session())
    return visit.go("/sign-in")


async def tenant(visit: Visit) -> Page | Response:
    """Show the choice of a tenant, or take it."""
    if visit.request.method == "GET":
        return _tenants(visit)
    chosen = visit.given("tenant")
    if chosen and (len(chosen) > _LONGEST_TENANT or not _TENANT.fullmatch(chosen)):
        return _tenants(visit, "A tenant's name has letters, digits and . _ : @ / -")
    visit.session.tenant = chosen
    return visit.go("/")


def _form(visit: Visit, problem: str = "", status: int = 200) -> Page:
    to = visit.asked("to") or visit.given("to")
    content: list[Child] = [
        tag.h1("Sign in"),
        tag.p(
            "Show who you are by your bearer token: the one that the service's policy names, or one of your identity provider. "
            "It stays in the memory of the console, and is sent with each of your calls. The servers decide what you may do."
        ),
        tag.p(problem, class_="error", role="alert") if problem else None,
        visit.post(
            "/sign-in",
            tag.input(type="hidden", name="to", value=_place(to)),
            tag.label("Bearer token", for_="token"),
            tag.input(id="token", name="token", type="password", required=True, autocomplete="off", spellcheck="false"),
            tag.button("Sign in", type="submit"),
            class_="narrow",
        ),
    ]
    return Page("Sign in", content, status=status)


def _tenants(visit: Visit, problem: str = "") -> Page:
    content: list[Child] = [
        tag.h1("Tenant"),
        tag.p(
            "An operator without a tenant of their own sees and repairs the charges of the tenant that is named here. Whoever "
            "has a tenant sees that one's, and leaves the field empty."
        ),
        tag.p(problem, class_="error", role="alert") if problem else None,
        visit.post(
            "/tenant",
            tag.label("Tenant", for_="tenant"),
            tag.input(
                id="tenant", name="tenant", value=visit.session.tenant, maxlength=_LONGEST_TENANT, autocomplete="off"
            ),
            tag.button("Choose", type="submit"),
            class_="narrow",
        ),
    ]
    return Page("Tenant", content, status=400 if problem else 200)


def _place(to: str) -> str:
    """Return where to go after the sign-in: a place of the console's own."""
    try:
        parsed = urlsplit(to)
    except ValueError:  # such as //[
        return "/"
    is_ours = not parsed.scheme and not parsed.netloc and to.startswith("/") and not to.startswith(("//", "/\\"))
    return to if is_ours and to.isprintable() else "/"
