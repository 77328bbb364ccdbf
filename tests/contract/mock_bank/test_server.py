"""The mock bank as a server and as a process: its wire, its end, and its ledger after each."""

import asyncio
import json
import signal
import sqlite3
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway_mock import serve
from gateway_mock.schema import LedgerUnusable
from tests.contract.mock_bank.client import Client, client_of, process, raw, running, until

# The wire


@pytest.mark.parametrize(
    ("request_head", "body", "status"),
    [
        (b"POST /transactions HTTP/1.1\r\nhost: a\r\ncontent-length: 70000\r\n\r\n", b"x" * 70_000, b"413"),
        (b"GET /calls HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", b"", b"431"),
        (b"GET /" + b"z" * 600 + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"", b"414"),
        (b"nonsense\r\n\r\n", b"", b"400"),
    ],
)
async def test_a_request_that_is_too_large_or_no_http_is_refused_and_its_connection_closed(
    bank: Client, request_head: bytes, body: bytes, status: bytes
) -> None:
    """Other connections are still served."""
    assert (await raw(bank, request_head + body)).startswith(b"HTTP/1.1 " + status)
    assert (await bank.order()).status_code == 200


async def test_a_connection_is_used_again(bank: Client) -> None:
    """Two requests sent together over one connection get two answers, in order; HEAD gets no body."""
    received = await raw(
        bank,
        b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n"
        b"HEAD /statement HTTP/1.1\r\nhost: a\r\n\r\n"
        b"GET /statement HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    assert [answer[:3] for answer in received.split(b"HTTP/1.1 ")] == [b"", b"404", b"404", b"200"]
    assert received.endswith(b'{"movements":[]}')
    assert received.count(b"not_found") == 1


async def test_a_request_at_work_is_answered_when_the_bank_stops(path: Path) -> None:
    """Idle connections do not delay the stop, though it has an hour."""
    async with AsyncExitStack() as clients:
        async with serve("127.0.0.1:0", path, stop_seconds=3_600.0) as address:
            client = await clients.enter_async_context(client_of(address))
            token = await client.token()
            await client.fault("execute", "delay", seconds=0.1)
            at_work = asyncio.create_task(client.execute(token))
            await until(client.faults, lambda faults: faults[0]["fired"] == 1)
        assert (await at_work).json()["result"] == "executed"
        with pytest.raises(httpx.ConnectError):
            await client.movements()


# The process


async def test_answered_work_survives_kill_9(path: Path) -> None:
    """Open, executed and declined transactions are unchanged, and the statement is complete."""
    async with process(path) as (bank, address), client_of(address) as client:
        tokens = await asyncio.gather(*(client.token(reference=f"charge-{n}") for n in range(20)))
        await asyncio.gather(*(client.execute(token) for token in tokens[:10]))
        await client.execute(await client.token(reference="no", card="tok_declined"))
        before = [await client.transaction(token) for token in tokens], await client.movements()
        bank.kill()
        assert await bank.wait() == -signal.SIGKILL
    async with running(path) as after:
        assert ([await after.transaction(token) for token in tokens], await after.movements()) == before
        assert (await after.order(reference="no", card="tok_declined")).json()["state"] == "declined"


async def test_the_books_survive_kill_9(path: Path) -> None:
    """It comes in the midst of refunds and captures. No money is there twice or lost, and what is left can still be had."""
    async with process(path) as (bank, address), client_of(address) as client:
        charge, hold = await client.open("charge"), await client.open("authorize")
        said: list[dict[str, Any]] = []

        async def do(kind: str, on: object) -> None:
            with suppress(httpx.TransportError):
                said.append(await client.do(kind, on, 10))

        doing = [
            asyncio.create_task(do(kind, opening["transaction_id"]))
            for _ in range(50)
            for kind, opening in (("refund", charge), ("capture", hold))
        ]
        await until(client.movements, lambda movements: len(movements) > 20)
        bank.kill()
        await asyncio.gather(*doing)
        assert await bank.wait() == -signal.SIGKILL
    async with running(path) as after:
        movements = await after.movements()
        assert {answer["transaction_id"] for answer in said} <= {movement["transaction_id"] for movement in movements}
        for kind, opening in (("refund", charge), ("capture", hold)):
            left = 1250 - sum(movement["minor_units"] for movement in movements if movement["kind"] == kind)
            assert 0 < left < 1250
            one_more = await after.do(kind, opening["transaction_id"], left + 1, reference=f"more-{kind}")
            assert one_more["result"] == "declined"
            the_rest = await after.do(kind, opening["transaction_id"], left, reference=f"rest-{kind}")
            assert the_rest["result"] == "executed"


# The ledgers of the versions before


def write_ledger(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as ledger:
        ledger.executescript((Path(__file__).parent / f"ledger_version_{version}.sql").read_text())


def rows(path: Path) -> list[dict[str, object]]:
    with closing(sqlite3.connect(path)) as ledger:
        ledger.row_factory = sqlite3.Row
        return [dict(row) for row in ledger.execute("SELECT * FROM transactions ORDER BY number")]


@pytest.mark.parametrize("numbered", [True, False], ids=["whole", "killed before it had its number"])
async def test_a_ledger_of_version_1_is_upgraded_with_all_that_is_in_it(path: Path, numbered: bool) -> None:
    """Its charges are as they were, and can be refunded; its open tokens are executed or called off."""
    write_ledger(path, 1)
    if not numbered:
        with closing(sqlite3.connect(path)) as ledger:
            ledger.executescript("DROP INDEX one_lives; DROP INDEX by_reference; PRAGMA user_version = 0")
    before = rows(path)
    for _ in range(2):
        async with running(path) as bank:
            assert [movement["reference"] for movement in await bank.movements()] == ["executed", "largest"]
        new = {"acts_on": None, "final": 0, "hold_expires_at": None, "return_url": ""}
        assert rows(path) == [row | new for row in before]
    async with running(path) as bank:
        assert (await bank.order(reference="declined", card="tok_declined")).json()["reason"] == "card_declined"
        assert (await bank.order(reference="executed", amount=1)).status_code == 409
        assert (await bank.execute(await bank.token(reference="open"))).json()["result"] == "executed"
        assert (await bank.cancel(await bank.token(reference="expired"))).json()["state"] == "cancelled"
        for movement in await bank.movements():
            refund = await bank.do("refund", movement["transaction_id"], movement["minor_units"])
            assert refund["result"] == "executed"


async def test_a_ledger_of_version_2_is_upgraded_with_all_that_is_in_it(path: Path) -> None:
    """What its holds and charges allow is as it was, and a card that asks the customer is a card now."""
    write_ledger(path, 2)
    before = rows(path)
    for _ in range(2):
        async with running(path) as bank:
            kinds = [movement["kind"] for movement in await bank.movements()]
            assert kinds == ["charge", "authorize", "capture", "refund"]
        assert rows(path) == [row | {"return_url": ""} for row in before]
    async with running(path) as bank:
        charge, hold = (await bank.movements())[:2]
        assert (await bank.do("refund", charge["transaction_id"], 1001))["reason"] == "more_than_captured"
        assert (await bank.do("void", hold["transaction_id"], 850))["result"] == "executed"
        assert (await bank.execute(await bank.token(reference="open"))).json()["result"] == "executed"
        assert (await bank.execute(await bank.token(reference="new", card="tok_3ds"))).status_code == 202


async def test_an_upgrade_that_fails_leaves_the_ledger_as_it_was(path: Path) -> None:
    """Here its last statement fails: a name is taken."""
    write_ledger(path, 1)
    with closing(sqlite3.connect(path)) as ledger:
        ledger.execute("CREATE VIEW followers AS SELECT 1")
    before = rows(path)
    with pytest.raises(sqlite3.OperationalError, match="followers"):
        async with running(path):
            pass
    assert rows(path) == before
    with closing(sqlite3.connect(path)) as ledger:
        ledger.execute("DROP VIEW followers")
    async with running(path) as bank:
        assert len(await bank.movements()) == 2


@pytest.mark.parametrize("made", ["PRAGMA user_version = 4", "CREATE TABLE charges (id)"], ids=["newer", "no ledger"])
async def test_a_file_that_is_no_ledger_of_ours_is_refused(path: Path, made: str) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute(made)
    with pytest.raises(LedgerUnusable, match="another version"):
        async with running(path):
            pass


# How it ends


@pytest.mark.parametrize(
    ("kind", "moved", "result"), [("stop_before", 0, "executed"), ("stop_after", 1, "already_executed")]
)
async def test_a_bank_dies_on_order_before_or_after_its_work(path: Path, kind: str, moved: int, result: str) -> None:
    """By SIGKILL, at exactly that point: its ledger shows which."""
    async with process(path) as (bank, address), client_of(address) as client:
        token = await client.token()
        await client.fault("execute", kind)
        with pytest.raises(httpx.TransportError):
            await client.execute(token)
        assert await bank.wait() == -signal.SIGKILL
    async with running(path) as after:
        assert len(await after.movements()) == moved
        assert (await after.execute(token)).json()["result"] == result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_bank_that_is_asked_to_stop_exits_with_0(path: Path, number: signal.Signals) -> None:
    """With a client still connected; every line it logged is JSON."""
    async with process(path) as (bank, address), client_of(address) as client:
        await client.token()
        bank.send_signal(number)
        assert bank.stderr is not None
        logged = [json.loads(line)["event"] for line in (await bank.stderr.read()).splitlines()]
        assert await bank.wait() == 0
        assert logged == ["asked to stop", "stopped"]


async def test_a_second_bank_on_one_ledger_is_refused(path: Path) -> None:
    """It says why, and exits with 1. The first is still served."""
    async with process(path) as (_, address), client_of(address) as client:
        async with process(path) as (second, line):
            assert await second.wait() == 1
            assert "database is locked" in line
        assert (await client.order()).status_code == 200


async def test_all_faults_of_the_settings_are_reported_together(path: Path) -> None:
    """By the variables' names; the values are not repeated."""
    wrong = {
        "GATEWAY_MOCK_LISTEN": "nowhere",
        "GATEWAY_MOCK_TOKEN_SECONDS": "soon",
        "GATEWAY_MOCK_HOLD_SECONDS": "31622401",
        "GATEWAY_MOCK_LEDGER": "",
    }
    async with process(path, **wrong) as (bank, line):
        assert await bank.wait() == 2
        assert all(name in line for name in wrong)
        assert "nowhere" not in line
        assert "soon" not in line


async def test_the_time_of_holds_is_a_setting(path: Path) -> None:
    async with process(path, GATEWAY_MOCK_HOLD_SECONDS="0") as (_, address), client_of(address) as client:
        hold = await client.open("authorize")
        assert (await client.do("capture", hold["transaction_id"], 1))["reason"] == "authorization_expired"
