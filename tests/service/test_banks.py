"""Several banks through the real door: the rule chooses one for a charge, and all that follows goes there, whatever comes.

Two mock banks with ledgers of their own, and the command server's file that names them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gateway_mock
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import Card, Money
from command_service.bank import breaker
from command_service.bank.routes import Route
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import print_journal, restore_journal
from rig.errors import refused
from rig.proxy import listening
from rig.referee import Referee
from rig.world import (
    CHARGED,
    OPERATION_EXECUTED,
    PENDING,
    RECOVERED,
    REPLAYED,
    World,
    a_request,
    id_of,
    until,
)

TO_A, TO_B = "[[routes]]\nbanks = { a = 1 }\n", "[[routes]]\nbanks = { b = 1 }\n"
FIRST_A = "[[routes]]\nbanks = { a = 1000, b = 0.001 }\n"  # b by a chance of one in a million, or if a is spared
HOLD: dict[str, Any] = {"fault": "in_progress", "retry_after": "0", "times": 1_000_000}


@dataclass
class Street:
    """Two banks, and a command server that may call them."""

    folder: Path
    urls: dict[str, str]
    referees: dict[str, Referee]

    def __post_init__(self) -> None:
        self.world = World(self.folder, {})

    async def start(self, routes: str, *banks: str, head: str = "", more: str = "", **settings: str) -> None:
        """Start the command server with these banks, all if none is named, and these routes; it stops first if it runs."""
        tables = "".join(
            f'[banks.{name}]\nkind = "two_step"\nurl = "{self.urls[name]}"\n{more}' for name in banks or self.urls
        )
        file = self.folder / "banks.toml"
        file.write_text(f"{head}\n{tables}\n{routes}")
        await self.start_with(COMMAND_BANKS=str(file), **settings)

    async def start_with(self, **settings: str) -> None:
        """Start the command server with these settings and none of those before."""
        await self.world.stop()
        self.world = World(self.folder, settings)
        await self.world.start()

    async def at(self, request: ChargeRequest) -> str:
        """The bank that has executed a charge, and no other has; it is the one that the journal names."""
        (bank,) = [name for name, each in self.referees.items() if await each.movements(id_of(request))]
        assert self.stored(request) == bank
        return bank

    def stored(self, request: ChargeRequest) -> str:
        return self.world.events(request)[0].charge_requested.bank

    async def asked(self, request: ChargeRequest, bank: str) -> list[str]:
        return await self.referees[bank].asked(id_of(request))

    async def spare(self, bank: str) -> list[ChargeRequest]:
        """Have a bank answer nothing about one card until it is spared, and not then either."""
        await self.referees[bank].trouble("token", "error_before", card="tok_mastercard", times=1_000_000)
        stuck = [a_request(card=Card(token="tok_mastercard")) for _ in range(breaker.UNANSWERED_TO_OPEN)]
        await asyncio.gather(*map(self.world.pending, stuck))
        await until(lambda: self.is_spared(bank))
        return stuck

    def is_spared(self, bank: str) -> bool:
        return self.world.running.vitals().bank_breaker_open[bank]


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with contextlib.AsyncExitStack() as stack:
        urls, referees = {}, {}
        for name in ("a", "b"):
            address = await stack.enter_async_context(gateway_mock.serve("127.0.0.1:0", tmp_path / f"bank-{name}.db"))
            urls[name] = f"http://{address}"
            referees[name] = await stack.enter_async_context(Referee(urls[name]))
        street = Street(tmp_path, urls, referees)
        yield street
        await street.world.stop()


# ---------------------------------------------------------------- the choice
async def test_a_charge_goes_to_the_bank_of_the_first_route_that_fits_it_and_what_follows_too(street: Street) -> None:
    """By its currency and its card's brand. The choice is in the journal that operators print."""
    visa = '[[routes]]\ncurrencies = ["EUR"]\nbrands = ["Visa"]\nbanks = { a = 1 }\n'
    await street.start(visa + TO_B)
    for request, bank in (
        (a_request(), "a"),
        (a_request(card=Card(brand="VISA")), "a"),
        (a_request(card=Card(brand="amex")), "b"),
        (a_request(amount=Money(currency_code="USD")), "b"),
    ):
        assert (await street.world.charge(request)).status == CHARGED
        assert await street.at(request) == bank
        currency_code = request.amount.currency_code
        outcome = await street.world.refund(id_of(request), 100, currency_code=currency_code)
        assert outcome.status == OPERATION_EXECUTED
        kinds = {name: [moved.kind for moved in await street.referees[name].movements()] for name in street.urls}
        assert (kinds[bank][-2:], len(kinds[bank]) % 2) == (["charge", "refund"], 0)
        line, *_ = print_journal(SqliteFile(street.world.journal), id_of(request))
        assert f'"bank": "{bank}"' in line


async def test_weights_share_the_charges_by_their_ids(street: Street) -> None:
    """So that a request that was refused before it was stored meets the same choice when it comes again."""
    await street.start("[[routes]]\nbanks = { a = 2, b = 1 }")
    requests = [a_request() for _ in range(60)]
    await asyncio.gather(*map(street.world.charge, requests))
    chosen = [await street.at(request) for request in requests]
    assert set(chosen) == {"a", "b"}
    assert chosen == [Route({"a": 2.0, "b": 1.0}).order(id_of(request))[0] for request in requests]


async def test_the_choice_outlives_a_restart_with_another_rule(street: Street) -> None:
    """Of a charge under way, of a key that comes again, and of a refund."""
    await street.start(TO_A)
    await street.referees["a"].trouble("execute", **HOLD)
    request = a_request()
    assert (await street.world.pending(request)).status == PENDING
    await street.start(TO_B)
    await street.referees["a"].no_more_trouble()
    answer = await street.world.charge(request)
    assert answer.status == CHARGED
    assert answer.outcome_source in (RECOVERED, REPLAYED)  # it may be at rest before the key comes again
    assert (await street.world.refund(id_of(request), 100)).status == OPERATION_EXECUTED
    assert await street.at(request) == "a"
    assert await street.referees["b"].calls() == []
    new = a_request()
    await street.world.charge(new)
    assert await street.at(new) == "b"


async def test_the_charges_of_the_only_bank_are_at_the_one_that_the_file_says(street: Street) -> None:
    """It had no name. Unless the file says which it is, nothing is sent anywhere for them."""
    await street.start_with(COMMAND_BANK_URL=street.urls["a"])
    request = a_request()
    await street.world.charge(request)
    assert street.stored(request) == ""
    await street.start(TO_B)
    assert (await refused(street.world.refund(id_of(request)))).reason == "BANK_UNREACHABLE"
    await street.start(TO_B, head='unnamed = "a"')
    assert (await street.world.refund(id_of(request))).status == OPERATION_EXECUTED
    assert [moved.kind for moved in await street.referees["a"].movements()] == ["charge", "refund"]
    assert await street.referees["b"].calls() == []


@pytest.mark.parametrize("is_charged", [True, False])
async def test_a_charge_that_a_restored_journal_has_forgotten_is_found_at_the_bank_that_was_chosen(
    street: Street, tmp_path: Path, is_charged: bool
) -> None:
    """The rule would choose another one now, which had been passed over. No card is charged at both."""
    await street.start(FIRST_A)
    known = a_request()
    await street.world.charge(known)
    await street.world.stop()
    journal = SqliteFile(street.world.journal)
    journal.backup(tmp_path / "copy.db")
    await street.start(FIRST_A)
    await street.spare("a")
    request = a_request() if is_charged else a_request(card=Card(token="tok_declined"))
    first = await street.world.charge(request)
    assert street.stored(request) == "b"
    await street.world.stop()

    restore_journal(journal, tmp_path / "copy.db", any_file_system=True)
    await street.referees["a"].no_more_trouble()
    await street.referees["b"].trouble("look_up", "error_before", reference=id_of(request), times=1)
    await street.start(FIRST_A)
    assert (await refused(street.world.charge(request))).reason == "BANK_UNREACHABLE"
    again = await street.world.charge(request)
    assert (again.status, again.transaction_id, again.decline_reason) == (
        first.status,
        first.transaction_id,
        first.decline_reason,
    )
    assert street.stored(request) == "b"
    assert await street.asked(request, "a") == []
    assert len(await street.referees["b"].movements(id_of(request))) == is_charged
    asked = await street.asked(known, "b")
    assert (await street.world.charge(known)).status == CHARGED
    assert await street.asked(known, "b") == asked, "the journal knows it"
    new = a_request()
    assert (await street.world.charge(new)).status == CHARGED
    assert await street.at(new) == "a"


# ---------------------------------------------------------------- a bank that is away
async def test_new_charges_pass_over_a_spared_bank_until_one_of_them_finds_it_again(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait at it never get an answer, though the bank serves others again."""
    await street.start(FIRST_A)
    stuck = await street.spare("a")
    passing = a_request()
    assert (await street.world.charge(passing)).status == CHARGED
    assert await street.at(passing) == "b"

    monkeypatch.setattr(breaker, "NEW_CHARGE_SECONDS", 0.1)  # many, since those that are stuck there are probed as well
    await street.start(FIRST_A)
    await until(lambda: street.is_spared("a"))
    requests, charges = [], []
    async with asyncio.timeout(60):
        while street.is_spared("a"):
            requests.append(a_request())
            charges.append(asyncio.create_task(street.world.charge(requests[-1])))
            await asyncio.sleep(0.05)
    assert {answer.status for answer in await asyncio.gather(*charges)} == {CHARGED}
    assert "a" in [await street.at(request) for request in requests]
    assert {street.stored(request) for request in stuck} == {"a"}
    assert street.world.running.vitals().unfinished_charges == len(stuck)


async def test_a_known_key_that_comes_again_and_again_is_not_the_new_charge_that_finds_a_spared_bank(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a client that polls: else it would take the place of those that are new."""
    monkeypatch.setattr(breaker, "NEW_CHARGE_SECONDS", 1.0)
    await street.start(FIRST_A)
    known = a_request()
    await street.world.charge(known)
    await street.spare("a")

    async def poll() -> None:
        while True:
            await street.world.charge(known)

    calls: list[asyncio.Task[Any]] = [asyncio.create_task(poll())]

    async def bank_of_another() -> str:
        """Of a new charge, which may wait there for long: all that hang there are probed in turn."""
        request = a_request()
        calls.append(asyncio.create_task(street.world.charge(request)))
        await until(lambda: bool(street.world.events(request)))
        return street.stored(request)

    banks = [await bank_of_another()]
    while banks[-1] != "a" and len(banks) < 8:
        await asyncio.sleep(2 * breaker.NEW_CHARGE_SECONDS)
        banks.append(await bank_of_another())
    for call in calls:
        call.cancel()
    assert banks[-1] == "a"


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """A bank that takes every request and answers none."""
    while await reader.read(65536):
        pass


async def test_a_bank_that_hangs_takes_no_slot_of_another(street: Street) -> None:
    """Its own are all taken, and more charges wait for them, while charges at the other come to rest one after another."""
    async with listening(silent) as port:
        street.urls["a"] = f"http://127.0.0.1:{port}"
        visa = '[[routes]]\nbrands = ["visa"]\nbanks = { a = 1 }\n'
        await street.start(visa + TO_B, more="calls = 2\n")
        hanging = [asyncio.create_task(street.world.charge(a_request())) for _ in range(6)]
        await until(lambda: street.world.running.vitals().unfinished_charges == len(hanging))
        for _ in range(10):
            request = a_request(card=Card(brand="amex"))
            assert (await street.world.charge(request)).status == CHARGED
            assert await street.at(request) == "b"
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await street.world.stop()


# ---------------------------------------------------------------- a bank that no setting names any more
async def test_charges_at_a_bank_that_is_not_configured_wait_and_hold_up_nothing(street: Street) -> None:
    """The start succeeds, others are charged, nothing new is taken for it, and it needs attention at once, until it is back."""
    await street.start(TO_A)
    rested, under_way = a_request(), a_request()
    await street.world.charge(rested)
    await street.referees["a"].trouble("execute", **HOLD)
    await street.world.pending(under_way)
    await street.world.stop()
    await street.referees["a"].no_more_trouble()
    calls = await street.referees["a"].calls()

    await street.start(TO_B, "b")
    for _ in range(3):
        other = a_request()
        assert (await street.world.charge(other)).status == CHARGED
        assert await street.at(other) == "b"
    assert (await street.world.charge(rested)).status == CHARGED
    assert (await street.world.pending(under_way)).status == PENDING
    stored = len(street.world.events(rested))
    assert (await refused(street.world.refund(id_of(rested)))).reason == "BANK_UNREACHABLE"
    assert len(street.world.events(rested)) == stored
    vitals = street.world.running.vitals()
    assert (vitals.unfinished_charges, vitals.charges_needing_attention) == (1, 1)
    assert vitals.bank_breaker_open == {"b": False}

    assert await street.referees["a"].calls() == calls
    await street.start(TO_B)
    assert (await street.world.charge(under_way)).status == CHARGED
    assert (await street.world.refund(id_of(rested))).status == OPERATION_EXECUTED
    assert street.world.running.vitals().charges_needing_attention == 0
