"""The simulation's banks: what their stories must be able to show."""

from prove.simulation.ops import Op
from prove.simulation.plan import BANKS, Plan, Weather, plan_of, traits_of
from prove.simulation.shapes import BankPlan
from prove.simulation.stories import tell

SILENCE_SECONDS = 40.0


def test_the_stories_have_every_shape_alone_and_together() -> None:
    """And some of each that forgets keys are of a bank that is away for longer than it knows them."""
    plans = [plan_of(seed) for seed in range(BANKS, BANKS + 200)]
    kinds = {"two_step", "one_step", "stripe"}
    found = set[str]().union(*map(traits_of, plans))
    assert found >= {*kinds, "several", "one_step leaves", "stripe leaves", "stripe leaves late", "restored"}
    assert {plan.banks[0].kind for plan in plans if len(plan.banks) == 1} == kinds


def test_a_silent_bank_holds_up_no_charge_at_another() -> None:
    """With one call at a time at each, the charges at the other bank are done long before the silence ends."""
    ops = [[Op(0.5, f"order-{number}", "ada", "tok_visa", 1250, "EUR", 5.0, None, 1)] for number in range(8)]
    plan = Plan(
        seed=1,
        horizon_seconds=SILENCE_SECONDS + 5.0,
        clients=ops,
        weather=[Weather(0.0, "bank_silent", SILENCE_SECONDS, "acme")],
        weights={},
        bank_calls=1,
        max_unfinished=20_000,
        max_calls=2_000,
        abandon_after_seconds=3_600.0,
        bank_timeout_seconds=2.0,
        token_seconds=900.0,
        heartbeat_seconds=5.0,
        views=1,
        shuffles=True,
        grid_seconds=0.0,
        banks=[BankPlan("acme", "two_step"), BankPlan("bolt", "one_step", key_seconds=420.0)],
    )
    told = tell(plan)
    assert told.violations == []
    charged_at = [when for when, who, what in told.notes if who == "journal" and what[2] == "charged"]
    early = [when for when in charged_at if when < 5.0]
    late = [when for when in charged_at if when > SILENCE_SECONDS]
    assert early
    assert late
    assert len(early) + len(late) == len(ops)
