"""A bank that costs next to nothing, so that it does not compete with the measured service: python -m bench.bank

It speaks just enough HTTP/1.1 to answer the gateway's API as the docstring of `gateway_mock` defines it, by the rules of
`gateway_mock.model`, in memory. BENCH_DELAY_MILLISECONDS is the delay of every answer, 0 if not set.

It is cheap because it has one Protocol a connection instead of streams and tasks, no framework, and answers made by
formatting bytes.
"""

import asyncio
import json
import math
import os
import sys
from typing import Any, cast

import uvloop

from gateway_mock.model import STATUS, Book, Refusal, Transaction, told

# More than any request of an adapter. A connection that sends more without a complete request is closed.
MAX_REQUEST_BYTES = 64 << 10
# Tokens here do not expire.
NOW_MS, EXPIRES_AT_MS = 0.0, math.inf


# Odd, so that its multiples are all different.
SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835

_DECODER = json.JSONDecoder()


class Ledger:
    """The bank's transactions, and its answers."""

    def __init__(self) -> None:
        self._book = Book()

    def answer(self, method: bytes, path: str, body: bytes) -> tuple[int, str]:
        """Execute a request; return the status and the JSON of the answer."""
        book = self._book
        if method == b"POST" and path == "/transactions":
            return self._issue(_order(body))
        if method == b"POST" and path.endswith("/execute"):
            return self._execute(path[14:-8], _order(body) if body else {})
        if method == b"GET" and path.startswith("/transactions?reference="):
            return _as_it_is(book.newest(path[24:], NOW_MS) or Refusal.REFERENCE_UNKNOWN)
        if method == b"GET" and path.startswith("/transactions/"):
            return _as_it_is(book.find(path[14:], NOW_MS) or Refusal.TOKEN_UNKNOWN)
        if method == b"GET" and path == "/movements":  # not part of the gateway's API: a count for the referee
            return 200, f'{{"movements":{len(book.executed)},"transactions":{len(book.by_token)}}}'
        return 404, '{"error":"not_found"}'

    def _issue(self, order: dict[str, Any]) -> tuple[int, str]:
        token = token_of(len(self._book.by_token))
        wanted = Transaction(
            token, order["reference"], order["card"], order["amount"], order["currency"], EXPIRES_AT_MS
        )
        return _as_it_is(self._book.issue(wanted, NOW_MS))

    def _execute(self, token: str, order: dict[str, Any]) -> tuple[int, str]:
        compared = (order["amount"], order["currency"]) if order else None
        got = self._book.execute(token, NOW_MS, "txn" + token[4:], compared=compared)
        if isinstance(got, Refusal):
            return _as_it_is(got)
        status, member, word = told(got[0], by_this_call=got[1])
        return status, f'{{"{member}":"{word}",{_members(got[0])}}}'


def token_of(number: int) -> str:
    """The token of a transaction, in the form of the mock bank's. A bare counter would look like a card number now and then."""
    return f"ttok_{(number + 1) * SPREAD % 2**128:032x}"


def _order(body: bytes) -> dict[str, Any]:
    """The body's JSON, without the look for blanks and encodings that json.loads begins with."""
    order: dict[str, Any] = _DECODER.raw_decode(body.decode())[0]
    return order


def _as_it_is(known: Transaction | Refusal) -> tuple[int, str]:
    if isinstance(known, Refusal):
        return STATUS[known], f'{{"error":"{known!s}"}}'
    return 200, f'{{"state":"{known.state!s}","expires_at":"2099-01-01T00:00:00.000Z",{_members(known)}}}'


def _members(known: Transaction) -> str:
    """`Transaction.members` as JSON, in a fifth of the time that json takes."""
    transaction_id = f'"{known.transaction_id}"' if known.transaction_id else "null"
    reason = f'"{known.reason}"' if known.reason else "null"
    return (
        f'"token":"{known.token}","reference":"{known.reference}","kind":"charge","card":"{known.card}","amount":{known.amount_minor},'
        f'"currency":"{known.currency}","transaction_id":{transaction_id},"reason":{reason}'
    )


class Connection(asyncio.Protocol):
    """One client's connection: requests come one after the other."""

    def __init__(self, ledger: Ledger, delay_seconds: float) -> None:
        self._ledger = ledger
        self._delay_seconds = delay_seconds
        self._waiting = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """End; later answers are dropped."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        self._waiting = waiting = self._waiting + data if self._waiting else data
        while (end := waiting.find(b"\r\n\r\n")) >= 0:
            head = waiting[:end]
            length, at = 0, head.lower().find(b"content-length:")
            if at >= 0:
                length = int(head[at + 15 :].split(b"\r", 1)[0])
            whole = end + 4 + length
            if len(waiting) < whole:
                break
            method, path, _ = head.split(b" ", 2)
            status, text = self._ledger.answer(method, path.decode("ascii"), waiting[end + 4 : whole])
            answer = (
                f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
            ).encode("ascii")
            if self._delay_seconds:
                asyncio.get_running_loop().call_later(self._delay_seconds, self._write, answer)
            else:
                self._write(answer)
            self._waiting = waiting = waiting[whole:]
        if len(waiting) > MAX_REQUEST_BYTES and self._transport is not None:
            self._transport.close()

    def _write(self, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(answer)


async def serve(delay_seconds: float) -> None:
    """Serve on a free port until the process is ended, and log the address as the product does."""
    ledger = Ledger()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(ledger, delay_seconds),
        "127.0.0.1",
        0,
        backlog=2_000,  # a thousand clients may come at once
    )
    host, port = server.sockets[0].getsockname()
    print(json.dumps({"event": "serving", "listen": f"{host}:{port}"}), file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(float(os.environ.get("BENCH_DELAY_MILLISECONDS", "0")) / 1000))
