"""The bank's side of a history: what it moved and was asked for, against the operations of the journal."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from judge.history import BankCall, Movement, Violation
from judge.streams import OPENING, Book, Operation, Stream

Found = Mapping[str, tuple[Stream, Operation]]
"""The operations of a journal by their references, each with its charge."""


def operations_of(charges: Mapping[str, Stream]) -> dict[str, tuple[Stream, Operation]]:
    """Find all operations of a journal by their references at the bank."""
    return {operation.reference: (charge, operation) for charge in charges.values() for operation in charge.operations}


def settled(movements: Sequence[Movement], found: Found) -> Iterator[Violation]:
    """I1, I2, I3, I4, I5, I12, as far as they concern what was executed."""
    by_reference: dict[str, list[Movement]] = defaultdict(list)
    for movement in movements:
        by_reference[movement.reference].append(movement)
    by_key: Counter[tuple[str, str]] = Counter()
    for reference, moved in by_reference.items():
        if len(moved) > 1:
            yield Violation("I1", _named(found.get(reference), reference), f"the money moved {len(moved)} times")
        if reference not in found:
            yield Violation("I3", f"reference {reference}", "money moved for an operation that the journal lacks")
            continue
        charge, operation = found[reference]
        where = _named((charge, operation), reference)
        if operation.kind in OPENING and len(moved) == 1:
            by_key[charge.requested.tenant, operation.key] += 1
        for movement in moved:
            if movement.bank not in (None, charge.requested.bank):
                yield Violation("I5", where, f"the money moved at {movement.bank!r}, not {charge.requested.bank!r}")
            if not _is_ours(movement, charge, operation):
                yield Violation("I5", where, "the bank moved something else than was requested")
            if movement.token not in operation.issued:
                yield Violation("I3", where, "money moved by a token that the journal does not hold")
            if movement.token in operation.expired:
                yield Violation("I4", where, "money moved by a token that the journal calls expired")
        if operation.is_undone and not _may_be_untrue(operation):
            yield Violation("I12", where, f"the money moved, and the journal says {operation.end}")
    for (_, key), times in by_key.items():
        if times > 1:
            yield Violation("I1", f"key {key}", f"the money moved {times} times, under several charges")
    for reference, (charge, operation) in found.items():
        if (
            operation.is_executed
            and not _may_be_untrue(operation)
            and not any(
                movement.transaction_id == operation.transaction_id
                and (operation.verdict is not None or movement.token in operation.issued[-1:])
                and (movement.kind, movement.minor_units, movement.currency_code)
                == (operation.kind, operation.amount, operation.currency)
                for movement in by_reference.get(reference, ())
            )
        ):
            where = _named((charge, operation), reference)
            yield Violation("I2", where, f"{operation.end}, but the bank knows of no such movement")


def _may_be_untrue(operation: Operation) -> bool:
    """Whether people found its end, and no bank has confirmed it: against its word, or a refund that bears no name of ours."""
    verdict = operation.verdict
    return verdict is not None and (verdict.may_be_untrue or (verdict.is_refunded and operation.kind == "refund"))


def given_away(found: Found) -> set[str]:
    """The bank's ids of transactions that people, against the bank's word, have taken for those of operations."""
    return {
        operation.transaction_id
        for _, operation in found.values()
        if operation.is_executed and operation.verdict is not None and operation.verdict.may_be_untrue
    }


def _is_ours(movement: Movement, charge: Stream, operation: Operation) -> bool:
    # What follows in a charge that people gave another one's transaction is booked on that one's card.
    is_on_another = operation.kind not in OPENING and _may_be_untrue(charge.operations[0])
    return (
        (movement.kind, movement.minor_units, movement.currency_code)
        == (operation.kind, operation.amount, operation.currency)
        and (is_on_another or movement.card in ("", charge.requested.card.token))
        and movement.on in ("", _acts_on(charge, operation))
    )


def _acts_on(charge: Stream, operation: Operation) -> str:
    """The bank's id of the transaction on which an operation acts; empty for one that opens a charge."""
    return "" if operation.kind in OPENING else charge.operations[0].transaction_id


def booked(movements: Sequence[Movement], found: Found, *, is_at_rest: bool) -> Iterator[Violation]:
    """I17: at the bank each charge's money allows each operation at its time; at rest its book is the journal's."""
    books: dict[str, Book] = {}
    for movement in movements:
        charge, operation = found.get(movement.reference, (None, None))
        is_final = operation is not None and operation.is_final
        where = _named(found.get(movement.reference), movement.reference)
        if movement.kind in OPENING:
            book = books.setdefault(movement.transaction_id, Book())
        else:
            on = movement.on or (_acts_on(charge, operation) if charge and operation else "")
            if (known := books.get(on)) is None:
                yield Violation("I17", where, f"a {movement.kind} on a transaction that was not executed before")
                continue
            book = known
            if why := book.forbids(movement.kind, movement.minor_units):
                yield Violation("I17", where, f"the bank executed {why}")
        book.write(movement.kind, movement.minor_units, is_final=is_final)
    shared = given_away(found)
    for reference, (charge, operation) in found.items() if is_at_rest else ():
        if operation.kind not in OPENING or not operation.is_executed or charge.is_in_review or charge.is_left_out:
            continue
        if operation.transaction_id in shared:
            continue
        ours, theirs = charge.book.amounts(), books.get(operation.transaction_id, Book()).amounts()
        if ours != theirs and charge.newest is not None and charge.newest.ending is not None:
            text = f"authorised, captured, refunded, voided are {ours} in the journal and {theirs} at the bank"
            yield Violation("I17", f"charge {reference}", text)


def asked(calls: Sequence[BankCall], movements: Sequence[Movement], found: Found) -> Iterator[Violation]:
    """I3, I4, I5: the calls to the bank."""
    reference_of = {token: reference for reference, (_, operation) in found.items() for token in operation.issued}
    settled_tokens = {movement.token for movement in movements}
    executed: dict[str, list[str]] = defaultdict(list)
    for call in calls:
        reference = call.reference or reference_of.get(call.token, "")
        if reference in found and call.bank not in (None, chosen := found[reference][0].requested.bank):
            where = _named(found[reference], reference)
            yield Violation("I5", where, f"the {call.step} step went to the bank {call.bank!r}, not {chosen!r}")
        if call.step == "look_up":
            continue
        if reference not in found:
            if call.step != "cancel" or reference:  # The bank's own token of a reference may be called off.
                where = f"reference {reference or '?'}" + (f", token {call.token}" if call.token else "")
                text = f"the {call.step} step of an operation or token that the journal does not hold"
                yield Violation("I3", where, text)
            continue
        charge, operation = found[reference]
        where = _named((charge, operation), reference) + (f", token {call.token}" if call.token else "")
        ours = operation.amount, operation.currency, charge.requested.card.token, operation.kind
        theirs = (
            operation.amount if call.amount is None else call.amount,
            call.currency or operation.currency,
            call.card or charge.requested.card.token,
            call.kind or operation.kind,
        )
        if theirs != ours or call.on not in ("", _acts_on(charge, operation)):
            yield Violation("I5", where, f"the bank was asked for {theirs}, requested was {ours}")
        if call.step == "cancel" and not operation.is_called_off:
            yield Violation("I5", where, "the bank was asked to call off what nobody called off")
        if call.step == "execute":
            if call.token_was_durable is False:
                yield Violation("I3", where, "executed before the token was durable")
            if call.token not in operation.issued:
                yield Violation("I3", where, "executed with a token that the journal does not hold")
            elif call.token not in executed[reference]:
                executed[reference].append(call.token)
    for reference, tokens in executed.items():
        charge, operation = found[reference]
        newest = max(tokens, key=operation.issued.index)
        for token in tokens:
            where = f"{_named((charge, operation), reference)}, token {token}"
            if token != newest and token not in operation.expired:
                yield Violation("I4", where, "a second token was executed while this one was not expired")
            if token != newest and token in settled_tokens:
                yield Violation("I4", where, "a second token was executed although this one had settled")


def summed(movements: Sequence[Movement], found: Found) -> Iterator[Violation]:
    """L2, I12: once every charge had time to come to rest, the sums agree.

    Charges in review are left out, and those whose end people found, if the bank has not confirmed all of it.
    """
    theirs: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    for movement in movements:
        charge, operation = found.get(movement.reference, (None, None))
        if charge is not None and (charge.is_in_review or charge.is_left_out):
            continue
        theirs[movement.currency_code] += _flow(movement.kind, movement.minor_units)
        if operation is not None and operation.ending is None:
            where = _named(found[movement.reference], movement.reference)
            yield Violation("L2", where, "the money moved, and the journal does not say so")
    for charge, operation in found.values():
        if operation.is_executed and not charge.is_in_review and not charge.is_left_out:
            ours[operation.currency] += _flow(operation.kind, operation.amount)
    for currency in sorted(ours.keys() | theirs.keys()):
        if ours[currency] != theirs[currency]:
            text = f"the journal moved {ours[currency]}, the bank {theirs[currency]}"
            yield Violation("I12", f"currency {currency}", text)


def _flow(kind: str, amount: int) -> int:
    """What of an executed operation's amount comes in: a hold moves no money."""
    return {"charge": amount, "capture": amount, "refund": -amount}.get(kind, 0)


def _named(known: tuple[Stream, Operation] | None, reference: str) -> str:
    """Name the place of a finding."""
    if known is None:
        return f"reference {reference}"
    charge, operation = known
    return f"charge {charge.charge_id}" + ("" if operation.kind in OPENING else f", {operation.kind} {operation.key}")
