"""The desk in a real browser: what a person does about a charge, and what only two persons do."""

import pytest
from playwright.async_api import Browser, expect

from contract.situations import ID_NOT_KEPT
from rig.world import a_request
from tests.console.site import ALWAYS, PATIENT_MILLISECONDS, Site, a_person, needs_chromium

pytestmark = needs_chromium


async def test_two_persons_resolve_a_review(guarded: Site, chromium: Browser) -> None:
    """The first proposes and cannot approve; the second does. Its history tells who said what, and why."""
    await guarded.in_review(a_request("order-1"))
    (movement,) = await guarded.referee.movements()
    async with a_person(guarded.url, chromium, may_fail=True) as olga, a_person(guarded.url, chromium) as omar:
        await olga.signs_in("olga", "shop")
        await olga.sees("In review")
        await olga.page.get_by_role("link", name="order-1").first.click()
        await olga.does(
            "Propose",
            resolution="RESOLUTION_EXECUTED",
            transaction=movement.transaction_id,
            evidence="line 12 of the statement",
            reason="the bank told the amount wrong",
        )
        await olga.sees("A second person has to approve it.")
        await olga.does("Approve", reason="I am sure")
        await olga.sees("A second person must approve it")
        await expect(olga.page.locator("#approve-reason")).to_have_value("I am sure")
        await expect(olga.page.locator("[name=overrules]")).to_have_count(0)
        await omar.signs_in("omar", "shop")
        await omar.finds("order-1")
        await omar.sees("line 12 of the statement")
        await omar.does("Approve", reason="I see it, too")
        await omar.sees("The resolution is approved: this is the outcome.")
        await expect(omar.page.locator("#summary")).to_contain_text("charged")
        for told in ("by olga", "by omar", "I see it, too", "the bank told the amount wrong"):
            await omar.sees(told)


async def test_an_approval_against_the_banks_word_says_so_itself(guarded: Site, chromium: Browser) -> None:
    """The choice is offered only once the bank has contradicted."""
    await guarded.in_review(a_request("order-1"))
    async with a_person(guarded.url, chromium) as olga, a_person(guarded.url, chromium, may_fail=True) as omar:
        await olga.signs_in("olga", "shop")
        await olga.finds("order-1")
        await olga.does("Propose", resolution="RESOLUTION_NOT_EXECUTED", evidence="ticket 7", reason="it is not there")
        await omar.signs_in("omar", "shop")
        await omar.finds("order-1")
        await expect(omar.page.locator("[name=overrules]")).to_have_count(0)
        await omar.does("Approve", reason="as she says")
        await omar.sees("Approve it although the bank said: executed.")
        await omar.does("Approve", overrules="ANSWER_KIND_EXECUTED", reason="the bank is wrong: it told us so")
        await expect(omar.page.locator("#summary")).to_contain_text("declined")
        await expect(omar.page.locator("#history")).to_contain_text("although the bank said: executed")
        await omar.sees("without the bank's word")


async def test_what_a_silent_bank_says_by_then_is_not_overruled(guarded: Site, chromium: Browser) -> None:
    """The form offers to overrule just what the bank said last."""
    await guarded.in_review(a_request("order-1"))
    async with a_person(guarded.url, chromium) as olga, a_person(guarded.url, chromium, may_fail=True) as omar:
        await olga.signs_in("olga", "shop")
        await olga.finds("order-1")
        await olga.does("Propose", resolution="RESOLUTION_NOT_EXECUTED", evidence="ticket 7", reason="it is not there")
        await omar.signs_in("omar", "shop")
        await omar.finds("order-1")
        await guarded.referee.trouble("look_up", "lose_request", times=ALWAYS)
        await omar.does("Approve", reason="as she says")
        await omar.sees("Approve it although the bank said: no answer.")
        await guarded.referee.no_more_trouble()
        await omar.does("Approve", overrules="ANSWER_KIND_NO_ANSWER", reason="the bank is away")
        await omar.sees("Approve it although the bank said: executed.")
        await expect(omar.page.locator("[name=overrules]")).not_to_be_checked()
        await expect(omar.page.locator("#summary")).to_contain_text("in review")


async def test_a_proposal_is_turned_down(guarded: Site, chromium: Browser) -> None:
    await guarded.in_review(a_request("order-1"))
    async with a_person(guarded.url, chromium) as olga, a_person(guarded.url, chromium) as omar:
        await olga.signs_in("olga", "shop")
        await olga.finds("order-1")
        await olga.does("Propose", resolution="RESOLUTION_NOT_EXECUTED", evidence="ticket 7", reason="it is not there")
        await omar.signs_in("omar", "shop")
        await omar.finds("order-1")
        await omar.does("Reject", reason="look again: it is there")
        await omar.sees("The proposal is turned down.")
        await expect(omar.page.locator("[name=evidence]")).to_be_visible()
        await omar.sees("look again: it is there")


async def test_a_charge_is_held_back_and_let_go(site: Site, chromium: Browser) -> None:
    await site.referee.trouble("execute", "lose_answer", times=ALWAYS)
    await site.charge(a_request("order-1"), is_pending=True)
    async with a_person(site.url, chromium) as person:
        await person.goes("/search?q=order-1")
        await person.does("Hold back", reason="the bank asked us to wait")
        await person.sees("It is held back.")
        await person.goes("/")
        await person.sees("Held back")
        await person.page.get_by_role("link", name="order-1").first.click()
        await site.referee.no_more_trouble()
        await person.does("Let go", reason="the bank is in order again")
        await person.sees("It goes on.")
        await expect(person.page.locator("#summary")).to_contain_text("charged", timeout=PATIENT_MILLISECONDS)
        await person.sees("the bank asked us to wait")


async def test_a_step_is_tried_now_and_the_bank_is_asked(site: Site, chromium: Browser) -> None:
    await site.referee.trouble("execute", "lose_answer", times=ALWAYS)
    answer = await site.charge(a_request("order-1"), is_pending=True)
    async with a_person(site.url, chromium) as person:
        await person.goes("/search?q=order-1")
        await person.does("Ask the bank")
        await person.sees("The bank says of the charge order-1: executed")
        calls = len(await site.referee.asked(answer.charge_id))
        await person.does("Try now", reason="the bank is in order again")
        await person.sees("Its next step is due now.")
        assert len(await site.referee.asked(answer.charge_id)) >= calls
        await site.referee.no_more_trouble()


async def test_it_is_told_in_what_the_bank_differs(site: Site, chromium: Browser) -> None:
    answer = await site.in_review(a_request("order-1"))
    await site.referee.trouble("look_up", "wrong_amount", times=ALWAYS)
    async with a_person(site.url, chromium) as person:
        await person.goes("/search?q=order-1")
        await person.does("Ask the bank")
        (moved,) = await site.referee.movements()
        assert moved.reference == answer.charge_id
        await person.sees(
            f"The bank says of the charge order-1: contradiction, transaction {moved.transaction_id};"
            " it differs from ours in amount."
        )
        await site.referee.no_more_trouble()


async def test_an_id_that_may_not_be_kept_is_told_as_no_difference(site: Site, chromium: Browser) -> None:
    await site.referee.trouble("execute", "odd_transaction_id")
    await site.seen(await site.charge(a_request("order-1")))
    async with a_person(site.url, chromium) as person:
        await person.goes("/search?q=order-1")
        await person.does("Ask the bank")
        await person.sees(f"The bank says of the charge order-1: contradiction. {ID_NOT_KEPT}")


async def test_a_step_without_an_answer_may_be_done(site: Site, chromium: Browser) -> None:
    """Nobody is told "not done" of what may be stored: the way to the history is shown instead."""
    await site.referee.trouble("execute", "lose_answer", times=ALWAYS)
    await site.charge(a_request("order-1"), is_pending=True)
    async with a_person(site.url, chromium, scripts=False, may_fail=True) as person:
        await person.goes("/search?q=order-1")
        await site.servers.command_down()
        await person.does("Hold back", reason="the bank asked us to wait")
        await person.sees("It may be done: look at the history before you repeat it. The server does not answer.")
        await expect(person.page.locator("body")).not_to_contain_text("Not done")
        await person.page.get_by_role("link", name="look at the history").click()
        await expect(person.page.locator("#history")).to_be_in_viewport()
        await site.servers.command_up(site.command_settings)
        await site.referee.no_more_trouble()


async def test_a_step_that_no_longer_fits_is_refused_with_its_reason(site: Site, chromium: Browser) -> None:
    """The form of an old page: the charge has come to rest meanwhile."""
    await site.referee.trouble("execute", "lose_answer", times=ALWAYS)
    await site.charge(a_request("order-1"), is_pending=True)
    async with a_person(site.url, chromium, scripts=False, may_fail=True) as person:
        await person.goes("/search?q=order-1")
        await site.referee.no_more_trouble()
        await site.charge(a_request("order-1"))
        await person.does("Hold back", reason="too late")
        await person.sees("Not done: The charge, whose status the metadata name, is not at a stage for this step")


@pytest.mark.parametrize(("name", "sees"), [("reader", "The caller may not do this"), ("other", "no such charge")])
async def test_who_may_not_is_told_so_by_the_servers(guarded: Site, chromium: Browser, name: str, sees: str) -> None:
    answer = await guarded.in_review(a_request("order-1"))
    async with (
        a_person(guarded.url, chromium, may_fail=True) as olga,
        a_person(guarded.url, chromium, may_fail=True) as person,
    ):
        await person.signs_in(name)
        place = f"/charges/{answer.charge_id}"
        await olga.signs_in("olga", "shop")
        await olga.goes(place)
        await person.goes(place)
        if name == "reader":
            await person.does("Propose", resolution="RESOLUTION_NOT_EXECUTED", evidence="ticket 7", reason="hm")
        await expect(person.page.locator(".error").first).to_contain_text(sees, ignore_case=True)
        await olga.goes(place)
        await olga.sees("Propose")
        await expect(olga.page.locator(".proposal")).to_have_count(0)
