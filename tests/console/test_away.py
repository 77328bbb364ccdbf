"""A server is away, or a view is stale: the pages say so, and go on with what is there."""

import uuid
from pathlib import Path

import grpc
import httpx
import pytest
from playwright.async_api import Browser, expect

from chargeonce_client import CallFailed, Refused, Unsettled
from charging.v1.common_pb2 import Lag, Resolution
from charging.v1.operator_pb2 import AskBankRequest, HoldBackRequest, ProposeResolutionRequest
from charging.v1.query_pb2 import ViewState
from chassis import settings
from console.frame import staleness
from console.servers import Asker, connected
from console.sessions import Session
from console.settings import Settings
from rig.ports import kept
from rig.world import a_request
from tests.console.site import PATIENT_MILLISECONDS, Site, a_person, a_site, needs_chromium

PLACES = ["/", "/charges", "/live", "/servers", "/reconciliation", "/user?id=alice", "/search?q=order-1"]


@needs_chromium
async def test_without_the_command_server_the_pages_show_the_view_and_say_that_it_is_stale(
    site: Site, chromium: Browser
) -> None:
    await site.charge(a_request("order-1"))
    async with a_person(site.url, chromium, may_fail=True) as person:
        await person.goes("/")
        await site.servers.command_down()
        await person.sees("reaches no command server, so that these pages may be stale")
        await person.sees(f"The command server at {site.servers.command} cannot be reached.")
        await site.servers.command_up(site.command_settings)
        await person.goes("/search?q=order-1")
        await expect(person.page.locator("#summary")).to_contain_text("charged")
        await expect(person.page.locator(".banner:visible")).to_have_count(0, timeout=PATIENT_MILLISECONDS)
        await site.servers.command_down()  # while the page of a charge that does not change is open
        await expect(person.page.locator(".banner:visible").first).to_be_visible(timeout=PATIENT_MILLISECONDS)
        assert await person.barriers() == []
        await person.does("Ask the bank")
        await person.sees("Not done: The server does not answer.")
        await person.goes("/")
        await site.servers.command_up(site.command_settings)
        await expect(person.page.locator(".banner:visible")).to_have_count(0, timeout=PATIENT_MILLISECONDS)


@needs_chromium
async def test_without_the_query_server_every_page_says_so(site: Site, chromium: Browser) -> None:
    await site.charge(a_request("order-1"))
    async with a_person(site.url, chromium, may_fail=True) as person:
        await person.goes("/")
        await site.servers.query_down()
        for place in PLACES:
            await person.goes(place)
            await person.sees(f"The query server at {site.servers.query} cannot be reached.")
        await person.goes("/servers")
        await person.sees(f"Command server {site.servers.command}")
        assert await person.barriers() == []
        await person.goes("/live")
        await site.servers.query_up(site.query_settings)
        await expect(person.page.get_by_role("link", name="order-1")).to_be_visible()


@needs_chromium
async def test_a_console_that_is_away_is_told_by_the_page(tmp_path: Path, chromium: Browser) -> None:
    async with a_site(tmp_path) as site:
        manager = a_person(site.url, chromium, may_fail=True)
        person = await manager.__aenter__()
        await person.goes("/live")
        await expect(person.page.locator("#lost")).to_be_hidden()
    await expect(person.page.locator("#lost")).to_be_visible()
    await manager.__aexit__(None, None, None)


async def test_no_page_shows_the_inside_of_a_failure(site: Site) -> None:
    """Not the addresses, texts and traces of libraries; whatever is away."""
    await site.servers.command_down()
    await site.servers.query_down()
    async with httpx.AsyncClient(base_url=site.url, timeout=60, follow_redirects=True, trust_env=False) as client:
        for place in PLACES:
            page = await client.get(place)
            assert page.status_code in (200, 502)
            for inside in ("Traceback", "grpc", "Errno", "ipv4:", "StatusCode"):
                assert inside not in page.text, place


@pytest.mark.parametrize("is_away_first", [True, False])
async def test_a_step_is_taken_at_the_server_that_answers_and_none_is_told_that_may_be_done(
    site: Site, *, is_away_first: bool
) -> None:
    """The one that does not answer may know a charge that the other does not, and may have taken the step before."""
    charged = await site.charge(a_request("order-1"))
    review = await site.in_review(a_request("order-2"))
    with kept(1) as (away,):
        addresses = [away, site.servers.command] if is_away_first else [site.servers.command, away]
        environment = {"CONSOLE_COMMAND": ",".join(addresses), "CONSOLE_QUERY": site.servers.query}
        async with connected(settings.read(Settings, environment)) as servers:
            asker = Asker(servers, Session(), may_be_nobody=True)
            proposed = ProposeResolutionRequest(
                charge_id=review.charge_id,
                reason="ticket 7",
                evidence="line 12",
                resolution=Resolution.RESOLUTION_NOT_EXECUTED,
            )
            answer = await asker.desk(lambda desk: desk.ProposeResolution, proposed)
            assert answer.outcome.charge_id == review.charge_id
            with pytest.raises(Unsettled) as unknown:
                await asker.desk(lambda desk: desk.AskBank, AskBankRequest(charge_id=str(uuid.uuid4())))
            assert (unknown.value.code, unknown.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")
            refused: type[CallFailed] = Unsettled if is_away_first else Refused
            with pytest.raises(refused) as failed:
                held = HoldBackRequest(charge_id=charged.charge_id, reason="ticket 7")
                await asker.desk(lambda desk: desk.HoldBack, held)
            assert failed.value.reason == "NOT_AT_THE_DESK"


def test_a_view_is_stale_by_its_state_its_lag_or_its_silence() -> None:
    live = ViewState.VIEW_STATE_LIVE
    assert staleness(live, Lag(records=3, silence_milliseconds=2_000)) == ""
    assert "5,000 records behind" in staleness(live, Lag(records=5_000, silence_milliseconds=1))
    assert "nothing for 60 s" in staleness(live, Lag(silence_milliseconds=60_000))
    assert "no command server" in staleness(ViewState.VIEW_STATE_DISCONNECTED, Lag(silence_milliseconds=-1))
    assert "catches up" in staleness(ViewState.VIEW_STATE_CATCHING_UP, Lag(records=7))
    assert "Update the query server" in staleness(ViewState.VIEW_STATE_STOPPED, Lag())
