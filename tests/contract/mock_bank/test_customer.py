"""The customer's step: some cards want it before money moves, and a page takes it."""

import asyncio
import json
import re
import signal
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.mock_bank.client import ORDER, Client, client_of, process, running, until

ASKING: dict[str, str] = {"card": "tok_3ds"}
OPENINGS = pytest.mark.parametrize("kind", ["charge", "authorize"])


async def asked(bank: Client, **changed: object) -> dict[str, Any]:
    """Execute a new opening of a card that asks, and give the answer."""
    token = await bank.token(**(ASKING | changed))
    answer = await bank.execute(token)
    assert answer.status_code == 202
    return dict(answer.json())


async def press(bank: Client, said: dict[str, Any], action: str) -> httpx.Response:
    """Open the page, and press a button of it as a browser does."""
    page = await bank.http.get(said["action_url"])
    (form,) = re.findall(rf'<form method="post" action="([^"]*/{action})"><button>', page.text)
    return await bank.http.post(form)


@OPENINGS
async def test_the_execute_step_asks_the_customer_and_moves_nothing(bank: Client, kind: str) -> None:
    """However often. Every answer about it says where to go, and until when."""
    token = await bank.token(kind=kind, **ASKING)
    assert (await bank.transaction(token))["state"] == "created"
    first = await bank.execute(token)
    assert (first.status_code, first.json()["result"]) == (202, "requires_action")
    assert first.json()["action_url"] == str(bank.http.base_url.join(f"/customer/{token}"))
    known = await bank.transaction(token)
    assert first.json()["action_expires_at"] == known["expires_at"]
    assert (known["state"], known["transaction_id"], known["reason"]) == ("requires_action", None, None)
    assert {key: first.json()[key] for key in first.json() if key != "result"}.items() <= known.items()
    assert (await bank.execute(token, amount=1250, currency="EUR")).json() == first.json()
    assert (await bank.order(kind=kind, **ASKING)).json() == known
    assert (await bank.execute(token, amount=1, currency="EUR")).json() == {"error": "fields_differ"}
    assert await bank.movements() == []


@OPENINGS
async def test_confirming_executes_it_once(bank: Client, kind: str) -> None:
    said = await asked(bank, kind=kind)
    assert (await press(bank, said, "confirm")).status_code == 303
    known = await bank.transaction(said["token"])
    assert known["state"] == "executed"
    assert "action_url" not in known
    assert ("hold_expires_at" in known) == (kind == "authorize")
    for _ in range(2):
        again = await bank.execute(said["token"])
        assert (again.status_code, again.json()["result"]) == (200, "already_executed")
        assert (await bank.http.post(f"/customer/{said['token']}/confirm")).status_code == 303
        assert (await bank.http.post(f"/customer/{said['token']}/refuse")).status_code == 303
    assert [movement["transaction_id"] for movement in await bank.movements()] == [known["transaction_id"]]
    follow = await bank.do("refund" if kind == "charge" else "capture", known["transaction_id"], 1250)
    assert follow["result"] == "executed"


async def test_refusing_declines_it_for_ever(bank: Client) -> None:
    said = await asked(bank)
    assert (await press(bank, said, "refuse")).status_code == 303
    await bank.http.post(f"/customer/{said['token']}/confirm")
    known = await bank.transaction(said["token"])
    assert (known["state"], known["reason"]) == ("declined", "authentication_required")
    assert (await bank.execute(said["token"])).json()["result"] == "declined"
    assert await bank.movements() == []


async def test_a_card_may_be_declined_after_the_step(bank: Client) -> None:
    said = await asked(bank, card="tok_3ds_declined")
    await press(bank, said, "confirm")
    answer = (await bank.execute(said["token"])).json()
    assert (answer["result"], answer["reason"]) == ("declined", "card_declined")
    assert await bank.movements() == []


async def test_calling_off_closes_it_and_the_page_says_so(bank: Client) -> None:
    said = await asked(bank)
    assert (await bank.cancel(said["token"])).json()["state"] == "cancelled"
    await bank.http.post(f"/customer/{said['token']}/confirm")
    assert (await bank.execute(said["token"])).status_code == 410
    assert "called off" in (await bank.http.get(said["action_url"])).text
    assert await bank.movements() == []


@pytest.mark.parametrize("by", ["execute", "look_up", "cancel", "page", "confirm", "refuse"])
async def test_its_time_ends_it_whoever_comes_first(path: Path, by: str) -> None:
    """A later confirmation moves nothing, and the page says why. Another transaction may be opened under its reference."""
    async with running(path) as bank:
        token = (await asked(bank))["token"]
    with closing(sqlite3.connect(path)) as ledger, ledger:
        ledger.execute("UPDATE transactions SET expires_at = 1")
    async with running(path) as bank:
        match by:
            case "execute":
                assert (await bank.execute(token)).json()["error"] == "token_expired"
            case "look_up":
                assert (await bank.transaction(token))["state"] == "expired"
            case "cancel":
                assert (await bank.cancel(token)).json()["state"] == "expired"
            case "page":
                assert "<form" not in (await bank.http.get(f"/customer/{token}")).text
            case _:
                assert (await bank.http.post(f"/customer/{token}/{by}")).status_code == 303
        await bank.http.post(f"/customer/{token}/confirm")
        assert "too late" in (await bank.http.get(f"/customer/{token}")).text
        assert (await bank.transaction(token))["state"] == "expired"
        assert await bank.movements() == []
        assert (await bank.order(**ASKING)).json()["token"] != token


async def test_an_execute_step_that_waited_hears_of_the_step_that_was_taken_meanwhile(bank: Client) -> None:
    said = await asked(bank)
    await bank.fault("execute", "delay", seconds=0.3)
    waiting = asyncio.ensure_future(bank.execute(said["token"]))
    await until(bank.calls, lambda calls: calls[-1]["fault"] == "delay")
    await press(bank, said, "confirm")
    assert (await waiting).json()["result"] == "already_executed"


async def test_of_confirming_refusing_and_calling_off_at_once_one_wins(bank: Client) -> None:
    """And all are told the same afterwards."""
    for number in range(20):
        said = await asked(bank, reference=f"race-{number}")
        token = said["token"]
        await asyncio.gather(
            *(bank.http.post(f"/customer/{token}/{step}") for step in ("confirm", "refuse", "confirm")),
            bank.cancel(token),
            bank.execute(token),
        )
        state = (await bank.transaction(token))["state"]
        moved = [movement for movement in await bank.movements() if movement["token"] == token]
        assert (state, len(moved)) in {("executed", 1), ("declined", 0), ("cancelled", 0)}


async def test_the_step_and_what_it_was_asked_for_survive_kill_9(path: Path) -> None:
    async with process(path) as (bank, address), client_of(address) as client:
        said = await asked(client, return_url="https://shop.example/back")
        confirmed = await asked(client, reference="charge-2")
        await press(client, confirmed, "confirm")
        bank.send_signal(signal.SIGKILL)
        await bank.wait()
    async with running(path) as after:
        assert (await after.transaction(said["token"]))["state"] == "requires_action"
        assert (await after.execute(confirmed["token"])).json()["result"] == "already_executed"
        sent = await after.http.post(f"/customer/{said['token']}/confirm")
        assert sent.headers["location"] == "https://shop.example/back"
        assert len(await after.movements()) == 2


# ---------------------------------------------------------------- the order
async def test_an_opening_may_say_that_the_customer_is_not_there(bank: Client) -> None:
    """This bank asks all the same. Neither member binds the reference, and no answer has them."""
    order = ASKING | {"off_session": True, "return_url": "https://shop.example/back?a=1&b=2"}
    said = await asked(bank, **order)
    assert said.keys().isdisjoint({"off_session", "return_url"})
    assert (await bank.order(**ASKING)).json()["token"] == said["token"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("off_session", value) for value in (None, 1, "true")),
        *(("return_url", value) for value in ("", None, 1, "shop.example", "javascript:alert(1)", "https://a\r\nb: c")),
        *(("return_url", value) for value in ('https://a/"', "https://a/<b>", "https://a b", "https://" + "a" * 2041)),
    ],
)
async def test_a_malformed_member_is_refused(bank: Client, field: str, value: object) -> None:
    answer = await bank.order(**{field: value})
    assert (answer.status_code, answer.json()) == (400, {"error": "bad_request", "field": field})


@pytest.mark.parametrize("field", ["off_session", "return_url"])
async def test_what_follows_an_opening_names_neither(bank: Client, field: str) -> None:
    on = (await bank.open())["transaction_id"]
    answer = await bank.follow("capture", on, **{field: "https://a" if field == "return_url" else True})
    assert (answer.status_code, answer.json()["field"]) == (400, field)


# ---------------------------------------------------------------- the page
class Page(HTMLParser):
    """A page as a strict reader sees it: its tags, and the addresses in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("action", "href", "src")]
        assert not any(name.startswith("on") or name == "style" for name, _ in attributes)


async def test_the_page_shows_the_amount_and_two_buttons_and_loads_nothing(bank: Client) -> None:
    said = await asked(bank, amount=1234567)
    got = await bank.http.get(said["action_url"])
    assert (got.status_code, got.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert "1,234,567 EUR" in got.text
    page = Page(got.text)
    assert page.addresses == [f"/customer/{said['token']}/confirm", f"/customer/{said['token']}/refuse"]
    assert page.tags.count("button") == page.tags.count("form") == 2
    assert {"script", "link", "img", "iframe", "style"}.isdisjoint(page.tags)


@pytest.mark.parametrize("action", ["confirm", "refuse"])
async def test_the_customer_is_sent_back_to_where_the_order_says(bank: Client, action: str) -> None:
    """Without such a place, to the page, which says how it ended."""
    url = "https://shop.example/back?a=1&b=2"
    sent = await press(bank, await asked(bank, return_url=url), action)
    assert (sent.status_code, sent.headers["location"]) == (303, url)
    said = await asked(bank, reference="charge-2")
    sent = await press(bank, said, action)
    page = (await bank.http.get(sent.headers["location"])).text
    assert ("the payment is made" if action == "confirm" else "declined") in page
    assert "<form" not in page


async def test_a_page_of_one_that_is_over_leads_back(bank: Client) -> None:
    """The address is escaped."""
    said = await asked(bank, return_url="https://shop.example/back?a=1&b='2'")
    await press(bank, said, "confirm")
    page = Page((await bank.http.get(said["action_url"])).text)
    assert page.addresses == ["https://shop.example/back?a=1&b='2'"]


async def test_a_token_that_is_not_known_or_not_asked_for_has_nothing_to_confirm(bank: Client) -> None:
    for call in (bank.http.get("/customer/ttok_0"), bank.http.post("/customer/ttok_0/confirm")):
        unknown = await call
        assert (unknown.status_code, unknown.headers["content-type"]) == (404, "text/html; charset=utf-8")
    token = await bank.token(**ASKING)
    await bank.http.post(f"/customer/{token}/confirm")
    assert "nothing to confirm" in (await bank.http.get(f"/customer/{token}")).text
    assert (await bank.transaction(token))["state"] == "created"
    plain = await bank.token(reference="charge-2")
    await bank.http.post(f"/customer/{plain}/confirm")
    assert (await bank.transaction(plain))["state"] == "created"


async def test_a_step_with_a_body_is_refused(bank: Client) -> None:
    said = await asked(bank)
    answer = await bank.http.post(f"/customer/{said['token']}/confirm", content=b"a=b")
    assert (answer.status_code, answer.json()["field"]) == (400, "body")
    assert (await bank.transaction(said["token"]))["state"] == "requires_action"


async def test_the_customers_calls_are_not_in_the_log_of_the_clients(bank: Client) -> None:
    said = await asked(bank)
    await press(bank, said, "confirm")
    assert [call["path"].rpartition("/")[2] for call in await bank.calls()] == ["transactions", "execute"]


async def test_the_time_at_which_it_gives_up_is_that_of_the_token(path: Path) -> None:
    async with running(path, token_seconds=60) as bank:
        said = await asked(bank)
        left = datetime.fromisoformat(said["action_expires_at"]) - datetime.now(UTC)
        assert 0 < left.total_seconds() <= 60


async def test_a_one_step_payment_with_such_a_card_is_declined(bank: Client) -> None:
    """Nothing could be asked for there: the order is executed at once."""
    answer = await bank.http.post(
        "/one-step/payments", headers={"Idempotency-Key": "key-1"}, content=json.dumps(ORDER | ASKING)
    )
    assert answer.json()["state"] == "declined"
    assert await bank.movements() == []
