"""The ids that the bank makes up: tokens and transaction ids."""

import re
import secrets

# A card number has twelve digits or more. A client that looks for them, as it should, would take such an id for one.
_LIKE_A_CARD_NUMBER = re.compile(r"[0-9]{12}")


def new_token() -> str:
    """Make up a token."""
    return f"ttok_{_random()}"


def new_transaction_id() -> str:
    """Make up the id of an executed transaction."""
    return f"txn_{_random()}"


def _random() -> str:
    while _LIKE_A_CARD_NUMBER.search(made := secrets.token_hex(16)):
        pass
    return made
