"""What the pages show, in a real browser: to everybody, on every screen, as text and never as anything else."""

import asyncio

import pytest
from playwright.async_api import Browser, expect

from charging.v1.common_pb2 import Card
from rig.world import a_hold, a_request, new_key
from tests.console.site import ALWAYS, PATIENT_MILLISECONDS, Site, a_person, needs_chromium

pytestmark = needs_chromium

PLACES = [
    "/",
    "/charges",
    "/charges?stage=in+review",
    "/live",
    "/servers",
    "/reconciliation",
    "/user?id=alice",
    "/tenant",
]
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&"
USER = "eve<script>alert(3)</script>"


@pytest.mark.parametrize("width", [1200, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_is_for_everybody(site: Site, chromium: Browser, scheme: str, width: int) -> None:
    """No serious finding of axe, nothing wider than the screen, no complaint of the browser."""
    await site.charge(a_request("order-1", user_id="a-user-with-a-name-that-is-long-and-has-no-place-to-break-it" * 2))
    await site.charge(a_hold("order-2"))
    await site.in_review(a_request("order-3"))
    async with a_person(site.url, chromium, scheme=scheme, width=width) as person:
        for place in [*PLACES, "/search?q=order-1", "/search?q=order-2", "/search?q=order-3"]:
            await person.goes(place)
            await expect(person.page.get_by_role("heading", level=1)).to_be_visible()
            assert await person.barriers() == [], place
            assert await person.page.evaluate("document.documentElement.scrollWidth") <= width, place


async def test_a_charge_is_found_by_its_key_by_its_id_and_by_its_user(site: Site, chromium: Browser) -> None:
    answer = await site.charge(a_request("order-1", user_id="bob"))
    async with a_person(site.url, chromium) as person:
        for name in ("order-1", answer.charge_id):
            await person.goes("/")
            await person.finds(name)
            await expect(person.page.get_by_role("heading", name="Charge order-1")).to_be_visible()
        await person.finds("bob")
        await expect(person.page.get_by_role("heading", name="User bob")).to_be_visible()
        await person.sees("Charged less refunded: 12.50 EUR")
        await person.page.get_by_role("link", name="order-1").click()
        await person.sees("The bank gave a token")


async def test_a_list_is_filtered_and_has_pages(site: Site, chromium: Browser) -> None:
    await asyncio.gather(*(site.charge(a_request(f"order-{number:02d}")) for number in range(53)))
    await site.charge(a_request("declined-1", card=Card(token="tok_declined")))
    async with a_person(site.url, chromium) as person:
        await person.goes("/charges?user=alice&status=charged")
        rows = person.page.locator("tbody tr")
        await expect(rows).to_have_count(50)
        await person.page.get_by_role("link", name="Next page").click()
        await expect(rows).to_have_count(3)
        await person.page.get_by_label("Status").select_option("declined")
        await person.page.get_by_role("button", name="Show").click()
        await expect(rows).to_have_count(1)
        await expect(person.page.get_by_label("User", exact=True)).to_have_value("alice")
        await person.page.get_by_label("Status").select_option("")
        await person.page.get_by_label("Requested from (UTC)").fill("2099-01-01T00:00")
        await person.page.get_by_role("button", name="Show").click()
        await person.sees("No charge fits.")


async def test_what_clients_and_operators_write_is_shown_as_text(site: Site, chromium: Browser) -> None:
    request = a_request("order-1", user_id=USER, description=SCRIPT, metadata={"note": SCRIPT})
    await site.in_review(request)
    async with a_person(site.url, chromium, may_fail=True) as person:
        await person.goes("/search?q=order-1")
        await person.does("Propose", resolution="RESOLUTION_NOT_EXECUTED", evidence=SCRIPT, reason=SCRIPT)
        await person.sees("The open proposal")
        assert (await person.page.locator("body").inner_text()).count(SCRIPT) >= 5
        for place in ("/", "/charges", "/live"):
            await person.goes(place)
            await person.sees(USER)
        await person.page.get_by_role("link", name=USER).first.click()
        await person.sees(USER)
        assert await person.page.locator("main img, main script").count() == 0
        await person.goes("/charges?status=%3Cscript%3E&from=%22%3E%3Cimg%20src=x%3E")
        assert await person.page.locator("main img, main script").count() == 0


async def test_a_page_is_fresh_by_itself(site: Site, chromium: Browser) -> None:
    async with a_person(site.url, chromium) as person:
        await person.goes("/live")
        await person.sees("There is no charge yet.")
        await site.charge(a_request("order-1"))
        await person.sees("order-1")
        await site.referee.trouble("execute", "lose_answer", times=ALWAYS)
        await site.charge(a_request("order-2"), is_pending=True)
        await person.goes("/search?q=order-2")
        await person.sees("Now: waits for the bank's execution")
        await site.referee.no_more_trouble()
        await expect(person.page.locator("#summary")).to_contain_text("charged", timeout=PATIENT_MILLISECONDS)


async def test_what_somebody_writes_is_not_taken_away_by_a_fresh_page(site: Site, chromium: Browser) -> None:
    await site.referee.trouble("execute", "lose_answer", times=ALWAYS)
    await site.charge(a_request("order-1"), is_pending=True)
    async with a_person(site.url, chromium) as person:
        await person.goes("/search?q=order-1")
        reason = person.page.locator("#hold-back-reason")
        await reason.fill("the bank asked us to")
        await site.referee.no_more_trouble()
        await expect(person.page.locator("#summary")).to_contain_text("charged", timeout=PATIENT_MILLISECONDS)
        await expect(reason).to_have_value("the bank asked us to")


async def test_everything_is_reached_by_keys(site: Site, chromium: Browser) -> None:
    await site.charge(a_request("order-1"))
    async with a_person(site.url, chromium) as person:
        await person.goes("/")
        await person.page.keyboard.press("Tab")
        await expect(person.page.get_by_role("link", name="To the content")).to_be_focused()
        await person.page.keyboard.press("Enter")
        await expect(person.page.get_by_role("main")).to_be_focused()
        await person.page.keyboard.press("/")
        await expect(person.page.get_by_role("searchbox")).to_be_focused()
        await person.page.keyboard.type("order-1")
        await person.page.keyboard.press("Enter")
        await expect(person.page.get_by_role("heading", name="Charge order-1")).to_be_visible()


async def test_the_pages_work_without_scripts(site: Site, chromium: Browser) -> None:
    await site.in_review(a_request("order-1"))
    async with a_person(site.url, chromium, scripts=False) as person:
        await person.goes("/")
        await person.finds("order-1")
        await person.does("Propose", resolution="RESOLUTION_NOT_EXECUTED", evidence="ticket 7", reason="none found")
        await person.sees("A second person has to approve it.")


async def test_a_page_that_is_not_there_says_so(site: Site, chromium: Browser) -> None:
    async with a_person(site.url, chromium, may_fail=True) as person:
        await person.goes("/nowhere")
        await person.sees("There is no such page.")
        await person.goes("/charges/00000000-0000-8000-8000-000000000000")
        await person.sees("No such charge is shown as of this position")
        await person.goes(f"/search?q={new_key()}")
        await person.sees("The view shows no charge of this user, and no charge with this key or id.")
