"""The banks of a story, made by its plan."""

from collections.abc import Callable, Mapping
from typing import Any

from prove.simulation.bank import Bank
from prove.simulation.one_step import OneStepBank
from prove.simulation.plan import Plan
from prove.simulation.shapes import BankPlan
from prove.simulation.stripe import StripeAccount
from prove.simulation.two_step import TwoStepBank


def banks_of(plan: Plan, clock: Callable[[], float]) -> Mapping[str, Bank]:
    """Make them, by their names."""
    return {each.name: _bank(each, plan, clock) for each in plan.banks}


def _bank(each: BankPlan, plan: Plan, clock: Callable[[], float]) -> Bank:
    common: Any = {
        "clock": clock,
        "name": each.name,
        "late_factor": plan.late_factor,
        "away_seconds": each.away_seconds,
        "spares_openings": each.spares_openings,
    }
    match each.kind:
        case "one_step":
            return OneStepBank(**common, key_seconds=each.key_seconds, hold_seconds=plan.hold_seconds)
        case "stripe":
            lag_seconds = each.search_lag_seconds
            return StripeAccount(
                **common, key_seconds=each.key_seconds, hold_seconds=plan.hold_seconds, search_lag_seconds=lag_seconds
            )
        case _:
            return TwoStepBank(
                **common,
                token_seconds=plan.token_seconds,
                calm_token_seconds=each.step_seconds,
                hold_seconds=plan.hold_seconds,
            )
