"""The mock bank's other API: an order is executed at once, and its key is remembered for a time."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.mock_bank.client import NO_ANSWER_SECONDS, ORDER, Client, client_of, process, running

PAYMENTS = "/one-step/payments"
FOLLOWING = {"capture": "authorize", "void": "authorize", "refund": "charge"}


async def pay(bank: Client, key: str = "key-1", **changed: object) -> httpx.Response:
    order = {name: said for name, said in (ORDER | changed).items() if said is not None}
    return await bank.http.post(PAYMENTS, content=json.dumps(order), headers={"Idempotency-Key": key})


async def cancel(bank: Client, key: str = "key-1", **changed: object) -> httpx.Response:
    return await bank.http.post(f"{PAYMENTS}/{key}/cancel", content=json.dumps(ORDER | changed))


async def newest(bank: Client, reference: str = "charge-1") -> httpx.Response:
    return await bank.http.get(PAYMENTS, params={"reference": reference})


async def paid(bank: Client, key: str = "key-1", **changed: object) -> dict[str, Any]:
    return dict((await pay(bank, key, **changed)).raise_for_status().json())


def age(path: Path, seconds: float) -> None:
    """Make all payments older. The bank is down meanwhile."""
    with closing(sqlite3.connect(path)) as ledger, ledger:
        ledger.execute("UPDATE payments SET closed_at = closed_at - ?", (round(seconds * 1000),))


# ---------------------------------------------------------------- a key
async def test_a_key_that_comes_again_gives_its_payment(bank: Client) -> None:
    """Concurrently too: there is one payment, of which one answer says that it is not saved."""
    answers = await asyncio.gather(*[paid(bank) for _ in range(12)])
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 11
    (answer,) = {json.dumps(answer): answer for answer in answers}.values()
    assert answer == ORDER | {
        "key": "key-1",
        "state": "executed",
        "kind": "charge",
        "transaction_id": answer["transaction_id"],
        "reason": None,
    }
    assert [one["transaction_id"] for one in await bank.movements()] == [answer["transaction_id"]]
    assert (await newest(bank)).json() == answer


@pytest.mark.parametrize(
    "changed", [{"amount": 1}, {"currency": "USD"}, {"card": "tok_mastercard"}, {"kind": "authorize"}]
)
async def test_a_key_is_bound_to_its_order(bank: Client, changed: dict[str, Any]) -> None:
    await paid(bank)
    await cancel(bank, "key-2")
    for refused in (
        await pay(bank, **changed),
        await pay(bank, reference="charge-2"),
        await cancel(bank, **changed),
        await pay(bank, "key-2", **changed),
    ):
        assert (refused.status_code, refused.json()) == (422, {"error": "key_reused"})
    assert len(await bank.movements()) == 1


async def test_a_forgotten_key_charges_the_card_again(path: Path) -> None:
    """After a day, or what was ordered; the reference binds nothing, and the look-up tells the newer payment."""
    async with running(path) as bank:
        first = await paid(bank)
    age(path, 24 * 3600 - 60)
    async with running(path) as bank:
        assert (await paid(bank))["transaction_id"] == first["transaction_id"]
    age(path, 60)
    async with running(path) as bank:
        assert (await newest(bank)).json()["transaction_id"] == first["transaction_id"], "the payment is not forgotten"
        second = await paid(bank)
        assert not second["replayed"]
        assert [(one["reference"], one["transaction_id"]) for one in await bank.movements()] == [
            ("charge-1", first["transaction_id"]),
            ("charge-1", second["transaction_id"]),
        ]
        assert (await newest(bank)).json()["transaction_id"] == second["transaction_id"]
    async with running(path, key_seconds=0) as bank:
        assert not (await paid(bank))["replayed"]
        assert len(await bank.movements()) == 3


@pytest.mark.parametrize(
    ("card", "reason"), [("tok_insufficient_funds", "insufficient_funds"), ("tok_x", "card_unknown")]
)
async def test_a_decline_is_saved_too(bank: Client, card: str, reason: str) -> None:
    for is_saved in (False, True):
        answer = await paid(bank, card=card)
        assert (answer["state"], answer["reason"], answer["replayed"]) == ("declined", reason, is_saved)
    assert await bank.movements() == []


@pytest.mark.parametrize("key", ["", "k" * 256, "a key"])
async def test_an_order_needs_a_key(bank: Client, key: str) -> None:
    headers = {"Idempotency-Key": key} if key else {}
    refused = await bank.http.post(PAYMENTS, content=json.dumps(ORDER), headers=headers)
    assert (refused.status_code, refused.json()) == (400, {"error": "bad_request", "field": "Idempotency-Key"})


# ---------------------------------------------------------------- calling off
async def test_a_key_that_was_called_off_is_closed_for_ever(path: Path) -> None:
    async with running(path) as bank:
        for _ in range(2):
            closed = await cancel(bank)
            assert (closed.status_code, closed.json()["state"]) == (200, "cancelled")
        assert (await newest(bank)).json() == closed.json()
    age(path, 365 * 24 * 3600)
    async with running(path) as bank:
        late = await pay(bank)
        assert (late.status_code, late.json()) == (410, closed.json() | {"error": "key_cancelled"})
        assert await bank.movements() == []


@pytest.mark.parametrize(("card", "state"), [("tok_visa", "executed"), ("tok_declined", "declined")])
async def test_what_is_done_is_not_called_off(bank: Client, card: str, state: str) -> None:
    done = await paid(bank, card=card)
    del done["replayed"]
    assert (await cancel(bank, card=card)).json() == done
    assert done["state"] == state


async def test_a_key_that_is_called_off_after_it_was_forgotten_hides_no_payment(path: Path) -> None:
    """The bank does not know any more that the key was used. Its look-up tells the payment."""
    async with running(path, key_seconds=0) as bank:
        done = await paid(bank)
        assert (await cancel(bank)).json()["state"] == "cancelled"
        assert (await newest(bank)).json()["transaction_id"] == done["transaction_id"]


# ---------------------------------------------------------------- what follows
@pytest.mark.parametrize(("kind", "opening"), FOLLOWING.items())
async def test_what_follows_acts_on_a_payment(bank: Client, kind: str, opening: str) -> None:
    """By the rules of the two steps. A payment of the two steps is unknown here."""
    on = (await paid(bank, "opening", reference="opening", kind=opening))["transaction_id"]
    order = {"kind": kind, "card": None, "on": on}
    first = await paid(bank, "key-2", reference="following", **order)
    assert (first["state"], first["card"], first["on"]) == ("executed", "tok_visa", on)
    again = await paid(bank, "key-3", reference="another", **order)
    assert again["state"] == "declined"
    assert [(one["kind"], one.get("on")) for one in await bank.movements()] == [(opening, None), (kind, on)]
    for wrong, error in (
        ({"on": "txn_of_nobody"}, "transaction_unknown"),
        ({"on": (await bank.open(opening))["transaction_id"]}, "transaction_unknown"),
        ({"currency": "USD"}, "currency_differs"),
    ):
        refused = await pay(bank, "key-4", reference="wrong", **order | wrong)
        assert (refused.status_code, refused.json()) == (422, {"error": error})
    assert (await newest(bank, "wrong")).json() == {"error": "reference_unknown", "reference": "wrong"}


async def test_a_hold_lapses_and_is_captured_in_parts(path: Path) -> None:
    async with running(path, hold_seconds=3600) as bank:
        hold = await paid(bank, "hold", kind="authorize")
        assert "hold_expires_at" in hold
        part = {"kind": "capture", "card": None, "on": hold["transaction_id"], "amount": 500}
        assert (await paid(bank, "part-1", reference="1", **part))["final"] is False
        await bank.fault("execute", "expire_hold")
        late = await paid(bank, "part-2", reference="2", **part)
        assert (late["state"], late["reason"]) == ("declined", "authorization_expired")
        assert (await newest(bank)).json()["hold_expires_at"] < hold["hold_expires_at"]


# ---------------------------------------------------------------- faults and the process
async def test_faults_are_ordered_as_for_the_two_steps(bank: Client) -> None:
    """By the card of the opening, too; and the log of calls tells of them."""
    charge = await paid(bank)
    await bank.fault("execute", "lose_answer", card="tok_visa", kind="refund")
    refund = {"kind": "refund", "card": None, "on": charge["transaction_id"], "amount": 1}
    with pytest.raises(httpx.RemoteProtocolError):
        await pay(bank, "key-2", reference="refund-1", **refund)
    assert (await paid(bank, "key-2", reference="refund-1", **refund))["replayed"]
    await bank.fault("look_up", "forget_token")
    assert (await newest(bank)).json() == {"error": "reference_unknown", "reference": "charge-1"}
    await bank.fault("execute", "odd_transaction_id", transaction_id="odd")
    assert (await paid(bank, "key-3", reference="charge-3"))["transaction_id"] == "odd"
    await bank.fault("execute", "contradict")
    assert (await paid(bank))["state"] == "declined"
    await bank.fault("cancel", "wrong_token")
    assert (await cancel(bank)).json()["key"] != "key-1"
    await bank.fault("execute", "hang_before")
    with pytest.raises(httpx.ReadTimeout):
        await bank.http.post(PAYMENTS, json=ORDER, headers={"Idempotency-Key": "key-4"}, timeout=NO_ANSWER_SECONDS)
    assert [(call["reference"], call["token"], call["kind"], call["fault"]) for call in await bank.calls()] == [
        ("charge-1", "key-1", "charge", None),
        ("refund-1", "key-2", "refund", "lose_answer"),
        ("refund-1", "key-2", "refund", None),
        ("charge-1", "key-1", "charge", "forget_token"),
        ("charge-3", "key-3", "charge", "odd_transaction_id"),
        ("charge-1", "key-1", "charge", "contradict"),
        ("charge-1", "key-1", "charge", "wrong_token"),
        ("charge-1", "key-4", "charge", "hang_before"),
    ]


@pytest.mark.parametrize(("fault", "moved"), [("stop_before", 0), ("stop_after", 1)])
async def test_a_payment_survives_the_death_of_the_bank(path: Path, fault: str, moved: int) -> None:
    """Its key is remembered by the next process, whose memory is a setting."""
    async with process(path) as (_, address), client_of(address) as bank:
        await bank.fault("execute", fault)
        with pytest.raises(httpx.RemoteProtocolError):
            await pay(bank)
    async with process(path) as (_, address), client_of(address) as bank:
        assert len(await bank.movements()) == moved
        assert (await paid(bank))["replayed"] == bool(moved)
        assert len(await bank.movements()) == 1
    async with process(path, GATEWAY_MOCK_KEY_SECONDS="0") as (_, address), client_of(address) as bank:
        assert not (await paid(bank))["replayed"]
