"""The bank's ledger: its transactions on disk. The rules they follow are the `model`'s.

1. Each change is one SQL statement that holds its own condition, and a SQLite transaction of its own. A transaction that was
   read before may have been closed since, so the statement decides. No lock is held across several statements.
2. A change that was returned is on disk. Nothing is ever deleted.
3. Nothing here reads a clock: times come in, as milliseconds since 1970 in UTC.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from gateway_mock.model import EXPIRY, Closing, Refusal, State, Transaction, closing, issued, lapses

SCHEMA_VERSION = 1

# A bank may be started while its predecessor, just killed, is still ending, which takes milliseconds.
LOCK_TIMEOUT_SECONDS = 1.0

PRAGMAS: Mapping[str, tuple[str, str | int]] = {
    # One bank a ledger: a second process would have its own faults and its own log of calls, and a test would read the
    # wrong one. It also keeps clear of SQLite's WAL-reset bug, which takes several connections (3.7.0 to 3.51.2).
    "locking_mode": ("EXCLUSIVE", "exclusive"),
    # It takes one sync a commit instead of two.
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

_FIELDS = "token, reference, card, amount, currency, expires_at, state, closed_at, transaction_id, reason"

# Each of the next three is given a JSON array of wishes and grants all of them in one commit: see `_Together`.

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

# Of two wishes for one token SQLite grants either. The numbers of movements grow, with gaps.
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

EXECUTED = f"SELECT {_FIELDS} FROM transactions WHERE movement IS NOT NULL ORDER BY movement"  # noqa: S608 - as above


class LedgerUnusable(Exception):
    """The ledger cannot be opened as it must be: of another version, or a pragma that did not take."""


@asynccontextmanager
async def open_ledger(path: str | Path) -> AsyncIterator["Ledger"]:
    """Open the ledger at `path`, which is made if it is not there, and close it at the end.

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

    async def issue(self, wanted: Transaction, now_ms: int) -> Transaction | Refusal:
        """Do the token step: give the reference's transaction, which is the wanted one if it is opened now."""
        wish = {
            "token": wanted.token,
            "reference": wanted.reference,
            "card": wanted.card,
            "amount": wanted.amount_minor,
            "currency": wanted.currency,
            "now": now_ms,
            "expires_at": wanted.expires_at_ms,
        }
        while True:  # Each further round has closed a late transaction, and there was one.
            if (opened := await self._opening.ask(wish)) is not None:
                return opened
            (newest,) = await _transactions(self._database, NEWEST, wanted.reference)
            got = issued(await self.close_if_late(newest, now_ms), wanted)
            if got is not wanted:
                return got

    async def execute(
        self, seen: Transaction, now_ms: int, *, transaction_id: str | None = None
    ) -> tuple[Transaction, bool]:
        """Do the execute step: give the transaction, closed, and whether this call has executed it.

        The id is a new one unless one is given.
        """
        transaction_id = transaction_id or f"txn_{secrets.token_hex(16)}"
        how = closing(seen, now_ms, transaction_id)
        if how is None:
            return seen, False
        closed = await self._close(seen, how, now_ms)
        return closed, closed.transaction_id == transaction_id

    async def close_if_late(self, seen: Transaction, now_ms: int) -> Transaction:
        """Close it as expired if its time is over, and give it as it is then."""
        return await self.expire(seen, now_ms) if lapses(seen, now_ms) else seen

    async def expire(self, seen: Transaction, now_ms: int) -> Transaction:
        """Close it as expired, whatever its time, unless it is closed already. Give it as it is then."""
        return await self._close(seen, EXPIRY, now_ms)

    async def find(self, token: str) -> Transaction | None:
        """Look up by token."""
        return await self._finding.ask({"token": token})

    async def newest(self, reference: str) -> Transaction | None:
        """Look up the reference's transaction that was opened last."""
        return next(iter(await _transactions(self._database, NEWEST, reference)), None)

    async def executed(self) -> list[Transaction]:
        """Read the statement: all movements of money in the order of execution. There is no limit: gaps would prove nothing."""
        return await _transactions(self._database, EXECUTED)

    async def finish(self) -> None:
        """Wait for the changes whose calls have ended."""
        for together in (self._opening, self._closing, self._finding):
            await together.finish()

    async def _close(self, seen: Transaction, how: Closing, now_ms: int) -> Transaction:
        wish = {
            "token": seen.token,
            "now": now_ms,
            "state": how.state,
            "transaction_id": how.transaction_id,
            "reason": how.reason,
        }
        if (closed := await self._closing.ask(wish)) is not None:
            return closed
        (known,) = await _transactions(self._database, FIND, json.dumps([wish]))
        return known


class _Together:
    """Runs one statement for all calls that wait for it: those that come while it runs share the next run.

    A run is one hop to SQLite's thread and, if it changes something, one sync, whatever the number of calls: at 32 calls in
    flight the bank answers more than twice as many as with a statement a call (measured). The number of connections limits
    the calls that share a run.
    """

    def __init__(self, database: aiosqlite.Connection, sql: str) -> None:
        self._database = database
        self._sql = sql
        self._asked: list[tuple[Mapping[str, object], asyncio.Future[Transaction | None]]] = []
        self._runs: asyncio.Task[None] | None = None

    async def ask(self, wish: Mapping[str, object]) -> Transaction | None:
        """Give what the statement returned of the transaction with the wish's token."""
        answer: asyncio.Future[Transaction | None] = asyncio.get_running_loop().create_future()
        self._asked.append((wish, answer))
        if self._runs is None:
            self._runs = asyncio.create_task(self._run())
        return await answer

    async def finish(self) -> None:
        """Wait until nothing runs."""
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
            continue  # The call was cancelled.
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


async def _transactions(database: aiosqlite.Connection, sql: str, *parameters: str) -> list[Transaction]:
    # Reading all rows runs the statement to its end, and that commits it.
    return [
        Transaction(
            token, reference, card, amount, currency, expires_at, State(state), closed_at, transaction_id, reason
        )
        for token, reference, card, amount, currency, expires_at, state, closed_at, transaction_id, reason in (
            await database.execute_fetchall(sql, parameters)
        )
    ]
