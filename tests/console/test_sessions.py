"""How long somebody is known: a token is in the console's memory no longer than its session, and no other site ends that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Route, expect
from structlog.testing import capture_logs

from charging.v1.operator_pb2 import GetServerStatusRequest, ReconcileBegin, ReconcileRequest
from chassis import settings
from console import samples, sessions, visit
from console.pages import home
from console.servers import SignInNeeded, connected
from console.sessions import IDLE_SECONDS, LONGEST_SECONDS, Session, Sessions
from console.settings import Settings
from console.visit import Shared
from console.words import timestamp
from rig.referee import PATIENT_SECONDS
from rig.world import a_request
from tests.console.site import TOKENS, Site, a_person, a_site, needs_chromium
from tests.console.test_door import a_client, secret_of, signed_in

STREAMS = ["/ticks", "/live/events", "/reconciliation/none/events"]
SIGN_IN = "event: sign-in"


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


async def lines(response: httpx.Response) -> list[str]:
    """Read a stream to its end."""
    async with asyncio.timeout(PATIENT_SECONDS):
        return [line async for line in response.aiter_lines()]


# ---------------------------------------------------------------- their time
def test_a_token_goes_with_its_session_though_nobody_comes() -> None:
    clock = Clock()
    found = Sessions(clock)
    idle, busy = found.begin(Session(token="one")), found.begin(Session(token="two"))
    while clock.now <= LONGEST_SECONDS - IDLE_SECONDS / 2:
        clock.now += IDLE_SECONDS / 2
        found.see(busy)
        found.sweep()
        assert (idle.token, busy.token) == ("one" if clock.now <= IDLE_SECONDS else "", "two")
    clock.now = LONGEST_SECONDS + 1
    assert found.find("another") is None
    assert busy.token == ""


def test_a_session_without_a_token_stays_while_its_tab_is_open() -> None:
    """There is nothing to protect, and what is half written in a form must not be lost."""
    clock = Clock()
    found = Sessions(clock)
    nobodys = found.begin(Session())
    clock.now = LONGEST_SECONDS - 1
    assert found.find(nobodys.name) is nobodys
    clock.now = LONGEST_SECONDS + 1
    assert found.find(nobodys.name) is None


def test_whoever_begins_a_session_sweeps_the_others() -> None:
    clock = Clock()
    found = Sessions(clock)
    old = found.begin(Session(token="one"))
    clock.now = IDLE_SECONDS + 1
    found.begin(Session())
    assert old.token == ""


async def test_what_a_page_asks_for_by_itself_keeps_nobody_signed_in(
    guarded: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refreshes of a page that is open at an empty desk, and its stream, which ends with the session."""
    monkeypatch.setattr(visit, "HEARTBEAT_SECONDS", 0.1)
    async with a_client(guarded) as client:
        await signed_in(client, "shop")
        async with client.stream("GET", "/ticks") as stream, asyncio.timeout(PATIENT_SECONDS):
            monkeypatch.setattr(sessions, "IDLE_SECONDS", 1.0)
            while (await client.get("/charges", headers={"x-refresh": "yes"})).status_code == 200:  # noqa: ASYNC110  # it is polled
                await asyncio.sleep(0.05)
            assert SIGN_IN in await lines(stream)


async def test_a_session_ends_with_time_though_only_its_stream_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visit, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(sessions, "SWEEP_SECONDS", 0.1)
    async with a_site(tmp_path, with_policy=True) as guarded, a_client(guarded) as client:
        await signed_in(client, "shop")
        async with client.stream("GET", "/live/events") as stream:
            monkeypatch.setattr(sessions, "IDLE_SECONDS", 0.1)
            assert SIGN_IN in await lines(stream)


# ---------------------------------------------------------------- the sign-out
async def test_after_the_sign_out_nothing_is_asked_in_the_persons_name(
    guarded: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of another tab ends with the session."""
    monkeypatch.setattr(visit, "HEARTBEAT_SECONDS", 0.1)
    charged = await guarded.charge(a_request("order-1"))
    async with a_client(guarded) as client:
        await signed_in(client, "shop")
        async with client.stream("GET", f"/charges/{charged.charge_id}/events") as stream:
            csrf = await secret_of(client, "/charges")
            assert (await client.post("/sign-out", data={"csrf": csrf})).status_code == 303
            assert SIGN_IN in await lines(stream)


@asynccontextmanager
async def shared_of(site: Site) -> AsyncIterator[Shared]:
    environment = {"CONSOLE_COMMAND": site.servers.command, "CONSOLE_QUERY": site.servers.query}
    chosen = settings.read(Settings, environment)
    async with connected(chosen) as servers:
        yield Shared(chosen, servers)


async def test_samples_are_taken_until_the_person_signs_out(guarded: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SAMPLE_SECONDS", 0.01)
    async with shared_of(guarded) as shared:
        session = shared.sessions.begin(Session(token=TOKENS["olga"]))
        asker = shared.asker(session)
        (server,) = shared.servers.commands
        status = await asker.ask(server.desk.GetServerStatus, GetServerStatusRequest())
        shared.samples.add(server.address, status, asker)
        shared.sessions.end(session)
        with pytest.raises(SignInNeeded):
            await asker.ask(server.desk.GetServerStatus, GetServerStatusRequest())
        sampling = asyncio.create_task(shared.samples.keep_sampling())
        async with asyncio.timeout(PATIENT_SECONDS):
            while shared.samples.is_sampling:  # noqa: ASYNC110  # it is polled
                await asyncio.sleep(0.01)
        sampling.cancel()


async def test_a_reconciliation_ends_with_its_session(guarded: Site) -> None:
    begun = ReconcileBegin(to=timestamp(datetime.now(UTC)))
    getattr(begun, "from").CopyFrom(timestamp(datetime.now(UTC) - timedelta(days=1)))

    async def requests() -> AsyncIterator[ReconcileRequest]:
        yield ReconcileRequest(begin=begun)

    async with shared_of(guarded) as shared:
        session = shared.sessions.begin(Session(token=TOKENS["olga"]))
        messages = shared.asker(session).reconcile(requests())
        assert await anext(messages)
        shared.sessions.end(session)
        with pytest.raises(SignInNeeded):
            await anext(messages)


# ---------------------------------------------------------------- streams
async def test_a_stream_needs_a_sign_in_where_pages_need_one(guarded: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once, and takes no place of those of the people who have signed in."""
    monkeypatch.setattr(visit, "MOST_STREAMS", 1)
    async with a_client(guarded) as nobody, a_client(guarded) as client:
        await signed_in(client, "shop")
        async with client.stream("GET", "/ticks") as stream:
            told = stream.aiter_lines()
            assert await anext(told) == "retry: 2000"
            for place in STREAMS:
                async with nobody.stream("GET", place) as refused:
                    assert SIGN_IN in await lines(refused), place
            async with client.stream("GET", "/ticks") as too_many:
                assert too_many.status_code == 503


async def test_a_stream_that_began_while_no_server_could_be_asked_ends_when_one_can(
    guarded: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "TICK_SECONDS", 0.1)
    await guarded.servers.query_down()
    async with a_client(guarded) as nobody, nobody.stream("GET", "/ticks") as stream:
        await guarded.servers.query_up(guarded.query_settings)
        assert SIGN_IN in await lines(stream)


async def test_a_stream_of_what_is_not_there_ends_and_is_no_fault(site: Site) -> None:
    with capture_logs() as logged:
        async with a_client(site) as client, client.stream("GET", "/reconciliation/none/events") as stream:
            assert [line for line in await lines(stream) if line] == ["retry: 2000"]
    assert [each for each in logged if each["event"] == "a stream failed"] == []


# ---------------------------------------------------------------- other sites, and other tabs
@needs_chromium
async def test_a_link_from_another_site_finds_its_reader_signed_in(guarded: Site, chromium: Browser) -> None:
    """And its form does nothing: neither what it asks for, nor that the reader is signed out."""

    async def another_site(route: Route) -> None:
        form = f'<form method="post" action="{guarded.url}/sign-out"><button>Win</button></form>'
        page = f'<a href="{guarded.url}/charges">The charges</a>{form}'
        await route.fulfill(body=page, content_type="text/html")

    async with a_person(guarded.url, chromium, may_fail=True) as person:
        await person.signs_in("shop")
        await person.context.route("http://elsewhere.example/**", another_site)
        for name in ("link", "form", "link"):
            await person.page.goto("http://elsewhere.example/")
            if name == "link":
                await person.page.get_by_role("link", name="The charges").click()
                await expect(person.page.get_by_role("heading", name="Charges")).to_be_visible()
            else:
                await person.page.get_by_role("button", name="Win").click()
                await person.sees("nothing was done")
        await expect(person.page.get_by_role("button", name="Sign out")).to_be_visible()


async def test_no_cookie_is_put_over_that_of_another_tab(guarded: Site) -> None:
    """By a page of before the sign-in that comes late, and by a form that comes without a cookie."""
    async with a_client(guarded) as client:
        await client.get("/sign-in")
        ((name, before),) = client.cookies.items()
        await signed_in(client, "shop")
        async with a_client(guarded, cookies={name: before}) as late:
            answer = await late.get("/charges")
            assert (answer.status_code, "set-cookie" in answer.headers) == (303, False)
        async with a_client(guarded) as without:
            for place in ("/sign-out", "/sign-in", "/tenant"):
                answer = await without.post(
                    place, data={"csrf": "none"}, headers={"origin": "http://elsewhere.example"}
                )
                assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
        csrf = await secret_of(client)
        refused = await client.post("/sign-in", data={"csrf": csrf, "token": "nobodys"})
        assert refused.status_code == 403
        assert (await client.get("/charges")).status_code == 200
