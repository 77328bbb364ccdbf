"""A bank that costs next to nothing, so that it does not compete with the measured service: python -m bench.bank

It speaks just enough HTTP/1.1 to answer the gateway's API as the docstring of `gateway_mock` defines it, with a ledger in
memory and all cards approved. Both steps are idempotent. BENCH_DELAY_MILLISECONDS is the delay of every answer, 0 if not set.

It is cheap because it has one Protocol a connection instead of streams and tasks, no framework, and answers made by
formatting bytes.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from typing import cast

import uvloop

CREATED, EXECUTED = "created", "executed"
# More than any request of an adapter. A connection that sends more without a complete request is closed.
MAX_REQUEST_BYTES = 64 << 10


@dataclass(slots=True)
class Transaction:
    """One line of the ledger."""

    reference: str
    card: str
    amount: int
    currency: str
    token: str
    transaction_id: str = ""

    def fields(self) -> str:
        """The members that every answer about a transaction has, as JSON."""
        transaction_id = f'"{self.transaction_id}"' if self.transaction_id else "null"
        return (
            f'"token":"{self.token}","reference":"{self.reference}","card":"{self.card}","amount":{self.amount},'
            f'"currency":"{self.currency}","transaction_id":{transaction_id},"reason":null'
        )


@dataclass(slots=True)
class Ledger:
    """All transactions, by reference and by token."""

    by_reference: dict[str, Transaction] = field(default_factory=dict)
    by_token: dict[str, Transaction] = field(default_factory=dict)

    def answer(self, method: bytes, path: str, body: bytes) -> tuple[int, str]:
        """Execute a request; return the status and the JSON of the answer."""
        if method == b"POST" and path == "/transactions":
            return self._issue(json.loads(body))
        if method == b"POST" and path.endswith("/execute"):
            return self._execute(self.by_token.get(path[14:-8]), json.loads(body) if body else {})
        if method == b"GET" and path.startswith("/transactions?reference="):
            return self._look_up(self.by_reference.get(path[24:]), "reference_unknown")
        if method == b"GET" and path.startswith("/transactions/"):
            return self._look_up(self.by_token.get(path[14:]), "token_unknown")
        if method == b"GET" and path == "/movements":  # not part of the gateway's API: a count for the referee
            executed = sum(bool(transaction.transaction_id) for transaction in self.by_reference.values())
            return 200, f'{{"movements":{executed},"transactions":{len(self.by_reference)}}}'
        return 404, '{"error":"not_found"}'

    def _issue(self, order: dict[str, object]) -> tuple[int, str]:
        reference, card, amount, currency = (
            str(order["reference"]),
            str(order["card"]),
            order["amount"],
            str(order["currency"]),
        )
        known = self.by_reference.get(reference)
        if known is None:
            assert isinstance(amount, int)
            known = Transaction(reference, card, amount, currency, f"ttok_{len(self.by_reference):012x}")
            self.by_reference[reference] = self.by_token[known.token] = known
        elif (known.card, known.amount, known.currency) != (card, amount, currency):
            return 409, '{"error":"reference_reused"}'
        return self._look_up(known, "")

    def _execute(self, known: Transaction | None, order: dict[str, object]) -> tuple[int, str]:
        if known is None:
            return 404, '{"error":"token_unknown"}'
        if order and (order["amount"], order["currency"]) != (known.amount, known.currency):
            return 409, '{"error":"fields_differ"}'
        result = "already_executed" if known.transaction_id else "executed"
        known.transaction_id = "txn" + known.token[4:]
        return 200, f'{{"result":"{result}",{known.fields()}}}'

    def _look_up(self, known: Transaction | None, unknown: str) -> tuple[int, str]:
        if known is None:
            return 404, f'{{"error":"{unknown}"}}'
        state = EXECUTED if known.transaction_id else CREATED
        return 200, f'{{"state":"{state}","expires_at":"2099-01-01T00:00:00.000Z",{known.fields()}}}'


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
