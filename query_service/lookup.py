"""Looks up one tenant's rows in the view, on a connection that is inside a read transaction.

A query is given these rows and no connection, so it can read its own tenant's rows only.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, assert_never

from charging.v1.common_pb2 import ChargeStatus
from query_service import schema
from query_service.course import Standing
from query_service.schema import Charge, Checkpoint, Entry, Operation, Sum, Totals, Walk

END = 2**63 - 1
"""Beyond every position."""

NO_TENANT = 0
"""Stands for a tenant that the journal does not name: no row has this number."""


@dataclass(frozen=True, slots=True)
class ChargeId:
    """Names a charge by its id, as 16 bytes."""

    charge_id: bytes


@dataclass(frozen=True, slots=True)
class Key:
    """Names a charge by the idempotency key under which it was requested."""

    idempotency_key: str


ChargeName = ChargeId | Key


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions on the charges of a list; None restricts nothing. Times are microseconds since 1970."""

    user_id: str | None = None
    status: ChargeStatus.ValueType | None = None
    requested_from: int | None = None
    requested_before: int | None = None


class ChargeRows(NamedTuple):
    """A charge's row, and those of its operations in the order of their requests."""

    charge: Charge
    operations: Sequence[Operation]


class Rows:
    """The rows of the tenant of this name."""

    def __init__(self, connection: sqlite3.Connection, tenant: str) -> None:
        self._connection = connection
        found = connection.execute(schema.SELECT_TENANT, {"name": tenant}).fetchone()
        self._tenant: int = found[0] if found else NO_TENANT

    def charge(self, name: ChargeName) -> ChargeRows | None:
        """Find a charge by its name."""
        match name:
            case ChargeId(charge_id):
                found = self._charges(schema.BY_ID, charge_id=charge_id)
            case Key(idempotency_key):
                found = self._charges(schema.BY_KEY, idempotency_key=idempotency_key)
            case _:
                assert_never(name)
        return found[0] if found else None

    def history(self, name: ChargeName) -> tuple[ChargeRows, list[Entry]] | None:
        """Find a charge and its events, oldest first."""
        rows = self.charge(name)
        if rows is None:
            return None
        found = self._execute(schema.SELECT_ENTRIES, charge_position=rows.charge.requested_position)
        return rows, [Entry(*entry) for entry in found]

    def sums(self, user_id: str) -> list[Sum]:
        """Sum up a user's charges, currencies in alphabetical order."""
        return [Sum(*row) for row in self._execute(schema.SELECT_SUMS, user_id=user_id)]

    def totals(self) -> Totals:
        """Return the totals of all charges."""
        found = self._execute(schema.SELECT_TOTALS).fetchone()
        return Totals(*found) if found else Totals(self._tenant, 0, 0, 0, 0)

    def charges(self, conditions: Conditions, below: int, limit: int) -> list[ChargeRows]:
        """List at most `limit` charges, newest first, requested at positions below `below`.

        The list walks through the user's charges if the conditions name a user, else through those of the status, else
        through all, and only over the positions that the range of times can cover.
        """
        above, below = self._positions(conditions, below)
        walk = Walk.OF_ALL
        where = ["requested_position > :above", "requested_position < :below"]
        if conditions.status is not None:
            walk = Walk.OF_STATUS
            where.append("status = :status")
        if conditions.user_id is not None:
            walk = Walk.OF_USER
            where.append("user_id = :user_id")
        if conditions.requested_from is not None:
            where.append("requested_at >= :requested_from")
        if conditions.requested_before is not None:
            where.append("requested_at < :requested_before")
        return self._charges(
            f"{' AND '.join(where)} {schema.NEWEST_FIRST}",
            walk,
            above=above,
            below=below,
            limit=limit,
            user_id=conditions.user_id,
            status=conditions.status,
            requested_from=conditions.requested_from,
            requested_before=conditions.requested_before,
        )

    def _positions(self, conditions: Conditions, below: int) -> tuple[int, int]:
        """Return the positions, both excluded, between which all charges of a range of times were requested."""
        above, backstep = 0, self.totals().backstep
        if conditions.requested_from is not None:
            above, _ = self._halves(conditions.requested_from - backstep)
        if conditions.requested_before is not None:
            _, later = self._halves(conditions.requested_before + backstep)
            below = min(below, later)
        return above, below

    def _halves(self, time: int) -> tuple[int, int]:
        """Return two positions, found by halving: the next charge at or after the first was requested before the time, and the
        next charge at or after the second, if there is one, was not.

        By the definition of Totals.backstep the first charge stands for all before it and the second for all after it, however
        the clock was set.
        """
        above, below = 0, find_checkpoint(self._connection).position + 1
        while below - above > 1:
            middle = (above + below) // 2
            found = self._execute(schema.NEXT_REQUEST, position=middle, below=below).fetchone()
            if found is not None and found[0] < time:
                above = middle
            else:
                below = middle
        return above, below

    def _charges(self, where: str, walk: Walk | None = None, **values: object) -> list[ChargeRows]:
        charges = [Charge(*row) for row in self._execute(schema.select_charges(where, walk), **values)]
        positions = json.dumps([charge.requested_position for charge in charges])
        found = self._execute(schema.SELECT_OPERATIONS, charge_positions=positions)
        operations = groupby((Operation(*row) for row in found), key=lambda operation: operation.charge_position)
        of_charge = {position: tuple(group) for position, group in operations}
        return [ChargeRows(charge, of_charge[charge.requested_position]) for charge in charges]

    def _execute(self, statement: str, **values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, {"tenant": self._tenant, **values})


def find_checkpoint(connection: sqlite3.Connection) -> Checkpoint:
    """Return the position up to which the rows hold."""
    return Checkpoint(*connection.execute(schema.SELECT_CHECKPOINT).fetchone())


def find_standing(connection: sqlite3.Connection, charge_ids: Iterable[bytes]) -> dict[bytes, Standing]:
    """Find how charges stand, for the feed, whose records name no tenant. A missing charge is left out."""
    found = {}
    for charge_id in charge_ids:
        rows = connection.execute(schema.SELECT_STANDING, (charge_id,)).fetchall()
        if rows:
            operations = [Operation(*row[len(Charge._fields) :]) for row in reversed(rows)]
            found[charge_id] = Standing(Charge(*rows[0][: len(Charge._fields)]), operations)
    return found


def count_holds_ending(connection: sqlite3.Connection, before: int) -> int:
    """Count the open holds of all tenants that end before a time, in microseconds since 1970, for the server's own gauge."""
    (count,) = connection.execute(schema.COUNT_HOLDS_ENDING, {"before": before}).fetchone()
    return int(count)


class TenantNumbers(dict[str, int]):
    """The numbers of tenants, read from a writer's connection on demand. A new tenant gets the next number."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__()
        self._connection = connection

    def __missing__(self, name: str) -> int:
        found = self._connection.execute(schema.SELECT_TENANT, {"name": name}).fetchone()
        if found is None:
            found = self._connection.execute(schema.ADD_TENANT, {"name": name}).fetchone()
        self[name] = found[0]
        return self[name]
