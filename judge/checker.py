"""The history checker: from the observations to the invariants that broke, and where.

It is pure. Like `judge.history`, whose values it judges, it shares nothing with the product but the contract in
protos/. The streams' grammar comes from `judge.grammar`, a file that is made from the core's own table.

`check` takes one `Observed`: clients' histories, the journal, the bank's movements and calls, the view. Parts that were not
observed are left empty and are not checked. docs/invariants.md defines the invariants; in a few words:

    I1 one settlement a key          I6 stable replies         I11 view = fold of the journal
    I2 no Charged without money      I7 acknowledged: durable  I12 the sums agree
    I3 token durable before execute  I8 the streams' grammar   I13 no card number anywhere
    I4 one token is executed         I9 gapless order          I14 an actor and a tenant in each charge
    I5 the request is charged        I10 nothing changes       I15 no answer is untrue
    I18 no advice leads to a second charge
    L1 every charge comes to rest    L2 money that moved is Charged    L3 the view reaches the head
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from charging.v1.journal_pb2 import Event
from judge.grammar import FOLLOWS, TOKEN_LIMIT
from judge.history import (
    NOTHING_STORED,
    PENDING,
    STATUS_AT_REST,
    Call,
    Movement,
    Observed,
    Record,
    Row,
    Stream,
    View,
    chain_after,
    charge_id_of,
    fold,
)

# The ends at which no money has moved and none will.
_NO_MONEY = frozenset({"charge_declined", "charge_abandoned"})


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: its name, the place (a key, a charge, a position), and the observation."""

    invariant: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.where}: {self.text}"


def check(observed: Observed) -> list[Violation]:
    """Return the invariants that broke, and where; empty if all hold."""
    found: list[Violation] = []
    charges: dict[str, Stream] = {}
    found += _read(observed.records, charges)
    if charges:
        found += _streams(charges)
    found += _seen(observed)
    found += _calls(observed, charges)
    if observed.movements is not None:
        found += _settled(observed.movements, charges)
    found += _asked(observed, charges)
    if observed.view is not None:
        found += _view(observed.view, observed.records)
    found += _card_numbers(observed)
    if observed.is_at_rest:
        found += _at_rest(observed, charges)
    return found


# ---------------------------------------------------------------- the journal, and its readers
def _read(records: Sequence[Record], charges: dict[str, Stream]) -> Iterator[Violation]:
    """I9, I10: the order and the chain. Fills `charges`."""
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
        charges.setdefault(record.charge_id, Stream(record.charge_id)).entries.append((record, kind, event))


def _streams(charges: Mapping[str, Stream]) -> Iterator[Violation]:
    """I8, I14, and of I6 that a key names one charge."""
    by_key: dict[tuple[str, str], str] = {}
    for charge in charges.values():
        before: str | None = None
        last_token = ""
        for version, (record, kind, event) in enumerate(charge.entries, 1):
            where = f"charge {charge.charge_id}, position {record.position}"
            if record.version != version:
                yield Violation("I8", where, f"version {record.version} stands where {version} belongs")
            if kind not in FOLLOWS.get(before, frozenset()):
                yield Violation("I8", where, f"{kind} follows {before or 'nothing'}")
            if kind == "token_issued":
                last_token = event.token_issued.token
            if kind == "token_expired" and event.token_expired.token != last_token:
                yield Violation("I8", where, "another token expired than the one that was issued last")
            if kind == "charged":
                terms = event.charged
                told = terms.user_id, terms.card.token, terms.amount.minor_units, terms.amount.currency_code
                if told != charge.terms():
                    yield Violation("I5", where, f"Charged says {told}, requested was {charge.terms()}")
            before = kind
        if len(charge.tokens("token_expired")) > TOKEN_LIMIT:
            yield Violation("I8", f"charge {charge.charge_id}", f"more than {TOKEN_LIMIT} tokens expired")
        requested = charge.requested
        if charge.entries[0][1] != "charge_requested":
            continue
        tenant, key = requested.tenant, requested.idempotency_key
        if not tenant or not requested.actor:
            yield Violation("I14", f"charge {charge.charge_id}", "no tenant or no actor is named")
        if requested.charge_id != charge.charge_id or charge.charge_id != charge_id_of(tenant, key):
            yield Violation("I6", f"key {key}", f"its charge must have the id {charge_id_of(tenant, key)}")
        if by_key.setdefault((tenant, key), charge.charge_id) != charge.charge_id:
            yield Violation("I6", f"key {key}", "two charges were requested under it")


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
    """I6, I7, I15, I18: the clients' answers."""
    first_told: dict[tuple[str, str], tuple[Any, ...]] = {}
    may_be_stored = {(call.tenant, call.key) for call in observed.calls if call.reason not in NOTHING_STORED}
    for call in observed.calls:
        charge = charges.get(charge_id_of(call.tenant, call.key))
        where = f"key {call.key}"
        match call.outcome:
            case "ok":
                yield from _answer(call, charge, observed.records)
                told = (call.charge_id, call.status, call.transaction_id, call.decline_reason, call.position)
                if call.status != PENDING and first_told.setdefault((call.tenant, call.key), told) != told:
                    before = first_told[call.tenant, call.key]
                    yield Violation("I6", where, f"the outcome was {before} once and {told} another time")
            case "refused":
                if call.advice == "USE_NEW_KEY" and call.reason != "IDEMPOTENCY_KEY_REUSED":
                    yield Violation("I15", where, f"a new key was advised after {call.reason}")
                if call.advice == "USE_NEW_KEY" and charge is not None and charge.entries[-1][1] not in _NO_MONEY:
                    yield Violation("I18", where, "a new key was advised, but the key's charge may move money")
                if call.reason == "IDEMPOTENCY_KEY_REUSED" and (charge is None or charge.terms() == _terms(call)):
                    yield Violation("I15", where, "refused as reused, but the journal holds no other request of it")
                if charge is not None and (call.tenant, call.key) not in may_be_stored:
                    yield Violation("I15", where, f"told that nothing was stored ({call.reason}), but it was")
            case "unknown":
                pass


def _answer(call: Call, charge: Stream | None, records: Sequence[Record]) -> Iterator[Violation]:
    where = f"key {call.key}"
    if call.durable_position is not None and call.position > call.durable_position:
        yield Violation("I7", where, f"position {call.position} was told before it was durable")
    if charge is None or not 1 <= call.position <= len(records):
        yield Violation("I7", where, f"an answer was given at position {call.position}, and the journal lacks it")
        return
    if call.charge_id != charge.charge_id:
        yield Violation("I6", where, f"the answer is about another charge, {call.charge_id}")
        return
    if charge.terms() != _terms(call):
        yield Violation("I6", where, "another request than the stored one was answered under the same key")
    at = next((entry for entry in charge.entries if entry[0].position == call.position), None)
    if at is None:
        yield Violation("I7", where, f"position {call.position} does not hold an event of this charge")
        return
    _, kind, event = at
    if call.status != STATUS_AT_REST.get(kind, PENDING):
        yield Violation("I15", where, f"told status {call.status} at position {call.position}, where {kind} stands")
    elif call.transaction_id != (event.charged.transaction_id if kind == "charged" else ""):
        yield Violation("I15", where, "told another transaction than the journal's")
    elif call.decline_reason != (event.charge_declined.reason if kind == "charge_declined" else 0):
        yield Violation("I15", where, "told another reason of decline than the journal's")


def _terms(call: Call) -> tuple[str, str, int, str]:
    return call.user, call.card, call.amount, call.currency


# ---------------------------------------------------------------- the bank
def _settled(movements: Sequence[Movement], charges: Mapping[str, Stream]) -> Iterator[Violation]:
    """I1, I2, I4, I5, I12, as far as they concern money that moved."""
    paid = [movement for movement in movements if movement.kind == "charge"]
    by_reference: dict[str, list[Movement]] = defaultdict(list)
    for movement in paid:
        by_reference[movement.reference].append(movement)
    for reference, moved in by_reference.items():
        if len(moved) > 1:
            yield Violation("I1", f"charge {reference}", f"the money moved {len(moved)} times")
        charge = charges.get(reference)
        if charge is None:
            yield Violation("I3", f"charge {reference}", "money moved for a charge that the journal does not hold")
            continue
        for movement in moved:
            _, card, amount, currency = charge.terms()
            if (movement.minor_units, movement.currency_code) != (amount, currency) or movement.card not in ("", card):
                yield Violation("I5", f"charge {reference}", "the bank moved something else than was requested")
            if movement.token not in charge.tokens("token_issued"):
                yield Violation("I3", f"charge {reference}", "money moved by a token that the journal does not hold")
            if movement.token in charge.tokens("token_expired"):
                yield Violation("I4", f"charge {reference}", "money moved by a token that the journal calls expired")
        if charge.ending is not None and charge.ending[1] in ("charge_declined", "charge_abandoned"):
            yield Violation("I12", f"charge {reference}", f"the money moved, and the journal says {charge.ending[1]}")
    by_key = Counter(
        (charges[m.reference].requested.tenant, charges[m.reference].requested.idempotency_key)
        for m in paid
        if m.reference in charges
    )
    for (_, key), times in by_key.items():
        if times > 1 and all(len(moved) == 1 for moved in by_reference.values()):
            yield Violation("I1", f"key {key}", f"the money moved {times} times, under several charges")
    for charge in charges.values():
        if charge.ending is None or charge.ending[1] != "charged":
            continue
        record, _, event = charge.ending
        told = event.charged
        if not any(
            m.transaction_id == told.transaction_id
            and m.token in charge.tokens("token_issued")[-1:]
            and (m.minor_units, m.currency_code) == (told.amount.minor_units, told.amount.currency_code)
            for m in by_reference.get(charge.charge_id, ())
        ):
            where = f"charge {charge.charge_id}, position {record.position}"
            yield Violation("I2", where, "Charged, but the bank knows of no such movement")


def _asked(observed: Observed, charges: Mapping[str, Stream]) -> Iterator[Violation]:
    """I3, I4, I5: the calls to the bank."""
    reference_of = {token: c.charge_id for c in charges.values() for token in c.tokens("token_issued")}
    settled = {movement.token for movement in observed.movements or ()}
    executed: dict[str, list[str]] = defaultdict(list)
    for call in observed.bank_calls:
        reference = call.reference or reference_of.get(call.token, "")
        charge = charges.get(reference)
        where = f"charge {reference or '?'}, token {call.token}" if call.token else f"charge {reference}"
        if call.step == "look_up":
            continue
        if charge is None:
            yield Violation("I3", where, f"the {call.step} step of a charge or token that the journal does not hold")
            continue
        _, card, amount, currency = charge.terms()
        asked = (call.card or card, amount if call.amount is None else call.amount, call.currency or currency)
        if asked != (card, amount, currency):
            yield Violation("I5", where, f"the bank was asked for {asked}, requested was {(card, amount, currency)}")
        if call.step == "execute":
            if call.token_was_durable is False:
                yield Violation("I3", where, "executed before the token was durable")
            if call.token not in charge.tokens("token_issued"):
                yield Violation("I3", where, "executed with a token that the journal does not hold")
            elif call.token not in executed[reference]:
                executed[reference].append(call.token)
    for reference, tokens in executed.items():
        issued = charges[reference].tokens("token_issued")
        newest = max(tokens, key=issued.index)
        for token in tokens:
            where = f"charge {reference}, token {token}"
            if token != newest and token not in charges[reference].tokens("token_expired"):
                yield Violation("I4", where, "a second token was executed while this one was not expired")
            if token != newest and token in settled:
                yield Violation("I4", where, "a second token was executed although this one had settled")


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
    """L1, L2, L3, I12: once every charge had time to come to rest."""
    for charge in charges.values():
        where = f"charge {charge.charge_id}"
        if charge.ending is None:
            yield Violation("L1", where, f"it has not come to rest: its last event is {charge.entries[-1][1]}")
        elif charge.is_in_review and not charge.ending[2].review_required.reason:
            yield Violation("L1", where, "it is in review for no listed reason")
    if observed.movements is not None:
        theirs: Counter[str] = Counter()
        ours: Counter[str] = Counter()
        for movement in observed.movements:
            of = charges.get(movement.reference)
            if movement.kind == "charge" and not (of is not None and of.is_in_review):
                theirs[movement.currency_code] += movement.minor_units
                if of is not None and of.ending is None:
                    yield Violation("L2", f"charge {movement.reference}", "the money moved, and it is not Charged")
        for charge in charges.values():
            if charge.ending is not None and charge.ending[1] == "charged":
                amount = charge.ending[2].charged.amount
                ours[amount.currency_code] += amount.minor_units
        for currency in sorted(ours.keys() | theirs.keys()):
            if ours[currency] != theirs[currency]:
                text = f"the journal charged {ours[currency]}, the bank moved {theirs[currency]}"
                yield Violation("I12", f"currency {currency}", text)
    if observed.view is not None and observed.view.checkpoint["position"] != len(observed.records):
        at = observed.view.checkpoint["position"]
        yield Violation("L3", f"position {at}", f"the view has not reached the head, {len(observed.records)}")
