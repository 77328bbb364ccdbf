"""What the conformance suite finds at the fakes: which checks they, or the adapter, do not pass, and no other.

Why each is broken is in docs/banks.md.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from command_service.bank import Bank
from command_service.bank.conformance import page
from command_service.bank.conformance.checks import FOLLOWING, OPENINGS, Broken, CannotBeTried, Finding
from command_service.bank.conformance.subject import Between, Provoke, Subject
from command_service.bank.conformance.suite import findings
from command_service.bank.kinds import KINDS, BankSettings, Maker
from command_service.bank.transport import open_transport
from command_service.values import DeclineReason, Kind
from tests.banks.fakes import KEY, client, localstripe, stripe_mock
from tests.e2e.test_check_bank import check_bank

RETURN_URL = "https://shop.example/back"


def subject(make: Maker, fake: str, folder: Path, options: Mapping[str, object], **more: Any) -> Subject:
    key_file = folder / "key"
    key_file.write_text(KEY)
    bank = BankSettings("fake", "its kind", f"http://{fake}", key_file=key_file, options=options)

    def open_bank(between: Between) -> Bank:
        return make(bank, between(open_transport(max_connections=32)), [])

    return Subject(open_bank=open_bank, **more)


async def found_at(subject: Subject) -> tuple[Sequence[Finding], Mapping[str, Collection[Kind]]]:
    """All that was found, and the kinds for which each check was broken, by its name."""
    found = [finding async for finding in findings(subject)]
    broken: dict[str, set[Kind]] = {}
    for finding in found:
        if isinstance(finding.end, Broken):
            broken.setdefault(finding.check.name, set()).add(finding.kind)
    return found, broken


def opening(page: str) -> Provoke:
    """Opens the customer's page, and so takes the step, or fails in it."""

    async def run(url: str) -> None:
        async with client("") as asking:
            (await asking.get(url + page)).raise_for_status()

    return run


async def a_customers_card(fake: str) -> str:
    """A payment method that wants 3-D Secure each time: localstripe has none ready."""
    number = {"type": "card", "card[number]": "4000002760003184", "card[exp_month]": "12", "card[exp_year]": "2099"}
    async with client(fake) as asking:
        made = await asking.post("/v1/payment_methods", data={**number, "card[cvc]": "123"})
    return str(made.raise_for_status().json()["id"])


async def test_localstripe_forgets_keys_and_limits_no_refunds(tmp_path: Path) -> None:
    """What rests on keys is broken, and what rests on its own count of refunds. All else is kept."""
    async with localstripe(tmp_path / "fake.log") as fake:
        subject_there = subject(
            KINDS["stripe"],
            fake,
            tmp_path,
            {"return_url": RETURN_URL},
            approved_card="pm_card_visa",
            other_card="pm_card_mastercard",
            declined_cards={kind: {"pm_card_chargeCustomerFail": DeclineReason.CARD_DECLINED} for kind in OPENINGS},
            customer_card=await a_customers_card(fake),
            confirm=opening(""),
            fail=opening("?fails"),
        )
        found, broken = await found_at(subject_there)
    keyed = {Kind.CHARGE, Kind.AUTHORIZE, Kind.REFUND}
    assert broken == {
        "a repeated token step gives the same transaction": set(OPENINGS),
        "what was called off is given no other token": set(OPENINGS),
        "a repeated execute step is done once": {Kind.REFUND},
        "a step is done once though its answers were thrown away": keyed,
        "looked up first, a step ends as it would have": keyed,
        "another amount under a known reference is refused": keyed,
        "another currency under a known reference is refused": keyed,
        "another kind under a known reference is refused": keyed | {Kind.CAPTURE},
        "another transaction to act on under a known reference is refused": set(FOLLOWING),
        "a refund stays within what was captured and not refunded": {Kind.REFUND},
        "of refunds at once no more are executed than there is money": {Kind.REFUND},
        "what was not captured is not refunded": {Kind.REFUND},
        "a final capture lets the rest go": {Kind.CAPTURE},
    }, page.table(found)


async def test_stripe_mock_has_no_state_that_could_be_tried(tmp_path: Path) -> None:
    """Whatever is asked, its answer is about an intent of its own."""
    async with stripe_mock(tmp_path / "fake.log") as fake:
        there = subject(KINDS["stripe"], fake, tmp_path, {"return_url": RETURN_URL}, approved_card="pm_card_visa")
        with pytest.raises(CannotBeTried):
            await found_at(there)


async def test_the_command_finds_it_too(tmp_path: Path) -> None:
    """As in the README."""
    (tmp_path / "key").write_text(KEY)
    async with localstripe(tmp_path / "fake.log") as fake:
        banks = tmp_path / "banks.toml"
        banks.write_text(
            f'[banks.localstripe]\nkind = "stripe"\nurl = "http://{fake}"\nkey_file = "key"\nreturn_url = "{RETURN_URL}"\n'
        )
        status, out, told = await check_bank("localstripe", "--look-up-lag", "0", COMMAND_BANKS=str(banks))
    assert status == 1, told
    assert out.splitlines()[-1].endswith(": it breaks promises 1, 2, 4, 8")
    assert KEY not in out + told
