"""Every fault that can be ordered has its documented effect."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from gateway_mock.faults import Kind
from tests.contract.mock_bank.client import NO_ANSWER_SECONDS, OVERTAKING_SECONDS, Client, raw, running, until

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
    assert {*NOT_DONE, *DONE, *DYING, Kind.EXPIRE_TOKEN, Kind.EXPIRE_HOLD} == set(Kind)


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
    async with bank.http.stream("POST", f"/transactions/{token}/execute") as response:
        assert response.status_code == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(NO_ANSWER_SECONDS):
                await response.aread()


async def test_a_reset_is_a_reset_and_a_lost_answer_an_orderly_end(bank: Client) -> None:
    """A RST is an error to the reader, a FIN is the end of what it reads."""
    token = await bank.token()
    await bank.fault("execute", "reset")
    await bank.fault("execute", "lose_answer")
    request = f"POST /transactions/{token}/execute HTTP/1.1\r\nhost: bank\r\ncontent-length: 0\r\n\r\n".encode()
    with pytest.raises(ConnectionResetError):
        await raw(bank, request)
    assert await raw(bank, request) == b""


@pytest.mark.parametrize(("kind", "moved"), [(Kind.HANG_BEFORE, 0), (Kind.HANG_AFTER, 1)])
async def test_a_hanging_bank_says_nothing_until_its_client_leaves(bank: Client, kind: Kind, moved: int) -> None:
    """With the work done or not. The client's leaving ends it, though an hour was ordered."""
    token = await bank.token()
    await bank.fault("execute", kind, seconds=3600, times=2)
    request = f"POST /transactions/{token}/execute HTTP/1.1\r\nhost: bank\r\ncontent-length: 0\r\n\r\n".encode()
    assert await raw(bank, request, leave=True) == b""
    with pytest.raises(httpx.ReadTimeout):
        await bank.http.post(f"/transactions/{token}/execute", timeout=NO_ANSWER_SECONDS)
    assert len(await bank.movements()) == moved


async def test_delayed_work_is_done_even_after_its_client_has_left(bank: Client) -> None:
    """It is the late execution that a bank's client must expect: so much later than the call, though the client is gone."""
    token = await bank.token()
    await bank.fault("execute", "delay", seconds=0.5)
    url = bank.http.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST /transactions/{token}/execute HTTP/1.1\r\nhost: bank\r\ncontent-length: 0\r\n\r\n".encode())
    writer.close()
    await until(bank.calls, lambda calls: (calls[-1]["fault"], calls[-1]["status"]) == ("delay", 200))
    called_at = datetime.fromisoformat((await bank.calls())[-1]["at"])
    (movement,) = await bank.movements()
    assert datetime.fromisoformat(movement["executed_at"]) - called_at > timedelta(seconds=0.4)


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_delayed_execution_leaves_a_closed_transaction_closed(bank: Client, end: str) -> None:
    """It was open when the call came in, and closed when its work began."""
    token = await bank.token()
    await bank.fault("execute", "delay", seconds=OVERTAKING_SECONDS)
    delayed = asyncio.create_task(bank.execute(token))
    await until(bank.faults, lambda faults: faults[-1]["fired"] == 1)
    if end == "expired":
        await bank.fault("look_up", "expire_token")
        assert (await bank.transaction(token))["state"] == end
    else:
        assert (await bank.cancel(token)).json()["state"] == end
    late = await delayed
    assert (late.status_code, late.json()["error"]) == (410, f"token_{end}")
    assert await bank.movements() == []


@pytest.mark.parametrize("on", ["token", "execute", "look_up", "cancel"])
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
            case "cancel":
                assert (await bank.cancel(token)).json()["state"] == "expired"
            case _:
                assert (await bank.transaction(token))["state"] == "expired"
    async with running(path) as bank:
        assert (await bank.execute(token)).status_code == 410
        assert await bank.movements() == []


@pytest.mark.parametrize("on", ["token", "execute", "look_up", "cancel"])
async def test_a_hold_expires_on_order_at_any_step_of_one_that_follows(path: Path, on: str) -> None:
    """Before the work of that step is done, and in the ledger. Calls of the opening itself do not use the fault up."""
    async with running(path) as bank:
        hold = await bank.open("authorize")
        await bank.do("capture", hold["transaction_id"], 400)
        early = (await bank.follow("capture", hold["transaction_id"], amount=850)).json()["token"]
        await bank.fault(on, "expire_hold")
        await bank.order(reference=hold["reference"], kind="authorize")
        await bank.execute(hold["token"])
        await bank.cancel(hold["token"])
        assert (await bank.transaction(hold["token"]))["hold_expires_at"] == hold["hold_expires_at"]
        match on:
            case "token":
                assert (await bank.follow("void", hold["transaction_id"], amount=850)).json()["state"] == "created"
            case "execute":
                assert (await bank.execute(early)).json()["reason"] == "authorization_expired"
            case "cancel":
                assert (await bank.cancel(early)).json()["state"] == "cancelled"
            case _:
                assert (await bank.transaction(early))["state"] == "created"
        assert [fault["fired"] for fault in await bank.faults()] == [1]
        assert (await bank.transaction(hold["token"]))["hold_expires_at"] < hold["hold_expires_at"]
    async with running(path) as bank:
        void = await bank.do("void", hold["transaction_id"], 850, reference="void-2")
        assert void["reason"] == "authorization_expired"
        assert (await bank.do("refund", hold["transaction_id"], 400))["result"] == "executed"


async def test_a_charge_has_no_hold_that_could_expire(bank: Client) -> None:
    """The fault is used up, and the refund goes its way."""
    charge = await bank.open("charge")
    await bank.fault("execute", "expire_hold")
    assert (await bank.do("refund", charge["transaction_id"], 1250))["result"] == "executed"
    assert [fault["fired"] for fault in await bank.faults()] == [1]


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


async def test_faults_strike_the_calling_off(bank: Client) -> None:
    """Before it, nothing is closed; after it, the answer is lost or wrong, and the transaction is closed."""
    token = await bank.token()
    for kind in ("lose_request", "error_before", "forget_token", "lose_answer", "wrong_amount"):
        await bank.fault("cancel", kind)
    with pytest.raises(httpx.RemoteProtocolError):
        await bank.cancel(token)
    assert [(await bank.cancel(token)).status_code for _ in range(2)] == [503, 404]
    assert (await bank.transaction(token))["state"] == "created"
    with pytest.raises(httpx.RemoteProtocolError):
        await bank.cancel(token)
    assert (await bank.transaction(token))["state"] == "cancelled"
    assert (await bank.cancel(token)).json() == (await bank.transaction(token)) | {"amount": 1251}
    await bank.fault("cancel", "delay", seconds=OVERTAKING_SECONDS)
    late = await bank.token(reference="charge-2")
    cancelling = asyncio.create_task(bank.cancel(late))
    await until(bank.faults, lambda faults: faults[-1]["fired"] == 1)
    assert (await bank.execute(late)).json()["result"] == "executed"
    assert (await cancelling).json()["state"] == "executed"


@pytest.mark.parametrize("kind", ["authorize", "capture", "void", "refund"])
async def test_faults_strike_every_kind(bank: Client, kind: str) -> None:
    """The answer is lost and the work is done, or the answer lies and the ledger does not; at an id of the fault's choice."""
    on = None
    if kind != "authorize":
        on = (await bank.open("charge" if kind == "refund" else "authorize"))["transaction_id"]
    order = bank.order(kind=kind) if on is None else bank.follow(kind, on)
    token = (await order).json()["token"]
    await bank.fault("execute", "odd_transaction_id", transaction_id="odd")
    await bank.fault("execute", "contradict")
    await bank.fault("execute", "wrong_currency")
    truth, contradicted, wrong = [(await bank.execute(token)).json() for _ in range(3)]
    assert (truth["result"], truth["transaction_id"]) == ("already_executed", "odd")
    assert contradicted == truth | {"result": "declined", "transaction_id": None, "reason": "card_declined"}
    assert wrong == truth | {"currency": "USD"}
    assert (await bank.movements())[-1]["transaction_id"] == "odd"
