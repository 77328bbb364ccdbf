"""The bank's ledger: its transactions on disk. The rules they follow are the `model`'s.

1. Each change is one SQL statement that holds its own condition, and a SQLite transaction of its own. A transaction that was
   read before may have been closed since, so the statement decides. No lock is held across several statements.
2. A change that was returned is on disk. Nothing is ever deleted.
3. Nothing here reads a clock: times come in, as milliseconds since 1970 in UTC.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from gateway_mock.ids import new_transaction_id
from gateway_mock.model import (
    CANCELLATION,
    EXPIRY,
    HOLD_MS,
    Closing,
    Operation,
    Refusal,
    State,
    Transaction,
    closing,
    confirmation,
    funds_of,
    is_open,
    issued,
    lapses,
    objection,
    refusal,
)
from gateway_mock.schema import prepare

# A bank may be started while its predecessor, just killed, is still ending, which takes milliseconds.
LOCK_TIMEOUT_SECONDS = 1.0

_FIELDS = (
    "token, reference, card, amount, currency, expires_at, state, closed_at, transaction_id, reason, kind, acts_on, final, "
    "hold_expires_at, return_url"
)

# OPEN, CLOSE and FIND are given a JSON array of wishes and grant all of them in one commit: see `_Together`.

# `one_lives` refuses a second one. An expired one does not count there, yet its order (`order_of`) still binds its reference.
OPEN = f"""
    INSERT INTO transactions (token, reference, kind, card, amount, currency, state, opened_at, expires_at, acts_on, final,
                              return_url)
    SELECT value ->> 'token', value ->> 'reference', value ->> 'kind', value ->> 'card', value ->> 'amount',
           value ->> 'currency', 'created', value ->> 'now', value ->> 'expires_at', value ->> 'on', value ->> 'final',
           value ->> 'return_url'
    FROM json_each(?)
    WHERE NOT EXISTS (
        SELECT 1 FROM transactions AS known
        WHERE known.reference = value ->> 'reference'
          AND (known.kind, coalesce(known.acts_on, known.card), known.amount, known.currency, known.final) <> (
              value ->> 'kind', coalesce(value ->> 'on', value ->> 'card'), value ->> 'amount', value ->> 'currency',
              value ->> 'final'
          )
    )
    ORDER BY key
    ON CONFLICT (reference) WHERE state <> 'expired' DO NOTHING
    RETURNING {_FIELDS}
"""  # noqa: S608 - the one thing put in is a constant of this module

# Of two wishes for one token SQLite grants either. The numbers of movements grow, with gaps.
_CLOSE_IF = """
    UPDATE transactions
    SET state = value ->> 'state', closed_at = CASE value ->> 'state' WHEN 'requires_action' THEN NULL ELSE value ->> 'now' END,
        transaction_id = value ->> 'transaction_id', reason = value ->> 'reason', hold_expires_at = value ->> 'hold_expires_at',
        movement = CASE value ->> 'state'
            WHEN 'executed' THEN (SELECT coalesce(max(movement), 0) FROM transactions) + 1 + key
        END
    FROM json_each(?)
    WHERE token = value ->> 'token' AND state IN ('created', 'requires_action')
"""

CLOSE = f"{_CLOSE_IF} RETURNING {_FIELDS}"

# What may follow depends on what has followed: it is closed only if nothing more has followed since that was decided. For one
# wish alone: of several, none would see what the others change.
CLOSE_FOLLOWING = f"""
    {_CLOSE_IF}
      AND value ->> 'followers' = (
          SELECT count(*) FROM transactions AS done WHERE done.acts_on = value ->> 'on' AND done.state = 'executed'
      )
    RETURNING {_FIELDS}
"""  # noqa: S608 - as above

EXPIRE_HOLD = """
    UPDATE transactions SET hold_expires_at = min(hold_expires_at, ?)
    WHERE transaction_id = ? AND hold_expires_at IS NOT NULL
"""

FIND = f"SELECT {_FIELDS} FROM json_each(?) CROSS JOIN transactions ON token = value ->> 'token'"  # noqa: S608 - as above

NEWEST = f"SELECT {_FIELDS} FROM transactions WHERE reference = ? ORDER BY number DESC LIMIT 1"  # noqa: S608 - as above

OPENING = f"SELECT {_FIELDS} FROM transactions WHERE transaction_id = ? AND acts_on IS NULL"  # noqa: S608 - as above

# First the opening: it was executed before all that follow it.
ACCOUNT = f"""
    SELECT {_FIELDS} FROM transactions
    WHERE transaction_id = ?1 OR (acts_on = ?1 AND state = 'executed') ORDER BY movement
"""  # noqa: S608 - as above

EXECUTED = f"SELECT {_FIELDS} FROM transactions WHERE movement IS NOT NULL ORDER BY movement"  # noqa: S608 - as above

PAGE = f"""
    SELECT movement, {_FIELDS} FROM transactions
    WHERE movement > ? AND closed_at >= ? AND closed_at < ? ORDER BY movement LIMIT ?
"""  # noqa: S608 - as above


@asynccontextmanager
async def open_ledger(path: str | Path, *, hold_ms: int = round(HOLD_MS)) -> AsyncIterator["Ledger"]:
    """Open the ledger at `path`, which is made if it is not there, and close it at the end. New holds last `hold_ms`.

    Raises `LedgerUnusable`, and `sqlite3.Error` for what SQLite finds, another bank's lock on the file among it.
    """
    async with aiosqlite.connect(path, isolation_level=None, timeout=LOCK_TIMEOUT_SECONDS) as database:
        await prepare(database)
        ledger = Ledger(database, hold_ms)
        try:
            yield ledger
        finally:
            await ledger.finish()


class Ledger:
    """An open ledger. A method raises `sqlite3.Error` if SQLite fails; whether the change was made is then unknown."""

    def __init__(self, database: aiosqlite.Connection, hold_ms: int) -> None:
        self._database = database
        self._hold_ms = hold_ms
        self._opening = _Together(database, OPEN)
        self._closing = _Together(database, CLOSE)
        self._finding = _Together(database, FIND)

    @property
    def database(self) -> aiosqlite.Connection:
        """The one connection to the file, for tables that stand beside this one."""
        return self._database

    async def issue(self, wanted: Transaction, now_ms: int) -> Transaction | Refusal:
        """Do the token step: give the reference's transaction, which is the wanted one if it is opened now.

        A wanted one that follows another is given that one's card.
        """
        opening = None
        if wanted.on is not None and (opening := await self.opening(wanted.on)) is not None:
            wanted.card = opening.card
        wish = {
            "token": wanted.token,
            "reference": wanted.reference,
            "kind": wanted.kind,
            "card": wanted.card,
            "amount": wanted.amount_minor,
            "currency": wanted.currency,
            "now": now_ms,
            "expires_at": wanted.expires_at_ms,
            "on": wanted.on,
            "final": wanted.final,
            "return_url": wanted.return_url,
        }
        may_be_opened = wanted.on is None or objection(wanted, opening) is None
        while True:  # Each further round has closed a late transaction, and there was one.
            if may_be_opened and (opened := await self._opening.ask(wish)) is not None:
                return opened
            newest = await self.newest(wanted.reference)
            if newest is not None:
                newest = await self.close_if_late(newest, now_ms)
            got = issued(newest, wanted, opening)
            if got is not wanted:
                return got

    async def execute(
        self, seen: Transaction, now_ms: int, *, transaction_id: str | None = None
    ) -> tuple[Transaction, bool]:
        """Do the execute step: give the transaction after it, and whether this call has executed it.

        The id is a new one unless one is given.
        """
        transaction_id = transaction_id or new_transaction_id()
        if seen.on is not None:
            return await self._execute_following(seen, seen.on, now_ms, transaction_id)
        how = closing(seen, now_ms, transaction_id, hold_ms=self._hold_ms)
        if how is None:  # Whoever was asked may have answered since.
            return await self.find(seen.token) or seen if is_open(seen) else seen, False
        closed = await self._close(seen, how, now_ms)
        return closed, closed.transaction_id == transaction_id

    async def cancel(self, seen: Transaction, now_ms: int) -> Transaction:
        """Call it off: close an open one for ever. Give it as it is then."""
        known = await self.close_if_late(seen, now_ms)
        return await self._close(known, CANCELLATION, now_ms) if is_open(known) else known

    async def confirm(self, seen: Transaction, now_ms: int) -> Transaction:
        """Take the customer's step, if it is asked for. Give the transaction as it is then."""
        how = confirmation(seen, now_ms, new_transaction_id(), self._hold_ms)
        return seen if how is None else await self._close(seen, how, now_ms)

    async def refuse(self, seen: Transaction, now_ms: int) -> Transaction:
        """Have the customer refuse the step, if it is asked for. Give the transaction as it is then."""
        how = refusal(seen, now_ms)
        return seen if how is None else await self._close(seen, how, now_ms)

    async def expire_hold(self, transaction_id: str, now_ms: int) -> None:
        """Let the hold of an executed authorize lapse before its time. A charge has none."""
        await self._database.execute_fetchall(EXPIRE_HOLD, (now_ms, transaction_id))

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

    async def opening(self, transaction_id: str) -> Transaction | None:
        """Look up an executed opening by its transaction_id."""
        return next(iter(await _transactions(self._database, OPENING, transaction_id)), None)

    async def executed(self) -> list[Transaction]:
        """Read the statement: all that was executed, in that order. There is no limit: gaps would prove nothing."""
        return await _transactions(self._database, EXECUTED)

    async def page(self, after: int, begin_ms: int, end_ms: int, limit: int) -> list[tuple[int, Transaction]]:
        """Read what was executed in a span of time, after the movement of a number: at most `limit`, each with its number."""
        rows = await self._database.execute_fetchall(PAGE, (after, begin_ms, end_ms, limit))
        return [(number, _transaction(*fields)) for number, *fields in rows]

    async def finish(self) -> None:
        """Wait for the changes whose calls have ended."""
        for together in (self._opening, self._closing, self._finding):
            await together.finish()

    async def _execute_following(
        self, seen: Transaction, on: str, now_ms: int, transaction_id: str
    ) -> tuple[Transaction, bool]:
        while True:  # Each further round has met a change to the account, or finds the transaction closed.
            opening, *followers = await _transactions(self._database, ACCOUNT, on)
            how = closing(seen, now_ms, transaction_id, funds=funds_of(opening, followers))
            if how is None:
                return seen, False
            wish = _wish(seen, how, now_ms) | {"on": on, "followers": len(followers)}
            if closed := await _transactions(self._database, CLOSE_FOLLOWING, json.dumps([wish])):
                return closed[0], closed[0].transaction_id == transaction_id
            (seen,) = await _transactions(self._database, FIND, json.dumps([wish]))

    async def _close(self, seen: Transaction, how: Closing, now_ms: int) -> Transaction:
        wish = _wish(seen, how, now_ms)
        if (closed := await self._closing.ask(wish)) is not None:
            return closed
        (known,) = await _transactions(self._database, FIND, json.dumps([wish]))
        return known


def _wish(seen: Transaction, how: Closing, now_ms: int) -> dict[str, object]:
    return {
        "token": seen.token,
        "now": now_ms,
        "state": how.state,
        "transaction_id": how.transaction_id,
        "reason": how.reason,
        "hold_expires_at": how.hold_expires_at_ms,
    }


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
    return [_transaction(*row) for row in await database.execute_fetchall(sql, parameters)]


def _transaction(
    token: str,
    reference: str,
    card: str,
    amount: int,
    currency: str,
    expires_at: int,
    state: str,
    closed_at: int | None,
    transaction_id: str | None,
    reason: str | None,
    kind: str,
    on: str | None,
    final: int,
    hold_expires_at: int | None,
    return_url: str,
) -> Transaction:
    """Read the `_FIELDS` of a row."""
    return Transaction(
        token,
        reference,
        card,
        amount,
        currency,
        expires_at,
        State(state),
        closed_at,
        transaction_id,
        reason,
        Operation(kind),
        on,
        bool(final),
        hold_expires_at,
        return_url,
    )
