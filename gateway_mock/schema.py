"""The ledger's file: its tables, how SQLite is to keep them, and the way from the version before.

Version 1 knew charges alone, and version 2 no step of the customer. A ledger of an older version becomes one of this version
when it is opened, in one SQLite transaction.
"""

from collections.abc import Mapping

import aiosqlite

SCHEMA_VERSION = 3

PRAGMAS: Mapping[str, tuple[str, str | int]] = {
    # One bank a ledger: a second process would have its own faults and its own log of calls, and a test would read the
    # wrong one. It also keeps clear of SQLite's WAL-reset bug, which takes several connections (3.7.0 to 3.51.2).
    "locking_mode": ("EXCLUSIVE", "exclusive"),
    # It takes one sync a commit instead of two.
    "journal_mode": ("WAL", "wal"),
    # A bank that forgets an execution after a power cut is no bank to test against. NORMAL does (measured).
    "synchronous": ("FULL", 2),
}

_TABLE = """
    CREATE TABLE transactions (
        number          INTEGER PRIMARY KEY,                                -- the order in which they were opened
        token           TEXT    NOT NULL UNIQUE,
        reference       TEXT    NOT NULL,
        kind            TEXT    NOT NULL CHECK (kind IN ('charge', 'authorize', 'capture', 'void', 'refund')),
        card            TEXT    NOT NULL,                                   -- the opening's, if it follows one
        amount          INTEGER NOT NULL CHECK (amount > 0),                -- in minor units
        currency        TEXT    NOT NULL,
        state           TEXT    NOT NULL CHECK (
            state IN ('created', 'requires_action', 'executed', 'declined', 'expired', 'cancelled')
        ),
        opened_at       INTEGER NOT NULL,
        expires_at      INTEGER NOT NULL,
        closed_at       INTEGER          CHECK ((closed_at IS NULL) = (state IN ('created', 'requires_action'))),
        transaction_id  TEXT    UNIQUE   CHECK ((transaction_id IS NOT NULL) = (state = 'executed')),
        movement        INTEGER UNIQUE   CHECK ((movement IS NOT NULL) = (state = 'executed')),  -- order of execution
        reason          TEXT             CHECK ((reason IS NOT NULL) = (state = 'declined')),
        acts_on         TEXT             CHECK ((acts_on IS NULL) = (kind IN ('charge', 'authorize'))),
        final           INTEGER NOT NULL DEFAULT 0 CHECK (final IN (0, 1) AND (final = 0 OR kind = 'capture')),
        hold_expires_at INTEGER          CHECK ((hold_expires_at IS NOT NULL) = (kind = 'authorize' AND state = 'executed')),
        return_url      TEXT    NOT NULL DEFAULT ''                         -- where the customer goes after the step
    ) STRICT
"""

_INDEXES = (
    # The promise of the two steps: never a second open transaction, and never a second execution, under one reference.
    "CREATE UNIQUE INDEX one_lives ON transactions (reference) WHERE state <> 'expired'",
    # Finds the newest of a reference among its expired ones too.
    "CREATE INDEX by_reference ON transactions (reference)",
    # Finds the followers of an opening. A charge is not in it, and so costs nothing here.
    "CREATE INDEX followers ON transactions (acts_on) WHERE acts_on IS NOT NULL",
)

_OF_VERSION_1 = (
    "number, token, reference, kind, card, amount, currency, state, opened_at, expires_at, closed_at, transaction_id, "
    "movement, reason"
)
_OF_VERSION_2 = f"{_OF_VERSION_1}, acts_on, final, hold_expires_at"


def _from_older(columns: str) -> tuple[str, ...]:
    return (
        "ALTER TABLE transactions RENAME TO older",
        _TABLE,
        f"INSERT INTO transactions ({columns}) SELECT {columns} FROM older",  # noqa: S608 - constants of this module
        "DROP TABLE older",  # with its indexes, whose names are then free
        *_INDEXES,
    )


class LedgerUnusable(Exception):
    """The ledger cannot be opened as it must be: of another version, or a pragma that did not take."""


async def prepare(database: aiosqlite.Connection) -> None:
    """Make the file a ledger of this version: a new one, or one of an older version.

    Raises `LedgerUnusable` and `sqlite3.Error`; the file is then as it was.
    """
    for name, (wanted, shown) in PRAGMAS.items():
        await database.execute_fetchall(f"PRAGMA {name} = {wanted}")
        if await _read(database, f"PRAGMA {name}") != [shown]:
            raise LedgerUnusable(f"SQLite would not set {name} to {wanted}")
    await database.execute_fetchall("BEGIN IMMEDIATE")
    for statement in _changes(
        await _read(database, "PRAGMA user_version"),
        await _read(database, "SELECT name FROM sqlite_schema WHERE type = 'table'"),
    ):
        await database.execute_fetchall(statement)
    await database.execute_fetchall(f"PRAGMA user_version = {SCHEMA_VERSION}")
    await database.execute_fetchall("COMMIT")


def _changes(version: list[object], tables: list[object]) -> tuple[str, ...]:
    match version, tables:
        case [[3], _]:
            return ()
        case [[0], []]:
            return (_TABLE, *_INDEXES)
        case [[2], _]:
            return _from_older(_OF_VERSION_2)
        # Version 1 wrote its number last. If it was killed before, its table is there and may lack its indexes.
        case [[0 | 1], ["transactions"]]:
            return _from_older(_OF_VERSION_1)
        case _:
            raise LedgerUnusable("the ledger was written by another version of the mock bank")


async def _read(database: aiosqlite.Connection, sql: str) -> list[object]:
    return [row[0] for row in await database.execute_fetchall(sql)]
