"""What a finding means, in a sentence, and the step that is proposed, as a command."""

import shlex
from datetime import UTC, datetime

from command_service.bank.dialect import is_storable
from command_service.bank.statement import Line, LineKind
from command_service.card_numbers import card_number_in
from command_service.reconciling.amounts import amount_out
from command_service.reconciling.days import written
from command_service.reconciling.entries import Entry, State
from command_service.reconciling.matching import Finding, FindingKind

LONGEST = 128
"""The length of the longest word of the bank's that is shown whole."""
CARD_NUMBER = "(looks like a card number)"
"""Stands in the place of one: what is found is kept and printed."""

_OTHERS = {
    FindingKind.FEE: "The fees of the day.",
    FindingKind.PAYOUT: "A payout: money between the bank and us.",
    FindingKind.CHARGEBACK: "A chargeback: the card's holder disputes a payment. Somebody has to answer it at the bank.",
}
_STATES = {
    State.MOVED: "moved",
    State.NOT_MOVED: "did not move",
    State.UNDER_WAY: "is under way",
    State.IN_REVIEW: "is in review",
}


def told(finding: Finding) -> str:
    """Say what a finding means."""
    entry, line = finding.entry, finding.line
    match finding.kind:
        case FindingKind.MISSING_AT_BANK if entry is not None:
            return (
                f"The journal has this {_name(entry.kind)}, executed {_moment(entry.at)}, and the statement does not."
            )
        case FindingKind.MISSING_HERE if line is not None:
            return _missing_here(line)
        case FindingKind.AMOUNT_DIFFERS if entry is None:
            return "The sum of the day differs. A day without a line counts as 0."
        case FindingKind.AMOUNT_DIFFERS if entry is not None and line is not None:
            return f"Both sides have it: {_money(line)} at the bank, and {_money(entry)} in the journal."
        case FindingKind.STATUS_DIFFERS if line is not None and not line.has_moved and not _has_moved(entry):
            return (
                f"The bank took back a {_name(line.kind)} that it had executed, of {_money(line)}: the money went back the way "
                "it came. In the journal it may have moved long ago: look for it by its transaction."
            )
        case FindingKind.STATUS_DIFFERS if entry is not None and line is not None:
            return _status(entry, line)
        case FindingKind.TWICE:
            return "The statement has it more than once: this line is one too many."
        case FindingKind.AT_EDGE if entry is not None:
            return (
                "The statement does not have it. It was executed about an end of what was read, and may be in the statement "
                "before or after: read these days too."
            )
        case FindingKind.AT_EDGE:
            return "The sum is right if this much was booked beyond the end of the statement: read the neighbouring days too."
        case _:
            return _OTHERS.get(finding.kind, "")


def _has_moved(entry: Entry | None) -> bool:
    return entry is not None and entry.state is State.MOVED


def _money(side: Entry | Line) -> str:
    return f"{amount_out(side.minor_units, side.currency_code)} {side.currency_code}"


def _missing_here(line: Line) -> str:
    """Say how far the journal was searched: a charge is found however old it is, and other operations are not."""
    has = f"The statement has this {_name(line.kind)}, and"
    if line.reference and line.kind in (LineKind.CHARGE, LineKind.AUTHORIZE):
        return f"{has} in the journal it has no such reference."
    what = "reference" if line.reference else "transaction"
    return (
        f"{has} no operation in the journal has its {what}. One that ended more than a day before the first day that was "
        "compared is not found: look for it before anything is refunded."
    )


def _status(entry: Entry, line: Line) -> str:
    if entry.state is not State.MOVED:
        ordered = f"{amount_out(abs(entry.minor_units), entry.currency_code)} {entry.currency_code}"
        text = (
            f"At the bank the money moved; in the journal the {_name(entry.kind)} of {ordered} {_STATES[entry.state]}."
        )
        return f"{text} The service completes it: refund nothing." if entry.state is State.UNDER_WAY else text
    if not line.has_moved:
        return f"In the journal the {_name(entry.kind)} moved; the statement says that it did not, or was undone."
    if line.reference == entry.reference and line.transaction_id and not is_storable(line.transaction_id):
        return "Both sides have it. The bank's transaction id may not be kept, so the journal has it under another."
    if line.transaction_id != entry.transaction_id:
        return "Both sides have it, under different transaction ids: it may have been executed twice."
    return f"The journal has a {_name(entry.kind)}, and the statement another kind of movement."


def proposed(finding: Finding, bank: str) -> str:
    """Return the step that is proposed, as a command; empty if there is none."""
    entry, line = finding.entry, finding.line
    if entry is None or finding.kind is FindingKind.AT_EDGE:
        return ""
    reason = f"reconciliation with {bank or 'the bank'}, {written(finding.day)}"
    if finding.kind is FindingKind.STATUS_DIFFERS and line is not None and line.has_moved:
        if entry.state is State.UNDER_WAY:
            return shlex.join(("chargeonce", "desk", "try", entry.charge_id, "--reason", reason))
        if entry.state is State.IN_REVIEW and finding.is_proof and is_plain(line.transaction_id):
            evidence = f"the statement of {written(finding.day)} has it, transaction {line.transaction_id}"
            what = ("propose", entry.charge_id, "--executed", line.transaction_id, "--evidence", evidence)
            return shlex.join(("chargeonce", "desk", *what, "--reason", reason))
    return shlex.join(("chargeonce", "desk", "ask-bank", entry.charge_id))


def is_plain(text: str) -> bool:
    """Whether a word of the bank's can be shown and copied: it is short, moves no cursor, and is no card number."""
    return 0 < len(text) <= LONGEST and text.isprintable() and not card_number_in(text)


def shown(text: str) -> str:
    """Return a word of the bank's as it may be kept and shown: without what is not plain."""
    if card_number_in(text):
        return CARD_NUMBER
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST])


def _name(kind: LineKind) -> str:
    return {LineKind.AUTHORIZE: "hold"}.get(kind, kind.name.lower())


def _moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1_000_000, UTC):%FT%TZ}"
