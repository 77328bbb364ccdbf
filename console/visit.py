"""A visit: one person asks for one page. Here is what all pages share: the session, the forms, the frame, the errors."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from chargeonce_client import CallFailed
from charging.v1.query_pb2 import GetViewStatusRequest, GetViewStatusResponse
from chassis.telemetry import log_unexpected
from console import frame, words
from console.html import Child, tag
from console.runs import Runs
from console.samples import Samples
from console.servers import PART_SECONDS, Asker, Servers, SignInNeeded
from console.sessions import LONGEST_SECONDS, Session, Sessions
from console.settings import Settings

FORM_BYTES = 64 << 10
MOST_FIELDS = 50
# A browser knows by it that the stream is alive, and so does every proxy between.
HEARTBEAT_SECONDS = 10.0
# Of one console: each is a task and a connection.
MOST_STREAMS = 500
# At it the browser loads the page again, and is led to the sign-in.
_SIGN_IN = "event: sign-in\ndata: \n\n"


class Refuse(Exception):
    """Ends a visit with a page that says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(slots=True)
class Shared:
    """What all visits share."""

    settings: Settings
    servers: Servers
    sessions: Sessions = field(default_factory=Sessions)
    samples: Samples = field(default_factory=Samples)
    runs: Runs = field(default_factory=Runs)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    streams: int = 0

    @property
    def cookie(self) -> str:
        """The name of the session's cookie. Browsers send a host's cookies to each of its ports."""
        name = f"console-{self.settings.listen.port}"
        return f"__Host-{name}" if self.settings.tls else name

    def asker(self, session: Session) -> Asker:
        """Return what asks the servers in the name of a session's person."""
        return Asker(self.servers, session, may_be_nobody=self.settings.may_be_nobody)


@dataclass(slots=True)
class Visit:
    """One request of a person's."""

    request: Request
    shared: Shared
    session: Session
    asker: Asker
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_refresh(self) -> bool:
        """Whether the page asks by itself, to be fresh: nobody may be there to read it."""
        return "x-refresh" in self.request.headers

    def asked(self, name: str) -> str:
        """Return a field of the address, without blanks around it; empty if it is not there."""
        return self.request.query_params.get(name, "").strip()

    def given(self, name: str) -> str:
        """Return a field of the form, without blanks around it; empty if it is not there."""
        return self.form.get(name, "").strip()

    async def check(self) -> None:
        """Raise SignInNeeded if the servers do not know who asks. That none answers is no refusal."""
        await self.asker.look(_view_status, GetViewStatusRequest(), PART_SECONDS)

    def post(self, action: str, *children: Child, **attributes: str) -> Child:
        """Return a form that this session's pages only can send."""
        secret = tag.input(type="hidden", name="csrf", value=self.session.csrf)
        return tag.form(secret, children, method="post", action=action, **attributes)

    def go(self, place: str) -> Response:
        """Send the browser to another page."""
        return RedirectResponse(place, 303)


@dataclass(slots=True)
class Page:
    """What a page shows. `events` is the place of a stream that tells when it has changed."""

    title: str
    content: Child
    events: str = ""
    status: int = 200


Show = Callable[[Visit], Awaitable[Page | Response]]
Tell = Callable[[Visit], AsyncIterator[str]]


def page(show: Show, *, signed_in: bool = True) -> Callable[[Request], Awaitable[Response]]:
    """Make an endpoint of a page. One that needs nobody to be signed in asks no server for its frame."""

    async def answer(request: Request) -> Response:
        shared: Shared = request.app.state.shared
        visit = _visit(request, shared)
        if not visit.is_refresh:
            shared.sessions.see(visit.session)
        view: asyncio.Task[GetViewStatusResponse | CallFailed] | None = None
        try:
            if request.method == "POST":
                visit.form = await _form(request)
                _check_form(visit, visit.given("csrf"))
            if signed_in:
                # Both are asked at once.
                view = asyncio.create_task(visit.asker.look(_view_status, GetViewStatusRequest(), PART_SECONDS))
            made = await show(visit)
            if isinstance(made, Page):
                made = _framed(visit, made, await view if view else None)
        except SignInNeeded:
            made = _sign_in(visit)
        except Refuse as refusal:
            made = _framed(visit, _failed(refusal.text, refusal.status), None)
        except CallFailed as failure:
            made = _framed(visit, _failed(words.trouble(failure), 502), failure)
        except ClientDisconnect:
            made = Response(status_code=400)
        except Exception as error:
            log_unexpected("a page failed", error)
            made = _framed(visit, _failed("A fault of the console. Its log says where.", 500), None)
        finally:
            if view is not None:
                view.cancel()
                with contextlib.suppress(BaseException):
                    await view
        _keep(made, visit)
        return made

    return answer


def events(tell: Tell) -> Callable[[Request], Awaitable[Response]]:
    """Make an endpoint of a stream: each text that `tell` yields is an event, at which the browser makes its page fresh.

    Whoever is to sign in first gets no stream: as for a page, the servers decide that.
    """

    async def answer(request: Request) -> Response:
        shared: Shared = request.app.state.shared
        visit = _visit(request, shared)
        try:
            await visit.check()
        except SignInNeeded:
            return Response(_SIGN_IN, media_type="text/event-stream")
        if shared.streams >= MOST_STREAMS:
            return Response(status_code=503)
        return StreamingResponse(_told(visit, tell), media_type="text/event-stream")

    return answer


async def check_upload(request: Request) -> Visit:
    """Return the visit of a request whose body is a file: the form's secret is in a header. Raises Refuse."""
    visit = _visit(request, request.app.state.shared)
    _check_form(visit, request.headers.get("x-csrf", ""))
    visit.shared.sessions.see(visit.session)
    return visit


def _visit(request: Request, shared: Shared) -> Visit:
    session = shared.sessions.find(request.cookies.get(shared.cookie, "")) or Session()
    return Visit(request, shared, session, shared.asker(session))


def _keep(response: Response, visit: Visit) -> None:
    """Have the browser know the session: a page that was asked for begins it, and a sign-in changes it.

    A form begins none: one that another site sends comes without the cookie, and must not have it put over the browser's.
    """
    shared = visit.shared
    if visit.request.cookies.get(shared.cookie) == visit.session.name:
        return
    if visit.request.method != "POST":
        shared.sessions.begin(visit.session)
    elif shared.sessions.find(visit.session.name) is None:
        return
    response.set_cookie(
        shared.cookie,
        visit.session.name,
        max_age=round(LONGEST_SECONDS),
        httponly=True,
        # A link from another site comes with it, and changes nothing; a form from there comes without it.
        samesite="lax",
        secure=shared.settings.tls is not None,
    )


async def _form(request: Request) -> Mapping[str, str]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refuse(415, "This is not a form of the console.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise Refuse(413, "The form is too long.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        raise Refuse(400, "The form cannot be read.") from None


def _check_form(visit: Visit, secret: str) -> None:
    headers = visit.request.headers
    origin = headers.get("origin")
    is_ours = origin is None or origin.rpartition("://")[2] == headers.get("host")
    if not is_ours or not hmac.compare_digest(secret.encode(), visit.session.csrf.encode()):
        raise Refuse(403, "The form is not of a page of this session, and nothing was done. Load the page again.")


def _view_status(stub: Any) -> Any:
    return stub.GetViewStatus


def _framed(visit: Visit, made: Page, view: GetViewStatusResponse | CallFailed | None) -> Response:
    notices = [] if visit.is_refresh else [*visit.session.notices]
    if not visit.is_refresh:
        visit.session.notices.clear()
    account: Child = None
    if visit.session.token:
        account = frame.account(visit.post, visit.session.tenant)
    text = frame.document(
        title=made.title,
        content=made.content,
        place=visit.request.url.path,
        events=made.events,
        banners=frame.banners(view, visit.shared.servers.away() if view is not None else []),
        notices=notices,
        account=account,
    )
    return HTMLResponse(text, made.status)


def _failed(text: str, status: int) -> Page:
    return Page(
        "That did not work", [tag.h1("That did not work"), tag.p(text, class_="error", role="alert")], status=status
    )


def _sign_in(visit: Visit) -> Response:
    request = visit.request
    if visit.session.token:
        visit.session.notices.append("The servers do not know this token any more. Sign in again.")
        visit.session.token = ""
    place = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return visit.go(f"/sign-in?to={quote(place)}" if request.method == "GET" else "/sign-in")


async def _told(visit: Visit, tell: Tell) -> AsyncIterator[str]:
    """Yield what is told in the form of server-sent events, until the browser leaves or the console stops."""
    shared = visit.shared
    shared.streams += 1
    messages = tell(visit)
    stopping = asyncio.create_task(shared.stopping.wait())
    following: asyncio.Task[str | None] | None = None
    try:
        yield "retry: 2000\n\n"
        while not stopping.done():
            visit.asker.check()  # a session may end meanwhile, and every stream with it
            following = following or asyncio.create_task(_next(messages))
            both: list[asyncio.Task[Any]] = [following, stopping]
            await asyncio.wait(both, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                yield ": alive\n\n"
                continue
            told = following.result()
            if told is None:
                return
            yield f"data: {told}\n\n"
            following = None
    except SignInNeeded:
        yield _SIGN_IN
    except (CallFailed, Refuse):
        return  # the browser comes again, and makes its page fresh
    except Exception as error:
        log_unexpected("a stream failed", error)
    finally:
        shared.streams -= 1
        for task in (following, stopping):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        with contextlib.suppress(BaseException):
            await messages.aclose()  # type: ignore[attr-defined]  # they are async generators all


async def _next(messages: AsyncIterator[str]) -> str | None:
    """Return the next message; None at their end, which a task cannot raise."""
    return await anext(messages, None)
