"""All servers and a console in this process, and a real browser that looks at it."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.query_pb2 import GetChargeRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from chassis import settings
from console.serving import Serving, serve
from console.settings import Settings
from rig.browser import browser, executable
from rig.ports import kept
from rig.referee import PATIENT_SECONDS, Referee
from rig.servers import InProcess
from rig.world import BRIEF_SECONDS, heard

IS_REQUIRED = bool(os.environ.get("CI") or os.environ.get("CHROMIUM_REQUIRED"))
needs_chromium = pytest.mark.skipif(
    executable() is None and not IS_REQUIRED, reason="no Chromium is installed here: apt-get install chromium"
)
ALWAYS = 1_000_000
PATIENT_MILLISECONDS = PATIENT_SECONDS * 1_000
TOKENS = {name: f"token-of-{name}" for name in ("shop", "reader", "olga", "omar", "other", "feed")}
POLICY = "\n".join(
    f'[[identities]]\nname = "{name}"\ntoken_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n{more}\n'
    for (name, token), more in zip(
        TOKENS.items(),
        [
            'tenant = "shop"\nroles = ["charge", "refund", "read"]',
            'tenant = "shop"\nroles = ["read"]',
            'roles = ["operate"]',
            'roles = ["operate"]',
            'tenant = "other"\nroles = ["charge", "read", "operate"]',
            'roles = ["feed"]',
        ],
        strict=True,
    )
)


@dataclass
class Site:
    """The servers, and the console in front of them."""

    servers: InProcess
    referee: Referee
    console: Serving
    query_settings: dict[str, str]
    command_settings: dict[str, str]
    token: str = ""

    @property
    def url(self) -> str:
        """Where the console is."""
        return f"http://{self.console.listen}"

    @property
    def _metadata(self) -> Sequence[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    async def charge(self, request: ChargeRequest, *, is_pending: bool = False) -> ChargeResponse:
        """Charge, and wait until the view shows it."""
        async with grpc.aio.insecure_channel(self.servers.command) as channel:
            commands = CommandServiceStub(channel)
            seconds = BRIEF_SECONDS if is_pending else PATIENT_SECONDS
            answer = await heard(lambda: commands.Charge(request, timeout=seconds, metadata=self._metadata))
        await self.seen(answer)
        return answer

    async def seen(self, answer: ChargeResponse) -> None:
        """Wait until the view shows what a charge's answer tells."""
        asked = GetChargeRequest(charge_id=answer.charge_id, min_position=answer.position)
        async with grpc.aio.insecure_channel(self.servers.query) as channel:
            queries = QueryServiceStub(channel)
            await heard(lambda: queries.GetCharge(asked, timeout=PATIENT_SECONDS, metadata=self._metadata))

    async def in_review(self, request: ChargeRequest) -> ChargeResponse:
        """Bring a charge into review: the bank executes it, and tells of another amount. Then the bank is in order again."""
        await self.referee.trouble("execute", "wrong_amount")
        await self.referee.trouble("look_up", "wrong_amount", times=ALWAYS)
        answer = await self.charge(request)
        await self.referee.no_more_trouble()
        return answer


@asynccontextmanager
async def a_site(folder: Path, *, with_policy: bool = False, **more: str) -> AsyncIterator[Site]:
    """All servers and a console. With a policy the identities are those of TOKENS."""
    commands: dict[str, str] = {}
    queries: dict[str, str] = {}
    if with_policy:
        (folder / "policy.toml").write_text(POLICY)
        (folder / "feed.token").write_text(TOKENS["feed"])
        commands["COMMAND_POLICY"] = queries["QUERY_POLICY"] = str(folder / "policy.toml")
        queries["QUERY_FEED_TOKEN_FILE"] = str(folder / "feed.token")
    async with contextlib.AsyncExitStack() as stack:
        ports = stack.enter_context(kept(4))
        servers = InProcess(folder, ports)
        await servers.bank_up()
        stack.push_async_callback(servers.bank_down)
        commands["COMMAND_BANK_URL"] = f"http://{servers.bank}"
        await servers.command_up(commands)
        stack.push_async_callback(servers.command_down)
        queries["QUERY_FEED"] = servers.feed
        await servers.query_up(queries)
        stack.push_async_callback(servers.query_down)
        referee = await stack.enter_async_context(Referee(f"http://{servers.bank}"))
        environment = {
            "CONSOLE_LISTEN": "127.0.0.1:0",
            "CONSOLE_COMMAND": servers.command,
            "CONSOLE_QUERY": servers.query,
            **more,
        }
        console = await stack.enter_async_context(serve(settings.read(Settings, environment)))
        yield Site(servers, referee, console, queries, commands, TOKENS["shop"] if with_policy else "")


@dataclass
class Person:
    """One person at a browser of their own. What the browser complains of is kept."""

    url: str
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)

    async def goes(self, place: str) -> None:
        """Open a page."""
        await self.page.goto(self.url + place)

    async def signs_in(self, name: str, tenant: str = "") -> None:
        """Sign in as an identity of the policy, and choose a tenant if one is named."""
        await self.goes("/sign-in")
        await self.page.get_by_label("Bearer token").fill(TOKENS[name])
        await self.page.get_by_role("button", name="Sign in").click()
        if tenant:
            await self.goes("/tenant")
            await self.page.get_by_label("Tenant").fill(tenant)
            await self.page.get_by_role("button", name="Choose").click()

    async def finds(self, name: str) -> None:
        """Search for a charge or a user."""
        await self.page.get_by_role("searchbox").fill(name)
        await self.page.get_by_role("searchbox").press("Enter")

    async def sees(self, text: str, milliseconds: float = PATIENT_MILLISECONDS) -> None:
        """Wait until a text is on the page."""
        await expect(self.page.locator("body")).to_contain_text(text, timeout=milliseconds)

    async def does(self, step: str, **fields: str) -> None:
        """Fill in the form of a step of the desk, and send it."""
        form = self.page.locator("form").filter(has=self.page.get_by_role("button", name=step, exact=True))
        for name, value in fields.items():
            control = form.locator(f"[name={name}]")
            if name == "resolution":
                await control.select_option(value)
            elif name == "overrules":
                await control.and_(form.locator(f"[value={value}]")).check()
            else:
                await control.fill(value)
        await form.get_by_role("button", name=step, exact=True).click()

    async def barriers(self) -> list[str]:
        """What keeps people with a disability out, by axe: findings that are serious or critical."""
        found = await Axe().run(self.page)
        return [
            f"{each['id']}: {node['html']}: {node['failureSummary']}"
            for each in found.response["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


@asynccontextmanager
async def a_person(
    url: str,
    chromium: Browser,
    *,
    scheme: str = "light",
    width: int = 1200,
    scripts: bool = True,
    may_fail: bool = False,
) -> AsyncIterator[Person]:
    """A person at a browser. In the end the browser has nothing to complain of; with `may_fail`, but for loads that failed."""
    context = await chromium.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 900},
        java_script_enabled=scripts,
    )
    context.set_default_timeout(PATIENT_MILLISECONDS)
    page = await context.new_page()
    person = Person(url, context, page)

    def complained(message: ConsoleMessage) -> None:
        is_load = message.text.startswith("Failed to load resource") or "ERR_INCOMPLETE_CHUNKED" in message.text
        if message.type in ("error", "warning") and not (may_fail and is_load):
            person.complaints.append(message.text)

    page.on("console", complained)
    page.on("pageerror", lambda error: person.complaints.append(str(error)))
    page.on("dialog", lambda dialog: person.complaints.append(f"a dialog: {dialog.message}"))
    try:
        yield person
        assert person.complaints == [], person.complaints
    finally:
        await context.close()


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    """A Chromium."""
    async with browser() as chromium:
        yield chromium
