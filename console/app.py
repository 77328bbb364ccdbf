"""The console's application: its places, and the door that every request passes."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chassis.exposure import is_loopback
from console import frame
from console.html import tag
from console.pages import charge, charges, home, live, reconciliation, signing, state, user
from console.visit import Page, Shared, Visit, events, page

# Everything is from here: no script and no style of a page itself, none of another host, and no frame around it.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types console",
    ]
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": with that, a browser does not say of which origin a form is.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
}
_YEAR_SECONDS = 31_536_000


def app_of(shared: Shared) -> ASGIApp:
    """Return the application."""
    made = Starlette(
        routes=_ROUTES,
        exception_handlers={404: _no_page, 405: _no_page},
    )
    made.state.shared = shared
    return _Door(made, is_tls=shared.settings.tls is not None, is_here_only=shared.settings.is_here_only)


class _Door:
    """Turns away whoever names another host, and gives every answer its headers.

    On loopback there may be no sign-in: there a page of another site could have its own name resolved to this machine, and
    would then read and send what it likes.
    """

    def __init__(self, inner: ASGIApp, *, is_tls: bool, is_here_only: bool) -> None:
        self._inner = inner
        self._is_here_only = is_here_only
        self._headers = dict(_HEADERS)
        if is_tls:
            self._headers["strict-transport-security"] = f"max-age={_YEAR_SECONDS}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        if self._is_here_only and not is_loopback(_host(scope)):
            await PlainTextResponse("This console is for browsers of its own machine.\n", 421)(scope, receive, sent)
            return
        await self._inner(scope, receive, sent)


def _host(scope: Scope) -> str:
    named = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    host, _, port = named.rpartition(":")
    return (host if port.isdecimal() and host else named).strip("[]")


async def _file(request: Request) -> Response:
    found = frame.FILES.get(request.url.path)
    if found is None:
        return PlainTextResponse("There is no such file.\n", 404)
    content, kind = found
    headers = {"cache-control": f"public, max-age={_YEAR_SECONDS}, immutable"}
    return Response(content, headers=headers, media_type=f"{kind}; charset=utf-8")


async def _health(_: Request) -> Response:
    """Say that the console is up. Of the servers behind it this says nothing."""
    return PlainTextResponse("up\n")


async def _not_found(_: Visit) -> Page:
    content = [tag.h1("Not here"), tag.p("There is no such page."), tag.p(tag.a("What is going on now", href="/"))]
    return Page("Not here", content, status=404)


async def _no_page(request: Request, _: Exception) -> Response:
    return await page(_not_found, signed_in=False)(request)


_ROUTES: Sequence[Route] = [
    Route("/", page(home.show)),
    Route("/ticks", events(home.ticks)),
    Route("/search", page(charges.search)),
    Route("/charges", page(charges.show)),
    Route("/charges/{charge}", page(charge.show)),
    Route("/charges/{charge}/events", events(charge.changes)),
    Route("/charges/{charge}/{step}", page(charge.take), methods=["POST"]),
    Route("/live", page(live.show)),
    Route("/live/events", events(live.changes)),
    Route("/user", page(user.show)),
    Route("/servers", page(state.show)),
    Route("/reconciliation", page(reconciliation.show)),
    Route("/reconciliation", page(reconciliation.begin), methods=["POST"]),
    Route("/reconciliation/csv", reconciliation.upload, methods=["POST"]),
    Route("/reconciliation/{run}", page(reconciliation.result)),
    Route("/reconciliation/{run}/events", events(reconciliation.changes)),
    Route("/sign-in", page(signing.sign_in, signed_in=False), methods=["GET", "POST"]),
    Route("/sign-out", page(signing.sign_out, signed_in=False), methods=["POST"]),
    Route("/tenant", page(signing.tenant, signed_in=False), methods=["GET", "POST"]),
    Route("/static/{version}/{name}", _file),
    Route("/health", _health),
]
