"""The mock bank's promises: money moves once, closed is for ever, and every fault has its documented effect.

The tests use real HTTP and the real server; where a process has to die, a real process.
"""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway_mock import serve
from gateway_mock.faults import Kind

ORDER = {"reference": "charge-1", "card": "tok_visa", "amount": 1250, "currency": "EUR"}

# Long enough for every answered call, and short enough to wait for.
NO_ANSWER_SECONDS = 0.2


class Client:
    """A client like a person with curl."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def order(self, **changed: object) -> httpx.Response:
        return await self.http.post("/transactions", content=json.dumps(ORDER | changed))

    async def token(self, **changed: object) -> str:
        return str((await self.order(**changed)).raise_for_status().json()["token"])

    async def execute(self, token: str, **said: object) -> httpx.Response:
        return await self.http.post(f"/transactions/{token}/execute", content=json.dumps(said) if said else b"")

    async def transaction(self, token: str) -> dict[str, Any]:
        return dict((await self.http.get(f"/transactions/{token}")).raise_for_status().json())

    async def movements(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/statement")).raise_for_status().json()["movements"])

    async def calls(self, after: int = 0) -> list[dict[str, Any]]:
        return list((await self.http.get(f"/calls?after={after}")).raise_for_status().json())

    async def fault(self, on: str, kind: str, **more: object) -> int:
        response = await self.http.post("/faults", json={"on": on, "fault": kind, **more})
        return int(response.raise_for_status().json()["id"])

    async def faults(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/faults")).raise_for_status().json())


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(base_url=f"http://{address}", verify=False, trust_env=False, timeout=20) as http:
        yield Client(http)


@asynccontextmanager
async def running(path: Path, **settings: Any) -> AsyncIterator[Client]:
    async with serve("127.0.0.1:0", path, **settings) as address, client_of(address) as client:
        yield client


@asynccontextmanager
async def process(path: Path, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run the bank as a process; give it and its address. Afterwards it is dead."""
    settings = {"GATEWAY_MOCK_LISTEN": "127.0.0.1:0", "GATEWAY_MOCK_LEDGER": str(path), **environment}
    bank = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway_mock", env=os.environ | settings, stderr=asyncio.subprocess.PIPE
    )
    assert bank.stderr is not None
    try:
        line = json.loads(await bank.stderr.readline())
        yield bank, str(line.get("listen", line))
    finally:
        if bank.returncode is None:
            bank.kill()
        await bank.communicate()


async def until(look: Callable[[], Awaitable[Any]], seen: Callable[[Any], bool]) -> None:
    """Look until it is seen; pytest's timeout ends an endless wait."""
    while not seen(await look()):  # noqa: ASYNC110 - the awaited state is in a server, behind HTTP
        await asyncio.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def bank(path: Path) -> AsyncIterator[Client]:
    async with running(path) as client:
        yield client


# The token step


async def test_the_token_step_opens_a_transaction_and_moves_no_money(bank: Client) -> None:
    """The answer is complete, and the statement empty."""
    opened = (await bank.order()).json()
    assert opened.pop("token").startswith("ttok_")
    assert opened.pop("expires_at").endswith("Z")
    assert opened == {**ORDER, "state": "created", "transaction_id": None, "reason": None}
    assert await bank.movements() == []


@pytest.mark.parametrize(
    ("card", "state"), [("tok_visa", "executed"), ("tok_mastercard", "executed"), ("tok_declined", "declined")]
)
async def test_a_known_reference_gives_its_transaction_back_as_it_is_now(bank: Client, card: str, state: str) -> None:
    """Open or closed, it is the same transaction, and there is no second one."""
    first = (await bank.order(card=card)).json()
    assert (await bank.order(card=card)).json() == first
    await bank.execute(first["token"])
    again = (await bank.order(card=card)).json()
    assert (again["token"], again["state"]) == (first["token"], state)
    assert again == await bank.transaction(first["token"])


async def test_fifty_token_steps_of_one_reference_at_once_open_one_transaction(bank: Client) -> None:
    """All fifty get the same token."""
    assert len(set(await asyncio.gather(*(bank.token() for _ in range(50))))) == 1


@pytest.mark.parametrize("changed", [{"card": "tok_mastercard"}, {"amount": 1251}, {"currency": "USD"}])
@pytest.mark.parametrize("token_seconds", [900, 0], ids=["open", "expired"])
async def test_a_known_reference_with_other_fields_is_refused(
    path: Path, changed: Mapping[str, object], token_seconds: int
) -> None:
    """Whether its transaction is open or expired; and the transaction stays unchanged."""
    async with running(path, token_seconds=token_seconds) as bank:
        token = await bank.token()
        before = await bank.transaction(token)
        refused = await bank.order(**changed)
        assert (refused.status_code, refused.json()) == (409, {"error": "reference_reused"})
        assert (await bank.http.get("/transactions?reference=charge-1")).json() == before


async def test_only_an_expired_transaction_makes_room_for_another_under_its_reference(bank: Client) -> None:
    """For one only: from then on the reference means the newest transaction."""
    first = await bank.token()
    await bank.fault("execute", "expire_token")
    assert (await bank.execute(first)).status_code == 410
    tokens = set(await asyncio.gather(*(bank.token() for _ in range(20))))
    assert len(tokens) == 1
    assert first not in tokens
    assert (await bank.execute(tokens.pop())).json()["result"] == "executed"
    assert (await bank.execute(first)).status_code == 410
    assert len(await bank.movements()) == 1


async def test_a_token_step_that_finds_its_transaction_late_closes_it_and_opens_another(path: Path) -> None:
    """No call has looked at the first since its time was over; it is closed all the same."""
    async with running(path, token_seconds=0) as bank:
        first = await bank.token()
        assert await bank.token() != first
    async with running(path) as bank:
        assert (await bank.transaction(first))["state"] == "expired"


async def test_the_ledger_itself_holds_no_second_live_transaction_of_a_reference(path: Path) -> None:
    """SQLite refuses the row, even if the code above it does not."""
    async with running(path) as bank:
        await bank.token()
    with (
        closing(sqlite3.connect(path)) as ledger,
        pytest.raises(sqlite3.IntegrityError, match=r"transactions\.reference"),
    ):
        ledger.execute(
            "INSERT INTO transactions (token, reference, kind, card, amount, currency, state, opened_at, expires_at)"
            " SELECT 'other', reference, kind, card, amount, currency, 'created', opened_at, expires_at FROM transactions"
        )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"[" * 60_000, "body"),
        (b'{"reference": "\xff"}', "body"),
        (b'{"reference": "charge-1", "reference": "charge-2"}', "body"),
        (json.dumps(ORDER | {"more": 1}).encode(), "body"),
        (json.dumps(ORDER | {"amount": float("nan")}).encode(), "body"),
        (json.dumps({"amount": 1}).replace("1}", "1" * 5_000 + "}").encode(), "amount"),
        *[(json.dumps({k: v for k, v in ORDER.items() if k != key}).encode(), key) for key in ORDER],
        *[(json.dumps(ORDER | {"amount": v}).encode(), "amount") for v in (0, -1, 1.0, True, "1", None, 2**63)],
        *[(json.dumps(ORDER | {"reference": v}).encode(), "reference") for v in ("", "a b", "\n", "a" * 129, 1)],
        *[(json.dumps(ORDER | {"currency": v}).encode(), "currency") for v in ("eur", "EURO", "", "EU\u0405", 978)],
        (json.dumps(ORDER | {"card": 1}).encode(), "card"),
    ],
)
async def test_a_malformed_order_is_refused_with_the_name_of_its_field(bank: Client, body: bytes, field: str) -> None:
    """And opens nothing."""
    refused = await bank.http.post("/transactions", content=body)
    assert refused.status_code == 400
    assert refused.json() in (
        {"error": "bad_request", "field": field},
        # Python refuses to read a number of five thousand digits: to it that is no JSON.
        {"error": "bad_request", "field": "body"} if len(body) > 5_000 else None,
    )
    assert (await bank.http.get("/transactions?reference=charge-1")).status_code == 404


@pytest.mark.parametrize("card", ["tok_amex", "", "visa", "\ud800"])
async def test_an_unknown_card_is_refused(bank: Client, card: str) -> None:
    """422, and nothing is opened."""
    refused = await bank.order(card=card)
    assert (refused.status_code, refused.json()) == (422, {"error": "card_unknown"})
    assert (await bank.http.get("/transactions?reference=charge-1")).status_code == 404


async def test_the_largest_amount_is_kept_to_the_last_unit(bank: Client) -> None:
    """2^63-1 is no float anywhere on its way."""
    token = await bank.token(amount=2**63 - 1)
    assert (await bank.execute(token)).json()["amount"] == 2**63 - 1
    assert [movement["minor_units"] for movement in await bank.movements()] == [2**63 - 1]


# The execute step


async def test_executing_moves_the_money_once_and_always_reports_it(bank: Client) -> None:
    """The second answer differs from the first in its result only."""
    token = await bank.token()
    first = (await bank.execute(token)).json()
    assert first.pop("result") == "executed"
    assert first.pop("transaction_id").startswith("txn_")
    assert first == {**ORDER, "token": token, "reason": None}
    again = (await bank.execute(token)).json()
    assert again.pop("result") == "already_executed"
    assert [again["transaction_id"]] == [movement["transaction_id"] for movement in await bank.movements()]


@pytest.mark.parametrize("seconds", [0, 0.3], ids=["as they come", "all having seen it open"])
async def test_fifty_executions_of_one_token_at_once_move_the_money_once(bank: Client, seconds: float) -> None:
    """One says executed, the others already executed, all the same transaction id."""
    token = await bank.token()
    await bank.fault("execute", "delay", seconds=seconds, times=50)
    said = [response.json() for response in await asyncio.gather(*(bank.execute(token) for _ in range(50)))]
    assert sorted(answer["result"] for answer in said) == ["already_executed"] * 49 + ["executed"]
    assert {answer["transaction_id"] for answer in said} == {(await bank.movements())[0]["transaction_id"]}
    assert len(await bank.movements()) == 1


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("tok_declined", "card_declined"),
        ("tok_insufficient_funds", "insufficient_funds"),
        ("tok_expired_card", "expired_card"),
    ],
)
async def test_a_decline_is_for_ever(path: Path, card: str, reason: str) -> None:
    """With its reason, across a restart, and although the card might have recovered."""
    async with running(path) as bank:
        token = await bank.token(card=card)
        first = (await bank.execute(token)).json()
        assert (first["result"], first["reason"], first["transaction_id"]) == ("declined", reason, None)
    async with running(path) as bank:
        assert (await bank.execute(token)).json() == first
        assert await bank.movements() == []


async def test_a_late_token_is_closed_for_ever_before_any_answer_says_so(path: Path) -> None:
    """A bank restarted with the longest lifetime of tokens still says expired."""
    async with running(path, token_seconds=0) as bank:
        token = await bank.token()
        late = await bank.execute(token)
        assert late.status_code == 410
        assert late.json() == {
            **ORDER,
            "token": token,
            "error": "token_expired",
            "transaction_id": None,
            "reason": None,
        }
    async with running(path) as bank:
        assert (await bank.transaction(token))["state"] == "expired"
        assert (await bank.execute(token)).status_code == 410
        assert await bank.movements() == []


@pytest.mark.parametrize("by", ["token", "reference"])
async def test_expired_in_a_look_up_is_final(path: Path, by: str) -> None:
    """Looking at a late transaction closes it."""
    async with running(path, token_seconds=0) as bank:
        token = await bank.token()
        where = f"/transactions/{token}" if by == "token" else "/transactions?reference=charge-1"
        assert (await bank.http.get(where)).json()["state"] == "expired"
    with closing(sqlite3.connect(path)) as ledger:
        assert ledger.execute("SELECT state FROM transactions").fetchall() == [("expired",)]


async def test_an_executed_transaction_never_expires(path: Path) -> None:
    """Not even if any step asks after its time."""
    async with running(path) as bank:
        token = await bank.token()
        await bank.execute(token)
    with closing(sqlite3.connect(path)) as ledger, ledger:
        ledger.execute("UPDATE transactions SET expires_at = 0")
    async with running(path) as bank:
        assert (await bank.execute(token)).json()["result"] == "already_executed"
        assert (await bank.order()).json()["token"] == token
        assert (await bank.transaction(token))["state"] == "executed"


async def test_amount_and_currency_are_compared_if_given(bank: Client) -> None:
    """Nothing is executed if they differ, nor if they are malformed."""
    token = await bank.token()
    for other in ({"amount": 1}, {"currency": "USD"}):
        differs = await bank.execute(token, **({"amount": 1250, "currency": "EUR"} | other))
        assert (differs.status_code, differs.json()) == (409, {"error": "fields_differ"})
    for said, field in (({"amount": 1250}, "currency"), ({"amount": 1250, "currency": "EUR", "more": 1}, "body")):
        assert (await bank.execute(token, **said)).json() == {"error": "bad_request", "field": field}
    assert (await bank.execute(token, amount=1250, currency="EUR")).json()["result"] == "executed"


async def test_unknown_names_are_answered_as_unknown(bank: Client) -> None:
    """Tokens, references, and paths."""
    assert (await bank.execute("ttok_none")).json() == {"error": "token_unknown"}
    for where, error in (
        ("/transactions/ttok_none", "token_unknown"),
        ("/transactions?reference=none", "reference_unknown"),
        ("/nowhere", "not_found"),
        ("/", "not_found"),
    ):
        unknown = await bank.http.get(where)
        assert (unknown.status_code, unknown.json()) == (404, {"error": error})
    for where in ("/transactions", "/transactions?reference=a&reference=b", "/transactions?token=a"):
        assert (await bank.http.get(where)).json() == {"error": "bad_request", "field": "reference"}


# The referee


async def test_the_statement_lists_every_movement_in_the_order_of_execution(bank: Client) -> None:
    """In exactly the fields of the design. A transaction that moved no money is not in it."""
    tokens = [await bank.token(reference=f"charge-{n}", amount=n) for n in (1, 2, 3)]
    await bank.execute(await bank.token(reference="charge-4", card="tok_declined"))
    executed = [(await bank.execute(token)).json() for token in reversed(tokens)]
    statement = (await bank.http.get("/statement")).json()
    assert list(statement) == ["movements"]
    assert all(movement.pop("executed_at").endswith("Z") for movement in statement["movements"])
    assert statement["movements"] == [
        {
            "transaction_id": answer["transaction_id"],
            "token": answer["token"],
            "reference": answer["reference"],
            "kind": "charge",
            "minor_units": answer["amount"],
            "currency_code": "EUR",
        }
        for answer in executed
    ]


async def test_executions_in_one_commit_are_all_in_the_statement(bank: Client) -> None:
    """Fifty concurrent ones share commits; each has its own movement."""
    tokens = await asyncio.gather(*(bank.token(reference=f"charge-{n}") for n in range(50)))
    said = [answer.json() for answer in await asyncio.gather(*(bank.execute(token) for token in tokens))]
    moved = {(m["transaction_id"], m["token"], m["reference"]) for m in await bank.movements()}
    assert moved == {(answer["transaction_id"], answer["token"], answer["reference"]) for answer in said}
    assert len(moved) == 50


async def test_the_log_of_calls_has_each_request_and_its_answer(bank: Client) -> None:
    """In order, with the fault that a call met. The referee's own calls are not in it."""
    token = await bank.token()
    await bank.fault("execute", "lose_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await bank.execute(token)
    await bank.http.get("/transactions?reference=charge-1")
    await bank.http.post("/transactions", content=b"nonsense")
    calls = await bank.calls()
    assert all(call.pop("at").endswith("Z") for call in calls)
    assert [tuple(call) for call in calls] == [("n", "method", "path", "reference", "token", "fault", "status")] * 4
    assert [tuple(call.values()) for call in calls] == [
        (1, "POST", "/transactions", "charge-1", token, None, 200),
        (2, "POST", f"/transactions/{token}/execute", "charge-1", token, "lose_answer", None),
        (3, "GET", "/transactions", "charge-1", token, None, 200),
        (4, "POST", "/transactions", None, None, None, 400),
    ]
    assert [call["n"] for call in await bank.calls(after=2)] == [3, 4]
    assert await bank.calls(after=10**17) == []
    assert (await bank.http.get("/calls?after=-1")).json() == {"error": "bad_request", "field": "after"}


# Faults. For each kind: the other fields of its order, and a client's view of an execute step that meets it.

NOT_DONE: Mapping[Kind, tuple[Mapping[str, object], int | None]] = {
    Kind.LOSE_REQUEST: ({}, None),
    Kind.HANG_BEFORE: ({"seconds": 0.01}, None),
    Kind.ERROR_BEFORE: ({"status": 502}, 502),
    Kind.THROTTLED: ({"retry_after": "Wed, 99 Foo"}, 429),
    Kind.REDIRECT: ({"location": "http://elsewhere.invalid/"}, 302),
    Kind.REFUSE: ({"status": 401}, 401),
    Kind.FORGET_TOKEN: ({}, 404),
    Kind.IN_PROGRESS: ({"retry_after": "7"}, 202),
}
DONE: Mapping[Kind, tuple[Mapping[str, object], int | None]] = {
    Kind.LOSE_ANSWER: ({}, None),
    Kind.HANG_AFTER: ({"seconds": 0.01}, None),
    Kind.RESET: ({}, None),
    Kind.ERROR_AFTER: ({"status": 500}, 500),
    Kind.GARBAGE: ({}, 200),
    Kind.HALF_BODY: ({}, None),
    Kind.SLOW_BODY: ({"seconds": 0}, 200),
    Kind.HUGE_BODY: ({"bytes": 70_000}, 200),
    Kind.WRONG_AMOUNT: ({}, 200),
    Kind.WRONG_CURRENCY: ({}, 200),
    Kind.WRONG_REFERENCE: ({}, 200),
    Kind.WRONG_TOKEN: ({}, 200),
    Kind.CONTRADICT: ({}, 200),
    Kind.EXTRA_ANSWER: ({"seconds": 0}, 200),
    Kind.DELAY: ({"seconds": 0}, 200),
    Kind.ODD_TRANSACTION_ID: ({}, 200),
}
DYING = {Kind.STOP_BEFORE, Kind.STOP_AFTER}


def test_every_kind_of_fault_is_tested_here() -> None:
    """A new kind without a test fails this one."""
    assert {*NOT_DONE, *DONE, *DYING, Kind.EXPIRE_TOKEN} == set(Kind)


async def _meet(bank: Client, token: str, kind: Kind, more: Mapping[str, object]) -> httpx.Response | None:
    await bank.fault("execute", kind, **more)
    try:
        return await bank.execute(token)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("kind", NOT_DONE)
async def test_after_a_fault_before_the_work_nothing_is_done(bank: Client, kind: Kind) -> None:
    """The client sees the ordered fault, no money has moved, and the next call finds the fault gone."""
    more, status = NOT_DONE[kind]
    token = await bank.token()
    response = await _meet(bank, token, kind, more)
    assert (response.status_code if response is not None else None) == status
    assert await bank.movements() == []
    assert (await bank.transaction(token))["state"] == "created"
    assert (await bank.execute(token)).json()["result"] == "executed"
    assert [fault["fired"] for fault in await bank.faults()] == [1]


@pytest.mark.parametrize("kind", DONE)
async def test_after_a_fault_after_the_work_it_is_done(bank: Client, kind: Kind) -> None:
    """The client sees the ordered fault, the money has moved, and the next call finds the fault gone."""
    more, status = DONE[kind]
    token = await bank.token()
    response = await _meet(bank, token, kind, more)
    assert (response.status_code if response is not None else None) == status
    assert len(await bank.movements()) == 1
    assert (await bank.execute(token)).json()["result"] == "already_executed"
    assert [fault["fired"] for fault in await bank.faults()] == [1]


@pytest.mark.parametrize(
    ("kind", "parameter", "value", "header"),
    [
        (Kind.THROTTLED, "retry_after", "Wed, 99 Foo 2026", "retry-after"),
        (Kind.THROTTLED, "retry_after", "-1e9", "retry-after"),
        (Kind.THROTTLED, "retry_after", "", "retry-after"),
        (Kind.IN_PROGRESS, "retry_after", "7", "retry-after"),
        (Kind.REDIRECT, "location", "http://elsewhere.invalid/a?b", "location"),
    ],
)
async def test_a_header_is_sent_as_it_was_ordered(
    bank: Client, kind: Kind, parameter: str, value: str, header: str
) -> None:
    """Even a nonsensical one."""
    response = await _meet(bank, await bank.token(), kind, {parameter: value})
    assert response is not None
    assert response.headers[header] == value


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (Kind.WRONG_AMOUNT, {"amount"}),
        (Kind.WRONG_CURRENCY, {"currency"}),
        (Kind.WRONG_REFERENCE, {"reference"}),
        (Kind.WRONG_TOKEN, {"token"}),
        (Kind.CONTRADICT, {"result", "transaction_id", "reason"}),
        (Kind.HUGE_BODY, set()),
        (Kind.SLOW_BODY, set()),
        (Kind.EXTRA_ANSWER, set()),
        (Kind.DELAY, set()),
    ],
)
async def test_a_fault_of_the_answer_changes_nothing_else_of_it(bank: Client, kind: Kind, changed: set[str]) -> None:
    """Compared field by field with the ledger."""
    token = await bank.token()
    # The extra answer must not come to the next question here.
    seconds = {Kind.SLOW_BODY: 0, Kind.DELAY: 0, Kind.EXTRA_ANSWER: 3_600}
    response = await _meet(bank, token, kind, {"seconds": seconds[kind]} if kind in seconds else {})
    assert response is not None
    truth = (await bank.execute(token)).json() | {"result": "executed"}
    said = response.json()
    assert said.keys() == truth.keys()
    assert {key for key in truth if said[key] != truth[key]} == changed
    assert len(response.content) == 1024 * 1024 or kind is not Kind.HUGE_BODY


async def test_an_extra_answer_follows_the_right_one_over_the_same_connection(bank: Client) -> None:
    """As ordered; and the connection still answers the next request."""
    token = await bank.token()
    await bank.fault("execute", "extra_answer", seconds=0.01, status=404, body={"error": "token_unknown"})
    request = f"POST /transactions/{token}/execute HTTP/1.1\r\nhost: bank\r\ncontent-length: 0\r\n".encode()
    url = bank.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request + b"\r\n")
    said = await reader.readuntil(b'{"error":"token_unknown"}')
    writer.write(request + b"connection: close\r\n\r\n")
    later = await reader.read()
    writer.close()
    assert (said.count(b"HTTP/1.1 200"), said.count(b"HTTP/1.1 404"), later.count(b"HTTP/1.1 200")) == (1, 1, 1)
    assert b"already_executed" in later


async def test_an_odd_id_stays_and_is_used_once(bank: Client) -> None:
    """In every answer, in the statement, and for one transaction."""
    token, other = await bank.token(), await bank.token(reference="charge-2")
    await bank.fault("execute", "odd_transaction_id", times=3, transaction_id="4111 1111 1111 1111")
    for said in ((await bank.execute(token)).json(), (await bank.execute(token)).json(), await bank.transaction(token)):
        assert said["transaction_id"] == "4111 1111 1111 1111"
    with pytest.raises(httpx.RemoteProtocolError):
        await bank.execute(other)
    assert [movement["transaction_id"] for movement in await bank.movements()] == ["4111 1111 1111 1111"]
    assert (await bank.execute(other)).json()["result"] == "executed"


async def test_garbage_is_no_json(bank: Client) -> None:
    """Though its status is 200."""
    response = await _meet(bank, await bank.token(), Kind.GARBAGE, {})
    assert response is not None
    with pytest.raises(ValueError, match=r"decode|JSON"):
        response.json()


async def test_half_a_body_is_less_than_was_promised(bank: Client) -> None:
    """The head is a good one, the first half arrives, then the connection ends."""
    token = await bank.token()
    await bank.fault("execute", "half_body")
    received = b""
    async with bank.http.stream("POST", f"/transactions/{token}/execute") as response:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            async for part in response.aiter_raw():
                received += part
    assert len(received) == int(response.headers["content-length"]) // 2
    assert received.startswith(b'{"result":"executed"')


async def test_a_slow_body_follows_its_head_byte_by_byte(bank: Client) -> None:
    """The head comes at once; with an hour a byte no byte comes."""
    token = await bank.token()
    await bank.fault("execute", "slow_body", seconds=3600)
    async with bank.http.stream("POST", f"/transactions/{token}/execute", timeout=NO_ANSWER_SECONDS) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await response.aread()


async def test_a_reset_is_a_reset_and_a_lost_answer_an_orderly_end(bank: Client) -> None:
    """A RST is an error to the reader, a FIN is the end of what it reads."""
    token = await bank.token()
    await bank.fault("execute", "reset")
    await bank.fault("execute", "lose_answer")
    request = f"POST /transactions/{token}/execute HTTP/1.1\r\nhost: bank\r\ncontent-length: 0\r\n\r\n".encode()
    with pytest.raises(ConnectionResetError):
        await _raw(bank, request)
    assert await _raw(bank, request) == b""


@pytest.mark.parametrize(("kind", "moved"), [(Kind.HANG_BEFORE, 0), (Kind.HANG_AFTER, 1)])
async def test_a_hanging_bank_says_nothing_until_its_client_leaves(bank: Client, kind: Kind, moved: int) -> None:
    """With the work done or not. The client's leaving ends it, though an hour was ordered."""
    token = await bank.token()
    await bank.fault("execute", kind, seconds=3600, times=2)
    request = f"POST /transactions/{token}/execute HTTP/1.1\r\nhost: bank\r\ncontent-length: 0\r\n\r\n".encode()
    assert await _raw(bank, request, leave=True) == b""
    with pytest.raises(httpx.ReadTimeout):
        await bank.http.post(f"/transactions/{token}/execute", timeout=NO_ANSWER_SECONDS)
    assert len(await bank.movements()) == moved


async def test_delayed_work_is_done_even_after_its_client_has_left(bank: Client) -> None:
    """It is the late execution that a bank's client must expect."""
    token = await bank.token()
    await bank.fault("execute", "delay", seconds=2 * NO_ANSWER_SECONDS)
    with pytest.raises(httpx.ReadTimeout):
        await bank.http.post(f"/transactions/{token}/execute", timeout=NO_ANSWER_SECONDS)
    assert await bank.movements() == []
    await until(bank.calls, lambda calls: calls[-1]["status"] is not None)
    assert len(await bank.movements()) == 1


async def test_a_delayed_execution_leaves_a_closed_transaction_closed(bank: Client) -> None:
    """It was open when the call came in, and expired when its work began."""
    token = await bank.token()
    await bank.fault("execute", "delay", seconds=NO_ANSWER_SECONDS)
    await bank.fault("execute", "expire_token")
    delayed = asyncio.create_task(bank.execute(token))
    await until(bank.faults, lambda faults: [fault["fired"] for fault in faults] == [1, 0])
    assert (await bank.execute(token)).status_code == 410
    assert (await delayed).status_code == 410
    assert await bank.movements() == []


@pytest.mark.parametrize("on", ["token", "execute", "look_up"])
async def test_an_expired_token_is_expired_in_the_ledger(path: Path, on: str) -> None:
    """After the fault in any step the token never moves money, not even after a restart."""
    async with running(path) as bank:
        token = await bank.token()
        await bank.fault(on, "expire_token")
        match on:
            case "token":
                assert await bank.token() != token
            case "execute":
                assert (await bank.execute(token)).json()["error"] == "token_expired"
            case _:
                assert (await bank.transaction(token))["state"] == "expired"
    async with running(path) as bank:
        assert (await bank.execute(token)).status_code == 410
        assert await bank.movements() == []


async def test_no_fault_makes_an_executed_transaction_expire(bank: Client) -> None:
    """The fault is used up, and the answer is the truth."""
    token = await bank.token()
    await bank.execute(token)
    await bank.fault("execute", "expire_token")
    assert (await bank.execute(token)).json()["result"] == "already_executed"


async def test_faults_strike_every_step(bank: Client) -> None:
    """A token step's answer is lost and its transaction exists; a look-up can be refused, forgotten or wrong."""
    await bank.fault("token", "lose_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await bank.order()
    known = (await bank.http.get("/transactions?reference=charge-1")).json()
    assert await bank.token() == known["token"]
    await bank.fault("look_up", "error_before")
    await bank.fault("look_up", "forget_token")
    await bank.fault("look_up", "wrong_amount")
    statuses = [(await bank.http.get(f"/transactions/{known['token']}")).status_code for _ in range(2)]
    assert statuses == [503, 404]
    assert (await bank.transaction(known["token"]))["amount"] == 1251
    assert await bank.transaction(known["token"]) == known


async def test_faults_fire_first_in_first_out_among_those_that_match(bank: Client) -> None:
    """Step, reference and card narrow down; each fires as often as was ordered and not once more."""
    await bank.fault("token", "error_before", status=500, reference="charge-2")
    await bank.fault("token", "error_before", status=501, card="tok_mastercard", times=2)
    await bank.fault("token", "error_before", status=502)
    seen = [
        (await bank.order(**changed)).status_code
        for changed in (
            {"reference": "charge-1"},
            {"reference": "charge-1"},
            {"reference": "charge-2", "card": "tok_mastercard"},
            {"reference": "charge-2", "card": "tok_mastercard"},
            {"reference": "charge-3", "card": "tok_mastercard"},
            {"reference": "charge-3", "card": "tok_mastercard"},
        )
    ]
    assert seen == [502, 200, 500, 501, 501, 200]
    token = await bank.token()
    await bank.fault("execute", "error_before", reference="charge-9")
    await bank.fault("execute", "error_before", card="tok_visa", reference="charge-1")
    assert (await bank.execute(token)).status_code == 503
    assert [fault["fired"] for fault in await bank.faults()] == [1, 2, 1, 0, 1]


async def test_faults_are_listed_as_ordered_and_cleared(bank: Client) -> None:
    """With the defaults of their parameters; after clearing the list is empty."""
    first = await bank.fault("execute", "hang_after", reference="charge-1")
    second = await bank.fault("token", "throttled", times=3, retry_after="soon")
    both = {"card": None, "fired": 0}
    assert await bank.faults() == [
        {"id": first, "on": "execute", "fault": "hang_after", "times": 1, "reference": "charge-1", "seconds": 30}
        | both,
        {"id": second, "on": "token", "fault": "throttled", "times": 3, "reference": None, "retry_after": "soon"}
        | both,
    ]
    assert (await bank.http.delete("/faults")).json() == {"cleared": 2}
    assert await bank.faults() == []
    assert (await bank.order()).status_code == 200


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"fault": "reset"}, "on"),
        ({"on": "statement", "fault": "reset"}, "on"),
        ({"on": "token", "fault": "contradict"}, "on"),
        ({"on": ["token"], "fault": "reset"}, "on"),
        ({"on": "token"}, "fault"),
        ({"on": "token", "fault": "explode"}, "fault"),
        ({"on": "token", "fault": "reset", "times": 0}, "times"),
        ({"on": "token", "fault": "reset", "times": True}, "times"),
        ({"on": "token", "fault": "reset", "seconds": 1}, "seconds"),
        ({"on": "token", "fault": "reset", "colour": 1}, "body"),
        ({"on": "token", "fault": "reset", "card": ""}, "card"),
        ({"on": "token", "fault": "delay", "seconds": -1}, "seconds"),
        ({"on": "token", "fault": "delay", "seconds": 1e9}, "seconds"),
        ({"on": "token", "fault": "refuse", "status": 500}, "status"),
        ({"on": "token", "fault": "error_after", "status": 200}, "status"),
        ({"on": "token", "fault": "huge_body", "bytes": 1}, "bytes"),
        ({"on": "token", "fault": "redirect", "location": "a\r\nb: c"}, "location"),
        ({"on": "token", "fault": "extra_answer", "status": 100}, "status"),
        ({"on": "token", "fault": "extra_answer", "body": "refused"}, "body"),
        ({"on": "token", "fault": "odd_transaction_id"}, "on"),
        ({"on": "execute", "fault": "odd_transaction_id", "transaction_id": ""}, "transaction_id"),
        ({"on": "token", "fault": "throttled", "retry_after": 1}, "retry_after"),
    ],
)
async def test_a_malformed_fault_is_refused_with_the_name_of_its_field(
    bank: Client, order: Mapping[str, object], field: str
) -> None:
    """And is not listed."""
    refused = await bank.http.post("/faults", json=order)
    assert (refused.status_code, refused.json()) == (400, {"error": "bad_request", "field": field})
    assert await bank.faults() == []


@pytest.mark.parametrize("kind", DYING)
async def test_a_bank_inside_a_test_does_not_kill_the_test(bank: Client, kind: Kind) -> None:
    """The faults that kill the process are for a process of its own."""
    refused = await bank.http.post("/faults", json={"on": "token", "fault": kind})
    assert (refused.status_code, refused.json()) == (409, {"error": "runs_in_process"})


# The wire


async def _raw(bank: Client, sent: bytes, *, leave: bool = False) -> bytes:
    """Every byte until the bank closes the connection. `leave`: the client closes its half first."""
    url = bank.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(sent)
        if leave:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


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
    assert (await _raw(bank, request_head + body)).startswith(b"HTTP/1.1 " + status)
    assert (await bank.order()).status_code == 200


async def test_a_connection_is_used_again(bank: Client) -> None:
    """Two requests sent together over one connection get two answers, in order; HEAD gets no body."""
    received = await _raw(
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
    wrong = {"GATEWAY_MOCK_LISTEN": "nowhere", "GATEWAY_MOCK_TOKEN_SECONDS": "soon", "GATEWAY_MOCK_LEDGER": ""}
    async with process(path, **wrong) as (bank, line):
        assert await bank.wait() == 2
        assert all(name in line for name in wrong)
        assert "nowhere" not in line
        assert "soon" not in line
