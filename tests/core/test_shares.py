"""Laws of the tenants' shares and rates, over generated weights and courses."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chassis.shares import LATEST_RETURN_SECONDS, NO_WEIGHTS, Excess, Rates, Shares

TENANTS = ("a", "b", "c", "stranger")
WEIGHTS = st.dictionaries(st.sampled_from(TENANTS[:3]), st.floats(0.001, 1_000.0))


def taken(shares: Shares, tenant: str) -> int:
    """Take places until there are no more for this tenant; return their number."""
    number = 0
    while shares.take(tenant) is None:
        number += 1
    return number


def reserved(limit: int, weights: Mapping[str, float], tenant: str) -> int:
    """What a tenant still gets after all others have taken all that they get."""
    shares = Shares(limit, lambda: weights)
    for other in (*weights, "stranger"):
        if other != tenant:
            taken(shares, other)
    return taken(shares, tenant)


@given(st.integers(1, 60), WEIGHTS)
def test_all_that_tenants_get_is_never_more_than_the_limit_and_each_gets_its_part(
    limit: int, weights: Mapping[str, float]
) -> None:
    """Whoever comes last: at least one place each if the limit allows, and its weight's part of half of the limit."""
    for tenant in weights:
        part = reserved(limit, weights, tenant)
        assert part >= (limit >= len(weights))
        spread = max(0, limit // 2 - len(weights))
        assert part >= int(spread * weights[tenant] / sum(weights.values())) * (limit >= len(weights))


@given(st.integers(1, 60), st.sampled_from(TENANTS))
def test_without_weights_whoever_comes_has_the_whole_limit(limit: int, tenant: str) -> None:
    shares = Shares(limit)
    assert taken(shares, tenant) == limit
    assert {shares.take(each) for each in TENANTS} == {Excess.SERVER}


@given(st.integers(1, 60), st.floats(0.001, 1_000.0))
def test_the_only_known_tenant_has_the_whole_limit(limit: int, weight: float) -> None:
    shares = Shares(limit, lambda: {"a": weight})
    assert taken(shares, "a") == limit


@pytest.mark.parametrize(
    ("limit", "known", "stranger"), [(1, 1, 0), (2, 2, 1), (3, 3, 2), (10, 10, 5), (2_000, 2_000, 1_000)]
)
def test_a_tenant_that_is_not_known_has_the_common_part_only(limit: int, known: int, stranger: int) -> None:
    assert taken(Shares(limit, lambda: {"a": 1.0}), "a") == known
    assert taken(Shares(limit, lambda: {"a": 1.0}), "stranger") == stranger


def test_weights_split_half_of_the_limit() -> None:
    """Three to one. Of the common half each may take all."""
    weights = {"a": 3.0, "b": 1.0}
    assert (reserved(1_000, weights, "a"), reserved(1_000, weights, "b")) == (374, 125)
    shares = Shares(1_000, lambda: weights)
    assert taken(shares, "b") == 1_000 - 374
    assert shares.take("b") is Excess.TENANT
    assert taken(shares, "a") == 374
    assert shares.take("a") is Excess.SERVER


class Course(RuleBasedStateMachine):
    """Tenants come and go, some whatever the limits, and weights change."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: Mapping[str, float] = NO_WEIGHTS
        self.shares = Shares(7, lambda: self.weights)
        self.held: Counter[str] = Counter()

    @rule(tenant=st.sampled_from(TENANTS))
    def take(self, tenant: str) -> None:
        total = self.held.total()
        match self.shares.take(tenant):
            case None:
                assert total < 7
                self.held[tenant] += 1
            case Excess.SERVER:
                assert total >= 7
            case Excess.TENANT:
                assert total < 7
                assert self.weights
                assert self.held[tenant] or tenant not in self.weights  # one place is always reserved

    @rule(tenant=st.sampled_from(TENANTS))
    def force(self, tenant: str) -> None:
        self.shares.force(tenant)
        self.held[tenant] += 1

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if here := sorted(self.held.elements()):
            tenant = data.draw(st.sampled_from(here))
            self.shares.give_back(tenant)
            self.held[tenant] -= 1

    @rule(weights=WEIGHTS)
    def change_weights(self, weights: Mapping[str, float]) -> None:
        self.weights = weights

    @invariant()
    def counts_what_is_held(self) -> None:
        assert self.shares.used == self.held.total()

    def teardown(self) -> None:
        """Once all is given back, it is as new."""
        for tenant in self.held.elements():
            self.shares.give_back(tenant)
        for tenant in self.weights:
            assert self.shares.take(tenant) is None


TestCourse = Course.TestCase


# ---------------------------------------------------------------- rates
class Clock:
    """A clock that a test sets."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(0.1, 20.0), st.lists(st.floats(0.0, 2.0), max_size=12))
def test_no_more_calls_pass_than_the_rate_allows(rate: float, pauses: list[float]) -> None:
    """In any time: its seconds times the rate, and those of one second before."""
    clock = Clock()
    rates = Rates(lambda _: rate, clock)
    passed = []
    for pause in pauses:
        clock.now += pause
        while rates.take("a") is None:
            passed.append(clock.now)
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= (passed[last] - begin) * rate + max(1.0, rate) + 0.01


def test_a_rate_allows_as_many_calls_a_second_as_it_says() -> None:
    """All of a second at once after a pause; then one each tenth."""
    clock = Clock()
    rates = Rates(lambda _: 10.0, clock)
    assert [rates.take("a") for _ in range(10)] == [None] * 10
    assert rates.take("a") == pytest.approx(0.1)
    assert rates.take("b") is None  # another tenant has a rate of its own
    for _ in range(50):
        clock.now += 0.1
        assert rates.take("a") is None
        assert rates.take("a") is not None
    clock.now += 60.0
    assert [rates.take("a") is None for _ in range(12)] == [True] * 10 + [False] * 2


def test_a_tenant_without_a_rate_is_never_refused() -> None:
    rates = Rates({"a": 1.0}.get, Clock())
    assert [rates.take("b") for _ in range(1_000)] == [None] * 1_000
    assert rates.take("a") is None
    assert rates.take("a") == pytest.approx(1.0)


def test_refused_calls_may_come_again_one_after_another_within_a_minute() -> None:
    """Each when there is a place for it, as long as that is within a minute."""
    rates = Rates(lambda _: 10.0, Clock())
    waits = [wait for _ in range(1_010) if (wait := rates.take("a")) is not None]
    assert waits[:3] == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)]
    assert max(waits) <= LATEST_RETURN_SECONDS
    assert max(Counter(round(wait, 3) for wait in waits).values()) <= 3
