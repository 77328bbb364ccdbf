"""The history checker, where the bank wants a step of the customer."""

from dataclasses import replace

import pytest

from charging.v1.journal_pb2 import Event
from judge.checker import check
from judge.history import BankCall, Call, Observed, charge_id_of, fold
from tests.simulation.histories import (
    ASKED,
    CALLED_OFF,
    DECLINE,
    KEY,
    PENDING,
    REQUIRES_ACTION,
    TOO_LATE,
    authorized,
    bare,
    call,
    charged,
    expired,
    issued,
    journal,
    refund,
    requested,
    void,
)

REFERENCE = charge_id_of("default", KEY)


def told(status: int, position: int) -> Call:
    """An answer to the charge's key, before it was decided."""
    return call(status=status, position=position, transaction_id="", durable_position=position)


def one(*events: Event, off_session: bool = False, **rest: object) -> Observed:
    """One charge whose bank gave a token, and what followed."""
    first = (requested(KEY, off_session=off_session), issued("t-1"))
    return bare(*((KEY, event) for event in (*first, *events)), **rest)


@pytest.mark.parametrize(
    "events",
    [
        (ASKED, charged()),
        (ASKED, ASKED, DECLINE),
        (ASKED, CALLED_OFF),
        (ASKED, TOO_LATE, charged()),
        (ASKED, void("void-1", 1250), CALLED_OFF),
        (expired("t-1"), issued("t-2"), ASKED, charged()),
    ],
)
@pytest.mark.parametrize("off_session", [False, True])
def test_the_ways_of_a_charge_whose_customer_is_awaited_pass(events: tuple[Event, ...], off_session: bool) -> None:
    observed = one(*events, off_session=off_session)
    assert check(replace(observed, view=fold(observed.records))) == []


def test_a_hold_may_want_the_customer_too() -> None:
    first = (requested(KEY, is_held=True), issued("t-1"), ASKED, authorized())
    assert check(bare(*((KEY, event) for event in first))) == []


@pytest.mark.parametrize(
    "events",
    [
        (ASKED, expired("t-1")),
        (ASKED, issued("t-2")),
        (ASKED, TOO_LATE, ASKED),
        (charged(), refund("refund-1", 1), issued("t-2"), ASKED),
    ],
    ids=["expires", "another token", "called off", "a refund"],
)
def test_a_stream_that_awaits_the_customer_at_the_wrong_time_is_found(events: tuple[Event, ...]) -> None:
    assert {violation.invariant for violation in check(one(*events))} == {"I8"}


def test_an_answer_that_asks_for_the_customer_promises_nothing_yet() -> None:
    """PENDING before, REQUIRES_ACTION meanwhile, PENDING while it is called off, and then the outcome."""
    calls = [
        told(PENDING, 2),
        told(REQUIRES_ACTION, 3),
        told(REQUIRES_ACTION, 4),
        told(PENDING, 5),
        call(position=6, durable_position=6),
    ]
    assert check(one(ASKED, ASKED, TOO_LATE, charged(), calls=calls)) == []


@pytest.mark.parametrize(
    ("status", "position", "off_session"),
    [
        (REQUIRES_ACTION, 2, False),
        (PENDING, 3, False),
        (REQUIRES_ACTION, 4, False),
        (REQUIRES_ACTION, 3, True),
    ],
    ids=["before", "meanwhile", "afterwards", "nobody is there"],
)
def test_an_untrue_answer_about_the_customer_is_found(status: int, position: int, off_session: bool) -> None:
    observed = one(ASKED, TOO_LATE, off_session=off_session, calls=[told(status, position)])
    assert {violation.invariant for violation in check(observed)} == {"I15"}


@pytest.mark.parametrize(("off_session", "found"), [(True, set[str]()), (False, {"I5"})])
def test_only_a_charge_off_session_is_called_off_by_itself(off_session: bool, found: set[str]) -> None:
    """A customer who is there is waited for."""
    observed = one(ASKED, off_session=off_session, bank_calls=[BankCall("cancel", REFERENCE, "t-1")])
    assert {violation.invariant for violation in check(observed)} == found


def test_a_view_that_forgets_where_to_send_the_customer_is_found() -> None:
    records = journal((KEY, requested(KEY)), (KEY, issued("t-1")), (KEY, ASKED))
    view = fold(records)
    assert view.charges[0]["action_url"] == ASKED.action_required.action.url
    wrong = replace(view, charges=[{**view.charges[0], "action_url": ""}])
    assert {violation.invariant for violation in check(Observed(records, view=wrong))} == {"I11"}
