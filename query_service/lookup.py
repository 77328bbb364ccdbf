"""Looks up one tenant's rows in the view, on a connection that is inside a read transaction.

A query is given these rows and no connection, so it can read its own tenant's rows only.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, assert_never

from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import ChargeStage, Situation
from query_service import schema
from query_service.course import Standing
from query_service.schema import DAY_MICROSECONDS, Charge, Checkpoint, Entry, Operation, Step, Sum, Totals, Walk
from query_service.words import IN_REVIEW

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
    stage: ChargeStage.ValueType | None = None
    stage_since_before: int | None = None
    hold_expires_before: int | None = None


# What the charges of a stage have in common, by the columns of their rows. The first condition is that of the index, word by
# word, where the walk has one.
_OF_STAGE: Mapping[ChargeStage.ValueType, str] = {
    ChargeStage.CHARGE_STAGE_AT_REST: f"stage = {schema.AT_REST} AND status <> {IN_REVIEW}",
    ChargeStage.CHARGE_STAGE_AWAITING_TOKEN: f"stage > 0 AND stage = {schema.AWAITING_TOKEN}",
    ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION: f"stage > 0 AND stage = {schema.AWAITING_EXECUTION}",
    ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER: f"stage > 0 AND stage = {schema.AWAITING_CUSTOMER} AND off_session = 0",
    ChargeStage.CHARGE_STAGE_CALLING_OFF: (
        f"stage > 0 AND (stage IN ({schema.CALLING_OFF}, {schema.CALLING_OFF_TOKEN}) "
        f"OR stage = {schema.AWAITING_CUSTOMER} AND off_session = 1)"
    ),
    ChargeStage.CHARGE_STAGE_IN_REVIEW: f"status = {IN_REVIEW}",
    ChargeStage.CHARGE_STAGE_UNFINISHED: f"stage > 0 AND stage <> {schema.RESOLVING}",
    ChargeStage.CHARGE_STAGE_HELD_BACK: "stage > 0 AND held_back = 1",
    ChargeStage.CHARGE_STAGE_ABANDONED: "given_up = 1",
    ChargeStage.CHARGE_STAGE_HOLDING: (f"held_minor_units > 0 AND stage = {schema.AT_REST} AND status <> {IN_REVIEW}"),
}


class ChargeRows(NamedTuple):
    """A charge's row, and those of its operations in the order of their requests."""

    charge: Charge
    operations: Sequence[Operation]
    proposal: Step | None = None
    """The open proposal to resolve it."""


class History(NamedTuple):
    """A charge, its events, oldest first, and the steps among these that are an operator's, by their versions."""

    rows: ChargeRows
    entries: Sequence[Entry]
    steps: Mapping[int, Step]


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

    def history(self, name: ChargeName) -> History | None:
        """Find a charge and its events."""
        rows = self.charge(name)
        if rows is None:
            return None
        position = rows.charge.requested_position
        entries = [Entry(*entry) for entry in self._execute(schema.SELECT_ENTRIES, charge_position=position)]
        steps = [Step(*step) for step in self._execute(schema.SELECT_STEPS, charge_position=position)]
        return History(rows, entries, {step.version: step for step in steps})

    def sums(self, user_id: str) -> list[Sum]:
        """Sum up a user's charges, currencies in alphabetical order."""
        return [Sum(*row) for row in self._execute(schema.SELECT_SUMS, user_id=user_id)]

    def totals(self) -> Totals:
        """Return the totals of all charges."""
        found = self._execute(schema.SELECT_TOTALS).fetchone()
        return Totals(*found) if found else Totals(self._tenant, 0, 0, 0, 0)

    def charges(self, conditions: Conditions, below: int, limit: int) -> list[ChargeRows]:
        """List at most `limit` charges, newest first, requested at positions below `below`.

        The list walks through the fewest charges that its conditions name (`_walk`), and only over the positions that the range
        of times can cover.
        """
        above, below = self._positions(conditions, below)
        where = ["requested_position > :above", "requested_position < :below"]
        if conditions.status is not None:
            where.append("status = :status")
        if conditions.user_id is not None:
            where.append("user_id = :user_id")
        if conditions.stage is not None:
            where.append(_OF_STAGE[conditions.stage])
        if conditions.stage_since_before is not None:
            where.append("stage_since < :stage_since_before")
        if conditions.hold_expires_before is not None:
            where.append("hold_expires_at > 0 AND hold_expires_at < :hold_expires_before")
        if conditions.requested_from is not None:
            where.append("requested_at >= :requested_from")
        if conditions.requested_before is not None:
            where.append("requested_at < :requested_before")
        return self._charges(
            f"{' AND '.join(where)} {schema.NEWEST_FIRST}",
            _walk(conditions),
            above=above,
            below=below,
            limit=limit,
            user_id=conditions.user_id,
            status=conditions.status,
            requested_from=conditions.requested_from,
            requested_before=conditions.requested_before,
            stage_since_before=conditions.stage_since_before,
            hold_expires_before=conditions.hold_expires_before,
        )

    def _positions(self, conditions: Conditions, below: int) -> tuple[int, int]:
        """Return the positions, both excluded, between which all charges of a range of times were requested."""
        above, backstep = 0, self.totals().backstep
        if conditions.requested_from is not None:
            above, _ = self._halves(conditions.requested_from - backstep)
        # No charge came to its stage before its request.
        ends = [end for end in (conditions.requested_before, conditions.stage_since_before) if end is not None]
        if ends:
            _, later = self._halves(min(ends) + backstep)
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
        proposals = self._proposals(charges)
        return [
            ChargeRows(charge, of_charge[charge.requested_position], proposals.get(charge.proposal))
            for charge in charges
        ]

    def _proposals(self, charges: Iterable[Charge]) -> dict[int, Step]:
        """Find the open proposals of charges, by their positions."""
        proposed = {charge.requested_position: charge.proposal for charge in charges if charge.proposal}
        if not proposed:
            return {}
        found = self._execute(
            schema.SELECT_PROPOSALS,
            charge_positions=json.dumps(list(proposed)),
            proposals=json.dumps(list(proposed.values())),
        )
        return {step.position: step for step in (Step(*row) for row in found)}

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


def _walk(conditions: Conditions) -> Walk:
    """Choose the rows that a list walks through."""
    stage = conditions.stage
    if stage is not None and _OF_STAGE[stage].startswith("stage > 0"):
        return Walk.OF_UNFINISHED
    if conditions.user_id is not None:
        return Walk.OF_USER
    if conditions.hold_expires_before is not None:
        return Walk.OF_HOLDS_ENDING
    if stage == ChargeStage.CHARGE_STAGE_HOLDING:
        return Walk.OF_HOLDING
    if stage == ChargeStage.CHARGE_STAGE_ABANDONED:
        return Walk.OF_GIVEN_UP
    is_of_status = conditions.status is not None or stage == ChargeStage.CHARGE_STAGE_IN_REVIEW
    return Walk.OF_STATUS if is_of_status else Walk.OF_ALL


STUCK_AT_REST = (
    Situation.SITUATION_IN_REVIEW,
    Situation.SITUATION_AWAITING_APPROVAL,
    Situation.SITUATION_ABANDONED,
    Situation.SITUATION_HOLD_ENDING,
)
"""The situations of charges at rest that wait for people."""


def count_stuck(connection: sqlite3.Connection, now: int) -> Mapping[Situation.ValueType, int]:
    """Count the charges of all tenants that are at rest and stuck, by their situation, for the server's own gauges.

    `now` is in microseconds since 1970. Those of which something was given up count for a day.
    """
    reviews, proposed = connection.execute(schema.COUNT_REVIEWS).fetchone()
    (abandoned,) = connection.execute(schema.COUNT_GIVEN_UP, {"since": now - DAY_MICROSECONDS}).fetchone()
    ending = count_holds_ending(connection, now + DAY_MICROSECONDS)
    return dict(zip(STUCK_AT_REST, (reviews - proposed, proposed, abandoned, ending), strict=True))


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
