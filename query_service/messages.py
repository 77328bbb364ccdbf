"""The contract's messages, made from what the views show."""

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1 import journal_pb2, query_pb2
from charging.v1.common_pb2 import Card, Lag, Money
from charging.v1.query_pb2 import ChargeStage
from query_service.lookup import ChargeRows, History
from query_service.mirrors import Seen
from query_service.schema import (
    AT_REST,
    AWAITING_CUSTOMER,
    AWAITING_EXECUTION,
    AWAITING_TOKEN,
    CALLING_OFF,
    CALLING_OFF_TOKEN,
    RESOLVING,
    Charge,
    Entry,
    Operation,
    Step,
    Sum,
    Totals,
)
from query_service.subscriber import State
from query_service.words import IN_REVIEW

_STATES = {
    State.CATCHING_UP: query_pb2.VIEW_STATE_CATCHING_UP,
    State.LIVE: query_pb2.VIEW_STATE_LIVE,
    State.DISCONNECTED: query_pb2.VIEW_STATE_DISCONNECTED,
    State.STOPPED: query_pb2.VIEW_STATE_STOPPED,
}
_WORST_FIRST = (State.STOPPED, State.DISCONNECTED, State.CATCHING_UP, State.LIVE)
# The events' names, by the numbers of their kinds.
_EVENTS = {
    kind.number: kind.message_type.name
    for kind in journal_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    if kind.message_type is not None
}


def freshness_of(seen: Sequence[Seen[Any]]) -> dict[str, Any]:
    """Make the fields of an answer that tell how far it shows the journals."""
    positions = [one.position() for one in seen]
    as_of, lag = as_of_and_lag(positions)
    return {"as_of_position": as_of, "lag": lag, "positions": positions}


def as_of_and_lag(positions: Sequence[query_pb2.JournalPosition]) -> tuple[int, Lag]:
    """Return the position and the lag of a single journal; of several, 0 and the largest lag. An unheard feed lags most."""
    if len(positions) == 1:
        return positions[0].position, positions[0].lag
    silences = [position.lag.silence_milliseconds for position in positions]
    return 0, Lag(
        records=max(position.lag.records for position in positions),
        silence_milliseconds=-1 if -1 in silences else max(silences),
    )


def status_of(seen: Sequence[Seen[Totals]]) -> query_pb2.GetViewStatusResponse:
    """Tell how the views stand."""
    journals = [
        query_pb2.JournalStatus(shown=one.position(), state=_STATES[one.state], charge_count=one.found.charge_count)
        for one in seen
    ]
    as_of, lag = as_of_and_lag([journal.shown for journal in journals])
    is_single = len(seen) == 1
    return query_pb2.GetViewStatusResponse(
        journal_id=seen[0].checkpoint.journal_id if is_single else "",
        as_of_position=as_of,
        head_position=journals[0].shown.head_position if is_single else 0,
        lag=lag,
        state=_STATES[min((one.state for one in seen), key=_WORST_FIRST.index)],
        charge_count=sum(journal.charge_count for journal in journals),
        journals=journals,
    )


def charge_of(rows: ChargeRows, journal_id: str) -> query_pb2.Charge:
    """Show a charge, which is in this journal."""
    charge, opening, newest = rows.charge, rows.operations[0], rows.operations[-1]
    shown = query_pb2.Charge(
        charge_id=text_of(charge.charge_id),
        idempotency_key=charge.idempotency_key,
        user_id=charge.user_id,
        card=Card(
            token=charge.card_token,
            brand=charge.card_brand,
            last4=charge.card_last4,
            fingerprint=charge.card_fingerprint,
        ),
        amount=Money(minor_units=charge.minor_units, currency_code=charge.currency_code),
        description=charge.description,
        metadata=json.loads(charge.metadata),
        status=charge.status,
        transaction_id=opening.transaction_id,
        decline_reason=opening.decline_reason,
        review_reason=newest.review_reason,  # nothing follows an operation in review
        requested_at=_time(charge.requested_at),
        updated_at=_time(charge.updated_at),
        version=charge.version,
        position=charge.position,
        capture=charge.capture,
        authorized_minor_units=charge.authorized_minor_units,
        captured_minor_units=charge.captured_minor_units,
        refunded_minor_units=charge.refunded_minor_units,
        held_minor_units=charge.held_minor_units,
        operations=[_operation_of(operation, charge.currency_code) for operation in rows.operations],
        journal_id=journal_id,
        bank=charge.bank,
        off_session=bool(charge.off_session),
        stage=stage_of(charge),
        stage_since=_time(charge.stage_since),
        held_back=bool(charge.held_back),
    )
    if rows.proposal is not None:
        shown.proposal.CopyFrom(_proposal_of(rows.proposal))
    if charge.action_url:
        shown.action.url = charge.action_url
        if charge.action_expires_at:
            shown.action.expires_at.FromMicroseconds(charge.action_expires_at)
    if charge.not_after:
        shown.not_after.FromMicroseconds(charge.not_after)
    if charge.hold_expires_at:
        shown.hold_expires_at.FromMicroseconds(charge.hold_expires_at)
    return shown


_STAGES = {
    AWAITING_TOKEN: ChargeStage.CHARGE_STAGE_AWAITING_TOKEN,
    AWAITING_EXECUTION: ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION,
    AWAITING_CUSTOMER: ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER,
    CALLING_OFF: ChargeStage.CHARGE_STAGE_CALLING_OFF,
    CALLING_OFF_TOKEN: ChargeStage.CHARGE_STAGE_CALLING_OFF,
    RESOLVING: ChargeStage.CHARGE_STAGE_IN_REVIEW,
}


def stage_of(charge: Charge) -> ChargeStage.ValueType:
    """Tell what a charge waits for. The step of a customer who is not there is not waited for: the charge is called off."""
    if charge.stage == AT_REST:
        is_in_review = charge.status == IN_REVIEW
        return ChargeStage.CHARGE_STAGE_IN_REVIEW if is_in_review else ChargeStage.CHARGE_STAGE_AT_REST
    if charge.stage == AWAITING_CUSTOMER and charge.off_session:
        return ChargeStage.CHARGE_STAGE_CALLING_OFF
    return _STAGES[charge.stage]


def _proposal_of(step: Step) -> query_pb2.ResolutionProposal:
    return query_pb2.ResolutionProposal(
        proposal=step.position,
        actor=step.actor,
        reason=step.reason,
        resolution=step.resolution,
        transaction_id=step.transaction_id,
        refund_transaction_id=step.refund_transaction_id,
        evidence=step.evidence,
        proposed_at=_time(step.recorded_at),
    )


def _operation_of(operation: Operation, currency_code: str) -> query_pb2.Operation:
    return query_pb2.Operation(
        kind=operation.kind,
        idempotency_key=operation.idempotency_key,
        amount=Money(minor_units=operation.minor_units, currency_code=currency_code),
        status=operation.status,
        transaction_id=operation.transaction_id,
        decline_reason=operation.decline_reason,
        review_reason=operation.review_reason,
        requested_at=_time(operation.requested_at),
        updated_at=_time(operation.updated_at),
        reason=operation.reason,
        final=bool(operation.final),
        actor=operation.actor,
    )


def entries_of(history: History) -> Iterator[query_pb2.HistoryEntry]:
    """Show the events in the history of a charge."""
    for entry in history.entries:
        yield _entry_of(entry, history.rows.operations[entry.operation_number], history.steps.get(entry.version))


def _entry_of(entry: Entry, operation: Operation, step: Step | None) -> query_pb2.HistoryEntry:
    shown = query_pb2.HistoryEntry(
        position=entry.position,
        version=entry.version,
        recorded_at=_time(entry.recorded_at),
        event=_EVENTS[entry.event],
        status=entry.status,
        operation=operation.kind,
        idempotency_key=operation.idempotency_key,
        actor=operation.actor if step is None else step.actor,
        reason="" if step is None else step.reason,
    )
    if step is not None:
        shown.bank_said, shown.contradicts_bank = step.bank_said, bool(step.contradicts_bank)
        if step.resolution:
            shown.proposal.CopyFrom(_proposal_of(step))
    return shown


def currencies_of(journals: Iterable[Sequence[Sum]]) -> Iterator[query_pb2.CurrencySummary]:
    """Add up the sums of each currency in one message, whose fields bear their names. Raises ValueError beyond 64 bits."""
    sums = sorted(chain.from_iterable(journals), key=_currency_of)
    for currency_code, of_currency in groupby(sums, key=_currency_of):
        summary = query_pb2.CurrencySummary(currency_code=currency_code)
        for one in of_currency:
            _add(summary, f"{one.name}_minor_units", one.minor_units)
            _add(summary, f"{one.name}_count", one.charge_count)
        summary.net_minor_units = summary.charged_minor_units - summary.refunded_minor_units
        yield summary


def _add(summary: query_pb2.CurrencySummary, field: str, more: int) -> None:
    setattr(summary, field, getattr(summary, field) + more)


def _currency_of(one: Sum) -> str:
    return one.currency_code


def text_of(charge_id: bytes) -> str:
    """Write a charge's id as the contract does."""
    return str(uuid.UUID(bytes=charge_id))


def _time(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time
