"""The view's schema: its tables, their keys and indexes, and every statement that writes or reads them.

* A row is a named tuple here, and its fields are the table's columns: a column is named once, and every list of columns in a
  statement is made from the fields.
* The tenant comes first in every key and index, and in the condition of every query. The exception is `charge_by_id`, by
  which the feed's records find their charge; see there.
* A change of a table, or of the rows that the projection makes from an event, raises FORMAT.

Rows are named tuples and not dataclasses: a row *is* SQLite's list of parameters, and is made in a third of the time (0.25
against 0.69 us, without the conversion to a tuple).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter
from typing import Any, Final, NamedTuple

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import (
    AnswerKind,
    ChargeStatus,
    DeclineReason,
    OperationKind,
    OperationStatus,
    Resolution,
    ReviewReason,
)
from query_service.words import IN_REVIEW

FORMAT: Final = 5
GENESIS: Final = bytes(32)  # the chain before position 1
DAY_MICROSECONDS: Final = 24 * 3600 * 1_000_000
"""Within this time an open hold is near its end, and an abandoned charge is news."""


# ---------------------------------------------------------------- rows
class Tenant(NamedTuple):
    """A tenant's number, which stands for its name in every other table: six indexes of each charge hold it.

    Numbers begin at 1, in the order in which the journal first names the tenants.
    """

    name: str
    tenant: int


# The stages of a charge: the next step of its operation under way.
AT_REST: Final = 0
AWAITING_TOKEN: Final = 1
AWAITING_EXECUTION: Final = 2
CALLING_OFF: Final = 3  # before the journal held a token that is open
CALLING_OFF_TOKEN: Final = 4
AWAITING_CUSTOMER: Final = 5
RESOLVING: Final = 6  # two people have found the outcome of a review, and its event is the next one


class Charge(NamedTuple):
    """A charge: the client's request, the charge's status, and its money. Times are microseconds since 1970, 0 for none.

    `requested_position`, the position of its ChargeRequested, names it in the other tables. `hold_expires_at` is 0 unless
    something is held. `action_url` and `action_expires_at` are empty and 0 unless its status is REQUIRES_ACTION.

    `stage_since` is the time of the request of the operation under way, or of the outcome of the last one at rest; never before
    the charge's own request, whatever the clock did, so that a bound of it is one of `requested_at` too. `proposal` is the
    position of the open proposal to resolve it, and `proposed_by` its actor.
    """

    tenant: int
    requested_position: int
    charge_id: bytes
    idempotency_key: str
    user_id: str
    card_token: str
    card_brand: str
    card_last4: str
    card_fingerprint: str
    minor_units: int
    currency_code: str
    capture: CaptureMode.ValueType
    not_after: int
    description: str
    metadata: str  # a JSON object with sorted keys: a protobuf map has no order of its own
    requested_at: int
    bank: str
    off_session: int  # 1: the customer is not there to take a step
    status: ChargeStatus.ValueType
    updated_at: int
    version: int
    position: int
    stage: int
    authorized_minor_units: int
    captured_minor_units: int
    refunded_minor_units: int
    held_minor_units: int
    hold_expires_at: int
    action_url: str
    action_expires_at: int
    stage_since: int
    held_back: int  # 1: an operator holds it back
    proposal: int
    proposed_by: str
    given_up: int  # 1: the bank could not be reached in time for its newest operation


class Operation(NamedTuple):
    """One operation of a charge: its request and its outcome. Its place among the charge's operations, from 0, names it.

    Its key is the client's for this operation, and `updated_at` is the time of its newest event.
    """

    tenant: int
    charge_position: int
    number: int
    kind: OperationKind.ValueType
    idempotency_key: str
    minor_units: int
    actor: str
    reason: str
    final: int  # 1: the last capture
    requested_at: int
    status: OperationStatus.ValueType
    transaction_id: str
    decline_reason: DeclineReason.ValueType
    review_reason: ReviewReason.ValueType
    updated_at: int


# The columns from these on are those that later events change.
CHARGE_MOVES_FROM: Final = Charge._fields.index("status")
OPERATION_MOVES_FROM: Final = Operation._fields.index("status")


class Entry(NamedTuple):
    """An event in a charge's history, and the status of the charge after it. `event` is the kind's number in the contract.

    `operation_number` is that of the operation that it belongs to.
    """

    tenant: int
    charge_position: int
    version: int
    position: int
    recorded_at: int
    event: int
    status: ChargeStatus.ValueType
    operation_number: int


class Step(NamedTuple):
    """An operator's step, beside its entry: the few that there are keep the entries slim.

    From `resolution` to `evidence` all is empty unless it is a proposal, and what the bank said unless it is an approval.
    """

    tenant: int
    charge_position: int
    version: int
    position: int
    recorded_at: int
    actor: str
    reason: str
    resolution: Resolution.ValueType
    transaction_id: str
    refund_transaction_id: str
    evidence: str
    bank_said: AnswerKind.ValueType
    contradicts_bank: int  # 1: it was approved although that answer does not confirm the proposal


class Sum(NamedTuple):
    """A sum over a user's charges of one currency. A sum of no charges has no row.

    `name` is its name in the contract's CurrencySummary: "held" for held_minor_units and held_count.
    """

    tenant: int
    user_id: str
    currency_code: str
    name: str
    charge_count: int
    minor_units: int


class Totals(NamedTuple):
    """The totals of all charges of a tenant.

    `backstep` is the clock's longest step back so far, in microseconds: no charge was requested longer than this before a
    charge that precedes it in the journal. With it a range of times is looked up as a range of positions.
    """

    tenant: int
    charge_count: int
    earliest_requested_at: int
    latest_requested_at: int
    backstep: int


class Checkpoint(NamedTuple):
    """The position up to which the rows hold, its chain, and the journal's id; the id is empty before the first contact."""

    journal_id: str
    position: int
    chain: bytes


# ---------------------------------------------------------------- tables
_TYPES = {str: "TEXT", int: "INTEGER", bytes: "BLOB"}


def _columns(row: Any, prefix: str = "") -> str:
    return ", ".join(prefix + column for column in row._fields)


def _table(name: str, row: Any, *constraints: str) -> str:
    """Make a table. STRICT: a sum beyond 64 bits fails loudly instead of becoming a floating-point number.

    WITHOUT ROWID: rows are stored in the order of their key.
    """
    columns = [f"{column} {_TYPES[kind]} NOT NULL" for column, kind in row.__annotations__.items()]
    return f"CREATE TABLE {name} ({', '.join([*columns, *constraints])}) STRICT, WITHOUT ROWID"


SCHEMA: Final = (
    _table("tenant", Tenant, "PRIMARY KEY (name)", "UNIQUE (tenant)"),
    # The second key refuses one idempotency key for two charges.
    _table("charge", Charge, "PRIMARY KEY (tenant, requested_position)", "UNIQUE (tenant, idempotency_key)"),
    # The only index without a tenant: a record of the feed names its charge by the id alone. A charge's id is made from its
    # tenant and its key, so no id has two tenants. A query by id names its tenant too, and finds no other tenant's charge.
    "CREATE UNIQUE INDEX charge_by_id ON charge (charge_id)",
    # A user's charges. This index and the next end in the position, so a walk through one value of it, within a range of
    # positions, is newest first.
    "CREATE INDEX charge_by_user ON charge (tenant, user_id, requested_position)",
    # The few in review, among all that went well, and the few that went well while the bank declined all.
    "CREATE INDEX charge_by_status ON charge (tenant, status, requested_position)",
    # The few that hold something until a known time.
    "CREATE INDEX charge_by_hold ON charge (tenant, hold_expires_at) WHERE hold_expires_at > 0",
    # The few under way, and those that hold something, among all at rest. A charge that ends in the batch that began it, as
    # most do in a rebuild, is never in the first one.
    "CREATE INDEX charge_unfinished ON charge (tenant, requested_position) WHERE stage > 0",
    "CREATE INDEX charge_holding ON charge (tenant, requested_position) WHERE held_minor_units > 0",
    # Those given up among all, for lists, and those given up lately among these, for a count.
    "CREATE INDEX charge_given_up ON charge (tenant, requested_position) WHERE given_up = 1",
    "CREATE INDEX charge_given_up_lately ON charge (tenant, stage_since) WHERE given_up = 1",
    # The operations of a charge are one stretch, in the order of their requests.
    _table("operation", Operation, "PRIMARY KEY (tenant, charge_position, number)"),
    # So does its history, near the histories of charges of the same time.
    _table("entry", Entry, "PRIMARY KEY (tenant, charge_position, version)"),
    _table("step", Step, "PRIMARY KEY (tenant, charge_position, version)"),
    _table("summary", Sum, "PRIMARY KEY (tenant, user_id, currency_code, name)"),
    _table("totals", Totals, "PRIMARY KEY (tenant)"),
    _table("checkpoint", Checkpoint, "PRIMARY KEY (journal_id)"),
)
TABLES: Final = ("tenant", "charge", "operation", "entry", "step", "summary", "totals", "checkpoint")


# ---------------------------------------------------------------- writing
# Many rows a statement take half the time of a statement a row, and leave the interpreter to the receiving thread. A
# charge's row, wide and with four indexes, gains nothing.
ROWS_A_STATEMENT: Final = 500


@dataclass(frozen=True, slots=True)
class Insert:
    """The statements that add rows to a table: one row, or ROWS_A_STATEMENT of them."""

    one: str
    many: str


def _insert(table: str, row: Any) -> Insert:
    values = f"({', '.join('?' * len(row._fields))})"
    into = f"INSERT INTO {table} ({_columns(row)}) VALUES "  # noqa: S608  # here and below: names of this module, no values
    return Insert(into + values, into + ", ".join([values] * ROWS_A_STATEMENT))


@dataclass(frozen=True, slots=True)
class Update:
    """The statement that overwrites a row, and what picks its parameters from the new row.

    By place: parameters by name, from a dictionary of the whole row, take three times as long (measured).
    """

    statement: str
    parameters: Callable[[tuple[Any, ...]], tuple[Any, ...]]


def _update(table: str, row: Any, *, changed: tuple[str, ...], key: tuple[str, ...]) -> Update:
    columns = ", ".join(f"{column} = ?" for column in changed)
    condition = " AND ".join(f"{column} = ?" for column in key)
    return Update(
        f"UPDATE {table} SET {columns} WHERE {condition}",  # noqa: S608  # as above
        itemgetter(*map(row._fields.index, changed + key)),
    )


ADD_TENANT: Final = (
    "INSERT INTO tenant (name, tenant) SELECT :name, ifnull(max(tenant), 0) + 1 FROM tenant RETURNING tenant"
)
ADD_CHARGE: Final = _insert("charge", Charge).one
ADD_OPERATIONS: Final = _insert("operation", Operation)
ADD_ENTRIES: Final = _insert("entry", Entry)
ADD_STEP: Final = _insert("step", Step).one
MOVE_CHARGE: Final = _update(
    "charge",
    Charge,
    changed=Charge._fields[CHARGE_MOVES_FROM:],
    key=("tenant", "requested_position"),
)
MOVE_OPERATION: Final = _update(
    "operation",
    Operation,
    changed=Operation._fields[OPERATION_MOVES_FROM:],
    key=("tenant", "charge_position", "number"),
)
ADD_TO_SUM: Final = f"""
{_insert("summary", Sum).one}
ON CONFLICT DO UPDATE SET
    charge_count = charge_count + excluded.charge_count, minor_units = minor_units + excluded.minor_units
"""
# A sum that all charges have left. Without this a view that was updated live would differ from a rebuilt one.
DROP_EMPTY_SUM: Final = """
DELETE FROM summary WHERE tenant = :tenant AND user_id = :user_id AND currency_code = :currency_code
    AND name = :name AND charge_count = 0
"""
ADD_TO_TOTALS: Final = f"""
{_insert("totals", Totals).one}
ON CONFLICT DO UPDATE SET
    charge_count = charge_count + excluded.charge_count,
    backstep = max(backstep, excluded.backstep, latest_requested_at - excluded.earliest_requested_at),
    earliest_requested_at = min(earliest_requested_at, excluded.earliest_requested_at),
    latest_requested_at = max(latest_requested_at, excluded.latest_requested_at)
"""
BEGIN_CHECKPOINT: Final = _insert("checkpoint", Checkpoint).one
# The condition is the last defence against a batch that is applied twice or in the wrong order.
MOVE_CHECKPOINT: Final = "UPDATE checkpoint SET position = :position, chain = :chain WHERE position = :follows"
EMPTY: Final = tuple(f"DELETE FROM {table}" for table in TABLES)  # noqa: S608  # as above


# ---------------------------------------------------------------- reading
def _select(table: str, row: Any, rest: str = "") -> str:
    return f"SELECT {_columns(row)} FROM {table} {rest}"  # noqa: S608  # as above


SELECT_CHECKPOINT: Final = _select("checkpoint", Checkpoint)
SELECT_TENANT: Final = "SELECT tenant FROM tenant WHERE name = :name"
# A charge beside each of its newest two operations: one statement for each charge that a live batch goes on with. For the
# feed's records only.
SELECT_STANDING: Final = f"""
SELECT {_columns(Charge, "charge.")}, {_columns(Operation, "operation.")} FROM charge JOIN operation
    ON operation.tenant = charge.tenant AND operation.charge_position = charge.requested_position
WHERE charge.charge_id = ? ORDER BY operation.number DESC LIMIT 2
"""  # noqa: S608  # as above


class Walk(Enum):
    """The rows that a list walks through. By its own choice SQLite would walk through all of a tenant's rows for each list."""

    OF_ALL = "NOT INDEXED"
    OF_USER = "INDEXED BY charge_by_user"
    OF_STATUS = "INDEXED BY charge_by_status"
    OF_UNFINISHED = "INDEXED BY charge_unfinished"
    OF_HOLDING = "INDEXED BY charge_holding"
    OF_HOLDS_ENDING = "INDEXED BY charge_by_hold"
    OF_GIVEN_UP = "INDEXED BY charge_given_up"


def select_charges(where: str, walk: Walk | None = None) -> str:
    """Make the query of a tenant's charges that meet a condition."""
    return _select("charge", Charge, f"{walk.value if walk else ''} WHERE tenant = :tenant AND {where}")


# The tenant is compared in the index, which holds the key of the charge's row. Compared in the row, another tenant's charge
# would be told from none by the time of a look into the table: 4 us from memory (measured), and more from a disk.
BY_ID: Final = (
    "requested_position = "
    "(SELECT requested_position FROM charge INDEXED BY charge_by_id WHERE charge_id = :charge_id AND tenant = :tenant)"
)
BY_KEY: Final = "idempotency_key = :idempotency_key"
NEWEST_FIRST: Final = "ORDER BY requested_position DESC LIMIT :limit"
# The positions are a JSON array: one statement for all charges of a page.
SELECT_OPERATIONS: Final = _select(
    "operation",
    Operation,
    "WHERE tenant = :tenant AND charge_position IN (SELECT value FROM json_each(:charge_positions)) "
    "ORDER BY charge_position, number",
)
SELECT_ENTRIES: Final = _select(
    "entry", Entry, "WHERE tenant = :tenant AND charge_position = :charge_position ORDER BY version"
)
SELECT_STEPS: Final = _select(
    "step", Step, "WHERE tenant = :tenant AND charge_position = :charge_position ORDER BY version"
)
# The open proposals of a page, each named by its charge and its own position.
SELECT_PROPOSALS: Final = _select(
    "step",
    Step,
    "WHERE tenant = :tenant AND charge_position IN (SELECT value FROM json_each(:charge_positions)) "
    "AND position IN (SELECT value FROM json_each(:proposals))",
)
SELECT_SUMS: Final = _select(
    "summary", Sum, "WHERE tenant = :tenant AND user_id = :user_id ORDER BY currency_code, name"
)
SELECT_TOTALS: Final = _select("totals", Totals, "WHERE tenant = :tenant")
# Times rise with positions, except where the clock steps back: a range of times is looked up as a range of positions, by
# halving. An index of times would cost a seventh of the time of a rebuild.
NEXT_REQUEST: Final = """
SELECT requested_at FROM charge WHERE tenant = :tenant AND requested_position >= :position AND requested_position < :below
ORDER BY requested_position LIMIT 1
"""
# Of all tenants, for the server's own gauges. A range of an index for each tenant: CROSS JOIN keeps this order.
COUNT_HOLDS_ENDING: Final = """
SELECT count(*) FROM tenant CROSS JOIN charge INDEXED BY charge_by_hold
    ON charge.tenant = tenant.tenant AND charge.hold_expires_at > 0 AND charge.hold_expires_at < :before
"""
COUNT_GIVEN_UP: Final = """
SELECT count(*) FROM tenant CROSS JOIN charge INDEXED BY charge_given_up_lately
    ON charge.tenant = tenant.tenant AND charge.given_up = 1 AND charge.stage_since >= :since
"""
COUNT_REVIEWS: Final = f"""
SELECT count(*), ifnull(sum(charge.proposal > 0), 0) FROM tenant CROSS JOIN charge INDEXED BY charge_by_status
    ON charge.tenant = tenant.tenant AND charge.status = {IN_REVIEW}
"""  # noqa: S608  # as above
