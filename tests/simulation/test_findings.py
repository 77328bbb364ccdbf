"""Bugs that the simulation found, each as a story of its own, independent of changes in the plans."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prove.simulation.ops import Op
from prove.simulation.plan import Plan, Weather
from prove.simulation.shapes import BankPlan
from prove.simulation.stories import tell


def an_op(key: str, pause_seconds: float, tries: int = 1) -> Op:
    return Op(pause_seconds, key, "ada", "tok_visa", 1250, "EUR", 5.0, None, tries)


def a_plan(clients: Sequence[Sequence[Op]], weather: Sequence[Weather], **chosen: Any) -> Plan:
    """Make a plan without faults but the weather."""
    usual: dict[str, Any] = {
        "weights": {},
        "bank_calls": 8,
        "max_unfinished": 20_000,
        "max_calls": 2_000,
        "abandon_after_seconds": 3_600.0,
        "bank_timeout_seconds": 2.0,
        "token_seconds": 900.0,
        "heartbeat_seconds": 5.0,
        "views": 1,
        "shuffles": True,
        "grid_seconds": 0.0,
    }
    return Plan(seed=1, clients=clients, weather=weather, **usual | chosen)


def test_new_charges_are_accepted_after_an_outage_in_which_all_charges_were_given_up() -> None:
    """Seed 183: the breaker stayed open, with no charge under way that could find the bank back.

    During an outage of the bank a dozen charges fail until the breaker opens, and all of them are given up. A later charge
    must be accepted, since only a new one can try the bank.
    """
    waiting = [[an_op(f"order-before-{number}", 0.5)] for number in range(12)]
    later = [an_op("order-after", 415.0)]
    plan = a_plan(
        [*waiting, later],
        [Weather(0.0, "bank_down", 400.0)],
        horizon_seconds=420.0,
        abandon_after_seconds=0.5,
        bank_timeout_seconds=1.0,
    )
    told = tell(plan)
    assert told.violations == []
    events = [what for _, who, what in told.notes if who == "journal"]
    assert [what[2] for what in events if what[2] == "charge_abandoned"] == ["charge_abandoned"] * 12
    assert events[-1][2] == "charged"


def test_a_charge_that_is_overdue_pauses_while_the_disk_is_full() -> None:
    """Seed 2002486: with no room for the event that calls it off, its loop went round without a pause."""
    op = Op(0.5, "order-1", "ada", "tok_visa", 1250, "EUR", 5.0, None, 1, not_after_seconds=3.0)
    away, full = Weather(0.4, "bank_down", 12.0), Weather(2.0, "disk_full", 10.0)
    told = tell(a_plan([[op]], [away, full], horizon_seconds=15.0))
    assert told.violations == []
    assert told.callbacks < 5_000
    events = [what[2] for _, who, what in told.notes if who == "journal"]
    assert events[-2:] == ["not_after_passed", "charge_called_off"]


def test_a_start_without_a_clock_takes_no_operation_for_young() -> None:
    """The bank has forgotten the key of an order that it did, and the clock of the machine that comes up shows 1970."""
    op = Op(0.5, "order-1", "ada", "tok_visa", 1250, "EUR", 5.0, None, 1)
    bank = BankPlan("acme", "one_step", key_seconds=420.0, away_seconds=500.0)
    weather = [Weather(490.0, "clock_before_1970", 60.0), Weather(495.0, "kill_command", 0.0)]
    told = tell(a_plan([[op]], weather, weights={"away_after": 1.0}, horizon_seconds=600.0, banks=[bank]))
    assert told.violations == []
    assert told.fired["key_forgotten"]


def test_a_capture_that_stripe_cannot_do_is_declined_after_a_restore_too() -> None:
    """Seed 2000088: the look-up found the hold open, so that a token was given that only a person could get rid of."""
    hold = Op(0.5, "order-1", "ada", "tok_visa", 1250, "EUR", 5.0, None, 1, is_held=True)
    part = replace(hold, key="part", method="capture", charge_key="order-1", amount=500, is_held=False)
    banks = [BankPlan("acme", "stripe", key_seconds=420.0)]
    told = tell(a_plan([[hold, part]], [], horizon_seconds=10.0, banks=banks, is_restored=True))
    assert told.violations == []
    events = [what[2] for _, who, what in told.notes if who == "journal"]
    assert events == ["charge_requested", "token_issued", "authorized", "capture_requested", "operation_declined"]


def test_an_intent_that_a_search_does_not_find_yet_is_looked_up_by_its_id() -> None:
    """Seed 2003078: after a restore an answer to another question and a search that lagged brought charges into review."""
    ops = [[an_op(f"order-{number}", 0.5)] for number in range(8)]
    banks = [BankPlan("acme", "stripe", key_seconds=420.0, search_lag_seconds=60.0)]
    told = tell(a_plan(ops, [], weights={"stray": 0.5}, horizon_seconds=20.0, banks=banks, is_restored=True))
    assert told.violations == []
    assert told.fired["stray"] > 8


def test_callers_who_ask_often_for_a_customers_step_do_not_press_a_bank_that_is_down() -> None:
    """Seed 2060689: each call had the bank asked at once, and the pauses between the vain attempts begin anew."""
    first = Op(0.5, "order-1", "ada", "tok_3ds", 1250, "EUR", 5.0, None, 1)
    often = [[replace(first, pause_seconds=0.5)] * 16 for _ in range(2)]
    down = Weather(2.0, "bank_down", 10.0)
    plan = a_plan([[first], *often], [down], weights={"customer_never": 1.0}, horizon_seconds=14.0, token_seconds=20.0)
    told = tell(plan)
    assert told.violations == []
    vain = [when for when, who, what in told.notes if who == "bank" and "nobody is there" in what]
    asked = [when for when, who, what in told.notes if who.startswith("client") and what[0] == "asks"]
    assert len(asked) > 20
    assert len(vain) < len(asked) + 15
