"""The history checker: from the observations to the invariants that broke, and where.

It is pure. Like `judge.history`, whose values it judges, it shares nothing with the product but the contract in
protos/. The streams' grammar comes from `judge.grammar`, a file that is made from the core's own table.

`check` takes one `Observed`: clients' histories, the journal, the bank's movements and calls, the view. Parts that were not
observed are left empty and are not checked. docs/invariants.md defines the invariants; in a few words:

    I1 one settlement an operation   I7 acknowledged: durable  I13 no card number anywhere
    I2 none is told without money    I8 the streams' grammar   I14 an actor and a tenant in each charge
    I3 token durable before execute  I9 gapless order          I15 no answer is untrue
    I4 one token is executed         I10 nothing changes       I17 the book: never more than is left
    I5 the request is done           I11 view = fold of the journal
    I6 stable replies                I12 the sums agree        I18 no advice leads to a second charge
    I19 only two people resolve a review, and each step of the desk may be taken where it was
    L1 every charge comes to rest    L2 money that moved is told    L3 the view reaches the head
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from charging.v1.common_pb2 import OperationStatus
from charging.v1.journal_pb2 import Event
from judge.history import (
    NOTHING_STORED,
    Call,
    Observed,
    Record,
    Row,
    View,
    Violation,
    chain_after,
    charge_id_of,
    fold,
)
from judge.settlement import asked, booked, operations_of, settled, summed
from judge.streams import REQUIRES_ACTION, Operation, Stream

# Of charges and of operations that follow: ChargeStatus and OperationStatus agree in it.
_PENDING = 1
# An operation that follows was not done, and never will be.
_OVER = frozenset({OperationStatus.OPERATION_STATUS_DECLINED, OperationStatus.OPERATION_STATUS_ABANDONED})


def check(observed: Observed) -> list[Violation]:
    """Return the invariants that broke, and where; empty if all hold."""
    charges: dict[str, Stream] = {}
    found = list(_read(observed.records, charges))
    operations = operations_of(charges)
    found += _seen(observed)
    found += _calls(observed, charges)
    if observed.movements is not None:
        found += settled(observed.movements, operations)
        found += booked(observed.movements, operations, is_at_rest=observed.is_at_rest)
    found += asked(observed.bank_calls, observed.movements or (), operations)
    if observed.view is not None:
        found += _view(observed.view, observed.records)
    found += _card_numbers(observed)
    if observed.is_at_rest:
        found += _at_rest(observed, charges)
        found += summed(observed.movements, operations) if observed.movements is not None else ()
    return found


# ---------------------------------------------------------------- the journal, and its readers
def _read(records: Sequence[Record], charges: dict[str, Stream]) -> Iterator[Violation]:
    """I9, I10: the order and the chain; and the streams' own. Fills `charges`."""
    chain = bytes(32)
    for expected, record in enumerate(records, 1):
        where = f"position {record.position}"
        if record.position != expected:
            yield Violation("I9", where, f"position {expected} was expected here")
            return
        chain = chain_after(chain, record)
        if chain != record.chain:
            yield Violation("I10", where, "the record does not fit the chain")
            return
        try:
            event = Event.FromString(record.event)
        except DecodeError:
            event = Event()
        kind = event.WhichOneof("kind") or "unknown"
        charge = charges.get(record.charge_id)
        if charge is None:
            charge = charges[record.charge_id] = Stream(record.charge_id)
        yield from charge.take(record, kind, event)


def _seen(observed: Observed) -> Iterator[Violation]:
    """I9, I10 for the readers of the feed, and the anchor."""
    for number, session in enumerate(observed.sessions, 1):
        for expected, (position, chain) in enumerate(session.seen, session.after_position + 1):
            where = f"feed session {number}, position {position}"
            if position != expected:
                yield Violation("I9", where, f"position {expected} was expected here")
                break
            if position > len(observed.records):
                yield Violation("I10", where, "a reader saw a record that the journal no longer holds")
                break
            if chain != observed.records[position - 1].chain:
                yield Violation("I10", where, "a reader saw another record here")
                break
    if observed.anchor is not None:
        position, chain = observed.anchor
        if position > len(observed.records):
            yield Violation("I10", f"position {position}", "the anchor was written for a record that is gone")
        elif position and chain != observed.records[position - 1].chain:
            yield Violation("I10", f"position {position}", "the journal differs from its anchor")


# ---------------------------------------------------------------- the clients
def _calls(observed: Observed, charges: Mapping[str, Stream]) -> Iterator[Violation]:
    """I6, I7, I14, I15, I18: the clients' answers."""
    first_told: dict[tuple[str, ...], tuple[Any, ...]] = {}
    may_be_stored = {call.names for call in observed.calls if call.reason not in NOTHING_STORED}
    for call in observed.calls:
        charge = charges.get(charge_id_of(call.tenant, call.key) if call.operation == "charge" else call.charge_id)
        known = None
        if charge is not None:
            known = charge.opening if call.operation == "charge" else charge.following(call.key)
        where = f"key {call.key}"
        match call.outcome:
            case "ok":
                yield from _answer(call, charge, known, observed.records)
                outcome = call.status, call.transaction_id, call.decline_reason, call.told_amount
                told = (call.charge_id, call.position, *outcome)
                if not _is_open(call, known) and first_told.setdefault(call.names, told) != told:
                    before = first_told[call.names]
                    yield Violation("I6", where, f"the outcome was {before} once and {told} another time")
            case "refused":
                if call.advice == "USE_NEW_KEY" and call.reason != "IDEMPOTENCY_KEY_REUSED":
                    yield Violation("I15", where, f"a new key was advised after {call.reason}")
                if call.advice == "USE_NEW_KEY" and charge is not None and not _is_free(charge, known):
                    yield Violation("I18", where, "a new key was advised, but the key's operation may move money")
                if call.reason == "IDEMPOTENCY_KEY_REUSED" and (
                    charge is None or known is None or _is_asked(call, charge, known)
                ):
                    yield Violation("I15", where, "refused as reused, but the journal holds no other request of it")
                if known is not None and call.names not in may_be_stored:
                    yield Violation("I15", where, f"told that nothing was stored ({call.reason}), but it was")
            case "unknown":
                pass


def _is_open(call: Call, known: Operation | None) -> bool:
    """Whether an answer promises nothing yet, or told of a review that people have resolved since."""
    if known is not None and known.review is not None and call.position == known.review[0].position:
        return True
    return call.status == _PENDING or (call.operation == "charge" and call.status == REQUIRES_ACTION)


def _is_free(charge: Stream, known: Operation | None) -> bool:
    """Whether a new key is safe: nothing moved under the known one, and nothing will."""
    if known is None or known is charge.opening:
        return charge.is_over_without_money
    return known.status in _OVER


def _answer(
    call: Call, charge: Stream | None, known: Operation | None, records: Sequence[Record]
) -> Iterator[Violation]:
    where = f"key {call.key}"
    if call.durable_position is not None and call.position > call.durable_position:
        yield Violation("I7", where, f"position {call.position} was told before it was durable")
    if charge is None or known is None or not 1 <= call.position <= len(records):
        yield Violation("I7", where, f"an answer was given at position {call.position}, and the journal lacks it")
        return
    if call.charge_id != charge.charge_id:
        yield Violation("I6", where, f"the answer is about another charge, {call.charge_id}")
        return
    if charge.requested.tenant != call.tenant:
        yield Violation("I14", where, "the answer is about another tenant's charge")
    if not _is_asked(call, charge, known):
        yield Violation("I6", where, "another request than the stored one was answered under the same key")
    if records[call.position - 1].charge_id != charge.charge_id:
        yield Violation("I7", where, f"position {call.position} does not hold an event of this charge")
        return
    is_decided = known.ending is not None and call.position >= known.ending[0].position
    status, transaction_id, reason = known.status_at(call.position), "", 0
    if is_decided:
        status, transaction_id, reason = known.status, known.transaction_id, known.decline_reason
    if call.status != status or call.position < known.requested.position:
        yield Violation("I15", where, f"told status {call.status} at position {call.position}, where it was {status}")
    elif known.ending is not None and call.position > known.ending[0].position:
        yield Violation("I15", where, f"told position {call.position}, decided at {known.ending[0].position}")
    elif not is_decided and known.review is not None and call.position > known.review[0].position:
        yield Violation("I15", where, f"told position {call.position}, in review since {known.review[0].position}")
    elif call.transaction_id != transaction_id:
        yield Violation("I15", where, "told another transaction than the journal's")
    elif call.decline_reason != reason:
        yield Violation("I15", where, "told another reason of decline than the journal's")
    elif call.told_amount not in (None, known.amount):
        yield Violation("I15", where, "told another amount than the journal's")


def _is_asked(call: Call, charge: Stream, known: Operation) -> bool:
    """Whether a call asks for what the journal holds under its key."""
    if call.operation != "charge":
        takes = (
            known.takes_all if call.amount is None else (call.amount, call.currency) == (known.amount, known.currency)
        )
        return bool(takes) and (call.operation, call.is_final) == (known.kind, known.is_final)
    asked_for = charge.requested
    is_same_card = call.card == asked_for.card.token
    if call.fingerprint and asked_for.card.fingerprint:
        is_same_card = call.fingerprint == asked_for.card.fingerprint
    return is_same_card and (call.user, call.amount, call.currency, call.is_held) == (
        asked_for.user_id,
        known.amount,
        known.currency,
        known.kind == "authorize",
    )


# ---------------------------------------------------------------- the view
def _view(view: View, records: Sequence[Record]) -> Iterator[Violation]:
    """I11: the rows are the fold of the journal up to the checkpoint."""
    position = view.checkpoint["position"]
    if position > len(records):
        yield Violation("I11", f"position {position}", "the view's checkpoint is ahead of the journal")
        return
    expected = fold(records[:position])
    for name, key in (
        ("tenants", "name"),
        ("charges", "requested_position"),
        ("operations", "requested_position"),
        ("entries", "position"),
        ("steps", "position"),
        ("sums", "user_id"),
        ("totals", "tenant"),
    ):
        ours, theirs = getattr(expected, name), getattr(view, name)
        if sorted(map(_canonical, ours)) == sorted(map(_canonical, theirs)):
            continue
        surplus = [row for row in theirs if row not in ours]
        missing = [row for row in ours if row not in theirs]
        shown = (surplus or missing or [{key: "?"}])[0]
        text = f"{len(surplus)} rows are wrong or too many, {len(missing)} are missing: {dict(shown)}"
        yield Violation("I11", f"view {name}, {key} {shown.get(key)}", text)
    for column, value in expected.checkpoint.items():
        if view.checkpoint[column] != value:
            yield Violation("I11", f"view checkpoint, {column}", f"is {view.checkpoint[column]!r}, not {value!r}")


def _canonical(row: Row) -> str:
    return repr(sorted(row.items()))


# ---------------------------------------------------------------- card numbers, and rest
def _card_numbers(observed: Observed) -> Iterator[Violation]:
    """I13: no planted card number is found, with any separators."""
    for name, blob in observed.blobs.items():
        bare = blob.translate(None, b" -._/") if observed.planted else b""
        for number in observed.planted:
            if number.encode() in blob or number.encode() in bare:
                yield Violation("I13", name, f"a card number ending in {number[-4:]} is found here")
    for record in observed.records if observed.planted else ():
        if any(number.encode() in record.event for number in observed.planted):
            yield Violation("I13", f"position {record.position}", "a card number is stored here")


def _at_rest(observed: Observed, charges: Mapping[str, Stream]) -> Iterator[Violation]:
    """L1, L3: once every charge had time to come to rest."""
    for charge in charges.values():
        where = f"charge {charge.charge_id}"
        if charge.newest is None or charge.newest.ending is None:
            yield Violation("L1", where, f"it has not come to rest: its last event is {charge.entries[-1][1]}")
        elif charge.is_in_review and not charge.newest.body.reason:
            yield Violation("L1", where, "it is in review for no listed reason")
    if observed.view is not None and observed.view.checkpoint["position"] != len(observed.records):
        at = observed.view.checkpoint["position"]
        yield Violation("L3", f"position {at}", f"the view has not reached the head, {len(observed.records)}")
