"""The kinds of transactions: what an authorize holds, what may follow an opening, and for how much."""

import asyncio
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.contract.mock_bank.client import ORDER, Client, running

# What is done to an opening of 1250: kind, amount, and whether it is a final capture.
Done = tuple[str, int] | tuple[str, int, bool]

FOLLOWING = ("capture", "void", "refund")


async def done_to(bank: Client, opening: Mapping[str, Any], operations: Sequence[Done]) -> list[str]:
    """Do one after the other, and give each result: executed, or the reason of its decline."""
    results = []
    for kind, amount, *final in operations:
        said = await bank.do(kind, opening["transaction_id"], amount, **({"final": True} if final else {}))
        results.append(said["reason"] or said["result"])
    return results


async def test_an_authorize_takes_a_hold_for_a_week_and_every_answer_says_until_when(bank: Client) -> None:
    opened = (await bank.order(kind="authorize")).json()
    assert (opened["kind"], opened["state"], "hold_expires_at" in opened) == ("authorize", "created", False)
    executed = (await bank.execute(opened["token"])).json()
    assert executed["result"] == "executed"
    (movement,) = await bank.movements()
    held_for = datetime.fromisoformat(executed["hold_expires_at"]) - datetime.fromisoformat(movement["executed_at"])
    assert held_for == timedelta(days=7)
    repeated, again = (await bank.execute(opened["token"])).json(), (await bank.order(kind="authorize")).json()
    looked_up = await bank.transaction(opened["token"])
    assert {said["hold_expires_at"] for said in (repeated, again, looked_up)} == {executed["hold_expires_at"]}
    assert "hold_expires_at" not in await bank.open("charge")


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_the_answers_about_one_that_follows_name_what_it_acts_on(bank: Client, kind: str) -> None:
    """And the card of its opening; for a capture also whether it is final."""
    opening = await bank.open("authorize")
    if kind == "refund":
        await bank.do("capture", opening["transaction_id"], 1250)
    opened = (await bank.follow(kind, opening["transaction_id"])).json()
    members = {
        "token": opened["token"],
        "reference": f"{kind}-1",
        "kind": kind,
        "card": "tok_visa",
        "amount": 1250,
        "currency": "EUR",
        "on": opening["transaction_id"],
        **({"final": False} if kind == "capture" else {}),
    }
    for said in (opened, await bank.transaction(opened["token"])):
        assert said.pop("expires_at").endswith("Z")
        assert said == {**members, "state": "created", "transaction_id": None, "reason": None}
    executed = (await bank.execute(opened["token"])).json()
    assert executed["transaction_id"].startswith("txn_")
    assert executed["transaction_id"] != opening["transaction_id"]
    assert executed == {
        **members,
        "result": "executed",
        "transaction_id": executed["transaction_id"],
        "reason": None,
    }
    assert (await bank.execute(opened["token"])).json() == executed | {"result": "already_executed"}


async def test_the_statement_lists_each_kind_in_the_order_of_execution(bank: Client) -> None:
    """A hold that was taken and one that was released too; and what each that follows acts on."""
    hold, charge = await bank.open("authorize"), await bank.open("charge")
    on = hold["transaction_id"]
    assert await done_to(bank, hold, [("capture", 400), ("void", 850), ("refund", 150)]) == ["executed"] * 3
    await bank.do("refund", charge["transaction_id"], 1250)
    assert [(m["kind"], m["minor_units"], m.get("on")) for m in await bank.movements()] == [
        ("authorize", 1250, None),
        ("charge", 1250, None),
        ("capture", 400, on),
        ("void", 850, on),
        ("refund", 150, on),
        ("refund", 1250, charge["transaction_id"]),
    ]


@pytest.mark.parametrize(
    ("opening", "operations"),
    [
        ("charge", [("refund", 1000), ("refund", 250)]),
        ("authorize", [("capture", 1250), ("refund", 1250)]),
        ("authorize", [("capture", 400), ("capture", 850), ("refund", 1250)]),
        ("authorize", [("capture", 400), ("refund", 400), ("capture", 850), ("refund", 850)]),
        ("authorize", [("capture", 400), ("void", 850), ("refund", 400)]),
        ("authorize", [("capture", 400, True), ("refund", 400)]),
        ("authorize", [("void", 1250)]),
    ],
)
async def test_what_was_held_is_captured_or_released_and_what_was_captured_refunded(
    bank: Client, opening: str, operations: Sequence[Done]
) -> None:
    """In parts, to the last minor unit."""
    assert await done_to(bank, await bank.open(opening), operations) == ["executed"] * len(operations)


@pytest.mark.parametrize(
    ("opening", "operations", "one_more", "reason"),
    [
        ("charge", [], ("void", 1250), "nothing_held"),
        ("charge", [], ("capture", 1), "nothing_held"),
        ("charge", [("refund", 1250)], ("capture", 1), "nothing_held"),
        ("authorize", [], ("refund", 1), "not_captured"),
        ("authorize", [("void", 1250)], ("refund", 1), "not_captured"),
        ("authorize", [("void", 1250)], ("capture", 1), "released"),
        ("authorize", [("void", 1250)], ("void", 1250), "released"),
        ("authorize", [("capture", 400, True)], ("capture", 1), "released"),
        ("authorize", [("capture", 400, True)], ("void", 850), "released"),
        ("authorize", [("capture", 400), ("capture", 850)], ("capture", 1), "released"),
        ("authorize", [("capture", 1250)], ("void", 1250), "released"),
        ("authorize", [], ("capture", 1251), "more_than_authorized"),
        ("authorize", [("capture", 400)], ("capture", 851), "more_than_authorized"),
        ("authorize", [], ("void", 1249), "amount_differs"),
        ("authorize", [("capture", 400)], ("void", 1250), "amount_differs"),
        ("authorize", [("capture", 400)], ("refund", 401), "more_than_captured"),
        ("authorize", [("capture", 400), ("refund", 300)], ("refund", 101), "more_than_captured"),
        ("charge", [], ("refund", 1251), "more_than_captured"),
        ("charge", [("refund", 1250)], ("refund", 1), "more_than_captured"),
    ],
)
async def test_what_the_books_do_not_allow_is_declined_and_changes_nothing(
    bank: Client, opening: str, operations: Sequence[Done], one_more: Done, reason: str
) -> None:
    """With the reason, and for ever."""
    opened = await bank.open(opening)
    assert await done_to(bank, opened, operations) == ["executed"] * len(operations)
    before = await bank.movements()
    declined = await bank.do(one_more[0], opened["transaction_id"], one_more[1])
    assert (declined["result"], declined["reason"], declined["transaction_id"]) == ("declined", reason, None)
    assert (await bank.execute(declined["token"])).json() == declined
    assert (await bank.transaction(declined["token"]))["state"] == "declined"
    assert await bank.movements() == before


async def test_a_decline_stays_though_the_books_would_allow_it_later(bank: Client) -> None:
    """And it is not counted as money that went."""
    hold = await bank.open("authorize")
    early = await bank.do("refund", hold["transaction_id"], 1250)
    assert early["reason"] == "not_captured"
    await bank.do("capture", hold["transaction_id"], 1250)
    assert (await bank.execute(early["token"])).json() == early
    assert (await bank.do("refund", hold["transaction_id"], 1250))["result"] == "executed"


async def test_the_books_are_asked_when_it_is_executed_not_when_it_is_opened(bank: Client) -> None:
    """Two refunds of all were opened in good time; the second to be executed is one too many."""
    charge = await bank.open("charge")
    first, second = [
        (await bank.follow("refund", charge["transaction_id"], reference=f"refund-{n}")).json()["token"] for n in (8, 9)
    ]
    assert (await bank.execute(second)).json()["result"] == "executed"
    assert (await bank.execute(first)).json()["reason"] == "more_than_captured"


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_a_card_declines_one_kind_and_the_money_stays_where_it_is(bank: Client, kind: str) -> None:
    """All else is approved for that card. The bank's own reason comes before the card's."""
    hold = await bank.open("authorize", card=f"tok_{kind}_declined")
    if kind == "refund":
        await bank.do("capture", hold["transaction_id"], 1250)
    declined = await bank.do(kind, hold["transaction_id"], 1250)
    assert (declined["result"], declined["reason"]) == ("declined", "card_declined")
    others = {"capture": [("void", 1250)], "void": [("capture", 1250), ("refund", 1250)], "refund": []}[kind]
    assert await done_to(bank, hold, others) == ["executed"] * len(others)
    assert (await bank.do(kind, hold["transaction_id"], 1251))["reason"] != "card_declined"
    assert (await bank.open("charge", card=f"tok_{kind}_declined"))["result"] == "executed"


@pytest.mark.parametrize("card", ["tok_declined", "tok_insufficient_funds", "tok_expired_card"])
async def test_a_declined_authorize_holds_nothing(bank: Client, card: str) -> None:
    declined = await bank.open("authorize", card=card)
    assert (declined["result"], "hold_expires_at" in declined) == ("declined", False)
    assert await bank.movements() == []


# The token step


async def test_only_an_executed_opening_can_be_followed(bank: Client) -> None:
    """In its own currency. Nothing is opened otherwise."""
    open_hold = await bank.token(kind="authorize")
    charge = await bank.open("charge")
    refund = await bank.do("refund", charge["transaction_id"], 1)
    for on in ("txn_none", open_hold, charge["token"], refund["transaction_id"]):
        refused = await bank.follow("refund", on)
        assert (refused.status_code, refused.json()) == (422, {"error": "transaction_unknown"})
    refused = await bank.follow("refund", charge["transaction_id"], currency="USD")
    assert (refused.status_code, refused.json()) == (422, {"error": "currency_differs"})
    assert (await bank.http.get("/transactions?reference=refund-1")).status_code == 404


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "void"},
        {"kind": "refund"},
        {"on": "another"},
        {"on": "txn_none"},
        {"amount": 1249},
        {"currency": "USD"},
        {"final": True},
    ],
)
@pytest.mark.parametrize("expired", [False, True], ids=["open", "expired"])
async def test_a_known_reference_with_another_order_is_refused(
    bank: Client, changed: dict[str, object], expired: bool
) -> None:
    """Whether its transaction is open or expired; and the transaction stays unchanged."""
    hold, another = await bank.open("authorize"), await bank.open("authorize")
    order = {"reference": "capture-1", "kind": "capture", "on": hold["transaction_id"]}
    token = (await bank.follow(**order)).json()["token"]
    if expired:
        await bank.fault("look_up", "expire_token")
    before = await bank.transaction(token)
    if changed.get("on") == "another":
        changed = {"on": another["transaction_id"]}
    refused = await bank.follow(**(order | changed))
    assert (refused.status_code, refused.json()) == (409, {"error": "reference_reused"})
    assert await bank.transaction(token) == before


async def test_an_opening_and_its_kind_bind_a_reference_too(bank: Client) -> None:
    """A charge is no authorize, and is not followed under its own reference."""
    charge = await bank.open("charge", reference="charge-1")
    assert (await bank.order(kind="authorize")).json() == {"error": "reference_reused"}
    refused = await bank.follow("refund", charge["transaction_id"], reference="charge-1")
    assert refused.json() == {"error": "reference_reused"}
    assert (await bank.order(kind="charge")).json()["transaction_id"] == charge["transaction_id"]


@pytest.mark.parametrize("kind", FOLLOWING)
async def test_a_known_reference_of_one_that_follows_gives_it_back_as_it_is_now(bank: Client, kind: str) -> None:
    """Fifty at once open one. Only an expired one makes room for another."""
    hold = await bank.open("authorize")
    await bank.do("capture", hold["transaction_id"], 250)
    order = hold["transaction_id"], {"amount": 250 if kind == "refund" else 1000}
    opened = await asyncio.gather(*(bank.follow(kind, order[0], **order[1]) for _ in range(50)))
    (first,) = {said.json()["token"] for said in opened}
    await bank.fault("execute", "expire_token")
    assert (await bank.execute(first)).status_code == 410
    (second,) = {said.json()["token"] for said in [await bank.follow(kind, order[0], **order[1]) for _ in range(2)]}
    assert second != first
    executed = (await bank.execute(second)).json()
    assert executed["result"] == "executed"
    again = (await bank.follow(kind, order[0], **order[1])).json()
    assert (again["token"], again["state"], again["transaction_id"]) == (second, "executed", executed["transaction_id"])


FOLLOWER = {"reference": "r", "kind": "capture", "on": "txn_1", "amount": 1, "currency": "EUR"}


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (ORDER | {"kind": "dispute"}, "kind"),
        (ORDER | {"kind": None}, "kind"),
        (ORDER | {"kind": ["charge"]}, "kind"),
        (ORDER | {"on": "txn_1"}, "on"),
        (ORDER | {"final": False}, "final"),
        (ORDER | {"kind": "authorize", "final": True}, "final"),
        (FOLLOWER | {"card": "tok_visa"}, "card"),
        (FOLLOWER | {"kind": "void", "final": True}, "final"),
        (FOLLOWER | {"kind": "refund", "final": False}, "final"),
        (FOLLOWER | {"final": 1}, "final"),
        (FOLLOWER | {"final": None}, "final"),
        *[(FOLLOWER | {"on": on}, "on") for on in ("", 1, None, "a" * 256, "\ud800", "a\n")],
        *[({k: v for k, v in FOLLOWER.items() if k != key}, key) for key in ("reference", "on", "amount", "currency")],
        (FOLLOWER | {"amount": 0}, "amount"),
        (FOLLOWER | {"more": 1}, "body"),
    ],
)
async def test_a_malformed_order_is_refused_with_the_name_of_its_field(
    bank: Client, order: Mapping[str, object], field: str
) -> None:
    refused = await bank.http.post("/transactions", content=json.dumps(order))
    assert (refused.status_code, refused.json()) == (400, {"error": "bad_request", "field": field})


async def test_amount_and_currency_of_one_that_follows_are_compared_if_given(bank: Client) -> None:
    """They are its own, not its opening's."""
    charge = await bank.open("charge")
    token = (await bank.follow("refund", charge["transaction_id"], amount=250)).json()["token"]
    for other in ({"amount": 1250, "currency": "EUR"}, {"amount": 250, "currency": "USD"}):
        assert (await bank.execute(token, **other)).json() == {"error": "fields_differ"}
    assert (await bank.execute(token, amount=250, currency="EUR")).json()["result"] == "executed"


# Many at once


async def test_of_a_hundred_refunds_at_once_as_many_succeed_as_there_is_money(bank: Client) -> None:
    """Each of 30 from a charge of 1250: forty-one, and fifty-nine are declined."""
    charge = await bank.open("charge")
    said = await asyncio.gather(*(bank.do("refund", charge["transaction_id"], 30) for _ in range(100)))
    assert [answer["reason"] for answer in said].count(None) == 41
    assert [answer["reason"] for answer in said].count("more_than_captured") == 59
    refunds = [movement for movement in await bank.movements() if movement["kind"] == "refund"]
    assert {m["transaction_id"] for m in refunds} == {a["transaction_id"] for a in said if a["transaction_id"]}
    assert sum(movement["minor_units"] for movement in refunds) == 1230
    assert await done_to(bank, charge, [("refund", 21), ("refund", 20)]) == ["more_than_captured", "executed"]


async def test_captures_and_voids_at_once_never_take_more_than_was_held(bank: Client) -> None:
    """Either the void of all is the first of all, or it is declined."""
    for _ in range(5):
        hold = await bank.open("authorize", amount=100)
        on = hold["transaction_id"]
        await asyncio.gather(
            bank.do("void", on, 100), bank.do("void", on, 100), *(bank.do("capture", on, 40) for _ in range(5))
        )
        moved = [(m["kind"], m["minor_units"]) for m in await bank.movements() if m.get("on") == on]
        assert moved in ([("void", 100)], [("capture", 40), ("capture", 40)])


async def test_fifty_executions_of_one_refund_at_once_move_the_money_once(bank: Client) -> None:
    """One says executed, the others already executed, all the same transaction id."""
    charge = await bank.open("charge")
    token = (await bank.follow("refund", charge["transaction_id"], amount=30)).json()["token"]
    said = [response.json() for response in await asyncio.gather(*(bank.execute(token) for _ in range(50)))]
    assert sorted(answer["result"] for answer in said) == ["already_executed"] * 49 + ["executed"]
    assert {answer["transaction_id"] for answer in said} == {(await bank.movements())[1]["transaction_id"]}


# The hold's time


async def test_after_its_time_a_hold_gives_nothing_and_what_was_captured_stays_refundable(path: Path) -> None:
    """Its time is the ledger's: a later bank with other settings has no say in it."""
    async with running(path) as bank:
        hold = await bank.open("authorize", reference="hold")
        assert await done_to(bank, hold, [("capture", 400)]) == ["executed"]
    async with running(path, hold_seconds=0) as bank:
        assert (await bank.do("capture", hold["transaction_id"], 1, reference="in-time"))["result"] == "executed"
    with closing(sqlite3.connect(path)) as ledger, ledger:  # A week goes by.
        ledger.execute("UPDATE transactions SET hold_expires_at = hold_expires_at - 604800000 WHERE kind = 'authorize'")
    async with running(path) as bank:
        late = [await bank.do(kind, hold["transaction_id"], n, reference=f"late-{n}") for kind, n in LATE]
        assert [said["reason"] for said in late] == ["authorization_expired"] * 3
        assert (await bank.do("refund", hold["transaction_id"], 401, reference="back"))["result"] == "executed"


# The last is too much; that the time is over comes first.
LATE = (("capture", 1), ("void", 849), ("capture", 850))


async def test_with_no_time_each_hold_lapses_at_once(path: Path) -> None:
    """One that was released before is called released, whatever the time."""
    async with running(path) as bank:
        voided = await bank.open("authorize", reference="voided")
        await bank.do("void", voided["transaction_id"], 1250)
    async with running(path, hold_seconds=0) as bank:
        hold = await bank.open("authorize")
        assert await done_to(bank, hold, [("capture", 1), ("void", 1250)]) == ["authorization_expired"] * 2
        await bank.fault("execute", "expire_hold")
        declined = await bank.do("capture", voided["transaction_id"], 1, reference="late")
        assert declined["reason"] == "released"


async def test_the_statement_comes_in_parts(bank: Client) -> None:
    """By the time of the execution, after a number, and no more than are wanted; of each of the two banks."""
    opened = [await bank.open("charge") for _ in range(5)]
    span = "from=2000-01-01T00:00:00.000Z&to=2100-01-01T00:00:00.000Z"
    seen, after, has_more = list[str](), 0, True
    while has_more:
        part = (await bank.http.get(f"/statement?{span}&after={after}&limit=2")).raise_for_status().json()
        assert 1 <= len(part["movements"]) <= 2
        seen += [movement["transaction_id"] for movement in part["movements"]]
        after, has_more = part["movements"][-1]["n"], part["has_more"]
    assert seen == [each["transaction_id"] for each in opened]
    whole = (await bank.http.get("/statement")).json()["movements"]
    assert [movement["transaction_id"] for movement in whole] == seen
    before = "from=2000-01-01T00:00:00.000Z&to=2001-01-01T00:00:00.000Z"
    for path in (f"/statement?{before}", f"/one-step/statement?{span}"):
        assert (await bank.http.get(f"{path}&after=0&limit=2")).json() == {"movements": [], "has_more": False}
    for query, field in (
        ("after=0", "query"),
        (f"{span}&after=x&limit=2", "after"),
        (f"{span}&after=0&limit=1001", "limit"),
        ("from=today&to=2100-01-01T00:00:00.000Z&after=0&limit=2", "from"),
    ):
        refused = await bank.http.get(f"/statement?{query}")
        assert (refused.status_code, refused.json()["field"]) == (400, field)
