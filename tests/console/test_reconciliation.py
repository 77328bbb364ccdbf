"""Reconciliation in a real browser: by the bank's own statement, and by a CSV file."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.async_api import Browser, expect

from charging.v1.operator_pb2 import Reconciliation
from command_service.reconciling.kept import keep
from console.words import timestamp
from rig.world import a_request
from tests.console.site import PATIENT_MILLISECONDS, Site, a_person, needs_chromium

pytestmark = needs_chromium

# The server compares at the lowest priority: on a busy machine that waits for everything else.
LONGER = 8 * PATIENT_MILLISECONDS
SCRIPT = "<script>alert(1)</script>"
MAPPING = """
currency = "EUR"
[columns]
reference = "ref"
amount = "amount"
time = "at"
"""


async def test_a_day_that_is_equal_on_both_sides_is_balanced(site: Site, chromium: Browser) -> None:
    await site.charge(a_request("order-1"))
    async with a_person(site.url, chromium) as person:
        await person.goes("/reconciliation")
        await person.page.get_by_role("button", name="Compare").click()
        await person.sees("balanced", LONGER)
        await expect(person.page.locator("#progress")).to_contain_text("0 differences")
        await expect(person.page.locator("#sums")).to_be_visible()
        assert await person.barriers() == []
        await person.page.get_by_role("link", name="All reconciliations").click()
        await expect(person.page.locator("#reconciled")).to_contain_text("balanced")
        await person.goes("/")
        await expect(person.page.locator("#reconciled")).to_contain_text("balanced")


async def test_a_csv_file_is_compared_and_its_differences_lead_to_the_charges(
    site: Site, chromium: Browser, tmp_path: Path
) -> None:
    answer = await site.charge(a_request("order-1"))
    at = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()  # the last minute is not compared
    (tmp_path / "statement.csv").write_text(f"ref,amount,at\n{answer.charge_id},99.00,{at}\n{SCRIPT},1.00,{at}\n")
    async with a_person(site.url, chromium) as person:
        await person.goes("/reconciliation")
        await person.page.get_by_text("By a CSV file").click()
        await person.page.get_by_label("The file").set_input_files(tmp_path / "statement.csv")
        await person.page.get_by_label("Its mapping, in TOML").fill(MAPPING)
        await person.page.get_by_role("button", name="Compare").click()
        await person.sees("not balanced", LONGER)
        findings = person.page.locator("#findings")
        for said in ("amount differs", "99.00 EUR", "missing here", SCRIPT):
            await expect(findings).to_contain_text(said)
        await expect(person.page.locator("#sums")).to_contain_text("differs")
        assert await person.barriers() == []
        await person.goes("/reconciliation")
        kept = person.page.locator("#reconciled")
        for said in ("not balanced", "amount differs", "missing here", SCRIPT):
            await expect(kept).to_contain_text(said)
        assert await person.barriers() == []
        await kept.get_by_role("link", name=answer.charge_id).first.click()
        await expect(person.page.get_by_role("heading", name="Charge order-1")).to_be_visible()


async def test_a_day_with_a_movement_at_its_edge_is_not_certain(site: Site, chromium: Browser, tmp_path: Path) -> None:
    """Nothing differs, but the next day's file may show that something does: nobody may take it for balanced.

    A run never compares the last minute, so that its result is put where the command keeps it.
    """
    found = Reconciliation(is_balanced=True, undecided=2, done_at=timestamp(datetime.now(UTC)))
    getattr(found, "from").CopyFrom(timestamp(datetime.now(UTC) - timedelta(days=1)))
    found.to.CopyFrom(timestamp(datetime.now(UTC)))
    keep(tmp_path / "journal.db.reconciliations", found)
    async with a_person(site.url, chromium) as person:
        for place in ("/reconciliation", "/"):
            await person.goes(place)
            sums = person.page.locator("#reconciled")
            await expect(sums).to_contain_text("not certain: 2 at the edge Read the neighbouring days too.")
            await expect(sums.locator(".badge.good")).to_have_count(0)
            assert await person.barriers() == []


async def test_what_cannot_be_compared_is_refused_in_words(site: Site, chromium: Browser, tmp_path: Path) -> None:
    async with a_person(site.url, chromium, may_fail=True) as person:
        await person.goes("/reconciliation")
        await person.page.get_by_label("From the day").fill("2026-12-01")
        await person.page.get_by_label("Before the day").fill("2026-11-01")
        await person.page.get_by_role("button", name="Compare").click()
        await person.sees("It needs a first moment, and a later one before which it ends.")
        await person.goes("/reconciliation")
        await person.page.get_by_label("Bank, empty").fill("nobodys")
        await person.page.get_by_role("button", name="Compare").click()
        await expect(person.page.locator("#progress .error")).to_be_visible(timeout=LONGER)
        (tmp_path / "statement.csv").write_text("no,such,columns\n")
        await person.goes("/reconciliation")
        await person.page.get_by_text("By a CSV file").click()
        await person.page.get_by_label("Its mapping, in TOML").fill(MAPPING)
        await person.page.get_by_role("button", name="Compare").click()
        await person.sees("A CSV file and its mapping belong together.")
        await expect(person.page.get_by_label("Its mapping, in TOML")).to_have_value(MAPPING.strip())
        await person.goes("/reconciliation")
        await person.page.get_by_text("By a CSV file").click()
        await person.page.get_by_label("The file").set_input_files(tmp_path / "statement.csv")
        await person.page.get_by_role("button", name="Compare").click()
        await person.sees("A CSV file and its mapping belong together.")
        await person.goes("/reconciliation")
        await person.page.get_by_text("By a CSV file").click()
        await person.page.get_by_label("The file").set_input_files(tmp_path / "statement.csv")
        await person.page.get_by_label("Its mapping, in TOML").fill(MAPPING)
        await person.page.get_by_role("button", name="Compare").click()
        await expect(person.page.locator("#progress .error")).to_be_visible(timeout=LONGER)
        assert "Traceback" not in await person.page.locator("body").inner_text()
