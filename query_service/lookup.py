"""What queries look up in the view's tables, each function on a connection that is inside a read transaction."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from charging.v1.common_pb2 import ChargeStatus
from query_service.projection import ChargeRow, Entry, Requested, Standing, Summary, Totals

SELECT_CHECKPOINT = "SELECT journal_id, position, chain, charge_count, latest_requested_at, backstep FROM checkpoint"
SELECT_CHARGE = "SELECT * FROM charge"
BY_ID = "WHERE charge_id = ?"
BY_KEY = "WHERE tenant = ? AND idempotency_key = ?"
NEWEST_FIRST = "ORDER BY requested_position DESC LIMIT ?"
SELECT_ENTRIES = "SELECT * FROM entry WHERE requested_position = ? ORDER BY version"
SELECT_SUMMARIES = "SELECT * FROM summary WHERE user_id = ? ORDER BY currency_code"
# A charge requested before the one, or after the other, is outside a range of times (see Totals.backstep for why).
LAST_BEFORE = "SELECT requested_position FROM charge WHERE requested_at < ? ORDER BY requested_at DESC LIMIT 1"
FIRST_AFTER = "SELECT requested_position FROM charge WHERE requested_at >= ? ORDER BY requested_at LIMIT 1"

END = 2**63 - 1
"""Beyond every position."""

_REQUESTED_COLUMNS = len(Requested._fields)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where the view holds, of which journal, and what is known of all charges. Empty id: of none yet."""

    journal_id: str
    position: int
    chain: bytes
    totals: Totals


@dataclass(frozen=True, slots=True)
class ChargeId:
    """Names a charge by its id, as 16 bytes."""

    charge_id: bytes


@dataclass(frozen=True, slots=True)
class Key:
    """Names a charge by the idempotency key under which it was requested."""

    tenant: str
    idempotency_key: str


ChargeName = ChargeId | Key


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which charges to list; None restricts nothing. Times are microseconds since 1970."""

    user_id: str | None = None
    status: ChargeStatus.ValueType | None = None
    requested_from: int | None = None
    requested_before: int | None = None


def find_checkpoint(connection: sqlite3.Connection) -> Checkpoint:
    """Tell up to where the rows hold."""
    journal_id, position, chain, *totals = connection.execute(SELECT_CHECKPOINT).fetchone()
    return Checkpoint(journal_id, position, chain, Totals(*totals))


def find_charge(connection: sqlite3.Connection, name: ChargeName) -> ChargeRow | None:
    """Find a charge by its name."""
    match name:
        case ChargeId(charge_id):
            row = connection.execute(f"{SELECT_CHARGE} {BY_ID}", (charge_id,)).fetchone()
        case Key(tenant, idempotency_key):
            row = connection.execute(f"{SELECT_CHARGE} {BY_KEY}", (tenant, idempotency_key)).fetchone()
        case _:
            assert_never(name)
    return None if row is None else _charge_row(row)


def find_history(connection: sqlite3.Connection, name: ChargeName) -> tuple[ChargeRow, list[Entry]] | None:
    """Find a charge and its events, oldest first."""
    row = find_charge(connection, name)
    if row is None:
        return None
    return row, [Entry(*entry) for entry in connection.execute(SELECT_ENTRIES, (row.requested.requested_position,))]


def find_summaries(connection: sqlite3.Connection, user_id: str) -> list[Summary]:
    """Sum up a user's charges, a row a currency, in alphabetical order."""
    return [Summary(*row) for row in connection.execute(SELECT_SUMMARIES, (user_id,))]


def find_charges(connection: sqlite3.Connection, conditions: Conditions, below: int, limit: int) -> list[ChargeRow]:
    """List charges, newest first, those requested at positions below `below`, at most `limit`.

    It walks through the user's charges if there is a user, else through those of the status, else through all; and only
    over those positions where the range of times can be.
    """
    where = ["requested_position > ?", "requested_position < ?"]
    values: list[Any] = list(_positions(connection, conditions, below))
    if conditions.user_id is not None:
        where.append("user_id = ?")
        values.append(conditions.user_id)
    if conditions.status is not None:
        # A plus before a column keeps SQLite from taking its index.
        where.append("status = ?" if conditions.user_id is None else "+status = ?")
        values.append(conditions.status)
    if conditions.requested_from is not None:
        where.append("+requested_at >= ?")
        values.append(conditions.requested_from)
    if conditions.requested_before is not None:
        where.append("+requested_at < ?")
        values.append(conditions.requested_before)
    found = connection.execute(" ".join([SELECT_CHARGE, "WHERE", " AND ".join(where), NEWEST_FIRST]), [*values, limit])
    return [_charge_row(row) for row in found]


def _positions(connection: sqlite3.Connection, conditions: Conditions, below: int) -> tuple[int, int]:
    """Tell between which positions, both excluded, the charges of a range of times are. It takes two index seeks."""
    above = 0
    backstep = find_checkpoint(connection).totals.backstep
    if conditions.requested_from is not None:
        last = connection.execute(LAST_BEFORE, (conditions.requested_from - backstep,)).fetchone()
        above = last[0] if last else 0
    if conditions.requested_before is not None:
        first = connection.execute(FIRST_AFTER, (conditions.requested_before + backstep,)).fetchone()
        below = min(below, first[0]) if first else below
    return above, below


def _charge_row(row: Sequence[Any]) -> ChargeRow:
    return ChargeRow(Requested(*row[:_REQUESTED_COLUMNS]), Standing(*row[_REQUESTED_COLUMNS:]))
