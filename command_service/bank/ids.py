"""The ids that a bank gives its transactions, as far as they may be kept."""

import re

from command_service.card_numbers import card_number_in

# The form of a bank's ids that are stored. "." and ".." would turn into another path.
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.:-]{1,128}")


def is_storable(bank_id: str) -> bool:
    """Whether an id of the bank's may be stored and put into a path: it has the form of an id and holds no card number."""
    return _ID.fullmatch(bank_id) is not None and not card_number_in(bank_id)
