"""The banks of a story, made by its plan."""

from collections.abc import Callable, Mapping

from prove.simulation.bank import Bank
from prove.simulation.one_step import OneStepBank
from prove.simulation.plan import Plan
from prove.simulation.shapes import ONE_STEP, STRIPE, BankPlan
from prove.simulation.stripe import StripeAccount
from prove.simulation.two_step import TwoStepBank


def banks_of(plan: Plan, clock: Callable[[], float]) -> Mapping[str, Bank]:
    """Make them, by their names."""
    return {each.name: _bank(each, plan, clock) for each in plan.banks}


def _bank(each: BankPlan, plan: Plan, clock: Callable[[], float]) -> Bank:
    if each.kind == ONE_STEP:
        return OneStepBank(
            clock,
            each.name,
            late_factor=plan.late_factor,
            key_seconds=each.key_seconds,
            hold_seconds=plan.hold_seconds,
        )
    if each.kind == STRIPE:
        return StripeAccount(
            clock,
            each.name,
            late_factor=plan.late_factor,
            key_seconds=each.key_seconds,
            hold_seconds=plan.hold_seconds,
            search_lag_seconds=each.search_lag_seconds,
        )
    return TwoStepBank(
        clock,
        each.name,
        late_factor=plan.late_factor,
        token_seconds=plan.token_seconds,
        calm_token_seconds=each.step_seconds,
        hold_seconds=plan.hold_seconds,
    )
