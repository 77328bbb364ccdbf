"""The two-step gateway's own contract: its words on the wire, and every malformed answer.

The bank's double is a socket that sends a test's bytes.
"""

import asyncio
import gzip
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_service.bank.gateway import gateway_bank
from command_service.bank.transport import open_transport, target_of
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    Executed,
    Expired,
    InProgress,
    Kind,
    Money,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.contract.bank_rigs import IMPATIENT_SECONDS, NO_TLS, PATIENT_SECONDS
from tests.contract.operations import an_operation

CHARGE = an_operation(reference="charge-1")
ASK = RequestToken(CHARGE, expired_tokens=0)
EXECUTE = Execute(CHARGE, "ttok_1")
CALL_OFF = CallOff(CHARGE, "ttok_1")
EFFECTS: list[Effect] = [ASK, EXECUTE, CALL_OFF, CallOff(CHARGE, None)]
OURS: dict[str, Any] = {
    "token": "ttok_1",
    "reference": "charge-1",
    "card": "tok_visa",
    "amount": 1250,
    "currency": "EUR",
    "transaction_id": None,
    "reason": None,
}
CREATED = OURS | {"state": "created"}
EXECUTED = OURS | {"transaction_id": "txn_1"}
CANCELLED = OURS | {"state": "cancelled"}

Reply = bytes | Callable[[asyncio.StreamWriter], Any]


def follows(kind: Kind) -> Operation:
    """Make an operation that acts on the transaction txn_0."""
    return an_operation(kind, amount=Money(7, "EUR"), reference="refund-1", on="txn_0")


def http(body: object, status: int = 200, *headers: str) -> bytes:
    """Make a proper answer; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers]
    if not any(line.lower().startswith("content-type") for line in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + content


class Wire:
    """Sends scripted replies to any request, one a connection; afterwards 503. Keeps the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.script: list[Reply] = []
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            self.requests.append(head + await reader.readexactly(length))
            reply = self.script.pop(0) if self.script else http({}, 503)
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # The adapter has left, as it should.
        finally:
            writer.close()


@asynccontextmanager
async def wire(*script: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    double = Wire()
    double.script.extend(script)
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0, ssl=tls)
    host, port = server.sockets[0].getsockname()
    double.url = f"http{'s' if tls else ''}://{host}:{port}"
    async with server:
        yield double


async def answer_to(
    effect: Effect, url: str, *, look_up_first: bool = False, seconds: float = PATIENT_SECONDS
) -> Answer:
    bank = gateway_bank(url, open_transport(max_connections=4, verify=NO_TLS), seconds)
    try:
        return await bank.perform(effect, look_up_first=look_up_first)
    finally:
        await bank.close()


async def answer_from(effect: Effect, *script: Reply, seconds: float = PATIENT_SECONDS) -> Answer:
    async with wire(*script) as double:
        return await answer_to(effect, double.url, seconds=seconds)


# ---------------------------------------------------------------- requests
async def test_a_token_request_has_the_charge_and_our_own_key() -> None:
    """The reference is the charge id; the key is ours, and changes after each expired token."""
    async with wire(http(CREATED), http(CREATED)) as double:
        assert await answer_to(ASK, double.url + "/v1/") == Token("ttok_1")
        await answer_to(RequestToken(CHARGE, expired_tokens=3), double.url)
    head, _, body = double.requests[0].partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    assert line == "POST /v1/transactions HTTP/1.1"
    fields = {name.lower(): value for name, value in (header.split(": ") for header in headers)}
    del fields["host"]
    assert fields == {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "idempotency-key": "charge-1:token:0",
    }
    assert body == b'{"reference": "charge-1", "card": "tok_visa", "amount": 1250, "currency": "EUR"}', "as ever"
    assert b"Idempotency-Key: charge-1:token:3\r\n" in double.requests[1]


async def test_an_execute_request_has_the_amount_for_the_bank_to_compare() -> None:
    """And a key that belongs to the token."""
    async with wire(http(EXECUTED | {"result": "executed"})) as double:
        assert await answer_to(EXECUTE, double.url) == Executed("txn_1")
    head, _, body = double.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /transactions/ttok_1/execute HTTP/1.1\r\n")
    assert b"Idempotency-Key: charge-1:execute:ttok_1\r\n" in head + b"\r\n"
    assert json.loads(body) == {"amount": 1250, "currency": "EUR"}


async def test_a_look_up_asks_by_token_and_then_by_reference() -> None:
    """It has no body and no key: it changes nothing."""
    effect = Execute(an_operation(reference="a b&c"), "ttok_1")
    async with wire(http({"error": "token_unknown"}, 404), http({"error": "reference_unknown"}, 404)) as double:
        assert isinstance(await answer_to(effect, double.url, look_up_first=True), Contradiction)
    by_token, by_reference = double.requests
    assert by_token.startswith(b"GET /transactions/ttok_1 HTTP/1.1\r\n")
    assert by_reference.startswith(b"GET /transactions?reference=a+b%26c HTTP/1.1\r\n")
    assert b"idempotency-key" not in (by_token + by_reference).lower()


FOLLOWING = {"reference": "refund-1", "on": "txn_0", "amount": 7, "currency": "EUR"}
ORDERS: dict[str, tuple[Operation, dict[str, Any]]] = {
    "authorize": (
        an_operation(Kind.AUTHORIZE, reference="charge-1"),
        {"reference": "charge-1", "kind": "authorize", "card": "tok_visa", "amount": 1250, "currency": "EUR"},
    ),
    "capture": (follows(Kind.CAPTURE), FOLLOWING | {"kind": "capture", "final": False}),
    "final capture": (replace(follows(Kind.CAPTURE), is_final=True), FOLLOWING | {"kind": "capture", "final": True}),
    "void": (follows(Kind.VOID), FOLLOWING | {"kind": "void"}),
    "refund": (follows(Kind.REFUND), FOLLOWING | {"kind": "refund"}),
}


@pytest.mark.parametrize(("operation", "order"), ORDERS.values(), ids=ORDERS)
async def test_each_kind_has_an_order_of_its_own(operation: Operation, order: dict[str, Any]) -> None:
    """One that opens a charge names the card, one that follows names the transaction that it acts on."""
    said = OURS | order
    async with wire(http(said | {"state": "created"}), http(EXECUTED | order | {"result": "executed"})) as double:
        assert await answer_to(RequestToken(operation, 0), double.url) == Token("ttok_1")
        assert await answer_to(Execute(operation, "ttok_1"), double.url) == Executed("txn_1")
    token_step, execute_step = double.requests
    assert json.loads(token_step.partition(b"\r\n\r\n")[2]) == order
    assert f"Idempotency-Key: {operation.reference}:token:0\r\n".encode() in token_step
    assert json.loads(execute_step.partition(b"\r\n\r\n")[2]) == {"amount": order["amount"], "currency": "EUR"}
    assert f"Idempotency-Key: {operation.reference}:execute:ttok_1\r\n".encode() in execute_step


@pytest.mark.parametrize("token", ["ttok_1", None])
async def test_calling_off_goes_by_the_token_and_has_no_body(token: str | None) -> None:
    """Without a token the bank is asked for it first. The key is the token's; the look-up that confirms it has none."""
    script = [http(CREATED), http(CANCELLED), http(CANCELLED)]
    async with wire(*script[token is not None :]) as double:
        assert await answer_to(CallOff(CHARGE, token), double.url) == CalledOff()
    *before, order, look_up = double.requests
    assert [request.split(b"\r\n")[0] for request in before] == (
        [] if token else [b"GET /transactions?reference=charge-1 HTTP/1.1"]
    )
    assert order.startswith(b"POST /transactions/ttok_1/cancel HTTP/1.1\r\n")
    assert b"\r\nIdempotency-Key: charge-1:cancel:ttok_1\r\n" in order
    assert b"\r\nContent-Length: 0\r\n" in order
    assert order.endswith(b"\r\n\r\n")
    assert look_up.startswith(b"GET /transactions/ttok_1 HTTP/1.1\r\n")


# ---------------------------------------------------------------- readable answers
async def test_unknown_but_valid_parts_of_an_answer_are_ignored() -> None:
    """More members, a charset, chunks, a body that ends with the connection, a 1xx before the answer."""
    body = json.dumps(CREATED | {"more": {"of": ["it"]}}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\n"
    assert await answer_from(ASK, head + b"Connection: close\r\n\r\n" + body) == Token("ttok_1")
    chunks = (
        head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n%x\r\n" % (len(body) - 1) + body[1:] + b"\r\n0\r\n\r\n"
    )
    assert await answer_from(ASK, chunks) == Token("ttok_1")
    assert await answer_from(ASK, b"HTTP/1.1 102 Processing\r\n\r\n" + http(CREATED)) == Token("ttok_1")


@pytest.mark.parametrize("state", ["created", "executed", "declined", "expired", "cancelled"])
async def test_a_token_step_takes_the_token_in_any_state(state: str) -> None:
    """The execute step will find its state."""
    ended = {"transaction_id": "txn_1" if state == "executed" else None, "reason": "x" if state == "declined" else None}
    assert await answer_from(ASK, http(OURS | ended | {"state": state})) == Token("ttok_1")


@pytest.mark.parametrize("word", ["do_not_honour", "bank_refused", "already_charged", "", "4111111111111111"])
async def test_an_unknown_reason_of_the_bank_becomes_other(word: str) -> None:
    """Our reasons are a closed set, and some of them never come from a bank."""
    said = OURS | {"reason": word}
    answer = await answer_from(EXECUTE, http(said | {"result": "declined"}), http(said | {"state": "declined"}))
    assert answer == Declined(DeclineReason.OTHER)


@pytest.mark.parametrize("word", ["nothing_held", "released", "more_than_authorized", "amount_differs", "not_captured"])
async def test_a_hold_that_lapsed_is_a_reason_of_its_own(word: str) -> None:
    """The other rules of the bank's ledger are ours too, so that none of them is to be heard."""
    capture = Execute(follows(Kind.CAPTURE), "ttok_1")
    said = OURS | FOLLOWING | {"kind": "capture", "final": False, "state": "declined", "result": "declined"}
    for reason, ours in ((word, DeclineReason.OTHER), ("authorization_expired", DeclineReason.AUTHORIZATION_EXPIRED)):
        assert await answer_from(capture, *[http(said | {"reason": reason})] * 2) == Declined(ours)


async def test_an_answer_without_a_kind_is_about_a_charge() -> None:
    """There are banks that do nothing else."""
    refund = RequestToken(an_operation(Kind.REFUND, reference="charge-1"), 0)
    assert await answer_from(ASK, http(CREATED | {"kind": "charge"})) == await answer_from(ASK, http(CREATED))
    differs = await answer_from(refund, *[http(CREATED)] * 2)
    assert isinstance(differs, Contradiction)
    assert differs.evidence.fields == ("kind",)


async def test_a_token_that_was_called_off_is_heard_by_the_execute_step() -> None:
    """If the look-up says so too."""
    gone = http(OURS | {"error": "token_cancelled"}, 410)
    assert await answer_from(EXECUTE, gone, http(CANCELLED)) == CalledOff()
    assert isinstance(await answer_from(EXECUTE, gone, http(CREATED)), Contradiction)


async def test_a_transaction_that_is_open_after_calling_off_is_no_answer() -> None:
    """Nothing is concluded, and the bank is asked again."""
    async with wire(http(CREATED), http(CANCELLED)) as double:
        assert await answer_to(CALL_OFF, double.url) == NoAnswer()
    assert len(double.requests) == 1


HOLD = Execute(an_operation(Kind.AUTHORIZE, reference="charge-1"), "ttok_1")
HELD = EXECUTED | {"kind": "authorize", "result": "executed"}
TIMES: dict[str, int] = {
    "1970-01-01T00:00:00.000001Z": 1,
    "2026-11-30T10:28:01Z": 1_796_034_481_000_000,
    "2026-11-30T10:28:01.123Z": 1_796_034_481_123_000,
    "2026-11-30T12:28:01.123456789+02:00": 1_796_034_481_123_456,
}


@pytest.mark.parametrize("said", TIMES)
async def test_the_time_at_which_a_hold_lapses_is_told_in_microseconds(said: str) -> None:
    """By the step and by a look-up. A bank that tells none says nothing against the hold."""
    held = http(HELD | {"hold_expires_at": said, "state": "executed"})
    async with wire(held, held) as double:
        for look_up_first in (False, True):
            answer = await answer_to(HOLD, double.url, look_up_first=look_up_first)
            assert answer == Executed("txn_1", TIMES[said])
    assert await answer_from(HOLD, http(HELD)) == await answer_from(HOLD, http(HELD | {"hold_expires_at": None}))
    assert await answer_from(HOLD, http(HELD)) == Executed("txn_1", 0)
    charged = http(EXECUTED | {"result": "executed", "hold_expires_at": said})
    assert await answer_from(EXECUTE, charged) == Executed("txn_1", 0), "a charge holds nothing"


# ---------------------------------------------------------------- unreadable answers
def without(said: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != name}


CARD = "4111-1111-1111-1111"  # A test number from every scheme's documentation.
TEXT = json.dumps(CREATED)
UNREADABLE: dict[str, bytes] = {
    "empty": http(b""),
    "no JSON": http(b"<html>"),
    "half of it": http(TEXT[:-9].encode()),
    "more after it": http(TEXT.encode() + b"{}"),
    "a list": http([CREATED]),
    "a string": http("created"),
    "a number": http(1),
    "a byte order mark": http(b"\xef\xbb\xbf" + TEXT.encode()),
    "UTF-16": http(TEXT.encode("utf-16")),
    "bad UTF-8": http(TEXT.replace("tok_visa", "\udcff").encode(errors="surrogateescape")),
    "a key twice": http(TEXT.replace("{", '{"amount": 1250, ', 1).encode()),
    "a key twice, deeper": http(TEXT.replace("}", ', "more": {"a": 1, "a": 1}}').encode()),
    "NaN": http(TEXT.replace("}", ', "more": NaN}').encode()),
    "Infinity": http(TEXT.replace("}", ', "more": -Infinity}').encode()),
    "a float": http(TEXT.replace("}", ', "more": 0.5}').encode()),
    "a deep nest": http(b'{"more": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "a long number": http(TEXT.replace("1250", "1" * 5_000).encode()),
    "amount 1250.0": http(TEXT.replace("1250", "1250.0").encode()),
    "amount 125e1": http(TEXT.replace("1250", "125e1").encode()),
    "amount as text": http(CREATED | {"amount": "1250"}),
    "amount true": http(CREATED | {"amount": True}),
    "a state of another language": http(CREATED | {"state": "erstellt"}),
    "a state that is a list": http(CREATED | {"state": ["created"]}),
    "a result in place of a state": http(without(EXECUTED, "state") | {"result": "executed"}),
    "executed without an id": http(CREATED | {"state": "executed"}),
    "created with an id": http(CREATED | {"transaction_id": "txn_1"}),
    "declined without a reason": http(CREATED | {"state": "declined"}),
    "declined with an id": http(CREATED | {"state": "declined", "reason": "x", "transaction_id": "txn_1"}),
    "created with a reason": http(CREATED | {"reason": "card_declined"}),
    **{f"no {name}": http(without(CREATED, name)) for name in CREATED},
    **{f"{name} null": http(CREATED | {name: None}) for name in CREATED if CREATED[name] is not None},
    **{f"{name} an object": http(CREATED | {name: {}}) for name in CREATED},
    **{
        f"token {token!r:.9}": http(CREATED | {"token": token})
        for token in ("", ".", "..", "a/b", "a?b", "a b", "a\n", "ä", "1" * 129, "4111 1111 1111 1111", "\ud800", CARD)
    },
    "an unknown kind": http(CREATED | {"kind": "gift"}),
    "a kind that is a list": http(CREATED | {"kind": ["charge"]}),
    "kind null": http(CREATED | {"kind": None}),
    "on null": http(CREATED | {"on": None}),
    "on a number": http(CREATED | {"on": 7}),
    "final null": http(CREATED | {"final": None}),
    "final a number": http(CREATED | {"final": 0}),
    "other content type": http(CREATED, 200, "Content-Type: text/html"),
    "two content types": http(CREATED, 200, "Content-Type: application/json", "Content-Type: application/json"),
    "gzip": http(gzip.compress(TEXT.encode()), 200, "Content-Encoding: gzip"),
    "a gzip bomb": http(gzip.compress(b" " * 10_000_000), 200, "Content-Encoding: gzip"),
    "said to be compressed": http(CREATED, 200, "Content-Encoding: br"),
    **{f"status {status}": http(CREATED, status) for status in (201, 204, 206, 304, 402, 405, 410, 418, 451, 500, 599)},
    "refused by a proxy": http(b"<h1>Not found</h1>", 404, "Content-Type: text/html"),
    "refused without a word": http({}, 422),
    "refused by a proxy that speaks JSON": http({"error": "Not Found"}, 404),
    "refused in a list": http({"error": ["refused"]}, 400),
    "in progress without a word": http({}, 202),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": http(CREATED)[:-1],
    "two lengths": http(CREATED, 200, "Content-Length: 3"),
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "chunks of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a header over lines": b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n",
    "status 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "too large": http(json.dumps(CREATED).encode().ljust(65_537)),
    "too large in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"8000\r\n" % ()
    + b" " * 0x8000
    + b"\r\n8000\r\n"
    + b" " * 0x8000
    + b"\r\n8000\r\n"
    + b" " * 0x8000
    + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_incomplete_or_malformed_reply_is_no_answer(reply: bytes) -> None:
    """To a token request and to a look-up alike; no further question is put."""
    async with wire(reply, reply) as double:
        assert await answer_to(ASK, double.url) == NoAnswer()
        assert await answer_to(EXECUTE, double.url, look_up_first=True) == NoAnswer()
    assert len(double.requests) == 2


@pytest.mark.parametrize(
    "transaction_id", [None, "", "..", "a/b", "a b", "1" * 129, CARD, f"txn_{CARD}", 7, True, ["x"]]
)
async def test_an_execution_without_a_proper_transaction_id_is_no_answer(transaction_id: object) -> None:
    """The id is stored, so it must be well formed. The bank sends it once here, and then nothing."""
    said = OURS | {"result": "executed", "transaction_id": transaction_id}
    assert await answer_from(EXECUTE, http(said)) == NoAnswer()


NO_TIMES: list[object] = [
    *[
        "",
        "soon",
        "2026-11-30",
        "2026-11-30T10:28:01",
        "2026-11-30 10:28:01Z",
        "20261130T102801Z",
        "2026-W48-1T10:28:01Z",
    ],
    *["2026-13-30T10:28:01Z", "2026-11-31T10:28:01Z", "2026-11-30T10:28:01,5Z", "2026-11-30T10:28:01Z\n"],
    *["1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-11-30T10:28:01.Z", "\u0662026-11-30T10:28:01Z"],
    "9999-12-31T23:59:59-23:59",
    *[0, 1_796_034_481, True, ["2026-11-30T10:28:01Z"]],
]


@pytest.mark.parametrize("said", NO_TIMES)
async def test_a_hold_without_a_proper_time_is_no_answer(said: object) -> None:
    """The time is stored, so it must be well formed."""
    assert await answer_from(HOLD, http(HELD | {"hold_expires_at": said})) == NoAnswer()


def unusable(said: dict[str, Any], transaction_id: object) -> bytes:
    return http(OURS | said | {"transaction_id": transaction_id})


UNUSABLE = Contradiction(Evidence(("transaction_id",), 200), ReviewReason.TRANSACTION_ID_UNUSABLE)


@pytest.mark.parametrize("transaction_id", ["", "..", "a/b", "a b", "1" * 129, CARD, f"txn_{CARD}", 7, True, ["x"]])
async def test_a_repeated_execution_under_an_unusable_id_goes_into_review(transaction_id: object) -> None:
    """Repeated by the step and two look-ups, or by two look-ups. A look-up with a proper id settles it, none else does."""
    step = unusable({"result": "already_executed"}, transaction_id)
    known = unusable({"state": "executed"}, transaction_id)
    proper = http(EXECUTED | {"state": "executed"})
    assert await answer_from(EXECUTE, step, known, known) == UNUSABLE
    assert await answer_from(EXECUTE, step, proper) == await answer_from(EXECUTE, step, known, proper)
    assert await answer_from(EXECUTE, step, known, proper) == Executed("txn_1")
    for script in ((step,), (step, known), (step, known, unusable({"state": "executed"}, None))):
        assert await answer_from(EXECUTE, *script) == NoAnswer()
    async with wire(known, known) as double:
        assert await answer_to(EXECUTE, double.url, look_up_first=True) == UNUSABLE
    assert await answer_from(ASK, known) == Token("ttok_1"), "the execute step will hear of it"


async def test_no_part_of_an_unusable_id_is_kept() -> None:
    """Other fields differ too: their names are kept, but no hash from which a card number could be guessed."""
    other = http(OURS | {"transaction_id": CARD, "result": "executed", "amount": 1})
    look_up = http(OURS | {"transaction_id": CARD, "state": "executed", "amount": 1})
    assert await answer_from(EXECUTE, other, look_up, look_up) == Contradiction(
        Evidence(("amount",), 200), ReviewReason.FIELDS_DIFFER
    )


# ---------------------------------------------------------------- an answer to another question
class Shifted:
    """A bank whose connections answer their first question right, and each later one with another question's answer.

    It does the work before that, or never. A question over a fresh connection gets a true answer.
    """

    def __init__(self, too_many: bytes, *, does_it: bool) -> None:
        self.url = ""
        self.executed = False
        self.cancelled = False
        self.asked: list[int] = []
        self._too_many = too_many
        self._does_it = does_it

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0] or 0))
                asked += 1
                truth = self._do(head) if asked == 1 or self._does_it else b""
                writer.write(truth if asked == 1 else self._too_many)
        except asyncio.IncompleteReadError:
            pass  # It has left.
        finally:
            self.asked.append(asked)
            writer.close()

    def _do(self, head: bytes) -> bytes:
        is_execute, is_cancel = b"/execute" in head, b"/cancel" in head
        result = {"result": "already_executed" if self.executed else "executed"} if is_execute else {}
        self.executed |= is_execute
        self.cancelled |= is_cancel
        state = "executed" if self.executed else "cancelled" if self.cancelled else "created"
        return http((EXECUTED if self.executed else OURS) | {"state": state} | result)


@asynccontextmanager
async def shifted(too_many: bytes, *, does_it: bool) -> AsyncIterator[Shifted]:
    double = Shifted(too_many, does_it=does_it)
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0)
    double.url = "http://{}:{}".format(*server.sockets[0].getsockname())
    async with server:
        yield double


OTHERS = OURS | {"token": "ttok_2", "reference": "charge-2"}
NOT_OURS: dict[str, bytes] = {
    **{
        f"{status} {error}": http({"error": error}, status)
        for status, error in [
            *[(status, "refused") for status in (400, 404, 409, 422)],
            *[(404, "token_unknown"), (404, "reference_unknown"), (409, "fields_differ")],
            *[(410, "token_expired"), (410, "token_cancelled")],
        ]
    },
    "401": http({}, 401),
    "503": http({}, 503),
    "in progress": http({"result": "in_progress"}, 202),
    "declined, nobody": http({"result": "declined", "state": "declined", "reason": "x", "transaction_id": None}),
    "another's token": http(OTHERS | {"state": "created"}),
    "another's execution": http(OTHERS | {"state": "executed", "result": "executed", "transaction_id": "txn_2"}),
    "another's decline": http(OTHERS | {"state": "declined", "result": "declined", "reason": "card_declined"}),
    "another's expiry": http(OTHERS | {"state": "expired", "error": "token_expired"}, 410),
    "another's calling off": http(OTHERS | {"state": "cancelled", "error": "token_cancelled"}),
    "another's odd id": http(OTHERS | {"state": "executed", "result": "executed", "transaction_id": CARD}),
}


@pytest.mark.parametrize("too_many", NOT_OURS.values(), ids=NOT_OURS)
@pytest.mark.parametrize("does_it", [False, True])
@pytest.mark.parametrize("look_up_first", [False, True])
@pytest.mark.parametrize(
    ("effect", "right"),
    [
        (ASK, Token("ttok_1")),
        (EXECUTE, Executed("txn_1")),
        (CALL_OFF, CalledOff()),
        (CallOff(CHARGE, None), CalledOff()),
    ],
    ids=["token", "execute", "call off", "call off by reference"],
)
async def test_no_charge_ends_on_an_answer_that_is_not_about_it(
    effect: Effect, right: Answer, look_up_first: bool, does_it: bool, too_many: bytes
) -> None:
    """Over a connection that served before. It never serves again, and the repeated step gets its answer."""
    async with shifted(too_many, does_it=does_it) as bank_double:
        bank = gateway_bank(bank_double.url, open_transport(max_connections=4, verify=NO_TLS), PATIENT_SECONDS)
        assert await bank.perform(ASK, look_up_first=False) == Token("ttok_1")
        answer = await bank.perform(effect, look_up_first=look_up_first)
        for _ in range(2):
            if answer == right:
                break
            assert isinstance(answer, NoAnswer | InProgress), answer
            answer = await bank.perform(effect, look_up_first=False)
        assert answer == right
        await bank.close()
    assert max(bank_double.asked, default=0) <= 2


@pytest.mark.parametrize(
    "said",
    [
        *[OURS, {"error": "token_expired"}, {"error": "token_cancelled"}, OURS | {"error": "gone"}],
        *[EXECUTED | {"error": "token_expired"}, EXECUTED | {"error": "token_cancelled"}],
    ],
)
async def test_a_410_that_does_not_name_our_expired_token_is_no_answer(said: dict[str, Any]) -> None:
    """Rule 5: only a definite expiry leads to a new token."""
    assert await answer_from(EXECUTE, http(said, 410), http(OURS | {"state": "expired"})) == NoAnswer()


async def test_a_pause_of_thousands_of_digits_is_the_longest_one() -> None:
    """Python does not convert so long a number."""
    assert await answer_from(ASK, http({}, 429, f"Retry-After: {'9' * 5_000}")) == NoAnswer(20.0)


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
async def test_a_pause_may_be_a_date_in_each_form_of_http(form: str) -> None:
    """RFC 9110, 5.6.7: today's, RFC 850's and asctime's. A date in the past means no pause."""
    soon, past = datetime.now(UTC) + timedelta(seconds=15), datetime.now(UTC) - timedelta(days=1)
    answer = await answer_from(ASK, http({}, 503, f"Retry-After: {soon.strftime(form)}"))
    assert isinstance(answer, NoAnswer)
    assert 1.0 < (answer.retry_after_seconds or 0.0) <= 15.0
    assert await answer_from(ASK, http({}, 503, f"Retry-After: {past.strftime(form)}")) == NoAnswer(0.0)
    assert await answer_from(ASK, http({}, 503, f"Retry-After: {soon.strftime(form)[:-9]}")) == NoAnswer()


async def test_a_body_of_64_kib_is_read() -> None:
    """This is the documented limit."""
    assert await answer_from(ASK, http(TEXT.encode().ljust(65_536))) == Token("ttok_1")


# ---------------------------------------------------------------- a bank that wastes time and memory
async def forever(writer: asyncio.StreamWriter, part: bytes, pause_seconds: float = 0.0) -> None:
    while not writer.is_closing():
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause_seconds)


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await forever(writer, b"X: " + b"y" * 8_000 + b"\r\n")


async def endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    await forever(writer, b" " * 8_000)


async def reset(writer: asyncio.StreamWriter) -> None:
    line: socket.socket = writer.get_extra_info("socket")
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("reply", [endless_headers, endless_body, reset])
async def test_an_endless_reply_or_a_reset_is_no_answer(reply: Reply) -> None:
    """The limits on heads and bodies end it long before the deadline."""
    assert await answer_from(ASK, reply) == NoAnswer()


async def slow_loris(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    await forever(writer, b" ", 0.01)


async def promises_much(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n{")
    await asyncio.sleep(PATIENT_SECONDS)


async def early_hints(writer: asyncio.StreamWriter) -> None:
    await forever(writer, b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.001)


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(PATIENT_SECONDS)


@pytest.mark.parametrize("reply", [slow_loris, promises_much, early_hints, silent])
async def test_a_slow_reply_is_no_answer_at_the_deadline(reply: Reply) -> None:
    """The deadline is for the whole reply, even if bytes trickle in."""
    assert await answer_from(ASK, reply, seconds=IMPATIENT_SECONDS) == NoAnswer()


async def test_a_redirect_is_not_followed() -> None:
    """Not to another path, nor to another host."""
    async with wire() as other, wire() as double:
        for target in ("/elsewhere", other.url):
            for status in (301, 302, 303, 307, 308):
                double.script.append(http(CREATED, status, f"Location: {target}"))
                assert await answer_to(ASK, double.url) == NoAnswer()
        assert len(double.requests) == 10
        assert other.requests == []


# ---------------------------------------------------------------- no connection, and a wrong one
async def test_an_unreachable_bank_is_no_answer() -> None:
    """A closed port."""
    async with wire() as double:
        pass
    assert await answer_to(ASK, double.url) == NoAnswer()


async def test_connections_closed_by_the_bank_are_harmless() -> None:
    """A call after an idle period may use a closed connection: it gets no answer, and is never sent twice."""
    async with wire(*[http(CREATED)] * 20) as double:
        bank = gateway_bank(double.url, open_transport(max_connections=1, verify=NO_TLS), PATIENT_SECONDS)
        for asked in range(1, 21):
            assert await bank.perform(ASK, look_up_first=False) in (Token("ttok_1"), NoAnswer())
            assert len(double.requests) <= asked
        await bank.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in one file."""
    file = tmp_path_factory.mktemp("tls") / "bank.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "-"]
    names = ["-subj", "/CN=bank", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = subprocess.run(["openssl", "req", "-x509", *curve, *names], check=True, capture_output=True)
    file.write_bytes(made.stdout)
    return file


async def test_an_untrusted_certificate_is_a_fault_of_our_set_up_and_nothing_is_sent(certificate: Path) -> None:
    """The card's token never reaches the bank; with the right certificate the bank answers."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # The server's side of the failed handshakes.
    async with wire(http(CREATED), tls=tls) as double:
        trusting = ssl.create_default_context(cafile=str(certificate))
        for trust, url, answer in (
            (ssl.create_default_context(), double.url, NoAnswer(our_setup=True)),
            (trusting, double.url.replace("127.0.0.1", "localhost"), NoAnswer(our_setup=True)),
            (trusting, double.url, Token("ttok_1")),
        ):
            bank = gateway_bank(url, open_transport(max_connections=1, verify=trust), PATIENT_SECONDS)
            assert await bank.perform(ASK, look_up_first=False) == answer
            await bank.close()
    assert len(double.requests) == 1


class Failing(httpx.AsyncBaseTransport):
    """A transport that fails before the answer or in the middle of its body."""

    def __init__(self, error: BaseException, *, in_body: bool) -> None:
        self._error = error
        self._in_body = in_body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002 - its interface
        if not self._in_body:
            raise self._error
        return httpx.Response(200, headers={"Content-Type": "application/json"}, stream=_Torn(self._error))


class _Torn(httpx.AsyncByteStream):
    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield TEXT.encode()
        raise self._error


CIRCLE = OSError("one")
CIRCLE.__cause__ = OSError("two")
CIRCLE.__cause__.__cause__ = CIRCLE


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectTimeout("a lost answer, for some"),
        httpx.ConnectError("refused"),
        TimeoutError("not ours"),
        ConnectionResetError(),
        ssl.SSLError("other than a certificate"),
        ValueError(),
        RuntimeError(),
        RecursionError(),
        MemoryError(),
        StopAsyncIteration(),
        ExceptionGroup("several", [OSError(), OSError()]),
        CIRCLE,
    ],
    ids=repr,
)
async def test_every_exception_of_a_transport_means_no_answer(error: Exception, in_body: bool) -> None:
    """Its class is no evidence."""
    bank = gateway_bank("http://bank", Failing(error, in_body=in_body), PATIENT_SECONDS)
    assert await bank.perform(ASK, look_up_first=False) == NoAnswer()
    assert await bank.perform(EXECUTE, look_up_first=True) == NoAnswer()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()], ids=repr)
async def test_an_error_that_is_no_exception_passes(error: BaseException) -> None:
    """A cancellation and the end of the process are no answers of the bank."""
    bank = gateway_bank("http://bank", Failing(error, in_body=False), PATIENT_SECONDS)
    with pytest.raises(type(error)):
        await bank.perform(ASK, look_up_first=False)


# ---------------------------------------------------------------- laws over generated answers
class Scripted(httpx.AsyncBaseTransport):
    """Answers without a wire: thousands of cases a second."""

    def __init__(self, replies: dict[str, tuple[int, bytes]]) -> None:
        self._replies = replies
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        question = "step" if request.method == "POST" else "reference" if "?" in target_of(request) else "token"
        self.asked.append(question)
        status, body = self._replies[question]
        return httpx.Response(status, headers={"Content-Type": "application/json"}, stream=httpx.ByteStream(body))


def perform(effect: Effect, replies: dict[str, tuple[int, bytes]], *, look_up_first: bool) -> tuple[Answer, list[str]]:
    transport = Scripted(replies)
    bank = gateway_bank("http://bank", transport, PATIENT_SECONDS)
    return asyncio.run(bank.perform(effect, look_up_first=look_up_first)), transport.asked


anything = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*CREATED, "result", "error"]), inner, max_size=9)
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
)


@given(st.lists(anything, min_size=3, max_size=3), st.sampled_from([200, 202, 400, 404, 409, 410, 422]), st.booleans())
@settings(max_examples=100)
def test_no_body_raises_or_executes(bodies: list[bytes], status: int, look_up_first: bool) -> None:
    """For any bytes and any JSON the answer is a value of the union, and no charge ends on it."""
    replies = {question: (status, body) for question, body in zip(("step", "token", "reference"), bodies, strict=True)}
    for effect in (ASK, EXECUTE, CALL_OFF):
        answer, _ = perform(effect, replies, look_up_first=look_up_first)
        assert isinstance(answer, NoAnswer | InProgress | Refused | Contradiction)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_no_bytes_on_the_wire_raise_or_execute(parts: list[bytes], look_up_first: bool, has_head: bool) -> None:
    """Whether the bytes are HTTP or not."""

    async def run() -> list[Answer]:
        head = b"HTTP/1.1 200 OK\r\n" if has_head else b""
        async with wire(*[head + part for part in parts]) as double:
            return [await answer_to(effect, double.url, look_up_first=look_up_first) for effect in EFFECTS]

    assert set(asyncio.run(run())) == {NoAnswer()}


@given(st.text(st.sampled_from("0123456789:,-+ SunMovGTZ"), max_size=40) | st.text(max_size=40))
@settings(max_examples=300)
def test_no_requested_pause_spoils_the_answer(wish: str) -> None:
    """Any value is read as a pause within our limits or as none, and the rest of the answer is read."""

    class Wishing(Scripted):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answered = await super().handle_async_request(request)
            answered.headers["Retry-After"] = wish.encode("utf-8", "replace").decode("latin-1")
            return answered

    for status, said in ((200, CREATED), (202, {"result": "in_progress"})):
        bank = gateway_bank("http://bank", Wishing({"step": (status, json.dumps(said).encode())}), PATIENT_SECONDS)
        answer = asyncio.run(bank.perform(ASK, look_up_first=False))
        assert answer == Token("ttok_1") or isinstance(answer, InProgress)
        assert not isinstance(answer, InProgress) or 0.0 <= (answer.retry_after_seconds or 0.0) <= 20.0


# Answers that are nearly right: in each field the right value, or another one.
WORDS = ["created", "executed", "already_executed", "declined", "expired", "cancelled"]
near = st.fixed_dictionaries(
    {
        "token": st.sampled_from(["ttok_1"] * 4 + ["ttok_2"]),
        "reference": st.sampled_from(["charge-1"] * 6 + ["charge-2"]),
        "card": st.sampled_from(["tok_visa"] * 6 + ["tok_mastercard"]),
        "amount": st.sampled_from([1250] * 6 + [1251, -1250]),
        "currency": st.sampled_from(["EUR"] * 6 + ["eur", "USD"]),
        "transaction_id": st.sampled_from([None, "txn_1", "txn_2"]),
        "reason": st.sampled_from([None, "card_declined"]),
    },
    optional={
        "state": st.sampled_from(WORDS),
        "result": st.sampled_from([*WORDS, "in_progress"]),
        "error": st.sampled_from(["token_expired", "token_cancelled", "token_unknown"]),
        "kind": st.sampled_from(["charge"] * 6 + ["authorize"]),
        "on": st.sampled_from([""] * 6 + ["txn_0"]),
        "final": st.sampled_from([False] * 6 + [True]),
    },
)
reply = st.tuples(st.sampled_from([200] * 6 + [202, 400, 404, 404, 410, 500]), near)


def fits(said: dict[str, Any]) -> bool:
    ours = OURS | {"kind": "charge", "on": "", "final": False}
    names = ("token", "reference", "card", "amount", "currency", "kind", "on", "final")
    return all(said.get(name, ours[name]) == ours[name] for name in names)


@given(reply, reply, reply, st.booleans(), st.sampled_from([EXECUTE, CALL_OFF]))
@settings(max_examples=600)
def test_a_token_is_settled_only_by_an_answer_about_our_transaction(
    step: tuple[int, dict[str, Any]],
    by_token: tuple[int, dict[str, Any]],
    by_reference: tuple[int, dict[str, Any]],
    look_up_first: bool,
    effect: Effect,
) -> None:
    """Every field is ours, and an end without money comes from a look-up."""
    said = {"step": step, "token": by_token, "reference": by_reference}
    replies = {question: (status, json.dumps(body).encode()) for question, (status, body) in said.items()}
    answer, asked = perform(effect, replies, look_up_first=look_up_first)
    (status, last) = said[asked[-1]]
    match answer:
        case Executed(transaction_id):
            assert status == 200
            assert fits(last)
            assert last["transaction_id"] == transaction_id
            is_execute = asked[-1] == "step" and effect is EXECUTE
            assert (last.get("result") if is_execute else last.get("state")) in ("executed", "already_executed")
        case Declined() | Expired() | CalledOff():
            word = {Declined: "declined", Expired: "expired", CalledOff: "cancelled"}[type(answer)]
            assert (status, asked[-1] != "step", last.get("state")) == (200, True, word)
            assert fits(last)
        case Contradiction(evidence, ReviewReason.FIELDS_DIFFER):
            assert evidence.fields
        case Refused() | Contradiction() | NoAnswer() | InProgress():
            pass
        case Token():
            pytest.fail("the answer to a question that was not asked")


@given(reply, reply, st.booleans())
@settings(max_examples=200)
def test_a_token_step_takes_only_a_token_of_our_transaction(
    step: tuple[int, dict[str, Any]], by_reference: tuple[int, dict[str, Any]], look_up_first: bool
) -> None:
    """Every field is ours but the token, which we do not know yet."""
    said = {"step": step, "reference": by_reference}
    replies = {question: (status, json.dumps(body).encode()) for question, (status, body) in said.items()}
    answer, asked = perform(ASK, replies, look_up_first=look_up_first)
    (status, last) = said[asked[-1]]
    match answer:
        case Token(token):
            assert (status, last["token"]) == (200, token)
            assert fits(last | {"token": "ttok_1"})
        case Refused() | Contradiction() | NoAnswer() | InProgress():
            pass
        case Executed() | Declined() | Expired() | CalledOff():
            pytest.fail("the answer to a question that was not asked")
