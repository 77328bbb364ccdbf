"""The history checker, for the operations that follow in a charge: a good history passes, and each broken one is named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from charging.v1.command_pb2 import CaptureRequest, OperationOutcome, RefundRequest, RefundResponse, VoidRequest
from charging.v1.common_pb2 import OperationStatus
from charging.v1.journal_pb2 import Event
from judge.checker import check
from judge.files import movements_of
from judge.history import BankCall, Call, Movement, Observed, charge_id_of, operation_id_of
from tests.core.diagram import GRAMMAR, grammar
from tests.simulation.histories import (
    ABANDON,
    CALLED_OFF,
    DECLINE,
    GIVEN_UP,
    ID,
    KEY,
    LAPSED,
    NOT_DONE,
    OTHER,
    REVIEW,
    TOO_LATE,
    authorized,
    bare,
    call,
    capture,
    captured,
    charged,
    euros,
    expired,
    issued,
    refund,
    refunded,
    requested,
    void,
    voided,
)

AUTHORIZED, VOIDED = 8, 9
EXECUTED, NOT_EXECUTED, ABANDONED = 2, 3, 5
HELD = [requested(KEY, is_held=True), issued("t-1"), authorized()]
PART = [capture("one", 500), issued("t-2"), captured(500, "txn-2")]
BACK = [refund("back", 200), issued("t-3"), refunded(200, "txn-3")]
REST = [capture("two", 700, final=True), issued("t-4"), captured(700, "txn-4")]
VAIN = [refund("vain", 1000), issued("t-5"), NOT_DONE]
# Positions:        1-3     4-6     7-9     10-12   13-15
STORY = [*HELD, *PART, *BACK, *REST, *VAIN]


def moved(kind: str, key: str, number: int, amount: int, **changes: Any) -> Movement:
    """What the bank's statement says of an operation."""
    reference = ID if kind in ("charge", "authorize") else operation_id_of(ID, kind, key)
    on = "" if reference == ID else "txn-1"
    made = Movement(f"txn-{number}", f"t-{number}", reference, amount, "EUR", kind, on=on)
    return replace(made, **changes)


MOVED = [
    moved("authorize", "", 1, 1250),
    moved("capture", "one", 2, 500),
    moved("refund", "back", 3, 200),
    moved("capture", "two", 4, 700),
]


def following(kind: Any, key: str, amount: int | None, **changes: Any) -> Call:
    """An answer to Capture, Void or Refund."""
    asked = Call(key, "", "", amount, "EUR" if amount else "", "ok", ID, EXECUTED, operation=kind, told_amount=amount)
    return replace(asked, **changes)


def of(*events: Event, **rest: Any) -> Observed:
    return bare(*((KEY, event) for event in events), **rest)


def good() -> Observed:
    """A hold, captured in parts with a refund in between, observed from all sides."""
    opened = call(is_held=True, status=AUTHORIZED, position=3)
    one = following("capture", "one", 500, position=6, transaction_id="txn-2", durable_position=6)
    return of(
        *STORY,
        calls=[
            opened,
            replace(opened, outcome_source=3),
            one,
            replace(one, outcome_source=3),
            replace(one, status=1, position=5, transaction_id=""),
            following("refund", "back", 200, position=9, transaction_id="txn-3"),
            following("capture", "two", 700, is_final=True, position=12, transaction_id="txn-4"),
            following("refund", "vain", None, position=15, status=NOT_EXECUTED, decline_reason=6, told_amount=1000),
            following("refund", "vain", 7, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED", advice="USE_NEW_KEY"),
            following("refund", "back", 7, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED", advice="ASK_STATUS"),
            following("refund", "much", 9999, outcome="refused", reason="MORE_THAN_IS_LEFT", advice="DO_NOT_RETRY"),
        ],
        movements=MOVED,
        bank_calls=[
            BankCall("token", ID, "", "tok_visa", 1250, "EUR", kind="authorize"),
            BankCall("token", MOVED[1].reference, "", "", 500, "EUR", kind="capture", on="txn-1"),
            BankCall("execute", "", "t-2", "", 500, "EUR", token_was_durable=True),
        ],
        is_at_rest=True,
    )


def test_a_good_history_passes() -> None:
    """A hold is captured in parts, money goes back, and one refund is declined."""
    assert check(good()) == []


@pytest.mark.parametrize(
    "rest",
    [
        [*HELD, void("away", 1250), issued("t-2"), voided(1250, "txn-2")],
        [*HELD, *PART, void("away", 750), issued("t-2"), voided(750, "txn-9")],
        [*HELD, capture("one", 500), issued("t-2"), LAPSED],
        [*HELD, *PART, capture("two", 100), LAPSED, *BACK],
        [*HELD, capture("one", 500), GIVEN_UP, capture("two", 1250), issued("t-2"), captured(1250, "txn-2")],
        [*HELD, capture("one", 500), issued("t-2"), expired("t-2"), issued("t-3"), captured(500, "txn-2")],
        [*HELD, capture("one", 500), issued("t-2"), REVIEW],
        [requested(KEY), issued("t-1"), charged(), refund("a", 1250), issued("t-2"), refunded(1250, "txn-2")],
        [requested(KEY), TOO_LATE, CALLED_OFF],
        [requested(KEY), void("away", 1250), CALLED_OFF],
        [requested(KEY), issued("t-1"), TOO_LATE, void("away", 1250), CALLED_OFF],
        [requested(KEY), issued("t-1"), void("away", 1250), charged(), *VAIN[:1]],
        [requested(KEY), issued("t-1"), expired("t-1"), void("away", 1250), ABANDON],
        [requested(KEY), issued("t-1"), void("away", 1250), DECLINE],
        [*HELD[:2], void("away", 1250), authorized(), issued("t-2"), voided(1250, "txn-2")],
        [*HELD[:2], void("away", 1250), authorized(), issued("t-2"), NOT_DONE, *PART],
    ],
)
def test_a_stream_of_operations_in_a_row_passes(rest: list[Event]) -> None:
    """Each operation comes to rest before the next; a void may call an opening off that is under way."""
    assert check(of(*rest)) == []


CHARGED_ONCE = [requested(KEY), issued("t-1"), charged()]
BY_A_CHARGE = [moved("charge", "", 1, 1250)]
AWAY = [requested(KEY), issued("t-1"), void("away", 1250), CALLED_OFF]
LAST = [capture("one", 1, final=True), issued("t-2"), captured(1, "txn-2")]

BROKEN: dict[str, Callable[[], Observed]] = {
    "I1 a refund twice": lambda: replace(
        good(), movements=[*MOVED, replace(MOVED[2], transaction_id="txn-8")], is_at_rest=False
    ),
    "I2 a capture that the bank does not know": lambda: replace(good(), movements=MOVED[:3], is_at_rest=False),
    "I3 a refund under another reference": lambda: replace(
        good(), bank_calls=[BankCall("token", "another", "", "", 200, "EUR", kind="refund")]
    ),
    "I3 money went back under another reference": lambda: replace(
        good(), movements=[*MOVED, replace(MOVED[2], reference="another")], is_at_rest=False
    ),
    "I3 a token of another operation": lambda: of(
        *HELD, capture("one", 500), movements=[MOVED[0], replace(MOVED[1], token="t-1")]
    ),
    "I4 a second token of a refund": lambda: of(
        *CHARGED_ONCE,
        *[refund("back", 200), issued("t-2"), expired("t-2"), issued("t-3")],
        movements=[*BY_A_CHARGE, moved("refund", "back", 2, 200)],
        bank_calls=[BankCall("execute", token="t-2"), BankCall("execute", token="t-3")],
    ),
    "I5 another amount than requested": lambda: of(*HELD, capture("one", 500), issued("t-2"), captured(501, "txn-2")),
    "I5 another kind": lambda: replace(
        good(), bank_calls=[BankCall("token", MOVED[2].reference, "", "", 200, "EUR", kind="capture")]
    ),
    "I5 on another transaction": lambda: replace(
        good(), bank_calls=[BankCall("token", MOVED[2].reference, "", "", 200, "EUR", kind="refund", on="txn-2")]
    ),
    "I5 the bank acted on another transaction": lambda: bare(
        *((KEY, event) for event in [*CHARGED_ONCE, refund("back", 200), issued("t-2")]),
        *((OTHER, event) for event in [requested(OTHER), issued("t-9"), charged("txn-9")]),
        movements=[
            *[*BY_A_CHARGE, moved("charge", "", 9, 1250, reference=charge_id_of("default", OTHER))],
            moved("refund", "back", 2, 200, on="txn-9"),
        ],
    ),
    "I5 called off, and nobody wanted it": lambda: replace(good(), bank_calls=[BankCall("cancel", ID, "t-1")]),
    "I6 two of one key": lambda: of(*CHARGED_ONCE, *BACK, refund("back", 100)),
    "I6 another id": lambda: of(*CHARGED_ONCE, refund("back", 100, operation_id=ID)),
    "I6 another amount was answered": lambda: replace(
        good(), calls=[following("capture", "one", 400, position=6, transaction_id="txn-2", told_amount=500)]
    ),
    "I6 another kind was answered": lambda: replace(
        good(), calls=[following("refund", "one", 500, position=6, transaction_id="txn-2")]
    ),
    "I6 all was asked for": lambda: replace(
        good(), calls=[following("capture", "one", None, position=6, transaction_id="txn-2", told_amount=500)]
    ),
    "I7 a key of another charge": lambda: replace(
        good(), calls=[following("capture", "elsewhere", 500, position=6, transaction_id="txn-2")]
    ),
    "I8 two at once": lambda: of(*HELD, capture("one", 500), capture("two", 500)),
    "I8 nothing follows a review": lambda: of(*CHARGED_ONCE[:2], REVIEW, refund("back", 100)),
    "I8 a refund calls nothing off": lambda: of(*CHARGED_ONCE[:2], refund("back", 1250)),
    "I8 two voids call off": lambda: of(*CHARGED_ONCE[:2], void("away", 1250), void("again", 1250)),
    "I8 a charge is not authorised": lambda: of(*CHARGED_ONCE[:2], authorized()),
    "I8 a refund does not lapse": lambda: of(*CHARGED_ONCE, refund("back", 100), LAPSED),
    "I8 a capture is not called off": lambda: of(*HELD, capture("one", 500), TOO_LATE),
    "I8 given up with a token": lambda: of(*CHARGED_ONCE, refund("back", 100), issued("t-2"), GIVEN_UP),
    "I8 given up while it is called off, with a token": lambda: of(*CHARGED_ONCE[:2], void("away", 1250), ABANDON),
    "I12 money of a declined refund": lambda: of(
        *CHARGED_ONCE, *VAIN, movements=[*BY_A_CHARGE, moved("refund", "vain", 5, 1000)]
    ),
    "I12 money of a charge that was called off": lambda: of(*AWAY, movements=BY_A_CHARGE),
    "I14 no actor": lambda: of(*CHARGED_ONCE, refund("back", 100, actor="")),
    "I14 another tenants charge": lambda: replace(
        good(), calls=[following("capture", "one", 500, position=6, transaction_id="txn-2", tenant="another")]
    ),
    "I15 an executed charge is told as called off": lambda: replace(good(), calls=[call(is_held=True, status=VOIDED)]),
    "I15 an outcome before it was": lambda: replace(
        good(), calls=[following("capture", "one", 500, position=5, transaction_id="txn-2")]
    ),
    "I15 pending after the outcome": lambda: replace(
        good(), calls=[following("capture", "one", 500, position=6, status=1)]
    ),
    "I15 at anothers position": lambda: replace(
        good(), calls=[following("capture", "one", 500, position=9, transaction_id="txn-2")]
    ),
    "I15 another amount was told": lambda: replace(
        good(), calls=[following("capture", "one", 500, position=6, transaction_id="txn-2", told_amount=400)]
    ),
    "I15 another transaction was told": lambda: replace(
        good(), calls=[following("capture", "one", 500, position=6, transaction_id="txn-1")]
    ),
    "I15 stored after all": lambda: replace(
        good(), calls=[following("capture", "one", 500, outcome="refused", reason="OPERATION_UNDER_WAY")]
    ),
    "I15 not reused": lambda: replace(
        good(), calls=[following("capture", "one", 500, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED")]
    ),
    "I18 a new key beside a refund that was done": lambda: replace(
        good(),
        calls=[
            following("refund", "back", 7, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED", advice="USE_NEW_KEY")
        ],
    ),
    "I17 more than was held": lambda: of(*HELD, *PART, capture("two", 751)),
    "I17 more than came in": lambda: of(*HELD, *PART, refund("back", 501)),
    "I17 a refund of a hold": lambda: of(*HELD, refund("back", 1)),
    "I17 a capture of a charge": lambda: of(*CHARGED_ONCE, capture("one", 1)),
    "I17 a part of the hold is let go": lambda: of(*HELD, void("away", 1249)),
    "I17 a part of the charge is called off": lambda: of(*CHARGED_ONCE[:2], void("away", 1249)),
    "I17 after a void": lambda: of(*HELD, void("away", 1250), issued("t-2"), voided(1250, "txn-2"), capture("one", 1)),
    "I17 after a final capture": lambda: of(*HELD, *LAST, capture("two", 1)),
    "I17 after the hold lapsed": lambda: of(*HELD, capture("one", 500), LAPSED, capture("two", 500)),
    "I17 the bank gave money back before it came in": lambda: of(
        *HELD, *PART, *BACK, movements=[MOVED[0], MOVED[2], MOVED[1]]
    ),
}
# These cannot be broken alone.
TOGETHER: dict[str, Callable[[], Observed]] = {
    "I3 I12 I17 a refund that the journal lacks": lambda: replace(
        good(), movements=[*MOVED, moved("refund", "", 9, 1, reference="another")]
    ),
    "I3 I17 a capture after the hold was let go": lambda: of(
        *HELD,
        *[void("away", 1250), issued("t-2"), voided(1250, "txn-2")],
        movements=[MOVED[0], moved("void", "away", 2, 1250), moved("capture", "", 9, 1, reference="another")],
    ),
    "I12 L1 L2 a refund whose answer was lost": lambda: of(
        *CHARGED_ONCE,
        *[refund("back", 200), issued("t-2")],
        movements=[*BY_A_CHARGE, moved("refund", "back", 2, 200)],
        is_at_rest=True,
    ),
    "I12 I17 a refund that is told as declined": lambda: of(
        *[*CHARGED_ONCE, *VAIN],
        movements=[*BY_A_CHARGE, moved("refund", "vain", 5, 1000)],
        is_at_rest=True,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_history_that_breaks_one_invariant_violates_that_one_only(name: str) -> None:
    """Each broken history violates exactly one invariant."""
    assert {violation.invariant for violation in check(BROKEN[name]())} == {name.split(maxsplit=1)[0]}


@pytest.mark.parametrize("name", TOGETHER)
def test_invariants_that_break_together_are_all_found(name: str) -> None:
    """Money that moves beside the journal breaks the sums and the books as well."""
    expected = {word for word in name.split() if word[:1] in "IL" and word[1:].isdigit()}
    assert {violation.invariant for violation in check(TOGETHER[name]())} == expected


def test_a_key_means_another_operation_in_another_charge() -> None:
    """Two charges have an operation each under one key: neither answer is about the other."""
    other = charge_id_of("default", OTHER)
    asked = refund("back", 100, operation_id=operation_id_of(other, "refund", "back"))
    opened = [(OTHER, event) for event in (requested(OTHER), issued("t-8"), charged("txn-8"))]
    stored = [*((KEY, event) for event in [*CHARGED_ONCE, *BACK]), *opened, (OTHER, asked), (OTHER, NOT_DONE)]
    ours = following("refund", "back", 200, position=6, transaction_id="txn-3")
    theirs = following(
        "refund", "back", 100, position=11, charge_id=other, status=NOT_EXECUTED, decline_reason=6, told_amount=100
    )
    assert check(bare(*stored, calls=[ours, theirs])) == []
    swapped = replace(theirs, position=6, transaction_id="txn-3", status=EXECUTED, decline_reason=0, told_amount=200)
    assert {violation.invariant for violation in check(bare(*stored, calls=[swapped]))} == {"I7"}


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [(CALLED_OFF, EXECUTED, 0), (charged(), NOT_EXECUTED, 8), (DECLINE, NOT_EXECUTED, 1), (REVIEW, 4, 0)],
)
def test_a_void_that_calls_off_is_told_the_charges_end(ending: Event, status: int, reason: int) -> None:
    """The charge is called off, or it is too late: both at one position."""
    stored = [requested(KEY), issued("t-1"), void("away", 1250), ending]
    told = following("void", "away", None, position=4, status=status, decline_reason=reason, told_amount=1250)
    assert check(of(*stored, calls=[told])) == []
    assert check(of(*stored, calls=[replace(told, status=ABANDONED)])) != []


def test_calls_are_read_from_requests_and_answers() -> None:
    """An amount that is left out is None in the call, and a number in the answer."""
    said = OperationOutcome(
        charge_id=ID, status=OperationStatus.OPERATION_STATUS_EXECUTED, amount=euros(200), transaction_id="txn-3"
    )
    asked = RefundRequest(idempotency_key="back", charge_id=ID)
    assert Call.answered(asked, RefundResponse(outcome=said), 9) == following(
        "refund", "back", None, told_amount=200, transaction_id="txn-3", durable_position=9
    )
    capture_all = CaptureRequest(idempotency_key="one", charge_id=ID, amount=euros(5), final=True)
    assert Call.failed(capture_all, "MORE_THAN_IS_LEFT", "DO_NOT_RETRY") == following(
        "capture",
        "one",
        5,
        is_final=True,
        outcome="refused",
        status=0,
        told_amount=None,
        reason="MORE_THAN_IS_LEFT",
        advice="DO_NOT_RETRY",
    )
    assert Call.failed(VoidRequest(idempotency_key="away", charge_id=ID)).outcome == "unknown"


def test_a_statement_names_the_transaction_that_a_movement_acts_on() -> None:
    """As the mock bank's statement does."""
    row: dict[str, object] = {
        "transaction_id": "txn-2",
        "token": "t-2",
        "reference": "r",
        "kind": "capture",
        "on": "txn-1",
    }
    row |= {"minor_units": 500, "currency_code": "EUR", "executed_at": "2026-11-29T00:00:00Z"}
    assert movements_of({"movements": [row]}) == [Movement("txn-2", "t-2", "r", 500, "EUR", "capture", on="txn-1")]


def test_the_grammar_is_that_of_the_cores_tables() -> None:
    """It is generated: after a change of the tables run python -m tests.core.diagram."""
    assert GRAMMAR.read_text() == grammar()
