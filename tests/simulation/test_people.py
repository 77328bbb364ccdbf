"""The simulation's operators: what their stories must be able to show, and what is noticed about charges that are held back."""

from dataclasses import replace

from prove.simulation.faults import OF_PEOPLE, PEOPLE
from prove.simulation.plan import PEOPLE_FROM, plan_of
from prove.simulation.stories import tell, try_seeds

STORIES = 96


def test_the_stories_have_every_step_and_every_mistake_of_operators() -> None:
    """At one server, at several, and with banks of every shape; and nothing breaks that no event names."""
    tried = try_seeds(range(PEOPLE_FROM, PEOPLE_FROM + STORIES))
    assert tried.failures == []
    assert [kind for kind in (*PEOPLE, *OF_PEOPLE) if not tried.fired[kind]] == []
    plans = [plan_of(seed) for seed in range(PEOPLE_FROM, PEOPLE_FROM + STORIES)]
    assert {bool(plan.servers) for plan in plans} == {True, False}
    assert {bank.kind for plan in plans for bank in plan.banks} == {"two_step", "one_step", "stripe"}


def test_whoever_forgets_a_hold_is_reminded_in_the_end() -> None:
    """So each story ends at rest, however many charges were held back when its faults stopped."""
    for seed in range(PEOPLE_FROM, PEOPLE_FROM + 12):
        plan = plan_of(seed)
        told = tell(replace(plan, weights={**plan.weights, "people_forget_hold": 1.0}))
        assert told.violations == []
        charges = {"held_back": set[object](), "let_go": set[object]()}
        for _, who, what in told.notes:
            if who == "journal" and what[2] in charges:
                charges[str(what[2])].add(what[1])
        assert charges["let_go"] <= charges["held_back"]


def test_without_operators_a_story_has_none_of_their_steps() -> None:
    """A story is shrunk by leaving them out, one by one."""
    told = tell(replace(plan_of(PEOPLE_FROM), operators=0))
    assert told.violations == []
    assert not set(told.fired) & set(OF_PEOPLE)
