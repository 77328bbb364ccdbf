"""The rule that names the banks for a charge: by currency and brand, and by weight."""

import itertools
import uuid
from collections import Counter
from dataclasses import replace

import pytest

from command_service.bank.routes import Route, rule
from command_service.values import Card, Money, Request
from tests.core.stories import REQUEST

CHARGES = [str(uuid.UUID(int=number)) for number in range(4_000)]


def a_request(currency: str = "EUR", brand: str = "visa") -> Request:
    return replace(REQUEST, card=Card("tok", brand), amount=Money(100, currency))


@pytest.mark.parametrize(
    ("currency", "brand", "bank"),
    [("EUR", "visa", "a"), ("EUR", "VISA", "a"), ("EUR", "", "b"), ("EUR", "amex", "b"), ("USD", "visa", "c")],
)
def test_the_first_route_that_fits_a_charge_names_its_bank(currency: str, brand: str, bank: str) -> None:
    """A brand is a client's word, in small or large letters; a charge without one fits no route for brands."""
    euros, visa = frozenset({"EUR", "CHF"}), frozenset({"visa", "mastercard"})
    routes = [Route({"a": 1.0}, euros, visa), Route({"b": 1.0}, euros), Route({"c": 1.0})]
    assert rule(routes, a_request(currency, brand)) == (bank,)


def test_banks_are_chosen_as_often_as_their_weights_tell() -> None:
    """And where the first is passed over, the others share its charges by their weights."""
    route = Route({"a": 3.0, "b": 1.0, "c": 1.0})
    firsts = Counter(route.order(charge)[0] for charge in CHARGES)
    assert firsts["a"] / len(CHARGES) == pytest.approx(0.6, abs=0.04)
    assert firsts["b"] / len(CHARGES) == pytest.approx(0.2, abs=0.04)
    after_a = Counter(route.order(charge)[1] for charge in CHARGES if route.order(charge)[0] == "a")
    assert after_a["b"] / firsts["a"] == pytest.approx(0.5, abs=0.05)


def test_a_charge_meets_the_same_order_again_however_its_route_is_written() -> None:
    weights = {"a": 3.0, "b": 1.0, "c": 0.5}
    for charge in CHARGES[:50]:
        orders = {tuple(Route(dict(written)).order(charge)) for written in itertools.permutations(weights.items())}
        assert len(orders) == 1
        assert sorted(*orders) == ["a", "b", "c"]


def test_another_bank_takes_its_own_share_only() -> None:
    """No charge changes from one of the former banks to another of them: what is refused and repeated meets them again."""
    two, three = Route({"a": 1.0, "b": 1.0}), Route({"a": 1.0, "b": 1.0, "c": 1.0})
    moved = [charge for charge in CHARGES if two.order(charge)[0] != three.order(charge)[0]]
    assert {three.order(charge)[0] for charge in moved} == {"c"}
    assert len(moved) / len(CHARGES) == pytest.approx(1 / 3, abs=0.04)
