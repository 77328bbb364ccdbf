"""The ids that the mock bank makes up."""

import re
from collections.abc import Callable

import pytest

from command_service.bank.dialect import is_storable
from gateway_mock.ids import new_token, new_transaction_id


@pytest.mark.parametrize("make", [new_token, new_transaction_id])
def test_no_id_holds_as_many_digits_in_a_row_as_a_card_number(make: Callable[[], str]) -> None:
    """Of random ids one in forty does, and one in three million would be refused as a card number."""
    made = [make() for _ in range(5_000)]
    assert len(set(made)) == len(made)
    assert [each for each in made if re.search("[0-9]{12}", each) or not is_storable(each)] == []
