"""The bank's ledger: which transactions were opened, how each ended, and what money moved.

Its rules:

* A transaction is opened once and closed once: executed, declined or expired. Closed is for ever.
* Of one reference, all transactions but the newest are expired: at most one is open, and at most one ever moves money.
* Each change is one SQL statement that holds its own condition, and is a SQLite transaction of its own. What was read
  before may be old; it is the statement that decides. So no lock is held here across several of them.
* A change that was returned is on disk. Nothing is ever deleted.
* Nothing here reads a clock: times come in, as milliseconds since 1970 in UTC.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiosqlite

CARDS: Mapping[str, str | None] = {
    "tok_visa": None,
    "tok_mastercard": None,
    "tok_declined": "card_declined",
    "tok_insufficient_funds": "insufficient_funds",
    "tok_expired_card": "expired_card",
}
"""The cards this bank knows, and why it declines each when it executes; None: it approves."""

SCHEMA_VERSION = 1

# For a bank started while the one before it, just killed, is still dying: that takes milliseconds.
LOCK_TIMEOUT_SECONDS = 1.0

PRAGMAS: Mapping[str, tuple[str, str | int]] = {
    # One bank a ledger: a second process would have its own faults and its own log of calls, and a test would read the
    # wrong one. It also keeps clear of SQLite's WAL-reset bug, which takes several connections (3.7.0 to 3.51.2).
    "locking_mode": ("EXCLUSIVE", "exclusive"),
    # One sync a commit instead of two.
    "journal_mode": ("WAL", "wal"),
    # A bank that forgets an execution after a power cut is no bank to test against. NORMAL does (measured).
    "synchronous": ("FULL", 2),
}

SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS transactions (
        number         INTEGER PRIMARY KEY,                                -- the order in which they were opened
        token          TEXT    NOT NULL UNIQUE,
        reference      TEXT    NOT NULL,
        kind           TEXT    NOT NULL CHECK (kind IN ('charge')),        -- refunds will be transactions too
        card           TEXT    NOT NULL,
        amount         INTEGER NOT NULL CHECK (amount > 0),                -- in minor units
        currency       TEXT    NOT NULL,
        state          TEXT    NOT NULL CHECK (state IN ('created', 'executed', 'declined', 'expired')),
        opened_at      INTEGER NOT NULL,
        expires_at     INTEGER NOT NULL,
        closed_at      INTEGER          CHECK ((closed_at IS NULL) = (state = 'created')),
        transaction_id TEXT    UNIQUE   CHECK ((transaction_id IS NOT NULL) = (state = 'executed')),
        movement       INTEGER UNIQUE   CHECK ((movement IS NOT NULL) = (state = 'executed')),  -- order of execution
        reason         TEXT             CHECK ((reason IS NOT NULL) = (state = 'declined'))
    ) STRICT
    """,
    # The promise of the two steps: never a second open transaction, and never a second execution, under one reference.
    "CREATE UNIQUE INDEX IF NOT EXISTS one_lives ON transactions (reference) WHERE state <> 'expired'",
    # Finds the newest of a reference among its expired ones too.
    "CREATE INDEX IF NOT EXISTS by_reference ON transactions (reference)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_FIELDS = "token, reference, card, amount, currency, state, expires_at, transaction_id, reason"

# Each of these three is given a JSON array of wishes and answers all of them, in one commit: see `_Together`.

# `one_lives` refuses a second one. An expired one does not count there, yet its fields still bind its reference.
OPEN = f"""
    INSERT INTO transactions (token, reference, kind, card, amount, currency, state, opened_at, expires_at)
    SELECT value ->> 'token', value ->> 'reference', 'charge', value ->> 'card', value ->> 'amount',
           value ->> 'currency', 'created', value ->> 'now', value ->> 'expires_at'
    FROM json_each(?)
    WHERE NOT EXISTS (
        SELECT 1 FROM transactions AS known
        WHERE known.reference = value ->> 'reference'
          AND (known.card, known.amount, known.currency) <> (value ->> 'card', value ->> 'amount', value ->> 'currency')
    )
    ORDER BY key
    ON CONFLICT (reference) WHERE state <> 'expired' DO NOTHING
    RETURNING {_FIELDS}
"""  # noqa: S608 - the one thing put in is a constant of this module

# Two wishes for one token: SQLite takes either. The numbers of movements grow, with gaps.
CLOSE = f"""
    UPDATE transactions
    SET state = value ->> 'state', closed_at = value ->> 'now',
        transaction_id = value ->> 'transaction_id', reason = value ->> 'reason',
        movement = CASE value ->> 'state'
            WHEN 'executed' THEN (SELECT coalesce(max(movement), 0) FROM transactions) + 1 + key
        END
    FROM json_each(?)
    WHERE token = value ->> 'token' AND state = 'created'
    RETURNING {_FIELDS}
"""  # noqa: S608 - as above

FIND = f"SELECT {_FIELDS} FROM json_each(?) CROSS JOIN transactions ON token = value ->> 'token'"  # noqa: S608 - as above

NEWEST = f"SELECT {_FIELDS} FROM transactions WHERE reference = ? ORDER BY number DESC LIMIT 1"  # noqa: S608 - as above

MOVEMENTS = """
    SELECT transaction_id, token, reference, kind, amount, currency, closed_at
    FROM transactions WHERE movement IS NOT NULL ORDER BY movement
"""


class LedgerUnusable(Exception):
    """The ledger cannot be opened as it must be: of another version, or a pragma that did not take."""


class State(StrEnum):
    """How far a transaction has come. All but `CREATED` are for ever."""

    CREATED = "created"
    EXECUTED = "executed"
    DECLINED = "declined"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction as it was when it was read: one that was open then may be closed by now."""

    token: str
    reference: str
    card: str
    amount_minor: int
    currency: str
    state: State
    expires_at_ms: int
    transaction_id: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class ReferenceReused:
    """The reference is known with another card, amount or currency."""


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved."""

    transaction_id: str
    token: str
    reference: str
    kind: str
    amount_minor: int
    currency: str
    executed_at_ms: int


@asynccontextmanager
async def open_ledger(path: str | Path) -> AsyncIterator["Ledger"]:
    """Opens the ledger at `path`, made if it is not there, and closes it at the end.

    Raises `LedgerUnusable`, and `sqlite3.Error` for what SQLite finds, another bank's lock on the file among it.
    """
    async with aiosqlite.connect(path, isolation_level=None, timeout=LOCK_TIMEOUT_SECONDS) as database:
        for name, (wanted, shown) in PRAGMAS.items():
            await database.execute_fetchall(f"PRAGMA {name} = {wanted}")
            if [row[0] for row in await database.execute_fetchall(f"PRAGMA {name}")] != [shown]:
                raise LedgerUnusable(f"SQLite would not set {name} to {wanted}")
        if [row[0] for row in await database.execute_fetchall("PRAGMA user_version")] not in ([0], [SCHEMA_VERSION]):
            raise LedgerUnusable("the ledger was written by another version of the mock bank")
        for statement in SCHEMA:
            await database.execute_fetchall(statement)
        ledger = Ledger(database)
        try:
            yield ledger
        finally:
            await ledger.finish()


class Ledger:
    """An open ledger. A method raises `sqlite3.Error` if SQLite fails; whether the change was made is then unknown."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database
        self._opening = _Together(database, OPEN)
        self._closing = _Together(database, CLOSE)
        self._finding = _Together(database, FIND)

    async def issue(
        self, *, reference: str, card: str, amount_minor: int, currency: str, now_ms: int, lifetime_ms: int
    ) -> Transaction | ReferenceReused:
        """The reference's transaction: the one it has, or a new one if it has none or its last one expired."""
        wish = {
            "token": f"ttok_{secrets.token_hex(16)}",
            "reference": reference,
            "card": card,
            "amount": amount_minor,
            "currency": currency,
            "now": now_ms,
            "expires_at": now_ms + lifetime_ms,
        }
        while True:  # Each further round has closed a late transaction, of which there was one.
            if (opened := await self._opening.ask(wish)) is not None:
                return opened
            (known,) = await _transactions(self._database, NEWEST, reference)
            if (known.card, known.amount_minor, known.currency) != (card, amount_minor, currency):
                return ReferenceReused()
            if (known := await self.close_if_late(known, now_ms)).state is not State.EXPIRED:
                return known

    async def execute(
        self, seen: Transaction, now_ms: int, *, transaction_id: str | None = None
    ) -> tuple[Transaction, bool]:
        """Executes or declines it, unless it is closed. Returns it as it is then, and whether this call executed it.

        Under an id of its own, unless one is given.
        """
        seen = await self.close_if_late(seen, now_ms)
        if seen.state is not State.CREATED:
            return seen, False
        if (reason := CARDS[seen.card]) is not None:
            return (await self._close(seen, State.DECLINED, now_ms, reason=reason)), False
        transaction_id = transaction_id or f"txn_{secrets.token_hex(16)}"
        closed = await self._close(seen, State.EXECUTED, now_ms, transaction_id=transaction_id)
        return closed, closed.transaction_id == transaction_id

    async def close_if_late(self, seen: Transaction, now_ms: int) -> Transaction:
        """Closes it as expired if its time is over: nobody is told "expired" of a transaction that is still open."""
        if seen.state is State.CREATED and seen.expires_at_ms <= now_ms:
            return await self.expire(seen, now_ms)
        return seen

    async def expire(self, seen: Transaction, now_ms: int) -> Transaction:
        """Closes it as expired, whatever its time, unless it is closed already. Returns it as it is then."""
        return await self._close(seen, State.EXPIRED, now_ms)

    async def find(self, token: str) -> Transaction | None:
        """The transaction of that token."""
        return await self._finding.ask({"token": token})

    async def newest(self, reference: str) -> Transaction | None:
        """The transaction of that reference that was opened last."""
        return next(iter(await _transactions(self._database, NEWEST, reference)), None)

    async def movements(self) -> list[Movement]:
        """All money that moved, in the order of execution. No limit: a statement with gaps proves nothing."""
        return [Movement(*row) for row in await self._database.execute_fetchall(MOVEMENTS)]

    async def finish(self) -> None:
        """Waits for the changes that nobody waits for any more."""
        for together in (self._opening, self._closing, self._finding):
            await together.finish()

    async def _close(
        self,
        seen: Transaction,
        state: State,
        now_ms: int,
        *,
        transaction_id: str | None = None,
        reason: str | None = None,
    ) -> Transaction:
        wish = {"token": seen.token, "state": state, "now": now_ms, "transaction_id": transaction_id, "reason": reason}
        if (closed := await self._closing.ask(wish)) is not None:
            return closed
        (known,) = await _transactions(self._database, FIND, json.dumps([wish]))
        return known


class _Together:
    """Runs one statement for all who ask at the same time: those who come while it runs share the next run.

    A run is one hop to SQLite's thread and, if it changes something, one sync, however many share it: at 32 calls in
    flight the bank answers more than twice as many as with a statement a call (measured). It shares with as many as
    there are connections, so it needs no limit of its own.
    """

    def __init__(self, database: aiosqlite.Connection, sql: str) -> None:
        self._database = database
        self._sql = sql
        self._asked: list[tuple[Mapping[str, object], asyncio.Future[Transaction | None]]] = []
        self._runs: asyncio.Task[None] | None = None

    async def ask(self, wish: Mapping[str, object]) -> Transaction | None:
        """What the statement returned of the transaction with the wish's token."""
        answer: asyncio.Future[Transaction | None] = asyncio.get_running_loop().create_future()
        self._asked.append((wish, answer))
        if self._runs is None:
            self._runs = asyncio.create_task(self._run())
        return await answer

    async def finish(self) -> None:
        """Waits until nothing runs."""
        if self._runs is not None:
            await self._runs

    async def _run(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                found = await _transactions(self._database, self._sql, json.dumps([wish for wish, _ in asked]))
            except Exception as error:
                _settle((answer, error) for _, answer in asked)
            else:
                by_token = {transaction.token: transaction for transaction in found}
                _settle((answer, by_token.get(str(wish["token"]))) for wish, answer in asked)
        self._runs = None


def _settle(answers: Iterable[tuple[asyncio.Future[Transaction | None], Transaction | Exception | None]]) -> None:
    for future, answer in answers:
        if future.done():
            continue  # Who asked was cancelled.
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


async def _transactions(database: aiosqlite.Connection, sql: str, parameter: str) -> list[Transaction]:
    # Reading all rows runs the statement to its end, and that is what commits it.
    return [
        Transaction(token, reference, card, amount, currency, State(state), expires_at, transaction_id, reason)
        for token, reference, card, amount, currency, state, expires_at, transaction_id, reason in (
            await database.execute_fetchall(sql, (parameter,))
        )
    ]
