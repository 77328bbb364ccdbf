"""The payments of the one-step bank on disk: in the ledger's file, in a table of their own. The rules are `payments`'.

1. Each payment is one row, written once, by one statement: there is no payment that is half done.
2. Payments are made one at a time, so that a key that comes twice at once is one payment.
3. Nothing is ever deleted. A forgotten key is one whose row is too old, and a newer row may have the same key.
4. Nothing here reads a clock: times come in, as milliseconds since 1970 in UTC.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from gateway_mock.ids import new_transaction_id
from gateway_mock.ledger import Ledger, open_ledger
from gateway_mock.model import CANCELLATION, HOLD_MS, Closing, Operation, Refusal, State, Transaction
from gateway_mock.payments import KEY_MS, NEVER_MS, carried_out, saved

_FIELDS = (
    "key, reference, card, amount, currency, state, closed_at, transaction_id, reason, kind, acts_on, final, "
    "hold_expires_at"
)

_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS payments (
        number          INTEGER PRIMARY KEY,                                -- the order in which they were made
        key             TEXT    NOT NULL,
        reference       TEXT    NOT NULL,
        card            TEXT    NOT NULL,                                   -- the opening's, if it follows one
        amount          INTEGER NOT NULL CHECK (amount > 0),                -- in minor units
        currency        TEXT    NOT NULL,
        state           TEXT    NOT NULL CHECK (state IN ('executed', 'declined', 'cancelled')),
        closed_at       INTEGER NOT NULL,
        transaction_id  TEXT    UNIQUE   CHECK ((transaction_id IS NOT NULL) = (state = 'executed')),
        reason          TEXT             CHECK ((reason IS NOT NULL) = (state = 'declined')),
        kind            TEXT    NOT NULL CHECK (kind IN ('charge', 'authorize', 'capture', 'void', 'refund')),
        acts_on         TEXT             CHECK ((acts_on IS NULL) = (kind IN ('charge', 'authorize'))),
        final           INTEGER NOT NULL CHECK (final IN (0, 1) AND (final = 0 OR kind = 'capture')),
        hold_expires_at INTEGER          CHECK ((hold_expires_at IS NOT NULL) = (kind = 'authorize' AND state = 'executed'))
    ) STRICT
    """,
    "CREATE INDEX IF NOT EXISTS payments_by_key ON payments (key)",
    "CREATE INDEX IF NOT EXISTS payments_by_reference ON payments (reference)",
    "CREATE INDEX IF NOT EXISTS payments_on ON payments (acts_on) WHERE acts_on IS NOT NULL",
)

_KEEP = f"INSERT INTO payments ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - a constant

_BY_KEY = f"SELECT {_FIELDS} FROM payments WHERE key = ? ORDER BY number DESC LIMIT 1"  # noqa: S608 - as above

# A key that was called off is told of only if nothing was paid under the reference.
_NEWEST = f"""
    SELECT {_FIELDS} FROM payments WHERE reference = ? ORDER BY state = 'cancelled', number DESC LIMIT 1
"""  # noqa: S608 - as above

_OPENING = f"SELECT {_FIELDS} FROM payments WHERE transaction_id = ? AND acts_on IS NULL"  # noqa: S608 - as above

_FOLLOWERS = f"""
    SELECT {_FIELDS} FROM payments WHERE acts_on = ? AND state = 'executed' ORDER BY number
"""  # noqa: S608 - as above

_EXECUTED = f"SELECT {_FIELDS} FROM payments WHERE state = 'executed' ORDER BY number"  # noqa: S608 - as above

_PAGE = f"""
    SELECT number, {_FIELDS} FROM payments
    WHERE number > ? AND state = 'executed' AND closed_at >= ? AND closed_at < ? ORDER BY number LIMIT ?
"""  # noqa: S608 - as above

_EXPIRE_HOLD = """
    UPDATE payments SET hold_expires_at = min(hold_expires_at, ?)
    WHERE transaction_id = ? AND hold_expires_at IS NOT NULL
"""


@asynccontextmanager
async def open_ledgers(
    path: str | Path, *, hold_ms: int = round(HOLD_MS), key_ms: int = round(KEY_MS)
) -> AsyncIterator[tuple[Ledger, "PaymentLedger"]]:
    """Open the ledger at `path` and its payments, as `open_ledger` does. Keys are remembered for `key_ms`."""
    async with open_ledger(path, hold_ms=hold_ms) as ledger:
        for statement in _TABLES:
            await ledger.database.execute_fetchall(statement)
        yield ledger, PaymentLedger(ledger.database, hold_ms, key_ms)


class PaymentLedger:
    """The payments. A method raises `sqlite3.Error` if SQLite fails; whether the payment was made is then unknown."""

    def __init__(self, database: aiosqlite.Connection, hold_ms: int, key_ms: int) -> None:
        self._database = database
        self._hold_ms = hold_ms
        self._key_ms = key_ms
        self._one_at_a_time = asyncio.Lock()

    async def pay(
        self, wanted: Transaction, now_ms: int, *, transaction_id: str | None = None
    ) -> tuple[Transaction, bool] | Refusal:
        """Carry an order out, or give the saved payment of its key; and say whether it was saved. Its token is the key.

        The id is a new one unless one is given.
        """
        return await self._keep(wanted, now_ms, transaction_id or new_transaction_id(), None)

    async def cancel(self, wanted: Transaction, now_ms: int) -> Transaction | Refusal:
        """Close a key for ever that is not known, or give its payment."""
        kept = await self._keep(wanted, now_ms, "", CANCELLATION)
        return kept if isinstance(kept, Refusal) else kept[0]

    async def newest(self, reference: str) -> Transaction | None:
        """Look up the reference's payment that was made last, or else the key of this reference that was called off."""
        return await self._one(_NEWEST, reference)

    async def opening(self, transaction_id: str) -> Transaction | None:
        """Look up an executed opening by its transaction_id."""
        return await self._one(_OPENING, transaction_id)

    async def executed(self) -> list[Transaction]:
        """Read all payments that were executed, in that order."""
        return await self._all(_EXECUTED)

    async def page(self, after: int, begin_ms: int, end_ms: int, limit: int) -> list[tuple[int, Transaction]]:
        """Read what was executed in a span of time, after the payment of a number: at most `limit`, each with its number."""
        rows = await self._database.execute_fetchall(_PAGE, (after, begin_ms, end_ms, limit))
        return [(number, _payment(*fields)) for number, *fields in rows]

    async def expire_hold(self, transaction_id: str, now_ms: int) -> None:
        """Let the hold of an executed authorize lapse before its time. A charge has none."""
        await self._database.execute_fetchall(_EXPIRE_HOLD, (now_ms, transaction_id))

    async def _keep(
        self, wanted: Transaction, now_ms: int, transaction_id: str, end: Closing | None
    ) -> tuple[Transaction, bool] | Refusal:
        wanted.expires_at_ms = NEVER_MS
        async with self._one_at_a_time:
            known = saved(await self._one(_BY_KEY, wanted.token), wanted, now_ms, self._key_ms)
            if isinstance(known, Refusal):
                return known
            if known is not None:
                return known, True
            opening = None if wanted.on is None else await self.opening(wanted.on)
            if opening is not None:
                wanted.card = opening.card
            if end is None:
                followers = [] if wanted.on is None else await self._all(_FOLLOWERS, wanted.on)
                how = carried_out(wanted, opening, followers, now_ms, transaction_id, self._hold_ms)
                if isinstance(how, Refusal):
                    return how
                end = how
            wanted.state, wanted.closed_at_ms, wanted.transaction_id = end.state, now_ms, end.transaction_id
            wanted.reason, wanted.hold_expires_at_ms = end.reason, end.hold_expires_at_ms
            await self._database.execute_fetchall(_KEEP, _row(wanted))
            return wanted, False

    async def _one(self, sql: str, parameter: str) -> Transaction | None:
        return next(iter(await self._all(sql, parameter)), None)

    async def _all(self, sql: str, *parameters: str) -> list[Transaction]:
        return [_payment(*row) for row in await self._database.execute_fetchall(sql, parameters)]


def _row(payment: Transaction) -> tuple[object, ...]:
    """Write the `_FIELDS`."""
    return (
        payment.token,
        payment.reference,
        payment.card,
        payment.amount_minor,
        payment.currency,
        payment.state,
        payment.closed_at_ms,
        payment.transaction_id,
        payment.reason,
        payment.kind,
        payment.on,
        payment.final,
        payment.hold_expires_at_ms,
    )


def _payment(
    key: str,
    reference: str,
    card: str,
    amount: int,
    currency: str,
    state: str,
    closed_at: int,
    transaction_id: str | None,
    reason: str | None,
    kind: str,
    on: str | None,
    final: int,
    hold_expires_at: int | None,
) -> Transaction:
    """Read the `_FIELDS` of a row."""
    return Transaction(
        key,
        reference,
        card,
        amount,
        currency,
        NEVER_MS,
        State(state),
        closed_at,
        transaction_id,
        reason,
        Operation(kind),
        on,
        bool(final),
        hold_expires_at,
    )
